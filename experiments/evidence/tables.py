"""The tables of the evidence in Markdown, each from what a program recorded."""

import dataclasses
import re

import numpy as np

from experiments.evidence.rows import TITLES, Estimate, title
from experiments.restoration import figures as restoration_figures

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
        restorations: dictionary of the same keys -> `result.json` of `experiments.restoration`.
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
    """The row of `experiments.restoration`'s result with the mean of a measure: n, mean, low, high."""
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
    """Plain classifiers beside the joint head (`experiments.classifiers.compare`, of one model), in Markdown.

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
    """What an outside classifier says before and after restoring (`experiments.preservation`), in Markdown.

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
    """`experiments.benchmarks`'s result: time over the literal reading in float32 and bfloat16, and peak memory."""
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


def quickstart_table(result):
    """What the quickstart came to, as it recorded it."""
    cells = [f"synthetic phantoms, 64 px, moderate: {result['seconds'] / 60:.0f} minutes", str(result["n"])]
    for measure, digits in (("psnr", 1), ("ssim", 2)):
        cells.append(" → ".join(f"{result[f'{measure}_{stage}']:.{digits}f}" for stage in ("input", "restored")))
    cells += [f"{result[measure]:.2f}" for measure in ("f1", "auroc")]
    head = ["`make quickstart`", "n", "PSNR poor → restored (dB)", "SSIM poor → restored", "F1", "AUROC"]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), cells))


def options_table(result):
    """`experiments.evidence.options`' result: mean ± standard deviation over seeds; dropped options are left out."""
    lines = ["| | F1 | PSNR (dB) | SSIM |", "|---|---|---|---|"]
    for name in filter(OPTIONS.get, result):
        found, cells = result[name], [OPTIONS[name]]
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


def _interval(found, key="value", digits=2):
    """A recorded value with its 95% interval."""
    return Estimate(found[key], found["low"], found["high"], None).text(digits)


def _poor(row, measure, digits):
    # The same for every seed.
    return dataclasses.replace(row.score(f"{measure}_input"), deviation=None).text(digits)
