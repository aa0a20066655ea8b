"""The generators and discriminators of the three methods, wired as the authors wired them.

`operational`           a shallow generator of operational layers around one residual block
`convolutional-light`   the same depth with ordinary convolutions
`convolutional`         the generator of CycleGAN: two down-samplings, nine residual blocks, two up-samplings

Beside the paper stand `operational-context` and `convolutional-context`, generators that see the whole film
(`context_network`); their discriminators are those of the light methods.

Every generator carries a classifier head, a global max-pool and a softmax, on its residual features: after the single
block, or after the fifth of nine. Quirks that belong to the method are kept: the operational residual block feeds
tanh(x) to its first layer but adds x itself and closes with a tanh; only the operational discriminator ends in a
leaky ReLU.

Options beside the paper change a generator's last steps: `upsampling="resize"` and `skip="tone_curve"`.
"""

import functools

import keras
from keras import layers, ops

from r2c_gan.layers.drawn_tone_curve import DrawnToneCurve
from r2c_gan.layers.operational import (
    OperationalConv2D,
    OperationalConv2DTranspose,
    ReflectionPadding2D,
    instance_normalization,
)
from r2c_gan.layers.tone_curve import WINDOW, ToneCurve
from r2c_gan.layers.upsampling import BilinearUpsampling2D
from r2c_gan.models.context_network import context_generator
from r2c_gan.options.network import CONTEXT_METHODS, GENERATOR_STRIDE, METHODS, NetworkOptions

__all__ = ["GENERATOR_STRIDE", "METHODS", "build_discriminator", "build_generator"]

LEAKY_SLOPE = 0.2
BLOCKS = 9
HEAD_AFTER_BLOCK = 5


def build_generator(*options, num_classes=2, name=None, dtype=None, **changes):
    """Builds a generator that restores (or degrades) an image and classifies it.

    Args:
        *options: `NetworkOptions`, or its first fields in order (method, q, channels, filters); the authors' by
            default.
        num_classes: number of classes.
        name: name of the model.
        dtype: dtype policy of the layers, the global one by default. Both outputs are float32 in any case.
        **changes: options that differ, by name: `build_generator(method="convolutional-light", filters=16)`.

    Returns:
        A `keras.Model` from an image [N, H, W, channels] in [-1, 1], or from a list of such an image and noise
        [N, H, W, noise_channels] as `UniformNoise` draws it, to (image [N, H, W, channels] in [-1, 1],
        class probabilities [N, num_classes]), for any H and W that `GENERATOR_STRIDE[method]` divides.

    Raises:
        ValueError: if an option is unknown or out of its range.
    """
    options = NetworkOptions.of(*options, **changes)
    if not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes must be an integer of at least 1, got {num_classes!r}")
    with _policy(dtype):
        inputs = keras.Input((None, None, options.channels), name="image")
        build = _convolutional_generator if options.method == "convolutional" else _light_generator
        kind = _kind(options)
        upsample = functools.partial(_upsample, kind, options.upsampling)
        last = {"kernel_initializer": "glorot_uniform" if options.skip == "none" else "zeros"}
        noise = [keras.Input((None, None, options.noise_channels), name="noise")] if options.noise_channels else []
        given = layers.Concatenate()([inputs, *noise]) if noise else inputs
        if options.method in CONTEXT_METHODS:
            image, probabilities = context_generator(inputs, given, options, num_classes)
            image = layers.Activation(_cut_off, dtype="float32", name="restored")(image)
            return keras.Model([inputs, *noise] if noise else inputs, (image, probabilities), name=name or "generator")
        image, features = build(given, kind, options.channels, options.filters, upsample, last)
        if options.skip == "none":
            image = layers.Activation("tanh", dtype="float32", name="restored")(image)
        else:
            curve = DrawnToneCurve if options.drawn_tone else ToneCurve
            curve = curve(window=WINDOW if options.skip == "tone_curve" else 0, dtype="float32")
            image = layers.Add(dtype="float32")([curve(inputs, *noise), image])
            image = layers.Activation(_cut_off, dtype="float32", name="restored")(image)
        probabilities = _classifier_head(features, num_classes)
        return keras.Model([inputs, *noise] if noise else inputs, (image, probabilities), name=name or "generator")


