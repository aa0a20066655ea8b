"""A no-reference quality score of radiographs, from estimates of exposure, contrast, sharpness and noise.

The score is 1 for an image like the clean ones of the calibration, and about 2/3, 1/3 and 0 for one degraded mildly,
moderately and severely (`data_prep.degradations`). Each feature adds its part, a broken line read from
`quality_model.json`, and the logistic function turns the sum into the score; so it can be told which feature costs an
image how much. `data_prep.quality_calibration` fits the lines and measures how well the score ranks.

  python -m data_prep.quality --input=FOLDER --output_dir=OUT

writes `quality.csv` (file, score, features) and `sheet.png`, the best and the worst. The score knows the faults that
were simulated and the collections that it was calibrated on, all of them display-ready with a full range of grays; an
unusual window or collimation costs points, a rare kind of grain may not. It is no judgement of diagnostic quality.
"""

import functools
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import scipy.fft
from absl import flags
from tqdm import tqdm

from data_prep.parallel import parallel_map
from r2c_gan import files
from r2c_gan.cli import program
from r2c_gan.data import images
from r2c_gan.errors import UserError, reason, shown
from r2c_gan.evaluation import figures

SIDE = 256
"""Pixels: a larger image is judged at this short side, so that its features do not depend on its size."""

MODEL = Path(__file__).with_name("quality_model.json")
BLOCK = 8  # pixels, of JPEG
_EDGES = (0.01, 0.03, 0.06, 0.11, 0.18, 0.26, 0.34, 0.42, 0.5)  # of the spectrum's bands, cycles a pixel


def quality_score(image, model=None):
    """Judges the technical quality of a radiograph.

    Args:
        image: float [H, W] in [0, 1], display-ready (bone bright); at least 32 pixels a side.
        model: a model of `data_prep.quality_calibration`; None: the one that comes with the package.

    Returns:
        A float in [0, 1], higher is better.
    """
    return score_features(quality_features(image), model)


def score_features(features, model=None):
    """The score of an image with these features, a dictionary as of `quality_features`."""
    return float(1 / (1 + np.exp(-sum(contributions(features, model).values()))))


def contributions(features, model=None):
    """What each feature adds to the logit of the score, and the constant: a dictionary; negative is bad."""
    model = model or _shipped_model()
    parts = {name: float(np.interp(features[name], at, adds)) for name, (at, adds) in model["features"].items()}
    return {**parts, "constant": model["constant"]}


@functools.cache
def _shipped_model():
    return files.read_json(MODEL)


def quality_features(image):
    """Measures what the score is made of.

    Args:
        image: float [H, W] in [0, 1].

    Returns:
        A dictionary of floats.
        Exposure: `p05`, `p50`, `p95`, quantiles of the gray values inside a margin; `black`, `white`, log share of the
        pixels at the ends.
        Contrast: `local_contrast`, log of the median standard deviation in 31-pixel windows.
        Sharpness: `band1` ... `band6`, log power of the spectrum in a band over that of the band below (radiographs
        fall steadily; blurred ones faster, noise not at all); `tails`, log kurtosis of the diagonal second difference
        (edges have heavy tails, noise none).
        Noise: `noise_bright`, log mean absolute diagonal difference in the brightest third of what is neither black
        nor white; `noise_step`, that less the darkest third's; `noise_coarse`, the same estimate at half size, by the
        median (Donoho and Johnstone 1994).
        Direction: `direction_low`, `direction_high`, how unequal horizontal and vertical power are (motion).
        Grid: `lines`, the highest peak of the profiles' spectra over their median.
        JPEG: `blocks`, log of the steps at every 8th pixel over the others', at the image's own size.

    Raises:
        ValueError: if the image is not two-dimensional or has a side below 32.
    """
    image = np.ascontiguousarray(image, np.float32)
    if image.ndim != 2 or min(image.shape) < 32:
        raise ValueError(f"an image [H, W] of at least 32 pixels a side is needed, got shape {image.shape}")
    features = {"blocks": _blocks(image)}
    image = shrink(image)
    inside = _inside(image)
    features |= _exposure(inside)
    features["local_contrast"] = _local_contrast(image)
    features |= _spectrum(image)
    features |= _noise(image)
    features["lines"] = _lines(inside)
    return features


