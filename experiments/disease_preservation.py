r"""Does restoring keep the disease? Three tests that ask neither R2C-GAN's own head nor its losses.

  python -m experiments.disease_preservation --datasets_dir dataset --classifier runs/clean --models runs/paper \
      --output_dir results/preservation
  python -m experiments.disease_preservation --phantoms_dir phantoms --models runs/paper --output_dir results/phantoms

--datasets_dir: the verdict of a frozen outside classifier, trained on clean images (`experiments.classifiers
--train_on trainB`), on the poor image, on the restored one and on the clean twin. Restoring ought to move the verdict
towards that on the clean twin; a verdict lost or invented is what Cohen et al. 2018 warn of.

--phantoms_dir (made by `data_prep.phantoms`): phantoms have known lungs and opacities. How much of the opacities'
contrast is kept; whether opacities appear in controls; how much is changed inside and outside the lungs.

Writes result.json, predictions.csv, verdicts-MODEL.png, changed-MODEL.png, contrast.png and flags.txt. Research only,
not for diagnosis.
"""

import dataclasses
import math
from pathlib import Path

import cv2
import numpy as np
from absl import flags
from tqdm import tqdm

from data_prep.manifest import read_manifest
from data_prep.phantoms import make_phantom
from experiments.compare_classifiers import STAGE_COLORS, load, patients, predict, restored_stage, stages
from r2c_gan import figures, files, images, metrics
from r2c_gan.cli import program
from r2c_gan.data import CLASSES, clean_twins, read_batches, read_domain
from r2c_gan.errors import UserError

FLAGS = flags.FLAGS
CLASS_TITLES = ("control", "COVID-19")
PANEL_CASES = 6
# Around an opacity, as shares of the image's side: the ring that it is compared with, and the blur by which a patch as
# large as an opacity is told from noise.
RING = 1 / 16
PATCH_SIGMA = 1 / 32
SMALLEST_AREA = 12  # pixels, of an opacity and of its ring
FALSE_OPACITY = 0.5  # of an opacity's mean strength: what counts as a false one


# --- Verdicts ---------------------------------------------------------------------------------------------------------


def kappa(first, second):
    """Cohen's kappa (1960) of two vectors of booleans: agreement beyond chance; None where chance explains all.

    (p_o - p_e) / (1 - p_e), p_o the share of equal ones, p_e what is expected of independent ones.
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    observed = np.mean(first == second)
    expected = first.mean() * second.mean() + (1 - first.mean()) * (1 - second.mean())
    return float((observed - expected) / (1 - expected)) if expected < 1 else None


def agreement(first, second, clusters=None):
    """How often two verdicts agree.

    Args:
        first, second: booleans [N], whether COVID-19 is called.
        clusters: one patient a case, or None.

    Returns:
        A dictionary: `table` ([[both control, only second COVID-19], [only first, both]]), `agreeing` (a proportion)
        and `kappa` with its 95% bootstrap interval.
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    low, high = metrics.bootstrap_interval(kappa, first, second, clusters=clusters)
    return {
        "table": np.bincount(2 * first + second, minlength=4).reshape(2, 2).tolist(),
        "agreeing": proportion(first == second),
        "kappa": {"value": kappa(first, second), "low": low, "high": high},
    }


def proportion(hits):
    """Count, number, share and 95% Wilson interval of a vector of booleans; None where it is empty."""
    hits = np.asarray(hits, bool)
    count, n = int(hits.sum()), len(hits)
    low, high = metrics.wilson_interval(count, n) if n else (None, None)
    return {"count": count, "n": n, "share": count / n if n else None, "low": low, "high": high}


