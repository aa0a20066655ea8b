"""What each option beside the paper's recipe changes, on phantoms, over several seeds.

  python -m experiments.evidence.options --output_dir results/options

Every variant trains the quickstart's network from the same seeds on the same phantoms, and is tested on the same ones.
Two variants train on unbalanced data, from which most COVID-19 phantoms were left out. Each training is a run folder,
so an interrupted comparison goes on where it was. The figures are those of synthetic phantoms.
"""

import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from absl import flags

from experiments.quickstart import TRAINING
from r2c_gan import files
from r2c_gan.cli import program
from r2c_gan.data.images import list_images
from r2c_gan.errors import UserError
from r2c_gan.training.callbacks import read_history

FLAGS = flags.FLAGS
# Of ten COVID-19 phantoms of a training domain, this many are left out of the unbalanced data.
LEFT_OUT = 8
VARIANTS = {
    "baseline": {},
    "mixed_bfloat16": {"precision": "mixed_bfloat16"},
    "ema": {"ema_decay": 0.99},
    "early_stopping": {"early_stopping": 3},
    "unbalanced": {"data": "unbalanced"},
    "unbalanced-class_weights": {"data": "unbalanced", "class_weights": "balanced"},
}
MEASURES = ("f1", "sensitivity", "specificity", "auroc", "psnr", "ssim", "epochs", "seconds")


def main():
    output = Path(FLAGS.output_dir)
    program.write_flags(output)
    results = {}
    for seed in map(int, FLAGS.seeds):
        data = _data(output, seed)
        for name in FLAGS.variants:
            if name not in VARIANTS:
                raise UserError(f"--variants={name}: must be one of {', '.join(VARIANTS)}")
            results.setdefault(name, []).append(_measure(output, data, name, seed))
            files.write_json(output / "result.json", summarise(results))
    print(table(summarise(results)))
    print("Synthetic phantoms. Research only, not for diagnosis.")


def _data(output, seed):
    """The phantoms of a seed, and the same ones without most of the COVID-19 training images."""
    whole, unbalanced = output / f"data-{seed}", output / f"unbalanced-{seed}"
    if not whole.exists():
        sizes = {"size": 64, "train": FLAGS.train, "val": 40, "test": FLAGS.test}
        _call("data_prep.phantoms", output_dir=whole, severity="moderate", seed=seed, **sizes)
    if not unbalanced.exists():
        temporary = output / f".unbalanced-{seed}"
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(whole, temporary)
        for domain in ("trainA", "trainB"):
            _leave_out(temporary / domain)
        temporary.replace(unbalanced)
    return {"whole": whole, "unbalanced": unbalanced}


def _leave_out(folder):
    covid = [file for file in list_images(folder, recursive=True) if "covid" in file.name]
    for index, file in enumerate(covid):
        if index % 10 < LEFT_OUT:
            file.unlink()


def _measure(output, data, name, seed):
    changes = dict(VARIANTS[name])
    folder = output / f"{name}-{seed}"
    datasets = data[changes.pop("data", "whole")]
    training = {**TRAINING, "epochs": FLAGS.epochs, "epoch_decay": FLAGS.epochs // 2, "seed": seed, **changes}
    _call("r2c_gan.cli.train", datasets_dir=datasets, output_dir=folder / "run", **training)
    evaluation = folder / "evaluation" / "result.json"
    if not evaluation.exists():
        # Chosen by validation F1 only where stopping early is what is measured.
        checkpoint = "best" if "early_stopping" in changes else "latest"
        _call(
            "r2c_gan.cli.evaluate",
            model=folder / "run",
            checkpoint=checkpoint,
            datasets_dir=datasets,
            output_dir=folder / "evaluation",
        )
    result = files.read_json(evaluation)
    history = read_history(folder / "run")
    classification, restoration = result["classification"], result["restoration"]
    return {
        "seed": seed,
        **{measure: classification[measure] for measure in ("f1", "sensitivity", "specificity", "auroc")},
        **{measure: restoration[f"{measure}_restored"]["mean"] for measure in ("psnr", "ssim")},
        "epochs": history[-1]["epoch"],
        "seconds": round(sum(row["seconds"] for row in history), 1),
    }


def summarise(results):
    """Mean and standard deviation over the seeds, beside the single results."""
    summary = {}
    for name, runs in results.items():
        values = {measure: [run[measure] for run in runs] for measure in MEASURES}
        summary[name] = {
            "mean": {measure: statistics.mean(values[measure]) for measure in MEASURES},
            "sd": {measure: statistics.stdev(values[measure]) if len(runs) > 1 else None for measure in MEASURES},
            "runs": runs,
        }
    return summary


def table(summary):
    """The summary in Markdown."""
    lines = ["| variant | F1 | AUROC | sensitivity | PSNR (dB) | SSIM | epochs |", "|---|---|---|---|---|---|---|"]
    for name, values in summary.items():
        cells = []
        shown = {"f1": 3, "auroc": 3, "sensitivity": 3, "psnr": 2, "ssim": 3, "epochs": 1}
        for measure, digits in shown.items():
            mean, sd = values["mean"][measure], values["sd"][measure]
            cells.append(f"{mean:.{digits}f}" + (f" ± {sd:.{digits}f}" if sd is not None else ""))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _call(module, **arguments):
    command = [sys.executable, "-m", module, *(f"--{name}={value}" for name, value in arguments.items())]
    print(f"\n$ python {' '.join(command[1:])}", flush=True)
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"{module}: failed; its message is above")


def console():
    # Here and not above, so that importing this module defines no flags.
    flags.DEFINE_string("output_dir", "results/options", "Folder for data, runs and result.json.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds; each gives other phantoms and other weights.")
    flags.DEFINE_integer("epochs", 10, "Epochs of each training.")
    flags.DEFINE_integer("train", 480, "Training phantoms a domain.")
    flags.DEFINE_integer("test", 120, "Test phantoms.")
    flags.DEFINE_list("variants", list(VARIANTS), "Variants to compare.")
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
