"""Enlargement against Keras and OpenCV, where sizes are known only when the graph runs too."""

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from r2c_gan.layers.upsampling import BilinearUpsampling2D, bilinear_upsampling
from r2c_gan.models.networks import METHODS, build_generator


def random(*shape):
    return np.random.default_rng(0).uniform(-1, 1, shape).astype("float32")


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 3), (8, 8)])
def test_it_is_what_keras_and_opencv_compute(size):
    x = random(2, *size, 3)
    enlarged = BilinearUpsampling2D()(x)
    np.testing.assert_allclose(enlarged, bilinear_upsampling(x), atol=1e-6)  # what other backends and ONNX get
    np.testing.assert_allclose(enlarged, keras.layers.UpSampling2D(interpolation="bilinear")(x), atol=1e-6)
    height, width = size
    for one, image in zip(enlarged, x, strict=True):
        np.testing.assert_allclose(one, cv2.resize(image, (2 * width, 2 * height)), atol=1e-6)


def test_it_keeps_the_dtype_and_means_stay_in_range():
    x = tf.constant(np.sign(random(1, 6, 6, 2)), "bfloat16")
    enlarged = BilinearUpsampling2D(dtype="bfloat16")(x)
    assert enlarged.dtype == "bfloat16"
    assert np.abs(np.asarray(enlarged, "float32")).max() <= 1


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 4)])
def test_the_gradient_is_the_transposed_map(size, dtype, compiled):
    """Against the matrix of the map, whose columns are the enlarged unit images."""
    count = size[0] * size[1]
    units = np.eye(count, dtype="float32").reshape(count, *size, 1)
    matrix = np.asarray(keras.layers.UpSampling2D(interpolation="bilinear")(units)).reshape(count, -1)
    upstream = random(2, 2 * size[0], 2 * size[1], 3)

    @tf.function(jit_compile=compiled)
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            enlarged = BilinearUpsampling2D(dtype=dtype)(x)
        return tape.gradient(enlarged, x, output_gradients=tf.cast(upstream, dtype))

    found = np.asarray(tf.cast(gradient(tf.cast(random(2, *size, 3), dtype)), tf.float32))
    expected = np.einsum("ij,njc->nic", matrix, upstream.reshape(2, -1, 3)).reshape(found.shape)
    np.testing.assert_allclose(found, expected, atol=1e-5 if dtype == "float32" else 0.03)


@pytest.mark.parametrize("method", METHODS)
def test_a_network_takes_sizes_that_its_graph_does_not_know(method):
    network = build_generator(method, q=2, filters=4, channels=1, upsampling="resize", skip="tone_curve")
    serve = tf.function(lambda x: network(x), input_signature=[tf.TensorSpec((None, None, None, 1))])
    for size in ((16, 8), (24, 20)):
        x = random(2, *size, 1)
        np.testing.assert_allclose(serve(tf.constant(x))[0], network(x)[0], atol=1e-5)
        # Keras traces again with an unknown size when a second one comes.
        np.testing.assert_allclose(network.predict_on_batch(x)[0], network(x)[0], atol=1e-5)
