"""Classical restorers against their definitions in NumPy and SciPy, and the search for their parameters."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from experiments.restoration import classical
from r2c_gan.evaluation import metrics


def chest(size=64, channels=1):
    """Two dark ovals in a bright body, float32 in [-1, 1]."""
    rows, columns = np.indices((size, size)) / size
    image = 0.6 * np.exp(-(((rows - 0.5) / 0.5) ** 4) - ((columns - 0.5) / 0.45) ** 4)
    for center in (0.32, 0.68):
        image -= 0.7 * (((rows - 0.5) / 0.3) ** 2 + ((columns - center) / 0.13) ** 2 < 1)
    image = ndimage.gaussian_filter(image, 1.0)[..., None].astype(np.float32)
    return np.repeat(np.clip(image, -1, 1), channels, axis=-1)


def noisy(image, sigma, seed=0):
    noise = np.random.default_rng(seed).normal(0, sigma, (*image.shape[:2], 1))
    return np.clip(image + noise, -1, 1).astype(np.float32)


def gray(image):
    return (image + 1) / 2


ALL = [(name, choice) for name, method in classical.METHODS.items() for choice in method.grid]


@pytest.mark.parametrize(("name", "choice"), ALL, ids=[f"{name}-{index}" for index, (name, _) in enumerate(ALL)])
def test_shape_range_and_input_are_kept(name, choice):
    image = noisy(chest(40)[:, :33], 0.2)
    before = image.copy()
    restored = classical.METHODS[name].function(image, **choice)
    assert restored.shape == image.shape and restored.dtype == np.float32
    assert restored.min() >= -1 and restored.max() <= 1
    assert np.array_equal(image, before)
    assert not np.array_equal(restored, image)


@pytest.mark.parametrize("name", classical.METHODS)
def test_three_equal_channels_are_restored_as_one(name):
    function = classical.METHODS[name].function
    one = function(noisy(chest(), 0.1))
    three = function(noisy(chest(channels=3), 0.1))
    assert three.shape == (64, 64, 3)
    assert np.allclose(three[..., 0], three[..., 1]) and np.allclose(three[..., 1], three[..., 2])
    if name not in ("total_variation", "non_local_means"):  # which count the noise of three channels
        np.testing.assert_allclose(three[..., :1], one, atol=1e-3)  # a percentile of more values is a little other


@pytest.mark.parametrize("name", classical.METHODS)
@pytest.mark.parametrize("value", [-1.0, 0.2, 1.0])
def test_an_image_of_one_gray(name, value):
    image = np.full((32, 32, 1), value, np.float32)
    restored = classical.METHODS[name].function(image)
    assert np.isfinite(restored).all()
    assert np.ptp(restored) == pytest.approx(0, abs=1e-6)


def test_noise_level_of_white_noise():
    for sigma in (0.01, 0.05, 0.2):
        image = np.random.default_rng(1).normal(0, sigma, (128, 128, 1))
        assert classical.noise_level(image) == pytest.approx(sigma, rel=0.05)
    plane = np.add.outer(np.linspace(-1, 1, 64), np.linspace(0, 0.3, 64))[..., None]
    assert classical.noise_level(plane) < 1e-6
    assert classical.noise_level(noisy(chest(128), 0.1)) == pytest.approx(0.1, rel=0.1)  # edges do not answer


@pytest.mark.parametrize("name", ["non_local_means", "total_variation"])
def test_denoising_gains_and_leaves_clean_images_alone(name):
    clean = chest()
    denoise = classical.METHODS[name].function
    poor = noisy(clean, 0.15)
    assert metrics.psnr(clean, denoise(poor)) > metrics.psnr(clean, poor) + 5
    assert metrics.psnr(clean, denoise(clean)) > 35
    flat = np.linspace(-1, 1, 64, dtype=np.float32)[None, :, None].repeat(64, axis=0)
    assert np.allclose(denoise(flat), flat, atol=1e-3)


@pytest.mark.parametrize("name", ["non_local_means", "total_variation"])
def test_more_strength_smooths_more(name):
    poor = noisy(chest(), 0.15)
    roughness = [
        np.abs(np.diff(classical.METHODS[name].function(poor, strength=s), axis=0)).mean() for s in (0.5, 1, 2)
    ]
    assert roughness[0] > roughness[1] > roughness[2]


def test_clahe_with_one_tile_and_no_limit_is_histogram_equalisation():
    image = noisy(chest(), 0.05)
    grays = np.rint(gray(image) * 255).astype(int)
    cumulative = np.cumsum(np.bincount(grays.ravel(), minlength=256)) / grays.size
    expected = np.rint(cumulative[grays] * 255) / 255
    np.testing.assert_allclose(gray(classical.clahe(image, clip_limit=1000.0, tiles=1)), expected, atol=1.01 / 255)


def test_clahe_raises_local_contrast_by_its_limit():
    flat = (0.2 * chest(96) + 0.1).astype(np.float32)
    contrast = [np.std(classical.clahe(flat, clip_limit=limit, tiles=2)) / np.std(flat) for limit in (1.0, 2.0, 4.0)]
    assert 1 < contrast[0] < contrast[1] < contrast[2]


def test_gamma_reaches_its_target():
    image = noisy(chest() * 0.5 - 0.4, 0.05)
    assert np.median(gray(classical.automatic_gamma(image, 0.6, "median"))) == pytest.approx(0.6, abs=1e-4)
    before = abs(np.mean(gray(image)) - 0.6)
    after = abs(np.mean(gray(classical.automatic_gamma(image, 0.6, "mean"))) - 0.6)
    assert after < 0.05 < 0.2 < before


def test_gamma_is_a_power_and_share_goes_part_of_the_way():
    image = chest()
    brightness = np.median(gray(image))
    power = np.log(0.7) / np.log(brightness)
    for share in (0.0, 0.3, 1.0):
        expected = gray(image) ** (power**share)
        np.testing.assert_allclose(gray(classical.automatic_gamma(image, 0.7, "median", share)), expected, atol=1e-6)


def test_gamma_is_limited():
    dark = np.full((16, 16, 1), -0.999, np.float32)
    np.testing.assert_allclose(gray(classical.automatic_gamma(dark, 0.6)), gray(dark) ** (1 / 3), atol=1e-6)


def test_stretch_saturates_its_share():
    image = np.random.default_rng(0).uniform(-0.4, 0.3, (50, 50, 1)).astype(np.float32)
    restored = classical.percentile_stretch(image, percent=2.0)
    assert np.mean(restored == -1) == pytest.approx(0.02, abs=0.002)
    assert np.mean(restored == 1) == pytest.approx(0.02, abs=0.002)
    inside = np.abs(restored) < 1
    slope = np.polyfit(image[inside], restored[inside], 1)
    np.testing.assert_allclose(np.polyval(slope, image[inside]), restored[inside], atol=1e-5)
    full = classical.percentile_stretch(image, percent=0.0)
    assert (full.min(), full.max()) == (pytest.approx(-1), pytest.approx(1))


def test_unsharp_mask_against_scipy():
    image = noisy(chest() * 0.7, 0.05)
    blurred = ndimage.gaussian_filter(image[..., 0].astype(np.float64), 1.5, mode="reflect")
    expected = np.clip(image[..., 0] + 0.8 * (image[..., 0] - blurred), -1, 1)
    np.testing.assert_allclose(classical.unsharp_mask(image, 1.5, 0.8)[..., 0], expected, atol=2e-4)


def test_steps_are_applied_in_order():
    image = noisy(chest(), 0.1)
    steps = [("total_variation", {"strength": 1.0}), ("unsharp_mask", {"radius": 1.0, "amount": 1.0})]
    expected = classical.unsharp_mask(classical.total_variation(image, 1.0), 1.0, 1.0)
    assert np.array_equal(classical.restore(image, steps), expected)
    assert not np.array_equal(classical.restore(image, steps[::-1]), expected)
    assert np.array_equal(classical.restore(image, []), image)


@pytest.fixture
def small_grids(monkeypatch):
    chosen = {name: dataclasses.replace(method, grid=method.grid[:2]) for name, method in classical.METHODS.items()}
    monkeypatch.setattr(classical, "METHODS", chosen)


@pytest.mark.usefixtures("small_grids")
def test_search_tries_every_combination_once():
    image = noisy(chest(32), 0.1)
    combinations = classical.combinations()
    # per stage nothing, or one method of it with one of two parameters
    assert len(combinations) == (1 + 2 * 2) * (1 + 3 * 2) * (1 + 2)
    assert combinations[0] == []
    assert len({str(steps) for steps in combinations}) == len(combinations)
    stages = [[classical.STAGES.index(classical.METHODS[name].stage) for name, _ in steps] for steps in combinations]
    assert all(found == sorted(set(found)) for found in stages)
    scores = classical.combination_scores(image, lambda restored: float(restored.std()))
    expected = [float(classical.restore(image, steps).std()) for steps in combinations]
    np.testing.assert_allclose(scores, expected)


@pytest.mark.usefixtures("small_grids")
def test_best_combination_and_best_of_each_method_alone():
    combinations = classical.combinations()
    scores = np.zeros((3, len(combinations)))
    wanted = [("total_variation", classical.METHODS["total_variation"].grid[1]),
              ("unsharp_mask", classical.METHODS["unsharp_mask"].grid[0])]  # fmt: skip
    second = [("clahe", classical.METHODS["clahe"].grid[1])]
    scores[:, combinations.index(wanted)] = (9, 8, 10)  # best on the mean, not on every image
    scores[:, combinations.index(second)] = (1, 20, 1)
    found = classical.best(scores)
    assert found[classical.COMBINATION] == (wanted, 9.0)
    assert found["clahe"] == (second, pytest.approx(22 / 3))
    assert found["unsharp_mask"] == ([("unsharp_mask", classical.METHODS["unsharp_mask"].grid[0])], 0.0)
    assert set(found) == {*classical.METHODS, classical.COMBINATION}


@pytest.mark.usefixtures("small_grids")
def test_nothing_is_best_where_nothing_helps():
    scores = [[1.0] + [0.5] * (len(classical.combinations()) - 1)]
    assert classical.best(scores)[classical.COMBINATION] == ([], 1.0)
