"""Writing files so that a reader never meets half of one."""

import contextlib
import csv
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from pathlib import Path

from r2c_gan.errors import UserError

# It can only be read by setting it, which is not safe once there are threads.
_UMASK = os.umask(0)
os.umask(_UMASK)
# In indented JSON: a list or dictionary that holds no other. A newline is never inside a string.
_PLAIN = re.compile(r"""([\[{])\n *((?:[^\[\]{}"]|"(?:[^"\\]|\\.)*")*)\n *([\]}])""")
# What a spreadsheet takes for a formula, and our escape before it: an apostrophe, as OWASP advises.
_FORMULA, _ESCAPED = re.compile(r"'*[=+\-@\t\r\n]"), re.compile(r"'+[=+\-@\t\r\n]")
_SCRATCH_LOCK = ".r2c_gan.lock"


@contextlib.contextmanager
def atomic_path(path):
    """Yields a temporary path in the folder of `path`; renames it to `path` if the block succeeds.

    Args:
        path: the file to write; its folder is made if missing.

    Yields:
        A `pathlib.Path` with the same suffixes. It is deleted if the block raises.

    Raises:
        UserError: if the folder cannot be written or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=_prefix(path), suffix=_suffix(path), dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        os.chmod(temporary, 0o666 & ~_UMASK)  # mkstemp makes private files; a result is meant to be shared
        os.replace(temporary, path)
    except OSError as error:
        # An OSError about some other file (an input, say) is not ours to explain.
        if temporary is None or str(temporary) in str(error) or error.filename is None:
            raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def leftovers(path):
    """The temporary files that killed processes left of `atomic_path(path)`."""
    path = Path(path)
    return list(path.parent.glob(glob.escape(_prefix(path)) + "?" * 8 + glob.escape(_suffix(path))))


def leftovers_in(folder):
    """The temporary files that killed processes left of any `atomic_path` in a folder that is one process's alone."""
    return list(Path(folder).glob("." + "[0-9a-f]" * 10 + "." + "?" * 8 + ".*"))


def _prefix(path):
    """Short, because a name of 250 bytes leaves a longer one no room, and the path's own: nobody else's are swept."""
    return f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:10]}."


def _suffix(path):
    """The last two suffixes (.weights.h5, .tar.gz), as long as they are short: writers look at them."""
    for kept in (2, 1):
        suffix = "".join(path.suffixes[-kept:])
        if len(os.fsencode(suffix)) <= 24:
            return suffix
    return ""


def path_text(path):
    """A path as text that is the same in every locale: its bytes read as UTF-8, the others kept (`surrogateescape`)."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def text_path(text):
    """The path of a text of `path_text`, or of a UTF-8 file read with `surrogateescape`."""
    return Path(os.fsdecode(text.encode("utf-8", "surrogateescape")))


def require_space(path, size):
    """Makes sure that a file of `size` bytes can be written, for writers that do not survive a full disk.

    Args:
        path: the file that is to be written; its folder is made if missing.
        size: bytes.

    Raises:
        UserError: if there is no room for it.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent) as room:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(room.fileno(), 0, size)
            elif shutil.disk_usage(path.parent).free < size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}; it needs {size / 1e6:.1f} MB)") from error


def write_text(path, text):
    """Writes `text` as UTF-8, atomically; bytes of file names that are none are written as they are."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_json(path, value):
    """Writes `value` as indented JSON, atomically, what holds nothing but plain values on a line of its own.

    NaN and infinity are refused: they are not JSON.
    """
    text = json.dumps(value, indent=2, allow_nan=False)
    text = _PLAIN.sub(lambda found: found[1] + re.sub(r"\n *", " ", found[2]) + found[3], text)
    write_text(path, text + "\n")


def read_json(path):
    """Reads a JSON file.

    Raises:
        UserError: if the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error})") from error


def write_csv(path, rows, columns):
    """Writes dictionaries as CSV with a header row, atomically; text as in `write_text`.

    Text that a spreadsheet would run as a formula (it begins with `=`, `+`, `-`, `@`, a tab or a line break, and is no
    number) gets an apostrophe before it. `CsvReader` takes it off again.
    """
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({name: _escaped(value) for name, value in row.items()} for row in rows)


class CsvReader(csv.DictReader):
    """`csv.DictReader` that gives back what `write_csv` was given."""

    def __next__(self):
        return {name: _unescaped(value) for name, value in super().__next__().items()}


def _escaped(value):
    if not isinstance(value, str) or not _FORMULA.match(value):
        return value
    try:
        float(value)
    except ValueError:
        return "'" + value
    return value


def _unescaped(value):
    return value[1:] if isinstance(value, str) and _ESCAPED.match(value) else value


def within(folder, name, source):
    """The path of a file that other data names, which must lie in a folder: a received file may name any path.

    Args:
        folder: the folder.
        name: what the data say, such as "a.png" or "b/a.png".
        source: the file that says it, for the error.

    Returns:
        `folder / name`.

    Raises:
        UserError: if the name is no text, is absolute, holds "..", or leads out of the folder by a symbolic link.
    """
    folder = Path(folder)
    if not isinstance(name, str) or not name.strip("./") or "\0" in name:
        raise UserError(f"{source}: {name!r} is not the name of a file")
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or not _real(folder / path.parent).is_relative_to(_real(folder)):
        raise UserError(f"{source}: names {name!r}, which is not in {folder}")
    return folder / path


def _real(path):
    return Path(os.path.realpath(path))


@contextlib.contextmanager
def scratch_folder(parent, prefix):
    """A temporary folder that only this user can open; it is deleted when the block ends.

    A lock marks it as in use, so that `sweep_scratch` finds it if the process is killed.

    Args:
        parent: an existing folder.
        prefix: what its name begins with.

    Yields:
        Its path.
    """
    folder = Path(parent, prefix + secrets.token_hex(4))
    folder.mkdir(mode=0o700)
    new = folder / (_SCRATCH_LOCK + ".new")
    descriptor = os.open(new, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        # Locked before it has its name: who finds it unlocked may delete the folder. Without locks, nobody does.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            new.rename(folder / _SCRATCH_LOCK)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def sweep_scratch(parent, prefix, rescue=None):
    """Deletes the folders that killed processes left of `scratch_folder(parent, prefix)`.

    Args:
        parent: the folder they are in; it may be missing.
        prefix: what their names begin with.
        rescue: function that is given each of them before it is deleted.
    """
    for folder in Path(parent).glob(glob.escape(prefix) + "?" * 8):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            descriptor = os.open(folder / _SCRATCH_LOCK, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if rescue is not None:
                rescue(folder)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # in use
            continue
        finally:
            os.close(descriptor)


def sha256(path):
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
