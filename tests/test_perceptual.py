"""HaarPSI against its formula written out literally, and against what a similarity index must do."""

import itertools

import numpy as np
import pytest

from experiments.restoration.perceptual import ALPHA, C, haarpsi


def literal(f, h, subsample):
    """The formula of Reisenhofer et al. 2018 for images in 0..255, pixel by pixel, zeros outside of the images."""
    if subsample:
        f, h = (mean_of_four(image) for image in (f, h))
    top = bottom = 0.0
    for vertical in (False, True):
        for row in range(f.shape[0]):
            for column in range(f.shape[1]):
                a, b = ([abs(haar(image, row, column, j, vertical)) for j in (1, 2, 3)] for image in (f, h))
                similarity = sum((2 * a[j] * b[j] + 30) / (a[j] ** 2 + b[j] ** 2 + 30) for j in (0, 1)) / 2
                weight = max(a[2], b[2])
                top += weight / (1 + np.exp(-4.2 * similarity))
                bottom += weight
    mean = top / bottom
    return (np.log(mean / (1 - mean)) / 4.2) ** 2


def haar(image, row, column, scale, vertical):
    """The sum over the 2^j x 2^j pixels around a place, one half negative, times 2^-j."""
    side = 2**scale
    total = 0.0
    for i in range(side):
        for j in range(side):
            r, c = row - side // 2 + 1 + i, column - side // 2 + 1 + j
            if 0 <= r < image.shape[0] and 0 <= c < image.shape[1]:
                total += image[r, c] * (1 if (i if vertical else j) < side // 2 else -1)
    return total / side


def mean_of_four(image):
    half = np.zeros((-(-image.shape[0] // 2), -(-image.shape[1] // 2)))
    for (row, column), value in np.ndenumerate(image):
        half[row // 2, column // 2] += value / 4
    return half


def scene(shape=(48, 40), seed=0):
    """A smooth image with edges, in [-1, 1]."""
    rows, columns = np.indices(shape)
    image = np.sin(rows / 7 + seed) * np.cos(columns / 5) + 0.5 * ((rows - 20) ** 2 + (columns - 18) ** 2 < 150)
    return np.clip(image / 1.5, -1, 1)


def noisy(image, sigma, seed=1):
    return np.clip(image + np.random.default_rng(seed).normal(0, sigma, image.shape), -1, 1)


@pytest.mark.parametrize("subsample", [True, False])
@pytest.mark.parametrize("shape", [(16, 16), (21, 14)])
def test_equals_the_formula(shape, subsample):
    rng = np.random.default_rng(3)
    f, h = rng.uniform(0, 255, (2, *shape))
    h = 0.6 * f + 0.4 * h
    expected = literal(f, h, subsample)
    assert 0.1 < expected < 0.95  # a case that can tell
    assert haarpsi(f, h, limits=(0, 255), subsample=subsample) == pytest.approx(expected, rel=1e-10)
    assert haarpsi(f / 127.5 - 1, h / 127.5 - 1, subsample=subsample) == pytest.approx(expected, rel=1e-10)


def test_equal_images_have_1_others_less():
    image = scene()
    assert haarpsi(image, image) == pytest.approx(1, abs=1e-12)
    assert haarpsi(image, image) <= 1
    assert haarpsi(image, image[::-1]) < 0.7
    assert haarpsi(np.full((16, 16), -1.0), np.full((16, 16), -1.0)) == 1  # black: no weights at all


def test_symmetric_in_its_arguments_and_under_transposition():
    image, other = scene(), noisy(scene(), 0.2)
    value = haarpsi(image, other)
    assert haarpsi(other, image) == pytest.approx(value, rel=1e-12)
    assert haarpsi(image.T, other.T) == pytest.approx(value, rel=1e-12)
    assert haarpsi(image[..., None], other[..., None]) == value


def test_falls_with_noise_and_blur():
    image = scene()
    values = [haarpsi(image, noisy(image, sigma)) for sigma in (0, 0.05, 0.1, 0.2, 0.4)]
    assert all(before - after > 0.01 for before, after in itertools.pairwise(values))
    blurred = (image + np.roll(image, 1, 0) + np.roll(image, 2, 0)) / 3
    assert haarpsi(image, blurred) < 0.99


def test_a_constant_step_in_brightness_counts_little():
    """The Haar wavelets have no mean; only the black border answers."""
    image = scene() / 2
    assert haarpsi(image, image + 0.1) > haarpsi(image, noisy(image, 0.1)) + 0.05


def test_subsampling_forgives_fine_noise():
    image = scene()
    other = noisy(image, 0.1)
    assert haarpsi(image, other) > haarpsi(image, other, subsample=False) + 0.02


def test_constants():
    image, other = scene(), noisy(scene(), 0.1)
    assert (C, ALPHA) == (30.0, 4.2)
    assert haarpsi(image, other, c=5) < haarpsi(image, other)
    assert haarpsi(image, other, alpha=8) != haarpsi(image, other)


@pytest.mark.parametrize(
    "pair",
    [
        (np.zeros((16, 16)), np.zeros((16, 17))),
        (np.zeros((16, 16, 3)), np.zeros((16, 16, 3))),
        (np.zeros(16), np.zeros(16)),
        (np.zeros((0, 16)), np.zeros((0, 16))),
        (np.zeros((16, 16)), np.full((16, 16), np.nan)),
    ],
)
def test_what_are_no_two_gray_images(pair):
    with pytest.raises(ValueError, match="images"):
        haarpsi(*pair)
