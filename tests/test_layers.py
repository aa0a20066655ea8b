"""Operational layers and padding against the formula, against Keras, and as citizens of Keras."""

import itertools

import keras
import numpy as np
import oracles
import pytest
import tensorflow as tf

from r2c_gan.layers.operational import (
    GlorotPerPower,
    OperationalConv2D,
    OperationalConv2DTranspose,
    ReflectionPadding2D,
    instance_normalization,
    powers,
)

BOTH = [OperationalConv2D, OperationalConv2DTranspose]


def random(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype("float32")


def built(layer, channels=3, seed=1):
    """The layer with random weights, a bias that is not zero among them."""
    layer.build((None, None, None, channels))
    layer.set_weights([random(*weight.shape, seed=seed + index) for index, weight in enumerate(layer.weights)])
    return layer


def kernels_of(layer):
    """The kernel of each power, cut out of the layer's one variable."""
    axis = -1 if isinstance(layer, OperationalConv2DTranspose) else -2
    return np.split(layer.kernel.numpy(), layer.q, axis=axis)


def oracle(layer, x):
    convolution = oracles.conv_transpose if isinstance(layer, OperationalConv2DTranspose) else oracles.conv
    return oracles.operational(
        x,
        kernels_of(layer),
        layer.bias.numpy() if layer.use_bias else 0.0,
        convolution,
        strides=layer.strides,
        padding=layer.padding,
        dilation=layer.dilation_rate,
    )


# --- the formula -----------------------------------------------------------------------------------------------------

CONVOLUTIONS = [
    {"kernel_size": 3},
    {"kernel_size": (2, 3), "padding": "same"},
    {"kernel_size": 4, "padding": "same", "strides": 2},
    {"kernel_size": 4, "padding": "same", "strides": (4, 3)},
    {"kernel_size": 3, "padding": "reflect"},
    {"kernel_size": (4, 2), "padding": "reflect", "strides": (1, 2)},
    {"kernel_size": 3, "padding": "reflect", "dilation_rate": 2},
    {"kernel_size": 3, "padding": "same", "dilation_rate": (2, 1), "use_bias": False},
    {"kernel_size": 2, "strides": 3},
    {"kernel_size": 1, "strides": 2, "padding": "same"},
]
TRANSPOSED = [
    {"kernel_size": 3},
    {"kernel_size": 3, "strides": 2, "padding": "same"},
    {"kernel_size": (4, 2), "strides": 2, "padding": "same"},
    {"kernel_size": (2, 3), "strides": (3, 1)},
    {"kernel_size": 2, "strides": 3, "padding": "same"},
    {"kernel_size": 3, "padding": "same", "dilation_rate": 2, "use_bias": False},
]


@pytest.mark.parametrize("form", ["concatenated", "summed"])
@pytest.mark.parametrize("q", [1, 2, 3, 5])
@pytest.mark.parametrize("arguments", CONVOLUTIONS, ids=str)
def test_convolution_is_the_formula(arguments, q, form):
    layer = built(OperationalConv2D(4, q=q, form=form, **arguments))
    x = random(2, 7, 10, 3)  # an odd and an even side
    np.testing.assert_allclose(layer(x), oracle(layer, x), atol=2e-5)


@pytest.mark.parametrize("form", ["concatenated", "summed"])
@pytest.mark.parametrize("q", [1, 2, 3, 5])
@pytest.mark.parametrize("arguments", TRANSPOSED, ids=str)
def test_transposed_convolution_is_the_formula(arguments, q, form):
    layer = built(OperationalConv2DTranspose(4, q=q, form=form, **arguments))
    x = random(2, 5, 4, 3)
    np.testing.assert_allclose(layer(x), oracle(layer, x), atol=2e-5)


def test_polynomial_of_one_pixel_by_hand():
    layer = OperationalConv2D(1, 1, q=3)
    layer.build((None, None, None, 1))
    layer.set_weights([np.array([0.5, -2.0, 3.0]).reshape(1, 1, 3, 1), np.array([0.25])])
    x = np.array([-1.0, -0.5, 0.0, 2.0]).reshape(1, 2, 2, 1)
    # 0.25 + 0.5 x - 2 x^2 + 3 x^3
    np.testing.assert_allclose(np.ravel(layer(x)), [-5.25, -0.875, 0.25, 17.25], rtol=1e-6)


def test_activation_follows_the_bias():
    layer = built(OperationalConv2D(4, 3, activation="tanh"))
    x = random(1, 5, 5, 3)
    np.testing.assert_allclose(layer(x), np.tanh(oracle(layer, x)), atol=1e-5)


def test_powers_of_negative_numbers():
    x = np.array([-1.5, -0.3, 0.0, 0.7], "float64")
    for p, term in enumerate(powers(x, 5), 1):
        np.testing.assert_allclose(term, x**p, rtol=1e-14)


@pytest.mark.parametrize("arguments", [a for a in CONVOLUTIONS if a.get("padding") != "reflect"], ids=str)
def test_q_1_is_conv2d(arguments):
    ours = built(OperationalConv2D(4, q=1, **arguments))
    theirs = keras.layers.Conv2D(4, **arguments)
    theirs.build((None, None, None, 3))
    theirs.set_weights(ours.get_weights())
    x = random(2, 9, 8, 3)
    np.testing.assert_allclose(ours(x), theirs(x), atol=1e-6)


@pytest.mark.parametrize("arguments", TRANSPOSED, ids=str)
def test_q_1_is_conv2d_transpose(arguments):
    ours = built(OperationalConv2DTranspose(4, q=1, **arguments))
    theirs = keras.layers.Conv2DTranspose(4, **arguments)
    theirs.build((None, None, None, 3))
    theirs.set_weights(ours.get_weights())
    x = random(2, 5, 4, 3)
    np.testing.assert_allclose(ours(x), theirs(x), atol=1e-6)


@pytest.mark.parametrize("channels", [3, 40])
@pytest.mark.parametrize("kind", BOTH)
def test_all_forms_agree_and_share_their_weights(kind, channels):
    layers = [
        built(kind(4, 3, q=3, strides=2, padding="same", form=form), channels)
        for form in ("concatenated", "summed", "auto")
    ]
    x = random(2, 6, 6, channels)
    concatenated, summed, auto = (layer(x) for layer in layers)
    np.testing.assert_allclose(concatenated, summed, atol=1e-4)
    np.testing.assert_allclose(auto, summed, atol=1e-4)
    assert len({tuple(layer.kernel.shape) for layer in layers}) == 1


# --- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["concatenated", "summed"])
@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (OperationalConv2D, {"padding": "same", "strides": 2}),
        (OperationalConv2D, {"padding": "reflect"}),
        (OperationalConv2DTranspose, {"padding": "same", "strides": 2}),
    ],
    ids=str,
)
def test_gradients_are_those_of_finite_differences(kind, arguments, form):
    layer = built(kind(2, 3, q=3, dtype="float64", form=form, **arguments), channels=2)
    rng = np.random.default_rng(5)
    x = tf.Variable(rng.uniform(-1, 1, (2, 5, 4, 2)))
    weights = rng.normal(size=layer(x).shape)

    def loss():
        return tf.reduce_sum(weights * layer(x))

    variables = [x, layer.kernel.value, layer.bias.value]
    with tf.GradientTape() as tape:
        value = loss()
    assert value.dtype == tf.float64
    step = 1e-6
    for variable, gradient in zip(variables, tape.gradient(value, variables), strict=True):
        before = variable.numpy()
        for _ in range(3):
            direction = rng.normal(size=before.shape)
            variable.assign(before + step * direction)
            up = float(loss())
            variable.assign(before - step * direction)
            down = float(loss())
            variable.assign(before)
            assert (up - down) / (2 * step) == pytest.approx(float(np.sum(gradient * direction)), rel=1e-6, abs=1e-7)


