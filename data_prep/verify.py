"""Checks a datasets folder before anything is trained on it: what it holds, and that no test image was trained on.

    python -m data_prep.verify --datasets_dir=datasets/xray --source_probe

Leakage is the same file, a near-duplicate, or the same patient in two of the splits train, val and test. It ends the
program with exit code 1, as do a file that cannot be decoded, a mask among the images and a missing clean twin. A
domain of one class, domains of different composition and a label that can be guessed from the source are warnings. With
`--output_dir` all that was found is written to `result.json`.

Near-duplicates of degraded images are found by the manifest, which records the hash of the image before it was
degraded; without one only those that still look alike are found, and patients and sources cannot be checked.
"""

import collections
import dataclasses
import os
import warnings
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
from absl import flags
from tqdm import tqdm

from data_prep import duplicates, prepare, splits
from data_prep.manifest import MANIFEST_FILE, UNKNOWN, read_manifest
from data_prep.parallel import parallel_map
from r2c_gan import files
from r2c_gan.cli import program
from r2c_gan.data import datasets as data
from r2c_gan.errors import UserError, reason
from r2c_gan.evaluation import metrics

FOLDERS = tuple(f"{split}{domain}" for split in prepare.SPLITS for domain in ("A", "A_reference", "B"))

PROBE_SIDE = 32
PROBE_IMAGES = 4000  # at most: the classifier's time grows with the square
SAME_FILM = 24  # bits by which resizing and rounding change a hash at most; two films differ in more than NEAR
NO_TWINS = 90  # bits; a severely degraded image is nearer than that to its clean twin, another chest rarely is
IMBALANCE = 0.1  # difference of shares between trainA and trainB that is warned of
GUESSABLE = 0.05  # gain in accuracy, by guessing the label from the source, that is warned of


@dataclasses.dataclass(frozen=True)
class Item:
    """One image of the folder: its path relative to it, and what is known of it.

    `phash` is that of the radiograph before any degradation where a manifest knows it; `thumbnail` is None unless asked
    for.
    """

    file: str
    label: int
    sha256: str
    phash: np.ndarray
    thumbnail: np.ndarray | None
    source: str
    patient: str

    @property
    def folder(self):
        return self.file.split("/")[0]

    @property
    def split(self):
        return prepare.split_of(self.folder)


