"""Turns the results of the evidence into the README's tables and figures; nothing in them is typed by hand.

  python -m experiments.tabulate

Reads what `experiments.evidence` recorded, writes the figures into `--figures_dir` and each table between its two
comments in `--page`. Values are means over the seeds of a row; brackets are 95% bootstrap intervals over test images,
the same resampled images for all seeds; ± is the standard deviation over seeds.
"""

import csv
import dataclasses
import re
from pathlib import Path

import numpy as np
from absl import flags
from matplotlib.figure import Figure

from experiments.evidence import SEVERITIES, rows, size_and_data
from r2c_gan import files, metrics
from r2c_gan.cli import program
from r2c_gan.errors import UserError

FLAGS = flags.FLAGS
HERE = Path(__file__).parent
TITLES = {
    "operational-1": "operational, q=1",
    "operational-3": "operational, q=3",
    "operational-5": "operational, q=5",
    "paper-3": "operational, q=3, the paper's recipe",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """All seeds of one row on one test set.

    Attributes:
        name: of the row.
        files: list of N names.
        labels: int [N].
        probabilities: float [seeds, N], of COVID-19.
        scores: dictionary, "psnr_input" and so on -> float [seeds, N]; empty without clean twins.
        seconds, parameters: mean training time, and size of one restorer.
    """

    name: str
    files: list
    labels: np.ndarray
    probabilities: np.ndarray
    scores: dict
    seconds: float
    parameters: int

    def f1(self):
        return self._classification("f1")

    def auroc(self):
        return self._classification("auroc")

    def _classification(self, measure):
        def statistic(labels, *probabilities):
            values = [metrics.classification_metrics(labels, p)[measure] for p in probabilities]
            return None if None in values else float(np.mean(values))

        return _estimate(statistic, self.labels, *self.probabilities)

    def score(self, name, minus=None):
        """Mean over images and seeds of a score, or of its paired difference to another."""
        values = self.scores[name] - (self.scores[minus] if minus else 0)
        return _estimate(lambda *seeds: float(np.mean(seeds)), *values)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds, its 95% interval over images, and the standard deviation over seeds (None for one seed)."""

    value: float
    low: float
    high: float
    deviation: float | None

    def text(self, digits, sign=""):
        middle = f"{self.value:{sign}.{digits}f}"
        if self.deviation is not None:
            middle += f" ± {self.deviation:.{digits}f}"
        return middle if self.low is None else f"{middle} [{self.low:{sign}.{digits}f}, {self.high:{sign}.{digits}f}]"


def _estimate(statistic, *arrays):
    """`arrays`: labels if any come first, then one array a seed."""
    low, high = metrics.bootstrap_interval(statistic, *arrays)
    labels = [arrays[0]] if arrays[0].dtype.kind == "i" else []
    seeds = arrays[len(labels) :]
    singles = [statistic(*labels, seed) for seed in seeds]
    return Estimate(statistic(*arrays), low, high, float(np.std(singles, ddof=1)) if len(seeds) > 1 else None)


def load(results, row, seeds, test):
    """The seeds of a row that are done, on one test set.

    Returns:
        A `Row`, or None if none is done.

    Raises:
        UserError: if two seeds were not tested on the same images.
    """
    done = [results / f"{row}-{seed}" for seed in seeds if (results / f"{row}-{seed}" / "result.json").is_file()]
    if not done or not (done[0] / f"predictions-{test}.csv").is_file():
        return None
    tables = []
    for folder in done:
        with (folder / f"predictions-{test}.csv").open(newline="", encoding="utf-8") as file:
            tables.append(list(csv.DictReader(file)))
    names = [line["file"] for line in tables[0]]
    for folder, table in zip(done, tables, strict=True):
        if [line["file"] for line in table] != names:
            raise UserError(f"{folder}: was tested on other images than {done[0]}")

    def column(name):
        return np.array([[float(line[name]) for line in table] for table in tables])

    training = [files.read_json(folder / "result.json")["training"] for folder in done]
    return Row(
        row,
        names,
        np.array([int(line["true_label"] == "covid") for line in tables[0]]),
        column("p_covid"),
        {name: column(name) for name in tables[0][0] if re.match("(psnr|ssim)_", name)},
        float(np.mean([value["training_seconds"] for value in training])),
        training[0]["parameters"]["restorer"],
    )


def table(loaded):
    """Rows of one test set in Markdown, the poor images themselves first."""
    restores = all(row.scores for row in loaded)
    head = ["", "seeds", "F1", "AUROC"] + ["PSNR (dB)", "SSIM"] * restores + ["parameters", "hours"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    if restores:
        lines.append(f"| poor images | | | | {_poor(loaded[0], 'psnr', 2)} | {_poor(loaded[0], 'ssim', 3)} | | |")
    for row in loaded:
        cells = [title(row.name), str(len(row.probabilities)), row.f1().text(2), row.auroc().text(2)]
        if restores:
            cells += (
                [row.score("psnr_restored").text(2), row.score("ssim_restored").text(3)] if row.scores else ["", ""]
            )
        cells += [f"{row.parameters:,}", f"{row.seconds / 3600:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _poor(row, measure, digits):
    # The same for every seed.
    return dataclasses.replace(row.score(f"{measure}_input"), deviation=None).text(digits)


def title(row):
    """What a row is called in a table: "operational, q=3" for "operational-3-128-mild"."""
    variant = "-".join(row.split("-")[:-2])
    return TITLES.get(variant, variant.replace("_", " "))


def save_gains(tests, path):
    """Draws the gain in PSNR of every row by severity, with its interval, as a dot plot.

    Args:
        tests: dictionary, title of a test set -> list of `Row` with scores.
        path: the PNG to write.
    """
    names = list(dict.fromkeys(title(row.name) for loaded in tests.values() for row in loaded))
    figure = Figure(figsize=(7, 1.2 + 0.38 * len(names)), layout="constrained")
    axes = figure.subplots()
    for place, (test, loaded) in enumerate(tests.items()):
        shift = 0.16 * (place - (len(tests) - 1) / 2)
        for row in loaded:
            gain = row.score("psnr_restored", minus="psnr_input")
            y = names.index(title(row.name)) + shift
            axes.plot([gain.low, gain.high], [y, y], color=f"C{place}", linewidth=2, alpha=0.5)
            axes.plot(gain.value, y, "o", color=f"C{place}", label=test if row is loaded[0] else None)
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("gain in PSNR over the poor image (dB), 95% interval")
    axes.legend(frameon=False, title="test images")
    axes.spines[["top", "right"]].set_visible(False)
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def fill(page, tables):
    """Writes each table between `<!-- table: NAME -->` and `<!-- end -->` of a Markdown page.

    Raises:
        UserError: if the page has no place for one.
    """
    text = Path(page).read_text(encoding="utf-8")
    for name, content in tables.items():
        place = re.compile(rf"(<!-- table: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not place.search(text):
            raise UserError(f"{page}: has no lines '<!-- table: {name} -->' and '<!-- end -->'")
        text = place.sub(lambda found, content=content: f"{found[1]}{content}\n{found[2]}", text)
    return text


def tables(results):
    """Dictionary from the name of a table to its Markdown, and the test sets with scores for the figure."""
    made, drawn = {}, {}
    known = rows()
    for size in sorted({size_and_data(row)[0] for row in known}, reverse=True):
        for data in (*SEVERITIES, "quality"):
            trained = [row for row in known if size_and_data(row) == (size, data)]
            loaded = [found for row in trained if (found := load(results, row, known[row], data))]
            if loaded:
                made[f"{size} {data}"] = table(loaded)
                if loaded[0].scores:
                    drawn[f"{size} px, {data}"] = loaded
    return made, drawn


def main():
    made, drawn = tables(Path(FLAGS.results_dir))
    if not made:
        raise UserError(f"--results_dir={FLAGS.results_dir}: holds no result yet; run experiments.evidence first")
    if drawn:
        save_gains(drawn, Path(FLAGS.figures_dir) / "evidence_gains.png")
    text = "\n\n".join(f"**{name}**\n\n{content}" for name, content in made.items())
    if FLAGS.page:
        files.write_text(FLAGS.page, fill(FLAGS.page, made))
    print(text)


def console():
    # Here and not above, so that importing this module defines no flags.
    flags.DEFINE_string("results_dir", str(HERE / "results" / "evidence"), "What experiments.evidence recorded.")
    flags.DEFINE_string("figures_dir", str(HERE.parent / "docs"), "Folder for the figures.")
    flags.DEFINE_string("page", None, "The Markdown page whose tables are filled; none by default.")
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
