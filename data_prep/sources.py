"""The layouts that radiographs come in -> one list of records, not yet opened.

A source is a CSV file, or a folder in one of these layouts:

- the authors' archive, and any datasets folder: `trainA/ trainB/ testA/ ...`, labelled as `r2c_gan.data.labels` says
  (the word "covid" in the file's name);
- QaTa-COV19 v1, v2 and Early with their control group, as Kaggle packs them, whole or a part;
- sub-folders named after the classes.

Masks (`r2c_gan.data.labels.is_mask`) are passed over.
"""

import dataclasses
import os
import re
import warnings
from pathlib import Path

from data_prep.manifest import UNKNOWN
from r2c_gan.data import datasets as data
from r2c_gan.data import dicom, images, labels
from r2c_gan.errors import UserError, shown

QUALITIES = ("good", "poor")
SPLITS = ("train", "val", "test")

_NOBODY = {"", "unknown", "none", "nan", "n/a", "na", "anonymous", "anonymized", "anonymised"}
_DOMAIN_FOLDER = re.compile(r"(train|val|test)([AB])")
_QATA = re.compile(r"qatacov19v[12]|earlyqatacov19|controlgroup(i|ii)?")
_QATA_SPLITS = {"trainset": "train", "train": "train", "testset": "test", "test": "test"}
_BIDS = re.compile(
    r"sub-(?P<patient>[^_]+)(?=_).*?(_vp-(?P<view>[^_]+))?(_(?P<modality>dx|cr))?$", re.IGNORECASE
)  # of the BIMCV collection


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One radiograph of a source, not yet opened.

    Attributes:
        path: the file.
        name: its path as the manifest shows it: the source's name, then the path inside the source.
        label: "control" or "covid".
        source: the collection that it comes from.
        patient, view, modality: or "unknown".
        quality: what the source says of it: "good", "poor", a score in [0, 1], or None.
        split: "train", "val" or "test" if the source has a division of its own, else None.
    """

    path: Path
    name: str
    label: str
    source: str
    patient: str = UNKNOWN
    view: str = UNKNOWN
    modality: str = UNKNOWN
    quality: str | float | None = None
    split: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """What cannot be used: its name as in `Record`, the file to look at, and why; `str` gives the last two.

    A `mask` is left out, but nothing is wrong with it.
    """

    name: str
    path: Path
    reason: str
    mask: bool = False

    def __post_init__(self):
        object.__setattr__(self, "name", shown(self.name))  # it goes into the manifest, which is UTF-8

    def __str__(self):
        return f"{shown(self.path)}: {self.reason}"


def read_source(path, masks=None):
    """Lists the radiographs of a source.

    Args:
        path: a CSV file or a folder.
        masks: a list to which the masks that are passed over are appended.

    Returns:
        (records, problems): a list of `Record`, sorted by name, and a list of `Problem`, in the order of the source.

    Raises:
        UserError: if the source is missing, of no known layout, or holds no image.
    """
    path, masks = Path(path), [] if masks is None else masks
    if path.is_file():
        if path.suffix.lower() != ".csv":
            raise UserError(f"--source={path}: a folder or a .csv file is expected (unpack an archive first)")
        records, problems = _read_csv(path, masks)
    elif path.is_dir():
        root = Path(os.path.abspath(path))  # `.` has no name
        records, problems = _layout_of(root)(root, masks)
    else:
        raise UserError(f"--source={path}: no such file or folder")
    if not records and not problems:
        but = f"but {len(masks)} masks, such as {masks[0].name}" if masks else ", ".join(images.IMAGE_SUFFIXES)
        raise UserError(f"--source={path}: holds no image ({but})")
    return sorted(records, key=lambda record: record.name), problems


def read_header(path):
    """What the header of a DICOM file says of the patient and the exposure.

    Args:
        path: any image file.

    Returns:
        A dictionary with those of the keys patient, view and modality that are known; empty unless it is DICOM.
    """
    with open(path, "rb") as file:
        if file.read(132)[128:] != b"DICM":
            return {}
    names = {"patient": "PatientID", "view": "ViewPosition", "modality": "Modality"}
    try:
        header = dicom.header(Path(path).read_bytes())
        values = {key: str(header.get(name) or "").strip() for key, name in names.items()}
    except Exception:  # pydicom raises many kinds; reading the image says what is wrong
        return {}
    return {key: value for key, value in values.items() if value.lower() not in _NOBODY}


def _layout_of(root):
    folders = [path.name for path in root.iterdir() if path.is_dir()]
    if any(_DOMAIN_FOLDER.fullmatch(name) for name in folders):
        return _read_domains
    inside = [path.name for name in folders for path in (root / name).glob("*/") if not name.startswith(".")]
    if any(_QATA.fullmatch(_plain(name)) for name in (root.name, root.parent.name, *folders, *inside)):
        return _read_qata
    return _read_class_folders


def _plain(name):
    """A folder's name without the spaces, hyphens, underscores and capitals that differ between releases."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _radiographs(root, masks):
    """The images below a folder that are no masks, as (file, folders between the two)."""
    for file in images.list_images(root, recursive=True):
        path = file.relative_to(root)
        if labels.is_mask(path):
            masks.append(file)
        else:
            yield file, path.parts[:-1]


