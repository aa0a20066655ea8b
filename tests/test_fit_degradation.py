"""Fitting how films go bad: what was done to films is found again, without pairs, and the same each time."""

import json
import subprocess

import cv2
import numpy as np
import programs
import pytest

from data_prep import fit_degradation, fitted_degradation
from data_prep.fitted_degradation import OPERATIONS, PARAMETERS, START, Degradation
from r2c_gan.data import images
from r2c_gan.errors import UserError

SIZE = 32


def films(count, seed):
    """Smooth films with edges, in [0, 1]."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        coarse = cv2.resize(
            rng.uniform(0.1, 0.9, (5, 5)).astype("float32"), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC
        )
        coarse[:, int(rng.integers(4, 28)) :] += 0.1
        made.append(np.clip(coarse + 0.004 * rng.standard_normal((SIZE, SIZE)), 0, 1))
    return np.stack(made).astype("float32")


def only(**values):
    """A degradation of nothing but what is given, as operation__number=value."""
    found = dict(Degradation.of_vector(START).values)
    found.update({f"{name}.probability": 0.0 for name in OPERATIONS})
    return Degradation(found | {name.replace("__", "."): value for name, value in values.items()})


def test_noise_and_exposure_are_found_again():
    truth = only(
        noise__probability=0.6, noise__strength=0.1, noise__strength_spread=0.2, noise__dependence=0.0,
        noise__correlated=0.0, tone__probability=0.5, tone__offset=0.2, tone__offset_spread=0.02,
        tone__gamma_spread=0.01, tone__gain_spread=0.01,
    )  # fmt: skip
    poor = truth.degrade(films(96, 1), np.random.default_rng(2))
    found, distances = fit_degradation.fit(poor, films(96, 3), generations=25, sample=48)
    assert distances["good_degraded"] < 0.5 * distances["good_as_they_are"]
    assert abs(found.values["noise.probability"] - 0.6) < 0.2
    assert 0.07 < found.values["noise.strength"] < 0.14
    x = films(100, 4)
    brighter = [each.degrade(x, np.random.default_rng(5)).mean() - x.mean() for each in (truth, found)]
    assert abs(brighter[0] - brighter[1]) < 0.04


def test_the_same_seed_finds_the_same():
    poor, good = films(20, 1), films(20, 2)
    one, again, other = (fit_degradation.fit(poor, good, seed, 2, 16)[0].values for seed in (0, 0, 1))
    assert one == again != other


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_keeps_films_films_and_follows_the_seed(name):
    given = films(6, 0)
    degradation = only(**{f"{name}__probability": 1.0})
    one, again = (degradation.degrade(given, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    assert one.shape == given.shape and one.dtype == np.float32 and one.min() >= 0 and one.max() <= 1
    assert np.abs(one - given).max() > 1e-3
    np.testing.assert_array_equal(given, films(6, 0))  # the films themselves are left alone


def test_nothing_happens_where_nothing_is_likely():
    given = films(3, 0)
    np.testing.assert_array_equal(only().degrade(given, np.random.default_rng(0)), given)


def test_tone_and_noise_are_their_formulas():
    given = np.full((400, SIZE, SIZE), 0.5, np.float32)
    toned = only(
        tone__probability=1.0, tone__gamma=np.log(2), tone__gamma_spread=0.0, tone__gain=np.log(0.5),
        tone__gain_spread=0.0, tone__offset=0.1, tone__offset_spread=0.0,
    ).degrade(given, np.random.default_rng(0))  # fmt: skip
    np.testing.assert_allclose(toned, 0.5 * 0.5**2 + 0.1, atol=1e-6)
    noisy = only(
        noise__probability=1.0, noise__strength=0.05, noise__strength_spread=0.0, noise__dependence=2.0,
        noise__correlated=0.0,
    )  # fmt: skip
    dark, bright = (
        noisy.degrade(np.full_like(given[:50], value), np.random.default_rng(0)).std() for value in (0.3, 0.7)
    )
    assert dark == pytest.approx(0.05 * np.exp(-0.4), rel=0.03)
    assert bright == pytest.approx(0.05 * np.exp(0.4), rel=0.03)


def test_the_program(tmp_path):
    poor = only(noise__probability=1.0).degrade(films(16, 1), np.random.default_rng(2))
    for folder, given in (("trainA", poor), ("trainB", films(16, 3))):
        for number, film in enumerate(given):
            images.write_image(tmp_path / folder / f"{number}.png", 2 * film[..., None] - 1)
    output = tmp_path / "fit.json"
    command = programs.python("-m", "data_prep.fit_degradation", f"--datasets_dir={tmp_path}", f"--output={output}")
    command += ["--generations=2", "--sample=16"]
    subprocess.run(command, check=True, capture_output=True)
    record = json.loads(output.read_text())
    assert list(record["operations"]) == list(OPERATIONS) and record["films"]["poor"] == 16
    assert images.read_image(output.with_suffix(".png")).std() > 0
    loaded = Degradation.load(output)
    assert set(loaded.values) == set(PARAMETERS)
    assert loaded.values["jpeg.probability"] == record["operations"]["jpeg"]["probability"]
    film = films(1, 5)[0]
    assert loaded(film, np.random.default_rng(0)).shape == film.shape


def test_what_is_no_fit_is_refused(tmp_path):
    (tmp_path / "x.json").write_text('{"format": 1}')
    with pytest.raises(UserError, match="not a file of"):
        Degradation.load(tmp_path / "x.json")
    with pytest.raises(UserError, match="needs at least"):
        fit_degradation.read_films(tmp_path)
    assert fitted_degradation.FORMAT == 1
