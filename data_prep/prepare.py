"""Makes a datasets folder for training from radiographs as they come: CSV lists, class folders, QaTa-COV19, DICOM.

    python -m data_prep.prepare --source=xray/list.csv --output_dir=datasets/xray --domains=by_degradation --size=128

`--domains=by_degradation` divides the clean images into two disjoint halves and degrades one, domain A; the other is
domain B. `valA_reference/` and `testA_reference/` hold the clean twins. `--domains=by_quality` puts images that are
poor as they are into A, good ones into B. The images of a patient and near-duplicates stay in one split, and every
split has the same shares of each label and source. `manifest.csv` says where every file came from.
"""

import collections
import dataclasses
import hashlib
import json
import os
import time
from pathlib import Path

import cv2
import numpy as np
from absl import flags
from tqdm import tqdm

from data_prep import duplicates, splits
from data_prep.manifest import COLUMNS, MANIFEST_FILE, new_folder
from data_prep.parallel import parallel_map
from data_prep.sources import read_source
from r2c_gan import files, images
from r2c_gan.cli import program
from r2c_gan.errors import UserError

DOMAINS = ("by_quality", "by_degradation")
SEVERITIES = ("mild", "moderate", "severe")
SPLITS = ("train", "val", "test")
MIN_SIDE = 32


@dataclasses.dataclass(frozen=True)
class Preparation:
    """How a datasets folder is made; the flags of the program have the same names."""

    domains: str = "by_degradation"
    severity: str = "moderate"
    size: int = 0
    bits: int = 8
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    on_error: str = "fail"
    seed: int = 0

    def __post_init__(self):
        if self.size and not MIN_SIDE <= self.size <= images.MAX_SIDE:
            raise UserError(f"--size={self.size}: must be 0, to keep the sizes, or {MIN_SIDE} to {images.MAX_SIDE}")
        for name in ("val_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--{name}={getattr(self, name)}: must be from 0 up to 1")
        if self.val_fraction + self.test_fraction >= 1:
            raise UserError("--val_fraction and --test_fraction: leave nothing to train on; their sum must be below 1")
        if self.seed < 0:
            raise UserError(f"--seed={self.seed}: must not be negative")

    def split_shares(self):
        """Dictionary: split -> its share of the images; splits of no share are left out."""
        shares = (1 - self.val_fraction - self.test_fraction, self.val_fraction, self.test_fraction)
        return {split: share for split, share in zip(SPLITS, shares, strict=True) if share}


def load(path, size):
    """Reads a radiograph as the datasets folder holds it.

    Args:
        path: any file that `r2c_gan.images.read_image` reads.
        size: side of the result, shrunk with area averaging, enlarged bilinearly; 0 keeps the size.

    Returns:
        float32 [H, W] in [0, 1].

    Raises:
        ImageError: if the file cannot be used.
    """
    image = (images.read_image(path, 1)[..., 0] + 1) / 2
    height, width = image.shape
    if min(height, width) < MIN_SIDE:
        raise images.ImageError(f"{path}: {width} x {height} pixels; at least {MIN_SIDE} a side are needed")
    if not size:
        return image
    for side, shape in ((height, (width, size)), (width, (size, size))):
        image = cv2.resize(image, shape, interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)
    return np.clip(image, 0, 1)


def prepare(folder, records, problems, preparation, workers=1):
    """Writes the domains and the manifest.

    Args:
        folder: an existing folder.
        records: list of `data_prep.sources.Record`.
        problems: list of (name, reason), for the manifest.
        preparation: a `Preparation`.
        workers: processes to use; the files do not depend on it.

    Returns:
        The rows of the manifest: a list of dictionaries with the keys `COLUMNS`.

    Raises:
        UserError: if an image cannot be used and `on_error` is "fail", or too few are left.
    """
    folder, problems = Path(folder), list(problems)
    if problems and preparation.on_error == "fail":
        _fail(problems[0][1])
    scans = parallel_map(_scan, ((record, preparation) for record in records), workers)
    kept, hashes = [], []
    for record, (phash, reason) in zip(records, tqdm(scans, "reading", len(records), unit="image"), strict=True):
        if reason:
            if preparation.on_error == "fail":
                _fail(reason)
            problems.append((record.name, reason))
        else:
            kept.append(record)
            hashes.append(np.frombuffer(bytes.fromhex(phash), np.uint8))
    if not kept:
        raise UserError("--source: no image is left")

    pairs = duplicates.near_pairs(np.array(hashes))
    groups = splits.group_images([record.patient for record in kept], pairs)
    shares = {(split, domain): share / 2 for split, share in preparation.split_shares().items() for domain in "AB"}
    strata = [(record.label, record.source) for record in kept]
    cells = splits.assign(groups, strata, shares, preparation.seed)
    for domain in "AB":
        if ("train", domain) not in cells:
            raise UserError(f"--source: {len(kept)} images are too few: none is left for train{domain}")

    jobs = [
        (folder, record, name, split, domain, hash_.tobytes().hex(), preparation)
        for record, name, (split, domain), hash_ in zip(kept, unique_names(kept), cells, hashes, strict=True)
    ]
    written = tqdm(parallel_map(_write, jobs, workers), "writing", len(jobs), unit="image")
    rows = [row for group in written for row in group]
    rows.sort(key=lambda row: row["file"])
    rows += [{**dict.fromkeys(COLUMNS, ""), "original": name, "left_out": reason} for name, reason in problems]
    files.write_csv(folder / MANIFEST_FILE, rows, COLUMNS)
    return rows


