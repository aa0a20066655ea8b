"""The tables of the evidence in Markdown, each from what a program recorded."""

import dataclasses
import re

import numpy as np

from experiments.evidence.rows import TITLES, Estimate, title
from experiments.restoration import figures as restoration_figures
from r2c_gan.cli import option_flags
from r2c_gan.training.configuration import TrainingConfig

RESTORATION = {"psnr": ("PSNR (dB)", 2), "ssim": ("SSIM", 3), "haarpsi": ("HaarPSI", 3)}
# Of `experiments.evidence.options`.
OPTIONS = {
    "baseline": "the recipe",
    "mixed_bfloat16": "`--precision=mixed_bfloat16`",
    "ema": "`--ema_decay=0.99`",
    "early_stopping": "`--early_stopping=3` (never came to stop in 8 epochs; the best epoch)",
    "unbalanced": "80% of the COVID-19 training phantoms left out",
    "unbalanced-class_weights": "the same, `--class_weights=balanced`",
}


def methods_table(loaded):
    """Rows of one test set in Markdown, the poor images themselves first."""
    restores = all(row.scores for row in loaded)
    head = ["", "seeds", "F1", "AUROC"] + ["PSNR (dB)", "SSIM"] * restores + ["parameters", "hours"]
    lines = []
    if restores:
        poor = (_poor(loaded[0], "psnr", 2), _poor(loaded[0], "ssim", 3))
        lines.append(["poor images", "", "", "", *poor, "", ""])
    for row in loaded:
        cells = [title(row.name), str(len(row.probabilities)), row.f1().text(2), row.auroc().text(2)]
        if restores:
            cells += (
                [row.score("psnr_restored").text(2), row.score("ssim_restored").text(3)] if row.scores else ["", ""]
            )
        lines.append([*cells, f"{row.parameters:,}", f"{row.seconds / 3600:.1f}"])
    return markdown(head, lines)


def markdown(head, rows):
    """A table in Markdown: a list of column titles, and a list of cells for each row."""
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in (head, ["---"] * len(head), *rows))


def summary_table(cells, restorations):
    """The method of the paper on each test set, beside the best of the classical methods.

    Args:
        cells: dictionary (size, severity) -> list of `Row`s that were trained with that severity.
        restorations: dictionary of the same keys -> `result.json` of `experiments.restoration`.
    """
    head = [
        "public radiographs",
        "network",
        "seeds",
        "PSNR (dB): poor",
        "best classical",
        "restored",
        "SSIM",
        "F1",
        "AUROC",
    ]
    rows = []
    for key, row in ((key, row) for key, found in cells.items() for row in found):
        classical = ""
        if key in restorations:
            result = restorations[key]
            classical = f"{mean_of(result, result['best_classical']['psnr'], 'psnr')['mean']:.1f}"
        psnr, ssim = (dataclasses.replace(row.score(f"{name}_restored"), deviation=None) for name in ("psnr", "ssim"))
        measured = [psnr.text(1), ssim.text(2), row.f1().text(2), row.auroc().text(2)]
        poor = f"{row.score('psnr_input').value:.1f}"
        rows.append([f"{key[0]} px, {key[1]}", title(row.name), len(row.probabilities), poor, classical, *measured])
    return markdown(head, rows)


def mean_of(result, method, measure, against=None, grouping="all", group="all"):
    """The row of `experiments.restoration`'s result with the mean of a measure: n, mean, low, high."""
    key = {"method": method, "measure": measure, "against": against, "grouping": grouping, "group": group}
    (found,) = [row for row in result["rows"] if key.items() <= row.items()]
    return found


def restoration_table(result):
    """Every method of restoring beside the poor image, over one test set, in Markdown."""
    measures = [measure for measure in RESTORATION if any(row["measure"] == measure for row in result["rows"])]
    lines = []
    for method in dict.fromkeys(row["method"] for row in result["rows"]):
        cells = [restoration_figures.title(method)]
        for measure in measures:
            row = mean_of(result, method, measure)
            cells.append(Estimate(row["mean"], row["low"], row["high"], None).text(RESTORATION[measure][1]))
        better = "" if method == "input" else f"{mean_of(result, method, 'psnr', 'input')['improved']:.0%}"
        lines.append([*cells, better])
    return markdown(["", *(RESTORATION[measure][0] for measure in measures), "PSNR higher than poor"], lines)


def preservation_table(result):
    """What becomes of the opacities of phantoms (`experiments.preservation`), in Markdown.

    None if only radiographs were measured.
    """
    phantoms = result["phantoms"]
    if not phantoms:
        return None
    columns = {
        "opacity contrast kept": ("opacities", "kept"),
        "beyond anatomy": ("opacities", "kept_beyond_anatomy"),
        "opacities invented in controls": ("controls", "false_opacity_anywhere"),
    }
    lines = []
    for stage, measures in phantoms["stages"].items():
        cells = [stage]
        for group, name in columns.values():
            found = measures[group][name]
            cells.append(_interval(found, "value" if "value" in found else "share"))
        lines.append(cells)
    return markdown([f"{phantoms['n']} phantoms, {phantoms['n_covid']} with opacities", *columns], lines)


