"""Bilinear enlargement by two, for images of any size: an option beside the paper's transposed convolution."""

import keras
from keras import ops

from r2c_gan.layers import operational as layers


@keras.saving.register_keras_serializable("r2c_gan")
class BilinearUpsampling2D(keras.layers.Layer):
    """Doubles height and width by bilinear interpolation, with half-pixel centres and clamped edges.

    What `keras.layers.UpSampling2D(interpolation="bilinear")` computes, but in graphs whose height and width are not
    known too, where that one fails (Keras 3.15 on TensorFlow).

    Call arguments:
        inputs: [N, H, W, C].

    Returns:
        [N, 2 H, 2 W, C], means of inputs.
    """

    def call(self, inputs):
        faster = layers.native_kernels()
        return faster.bilinear_upsampling(inputs) if faster else bilinear_upsampling(inputs)

    def compute_output_shape(self, input_shape):
        count, height, width, channels = input_shape
        return (count, *(side and 2 * side for side in (height, width)), channels)


def bilinear_upsampling(x):
    """[N, H, W, C] -> [N, 2 H, 2 W, C] in `keras.ops` that every backend and converter knows."""
    height, width, channels = ops.shape(x)[1], ops.shape(x)[2], x.shape[-1]
    rows = ops.reshape(_double(x, 1), (-1, 2 * height, width, channels))
    return ops.reshape(_double(rows, 2), (-1, 2 * height, 2 * width, channels))


def _double(x, axis):
    """Each entry along an axis as two, a quarter of a step to either side, along a new axis behind it."""
    if axis == 1:
        first, last, rest, most = x[:, :1], x[:, -1:], x[:, 1:], x[:, :-1]
    else:
        first, last, rest, most = x[:, :, :1], x[:, :, -1:], x[:, :, 1:], x[:, :, :-1]
    before, after = ops.concatenate([first, most], axis), ops.concatenate([rest, last], axis)
    return ops.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
