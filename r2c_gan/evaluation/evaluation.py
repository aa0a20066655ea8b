"""Evaluation of a model on a test domain: what result.json, predictions.csv and the figures hold."""

from pathlib import Path

import numpy as np

from r2c_gan import files
from r2c_gan.data.datasets import CLASSES, reference_images
from r2c_gan.data.predictions import prediction_row
from r2c_gan.data.streams import read_batches
from r2c_gan.data.window import Window
from r2c_gan.errors import UserError
from r2c_gan.evaluation import figures, metrics

PANEL_CASES = 6
CLASS_TITLES = ("control", "COVID-19")


class Evaluation:
    """Restores and classifies the poor images of a domain, and measures both.

    Images are read at the restorer's size, and measured there. The class probabilities are the head's prediction on the
    poor image, as the paper reports them.

    Args:
        restorer: a `Restorer` that works at a square size.
        domain: a `Domain` of poor images.
        reference_dir: folder of their reference images, by the same relative names (the suffix may differ), or None.
        iterations: passes; PSNR and SSIM are measured after each.
        batch_size: images a batch.
        progress: wraps the iterable of batches, for a progress bar.
        window: which stored values become black and white, a `Window` or its text.

    Attributes:
        probabilities: float32 [N, 2].
        scores: dictionary of lists of N values, "psnr_input", "ssim_input", "psnr_restored", "ssim_restored", and for
            later passes "psnr_restored_2", ...; empty where the clean images are unknown.

    Raises:
        UserError: if an image cannot be read, or a reference image is missing.
    """

    def __init__(
        self,
        restorer,
        domain,
        reference_dir=None,
        iterations=1,
        batch_size=8,
        progress=lambda batches: batches,
        window="auto",
    ):
        height, width = restorer.size
        if height != width:
            raise UserError(f"the model works at {height}x{width}; evaluation is defined for square sizes")
        self.restorer, self.domain, self.iterations, self.window = restorer, domain, iterations, Window.parse(window)
        self.references = reference_images(domain, reference_dir).files if reference_dir else None
        self.scores = {}
        probabilities = []
        for start in progress(range(0, len(domain), batch_size)):
            stages, clean, batch_probabilities = self._restore(range(start, min(start + batch_size, len(domain))))
            probabilities.append(batch_probabilities)
            if clean is not None:
                self._score(stages, clean)
        self.probabilities = np.concatenate(probabilities)

    def _restore(self, cases):
        """Reads and restores some cases: ({stage: images}, clean images or None, probabilities)."""
        size, channels = self.restorer.size[0], self.restorer.channels
        (poor,) = read_batches([self.domain.files[case] for case in cases], size, channels, len(cases), self.window)
        clean = None
        if self.references is not None:
            (clean,) = read_batches([self.references[case] for case in cases], size, channels, len(cases), self.window)
        restoration = self.restorer(poor, self.iterations)
        stages = {"input": poor}
        for number, restored in enumerate(restoration.passes, 1):
            stages["restored" if number == 1 else f"restored_{number}"] = restored
        return stages, clean, restoration.probabilities[0]

    def _score(self, stages, clean):
        for stage, batch in stages.items():
            for name, measure in (("psnr", metrics.psnr), ("ssim", metrics.ssim)):
                values = [measure(truth, image) for truth, image in zip(clean, batch, strict=True)]
                self.scores.setdefault(f"{name}_{stage}", []).extend(values)

    def classification(self):
        """The measures of `metrics.classification_metrics`."""
        return metrics.classification_metrics(self.domain.labels, self.probabilities)

    def restoration(self):
        """Mean and 95% interval of every score; empty without clean images."""
        return {name: metrics.summary(values) for name, values in self.scores.items()}

    def measures(self):
        """The figures of `result.json`: `n`, `classification` with 95% intervals, `restoration` (None if unknown)."""
        intervals = metrics.classification_report_with_intervals(self.domain.labels, self.probabilities)
        return {
            "n": len(self.domain),
            "classification": {**self.classification(), "intervals": intervals},
            "restoration": self.restoration() or None,
        }

    def write(self, folder):
        """Writes `predictions.csv`, `confusion_matrix.png`, `roc.png` and `panel.png` into a folder."""
        folder = Path(folder)
        rows = []
        for index, file in enumerate(self.domain.files):
            row = prediction_row(file.relative_to(self.domain.folder).as_posix(), self.probabilities[index])
            row["true_label"] = CLASSES[self.domain.labels[index]]
            row.update({name: f"{values[index]:.4f}" for name, values in self.scores.items()})
            rows.append(row)
        files.write_csv(folder / "predictions.csv", rows, list(rows[0]))
        figures.save_confusion_matrix(self.classification()["confusion_matrix"], folder / "confusion_matrix.png")
        if len(set(self.domain.labels.tolist())) == 2:
            figures.save_roc(self.domain.labels, self.probabilities[:, 1], folder / "roc.png")
        self.write_panel(folder / "panel.png", self.typical_cases())

    def write_panels(self, folder, progress=lambda cases: cases):
        """Writes a panel of every case into a folder."""
        for case in progress(range(len(self.domain))):
            name = self.domain.files[case].relative_to(self.domain.folder).with_suffix(".png")
            self.write_panel(Path(folder) / name, [case])

    def write_panel(self, path, cases):
        """Draws cases in rows: poor, restored (each pass), clean where known, difference."""
        stages, clean, probabilities = self._restore(cases)
        poor, *passes = stages.values()
        figures.save_restoration_panel(
            poor,
            passes,
            path,
            reference=clean,
            probabilities=[probabilities[:, 1]],
            row_titles=[CLASS_TITLES[self.domain.labels[case]] for case in cases],
        )

    def typical_cases(self, count=PANEL_CASES):
        """Indices of cases of both classes, spread evenly over the gain in PSNR: neither the best nor the worst."""
        order = np.arange(len(self.domain))
        if self.scores:
            order = np.argsort(np.subtract(self.scores["psnr_restored"], self.scores["psnr_input"]), kind="stable")
        chosen = []
        for label in (1, 0):
            members = order[self.domain.labels[order] == label]
            share = min(len(members), count // 2)
            places = (np.arange(share) + 0.5) / max(share, 1) * len(members)
            chosen += members[places.astype(int)].tolist()
        return chosen
