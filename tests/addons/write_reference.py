"""Writes what our instance normalisation computes, for `check_against_addons.py` to recompute.

Usage: write_reference.py FILE.npz (in the main environment)

For each case: random input `x` [N, H, W, C], scale `gamma` and offset `beta` [C], a `cotangent` shaped like the output,
the output, and the gradients of sum(cotangent * output) with respect to x, gamma and beta. All float32.
"""

import sys

import numpy as np
import tensorflow as tf

from r2c_gan import files
from r2c_gan.layers.operational import instance_normalization

# name: (shape of x, standard deviation of x, mean of x)
CASES = {
    "first_layer": ((1, 64, 64, 64), 1.0, 0.0),
    "bottleneck": ((2, 16, 16, 256), 1.0, 0.0),
    "odd_size": ((3, 7, 11, 5), 1.0, 0.0),
    "one_channel": ((2, 8, 8, 1), 1.0, 0.0),
    "one_pixel": ((2, 1, 1, 4), 1.0, 0.0),
    "tiny_variance": ((2, 8, 8, 6), 0.01, 0.0),
    "far_from_zero": ((2, 8, 8, 6), 1.0, 3.0),
    "constant": ((1, 8, 8, 3), 0.0, 0.5),
}


def compute(rng, shape, deviation, mean):
    """One case as a dict of arrays."""
    x = rng.normal(mean, deviation, shape).astype(np.float32)
    cotangent = rng.normal(size=shape).astype(np.float32)
    gamma, beta = rng.normal([[1], [0]], 0.5, (2, shape[-1])).astype(np.float32)
    layer = instance_normalization()
    layer.build(shape)
    layer.set_weights([gamma, beta])
    variable = tf.Variable(x)
    with tf.GradientTape() as tape:
        output = layer(variable)
        total = tf.reduce_sum(cotangent * output)
    gradients = tape.gradient(total, [variable, layer.gamma.value, layer.beta.value])
    names = ("gradient_x", "gradient_gamma", "gradient_beta")
    return {
        "x": x,
        "gamma": gamma,
        "beta": beta,
        "cotangent": cotangent,
        "output": output.numpy(),
        **{name: gradient.numpy() for name, gradient in zip(names, gradients, strict=True)},
    }


def main():
    """Computes every case from one seed and writes the file."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    rng = np.random.default_rng(0)
    arrays = {}
    for case, arguments in CASES.items():
        arrays |= {f"{case}/{name}": array for name, array in compute(rng, *arguments).items()}
    with files.atomic_path(sys.argv[1]) as path, path.open("wb") as file:
        np.savez_compressed(file, **arrays)
    print(f"{len(CASES)} cases -> {sys.argv[1]}")


if __name__ == "__main__":
    main()
