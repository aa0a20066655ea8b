"""The evidence: every training of the paper's comparisons, run and measured one after the other.

  python -m experiments.evidence --source xray/manifest.csv --study_dir study

A row of the study, named <variant>-<size>-<data>, stands in `rows.toml` beside this module: a preset, the options that
differ from it, its cost and what was found. Each row is trained with its seeds and evaluated on the same test images at
every severity. Images are prepared at the size of training and never resized or cropped again: what a resizing would
smooth away, noise above all, stays, and chests are as large in training as in the test. Nothing that is finished is
done again, and a training that was interrupted goes on where it was. What came out goes below `--results_dir`, from
where `experiments.evidence.tabulate` makes the tables and figures.
"""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from absl import flags

from r2c_gan import files
from r2c_gan.cli import program
from r2c_gan.errors import UserError

FLAGS = flags.FLAGS
ROWS = Path(__file__).with_name("rows.toml")
SEVERITIES = ("mild", "moderate", "severe")
# Of the radiographs: how many are held out. There are no patient ids, each image counts as a patient.
DIVISION = {"val_fraction": 0.05, "test_fraction": 0.15, "test_poor": 1.0, "seed": 0, "on_error": "skip"}
PASSES = 3


def rows():
    """Dictionary from the name of a row to what `rows.toml` says of it, in the order in which they are run.

    Raises:
        UserError: if a row starts from one that is not there.
    """
    found = tomllib.loads(ROWS.read_text(encoding="utf-8"))
    for name, row in found.items():
        if row.get("starts_from", name) not in found:
            raise UserError(f"{ROWS}: {name} starts from {row['starts_from']}, which is no row")
    return found


def settings(row):
    """The options of a row that differ from its preset, by name; the size of the images is that of its name."""
    size, _ = size_and_data(row)
    return {"load_size": size, "crop_size": size, **rows()[row]["options"]}


def size_and_data(row):
    """The size in pixels and the name of the data of a row: (128, "mild") of "operational-3-128-mild".

    Raises:
        UserError: if the name is not of that form.
    """
    *variant, size, data = row.split("-")
    if not variant or not size.isdigit() or data not in (*SEVERITIES, "quality"):
        raise UserError(f"{row}: a row is named <variant>-<size>-<{'|'.join((*SEVERITIES, 'quality'))}>")
    return int(size), data


def prepare(source, study, size, data):
    """Makes the datasets folder of a size and kind of data, unless it is there.

    Returns:
        Its path.
    """
    folder = study / "data" / f"{size}-{data}"
    if not folder.is_dir():
        domains = {"domains": "by_quality"} if data == "quality" else {"domains": "by_degradation", "severity": data}
        _call("data_prep.prepare", source=source, output_dir=folder, size=size, **domains, **DIVISION)
    return folder


def train(source, study, row, seed):
    """Trains one seed of a row, or goes on with it; first the run that it starts from.

    Returns:
        The run folder.
    """
    start = rows()[row].get("starts_from")
    initial = {"initial_run": train(source, study, start, seed)} if start else {}
    run = study / "runs" / f"{row}-{seed}"
    data = prepare(source, study, *size_and_data(row))
    _call(
        "r2c_gan.cli.train",
        preset=rows()[row]["preset"],
        datasets_dir=data,
        output_dir=run,
        seed=seed,
        **initial,
        **settings(row),
    )
    return run


def evaluate(run, data, output):
    """Measures the last checkpoint of a run, unless that was done: no choice of an epoch flatters the result."""
    if not (output / "result.json").is_file():
        _call(
            "r2c_gan.cli.evaluate",
            model=run,
            checkpoint="latest",
            datasets_dir=data,
            output_dir=output,
            iterations=PASSES,
        )
    return files.read_json(output / "result.json")


def record(results, row, seed, run, evaluations):
    """Copies what a training came to into the results folder: flags, losses by epoch, measures, predictions."""
    folder = results / f"{row}-{seed}"
    training = files.read_json(run / "result.json")
    keep = ("epochs", "steps", "images", "parameters", "training_seconds")
    measures = {}
    for severity, (evaluated, result) in evaluations.items():
        measures[severity] = {key: result[key] for key in ("n", "classification", "restoration")}
        _copy(evaluated / "predictions.csv", folder / f"predictions-{severity}.csv")
    _copy(run / "history.csv", folder / "history.csv")
    files.write_json(
        folder / "result.json",
        {"row": row, "seed": seed, "training": {key: training[key] for key in keep}, "evaluation": measures},
    )


def main():
    study, results = Path(FLAGS.study_dir), Path(FLAGS.results_dir)
    known = rows()
    unknown = [name for name in FLAGS.rows if name not in known]
    if unknown:
        raise UserError(f"--rows={unknown[0]}: must be some of {', '.join(known)}")
    program.write_flags(study)
    for row in FLAGS.rows or known:
        size, data = size_and_data(row)
        for seed in known[row]["seeds"]:
            if (FLAGS.seeds and str(seed) not in FLAGS.seeds) or (results / f"{row}-{seed}" / "result.json").is_file():
                continue
            run = train(FLAGS.source, study, row, seed)
            evaluations = {}
            # Domain A of the data sorted by quality is poor as it is: it has no severity and no reference images.
            for test in ("quality",) if data == "quality" else SEVERITIES:
                output = run / f"evaluation-{test}"
                evaluations[test] = output, evaluate(run, prepare(FLAGS.source, study, size, test), output)
            record(results, row, seed, run, evaluations)
            print(f"{row}, seed {seed}: {summary(results / f'{row}-{seed}')}", flush=True)
            if not FLAGS.keep_runs:
                shutil.rmtree(run)


def summary(folder):
    """One line of a recorded result."""
    result = files.read_json(folder / "result.json")
    parts = []
    for name, measures in result["evaluation"].items():
        text = f"{name} F1 {measures['classification']['f1']:.3f}"
        if measures["restoration"]:
            poor, restored = (measures["restoration"][f"psnr_{stage}"]["mean"] for stage in ("input", "restored"))
            text += f" PSNR {poor:.2f} -> {restored:.2f}"
        parts.append(text)
    return "; ".join(parts) + f"; {result['training']['epochs']} epochs"


def _copy(source, target):
    files.write_text(target, source.read_text(encoding="utf-8"))


def _call(module, **arguments):
    command = [sys.executable, "-m", module, *(f"--{name}={value}" for name, value in arguments.items())]
    print(f"\n$ python {' '.join(command[1:])}", flush=True)
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"{module}: failed; its message is above")


def console():
    # Here and not above, so that importing this module defines no flags.
    flags.DEFINE_string(
        "source", None, "The radiographs: a folder or a CSV, as data_prep.prepare takes it.", required=True
    )
    flags.DEFINE_string("study_dir", "study", "Folder for data and runs.")
    flags.DEFINE_string("results_dir", "experiments/results/evidence", "Folder for what came out.")
    flags.DEFINE_list("rows", [], "Rows to run; all by default.")
    flags.DEFINE_list("seeds", [], "Seeds to run; all of a row by default.")
    flags.DEFINE_bool("keep_runs", True, "Keep run folders (checkpoints) of finished rows.")
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
