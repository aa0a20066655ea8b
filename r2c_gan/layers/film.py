"""Layers between a film of any size and a view of it of one size, and the tone curve that is read off such a view."""

import keras
from keras import ops

from r2c_gan.layers.operational import powers
from r2c_gan.layers.tone_curve import check_integers, tone

VIEW = 64  # pixels
CURVE_ORDER = 3
WINDOWS = 4
_LAPLACIAN = ((1, -2, 1), (-2, 4, -2), (1, -2, 1))


def interpolation(count, length, dtype="float32"):
    """The matrix [count, length] that resamples `length` values to `count`: linear, with half-pixel centres.

    Where there are fewer, each is a mean under a triangle two steps wide (no aliasing); rows sum to 1.

    Args:
        count, length: integers, or integer scalars of a graph.
        dtype: of the matrix.
    """
    ratio = ops.cast(length, "float32") / ops.cast(count, "float32")
    places = (ops.cast(ops.arange(count), "float32") + 0.5) * ratio - 0.5
    distances = ops.abs(places[:, None] - ops.cast(ops.arange(length), "float32")[None])
    weights = ops.maximum(1.0 - distances / ops.maximum(ratio, 1.0), 0.0)
    return ops.cast(weights / ops.sum(weights, axis=1, keepdims=True), dtype)


def resample(x, height, width):
    """Resamples images [N, h, w, C] to [N, height, width, C] by `interpolation` along both axes."""
    rows, columns = ops.shape(x)[1], ops.shape(x)[2]
    channels = x.shape[-1]
    vertical, horizontal = interpolation(height, rows, x.dtype), interpolation(width, columns, x.dtype)
    x = ops.matmul(vertical, ops.reshape(x, (-1, rows, columns * channels)))
    x = ops.reshape(x, (-1, columns, channels))
    return ops.reshape(ops.matmul(horizontal, x), (-1, height, width, channels))


@keras.saving.register_keras_serializable("r2c_gan")
class FilmView(keras.layers.Layer):
    """A film of any size, reduced to one: its gray values, and how rough it is at each place.

    Roughness is the mean of |L * x| over what a pixel of the view covers, L being Immerkaer's kernel (1996), which
    answers to noise and fine structure and to no plane. Noise is gone from the reduced film itself.

    Args:
        size: side of the view, in pixels.

    Call arguments:
        inputs: [N, H, W, C] in [-1, 1].

    Returns:
        [N, size, size, 2 C], in [-1, 1].
    """

    def __init__(self, size=VIEW, **kwargs):
        super().__init__(**kwargs)
        check_integers(size=(size, 1))
        self.size = size

    def call(self, inputs):
        channels = inputs.shape[-1]
        kernel = ops.cast(ops.reshape(ops.convert_to_tensor(_LAPLACIAN), (3, 3, 1, 1)), inputs.dtype) / 16
        padded = ops.pad(inputs, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="symmetric")
        rough = ops.depthwise_conv(padded, ops.tile(kernel, (1, 1, channels, 1)), 1, "valid", "channels_last")
        return resample(ops.concatenate([inputs, 4 * ops.tanh(ops.abs(rough))], axis=-1), self.size, self.size)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.size, self.size, 2 * input_shape[-1])

    def get_config(self):
        return {**super().get_config(), "size": self.size}


@keras.saving.register_keras_serializable("r2c_gan")
class Enlarge(keras.layers.Layer):
    """Features of the view, interpolated to the height and width of features of the film.

    Call arguments:
        inputs: [N, h, w, C].
        like: [N, H, W, any].

    Returns:
        [N, H, W, C].
    """

    def call(self, inputs, like):
        return resample(inputs, ops.shape(like)[1], ops.shape(like)[2])

    def compute_output_shape(self, inputs_shape, like_shape):
        return (*like_shape[:3], inputs_shape[-1])


@keras.saving.register_keras_serializable("r2c_gan")
class PixelShuffle(keras.layers.Layer):
    """Twice the height and width from a quarter of the channels (Shi et al., CVPR 2016).

    Call arguments:
        inputs: [N, H, W, 4 C]; of each place, the C channels of its top left, top right, bottom left, bottom right.

    Returns:
        [N, 2 H, 2 W, C].
    """

    def call(self, inputs):
        height, width, channels = ops.shape(inputs)[1], ops.shape(inputs)[2], inputs.shape[-1] // 4
        x = ops.reshape(inputs, (-1, height, width, 2, 2 * channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4))
        return ops.reshape(x, (-1, 2 * height, 2 * width, channels))

    def compute_output_shape(self, input_shape):
        count, height, width, channels = input_shape
        return (count, *(side and 2 * side for side in (height, width)), channels // 4)


@keras.saving.register_keras_serializable("r2c_gan")
class ContextToneCurve(keras.layers.Layer):
    """Applies to each value of a film a polynomial chosen by the whole film and by the place on it.

        y = sum over p = 0..order of (c_p + l_p) x^p

    c is read by a small network off the moments and range of the film (as `ToneCurve` reads them) and off pooled
    context features; l is a coarse map, interpolated to the film. It starts as the identity where the map is zero.

    Args:
        order: of the polynomial, at least 1.
        hidden: width of the hidden layer, tanh, that c is read by.

    Call arguments:
        inputs: [N, H, W, C] in [-1, 1].
        pooled: [N, features].
        local: [N, h, w, order + 1], the map l.

    Returns:
        [N, H, W, C], unbounded. The channels share the curve.
    """

    def __init__(self, order=CURVE_ORDER, hidden=32, **kwargs):
        super().__init__(**kwargs)
        check_integers(order=(order, 1), hidden=(hidden, 1))
        self.order, self.hidden = order, hidden

    def build(self, inputs_shape, pooled_shape, local_shape):
        self.features = keras.layers.Dense(self.hidden, activation="tanh", dtype="float32", name="features")
        self.coefficients = keras.layers.Dense(
            self.order + 1, kernel_initializer="zeros", dtype="float32", name="coefficients"
        )
        self.features.build((None, pooled_shape[-1] + self.order + 3))
        self.coefficients.build((None, self.hidden))
        self.coefficients.bias.assign([0.0, 1.0] + [0.0] * (self.order - 1))

    def call(self, inputs, pooled, local):
        seen = ops.concatenate([tone(powers(inputs, self.order + 1), WINDOWS), ops.cast(pooled, "float32")], axis=-1)
        coefficients = self.coefficients(self.features(seen))[:, None, None, :] + ops.cast(local, "float32")
        coefficients = resample(coefficients, ops.shape(inputs)[1], ops.shape(inputs)[2])
        c = ops.split(ops.cast(coefficients, inputs.dtype), self.order + 1, axis=-1)
        return c[0] + sum(factor * term for factor, term in zip(c[1:], powers(inputs, self.order), strict=True))

    def compute_output_shape(self, inputs_shape, pooled_shape, local_shape):
        return inputs_shape

    def get_config(self):
        return {**super().get_config(), "order": self.order, "hidden": self.hidden}