# --- initialisation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BOTH)
def test_glorot_counts_the_fan_of_one_power(kind):
    layer = kind(64, 3, q=3)
    layer.build((None, None, None, 16))
    bound = np.sqrt(6 / (3 * 3 * (16 + 64)))  # a fan with q in it would give a bound 13% lower
    for kernel in kernels_of(layer):
        assert np.abs(kernel).max() <= bound
        assert np.abs(kernel).max() > 0.98 * bound
        assert kernel.std() == pytest.approx(bound / np.sqrt(3), rel=0.03)
    np.testing.assert_array_equal(layer.bias, np.zeros(64))


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("kind", BOTH)
def test_every_power_has_a_draw_of_its_own(kind, seed):
    layer = kind(8, 3, q=4, kernel_initializer=keras.initializers.GlorotUniform(seed))
    layer.build((None, None, None, 6))
    for one, other in itertools.combinations(kernels_of(layer), 2):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.2


def test_a_seeded_initializer_repeats_and_begins_as_conv2d():
    def kernel(q):
        layer = OperationalConv2D(8, 3, q=q, kernel_initializer=keras.initializers.HeNormal(seed=3))
        layer.build((None, None, None, 6))
        return layer.kernel.numpy()

    plain = keras.layers.Conv2D(8, 3, kernel_initializer=keras.initializers.HeNormal(seed=3))
    plain.build((None, None, None, 6))
    np.testing.assert_array_equal(kernel(3), kernel(3))
    np.testing.assert_array_equal(kernel(3)[:, :, :6], plain.kernel)