def verdict_changes(labels, poor, restored, clean=None, clusters=None):
    """What restoring does to the verdicts of a classifier.

    Args:
        labels: integers [N], the truth.
        poor, restored, clean: floats [N], the probability of COVID-19 by the image that the classifier was shown.
        clusters: one patient a case, or None.

    Returns:
        A dictionary:
        `agreement`: by pair of images, of `agreement`;
        `towards_clean`: McNemar's test of "agrees with the verdict on the clean image", restored (b) against poor (c);
        `changes`: by true class, the share of verdicts on poor images that restoring turns, either way;
        `against_clean`: by image, the share of COVID-19 cases found on the clean image that are `lost`, and of controls
        called so on the clean image that are `invented`;
        `probability_change`: by true class, mean change of the probability of COVID-19 with 95% interval.
        What needs the clean images is None without them.
    """
    labels = np.asarray(labels)
    probabilities = {"poor": np.asarray(poor), "restored": np.asarray(restored)}
    if clean is not None:
        probabilities["clean"] = np.asarray(clean)
    called = {name: values > 0.5 for name, values in probabilities.items()}
    compared = [pair for pair in (("poor", "restored"), ("poor", "clean"), ("restored", "clean")) if pair[1] in called]
    classes = {name: labels == label for label, name in enumerate(CLASSES)}
    result = {
        "n": len(labels),
        "f1": {name: metrics.classification_metrics(labels, values)["f1"] for name, values in probabilities.items()},
        "agreement": {f"{one}_{other}": agreement(called[one], called[other], clusters) for one, other in compared},
        "towards_clean": None,
        "changes": {
            name: {
                "control_to_covid": proportion(called["restored"][members & ~called["poor"]]),
                "covid_to_control": proportion(~called["restored"][members & called["poor"]]),
            }
            for name, members in classes.items()
        },
        "against_clean": None,
        "probability_change": {
            name: {
                f"{other}_minus_{one}": _mean(probabilities[other] - probabilities[one], members, clusters)
                for one, other in (("poor", "restored"), ("clean", "restored"), ("clean", "poor"))
                if one in probabilities
            }
            for name, members in {"all": np.ones(len(labels), bool), **classes}.items()
        },
    }
    if clean is not None:
        agrees = {name: called[name] == called["clean"] for name in ("restored", "poor")}
        result["towards_clean"] = metrics.mcnemar(agrees["restored"], agrees["poor"])
        result["against_clean"] = {
            name: {
                "lost": proportion(~called[name][classes["covid"] & called["clean"]]),
                "invented": proportion(called[name][classes["control"] & ~called["clean"]]),
            }
            for name in ("poor", "restored")
        }
    return result


def _mean(values, members, clusters):
    chosen = None if clusters is None else np.asarray(clusters)[members]
    return metrics.summary(values[members], clusters=chosen)


