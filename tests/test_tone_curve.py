"""The tone curve against its formula in NumPy, and the generators that use it."""

import keras
import numpy as np
import pytest

from r2c_gan.layers.tone_curve import ToneCurve
from r2c_gan.models.networks import METHODS, build_generator


def random(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype("float32")


def randomised(layer, seed=1):
    rng = np.random.default_rng(seed)
    layer.set_weights([rng.normal(0, 0.5, weight.shape) for weight in layer.weights])
    return layer


def curve_of(image, weights, order, window=0):
    """The formula, one image whose sides the window divides, in float64."""
    kernel_1, bias_1, kernel_2, bias_2 = weights
    tone = [np.mean(image.astype("float64") ** p) for p in range(1, order + 2)]
    if window:
        height, width, channels = image.shape
        means = image.reshape(height // window, window, width // window, window, channels).mean((1, 3), "float64")
        tone += [means.min(), means.max()]
    coefficients = np.tanh(np.array(tone) @ kernel_1 + bias_1) @ kernel_2 + bias_2
    return sum(c * image.astype("float64") ** p for p, c in enumerate(coefficients))


@pytest.mark.parametrize(("order", "window"), [(1, 0), (3, 0), (4, 0), (3, 2)])
def test_it_is_its_formula(order, window):
    layer = ToneCurve(order, hidden=5, window=window)
    x = random(3, 6, 8, 2) * np.array([1, 0.3, 0.7], "float32")[:, None, None, None]
    layer(x)
    randomised(layer)
    expected = np.stack([curve_of(image, layer.get_weights(), order, window) for image in x])
    np.testing.assert_allclose(layer(x), expected, atol=1e-5)
    assert np.abs(expected - x).max() > 0.1


def test_it_starts_as_the_identity():
    x = random(2, 4, 4, 3)
    np.testing.assert_array_equal(ToneCurve()(x), x)


def test_an_image_alone_and_in_a_batch():
    layer = ToneCurve()
    x = random(3, 4, 4, 1) * np.array([0.2, 0.5, 1], "float32")[:, None, None, None]
    layer(x)
    randomised(layer)
    np.testing.assert_allclose(layer(x)[1:2], layer(x[1:2]), atol=1e-6)


def test_it_can_learn_a_gamma_that_depends_on_the_image():
    """Dark images are to be lightened, light ones to be left alone: what instance normalisation cannot know."""
    rng = np.random.default_rng(0)
    scene = rng.uniform(0, 1, (64, 8, 8, 1)).astype("float32")
    dark = rng.integers(2, size=64).astype(bool)
    poor = np.where(dark[:, None, None, None], scene**2, scene) * 2 - 1
    clean = scene * 2 - 1
    keras.utils.set_random_seed(0)
    image = keras.Input((None, None, 1))
    model = keras.Model(image, ToneCurve(order=3)(image))
    model.compile(keras.optimizers.Adam(0.01), "mse")
    before = np.mean((poor - clean) ** 2)
    model.fit(poor, clean, epochs=150, batch_size=32, verbose=0)
    assert np.mean((model.predict(poor, verbose=0) - clean) ** 2) < before / 10


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("skip", ["tone_curve"])
@pytest.mark.parametrize("upsampling", ["transposed", "resize"])
def test_a_generator_with_the_curve_starts_as_the_identity(method, skip, upsampling):
    network = build_generator(method, q=2, filters=4, upsampling=upsampling, skip=skip)
    x = random(2, 16, 24, 3)
    image, probabilities = network(x)
    np.testing.assert_allclose(image, x, atol=1e-6)
    assert probabilities.shape == (2, 2)


def test_what_leaves_a_generator_stays_within_the_limits():
    network = build_generator(q=2, filters=4, skip="tone_curve")
    randomised(network)
    image = network(3 * random(2, 16, 16, 3))[0].numpy()
    assert np.abs(image).max() == 1
    assert len(np.unique(image)) > 100


@pytest.mark.parametrize("method", METHODS)
def test_upsampling_changes_no_weight(method):
    """So that either can be tried from the same weights; transposed kernels have their channel axes swapped."""
    paper, resized = (build_generator(method, 2, filters=4, upsampling=name) for name in ("transposed", "resize"))
    assert paper.count_params() == resized.count_params()
    x = random(1, 16, 8, 3)
    assert resized(x)[0].shape == paper(x)[0].shape == x.shape


def test_resizing_leaves_no_checkerboard():
    """A constant image: inside, away from the borders, resizing gives one value, the strided layer alternates."""
    spread = {}
    for upsampling in ("transposed", "resize"):
        network = build_generator(q=2, filters=4, upsampling=upsampling)
        randomised(network)
        restored = network(np.full((1, 32, 32, 3), 0.3, "float32"))[0].numpy()[0, 12:20, 12:20]
        spread[upsampling] = np.ptp(restored, axis=(0, 1)).max()
    assert spread["resize"] < 1e-4 < 1e-2 < spread["transposed"]


def test_the_range_tells_a_lightened_image_from_a_light_one():
    """Light images keep a dark corner, lightened ones have none; their moments are the same."""
    rng = np.random.default_rng(0)
    scene = rng.uniform(-0.8, 0, (64, 16, 16, 1)).astype("float32")
    lightened = rng.integers(2, size=64).astype(bool)[:, None, None, None]
    clean = np.where(lightened, scene, scene + 0.4)
    clean[:, :2, :2] = -1
    poor = np.where(lightened, clean + 0.4, clean)
    errors = {}
    for window in (0, 2):
        keras.utils.set_random_seed(0)
        image = keras.Input((None, None, 1))
        model = keras.Model(image, ToneCurve(window=window)(image))
        model.compile(keras.optimizers.Adam(0.03), "mse")
        model.fit(poor, clean, epochs=80, batch_size=64, verbose=0)
        errors[window] = np.mean((model.predict(poor, verbose=0) - clean) ** 2)
    assert errors[2] < errors[0] / 4


def test_unknown_options_are_named():
    with pytest.raises(ValueError, match="upsampling must be one of transposed, resize"):
        build_generator(upsampling="bicubic")
    with pytest.raises(ValueError, match="skip must be one of none, tone_curve"):
        build_generator(skip="long")
    with pytest.raises(ValueError, match="order must be"):
        ToneCurve(order=0)
    with pytest.raises(ValueError, match="window must be an integer of at least 0"):
        ToneCurve(window=-1)


def test_the_layer_survives_serialisation(tmp_path):
    network = build_generator(q=2, filters=4, upsampling="resize", skip="tone_curve")
    randomised(network)
    network.save(tmp_path / "generator.keras")
    again = keras.saving.load_model(tmp_path / "generator.keras")
    x = random(2, 16, 16, 3)
    np.testing.assert_allclose(again(x)[0], network(x)[0], atol=1e-6)
