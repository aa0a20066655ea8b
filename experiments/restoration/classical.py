"""Classical restoration of radiographs, from OpenCV and scikit-image: what R2C-GAN is compared with.

Every function takes an image float32 [H, W, 1 or 3] in [-1, 1] and returns one of the same shape and range. All are
blind: they see the image and nothing else. Their parameters are one choice for all images, from the grids in `METHODS`.
Lengths are in pixels of the image as it is.
"""

import dataclasses
import itertools
from collections.abc import Callable

import cv2
import numpy as np
from skimage import restoration

from r2c_gan.data.noise_level import noise_variance

_GRAYS = 256  # levels of CLAHE
_LARGEST_GAMMA = 3.0


def non_local_means(image, strength=1.0, patch=5, distance=6):
    """Non-local means (Buades, Coll and Morel 2005): each pixel becomes the mean of those with similar surroundings.

    Args:
        image: float32 [H, W, C] in [-1, 1].
        strength: the filter's h, in standard deviations of the noise that `noise_level` finds.
        patch: side of the surroundings compared, in pixels.
        distance: how far away similar pixels are looked for.
    """
    sigma = noise_level(image)
    if sigma == 0:
        return image
    settings = {"h": strength * sigma, "sigma": sigma, "fast_mode": True, "channel_axis": -1}
    return _result(restoration.denoise_nl_means(image, patch, distance, **settings).reshape(image.shape))


def total_variation(image, strength=1.0):
    """Total variation denoising (Rudin, Osher and Fatemi 1992), by Chambolle's algorithm (2004).

    Args:
        image: float32 [H, W, C] in [-1, 1].
        strength: the weight of smoothness, in standard deviations of the noise that `noise_level` finds.
    """
    sigma = noise_level(image)
    if sigma == 0:
        return image
    return _result(restoration.denoise_tv_chambolle(image, weight=strength * sigma, channel_axis=-1))


def clahe(image, clip_limit=2.0, tiles=8):
    """Contrast-limited adaptive histogram equalisation (Zuiderveld 1994) of each channel, in 256 gray levels.

    Args:
        image: float32 [H, W, C] in [-1, 1].
        clip_limit: how often a gray level may count in a tile, in multiples of the mean over levels.
        tiles: tiles along each axis.
    """
    equalise = cv2.createCLAHE(clip_limit, (tiles, tiles)).apply
    grays = np.rint(_unit(image) * (_GRAYS - 1)).astype(np.uint8)
    channels = [equalise(np.ascontiguousarray(grays[..., channel])) for channel in range(image.shape[-1])]
    return _result(np.stack(channels, axis=-1) / (_GRAYS - 1) * 2 - 1)


def automatic_gamma(image, target=0.5, statistic="mean", share=1.0):
    """A power law x^g that brings the brightness of the image to a target, or some of the way.

    With `share` 1 the power is that which takes the brightness to the target, log(target) / log(brightness); the median
    then is the target, the mean nearly. With less, the logarithm of the power is this share of it. It stays in 1/3..3.

    Args:
        image: float32 [H, W, C] in [-1, 1].
        target: brightness aimed at, in (0, 1): black is 0 and white is 1.
        statistic: what is called brightness, "mean" or "median".
        share: from 0 (the image as it is) to 1.
    """
    unit = _unit(image)
    brightness = np.clip({"mean": np.mean, "median": np.median}[statistic](unit), 0.01, 0.99)
    power = (np.log(target) / np.log(brightness)) ** share
    return _result(2 * unit ** np.clip(power, 1 / _LARGEST_GAMMA, _LARGEST_GAMMA) - 1)


def percentile_stretch(image, percent=1.0):
    """A viewer's automatic window: this share of the pixels becomes black, as many become white.

    Args:
        image: float32 [H, W, C] in [-1, 1]. One without contrast stays as it is.
        percent: from 0 to 50.
    """
    low, high = np.percentile(image, (percent, 100 - percent))
    return _result(2 * (image - low) / (high - low) - 1) if low < high else image


