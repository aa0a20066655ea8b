"""Image files -> restored files, their class probabilities, and records of what was done.

    OUTPUT/NAME.png or NAME.dcm    the restored images, by the names of the inputs
    OUTPUT/panels/NAME.png         on request (of NAME.dcm, NAME.dcm.png): poor | restored | difference
    OUTPUT/predictions.csv, .json  the head's prediction before and after, a row an image
    OUTPUT/result.json             counts, failures, settings
    OUTPUT/journal.jsonl           what is finished, see `restoration_journal`

Whatever goes wrong with one file is that file's failure: it is named, and the others are done.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import errno
import os
import re
from pathlib import Path

import numpy as np

from r2c_gan import __version__, files
from r2c_gan.data import images, plausibility
from r2c_gan.data.image_limits import ImageError, NotAnImageError
from r2c_gan.data.predictions import prediction_row
from r2c_gan.errors import UserError
from r2c_gan.evaluation import figures
from r2c_gan.restoration.journal import COLUMNS, JOURNAL, Journal
from r2c_gan.restoration.plan import FORMATS, Settings, plan, refuse_collisions, refuse_existing
from r2c_gan.restoration.restorer import TooLargeError

__all__ = ["COLUMNS", "FORMATS", "JOURNAL", "Journal", "Outcome", "Settings", "restore_files"]

_PANEL_SIDE = 768  # pixels: more would not be seen in a panel
_IN_FLIGHT = 512 * 2**20  # bytes of decoded images that wait, or are in a batch; one image may be more
_LONGEST_REASON = 400  # characters; TensorFlow's messages have pages
_OF_ALL_FILES = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}  # what cannot be written then, no other can


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a list of sources.

    Attributes:
        rows: one dictionary an image of `predictions.csv`, the sources of this run first, then those of earlier ones.
        failures: dictionaries of `file` and `reason`, one a source that could not be restored.
        restored: how many were restored now.
        kept: how many were finished before.
        left_out: file -> attributes of its DICOM header that were left out because their values are not valid.
        skipped: dictionaries of `file` and `reason`, one a sound file that holds no image, as a report in DICOM, or no
            chest radiograph by its header.
        scalings: how the gray levels of a file were chosen -> how many files.
        warnings: file -> what speaks against its result.
    """

    rows: list
    failures: list
    restored: int
    kept: int
    left_out: dict
    skipped: list = dataclasses.field(default_factory=list)
    scalings: dict = dataclasses.field(default_factory=dict)
    warnings: dict = dataclasses.field(default_factory=dict)

    @property
    def labels(self):
        """How many inputs have each label."""
        labels = [row["label"] for row in self.rows]
        return {label: labels.count(label) for label in sorted(set(labels))}

    @property
    def labels_changed(self):
        """How many restored images have another label than their inputs."""
        return sum(row["label_changed"] == "yes" for row in self.rows)


def restore_files(
    restorer,
    sources,
    output_dir,
    settings=None,
    batch_size=8,
    readers=2,
    overwrite=False,
    force=False,
    progress=lambda total: contextlib.nullcontext(lambda count: None),
    report=lambda failure: None,
):
    """Restores files into a folder. Those that were finished there before, with the same settings, are left alone.

    The tables and `result.json` are written whatever happens: if every file fails, too, and if the run is interrupted
    after something was done.

    Args:
        restorer: a `Restorer`.
        sources: list of (file to read, its name below `output_dir` with the file's own suffix).
        output_dir: the folder; made if missing.
        settings: `Settings`.
        batch_size: images in one call of the network, at most; with `size="native"` only those of one size.
        readers: threads that read and write files.
        overwrite: whether results of other settings, and files that are in the way, are replaced.
        force: whether DICOM files whose header says that they show no chest radiograph are restored, too.
        progress: (number of sources) -> a context that gives a function of the number just finished.
        report: called with each failure and each file that is skipped, a dictionary, when it happens.

    Returns:
        An `Outcome`. A file that cannot be read, restored, shown or derived from is a failure, and the others go on.

    Raises:
        UserError: if two sources would become one file, a file is in the way, the folder holds results of other
            settings or is in use, or nothing more can be written.
    """
    settings = settings or Settings()
    output_dir = Path(output_dir)
    with Journal(output_dir, _record(restorer, settings), overwrite) as journal:
        targets = plan(sources, settings, journal.outputs())
        refuse_collisions(targets, output_dir)
        todo = [target for target in targets if not journal.is_finished(target)]
        if not overwrite:
            refuse_existing(todo, output_dir, journal)
        work = _Work(restorer, settings, output_dir, journal, report, force)
        try:
            with progress(len(todo)) as advance:
                work.restore_all(todo, batch_size, readers, advance)
        except BaseException:
            if work.restored or work.failures:
                with contextlib.suppress(UserError):  # what ended the run is told
                    _write_records(work, targets, len(todo), interrupted=True)
            raise
        return _write_records(work, targets, len(todo), interrupted=False)


