"""Makes a datasets folder of synthetic chest radiographs: two unpaired domains, two classes, masks and clean twins.

    python -m data_prep.phantoms --output_dir=datasets/phantoms --size=64 --train=200 --test=60 --severity=moderate

Counts are images a domain, half of each class. Domain A is degraded, domain B is clean, and every image is of another
patient; `testA_reference/` holds the clean twin of each image of `testA/`. The patients do not exist: the phantoms are
for trying the software and for experiments that need the truth, never for any claim about diagnosis.
"""

import contextlib
import dataclasses
import json
import math
import os
from pathlib import Path

import cv2
import numpy as np
from absl import flags
from tqdm import tqdm

from data_prep import duplicates, manifest
from data_prep import phantom_anatomy as anatomy
from data_prep.degradations import SEVERITIES, degrade
from data_prep.manifest import MANIFEST_FILE, UNKNOWN, new_folder
from data_prep.parallel import parallel_map
from data_prep.quality import quality_score
from r2c_gan import files
from r2c_gan.cli import program
from r2c_gan.data import images
from r2c_gan.errors import UserError

LABELS = ("control", "covid")
MIN_SIZE, MAX_SIZE = 32, 2048
COLUMNS = (*manifest.COLUMNS, "phantom")  # JSON: all that was drawn for the patient

_SUPERSAMPLING = 2
_ATTENUATION = 0.2  # 1/cm, of water at about 60 keV
_VISIBLE_OPACITY = 0.25  # cm of water


@dataclasses.dataclass(frozen=True)
class Phantom:
    """One synthetic radiograph.

    Attributes:
        image: float32 [H, W] in [0, 1], as displayed: bone white, air black.
        lung_mask: bool [H, W], where a reader sees lung.
        opacity_mask: bool [H, W], where the lung is opacified: inside `lung_mask`, empty in a control.
        parameters: everything that was drawn, JSON-able.
    """

    image: np.ndarray
    lung_mask: np.ndarray
    opacity_mask: np.ndarray
    parameters: dict


def make_phantom(rng, size=256, label="control"):
    """Makes the frontal chest radiograph of a patient who does not exist.

    The attenuation of body, lungs and bones along each ray is added up as centimetres of water, exposed (Beer-Lambert,
    with scattered radiation) and displayed as a film is: the logarithm of the exposure through a window and an S-curve.
    A "covid" phantom differs from the control of the same generator by its opacities only: they are drawn from a child
    generator of their own and replace air in the lungs, while exposure and display are set by the healthy chest. So
    nothing outside the opacities tells the classes apart, which real collections cannot promise.

    Args:
        rng: a `numpy.random.Generator`; its children are used, so a second call gives another patient. The patient is
            the same at every size.
        size: pixels a side, 32 to 2048.
        label: "control" or "covid": bilateral, mainly peripheral and lower-zone ground-glass opacities.

    Returns:
        A `Phantom`.

    Raises:
        UserError: for another size or label.
    """
    if label not in LABELS:
        raise UserError(f"label {label!r}: must be one of {', '.join(LABELS)}")
    _check_size(size)
    for_anatomy, for_texture, for_display, for_opacities = rng.spawn(4)
    patient = anatomy.draw_parameters(for_anatomy)
    canvas = anatomy.patient_canvas(_SUPERSAMPLING * size, patient)
    chest = anatomy.build(canvas, patient, for_texture)
    opacity, patches = np.zeros_like(chest.water), []
    if label == "covid":
        opacity, patches = _ground_glass(canvas, chest, patient, for_opacities)
    display = _draw_display(for_display)
    image = _radiograph(canvas, chest, opacity, display, size)
    image += display["noise"] * for_display.standard_normal(image.shape, dtype=np.float32)
    lung_mask = _shrink(chest.lungs, size) > 0.5
    return Phantom(
        image=np.clip(image, 0, 1),
        lung_mask=lung_mask,
        opacity_mask=lung_mask & (_shrink(opacity, size) > _VISIBLE_OPACITY),
        parameters={"label": label, "anatomy": patient, "display": display, "opacities": patches},
    )


def _check_size(size):
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise UserError(f"--size={size}: a phantom has {MIN_SIZE} to {MAX_SIZE} pixels a side")


