"""Degradations of radiographs: physically motivated, seeded, with the parameters of each recorded.

Images are float32 [H, W] in [0, 1], display-ready: bone and other dense parts are bright, air is dark. Such an image is
about linear in the logarithm of the detector's exposure, so noise is added in a pseudo-exposure exp(-k x): dense parts
let few photons through and are the noisier ones, which Poisson noise straight on the display values would have
backwards (Veldkamp et al. 2009). k stands in for the unknown curve of the device. Lengths are in pixels of a 256-pixel
image and scale with the size of the image.

  python -m data_prep.degradations --input radiograph.png --output sheet.png
"""

from pathlib import Path

import cv2
import numpy as np
from absl import flags
from tqdm import tqdm

from r2c_gan.cli import program
from r2c_gan.data import images
from r2c_gan.errors import UserError
from r2c_gan.evaluation import figures, metrics

SEVERITIES = ("mild", "moderate", "severe")
REFERENCE_SIZE = 256  # pixels: the size that lengths refer to
CONTRAST = 3.0  # k: natural logarithm of the exposure ratio of black to white, about 20 to 1
BRIGHT = 0.6  # display value of a uniform scatter veil
NARROWEST = 0.6  # width of the display window after saturation

# Parameter ranges at each severity. Noise, blur and JPEG overlap with the published ranges of MedMNIST-C for chest
# radiographs (Di Salvo et al. 2024, arXiv 2406.17536: noise sigma .04 to .26, blur kernels 3 to 13, JPEG quality 50 to
# 7); these photons come to a sigma of about .04, .08 and .15. The others are the project's own, chosen by looking at
# the result: no source was found for their ranges.
RANGES = {
    "noise": {"mild": (250, 600), "moderate": (60, 160), "severe": (20, 45)},  # photons a pixel in air
    "gaussian_blur": {"mild": (0.5, 1.0), "moderate": (1.2, 2.2), "severe": (2.5, 4.0)},  # sigma, pixels
    "focal_spot": {"mild": (0.8, 1.4), "moderate": (1.8, 2.8), "severe": (3.5, 5.0)},  # radius of the disk, pixels
    "motion_blur": {"mild": (3, 5), "moderate": (6, 9), "severe": (11, 15)},  # length, pixels
    "over_exposure": {"mild": (0.04, 0.08), "moderate": (0.1, 0.17), "severe": (0.2, 0.3)},  # display values
    "under_exposure": {"mild": (0.04, 0.08), "moderate": (0.1, 0.17), "severe": (0.2, 0.3)},  # display values
    "scatter_veil": {"mild": (0.1, 0.2), "moderate": (0.3, 0.4), "severe": (0.5, 0.6)},  # share of the veil
    "saturation": {"mild": (0.01, 0.03), "moderate": (0.04, 0.08), "severe": (0.1, 0.18)},  # share of the pixels
    "grid_lines": {"mild": (0.01, 0.02), "moderate": (0.025, 0.04), "severe": (0.05, 0.08)},  # amplitude
    "jpeg": {"mild": (35, 50), "moderate": (15, 25), "severe": (8, 12)},  # quality, of 100
    "low_resolution": {"mild": (1.3, 1.7), "moderate": (2.0, 2.8), "severe": (3.2, 4.5)},  # factor
}
# A blend draws from different families: two blurs, or brighter and darker at once, are not what a reader meets.
FAMILIES = {
    "noise": ("noise",),
    "blur": ("gaussian_blur", "focal_spot", "motion_blur"),
    "exposure": ("over_exposure", "under_exposure", "scatter_veil", "saturation"),
    "digital": ("grid_lines", "jpeg", "low_resolution"),
}
# How often, chosen so that the PSNR of blends over real radiographs at 256 pixels has a mean near 26 dB (mild), 20 dB
# (moderate) and 16 dB (severe). Blur and compression alone cost little PSNR, so the quartiles lie far apart.
FAMILY_WEIGHTS = (0.35, 0.2, 0.35, 0.1)
BLEND = {1: 0.1, 2: 0.4, 3: 0.5}  # degradations in a blend


def degrade(image, rng, severity="moderate"):
    """Degrades an image by a blend of one to three degradations of different families, in random order.

    Args:
        image: float [H, W] in [0, 1], display-ready (bone bright).
        rng: `numpy.random.Generator`; the result is a function of its state.
        severity: "mild", "moderate" or "severe".

    Returns:
        (float32 [H, W] in [0, 1], list of dictionaries in the order of application: name, severity, and parameters).

    Raises:
        UserError: if the severity is unknown.
        ValueError: if the image is not two-dimensional.
    """
    _check(image, severity)
    count = rng.choice(list(BLEND), p=list(BLEND.values()))
    families = rng.choice(list(FAMILIES), size=count, replace=False, p=FAMILY_WEIGHTS)
    applied = []
    for family in families:
        name = str(rng.choice(FAMILIES[family]))
        image, parameters = apply(name, image, rng, severity)
        applied.append(parameters)
    return image, applied


