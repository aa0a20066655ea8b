"""What every program that makes a datasets folder shares: the columns of its manifest and the folder made at once."""

import contextlib
import os
from pathlib import Path

from r2c_gan import files
from r2c_gan.data import labels
from r2c_gan.errors import UserError

MANIFEST_FILE = "manifest.csv"
COLUMNS = (
    "file",  # relative to the datasets folder; empty: the original was left out
    "sha256",  # of that file
    "phash",  # perceptual hash of the radiograph before any degradation, see data_prep.duplicates
    "label",
    "source",
    "patient",  # or "unknown"
    "view",  # AP, PA, ... or "unknown"
    "modality",  # DX, CR or "unknown"
    "quality",  # score of that file in [0, 1], see data_prep.quality
    "domain",  # A, B, or A_reference for the clean twin of an image of A
    "split",  # train, val or test
    "parameters",  # JSON: what degraded the image
    "original",  # where it came from, relative to the source
    "left_out",  # why it is not in the folder
)
UNKNOWN = "unknown"


def read_manifest(datasets_dir):
    """Reads the manifest of a datasets folder.

    Args:
        datasets_dir: the folder.

    Returns:
        A dictionary: file -> its row, a dictionary with the keys `COLUMNS` ("" where the manifest does not say). What
        was left out is not in it. Empty if there is no manifest.

    Raises:
        UserError: if it cannot be read or has no column `file`.
    """
    path = Path(datasets_dir) / MANIFEST_FILE
    if not path.exists():
        return {}
    if not path.is_file():
        raise UserError(f"{path}: not a file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable CSV file ({error})") from error
    rows = [row for _, row in labels.csv_rows(path, text, ("file",)) if row["file"]]
    return {row["file"]: {name: row.get(name) or "" for name in COLUMNS} for row in rows}


@contextlib.contextmanager
def new_folder(path, overwrite=False):
    """Yields a temporary folder beside `path` and renames it to `path` if the block succeeds.

    Args:
        path: the folder to make; it may exist if it is empty.
        overwrite: replace a folder that a program of this package wrote: one with a `manifest.csv` and a `flags.txt`.

    Raises:
        UserError: if `path` holds something that may not be replaced, or cannot be written.
    """
    path = Path(path)
    parent, prefix = path.absolute().parent, f".{path.name}."

    def bring_back(folder):  # of a process that was killed between the two renamings below
        if not path.exists() and (folder / "old").is_dir():
            os.rename(folder / "old", path)

    files.sweep_scratch(parent, prefix, bring_back)
    if path.exists() and not path.is_dir():
        raise UserError(f"--output_dir={path}: is a file; give a folder")
    if path.is_dir() and any(path.iterdir()):
        if not overwrite:
            raise UserError(f"--output_dir={path}: is not empty; give another folder, or --overwrite to replace it")
        if not all((path / name).is_file() for name in (MANIFEST_FILE, "flags.txt")):
            raise UserError(f"--output_dir={path}: is not a datasets folder made here (no manifest.csv and flags.txt)")
    with contextlib.ExitStack() as stack:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            temporary = stack.enter_context(files.scratch_folder(parent, prefix))
            new, old = temporary / "new", temporary / "old"
            new.mkdir()
        except OSError as error:
            raise UserError(f"--output_dir={path}: cannot be written ({error.strerror})") from error
        yield new
        if path.is_dir():
            os.rename(path, old)
        try:
            os.rename(new, path)
        except OSError:
            bring_back(temporary)
            raise
