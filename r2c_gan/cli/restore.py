"""Restores radiographs and classifies them.

Writes PNGs at their own size, and predictions.csv (file, p_control, p_covid, label).

  r2c-gan-restore --model runs/paper --input radiographs/ --output restored/

Research only, not for diagnosis.
"""

from pathlib import Path

from absl import flags
from tqdm import tqdm

from r2c_gan.cli import program
from r2c_gan.errors import UserError

FLAGS = flags.FLAGS

flags.DEFINE_string("model", None, "A run folder, or a SavedModel of r2c-gan-export.")
flags.DEFINE_string("checkpoint", "auto", "Of a run: latest, best, an epoch, or auto (best if validated, else latest).")
flags.DEFINE_string("input", None, "An image file, or a folder of them (sub-folders too).")
flags.DEFINE_string("output", None, "Folder for the restored images and predictions.csv.")
flags.DEFINE_integer("iterations", 1, "Passes; each restores what the one before gave.")
flags.mark_flags_as_required(["model", "input", "output"])


def main():
    program.start_tensorflow()
    from r2c_gan import files, images
    from r2c_gan.restoration import Restorer, restore_files

    if FLAGS.iterations < 1:
        raise UserError(f"--iterations={FLAGS.iterations}: must be at least 1")
    source = Path(FLAGS.input)
    if source.is_dir():
        found = [(file, file.relative_to(source)) for file in images.list_images(source, recursive=True)]
    elif source.exists():
        found = [(source, Path(source.name))]
    else:
        raise UserError(f"--input={source}: no such file or folder")
    if not found:
        raise UserError(f"--input={source}: holds no image ({', '.join(images.IMAGE_SUFFIXES)})")
    _refuse_collisions(found, Path(FLAGS.output))
    restorer = Restorer.load(FLAGS.model, FLAGS.checkpoint)
    rows = restore_files(restorer, found, FLAGS.output, FLAGS.iterations, lambda items: tqdm(items, "restoring"))
    program.write_flags(FLAGS.output)
    labels = [row["label"] for row in rows]
    counts = {label: labels.count(label) for label in sorted(set(labels))}
    result = {"model": restorer.source, "images": len(rows), "iterations": FLAGS.iterations, "labels": counts}
    files.write_json(Path(FLAGS.output) / "result.json", result)
    print(f"{len(rows)} images ({', '.join(f'{n} {label}' for label, n in counts.items())}) -> {FLAGS.output}")
    print("Research only, not for diagnosis.")


def _refuse_collisions(found, output):
    """Two inputs that differ in the suffix alone would become one PNG, and an input's own folder would lose it."""
    taken = {}
    inputs = {file.resolve() for file, _ in found}
    for file, name in found:
        target = (output / name).with_suffix(".png")
        if target in taken:
            raise UserError(f"{file}: would overwrite the result of {taken[target]}; rename one of them")
        if target.resolve() in inputs:
            raise UserError(f"--output={output}: would overwrite the input {target}; give another folder")
        taken[target] = file


def console():
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
