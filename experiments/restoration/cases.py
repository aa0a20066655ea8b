"""The poor images that restoring is measured on: their reference images, what degraded them, and their groups."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np

from data_prep.degradations import DEGRADATIONS, SEVERITIES
from data_prep.manifest import MANIFEST_FILE, UNKNOWN, read_manifest
from r2c_gan import files
from r2c_gan.data import images
from r2c_gan.errors import UserError

SMALLEST = 16  # pixels; SSIM's window has 11
TUNING = "valA"

# Artifacts that are shown as one: their like is met in the same films, and each alone is rare.
KINDS = {
    "noise": "noise",
    "gaussian_blur": "blur",
    "focal_spot": "blur",
    "motion_blur": "blur",
    "over_exposure": "over-exposure",
    "under_exposure": "under-exposure",
    "scatter_veil": "scatter veil",
    "saturation": "saturation",
    "grid_lines": "digital",
    "jpeg": "digital",
    "low_resolution": "digital",
}
_DRAWS = 8


@dataclasses.dataclass(frozen=True)
class Cases:
    """Poor images with their reference images.

    Attributes:
        names: relative names of the poor images.
        pairs: list of (poor file, clean file).
        degradations: for each image the list of dictionaries that the manifest has; empty where it has none.
        patients: for each image who it is of, or its own name where that is unknown.
        size: side that images are resized to, in pixels; 0: they are measured as they are.
    """

    names: list
    pairs: list
    degradations: list
    patients: list
    size: int = 0

    def __len__(self):
        return len(self.names)

    def sha256(self):
        """A checksum of all files and of what is known of them."""
        parts = [[name, *map(files.sha256, pair), *known] for name, pair, *known in
                 zip(self.names, self.pairs, self.degradations, self.patients, strict=True)]  # fmt: skip
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def read(self, case):
        """The images of a case, as of `read_pair`."""
        return read_pair(self.pairs[case], self.size)


def read_cases(datasets_dir, domain, limit=None, size=0):
    """Finds the poor images of a domain, their reference images, and what the manifest knows of them.

    Args:
        datasets_dir: the datasets folder.
        domain: such as "testA"; the references are in "testA_reference".
        limit: at most so many images, spread evenly over the sorted list.
        size: side that images are resized to; 0: not at all.

    Raises:
        UserError: if a folder or a reference is missing, or the manifest cannot be read.
    """
    folder = Path(datasets_dir) / domain
    reference = folder.with_name(f"{domain}_reference")
    for path in (folder, reference):
        if not path.is_dir():
            raise UserError(
                f"--datasets_dir={datasets_dir}: has no {path.name}; images with reference images are needed, for the "
                f"test and ({TUNING}) to tune classical methods; data_prep.prepare --domains=by_degradation makes them"
            )
    references = {path.relative_to(reference).with_suffix(""): path for path in images.list_images(reference, True)}
    found = images.list_images(folder, recursive=True)
    if not found:
        raise UserError(f"{folder}: holds no image")
    if limit and limit < len(found):
        found = [found[index] for index in np.linspace(0, len(found) - 1, limit).round().astype(int)]
    manifest = read_manifest(datasets_dir)
    cases = Cases([], [], [], [], size)
    for path in found:
        name = path.relative_to(folder)
        if name.with_suffix("") not in references:
            raise UserError(f"{path}: has no reference image of the same name in {reference}")
        row = manifest.get(f"{domain}/{name.as_posix()}", {})
        patient = row.get("patient") or UNKNOWN
        cases.names.append(name.as_posix())
        cases.pairs.append((path, references[name.with_suffix("")]))
        cases.degradations.append(_degradations(row.get("parameters"), name, datasets_dir))
        cases.patients.append(f"file {name}" if patient == UNKNOWN else f"patient {patient}")
    return cases


def _degradations(text, name, datasets_dir):
    try:
        steps = json.loads(text or "[]")
        if all(step["name"] in DEGRADATIONS and step["severity"] in SEVERITIES for step in steps):
            return steps
    except (ValueError, TypeError, KeyError):
        pass
    raise UserError(f"{Path(datasets_dir) / MANIFEST_FILE}: {name}: parameters are no list of known degradations")


def read_pair(pair, size=0):
    """(poor, clean), float32 [H, W, 1] in [-1, 1], resized to `size` x `size` unless it is 0.

    Raises:
        UserError: if they differ in size or are too small for the measures.
    """
    poor, clean = (images.read_image(path, channels=1) for path in pair)
    if poor.shape != clean.shape:
        raise UserError(f"{pair[0]}: its reference image has another size ({_size(clean)}, not {_size(poor)})")
    if min(poor.shape[:2]) < SMALLEST:
        raise UserError(f"{pair[0]}: {_size(poor)} pixels; at least {SMALLEST} a side are needed")
    if size:
        poor, clean = (np.clip(images.resize(image, size, size), -1, 1) for image in (poor, clean))
    return poor, clean


def _size(image):
    return f"{image.shape[1]} x {image.shape[0]}"


def dominant(clean, steps):
    """The artifact that alone costs the clean image most, in mean squared error.

    Each is applied to the clean image alone, with the strength that the manifest has of it. What it leaves to chance
    besides (the grains, a direction) is drawn anew a few times.

    Args:
        clean: float32 [H, W, 1] in [-1, 1].
        steps: what degraded the image, as in the manifest.

    Returns:
        A value of `KINDS`, or None where there are no steps.
    """
    unit = (clean[..., 0] + 1) / 2
    cost = {}
    for step in steps:
        strength = next(value for key, value in step.items() if key not in ("name", "severity"))
        rng = np.random.default_rng(0)
        draws = [DEGRADATIONS[step["name"]](unit, strength, rng)[0] for _ in range(_DRAWS)]
        cost[KINDS[step["name"]]] = np.mean((np.clip(draws, 0, 1) - unit) ** 2)
    return max(cost, key=cost.get, default=None)


def groups(cases, dominants):
    """Which images are compared apart: a dictionary (grouping, group) -> booleans [N].

    Groupings: "all"; "present", images with an artifact among others; "dominant", images where it is the worst one;
    "severity", where the images are of several.
    """
    steps = cases.degradations
    found = {("all", "all"): np.ones(len(cases), bool)}
    for kind in dict.fromkeys(KINDS.values()):
        found["present", kind] = np.array([any(KINDS[step["name"]] == kind for step in some) for some in steps])
        found["dominant", kind] = np.array([worst == kind for worst in dominants])
    worst = [max((SEVERITIES.index(step["severity"]) for step in some), default=None) for some in steps]
    if len(set(worst)) > 1:
        for place, severity in enumerate(SEVERITIES):
            found["severity", severity] = np.array([one == place for one in worst])
    return {key: members for key, members in found.items() if members.any()}
