"""Makes a datasets folder for training from radiographs as they come: CSV lists, class folders, QaTa-COV19, DICOM.

    python -m data_prep.prepare --source=xray/list.csv --output_dir=datasets/xray --domains=by_degradation --size=128

`--domains=by_degradation` divides the clean images into two disjoint halves and degrades one, domain A; the other is
domain B. `valA_reference/` and `testA_reference/` hold the clean twins, `trainA_reference/` those of domain A for
training on pairs, if `--train_reference` asks for them. `--domains=by_quality` puts images that are
poor as they are into A, good ones into B. The images of a patient and near-duplicates stay in one split, and every
split has the same shares of each label and source. `manifest.csv` says where every file came from, `counts.csv` how
many there are of each source and label.
"""

import collections
import dataclasses
import hashlib
import json
import os
import time
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
from absl import flags
from tqdm import tqdm

from data_prep import duplicates, splits
from data_prep.manifest import COLUMNS, MANIFEST_FILE, UNKNOWN, new_folder
from data_prep.parallel import parallel_map
from data_prep.sources import SPLITS, Problem, read_header, read_source
from r2c_gan import files
from r2c_gan.cli import program
from r2c_gan.data import datasets as data
from r2c_gan.data import images, window
from r2c_gan.data.window import Window
from r2c_gan.errors import UserError, reason, shown

DOMAINS = ("by_quality", "by_degradation")
SEVERITIES = ("mild", "moderate", "severe")
COUNTS_FILE = "counts.csv"
MIN_SIDE = 32
"""Pixels; a smaller image shows nothing of a chest."""


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How a datasets folder is made; the flags of the program have the same names.

    Raises:
        UserError: if a value is out of its range.
    """

    domains: str = "by_degradation"
    severity: str = "moderate"
    poor_below: float | None = None
    good_above: float | None = None
    size: int = 0
    bits: int = 8
    window: str = "auto"
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    test_poor: float = 0.5
    train_reference: bool = False
    keep_split: bool = False
    on_error: str = "fail"
    seed: int = 0

    def __post_init__(self):
        Window.parse(self.window)
        if self.size and not MIN_SIDE <= self.size <= images.MAX_SIDE:
            raise UserError(f"--size={self.size}: must be 0, to keep the sizes, or {MIN_SIDE} to {images.MAX_SIDE}")
        for name in ("val_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--{name}={getattr(self, name)}: must be from 0 up to 1")
        if self.val_fraction + self.test_fraction >= 1:
            raise UserError("--val_fraction and --test_fraction: leave nothing to train on; their sum must be below 1")
        if self.train_reference and self.domains != "by_degradation":
            raise UserError("--train_reference: needs --domains=by_degradation; real poor films have no clean ones")
        if not 0 < self.test_poor <= 1:
            raise UserError(f"--test_poor={self.test_poor}: must be above 0 and at most 1")
        if (self.poor_below is None) != (self.good_above is None):
            raise UserError("--poor_below and --good_above: give both, or neither for the thirds of the scores")
        if self.poor_below is not None and not 0 <= self.poor_below <= self.good_above <= 1:
            raise UserError("--poor_below and --good_above: must be scores from 0 to 1, the first not above the second")
        if self.seed < 0:
            raise UserError(f"--seed={self.seed}: must not be negative")

    def split_shares(self):
        """Dictionary: split -> its share of the images; splits of no share are left out."""
        shares = (1 - self.val_fraction - self.test_fraction, self.val_fraction, self.test_fraction)
        return {split: share for split, share in zip(SPLITS, shares, strict=True) if share}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What was made.

    Attributes:
        counts: the table source x label x folder, see `cross_table`.
        radiographs: how many were used.
        left_out: list of `data_prep.sources.Problem`.
        pairs: list of (name, name), near-duplicates.
        largest_group: how many images the largest group has that had to stay together.
        faint: names of the radiographs that use little of the gray range, see `r2c_gan.data.window.warning`.
    """

    counts: list
    radiographs: int
    left_out: list
    pairs: list
    largest_group: int
    faint: list


