"""The figures of the evidence: receiver operating characteristics, gains in PSNR, and the confusion matrix's counts."""

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from experiments.evidence.rows import title
from r2c_gan.evaluation import figures, metrics


def confusion_matrix(row):
    """Of all seeds together: int [2, 2], rows the truth (control, COVID-19), columns the prediction."""
    return sum(
        np.array(metrics.classification_metrics(row.labels, seed)["confusion_matrix"]) for seed in row.probabilities
    )


def save_rocs(loaded, path):
    """Draws the receiver operating characteristics of some rows, one line a seed, with AUROC and its interval."""
    figure = Figure(figsize=(5.5, 5.6 + 0.19 * len(loaded)), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], ":", color="0.6", linewidth=1)
    for place, row in enumerate(loaded):
        for number, seed in enumerate(row.probabilities):
            wrong, right, _ = roc_curve(row.labels, seed)
            label = f"{title(row.name)}: {row.auroc().text(3)}" if number == 0 else None
            axes.plot(wrong, right, color=f"C{place}", linewidth=1.6, label=label)
    axes.set(xlabel="1 − specificity", ylabel="sensitivity", xlim=(0, 1), ylim=(0, 1.005), aspect="equal")
    figure.legend(frameon=False, loc="outside lower center", title="AUROC, 95% interval", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figures.save(figure, path, dpi=110)


def save_gains(tests, path):
    """Draws the gain in PSNR of every row by severity, with its interval over images, as a dot plot; strokes are seeds.

    Args:
        tests: dictionary, title of a test set -> list of `Row` with scores.
        path: the PNG to write.
    """
    names = list(dict.fromkeys(title(row.name) for loaded in tests.values() for row in loaded))
    figure = Figure(figsize=(8.5, 1.4 + 0.38 * len(names)), layout="constrained")
    axes = figure.subplots()
    for place, (test, loaded) in enumerate(tests.items()):
        shift = 0.16 * (place - (len(tests) - 1) / 2)
        for row in loaded:
            gain = row.score("psnr_restored", minus="psnr_input")
            y = names.index(title(row.name)) + shift
            axes.plot([gain.low, gain.high], [y, y], color=f"C{place}", linewidth=2, alpha=0.5)
            axes.plot(gain.value, y, "o", color=f"C{place}", label=test if row is loaded[0] else None)
            seeds = row.seed_means("psnr_restored", minus="psnr_input")
            if len(seeds) > 1:
                axes.plot(seeds, np.full(len(seeds), y), "|", color=f"C{place}", markersize=9)
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("gain in PSNR over the poor image (dB)\nbars: 95% interval over images; strokes: seeds")
    figure.legend(frameon=False, title="test images", loc="outside upper center", ncols=len(tests))
    axes.spines[["top", "right"]].set_visible(False)
    figures.save(figure, path, dpi=110)
