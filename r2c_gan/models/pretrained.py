"""The weights that come with the package, in half precision, with their model card.

`Restorer.load("pretrained")` and `--model=pretrained` use them, and never silently: what they were trained on and what
they are not for is logged as a warning.
"""

from pathlib import Path

import numpy as np
from absl import logging

from r2c_gan import files
from r2c_gan.errors import UserError
from r2c_gan.models.model import R2CGAN

NAME = "pretrained"
FOLDER = Path(__file__).parent / "pretrained_weights"
WEIGHTS, RECORD, CARD = "restorer.npz", "pretrained.json", "model_card.md"
FORMAT = 1


def load(folder=None):
    """Builds the model with the shipped weights in its restorer; the other three networks are untrained.

    Args:
        folder: where the weights are; those of the package by default.

    Returns:
        (the `R2CGAN`, a dictionary that says where the weights come from).

    Raises:
        UserError: if there are none, or they were altered.
    """
    folder = Path(folder or FOLDER)
    if not (folder / RECORD).is_file():
        raise UserError(f"--model={NAME}: this installation holds no weights; give a run folder or a SavedModel")
    record = files.read_json(folder / RECORD)
    if record.get("format") != FORMAT:
        raise UserError(f"{folder / RECORD}: of format {record.get('format')}; this version reads format {FORMAT}")
    if files.sha256(folder / WEIGHTS) != record["weights"]["sha256"]:
        raise UserError(f"{folder / WEIGHTS}: altered: its checksum is not the one recorded; install the package again")
    model = R2CGAN(**record["model"])
    with np.load(folder / WEIGHTS, allow_pickle=False) as arrays:
        model.restorer.set_weights([arrays[name].astype(np.float32) for name in sorted(arrays.files)])
    logging.warning("%s weights, research only, not for diagnosis. %s Card: %s", NAME, record["data"], folder / CARD)
    return model, {**record["source"], "pretrained": record["r2c_gan"], "sha256": record["weights"]["sha256"]}
