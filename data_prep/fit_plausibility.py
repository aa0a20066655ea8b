"""Describes the training films of a model, so that images unlike them are warned of; a training does so by itself.

  python -m data_prep.fit_plausibility --datasets_dir dataset --output runs/older/plausibility.npz

For a run of an older version, or weights from elsewhere. See r2c_gan/plausibility.py.
"""

from pathlib import Path

from absl import flags
from tqdm import tqdm

from r2c_gan.cli import program
from r2c_gan.data import images, plausibility
from r2c_gan.errors import UserError

FLAGS = flags.FLAGS


def main():
    output = Path(FLAGS.output)
    if output.name != plausibility.FILE:
        raise UserError(f"--output={output}: must be called {plausibility.FILE}, as it is looked for by that name")
    if FLAGS.readers < 1:
        raise UserError(f"--readers={FLAGS.readers}: must be at least 1")
    folders = [Path(FLAGS.datasets_dir) / name for name in ("trainA", "trainB")]
    domains = [images.list_images(folder, recursive=True) for folder in folders]
    count = sum(map(len, domains))
    used = min(count, plausibility.MOST)
    fitted = plausibility.fit_files(
        domains, FLAGS.window, FLAGS.readers, lambda films: tqdm(films, "reading", used, unit="film")
    )
    if fitted is None:
        raise UserError(f"--datasets_dir={FLAGS.datasets_dir}: {count} films; {plausibility.FEWEST} are needed")
    fitted.save(output)
    print(f"{used} films -> {output}")


def console():
    # Here and not above, so that importing this module defines no flags.
    flags.DEFINE_string(
        "datasets_dir", None, "The datasets folder of the training; trainA/ and trainB/ are read.", required=True
    )
    flags.DEFINE_string("output", None, "plausibility.npz in the run folder.", required=True)
    flags.DEFINE_string("window", "auto", "Which stored values become black and white, as in r2c-gan-train.")
    flags.DEFINE_integer("readers", 2, "Threads that read files.")
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
