"""Restores radiographs of any size and classifies them, before and after.

  r2c-gan-restore --model runs/paper --input radiographs/ --output restored/
  r2c-gan-restore --model exported --input study.dcm --output restored/ --deidentify
  r2c-gan-restore --model runs/paper --input 'films/*/*.tif' --output restored/ --panels

PNG, JPEG and TIFF become PNG of their own size and depth (8 or 16 bit), DICOM becomes derived DICOM. predictions.csv
and predictions.json hold the class probabilities of the input and of the restored image. What was finished is skipped
when the command is given again. A file that cannot be restored is named and skipped, and the exit code is 1. DICOM
files that show no chest radiograph by their header are skipped; images that are unlike the training films get a
warning.

Research only, not for diagnosis.
"""

import collections
import contextlib
import csv
import glob
import os
import signal
import sys
import threading
from pathlib import Path

from absl import flags
from tqdm import tqdm

from r2c_gan import files
from r2c_gan.cli import program
from r2c_gan.data import window
from r2c_gan.errors import Interrupted, UserError

FLAGS = flags.FLAGS

flags.DEFINE_string("model", None, "A run folder, a SavedModel of r2c-gan-export, or pretrained.")
flags.DEFINE_string("checkpoint", "auto", "Of a run: latest, best, an epoch, or auto (best if validated, else latest).")
flags.DEFINE_string(
    "input",
    None,
    "An image file, a folder (sub-folders too), a glob in quotes, or a CSV with a column 'file' (relative to the CSV's "
    "folder); or several of these with commas between.",
)
flags.DEFINE_string("output", None, "Folder for the restored images and predictions.")
flags.DEFINE_integer("iterations", 1, "Passes; each restores what the one before gave.")
flags.DEFINE_enum(
    "size", "model", ["model", "native"], "Size at which the network works: the one it was trained at, or the image's."
)
flags.DEFINE_enum(
    "detail",
    "filtered",
    ["filtered", "all", "none"],
    "With --size=model, what becomes of detail too fine for that size: kept through a Wiener filter, all kept (noise "
    "too), or left out (the network alone).",
)
flags.DEFINE_enum("format", "auto", ["auto", "png", "dicom"], "auto: derived DICOM for DICOM, PNG for others.")
flags.DEFINE_bool(
    "deidentify",
    False,
    "Of DICOM, keep technical attributes of the image only and replace UIDs. Text burned into the pixels stays, and so "
    "do file names.",
)
flags.DEFINE_string("window", "auto", window.HELP)
flags.DEFINE_bool("panels", False, "Draw poor | restored | difference of each image into panels/.")
flags.DEFINE_integer("batch_size", 8, "Images in one call of the network; with --size=native, of one size.")
flags.DEFINE_integer("readers", 2, "Threads that read and write files.")
flags.DEFINE_bool("overwrite", False, "Replace files that are in the way, and results of other flags or another model.")
flags.DEFINE_bool("force", False, "Restore DICOM files, too, whose header says that they show no chest radiograph.")
flags.mark_flags_as_required(["model", "input", "output"])


def main():
    for name in ("iterations", "batch_size", "readers"):
        if FLAGS[name].value < 1:
            raise UserError(f"--{name}={FLAGS[name].value}: must be at least 1")
    stored = str(window.Window.parse(FLAGS.window))
    sources = find_sources(FLAGS.input, FLAGS.output)
    program.start_tensorflow()
    from r2c_gan.data import plausibility
    from r2c_gan.restoration.file_restoration import Settings, restore_files
    from r2c_gan.restoration.restorer import Restorer

    settings = Settings(
        FLAGS.iterations, FLAGS.size, FLAGS.detail, FLAGS.format, FLAGS.deidentify, FLAGS.panels, stored
    )
    restorer = Restorer.load(FLAGS.model, FLAGS.checkpoint)
    if restorer.films is None:
        print(f"note: {plausibility.MISSING}", file=sys.stderr)
    with _ended_in_order():
        outcome = restore_files(
            restorer,
            sources,
            FLAGS.output,
            settings,
            FLAGS.batch_size,
            FLAGS.readers,
            FLAGS.overwrite,
            FLAGS.force,
            progress=_progress_bar,
            report=_report if len(sources) > 1 else lambda failure: None,
        )
    program.write_flags(FLAGS.output)
    before = f", {outcome.kept} of them finished before" if outcome.kept else ""
    labels = ", ".join(f"{count} {label}" for label, count in outcome.labels.items())
    print(f"{len(outcome.rows)} images{f' ({labels})' if labels else ''}{before}; ", end="")
    print(f"{outcome.labels_changed} change their label when restored -> {FLAGS.output}")
    if len(sources) == len(outcome.skipped) == 1:
        _report(outcome.skipped[0])
    elif outcome.skipped:
        print(f"{len(outcome.skipped)} files skipped: no chest radiograph by their header, or no image")
    for scaling, count in outcome.scalings.items():
        if scaling != "full range":
            print(f"gray levels of {count} images: {scaling}")
    for warning, count in _kinds(outcome.warnings).items():
        print(f"warning: {count} images (named in result.json): {warning}", file=sys.stderr)
    if FLAGS.deidentify:
        print("Text burned into pixels, file names and journal.jsonl may still identify patients.")
    print("Research only, not for diagnosis.", flush=True)
    if outcome.failures:
        if len(sources) == 1:
            raise UserError(outcome.failures[0]["reason"])
        raise UserError(
            f"{len(outcome.failures)} of {len(sources)} files could not be restored; they are named above and in "
            f"{Path(FLAGS.output) / 'result.json'}"
        )


