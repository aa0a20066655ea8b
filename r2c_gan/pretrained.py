"""The weights that come with the package, in half precision, with their model card.

`Restorer.load("pretrained")` and `--model=pretrained` use them, and never silently: what they were trained on and what
they are not for is logged as a warning.
"""

from pathlib import Path

import numpy as np
from absl import logging

from r2c_gan import export, files, model_card
from r2c_gan.errors import UserError
from r2c_gan.model import R2CGAN

NAME = "pretrained"
FOLDER = Path(__file__).parent / "pretrained_weights"
WEIGHTS, RECORD = "restorer.npz", "pretrained.json"
FORMAT = 1
LARGEST = 3_000_000  # bytes


def save(model, folder, source, data, origin=None):
    """Writes the restorer's weights as float16 with their record and card, in place of what the folder holds.

    Args:
        model: an `R2CGAN`.
        folder: the folder.
        source: dictionary that says where the weights come from.
        data: one or two sentences: what they were trained on, and what that means for their use.
        origin: a `model_card.Origin`, for the card.

    Raises:
        UserError: if a weight does not fit into float16, or the file would be too large to ship.
    """
    folder = Path(folder)
    weights = [np.asarray(weight) for weight in model.restorer.get_weights()]
    if any(np.abs(weight).max() > np.finfo(np.float16).max for weight in weights):
        raise UserError(f"{folder}: a weight is too large for float16")
    with files.atomic_path(folder / WEIGHTS) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **{f"{index:03d}": weight.astype(np.float16) for index, weight in enumerate(weights)})
    written = model_card.checksums(folder).get(WEIGHTS)
    if written["bytes"] > LARGEST:
        (folder / WEIGHTS).unlink()
        raise UserError(f"{folder / WEIGHTS}: {written['bytes']} bytes; at most {LARGEST} are shipped")
    description = export.describe(model, source)
    record = {"format": FORMAT, **description, "data": data, "weights": written}
    files.write_json(folder / RECORD, record)
    card = model_card.render("float16 weights", description, {WEIGHTS: written}, origin)
    files.write_text(folder / model_card.FILE, card.replace("## Training data\n", f"## Training data\n\n{data}\n", 1))


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
    logging.warning(
        "%s weights, research only, not for diagnosis. %s Card: %s", NAME, record["data"], folder / model_card.FILE
    )
    return model, {**record["source"], "pretrained": record["r2c_gan"], "sha256": record["weights"]["sha256"]}
