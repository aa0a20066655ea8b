"""Fits the quality score on synthetic pairs, and measures on other radiographs how well it ranks.

  python -m data_prep.quality_calibration --source=xray/manifest.csv --output_dir=calibration

Every radiograph is taken as clean, whatever its own faults, and degraded once at each severity. A part of the
radiographs (`--test_fraction`, stratified by source) is kept out of the fit and gives the figures of `result.json`,
with those of two usual measures on the same images: the variance of the Laplacian, and natural-scene statistics as in
BRISQUE, fitted in the same way to the same data. `quality_model.json` takes the place of the file of that name beside
this module. `calibration.png` shows the scores and the comparison, `lines.png` what each feature is worth.
"""

import os
from pathlib import Path

import cv2
import numpy as np
from absl import flags
from matplotlib.figure import Figure
from scipy import special
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from data_prep import quality
from data_prep.degradations import DEGRADATIONS, SEVERITIES, degrade
from data_prep.parallel import parallel_map
from data_prep.sources import read_source
from r2c_gan import files
from r2c_gan.cli import program
from r2c_gan.data import images
from r2c_gan.errors import UserError, reason
from r2c_gan.evaluation import figures, metrics

VERSIONS = ("clean", *SEVERITIES)
TARGETS = (1, 2 / 3, 1 / 3, 0)  # the score aimed at for each version
SIZES = (0, 256, 128)  # sides at which radiographs are degraded and judged, in turn; 0 keeps their size
KNOTS = 6  # of each broken line, at quantiles of its feature
RIDGE = 0.3  # C of the logistic regression
RESAMPLES = 1000  # of the bootstrap intervals


def fit_lines(tables, names):
    """Fits a broken line for each feature: additive logistic regression on the targets, with a ridge penalty.

    Args:
        tables: float [versions, N, features], the versions in the order of `VERSIONS`.
        names: of the features.

    Returns:
        A model for `quality.score_features`: {"features": {name: [where, adds]}, "constant"}. The lines are shifted so
        that each adds nothing to the average clean image.
    """
    rows = tables.reshape(-1, tables.shape[-1])
    knots = [np.unique(np.quantile(column, np.linspace(0.01, 0.99, KNOTS))) for column in rows.T]
    hats = np.concatenate([_hats(column, at) for column, at in zip(rows.T, knots, strict=True)], axis=1)
    # A target between 0 and 1 is a row of either class with these weights.
    target = np.repeat(TARGETS, tables.shape[1])
    classifier = LogisticRegression(C=RIDGE, max_iter=5000)
    classes = np.repeat((1, 0), len(target))
    classifier.fit(np.concatenate([hats, hats]), classes, np.concatenate([target, 1 - target]))

    constant = float(classifier.intercept_[0])
    splits = np.cumsum([len(at) for at in knots])[:-1]
    lines = {}
    for name, at, adds, clean in zip(names, knots, np.split(classifier.coef_[0], splits), tables[0].T, strict=True):
        usual = float(np.interp(clean, at, adds).mean())
        constant += usual
        lines[name] = [np.round(at, 5).tolist(), np.round(adds - usual, 4).tolist()]
    return {"features": lines, "constant": round(constant, 4)}


def _hats(values, knots):
    """The basis in which a broken line with these knots has its values at the knots as coefficients."""
    return np.stack([np.interp(values, knots, unit) for unit in np.eye(len(knots))], axis=1)


def scores(tables, names, model):
    """[versions, N, features] -> [versions, N]."""
    flat = tables.reshape(-1, tables.shape[-1])
    judged = [quality.score_features(dict(zip(names, row, strict=True)), model) for row in flat]
    return np.reshape(judged, tables.shape[:2])


def auroc(clean, degraded):
    """The share of (clean, degraded) pairs in which the clean image scores higher, ties counting one half."""
    labels = np.repeat([1, 0], [len(clean), len(degraded)])
    return metrics.auroc(labels, np.concatenate([clean, degraded]))


# --- What the score is compared with ----------------------------------------------------------------------------------