def verify(datasets_dir, source_probe=False, workers=1, seed=0):
    """Checks a datasets folder.

    Args:
        datasets_dir: the folder that holds `trainA/`, `trainB/` and so on.
        source_probe: whether to try to tell the classes apart by the corners of the images.
        workers: processes to use.
        seed: of the folds and the bootstrap of the probe.

    Returns:
        A JSON-able dictionary: `counts` (folder -> class -> images), `labels` (folder -> what gave them: the name of a
        labels file, "class folders" or "file names"), `leaks` (list of {kind, files, detail}), `errors` and `warnings`
        (lists of lines), `patients_known` and `images`, `sources` (table source x label x folder), `label_by_source`
        (see `guess_by_source`) and `source_probe` (see `probe_sources`), None where there is nothing to compute it
        from.

    Raises:
        UserError: if there is no such folder, or no training domain in it, or a label is unknown.
    """
    datasets_dir = Path(datasets_dir)
    listed, rules, cautions = _list(datasets_dir)
    manifest = read_manifest(datasets_dir)
    items, errors = _examine(datasets_dir, listed, source_probe, workers)
    cautions += _against_manifest(items, listed, manifest)
    items = [_vouched(item, manifest) for item in items]
    known = {name for name, _ in listed}
    errors += [f"{name}: has no reference image" for name in _without_twin(datasets_dir, known)]
    pairs = duplicates.near_pairs(np.array([item.phash for item in items]).reshape(-1, duplicates.HASH_BITS // 8))
    leaks, paired, alike = _duplicates(items, pairs)
    leaks += _shared_patients(items)
    if paired:
        cautions.append(
            f"{len(paired)} near-duplicates lie in domains A and B of one split, which should be unpaired: "
            f"{paired[0][0]} and {paired[0][1]}"
        )
    if alike:
        cautions.append(
            f"{len(alike)} pairs look alike but are of two patients, as their source says: "
            f"{alike[0][0]} and {alike[0][1]}"
        )
    cautions += _strange_twins(items)
    cautions += _imbalance(items)
    real = [item for item in items if not item.folder.endswith("_reference")]
    by_source = guess_by_source(real) if any(item.source != UNKNOWN for item in real) else None
    if by_source and by_source["accuracy"] > by_source["majority"] + GUESSABLE:
        cautions.append(
            f"the label can be guessed from the source: right in {by_source['accuracy']:.0%} of the images, where the "
            f"commoner class alone is right in {by_source['majority']:.0%} (Cramer's V {by_source['cramers_v']:.2f}); "
            "a classifier may learn the source instead of the disease"
        )
    probe = None
    if source_probe:
        groups = splits.group_images([item.patient for item in items], pairs)
        rows = [index for index, item in enumerate(items) if not item.folder.endswith("_reference")]
        probe = probe_sources(real, groups[rows], seed)
        if probe["nearly_as_well"]:
            cautions.append("the corners of the images tell the classes apart nearly as well as whole images")
    return {
        "images": len(items),
        "counts": _counts(items),
        "labels": rules,
        "leaks": leaks,
        "errors": errors,
        "warnings": cautions,
        "patients_known": sum(item.patient != UNKNOWN for item in items),
        "manifest": bool(manifest),
        "sources": _table(items) if by_source else None,
        "label_by_source": by_source,
        "source_probe": probe,
    }


def _list(datasets_dir):
    """The images, as (path relative to the folder, label), what gave the labels of each folder, and warnings."""
    if not datasets_dir.is_dir():
        raise UserError(f"--datasets_dir={datasets_dir}: no such folder")
    present = [name for name in FOLDERS if (datasets_dir / name).is_dir()]
    for name in ("trainA", "trainB"):
        if name not in present:
            raise UserError(f"--datasets_dir={datasets_dir}: has no folder {name}")
    listed, rules, cautions = [], {}, []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name in present:
            domain = data.read_domain(datasets_dir / name)
            names = [file.relative_to(datasets_dir).as_posix() for file in domain.files]
            listed += zip(names, domain.labels.tolist(), strict=True)
            rules[name] = domain.rule
            if domain.masks:
                example = domain.masks[0].relative_to(datasets_dir).as_posix()
                cautions.append(f"{name}: {len(domain.masks)} masks are passed over, such as {example}")
    cautions += [str(warning.message) for warning in caught]
    return listed, rules, cautions


def _examine(datasets_dir, listed, thumbnails, workers):
    """Decodes every file: (list of `Item`, errors)."""
    items, errors = [], []
    jobs = ((datasets_dir / name, thumbnails) for name, _ in listed)
    with closing(parallel_map(_scan, jobs, workers)) as scans:
        for (name, label), scan in zip(listed, tqdm(scans, "checking", len(listed), unit="image"), strict=True):
            if isinstance(scan, str):
                errors.append(scan)
            else:
                items.append(Item(name, label, *scan, source=UNKNOWN, patient=UNKNOWN))
    return items, errors


def _scan(job):
    """Decodes a file: (SHA-256, perceptual hash, thumbnail or None), or why it cannot be decoded."""
    path, thumbnail = job
    try:
        image = prepare.load(path)
        if data.is_two_valued(image):
            return f"{path}: {data.MASK}"
        small = cv2.resize(image, (PROBE_SIDE, PROBE_SIDE), interpolation=cv2.INTER_AREA) if thumbnail else None
        return files.sha256(path), duplicates.perceptual_hash(image), small
    except Exception as error:  # whatever it is, it is about this file
        return f"{path}: {reason(error, path)}"


def _against_manifest(items, listed, manifest):
    """Warnings where the manifest and the folder differ."""
    if not manifest:
        return [
            f"there is no {MANIFEST_FILE}: patients, sources and near-duplicates of degraded images are not checked"
        ]
    found = {name for name, _ in listed}
    differing = {
        "are not in the manifest": sorted(found - set(manifest)),
        "are in the manifest but not in the folder": sorted(set(manifest) - found),
        "have changed since the manifest was written": [
            item.file for item in items if item.file in manifest and not _unchanged(item, manifest[item.file])
        ],
        "have another label than the manifest": [
            item.file for item in items
            if item.file in manifest and manifest[item.file]["label"] != data.CLASSES[item.label]
        ],
    }  # fmt: skip
    return [f"{len(names)} files {what}: {names[0]}" for what, names in differing.items() if names]


def _unchanged(item, row):
    return row["sha256"] == item.sha256


def _vouched(item, manifest):
    """The item with what the manifest knows of it."""
    row = manifest.get(item.file)
    if row is None:
        return item
    phash = item.phash
    if _unchanged(item, row) and row["phash"]:
        recorded = duplicates.from_hex(row["phash"])
        # An image that was not degraded shows whether the record is true.
        if row["parameters"] or duplicates.distance(recorded, phash) <= SAME_FILM:
            phash = recorded
    return dataclasses.replace(item, phash=phash, source=row["source"] or UNKNOWN, patient=row["patient"] or UNKNOWN)


def _without_twin(datasets_dir, names):
    """The images of a domain A beside a reference folder that holds no image of that name."""
    stems = {str(Path(name).with_suffix("")) for name in names}
    for folder in FOLDERS:
        if folder.endswith("_reference") and (datasets_dir / folder).is_dir():
            degraded = folder.removesuffix("_reference")
            for name in sorted(name for name in names if name.split("/")[0] == degraded):
                if str(Path(folder, *Path(name).with_suffix("").parts[1:])) not in stems:
                    yield name


def _duplicates(items, pairs):
    """(leaks: near-duplicates in two splits, pairs of names: those in A and B of one split, look-alikes)."""
    leaks, paired, alike = [], [], []
    for first, second in ((items[i], items[j]) for i, j in pairs):
        names = [first.file, second.file]
        if _two_patients(first, second) and first.sha256 != second.sha256:
            alike.append(names)
        elif first.split != second.split:
            same = first.sha256 == second.sha256
            bits = duplicates.distance(first.phash, second.phash)
            detail = "the same file" if same else f"{bits} of {duplicates.HASH_BITS} bits differ"
            leaks.append({"kind": "same file" if same else "near-duplicates", "files": names, "detail": detail})
        elif {first.folder[-1], second.folder[-1]} == {"A", "B"}:
            paired.append(names)
    return leaks, paired, alike


def _two_patients(first, second):
    """Whether their one source says that they are of two patients: chests that look alike, then, and not one film."""
    known = UNKNOWN not in (first.patient, second.patient)
    return known and first.source == second.source and first.patient != second.patient


def _shared_patients(items):
    """Leaks: patients in more than one split, with a file of each."""
    seen = collections.defaultdict(dict)
    for item in items:
        if item.patient != UNKNOWN:
            seen[item.patient].setdefault(item.split, item.file)
    return [
        {"kind": "patient", "files": list(found.values()), "detail": f"patient {patient} is in {' and '.join(found)}"}
        for patient, found in seen.items()
        if len(found) > 1
    ]


def _strange_twins(items):
    twins = {str(Path(item.file).with_suffix("")): item for item in items}
    strange = []
    for stem, item in twins.items():
        folder, _, rest = stem.partition("/")
        if folder.endswith("_reference"):
            degraded = twins.get(f"{folder.removesuffix('_reference')}/{rest}")
            if degraded and duplicates.distance(item.phash, degraded.phash) > NO_TWINS:
                strange.append(degraded.file)
    return [f"{len(strange)} images do not look like their clean twins: {strange[0]}"] if strange else []


def _imbalance(items):
    """Warnings where a class or a source has another share of trainA than of trainB.

    A network that only has to make A look like B can then do so by changing what the image shows (Cohen et al. 2018).
    """
    lines = []
    for what, key in (("class", lambda item: data.CLASSES[item.label]), ("source", lambda item: item.source)):
        shares = {}
        for folder in ("trainA", "trainB"):
            values = collections.Counter(key(item) for item in items if item.folder == folder)
            shares[folder] = {value: number / values.total() for value, number in values.items()}
        for value in sorted(set(shares["trainA"]) | set(shares["trainB"])):
            in_a, in_b = (shares[folder].get(value, 0) for folder in ("trainA", "trainB"))
            if abs(in_a - in_b) > IMBALANCE:
                lines.append(f"the {what} {value} is {in_a:.0%} of trainA but {in_b:.0%} of trainB")
    return lines


def guess_by_source(items):
    """How well the label follows from the source.

    Args:
        items: list of objects with `label` (0 or 1) and `source`.

    Returns:
        A dictionary: `accuracy`, of guessing each source's commoner label; `majority`, of always guessing the commoner
        label; `cramers_v`, the association of the two (0: none, 1: complete).
    """
    sources = sorted({item.source for item in items})
    table = np.zeros((len(sources), 2))
    for item in items:
        table[sources.index(item.source), item.label] += 1
    total = table.sum()
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / total
    squared = np.divide((table - expected) ** 2, expected, out=np.zeros_like(table), where=expected > 0).sum()
    smaller = min(table.shape[0], np.count_nonzero(table.sum(0))) - 1
    return {
        "accuracy": float(table.max(1).sum() / total),
        "majority": float(table.sum(0).max() / total),
        "cramers_v": float(np.sqrt(squared / (total * smaller))) if smaller else 0.0,
    }


def probe_sources(items, groups, seed=0):
    """Tries to tell the classes apart without seeing the lungs (DeGrave et al. 2021).

    A support vector machine is trained on the gray values of 32 x 32 images, once on the corners alone, outside the
    ellipse that touches the four edges, and once on the whole image. The ellipse stands in for a lung mask: in a chest
    that fills the image tightly a costophrenic angle may reach outside it, and shoulders and arms are outside it, which
    may differ between the classes for reasons of the disease (a patient lying in bed). So a good result in the corners
    is a warning about the data, no proof; and it says nothing about what a network has in fact learnt.

    Args:
        items: list of objects with `label` (0 or 1) and `thumbnail` (float [32, 32]).
        groups: int [N]; a group is never in training and test at once.
        seed: of the sample of at most 4,000 images, the folds and the bootstrap.

    Returns:
        A dictionary: `images`, and for `corners` and `whole` the `auroc` in 5-fold cross-validation with the 95%
        bootstrap interval `low`, `high` (groups resampled); `nearly_as_well`, whether the corners reach 80% of what the
        whole image reaches beyond chance.

    Raises:
        UserError: if a class has fewer than 10 images.
    """
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    chosen = np.random.default_rng(seed).permutation(len(items))[:PROBE_IMAGES]
    labels, groups = np.array([items[index].label for index in chosen]), np.asarray(groups)[chosen]
    if min(np.bincount(labels, minlength=2)) < 10:
        raise UserError("--source_probe: needs at least 10 images of each class")
    pixels = np.stack([items[index].thumbnail for index in chosen])
    axis = (np.arange(PROBE_SIDE) + 0.5) / PROBE_SIDE * 2 - 1
    outside = np.hypot(axis[:, None], axis) > 1
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    result = {"images": len(labels)}
    for name, values in (("corners", pixels[:, outside]), ("whole", pixels.reshape(len(pixels), -1))):
        classifier = make_pipeline(StandardScaler(), SVC(C=3.0))
        scores = cross_val_predict(classifier, values, labels, groups=groups, cv=folds, method="decision_function")
        low, high = metrics.bootstrap_interval(metrics.auroc, labels, scores, clusters=groups, n=500, seed=seed)
        result[name] = {"auroc": metrics.auroc(labels, scores), "low": low, "high": high}
    beyond = {name: result[name]["auroc"] - 0.5 for name in ("corners", "whole")}
    result["nearly_as_well"] = bool(beyond["corners"] > 0.1 and beyond["corners"] > 0.8 * beyond["whole"])
    return result


def _counts(items):
    counts = collections.Counter((item.folder, item.label) for item in items)
    present = [folder for folder in FOLDERS if any(counts[folder, label] for label in (0, 1))]
    return {folder: {name: counts[folder, label] for label, name in enumerate(data.CLASSES)} for folder in present}


def _table(items):
    cells = collections.Counter((item.source, data.CLASSES[item.label], item.folder) for item in items)
    return prepare.cross_table(cells)


def report(result):
    """The result of `verify` as lines of text."""
    lines = [prepare.format_table([{"folder": folder, **counts} for folder, counts in result["counts"].items()])]
    for rule in sorted(set(result["labels"].values())):
        lines.append(f"labels from {rule}: {', '.join(name for name, of in result['labels'].items() if of == rule)}")
    if result["sources"]:
        lines += ["", prepare.format_table(result["sources"])]
    if result["source_probe"]:
        probe = result["source_probe"]
        lines += ["", f"source probe, AUROC over {probe['images']} images (95% interval):"]
        lines += [
            f"  {name:8s}{probe[name]['auroc']:.3f} ({probe[name]['low']:.3f} to {probe[name]['high']:.3f})"
            for name in ("corners", "whole")
        ]
    lines.append("")
    for kind in ("warnings", "errors"):
        lines += _some(kind.removesuffix("s"), result[kind])
    for kind in ("same file", "near-duplicates", "patient"):
        found = [leak for leak in result["leaks"] if leak["kind"] == kind]
        lines += _some("leak", [f"{' and '.join(leak['files'])}: {leak['detail']}" for leak in found])
    lines.append(
        f"{result['images']} images, {result['patients_known']} of a known patient: {len(result['leaks'])} leaks, "
        f"{len(result['errors'])} errors, {len(result['warnings'])} warnings"
    )
    return "\n".join(lines)


def _some(kind, entries, limit=10):
    more = [f"{kind}: {len(entries) - limit} more"] if len(entries) > limit else []
    return [f"{kind}: {entry}" for entry in entries[:limit]] + more


def define_flags():
    """Defines the flags of the program. Not at import: this module is a library too."""
    flags.DEFINE_string("datasets_dir", None, "The datasets folder to check.", required=True)
    flags.DEFINE_string("output_dir", None, "Where to write result.json and flags.txt; nowhere if not given.")
    flags.DEFINE_boolean("source_probe", False, "Try to tell the classes apart by the corners of the images alone.")
    flags.DEFINE_integer("seed", 0, "Of the probe's folds.", lower_bound=0)
    flags.DEFINE_integer("workers", os.cpu_count(), "Processes to use.", lower_bound=1)


def main():
    """Checks the datasets folder of the flags; returns the exit code."""
    values = flags.FLAGS
    result = verify(values.datasets_dir, values.source_probe, values.workers, values.seed)
    print(report(result))
    if values.output_dir:
        files.write_json(Path(values.output_dir) / "result.json", result)
        program.write_flags(values.output_dir)
    return 1 if result["leaks"] or result["errors"] else 0


def console():
    define_flags()
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