def _record(restorer, settings):
    """What must be the same for two runs to share a folder."""
    return {"r2c_gan": __version__, "model": restorer.checksum, **dataclasses.asdict(settings)}


def _write_records(work, targets, todo, interrupted):
    """Writes the tables and `result.json`; returns the `Outcome`."""
    work.journal.begin()
    missing = {entry["file"] for entry in (*work.failures, *work.skipped)}
    rows = [row for row in work.journal.in_order([target.key for target in targets]) if row["file"] not in missing]
    outcome = Outcome(
        [{column: row[column] for column in COLUMNS} for row in rows],
        sorted(work.failures, key=lambda failure: failure["file"]),
        work.restored,
        len(targets) - todo,
        {row["file"]: row["left_out"] for row in rows if row["left_out"]},
        sorted(work.skipped, key=lambda skipped: skipped["file"]),
        dict(collections.Counter(row["scaling"] for row in rows)),
        {row["file"]: row["warning"] for row in rows if row.get("warning")},
    )
    files.write_csv(work.output_dir / "predictions.csv", outcome.rows, COLUMNS)
    files.write_json(work.output_dir / "predictions.json", [_typed(row) for row in outcome.rows])
    result = {
        "model": work.restorer.source,
        "images": len(outcome.rows),
        "restored_now": outcome.restored,
        "finished_before": outcome.kept,
        "interrupted": interrupted,
        "iterations": work.settings.iterations,
        "size": work.settings.size,
        "detail": work.settings.detail,
        "window": work.settings.window,
        "gray_levels": outcome.scalings,
        "labels": outcome.labels,
        "labels_changed": outcome.labels_changed,
        "failures": outcome.failures,
        "skipped": outcome.skipped,
        "warnings": outcome.warnings,
        "dicom_attributes_left_out": outcome.left_out,
    }
    files.write_json(work.output_dir / "result.json", result)
    return outcome


