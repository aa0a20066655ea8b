"""Finds out how the poor films of a datasets folder went bad, without pairs.

    python -m data_prep.fit_degradation --datasets_dir=datasets/xray --output=degradation.json

It looks at the poor films (`trainA/`) and the good ones (`trainB/`) only. Good films are degraded by
`data_prep.fitted_degradation`, and its numbers are moved until degraded good films look like poor ones: in tone (mean,
spread, skewness, quantiles of the means of a 16 x 16 grid), in noise (Immerkaer's response, on the whole, in the bright
and in the dark half, at half the size), in six bands of the spectrum, in the share of black and of white, in JPEG's
blocks, in grid lines. What is compared is how these are distributed over the films: their quantiles, and those of 64
random projections. The file says how often and how strongly films go bad in each way; the figure beside it (.png) shows
that and the distributions before and after.
"""

import os
import time
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import scipy.fft
from absl import flags
from matplotlib.figure import Figure
from tqdm import tqdm

from data_prep import fitted_degradation
from data_prep.fitted_degradation import START, STEPS, Degradation
from r2c_gan import files
from r2c_gan.cli import program
from r2c_gan.data import images
from r2c_gan.errors import UserError

LEVELS = np.linspace(0.02, 0.98, 25)  # of the quantiles that are compared
PROJECTIONS = 64
# Badly exposed films cost a restorer most, so a feature of tone counts as much as two others.
TONE_WEIGHT = 2.0
POPULATION, ELITE = 28, 9
SMOOTHING = 0.35  # of the search's mean and width, a generation
NARROWEST = 0.1  # of the first step: the search goes on looking
BANDS = (0.03, 0.08, 0.14, 0.21, 0.29, 0.38, 0.5)  # cycles a pixel
LEAST = 0.004  # of noise that counts: a step of 8 bits
SMALLEST = 16  # films of each domain
FEATURES = (
    "mean", "spread", "skewness", "q02", "q10", "q25", "q50", "q75", "q90", "q98",
    "noise", "noise_bright", "noise_dark", "noise_half_size",
    *(f"band_{number}" for number in range(1, len(BANDS))),
    "black", "white", "local_contrast", "blocks", "lines",
)  # fmt: skip
_NOISE = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32) / 6