# --- Phantoms ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """Where the lungs and opacities of a phantom are, at the size at which it is measured.

    Attributes:
        lungs: bool [H, W].
        opacities: bool [H, W]; of a control, where the opacities of its diseased twin are.
        ring: bool [H, W]: lung around the opacities.
        opacity: float32 [H, W], what the opacities add to the gray value, in shares of the gray range.
    """

    lungs: np.ndarray
    opacities: np.ndarray
    ring: np.ndarray
    opacity: np.ndarray

    @property
    def measurable(self):
        """Whether opacities and ring are large enough for a contrast."""
        return min(self.opacities.sum(), self.ring.sum()) >= SMALLEST_AREA


def anatomies(phantoms_dir, domain, size, progress=lambda cases: cases):
    """Draws the phantoms of a domain again, each with and without its opacities, from what the manifest records.

    Args:
        phantoms_dir: a folder of `data_prep.phantoms`.
        domain: the `Domain` of its clean test images.
        size: side at which they are measured, in pixels.
        progress: wraps the iterable of cases, for a progress bar.

    Returns:
        A list of `Anatomy`.

    Raises:
        UserError: if the manifest does not say how a phantom was made, or it was made otherwise.
    """
    manifest = read_manifest(phantoms_dir)
    found = []
    for file, label in progress(list(zip(domain.files, domain.labels, strict=True))):
        row = manifest.get(file.relative_to(phantoms_dir).as_posix(), {})
        seed, number = row.get("original", "").removeprefix("seed "), row.get("patient", "").removeprefix("p")
        if not (seed.isdigit() and number.isdigit() and row.get("source") == "phantom"):
            raise UserError(
                f"{file}: no phantom by the manifest of {phantoms_dir}; give a folder of data_prep.phantoms"
            )
        image = images.read_image(file, 1)
        twins = {name: _phantom(int(seed), int(number), image.shape[0], name) for name in ("control", "covid")}
        if np.abs(2 * twins[CLASSES[label]].image - 1 - image[..., 0]).max() > 0.02:
            raise UserError(f"{file}: another version made this phantom; make the folder again with data_prep.phantoms")
        found.append(_anatomy(twins, size))
    return found


def _phantom(seed, number, size, label):
    sequence, _ = np.random.SeedSequence(seed, spawn_key=(number,)).spawn(2)
    return make_phantom(np.random.default_rng(sequence), size, label)


def _anatomy(twins, size):
    covid = twins["covid"]
    lungs, opacities = (_resized(mask, size) > 0.5 for mask in (covid.lung_mask, covid.opacity_mask))
    radius = max(2, round(RING * size))
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    near = cv2.dilate(opacities.astype(np.uint8), disk) > 0
    return Anatomy(lungs, opacities, near & lungs & ~opacities, _resized(covid.image - twins["control"].image, size))


def _resized(image, size):
    return images.resize(np.asarray(image, np.float32)[..., None], size, size)[..., 0]


def contrast(image, anatomy):
    """(contrast, contrast to noise) of the opacities: mean inside minus mean of the ring; the same over the ring's SD.

    Args:
        image: float [H, W].
        anatomy: an `Anatomy` that is measurable.
    """
    inside, around = image[anatomy.opacities], image[anatomy.ring]
    difference = float(inside.mean() - around.mean())
    return difference, difference / max(float(around.std()), 1e-6)


def brightest_patch(change, lungs):
    """The largest brightening of a patch of the lungs beyond that of the lungs as a whole (their median).

    Args:
        change: float [H, W], an image minus another.
        lungs: bool [H, W].
    """
    sigma = PATCH_SIGMA * len(change)
    weight = lungs.astype(np.float32)
    change = (change - np.median(change[lungs])).astype(np.float32) * weight
    smooth = cv2.GaussianBlur(change, (0, 0), sigma) / np.maximum(cv2.GaussianBlur(weight, (0, 0), sigma), 0.25)
    return float(smooth[lungs].max())


def phantom_scores(batches, found):
    """Measures every phantom in every stage.

    Args:
        batches: what `compare_classifiers.stages` yields.
        found: list of `Anatomy`, in the order of the cases.

    Returns:
        Dictionary stage -> dictionary of float arrays [N]: `contrast`, `cnr` (NaN where it cannot be measured),
        `patch` (`brightest_patch` against the clean image), and `inside_X`, `outside_X`: mean absolute difference to
        the poor and to the clean image inside and outside the lungs. Gray values count as shares of the gray range.
    """
    scores, done = {}, 0
    for by_stage, _ in batches:
        # Shares of the gray range.
        by_stage = {name: (batch[..., 0] + 1) / 2 for name, batch in by_stage.items()}
        for name, batch in by_stage.items():
            for index, image in enumerate(batch):
                anatomy = found[done + index]
                values = dict(
                    zip(("contrast", "cnr"), contrast(image, anatomy), strict=True)
                    if anatomy.measurable
                    else (("contrast", math.nan), ("cnr", math.nan))
                )
                values["patch"] = brightest_patch(image - by_stage["clean"][index], anatomy.lungs)
                for other in ("poor", "clean"):
                    difference = np.abs(image - by_stage[other][index])
                    values[f"inside_{other}"] = float(difference[anatomy.lungs].mean())
                    values[f"outside_{other}"] = float(difference[~anatomy.lungs].mean())
                for key, value in values.items():
                    scores.setdefault(name, {}).setdefault(key, []).append(value)
        done += len(batch)
    return {name: {key: np.array(values) for key, values in stage.items()} for name, stage in scores.items()}


def summarise_phantoms(scores, labels, found):
    """The figures of `result.json` of phantoms.

    Args:
        scores: what `phantom_scores` returns.
        labels: integers [N].
        found: list of `Anatomy`.

    Returns:
        A dictionary, by stage:
        `opacities`, of COVID-19 phantoms: contrast, contrast to noise, the share of the clean image's mean contrast
        that is `kept`, and `kept_beyond_anatomy`: the same after the mean contrast of the controls is taken off, which
        the anatomy has at these places without any opacity;
        `controls`: the contrast where the diseased twin has its opacities, its change against the clean image, and the
        shares with a false opacity: the contrast there grown, or a patch anywhere in the lungs brightened, by more than
        half an opacity;
        `change`: mean absolute difference to the poor and to the clean image, inside and outside the lungs, and inside
        minus outside.
    """
    labels = np.asarray(labels)
    measurable = np.array([anatomy.measurable for anatomy in found])
    covid, control = (labels == 1) & measurable, (labels == 0) & measurable
    clean = scores["clean"]["contrast"]
    strength = {  # of a real opacity, against the healthy twin
        "contrast": float(np.mean([contrast(anatomy.opacity, anatomy)[0] for anatomy in found if anatomy.measurable])),
        "patch": float(np.mean([brightest_patch(anatomy.opacity, anatomy.lungs) for anatomy in found])),
    }
    by_stage = {}
    for name, values in scores.items():
        grown = (values["contrast"] - clean)[control]
        by_stage[name] = {
            "opacities": {
                "contrast": metrics.summary(values["contrast"][covid]),
                "contrast_to_noise": metrics.summary(values["cnr"][covid]),
                "kept": _with_interval(_ratio_of_means, values["contrast"][covid], clean[covid]),
                "kept_beyond_anatomy": _with_interval(
                    _ratio_of_differences, labels[measurable], values["contrast"][measurable], clean[measurable]
                ),
            },
            "controls": {
                "contrast": metrics.summary(values["contrast"][control]),
                "contrast_change": metrics.summary(grown),
                "false_opacity_in_place": proportion(grown > FALSE_OPACITY * strength["contrast"]),
                "false_opacity_anywhere": proportion(values["patch"][labels == 0] > FALSE_OPACITY * strength["patch"]),
            },
            "change": {
                f"from_{other}": {
                    "inside": metrics.summary(values[f"inside_{other}"]),
                    "outside": metrics.summary(values[f"outside_{other}"]),
                    "inside_minus_outside": metrics.summary(values[f"inside_{other}"] - values[f"outside_{other}"]),
                }
                for other in ("poor", "clean")
                if other != name
            },
        }
    return {
        "n": len(labels),
        "n_covid": int(np.sum(labels == 1)),
        "n_without_measurable_opacity": int(np.sum(~measurable)),
        "opacity_strength": strength,
        "stages": by_stage,
    }


def _with_interval(statistic, *arrays):
    low, high = metrics.bootstrap_interval(statistic, *arrays)
    return {"value": statistic(*arrays), "low": low, "high": high}


def _ratio_of_differences(labels, values, reference):
    """Mean of COVID-19 minus mean of controls, over the same of the reference; None where it is undefined."""
    if len(set(labels.tolist())) < 2:
        return None
    gap, whole = (array[labels == 1].mean() - array[labels == 0].mean() for array in (values, reference))
    return float(gap / whole) if whole > 0 else None


def _ratio_of_means(values, reference):
    return float(values.mean() / reference.mean()) if reference.mean() > 0 else None


# --- Figures ----------------------------------------------------------------------------------------------------------


def save_verdicts(labels, called, path, title):
    """Draws counts of verdicts by pairs of images, a row of matrices for each true class.

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
            # Blue where the two agree, orange where the verdict turns.
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
            axes.set_xlabel(f"verdict on {other}", fontsize=9)
            axes.set_ylabel(f"verdict on {one}", fontsize=9)
            axes.set_title(f"true {CLASS_TITLES[label]}, n = {members.sum()}", fontsize=9, loc="left")
    figure.suptitle(f"{title}: verdicts that agree (blue) and that turn (orange)", fontsize=10)
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


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
                    label=f"{kind}, {CLASS_TITLES[label]}" + ("" if label else " (where its twin is opaque)"),
                )
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        axes.set_title(name, fontsize=10, loc="left")
        axes.set_xlabel("contrast on the clean image (share of the gray range)", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.2, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, loc="upper left", framealpha=0.9)
    figure.supylabel("contrast on the poor and on the restored image", fontsize=8)
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def turned_cases(probabilities, target, count=PANEL_CASES):
    """Cases whose verdict restoring turns: half of them away from where it ought to be, if there are so many.

    Args:
        probabilities: dictionary with the probabilities of COVID-19 on "poor" and "restored", floats [N].
        target: booleans [N], the verdict that ought to be reached.
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
    """Draws cases whose verdict was turned: poor, restored and clean, with p(COVID-19) of the outside classifier.

    At their side: the true class, and whether the verdict was turned to that on the clean image or away from it (from
    the truth, where there is no clean image).

    Args:
        domain: `Domain` of the poor images.
        reference: `Domain` of their clean twins, or None.
        restorer: the `Restorer`.
        iterations: passes of restoring.
        probabilities: dictionary, "poor", "restored" and perhaps "clean" -> floats [N].
        path: the PNG to write; not written where no verdict was turned.

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