class _Work:
    """Reads files, restores batches of them, and writes what came out.

    Attributes:
        restored: how many files are done.
        failures, skipped: as of `Outcome`.
    """

    def __init__(self, restorer, settings, output_dir, journal, report, force):
        self.restorer, self.settings, self.output_dir, self.journal = restorer, settings, output_dir, journal
        self.report, self.force = report, force
        self.restored, self.failures, self.skipped = 0, [], []

    def restore_all(self, targets, batch_size, readers, advance):
        pool = concurrent.futures.ThreadPoolExecutor(readers)
        try:
            for batch in self._batches(pool, targets, batch_size, readers, advance):
                self._restore(pool, batch)
                advance(len(batch))
                batch.clear()  # its pixels need not wait for the next batch
        finally:
            pool.shutdown(cancel_futures=True)

    def _fail(self, target, error, doing):
        """Notes why a file could not be restored; `doing` begins the reason if the error does not name the file."""
        if isinstance(error, UserError):
            reason = str(error)
        else:
            said = str(error)
            if "(most recent call last)" in said:  # TensorFlow's messages begin with a traceback
                said = said.split("\n\n")[-1].partition("\n\t")[0]
            why = "not enough memory" if isinstance(error, MemoryError) else f"{type(error).__name__}: {said}"
            reason = f"{target.file}: {doing} ({why})"
        reason = re.sub(r"\s*[\x00-\x1f\x7f]+\s*", " ", reason)  # of one line
        if len(reason) > _LONGEST_REASON:
            reason = reason[:_LONGEST_REASON] + "..."
        # In the C locale names hold surrogates even for UTF-8; the records are the same in every locale.
        reason = reason.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
        entry = {"file": target.key, "reason": reason}
        (self.skipped if isinstance(error, NotAnImageError) else self.failures).append(entry)
        self.report(entry)

    # --- reading ---

    def _batches(self, pool, targets, batch_size, readers, advance):
        """Reads ahead, and yields lists of (target, `_Input`); for native sizes each of one shape that fits memory.

        What waits and what is in the batch stay below `_IN_FLIGHT`, where an image that is not read yet counts as much
        as the largest one so far; the first is read alone.
        """
        waiting, ahead = collections.deque(), collections.deque(targets)
        batch, held, largest = [], 0, None

        def read_on():
            while ahead and len(waiting) <= readers:
                if waiting and (largest is None or held + (len(waiting) + 1) * largest > _IN_FLIGHT):
                    return
                target = ahead.popleft()
                waiting.append((target, pool.submit(self._read, target)))

        read_on()
        while waiting:
            target, future = waiting.popleft()
            try:
                item = future.result()
            except Exception as error:
                self._fail(target, error, "cannot be read")
                advance(1)
                read_on()
                continue
            size = item.pixels.nbytes
            largest = max(size, largest or 0)
            if batch and (held + size > _IN_FLIGHT or not self._joins(batch, item)):
                yield batch
                batch, held = [], 0
            batch.append((target, item))
            held += size
            read_on()
            if len(batch) == batch_size:
                yield batch
                batch, held = [], 0
        if batch:
            yield batch

    def _read(self, target):
        path = target.file
        status = None
        with contextlib.suppress(OSError, ValueError):  # reading it will say why
            status = os.stat(path)  # before it is read: a change after that is seen by the next run
        file = plausibility.read_film(path, self.restorer.channels, self.settings.window, self.force)
        if not np.isfinite(file.pixels).all():
            raise ImageError(f"{path}: has pixels that are not finite")
        if self.settings.size == "native":
            try:
                self.restorer.check_memory(*file.pixels.shape[:2])
            except TooLargeError as error:
                raise TooLargeError(f"{path}: {error}") from error
        if target.output.suffix == ".dcm" and file.dicom is None:
            raise ImageError(
                f"{path}: not DICOM, so that no DICOM file can be derived from it; use --format=auto or png"
            )
        return _Input(file, status or os.stat(path))

    def _joins(self, batch, item):
        if self.settings.size != "native":
            return True
        if batch[0][1].pixels.shape != item.pixels.shape:
            return False
        try:
            self.restorer.check_memory(*item.pixels.shape[:2], len(batch) + 1)
        except TooLargeError:
            return False
        return True

    # --- restoring ---

    def _restore(self, pool, batch):
        try:
            results = self.restorer.restore_batch(
                [item.pixels for _, item in batch],
                self.settings.iterations,
                self.settings.size,
                self.settings.detail,
            )
        except Exception as error:
            if len(batch) > 1:  # one of them may be to blame, or all together too large
                for pair in batch:
                    self._restore(pool, [pair])
                return
            ((target, item),) = batch
            if isinstance(error, UserError):
                error = type(error)(f"{target.file}: {error}")
            height, width = item.pixels.shape[:2]
            hint = " at their own size, use --size=model" if self.settings.size == "native" else ""
            self._fail(target, error, f"its {width} x {height} pixels cannot be restored{hint}")
            return
        self._write_batch(pool, batch, results)

    def _write_batch(self, pool, batch, results):
        self.journal.announce([files.path_text(path) for target, _ in batch for path in target.made])
        writes = []
        for (target, item), result in zip(batch, results, strict=True):
            try:
                if not all(np.isfinite(part).all() for part in (result.image, result.before, result.after)):
                    raise ImageError(f"{target.file}: the network gave values that are not finite")
                patient = self._placeholder(item.file)
            except Exception as error:
                if _ends_the_run(error):
                    raise
                self._fail(target, error, "its header cannot be read")
                continue
            writes.append((target, item, result, pool.submit(self._write, target, item.file, result, patient)))
        for target, item, result, write in writes:
            try:
                left_out = write.result()
            except Exception as error:
                if _ends_the_run(error):
                    raise
                self._fail(target, error, "its result cannot be written")
                continue
            self.journal.finish(target, item.status, item.file, _row(target, item.file, result), left_out)
            self.restored += 1

    def _placeholder(self, file):
        if file.dicom is None or not self.settings.deidentify:
            return None
        return self.journal.placeholder(f"{file.dicom.get('IssuerOfPatientID')}|{file.dicom.get('PatientID')}")

    # --- writing ---

    def _write(self, target, file, result, patient):
        """Writes one image; returns the attributes of its DICOM header that were left out."""
        path = self.output_dir / target.output
        left_out = []
        if target.output.suffix == ".dcm":
            left_out = self._write_derived(target, file, result, patient)
        else:
            images.write_image(path, result.image, file.bits)
        if target.panel is not None:
            try:
                self._draw(target, file, result)
            except BaseException as error:
                path.unlink(missing_ok=True)
                if not isinstance(error, Exception) or isinstance(error, UserError):
                    raise
                raise ImageError(
                    f"{target.file}: its panel cannot be drawn ({type(error).__name__}: {error})"
                ) from error
        return left_out

    def _write_derived(self, target, file, result, patient):
        from r2c_gan.data import derived_dicom  # pydicom is an extra

        try:
            dataset, left_out = derived_dicom.derived(
                file.dicom, result.image, self._description(file), self.journal.salt, patient
            )
            derived_dicom.write(self.output_dir / target.output, dataset)
        except UserError:
            raise
        except ValueError as error:
            raise ImageError(f"{target.file}: {error}; use --format=png") from error
        except Exception as error:  # pydicom raises many kinds for values that it cannot convert
            raise ImageError(
                f"{target.file}: no DICOM image can be derived from it ({type(error).__name__}: {error}); "
                "use --format=png"
            ) from error
        return left_out

    def _description(self, file):
        passes = f"{self.settings.iterations} pass{'es' if self.settings.iterations > 1 else ''}"
        at = "its own size"
        if self.settings.size == "model":
            at = f"{self.restorer.size[1]} x {self.restorer.size[0]} pixels, finer detail: {self.settings.detail}"
        model = (self.restorer.checksum or "unknown")[:16]
        return (
            f"Restored by the neural network R2C-GAN (r2c-gan {__version__}, model {model}), "
            f"{passes} at {at}. Gray levels: {file.scaling}. Research only, not for diagnosis."
        )

    def _draw(self, target, file, result):
        scale = min(1, _PANEL_SIDE / max(file.pixels.shape[:2]))
        size = [max(1, round(side * scale)) for side in file.pixels.shape[:2]]
        poor, restored = (images.resize(image, *size) for image in (file.pixels, result.image))
        title = files.path_text(target.name.name).encode("utf-8", "replace").decode()
        figures.save_restoration_panel(
            [poor],
            [[restored]],
            self.output_dir / target.panel,
            probabilities=[[result.before[1]], [result.after[1]]],
            row_titles=[title.replace("$", r"\$")],  # no formula
        )


