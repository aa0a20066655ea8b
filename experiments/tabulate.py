"""Turns the results of the evidence into the README's tables and figures; nothing in them is typed by hand.

  python -m experiments.tabulate

Reads what `experiments.evidence`, `experiments.compare_restoration` and `experiments.benchmark` recorded, writes the
figures into `--figures_dir` and each table between its two comments in `--page`. Values are means over the seeds of a
row; brackets are 95% bootstrap intervals over test images, the same resampled images for all seeds; ± is the standard
deviation over seeds.
"""

import csv
import dataclasses
import re
from pathlib import Path

import numpy as np
from absl import flags
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from experiments import restoration_figures
from experiments.evidence import SEVERITIES, rows, size_and_data
from r2c_gan import files, metrics
from r2c_gan.cli import program
from r2c_gan.errors import UserError

FLAGS = flags.FLAGS
HERE = Path(__file__).parent
RESTORATION = {"psnr": ("PSNR (dB)", 2), "ssim": ("SSIM", 3), "haarpsi": ("HaarPSI", 3), "ms_ssim": ("MS-SSIM", 3)}
TITLES = {
    "operational-1": "operational, q=1",
    "operational-3": "operational, q=3",
    "operational-3-noise": "operational, q=3, noise",
    "operational-5": "operational, q=5",
    "paper-3": "operational, q=3, the paper's recipe",
}
# What the summary is of: the method of the paper, and the same with a degrader that is fed noise.
SUMMARISED = ("operational-3", "operational-3-noise")
# Of `experiments.compare_options`.
OPTIONS = {
    "baseline": "the recipe",
    "mixed_bfloat16": "`--precision=mixed_bfloat16`",
    "ema": "`--ema_decay=0.99`",
    "clip_norm": "`--clip_norm=1`",
    "early_stopping": "`--early_stopping=3` (never came to stop in 8 epochs; the best epoch)",
    "unbalanced": "80% of the COVID-19 training phantoms left out",
    "unbalanced-class_weights": "the same, `--class_weights=balanced`",
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
        """Mean over images and seeds of a score, or of its paired difference to another.

        An image that was degraded so little that 8 bits show nothing of it (infinite PSNR) is left out of the PSNR.
        """
        kept = np.isfinite(self.scores[f"{name.split('_')[0]}_input"]).all(axis=0)
        values = self.scores[name][:, kept]
        if minus:
            values = values - self.scores[minus][:, kept]
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


def _interval(found, key="value", digits=2):
    """A recorded value with its 95% interval."""
    return Estimate(found[key], found["low"], found["high"], None).text(digits)


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


def summary_table(cells, restorations):
    """The method of the paper on each test set, beside the best of the classical methods.

    Args:
        cells: dictionary (size, severity) -> list of `Row`s that were trained with that severity.
        restorations: dictionary of the same keys -> `result.json` of `experiments.compare_restoration`.
    """
    lines = [
        "| public radiographs | | seeds | n | PSNR (dB) poor → best classical → restored | SSIM | F1 | AUROC |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (size, data), row in ((key, row) for key, found in cells.items() for row in found):
        texts = []
        for measure, digits in (("psnr", 1), ("ssim", 2)):
            steps = [row.score(f"{measure}_input").value]
            if (size, data) in restorations:
                result = restorations[size, data]
                steps.append(mean_of(result, result["best_classical"][measure], measure)["mean"])
            restored = dataclasses.replace(row.score(f"{measure}_restored"), deviation=None)
            texts.append(" → ".join([*(f"{value:.{digits}f}" for value in steps), restored.text(digits)]))
        cells = [f"{size} px, {data}", title(row.name), str(len(row.probabilities)), str(len(row.labels)), *texts]
        lines.append("| " + " | ".join([*cells, row.f1().text(2), row.auroc().text(2)]) + " |")
    return "\n".join(lines)


def mean_of(result, method, measure, against=None, grouping="all", group="all"):
    """The row of `experiments.compare_restoration`'s result with the mean of a measure: n, mean, low, high."""
    key = {"method": method, "measure": measure, "against": against, "grouping": grouping, "group": group}
    (found,) = [row for row in result["rows"] if key.items() <= row.items()]
    return found


def restoration_table(result):
    """Every method of restoring beside the poor image, over one test set, in Markdown."""
    measures = [measure for measure in RESTORATION if any(row["measure"] == measure for row in result["rows"])]
    lines = [
        "| | " + " | ".join(RESTORATION[measure][0] for measure in measures) + " | PSNR higher than poor |",
        "|" + "---|" * (len(measures) + 2),
    ]
    for method in dict.fromkeys(row["method"] for row in result["rows"]):
        cells = [restoration_figures.title(method)]
        for measure in measures:
            row = mean_of(result, method, measure)
            cells.append(Estimate(row["mean"], row["low"], row["high"], None).text(RESTORATION[measure][1]))
        better = "" if method == "input" else f"{mean_of(result, method, 'psnr', 'input')['improved']:.0%}"
        lines.append("| " + " | ".join([*cells, better]) + " |")
    return "\n".join(lines)


def preservation_table(result):
    """What becomes of the opacities of phantoms (`experiments.disease_preservation`), in Markdown."""
    columns = {
        "opacity contrast kept": ("opacities", "kept"),
        "beyond anatomy": ("opacities", "kept_beyond_anatomy"),
        "opacities invented in controls": ("controls", "false_opacity_anywhere"),
    }
    phantoms = result["phantoms"]
    lines = [f"| {phantoms['n']} phantoms, {phantoms['n_covid']} with opacities | " + " | ".join(columns) + " |"]
    lines.append("|" + "---|" * (1 + len(columns)))
    for stage, measures in phantoms["stages"].items():
        cells = [stage]
        for group, name in columns.values():
            found = measures[group][name]
            cells.append(_interval(found, "value" if "value" in found else "share"))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def classifiers_table(result):
    """Plain classifiers beside the joint head (`experiments.compare_classifiers`, of one model), in Markdown.

    McNemar's exact test is of the head's verdicts on poor images against those of the row.
    """
    tested = {
        pair["second"]: pair["mcnemar"]["p_value"]
        for pair in result["comparisons"]
        if pair["first"].startswith("joint head of ")
    }
    lines = [
        f"| n = {result['n']} | images | F1 | AUROC | sensitivity | specificity | McNemar p, against the joint head |",
        "|---|---|---|---|---|---|---|",
    ]
    for verdict in result["verdicts"]:
        cells = ["joint head" if verdict["joint_head"] else _named(verdict["classifier"], result["classifiers"])]
        cells.append(re.sub(" by .*", "", verdict["images"]))
        for measure in ("f1", "auroc", "sensitivity", "specificity"):
            cells.append(_interval(verdict["measures"][measure]))
        p_value = None if verdict["joint_head"] else tested.get(f"{verdict['classifier']} on {verdict['images']}")
        cells.append("" if p_value is None else f"{p_value:.3f}" if p_value >= 0.001 else "< 0.001")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _named(name, classifiers):
    """What a plain classifier is called: its network and what it was trained on."""
    trained_on = {"trainA": "poor", "trainB": "good", "both": "poor and good"}
    settings = classifiers[name]
    images = trained_on.get(settings["train_on"], settings["train_on"])
    return f"{settings['network']}, trained on {images}" + (", restored" if settings["restorer"] else "")


def agreement_table(result):
    """What an outside classifier says before and after restoring (`experiments.disease_preservation`), in Markdown.

    None if only phantoms were measured.
    """
    found = result["radiographs"]
    if not found:
        return None
    classifier = result["classifier"]
    lines = [
        f"| {found['n']} radiographs, verdicts of {_named(classifier['name'], {classifier['name']: classifier})} "
        "| agree with those on clean images | kappa | COVID-19 lost | COVID-19 invented | F1 |",
        "|---|---|---|---|---|---|",
    ]
    for place, (name, measured) in enumerate(found["models"].items()):
        for image in ("poor", "restored")[place > 0 :]:
            agreement = measured["agreement"][f"{image}_clean"]
            cells = [image if image == "poor" else f"restored by {name}"]
            for values, key in (
                (agreement["agreeing"], "share"),
                (agreement["kappa"], "value"),
                (measured["against_clean"][image]["lost"], "share"),
                (measured["against_clean"][image]["invented"], "share"),
            ):
                cells.append(_interval(values, key))
            lines.append("| " + " | ".join([*cells, f"{measured['f1'][image]:.2f}"]) + " |")
    return "\n".join(lines)


def speed_table(result):
    """`experiments.benchmark`'s result: time over the literal reading in float32 and bfloat16, and peak memory."""
    steps = {(step["network"], step["size"], step["batch"]): step for step in result["steps"]}
    columns = sorted({key[1:] for key in steps})
    lines = [
        "| float32, bfloat16; memory | " + " | ".join(f"{size} px, batch {batch}" for size, batch in columns) + " |",
        "|" + "---|" * (len(columns) + 1),
    ]
    for network in dict.fromkeys(key[0] for key in steps):
        cells = [TITLES.get(network, network)]
        for column in columns:
            step = steps.get((network, *column))
            cells.append(
                f"{step['float32']['ratio']:.2f}, {step['mixed_bfloat16']['ratio']:.2f}; "
                f"{step['float32']['memory_ratio']:.2f}"
                if step
                else ""
            )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def runs_table(quickstart, radiographs):
    """The quickstart on phantoms, and a first run on radiographs, each as its program recorded it."""
    judged, restored = radiographs["classification"], radiographs["restoration"]
    phantoms = [
        f"quickstart: synthetic phantoms, 64 px, {quickstart['seconds'] / 60:.0f} minutes",
        str(quickstart["n"]),
    ]
    films = ["1,565 public radiographs, 128 px, 33 minutes", str(judged["n"])]
    for measure, digits in (("psnr", 1), ("ssim", 2)):
        stages = (f"{measure}_input", f"{measure}_restored")
        phantoms.append(" → ".join(f"{quickstart[stage]:.{digits}f}" for stage in stages))
        films.append(" → ".join(f"{restored[stage]['mean']:.{digits}f}" for stage in stages))
    for measure in ("f1", "auroc"):
        phantoms.append(f"{quickstart[measure]:.2f}")
        films.append(_interval(judged["intervals"][measure]))
    head = [
        "moderate degradations, one run each",
        "n",
        "PSNR poor → restored (dB)",
        "SSIM poor → restored",
        "F1",
        "AUROC",
    ]
    lines = [" | ".join(cells) for cells in (head, ["---"] * len(head), phantoms, films)]
    return "\n".join(f"| {line} |" for line in lines)


def options_table(result):
    """`experiments.compare_options`' result: mean ± standard deviation over the seeds."""
    lines = ["| | F1 | PSNR (dB) | SSIM |", "|---|---|---|---|"]
    for name, found in result.items():
        cells = [OPTIONS.get(name, name)]
        for measure, digits in (("f1", 2), ("psnr", 1), ("ssim", 2)):
            cells.append(f"{found['mean'][measure]:.{digits}f} ± {found['sd'][measure]:.{digits}f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def worst_table(row, count=8):
    """The test images that lose most by restoring, and the most confident wrong verdicts, in Markdown."""
    poor, restored = row.scores["psnr_input"][0], row.scores["psnr_restored"].mean(axis=0)
    gains = np.where(np.isfinite(poor), restored - poor, np.inf)
    probabilities = row.probabilities.mean(axis=0)
    wrong = np.abs(row.labels - probabilities)
    lines = ["| restored worst | PSNR (dB) | classified worst | p(COVID-19) |", "|---|---|---|---|"]
    losers = np.argsort(gains, kind="stable")[:count]
    for loser, misread in zip(losers, np.argsort(-wrong, kind="stable")[:count], strict=True):
        lines.append(
            f"| {row.files[loser]} | {poor[loser]:.1f} → {restored[loser]:.1f} | "
            f"{row.files[misread]} | {probabilities[misread]:.2f} |"
        )
    return "\n".join(lines)


def confusion_matrix(row):
    """Of all seeds together: int [2, 2], rows the truth (control, COVID-19), columns the verdict."""
    return sum(
        np.array(metrics.classification_metrics(row.labels, seed)["confusion_matrix"]) for seed in row.probabilities
    )


def save_rocs(loaded, path):
    """Draws the receiver operating characteristics of some rows, one line a seed, with AUROC and its interval."""
    figure = Figure(figsize=(5.5, 5.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], ":", color="0.6", linewidth=1)
    for place, row in enumerate(loaded):
        for number, seed in enumerate(row.probabilities):
            wrong, right, _ = roc_curve(row.labels, seed)
            label = f"{title(row.name)}: {row.auroc().text(3)}" if number == 0 else None
            axes.plot(wrong, right, color=f"C{place}", linewidth=1.6, label=label)
    axes.set(xlabel="1 − specificity", ylabel="sensitivity", xlim=(0, 1), ylim=(0, 1.005), aspect="equal")
    axes.legend(frameon=False, loc="lower right", title="AUROC, 95% interval", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _poor(row, measure, digits):
    # The same for every seed.
    return dataclasses.replace(row.score(f"{measure}_input"), deviation=None).text(digits)


def title(row):
    """What a row is called in a table: "operational, q=3" for "operational-3-128-mild"."""
    name = variant(row)
    return TITLES.get(name, name.replace("_", " "))


def variant(row):
    """The first part of a row's name: "operational-3" of "operational-3-128-mild"."""
    return "-".join(row.split("-")[:-2])


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
    axes.legend(frameon=False, title="test images", loc="upper left", bbox_to_anchor=(1, 1))
    axes.spines[["top", "right"]].set_visible(False)
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


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
    made, drawn, main_rows = {}, {}, {}
    known = rows()
    compared = restorations(results.parent / "restoration")
    for size in sorted({size_and_data(row)[0] for row in known}, reverse=True):
        for data in (*SEVERITIES, "quality"):
            trained = [row for row in known if size_and_data(row) == (size, data)]
            loaded = [found for row in trained if (found := load(results, row, known[row], data))]
            if loaded:
                made[f"{size} {data}"] = table(loaded)
                if loaded[0].scores:
                    drawn[f"{size} px, {data}"] = loaded
                for row in loaded:
                    if row.scores and variant(row.name) in SUMMARISED:
                        main_rows.setdefault((size, data), []).append(row)
    if main_rows:
        made["summary"] = summary_table(main_rows, compared)
    for path in sorted((results.parent / "classifiers").glob("*-*/result.json")):
        made[f"classifiers {path.parent.name.replace('-', ' ')}"] = classifiers_table(files.read_json(path))
    made |= {f"restoration {size} {data}": restoration_table(result) for (size, data), result in compared.items()}
    for name, build, sources in (
        ("preservation", preservation_table, ("preservation/64-moderate",)),
        ("agreement", agreement_table, ("preservation/64-moderate",)),
        ("runs", runs_table, ("quickstart", "radiographs_128")),
        ("options", options_table, ("options",)),
        ("speed", speed_table, ("benchmark",)),
    ):
        paths = [results.parent / source / "result.json" for source in sources]
        if all(path.is_file() for path in paths):
            made[name] = build(*map(files.read_json, paths))
    return {name: content for name, content in made.items() if content}, drawn


def restorations(folder):
    """Dictionary (size, severity) -> result of `experiments.compare_restoration` in `<folder>/<size>-<severity>`."""
    paths = sorted(Path(folder).glob("*-*/result.json"))
    return {
        (int(path.parent.name.split("-")[0]), path.parent.name.split("-")[1]): files.read_json(path) for path in paths
    }


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