def load(path, window="auto"):
    """Reads a radiograph in gray.

    Args:
        path: any file that `r2c_gan.data.images.read_image` reads.
        window: which stored values become black and white, a `Window` or its text.

    Returns:
        float32 [H, W] in [0, 1].

    Raises:
        ImageError: if the file cannot be used, has a side below `MIN_SIDE`, or one gray value only.
    """
    image = (images.read_image(path, 1, window)[..., 0] + 1) / 2
    height, width = image.shape
    if min(height, width) < MIN_SIDE:
        raise images.ImageError(f"{path}: {width} x {height} pixels; at least {MIN_SIDE} a side are needed")
    if image.min() == image.max():
        raise images.ImageError(f"{path}: all pixels have one value")
    return image


def fit(image, size):
    """Makes an image [H, W] square, `size` a side: shrunk by area averaging, enlarged bilinearly; 0 changes nothing."""
    if not size or image.shape == (size, size):
        return image
    if min(image.shape) >= size:
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    else:
        image = images.resize(image[..., None], size, size)[..., 0]
    return np.clip(image, 0, 1)


def prepare(folder, records, problems, preparation, workers=1):
    """Writes the domains, the manifest and the counts.

    Args:
        folder: an existing folder.
        records: list of `data_prep.sources.Record`.
        problems: list of `data_prep.sources.Problem`, for the manifest.
        preparation: a `Preparation`.
        workers: processes to use; the files do not depend on it.

    Returns:
        A `Prepared`.

    Raises:
        UserError: if images cannot be used and `on_error` is "fail", or too few are left.
    """
    folder = Path(folder)
    left_out = list(problems)
    _fail_on(problems, preparation)
    records, hashes, wrong, faint = _read(records, preparation, workers)
    _fail_on(wrong, preparation)
    records, hashes, unused = _usable(records, hashes, preparation)
    left_out = sorted(left_out + wrong + unused, key=lambda problem: problem.name)
    if not records:
        raise UserError("--source: no image is left" + (f"; {left_out[0]}" if left_out else ""))

    pairs = duplicates.near_pairs(hashes)
    groups = splits.group_images([record.patient for record in records], pairs)
    places = _places(records, groups, preparation)
    for domain in "AB":
        if ("train", domain) not in places:
            raise UserError(f"--source: of {len(records)} images none is left for train{domain}; more are needed")

    jobs = (
        (folder, record, name, *place, duplicates.to_hex(phash), preparation)
        for record, name, place, phash in zip(records, unique_names(records), places, hashes, strict=True)
    )
    cells = collections.Counter()

    def rows():  # one at a time: the manifest of many files is never in memory as a whole
        with closing(parallel_map(_write, jobs, workers)) as written:
            for group in tqdm(written, "writing", len(records), unit="image"):
                for row in group:
                    cells[row["source"], row["label"], row["split"] + row["domain"]] += 1
                    yield row
        for problem in left_out:
            yield {**dict.fromkeys(COLUMNS, ""), "original": problem.name, "left_out": problem.reason}

    files.write_csv(folder / MANIFEST_FILE, rows(), COLUMNS)
    table = cross_table(cells)
    files.write_csv(folder / COUNTS_FILE, table, table[0])
    names = [(records[first].name, records[second].name) for first, second in pairs]
    return Prepared(table, len(records), left_out, names, int(np.bincount(groups).max()), faint)


def _fail_on(problems, preparation):
    """Names what cannot be used, all at once: whoever mends the files need not start again for each."""
    wrong = [problem for problem in problems if not problem.mask]
    if preparation.on_error != "fail" or not wrong:
        return
    first, *others = wrong
    more = f"; so with {len(others)} more: {', '.join(other.name for other in others[:5])}" if others else ""
    more += ", ..." if len(others) > 5 else ""
    raise UserError(f"{first}{more}. --on_error=skip leaves such files out and lists them in the manifest")