def test_global_seed_decides_the_weights():
    def kernel(seed):
        keras.utils.set_random_seed(seed)
        layer = OperationalConv2D(8, 3)
        layer.build((None, None, None, 6))
        return layer.kernel.numpy()

    np.testing.assert_array_equal(kernel(1), kernel(1))
    assert not np.array_equal(kernel(1), kernel(2))


def test_initializers_that_are_no_objects():
    layer = OperationalConv2D(2, 3, q=3, kernel_initializer=lambda shape, dtype=None: keras.ops.ones(shape, dtype))
    layer.build((None, None, None, 5))
    np.testing.assert_array_equal(layer.kernel, np.ones((3, 3, 15, 2)))
    layer = OperationalConv2D(2, 3, kernel_initializer="zeros", bias_initializer=keras.initializers.Constant(0.5))
    np.testing.assert_array_equal(layer(random(1, 4, 4, 2)), np.full((1, 2, 2, 2), 0.5, "float32"))


@pytest.mark.parametrize("kind", BOTH)
def test_maclaurin_divides_the_weights_of_each_power_by_its_factorial(kind):
    drawn = {"kernel_initializer": keras.initializers.GlorotUniform(seed=5)}
    equal, divided = (kind(8, 3, q=4, power_init=power_init, **drawn) for power_init in ("equal", "maclaurin"))
    for layer in (equal, divided):
        layer.build((None, None, None, 2))
    for kernel, other, factorial in zip(kernels_of(equal), kernels_of(divided), (1, 2, 6, 24), strict=True):
        np.testing.assert_allclose(other, kernel / factorial, rtol=1e-6)
    again = kind.from_config(divided.get_config())
    again.build((None, None, None, 2))
    np.testing.assert_array_equal(again.kernel, divided.kernel)
    with pytest.raises(ValueError, match="power_init must be one of equal, maclaurin, got 'taylor'"):
        kind(8, 3, power_init="taylor")


def test_initializer_survives_serialisation():
    initializer = GlorotPerPower(3, axis=-1, seed=4)
    again = keras.initializers.deserialize(keras.initializers.serialize(initializer))
    np.testing.assert_array_equal(initializer((3, 3, 2, 9)), again((3, 3, 2, 9)))


# --- as Keras layers -------------------------------------------------------------------------------------------------


def full_arguments(kind):
    return {
        "filters": 4,
        "kernel_size": (3, 2),
        "q": 2,
        "strides": (2, 1),
        "padding": "same",
        "activation": "relu",
        "kernel_initializer": keras.initializers.HeNormal(seed=2),
        "bias_initializer": keras.initializers.Constant(0.1),
        "kernel_regularizer": keras.regularizers.L2(0.01),
        "bias_regularizer": keras.regularizers.L1(0.02),
        "activity_regularizer": keras.regularizers.L2(0.03),
        "kernel_constraint": keras.constraints.MaxNorm(2.0),
        "bias_constraint": keras.constraints.NonNeg(),
        "form": "summed",
        "name": "named",
        "trainable": False,
    }


