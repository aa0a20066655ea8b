"""What restoring gains over the poor image, for models and for classical methods, by artifact, with intervals.

    python -m experiments.compare_restoration --datasets_dir=datasets/xray --output_dir=results/restoration \
        --models=runs/operational-0,runs/light-0

The datasets folder is one that `data_prep.prepare` has made with `--domains=by_degradation`: test images with their
clean twins, validation images with theirs, and the manifest that says what degraded each. PSNR, SSIM, HaarPSI and, from
176 pixels on, MS-SSIM are measured at the size of the images, or at --size, for

- the poor image;
- each classical method, with the one choice of parameters that is best on the validation images;
- the best combination of them (denoise, tone, sharpen), chosen there too;
- each model after each pass, at the same size: give --size where a model was trained at another.

The output folder gets `result.json`, `scores.csv` (one row an image and method), the gain of each method by artifact as
figures, cases restored by every method, and each model's worst cases. What was measured before is not measured again,
so models can be added later.
"""

import dataclasses
import hashlib
import json
import math
import os
from contextlib import closing
from pathlib import Path

import numpy as np
from absl import flags
from matplotlib.figure import Figure
from tqdm import tqdm

from data_prep.degradations import DEGRADATIONS, SEVERITIES
from data_prep.manifest import MANIFEST_FILE, UNKNOWN, read_manifest
from data_prep.parallel import parallel_map
from experiments import classical
from experiments.perceptual import haarpsi
from r2c_gan import figures, files, images, metrics
from r2c_gan.cli import program
from r2c_gan.errors import UserError

MEASURES = {"psnr": metrics.psnr, "ssim": metrics.ssim, "haarpsi": haarpsi, "ms_ssim": metrics.ms_ssim}
MS_SSIM_SMALLEST = 176  # pixels
SMALLEST = 16  # pixels; SSIM's window has 11
TUNING = "valA"
INPUT = "input"
BEST_CLASSICAL = "best classical"
RESAMPLES = 2000
SMALLEST_GROUP = 5  # images; the resamples of fewer say nothing about chance
PANEL_CASES = 6
PANEL_MODELS = 4  # more make columns too narrow to see

# Artifacts that are shown as one: their like is met in the same films, and each alone is rare.
KINDS = {
    "noise": "noise",
    "gaussian_blur": "blur",
    "focal_spot": "blur",
    "motion_blur": "blur",
    "over_exposure": "over-exposure",
    "under_exposure": "under-exposure",
    "scatter_veil": "scatter veil",
    "saturation": "saturation",
    "grid_lines": "digital",
    "jpeg": "digital",
    "low_resolution": "digital",
}
_DRAWS = 8
_BATCH = 8
_PEAK = 100.0  # dB; for tuning, what an image without any error counts as


# --- The images -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Cases:
    """Poor images with their clean twins.

    Attributes:
        names: relative names of the poor images.
        pairs: list of (poor file, clean file).
        degradations: for each image the list of dictionaries that the manifest has; empty where it has none.
        patients: for each image who it is of, or its own name where that is unknown.
        size: side that images are resized to, in pixels; 0: they are measured as they are.
    """

    names: list
    pairs: list
    degradations: list
    patients: list
    size: int = 0

    def __len__(self):
        return len(self.names)

    def sha256(self):
        """A checksum of all files and of what is known of them."""
        parts = [[name, *map(files.sha256, pair), *known] for name, pair, *known in
                 zip(self.names, self.pairs, self.degradations, self.patients, strict=True)]  # fmt: skip
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def read(self, case):
        """The images of a case, as of `read_pair`."""
        return read_pair(self.pairs[case], self.size)