def _read(records, preparation, workers):
    """Opens every file once: (records that can be used, their hashes uint8 [N, 32], problems, names of faint ones)."""
    kept, hashes, problems, patients, names, faint = [], [], [], {}, set(), []
    with closing(parallel_map(_scan, ((record, preparation) for record in records), workers)) as scans:
        for record, scan in zip(records, tqdm(scans, "reading", len(records), unit="image"), strict=True):
            if record.name in names:
                scan = Problem(
                    record.name, record.path, "another --source also has a file of this name; rename a folder"
                )
            if isinstance(scan, Problem):
                problems.append(scan)
                continue
            phash, found, warned = scan
            faint += [record.name] if warned else []
            if "patient" in found:  # the number of a person in a hospital does not belong into a manifest
                found["patient"] = patients.setdefault(found["patient"], f"dicom-{len(patients) + 1:05d}")
            names.add(record.name)
            kept.append(dataclasses.replace(record, **found))
            hashes.append(phash)
    return kept, np.array(hashes, np.uint8).reshape(-1, duplicates.HASH_BITS // 8), problems, faint


def _scan(job):
    """Looks at one record: (perceptual hash, what it adds to the record, a warning or None), or a `Problem`."""
    record, preparation = job
    if shown(record.name) != record.name:
        return Problem(record.name, record.path, "the name is not UTF-8 text; rename the file")
    try:
        image = load(record.path, preparation.window)
        if data.is_two_valued(image):
            return Problem(record.name, record.path, data.MASK, mask=True)
        header = read_header(record.path)
        found = {key: value for key, value in header.items() if getattr(record, key) == UNKNOWN}
        if preparation.domains == "by_quality" and record.quality is None:
            found["quality"] = _score(fit(image, preparation.size))
        return duplicates.perceptual_hash(image), found, window.warning(2 * image - 1)
    except Exception as error:  # whatever it is, it is about this file
        return Problem(record.name, record.path, reason(error, record.path))


def _score(image):
    from data_prep.quality import quality_score

    return quality_score(image)


def _usable(records, hashes, preparation):
    """Leaves out what belongs into no domain; in the records that remain `quality` is "good" or "poor"."""
    if preparation.domains == "by_degradation":
        qualities = ["poor" if record.quality == "poor" else "good" for record in records]
        reasons = ["said to be poor; --domains=by_degradation needs clean images" if quality == "poor" else ""
                   for quality in qualities]  # fmt: skip
    else:
        poor_below, good_above = _thresholds(records, preparation)
        qualities = [record.quality if isinstance(record.quality, str) else
                     "poor" if record.quality < poor_below else "good" if record.quality >= good_above else None
                     for record in records]  # fmt: skip
        reasons = ["" if quality else f"quality {record.quality:.3f}, between {poor_below:.3f} and {good_above:.3f}"
                   for record, quality in zip(records, qualities, strict=True)]  # fmt: skip
    kept = [index for index, reason in enumerate(reasons) if not reason]
    unused = [
        Problem(record.name, record.path, reason) for record, reason in zip(records, reasons, strict=True) if reason
    ]
    return [dataclasses.replace(records[index], quality=qualities[index]) for index in kept], hashes[kept], unused


def _thresholds(records, preparation):
    if preparation.poor_below is not None:
        return preparation.poor_below, preparation.good_above
    scores = [record.quality for record in records if not isinstance(record.quality, str)]
    return tuple(np.quantile(scores, (1 / 3, 2 / 3))) if scores else (0, 0)


def _places(records, groups, preparation):
    """The (split, domain) of each record."""
    allowed = _allowed_splits(records, groups, preparation)
    places = [None] * len(records)
    for choice in sorted(set(allowed)):
        chosen = [index for index, splits_ in enumerate(allowed) if splits_ == choice]
        shares = {split: preparation.split_shares().get(split, 0) for split in choice}
        total = sum(shares.values())
        shares = {split: share / total if total else 1 / len(shares) for split, share in shares.items()}
        strata = [(records[index].label, records[index].source, records[index].quality) for index in chosen]
        if preparation.domains == "by_degradation":
            poor = {split: 0.5 if split == "train" else preparation.test_poor for split in shares}
            cells = {(split, "A"): share * poor[split] for split, share in shares.items()}
            cells |= {(split, "B"): share * (1 - poor[split]) for split, share in shares.items() if poor[split] < 1}
        else:
            cells = {(split, None): share for split, share in shares.items()}
        for index, (split, domain) in zip(
            chosen, splits.assign(groups[chosen], strata, cells, preparation.seed), strict=True
        ):
            places[index] = (split, domain or ("A" if records[index].quality == "poor" else "B"))
    return places


def _allowed_splits(records, groups, preparation):
    """For each record the splits that it may go to, by what the source says of any record of its group."""
    everything = tuple(preparation.split_shares())
    if not preparation.keep_split:
        return [everything] * len(records)
    if not any(record.split for record in records):
        raise UserError("--keep_split: no source has a split of its own")
    said = collections.defaultdict(set)
    for record, group in zip(records, groups, strict=True):
        said[group].add(record.split)
    has_val = any(record.split == "val" for record in records)
    rest = tuple(split for split in everything if split == "train" or (split == "val" and not has_val))

    def allowed(names):
        return next(((split,) for split in ("test", "val") if split in names), rest if "train" in names else everything)

    return [allowed(said[group]) for group in groups]


def unique_names(records):
    """File names without suffix that no two records share: that of the original, with a hash where it is not unique."""
    stems = [record.path.stem.encode()[:100].decode(errors="ignore") for record in records]  # of 255 bytes a name
    often = collections.Counter(stem.lower() for stem in stems)
    return [
        stem if often[stem.lower()] == 1 else f"{stem}_{hashlib.sha256(record.name.encode()).hexdigest()[:12]}"
        for record, stem in zip(records, stems, strict=True)
    ]


def _write(job):
    """Writes the files of one record and returns their rows of the manifest."""
    folder, record, name, split, domain, phash, preparation = job
    image = fit(load(record.path, preparation.window), preparation.size)
    outputs = [(domain, image, None)]
    if domain == "A" and preparation.domains == "by_degradation":
        from data_prep.degradations import degrade

        # Of the name, not of the place in the list: what else is in the source changes nothing about this one.
        key = int.from_bytes(hashlib.sha256(record.name.encode()).digest()[:8])
        rng = np.random.default_rng([preparation.seed, key])
        outputs = [("A", *degrade(image, rng, severity=preparation.severity))]
        if split != "train" or preparation.train_reference:
            outputs.append(("A_reference", image, None))
    rows = []
    for kind, pixels, parameters in outputs:
        file = f"{split}{kind}/{record.label}/{name}.png"
        images.write_image(folder / file, 2 * pixels - 1, preparation.bits)
        rows.append({
            "file": file, "sha256": files.sha256(folder / file), "phash": phash, "label": record.label,
            "source": record.source, "patient": record.patient, "view": record.view, "modality": record.modality,
            "quality": f"{_score(pixels):.4f}", "domain": kind, "split": split,
            "parameters": json.dumps(parameters) if parameters else "", "original": record.name, "left_out": "",
        })  # fmt: skip
    return rows


def cross_table(cells):
    """A counter of (source, label, folder) as a list of dictionaries, one a (source, label): a column each folder."""
    folders = sorted({folder for _, _, folder in cells}, key=lambda folder: (SPLITS.index(split_of(folder)), folder))
    return [
        {"source": source, "label": label, **{folder: cells[source, label, folder] for folder in folders}}
        for source, label in sorted({(source, label) for source, label, _ in cells})
    ]


def split_of(folder):
    """The split that a folder such as `testA_reference` belongs to."""
    return next(split for split in SPLITS if folder.startswith(split))


def format_table(table):
    """A list of dictionaries as lines of text: a header, a line each, and the sums of the numbers."""
    numbers = [name for name, value in table[0].items() if isinstance(value, int)]
    texts = [name for name in table[0] if name not in numbers]
    total = {texts[0]: "all", **{name: sum(row[name] for row in table) for name in numbers}}
    cells = [list(table[0])] + [[str(row.get(name, "")) for name in table[0]] for row in (*table, total)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if name in texts else cell.rjust(width)
            for cell, width, name in zip(line, widths, table[0], strict=True)
        ).rstrip()
        for line in cells
    )


