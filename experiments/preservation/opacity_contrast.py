"""What becomes of the known opacities and lungs of phantoms."""

import dataclasses
import math

import cv2
import numpy as np

from data_prep.manifest import read_manifest
from data_prep.phantoms import make_phantom
from experiments.preservation.agreement import proportion
from r2c_gan.data import images
from r2c_gan.data.datasets import CLASSES
from r2c_gan.errors import UserError
from r2c_gan.evaluation import metrics

# Around an opacity, as shares of the image's side: the ring that it is compared with, and the blur by which a patch as
# large as an opacity is told from noise.
RING = 1 / 16
PATCH_SIGMA = 1 / 32
SMALLEST_AREA = 12  # pixels, of an opacity and of its ring
FALSE_OPACITY = 0.5  # of an opacity's mean strength: what counts as a false one


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """Where the lungs and opacities of a phantom are, at the size at which it is measured.

    Attributes:
        lungs: bool [H, W].
        opacities: bool [H, W]; of a control, where the opacities of its diseased counterpart are.
        ring: bool [H, W]: lung around the opacities.
        opacity: float32 [H, W], what the opacities add to the gray value, in shares of the gray range.
    """

    lungs: np.ndarray
    opacities: np.ndarray
    ring: np.ndarray
    opacity: np.ndarray

    @property
    def measurable(self):
        """Whether opacities and ring are large enough for a contrast."""
        return min(self.opacities.sum(), self.ring.sum()) >= SMALLEST_AREA


def anatomies(phantoms_dir, domain, size, progress=lambda cases: cases):
    """Draws the phantoms of a domain again, each with and without its opacities, from what the manifest records.

    Args:
        phantoms_dir: a folder of `data_prep.phantoms`.
        domain: the `Domain` of its clean test images.
        size: side at which they are measured, in pixels.
        progress: wraps the iterable of cases, for a progress bar.

    Returns:
        A list of `Anatomy`.

    Raises:
        UserError: if the manifest does not say how a phantom was made, or it was made otherwise.
    """
    manifest = read_manifest(phantoms_dir)
    found = []
    for file, label in progress(list(zip(domain.files, domain.labels, strict=True))):
        row = manifest.get(file.relative_to(phantoms_dir).as_posix(), {})
        seed, number = row.get("original", "").removeprefix("seed "), row.get("patient", "").removeprefix("p")
        if not (seed.isdigit() and number.isdigit() and row.get("source") == "phantom"):
            raise UserError(
                f"{file}: no phantom by the manifest of {phantoms_dir}; give a folder of data_prep.phantoms"
            )
        image = images.read_image(file, 1)
        pair = {name: _phantom(int(seed), int(number), image.shape[0], name) for name in ("control", "covid")}
        if np.abs(2 * pair[CLASSES[label]].image - 1 - image[..., 0]).max() > 0.02:
            raise UserError(f"{file}: another version made this phantom; make the folder again with data_prep.phantoms")
        found.append(_anatomy(pair, size))
    return found


def _phantom(seed, number, size, label):
    sequence, _ = np.random.SeedSequence(seed, spawn_key=(number,)).spawn(2)
    return make_phantom(np.random.default_rng(sequence), size, label)


def _anatomy(pair, size):
    covid = pair["covid"]
    lungs, opacities = (_resized(mask, size) > 0.5 for mask in (covid.lung_mask, covid.opacity_mask))
    radius = max(2, round(RING * size))
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    near = cv2.dilate(opacities.astype(np.uint8), disk) > 0
    return Anatomy(lungs, opacities, near & lungs & ~opacities, _resized(covid.image - pair["control"].image, size))


def _resized(image, size):
    return images.resize(np.asarray(image, np.float32)[..., None], size, size)[..., 0]


def contrast(image, anatomy):
    """(contrast, contrast to noise) of the opacities: mean inside minus mean of the ring; the same over the ring's SD.

    Args:
        image: float [H, W].
        anatomy: an `Anatomy` that is measurable.
    """
    inside, around = image[anatomy.opacities], image[anatomy.ring]
    difference = float(inside.mean() - around.mean())
    return difference, difference / max(float(around.std()), 1e-6)


def brightest_patch(change, lungs):
    """The largest brightening of a patch of the lungs beyond that of the lungs as a whole (their median).

    Args:
        change: float [H, W], an image minus another.
        lungs: bool [H, W].
    """
    sigma = PATCH_SIGMA * len(change)
    weight = lungs.astype(np.float32)
    change = (change - np.median(change[lungs])).astype(np.float32) * weight
    smooth = cv2.GaussianBlur(change, (0, 0), sigma) / np.maximum(cv2.GaussianBlur(weight, (0, 0), sigma), 0.25)
    return float(smooth[lungs].max())


