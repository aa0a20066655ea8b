"""Turns the results of the evidence into the tables and figures of README and docs; nothing in them is typed by hand.

  python -m experiments.evidence.tabulate --pages README.md,docs/results.md

Reads what `experiments.evidence`, `experiments.restoration` and `experiments.benchmarks` recorded, writes the
figures into `--figures_dir` and each table between its two comments in `--pages`. What the numbers mean:
`experiments.evidence.rows`.
"""

import re
from pathlib import Path

from absl import flags

from experiments.evidence import tables as evidence_tables
from experiments.evidence.figures import save_gains
from experiments.evidence.rows import ABLATION, load, variant
from experiments.evidence.study import SEVERITIES, rows, size_and_data
from r2c_gan import files
from r2c_gan.cli import program
from r2c_gan.errors import UserError

FLAGS = flags.FLAGS
HERE = Path(__file__).parents[1]
# What the summary is of: the method of the paper, and the same with a degrader that draws noise and exposure.
SUMMARISED = ("operational-3", "operational-3-noise-tone")


def fill(page, tables):
    """The text of a Markdown page with each table between its `<!-- table: NAME -->` and `<!-- end -->`.

    Raises:
        UserError: if the page has no place for a table, or names one that there is not.
    """
    text = Path(page).read_text(encoding="utf-8")
    names = re.findall(r"<!-- table: (.*?) -->", text)
    if not names:
        raise UserError(f"{page}: has no lines '<!-- table: NAME -->' and '<!-- end -->'; NAME: {', '.join(tables)}")
    for name in names:
        place = re.compile(rf"(<!-- table: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        if name not in tables:
            raise UserError(f"{page}: there is no table {name!r}, only {', '.join(tables)}")
        if not place.search(text):
            raise UserError(f"{page}: the table {name!r} has no line '<!-- end -->'")
        text = place.sub(lambda found, name=name: f"{found[1]}{tables[name]}\n{found[2]}", text)
    return text


def tables(results):
    """Dictionary from the name of a table to its Markdown, and the test sets with scores for the figure.

    Args:
        results: the folder of `experiments.evidence`; the other results are looked for beside it.
    """
    made, drawn, main_rows = {"flags": evidence_tables.flags_table()}, {}, {}
    known = rows()
    compared = restorations(results.parent / "restoration")
    for size in sorted({size_and_data(row)[0] for row in known}, reverse=True):
        for data in (*SEVERITIES, "quality"):
            trained = [row for row in known if size_and_data(row) == (size, data)]
            every = [found for row in trained if (found := load(results, row, known[row]["seeds"], data))]
            if ablations := [row for row in every if row.name.startswith(ABLATION)]:
                ablations.sort(
                    key=lambda row: variant(row.name) != f"{ABLATION}none"
                )  # what the others are held against
                made[f"ablations {size} {data}"] = evidence_tables.methods_table(ablations)
            if loaded := [row for row in every if not row.name.startswith(ABLATION)]:
                made[f"{size} {data}"] = evidence_tables.methods_table(loaded)
                if loaded[0].scores:
                    drawn[f"{size} px, {data}"] = loaded
                for row in loaded:
                    if row.scores and variant(row.name) in SUMMARISED:
                        main_rows.setdefault((size, data), []).append(row)
    if main_rows:
        made["summary"] = evidence_tables.summary_table(main_rows, compared)
    for path in sorted((results.parent / "classifiers").glob("*-*/result.json")):
        made[f"classifiers {path.parent.name.replace('-', ' ')}"] = evidence_tables.classifiers_table(
            files.read_json(path)
        )
    made |= {
        f"restoration {size} {data}": evidence_tables.restoration_table(result)
        for (size, data), result in compared.items()
    }
    for path in sorted((results.parent / "preservation").glob("*/result.json")):
        result, data = files.read_json(path), path.parent.name.replace("-", " ")
        made[f"preservation {data}"] = evidence_tables.preservation_table(result)
        made[f"agreement {data}"] = evidence_tables.agreement_table(result)
    for name, build, sources in (
        ("quickstart", evidence_tables.quickstart_table, ("quickstart",)),
        ("options", evidence_tables.options_table, ("options",)),
        ("speed", evidence_tables.speed_table, ("benchmark",)),
    ):
        paths = [results.parent / source / "result.json" for source in sources]
        if all(path.is_file() for path in paths):
            made[name] = build(*map(files.read_json, paths))
    return {name: content for name, content in made.items() if content}, drawn


def restorations(folder):
    """Dictionary (size, severity) -> result of `experiments.restoration` in `<folder>/<size>-<severity>`."""
    paths = sorted(Path(folder).glob("*-*/result.json"))
    return {
        (int(path.parent.name.split("-")[0]), path.parent.name.split("-")[1]): files.read_json(path) for path in paths
    }


def main():
    made, drawn = tables(Path(FLAGS.results_dir))
    if set(made) == {"flags"}:
        raise UserError(f"--results_dir={FLAGS.results_dir}: holds no result yet; run experiments.evidence first")
    if drawn:
        save_gains(drawn, Path(FLAGS.figures_dir) / "evidence_gains.png")
    text = "\n\n".join(f"**{name}**\n\n{content}" for name, content in made.items())
    for page, content in [(page, fill(page, made)) for page in FLAGS.pages]:  # all can be filled, or none is
        files.write_text(page, content)
    print(text)


def console():
    # Here and not above, so that importing this module defines no flags.
    flags.DEFINE_string("results_dir", str(HERE / "results" / "evidence"), "What experiments.evidence recorded.")
    flags.DEFINE_string("figures_dir", str(HERE.parent / "docs"), "Folder for the figures.")
    flags.DEFINE_list("pages", [], "Markdown pages whose tables are filled, as README.md,docs/results.md.")
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