def define_flags():
    """Defines the flags of the program. Not at import: this module is a library too."""
    default = Preparation()
    flags.DEFINE_multi_string(
        "source", None, "A folder, or a CSV file (file,label[,patient,view,source,quality,split]). May be repeated.",
        required=True,
    )  # fmt: skip
    flags.DEFINE_string("output_dir", None, "The datasets folder to make.", required=True)
    flags.DEFINE_enum("domains", default.domains, DOMAINS, "How images come to domain A.")
    flags.DEFINE_enum("severity", default.severity, SEVERITIES, "How badly domain A is degraded.")
    flags.DEFINE_float(
        "poor_below", default.poor_below, "by_quality: A takes scores below this. Not given: the lowest third."
    )
    flags.DEFINE_float(
        "good_above", default.good_above, "by_quality: B takes scores from this on. Not given: the highest third."
    )
    flags.DEFINE_integer("size", default.size, "Side of the images, in pixels; 0 keeps their sizes.")
    flags.DEFINE_string("window", default.window, window.HELP)
    flags.DEFINE_enum("bits", str(default.bits), ("8", "16"), "Bits of the PNG files.")
    flags.DEFINE_float("val_fraction", default.val_fraction, "Share of the images in valA and valB.")
    flags.DEFINE_float("test_fraction", default.test_fraction, "Share of the images in testA and testB.")
    flags.DEFINE_float(
        "test_poor",
        default.test_poor,
        "by_degradation: share of the validation and test images that go to domain A; 1 measures on all of them.",
    )
    flags.DEFINE_boolean(
        "train_reference", default.train_reference,
        "by_degradation: write the clean images of trainA too, into trainA_reference/, for paired training.",
    )  # fmt: skip
    flags.DEFINE_boolean(
        "keep_split", default.keep_split,
        "What a source calls test stays test, with its near-duplicates and patients; the rest becomes train and val.",
    )  # fmt: skip
    flags.DEFINE_enum("on_error", default.on_error, ("fail", "skip"), "What to do about a file that cannot be used.")
    flags.DEFINE_integer("seed", default.seed, "Another seed gives another division and other degradations.")
    flags.DEFINE_boolean("overwrite", False, "Replace a datasets folder made before.")
    flags.DEFINE_integer("workers", os.cpu_count(), "Processes to use; the files do not depend on it.", lower_bound=1)