# --- Program ----------------------------------------------------------------------------------------------------------


def radiographs(datasets_dir, classifier, restorers, size, output, iterations=1, batch_size=16):
    """The verdicts of a classifier on `testA/`; writes its figures and returns its part of result.json."""
    domain = read_domain(Path(datasets_dir) / "testA")
    folder = Path(datasets_dir) / "testA_reference"
    reference = clean_twins(domain, folder) if folder.is_dir() else None
    batches = stages(
        domain,
        reference,
        restorers,
        size,
        iterations,
        batch_size,
        lambda items: tqdm(items, "radiographs", unit="batch"),
    )
    predicted = {stage: values for (_, stage), values in predict(batches, {"": classifier}).items() if stage}
    clusters = patients(datasets_dir, domain)
    result = {"n": len(domain), "resampled": "cases" if clusters is None else "patients", "models": {}}
    for name, restorer in restorers.items():
        shown = {"poor": predicted["poor"], "restored": predicted[restored_stage(name)]}
        if reference is not None:
            shown["clean"] = predicted["clean"]
        result["models"][name] = verdict_changes(domain.labels, *shown.values(), clusters=clusters)
        called = {image: values > 0.5 for image, values in shown.items()}
        save_verdicts(domain.labels, called, output / f"verdicts-{name}.png", name)
        save_turned(domain, reference, restorer, iterations, shown, output / f"changed-{name}.png")
    rows = [
        {
            "file": file.relative_to(domain.folder).as_posix(),
            "label": CLASSES[domain.labels[index]],
            **{stage: f"{values[index]:.6f}" for stage, values in predicted.items()},
        }
        for index, file in enumerate(domain.files)
    ]
    files.write_csv(output / "predictions.csv", rows, list(rows[0]))
    return result