def laplacian_variance(image):
    """Log variance of the Laplacian at the score's size: the usual measure of sharpness (Pech-Pacheco et al. 2000)."""
    return float(np.log(cv2.Laplacian(quality.shrink(image), cv2.CV_32F).var() + 1e-8))


def scene_statistics(image):
    """The 36 features of BRISQUE (Mittal et al. 2012): shapes of the distributions of normalised gray values.

    Mean-subtracted, contrast-normalised values (MSCN) and the products of neighbours, in two scales, by the moments of
    generalised Gaussians. On the scale of 0 to 255 with C = 1, as there.
    """
    image, features = 255 * quality.shrink(image), []
    for _ in range(2):
        mean = cv2.GaussianBlur(image, (7, 7), 7 / 6)
        deviation = np.sqrt(np.maximum(cv2.GaussianBlur(image * image, (7, 7), 7 / 6) - mean * mean, 0))
        mscn = (image - mean) / (deviation + 1)
        features += [_shape(_moment_ratio(mscn)), float(np.mean(mscn**2))]
        neighbours = (
            (mscn[:, :-1], mscn[:, 1:]),
            (mscn[:-1], mscn[1:]),
            (mscn[:-1, :-1], mscn[1:, 1:]),
            (mscn[:-1, 1:], mscn[1:, :-1]),
        )
        for one, other in neighbours:
            features += _asymmetric(one * other)
        image = cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2), interpolation=cv2.INTER_AREA)
    return features


_SHAPES = np.arange(0.2, 10, 0.001)
_RATIOS = special.gamma(2 / _SHAPES) ** 2 / (special.gamma(1 / _SHAPES) * special.gamma(3 / _SHAPES))


def _shape(ratio):
    """The exponent of the generalised Gaussian with this E|x|^2 / E x^2 (rising in the exponent)."""
    return float(_SHAPES[min(np.searchsorted(_RATIOS, ratio), len(_SHAPES) - 1)])


def _moment_ratio(values):
    return np.abs(values).mean() ** 2 / (np.mean(values**2) + 1e-12)


def _asymmetric(values):
    """Shape, mean, left and right variance of an asymmetric generalised Gaussian (Lasmar et al. 2009)."""
    left = np.sqrt(np.sum(np.minimum(values, 0) ** 2) / max(np.sum(values < 0), 1)) + 1e-6
    right = np.sqrt(np.sum(np.maximum(values, 0) ** 2) / max(np.sum(values > 0), 1)) + 1e-6
    skew = left / right
    shape = _shape(_moment_ratio(values) * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2)
    mean = (right - left) * special.gamma(2 / shape) / np.sqrt(special.gamma(1 / shape) * special.gamma(3 / shape))
    return [shape, float(mean), float(left**2), float(right**2)]


# --- The calibration --------------------------------------------------------------------------------------------------


def measure(job):
    """One radiograph: (features, scene statistics, Laplacian) of each version, and what degraded each.

    Args:
        job: (number, path, seed); the size, and the degradations, follow from number and seed.

    Returns:
        (float [versions, features], float [versions, 36], float [versions], list of sets of names), or a message.
    """
    number, path, seed = job
    try:
        image = quality.read_radiograph(path)
    except Exception as error:  # whatever it is, it is about this file
        return f"{path}: {reason(error, path)}"
    size = SIZES[number % len(SIZES)]
    if size:
        image = np.clip(images.resize(image[..., None], size, size)[..., 0], 0, 1)
    versions, names = [image], [[]]
    for k, severity in enumerate(SEVERITIES):
        degraded, applied = degrade(image, np.random.default_rng([seed, number, k]), severity)
        versions.append(degraded)
        names.append([one["name"] for one in applied])
    versions = [(np.rint(one * 255) / 255).astype(np.float32) for one in versions]  # as files would hold them
    return (
        [list(quality.quality_features(one).values()) for one in versions],
        [scene_statistics(one) for one in versions],
        [[laplacian_variance(one)] for one in versions],
        names,
    )


