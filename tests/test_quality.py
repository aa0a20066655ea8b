"""The quality score: what its features measure, the model it reads, and how well it ranks (on real radiographs)."""

import json
import os
import subprocess

import cv2
import numpy as np
import programs
import pytest
from test_degradations import radiograph

from data_prep import quality, quality_calibration
from data_prep.degradations import SEVERITIES, apply, degrade
from data_prep.quality import quality_features, quality_score
from data_prep.sources import Record
from r2c_gan import files
from r2c_gan.data import images
from r2c_gan.errors import UserError


@pytest.fixture(scope="module")
def clean():
    """A radiograph-like image with a little fine structure everywhere, as real ones have."""
    grain = cv2.GaussianBlur(np.random.default_rng(0).normal(0, 1, (256, 256)).astype(np.float32), (0, 0), 1.2)
    return np.clip(0.9 * radiograph() + 0.05 + 0.01 * grain, 0, 1).astype(np.float32)


def moved(clean, name, severity="moderate", seed=0):
    """How much each feature changes under a degradation."""
    degraded, _ = apply(name, clean, np.random.default_rng(seed), severity)
    before, after = quality_features(clean), quality_features(degraded)
    return {name: after[name] - before[name] for name in before}


# --- features --------------------------------------------------------------------------------------------------------


def test_features_are_finite_numbers_for_any_image():
    names = list(quality_features(np.zeros((32, 32))))
    for image in (
        np.zeros((32, 32)),
        np.ones((40, 300)),
        radiograph(700, 500),
        np.random.default_rng(0).uniform(0, 1, (64, 64)),
    ):
        features = quality_features(image)
        assert list(features) == names
        assert np.isfinite(list(features.values())).all()
        assert 0 <= quality_score(image) <= 1
    for shape in [(31, 64), (64, 64, 1)]:
        with pytest.raises(ValueError, match="at least 32 pixels"):
            quality_features(np.zeros(shape))


def test_exposure_features_are_the_quantiles(clean):
    features = quality_features(clean)
    inside = clean[16:-16, 16:-16]
    assert [features[name] for name in ("p05", "p50", "p95")] == pytest.approx(
        np.quantile(inside, (0.05, 0.5, 0.95)), abs=0.01
    )
    assert moved(clean, "over_exposure")["p50"] < -0.05
    assert moved(clean, "under_exposure")["p50"] > 0.05
    clipped = np.where(np.arange(256) < 64, 1.0, 0.5)[None] * np.ones((256, 1))
    assert np.exp(quality_features(clipped)["white"]) == pytest.approx(48 / 224, abs=0.01)


def test_veil_lowers_local_contrast_by_its_share(clean):
    veiled = 0.5 * clean + 0.3
    difference = quality_features(veiled)["local_contrast"] - quality_features(clean)["local_contrast"]
    assert difference == pytest.approx(np.log(0.5), abs=0.1)


def test_the_noise_estimate_of_white_noise_is_its_deviation():
    noise = 0.5 + 0.02 * np.random.default_rng(0).normal(size=(256, 256))
    features = quality_features(noise)
    assert np.exp(features["noise_bright"]) == pytest.approx(0.02 * np.sqrt(2 / np.pi), rel=0.05)  # E|x| of a Gaussian
    assert np.exp(features["noise_coarse"]) == pytest.approx(0.01, rel=0.1)  # a mean of four pixels
    assert features["tails"] == pytest.approx(np.log(3.5), abs=0.1)  # kurtosis 3
    assert features["band4"] == pytest.approx(0, abs=0.1)  # white
    assert features["noise_step"] == pytest.approx(0, abs=0.1)


def test_quantum_noise_shows_in_the_bright_parts(clean):
    change = moved(clean, "noise")
    assert change["noise_bright"] > 0.5
    assert change["noise_step"] > 0.2
    assert change["tails"] < -0.1


@pytest.mark.parametrize("name", ["gaussian_blur", "focal_spot", "low_resolution"])
def test_blur_takes_power_from_high_bands(clean, name):
    change = moved(clean, name, "severe")
    assert min(change[f"band{k}"] for k in (2, 3, 4)) < -0.5


def test_motion_grid_and_blocks_have_their_own_features(clean):
    assert moved(clean, "grid_lines", "severe")["lines"] > 0.5
    assert moved(clean, "jpeg", "severe")["blocks"] > 0.5
    texture = np.clip(0.5 + 0.1 * np.random.default_rng(0).normal(size=(256, 256)), 0, 1)
    assert quality_features(texture)["direction_low"] < 0.2
    assert moved(texture, "motion_blur", "severe")["direction_low"] > 0.5


