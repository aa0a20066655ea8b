"""Evaluates a model on testA/: classification of the poor images, and restoration where testA_reference/ is known.

Writes result.json, predictions.csv, roc.png, confusion_matrix.png and panel.png. A file that cannot be used is left
out, named on standard error and under "failures" in result.json; the exit code is then 1.

  r2c-gan-evaluate --model runs/paper --datasets_dir dataset --output_dir results/paper
"""

import sys
from pathlib import Path

from absl import flags
from tqdm import tqdm

from r2c_gan.cli import program
from r2c_gan.data import window
from r2c_gan.errors import UserError

FLAGS = flags.FLAGS

flags.DEFINE_string("model", None, "A run folder, a SavedModel of r2c-gan-export, or pretrained.")
flags.DEFINE_string("checkpoint", "auto", "Of a run: latest, best, an epoch, or auto (best if validated, else latest).")
flags.DEFINE_string("datasets_dir", "dataset/", "Folder with testA/ and optionally testA_reference/.")
flags.DEFINE_string("split", "testA", "Domain below --datasets_dir; its reference images are in <split>_reference/.")
flags.DEFINE_string("output_dir", None, "Folder for the results; <model>/evaluation by default for a run.")
flags.DEFINE_integer("iterations", 1, "Passes of restoration that are measured.")
flags.DEFINE_integer("batch_size", 8, "Images a batch.")
flags.DEFINE_string("window", "auto", window.HELP)
flags.DEFINE_bool("save_images", False, "Draw a panel of each image: input and 1, 2 and 3 passes, below panels/.")
flags.mark_flag_as_required("model")


def main():
    program.start_tensorflow()
    from r2c_gan import files
    from r2c_gan.data.datasets import read_domain, usable_cases
    from r2c_gan.evaluation.evaluation import Evaluation
    from r2c_gan.restoration.restorer import Restorer

    for name in ("iterations", "batch_size"):
        if FLAGS[name].value < 1:
            raise UserError(f"--{name}={FLAGS[name].value}: must be at least 1")
    stored = window.Window.parse(FLAGS.window)
    model = Path(FLAGS.model)
    if FLAGS.output_dir is None and (FLAGS.model == "pretrained" or (model / "saved_model.pb").is_file()):
        raise UserError("--output_dir: must be given for a SavedModel and for the pretrained weights")
    output = Path(FLAGS.output_dir or model / "evaluation")
    domain = read_domain(Path(FLAGS.datasets_dir) / FLAGS.split)
    print(domain.summary())
    reference = Path(FLAGS.datasets_dir) / f"{FLAGS.split}_reference"
    reference = reference if reference.is_dir() else None
    restorer = Restorer.load(FLAGS.model, FLAGS.checkpoint)

    def bar(title):
        return lambda items: tqdm(items, title)

    domain, failures = usable_cases(domain, reference, bar("checking"), stored)
    iterations = max(FLAGS.iterations, 3) if FLAGS.save_images else FLAGS.iterations
    evaluation = Evaluation(restorer, domain, reference, iterations, FLAGS.batch_size, bar("evaluating"), stored)
    measures = evaluation.measures()
    evaluation.write(output)
    if FLAGS.save_images:
        evaluation.write_panels(output / "panels", bar("drawing"))
    program.write_flags(output)
    result = {"model": restorer.source, "datasets_dir": FLAGS.datasets_dir, **measures, "failures": failures}
    files.write_json(output / "result.json", result)
    print(summarise(measures))
    print(f"-> {output}")
    for failure in failures:
        print(f"left out: {failure['file']}: {failure['reason']}", file=sys.stderr)
    return 1 if failures else 0


def summarise(measures):
    """A few lines for the terminal."""
    shown = ("accuracy", "sensitivity", "specificity", "precision", "f1", "f2", "auroc")
    classification = measures["classification"]
    lines = [f"n = {measures['n']}"]
    lines += [f"{name:20s} {_number(classification[name])}" for name in shown]
    for name, value in (measures["restoration"] or {}).items():
        lines.append(f"{name:20s} {_number(value['mean'])}")
    return "\n".join(lines)


def _number(value):
    return "undefined" if value is None else f"{value:.4f}"


def console():
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