@pytest.mark.parametrize("kind", BOTH)
def test_configuration_round_trip(kind):
    layer = kind(**full_arguments(kind))
    again = keras.layers.deserialize(keras.layers.serialize(layer))
    assert type(again) is kind
    assert again.get_config() == layer.get_config()
    assert (again.q, again.form, again.trainable, again.name) == (2, "summed", False, "named")
    assert isinstance(again.bias_constraint, keras.constraints.NonNeg)
    x = random(1, 6, 6, 3)
    np.testing.assert_array_equal(layer(x), again(x))  # the seeded initializer gives the same weights


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "float64"])
def test_keras_file_round_trip(tmp_path, dtype):
    inputs = keras.Input((None, None, 2))
    x = ReflectionPadding2D(2, dtype=dtype)(inputs)
    x = OperationalConv2D(4, 3, q=3, strides=2, activation="tanh", dtype=dtype)(x)
    x = OperationalConv2DTranspose(3, 3, q=2, strides=2, padding="same", dtype=dtype)(x)
    model = keras.Model(inputs, x)
    for index, weight in enumerate(model.weights):
        weight.assign(random(*weight.shape, seed=index))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    x = random(2, 9, 8, 2)
    np.testing.assert_array_equal(model(x), again(x))
    assert [layer.dtype_policy.name for layer in again.layers[1:]] == [dtype] * 3


@pytest.mark.parametrize("kind", BOTH)
def test_computed_shape_is_the_real_one(kind):
    paddings = ("valid", "same", "reflect") if kind is OperationalConv2D else ("valid", "same")
    checked = 0
    for kernel, stride, rate, padding in itertools.product((1, 2, 3, 4), (1, 2, 3), (1, 2), paddings):
        if stride > 1 and rate > 1:
            continue
        layer = kind(5, kernel, q=2, strides=stride, dilation_rate=rate, padding=padding)
        for size in ((7, 8), (8, 11)):
            assert layer.compute_output_shape((2, *size, 3)) == tuple(layer(random(2, *size, 3)).shape)
            checked += 1
        symbolic = layer(keras.Input((None, None, 3)))
        assert symbolic.shape == (None, None, None, 5)
    assert checked == 2 * 4 * 4 * len(paddings)


@pytest.mark.parametrize("kind", BOTH)
def test_symbolic_eager_and_compiled_calls_agree(kind):
    layer = built(kind(4, 3, q=3, padding="same", strides=2))
    x = random(2, 6, 8, 3)
    inputs = keras.Input((None, 8, 3))
    symbolic = keras.Model(inputs, layer(inputs))
    np.testing.assert_array_equal(symbolic(x), layer(x))
    np.testing.assert_allclose(tf.function(layer)(x), layer(x), atol=1e-6)
    assert symbolic.output_shape == layer.compute_output_shape((None, None, 8, 3))


@pytest.mark.parametrize("kind", BOTH)
def test_dtype_policies(kind):
    x = random(2, 6, 6, 3)
    exact = built(kind(4, 3, q=3, dtype="float64"))
    mixed = built(kind(4, 3, q=3, dtype="mixed_bfloat16"))
    for form in ("summed", "concatenated"):
        mixed = built(kind(4, 3, q=3, dtype="mixed_bfloat16", form=form))
        assert {variable.dtype for variable in mixed.weights} == {"float32"}
        assert mixed(x).dtype == tf.bfloat16
        reference = exact(x).numpy()
        assert np.abs(mixed(x).numpy().astype("float64") - reference).max() < 0.03 * np.abs(reference).max()
    assert exact(x).dtype == tf.float64
    np.testing.assert_allclose(exact(x), oracle(exact, x), atol=1e-12)


@pytest.mark.parametrize("kind", BOTH)
def test_fit_learns_a_polynomial_that_no_convolution_can(kind):
    x = random(64, 4, 4, 1)
    y = 0.3 - 0.5 * x + x**2
    losses = {}
    for q in (1, 2):
        model = keras.Sequential([keras.Input((4, 4, 1)), kind(1, 1, q=q)])
        model.compile(keras.optimizers.Adam(0.1), "mse")
        repeated = tf.data.Dataset.from_tensors((x, y)).repeat(120)
        model.fit(repeated, shuffle=False, verbose=0)
        losses[q] = float(keras.ops.mean((model(x) - y) ** 2))
    assert losses[2] < 1e-3
    assert losses[1] > 0.05  # the variance of x^2 that its linear fit leaves: 4/45