def _name(root, file):
    return f"{root.name}/{file.relative_to(root).as_posix()}"


def _read_domains(root, masks):
    records = []
    for folder in sorted(root.iterdir()):
        match = _DOMAIN_FOLDER.fullmatch(folder.name)
        if not match or not folder.is_dir():
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a domain of one class; what is made of it is looked at later
            domain = data.read_domain(folder)
        masks += domain.masks
        quality = "poor" if match[2] == "A" else "good"
        for file, label in zip(domain.files, domain.labels, strict=True):
            record = Record(file, _name(root, file), data.CLASSES[label], root.name, **_from_name(file))
            records.append(dataclasses.replace(record, quality=quality, split=match[1]))
    return records, []


def _read_qata(root, masks):
    records, problems = [], []
    for file, folders in _radiographs(root, masks):
        place = [_plain(folder) for folder in (root.parent.name, root.name, *folders)]
        kind = next((found for found in map(_QATA.fullmatch, place) if found), None)
        if kind is None:
            problems.append(Problem(_name(root, file), file, "not in a folder of a QaTa-COV19 release"))
            continue
        control = kind[0].startswith("controlgroup")
        # The control group is itself a collection of collections, a folder each.
        parts = [folder for folder, plain in zip((root.parent.name, root.name, *folders), place, strict=True)
                 if plain not in (*_QATA_SPLITS, "images")]  # fmt: skip
        start = next(index for index, folder in enumerate(parts) if _QATA.fullmatch(_plain(folder)))
        split = next((_QATA_SPLITS[plain] for plain in place if plain in _QATA_SPLITS), None)
        records.append(
            Record(file, _name(root, file), data.CLASSES[0 if control else 1], "/".join(parts[start:]), split=split,
                   **_from_name(file, "chestxray14" in place))
        )  # fmt: skip
    return records, problems


def _from_name(file, chestxray14=False):
    """Patient, view and modality as far as the name of a file tells them."""
    if bids := _BIDS.match(file.stem):
        view, modality = (bids[key].upper() if bids[key] else UNKNOWN for key in ("view", "modality"))
        return {"patient": bids["patient"], "view": view, "modality": modality}
    if chestxray14 and (number := re.fullmatch(r"(\d{8})_\d{3}", file.stem)):
        return {"patient": f"NIH-{number[1]}"}
    return {}


def _read_class_folders(root, masks):
    if labels_file := next(iter(sorted(root.glob("[Ll][Aa][Bb][Ee][Ll][Ss].[Cc][Ss][Vv]"))), None):
        raise UserError(f"{labels_file}: to use its labels, give --source={labels_file}; else move it away")
    records, problems = [], []
    for file, folders in _radiographs(root, masks):
        label = labels.class_of(folders[0]) if folders else None
        if label is not None:
            records.append(Record(file, _name(root, file), data.CLASSES[label], root.name, **_from_name(file)))
            continue
        reason = f"the folder {folders[0]!r} is no label" if folders else "is in no class folder"
        reason += f"; labels are {', '.join(labels.LABEL_NAMES)}"
        problems.append(Problem(_name(root, file), file, reason))
    return records, problems


def _read_csv(path, masks):
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable CSV file ({error})") from error
    records, problems, lines = [], [], {}
    for line, row in labels.csv_rows(path, text, ("file", "label")):
        row = {key: (value or "").strip() for key, value in row.items() if key}
        if labels.is_mask(row["file"]):
            masks.append(path.parent / row["file"])
            continue
        try:
            record = _record_of_row(path, row)
            real = os.path.realpath(record.path)
            if real in lines:
                raise UserError(f"{row['file']} is already listed in line {lines[real]}")
        except UserError as error:
            problems.append(Problem(_listed(path, row), path, f"line {line}: {error}"))
        else:
            lines[real] = line
            records.append(record)
    return records, problems


def _record_of_row(path, row):
    file = path.parent / row["file"]
    if not row["file"] or not os.path.isfile(file):
        raise UserError(f"{row['file'] or 'an empty name'}: no such file")
    label = labels.class_of(row["label"])
    if label is None:
        raise UserError(f"unknown label {row['label']!r}; labels are {', '.join(labels.LABEL_NAMES)}")
    split = row.get("split") or None
    if split is not None and split not in SPLITS:
        raise UserError(f"unknown split {split!r}; it must be {', '.join(SPLITS)} or empty")
    known = {key: row[key] for key in ("patient", "view", "modality") if row.get(key, "").lower() not in _NOBODY}
    return Record(
        file, _listed(path, row), data.CLASSES[label], row.get("source") or _name_of_parent(path),
        quality=_quality(row.get("quality")), split=split, **{**_from_name(file), **known},
    )  # fmt: skip


def _name_of_parent(path):
    return Path(os.path.abspath(path)).parent.name


def _listed(path, row):
    return f"{_name_of_parent(path)}/{row['file']}"


def _quality(text):
    if not text or text.lower() in QUALITIES:
        return text.lower() if text else None
    try:
        score = float(text)
    except ValueError:
        score = -1
    if not 0 <= score <= 1:
        raise UserError(f"unknown quality {text!r}; it must be good, poor or a score from 0 to 1")
    return score
