"""The tone curve that is drawn from noise: its formula, what moves it, and that it learns how exposures vary."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from r2c_gan.layers.drawn_tone_curve import DrawnToneCurve
from r2c_gan.layers.noise import UniformNoise
from r2c_gan.models import losses
from r2c_gan.models.losses import LossWeights
from r2c_gan.models.model import METRICS, R2CGAN
from r2c_gan.models.networks import build_generator
from r2c_gan.models.optimizers import Adam


def images(n=3, size=8, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (n, size, size, 1)).astype("float32")


def noise(n=3, size=8, channels=2, seed=1):
    return np.random.default_rng(seed).uniform(-1, 1, (n, size, size, channels)).astype("float32")


def built(**arguments):
    layer = DrawnToneCurve(**arguments)
    layer.build((None, None, None, 1), (None, None, None, 2))
    return layer


def exposure_of(layer, z):
    """The coefficients by the formula in NumPy: [N, order + 1]."""
    means = z.astype("float64").mean(axis=(1, 2)) * np.sqrt(3 * z.shape[1] * z.shape[2])
    (kernel_1, bias_1), (kernel_2, bias_2) = layer.exposure_features.get_weights(), layer.exposure.get_weights()
    return np.tanh(means @ kernel_1 + bias_1) @ kernel_2 + bias_2


def test_the_curve_is_a_polynomial_that_the_noise_draws():
    layer, x, z = built(order=2, hidden=5), images(), noise()
    coefficients = exposure_of(layer, z)
    assert np.ptp(coefficients[:, 0]) > 0.01  # from the beginning no two images are exposed alike
    expected = sum(c[:, None, None, None] * x.astype("float64") ** p for p, c in enumerate(coefficients.T))
    np.testing.assert_allclose(layer(x, z), expected, atol=1e-5)  # the noise itself has no strength yet
    np.testing.assert_allclose(layer.exposed(x, z), np.clip(expected, -1, 1), atol=1e-5)


def test_the_strength_of_the_noise_still_depends_on_the_image():
    layer, x, z = built(), images(), noise()
    for dense in (layer.features, layer.coefficients):
        dense.set_weights([np.random.default_rng(2).normal(0, 0.5, weight.shape) for weight in dense.weights])
    alone = layer.exposed(x, z)
    added = layer(x, z) - alone
    assert np.abs(added).mean() > 0.01
    np.testing.assert_allclose(layer(x, 0 * z) - layer.exposed(x, 0 * z), 0, atol=1e-6)


def test_only_what_is_exposed_moves_the_curve():
    layer, x, z = built(), images(), noise()
    curve = [*layer.exposure_features.trainable_variables, *layer.exposure.trainable_variables]
    for call, moves in ((layer, False), (layer.exposed, True)):
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(tf.square(call(x, z)))
        gradients = tape.gradient(value, [variable.value for variable in curve])
        assert [gradient is not None for gradient in gradients] == [moves] * 4


@pytest.mark.slow
def test_it_learns_how_exposures_vary_from_images_that_are_not_pairs():
    """Content differs in brightness by itself; of the poor images half are 0.4 lighter or darker at random."""
    rng = np.random.default_rng(0)

    def content(n):
        return (images(n, seed=rng.integers(2**31)) * 0.6 + rng.normal(0, 0.1, (n, 1, 1, 1))).astype("float32")

    good, poor = content(400), content(400)
    poor = np.clip(poor + rng.choice([-0.4, 0.4], (400, 1, 1, 1)), -1, 1).astype("float32")
    keras.utils.set_random_seed(0)
    layer, drawing = built(), UniformNoise(2)
    variables = [*layer.exposure_features.trainable_variables, *layer.exposure.trainable_variables]
    optimizer = Adam(3e-3)
    optimizer.build(variables)

    @tf.function
    def step(a, b):
        with tf.GradientTape() as tape:
            loss = losses.tone_loss(a, layer.exposed(b, drawing(b, training=True)))
        optimizer.apply(tape.gradient(loss, [variable.value for variable in variables]), variables)

    for _ in range(600):
        step(poor[rng.integers(400, size=4)], good[rng.integers(400, size=4)])
    shifts = np.mean(layer.exposed(good, noise(400)) - good, axis=(1, 2, 3))
    assert 0.25 < shifts.std() < 0.5
    assert abs(shifts.mean()) < 0.15
    assert abs(np.corrcoef(shifts, good.mean(axis=(1, 2, 3)))[0, 1]) < 0.3


def test_a_step_has_the_term_of_tone_and_the_model_keeps_its_curve(tmp_path):
    model = R2CGAN(
        q=1,
        filters=2,
        channels=1,
        image_size=16,
        pool_size=0,
        skip="tone_curve",
        noise_channels=2,
        drawn_tone=True,
    )
    model.compile(Adam(0.01), Adam(0.01), LossWeights())
    labels = np.eye(2, dtype="float32")[[0, 1]]
    a, b = images(2, 16, seed=1), images(2, 16, seed=2)
    drawn = [model.noise(b)] * 3
    total, terms, *_ = model.generator_step(a, labels, b, labels, drawn)
    curve = next(layer for layer in model.degrader.layers if isinstance(layer, DrawnToneCurve))
    assert float(terms["tone_b2a"]) == pytest.approx(float(losses.tone_loss(a, curve.exposed(b, drawn[0]))), rel=1e-5)
    assert float(total) == pytest.approx(
        float(losses.generator_loss({**terms, "tone_b2a": 0.0}, LossWeights()) + terms["tone_b2a"]), rel=1e-5
    )
    assert set(model.train_step(((a, labels), (b, labels)))) == {*METRICS, "tone_b2a"}
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.degrade(b, drawn[0])[0], model.degrade(b, drawn[0])[0])


@pytest.mark.parametrize("arguments", [{"skip": "tone_curve"}, {"noise_channels": 2}])
def test_it_needs_a_curve_and_noise(arguments):
    with pytest.raises(ValueError, match="drawn_tone needs a skip with a tone curve, and noise_channels"):
        build_generator(q=1, filters=2, drawn_tone=True, **arguments)
