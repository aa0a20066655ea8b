"""`journal.jsonl`: what is finished in an output folder, so that an interrupted restoration goes on.

A line is written after the files that it speaks of, and outputs are announced before they are made: whatever is killed,
the next run knows what is finished, and which files are its own to replace.
"""

import fcntl
import hashlib
import json
import math
import os
import secrets
from pathlib import Path

from r2c_gan import files
from r2c_gan.data.datasets import CLASSES
from r2c_gan.errors import UserError

JOURNAL = "journal.jsonl"
COLUMNS = (
    "file",
    "output",
    *(f"p_{name}" for name in CLASSES),
    "label",
    *(f"restored_p_{name}" for name in CLASSES),
    "restored_label",
    "label_changed",
    "unlikeness",
    "warning",
)


class Journal:
    """What is finished in an output folder, and with which settings.

    Its first line holds the settings and the salt of new DICOM UIDs; it is written with the first image. Each further
    line is one JSON object, appended whole. A line that a kill cut short is dropped when it is read again, as is a
    damaged one: what it spoke of is done again. One process at a time holds the journal.

    Args:
        folder: the output folder.
        record: the settings, a dictionary.
        overwrite: whether a journal of other settings is replaced, and the files that it announced deleted.

    Attributes:
        rows: name -> row of what is finished; names are texts of `files.path_text`.
        announced: outputs that were made, or begun, by this folder's runs, as such texts.
        is_new: whether the folder had no journal of these settings.
        salt: a random text.

    Raises:
        UserError: on entering, if the journal is of other settings, without its first line, held by another process, or
            names a file outside of the folder.
    """

    def __init__(self, folder, record, overwrite=False):
        self.folder, self.path = Path(folder), Path(folder) / JOURNAL
        self.record, self.overwrite = record, overwrite
        self.rows, self.announced, self.patients = {}, set(), {}
        self.is_new = True
        self.salt = secrets.token_hex(32)
        self._placeholders = 0  # so many may be in use
        self._descriptor = None

    def __enter__(self):
        if self.path.is_file():
            self._open()
            try:
                self._read()
            except BaseException:
                os.close(self._descriptor)
                raise
        return self

    def __exit__(self, *_):
        if self._descriptor is not None:
            os.close(self._descriptor)

    def _open(self):
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._descriptor)
            raise UserError(f"--output={self.folder}: another process restores into it; give another folder") from error
        except OSError as error:
            raise UserError(f"--output={self.folder}: cannot be written ({error.strerror})") from error

    def _read(self):
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        first, *lines = whole.splitlines() or [None]
        header = None
        if first is not None:
            try:
                header = _parsed(first)
                salt, settings = header["salt"], header["settings"]
                if not (isinstance(salt, str) and isinstance(settings, dict)):
                    raise ValueError("no settings")
                self.salt = salt
            except (ValueError, KeyError) as error:
                if not self.overwrite:
                    raise UserError(f"{self.path}: damaged ({error}); give another --output, or --overwrite") from error
                header = None
        if header is None:
            self._restart()
            return
        for line in lines:
            self._take(line)
        if settings == self.record:
            self.is_new = False
            if len(whole) < len(data):
                os.ftruncate(self._descriptor, len(whole))
            self._sweep()
            return
        if not self.overwrite:
            raise UserError(f"--output={self.folder}: holds results of {self._difference(settings)}")
        for output in self.announced:
            (self.folder / files.text_path(output)).unlink(missing_ok=True)
        self.rows, self.announced, self.patients, self._placeholders = {}, set(), {}, 0
        self._restart()

    def _restart(self):
        os.ftruncate(self._descriptor, 0)
        self._append({"settings": self.record, "salt": self.salt})

    def _take(self, line):
        """Takes in what a line says; one that cannot be believed is passed over."""
        try:
            line = _parsed(line)
            if "writing" in line:
                self.announced.update(self._own(output) for output in line["writing"])
                return
            if "patient" in line:
                self.patients[line["patient"]] = line["placeholder"]
                self._placeholders += 1
                return
            if not all(isinstance(line[key], str) for key in (*COLUMNS, "scaling", "source")):
                raise ValueError("no row")
            if not all(math.isfinite(float(line[key])) for key in COLUMNS if "p_" in key):
                raise ValueError("a probability that is no number")
            if line["output"] not in line["made"]:
                raise ValueError("no output")
            self.announced.update(self._own(output) for output in line["made"])
            self.rows[line["file"]] = {**line, "made": dict(line["made"]), "left_out": list(line["left_out"])}
        except (ValueError, KeyError, TypeError, AttributeError):
            self._placeholders += 1  # it may have been that of a patient, and no other may get the same

    def _own(self, output):
        """The output, if it lies in the folder: a journal that came from elsewhere must not name other files."""
        files.within(self.folder, str(files.text_path(output)), self.path)
        return output

    def _sweep(self):
        """Deletes the temporary files (`files.atomic_path`) that a killed run left of outputs that it had begun."""
        finished = {output for row in self.rows.values() for output in row["made"]}
        for output in self.announced - finished:
            for leftover in files.leftovers(self.folder / files.text_path(output)):
                leftover.unlink(missing_ok=True)

    def _difference(self, settings):
        other = [name for name in self.record if settings.get(name) != self.record[name]]
        if not other or "model" in other or "r2c_gan" in other:
            return "another model or version; give another --output, or --overwrite"
        was = " ".join(f"--{name}={settings.get(name)}" for name in other)
        now = " ".join(f"--{name}={self.record[name]}" for name in other)
        return f"{was}, not of {now}; give another --output, or --overwrite"

    def begin(self):
        """Makes the folder and the journal, if there is none yet.

        Raises:
            UserError: if it cannot be written, or another process was first.
        """
        if self._descriptor is None:
            self._open()
            if os.fstat(self._descriptor).st_size:  # another process was first
                raise UserError(f"--output={self.folder}: another process restores into it; give another folder")
            self._append({"settings": self.record, "salt": self.salt})

    def _append(self, line):
        data = (json.dumps(line, allow_nan=False) + "\n").encode()
        try:
            if os.write(self._descriptor, data) != len(data):
                raise OSError(28, "disk full")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from error

    def announce(self, outputs):
        """Notes which outputs (texts of `files.path_text`) are about to be made."""
        self.begin()
        new = [output for output in outputs if output not in self.announced]
        if new:
            self._append({"writing": new})
            self.announced.update(new)

    def finish(self, target, status, file, row, left_out):
        """Notes that an image is done; what was made of it is on disk.

        Args:
            target: its `restoration_plan.Target`.
            status: what `os.stat` said of the input before it was read.
            file: the input, an `images.ImageFile`.
            row: of `predictions.csv`.
            left_out: DICOM attributes that were left out.
        """
        line = {
            **row,
            "left_out": left_out,
            "scaling": file.scaling,
            "source": files.path_text(target.file.absolute()),
            "bytes": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "sha256": file.sha256,
            "made": {files.path_text(path): _fingerprint(self.folder / path) for path in target.made},
        }
        self._append(line)
        self.rows[line["file"]] = line

    def is_finished(self, target):
        """Whether a target was finished, from the input as it is now, and what was made of it is as it was written."""
        line = self.rows.get(target.key)
        if line is None or set(line["made"]) != {files.path_text(path) for path in target.made}:
            return False
        try:
            moved = files.text_path(line["source"]) != target.file.absolute()
            return _is_same(target.file, line, trusting_time=not moved) and all(
                _is_same(self.folder / files.text_path(path), made) for path, made in line["made"].items()
            )
        except (OSError, KeyError, TypeError):
            return False  # reading it, or writing it, will say why

    def source_of(self, key):
        """The file that a finished name was made of; None if it was not."""
        line = self.rows.get(key)
        return line and files.text_path(line["source"])

    def outputs(self):
        """Dictionary from the finished names to their outputs below the folder."""
        return {key: files.text_path(line["output"]) for key, line in self.rows.items()}

    def placeholder(self, patient):
        """A name for a patient, ANON-0001 and so on, the same for all files of one folder."""
        key = hashlib.sha256((self.salt + patient).encode("utf-8", "surrogatepass")).hexdigest()
        if key not in self.patients:
            self.begin()
            self._placeholders += 1
            self.patients[key] = f"ANON-{self._placeholders:04d}"
            self._append({"patient": key, "placeholder": self.patients[key]})
        return self.patients[key]

    def in_order(self, keys):
        """All rows, those of the given names first."""
        first = [key for key in keys if key in self.rows]
        return [self.rows[key] for key in dict.fromkeys([*first, *self.rows])]


def _parsed(line):
    """A dictionary from a line of JSON; NaN and infinity are none."""
    value = json.loads(line, parse_constant=_refuse)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _refuse(constant):
    raise ValueError(f"{constant} is not JSON")


def _fingerprint(path):
    status = path.stat()
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": files.sha256(path)}


def _is_same(path, known, trusting_time=True):
    """Whether a file is the one that was noted; it is read only if it was touched, or `trusting_time` is false."""
    status = path.stat()
    if status.st_size != known["bytes"]:
        return False
    return (trusting_time and status.st_mtime_ns == known["mtime_ns"]) or files.sha256(path) == known["sha256"]