def _kinds(warnings):
    """How many files have a warning of each kind: without the figures of the file, and each of several by itself."""
    return collections.Counter(part.split(" (")[0] for text in warnings.values() for part in text.split(" | "))


_LAST_RESORT = 20  # seconds that what is being read or written when a signal comes may take


@contextlib.contextmanager
def _ended_in_order():
    """SIGTERM ends the block as Ctrl-C does: what was done is written down first.

    A file whose reading does not end cannot hold up the program: `_LAST_RESORT` seconds later it ends all the same.
    """

    def end(number, frame):
        last_resort = threading.Timer(_LAST_RESORT, os._exit, (128 + number,))
        last_resort.daemon = True
        last_resort.start()
        raise KeyboardInterrupt(number)

    before = {signal.SIGTERM: signal.getsignal(signal.SIGTERM)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell may have it ignored
        before[signal.SIGINT] = signal.default_int_handler
    for number in before:
        signal.signal(number, end)
    try:
        yield
    except KeyboardInterrupt as interruption:
        number = interruption.args[0] if interruption.args else signal.SIGINT
        raise Interrupted("what is finished is kept; the same command goes on from there", number) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(failure):
    tqdm.write(f"skipped: {failure['reason']}", file=sys.stderr)


@contextlib.contextmanager
def _progress_bar(total):
    with tqdm(total=total, desc="restoring", unit="image", disable=None) as bar:
        yield bar.update


def find_sources(text, output=None):
    """The files that --input means, as a list of (file, its name in the output folder), each file once.

    Two links to one file are two files. What lies in the output folder is left out of folders and globs, or the results
    of one run would be inputs of the next.

    Args:
        text: the value of --input.
        output: the output folder.

    Raises:
        UserError: if a part of it means nothing, a folder is the output folder too, or a CSV cannot be used.
    """
    parts = [text] if os.path.exists(text) else [part.strip() for part in text.split(",") if part.strip()]
    found = {}
    for part in parts:
        for file, name in _sources_of(part, output):
            found.setdefault(file.absolute(), (file, name))
    if not found:
        raise UserError(f"--input={text}: names no file")
    return list(found.values())


def _sources_of(part, output):
    from r2c_gan.data import images

    path = Path(part)
    if os.path.isdir(path):
        if output is not None and os.path.realpath(output) == os.path.realpath(path):
            raise UserError(f"--output={output}: is the input folder, too; give another folder")
        found = _without_results(images.list_images(path, recursive=True, unnamed_dicom=True), path, output)
        if not found:
            raise UserError(f"--input={part}: holds no image ({', '.join(images.IMAGE_SUFFIXES)})")
        return [(file, file.relative_to(path)) for file in found]
    if path.suffix.lower() == ".csv":
        return _sources_of_csv(path)
    if os.path.lexists(path):
        return [(path, Path(path.name))]
    if glob.has_magic(part):
        return _sources_of_glob(part, output)
    raise UserError(f"--input={part}: no such file or folder")


def _without_results(found, folder, output):
    """The files found in an input folder that do not lie in an output folder below it."""
    if output is None or Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(output)):
        return found
    top = Path(os.path.realpath(output))
    kept = [file for file in found if not Path(os.path.realpath(file.parent)).is_relative_to(top)]
    if len(kept) < len(found):
        print(f"--output={output} lies in --input: its {len(found) - len(kept)} images are no inputs", file=sys.stderr)
    return kept


def _sources_of_glob(pattern, output):
    """Files that match, named relative to the folder before the first wildcard."""
    parts = Path(pattern).parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    top = Path(*parts[:fixed])
    found = [Path(file) for file in sorted(glob.glob(pattern, recursive=True)) if not os.path.isdir(file)]
    found = _without_results(found, top, output)
    if not found:
        raise UserError(f"--input={pattern}: no file matches")
    return [(file, file.relative_to(top)) for file in found]


def _sources_of_csv(path):
    """Files of the column `file`, named as there if they lie below the CSV's folder, otherwise by their last part."""
    try:
        # Names need not be UTF-8. `strict`, or all that follows an open quote would be one name.
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = files.CsvReader(file, strict=True)
            rows = list(reader)
    except FileNotFoundError as error:
        raise UserError(f"--input={path}: no such file") from error
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"--input={path}: not a readable CSV ({error})") from error
    if any("\0" in value for row in rows for value in row.values() if isinstance(value, str)):
        raise UserError(f"--input={path}: not a readable CSV (it holds NUL bytes; it must be UTF-8)")
    if "file" not in (reader.fieldnames or []):
        raise UserError(f"--input={path}: has no column 'file'")
    names = [files.text_path(row["file"]) for row in rows if row["file"]]
    if not names:
        raise UserError(f"--input={path}: lists no file")
    return [
        (path.parent / name, Path(name.name) if name.is_absolute() or ".." in name.parts else name) for name in names
    ]


def console():
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