def _shrink(image, size):
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def _ground_glass(canvas, chest, patient, rng):
    """Opacities as cm of water in place of air: float32 [H, W], and a list with the patches (cm)."""
    half_width = anatomy.lateral_wall(patient)
    clear = np.ones_like(chest.water)
    patches = []
    for side in (-1, 1):  # both lungs, always
        for _ in range(rng.integers(3, 7)):
            y = (0.3 + 0.62 * rng.beta(2.6, 1.5)) * patient["lung_height"]
            x = side * float(half_width(y)) * rng.uniform(0.5, 0.95)
            wide, tall, strength = rng.uniform(1.4, 3.0), rng.uniform(1.7, 4.0), rng.uniform(0.65, 1.0)
            distance = np.square((canvas.x - x) / wide) + np.square((canvas.y - y) / tall)
            clear *= 1 - strength * np.exp(-0.5 * distance)
            patches.append({"x": x, "y": y, "width": wide, "height": tall, "strength": strength})
    water = rng.uniform(6.5, 9.0)
    patchy = 0.8 + 0.4 * anatomy.texture(canvas, rng, (8, 16, 32, 64), 0.65)
    opacity = water * np.maximum((1 - clear) * np.clip(patchy, 0.3, 1.4) - 0.15, 0)
    opacity = np.minimum(opacity, 0.85 * chest.air) * np.clip(2 * chest.lungs - 0.5, 0, 1)
    return opacity.astype(np.float32), [_recorded({**patch, "water": water}) for patch in patches]


def _recorded(parameters):
    return {name: round(float(value), 4) for name, value in parameters.items()}


def _draw_display(rng):
    """Draws how the exposure is taken and shown: shares of the range between lung and mediastinum, and the marker."""
    drawn = {
        "scatter": rng.uniform(0.04, 0.12),
        "below_lung": rng.uniform(0.1, 0.4),
        "above_mediastinum": rng.uniform(0.0, 0.1),
        "curve": rng.uniform(0.8, 1.5),
        "detail": rng.uniform(0.1, 0.5),
        "equalisation": rng.uniform(0.0, 0.35),
        "noise": rng.uniform(0.003, 0.009),
        "marker_x": rng.uniform(0.03, 0.11),
        "marker_y": rng.uniform(0.05, 0.14),
        "marker_height": rng.uniform(0.035, 0.05),
    }
    return {**_recorded(drawn), "marker": ("R", "L", "")[rng.choice(3, p=(0.2, 0.2, 0.6))]}


def _radiograph(canvas, chest, opacity, display, size):
    """The displayed image, float32 [size, size] in [0, 1], without noise.

    What depends on more than one ray or on the whole image (scatter, window, local contrast) is taken from the healthy
    chest, so that an opacity changes no pixel but its own.
    """
    primary = np.exp(-_ATTENUATION * (chest.water + 30 * _marker(canvas.size, display)))  # the marker is of lead
    scatter = display["scatter"] * canvas.blur(primary * chest.body, 5.0) * chest.body
    healthy = -np.log(primary + scatter)
    diseased = -np.log(primary * np.exp(-_ATTENUATION * opacity) + scatter)
    lung = float(np.percentile(healthy[chest.lungs > 0.5], 2))
    mediastinum = float(np.percentile(healthy[chest.body > 0.5], 99.5))
    low = lung - display["below_lung"] * (mediastinum - lung)
    high = mediastinum + display["above_mediastinum"] * (mediastinum - lung)
    base = (np.clip(healthy, low, high) - low) / (high - low)
    shown = (diseased - low) / (high - low) + display["detail"] * (base - canvas.blur(base, 0.9))
    shown -= display["equalisation"] * chest.body * (canvas.blur(base, 6.0) - 0.5)
    steepness = 2 * display["curve"]
    return 0.5 + 0.5 * np.tanh(steepness * (np.clip(_shrink(shown, size), 0, 1) - 0.5)) / math.tanh(steepness / 2)


def _marker(size, display):
    """The side marker as a layer in [0, 1]: R at the patient's right, which is the left of the image, or L opposite."""
    layer = np.zeros((size, size), np.uint8)
    letter = display["marker"]
    if letter:
        font, thickness = cv2.FONT_HERSHEY_SIMPLEX, max(1, round(0.009 * size))
        scale = display["marker_height"] * size / 21  # the capitals of this font are 21 units high
        width = cv2.getTextSize(letter, font, scale, thickness)[0][0]
        x = display["marker_x"] * size
        left = x if letter == "R" else size - x - width
        bottom = (display["marker_y"] + display["marker_height"]) * size
        cv2.putText(layer, letter, (round(left), round(bottom)), font, scale, 255, thickness, cv2.LINE_AA)
    return anatomy.as_float(layer)


@dataclasses.dataclass(frozen=True)
class PhantomSet:
    """What a datasets folder of phantoms holds; the flags of the program have the same names.

    Raises:
        UserError: if a value is out of its range.
    """

    size: int = 64
    train: int = 200
    val: int = 0
    test: int = 60
    severity: str = "moderate"
    seed: int = 0
    masks: bool = False

    def __post_init__(self):
        _check_size(self.size)
        for name in ("train", "test", "val"):
            count = getattr(self, name)
            if count < 2 and not (name == "val" and count == 0):
                allowed = "0, or at least 2" if name == "val" else "at least 2"
                raise UserError(f"--{name}={count}: must be {allowed} images a domain, one of each class")
        if self.severity not in SEVERITIES:
            raise UserError(f"--severity={self.severity}: must be one of {', '.join(SEVERITIES)}")
        if self.seed < 0:
            raise UserError(f"--seed={self.seed}: must not be negative")

    def patients(self):
        """Lists (patient number, split, domain, label) for every image of domains A and B."""
        slots = [
            (split, domain, LABELS[index % 2])
            for split in ("train", "val", "test")
            for domain in "AB"
            for index in range(getattr(self, split))
        ]
        return [(number, *slot) for number, slot in enumerate(slots)]


