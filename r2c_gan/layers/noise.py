"""Noise for a degrader that makes many poor images of one good image: an option beside the paper."""

import keras
from keras import ops

from r2c_gan.layers.draws import restore_draws


@keras.saving.register_keras_serializable("r2c_gan")
class UniformNoise(keras.layers.Layer):
    """Draws noise to go with images: independent values, uniform in [-1, 1), where a Maclaurin series is developed.

    The draws follow from the seed and the number of calls in training, which is a weight, so a restored layer goes on
    as the saved one would have.

    Args:
        channels: channels of the noise, at least 1.
        seed: integer seed of the draws.

    Call arguments:
        images: [N, H, W, C]; only their shape matters.
        training: whether the draw counts. If not, it is always that of the seed's first call.

    Returns:
        float32 [N, H, W, channels].

    Raises:
        ValueError: if `channels` is not a positive integer.
    """

    def __init__(self, channels, seed=0, trainable=False, **kwargs):
        super().__init__(trainable=trainable, **kwargs)
        if not isinstance(channels, int) or channels < 1:
            raise ValueError(f"channels must be an integer of at least 1, got {channels!r}")
        self.channels, self.seed = channels, seed

    def build(self, input_shape=None):
        only_first = {"trainable": False, "aggregation": "only_first_replica"}
        self.drawn = self.add_weight(name="drawn", shape=(), initializer="zeros", dtype="int32", **only_first)
        self.draws = keras.random.SeedGenerator(self.seed)
        self.built = True

    def call(self, images, training=False):
        seed = self.seed
        if training:
            restore_draws(self.draws, self.seed, self.drawn.value)
            self.drawn.assign_add(1)
            seed = self.draws
        # Integers, because float draws differ under XLA; 24 bits are what a float32 holds.
        drawn = keras.random.randint((*ops.shape(images)[:3], self.channels), 0, 2**24, dtype="int32", seed=seed)
        return ops.cast(drawn, "float32") / 2**23 - 1

    def compute_output_shape(self, input_shape):
        return (*input_shape[:3], self.channels)

    def get_config(self):
        return {**super().get_config(), "channels": self.channels, "seed": self.seed}
