"""The pairs of a study: an original, its restored image, and the label."""

import dataclasses
import warnings
from pathlib import Path

from r2c_gan.data import datasets as data
from r2c_gan.data import images, labels
from r2c_gan.errors import UserError


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two files of one case.

    Attributes:
        name: the path of the original below its folder, with `/`.
        original, restored: `pathlib.Path`.
        label: "control" or "covid".
        patient: the patient's id; the name where none is known.
    """

    name: str
    original: Path
    restored: Path
    label: str
    patient: str


def find_pairs(original, restored, labels_file=None):
    """Pairs the files of two folders by their paths without suffix, as `r2c-gan-restore` names its results.

    Args:
        original: folder of radiographs, with sub-folders.
        restored: folder of restored images; others in it (panels, say) are left alone.
        labels_file: CSV with the columns file,label and perhaps patient, paths relative to it or to `original`; rows of
            other files are left alone. None: as `data.read_domain` finds them in `original`.

    Returns:
        (list of `Pair` sorted by name, list of names of originals without a restored image).

    Raises:
        UserError: if a folder has no images, two files have one name, nothing matches, or a pair has no label.
    """
    original, restored = Path(original), Path(restored)
    originals = _by_stem(original, "--original")
    results = _by_stem(restored, "--restored")
    matched = [stem for stem in originals if stem in results]
    if not matched:
        raise UserError(
            f"--restored={restored}: holds no image named as one of --original={original} "
            f"({next(iter(originals))}, say, with any suffix)"
        )
    for stem in matched:
        for files, flag in ((originals, "--original"), (results, "--restored")):
            if len(files[stem]) > 1:
                names = " and ".join(str(file) for file in files[stem][:2])
                raise UserError(f"{flag}: {names} would be one case; a name may occur once")
    used = [originals[stem][0] for stem in matched]
    classes, patients = _labels_from_file(labels_file, original, used) if labels_file else _labels(original)
    pairs = []
    for stem, file in zip(matched, used, strict=True):
        name = file.relative_to(original).as_posix()
        pairs.append(Pair(name, file, results[stem][0], classes[file], patients.get(file) or name))
    unpaired = [files[0].relative_to(original).as_posix() for stem, files in originals.items() if stem not in results]
    return sorted(pairs, key=lambda pair: pair.name), sorted(unpaired)


def _by_stem(folder, flag):
    found = images.list_images(folder, recursive=True)
    if not found:
        raise UserError(f"{flag}={folder}: holds no image ({', '.join(images.IMAGE_SUFFIXES)})")
    stems = {}
    for file in found:
        stems.setdefault(file.relative_to(folder).with_suffix("").as_posix(), []).append(file)
    return stems


def _labels(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one class only: a study cannot have that, and the program says so
        domain = data.read_domain(folder)
    return {file: data.CLASSES[label] for file, label in zip(domain.files, domain.labels, strict=True)}, {}


def _labels_from_file(labels_file, folder, used):
    labels_file = Path(labels_file)
    try:
        text = labels_file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"--labels={labels_file}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--labels={labels_file}: cannot be read as UTF-8 text ({error})") from error
    wanted = {file.resolve(): file for file in used}
    classes, patients = {}, {}
    for line, row in labels.csv_rows(f"--labels={labels_file}", text, ("file", "label")):
        where = f"--labels={labels_file}, line {line}"
        paths = [(parent / (row["file"] or "")).resolve() for parent in (labels_file.parent, folder)]
        file = next((wanted[path] for path in paths if path in wanted), None)
        if file is None:
            continue
        if file in classes:
            raise UserError(f"{where}: {row['file']} has a label already")
        label = labels.class_of(row["label"] or "")
        if label is None:
            raise UserError(f"{where}: {labels.unknown(row['label'])}")
        classes[file] = labels.CLASSES[label]
        patient = (row.get("patient") or "").strip()
        patients[file] = "" if patient == "unknown" else patient
    missing = [file for file in used if file not in classes]
    if missing:
        raise UserError(f"--labels={labels_file}: no row for {missing[0]} ({len(missing)} such files)")
    return classes, patients
