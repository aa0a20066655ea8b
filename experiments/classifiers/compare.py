r"""Does restoring help a classifier? Plain classifiers on poor, restored and clean images, beside R2C-GAN's joint head.

  python -m experiments.classifiers.compare --datasets_dir dataset --classifiers runs/densenet121,runs/resnet50 \
      --models runs/paper --output_dir results/classifiers

The classifiers are those of `experiments.classifiers`; the models are runs of R2C-GAN, whose head sees the poor image
only. Everything is measured on testA/: with 95% intervals (patients resampled where the manifest knows them), with
McNemar's exact test between predictions on the same cases, and once more at the threshold with the best F1 on valA/,
chosen for each prediction alike. P-values are not adjusted for their number.

Writes result.json, predictions.csv, roc.png, f1.png and flags.txt. Research only, not for diagnosis.
"""

import dataclasses
from pathlib import Path

import numpy as np
from absl import flags
from tqdm import tqdm

from data_prep.manifest import UNKNOWN, read_manifest
from experiments.classifiers.classifier import Classifier
from r2c_gan import files
from r2c_gan.cli import program
from r2c_gan.data import images
from r2c_gan.data.datasets import CLASSES, read_domain, reference_images
from r2c_gan.data.streams import read_batches
from r2c_gan.errors import UserError
from r2c_gan.evaluation import figures, metrics

FLAGS = flags.FLAGS
HEAD = "joint head"
# Of the prediction at the validation threshold: the decision alone is judged.
DECISION_MEASURES = ("accuracy", "sensitivity", "specificity", "precision", "f1", "f2")
STAGE_COLORS = {"poor": "#D55E00", "restored": "#0072B2", "clean": "#009E73"}  # Okabe and Ito 2008
LINE_STYLES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What one classifier says of one kind of images.

    Attributes:
        classifier: name of a classifier, or of the model whose head it is.
        stage: "poor", "clean", or "restored by " and a model's name.
        is_head: whether it is a joint head.
        test: float64 [N], the probabilities of COVID-19 of the test images.
        val: the same of the validation images; None where there are none.
    """

    classifier: str
    stage: str
    is_head: bool
    test: np.ndarray
    val: np.ndarray | None = None

    @property
    def name(self):
        classifier = f"{HEAD} of {self.classifier}" if self.is_head else self.classifier
        return f"{classifier} on {self.stage}"


def restored_stage(model):
    """The stage of images that a model restored."""
    return f"restored by {model}"


def stages(domain, reference, restorers, size, iterations=1, batch_size=16, progress=lambda batches: batches):
    """Reads the images of a domain, batch by batch, with what the models make of them and their reference images.

    Args:
        domain: a `Domain` of poor images.
        reference: the `Domain` of their reference images, or None.
        restorers: dictionary, name -> `Restorer`.
        size: side at which images are read, in pixels.
        iterations: passes of restoring.
        batch_size: images a batch.
        progress: wraps the iterable of batches, for a progress bar.

    Yields:
        (stages, heads): dictionary stage -> float32 [n, size, size, 1] in [-1, 1] ("poor", "restored by NAME", and
        "clean" if known), and dictionary name -> the head's probabilities of the poor images, float [n, 2].
    """
    for start in progress(range(0, len(domain), batch_size)):
        rows = slice(start, start + batch_size)

        def read(some, channels, rows=rows):
            (batch,) = read_batches(some.files[rows], size, channels, batch_size)
            return batch

        found, heads = {"poor": read(domain, 1)}, {}
        for name, restorer in restorers.items():
            restoration = restorer(read(domain, restorer.channels), iterations)
            restored = np.clip(images.with_channels(restoration.passes[-1], 1), -1, 1)
            found[restored_stage(name)] = restored
            heads[name] = restoration.probabilities[0]
        if reference is not None:
            found["clean"] = read(reference, 1)
        yield found, heads


def predict(batches, classifiers):
    """Probabilities of COVID-19 by (classifier, stage), and of the heads by (model, None).

    Args:
        batches: what `stages` yields.
        classifiers: dictionary, name -> function of an image batch that returns probabilities [n, 2].

    Returns:
        A dictionary of float64 [N].
    """
    parts = {}
    for found, heads in batches:
        for name, probabilities in heads.items():
            parts.setdefault((name, None), []).append(np.asarray(probabilities)[:, 1])
        for name, classify in classifiers.items():
            for stage, batch in found.items():
                parts.setdefault((name, stage), []).append(np.asarray(classify(batch))[:, 1])
    return {key: np.concatenate(values).astype(np.float64) for key, values in parts.items()}


def patients(datasets_dir, domain):
    """One id a case, for resampling whole patients; None where no patient is known to have two of the images."""
    manifest = read_manifest(datasets_dir)
    known = [
        manifest.get(file.relative_to(datasets_dir).as_posix(), {}).get("patient", UNKNOWN) for file in domain.files
    ]
    ids = [patient if patient not in (UNKNOWN, "") else f"case {index}" for index, patient in enumerate(known)]
    return ids if len(set(ids)) < len(ids) else None


def best_threshold(labels, probabilities):
    """The threshold with the highest F1, halfway between two probabilities; of equally good ones the nearest to 0.5.

    Args:
        labels: integers [N], 0 or 1.
        probabilities: floats [N], of COVID-19; a case is called COVID-19 where it lies above the threshold.

    Returns:
        (threshold, its F1); (0.5, None) where there is nothing to find.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float64)
    if not labels.any():
        return 0.5, None
    levels = np.unique(np.concatenate([[0.0], probabilities, [1.0]]))
    candidates = np.append((levels[1:] + levels[:-1]) / 2, 0.5)
    called = probabilities[None] > candidates[:, None]
    found, wrong = (called & (labels == 1)).sum(1), (called & (labels == 0)).sum(1)
    f1 = 2 * found / (found + wrong + labels.sum())
    best = np.flatnonzero(f1 == f1.max())
    chosen = best[np.argmin(np.abs(candidates[best] - 0.5))]
    return float(candidates[chosen]), float(f1[chosen])


