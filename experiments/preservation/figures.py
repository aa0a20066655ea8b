"""Figures of what restoring does to predictions and opacities."""

import numpy as np

from experiments.classifiers.compare import STAGE_COLORS
from r2c_gan.data.streams import read_batches
from r2c_gan.evaluation import figures

CLASS_TITLES = ("control", "COVID-19")
PANEL_CASES = 6


def save_predictions(labels, called, path, title):
    """Draws counts of predictions by pairs of images, a row of matrices for each true class.

    Args:
        labels: integers [N], the truth.
        called: dictionary, image ("poor", "restored", perhaps "clean") -> booleans [N], whether COVID-19 is called.
        path: the PNG to write.
        title: of the figure.
    """
    from matplotlib.figure import Figure

    columns = [
        pair for pair in (("poor", "restored"), ("clean", "poor"), ("clean", "restored")) if set(pair) <= set(called)
    ]
    figure = Figure(figsize=(0.9 + 2.7 * len(columns), 5.9), layout="constrained")
    grid = figure.subplots(2, len(columns), squeeze=False)
    for label, row in zip((1, 0), grid, strict=True):
        members = np.asarray(labels) == label
        for axes, (one, other) in zip(row, columns, strict=True):
            table = np.bincount(2 * called[one][members] + called[other][members], minlength=4).reshape(2, 2)
            shares = table / max(members.sum(), 1)
            # Blue where the two agree, orange where the prediction turns.
            for (i, j), count in np.ndenumerate(table):
                color, share = ("#0072B2" if i == j else "#D55E00"), shares[i, j]
                axes.add_patch(_square(j, i, color, share))
                text = {"ha": "center", "color": "white" if share > 0.55 else "black"}
                axes.text(j, i, str(count), va="bottom", fontsize=14, **text)
                axes.text(j, i + 0.08, f"{share:.0%}", va="top", fontsize=8, **text)
            axes.set(xlim=(-0.5, 1.5), ylim=(1.5, -0.5), aspect="equal")
            axes.set_xticks((0, 1), CLASS_TITLES, fontsize=8)
            axes.set_yticks((0, 1), CLASS_TITLES, fontsize=8, rotation=90, va="center")
            axes.tick_params(length=0)
            axes.spines[:].set_color("0.7")
            axes.set_xlabel(f"prediction on {other}", fontsize=9)
            axes.set_ylabel(f"prediction on {one}", fontsize=9)
            axes.set_title(f"true {CLASS_TITLES[label]}, n = {members.sum()}", fontsize=9, loc="left")
    figure.suptitle(f"{title}: predictions that agree (blue) and that turn (orange)", fontsize=10)
    figures.save(figure, path)


def _square(x, y, color, alpha):
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=color, alpha=float(alpha), edgecolor="white")


def save_contrast(scores, labels, path):
    """Draws the opacities' contrast on poor and restored images over that on the clean one, a panel a model.

    Args:
        scores: what `phantom_scores` returns.
        labels: integers [N].
        path: the PNG to write.
    """
    from matplotlib.figure import Figure

    labels = np.asarray(labels)
    restored = [name for name in scores if name not in ("poor", "clean")] or ["poor"]
    clean = scores["clean"]["contrast"]
    figure = Figure(figsize=(0.4 + 4.4 * len(restored), 4.6), layout="constrained")
    values = np.concatenate([stage["contrast"] for stage in scores.values()])
    low, high = np.nanmin(values), np.nanmax(values)
    margin = 0.05 * (high - low)
    low, high = low - margin, high + margin
    for axes, name in zip(figure.subplots(1, len(restored), squeeze=False)[0], restored, strict=True):
        axes.plot((low, high), (low, high), color="0.6", linewidth=1, zorder=0)
        axes.axhline(0, color="0.85", linewidth=0.8, zorder=0)
        axes.axvline(0, color="0.85", linewidth=0.8, zorder=0)
        for stage in dict.fromkeys(("poor", name)):
            color, kind = STAGE_COLORS[stage.split()[0]], stage.split()[0]
            for label, marker in ((0, "^"), (1, "o")):
                members = labels == label
                axes.scatter(
                    clean[members],
                    scores[stage]["contrast"][members],
                    s=20,
                    marker=marker,
                    facecolor=color if label else "none",
                    edgecolor=color,
                    alpha=0.75,
                    linewidth=0.8,
                    label=f"{kind}, {CLASS_TITLES[label]}" + ("" if label else " (where its counterpart is opaque)"),
                )
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        axes.set_title(name, fontsize=10, loc="left")
        axes.set_xlabel("contrast on the clean image (share of the gray range)", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.2, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, loc="upper left", framealpha=0.9)
    figure.supylabel("contrast on the poor and on the restored image", fontsize=8)
    figures.save(figure, path)


def turned_cases(probabilities, target, count=PANEL_CASES):
    """Cases whose prediction restoring turns: half of them away from where it ought to be, if there are so many.

    Args:
        probabilities: dictionary with the probabilities of COVID-19 on "poor" and "restored", floats [N].
        target: booleans [N], the prediction that ought to be reached.
        count: at most so many.

    Returns:
        A list of indices: those turned away first, and of each kind the largest changes of the probability first.
    """
    poor, restored = probabilities["poor"], probabilities["restored"]
    turned = np.flatnonzero((poor > 0.5) != (restored > 0.5))
    turned = turned[np.argsort(-np.abs(restored - poor)[turned], kind="stable")]
    right = (restored > 0.5)[turned] == np.asarray(target, bool)[turned]
    away, towards = turned[~right].tolist(), turned[right].tolist()
    few = max(count // 2, count - len(towards))
    away = away[:few]
    return away + towards[: count - len(away)]


def save_turned(domain, reference, restorer, iterations, probabilities, path):
    """Draws cases whose prediction was turned: poor, restored and clean, with p(COVID-19) of the outside classifier.

    At their side: the true class, and whether the prediction was turned to that on the clean image or away from it
    (from the truth, where there is no clean image).

    Args:
        domain: `Domain` of the poor images.
        reference: `Domain` of their reference images, or None.
        restorer: the `Restorer`.
        iterations: passes of restoring.
        probabilities: dictionary, "poor", "restored" and perhaps "clean" -> floats [N].
        path: the PNG to write; not written where no prediction was turned.

    Returns:
        The number of cases drawn.
    """
    target, aim = domain.labels == 1, "the truth"
    if "clean" in probabilities:
        target, aim = probabilities["clean"] > 0.5, "clean"
    cases = turned_cases(probabilities, target)
    if not cases:
        return 0
    size = restorer.size[0]
    (poor,) = read_batches([domain.files[case] for case in cases], size, restorer.channels, len(cases))
    shown = {"poor": poor, "restored": restorer(poor, iterations).passes[-1]}
    if reference is not None:
        (shown["clean"],) = read_batches([reference.files[case] for case in cases], size, restorer.channels, len(cases))
    rows = [[np.clip(batch[index], -1, 1) for batch in shown.values()] for index in range(len(cases))]
    captions = [[f"p(COVID-19) {probabilities[name][case]:.2f}" for name in shown] for case in cases]
    right = (probabilities["restored"] > 0.5) == target
    titles = [f"{CLASS_TITLES[domain.labels[case]]}, {'to' if right[case] else 'away from'} {aim}" for case in cases]
    figures.save_panel(rows, path, list(shown), titles, captions)
    return len(cases)