def read_cases(datasets_dir, domain, limit=None, size=0):
    """Finds the poor images of a domain, their clean twins, and what the manifest knows of them.

    Args:
        datasets_dir: the datasets folder.
        domain: such as "testA"; the twins are in "testA_reference".
        limit: at most so many images, spread evenly over the sorted list.
        size: side that images are resized to; 0: not at all.

    Raises:
        UserError: if a folder or a twin is missing, or the manifest cannot be read.
    """
    folder = Path(datasets_dir) / domain
    reference = folder.with_name(f"{domain}_reference")
    for path in (folder, reference):
        if not path.is_dir():
            raise UserError(
                f"--datasets_dir={datasets_dir}: has no {path.name}; poor images with clean twins are needed, for the "
                f"test and ({TUNING}) to tune classical methods; data_prep.prepare --domains=by_degradation makes them"
            )
    twins = {path.relative_to(reference).with_suffix(""): path for path in images.list_images(reference, True)}
    found = images.list_images(folder, recursive=True)
    if not found:
        raise UserError(f"{folder}: holds no image")
    if limit and limit < len(found):
        found = [found[index] for index in np.linspace(0, len(found) - 1, limit).round().astype(int)]
    manifest = read_manifest(datasets_dir)
    cases = Cases([], [], [], [], size)
    for path in found:
        name = path.relative_to(folder)
        if name.with_suffix("") not in twins:
            raise UserError(f"{path}: has no clean twin of the same name in {reference}")
        row = manifest.get(f"{domain}/{name.as_posix()}", {})
        patient = row.get("patient") or UNKNOWN
        cases.names.append(name.as_posix())
        cases.pairs.append((path, twins[name.with_suffix("")]))
        cases.degradations.append(_degradations(row.get("parameters"), name, datasets_dir))
        cases.patients.append(f"file {name}" if patient == UNKNOWN else f"patient {patient}")
    return cases


def _degradations(text, name, datasets_dir):
    try:
        steps = json.loads(text or "[]")
        if all(step["name"] in DEGRADATIONS and step["severity"] in SEVERITIES for step in steps):
            return steps
    except (ValueError, TypeError, KeyError):
        pass
    raise UserError(f"{Path(datasets_dir) / MANIFEST_FILE}: {name}: parameters are no list of known degradations")


def read_pair(pair, size=0):
    """(poor, clean), float32 [H, W, 1] in [-1, 1], resized to `size` x `size` unless it is 0.

    Raises:
        UserError: if they differ in size or are too small for the measures.
    """
    poor, clean = (images.read_image(path, channels=1) for path in pair)
    if poor.shape != clean.shape:
        raise UserError(f"{pair[0]}: its clean twin has another size ({_size(clean)}, not {_size(poor)})")
    if min(poor.shape[:2]) < SMALLEST:
        raise UserError(f"{pair[0]}: {_size(poor)} pixels; at least {SMALLEST} a side are needed")
    if size:
        poor, clean = (np.clip(images.resize(image, size, size), -1, 1) for image in (poor, clean))
    return poor, clean


def _size(image):
    return f"{image.shape[1]} x {image.shape[0]}"


def judge(clean, restored):
    """Every measure that is defined at the size: a dictionary of floats. PSNR of equal images is infinite."""
    return {
        name: measure(clean, restored)
        for name, measure in MEASURES.items()
        if name != "ms_ssim" or min(clean.shape[:2]) >= MS_SSIM_SMALLEST
    }


# --- Artifacts --------------------------------------------------------------------------------------------------------


def dominant(clean, steps):
    """The artifact that alone costs the clean image most, in mean squared error.

    Each is applied to the clean image alone, with the strength that the manifest has of it. What it leaves to chance
    besides (the grains, a direction) is drawn anew a few times.

    Args:
        clean: float32 [H, W, 1] in [-1, 1].
        steps: what degraded the image, as in the manifest.

    Returns:
        A value of `KINDS`, or None where there are no steps.
    """
    unit = (clean[..., 0] + 1) / 2
    cost = {}
    for step in steps:
        strength = next(value for key, value in step.items() if key not in ("name", "severity"))
        rng = np.random.default_rng(0)
        draws = [DEGRADATIONS[step["name"]](unit, strength, rng)[0] for _ in range(_DRAWS)]
        cost[KINDS[step["name"]]] = np.mean((np.clip(draws, 0, 1) - unit) ** 2)
    return max(cost, key=cost.get, default=None)


