"""A polynomial tone curve, chosen for each image by its moments: an option beside the paper's networks."""

import keras
from keras import ops


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

    Args:
        order: of the polynomial, at least 1.
        hidden: width of the hidden layer, tanh, between moments and coefficients.

    Call arguments:
        inputs: [N, H, W, C], values in [-1, 1].
        noise: [N, H, W, K] of a `UniformNoise`, or None. Its means are standardised.

    Returns:
        [N, H, W, C], unbounded. The channels of an image share its curve, so gray stays gray.

    Raises:
        ValueError: if an argument is not a positive integer.
    """

    def __init__(self, order=3, hidden=16, **kwargs):
        super().__init__(**kwargs)
        for name, value in (("order", order), ("hidden", hidden)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        self.order, self.hidden = order, hidden

    def build(self, inputs_shape, noise_shape=None):
        self.features = keras.layers.Dense(self.hidden, activation="tanh", dtype="float32", name="features")
        channels = noise_shape[-1] if noise_shape else 0
        self.coefficients = keras.layers.Dense(
            (1 + channels) * (self.order + 1), kernel_initializer="zeros", dtype="float32", name="coefficients"
        )
        self.features.build((None, self.order + 1 + channels))
        self.coefficients.build((None, self.hidden))
        identity = [0.0] * ((1 + channels) * (self.order + 1))
        identity[1] = 1.0
        self.coefficients.bias.assign(identity)

    def call(self, inputs, noise=None):
        terms = powers(inputs, self.order + 1)
        seen = moments(terms)
        if noise is not None:
            seen = ops.concatenate([seen, _standardised_means(noise)], axis=-1)
        coefficients = ops.cast(self.coefficients(self.features(seen)), inputs.dtype)[:, None, None, :]

        def polynomial(number):
            first = number * (self.order + 1)
            c = [coefficients[..., first + p : first + p + 1] for p in range(self.order + 1)]
            return c[0] + sum(c[p] * terms[p - 1] for p in range(1, self.order + 1))

        curve = polynomial(0)
        if noise is None:
            return curve
        noise = ops.cast(noise, inputs.dtype)
        return curve + sum(noise[..., k : k + 1] * polynomial(1 + k) for k in range(noise.shape[-1]))

    def compute_output_shape(self, inputs_shape, noise_shape=None):
        return inputs_shape

    def get_config(self):
        return {**super().get_config(), "order": self.order, "hidden": self.hidden}


def powers(x, order):
    """The powers x, x^2, ..., x^order of a tensor, a list."""
    terms = [x]
    for _ in range(order - 1):
        terms.append(terms[-1] * x)
    return terms


def moments(terms):
    """The means over each image of [N, H, W, C] tensors, in float32, side by side: [N, number of tensors]."""
    return ops.stack([ops.mean(ops.cast(term, "float32"), axis=(1, 2, 3)) for term in terms], axis=-1)


def _standardised_means(noise):
    """The mean of each channel of uniform noise, over its own standard deviation: about normal, [N, K]."""
    noise = ops.cast(noise, "float32")
    pixels = ops.cast(ops.shape(noise)[1] * ops.shape(noise)[2], "float32")
    return ops.mean(noise, axis=(1, 2)) * ops.sqrt(3.0 * pixels)