def measure(prediction, labels, val_labels=None, clusters=None):
    """All measures of a prediction with 95% intervals, and those of its decision at the threshold of validation."""
    report = metrics.classification_report_with_intervals(labels, prediction.test, clusters)
    plain = metrics.classification_metrics(labels, prediction.test)
    result = {
        "classifier": prediction.classifier,
        "images": prediction.stage,
        "joint_head": prediction.is_head,
        "n": plain["n"],
        "confusion_matrix": plain["confusion_matrix"],
        "measures": report,
        "at_validation_threshold": None,
    }
    if prediction.val is not None:
        threshold, val_f1 = best_threshold(val_labels, prediction.val)
        decisions = (prediction.test > threshold).astype(np.float64)
        decided = metrics.classification_report_with_intervals(labels, decisions, clusters)
        result["at_validation_threshold"] = {
            "threshold": threshold,
            "validation_f1": val_f1,
            "measures": {name: decided[name] for name in DECISION_MEASURES},
        }
    return result


def compare(first, second, labels, clusters=None):
    """McNemar's exact test of two predictions on the same cases, and the difference of their F1 with 95% interval."""

    def difference(some_labels, one, other):
        scores = [metrics.f1(some_labels, values > 0.5) for values in (one, other)]
        return None if None in scores else scores[0] - scores[1]

    correct = [(prediction.test > 0.5) == labels for prediction in (first, second)]
    low, high = metrics.bootstrap_interval(difference, labels, first.test, second.test, clusters=clusters, n=1000)
    return {
        "first": first.name,
        "second": second.name,
        "n": len(labels),
        "mcnemar": metrics.mcnemar(*correct),
        "f1_difference": {"value": difference(labels, first.test, second.test), "low": low, "high": high},
    }


def pairs(predictions):
    """The comparisons of the study, as pairs of predictions.

    Each joint head with each classifier on poor images and on those that its model restored; and each classifier on
    restored, and on clean, images with itself on poor ones.
    """
    heads = [prediction for prediction in predictions if prediction.is_head]
    plain = [prediction for prediction in predictions if not prediction.is_head]
    found = [
        (head, other) for head in heads for other in plain if other.stage in ("poor", restored_stage(head.classifier))
    ]
    for poor in plain:
        if poor.stage == "poor":
            found += [(other, poor) for other in plain if other.classifier == poor.classifier and other is not poor]
    return found