def shrink(image):
    scale = SIDE / min(image.shape)
    if scale >= 1:
        return image
    height, width = (round(side * scale) for side in image.shape)
    return images.resize(image[..., None], height, width)[..., 0]


def _inside(image):
    """Without a margin of a sixteenth, where labels and collimation lie."""
    height, width = image.shape
    return image[height // 16 : height - height // 16, width // 16 : width - width // 16]


def _exposure(image):
    low, middle, high = np.quantile(image[::2, ::2], (0.05, 0.5, 0.95))  # sorting is slow, and a quarter will do
    black, white = np.mean(image <= 1 / 255), np.mean(image >= 254 / 255)
    return {
        "p05": float(low),
        "p50": float(middle),
        "p95": float(high),
        "black": float(np.log(black + 1e-3)),
        "white": float(np.log(white + 1e-3)),
    }


def _local_contrast(image):
    mean = cv2.blur(image, (31, 31))
    variance = cv2.blur(image * image, (31, 31)) - mean * mean
    return float(np.log(np.median(np.sqrt(np.maximum(variance, 0))) + 1e-3))


@functools.cache
def _frequency_plane(side):
    """(window [side], band number of each frequency, whether it is nearer the horizontal axis)."""
    down, across = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]
    bands = np.digitize(np.hypot(down, across), _EDGES)
    return np.hanning(side).astype(np.float32), bands, np.broadcast_to(np.abs(across) > np.abs(down), bands.shape)


def _spectrum(image):
    """Of the central square."""
    side = min(image.shape)
    top, left = ((length - side) // 2 for length in image.shape)
    square = image[top : top + side, left : left + side]
    window, bands, horizontal = _frequency_plane(side)
    square = (square - square.mean()) * window[:, None] * window
    waves = scipy.fft.rfft2(square)
    power = (waves.real**2 + waves.imag**2) * (SIDE / side) ** 2  # noise of one height then has one power

    groups = (2 * bands + horizontal).ravel()  # band and direction
    totals = np.bincount(groups, power.ravel(), 2 * len(_EDGES) + 2).reshape(-1, 2)[1 : len(_EDGES)]
    counts = np.bincount(groups, minlength=2 * len(_EDGES) + 2).reshape(-1, 2)[1 : len(_EDGES)]
    level = np.log(totals.sum(1) / np.maximum(counts.sum(1), 1) + 1e-6)  # a small image has no wave of the lowest band
    vertical_level, horizontal_level = np.log(totals / np.maximum(counts, 1) + 1e-6).T
    unequal = np.abs(horizontal_level - vertical_level)
    steps = {f"band{k}": float(level[k] - level[k - 1]) for k in range(1, 7)}
    return {**steps, "direction_low": float(unequal[2]), "direction_high": float(unequal[4])}


def _diagonal(image):
    """The diagonal second difference (Haar HH), which smooth structure and straight edges hardly pass."""
    return (image[:-1, :-1] - image[1:, :-1] - image[:-1, 1:] + image[1:, 1:]) / 2


def _noise(image):
    detail = _diagonal(image)
    height, squared = np.abs(detail), detail * detail
    brightness = cv2.blur(image, (7, 7))[:-1, :-1]
    shown = (brightness > 0.02) & (brightness < 0.98)  # a painted border has no noise
    if shown.mean() < 0.1:
        shown[:] = True
    dark, bright = np.quantile(brightness[shown][::16], (1 / 3, 2 / 3))
    at_bright = np.log(height[shown & (brightness >= bright)].mean() + 5e-4)
    at_dark = np.log(height[shown & (brightness <= dark)].mean() + 5e-4)
    half = cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2), interpolation=cv2.INTER_AREA)
    return {
        "noise_bright": float(at_bright),
        "noise_step": float(at_bright - at_dark),
        "noise_coarse": float(np.log(np.median(np.abs(_diagonal(half))) / 0.6745 + 5e-4)),
        "tails": float(np.log(np.mean(squared * squared) / (squared.mean() ** 2 + 1e-12) + 0.5)),
    }


def _lines(image):
    peaks = []
    for axis in (0, 1):
        profile = image.mean(axis)
        profile = profile - cv2.GaussianBlur(profile[None], (0, 0), 4)[0]
        spectrum = np.abs(np.fft.rfft(profile * np.hanning(profile.size)))[np.fft.rfftfreq(profile.size) > 0.1]
        peaks.append(np.log((spectrum.max() + 1e-3) / (np.median(spectrum) + 1e-3)))
    return float(max(peaks))


