"""Floating-point operations of the networks and of a training step, counted from the shapes of their convolutions.

A multiplication and the addition that follows count as two. Convolutions and dense layers are counted; normalisation,
activations and powers, a few per cent of it, are not.
"""

import math

import keras

from r2c_gan.layers.operational import OperationalConv2D, OperationalConv2DTranspose
from r2c_gan.models.networks import build_discriminator, build_generator

_TRANSPOSED = (OperationalConv2DTranspose, keras.layers.Conv2DTranspose)
_CONVOLUTIONS = (OperationalConv2D, keras.layers.Conv2D, *_TRANSPOSED)


def forward_flops(network, height, width):
    """Operations of one pass of one image through a network, layer by layer.

    Args:
        network: what `build_generator` or `build_discriminator` returned.
        height, width: of the image, in pixels.

    Returns:
        Dictionary from layer name to operations, in the order of the layers.
    """
    layers = [layer for layer in network.layers if isinstance(layer, (*_CONVOLUTIONS, keras.layers.Dense))]
    image = (1, height, width, network.input_shape[-1])
    ends = [tensor for layer in layers for tensor in (layer.input, layer.output)]
    shapes = keras.Model(network.input, ends).compute_output_shape(image)
    counted = {}
    for layer, before, after in zip(layers, shapes[::2], shapes[1::2], strict=True):
        # A transposed convolution applies its kernel once for each pixel that goes in, not for each that comes out.
        places = 1
        if isinstance(layer, _CONVOLUTIONS):
            places = math.prod((before if isinstance(layer, _TRANSPOSED) else after)[1:3])
        counted[layer.name] = 2 * math.prod(layer.kernel.shape) * places
    return counted


def step_flops(method="operational", q=3, channels=3, filters=64, size=256, batch_size=1):
    """Operations of one training step.

    A generator pass costs three forward passes (forward, gradient of the weights, gradient of the inputs), less the
    gradient of the image itself where that is a real one. The generators pass six times. In their step, both
    discriminators pass once, without a gradient of their weights; in the discriminators' step, twice each.

    Args:
        method, q, channels, filters: as in `build_generator`.
        size: height and width of the images.
        batch_size: images a domain.
    """
    shared = {"method": method, "q": q, "channels": channels, "filters": filters}
    g = list(forward_flops(build_generator(**shared), size, size).values())
    d = list(forward_flops(build_discriminator(**shared), size, size).values())
    real_generator_passes, cycle_passes = 4, 2
    generators = real_generator_passes * (3 * sum(g) - g[0]) + cycle_passes * 3 * sum(g)
    discriminators = 2 * 2 * sum(d) + 4 * (3 * sum(d) - d[0])
    return batch_size * (generators + discriminators)
