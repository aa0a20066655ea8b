"""Counts of operations against TensorFlow's own profiler and against counting by hand."""

import keras
import pytest
import tensorflow as tf
from tensorflow.python.framework import ops  # the registry of statistics has no public name

from experiments.benchmarks.flops import forward_flops, step_flops
from r2c_gan.layers import operational as layers
from r2c_gan.models.networks import build_discriminator, build_generator
from r2c_gan.options.network import PAPER_METHODS


def profiled(network, size):
    """Operations of the convolutions and matrix products of one forward pass, as TensorFlow counts them."""
    image = tf.TensorSpec((1, size, size, network.input_shape[-1]))
    with layers.portable():
        graph = tf.function(lambda x: network(x)).get_concrete_function(image).graph
    counted_here = ("Conv2D", "Conv2DBackpropInput", "MatMul")
    nodes = [node for node in graph.as_graph_def(add_shapes=True).node if node.op in counted_here]
    assert nodes
    return sum(ops.get_stats_for_node_def(graph, node, "flops").value for node in nodes)


@pytest.mark.parametrize("method", PAPER_METHODS)
@pytest.mark.parametrize("build", [build_generator, build_discriminator])
def test_forward_is_what_tensorflow_counts(method, build):
    network = build(method, q=3, filters=4)
    assert sum(forward_flops(network, 32, 32).values()) == pytest.approx(profiled(network, 32), rel=1e-6)


def test_a_layer_by_hand():
    image = keras.Input((None, None, 2))
    network = keras.Model(image, layers.OperationalConv2D(5, 3, q=4, strides=2, padding="same")(image))
    assert list(forward_flops(network, 8, 12).values()) == [2 * 3 * 3 * (4 * 2) * 5 * 4 * 6]


def test_a_step_grows_with_pixels_and_batch():
    one = step_flops(filters=4, size=32)
    assert step_flops(filters=4, size=32, batch_size=4) == 4 * one
    assert step_flops(filters=4, size=64) == pytest.approx(4 * one, rel=0.01)


def test_the_papers_step():
    """Almost all of it is in the residual block: 18 forward passes of two layers of 3x3, 3 * 128 to 128, at 128x128."""
    residual = 18 * 2 * 2 * 9 * (3 * 128) * 128 * 128 * 128
    assert step_flops() == pytest.approx(residual, rel=0.1)
    assert step_flops() > residual
