"""Turns a checkpoint of the authors' implementation into a run that evaluates, restores and exports.

r2c-gan-import-checkpoint --checkpoint checkpoints/operational --method operational --q 3 --output_dir runs/authors
"""

from absl import flags

from r2c_gan.cli import program

FLAGS = flags.FLAGS

flags.DEFINE_string("checkpoint", None, "Folder of the authors' checkpoint (checkpoint, ckpt-N.index, ckpt-N.data-*).")
flags.DEFINE_enum(
    "method", "operational", ["operational", "convolutional", "convolutional-light"], "What it was trained with."
)
flags.DEFINE_integer("q", 3, "Order of its operational layers.")
flags.DEFINE_integer("crop_size", 256, "Side of the images it was trained on.")
flags.DEFINE_string("output_dir", None, "The run folder to make.")
flags.mark_flags_as_required(["checkpoint", "output_dir"])


def main():
    program.start_tensorflow()
    from r2c_gan.models import checkpoints

    imported = checkpoints.import_authors_checkpoint(
        FLAGS.checkpoint, FLAGS.output_dir, FLAGS.method, FLAGS.q, FLAGS.crop_size
    )
    program.write_flags(FLAGS.output_dir)
    print(f"{FLAGS.checkpoint}, {imported.epoch} epochs trained -> {FLAGS.output_dir}")


def console():
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
