"""Plain classifiers: networks of keras.applications, and a small one."""

import numpy as np

from r2c_gan.data.datasets import CLASSES
from r2c_gan.errors import UserError

# Smallest side that keras.applications accepts; a smaller image is enlarged in the graph.
SMALLEST_SIDE = {"densenet121": 32, "resnet50": 32, "inception_v3": 75, "small_cnn": 16}
NETWORKS = tuple(SMALLEST_SIDE)
WEIGHTS = ("none", "imagenet")
# Mean and standard deviation of ImageNet in [0, 1] (DenseNet), and its mean in 0..255, blue first (ResNet).
_IMAGENET_MEAN, _IMAGENET_DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
_IMAGENET_MEAN_BGR = np.array([103.939, 116.779, 123.68])


def build_classifier(network, size, weights="none", bn_momentum=0.9, precision="float32"):
    """A classifier of gray images: float32 [N, size, size, 1] in [-1, 1] -> probabilities float32 [N, 2].

    The image is enlarged where the network needs a larger one, repeated over three channels and scaled as the network's
    ImageNet weights expect; global average pooling and a 2-way softmax follow the network. "small_cnn" is four
    convolutions with batch normalisation and max-pooling.

    Args:
        network: one of `NETWORKS`.
        size: height and width.
        weights: "none" or "imagenet".
        bn_momentum: of all batch normalisations.
        precision: "float32" or "mixed_bfloat16".

    Returns:
        A `keras.Model`, not compiled.

    Raises:
        UserError: if ImageNet weights cannot be had.
    """
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)  # keras.applications have no argument for it
    try:
        image = keras.Input((size, size, 1), name="image")
        features = image
        side = max(size, SMALLEST_SIDE[network])
        if side > size:
            features = keras.layers.Resizing(side, side, interpolation="bilinear", dtype="float32")(features)
        if network == "small_cnn":
            features = _small_cnn(features)
        else:
            features = keras.layers.Concatenate(dtype="float32")([features] * 3)
            scale, offset = input_scaling(network)
            features = keras.layers.Rescaling(scale.tolist(), offset.tolist(), dtype="float32")(features)
            features = _application(network, side, weights)(features)
        probabilities = keras.layers.Dense(len(CLASSES), "softmax", dtype="float32", name="probabilities")(features)
        model = keras.Model(image, probabilities, name=f"{network}_classifier")
    finally:
        keras.config.set_dtype_policy(before)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = bn_momentum
    return model


def input_scaling(network):
    """(scale, offset), float64 [3] each: scale * x + offset is what the network expects of a gray x in [-1, 1]."""
    if network == "densenet121":
        return 0.5 / _IMAGENET_DEVIATION, (0.5 - _IMAGENET_MEAN) / _IMAGENET_DEVIATION
    if network == "resnet50":
        return np.full(3, 127.5), 127.5 - _IMAGENET_MEAN_BGR
    return np.ones(3), np.zeros(3)


def _application(network, side, weights):
    import keras

    build = {
        "densenet121": keras.applications.DenseNet121,
        "resnet50": keras.applications.ResNet50,
        "inception_v3": keras.applications.InceptionV3,
    }[network]
    arguments = {"include_top": False, "input_shape": (side, side, 3), "pooling": "avg"}
    if weights == "none":
        return build(weights=None, **arguments)
    try:
        return build(weights="imagenet", **arguments)
    except Exception as error:  # Keras raises a bare Exception where a download fails
        raise UserError(
            f"--weights=imagenet: the weights of {network} cannot be downloaded or read ({error}); --weights=none "
            "trains from a random start"
        ) from error


def _small_cnn(features):
    import keras

    for width in (16, 32, 64, 128):
        features = keras.layers.Conv2D(width, 3, padding="same", use_bias=False)(features)
        features = keras.layers.BatchNormalization()(features)
        features = keras.layers.ReLU()(features)
        features = keras.layers.MaxPooling2D()(features)
    return keras.layers.GlobalAveragePooling2D()(features)