def ranking(judged, applied=None):
    """AUROC of clean against each severity with its 95% interval, means, and AUROC by degradation.

    Args:
        judged: float [versions, N], scores.
        applied: [N][versions] lists of the degradations' names; None leaves out the last.

    Returns:
        A dictionary, JSON-able.
    """
    result = {"n": judged.shape[1], "mean": dict(zip(VERSIONS, judged.mean(1).round(4).tolist(), strict=True))}
    result["auroc"], result["auroc_95"] = {}, {}
    for severity, bad in zip(SEVERITIES, judged[1:], strict=True):
        result["auroc"][severity] = auroc(judged[0], bad)
        result["auroc_95"][severity] = list(metrics.bootstrap_interval(auroc, judged[0], bad, n=RESAMPLES))
    if applied is not None:
        result["auroc_of_blends_with"] = {}
        for name in DEGRADATIONS:
            within = np.array([[name in version for version in one] for one in applied]).T
            result["auroc_of_blends_with"][name] = {
                severity: {"n": int(within[k].sum()), "auroc": auroc(judged[0], judged[k][within[k]])}
                for k, severity in enumerate(SEVERITIES, 1)
                if within[k].any()
            }
    return result


def calibrate(records, seed=0, test_fraction=1 / 3, workers=1):
    """Fits the score on a part of the radiographs and measures it, and what it is compared with, on the others.

    Args:
        records: list of `data_prep.sources.Record`.
        seed: seed of the division and of the degradations.
        test_fraction: share of the radiographs kept out of the fit.
        workers: processes to use.

    Returns:
        (model, result, scores [versions, N] of the test images).

    Raises:
        UserError: if a radiograph cannot be used, or there are too few.
    """
    if len(records) < 60:
        raise UserError(f"--source: {len(records)} radiographs are too few to calibrate on; at least 60 are needed")
    jobs = [(number, record.path, seed) for number, record in enumerate(records)]
    measured = []
    for one in tqdm(parallel_map(measure, jobs, workers), "measuring", len(jobs), unit="image"):
        if isinstance(one, str):
            raise UserError(one)
        measured.append(one)
    own, scene, sharpness = (np.swapaxes(np.array(part), 0, 1) for part in list(zip(*measured, strict=True))[:3])
    applied = [one[3] for one in measured]
    names = list(quality.quality_features(np.zeros((32, 32))))
    source = np.array([record.source for record in records])
    covid = np.array([record.label == "covid" for record in records])
    index = np.arange(len(records))
    train, test = train_test_split(index, test_size=test_fraction, random_state=seed, stratify=source)

    model = fit_lines(own[:, train], names)
    judged = scores(own[:, test], names, model)
    scene_names = [f"scene_{k}" for k in range(scene.shape[-1])]
    others = {
        "laplacian_variance": sharpness[:, test, 0],
        "laplacian_variance_fitted": scores(
            sharpness[:, test], ["laplacian"], fit_lines(sharpness[:, train], ["laplacian"])
        ),
        "scene_statistics_fitted": scores(scene[:, test], scene_names, fit_lines(scene[:, train], scene_names)),
    }
    result = {
        "seed": seed,
        "n_train": len(train),
        "n_test": len(test),
        "score": ranking(judged, [applied[k] for k in test]),
        "compared": {name: ranking(values) for name, values in others.items()},
        "by_size": {str(size): ranking(judged[:, test % len(SIZES) == k]) for k, size in enumerate(SIZES)},
        "clean_by_source": {},
        "source_not_in_the_fit": {},
    }
    for name in np.unique(source).tolist():
        clean = judged[0, source[test] == name]
        quartiles = np.quantile(clean, (0.25, 0.5, 0.75)).round(4).tolist()
        result["clean_by_source"][name] = {"n": len(clean), "quartiles": quartiles}
        apart = source == name
        if not apart.all():
            elsewhere = fit_lines(own[:, ~apart], names)
            result["source_not_in_the_fit"][name] = ranking(scores(own[:, apart], names, elsewhere))
    if covid[test].any() and not covid[test].all():
        # Far from 0.5: dividing by the score divides by the diagnosis.
        result["covid_against_control_auroc"] = auroc(judged[0, covid[test]], judged[0, ~covid[test]])
    return model, result, judged