def write_dataset(folder, phantoms, workers=1):
    """Writes the images, the masks and `manifest.csv` of a `PhantomSet` into `folder`.

    An image depends on the seed and the patient's number alone, so the number of workers changes nothing.

    Args:
        folder: an existing folder.
        phantoms: a `PhantomSet`.
        workers: processes to use.

    Returns:
        The rows of the manifest: a list of dictionaries with the keys `COLUMNS`.

    Raises:
        UserError: if a file cannot be written.
    """
    patients = phantoms.patients()
    jobs = [(Path(folder), phantoms, *patient) for patient in patients]
    with contextlib.closing(parallel_map(_write_patient, jobs, workers)) as written:
        rows = [row for group in tqdm(written, "phantoms", len(jobs), unit="patient") for row in group]
    files.write_csv(Path(folder) / MANIFEST_FILE, rows, COLUMNS)
    return rows


def _write_patient(job):
    """Writes the files of one patient and returns their rows of the manifest."""
    folder, phantoms, number, split, domain, label = job
    for_phantom, for_degradation = np.random.SeedSequence(phantoms.seed, spawn_key=(number,)).spawn(2)
    phantom = make_phantom(np.random.default_rng(for_phantom), phantoms.size, label)
    patient = f"p{number:05d}"
    name = f"{label}_{patient}.png"
    image, degradation = phantom.image, None
    if domain == "A":
        image, degradation = degrade(image, np.random.default_rng(for_degradation), phantoms.severity)
    outputs = [(f"{split}{domain}", domain, image, degradation)]
    if (split, domain) == ("test", "A"):
        outputs.append(("testA_reference", "A_reference", phantom.image, None))
    phash = duplicates.to_hex(duplicates.perceptual_hash(phantom.image))
    rows = []
    for subfolder, kind, pixels, parameters in outputs:
        path = folder / subfolder / name
        images.write_image(path, 2 * pixels - 1)
        rows.append({
            "file": f"{subfolder}/{name}", "sha256": files.sha256(path), "phash": phash, "label": label,
            "source": "phantom", "patient": patient, "view": "PA", "modality": UNKNOWN,
            "quality": f"{quality_score(pixels):.4f}", "domain": kind, "split": split,
            "parameters": json.dumps(parameters) if parameters else "", "original": f"seed {phantoms.seed}",
            "left_out": "", "phantom": json.dumps(phantom.parameters),
        })  # fmt: skip
    if phantoms.masks and split == "test":
        for part, mask in (("lungs", phantom.lung_mask), ("opacities", phantom.opacity_mask)):
            images.write_image(folder / "masks" / part / name, 2.0 * mask - 1)
    return rows


def define_flags():
    """Defines the flags of the program. Not at import: this module is a library too."""
    default = PhantomSet()
    flags.DEFINE_string("output_dir", None, "The datasets folder to make.", required=True)
    flags.DEFINE_integer("size", default.size, f"Pixels a side, {MIN_SIZE} to {MAX_SIZE}.")
    flags.DEFINE_integer("train", default.train, "Images in each of trainA and trainB.")
    flags.DEFINE_integer("val", default.val, "Images in each of valA and valB; 0 for none.")
    flags.DEFINE_integer("test", default.test, "Images in each of testA and testB.")
    flags.DEFINE_enum("severity", default.severity, SEVERITIES, "How badly domain A is degraded.")
    flags.DEFINE_integer("seed", default.seed, "Another seed gives other patients.")
    flags.DEFINE_boolean("masks", default.masks, "Write masks/lungs and masks/opacities for the test images.")
    flags.DEFINE_boolean("overwrite", False, "Replace a datasets folder made before.")
    flags.DEFINE_integer("workers", os.cpu_count(), "Processes to use; the files do not depend on it.", lower_bound=1)


def main():
    """Makes the datasets folder that the flags describe."""
    values = flags.FLAGS
    names = [field.name for field in dataclasses.fields(PhantomSet)]
    phantoms = PhantomSet(**{name: values[name].value for name in names})
    with new_folder(values.output_dir, values.overwrite) as folder:
        rows = write_dataset(folder, phantoms, values.workers)
        program.write_flags(folder)
    print(f"{values.output_dir}: {len(rows)} images of {len(phantoms.patients())} patients")


def console():
    define_flags()
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
