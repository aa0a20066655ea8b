"""The history of generated images that a discriminator is shown."""

import keras
from keras import ops

from r2c_gan.layers.draws import restore_draws


class _Functional:
    """The pooled images as a value, put back at the end."""

    def __init__(self, variable):
        self.variable, self.value = variable, variable.value

    def read(self, place):
        return ops.take(self.value, place, axis=0)

    def write(self, place, image):
        self.value = ops.scatter_update(self.value, ops.reshape(place, (1, 1)), image[None])

    def close(self):
        self.variable.assign(self.value)


@keras.saving.register_keras_serializable("r2c_gan")
class ImagePool(keras.layers.Layer):
    """A buffer of generated images (Shrivastava et al. 2017), held as weights so that a checkpoint carries it.

    While the pool is filling, an image is stored and returned. Once it is full, each image is, by a fair coin, either
    returned as it is, or stored in the place of a random pooled image, which is returned instead. The images of a batch
    go in one after another. There are no branches, so a step stays one graph; the draws follow from the seed and the
    number of images seen, so a restored pool goes on as the saved one would have.

    Args:
        size: images held; 0 returns every image as it is.
        seed: integer seed of the draws.

    Call arguments:
        images: [N, H, W, C], N known when the step is traced.

    Returns:
        [N, H, W, C], of which each is one of `images` or of the pool. No gradient passes.
    """

    def __init__(self, size=50, seed=0, trainable=False, **kwargs):
        super().__init__(trainable=trainable, **kwargs)
        if size < 0:
            raise ValueError(f"the pool's size must be at least 0, got {size}")
        self.size = size
        self.seed = seed

    def build(self, input_shape):
        if self.size == 0:
            return
        if None in input_shape[1:]:
            raise ValueError(f"{self.name}: height, width and channels must be known, got {input_shape}")
        only_first = {"trainable": False, "aggregation": "only_first_replica"}
        self.images = self.add_weight(
            name="images", shape=(self.size, *input_shape[1:]), initializer="zeros", dtype="float32", **only_first
        )
        self.seen = self.add_weight(name="seen", shape=(), initializer="zeros", dtype="int32", **only_first)
        self.draws = keras.random.SeedGenerator(self.seed)

    def call(self, images):
        images = ops.stop_gradient(ops.cast(images, "float32"))
        if self.size == 0:
            return images
        if images.shape[0] is None:
            raise ValueError(f"{self.name}: the batch size must be known, got {images.shape}")
        restore_draws(self.draws, self.seed, self.seen.value)
        # One draw gives coin and place: a second one would share its key, hence its bits, with the next step's first.
        # Integers, because float draws differ under XLA.
        drawn = keras.random.randint((images.shape[0],), 0, 2 * self.size, dtype="int32", seed=self.draws)
        swaps, places = drawn < self.size, drawn % self.size
        pool, returned = self._buffer(), []
        for index in range(images.shape[0]):
            image = images[index]
            seen = self.seen + index
            filling = seen < self.size
            place = ops.where(filling, seen, places[index])
            pooled = pool.read(place)
            swap = ops.logical_and(ops.logical_not(filling), swaps[index])
            returned.append(ops.where(swap, pooled, image))
            kept = ops.where(ops.logical_or(filling, swap), image, pooled)
            pool.write(place, kept)
        pool.close()
        self.seen.assign_add(images.shape[0])
        return ops.stack(returned)

    def _buffer(self):
        if keras.backend.backend() == "tensorflow":
            from r2c_gan.layers import tensorflow_kernels

            if tensorflow_kernels.may_write_in_place():
                return tensorflow_kernels.InPlace(self.images.value)
        return _Functional(self.images)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "size": self.size, "seed": self.seed}
