"""Image files -> restored files, their class probabilities, and a journal from which an interrupted run goes on.

    OUTPUT/NAME.png or NAME.dcm    the restored images, by the names of the inputs
    OUTPUT/panels/NAME.png         on request (of NAME.dcm, NAME.dcm.png): poor | restored | difference
    OUTPUT/predictions.csv, .json  the head's verdict before and after, a row an image
    OUTPUT/result.json             counts, failures, settings
    OUTPUT/journal.jsonl           one line for what was finished, in the order in which it was

A line of the journal is written after the files that it speaks of, and outputs are announced in it before they are
made: whatever is killed, the next run knows what is finished, and which files are its own to replace.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import glob
import hashlib
import json
import os
import secrets
from pathlib import Path

from r2c_gan import __version__, figures, files, images
from r2c_gan.data import CLASSES
from r2c_gan.errors import UserError
from r2c_gan.restoration import TooLargeError, prediction_row

JOURNAL = "journal.jsonl"
FORMATS = ("auto", "png", "dicom")
COLUMNS = (
    "file",
    "output",
    *(f"p_{name}" for name in CLASSES),
    "label",
    *(f"restored_p_{name}" for name in CLASSES),
    "restored_label",
    "label_changed",
)
_PANEL_SIDE = 768  # pixels: more would not be seen in a panel


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the restored files depend on, beside the input; the fields are the flags of `r2c-gan-restore`.

    Attributes:
        iterations: passes.
        size: "model" or "native", see `Restorer.restore`.
        detail: "filtered", "all" or "none", see `Restorer.restore`.
        format: "auto" (derived DICOM for DICOM, PNG for others), "png" or "dicom".
        deidentify: whether derived DICOM files lose what identifies the patient, see `derived_dicom.derived`.
        panels: whether a panel of each image is drawn.
    """

    iterations: int = 1
    size: str = "model"
    detail: str = "filtered"
    format: str = "auto"
    deidentify: bool = False
    panels: bool = False


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a list of sources.

    Attributes:
        rows: one dictionary an image of `predictions.csv`, the sources of this run first, then those of earlier ones.
        failures: dictionaries of `file` and `reason`, one a source that could not be restored.
        restored: how many were restored now.
        kept: how many were finished before.
        left_out: file -> attributes of its DICOM header that were left out because their values are not valid.
    """

    rows: list
    failures: list
    restored: int
    kept: int
    left_out: dict


def restore_files(
    restorer,
    sources,
    output_dir,
    settings=None,
    batch_size=8,
    readers=2,
    overwrite=False,
    progress=lambda total: contextlib.nullcontext(lambda count: None),
    report=lambda failure: None,
):
    """Restores files into a folder. Those that were finished there before, with the same settings, are left alone.

    Args:
        restorer: a `Restorer`.
        sources: list of (file to read, its name below `output_dir` with the file's own suffix).
        output_dir: the folder; made with the first image that is restored.
        settings: `Settings`.
        batch_size: images in one call of the network, at most; with `size="native"` only those of one size.
        readers: threads that read and write files.
        overwrite: whether results of other settings, and files that are in the way, are replaced.
        progress: (number of sources) -> a context that gives a function of the number just finished.
        report: called with each failure, a dictionary, when it happens.

    Returns:
        An `Outcome`. A file that cannot be read, shown or derived from is a failure, and the others go on.

    Raises:
        UserError: if two sources would become one file, a file is in the way, the folder holds results of other
            settings or is in use, or nothing could be restored; and if something cannot be written.
    """
    settings = settings or Settings()
    output_dir = Path(output_dir)
    targets = _targets(sources, settings)
    _refuse_collisions(targets, output_dir)
    with Journal(output_dir, _record(restorer, settings), overwrite) as journal:
        finished = {name for file, name, _ in targets if journal.is_finished(name, file)}
        todo = [target for target in targets if target[1] not in finished]
        _refuse_existing(todo, output_dir, journal, overwrite)
        work = _Work(restorer, settings, output_dir, journal)
        failures = []

        def fail(name, error):
            failure = {"file": name.as_posix(), "reason": str(error)}
            failures.append(failure)
            report(failure)

        with progress(len(todo)) as advance, concurrent.futures.ThreadPoolExecutor(readers) as pool:
            for batch in _batches(pool, todo, restorer, settings, batch_size, readers, fail, advance):
                work.restore(pool, batch, fail)
                advance(len(batch))
        if failures and not journal.rows:
            more = f" (and {len(failures) - 1} others)" if len(failures) > 1 else ""
            raise UserError(f"{failures[0]['reason']}{more}; nothing could be restored")
        failures.sort(key=lambda failure: failure["file"])
        failed = {failure["file"] for failure in failures}
        rows = [row for row in journal.in_order([name for _, name, _ in targets]) if row["file"] not in failed]
        left_out = {row["file"]: row["left_out"] for row in rows if row["left_out"]}
        rows = [{column: row[column] for column in COLUMNS} for row in rows]
        files.write_csv(output_dir / "predictions.csv", rows, COLUMNS)
        files.write_json(output_dir / "predictions.json", [_typed(row) for row in rows])
    return Outcome(rows, failures, len(todo) - len(failures), len(finished), left_out)


def _record(restorer, settings):
    """What must be the same for two runs to share a folder."""
    return {"r2c_gan": __version__, "model": restorer.checksum, **dataclasses.asdict(settings)}


def _targets(sources, settings):
    """(file, name, output path below the folder) of each source; the suffix is the input's only as long as it is."""
    found = []
    for file, name in sources:
        file, name = Path(file), Path(name)
        known = name.suffix.lower() in images.IMAGE_SUFFIXES  # a DICOM file may be called by its UID, without one
        stem = name.with_suffix("") if known else name
        derive = settings.format == "dicom" or (settings.format == "auto" and images.is_dicom(file))
        found.append((file, name, stem.with_name(stem.name + (".dcm" if derive else ".png"))))
    return found


def _refuse_collisions(targets, output_dir):
    """Two inputs that differ in the suffix alone would become one file, and an input's own folder would lose it."""
    taken = {}
    inputs = {file.resolve() for file, _, _ in targets}
    for file, _, output in targets:
        if output in taken:
            raise UserError(f"{file}: would overwrite the result of {taken[output]}; rename one of them")
        if (output_dir / output).resolve() in inputs:
            raise UserError(
                f"--output={output_dir}: would overwrite the input {output_dir / output}; give another folder"
            )
        taken[output] = file


def _refuse_existing(todo, output_dir, journal, overwrite):
    for file, name, output in todo:
        path = output_dir / output
        other = journal.source_of(name)
        if not overwrite and other is not None and other != str(file.resolve()) and Path(other).exists():
            raise UserError(f"{file}: would overwrite the result of {other} in {output_dir}; give another --output")
        if not overwrite and path.exists() and output.as_posix() not in journal.announced:
            raise UserError(f"{path}: exists already; give another --output, or --overwrite")


def _batches(pool, todo, restorer, settings, batch_size, readers, fail, advance):
    """Reads ahead, and yields lists of (target, `ImageFile`); for native sizes each of one shape that fits memory."""
    waiting, ahead = collections.deque(), iter(todo)

    def read_on():
        for target in ahead:
            waiting.append((target, pool.submit(_read, target, restorer, settings)))
            return

    for _ in range(readers + 1):
        read_on()
    batch = []
    while waiting:
        target, future = waiting.popleft()
        read_on()
        try:
            file = future.result()
        except (images.ImageError, TooLargeError) as error:
            fail(target[1], error)
            advance(1)
            continue
        if batch and settings.size == "native" and not _joins(batch, file, restorer):
            yield batch
            batch = []
        batch.append((target, file))
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _read(target, restorer, settings):
    path = target[0]
    file = images.read_file(path, restorer.channels)
    if settings.size == "native":
        try:
            restorer.check_memory(*file.pixels.shape[:2])
        except TooLargeError as error:
            raise TooLargeError(f"{path}: {error}") from error
    if target[2].suffix == ".dcm" and file.dicom is None:
        raise images.ImageError(
            f"{path}: not DICOM, so that no DICOM file can be derived from it; use --format=auto or png"
        )
    return file


def _joins(batch, file, restorer):
    if batch[0][1].pixels.shape != file.pixels.shape:
        return False
    try:
        restorer.check_memory(*file.pixels.shape[:2], len(batch) + 1)
    except TooLargeError:
        return False
    return True


class _Work:
    """Restores batches and writes what came out."""

    def __init__(self, restorer, settings, output_dir, journal):
        self.restorer, self.settings, self.output_dir, self.journal = restorer, settings, output_dir, journal

    def restore(self, pool, batch, fail):
        arguments = (self.settings.iterations, self.settings.size, self.settings.detail)
        try:
            results = self.restorer.restore_batch([file.pixels for _, file in batch], *arguments)
        except TooLargeError as error:  # the device was smaller than predicted
            if len(batch) == 1:
                fail(batch[0][0][1], TooLargeError(f"{batch[0][0][0]}: {error}"))
                return
            for item in batch:
                self.restore(pool, [item], fail)
            return
        self.journal.announce([target[2].as_posix() for target, _ in batch])
        patients = [self._placeholder(file) for _, file in batch]
        writes = [
            pool.submit(self._write, target, file, result, patient)
            for (target, file), result, patient in zip(batch, results, patients, strict=True)
        ]
        for (target, file), result, write in zip(batch, results, writes, strict=True):
            try:
                left_out = write.result()
            except images.ImageError as error:
                fail(target[1], error)
                continue
            self.journal.finish(target, file, _row(target, result), left_out)

    def _placeholder(self, file):
        if file.dicom is None or not self.settings.deidentify:
            return None
        return self.journal.placeholder(f"{file.dicom.get('IssuerOfPatientID')}|{file.dicom.get('PatientID')}")

    def _write(self, target, file, result, patient):
        """Writes one image; returns the attributes of its DICOM header that were left out."""
        path, name, output = target
        left_out = []
        if output.suffix == ".dcm":
            from r2c_gan import derived_dicom  # pydicom is an extra

            try:
                dataset, left_out = derived_dicom.derived(
                    file.dicom, result.image, self._description(), self.journal.salt, patient
                )
            except ValueError as error:
                raise images.ImageError(f"{path}: {error}; use --format=png") from error
            derived_dicom.write(self.output_dir / output, dataset)
        else:
            images.write_image(self.output_dir / output, result.image, file.bits)
        if self.settings.panels:
            self._draw(name, output, file, result)
        return left_out

    def _description(self):
        passes = f"{self.settings.iterations} pass{'es' if self.settings.iterations > 1 else ''}"
        at = "its own size"
        if self.settings.size == "model":
            at = f"{self.restorer.size[1]} x {self.restorer.size[0]} pixels, finer detail: {self.settings.detail}"
        model = (self.restorer.checksum or "unknown")[:16]
        return (
            f"Restored by the neural network R2C-GAN (r2c-gan {__version__}, model {model}), "
            f"{passes} at {at}. Window and LUTs of the source applied. Research only, not for diagnosis."
        )

    def _draw(self, name, output, file, result):
        scale = min(1, _PANEL_SIDE / max(file.pixels.shape[:2]))
        size = [max(1, round(side * scale)) for side in file.pixels.shape[:2]]
        poor, restored = (images.resize(image, *size) for image in (file.pixels, result.image))
        figures.save_restoration_panel(
            [poor],
            [[restored]],
            self.output_dir / _panel_of(output),
            probabilities=[[result.before[1]], [result.after[1]]],
            row_titles=[name.name],
        )


def _panel_of(output):
    """The panel of an output; a.png and a.dcm have panels of their own."""
    output = Path(output)
    return Path("panels") / (output if output.suffix == ".png" else output.with_name(f"{output.name}.png"))


def _row(target, result):
    before, after = (prediction_row("", probabilities) for probabilities in (result.before, result.after))
    row = {"file": target[1].as_posix(), "output": target[2].as_posix()}
    row.update({key: before[key] for key in before if key != "file"})
    row.update({f"restored_{key}": after[key] for key in after if key != "file"})
    row["label_changed"] = "yes" if result.label_changed else "no"
    return row


def _typed(row):
    """A row with numbers and truth values in place of text, for JSON."""
    typed = {key: float(value) if "p_" in key else value for key, value in row.items()}
    return {**typed, "label_changed": row["label_changed"] == "yes"}


class Journal:
    """`journal.jsonl`: what is finished in an output folder, and with which settings.

    Its first line holds the settings and the salt of new DICOM UIDs; it is written with the first image. Each further
    line is one JSON object, appended whole; what a kill cut short is dropped when it is read again. One process at a
    time holds it.

    Args:
        folder: the output folder.
        record: the settings, a dictionary.
        overwrite: whether a journal of other settings is replaced, and the files that it announced deleted.

    Attributes:
        rows: name -> row of what is finished.
        announced: outputs that were made, or begun, by this folder's runs.
        salt: a random text.

    Raises:
        UserError: on entering, if the journal is of other settings, damaged, or held by another process.
    """

    def __init__(self, folder, record, overwrite=False):
        self.folder, self.path = Path(folder), Path(folder) / JOURNAL
        self.record, self.overwrite = record, overwrite
        self.rows, self.announced, self.patients = {}, set(), {}
        self.salt = secrets.token_hex(32)
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
        try:
            header, *lines = [json.loads(line) for line in whole.splitlines()] or [None]
            if header is not None:
                self._take(header, lines)
        except (ValueError, KeyError, TypeError) as error:
            if not self.overwrite:
                raise UserError(f"{self.path}: damaged ({error}); give another --output, or --overwrite") from error
            header = None
        if header is None:
            os.ftruncate(self._descriptor, 0)
            self._header()
        elif header["settings"] != self.record:
            if not self.overwrite:
                raise UserError(f"--output={self.folder}: holds results of {self._difference(header)}")
            for output in self.announced:
                for path in (output, _panel_of(output)):
                    files.within(self.folder, str(path), self.path).unlink(missing_ok=True)
            self.rows, self.announced, self.patients = {}, set(), {}
            os.ftruncate(self._descriptor, 0)
            self._header()
        else:
            if len(whole) < len(data):
                os.ftruncate(self._descriptor, len(whole))
            self._sweep()

    def _sweep(self):
        """Deletes the temporary files (`files.atomic_path`) that a killed run left of outputs that it had begun."""
        for output in self.announced - {row["output"] for row in self.rows.values()}:
            for path in (files.within(self.folder, str(path), self.path) for path in (output, _panel_of(output))):
                name = f".{glob.escape(path.stem)}.{'?' * 8}{glob.escape(''.join(path.suffixes))}"
                for leftover in path.parent.glob(name):
                    leftover.unlink(missing_ok=True)

    def _take(self, header, lines):
        self.salt = header["salt"]
        for line in lines:
            if "writing" in line:
                self.announced.update(line["writing"])
            elif "patient" in line:
                self.patients[line["patient"]] = line["placeholder"]
            else:
                self.rows[line["file"]] = line

    def _difference(self, header):
        flags = dict(header["settings"])
        other = [name for name in self.record if flags.get(name) != self.record[name]]
        if "model" in other or "r2c_gan" in other:
            return "another model or version; give another --output, or --overwrite"
        was = " ".join(f"--{name}={flags.get(name)}" for name in other)
        now = " ".join(f"--{name}={self.record[name]}" for name in other)
        return f"{was}, not of {now}; give another --output, or --overwrite"

    def _header(self):
        self._append({"settings": self.record, "salt": self.salt})

    def _append(self, line):
        if self._descriptor is None:
            self._open()
            if os.fstat(self._descriptor).st_size:  # another process was first
                raise UserError(f"--output={self.folder}: another process restores into it; give another folder")
            self._header()
        data = (json.dumps(line) + "\n").encode()
        try:
            if os.write(self._descriptor, data) != len(data):
                raise OSError(28, "disk full")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from error

    def announce(self, outputs):
        """Notes which outputs are about to be made."""
        new = [output for output in outputs if output not in self.announced]
        if new:
            self._append({"writing": new})
            self.announced.update(new)

    def finish(self, target, file, row, left_out):
        """Notes that an image is done; its output is on disk."""
        path = target[0].resolve()
        status = path.stat()
        line = {
            **row,
            "left_out": left_out,
            "source": str(path),
            "bytes": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "sha256": file.sha256,
        }
        self._append(line)
        self.rows[line["file"]] = line

    def is_finished(self, name, file):
        """Whether a name was finished, from the file as it is now, and the output is still there."""
        line = self.rows.get(Path(name).as_posix())
        if line is None or not (self.folder / line["output"]).is_file():
            return False
        try:
            status = file.stat()
            if str(file.resolve()) == line["source"] and status.st_mtime_ns == line["mtime_ns"]:
                return status.st_size == line["bytes"]
            return status.st_size == line["bytes"] and files.sha256(file) == line["sha256"]
        except OSError:
            return False  # reading it will say why

    def source_of(self, name):
        """The file that a finished name was made of; None if it was not."""
        line = self.rows.get(Path(name).as_posix())
        return line and line["source"]

    def placeholder(self, patient):
        """A name for a patient, ANON-0001 and so on, the same for all files of one folder."""
        key = hashlib.sha256((self.salt + patient).encode()).hexdigest()
        if key not in self.patients:
            self.patients[key] = f"ANON-{len(self.patients) + 1:04d}"
            self._append({"patient": key, "placeholder": self.patients[key]})
        return self.patients[key]

    def in_order(self, names):
        """All rows, those of the given names first."""
        first = [name.as_posix() for name in names if name.as_posix() in self.rows]
        return [self.rows[name] for name in dict.fromkeys([*first, *self.rows])]