@pytest.mark.parametrize("kind", BOTH)
def test_regularizers_and_constraints_are_honoured(kind):
    arguments = full_arguments(kind)
    layer = kind(**{**arguments, "trainable": True, "activation": None})
    x = random(2, 6, 6, 3)
    y = layer(x).numpy()
    expected = [
        0.01 * np.sum(layer.kernel.numpy() ** 2),
        0.02 * np.sum(np.abs(layer.bias.numpy())),
        0.03 * np.sum(y**2) / len(x),  # Keras divides an activity penalty by the batch
    ]
    assert sorted(float(loss) for loss in layer.losses) == pytest.approx(sorted(expected), rel=1e-5)
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.apply([tf.ones(w.shape) for w in layer.trainable_variables], layer.trainable_variables)
    np.testing.assert_array_equal(layer.bias, np.zeros(4))  # 0.1 - 1 is negative
    assert np.sqrt(np.sum(layer.kernel.numpy() ** 2, axis=0)).max() <= 2.0 + 1e-5


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"filters": 0}, "filters"),
        ({"filters": 2.5}, "filters"),
        ({"kernel_size": 0}, "kernel_size"),
        ({"kernel_size": 3.0}, "kernel_size"),
        ({"kernel_size": (3, 3, 3)}, "kernel_size"),
        ({"q": 0}, "q must"),
        ({"q": 2.0}, "q must"),
        ({"strides": (1, -1)}, "strides"),
        ({"padding": "causal"}, "padding"),
        ({"dilation_rate": 0}, "dilation_rate"),
        ({"strides": 2, "dilation_rate": 2}, "strides.*dilation_rate"),
        ({"form": "fast"}, "form"),
        ({"groups": 2}, "groups"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", BOTH)
def test_bad_arguments_are_named(kind, arguments, named):
    with pytest.raises(ValueError, match=named):
        kind(**{"filters": 4, "kernel_size": 3, **arguments})


def test_a_transposed_layer_has_no_reflection():
    with pytest.raises(ValueError, match="padding must be one of valid, same"):
        OperationalConv2DTranspose(4, 3, padding="reflect")


@pytest.mark.parametrize("kind", BOTH)
def test_inputs_that_do_not_fit(kind):
    with pytest.raises(ValueError, match="number of input channels"):
        kind(4, 3).build((None, None, None, None))
    layer = built(kind(4, 3))
    with pytest.raises(ValueError, match="expected axis -1"):
        layer(random(1, 5, 5, 2))
    with pytest.raises(ValueError, match="expected ndim=4"):
        layer(random(5, 5, 3))


# --- padding and normalisation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [0, 1, 3, ((1, 2), (0, 3))])
def test_reflection_padding_is_that_of_numpy(padding):
    x = random(2, 5, 4, 3)
    sides = padding if isinstance(padding, tuple) else ((padding, padding),) * 2
    layer = ReflectionPadding2D(padding)
    np.testing.assert_array_equal(layer(x), np.pad(x, [(0, 0), *sides, (0, 0)], mode="reflect"))
    assert layer.compute_output_shape(x.shape) == tuple(layer(x).shape)
    assert layer(keras.Input((None, 4, 3))).shape == (None, None, *layer(x).shape[2:])
    again = ReflectionPadding2D.from_config(layer.get_config())
    assert again.padding == layer.padding == sides


@pytest.mark.parametrize("padding", [-1, 1.5, "same", (1, 2), ((1, 1),), ((1, 1), (1, -1))])
def test_reflection_padding_names_a_bad_argument(padding):
    with pytest.raises(ValueError, match="padding"):
        ReflectionPadding2D(padding)


def test_instance_normalization_is_the_formula():
    x = 3 * random(2, 5, 4, 3) + 1
    layer = instance_normalization()
    layer.build(x.shape)
    gamma, beta = random(3, seed=1), random(3, seed=2)
    layer.set_weights([gamma, beta])
    np.testing.assert_allclose(layer(x), oracles.instance_norm(x.astype("float64"), gamma, beta), atol=2e-6)
