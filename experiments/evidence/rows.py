"""What the trainings of the evidence came to: all seeds of a row together, with intervals.

Values are means over the seeds of a row; brackets are 95% bootstrap intervals over test images, the same resampled
images for all seeds; ± is the standard deviation over seeds.
"""

import csv
import dataclasses
import re

import numpy as np

from r2c_gan import files
from r2c_gan.errors import UserError
from r2c_gan.evaluation import metrics

TITLES = {
    "operational-1": "operational, q=1",
    "operational-3": "operational, q=3",
    "operational-3-noise": "operational, q=3, noise",
    "operational-3-noise-tone": "operational, q=3, drawn degrader",
    "convolutional-light-noise-tone": "convolutional-light, drawn degrader",
    "operational-5": "operational, q=5",
    "operational-5-maclaurin": "operational, q=5, Maclaurin start",
    "paper-3": "operational, q=3, the paper's recipe",
    "plain_operational-1": "plain CycleGAN, operational, q=1",
    "plain_operational-3": "plain CycleGAN, operational, q=3",
    "plain_operational-5-maclaurin": "plain CycleGAN, operational, q=5, Maclaurin start",
    "plain_convolutional": "plain CycleGAN, convolutional",
    "plain_convolutional-light": "plain CycleGAN, convolutional-light",
    "ablation_none": "the recipe, nothing changed",
    "ablation_class_0": "`--class_loss_weight=0`",
    "ablation_class_0.1": "`--class_loss_weight=0.1`",
    "ablation_class_4": "`--class_loss_weight=4`",
    "ablation_no_adversarial": "`--adversarial_loss_weight=0`",
    "ablation_no_average": "`--ema_decay=0`",
    "ablation_no_cycle": "`--cycle_loss_weight=0`",
    "ablation_no_identity": "`--identity_loss_weight=0`",
    "ablation_no_tone_curve": "`--skip=none`",
    "ablation_pool_0": "`--pool_size=0`",
    "ablation_transposed": "`--upsampling=transposed`",
}

# What the names of rows begin with that are compared with each other, not with the methods.
ABLATION = "ablation_"


@dataclasses.dataclass(frozen=True)
class Row:
    """All seeds of one row on one test set.

    Attributes:
        name: of the row.
        files: list of N names.
        labels: int [N].
        probabilities: float [seeds, N], of COVID-19.
        scores: dictionary, "psnr_input" and so on -> float [seeds, N]; empty without reference images.
        seconds, parameters: training time of the quickest seed, which was disturbed least, and size of one restorer.
    """

    name: str
    files: list
    labels: np.ndarray
    probabilities: np.ndarray
    scores: dict
    seconds: float
    parameters: int

    def f1(self):
        return self._classification(lambda labels, seed: metrics.f1(labels, seed > 0.5))

    def auroc(self):
        return self._classification(metrics.auroc)

    def _classification(self, measure):
        def statistic(labels, *probabilities):
            values = [measure(labels, seed) for seed in probabilities]
            return None if None in values else float(np.mean(values))

        return estimate(statistic, self.labels, *self.probabilities)

    def score(self, name, minus=None):
        """Mean over images and seeds of a score, or of its paired difference to another.

        An image that was degraded so little that 8 bits show nothing of it (infinite PSNR) is left out of the PSNR.
        """
        return estimate(lambda *seeds: float(np.mean(seeds)), *self._kept(name, minus))

    def seed_means(self, name, minus=None):
        """Mean over images of a score or a difference, as in `score`: float [seeds]."""
        return self._kept(name, minus).mean(axis=1)

    def _kept(self, name, minus):
        kept = np.isfinite(self.scores[f"{name.split('_')[0]}_input"]).all(axis=0)
        values = self.scores[name][:, kept]
        return values - self.scores[minus][:, kept] if minus else values


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


def estimate(statistic, *arrays):
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
        min(value["training_seconds"] for value in training),
        training[0]["parameters"]["restorer"],
    )


def title(row):
    """What a row is called in a table: "operational, q=3" for "operational-3-128-mild"."""
    name = variant(row)
    return TITLES.get(name, name.replace("_", " "))


def variant(row):
    """The first part of a row's name: "operational-3" of "operational-3-128-mild"."""
    return "-".join(row.split("-")[:-2])
