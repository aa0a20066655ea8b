"""Makes a reader study: a page on which readers compare original and restored radiographs, blinded.

  python -m experiments.reader_study.make --original dataset/testA --restored restored --output_dir study

OUTPUT_DIR/for_readers/ is what readers get: index.html opens in a browser, without a server or a network. Which image
is the restored one says OUTPUT_DIR/key.json, which readers do not get; the analysis needs it. Order, sides and the
image that is diagnosed on its own are drawn from --seed. Research only, not for diagnosis.
"""

from collections import Counter
from pathlib import Path

import numpy as np
from absl import flags
from tqdm import tqdm

from experiments.reader_study import design
from experiments.reader_study.pairs import find_pairs
from experiments.reader_study.study import KEY_FILE, READERS_FOLDER, write_study
from r2c_gan.cli import program
from r2c_gan.errors import UserError

FLAGS = flags.FLAGS
MOST_REPEATS = 0.5


def main():
    if not 0 <= FLAGS.repeats <= MOST_REPEATS:
        raise UserError(f"--repeats={FLAGS.repeats}: must be from 0 to {MOST_REPEATS}, a share of the cases")
    pairs, unpaired = find_pairs(FLAGS.original, FLAGS.restored, FLAGS.labels)
    if unpaired:
        print(f"left out for want of a restored image: {len(unpaired)} of the originals, {unpaired[0]} first")
    number = len(pairs) if FLAGS.cases is None else FLAGS.cases
    if not 2 <= number <= len(pairs):
        raise UserError(f"--cases={number}: must be from 2 to the {len(pairs)} pairs that were found")
    if len({pair.label for pair in pairs}) == 1:
        raise UserError(
            f"--original={FLAGS.original}: all {len(pairs)} cases are labelled {pairs[0].label!r}, so the question for "
            "COVID-19 would have one answer; give --labels=FILE (file,label), class folders, or names with 'covid'"
        )
    chosen = design.choose_cases([pair.label for pair in pairs], number, np.random.default_rng([FLAGS.seed, 1]))
    pairs = [pairs[index] for index in chosen]
    key = write_study(
        FLAGS.output_dir,
        pairs,
        repeats=round(FLAGS.repeats * number),
        seed=FLAGS.seed,
        title=FLAGS.title,
        max_side=FLAGS.max_side,
        allow_no_preference=FLAGS.allow_no_preference,
        progress=lambda shown: tqdm(shown, desc="pairs", unit="pair"),
    )
    program.write_flags(FLAGS.output_dir)
    classes = ", ".join(f"{count} {name}" for name, count in sorted(Counter(pair.label for pair in pairs).items()))
    print(f"study {key['study']}: {number} cases ({classes}), {len(key['presentations']) - number} of them shown twice")
    output = Path(FLAGS.output_dir)
    print(f"Give readers the folder {output / READERS_FOLDER}; keep {output / KEY_FILE} from them.")


def console():
    # Here and not above, so that importing this module defines no flags.
    flags.DEFINE_string("original", None, "Folder of the radiographs as they were.", required=True)
    flags.DEFINE_string(
        "restored", None, "Folder of the restored images, named as the originals (any suffix).", required=True
    )
    flags.DEFINE_string(
        "labels",
        None,
        "CSV with the columns file,label and perhaps patient. Without it: a labels.csv, class folders or 'covid' in "
        "the file names of --original.",
    )
    flags.DEFINE_string("output_dir", None, "Folder to make: for_readers/ and key.json.", required=True)
    flags.DEFINE_integer(
        "cases", None, "Pairs to use, drawn at random with the classes balanced. Default: all.", lower_bound=2
    )
    flags.DEFINE_float("repeats", 0.1, "Share of the cases shown a second time, with sides swapped: consistency.")
    flags.DEFINE_integer("seed", 0, "Seed of everything that is random.", lower_bound=0)
    flags.DEFINE_string("title", "Chest radiograph reader study", "Heading of the page.")
    flags.DEFINE_integer(
        "max_side", 2048, "Larger images are reduced to this many pixels a side.", lower_bound=16, upper_bound=8192
    )
    flags.DEFINE_bool("allow_no_preference", False, "Let readers decline to choose.")
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
