"""Recomputes the file of `write_reference.py` with `tfa.layers.InstanceNormalization` and compares.

Usage: check_against_addons.py FILE.npz (in the environment of requirements-addons.txt)

Exits with 1 if an output differs by more than 1e-5, or a gradient by more than 1e-5 of its largest value
(of 1 where that is smaller: the gradient of one pixel is 0).
"""

import os
import sys
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
warnings.filterwarnings(
    "ignore", message="(?s).*TensorFlow Addons"
)  # that it is no longer developed is why we are here

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
import tensorflow_addons as tfa  # noqa: E402

TOLERANCE = 1e-5
INPUTS = ("x", "gamma", "beta")


def compare(reference):
    """Largest differences of one case: a dict over output and the gradients."""
    layer = tfa.layers.InstanceNormalization()
    layer.build(reference["x"].shape)
    layer.set_weights([reference["gamma"], reference["beta"]])
    x = tf.Variable(reference["x"])
    with tf.GradientTape() as tape:
        output = layer(x)
        total = tf.reduce_sum(reference["cotangent"] * output)
    differences = {"output": np.abs(output - reference["output"]).max()}
    for name, gradient in zip(INPUTS, tape.gradient(total, [x, layer.gamma, layer.beta]), strict=True):
        difference = np.abs(gradient - reference[f"gradient_{name}"]).max()
        differences[f"gradient_{name}"] = difference / max(np.abs(gradient).max(), 1)
    return differences


def main():
    """Compares every case and prints a table."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with np.load(sys.argv[1]) as file:
        cases = {}
        for key in file.files:
            case, name = key.split("/")
            cases.setdefault(case, {})[name] = file[key]
    if not cases:
        sys.exit(f"{sys.argv[1]}: no cases")
    print(f"TensorFlow {tf.__version__}, TensorFlow Addons {tfa.__version__}, NumPy {np.__version__}")
    columns = ("output", *(f"gradient_{name}" for name in INPUTS))
    print(f"{'':16}{'shape':20}" + "".join(f"{column:>16}" for column in columns))
    largest = 0.0
    for case, reference in cases.items():
        differences = compare(reference)
        print(f"{case:16}{reference['x'].shape!s:20}" + "".join(f"{differences[column]:16.1e}" for column in columns))
        largest = max([largest, *differences.values()], key=lambda value: (np.isnan(value), value))
    verdict = largest <= TOLERANCE  # false for NaN
    print(f"largest difference {largest:.1e}, tolerance {TOLERANCE:.0e}: {'agreement' if verdict else 'DISAGREEMENT'}")
    sys.exit(0 if verdict else 1)


if __name__ == "__main__":
    main()
