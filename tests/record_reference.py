"""Cuts the numbers below tests/golden/ out of a record of the authors' implementation (TensorFlow 2.15.1, CPU).

    python tests/record_reference.py --reference_dir FOLDER

FOLDER holds a folder a configuration, with `record.json` (variables and losses) and `arrays.npz` (batch and outputs, at
step 0 and after each of three training steps). Kept are the batch, the losses by our names, class probabilities and
logits, and of the images the pixels at `PIXELS` fixed places.
"""

import argparse
import json
from pathlib import Path

import numpy as np

CONFIGURATIONS = ("operational_q3", "convolutional-light")
STEPS = 4
PIXELS = 300
GOLDEN = Path(__file__).parent / "golden"

LOSSES = {
    "A2B_g": "adversarial_a2b",
    "B2A_g": "adversarial_b2a",
    "A2B2A_cycle": "cycle_a",
    "B2A2B_cycle": "cycle_b",
    "A2A_id": "identity_a",
    "B2B_id": "identity_b",
    "A2B_c": "class_a2b",
    "A2B2A_c": "class_a2b2a",
    "A2A_c": "class_a2a",
    "B2A_c": "class_b2a",
    "B2A2B_c": "class_b2a2b",
    "B2B_c": "class_b2b",
    "G_loss": "generator_loss",
    "A_d": "discriminator_a_real",
    "B2A_d": "discriminator_a_fake",
    "B_d": "discriminator_b_real",
    "A2B_d": "discriminator_b_fake",
    "D_loss": "discriminator_loss",
}


def places(shape):
    """Fixed flat places in an array of this shape."""
    return np.sort(np.random.default_rng(0).choice(np.prod(shape), PIXELS, replace=False))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference_dir", type=Path, required=True)
    folder = parser.parse_args().reference_dir
    records, numbers = {}, {}
    for name in CONFIGURATIONS:
        record = json.loads((folder / name / "record.json").read_text())
        arrays = np.load(folder / name / "arrays.npz")
        records[name] = {
            "method": record["method"],
            "q": record["q"],
            "variables": record["variables"],
            "losses": [{LOSSES[key]: value for key, value in losses.items()} for losses in record["losses"]],
        }
        for key, array in arrays.items():
            if key in ("A", "B", "label_A", "label_B"):
                assert key not in numbers or np.array_equal(numbers[key], array), "the configurations share their batch"
                numbers[key] = array
            else:
                kept = array.ravel()[places(array.shape)] if key.endswith("_image") else array
                numbers[f"{name}/{key}"] = kept
    GOLDEN.mkdir(exist_ok=True)
    (GOLDEN / "reference.json").write_text(json.dumps(records, indent=1) + "\n")
    np.savez_compressed(GOLDEN / "reference.npz", **numbers)


if __name__ == "__main__":
    main()