def main():
    """Makes the datasets folder that the flags describe."""
    values = flags.FLAGS
    names = [field.name for field in dataclasses.fields(Preparation)]
    preparation = Preparation(**{**{name: values[name].value for name in names}, "bits": int(values.bits)})
    records, problems, masks = [], [], []
    for source in values.source:
        found, wrong = read_source(source, masks)
        records, problems = records + found, problems + wrong
    start = time.monotonic()
    with new_folder(values.output_dir, values.overwrite) as folder:
        prepared = prepare(folder, records, problems, preparation, values.workers)
        program.write_flags(folder)
    seconds = time.monotonic() - start
    _report(prepared, masks, len(records), seconds, values.output_dir)


def _report(prepared, masks, count_read, seconds, output_dir):
    print(format_table(prepared.counts))
    if masks:
        print(f"masks passed over: {len(masks)}, such as {shown(masks[0])}")
    for problem in prepared.left_out[:5]:
        print(f"left out: {problem.name}: {problem.reason}")
    if len(prepared.left_out) > 5:
        print(f"left out: {len(prepared.left_out) - 5} more, see {MANIFEST_FILE}")
    if prepared.faint:
        print(
            f"warning: {len(prepared.faint)} images use less than a quarter of the gray range, such as "
            f"{prepared.faint[0]}; --window=percentile may show more"
        )
    for first, second in prepared.pairs[:5]:
        print(f"near-duplicates: {first} and {second}")
    if len(prepared.pairs) > 5:
        print(f"near-duplicates: {len(prepared.pairs) - 5} more pairs")
    if prepared.largest_group > max(10, prepared.radiographs / 10):
        print(f"warning: {prepared.largest_group} images had to stay together; look at their patient ids")
    print(
        f"{output_dir}: {prepared.radiographs} radiographs, {len(prepared.left_out)} left out, {len(prepared.pairs)} "
        f"near-duplicate pairs; {seconds:.1f} s, {count_read / seconds:.0f} images/s"
    )


def console():
    define_flags()
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
