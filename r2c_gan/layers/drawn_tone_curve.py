"""A tone curve that is drawn at random, without regard to the image: a degrader's model of exposure."""

import keras
from keras import ops

from r2c_gan.layers.tone_curve import ToneCurve, standardised_means


@keras.saving.register_keras_serializable("r2c_gan")
class DrawnToneCurve(ToneCurve):
    """A `ToneCurve` of which the curve, though not the noise, is a function of the given noise alone.

        y = sum_p c_p(m') x^p + sum_k z_k sum_p d_kp(m, m') x^p,    p = 0..order

    How a film is exposed does not depend on what it shows. A degrader that may look at its image does not learn that:
    the cycle good -> poor -> good is closed most easily by one exposure for each image, which can be undone without
    knowing the exposure. Nor may the cycle, which is closed more easily the less is changed, have a say in how much
    exposures vary: no gradient passes from what the layer returns to the c_p. They learn by `exposed`, whose tones are
    to be distributed as those of real poor images (`losses.tone_loss`).

    Arguments as those of `ToneCurve`; the noise must be given.
    """

    def build(self, inputs_shape, noise_shape):
        super().build(inputs_shape, noise_shape)
        self.exposure_features = keras.layers.Dense(
            self.hidden, activation="tanh", dtype="float32", name="exposure_features"
        )
        # Not zeros: where exposures do not vary at all, nothing tells them to begin.
        spread = keras.initializers.RandomNormal(stddev=0.05)
        self.exposure = keras.layers.Dense(
            self.order + 1, kernel_initializer=spread, dtype="float32", name="exposure_coefficients"
        )
        self.exposure_features.build((None, noise_shape[-1]))
        self.exposure.build((None, self.hidden))
        self.exposure.bias.assign([0.0, 1.0] + [0.0] * (self.order - 1))

    def curve_coefficients(self, coefficients, noise):
        return ops.stop_gradient(self._drawn(noise))

    def exposed(self, inputs, noise):
        """The image under its drawn curve alone, cut off at -1 and 1; this passes gradients to the curve.

        Args:
            inputs, noise: as in a call.

        Returns:
            float32 [N, H, W, C].
        """
        return ops.clip(self.polynomial(self._drawn(noise), ops.cast(inputs, "float32")), -1, 1)

    def _drawn(self, noise):
        return self.exposure(self.exposure_features(standardised_means(noise)))
