"""Writing files so that a reader never meets half of one."""

import contextlib
import csv
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

from r2c_gan.errors import UserError

# It can only be read by setting it, which is not safe once there are threads.
_UMASK = os.umask(0)
os.umask(_UMASK)
# In indented JSON: a list or dictionary that holds no other. A newline is never inside a string.
_PLAIN = re.compile(r"""([\[{])\n *((?:[^\[\]{}"]|"(?:[^"\\]|\\.)*")*)\n *([\]}])""")


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
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix="".join(path.suffixes), dir=path.parent)
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
    """Writes `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error})") from error


def write_csv(path, rows, columns):
    """Writes dictionaries as CSV with a header row, atomically."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def sha256(path):
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
