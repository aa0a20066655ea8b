"""A polynomial tone curve, chosen for each image by its tone: an option beside the paper's networks."""

import keras
from keras import ops

from r2c_gan.layers.operational import powers

WINDOW = 4  # pixels: wide enough to take out the noise, narrow enough for a place that is dark


@keras.saving.register_keras_serializable("r2c_gan")
class ToneCurve(keras.layers.Layer):
    """Applies to every value of an image one polynomial, whose coefficients a small network reads off its moments.

        y = c_0(m) + c_1(m) x + ... + c_order(m) x^order,    m_p = mean of x^p, p = 1..order + 1

    Instance normalisation takes the brightness and contrast out of all that a generator computes, so a generator
    neither knows how badly an image was exposed nor can leave a good one as it is. This curve can do both, and starts
    as the identity. The idea of curves estimated from the image is that of Zero-DCE (Guo et al., CVPR 2020); the form,
    a Maclaurin polynomial like that of an operational neuron, is this package's own.

    With noise z_k, k = 1..K, of which the means m'_k join the moments, the curve of an image is drawn at random, and so
    is a noise of which the strength depends on the image and on the value, as that of photons does:

        y = sum_p c_p(m, m') x^p + sum_k z_k sum_p d_kp(m, m') x^p,    p = 0..order

    With a range, the darkest and the brightest mean of a window of that many pixels join the moments. They tell a film
    that was lightened from one that is light: its darkest place is no longer dark. (On public radiographs, moderately
    degraded, a regression on both undoes 1 dB more of the exposure than one on moments alone.)

    Args:
        order: of the polynomial, at least 1.
        hidden: width of the hidden layer, tanh, between moments and coefficients.
        window: side in pixels of the windows of the range; 0 for no range.

    Call arguments:
        inputs: [N, H, W, C], values in [-1, 1].
        noise: [N, H, W, K] of a `UniformNoise`, or None. Its means are standardised.

    Returns:
        [N, H, W, C], unbounded. The channels of an image share its curve, so gray stays gray.

    Raises:
        ValueError: if an argument is not an integer, or out of its range.
    """

    def __init__(self, order=3, hidden=16, window=0, **kwargs):
        super().__init__(**kwargs)
        check_integers(order=(order, 1), hidden=(hidden, 1), window=(window, 0))
        self.order, self.hidden, self.window = order, hidden, window

    def build(self, inputs_shape, noise_shape=None):
        self.features = keras.layers.Dense(self.hidden, activation="tanh", dtype="float32", name="features")
        channels = noise_shape[-1] if noise_shape else 0
        self._polynomials = 1 + channels
        self.coefficients = keras.layers.Dense(
            self._polynomials * (self.order + 1), kernel_initializer="zeros", dtype="float32", name="coefficients"
        )
        self.features.build((None, self.order + 1 + (2 if self.window else 0) + channels))
        self.coefficients.build((None, self.hidden))
        identity = [0.0] * (self._polynomials * (self.order + 1))
        identity[1] = 1.0
        self.coefficients.bias.assign(identity)

    def call(self, inputs, noise=None):
        terms = powers(inputs, self.order + 1)
        seen = tone(terms, self.window)
        if noise is not None:
            seen = ops.concatenate([seen, standardised_means(noise)], axis=-1)
        coefficients = ops.split(self.coefficients(self.features(seen)), self._polynomials, axis=-1)
        curve = self.polynomial(self.curve_coefficients(coefficients[0], noise), inputs)
        if noise is None:
            return curve
        noise = ops.cast(noise, inputs.dtype)
        return curve + sum(noise[..., k : k + 1] * self.polynomial(c, inputs) for k, c in enumerate(coefficients[1:]))

    def curve_coefficients(self, coefficients, noise):
        """The coefficients of the curve itself, [N, order + 1]."""
        return coefficients

    def polynomial(self, coefficients, inputs):
        """The polynomials of images: coefficients [N, order + 1], the constant first; [N, H, W, C]."""
        c = ops.split(ops.cast(coefficients, inputs.dtype)[:, None, None, :], self.order + 1, axis=-1)
        return c[0] + sum(factor * term for factor, term in zip(c[1:], powers(inputs, self.order), strict=True))

    def compute_output_shape(self, inputs_shape, noise_shape=None):
        return inputs_shape

    def get_config(self):
        return {**super().get_config(), "order": self.order, "hidden": self.hidden, "window": self.window}


def tone(terms, window=0):
    """What tells the tone of images: their moments and, with a window, the range of their local means.

    Args:
        terms: powers of the images as `powers` gives them, [N, H, W, C] each.
        window: side in pixels of the windows, which are centred on the image; 0 for no range.

    Returns:
        float32 [N, number of powers], or two columns more: the lowest and highest mean of a window.
    """
    seen = [ops.mean(ops.cast(term, "float32"), axis=(1, 2, 3)) for term in terms]
    if window:
        # The strides are given because Keras on JAX does not find its default.
        local = ops.average_pool(ops.cast(terms[0], "float32"), window, strides=window, padding="same")
        seen += [ops.min(local, axis=(1, 2, 3)), ops.max(local, axis=(1, 2, 3))]
    return ops.stack(seen, axis=-1)


def check_integers(**arguments):
    """Checks arguments, each given with the least value that it may have.

    Raises:
        ValueError: naming the argument.
    """
    for name, (value, least) in arguments.items():
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def standardised_means(noise):
    """The mean of each channel of uniform noise, over its own standard deviation: about normal, [N, K]."""
    noise = ops.cast(noise, "float32")
    pixels = ops.cast(ops.shape(noise)[1] * ops.shape(noise)[2], "float32")
    return ops.mean(noise, axis=(1, 2)) * ops.sqrt(3.0 * pixels)