@dataclasses.dataclass(frozen=True)
class _Input:
    """An `ImageFile`, and what `os.stat` said of it before it was read."""

    file: images.ImageFile
    status: os.stat_result

    @property
    def pixels(self):
        return self.file.pixels


def _ends_the_run(error):
    """Whether an error is not about one file: nothing more can be written."""
    if not isinstance(error, UserError) or isinstance(error, ImageError):
        return False
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in _OF_ALL_FILES


def _row(target, file, result):
    before, after = (prediction_row("", probabilities) for probabilities in (result.before, result.after))
    row = {"file": target.key, "output": files.path_text(target.output)}
    row.update({key: before[key] for key in before if key != "file"})
    row.update({f"restored_{key}": after[key] for key in after if key != "file"})
    row["label_changed"] = "yes" if result.label_changed else "no"
    row["unlikeness"] = "" if result.unlikeness is None else f"{result.unlikeness:.3f}"
    row["warning"] = " | ".join(filter(None, (result.warning, file.warning)))
    return row


def _typed(row):
    """A row with numbers and truth values in place of text, for JSON."""
    typed = {key: float(value) if "p_" in key else value for key, value in row.items()}
    unlikeness = float(row["unlikeness"]) if row["unlikeness"] else None
    changed = row["label_changed"] == "yes"
    return {**typed, "label_changed": changed, "unlikeness": unlikeness, "warning": row["warning"] or None}
