"""Synthetic chest phantoms."""

import dataclasses

import cv2
import numpy as np

from data_prep import phantom_anatomy as anatomy
from r2c_gan.errors import UserError

LABELS = ("control", "covid")
MIN_SIZE = 32
_SUPERSAMPLING = 2
_ATTENUATION = 0.2  # of water at about 60 keV, 1/cm


@dataclasses.dataclass(frozen=True)
class Phantom:
    """One synthetic radiograph.

    Attributes:
        image: float32 [H, W] in [0, 1], as displayed: bone white, air black.
        lung_mask: bool [H, W], where a reader sees lung.
        opacity_mask: bool [H, W], where lung is opacified; inside `lung_mask`, empty in a control.
        parameters: what was drawn, JSON-able.
    """

    image: np.ndarray
    lung_mask: np.ndarray
    opacity_mask: np.ndarray
    parameters: dict


def make_phantom(rng, size=256, label="control"):
    """Makes a frontal chest radiograph of a patient who does not exist."""
    if label not in LABELS:
        raise UserError(f"label {label!r}: must be one of {', '.join(LABELS)}")
    if size < MIN_SIZE:
        raise UserError(f"size {size}: a phantom is at least {MIN_SIZE} pixels")
    for_anatomy, for_texture, for_display, for_opacities = rng.spawn(4)
    patient = anatomy.draw_parameters(for_anatomy)
    canvas = anatomy.patient_canvas(_SUPERSAMPLING * size, patient)
    chest = anatomy.build(canvas, patient, for_texture)
    opacity, findings = np.zeros_like(chest.water), {}
    if label == "covid":
        opacity, findings = _opacities(canvas, chest, patient, for_opacities)
    image, display = _radiograph(canvas, chest, opacity, for_display, size)
    lung_mask = _shrink(chest.lungs, size) > 0.5
    opacity_mask = lung_mask & (_shrink(opacity, size) > 0.15)
    parameters = {"label": label, "anatomy": patient, "display": display, "opacities": findings}
    return Phantom(image, lung_mask, opacity_mask, parameters)


def _shrink(image, size):
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def _opacities(canvas, chest, patient, rng):
    """Ground-glass opacities as cm of water in place of air: [H, W], and what was drawn."""
    lateral = anatomy._lateral_wall(patient)
    clear = np.ones_like(chest.water)
    patches = []
    for side in (-1, 1):
        for _ in range(int(rng.integers(2, 6))):
            height = 0.3 + 0.62 * rng.beta(2.6, 1.5)
            y = height * patient["lung_height"]
            x = side * float(lateral(y)) * rng.uniform(0.55, 0.95)
            wide, tall = rng.uniform(1.3, 2.8), rng.uniform(1.6, 3.8)
            strength = rng.uniform(0.6, 1.0)
            far = np.square((canvas.x - x) / wide) + np.square((canvas.y - y) / tall)
            clear *= 1 - strength * np.exp(-0.5 * far)
            patches.append([round(float(v), 3) for v in (x, y, wide, tall, strength)])
    density = float(rng.uniform(2.4, 4.2))
    cloud = anatomy.texture(canvas, rng, (8, 16, 32), 0.8)
    grain = anatomy.texture(canvas, rng, (48, 96), 0.9)
    patchy = np.clip(0.8 + 0.35 * cloud + 0.12 * grain, 0, 1.5)
    distance = cv2.distanceTransform((chest.lungs > 0.5).astype(np.uint8), cv2.DIST_L2, 5) / canvas.scale
    inside = np.clip(distance / 0.45, 0, 1)
    opacity = density * np.maximum((1 - clear) * patchy - 0.12, 0) * inside
    return opacity.astype(np.float32), {"density": density, "patches": patches}


def _radiograph(canvas, chest, opacity, rng, size):
    display = {
        "scatter": float(rng.uniform(0.04, 0.12)),
        "low": float(rng.uniform(0.25, 0.5)),
        "high": float(rng.uniform(0.0, 0.1)),
        "curve": float(rng.uniform(0.6, 1.4)),
        "detail": float(rng.uniform(0.1, 0.6)),
        "equalise": float(rng.uniform(0.0, 0.35)),
        "noise": float(rng.uniform(0.003, 0.009)),
    }
    primary = np.exp(-_ATTENUATION * chest.water)
    scatter = display["scatter"] * canvas.blur(primary * chest.body, 5.0) * chest.body
    healthy = -np.log(primary + scatter)
    diseased = -np.log(primary * np.exp(-_ATTENUATION * opacity) + scatter)
    inside = chest.body > 0.5
    lung = chest.lungs > 0.5
    dark = np.percentile(healthy[lung], 2)
    bright = np.percentile(healthy[inside], 99.5)
    low = dark - display["low"] * (bright - dark)
    high = bright + display["high"] * (bright - dark)
    base = (np.clip(healthy, low, high) - low) / (high - low)
    value = (diseased - low) / (high - low)
    value = value + display["detail"] * (base - canvas.blur(base, 1.2))
    value = value - display["equalise"] * (canvas.blur(base, 6.0) - 0.5) * chest.body
    value = _shrink(value.astype(np.float32), size)
    value = np.clip(value, 0, 1)
    k = display["curve"]
    s = 1 / (1 + np.exp(-k * 4 * (value - 0.5)))
    e = 1 / (1 + np.exp(k * 2))
    value = (s - e) / (1 - 2 * e)
    value = value + display["noise"] * rng.standard_normal(value.shape, dtype=np.float32)
    return np.clip(value, 0, 1).astype(np.float32), display