def _blocks(image):
    ratios = []
    for axis in (0, 1):
        steps = np.abs(np.diff(image, axis=axis)).mean(1 - axis)
        border = np.arange(steps.size) % BLOCK == BLOCK - 1
        ratios.append(np.log((steps[border].mean() + 1e-4) / (steps[~border].mean() + 1e-4)))
    return float(np.mean(ratios))


def read_radiograph(path):
    """Reads a file as the score expects it: float32 [H, W] in [0, 1].

    Raises:
        ImageError: if the file cannot be used, or has a side below 32 pixels.
    """
    image = (images.read_image(path, 1, "auto")[..., 0] + 1) / 2
    if min(image.shape) < 32:
        raise images.ImageError(f"{path}: {image.shape[1]} x {image.shape[0]} pixels; at least 32 a side are needed")
    return np.clip(image, 0, 1)


def define_flags():
    """Defines the flags of the program. Not at import: this module is a library too."""
    flags.DEFINE_string("input", None, "Folder of radiographs, with its sub-folders.", required=True)
    flags.DEFINE_string("output_dir", None, "Folder for quality.csv and sheet.png.", required=True)
    flags.DEFINE_integer("shown", 6, "How many of the best, and of the worst, the sheet shows.", lower_bound=1)
    flags.DEFINE_integer("workers", os.cpu_count(), "Processes to use.", lower_bound=1)


def _job(path):
    """The row of a file, or why it has none."""
    try:
        features = quality_features(read_radiograph(path))
        return {"score": score_features(features), **features}
    except Exception as error:  # whatever it is, it is about this file
        return reason(error, path)


def main():
    """Scores the radiographs that the flags name; returns the exit code, 1 if one could not be used."""
    folder, output = Path(flags.FLAGS.input), Path(flags.FLAGS.output_dir)
    found = images.list_images(folder, recursive=True)
    if not found:
        raise UserError(f"--input={folder}: no image in this folder")
    jobs = tqdm(parallel_map(_job, found, flags.FLAGS.workers), "judging", len(found), unit="image")
    rows, failures = [], []
    for path, row in zip(found, jobs, strict=True):
        name = shown(path.relative_to(folder).as_posix())
        if shown(path) != str(path):
            row = "the name is not UTF-8 text; rename the file"
        if isinstance(row, str):
            failures.append(f"{name}: {row}")
        else:
            rows.append({"file": name, **row})
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    if not rows:
        raise UserError(f"--input={folder}: none of its {len(found)} images can be used")
    rows.sort(key=lambda row: -row["score"])
    files.write_csv(output / "quality.csv", rows, list(rows[0]))
    save_sheet(folder, rows, output / "sheet.png", flags.FLAGS.shown)
    program.write_flags(output)
    scores = [row["score"] for row in rows]
    print(
        f"{len(rows)} images, score median {np.median(scores):.3f}, {min(scores):.3f} to {max(scores):.3f} -> {output}"
    )
    return 1 if failures else 0


def save_sheet(folder, rows, path, shown=6):
    """Draws the best and the worst radiographs, with what costs each of the worst most.

    Args:
        folder: where the files are.
        rows: dictionaries with file, score and the features, best first.
        path: the PNG to write.
        shown: how many of each.
    """
    best, worst = rows[:shown], rows[::-1][:shown]
    pictures, captions = [], []
    for row in (best, worst):
        pictures.append([_square(read_radiograph(Path(folder) / one["file"])) for one in row])
        captions.append([_caption(one) for one in row])
    titles = [str(k + 1) for k in range(len(best))]
    figures.save_panel(pictures, path, titles, ["best", "worst"], captions, limits=(0, 1))


def _square(image):
    return images.resize(image[..., None], SIDE, SIDE)[..., 0]


def _caption(row):
    parts = contributions({name: float(value) for name, value in row.items() if name not in ("file", "score")})
    costly = min(parts, key=lambda name: parts[name] if name != "constant" else np.inf)
    cost = f"  ({costly.replace('_', ' ')} {parts[costly]:+.1f})" if parts[costly] < -0.25 else ""
    return f"{float(row['score']):.3f}{cost}"


def console():
    define_flags()
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
