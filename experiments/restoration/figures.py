"""Figures of what restoring gains: by artifact, and case by case."""

import math

import numpy as np
from matplotlib.figure import Figure

from experiments.restoration import classical
from experiments.restoration.cases import KINDS
from experiments.restoration.statistics import INPUT, SMALLEST_GROUP, altered
from r2c_gan.evaluation import figures

PANEL_CASES = 6
UNITS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "haarpsi": "HaarPSI"}
_COLORS = {"classical": "#56B4E9", "combination": "#0072B2", "model": "#D55E00"}  # Okabe and Ito 2008
_COLUMNS = 4


def title(method):
    """What a method is called in figures."""
    if method in classical.METHODS:
        return classical.METHODS[method].title
    return {INPUT: "poor", classical.COMBINATION: "best combination"}.get(method, method)


def save_gains(rows, path, measure="psnr", grouping="present"):
    """Draws the gain over the poor image: a panel each artifact, a line each method, with 95% intervals.

    Artifacts of fewer than `SMALLEST_GROUP` images are left out.

    Args:
        rows: what `tabulate` returns.
        path: the PNG to write.
        measure: a key of `MEASURES`.
        grouping: "present" or "dominant".
    """
    shown = [row for row in rows if row["measure"] == measure and row["against"] == INPUT and row["mean"] is not None]
    shown = [
        row for row in shown if row["grouping"] == "all" or (row["grouping"] == grouping and row["n"] >= SMALLEST_GROUP)
    ]
    methods = list(dict.fromkeys(row["method"] for row in shown))
    panels = list(dict.fromkeys((row["grouping"], row["group"]) for row in shown))
    wide = min(_COLUMNS, len(panels))
    high = math.ceil(len(panels) / wide)
    figure = Figure(figsize=(1.9 + 2.1 * wide, high * (0.75 + 0.21 * len(methods)) + 0.4), layout="constrained")
    all_axes = figure.subplots(high, wide, squeeze=False, sharex=True, sharey=True).ravel()
    for axes, panel in zip(all_axes, panels, strict=False):
        some = [row for row in shown if (row["grouping"], row["group"]) == panel]
        for row in some:
            place, color = methods.index(row["method"]), _COLORS[row["kind"]]
            if row["low"] is not None:
                axes.plot([row["low"], row["high"]], [place, place], color=color, linewidth=1.6)
            axes.plot(row["mean"], place, "o", color=color, markersize=4.5)
        axes.axvline(0, color="0.3", linewidth=0.8)
        axes.set_title(f"{panel[1]}, n = {max(row['n'] for row in some)}", fontsize=9, loc="left")
        axes.set_yticks(range(len(methods)), [title(method) for method in methods], fontsize=8)
        axes.tick_params(axis="x", labelsize=8, labelbottom=True)
        axes.grid(axis="x", alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0].invert_yaxis()
    for axes in all_axes[len(panels) :]:
        axes.set_axis_off()
    what = {"present": "images with this artifact", "dominant": "images where this artifact is the worst one"}[grouping]
    figure.supxlabel(f"gain in {UNITS[measure]} over the poor image, mean and 95% interval; {what}", fontsize=9)
    figures.save(figure, path)


def typical_cases(cases, dominants, scores):
    """One case an artifact that is the worst one: that of median PSNR before restoring. At most `PANEL_CASES`."""
    order = np.argsort(altered(scores, INPUT, "psnr"), kind="stable")
    members = {kind: [case for case in order if dominants[case] == kind] for kind in dict.fromkeys(KINDS.values())}
    chosen = [some[len(some) // 2] for some in members.values() if some] or [order[len(order) // 2]]
    return [int(case) for case in chosen[:PANEL_CASES]]


def worst_cases(scores, method):
    """The cases of lowest gain in PSNR over the poor image, worst first."""
    gain = altered(scores, method, "psnr") - altered(scores, INPUT, "psnr")
    return [int(case) for case in np.argsort(gain, kind="stable")[:PANEL_CASES] if np.isfinite(gain[case])]


def save_cases(cases, chosen, restored, scores, path):
    """Draws cases in rows: poor, what each method makes of it, clean; with PSNR and the gain under them.

    Args:
        cases: the `Cases`.
        chosen: indices of those to draw.
        restored: method -> one image float32 [H, W, 1] a chosen case.
        scores: method -> measure -> one value an image of all cases.
        path: the PNG to write.
    """
    pairs = [cases.read(case) for case in chosen]
    rows = [[poor, *(some[place] for some in restored.values()), clean] for place, (poor, clean) in enumerate(pairs)]
    captions = [[*(_caption(scores, method, case) for method in (INPUT, *restored)), ""] for case in chosen]
    titles = ["poor", *(title(method).replace(", ", ",\n") for method in restored), "clean"]
    artifacts = [" + ".join(KINDS[step["name"]] for step in cases.degradations[case]) for case in chosen]
    figures.save_panel(rows, path, titles, row_titles=artifacts, captions=captions)


def _caption(scores, method, case):
    value, before = scores[method]["psnr"][case], scores[INPUT]["psnr"][case]
    if value is None:
        return "equal"
    text = f"{value:.1f} dB"
    return (
        text if method == INPUT or before is None else f"{text} ({value - before:+.1f})".replace("-", "\N{MINUS SIGN}")
    )
