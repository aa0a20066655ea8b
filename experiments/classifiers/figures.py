"""The course of a plain classifier's training, drawn."""

import math

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from r2c_gan.evaluation import figures


def save_history(rows, path):
    """Draws loss and scores of training and validation by epoch.

    Args:
        rows: rows of the history.
        path: the PNG to write.
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = zip(
        figure.subplots(1, 2),
        (
            ("Cross-entropy", (("loss", "training", "#0072B2", "-"), ("val_loss", "validation", "#D55E00", "-"))),
            (
                "Scores",
                (
                    ("accuracy", "training accuracy", "#0072B2", "-"),
                    ("val_accuracy", "validation accuracy", "#56B4E9", "--"),
                    ("val_f1", "validation F1", "#D55E00", "-"),
                    ("val_auroc", "validation AUROC", "#009E73", "--"),
                ),
            ),
        ),
        strict=True,
    )
    epochs = [row["epoch"] for row in rows]
    scored = [row for row in rows if row["val_f1"] is not None]
    best = max(scored, key=lambda row: row["val_f1"], default=None)
    for axes, (title, series) in panels:
        for name, label, color, style in series:
            values = [math.nan if row[name] is None else row[name] for row in rows]
            axes.plot(epochs, values, style, color=color, linewidth=1.4, label=label)
        if best:
            axes.axvline(best["epoch"], color="0.6", linewidth=1, linestyle=":", label="epoch kept")
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("epoch", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
        axes.set_ylim(bottom=0, top=1.03 if title == "Scores" else None)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
    figures.save(figure, path)
