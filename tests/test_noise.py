"""The noise that a degrader makes many poor images of one good image with."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import tiny_config
from test_model import batch, tiny
from test_training import assert_same_weights, history, weights_file

from r2c_gan.layers.noise import UniformNoise
from r2c_gan.layers.tone_curve import ToneCurve
from r2c_gan.models import checkpoints
from r2c_gan.models.networks import METHODS, build_generator
from r2c_gan.restoration.restorer import Restorer
from r2c_gan.training.trainer import train

IMAGES = np.zeros((4, 32, 24, 3), "float32")


def make(channels=2, seed=0):
    noise = UniformNoise(channels, seed)
    noise.build()
    return noise


def test_it_is_uniform_and_independent():
    drawn = np.concatenate([make(seed=seed)(IMAGES, training=True).numpy() for seed in range(4)])
    assert drawn.shape == (16, 32, 24, 2) and drawn.dtype == "float32"
    n = drawn.size
    assert drawn.min() >= -1 and drawn.max() < 1
    assert np.mean(drawn) == pytest.approx(0, abs=4 / np.sqrt(3 * n))
    counts, _ = np.histogram(drawn, np.linspace(-1, 1, 11))
    assert np.sum((counts - n / 10) ** 2 / (n / 10)) < 27.9  # the 99.9% point of chi-squared with 9 degrees of freedom
    for other in (drawn[:, 1:], drawn[:, :, 1:], drawn[..., ::-1]):
        near = drawn[: len(other), : other.shape[1], : other.shape[2]]
        assert np.mean(near * other) == pytest.approx(0, abs=5 / 3 / np.sqrt(other.size / 2))


def test_every_draw_is_another_and_a_restored_layer_goes_on():
    noise = make()
    draws = [noise(IMAGES, training=True).numpy() for _ in range(3)]
    assert all(np.abs(one - other).max() > 0.5 for one, other in ((draws[0], draws[1]), (draws[1], draws[2])))
    restored = make()
    restored.drawn.assign(2)
    np.testing.assert_array_equal(restored(IMAGES, training=True), draws[2])
    assert np.abs(make(seed=1)(IMAGES, training=True) - draws[0]).max() > 0.5


def test_outside_of_training_it_is_always_the_first_draw():
    noise = make()
    first = noise(IMAGES, training=True)
    for _ in range(2):
        np.testing.assert_array_equal(noise(IMAGES), first)
    assert int(noise.drawn.numpy()) == 1


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_graph_draws_the_same(jit_compile):
    eager, traced = make(), make()
    call = tf.function(lambda images: traced(images, training=True), jit_compile=jit_compile)
    for _ in range(3):
        np.testing.assert_array_equal(call(IMAGES), eager(IMAGES, training=True))


@pytest.mark.parametrize("channels", [0, 1.5, -1])
def test_bad_channels_are_refused(channels):
    with pytest.raises(ValueError, match="channels"):
        UniformNoise(channels)


def test_the_tone_curve_and_its_noise_are_their_formula():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (3, 8, 6, 1)).astype("float32")
    noise = rng.uniform(-1, 1, (3, 8, 6, 2)).astype("float32")
    layer = ToneCurve(order=2, hidden=4)
    np.testing.assert_array_equal(layer(x, noise), x)  # it starts as the identity, whatever the noise
    weights = [rng.normal(0, 0.5, weight.shape) for weight in layer.get_weights()]
    layer.set_weights(weights)
    moments = [np.mean(x.astype("float64") ** p, axis=(1, 2, 3)) for p in (1, 2, 3)]
    means = noise.astype("float64").sum((1, 2)) / np.sqrt(8 * 6 / 3)  # the variance of a uniform value is 1/3
    features = np.tanh(np.column_stack([*moments, means]) @ weights[0] + weights[1])
    curves = (features @ weights[2] + weights[3]).reshape(3, 3, 3)  # image; curve and channels of noise; power
    powers = np.stack([x.astype("float64") ** p for p in range(3)])
    curve, *strengths = (np.einsum("np,pnhwc->nhwc", curves[:, part], powers) for part in range(3))
    expected = curve + sum(noise[..., k : k + 1] * strength for k, strength in enumerate(strengths))
    np.testing.assert_allclose(layer(x, noise), expected, atol=1e-5)


@pytest.mark.parametrize("skip", ["none", "tone_curve"])
@pytest.mark.parametrize("method", METHODS)
def test_a_degrader_makes_many_images_of_one(method, skip):
    keras.utils.set_random_seed(0)
    network = build_generator(method, q=2, filters=3, channels=1, skip=skip, noise_channels=2)
    for weight in network.trainable_variables:
        weight.assign(weight + 0.1 * keras.random.normal(weight.shape, seed=1))
    image = tf.repeat(batch(n=1, channels=1)[0][0], 2, axis=0)
    noise = make()(image)
    made, probabilities = network([image, noise])
    assert made.shape == image.shape and probabilities.shape == (2, 2)
    assert np.abs(made[0] - made[1]).mean() > 1e-3
    np.testing.assert_allclose(network([image[:1], noise[1:]])[0], made[1:], atol=1e-5)


def test_a_step_gives_each_pass_its_noise():
    """The terms of a step, recomputed pass by pass from the same noise."""
    model = tiny(noise_channels=2)
    model.compile()
    (a, label_a), (b, label_b) = ((tf.constant(images), labels) for images, labels in batch(0, n=2))
    noise_b, noise_a, noise_a2b = noise = [make(seed=seed)(a) for seed in range(3)]
    _, terms, a2b, b2a, _ = model.generator_step(a, label_a, b, label_b, noise)
    np.testing.assert_allclose(b2a, model.degrader([b, noise_b])[0], atol=1e-5)
    for name, target, made in (
        ("identity_a", a, model.degrader([a, noise_a])[0]),
        ("cycle_a", a, model.degrader([a2b, noise_a2b])[0]),
        ("cycle_b", b, model.restorer(b2a)[0]),
    ):
        assert float(terms[name]) == pytest.approx(float(np.mean(np.abs(target - made))), rel=1e-4), name
    np.testing.assert_array_equal(model.degrade(b)[0], model.degrader([b, model.noise(b)])[0])


def test_steps_draw_three_times_each_and_judging_draws_nothing():
    model = tiny(noise_channels=1)
    model.compile()
    for step in range(1, 3):
        model.train_step(batch(step))
        assert int(model.noise.drawn.numpy()) == 3 * step
    first = model.test_step(batch(0))
    model.reset_metrics()
    second = model.test_step(batch(0))
    assert int(model.noise.drawn.numpy()) == 6
    assert all(float(first[name]) > 0 for name in ("cycle_a", "cycle_b")) and second.keys() == first.keys()


@pytest.mark.slow
def test_a_run_that_is_resumed_draws_as_if_it_had_not_been(datasets_dir, tmp_path):
    settings = {"noise_channels": 2, "cycle_a_loss_weight": 0.0, "identity_a_loss_weight": 0.0, "epochs": 2}
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for run in (whole, resumed):
        train(tiny_config(datasets_dir, run, **settings))
    for path in (resumed / "checkpoints").glob("epoch-00002.*"):
        path.unlink()
    weights_before = weights_file(resumed, 1).read_bytes()
    train(tiny_config(datasets_dir, resumed, **settings))
    assert weights_file(resumed, 1).read_bytes() == weights_before
    assert_same_weights(weights_file(resumed, 2), weights_file(whole, 2))
    assert history(resumed) == history(whole)
    assert checkpoints.read_config(whole)["model"]["noise_channels"] == 2
    restored = Restorer.load(whole)(np.zeros((1, 32, 32, 3))).passes[0]
    assert np.isfinite(restored).all()
