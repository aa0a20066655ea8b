"""Analyses the answers to a reader study.

  python -m experiments.reader_study.analyse --key study/key.json --answers answers --output_dir results/readers

--answers are the files that readers saved, or folders of them, with commas between. Writes result.json, report.md with
its figures (preference.png, ratings.png, diagnosis.png) and answers.csv, every answer unblinded. A file that is
malformed, of another study, or contradicts another one of the same reader is named and refused; incomplete ones are
used and reported. Research only, not for diagnosis.
"""

from pathlib import Path

from absl import flags

from experiments.reader_study import answers, measures, report
from r2c_gan import files
from r2c_gan.cli import program

FLAGS = flags.FLAGS


def main():
    key = answers.read_key(FLAGS.key)
    readers, notes = answers.read_answers(answers.find_files(FLAGS.answers), key)
    rows = answers.unblind(readers, key)
    result = {
        "study": key["study"],
        "title": key["title"],
        "caution": "Research only, not for diagnosis.",
        "notes": notes,
        **measures.analyse(rows, n=FLAGS.bootstrap, seed=FLAGS.seed),
    }
    output = Path(FLAGS.output_dir)
    files.write_csv(output / "answers.csv", rows, answers.COLUMNS)
    report.save_figures(result, output)
    files.write_text(output / "report.md", report.markdown(result))
    files.write_json(output / "result.json", result)
    program.write_flags(output)
    for note in [*notes, *report.cautions(result)]:
        print(note)
    print(summary(result))


def summary(result):
    """The main finding in one line."""
    restored = result["preference"]["restored"]
    if restored is None:
        return "No preference was stated."
    low, high, method = report.main_interval(restored)
    return (
        f"{report.count(result['readers'], 'reader')}, {report.count(result['cases'], 'case')}: restored preferred in "
        f"{restored['value']:.1%} "
        f"[{low:.1%}, {high:.1%}] of {restored['n']} pairs (95%, {method}); the paper reports 68%"
    )


def console():
    # Here and not above, so that importing this module defines no flags.
    flags.DEFINE_string("key", None, "The key.json of the study.", required=True)
    flags.DEFINE_list("answers", None, "Files that readers saved, or folders of them.", required=True)
    flags.DEFINE_string("output_dir", None, "Folder for the results.", required=True)
    flags.DEFINE_integer("bootstrap", 2000, "Bootstrap samples.", lower_bound=100)
    flags.DEFINE_integer("seed", 0, "Seed of the bootstrap.", lower_bound=0)
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