def phantom_scores(batches, found):
    """Measures every phantom in every stage.

    Args:
        batches: what `compare_classifiers.stages` yields.
        found: list of `Anatomy`, in the order of the cases.

    Returns:
        Dictionary stage -> dictionary of float arrays [N]: `contrast`, `cnr` (NaN where it cannot be measured),
        `patch` (`brightest_patch` against the clean image), and `inside_X`, `outside_X`: mean absolute difference to
        the poor and to the clean image inside and outside the lungs. Gray values count as shares of the gray range.
    """
    scores, done = {}, 0
    for by_stage, _ in batches:
        # Shares of the gray range.
        by_stage = {name: (batch[..., 0] + 1) / 2 for name, batch in by_stage.items()}
        for name, batch in by_stage.items():
            for index, image in enumerate(batch):
                anatomy = found[done + index]
                values = dict(
                    zip(("contrast", "cnr"), contrast(image, anatomy), strict=True)
                    if anatomy.measurable
                    else (("contrast", math.nan), ("cnr", math.nan))
                )
                values["patch"] = brightest_patch(image - by_stage["clean"][index], anatomy.lungs)
                for other in ("poor", "clean"):
                    difference = np.abs(image - by_stage[other][index])
                    values[f"inside_{other}"] = float(difference[anatomy.lungs].mean())
                    values[f"outside_{other}"] = float(difference[~anatomy.lungs].mean())
                for key, value in values.items():
                    scores.setdefault(name, {}).setdefault(key, []).append(value)
        done += len(batch)
    return {name: {key: np.array(values) for key, values in stage.items()} for name, stage in scores.items()}


def summarise_phantoms(scores, labels, found):
    """The figures of `result.json` of phantoms.

    Args:
        scores: what `phantom_scores` returns.
        labels: integers [N].
        found: list of `Anatomy`.

    Returns:
        A dictionary, by stage:
        `opacities`, of COVID-19 phantoms: contrast, contrast to noise, the share of the clean image's mean contrast
        that is `kept`, and `kept_beyond_anatomy`: the same after the mean contrast of the controls is taken off, which
        the anatomy has at these places without any opacity;
        `controls`: the contrast where the diseased counterpart has its opacities, its change against the clean image,
        and the shares with a false opacity: the contrast there grown, or a patch anywhere in the lungs brightened, by
        more than half an opacity;
        `change`: mean absolute difference to the poor and to the clean image, inside and outside the lungs, and inside
        minus outside.
    """
    labels = np.asarray(labels)
    measurable = np.array([anatomy.measurable for anatomy in found])
    covid, control = (labels == 1) & measurable, (labels == 0) & measurable
    clean = scores["clean"]["contrast"]
    strength = {  # of a real opacity, against the healthy counterpart
        "contrast": float(np.mean([contrast(anatomy.opacity, anatomy)[0] for anatomy in found if anatomy.measurable])),
        "patch": float(np.mean([brightest_patch(anatomy.opacity, anatomy.lungs) for anatomy in found])),
    }
    by_stage = {}
    for name, values in scores.items():
        grown = (values["contrast"] - clean)[control]
        by_stage[name] = {
            "opacities": {
                "contrast": metrics.summary(values["contrast"][covid]),
                "contrast_to_noise": metrics.summary(values["cnr"][covid]),
                "kept": _with_interval(_ratio_of_means, values["contrast"][covid], clean[covid]),
                "kept_beyond_anatomy": _with_interval(
                    _ratio_of_differences, labels[measurable], values["contrast"][measurable], clean[measurable]
                ),
            },
            "controls": {
                "contrast": metrics.summary(values["contrast"][control]),
                "contrast_change": metrics.summary(grown),
                "false_opacity_in_place": proportion(grown > FALSE_OPACITY * strength["contrast"]),
                "false_opacity_anywhere": proportion(values["patch"][labels == 0] > FALSE_OPACITY * strength["patch"]),
            },
            "change": {
                f"from_{other}": {
                    "inside": metrics.summary(values[f"inside_{other}"]),
                    "outside": metrics.summary(values[f"outside_{other}"]),
                    "inside_minus_outside": metrics.summary(values[f"inside_{other}"] - values[f"outside_{other}"]),
                }
                for other in ("poor", "clean")
                if other != name
            },
        }
    return {
        "n": len(labels),
        "n_covid": int(np.sum(labels == 1)),
        "n_without_measurable_opacity": int(np.sum(~measurable)),
        "opacity_strength": strength,
        "stages": by_stage,
    }


def _with_interval(statistic, *arrays):
    low, high = metrics.bootstrap_interval(statistic, *arrays)
    return {"value": statistic(*arrays), "low": low, "high": high}


def _ratio_of_differences(labels, values, reference):
    """Mean of COVID-19 minus mean of controls, over the same of the reference; None where it is undefined."""
    if len(set(labels.tolist())) < 2:
        return None
    gap, whole = (array[labels == 1].mean() - array[labels == 0].mean() for array in (values, reference))
    return float(gap / whole) if whole > 0 else None


def _ratio_of_means(values, reference):
    return float(values.mean() / reference.mean()) if reference.mean() > 0 else None
