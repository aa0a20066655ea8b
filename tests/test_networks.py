"""The networks against their equations in NumPy, the authors' parameter counts and their stated shapes."""

import keras
import numpy as np
import oracles
import pytest

from r2c_gan.layers.operational import OperationalConv2D, OperationalConv2DTranspose
from r2c_gan.models.networks import build_discriminator, build_generator
from r2c_gan.options.network import GENERATOR_STRIDE, METHODS, PAPER_METHODS

# Parameters of the authors' networks (method, q): (generator, discriminator).
AUTHORS_COUNTS = {
    ("operational", 1): (302_853, 136_513),
    ("operational", 2): (604_680, 272_770),
    ("operational", 3): (906_507, 409_027),
    ("operational", 5): (1_510_161, 681_541),
    ("convolutional", 1): (11_383_941, 2_765_633),
    ("convolutional-light", 1): (302_853, 136_513),
}


def random(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype("float32")


def randomise(network, seed=3):
    """Gives every weight a value that matters: biases that are not zero, scales that are not one."""
    rng = np.random.default_rng(seed)
    for weight in network.weights:
        spread = 1 / np.sqrt(np.prod(weight.shape[:-1])) if len(weight.shape) > 1 else 0.5
        weight.assign(rng.normal(0, spread, weight.shape))
    return network


def authors_arrays(network):
    """The weights as the oracle wants them: kernel and bias a power, in the order of the equations, the head last."""
    arrays, head = [], []
    for layer in network.layers:
        if isinstance(layer, OperationalConv2D | OperationalConv2DTranspose):
            axis = -1 if isinstance(layer, OperationalConv2DTranspose) else -2
            for kernel in np.split(layer.kernel.numpy(), layer.q, axis=axis):
                arrays.append(kernel)
                if layer.use_bias:
                    arrays.append(layer.bias.numpy() / layer.q)
        elif isinstance(layer, keras.layers.Dense):
            head = layer.get_weights()
        else:
            arrays += layer.get_weights()
    return arrays + head


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("method", "q"), [("operational", 1), ("operational", 3), ("convolutional-light", 2), ("convolutional", 2)]
)
def test_generator_is_its_equations(method, q, channels):
    network = randomise(build_generator(method, q, channels, filters=3))
    x = random(2, 12, 8, channels)
    arrays = authors_arrays(network)
    if method == "operational":
        image, probabilities = oracles.operational_generator(x, arrays, q)
    elif method == "convolutional-light":
        image, probabilities = oracles.light_generator(x, arrays)
    else:
        image, probabilities = oracles.convolutional_generator(x, arrays)
    restored, classes = network(x)
    np.testing.assert_allclose(restored, image, atol=1e-4)
    np.testing.assert_allclose(classes, probabilities, atol=1e-4)
    assert np.abs(image).max() > 0.1  # not a comparison of zeros
    assert np.abs(probabilities - 0.5).max() > 0.01


@pytest.mark.parametrize(
    ("method", "q"), [("operational", 1), ("operational", 3), ("convolutional-light", 2), ("convolutional", 2)]
)
def test_discriminator_is_its_equations(method, q):
    network = randomise(build_discriminator(method, q, filters=3))
    x = random(4, 24, 16, 3)
    arrays = authors_arrays(network)
    if method == "convolutional":
        logits = oracles.convolutional_discriminator(x, arrays)
    else:
        logits = oracles.shallow_discriminator(x, arrays, q if method == "operational" else 1, method == "operational")
    np.testing.assert_allclose(network(x), logits, atol=1e-4 * np.abs(logits).max())
    assert np.ptp(logits) > 0.1  # not a comparison of constants


def test_only_the_operational_discriminator_is_leaky_at_its_end():
    x = random(8, 32, 32, 3)
    for method in METHODS:
        network = randomise(build_discriminator(method, q=2, filters=4))
        last = [layer for layer in network.layers if layer.weights][-1]
        unbounded = keras.Model(network.input, last.output)(x).numpy()
        assert (unbounded < 0).any()
        expected = (
            np.where(unbounded < 0, 0.2 * unbounded, unbounded) if method.startswith("operational") else unbounded
        )
        np.testing.assert_allclose(network(x), expected, rtol=1e-5)


@pytest.mark.parametrize(("method", "q"), AUTHORS_COUNTS)
def test_parameter_counts_are_the_authors_less_the_redundant_biases(method, q):
    generator, discriminator = AUTHORS_COUNTS[method, q]
    if method == "operational":
        # q biases a layer become one. The generator's last layer (3 filters) has a bias, and the discriminator's
        # first (64) and last (1).
        generator -= (q - 1) * 3
        discriminator -= (q - 1) * (64 + 1)
    assert build_generator(method, q).count_params() == generator
    assert build_discriminator(method, q).count_params() == discriminator