def phantoms(phantoms_dir, restorers, size, output, iterations=1, batch_size=16):
    """Contrast and change on the phantoms of `testA/`; writes the figure and returns its part of result.json."""
    domain = read_domain(Path(phantoms_dir) / "testA")
    folder = Path(phantoms_dir) / "testA_reference"
    if not folder.is_dir():
        raise UserError(f"--phantoms_dir={phantoms_dir}: has no testA_reference/; give a folder of data_prep.phantoms")
    if len(set(domain.labels.tolist())) < len(CLASSES):
        raise UserError(f"{domain.folder}: all its phantoms are of one class")
    reference = clean_twins(domain, folder)
    found = anatomies(phantoms_dir, reference, size, lambda cases: tqdm(cases, "anatomy", unit="phantom"))
    if sum(anatomy.measurable for anatomy in found) < 2:
        raise UserError(f"--phantoms_dir={phantoms_dir}: no opacities large enough to measure at {size} pixels")
    batches = stages(
        domain, reference, restorers, size, iterations, batch_size, lambda items: tqdm(items, "phantoms", unit="batch")
    )
    scores = phantom_scores(batches, found)
    save_contrast(scores, domain.labels, output / "contrast.png")
    return summarise_phantoms(scores, domain.labels, found)


def main():
    for name in ("iterations", "batch_size"):
        if FLAGS[name].value < 1:
            raise UserError(f"--{name}={FLAGS[name].value}: must be at least 1")
    if not FLAGS.models:
        raise UserError("--models: name at least one run of r2c-gan-train")
    if not (FLAGS.datasets_dir or FLAGS.phantoms_dir):
        raise UserError("--datasets_dir, --phantoms_dir: give one of them, or both")
    if bool(FLAGS.datasets_dir) != bool(FLAGS.classifier):
        raise UserError("--datasets_dir and --classifier: are needed together")
    program.start_tensorflow()
    classifiers, restorers, size = load([FLAGS.classifier] if FLAGS.classifier else [], FLAGS.models, FLAGS.checkpoint)
    output = Path(FLAGS.output_dir)
    result = {
        "size": size,
        "iterations": FLAGS.iterations,
        "models": {name: restorer.source for name, restorer in restorers.items()},
        "classifier": None,
        "radiographs": None,
        "phantoms": None,
    }
    if FLAGS.datasets_dir:
        (classifier,) = classifiers.values()
        if classifier.config["train_on"] != "trainB":
            print(
                f"note: {classifier.name} was trained on {classifier.config['train_on']}, not on clean images (trainB)"
            )
        result["classifier"] = {"name": classifier.name, **classifier.result}
        arguments = FLAGS.datasets_dir, classifier, restorers, size, output, FLAGS.iterations, FLAGS.batch_size
        result["radiographs"] = radiographs(*arguments)
    if FLAGS.phantoms_dir:
        result["phantoms"] = phantoms(FLAGS.phantoms_dir, restorers, size, output, FLAGS.iterations, FLAGS.batch_size)
    program.write_flags(output)
    files.write_json(output / "result.json", result)
    print(report(result))
    print(f"Research only, not for diagnosis. -> {output}")


