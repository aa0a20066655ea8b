"""A judge of the tone of whole images: an option beside the paper's discriminators."""

import keras

from r2c_gan.tone_curve import WINDOW, check_integers, powers, tone


@keras.saving.register_keras_serializable("r2c_gan")
class ToneJudge(keras.layers.Layer):
    """Judges an image by the moments and the range of its values, through a small network.

        logit = f(m_1, ..., m_order, darkest, brightest),    m_p = mean of x^p

    Darkest and brightest are the extremes of the means of windows, as in `ToneCurve`.

    A patch discriminator sees little of how an image was exposed: a patch may be dark in any image, and instance
    normalisation takes out what the patches of one have in common. That poor images are darker and lighter than good
    ones, and how often, is plain in these few numbers. Adversarial training on such global statistics is that of the
    exposure of EnlightenGAN's global discriminator (Jiang et al., IEEE TIP 2021), reduced to what a tone curve can
    change.

    Args:
        order: number of moments, at least 1.
        hidden: width of the two hidden layers, tanh.
        window: side of the windows in pixels, at least 1.

    Call arguments:
        inputs: [N, H, W, C], values in [-1, 1].

    Returns:
        [N, 1, 1, 1], unbounded float32, 0 before it is trained; to be added to the logits of the patches.

    Raises:
        ValueError: if an argument is not a positive integer.
    """

    def __init__(self, order=4, hidden=32, window=WINDOW, **kwargs):
        super().__init__(**kwargs)
        check_integers(order=(order, 1), hidden=(hidden, 1), window=(window, 1))
        self.order, self.hidden, self.window = order, hidden, window

    def build(self, inputs_shape):
        dense = {"dtype": "float32"}
        self.layers = [
            keras.layers.Dense(self.hidden, activation="tanh", name="features", **dense),
            keras.layers.Dense(self.hidden, activation="tanh", name="features_2", **dense),
            keras.layers.Dense(1, kernel_initializer="zeros", name="logit", **dense),
        ]
        width = self.order + 2
        for layer in self.layers:
            layer.build((None, width))
            width = layer.units

    def call(self, inputs):
        x = tone(powers(inputs, self.order), self.window)
        for layer in self.layers:
            x = layer(x)
        return x[:, None, None, :]

    def compute_output_shape(self, inputs_shape):
        return (inputs_shape[0], 1, 1, 1)

    def get_config(self):
        return {**super().get_config(), "order": self.order, "hidden": self.hidden, "window": self.window}