def groups(cases, dominants):
    """Which images are compared apart: a dictionary (grouping, group) -> booleans [N].

    Groupings: "all"; "present", images with an artifact among others; "dominant", images where it is the worst one;
    "severity", where the images are of several.
    """
    steps = cases.degradations
    found = {("all", "all"): np.ones(len(cases), bool)}
    for kind in dict.fromkeys(KINDS.values()):
        found["present", kind] = np.array([any(KINDS[step["name"]] == kind for step in some) for some in steps])
        found["dominant", kind] = np.array([worst == kind for worst in dominants])
    worst = [max((SEVERITIES.index(step["severity"]) for step in some), default=None) for some in steps]
    if len(set(worst)) > 1:
        for place, severity in enumerate(SEVERITIES):
            found["severity", severity] = np.array([one == place for one in worst])
    return {key: members for key, members in found.items() if members.any()}


# --- Measuring --------------------------------------------------------------------------------------------------------


def _tune(job):
    pair, size, criterion = job
    poor, clean = read_pair(pair, size)
    return classical.combination_scores(poor, lambda restored: min(MEASURES[criterion](clean, restored), _PEAK))


def _measure_classical(job):
    pair, size, methods, steps = job
    poor, clean = read_pair(pair, size)
    judged = [judge(clean, classical.restore(poor, chosen)) for chosen in methods.values()]
    return judged, dominant(clean, steps), list(clean.shape[:2])


def _in_parallel(function, jobs, text, workers):
    with closing(parallel_map(function, jobs, min(workers, len(jobs)))) as results:
        return list(tqdm(results, text, len(jobs), unit="image"))


class Parts:
    """What was measured before, a file each, with what it was measured of."""

    def __init__(self, folder):
        self.folder = Path(folder) / "parts"

    def get(self, name, measured_of, measure):
        """The part of that name, made by `measure()` if there is none yet.

        Raises:
            UserError: if there is one that was measured of something else.
        """
        path = self.folder / f"{name}.json"
        if not path.exists():
            files.write_json(path, {"of": measured_of, "is": measure()})
        part = files.read_json(path)
        other = [key for key, value in measured_of.items() if part.get("of", {}).get(key) != value]
        if other:
            raise UserError(
                f"--output_dir: {path} was measured with other {', '.join(other)}; give another folder, or remove it"
            )
        return part["is"]


def tune(cases, criterion, workers):
    """The best parameters of each classical method, and of their combination, over images with clean twins.

    Returns:
        A dictionary: name -> {"steps": list of [name, parameters], "score": mean of the criterion on those images}.
    """
    jobs = [(pair, cases.size, criterion) for pair in cases.pairs]
    found = classical.best(_in_parallel(_tune, jobs, "tuning classical methods", workers))
    return {name: {"steps": [list(step) for step in steps], "score": score} for name, (steps, score) in found.items()}


def measure_classical(cases, tuned, workers):
    """{"scores": method -> measure -> one value an image, "dominant" and "size": one an image}."""
    methods = {INPUT: [], **{name: found["steps"] for name, found in tuned.items()}}
    jobs = [(pair, cases.size, methods, steps) for pair, steps in zip(cases.pairs, cases.degradations, strict=True)]
    results = _in_parallel(_measure_classical, jobs, "classical methods", workers)
    judged, dominants, sizes = zip(*results, strict=True)
    scores = {name: _columns([one[place] for one in judged]) for place, name in enumerate(methods)}
    return {"scores": scores, "dominant": dominants, "size": sizes}


def _columns(judged):
    """One dictionary an image -> lists; infinity, which JSON has not, becomes None."""
    names = [name for name in MEASURES if all(name in scores for scores in judged)]
    return {name: [_finite(scores[name]) for scores in judged] for name in names}


def _finite(value):
    return value if math.isfinite(value) else None


