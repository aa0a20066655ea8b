"""The networks that see the whole film: their layers against formulas and other libraries, their size, their tiles."""

import importlib.util
import os
import subprocess
import sys
import textwrap

import cv2
import keras
import numpy as np
import pytest
from PIL import Image

from experiments.benchmarks import flops
from r2c_gan.layers.film import ContextToneCurve, Enlarge, FilmView, PixelShuffle, resample
from r2c_gan.models import context_network
from r2c_gan.models.model import R2CGAN
from r2c_gan.models.networks import build_generator
from r2c_gan.options.network import CONTEXT_METHODS, GENERATOR_STRIDE
from r2c_gan.restoration import saved_models
from r2c_gan.serving.export import export_saved_model


def random(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype("float32")


def randomise(network, seed=1):
    rng = np.random.default_rng(seed)
    for weight in network.weights:
        weight.assign(rng.normal(0, 0.3 / np.sqrt(max(np.prod(weight.shape[:-1]), 1)), weight.shape))
    return network


def test_enlarging_is_opencvs():
    x = random(2, 5, 7, 3)
    expected = [cv2.resize(image, (19, 13), interpolation=cv2.INTER_LINEAR) for image in x]
    np.testing.assert_allclose(resample(x, 13, 19), expected, atol=1e-5)
    np.testing.assert_allclose(Enlarge()(x, np.zeros((2, 13, 19, 1), "float32")), expected, atol=1e-5)


def test_reducing_is_pillows():
    x = random(2, 23, 30, 1)
    expected = [Image.fromarray(image[..., 0]).resize((8, 6), Image.Resampling.BILINEAR) for image in x]
    np.testing.assert_allclose(resample(x, 6, 8)[..., 0], np.stack(expected), atol=1e-4)


def test_pixel_shuffle_puts_four_channels_side_by_side():
    x = random(1, 2, 3, 8)
    expected = np.zeros((1, 4, 6, 2), "float32")
    for row, column in np.ndindex(4, 6):
        first = 2 * (2 * (row % 2) + column % 2)
        expected[0, row, column] = x[0, row // 2, column // 2, first : first + 2]
    np.testing.assert_array_equal(PixelShuffle()(x), expected)


def test_tone_curve_is_its_formula():
    layer = ContextToneCurve(order=2, hidden=5)
    x, pooled, local = random(2, 8, 12, 1), random(2, 3, seed=1), random(2, 1, 1, 3, seed=2)
    np.testing.assert_allclose(layer(x, pooled, 0 * local), x, atol=1e-6)  # at the start
    randomise(layer)
    kernel_1, bias_1, kernel_2, bias_2 = layer.get_weights()
    for image, seen, place, result in zip(x, pooled, local, np.asarray(layer(x, pooled, local)), strict=True):
        means = image.reshape(2, 4, 3, 4).mean((1, 3))
        tone = [*(np.mean(image**power) for power in (1, 2, 3)), means.min(), means.max(), *seen]
        c = np.tanh(np.array(tone) @ kernel_1 + bias_1) @ kernel_2 + bias_2 + place[0, 0]
        np.testing.assert_allclose(result, c[0] + c[1] * image + c[2] * image**2, atol=1e-5)


def test_view_has_the_gray_values_and_the_roughness():
    ramp = np.tile(np.linspace(-1, 1, 40, dtype="float32")[:, None], (1, 24))
    noisy = ramp + 0.3 * random(40, 24)
    view = np.asarray(FilmView(size=8)(np.stack([ramp, noisy])[..., None]))
    assert view.shape == (2, 8, 8, 2)
    expected = np.tile(np.linspace(-1, 1, 40).reshape(8, 5).mean(1)[1:-1, None], (1, 8))
    np.testing.assert_allclose(view[0, 1:-1, :, 0], expected, atol=0.02)
    assert np.abs(view[0, 1:-1, :, 1]).max() < 1e-4  # a plane is smooth
    assert view[1, ..., 1].min() > 0.02


@pytest.mark.parametrize("method", CONTEXT_METHODS)
def test_it_starts_as_the_identity_and_takes_any_size(method):
    network = build_generator(method, q=2, channels=1, filters=8)
    shapes = ((1, 64, 64, 1), (2, 36, 100, 1))
    for shape in shapes:
        x = random(*shape)
        np.testing.assert_array_equal(network(x)[0], x)
    randomise(network)
    for shape in shapes:
        restored, probabilities = network(3 * random(*shape))
        assert restored.shape == shape and np.abs(restored).max() <= 1
        np.testing.assert_allclose(np.sum(probabilities, axis=1), 1, atol=1e-5)


def test_order_1_has_the_weights_of_the_convolutional_twin():
    one, twin = (build_generator(method, q=1, channels=1, filters=8) for method in CONTEXT_METHODS)
    assert [weight.shape for weight in one.weights] == [weight.shape for weight in twin.weights]
    three = build_generator("operational-context", q=3, channels=1, filters=8)
    kernels = [weight.shape[-2] for weight in three.weights if len(weight.shape) == 4]
    assert kernels == [3 * weight.shape[-2] for weight in one.weights if len(weight.shape) == 4]


def test_it_costs_no_more_than_it_may():
    network = build_generator("operational-context", channels=1)
    paper = build_generator("operational", channels=1)
    assert network.count_params() <= 4_000_000
    assert sum(flops.forward_flops(network, 128, 128).values()) <= 2 * sum(
        flops.forward_flops(paper, 128, 128).values()
    )


def test_detail_of_a_place_is_that_of_what_lies_around_it():
    network = randomise(build_generator("operational-context", q=2, channels=1, filters=8))
    for layer in network.layers:
        if layer.name.startswith("enlarge"):  # what the context gives comes from the whole film
            layer.call = lambda inputs, like: 0 * like
    detail = keras.Model(network.input, network.get_layer("detail").output)
    film = random(1, 64, 256, 1)
    other = film.copy()
    other[:, :, 128 + context_network.DETAIL_HALO :] *= -1
    before, after = np.asarray(detail(film)), np.asarray(detail(other))
    np.testing.assert_allclose(before[:, :, :128], after[:, :, :128], atol=1e-6)
    assert np.abs(before - after).max() > 1e-3


@pytest.mark.slow
def test_as_a_saved_model(tmp_path):
    model = R2CGAN(method="operational-context", q=2, channels=1, filters=8, image_size=32, pool_size=0)
    randomise(model.restorer)
    export_saved_model(model, tmp_path / "exported")
    loaded, record = saved_models.load(tmp_path / "exported")
    assert record["stride"] == GENERATOR_STRIDE["operational-context"]
    x = random(2, 40, 48, 1)
    outputs = loaded.signatures["serving_default"](image=x)
    restored, probabilities = model.restorer(x)
    np.testing.assert_allclose(outputs["restored"], restored, atol=1e-5)
    np.testing.assert_allclose(outputs["probabilities"], probabilities, atol=1e-5)


def test_half_precision_is_near():
    networks = [
        build_generator("operational-context", q=2, channels=1, filters=8, dtype=dtype)
        for dtype in ("float32", "mixed_bfloat16")
    ]
    randomise(networks[0])
    networks[1].set_weights(networks[0].get_weights())
    (one, _), (other, _) = (network(random(1, 64, 64, 1)) for network in networks)
    assert other.dtype == "float32"
    np.testing.assert_allclose(one, other, atol=0.05)


def test_as_under_jax(tmp_path):
    python = os.environ.get("R2C_GAN_JAX_PYTHON") or (sys.executable if importlib.util.find_spec("jax") else None)
    if python is None:
        pytest.skip("JAX is not installed; see `make test-jax`")
    network = randomise(build_generator("operational-context", q=2, channels=1, filters=8))
    film = random(1, 36, 100, 1)
    np.savez(tmp_path / "given.npz", film, *network.get_weights())
    code = """
        import sys
        import numpy as np
        from r2c_gan.models.networks import build_generator

        film, *weights = np.load(sys.argv[1]).values()
        network = build_generator("operational-context", q=2, channels=1, filters=8)
        network.set_weights(weights)
        np.savez(sys.argv[2], *map(np.asarray, network.predict_on_batch(film)))
    """
    command = [python, "-c", textwrap.dedent(code), tmp_path / "given.npz", tmp_path / "made.npz"]
    subprocess.run(command, check=True, env={**os.environ, "KERAS_BACKEND": "jax"})
    made = np.load(tmp_path / "made.npz").values()
    for ours, theirs in zip(network(film), made, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