def test_a_black_border_is_not_taken_for_a_quiet_dark_part(clean):
    noisy, _ = apply("noise", clean, np.random.default_rng(0), "mild")
    bordered = np.zeros((320, 320), np.float32)
    bordered[32:-32, 32:-32] = noisy
    small = np.asarray(cv2.resize(noisy, (205, 205), interpolation=cv2.INTER_AREA))
    assert quality_features(bordered)["noise_step"] == pytest.approx(quality_features(small)["noise_step"], abs=0.2)


def test_larger_images_are_judged_at_one_size(clean):
    large = cv2.resize(clean, (512, 512), interpolation=cv2.INTER_NEAREST)
    small, big = quality_features(clean), quality_features(large)
    assert all(big[name] == pytest.approx(small[name], abs=1e-3) for name in small if name != "blocks")


# --- the score -------------------------------------------------------------------------------------------------------


def test_the_score_is_the_logistic_of_broken_lines():
    model = {"features": {"a": [[0, 1, 3], [-1, 1, 0]], "b": [[0, 1], [0, 2]]}, "constant": 0.25}
    parts = quality.contributions({"a": 2, "b": 5}, model)
    assert parts == {"a": 0.5, "b": 2, "constant": 0.25}
    assert quality.score_features({"a": 2, "b": 5}, model) == pytest.approx(1 / (1 + np.exp(-2.75)))


def test_the_shipped_model_fits_the_features():
    model = json.loads(quality.MODEL.read_text(encoding="utf-8"))
    assert list(model["features"]) == list(quality_features(np.zeros((32, 32))))
    assert all(np.all(np.diff(at) > 0) and len(at) == len(adds) for at, adds in model["features"].values())


@pytest.mark.parametrize("name", ["noise", "gaussian_blur", "motion_blur", "scatter_veil", "jpeg", "grid_lines"])
def test_a_severe_degradation_costs_score(clean, name):
    degraded = [apply(name, clean, np.random.default_rng(k), "severe")[0] for k in range(3)]
    assert np.mean([quality_score(one) for one in degraded]) < quality_score(clean) - 0.1


@pytest.mark.skipif("R2C_GAN_XRAY_DIR" not in os.environ, reason="R2C_GAN_XRAY_DIR names no folder of radiographs")
def test_the_score_ranks_real_radiographs():
    found = images.list_images(os.environ["R2C_GAN_XRAY_DIR"], recursive=True)
    chosen = np.random.default_rng(11).choice(len(found), min(150, len(found)), replace=False)
    judged = np.zeros((4, len(chosen)))
    for k, number in enumerate(chosen):
        image = quality.read_radiograph(found[number])
        rng = np.random.default_rng([99, k])
        judged[:, k] = [quality_score(image), *(quality_score(degrade(image, rng, s)[0]) for s in SEVERITIES)]
    assert quality_calibration.auroc(judged[0], judged[1]) > 0.85
    assert quality_calibration.auroc(judged[0], judged[2]) > 0.95
    assert np.all(np.diff(judged.mean(1)) < -0.1)


# --- calibration -----------------------------------------------------------------------------------------------------


def test_fitted_lines_find_a_peak_between_two_bad_ends():
    """Good in the middle, worse on both sides: what no straight line tells. A second feature is noise."""
    rng = np.random.default_rng(0)
    centres = [0, 1, 2, 3]
    ends = rng.choice((-1, 1), (4, 400))
    first = rng.normal(0, 0.3, (4, 400)) + ends * np.array(centres)[:, None]
    tables = np.stack([first, rng.normal(size=(4, 400))], axis=-1)
    model = quality_calibration.fit_lines(tables, ["first", "second"])
    at, adds = model["features"]["first"]
    assert np.interp(0, at, adds) > np.interp(2, at, adds) + 1
    assert np.interp(0, at, adds) > np.interp(-2, at, adds) + 1
    assert np.ptp(model["features"]["second"][1]) < 0.3 * np.ptp(adds)
    clean = [quality.contributions({"first": a, "second": b}, model)["first"] for a, b in tables[0]]
    assert np.mean(clean) == pytest.approx(0, abs=1e-3)
    judged = quality_calibration.scores(tables, ["first", "second"], model)
    np.testing.assert_allclose(judged.mean(1), [1, 2 / 3, 1 / 3, 0], atol=0.17)
    assert quality_calibration.auroc(judged[0], judged[1]) > 0.85


def test_auroc_counts_pairs():
    assert quality_calibration.auroc(np.array([3.0, 2.0]), np.array([1.0, 2.0, 5.0])) == pytest.approx(3.5 / 6)


def test_scene_statistics_tell_white_noise_from_a_blurred_one():
    """MSCN of white noise is near the exponent 2; in blurred noise neighbours agree, so their product leans right."""
    noise = np.clip(0.5 + 0.1 * np.random.default_rng(0).normal(size=(256, 256)), 0, 1).astype(np.float32)
    white = quality_calibration.scene_statistics(noise)
    blurred = quality_calibration.scene_statistics(cv2.GaussianBlur(noise, (0, 0), 1))
    assert len(white) == len(blurred) == 36
    assert white[0] > 1.8
    assert white[5] < white[4] and blurred[5] > 2 * blurred[4]  # right and left variance, horizontal neighbours