def apply(name, image, rng, severity="moderate"):
    """Applies one degradation, its strength drawn from `RANGES`.

    Args:
        name: a key of `DEGRADATIONS`.
        image, rng, severity: as in `degrade`.

    Returns:
        (float32 [H, W] in [0, 1], dictionary of name, severity and parameters).

    Raises:
        UserError: if the name or the severity is unknown.
    """
    _check(image, severity)
    if name not in DEGRADATIONS:
        raise UserError(f"degradation {name!r}: must be one of {', '.join(DEGRADATIONS)}")
    strength = float(rng.uniform(*RANGES[name][severity]))
    degraded, parameters = DEGRADATIONS[name](np.asarray(image, np.float32), strength, rng)
    return np.clip(degraded, 0, 1).astype(np.float32), {"name": name, "severity": severity, **parameters}


def _check(image, severity):
    if severity not in SEVERITIES:
        raise UserError(f"severity {severity!r}: must be one of {', '.join(SEVERITIES)}")
    if np.ndim(image) != 2:
        raise ValueError(f"an image [H, W] is needed, got shape {np.shape(image)}")


def _scale(image):
    return min(image.shape) / REFERENCE_SIZE


def _exposure(image):
    """Share of the photons that reach the detector, 1 in air."""
    return np.exp(-CONTRAST * image)


def _display(exposure):
    return -np.log(np.maximum(exposure, 1e-6)) / CONTRAST


def noise(image, photons, rng):
    """Quantum noise (Poisson) of so many photons a pixel in air, and electronic noise of a few photons' height."""
    electronic = float(rng.uniform(0.5, 1.0))
    detected = rng.poisson(photons * _exposure(image)) + rng.normal(0, electronic, image.shape)
    # A detector reads out at least a fraction of a photon; the logarithm of nothing is not shown.
    return _display(np.maximum(detected, 0.5) / photons), {"photons": photons, "electronic": electronic}


def gaussian_blur(image, sigma, rng):
    """Unsharpness of the detector."""
    return cv2.GaussianBlur(image, (0, 0), sigma * _scale(image)), {"sigma": sigma}


def focal_spot(image, radius, rng):
    """Unsharpness of the focal spot: convolution with a disk."""
    return cv2.filter2D(image, -1, _disk(radius * _scale(image)), borderType=cv2.BORDER_REFLECT), {"radius": radius}


def motion_blur(image, length, rng):
    """Movement of the patient along a line, most often near the vertical, as breathing moves the diaphragm."""
    angle = float(np.degrees(rng.normal(np.pi / 2, 0.5)))
    kernel = _line(length * _scale(image), angle)
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT), {"length": length, "angle": angle}


def over_exposure(image, shift, rng):
    """More exposure than the display allows for: everything darker by the same step, air and lung clipped."""
    return image - shift, {"shift": shift}


def under_exposure(image, shift, rng):
    """Less exposure than the display allows for: everything brighter by the same step, dense parts clipped."""
    return image + shift, {"shift": shift}


def scatter_veil(image, veil, rng):
    """Loss of contrast by scattered radiation: a wide blur and a uniform veil, mixed in."""
    # So wide a blur has nothing finer than its 64 x 64 grid, where it takes a tenth of the time.
    height, width = image.shape
    small = cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA)
    sigma = 40 * _scale(image)
    small = cv2.GaussianBlur(
        small, (0, 0), sigma * 64 / width, sigmaY=sigma * 64 / height, borderType=cv2.BORDER_REFLECT
    )
    wide = cv2.resize(small, (width, height))
    return (1 - veil) * image + veil * (wide + BRIGHT) / 2, {"veil": veil}


def saturation(image, share, rng):
    """A display window too narrow: this share of the grays is clipped at one end, the rest stretched.

    The window keeps `NARROWEST` of the range at least: a radiograph that is dark all over would be stretched to white.
    """
    dark = bool(rng.integers(2))
    grays = image[(image > 0.02) & (image < 0.98)]  # what is black or white already cannot be clipped
    if grays.size == 0:
        grays = np.array([0.0, 1.0])
    low = min(float(np.quantile(grays, share)), 1 - NARROWEST) if dark else 0.0
    high = 1.0 if dark else max(float(np.quantile(grays, 1 - share)), NARROWEST)
    return (image - low) / (high - low), {"share": share, "low": low, "high": high}