@pytest.mark.parametrize("method", METHODS)
def test_any_size_that_the_stride_divides(method):
    stride = GENERATOR_STRIDE[method]
    generator, discriminator = build_generator(method, 2, 1, 2), build_discriminator(method, 2, 1, 2)
    for height, width in ((2, 2), (4, 7), (5, 3)):
        x = 5 * random(3, height * stride, width * stride, 1)  # far outside [-1, 1]
        image, probabilities = generator(x)
        assert image.shape == x.shape
        assert image.dtype == probabilities.dtype == "float32"
        assert np.abs(image).max() <= 1
        assert probabilities.shape == (3, 2)
        np.testing.assert_allclose(np.sum(probabilities, axis=-1), 1, atol=1e-6)
        assert np.min(probabilities) >= 0
    for height, width in ((8, 16), (9, 31), (17, 24)):
        logits = discriminator(random(2, height, width, 1))
        assert logits.shape == (2, -(-height // 8), -(-width // 8), 1)
        assert logits.dtype == "float32"


@pytest.mark.parametrize("method", METHODS)
def test_samples_of_a_batch_do_not_mix(method):
    x = random(3, 8, 8, 3)
    for network in (build_generator(method, 2, filters=4), build_discriminator(method, 2, filters=4)):
        whole, single = (keras.tree.flatten(network(batch)) for batch in (x, x[1:2]))
        for together, alone in zip(whole, single, strict=True):
            np.testing.assert_allclose(together[1:2], alone, atol=1e-4)


@pytest.mark.parametrize("method", PAPER_METHODS)
def test_filters_scale_the_width(method):
    def widths(network):
        return [layer.filters for layer in network.layers if hasattr(layer, "filters")]

    narrow, wide = (widths(build_generator(method, 2, channels=1, filters=filters)) for filters in (2, 6))
    assert wide[:-1] == [3 * width for width in narrow[:-1]]
    assert wide[-1] == narrow[-1] == 1  # the image's channels
    narrow, wide = (widths(build_discriminator(method, 2, filters=filters)) for filters in (2, 6))
    assert wide[:-1] == [3 * width for width in narrow[:-1]]
    assert wide[-1] == narrow[-1] == 1  # one logit a patch


def test_number_of_classes():
    probabilities = build_generator(filters=2, num_classes=4)(random(3, 8, 8, 3))[1]
    assert probabilities.shape == (3, 4)
    np.testing.assert_allclose(np.sum(probabilities, axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize("method", PAPER_METHODS)
def test_mixed_bfloat16_is_near_float32(method):
    x = random(2, 16, 16, 3)
    for build in (build_generator, build_discriminator):
        exact = build(method, 3, filters=8)
        mixed = build(method, 3, filters=8, dtype="mixed_bfloat16")
        assert {weight.dtype for weight in mixed.weights} == {"float32"}
        assert any(layer.compute_dtype == "bfloat16" for layer in mixed.layers)
        mixed.set_weights(exact.get_weights())
        for ours, reference in zip(*map(keras.tree.flatten, (mixed(x), exact(x))), strict=True):
            assert ours.dtype == "float32"
            assert np.mean(np.abs(ours - reference)) < 0.03 * np.abs(reference).max()
            assert not np.array_equal(ours, reference)
    assert keras.config.dtype_policy().name == "float32"  # left as it was


def test_order_5_starts_where_order_3_does_if_its_powers_are_divided():
    """The discriminator's features are not bounded; its first loss towards 1."""
    x = np.random.default_rng(0).uniform(-1, 1, (4, 64, 64, 1)).astype("float32")
    losses = {}
    for q, power_init in ((3, "equal"), (5, "equal"), (5, "maclaurin")):
        keras.utils.set_random_seed(0)
        network = build_discriminator("operational", q, channels=1, power_init=power_init)
        losses[q, power_init] = np.square(network(x) - 1.0).mean()
    assert losses[5, "equal"] > 20 * losses[3, "equal"]
    assert losses[5, "maclaurin"] < 2 * losses[3, "equal"]


def test_every_operational_layer_is_initialised_as_asked():
    for build in (build_generator, build_discriminator):
        layers = build(q=2, filters=4, power_init="maclaurin").layers
        assert {layer.power_init for layer in layers if hasattr(layer, "power_init")} == {"maclaurin"}


@pytest.mark.parametrize("method", METHODS)
def test_keras_file_round_trip(tmp_path, method):
    x = random(1, 8, 8, 3)
    for network in (build_generator(method, 2, filters=2), build_discriminator(method, 2, filters=2)):
        randomise(network).save(tmp_path / "network.keras")
        again = keras.saving.load_model(tmp_path / "network.keras")
        for ours, loaded in zip(*map(keras.tree.flatten, (network(x), again(x))), strict=True):
            np.testing.assert_array_equal(ours, loaded)


@pytest.mark.parametrize("build", [build_generator, build_discriminator])
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"method": "quadratic"}, "method must be one of operational"),
        ({"q": 0}, "q must"),
        ({"q": 1.5}, "q must"),
        ({"channels": 0}, "channels must"),
        ({"filters": -4}, "filters must"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(build, arguments, named):
    with pytest.raises(ValueError, match=named):
        build(**arguments)


def test_bad_number_of_classes_is_named():
    with pytest.raises(ValueError, match="num_classes must"):
        build_generator(num_classes=0)