def features(films):
    """Describes films.

    Args:
        films: float32 [N, H, W] in [0, 1], at least 32 pixels a side.

    Returns:
        float64 [N, len(FEATURES)].
    """
    films = np.asarray(films, np.float32)
    height, width = films.shape[1:]
    grid = np.stack([cv2.resize(film, (16, 16), interpolation=cv2.INTER_AREA) for film in films]).reshape(
        len(films), -1
    )
    grid = np.sort(grid, axis=1)
    mean, spread = grid.mean(1), grid.std(1)
    skewness = ((grid - mean[:, None]) ** 3).mean(1) / np.maximum(spread, 1e-3) ** 3
    quantiles = grid[:, [round(level * 255) for level in (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)]]
    rows = [mean, spread, skewness, *quantiles.T]
    rows += _noise_levels(films)
    rows += list(_bands(films).T)
    rows += [(films < 0.004).mean((1, 2)) ** 0.5, (films > 0.996).mean((1, 2)) ** 0.5]
    local = np.stack([cv2.blur(film, (height // 8, width // 8)) for film in films])
    rows += [np.log(np.abs(films - local).mean((1, 2)) + 1e-3)]
    rows += [_blocks(films), _lines(films)]
    return np.stack(rows, axis=1).astype(np.float64)


def _noise_levels(films):
    """Log of the median response to `_NOISE`: of all, of the bright and the dark half, and at half the size."""
    height, width = films.shape[1:]
    response = np.stack([cv2.filter2D(film, -1, _NOISE, borderType=cv2.BORDER_REFLECT) for film in films])
    smooth = np.stack([cv2.blur(film, (3, 3)) for film in films])
    half = [cv2.resize(film, (width // 2, height // 2), interpolation=cv2.INTER_AREA) for film in films]
    coarse = np.stack([cv2.filter2D(film, -1, _NOISE, borderType=cv2.BORDER_REFLECT) for film in half])
    response, smooth, coarse = (_thinned(np.abs(each)) for each in (response, smooth, coarse))
    response = np.take_along_axis(response, np.argsort(smooth, axis=1), axis=1)  # from dark to bright
    middle = response.shape[1] // 2
    parts = (response, response[:, middle:], response[:, :middle], coarse)
    return [np.log(np.median(part, axis=1) + LEAST) for part in parts]


def _thinned(films):
    """As many pixels of each film as a median needs, [N, about 1,000], evenly spread."""
    flat = films.reshape(len(films), -1)
    return flat[:, :: max(flat.shape[1] // 1000, 1) | 1]


def _bands(films):
    """Log of the energy in bands of the spectrum, [N, bands]."""
    height, width = films.shape[1:]
    window = np.outer(np.hanning(height), np.hanning(width)).astype(np.float32)
    spectrum = np.abs(scipy.fft.rfft2((films - films.mean((1, 2), keepdims=True)) * window)) ** 2 / (height * width)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]).ravel()
    inside = np.stack([(frequency >= low) & (frequency < high) for low, high in pairwise(BANDS)], axis=1)
    means = spectrum.reshape(len(films), -1) @ (inside / inside.sum(0)).astype(np.float32)
    return np.log(means + 1e-7)


def _blocks(films):
    """How much larger steps are at the borders of 8 x 8 blocks than elsewhere (log)."""
    found = 0
    for axis in (1, 2):
        steps = np.abs(np.diff(films, axis=axis)).mean(3 - axis)  # [N, places]
        border = np.arange(steps.shape[1]) % 8 == 7
        found = found + np.log((steps[:, border].mean(1) + 1e-3) / (steps[:, ~border].mean(1) + 1e-3))
    return found


def _lines(films):
    """How far the strongest frequency of the mean row or column stands out above its neighbours (log)."""
    found = []
    for axis in (1, 2):
        profile = films.mean(axis)
        profile = profile - (np.roll(profile, 1, 1) + np.roll(profile, -1, 1)) / 2
        spectrum = np.abs(scipy.fft.rfft(profile * np.hanning(profile.shape[1]), axis=1))[:, 2:]
        found.append(np.log(spectrum.max(1) + 1e-3) - np.log(np.median(spectrum, axis=1) + 1e-3))
    return np.maximum(*found)


class Distance:
    """How differently the features of films are distributed from those of the poor films.

    It is the mean difference of quantiles, of each feature and of random projections of all, in units of the standard
    deviation of the poor and good films together, the features of tone weighted.

    Args:
        poor, good: features, [N, F] and [M, F].
        rng: draws the projections.
    """

    def __init__(self, poor, good, rng):
        both = np.concatenate([poor, good])
        self.centre, self.unit = both.mean(0), both.std(0) + 1e-6
        directions = rng.standard_normal((poor.shape[1], PROJECTIONS))
        self.directions = directions / np.linalg.norm(directions, axis=0)
        tones = FEATURES.index("q98") + 1
        self.weights = np.where(np.arange(len(FEATURES)) < tones, TONE_WEIGHT, 1.0)
        self.weights /= self.weights.mean()
        self.poor = self._quantiles(poor)

    def _quantiles(self, found):
        scaled = (found - self.centre) / self.unit
        places = np.round(LEVELS * (len(found) - 1)).astype(int)
        return np.sort(scaled, axis=0)[places], np.sort(scaled @ self.directions, axis=0)[places]

    def __call__(self, found):
        own, projected = (np.abs(one - other) for one, other in zip(self._quantiles(found), self.poor, strict=True))
        return float((own * self.weights).mean() + projected.mean())


def fit(poor, good, seed=0, generations=80, sample=160, progress=lambda steps: steps):
    """Fits a degradation to films without pairs.

    The search is a cross-entropy method: candidates are normal around a mean, the mean and the widths move towards the
    best of them. Every generation degrades other films with other draws, the same for all of its candidates.

    Args:
        poor, good: float32 [N, H, W] and [M, H, W] in [0, 1], of one size.
        seed: non-negative integer; the result is a function of it and of the films.
        generations: steps of the search.
        sample: good films that a candidate degrades.
        progress: wraps the iterable of generations, for a progress bar.

    Returns:
        (`Degradation`, dictionary: the distance of the good films as they are, of the degraded ones, and of one half
        of the poor films to the other, which is what chance leaves).
    """
    rng = np.random.default_rng([seed, 0])
    of_poor, of_good = features(poor), features(good)
    distance = Distance(of_poor, of_good, rng)
    mean, width, means = START.copy(), STEPS.copy(), []
    for generation in progress(range(generations)):
        candidates = mean + width * rng.standard_normal((POPULATION, len(mean)))
        chosen = rng.permutation(len(good))[:sample]
        scores = [
            distance(features(Degradation.of_vector(each).degrade(good[chosen], _common(seed, generation))))
            for each in candidates
        ]
        best = candidates[np.argsort(scores)[:ELITE]]
        mean = (1 - SMOOTHING) * mean + SMOOTHING * best.mean(0)
        width = np.maximum((1 - SMOOTHING) * width + SMOOTHING * best.std(0), NARROWEST * STEPS)
        means.append(mean)
    found = Degradation.of_vector(np.mean(means[-max(generations // 6, 1) :], axis=0))
    halves = rng.permutation(len(poor))
    by_chance = Distance(of_poor[halves[::2]], of_good, np.random.default_rng([seed, 2]))
    after = features(found.degrade(good, _common(seed, generations)))
    distances = {
        "good_as_they_are": distance(of_good),
        "good_degraded": distance(after),
        "between_halves_of_the_poor": by_chance(of_poor[halves[1::2]]),
    }
    return found, distances


def _common(seed, generation):
    return np.random.default_rng([seed, 1, generation])


def read_films(folder, size=0, limit=0):
    """The films of a folder, in gray.

    Args:
        folder: such as `trainA/`.
        size: side to which they are resized; 0 for their own, which must be one.
        limit: films at most, evenly spread; 0 for all.

    Returns:
        float32 [N, H, W] in [0, 1].

    Raises:
        UserError: if there are too few, they are too small, or of different sizes.
    """
    found = images.list_images(folder, recursive=True)
    if len(found) < SMALLEST:
        raise UserError(f"{folder}: holds {len(found)} films; a fit needs at least {SMALLEST}")
    if limit and limit < len(found):
        found = [found[index] for index in np.linspace(0, len(found) - 1, limit).round().astype(int)]
    films = []
    for file in tqdm(found, f"reading {Path(folder).name}", unit="film", leave=False):
        film = images.read_image(file, 1)
        if size:
            film = np.clip(images.resize(film, size, size), -1, 1)
        films.append((film[..., 0] + 1) / 2)
        if films[-1].shape != films[0].shape or min(films[-1].shape) < 32:
            raise UserError(
                f"{file}: {films[-1].shape[1]} x {films[-1].shape[0]} pixels; films must have one size of at least 32 "
                "pixels a side; give --size"
            )
    return np.stack(films)


def save_figure(degradation, poor, good, degraded, path):
    """Draws how often and how strongly films go bad, and how well the features match.

    Args:
        degradation: a `Degradation`.
        poor, good, degraded: features, [N, F].
        path: the PNG to write.
    """
    figure = Figure((13, 9), layout="constrained")
    often, tones, *panels = figure.subplots(3, 4).ravel()
    values = degradation.values
    names = fitted_degradation.OPERATIONS
    often.barh(names, [values[f"{name}.probability"] for name in names], color="tab:blue")
    often.invert_yaxis()
    often.set(title="how often", xlim=(0, 1), xlabel="share of the poor films")
    x = np.linspace(0, 1, 101)
    drawn = degradation.draw(40, np.random.default_rng(0))
    for name, color in (("tone", "tab:blue"), ("tone_2", "tab:orange")):
        for gamma, gain, offset in zip(*(drawn[f"{name}.{key}"] for key in ("gamma", "gain", "offset")), strict=True):
            tones.plot(x, np.clip(gain * x**gamma + offset, 0, 1), color=color, alpha=0.2, lw=1)
    tones.set(title="tone curves drawn", xlabel="good", ylabel="poor")
    drawn = degradation.draw(4000, np.random.default_rng(0))
    strengths = {
        "blur width (% of the side)": 100 * drawn["blur"],
        "noise (share of the range)": drawn["noise"],
        "veil (share)": drawn["veil"],
        "JPEG quality": drawn["quality"],
    }
    for axes, (title, drawn_values) in zip(panels, strengths.items(), strict=False):
        axes.hist(drawn_values, np.linspace(0, np.quantile(drawn_values, 0.99), 40), color="tab:blue")
        axes.set(title=title, yticks=[])
    for axes, name in zip(
        panels[len(strengths) :], ("mean", "spread", "q02", "noise", "noise_bright", "band_4"), strict=True
    ):
        column = FEATURES.index(name)
        for found, color, label in ((good, "tab:green", "good"), (poor, "black", "poor"), (degraded, "tab:red", "fit")):
            axes.plot(np.quantile(found[:, column], LEVELS), LEVELS, color=color, label=label)
        axes.set(title=name, ylabel="share of films below")
    panels[len(strengths)].legend()
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=80, format="png")


def define_flags():
    """Defines the flags of the program. Not at import: this module is a library too."""
    flags.DEFINE_string("datasets_dir", None, "Folder with trainA/ (poor) and trainB/ (good).", required=True)
    flags.DEFINE_string(
        "output", None, "The JSON file to write; a figure of the same name goes beside it.", required=True
    )
    flags.DEFINE_integer("size", 0, "Side in pixels to which films are resized; 0 keeps their size.", lower_bound=0)
    flags.DEFINE_integer("limit", 1000, "Films of each domain that are looked at; 0 for all.", lower_bound=0)
    flags.DEFINE_integer("generations", 80, "Steps of the search.", lower_bound=1)
    flags.DEFINE_integer("sample", 160, "Good films that a candidate degrades.", lower_bound=SMALLEST)
    flags.DEFINE_integer("seed", 0, "Of the search.", lower_bound=0)


def main():
    """Fits as the flags say, and writes the file and the figure."""
    values = flags.FLAGS
    cv2.setNumThreads(max((os.cpu_count() or 2) // 2, 1))
    root, output = Path(values.datasets_dir), Path(values.output)
    if output.suffix != ".json":
        raise UserError(f"--output={output}: must end in .json")
    poor, good = (read_films(root / name, values.size, values.limit) for name in ("trainA", "trainB"))
    if poor.shape[1:] != good.shape[1:]:
        raise UserError(f"{root}: films of trainA and trainB differ in size; give --size")
    start = time.monotonic()
    found, distances = fit(
        poor, good, values.seed, values.generations, values.sample,
        lambda steps: tqdm(steps, "fitting", unit="generation"),
    )  # fmt: skip
    record = {
        "format": fitted_degradation.FORMAT,
        "films": {"poor": len(poor), "good": len(good), "size": list(poor.shape[1:])},
        "search": {name: values[name].value for name in ("generations", "sample", "seed")},
        "distance": distances,
        "operations": found.record(),
    }
    files.write_json(output, record)
    degraded = found.degrade(good, np.random.default_rng(values.seed))
    save_figure(found, features(poor), features(good), features(degraded), output.with_suffix(".png"))
    for operation, numbers in record["operations"].items():
        often = numbers.pop("probability")
        how = "  ".join(f"{name} {value:.3g}" for name, value in numbers.items())
        print(f"{operation:15s} {100 * often:3.0f}%  {how}")
    print(f"distance to the poor films: {distances}; {time.monotonic() - start:.0f} s -> {output}")


def console():
    define_flags()
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
