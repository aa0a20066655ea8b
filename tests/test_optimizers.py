"""One bias that travels as the sum of the authors' q biases, under any optimizer; Adam with averages."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from r2c_gan.layers.operational import OperationalConv2D, OperationalConv2DTranspose
from r2c_gan.models.optimizers import Adam, step_biases_as_sums


def train(optimizer, variables, steps=7):
    """Steps along fixed random gradients."""
    rng = np.random.default_rng(0)
    optimizer.build(variables)
    for _ in range(steps):
        optimizer.apply([tf.constant(rng.normal(size=variable.shape), "float32") for variable in variables])
    return [variable.numpy() for variable in variables]


def test_without_operational_layers_it_is_adam():
    start = np.linspace(-1, 1, 6, dtype="float32")
    ours = train(Adam(0.01, beta_1=0.5), [keras.Variable(start)])
    theirs = train(keras.optimizers.Adam(0.01, beta_1=0.5), [keras.Variable(start)])
    np.testing.assert_array_equal(ours, theirs)
    assert not np.allclose(ours[0], start)


def test_defaults_are_the_authors():
    optimizer = Adam()
    assert float(optimizer.learning_rate.numpy()) == pytest.approx(2e-4)
    assert (optimizer.beta_1, optimizer.beta_2, optimizer.epsilon) == (0.5, 0.999, 1e-7)


def stepping_sums(optimizer):
    step_biases_as_sums(optimizer)
    step_biases_as_sums(optimizer)  # a second call changes nothing
    return optimizer


@pytest.mark.parametrize("make", [Adam, keras.optimizers.Adam, keras.optimizers.SGD], ids=lambda make: make.__module__)
@pytest.mark.parametrize("kind", [OperationalConv2D, OperationalConv2DTranspose])
@pytest.mark.parametrize("q", [1, 2, 5])
def test_bias_travels_q_times_as_far_and_the_kernel_once(make, kind, q):
    def travelled(optimizer):
        layer = kind(4, 3, q=q, kernel_initializer=keras.initializers.GlorotUniform(1))
        layer.build((None, None, None, 2))
        before = [variable.numpy() for variable in layer.trainable_variables]
        after = train(optimizer, layer.trainable_variables)
        return [b - a for a, b in zip(before, after, strict=True)]

    kernel, bias = travelled(stepping_sums(make(0.01)))
    plain_kernel, plain_bias = travelled(make(0.01))
    np.testing.assert_array_equal(kernel, plain_kernel)
    np.testing.assert_allclose(bias, q * plain_bias, rtol=1e-6)
    assert np.abs(plain_bias).min() > 1e-4


def test_bias_is_the_sum_of_q_biases_that_keras_adam_trains():
    """The authors' layer as they write it, q convolutions with a bias each, beside ours, for a few real steps."""
    q, rng = 3, np.random.default_rng(2)
    x = rng.uniform(-1, 1, (4, 6, 6, 2)).astype("float32")
    y = rng.uniform(-1, 1, (4, 4, 4, 5)).astype("float32")
    theirs = [keras.layers.Conv2D(5, 3) for _ in range(q)]
    for conv in theirs:
        conv.build(x.shape)
        conv.bias.assign(rng.normal(0, 0.1, 5))
    ours = OperationalConv2D(5, 3, q=q)
    ours.build(x.shape)
    ours.kernel.assign(np.concatenate([conv.kernel.numpy() for conv in theirs], axis=-2))
    ours.bias.assign(sum(conv.bias.numpy() for conv in theirs))

    def step(optimizer, variables, output):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((output() - y) ** 2)
        optimizer.apply(tape.gradient(loss, [variable.value for variable in variables]), variables)
        return float(loss)

    our_optimizer, their_optimizer = stepping_sums(Adam(0.01)), keras.optimizers.Adam(0.01, beta_1=0.5)
    their_variables = [variable for conv in theirs for variable in conv.trainable_variables]
    for _ in range(6):
        our_loss = step(our_optimizer, ours.trainable_variables, lambda: ours(x))
        their_loss = step(their_optimizer, their_variables, lambda: sum(conv(x**p) for p, conv in enumerate(theirs, 1)))
        assert our_loss == pytest.approx(their_loss, rel=1e-5)
    np.testing.assert_allclose(ours.bias, sum(conv.bias.numpy() for conv in theirs), atol=2e-5)
    np.testing.assert_allclose(
        ours.kernel, np.concatenate([conv.kernel.numpy() for conv in theirs], axis=-2), atol=2e-5
    )


@pytest.mark.parametrize("most", [0.15, 0.75, 0.998])
def test_moving_averages(most):
    """The first step's weights, then decay * average + (1 - decay) * weights, with a decay that warms up."""
    variable = keras.Variable(np.zeros(3, "float32"))
    optimizer = Adam(0.1, use_ema=True, ema_momentum=most)
    optimizer.build([variable])
    average = None
    for step in range(40):
        optimizer.apply([tf.constant([1.0, -2.0, float(step)])], [variable])
        weights = variable.numpy().astype("float64")
        decay = min(most, (1 + step) / (10 + step))
        average = weights if average is None else decay * average + (1 - decay) * weights
    (kept,) = optimizer.averages
    np.testing.assert_allclose(kept, average, rtol=1e-5)
    assert not np.allclose(average, weights, rtol=1e-3)
    optimizer.finalize_variable_values([variable])  # what `fit` calls at its end
    np.testing.assert_array_equal(variable, weights.astype("float32"))
    assert Adam().averages is None


def test_serialisation_keeps_its_kind():
    optimizer = Adam(0.03, beta_1=0.7)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(again) is Adam
    assert again.beta_1 == 0.7
    assert float(again.learning_rate.numpy()) == pytest.approx(0.03)