def classifiers_table(result):
    """Plain classifiers beside the joint head (`experiments.classifiers.compare`, of one model), in Markdown.

    McNemar's exact test is of the head's predictions on poor images against those of the row.
    """
    tested = {
        pair["second"]: pair["mcnemar"]["p_value"]
        for pair in result["comparisons"]
        if pair["first"].startswith("joint head of ")
    }
    measures = ("f1", "auroc", "sensitivity", "specificity")
    head = [f"n = {result['n']}", "images", "F1", "AUROC", *measures[2:], "McNemar p, against the joint head"]
    lines = []
    for prediction in result["predictions"]:
        cells = ["joint head" if prediction["joint_head"] else _named(prediction["classifier"], result["classifiers"])]
        cells.append(re.sub(" by .*", "", prediction["images"]))
        for measure in measures:
            cells.append(_interval(prediction["measures"][measure]))
        p_value = (
            None if prediction["joint_head"] else tested.get(f"{prediction['classifier']} on {prediction['images']}")
        )
        cells.append("" if p_value is None else f"{p_value:.3f}" if p_value >= 0.001 else "< 0.001")
        lines.append(cells)
    return markdown(head, lines)


def _named(name, classifiers):
    """What a plain classifier is called: its network and what it was trained on."""
    trained_on = {"trainA": "poor", "trainB": "good", "both": "poor and good"}
    settings = classifiers[name]
    images = trained_on.get(settings["train_on"], settings["train_on"])
    return f"{settings['network']}, trained on {images}" + (", restored" if settings["restorer"] else "")


def agreement_table(result):
    """What an outside classifier says before and after restoring (`experiments.preservation`), in Markdown.

    None if only phantoms were measured.
    """
    found = result["radiographs"]
    if not found:
        return None
    classifier = result["classifier"]
    title = f"{found['n']} radiographs, predictions of {_named(classifier['name'], {classifier['name']: classifier})}"
    head = [title, "agree with those on clean images", "kappa", "COVID-19 lost", "COVID-19 invented", "F1"]
    lines = []
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
            lines.append([*cells, f"{measured['f1'][image]:.2f}"])
    return markdown(head, lines)


def speed_table(result):
    """`experiments.benchmarks`: time over the naive implementation in float32 and bfloat16, and peak memory."""
    order = list(dict.fromkeys(step["network"] for step in result["steps"]))
    steps = sorted(result["steps"], key=lambda step: (order.index(step["network"]), step["size"], step["batch"]))
    rows = []
    for step in steps:
        ratios = [step["float32"]["ratio"], step["mixed_bfloat16"]["ratio"], step["float32"]["memory_ratio"]]
        network = TITLES.get(step["network"], step["network"])
        rows.append([network, step["size"], step["batch"], *(f"{ratio:.2f}" for ratio in ratios)])
    return markdown(["network", "pixels", "batch", "time, float32", "time, bfloat16", "memory, float32"], rows)


def quickstart_table(result):
    """What the quickstart came to, as it recorded it."""
    cells = [f"synthetic phantoms, 64 px, moderate: {result['seconds'] / 60:.0f} minutes", str(result["n"])]
    for measure, digits in (("psnr", 1), ("ssim", 2)):
        cells.append(" → ".join(f"{result[f'{measure}_{stage}']:.{digits}f}" for stage in ("input", "restored")))
    cells += [f"{result[measure]:.2f}" for measure in ("f1", "auroc")]
    head = ["`make quickstart`", "n", "PSNR poor → restored (dB)", "SSIM poor → restored", "F1", "AUROC"]
    return markdown(head, [cells])


def flags_table():
    """Every flag of `r2c-gan-train` with its default and its help, as the options declare them."""
    rows = []
    for group, members in option_flags.groups(TrainingConfig).items():
        rows.append([f"**{group}**", "", ""])
        for field in members:
            default = "none" if field.default is None else field.default
            if isinstance(default, bool):
                default = "on" if default else "off"
            rows.append([f"`--{field.name}`", f"`{default}`", option_flags.describe(field).replace("|", "\\|")])
    return markdown(["flag", "default", "meaning"], rows)


def options_table(result):
    """`experiments.evidence.options`' result: mean ± standard deviation over seeds; dropped options are left out."""
    lines = []
    for name in filter(OPTIONS.get, result):
        found, cells = result[name], [OPTIONS[name]]
        for measure, digits in (("f1", 2), ("psnr", 1), ("ssim", 2)):
            cells.append(f"{found['mean'][measure]:.{digits}f} ± {found['sd'][measure]:.{digits}f}")
        lines.append(cells)
    return markdown(["", "F1", "PSNR (dB)", "SSIM"], lines)


def worst_table(row, count=8):
    """The test images that lose most by restoring, and the most confident wrong predictions, in Markdown."""
    poor, restored = row.scores["psnr_input"][0], row.scores["psnr_restored"].mean(axis=0)
    gains = np.where(np.isfinite(poor), restored - poor, np.inf)
    probabilities = row.probabilities.mean(axis=0)
    wrong = np.abs(row.labels - probabilities)
    lines = []
    losers = np.argsort(gains, kind="stable")[:count]
    for loser, misread in zip(losers, np.argsort(-wrong, kind="stable")[:count], strict=True):
        psnr = f"{poor[loser]:.1f} → {restored[loser]:.1f}"
        lines.append([row.files[loser], psnr, row.files[misread], f"{probabilities[misread]:.2f}"])
    return markdown(["restored worst", "PSNR (dB)", "classified worst", "p(COVID-19)"], lines)


def _interval(found, key="value", digits=2):
    """A recorded value with its 95% interval."""
    return Estimate(found[key], found["low"], found["high"], None).text(digits)


def _poor(row, measure, digits):
    # The same for every seed.
    return dataclasses.replace(row.score(f"{measure}_input"), deviation=None).text(digits)
