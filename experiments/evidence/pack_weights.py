r"""Packs the restorer of a run as the weights that come with the package: float16, at most 3 MB, with their model card.

  python -m experiments.evidence.pack_weights --run study/runs/operational-3-128-mild-0 --data "Trained on ..." \
      --evaluation EVAL

What lies in `--output_dir` is replaced. `--model=pretrained` of every program then uses it, and prints `--data`.
"""

import dataclasses
from pathlib import Path

import numpy as np
from absl import flags

from r2c_gan import files
from r2c_gan.cli import program
from r2c_gan.data import plausibility
from r2c_gan.data.plausibility import Plausibility
from r2c_gan.errors import UserError
from r2c_gan.evaluation import model_card
from r2c_gan.models import checkpoints, pretrained
from r2c_gan.serving import export

FLAGS = flags.FLAGS
LARGEST = 3_000_000  # bytes
# Of the training's settings: they are folders of whoever trained.
PLACES = ("datasets_dir", "output_dir", "initial_run")


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
    with files.atomic_path(folder / pretrained.WEIGHTS) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **{f"{index:03d}": weight.astype(np.float16) for index, weight in enumerate(weights)})
    written = model_card.checksums(folder).get(pretrained.WEIGHTS)
    if written["bytes"] > LARGEST:
        (folder / pretrained.WEIGHTS).unlink()
        raise UserError(f"{folder / pretrained.WEIGHTS}: {written['bytes']} bytes; at most {LARGEST} are shipped")
    description = export.describe(model, source)
    record = {"format": pretrained.FORMAT, **description, "data": data, "weights": written}
    files.write_json(folder / pretrained.RECORD, record)
    card = model_card.render("float16 weights", description, {pretrained.WEIGHTS: written}, origin)
    files.write_text(folder / model_card.FILE, card.replace("## Training data\n", f"## Training data\n\n{data}\n", 1))


def pack(run, output, data, checkpoint="latest", evaluation=None):
    """Writes the weights of a checkpoint.

    Args:
        run: the run folder.
        output: folder for the weights, their record and their card.
        data: one or two sentences: what they were trained on, and what that means for their use.
        checkpoint: as in `checkpoints.select`.
        evaluation: folder of `r2c-gan-evaluate` for this checkpoint, whose figures the card gives; None without.

    Raises:
        UserError: if the run, the evaluation or `data` will not do.
    """
    if not data.strip():
        raise UserError("--data: must say what the weights were trained on, and what that means for their use")
    model, found = checkpoints.load_model(run, checkpoint)
    origin = model_card.read_origin(run, found, evaluation)
    training = {name: value for name, value in origin.training.items() if name not in PLACES}
    source = {"run": Path(run).resolve().name, "epoch": found.epoch, "checkpoint_sha256": found.sha256}
    save(model, output, source, data.strip(), dataclasses.replace(origin, training=training))
    films, path = Plausibility.load(run), Path(output) / plausibility.FILE
    path.unlink(missing_ok=True)
    if films is not None:
        films.save(path)


def main():
    pack(FLAGS.run, FLAGS.output_dir, FLAGS.data, FLAGS.checkpoint, FLAGS.evaluation)
    for path in sorted(Path(FLAGS.output_dir).iterdir()):
        print(f"{path}: {path.stat().st_size:,} bytes")


def console():
    # Here and not above, so that importing this module defines no flags.
    flags.DEFINE_string("run", None, "The run folder.", required=True)
    flags.DEFINE_string("data", None, "What it was trained on, and what that means for its use.", required=True)
    flags.DEFINE_string("checkpoint", "latest", "latest, best, an epoch, or auto (best if validated, else latest).")
    flags.DEFINE_string("evaluation", None, "Folder of r2c-gan-evaluate for the same checkpoint.")
    flags.DEFINE_string("output_dir", str(pretrained.FOLDER), "Folder for the weights.")
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