def _fail(reason):
    raise UserError(f"{reason}. --on_error=skip leaves such files out and lists them in the manifest")


def unique_names(records):
    """File names without suffix that no two records share: that of the original, with a hash where it is not unique."""
    stems = [record.path.stem for record in records]
    often = collections.Counter(stem.lower() for stem in stems)
    return [
        stem if often[stem.lower()] == 1 else f"{stem}_{hashlib.sha256(record.name.encode()).hexdigest()[:8]}"
        for record, stem in zip(records, stems, strict=True)
    ]


def _scan(job):
    """Looks at one record: (perceptual hash as hex, None), or (None, why it cannot be used)."""
    record, preparation = job
    try:
        image = load(record.path, preparation.size)
    except images.ImageError as error:
        return None, str(error)
    return duplicates.perceptual_hash(image).tobytes().hex(), None


def _write(job):
    """Writes the files of one record and returns their rows of the manifest."""
    folder, record, name, split, domain, phash, preparation = job
    image = load(record.path, preparation.size)
    outputs = [(domain, image, None)]
    if domain == "A":
        from data_prep.degradations import degrade

        # Of the name, not of the place in the list: other images change nothing about this one.
        key = int.from_bytes(hashlib.sha256(record.name.encode()).digest()[:8])
        degraded, parameters = degrade(
            image, np.random.default_rng([preparation.seed, key]), severity=preparation.severity
        )
        outputs = [("A", degraded, parameters)]
        if split != "train":
            outputs.append(("A_reference", image, None))
    rows = []
    for kind, pixels, parameters in outputs:
        file = f"{split}{kind}/{record.label}/{name}.png"
        images.write_image(folder / file, 2 * pixels - 1, preparation.bits)
        rows.append({
            "file": file, "sha256": files.sha256(folder / file), "phash": phash, "label": record.label,
            "source": record.source, "patient": record.patient, "view": record.view, "quality": "", "domain": kind,
            "split": split, "parameters": json.dumps(parameters) if parameters else "", "original": record.name,
            "left_out": "",
        })  # fmt: skip
    return rows


def define_flags():
    """Defines the flags of the program. Not at import: this module is a library too."""
    default = Preparation()
    flags.DEFINE_multi_string("source", None, "A CSV file (file,label) or a folder; may be repeated.", required=True)
    flags.DEFINE_string("output_dir", None, "The datasets folder to make.", required=True)
    flags.DEFINE_enum("domains", default.domains, DOMAINS, "How images come to domain A.")
    flags.DEFINE_enum("severity", default.severity, SEVERITIES, "How badly domain A is degraded.")
    flags.DEFINE_integer("size", default.size, "Side of the images, in pixels; 0 keeps their sizes.")
    flags.DEFINE_enum("bits", str(default.bits), ("8", "16"), "Bits of the PNG files.")
    flags.DEFINE_float("val_fraction", default.val_fraction, "Share of the images in valA and valB.")
    flags.DEFINE_float("test_fraction", default.test_fraction, "Share of the images in testA and testB.")
    flags.DEFINE_enum("on_error", default.on_error, ("fail", "skip"), "What to do about a file that cannot be used.")
    flags.DEFINE_integer("seed", default.seed, "Another seed gives another division and other degradations.")
    flags.DEFINE_boolean("overwrite", False, "Replace a datasets folder made before.")
    flags.DEFINE_integer("workers", os.cpu_count(), "Processes to use; the files do not depend on it.", lower_bound=1)


def main():
    """Makes the datasets folder that the flags describe."""
    values = flags.FLAGS
    names = [field.name for field in dataclasses.fields(Preparation)]
    preparation = Preparation(**{**{name: values[name].value for name in names}, "bits": int(values.bits)})
    records, problems = [], []
    for source in values.source:
        found, wrong = read_source(source)
        records, problems = records + found, problems + wrong
    start = time.monotonic()
    with new_folder(values.output_dir, values.overwrite) as folder:
        rows = prepare(folder, records, problems, preparation, values.workers)
        program.write_flags(folder)
    seconds = time.monotonic() - start
    print(f"{values.output_dir}: {sum(bool(row['file']) for row in rows)} files from {len(records)} in {seconds:.0f} s")


def console():
    define_flags()
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