def save_figure(judged, result, path):
    """Draws the scores of each version, and the AUROC of the score beside that of the others."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    colors = ("#0072B2", "#009E73", "#E69F00", "#D55E00")
    for name, values, color in zip(VERSIONS, judged, colors, strict=True):
        left.hist(values, np.linspace(0, 1, 41), histtype="step", linewidth=1.6, color=color, label=name)
    left.set(xlabel="quality score", ylabel="test images", title=f"{judged.shape[1]} test images")
    left.legend(frameon=False)
    methods = {"this score": result["score"], **result["compared"]}
    for k, (name, one) in enumerate(methods.items()):
        at = np.arange(len(SEVERITIES)) + 0.2 * (k - 1.5)
        values = np.array([one["auroc"][severity] for severity in SEVERITIES])
        ends = np.array([one["auroc_95"][severity] for severity in SEVERITIES])
        error = np.abs(ends.T - values)
        right.bar(
            at, values, 0.18, yerr=error, label=name.replace("_", " "), color=(*colors[:1], "0.75", "0.55", "0.35")[k]
        )
    right.axhline(0.5, color="0.3", linewidth=0.8, linestyle="--")
    right.set(xticks=range(len(SEVERITIES)), xticklabels=SEVERITIES, ylim=(0.2, 1.02), ylabel="AUROC, clean against")
    right.set_title("telling clean from degraded")
    right.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figures.save(figure, path)


def save_lines(model, path):
    """Draws what each feature adds to the logit of the score."""
    columns = 5
    rows = -(-len(model["features"]) // columns)
    figure = Figure(figsize=(2.3 * columns, 1.7 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes, (name, (at, adds)) in zip(panels, model["features"].items(), strict=False):
        axes.plot(at, adds, marker="o", markersize=3, color="#0072B2")
        axes.axhline(0, color="0.6", linewidth=0.6)
        axes.set_title(name.replace("_", " "), fontsize=8)
        axes.tick_params(labelsize=7)
    for axes in panels[len(model["features"]) :]:
        axes.set_axis_off()
    figure.supylabel("adds to the logit of the score; the usual clean image: 0", fontsize=8)
    figures.save(figure, path)


def define_flags():
    """Defines the flags of the program. Not at import: this module is a library too."""
    flags.DEFINE_multi_string(
        "source", None, "A CSV file (file,label,source) or a folder; may be repeated.", required=True
    )
    flags.DEFINE_string("output_dir", None, "Folder for the model, the figures and the pictures.", required=True)
    flags.DEFINE_float("test_fraction", 1 / 3, "Share kept out of the fit.", lower_bound=0.05, upper_bound=0.9)
    flags.DEFINE_integer("seed", 0, "Seed of the division and of the degradations.", lower_bound=0)
    flags.DEFINE_integer(
        "workers", os.cpu_count(), "Processes to use; the result does not depend on it.", lower_bound=1
    )


def main():
    """Calibrates on the radiographs that the flags name."""
    values, records = flags.FLAGS, []
    for source in values.source:
        found, problems = read_source(source)
        if problems:
            raise UserError(problems[0][1])
        records += found
    model, result, judged = calibrate(records, values.seed, values.test_fraction, values.workers)
    output = Path(values.output_dir)
    record = {name: result[name] for name in ("seed", "n_train", "n_test")} | {"auroc": result["score"]["auroc"]}
    files.write_json(output / "quality_model.json", {**model, "calibration": record})
    files.write_json(output / "result.json", result)
    save_figure(judged, result, output / "calibration.png")
    save_lines(model, output / "lines.png")
    program.write_flags(output)
    for name, one in {"this score": result["score"], **result["compared"]}.items():
        texts = [
            f"{one['auroc'][s]:.3f} [{one['auroc_95'][s][0]:.3f}, {one['auroc_95'][s][1]:.3f}]" for s in SEVERITIES
        ]
        print(f"{name:28s} AUROC " + "  ".join(f"{s} {text}" for s, text in zip(SEVERITIES, texts, strict=True)))


def console():
    define_flags()
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
