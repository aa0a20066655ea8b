"""The layouts that radiographs come in -> one list of records.

A source is a CSV file (file,label and optionally patient,view,source,quality,split), or a folder: the authors' archive
(`trainA/ trainB/ testA/`, "covid" in the file's name), QaTa-COV19 v1, v2 or Early as Kaggle packs them, or
sub-folders named after the classes.
"""

import csv
import dataclasses
from pathlib import Path

from data_prep.manifest import UNKNOWN
from r2c_gan import images
from r2c_gan.data import CLASSES, LABEL_NAMES
from r2c_gan.errors import UserError

QUALITIES = ("good", "poor")


@dataclasses.dataclass(frozen=True)
class Record:
    """One radiograph of a source, not yet opened.

    Attributes:
        path: the file.
        name: its path as the manifest shows it: the source's name, then the path inside.
        label: "control" or "covid".
        source: the collection that it comes from.
        patient, view: or "unknown".
        quality: what the source says of it: "good", "poor", a score in [0, 1], or None.
        split: "train" or "test" if the source has a division of its own, else None.
    """

    path: Path
    name: str
    label: str
    source: str
    patient: str = UNKNOWN
    view: str = UNKNOWN
    quality: str | float | None = None
    split: str | None = None


def read_source(path):
    """Lists the radiographs of a source.

    Args:
        path: a CSV file or a folder.

    Returns:
        (records, problems): a list of `Record`, sorted by name, and a list of (name, reason) for what cannot be used.

    Raises:
        UserError: if the source is missing, of no known layout, or holds no image.
    """
    path = Path(path)
    if path.is_file():
        if path.suffix.lower() != ".csv":
            raise UserError(f"--source={path}: a folder or a .csv file is expected")
        records, problems = _read_csv(path)
    elif path.is_dir():
        records, problems = _read_class_folders(path)
    else:
        raise UserError(f"--source={path}: no such file or folder")
    if not records and not problems:
        raise UserError(f"--source={path}: holds no image ({', '.join(images.IMAGE_SUFFIXES)})")
    return sorted(records, key=lambda record: record.name), problems


def _read_csv(path):
    records, problems, seen = [], [], set()
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"file", "label"} <= set(reader.fieldnames or ()):
                raise UserError(f"{path}: its first line must name the columns file,label")
            for row in reader:
                name = row["file"] or ""
                try:
                    record = _record_of_row(row, path)
                    if record.path in seen:
                        raise UserError("listed twice")
                except UserError as error:
                    problems.append((name, f"{path}, line {reader.line_num}: {name}: {error}"))
                else:
                    seen.add(record.path)
                    records.append(record)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable CSV file ({error})") from error
    return records, problems


def _record_of_row(row, path):
    file = path.parent / row["file"]
    if not file.is_file():
        raise UserError("no such file")
    label = LABEL_NAMES.get((row["label"] or "").strip().lower())
    if label is None:
        raise UserError(f"unknown label {row['label']!r}; it must be one of {', '.join(LABEL_NAMES)}")
    return Record(
        file, row["file"], CLASSES[label], row.get("source") or path.parent.name,
        row.get("patient") or UNKNOWN, row.get("view") or UNKNOWN,
    )  # fmt: skip


def _read_class_folders(path):
    records = []
    for file in images.list_images(path, recursive=True):
        folder = file.relative_to(path).parts[0]
        label = LABEL_NAMES.get(folder.lower())
        if label is None:
            raise UserError(f"{path / folder}: its name is no label; it must be one of {', '.join(LABEL_NAMES)}")
        records.append(Record(file, file.relative_to(path).as_posix(), CLASSES[label], path.name))
    return records, []
