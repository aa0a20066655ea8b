"""Exports the restorer of a run for use without this package, as a SavedModel or as ONNX, with a model card beside it.

  r2c-gan-export --model runs/paper --output exported/
  r2c-gan-export --model runs/paper --output exported/model.onnx --format onnx --evaluation results/paper

A SavedModel has the signatures serving_default (image -> restored, probabilities), serve_encoded (encoded, the bytes of
PNG or JPEG files -> restored_png, probabilities, label) and serve_rest (the same, for TensorFlow Serving's REST
interface); r2c-gan-serve serves it. An ONNX model has the input image and the outputs restored and probabilities.
"""

from absl import flags, logging

from r2c_gan.cli import program
from r2c_gan.errors import UserError

FLAGS = flags.FLAGS

flags.DEFINE_string("model", None, "A run folder, or pretrained.")
flags.DEFINE_string("checkpoint", "auto", "latest, best, an epoch, or auto (best if validated, else latest).")
flags.DEFINE_enum("format", "saved_model", ["saved_model", "onnx"], "What to write; onnx needs r2c-gan[onnx].")
flags.DEFINE_string(
    "output", None, "Folder of the SavedModel, which must not exist yet; or a file ending in .onnx, or a folder for it."
)
flags.DEFINE_string(
    "evaluation", None, "Folder of r2c-gan-evaluate for the same checkpoint, whose figures the model card gives."
)
flags.mark_flags_as_required(["model", "output"])


def main():
    from pathlib import Path

    if FLAGS.format == "saved_model" and FLAGS.output.endswith(".onnx"):
        raise UserError(f"--output={FLAGS.output}: a SavedModel is a folder; give --format=onnx for an ONNX file")
    program.start_tensorflow(only=True)
    logging.set_verbosity(logging.WARNING)  # TensorFlow and tf2onnx note every step
    from r2c_gan.data.plausibility import Plausibility
    from r2c_gan.evaluation import model_card
    from r2c_gan.models import checkpoints, pretrained
    from r2c_gan.serving import export, onnx_export

    if FLAGS.model == pretrained.NAME:
        if FLAGS.evaluation:
            raise UserError("--evaluation: the pretrained weights have a card of their own")
        (model, source), origin, title = pretrained.load(), None, FLAGS.model
    else:
        model, checkpoint = checkpoints.load_model(FLAGS.model, FLAGS.checkpoint)
        source = {"run": Path(FLAGS.model).resolve().name, "epoch": checkpoint.epoch, "sha256": checkpoint.sha256}
        origin = model_card.read_origin(FLAGS.model, checkpoint, FLAGS.evaluation)
        title = f"epoch {checkpoint.epoch} of {FLAGS.model}"
    if FLAGS.format == "onnx":
        onnx_export.export_onnx(model, FLAGS.output, source, origin)
    else:
        films = Plausibility.load(pretrained.FOLDER if FLAGS.model == pretrained.NAME else FLAGS.model)
        export.export_saved_model(model, FLAGS.output, source, origin, films)
    print(f"{title} -> {FLAGS.output}")


def console():
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