def judge(datasets_dir, classifiers, restorers, size, iterations=1, batch_size=16, progress=lambda items, title: items):
    """Every prediction on `testA/`, and on `valA/` where it exists.

    Args:
        datasets_dir: the datasets folder.
        classifiers: dictionary, name -> function of an image batch that returns probabilities [n, 2].
        restorers: dictionary, name -> `Restorer`.
        size: side at which images are judged.
        iterations: passes of restoring.
        batch_size: images a batch.
        progress: function of an iterable and a title, for a progress bar.

    Returns:
        (predictions, test `Domain`, validation `Domain` or None).

    Raises:
        UserError: if `testA/` is missing, an image cannot be read or a reference image is missing.
    """
    domains, probabilities = {}, {}
    for split in ("testA", "valA"):
        folder = Path(datasets_dir) / split
        if split == "valA" and not folder.is_dir():
            continue
        domains[split] = read_domain(folder)
        reference = folder.with_name(f"{split}_reference")
        references = reference_images(domains[split], reference) if reference.is_dir() else None
        batches = stages(
            domains[split],
            references,
            restorers,
            size,
            iterations,
            batch_size,
            lambda items, split=split: progress(items, split),
        )
        probabilities[split] = predict(batches, classifiers)
    predictions = []
    for (name, stage), test in probabilities["testA"].items():
        val = probabilities.get("valA", {}).get((name, stage))
        predictions.append(Prediction(name, stage or "poor", stage is None, test, val))
    return predictions, domains["testA"], domains.get("valA")


# --- Figures ----------------------------------------------------------------------------------------------------------


def save_roc(predictions, labels, path):
    """Draws the ROC curve of every prediction: a panel a classifier, its kinds of images in it; the heads beside it.

    Args:
        predictions: list of `Prediction`.
        labels: integers [N].
        path: the PNG to write.
    """
    from matplotlib.figure import Figure
    from sklearn.metrics import roc_curve

    names = list(dict.fromkeys(prediction.classifier for prediction in predictions if not prediction.is_head))
    heads = [prediction for prediction in predictions if prediction.is_head]
    panels = names or [HEAD]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.4 * columns, 4.7 * rows), layout="constrained")
    all_axes = figure.subplots(rows, columns, squeeze=False).ravel()
    styles = _line_styles(predictions)
    for axes, name in zip(all_axes, panels, strict=False):
        shown = [prediction for prediction in predictions if prediction.classifier == name and not prediction.is_head]
        axes.plot([0, 1], [0, 1], color="0.75", linewidth=1)
        for prediction in [*heads, *shown]:
            false_positives, true_positives, _ = roc_curve(labels, prediction.test, drop_intermediate=False)
            area = metrics.auroc(labels, prediction.test)
            label = f"{HEAD} of {prediction.classifier} on poor" if prediction.is_head else f"on {prediction.stage}"
            axes.plot(
                false_positives,
                true_positives,
                linestyle=styles[prediction.name],
                color="0.2" if prediction.is_head else STAGE_COLORS[prediction.stage.split()[0]],
                linewidth=1.2 if prediction.is_head else 1.8,
                label=f"{label}: {area:.3f}",
            )
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axes.set_title(name, fontsize=10, loc="left")
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7.5, loc="lower right", title="AUROC", title_fontsize=7.5, framealpha=0.9)
    for axes in all_axes[len(panels) :]:
        axes.set_axis_off()
    positives = int(np.sum(labels))
    figure.supxlabel(
        f"1 − specificity   ({positives} COVID-19 and {len(labels) - positives} control images)", fontsize=9
    )
    figure.supylabel("sensitivity", fontsize=9)
    figures.save(figure, path)


def _line_styles(predictions):
    """A line style a model: of its head and of what it restored; clean and poor are solid."""
    models = list(dict.fromkeys(prediction.classifier for prediction in predictions if prediction.is_head))
    by_model = {model: LINE_STYLES[index % len(LINE_STYLES)] for index, model in enumerate(models)}
    styles = {}
    for prediction in predictions:
        model = prediction.classifier if prediction.is_head else prediction.stage.removeprefix("restored by ")
        styles[prediction.name] = by_model.get(model, "-")
    return styles