def test_generalised_gaussian_exponents_are_recovered():
    rng = np.random.default_rng(0)
    for draw, shape in [(rng.normal(size=10**6), 2), (rng.laplace(size=10**6), 1)]:
        assert quality_calibration._shape(quality_calibration._moment_ratio(draw)) == pytest.approx(shape, rel=0.02)


def test_calibration_ranks_radiographs_that_it_has_not_seen(tmp_path, monkeypatch):
    """On 66 synthetic images, from two sources."""
    monkeypatch.setattr(quality_calibration, "RESAMPLES", 50)
    records = []
    for k in range(66):
        rng = np.random.default_rng(k)
        grain = cv2.GaussianBlur(rng.normal(0, 1, (96, 96)).astype(np.float32), (0, 0), 1.2)
        image = np.clip(rng.uniform(0.8, 1) * np.roll(radiograph(96, 96), k, 0) + 0.05 + 0.01 * grain, 0, 1)
        images.write_image(tmp_path / f"{k}.png", 2 * image - 1)
        label = "covid" if k % 4 == 0 else "control"
        records.append(Record(tmp_path / f"{k}.png", f"{k}.png", label, "one" if k % 3 else "other"))
    model, result, judged = quality_calibration.calibrate(records, seed=0)
    assert result["n_train"] == 44 and result["n_test"] == 22 and judged.shape == (4, 22)
    assert result["score"]["auroc"]["severe"] > 0.9
    assert result["score"]["auroc"]["moderate"] == quality_calibration.auroc(judged[0], judged[2])
    low, high = result["score"]["auroc_95"]["mild"]
    assert low <= result["score"]["auroc"]["mild"] <= high
    assert set(result["source_not_in_the_fit"]) == {"one", "other"}
    assert sum(one["n"] for one in result["by_size"].values()) == 22
    assert 0 <= result["covid_against_control_auroc"] <= 1
    files.write_json(tmp_path / "model.json", model)
    quality_calibration.save_figure(judged, result, tmp_path / "calibration.png")
    quality_calibration.save_lines(model, tmp_path / "lines.png")
    for name in ("calibration.png", "lines.png"):
        assert images.read_image(tmp_path / name).std() > 0.1


def test_calibration_names_what_it_cannot_use(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    records = [Record(tmp_path / "a.png", f"{k}.png", "covid", "one") for k in range(60)]
    with pytest.raises(UserError, match=r"a\.png: the file is empty"):
        quality_calibration.calibrate(records)
    with pytest.raises(UserError, match="59 radiographs are too few"):
        quality_calibration.calibrate(records[:59])


# --- the program -----------------------------------------------------------------------------------------------------


def test_program_scores_a_folder(tmp_path, clean):
    images.write_image(tmp_path / "in" / "good.png", 2 * clean - 1)
    bad, _ = apply("noise", clean, np.random.default_rng(0), "severe")
    images.write_image(tmp_path / "in" / "deep" / "bad.png", 2 * bad - 1)
    command = programs.python(
        *("-m", "data_prep.quality", f"--input={tmp_path / 'in'}", f"--output_dir={tmp_path / 'out'}")
    )
    done = subprocess.run([*command, "--workers=1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "out" / "quality.csv").read_text().splitlines()
    assert lines[0].startswith("file,score,blocks,p05")
    assert [line.split(",")[0] for line in lines[1:]] == ["good.png", "deep/bad.png"]
    assert float(lines[1].split(",")[1]) == pytest.approx(
        quality_score(quality.read_radiograph(tmp_path / "in/good.png"))
    )
    assert (tmp_path / "out" / "sheet.png").is_file() and (tmp_path / "out" / "flags.txt").is_file()


def test_a_bad_file_does_not_end_the_program(tmp_path, clean):
    images.write_image(tmp_path / "in" / "good.png", 2 * clean - 1)
    (tmp_path / "in" / "bad.png").write_bytes(b"")
    flags = [f"--input={tmp_path / 'in'}", f"--output_dir={tmp_path / 'out'}", "--workers=1"]
    done = subprocess.run(programs.python("-m", "data_prep.quality", *flags), capture_output=True, text=True)
    assert done.returncode == 1
    assert "failed: bad.png: the file is empty" in done.stderr.splitlines()
    assert len((tmp_path / "out" / "quality.csv").read_text().splitlines()) == 2


def test_too_small_a_file_is_named(tmp_path):
    images.write_image(tmp_path / "a.png", np.zeros((10, 40)))
    with pytest.raises(images.ImageError, match=r"a\.png: 40 x 10 pixels; at least 32"):
        quality.read_radiograph(tmp_path / "a.png")