def build_discriminator(*options, name=None, dtype=None, **changes):
    """Builds a patch discriminator.

    Args:
        *options, name, dtype, **changes: as in `build_generator`; what concerns generators alone is ignored.

    Returns:
        A `keras.Model` from an image [N, H, W, channels] to unbounded logits [N, H / 8, W / 8, 1] (rounded up),
        one a patch, trained towards 1 for real and 0 for generated images (LSGAN).

    Raises:
        ValueError: if an option is unknown or out of its range.
    """
    options = NetworkOptions.of(*options, **changes)
    method, filters = options.method, options.filters
    with _policy(dtype):
        inputs = keras.Input((None, None, options.channels), name="image")
        leaky_relu = functools.partial(ops.leaky_relu, negative_slope=LEAKY_SLOPE)
        if method == "convolutional":
            x = leaky_relu(layers.Conv2D(filters, 4, strides=2, padding="same")(inputs))
            for width, stride in ((2, 2), (4, 2), (8, 1)):
                x = layers.Conv2D(filters * width, 4, strides=stride, padding="same", use_bias=False)(x)
                x = leaky_relu(instance_normalization()(x))
            x = layers.Conv2D(1, 4, padding="same")(x)
        else:
            kind = _kind(options)
            x = leaky_relu(kind.conv(filters, 4, strides=2, padding="same")(inputs))
            x = kind.conv(filters * 2, 4, strides=4, padding="same", use_bias=False)(x)
            x = leaky_relu(instance_normalization()(x))
            x = kind.conv(1, 4, padding="same")(x)
            if isinstance(kind, _Operational):
                x = leaky_relu(x)
        logits = layers.Activation("linear", dtype="float32", name="logits")(x)
        return keras.Model(inputs, logits, name=name or "discriminator")


def _kind(options):
    operational = options.method in ("operational", "operational-context")
    return _Operational(options.q, options.power_init) if operational else _Convolutional


class _Convolutional:
    """Linear neurons and ReLU."""

    conv = layers.Conv2D
    conv_transpose = layers.Conv2DTranspose
    activation = staticmethod(ops.relu)

    @staticmethod
    def residual_block(x):
        filters = x.shape[-1]
        h = layers.Conv2D(filters, 3, use_bias=False)(ReflectionPadding2D(1)(x))
        h = ops.relu(instance_normalization()(h))
        h = layers.Conv2D(filters, 3, use_bias=False)(ReflectionPadding2D(1)(h))
        return layers.Add()([x, instance_normalization()(h)])


class _Operational:
    """Polynomial neurons; tanh keeps what they are fed in [-1, 1], where the series was developed."""

    def __init__(self, q, power_init):
        self.conv = functools.partial(OperationalConv2D, q=q, power_init=power_init)
        self.conv_transpose = functools.partial(OperationalConv2DTranspose, q=q, power_init=power_init)

    @staticmethod
    def activation(x):
        return x  # the residual block opens with the tanh

    def residual_block(self, x):
        conv = functools.partial(self.conv, x.shape[-1], 3, padding="reflect", use_bias=False)
        h = instance_normalization()(conv()(ops.tanh(x)))
        h = instance_normalization()(conv()(ops.tanh(h)))
        return ops.tanh(layers.Add()([x, h]))


@keras.saving.register_keras_serializable("r2c_gan")
def _cut_off(x):
    return ops.clip(x, -1, 1)


def _upsample(kind, upsampling, x, filters, **arguments):
    """Twice the height and width; the kernel is 3x3 either way."""
    if upsampling == "transposed":
        return kind.conv_transpose(filters, 3, strides=2, padding="same", **arguments)(x)
    # Means of values in [-1, 1] stay there, where the operational layers want them.
    x = BilinearUpsampling2D()(x)
    return kind.conv(filters, 3, padding="same", **arguments)(x)


def _light_generator(inputs, kind, channels, filters, upsample, last):
    x = kind.conv(filters * 2, 3, strides=2, padding="same", use_bias=False)(inputs)
    x = kind.activation(instance_normalization()(x))
    features = kind.residual_block(x)
    return upsample(features, channels, **last), features


def _convolutional_generator(inputs, kind, channels, filters, upsample, last):
    x = layers.Conv2D(filters, 7, use_bias=False)(ReflectionPadding2D(3)(inputs))
    x = ops.relu(instance_normalization()(x))
    for width in (2, 4):
        x = layers.Conv2D(filters * width, 3, strides=2, padding="same", use_bias=False)(x)
        x = ops.relu(instance_normalization()(x))
    for block in range(1, BLOCKS + 1):
        x = kind.residual_block(x)
        if block == HEAD_AFTER_BLOCK:
            features = x
    for width in (2, 1):
        x = upsample(x, filters * width, use_bias=False)
        x = ops.relu(instance_normalization()(x))
    return layers.Conv2D(channels, 7, **last)(ReflectionPadding2D(3)(x)), features


def _classifier_head(features, num_classes):
    pooled = layers.GlobalMaxPooling2D(dtype="float32")(features)
    return layers.Dense(num_classes, activation="softmax", dtype="float32", name="probabilities")(pooled)


class _policy:
    """Makes `dtype` the global dtype policy while a network is built, so that the bare operations follow it too."""

    def __init__(self, dtype):
        self.dtype = dtype

    def __enter__(self):
        self.previous = keras.config.dtype_policy()
        if self.dtype is not None:
            keras.config.set_dtype_policy(self.dtype)

    def __exit__(self, *_):
        keras.config.set_dtype_policy(self.previous)