def report(result):
    """A few lines for the terminal."""
    lines = []
    if result["radiographs"]:
        for name, measured in result["radiographs"]["models"].items():
            lines.append(f"{name}: verdicts of {result['classifier']['name']}, n = {measured['n']}")
            for pair, values in measured["agreement"].items():
                lines.append(
                    f"  agreement {pair.replace('_', ' and '):20s} {_cell(values['agreeing'], 'share')}, kappa "
                    f"{_cell(values['kappa'], 'value')}"
                )
            for image, values in (measured["against_clean"] or {}).items():
                lines.append(
                    f"  against clean, on {image:9s} lost {_cell(values['lost'], 'share')}, invented "
                    f"{_cell(values['invented'], 'share')}"
                )
    if result["phantoms"]:
        lines.append(f"phantoms, n = {result['phantoms']['n']}")
        for name, measured in result["phantoms"]["stages"].items():
            lines.append(
                f"  {name}: opacity contrast kept {_cell(measured['opacities']['kept'], 'value')}, beyond anatomy "
                f"{_cell(measured['opacities']['kept_beyond_anatomy'], 'value')}, false opacities "
                f"{_cell(measured['controls']['false_opacity_in_place'], 'share')}"
            )
    return "\n".join(lines)


def _cell(measured, key):
    if measured[key] is None:
        return "undefined"
    interval = "" if measured["low"] is None else f" [{measured['low']:.2f}, {measured['high']:.2f}]"
    return f"{measured[key]:.2f}{interval}"


def define_flags():
    """Defines the flags of the program. Not at import: this module is a library too."""
    flags.DEFINE_string("datasets_dir", None, "Radiographs: testA/ and testA_reference/ of a datasets folder.")
    flags.DEFINE_string("phantoms_dir", None, "Phantoms: a datasets folder of data_prep.phantoms.")
    flags.DEFINE_string("classifier", None, "For --datasets_dir: a run of experiments.classifiers --train_on trainB.")
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