def save_f1(results, path, title=None):
    """Draws F1 with its 95% interval, a line a prediction, grouped by classifier; hollow: at the validation threshold.

    Args:
        results: list of what `measure` returns.
        path: the PNG to write.
        title: of the figure.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    groups = {}
    for result in results:
        groups.setdefault(HEAD if result["joint_head"] else result["classifier"], []).append(result)
    lines = sum(len(group) + 1 for group in groups.values())
    figure = Figure(figsize=(7.5, 0.9 + 0.25 * lines), layout="constrained")
    axes = figure.subplots()
    place, ticks, lowest = 0.0, [], 1.0
    for group, members in groups.items():
        axes.text(0, place, group, transform=axes.get_yaxis_transform(), fontsize=9, va="center", weight="bold")
        place += 1
        for result in members:
            color = "0.2" if result["joint_head"] else STAGE_COLORS[result["images"].split()[0]]
            at_half, tuned = result["measures"]["f1"], result["at_validation_threshold"]
            lowest = min(lowest, _draw_interval(axes, at_half, place - 0.14 * bool(tuned), color, color))
            if tuned:
                lowest = min(lowest, _draw_interval(axes, tuned["measures"]["f1"], place + 0.18, color, "white"))
            what = f"{result['classifier']} on poor" if result["joint_head"] else f"on {result['images']}"
            ticks.append((place, what))
            place += 1
    axes.set_yticks([tick for tick, _ in ticks], [text for _, text in ticks], fontsize=8)
    axes.set_ylim(place - 0.4, -0.7)
    axes.set_xlim(max(0.0, np.floor(10 * lowest - 0.2) / 10), 1.005)
    axes.set_xlabel("F1 with 95% interval", fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    handles = [
        Line2D([], [], marker="o", color="0.4", linestyle="", label="decision at 0.5"),
        Line2D([], [], marker="o", color="0.4", markerfacecolor="white", linestyle="", label="at validation threshold"),
    ]
    figure.legend(handles=handles, fontsize=8, frameon=False, ncols=2, loc="outside upper right")
    if title:
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    figures.save(figure, path)


def _draw_interval(axes, measured, place, color, fill):
    """A dot and its interval; the smallest value drawn."""
    if measured["value"] is None:
        return 1.0
    if measured["low"] is not None:
        axes.plot([measured["low"], measured["high"]], [place, place], color=color, linewidth=1.4)
    axes.plot(measured["value"], place, "o", color=color, markerfacecolor=fill, markersize=5)
    return measured["value"] if measured["low"] is None else measured["low"]


# --- Program ----------------------------------------------------------------------------------------------------------


def load(classifiers, models, checkpoint="auto"):
    """Loads classifiers and models by the names of their folders.

    Args:
        classifiers: folders of `experiments.classifiers`.
        models: run folders of R2C-GAN, or SavedModels.
        checkpoint: which of a run's checkpoints, as in `checkpoints.select`.

    Returns:
        (dictionary of `Classifier`s, dictionary of `Restorer`s, the side of the images that all of them see).

    Raises:
        UserError: if one cannot be loaded, two have one name, or their sizes differ.
    """
    from r2c_gan.restoration.restorer import Restorer

    for flag, paths in (("classifiers", classifiers), ("models", models)):
        names = [Path(path).name for path in paths]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"--{flag}: two folders are called {twice[0]}; rename one, the name identifies it")
    loaded = {Path(path).name: Classifier.load(path) for path in classifiers}
    restorers = {Path(path).name: Restorer.load(path, checkpoint) for path in models}
    sizes = {name: (classifier.size,) * 2 for name, classifier in loaded.items()}
    sizes |= {name: tuple(restorer.size) for name, restorer in restorers.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {height} x {width}" for name, (height, width) in sizes.items())
        raise UserError(
            f"--classifiers, --models: see images of different sizes, which is no fair comparison: {listed}"
        )
    height, width = next(iter(sizes.values()))
    if height != width:
        raise UserError(f"--models: {height} x {width} pixels; classifiers see square images")
    return loaded, restorers, height


def write_predictions(predictions, domain, path):
    """Writes the probability of COVID-19 by case and prediction."""
    rows = []
    for index, file in enumerate(domain.files):
        row = {"file": file.relative_to(domain.folder).as_posix(), "label": CLASSES[domain.labels[index]]}
        rows.append({**row, **{prediction.name: f"{prediction.test[index]:.6f}" for prediction in predictions}})
    files.write_csv(path, rows, list(rows[0]))


def main():
    for name in ("iterations", "batch_size"):
        if FLAGS[name].value < 1:
            raise UserError(f"--{name}={FLAGS[name].value}: must be at least 1")
    if not FLAGS.classifiers:
        raise UserError("--classifiers: name at least one run of experiments.classifiers")
    program.start_tensorflow()
    classifiers, restorers, size = load(FLAGS.classifiers, FLAGS.models, FLAGS.checkpoint)
    predictions, test, val = judge(
        FLAGS.datasets_dir, classifiers, restorers, size, FLAGS.iterations, FLAGS.batch_size, tqdm
    )
    if len(set(test.labels.tolist())) < len(CLASSES):
        raise UserError(f"{test.folder}: all its images are of one class; there is nothing to tell apart")
    clusters = patients(FLAGS.datasets_dir, test)
    val_labels = None if val is None else val.labels
    measured = [measure(prediction, test.labels, val_labels, clusters) for prediction in tqdm(predictions, "intervals")]
    tested = [compare(*pair, test.labels, clusters) for pair in tqdm(pairs(predictions), "tests")]
    output = Path(FLAGS.output_dir)
    write_predictions(predictions, test, output / "predictions.csv")
    save_roc(predictions, test.labels, output / "roc.png")
    save_f1(measured, output / "f1.png", f"testA, n = {len(test)}")
    program.write_flags(output)
    files.write_json(
        output / "result.json",
        {
            "n": len(test),
            "n_validation": 0 if val is None else len(val),
            "resampled": "cases" if clusters is None else "patients",
            "size": size,
            "iterations": FLAGS.iterations,
            "classifiers": {name: classifier.result for name, classifier in classifiers.items()},
            "models": {name: restorer.source for name, restorer in restorers.items()},
            "predictions": measured,
            "comparisons": tested,
        },
    )
    print(table(measured))
    print(f"n = {len(test)}. Research only, not for diagnosis. -> {output}")


def table(measured):
    """The measures in Markdown."""
    lines = ["| classifier | images | F1 | F1 at validation threshold | AUROC | sensitivity | specificity |"]
    lines.append("|---|---|---|---|---|---|---|")
    for result in measured:
        tuned = result["at_validation_threshold"]
        cells = [f"{HEAD} of {result['classifier']}" if result["joint_head"] else result["classifier"]]
        cells += [result["images"], _cell(result["measures"]["f1"])]
        cells.append(_cell(tuned["measures"]["f1"]) if tuned else "")
        cells += [_cell(result["measures"][name]) for name in ("auroc", "sensitivity", "specificity")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(measured):
    if measured["value"] is None:
        return ""
    interval = "" if measured["low"] is None else f" [{measured['low']:.2f}, {measured['high']:.2f}]"
    return f"{measured['value']:.3f}{interval}"


def define_flags():
    """Defines the flags of the program. Not at import: this module is a library too."""
    flags.DEFINE_string("datasets_dir", None, "Folder with testA/, testA_reference/, valA/, ...", required=True)
    flags.DEFINE_list("classifiers", [], "Runs of experiments.classifiers.")
    flags.DEFINE_list("models", [], "Runs of r2c-gan-train, or SavedModels.")
    flags.DEFINE_string("output_dir", None, "Folder for the results.", required=True)
    flags.DEFINE_string("checkpoint", "auto", "Of the models' runs: latest, best, an epoch, or auto.")
    flags.DEFINE_integer("iterations", 1, "Passes of restoring.")
    flags.DEFINE_integer("batch_size", 16, "Images a batch.")


def console():
    define_flags()
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