class Model:
    """A restorer with its name.

    Args:
        name: what it is called in results.
        restorer: a `r2c_gan.restoration.Restorer`. One of colour images sees gray ones in three equal channels, and
            the luma of its answer is measured.
        passes: how often it is applied.
    """

    def __init__(self, name, restorer, passes):
        self.name, self.restorer, self.passes = name, restorer, passes
        self.methods = [name if number == 1 else f"{name}, {number} passes" for number in range(1, passes + 1)]

    def restore(self, poor):
        """A list of images float32 [H, W, 1] in [-1, 1] of one shape -> for each pass such a list.

        Raises:
            UserError: if the model answers with something that is no image.
        """
        batch = images.with_channels(np.stack(poor), self.restorer.channels)
        restored = self.restorer(batch, self.passes).passes
        if not all(np.isfinite(one).all() for one in restored):
            raise UserError(f"--models: {self.name} gives values that are not finite; its training has diverged")
        return [list(np.clip(images.with_channels(one, 1), -1, 1)) for one in restored]

    def measure(self, cases):
        """Method -> measure -> one value an image."""
        judged = {method: [] for method in self.methods}
        with tqdm(total=len(cases), desc=self.name, unit="image") as bar:
            for pairs in _batches(cases):
                restored = self.restore([poor for poor, _ in pairs])
                for method, batch in zip(self.methods, restored, strict=True):
                    judged[method] += [judge(clean, one) for (_, clean), one in zip(pairs, batch, strict=True)]
                bar.update(len(pairs))
        return {method: _columns(scores) for method, scores in judged.items()}


def _batches(cases):
    """Yields lists of (poor, clean) of one shape, in order."""
    batch = []
    for pair in map(cases.read, range(len(cases))):
        if batch and (len(batch) == _BATCH or batch[0][0].shape != pair[0].shape):
            yield batch
            batch = []
        batch.append(pair)
    if batch:
        yield batch


def model_paths(arguments):
    """Folders of models, `PATH` or `NAME=PATH` -> dictionary name -> path; without a name, it is the folder's.

    Raises:
        UserError: if a name cannot be used or is taken, or the folder is missing.
    """
    found = {}
    for argument in arguments:
        name, path = "", Path(argument)
        if "=" in argument and not path.exists():
            name, _, rest = argument.partition("=")
            path = Path(rest)
        if not path.is_dir():
            raise UserError(f"--models={argument}: no such folder; give run folders or exported models")
        name = name or path.resolve().name
        if "/" in name or name in found or name in (INPUT, *classical.METHODS, classical.COMBINATION):
            raise UserError(f"--models={argument}: the name {name!r} is taken or has a /; give another, NAME={path}")
        found[name] = path
    return found


# --- Statistics -------------------------------------------------------------------------------------------------------


def mean_intervals(values, clusters, seed=0):
    """Means of columns and their 95% percentile bootstrap intervals; all columns see the same resamples.

    Args:
        values: floats [N, K]; NaN is left out.
        clusters: one id an image; whole clusters are drawn.
        seed: seed of the bootstrap.

    Returns:
        A list of K dictionaries: n, mean, low, high. The mean is None where nothing is finite, the bounds also where
        all values are equal or there are fewer than `SMALLEST_GROUP` clusters.
    """
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    rng = np.random.default_rng(seed)
    count = cluster.max() + 1
    draws = rng.integers(count, size=(RESAMPLES, count))
    weights = np.stack([np.bincount(draw, minlength=count) for draw in draws])[:, cluster].astype(float)
    known = np.isfinite(values)
    sums = weights @ np.where(known, values, 0)
    sizes = weights @ known
    results = []
    for column, present, total, size in zip(values.T, known.T, sums.T, sizes.T, strict=True):
        kept = column[present]
        low = high = None
        if len(np.unique(kept)) > 1 and len(np.unique(cluster[present])) >= SMALLEST_GROUP:
            low, high = (
                round(float(bound), 6) for bound in np.quantile(total[size > 0] / size[size > 0], (0.025, 0.975))
            )
        mean = round(float(kept.mean()), 6) if len(kept) else None
        results.append({"n": len(kept), "mean": mean, "low": low, "high": high})
    return results