def grid_lines(image, amplitude, rng):
    """Lines of a misaligned anti-scatter grid: a sinusoid of 2 to 8 pixels' period along one axis."""
    period, phase = float(rng.uniform(2.5, 8)), float(rng.uniform(0, 2 * np.pi))
    vertical = bool(rng.integers(2))
    # The grid is as fine as the pixels, whatever the size of the image: this length does not scale.
    lines = amplitude * np.sin(2 * np.pi * np.arange(image.shape[vertical]) / period + phase)
    lines = lines[None] if vertical else lines[:, None]
    parameters = {"amplitude": amplitude, "period": period, "direction": "vertical" if vertical else "horizontal"}
    return image + lines.astype(np.float32), parameters


def jpeg(image, quality, rng):
    """Blocks and ringing of strong JPEG compression (8 bit)."""
    quality = round(quality)
    pixels = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255, {"quality": quality}


def low_resolution(image, factor, rng):
    """Shrunk by a factor, and enlarged again.

    A larger image shrinks by more, to the same 256 / factor pixels; a smaller one, which has lost its fine structure
    already, by the factor.
    """
    height, width = image.shape
    shrink = factor * max(_scale(image), 1)
    small = (max(round(width / shrink), 1), max(round(height / shrink), 1))
    return cv2.resize(cv2.resize(image, small, interpolation=cv2.INTER_AREA), (width, height)), {"factor": factor}


DEGRADATIONS = {
    function.__name__: function
    for function in (
        noise,
        gaussian_blur,
        focal_spot,
        motion_blur,
        over_exposure,
        under_exposure,
        scatter_veil,
        saturation,
        grid_lines,
        jpeg,
        low_resolution,
    )
}
_OVERSAMPLING = 8  # of kernels, so that they grow smoothly with their length


def _disk(radius):
    half = int(np.ceil(radius + 0.5))
    side = 2 * half + 1
    offsets = (np.arange(side * _OVERSAMPLING) + 0.5) / _OVERSAMPLING - side / 2
    inside = offsets[:, None] ** 2 + offsets[None] ** 2 <= max(radius, 0.75) ** 2  # a smaller disk is one pixel
    return _normalised(inside, side)


def _line(length, angle):
    half = int(np.ceil(length / 2 + 0.5))
    side = 2 * half + 1
    offsets = (np.arange(side * _OVERSAMPLING) + 0.5) / _OVERSAMPLING - side / 2
    along = offsets[None] * np.cos(np.radians(angle)) + offsets[:, None] * np.sin(np.radians(angle))
    across = offsets[:, None] * np.cos(np.radians(angle)) - offsets[None] * np.sin(np.radians(angle))
    return _normalised((np.abs(along) <= max(length, 1) / 2) & (np.abs(across) <= 0.5), side)


def _normalised(mask, side):
    kernel = mask.reshape(side, _OVERSAMPLING, side, _OVERSAMPLING).mean((1, 3), dtype=np.float32)
    return kernel / kernel.sum()


def contact_sheet(image, path, seed=0):
    """Draws every degradation, and a blend, at every severity, with the PSNR of each.

    Args:
        image: float [H, W] in [0, 1].
        path: the PNG to write.
        seed: seed of the draws.
    """
    rows, captions, names = [], [], [*DEGRADATIONS, "blend"]
    for number, name in enumerate(tqdm(names, "degradations")):
        row = [image]
        for severity in SEVERITIES:
            rng = np.random.default_rng([seed, number])
            row.append((degrade(image, rng, severity) if name == "blend" else apply(name, image, rng, severity))[0])
        rows.append([2 * cell - 1 for cell in row])
        captions.append(["", *(f"{metrics.psnr(image, cell, limits=(0, 1)):.1f} dB" for cell in row[1:])])
    figures.save_panel(rows, path, ["clean", *SEVERITIES], [name.replace("_", " ") for name in names], captions)


def define_flags():
    """Defines the flags of the program. Not at import: this module is a library too."""
    flags.DEFINE_string("input", None, "An image file, or a folder of which the first image is taken.", required=True)
    flags.DEFINE_string("output", None, "The contact sheet to write, a PNG.", required=True)
    flags.DEFINE_integer("seed", 0, "Seed of the draws.", lower_bound=0)


def main():
    """Draws the contact sheet that the flags describe."""
    file = Path(flags.FLAGS.input)
    if file.is_dir():
        found = images.list_images(file, recursive=True)
        if not found:
            raise UserError(f"--input={file}: no image in this folder")
        file = found[0]
    image = (images.read_image(file, 1, "auto")[..., 0] + 1) / 2
    contact_sheet(image, flags.FLAGS.output, flags.FLAGS.seed)
    print(f"{file} -> {flags.FLAGS.output}")


def console():
    define_flags()
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