def unsharp_mask(image, radius=1.0, amount=0.5):
    """Adds some of what a Gaussian blur takes away.

    Args:
        image: float32 [H, W, C] in [-1, 1].
        radius: sigma of the Gaussian, in pixels.
        amount: how much of the difference is added.
    """
    blurred = cv2.GaussianBlur(image, (0, 0), radius, borderType=cv2.BORDER_REFLECT).reshape(image.shape)
    return _result(image + amount * (image - blurred))


def noise_level(image):
    """Standard deviation of white noise in an image [H, W, C], of all channels together."""
    return float(np.sqrt(np.mean(noise_variance(image))))


def _unit(image):
    return (np.clip(image, -1, 1) + 1) / 2


def _result(image):
    return np.clip(image, -1, 1).astype(np.float32)


# --- Parameters and combinations --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Method:
    """A function of this module, its place in a combination, and the parameters that are tried."""

    title: str
    stage: str
    function: Callable
    grid: tuple


def _grid(**values):
    return tuple(dict(zip(values, choice, strict=True)) for choice in itertools.product(*values.values()))


STAGES = ("denoise", "tone", "sharpen")
"""The order of a combination: later stages would stretch and sharpen the noise too."""

METHODS = {
    "non_local_means": Method(
        "non-local means", "denoise", non_local_means, _grid(strength=(0.5, 0.75, 1.0, 1.5, 2.0))
    ),
    "total_variation": Method(
        "total variation", "denoise", total_variation, _grid(strength=(0.5, 1.0, 1.5, 2.0, 3.0, 4.0))
    ),
    "clahe": Method("CLAHE", "tone", clahe, _grid(clip_limit=(1.0, 2.0, 3.0), tiles=(2, 4, 8))),
    "automatic_gamma": Method(
        "automatic gamma",
        "tone",
        automatic_gamma,
        _grid(target=(0.5, 0.55, 0.6, 0.65), statistic=("mean", "median"), share=(0.3, 0.5, 1.0)),
    ),
    "percentile_stretch": Method("percentile stretch", "tone", percentile_stretch, _grid(percent=(0.0, 0.5, 1.0, 2.0))),
    "unsharp_mask": Method(
        "unsharp mask", "sharpen", unsharp_mask, _grid(radius=(0.7, 1.0, 2.0), amount=(0.1, 0.25, 0.5, 1.0))
    ),
}
COMBINATION = "combination"


def restore(image, steps):
    """Applies methods one after the other.

    Args:
        image: float32 [H, W, C] in [-1, 1].
        steps: list of (name of a method, its parameters as a dictionary); none: the image as it is.
    """
    for name, parameters in steps:
        image = METHODS[name].function(image, **parameters)
    return image


def combinations():
    """All that `combination_scores` tries, in its order: a list of lists of steps, at most one a stage."""
    return [[step for step in choice if step] for choice in itertools.product(*(_options(stage) for stage in STAGES))]


def _options(stage):
    """None, and every method of a stage with all its parameters."""
    return [None] + [(name, choice) for name, method in METHODS.items() if method.stage == stage
                     for choice in method.grid]  # fmt: skip


def combination_scores(image, judge):
    """What each of `combinations()` makes of an image is worth.

    Args:
        image: float32 [H, W, C] in [-1, 1].
        judge: a function of a restored image that returns a number.

    Returns:
        A list of numbers.
    """
    return [judge(restored) for restored in _combined(image, STAGES)]


def _combined(image, stages):
    """Yields what each combination makes of an image; a stage is computed once for all that follow it."""
    if not stages:
        yield image
        return
    for step in _options(stages[0]):
        yield from _combined(restore(image, [step] if step else []), stages[1:])


def best(scores):
    """The best combination, and the best parameters of each method alone.

    Args:
        scores: floats [images, len(combinations())], higher is better.

    Returns:
        A dictionary: name of a method, or `COMBINATION` -> (steps, mean score). Of equals the first wins: the one of
        fewer or of gentler steps.
    """
    means = np.mean(scores, axis=0)
    found = {}
    for steps, mean in zip(combinations(), means, strict=True):
        names = [COMBINATION] + [name for name, _ in steps if len(steps) == 1]
        for name in names:
            if name not in found or mean > found[name][1]:
                found[name] = (steps, float(mean))
    return {name: found[name] for name in (*METHODS, COMBINATION)}