def best_classical(scores):
    """The classical method with the highest mean over the altered test images: measure -> its name.

    It is chosen on the images that it is compared on, in its own favour: a model that is better than it is better
    than all of them.
    """
    names = [name for name in scores if name in classical.METHODS or name == classical.COMBINATION]
    return {
        measure: max(names, key=lambda name: np.nanmean(_altered(scores, name, measure))) for measure in scores[INPUT]
    }


def _altered(scores, method, measure):
    """The values of a method, float [N]; NaN where the poor image is the clean one by this measure (infinite PSNR).

    There is nothing to restore there, and means of two methods are over the same images.
    """
    values, before = (np.array(scores[name][measure], float) for name in (method, INPUT))  # None becomes NaN
    return np.where(np.isfinite(before), values, np.nan)


def tabulate(scores, methods, divisions, patients):
    """The rows of `result.json`.

    Args:
        scores: method -> measure -> one value an image.
        methods: method -> what its rows say of it, a dictionary.
        divisions: what `groups` returns.
        patients: one id an image.

    Returns:
        A list of dictionaries: `method`, what `methods` says of it, `measure`, `against` (None: the value itself;
        "input" or "best classical": the difference to it, image by image), `grouping`, `group`, `n`, `mean`, `low`,
        `high`, and for differences `improved`, the share of images where the method is better.
    """
    rivals = best_classical(scores)
    columns, heads = [], []
    for method, measured in scores.items():
        for measure in measured:
            values = _altered(scores, method, measure)
            for against, rival in ((None, None), (INPUT, INPUT), (BEST_CLASSICAL, rivals[measure])):
                if (method == INPUT and against) or (against == BEST_CLASSICAL and methods[method]["kind"] != "model"):
                    continue
                heads.append({"method": method, **methods[method], "measure": measure, "against": against})
                columns.append(values - (_altered(scores, rival, measure) if against else 0))
    columns = np.stack(columns, axis=1)
    patients = np.asarray(patients)
    rows = []
    for (grouping, group), members in divisions.items():
        intervals = mean_intervals(columns[members], patients[members])
        for head, interval, column in zip(heads, intervals, columns[members].T, strict=True):
            row = {**head, "grouping": grouping, "group": group, **interval}
            if head["against"]:
                known = column[np.isfinite(column)]
                row["improved"] = round(float(np.mean(known > 0)), 6) if len(known) else None
            rows.append(row)
    return rows


# --- Figures ----------------------------------------------------------------------------------------------------------

_UNITS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "haarpsi": "HaarPSI", "ms_ssim": "MS-SSIM"}
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
    figure.supxlabel(f"gain in {_UNITS[measure]} over the poor image, mean and 95% interval; {what}", fontsize=9)
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=figures.DPI, format="png")


