"""The judge of tone against its formula in NumPy, and the discriminators that use it."""

import keras
import numpy as np
import pytest

from r2c_gan.model import R2CGAN
from r2c_gan.networks import METHODS, build_discriminator
from r2c_gan.tone_judge import ToneJudge


def random(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype("float32")


def randomised(layer, seed=1):
    rng = np.random.default_rng(seed)
    layer.set_weights([rng.normal(0, 0.5, weight.shape) for weight in layer.weights])
    return layer


@pytest.mark.parametrize("order", [1, 4])
def test_it_is_its_formula(order):
    layer = ToneJudge(order, hidden=5)
    x = random(3, 6, 8, 2) * np.array([1, 0.3, 0.7], "float32")[:, None, None, None]
    layer(x)
    randomised(layer)
    k_1, b_1, k_2, b_2, k_3, b_3 = layer.get_weights()
    seen = [np.mean(x.astype("float64") ** p, axis=(1, 2, 3)) for p in range(1, order + 1)]
    # Windows of 4 x 4 pixels, centred on the image: of its 6 rows, each takes 3.
    windows = np.stack([x[:, i : i + 3, j : j + 4].mean(axis=(1, 2)) for i in (0, 3) for j in (0, 4)], axis=1)
    seen = np.stack([*seen, windows.min(axis=(1, 2)), windows.max(axis=(1, 2))], axis=1)
    expected = np.tanh(np.tanh(seen @ k_1 + b_1) @ k_2 + b_2) @ k_3 + b_3
    np.testing.assert_allclose(layer(x).numpy().reshape(3, 1), expected, atol=1e-5)
    assert layer(x).shape == (3, 1, 1, 1)
    assert np.ptp(expected) > 0.01


@pytest.mark.parametrize("method", METHODS)
def test_it_adds_to_the_logits_of_the_patches(method):
    plain = build_discriminator(method, 2, filters=4)
    judging = build_discriminator(method, 2, filters=4, tone_judge=True)
    added = judging.count_params() - plain.count_params()
    assert added == 6 * 32 + 32 + 32 * 32 + 32 + 32 + 1
    x = random(2, 32, 48, 3)
    judge = next(layer for layer in judging.layers if isinstance(layer, ToneJudge))
    own = [weight for weight in judging.weights if not any(weight is each for each in judge.weights)]
    for weight, value in zip(own, plain.weights, strict=True):
        weight.assign(value)
    np.testing.assert_allclose(judging(x), plain(x), atol=1e-6)  # before it is trained
    randomised(judge)
    np.testing.assert_allclose(judging(x), plain(x) + judge(x), atol=1e-5)


def test_it_learns_how_often_images_are_dark():
    """Real images of which a third is dark, against fakes of which none is: the logits of LSGAN approach the odds."""
    rng = np.random.default_rng(0)
    brightness = np.where(rng.uniform(size=600) < 1 / 3, -0.5, 0.2)
    real = np.clip(brightness[:, None, None, None] + rng.normal(0, 0.2, (600, 8, 8, 1)), -1, 1)
    fake = np.clip(0.2 + rng.normal(0, 0.2, (600, 8, 8, 1)), -1, 1)
    keras.utils.set_random_seed(0)
    image = keras.Input((None, None, 1))
    judge = keras.Model(image, keras.layers.Flatten()(ToneJudge()(image)))
    judge.compile(keras.optimizers.Adam(0.01), "mse")
    judge.fit(np.concatenate([real, fake]), np.repeat([1.0, 0.0], 600), epochs=40, batch_size=100, verbose=0)
    # Where both are found, real ones are 2/3 of 1 against 1: 0.4 of all; dark images are always real.
    light, dark = (judge.predict(real[mask], verbose=0).mean() for mask in (brightness > 0, brightness < 0))
    assert abs(light - 0.4) < 0.05
    assert abs(dark - 1) < 0.05


def test_a_model_keeps_it(tmp_path):
    model = R2CGAN(q=1, filters=4, channels=1, image_size=16, pool_size=2, tone_judge=True)
    for network in (model.discriminator_a, model.discriminator_b):
        randomised(network)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    x = random(2, 16, 16, 1)
    for name in ("discriminator_a", "discriminator_b"):
        np.testing.assert_array_equal(getattr(again, name)(x), getattr(model, name)(x))


def test_unusable_arguments_are_named():
    for name in ("order", "hidden", "window"):
        with pytest.raises(ValueError, match=f"{name} must be an integer of at least 1"):
            ToneJudge(**{name: 0})
