"""The naive implementation computes what the library computes, and taking an optimisation away changes no result."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from experiments.benchmarks import training_step as benchmark
from experiments.benchmarks.baseline import HostPool, NaiveImplementation
from r2c_gan.models.model import R2CGAN
from r2c_gan.models.reference_weights import assign_reference_weights

METHODS = {"operational": 3, "convolutional-light": 1, "convolutional": 1}
EACH = ["operational", "convolutional-light", pytest.param("convolutional", marks=pytest.mark.slow)]


def batch(n=1, size=16):
    rng = np.random.default_rng(0)
    images = [tf.constant(rng.uniform(-1, 1, (n, size, size, 3)), tf.float32) for _ in range(2)]
    labels = [tf.one_hot(np.arange(n) % 2, 2), tf.one_hot((np.arange(n) + 1) % 2, 2)]
    return images[0], labels[0], images[1], labels[1]


@pytest.fixture
def eagerly():
    """A graph takes long to trace, a minute for the deep network, and would be run once or three times."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(params=EACH)
def pair(request, eagerly):
    """Both implementations with the same weights."""
    q = METHODS[request.param]
    naive = NaiveImplementation(request.param, q, filters=4)
    model = R2CGAN(request.param, q, filters=4, image_size=16)
    model.compile()
    networks = {"restorer": naive.g_a2b, "degrader": naive.g_b2a}
    networks |= {"discriminator_a": naive.d_a, "discriminator_b": naive.d_b}
    for name, network in networks.items():
        weights = [weight.numpy() for weight in network.weights]
        assign_reference_weights(getattr(model, name), weights)
    return naive, model


def test_networks_and_losses_are_the_same(pair):
    naive, model = pair
    image_a, label_a, image_b, label_b = batch()
    np.testing.assert_allclose(model.restorer(image_a)[0], naive.g_a2b(image_a)[0], atol=2e-5)
    np.testing.assert_allclose(model.discriminator_b(image_b), naive.d_b(image_b), atol=2e-5)
    expected, *fakes = naive.train_generators(image_a, label_a, image_b, label_b)
    assert float(model.generator_step(image_a, label_a, image_b, label_b)[0]) == pytest.approx(
        float(expected), rel=1e-5
    )
    expected = naive.train_discriminators(image_a, image_b, fakes[1], fakes[0])
    assert float(model.discriminator_step(image_a, image_b, fakes[1], fakes[0])[0]) == pytest.approx(
        float(expected), rel=1e-5
    )


def test_the_host_pool_fills_then_swaps():
    pool = HostPool(size=2)
    images = np.arange(40.0)
    returned = np.concatenate([pool(images[i : i + 1]) for i in range(40)])
    assert list(returned[:2]) == [0, 1]
    swapped = returned[2:] != images[2:]
    assert 0.2 < swapped.mean() < 0.8
    assert set(returned) <= set(images)


@pytest.mark.slow
@pytest.mark.parametrize("optimisation", benchmark.OPTIMISATIONS)
def test_an_optimisation_taken_away_leaves_the_result(optimisation, eagerly):
    upsampling = "resize" if optimisation == benchmark.ENLARGING else "transposed"
    loss, weights = three_steps(upsampling)
    with benchmark.without(optimisation, batch=2):
        loss_without, weights_without = three_steps.__wrapped__(upsampling)
    assert loss_without == pytest.approx(loss, rel=1e-4)
    np.testing.assert_allclose(weights_without, weights, atol=1e-4)


@functools.cache
def three_steps(upsampling):
    """The generators' last loss, and first weights of a discriminator afterwards."""
    image_a, label_a, image_b, label_b = batch(n=2)
    keras.utils.set_random_seed(0)
    model = R2CGAN(q=3, filters=4, image_size=16, pool_size=2, upsampling=upsampling)
    model.compile()
    for _ in range(3):
        losses = model.train_step(((image_a, label_a), (image_b, label_b)))
    return float(losses["generator_loss"]), model.discriminator_a.get_weights()[0]
