"""What restoring gains over the poor image, for models and for classical methods, by artifact, with intervals.

    python -m experiments.restoration --datasets_dir=datasets/xray --output_dir=results/restoration \
        --models=runs/operational-0,runs/light-0

The datasets folder is one that `data_prep.prepare` has made with `--domains=by_degradation`: test images with their
reference images, validation images with theirs, and the manifest that says what degraded each. PSNR, SSIM and HaarPSI
are measured at the size of the images, or at --size, for

- the poor image;
- each classical method, with the one choice of parameters that is best on the validation images;
- the best combination of them (denoise, tone, sharpen), chosen there too;
- each model after each pass, at the same size: give --size where a model was trained at another.

The output folder gets `result.json`, `scores.csv` (one row an image and method), the gain of each method by artifact as
figures, cases restored by every method, and each model's worst cases. What was measured before is not measured again,
so models can be added later; with --recorded the models of an earlier result.json on the same images stay beside them,
without their runs.
"""

import hashlib
import json
import math
import os
from contextlib import closing
from pathlib import Path

import numpy as np
from absl import flags
from tqdm import tqdm

from data_prep.parallel import parallel_map
from experiments.restoration import classical
from experiments.restoration.cases import SMALLEST, TUNING, dominant, groups, read_cases, read_pair
from experiments.restoration.figures import UNITS, save_cases, save_gains, title, typical_cases, worst_cases
from experiments.restoration.perceptual import haarpsi
from experiments.restoration.statistics import INPUT, best_classical, tabulate
from r2c_gan import files
from r2c_gan.cli import program
from r2c_gan.data import images
from r2c_gan.errors import UserError
from r2c_gan.evaluation import metrics

MEASURES = {"psnr": metrics.psnr, "ssim": metrics.ssim, "haarpsi": haarpsi}
PANEL_MODELS = 4  # more make columns too narrow to see
_BATCH = 8
_PEAK = 100.0  # dB; for tuning, what an image without any error counts as


# --- Measuring --------------------------------------------------------------------------------------------------------


def judge(clean, restored):
    """Every measure: a dictionary of floats. PSNR of equal images is infinite."""
    return {name: measure(clean, restored) for name, measure in MEASURES.items()}


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
    """The best parameters of each classical method, and of their combination, over images with reference images.

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
        restorer: a `r2c_gan.Restorer`. One of colour images sees gray ones in three equal channels, and
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
        try:
            restored = self.restorer(batch, self.passes).passes
        except UserError as error:
            raise UserError(f"--models: {self.name}: {error}") from error
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
    recorded=None,
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
        recorded: an earlier `result.json` of the same images, whose other models stay in the tables; None for none.

    Returns:
        What `result.json` holds.

    Raises:
        UserError: if images, references or models are missing, or the folder holds results of something else.
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
        raise UserError(f"{Path(datasets_dir) / split}: every image equals its reference; there is nothing to restore")
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
    kept, kept_rows = _recorded_models(recorded, checksum, tuned, records) if recorded else ({}, [])
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
        "models": {**kept, **records},
        "rows": [*rows, *kept_rows],
    }
    files.write_json(output / "result.json", result)
    return result


def _recorded_models(path, checksum, tuned, records):
    """The models of an earlier result that are not measured now: their records and their rows.

    Raises:
        UserError: if it is of other images, or of other classical methods, with which its rows compare.
    """
    result = files.read_json(path)
    for name, now in (("sha256", checksum), ("tuning", tuned)):
        before = result.get(name, {}).get("methods") if name == "tuning" else result.get(name)
        if before != now:
            raise UserError(f"--recorded={path}: was measured with another {name}; its models can't stand beside these")
    kept = {name: record for name, record in result["models"].items() if name not in records}
    return kept, [row for row in result["rows"] if row["kind"] == "model" and row["parameters"]["model"] in kept]


def _grids():
    text = json.dumps({name: method.grid for name, method in classical.METHODS.items()})
    return hashlib.sha256(text.encode()).hexdigest()


def _loader(checkpoint="auto"):
    def load(path):
        program.start_tensorflow()
        from r2c_gan.restoration.restorer import Restorer

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
    lines = [["", *(f"{UNITS[measure]}, gain [95%]" for measure in measures)]]
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
    models, load = model_paths(flags.FLAGS.models), _loader(flags.FLAGS.checkpoint)
    result = compare(models=models, load=load, recorded=flags.FLAGS.recorded, **values)
    program.write_flags(flags.FLAGS.output_dir)
    print(_table(result["rows"]))
    for name, record in result["models"].items():
        if record["size"] not in result["sizes"]:
            print(f"note: {name} was trained at {record['size'][1]} x {record['size'][0]} pixels, unlike these images")
    print("Research only, not for diagnosis.")


def console():
    # Here and not above, so that importing this module defines no flags.
    flags.DEFINE_string("datasets_dir", None, "A folder with testA, valA and their reference images.", required=True)
    flags.DEFINE_string("output_dir", None, "Folder for results and figures.", required=True)
    flags.DEFINE_list("models", [], "Run folders or exported models, PATH or NAME=PATH; a name is the folder's.")
    flags.DEFINE_string(
        "recorded", None, "An earlier result.json of these images, whose other models stay beside these."
    )
    flags.DEFINE_string("checkpoint", "auto", "Of the models' runs: latest, best, an epoch, or auto.")
    flags.DEFINE_integer("passes", 3, "How often a model is applied; measured after each.", lower_bound=1)
    flags.DEFINE_string("split", "testA", "Domain of poor images to measure on; its references are in SPLIT_reference.")
    flags.DEFINE_enum("criterion", "psnr", ("psnr", "ssim"), "What classical methods are tuned for, on valA.")
    flags.DEFINE_integer("tuning_images", 100, "At most so many images of valA are used for it.", lower_bound=1)
    flags.DEFINE_integer("size", 0, "Side that images are resized to first; 0 measures them as they are.",
                         lower_bound=0)  # fmt: skip
    flags.DEFINE_integer("workers", os.cpu_count(), "Processes; results do not depend on it.", lower_bound=1)
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
