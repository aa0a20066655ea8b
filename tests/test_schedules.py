"""The learning rate: constant, then linear, then zero for good."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from r2c_gan.models.schedules import LinearDecay


def test_constant_then_linear_then_zero():
    schedule = LinearDecay(0.2, total_steps=100, decay_start=20)
    for step, expected in ((0, 0.2), (19, 0.2), (20, 0.2), (40, 0.15), (60, 0.1), (99, 0.0025), (100, 0), (101, 0)):
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5, abs=0)


def test_never_negative_and_never_rising():
    schedule = LinearDecay(2e-4, total_steps=37, decay_start=11)
    rates = [float(schedule(step)) for step in range(60)]
    assert min(rates) == 0.0
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates))
    assert rates[36] > 0
    assert rates[37:] == [0.0] * 23


@pytest.mark.parametrize("decay_start", [10, 11, 1000])
def test_no_decay_that_would_begin_after_the_end(decay_start):
    schedule = LinearDecay(0.1, total_steps=10, decay_start=decay_start)
    for step in (0, 5, 9, 10, 500):
        assert float(schedule(step)) == pytest.approx(0.1)


def test_decay_from_the_first_step():
    schedule = LinearDecay(1.0, total_steps=4, decay_start=0)
    assert [float(schedule(step)) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_steps_beyond_the_integers_of_float32():
    """float32 cannot tell 2^24 and 2^24 + 1 apart; a long run must not stall or jump there."""
    total = 2**24 + 10
    schedule = LinearDecay(1.0, total_steps=total, decay_start=2**24)
    assert [float(schedule(2**24 + k)) for k in range(11)] == pytest.approx([1 - k / 10 for k in range(11)], abs=1e-6)


def test_inside_a_graph_and_an_optimizer():
    schedule = LinearDecay(0.5, total_steps=4, decay_start=2)
    steps = tf.range(6, dtype=tf.int64)
    in_graph = tf.function(lambda: tf.map_fn(schedule, steps, fn_output_signature=tf.float32))()
    np.testing.assert_allclose(in_graph, [0.5, 0.5, 0.5, 0.25, 0, 0])
    variable = keras.Variable([0.0])
    optimizer = keras.optimizers.SGD(schedule)
    optimizer.build([variable])
    travelled = []
    for _ in range(6):
        optimizer.apply([tf.ones(1)])
        travelled.append(float(variable.numpy()[0]))
    assert travelled == pytest.approx([-0.5, -1.0, -1.5, -1.75, -1.75, -1.75])


def test_serialisation():
    schedule = LinearDecay(0.5, total_steps=4, decay_start=2)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert again.get_config() == schedule.get_config()
    assert [float(again(step)) for step in range(6)] == [float(schedule(step)) for step in range(6)]


@pytest.mark.parametrize("arguments", [(-0.1, 10, 5), (0.1, 0, 0), (0.1, 10, -1)])
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match=r"initial_learning_rate.*total_steps.*decay_start"):
        LinearDecay(*arguments)