def typical_cases(cases, dominants, scores):
    """One case an artifact that is the worst one: that of median PSNR before restoring. At most `PANEL_CASES`."""
    order = np.argsort(_altered(scores, INPUT, "psnr"), kind="stable")
    members = {kind: [case for case in order if dominants[case] == kind] for kind in dict.fromkeys(KINDS.values())}
    chosen = [some[len(some) // 2] for some in members.values() if some] or [order[len(order) // 2]]
    return [int(case) for case in chosen[:PANEL_CASES]]


def worst_cases(scores, method):
    """The cases of lowest gain in PSNR over the poor image, worst first."""
    gain = _altered(scores, method, "psnr") - _altered(scores, INPUT, "psnr")
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
    titles = ["poor", *map(title, restored), "clean"]
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


# --- The program ------------------------------------------------------------------------------------------------------


def compare(
    datasets_dir,
    output_dir,
    models=None,
    passes=3,
    split="testA",
    criterion="psnr",
    tuning_images=100,
    size=0,
    workers=1,
    load=None,
):
    """Measures everything and writes it.

    Args:
        datasets_dir: the datasets folder.
        output_dir: folder for the results. What it holds of the same images is not measured again.
        models: dictionary name -> folder of a run or an exported model.
        passes: how often a model is applied.
        split: domain of poor images to measure on.
        criterion: what classical methods are tuned for, "psnr" or "ssim".
        tuning_images: at most so many validation images are used for it.
        size: side that images are resized to first; 0: they are measured as they are.
        workers: processes.
        load: a function of a folder that returns a `Restorer`; `Restorer.load` by default.

    Returns:
        What `result.json` holds.

    Raises:
        UserError: if images, twins or models are missing, or the folder holds results of something else.
    """
    if split == TUNING:
        raise UserError(f"--split={TUNING}: classical methods are tuned on it; give another, such as testA")
    output, parts = Path(output_dir), Parts(output_dir)
    if size and size < SMALLEST:
        raise UserError(f"--size={size}: must be 0, to keep the sizes, or at least {SMALLEST}")
    test = read_cases(datasets_dir, split, size=size)
    validation = read_cases(datasets_dir, TUNING, tuning_images, size)
    checksum = test.sha256()

    of = {"validation images": validation.sha256(), "size": size, "criterion": criterion, "grids": _grids()}
    tuned = parts.get("tuning", of, lambda: tune(validation, criterion, workers))
    of = {"test images": checksum, "size": size, "tuning": tuned}
    measured = parts.get("classical", of, lambda: measure_classical(test, tuned, workers))
    scores, dominants = dict(measured["scores"]), measured["dominant"]
    unaltered = scores[INPUT]["psnr"].count(None)
    if unaltered == len(test):
        raise UserError(f"{Path(datasets_dir) / split}: every image equals its clean twin; there is nothing to restore")
    methods = {INPUT: {"kind": INPUT, "parameters": {}}}
    for name, found in tuned.items():
        steps = dict(found["steps"])
        single = name != classical.COMBINATION
        kind = "classical" if single else classical.COMBINATION
        methods[name] = {"kind": kind, "parameters": steps[name] if single else steps}

    typical = typical_cases(test, dominants, scores)
    restored = {name: _classically(test, typical, found) for name, found in tuned.items()}
    records = {}
    for name, path in (models or {}).items():
        model = Model(name, (load or _loader())(path), passes)
        of = {"test images": checksum, "size": size, "passes": passes, "model": model.restorer.checksum}
        scores.update(parts.get(f"model-{name}", of, lambda model=model: model.measure(test)))
        for number, method in enumerate(model.methods, 1):
            methods[method] = {"kind": "model", "parameters": {"model": name, "passes": number}}
        if len(records) < PANEL_MODELS:
            restored[name] = _by_model(test, typical, model)[name]
        worst = worst_cases(scores, name)
        if worst:
            combined = {classical.COMBINATION: _classically(test, worst, tuned[classical.COMBINATION])}
            save_cases(test, worst, {**combined, **_by_model(test, worst, model)}, scores, output / f"worst_{name}.png")
        records[name] = {
            "size": list(model.restorer.size),
            "channels": model.restorer.channels,
            "sha256": model.restorer.checksum,
            "source": model.restorer.source,
        }

    rows = tabulate(scores, methods, groups(test, dominants), test.patients)
    save_cases(test, typical, restored, scores, output / "methods.png")
    for measure in scores[INPUT]:
        save_gains(rows, output / f"gain_{measure}.png", measure)
    save_gains(rows, output / "gain_psnr_dominant.png", grouping="dominant")
    _write_scores(output / "scores.csv", test, scores, dominants)
    result = {
        "n": len(test),
        "n_unaltered": unaltered,
        "sizes": sorted(map(list, set(map(tuple, measured["size"])))),
        "split": split,
        "sha256": checksum,
        "tuning": {"criterion": criterion, "n": len(validation), "methods": tuned},
        "best_classical": best_classical(scores),
        "models": records,
        "rows": rows,
    }
    files.write_json(output / "result.json", result)
    return result


def _grids():
    text = json.dumps({name: method.grid for name, method in classical.METHODS.items()})
    return hashlib.sha256(text.encode()).hexdigest()


def _loader(checkpoint="auto"):
    def load(path):
        program.start_tensorflow()
        from r2c_gan.restoration import Restorer

        return Restorer.load(path, checkpoint)

    return load


def _classically(cases, chosen, found):
    return [classical.restore(cases.read(case)[0], found["steps"]) for case in chosen]


def _by_model(cases, chosen, model):
    """Method -> what it makes of the chosen cases."""
    answers = [model.restore([cases.read(case)[0]]) for case in chosen]
    return {method: [answer[number][0] for answer in answers] for number, method in enumerate(model.methods)}


def _write_scores(path, cases, scores, dominants):
    columns = ["file", "method", *scores[INPUT], "dominant", "artifacts"]
    rows = []
    for case, name in enumerate(cases.names):
        artifacts = " ".join(step["name"] for step in cases.degradations[case])
        for method, measured in scores.items():
            row = {"file": name, "method": method, "dominant": dominants[case] or "", "artifacts": artifacts}
            row.update({measure: "inf" if values[case] is None else f"{values[case]:.5f}"
                        for measure, values in measured.items()})  # fmt: skip
            rows.append(row)
    files.write_csv(path, rows, columns)


def _table(rows):
    """What a person looks at first: every method over all images, its gain over the poor one with its interval."""
    shown = [row for row in rows if row["grouping"] == "all" and row["against"] in (None, INPUT)]
    measures = list(dict.fromkeys(row["measure"] for row in shown))
    lines = [["", *(f"{_UNITS[measure]}, gain [95%]" for measure in measures)]]
    for method in dict.fromkeys(row["method"] for row in shown):
        line = [title(method)]
        for measure in measures:
            digits = 2 if measure == "psnr" else 3
            found = {row["against"]: row for row in shown if (row["method"], row["measure"]) == (method, measure)}
            value, gain = found[None], found.get(INPUT)
            text = "-" if value["mean"] is None else f"{value['mean']:.{digits}f}"
            if gain and gain["mean"] is not None:
                text += f" {gain['mean']:+.{digits}f}"
            if gain and gain["low"] is not None:
                text += f" [{gain['low']:+.{digits}f}, {gain['high']:+.{digits}f}]"
            line.append(text)
        lines.append(line)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def main():
    names = ("datasets_dir", "output_dir", "passes", "split", "criterion", "tuning_images", "size", "workers")
    values = {name: flags.FLAGS[name].value for name in names}
    result = compare(models=model_paths(flags.FLAGS.models), load=_loader(flags.FLAGS.checkpoint), **values)
    program.write_flags(flags.FLAGS.output_dir)
    print(_table(result["rows"]))
    for name, record in result["models"].items():
        if record["size"] not in result["sizes"]:
            print(f"note: {name} was trained at {record['size'][1]} x {record['size'][0]} pixels, unlike these images")
    print("Research only, not for diagnosis.")


def console():
    # Here and not above, so that importing this module defines no flags.
    flags.DEFINE_string("datasets_dir", None, "A folder with testA, valA and their clean twins.", required=True)
    flags.DEFINE_string("output_dir", None, "Folder for results and figures.", required=True)
    flags.DEFINE_list("models", [], "Run folders or exported models, PATH or NAME=PATH; a name is the folder's.")
    flags.DEFINE_string("checkpoint", "auto", "Of the models' runs: latest, best, an epoch, or auto.")
    flags.DEFINE_integer("passes", 3, "How often a model is applied; measured after each.", lower_bound=1)
    flags.DEFINE_string("split", "testA", "Domain of poor images to measure on; its twins are in SPLIT_reference.")
    flags.DEFINE_enum("criterion", "psnr", ("psnr", "ssim"), "What classical methods are tuned for, on valA.")
    flags.DEFINE_integer("tuning_images", 100, "At most so many images of valA are used for it.", lower_bound=1)
    flags.DEFINE_integer("size", 0, "Side that images are resized to first; 0 measures them as they are.",
                         lower_bound=0)  # fmt: skip
    flags.DEFINE_integer("workers", os.cpu_count(), "Processes; results do not depend on it.", lower_bound=1)
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
