r"""Packs the restorer of a run as the weights that come with the package: float16, at most 3 MB, with their model card.

  python -m experiments.evidence.pack_weights --run study/runs/operational-3-128-mild-0 --data "Trained on ..." \
      --evaluation EVAL

What lies in `--output_dir` is replaced. `--model=pretrained` of every program then uses it, and prints `--data`.
"""

import dataclasses
from pathlib import Path

from absl import flags

from r2c_gan import checkpoints, model_card, plausibility, pretrained
from r2c_gan.cli import program
from r2c_gan.errors import UserError
from r2c_gan.plausibility import Plausibility

FLAGS = flags.FLAGS
# Of the training's settings: they are folders of whoever trained.
PLACES = ("datasets_dir", "output_dir", "initial_run")


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
    pretrained.save(model, output, source, data.strip(), dataclasses.replace(origin, training=training))
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
