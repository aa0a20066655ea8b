"""Exports the restorer of a run as a SavedModel: image float32 [N, H, W, C] -> restored, probabilities.

r2c-gan-export --model runs/paper --output exported/
"""

from absl import flags

from r2c_gan.cli import program

FLAGS = flags.FLAGS

flags.DEFINE_string("model", None, "A run folder.")
flags.DEFINE_string("checkpoint", "auto", "latest, best, an epoch, or auto (best if validated, else latest).")
flags.DEFINE_string("output", None, "Folder of the SavedModel; it must not exist yet.")
flags.mark_flags_as_required(["model", "output"])


def main():
    program.start_tensorflow()
    from pathlib import Path

    from r2c_gan import checkpoints, export

    model, checkpoint = checkpoints.load_model(FLAGS.model, FLAGS.checkpoint)
    source = {"run": Path(FLAGS.model).name, "epoch": checkpoint.epoch, "sha256": checkpoint.sha256}
    export.export_saved_model(model, FLAGS.output, source)
    print(f"epoch {checkpoint.epoch} of {FLAGS.model} -> {FLAGS.output}")


def console():
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
