"""Degradations: physics, severity, determinism, range; a radiograph-like image made here."""

import json
import subprocess

import cv2
import numpy as np
import programs
import pytest

from data_prep import degradations
from data_prep.degradations import DEGRADATIONS, FAMILIES, RANGES, SEVERITIES, apply, degrade
from r2c_gan.data import images
from r2c_gan.errors import UserError
from r2c_gan.evaluation import metrics


def radiograph(height=256, width=256):
    """Two dark lungs crossed by ribs in a bright body on black air, float32 in [0, 1]."""
    y, x = np.mgrid[:height, :width] / np.array([height, width])[:, None, None]
    body = np.clip((0.47 - np.abs(x - 0.5)) * 20, 0, 1)
    lungs = sum(np.exp(-((((x - c) / 0.13) ** 2 + ((y - 0.45) / 0.28) ** 2) ** 2)) for c in (0.3, 0.7))
    ribs = 0.08 * lungs * (np.sin(40 * y + 6 * (x - 0.5) ** 2) > 0.5)
    texture = 0.02 * np.sin(90 * x) * np.sin(110 * y)
    return np.clip(body * (0.75 - 0.5 * lungs + ribs + texture), 0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def image():
    return radiograph()


def test_every_degradation_has_a_range_and_a_family():
    assert list(RANGES) == list(DEGRADATIONS)
    assert sorted(name for family in FAMILIES.values() for name in family) == sorted(DEGRADATIONS)
    assert all(tuple(ranges) == SEVERITIES for ranges in RANGES.values())


@pytest.mark.parametrize("name", DEGRADATIONS)
def test_psnr_falls_with_severity(image, name):
    """Every draw of one severity leaves more than every draw of the next, on average over directions and ends."""
    means = []
    for severity in SEVERITIES:
        drawn = [apply(name, image, np.random.default_rng(seed), severity)[0] for seed in range(12)]
        means.append(np.mean([metrics.psnr(image, one, limits=(0, 1)) for one in drawn]))
    assert means[0] > means[1] + 1 > means[2] + 2, means


def test_psnr_of_blends_falls_with_severity(image):
    means = [
        np.mean([metrics.psnr(image, degrade(image, np.random.default_rng(k), s)[0], limits=(0, 1)) for k in range(60)])
        for s in SEVERITIES
    ]
    assert means[0] > means[1] + 2 > means[2] + 4, means


@pytest.mark.parametrize("name", DEGRADATIONS)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_range_type_shape_and_record(image, name, severity):
    before = image.copy()
    for shape, picture in [
        ((256, 256), image),
        ((65, 40), radiograph(65, 40)),
        ((40, 40), np.zeros((40, 40))),
        ((40, 41), np.ones((40, 41))),
    ]:
        result, parameters = apply(name, picture, np.random.default_rng(0), severity)
        assert result.shape == shape
        assert result.dtype == np.float32
        assert np.isfinite(result).all() and result.min() >= 0 and result.max() <= 1
        assert parameters["name"] == name and parameters["severity"] == severity
        assert json.loads(json.dumps(parameters)) == parameters
    np.testing.assert_array_equal(image, before)


def test_the_recorded_strength_lies_in_the_table(image):
    for name, ranges in RANGES.items():
        for severity, (low, high) in ranges.items():
            values = list(apply(name, image, np.random.default_rng(1), severity)[1].values())
            assert low - 0.5 <= values[2] <= high + 0.5, (name, severity, values)


def test_the_same_seed_gives_the_same_image_and_another_seed_another(image):
    for seed in range(10):
        first, record = degrade(image, np.random.default_rng(seed))
        again, same = degrade(image, np.random.default_rng(seed))
        np.testing.assert_array_equal(first, again)
        assert record == same
        assert not np.array_equal(first, degrade(image, np.random.default_rng(seed + 100))[0])


def test_blends_mix_one_to_three_families_in_any_order():
    small = radiograph(32, 32)
    family_of = {name: family for family, names in FAMILIES.items() for name in names}
    blends = [[family_of[p["name"]] for p in degrade(small, np.random.default_rng(k))[1]] for k in range(400)]
    assert all(len(set(blend)) == len(blend) for blend in blends)
    counts = np.bincount([len(blend) for blend in blends], minlength=4)
    expected = np.array([0, *degradations.BLEND.values()]) * 400
    assert np.abs(counts - expected).max() < 5 * np.sqrt(400 / 4)
    pairs = {(a, b) for blend in blends for i, a in enumerate(blend) for b in blend[i + 1 :]}
    assert len(pairs) == len(FAMILIES) * (len(FAMILIES) - 1)  # each family before and after each other


def test_a_blend_is_its_recorded_degradations_one_after_the_other(monkeypatch, image):
    calls = []
    for name, function in DEGRADATIONS.items():
        monkeypatch.setitem(degradations.DEGRADATIONS, name, lambda *a, f=function, n=name: (calls.append(n), f(*a))[1])
    _, record = degrade(image, np.random.default_rng(5))
    assert [entry["name"] for entry in record] == calls


# --- physics ---------------------------------------------------------------------------------------------------------


def test_dense_parts_are_noisier_as_the_photons_they_pass_tell():
    """Delta method: x = -ln(N / N0) / k and var N = N + e^2 give std x = sqrt(N + e^2) / (k N)."""
    for level in (0.1, 0.4, 0.7):
        flat = np.full((200, 200), level, np.float32)
        noisy, parameters = DEGRADATIONS["noise"](flat, 4000.0, np.random.default_rng(0))
        photons = 4000 * np.exp(-degradations.CONTRAST * level)
        expected = np.sqrt(photons + parameters["electronic"] ** 2) / (degradations.CONTRAST * photons)
        assert np.std(noisy) == pytest.approx(expected, rel=0.05)
        assert np.mean(noisy) == pytest.approx(level, abs=0.005)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_noise_is_larger_in_bone_than_in_lung(severity):
    flat = np.full((128, 256), 0.25, np.float32)
    flat[:, 128:] = 0.6
    noisy, _ = apply("noise", flat, np.random.default_rng(0), severity)
    assert noisy[:, 128:].std() > 1.3 * noisy[:, :128].std()


def test_fewer_photons_are_noisier(image):
    stds = [np.std(DEGRADATIONS["noise"](image, n, np.random.default_rng(0))[0] - image) for n in (30, 120, 480)]
    assert stds[0] > 1.5 * stds[1] > 2.25 * stds[2]


@pytest.mark.parametrize("name", ["gaussian_blur", "focal_spot", "motion_blur"])
@pytest.mark.parametrize("strength", [3.0, 6.0])
def test_blur_spreads_a_point_as_its_kernel_says(name, strength):
    """Second moments of the point spread: Gaussian s^2 an axis, disk r^2/4 an axis, line L^2/12 (and 1/12 across)."""
    point = np.zeros((256, 256), np.float32)
    point[128, 128] = 1
    spread, _ = DEGRADATIONS[name](point, strength, np.random.default_rng(0))
    y, x = np.mgrid[:256, :256] - 128
    total = {"gaussian_blur": 2 * strength**2, "focal_spot": strength**2 / 2, "motion_blur": (strength**2 + 1) / 12}
    assert spread.sum() == pytest.approx(1, abs=1e-4)
    assert np.sum(spread * (y**2 + x**2)) == pytest.approx(total[name], rel=0.05, abs=0.25)  # pixels are not points


def test_motion_follows_its_recorded_angle():
    point = np.zeros((256, 256), np.float32)
    point[128, 128] = 1
    y, x = np.mgrid[:256, :256] - 128
    for seed in range(5):
        spread, parameters = DEGRADATIONS["motion_blur"](point, 15.0, np.random.default_rng(seed))
        covariance = np.array([[np.sum(spread * a * b) for a in (x, y)] for b in (x, y)])
        direction = np.linalg.eigh(covariance)[1][:, -1]
        angle = np.radians(parameters["angle"])
        assert abs(direction @ [np.cos(angle), np.sin(angle)]) > 0.99


@pytest.mark.parametrize("name", ["gaussian_blur", "focal_spot", "motion_blur", "scatter_veil", "low_resolution"])
def test_lengths_scale_with_the_image(name):
    """Twice as large an image, degraded and shrunk again, looks as the smaller one degraded."""
    large = cv2.GaussianBlur(radiograph(512, 512), (0, 0), 2)
    small = cv2.resize(large, (256, 256), interpolation=cv2.INTER_AREA)
    expected, _ = apply(name, small, np.random.default_rng(2), "severe")
    result, _ = apply(name, large, np.random.default_rng(2), "severe")
    result = cv2.resize(result, (256, 256), interpolation=cv2.INTER_AREA)
    assert np.abs(result - expected).mean() < 0.1 * np.abs(small - expected).mean()


def test_exposure_goes_the_right_way_and_clips(image):
    darker, _ = apply("over_exposure", image, np.random.default_rng(0), "severe")
    brighter, _ = apply("under_exposure", image, np.random.default_rng(0), "severe")
    assert (darker <= image).all() and (brighter >= image).all()
    assert np.mean(darker == 0) > np.mean(image == 0) + 0.05
    assert np.mean(brighter == 1) > np.mean(image == 1) + 0.05


def test_veil_takes_contrast(image):
    lung, bone = image[110:120, 70:80].mean(), image[110:120, 123:133].mean()
    for severity in SEVERITIES:
        veiled, parameters = apply("scatter_veil", image, np.random.default_rng(0), severity)
        contrast = veiled[110:120, 123:133].mean() - veiled[110:120, 70:80].mean()
        # The wide blur keeps a little of the contrast; the uniform veil none.
        assert (1 - parameters["veil"]) <= contrast / (bone - lung) <= (1 - parameters["veil"] / 2)


def test_saturation_clips_the_recorded_share(image):
    grays = (image > 0.02) & (image < 0.98)
    ends = set()
    for seed in range(8):
        clipped, parameters = apply("saturation", image, np.random.default_rng(seed), "moderate")
        end = 0 if parameters["low"] > 0 else 1
        assert np.mean(clipped[grays] == end) == pytest.approx(parameters["share"], abs=0.01)
        ends.add(end)
    assert ends == {0, 1}


def test_saturation_leaves_a_dark_radiograph_readable():
    dark = 0.3 * radiograph()
    for seed in range(8):
        _, parameters = apply("saturation", dark, np.random.default_rng(seed), "severe")
        assert parameters["high"] - parameters["low"] >= degradations.NARROWEST


def test_grid_lines_have_the_recorded_period_and_amplitude():
    flat = np.full((256, 256), 0.5, np.float32)
    for seed in range(6):
        lined, parameters = apply("grid_lines", flat, np.random.default_rng(seed), "severe")
        across = parameters["direction"] == "vertical"
        assert np.ptp(lined, axis=0 if across else 1).max() == 0
        profile = lined[0] if across else lined[:, 0]
        spectrum = np.abs(np.fft.rfft(profile - profile.mean()))
        assert 256 / spectrum.argmax() == pytest.approx(parameters["period"], rel=0.1)
        assert (np.ptp(profile) / 2) == pytest.approx(parameters["amplitude"], rel=0.15)


def test_low_resolution_takes_what_is_finer_than_its_pixels():
    fine = np.full((256, 256), 0.5, np.float32)
    fine[:, ::2] = 0.7
    result, _ = apply("low_resolution", fine, np.random.default_rng(0), "moderate")
    assert result[16:-16, 16:-16].std() < 0.35 * fine.std()


# --- input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*DEGRADATIONS, "blend"])
def test_eight_and_sixteen_bit_files_come_out_alike(tmp_path, name):
    """The same radiograph stored with 8 and with 16 bits is degraded the same, and 16 bits keep their finer steps."""
    results = []
    for bits in (8, 16):
        images.write_image(tmp_path / f"{bits}.png", 2 * radiograph(128, 128) - 1, bits)
        read = np.clip((images.read_image(tmp_path / f"{bits}.png", channels=1)[..., 0] + 1) / 2, 0, 1)
        rng = np.random.default_rng(4)
        results.append(degrade(read, rng, "mild")[0] if name == "blend" else apply(name, read, rng, "mild")[0])
    if name in (
        "noise",
        "blend",
    ):  # a Poisson draw jumps with the least change of its mean: compare what it is drawn from
        results = [cv2.blur(result, (16, 16)) for result in results]
    assert np.abs(results[0] - results[1]).mean() < (4 if name in ("noise", "blend") else 1.5) / 255
    if name != "jpeg":  # which has 8 bits
        assert len(np.unique(results[1])) > 256


def test_wrong_calls_are_named(image):
    with pytest.raises(UserError, match="severity 'awful': must be one of mild, moderate, severe"):
        degrade(image, np.random.default_rng(0), "awful")
    with pytest.raises(UserError, match="degradation 'rain': must be one of noise"):
        apply("rain", image, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"\[H, W\]"):
        degrade(image[..., None], np.random.default_rng(0))


def test_contact_sheet_shows_every_degradation(tmp_path):
    degradations.contact_sheet(radiograph(64, 64), tmp_path / "sheet.png")
    height, width = images.read_image(tmp_path / "sheet.png").shape[:2]
    assert height / width > 0.6 * (len(DEGRADATIONS) + 1) / (len(SEVERITIES) + 1)


def test_program_names_a_folder_without_images(tmp_path):
    (tmp_path / "empty").mkdir()
    command = programs.python("-m", "data_prep.degradations", f"--input={tmp_path / 'empty'}")
    failed = subprocess.run([*command, f"--output={tmp_path / 'no.png'}"], capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr.strip() == f"error: --input={tmp_path / 'empty'}: no image in this folder"
    assert not (tmp_path / "no.png").exists()
