"""The whole chain on synthetic chests in a few minutes: data, training, evaluation, restoration, export, check.

  python -m experiments.quickstart --output_dir quickstart

It runs the project's own programs, one after another, and ends with a table and a picture. The network is the paper's
(operational, q=3), but small; its settings differ from the paper's so that it learns something within minutes, and are
printed. The figures are those of synthetic phantoms and say nothing about patients.
"""

import shutil
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from r2c_gan import files
from r2c_gan.cli import program
from r2c_gan.errors import UserError

FLAGS = flags.FLAGS

# The paper: 256x256 crops of 286x286, 3 channels, width 64, batch 1, rate 2e-4, cycle and class weights 10 and 0.1,
# 2000 epochs.
TRAINING = {
    "method": "operational",
    "q": 3,
    "filters": 16,
    "channels": 1,
    "load_size": 70,
    "crop_size": 64,
    "batch_size": 4,
    "lr": 1e-3,
    "cycle_loss_weight": 2.0,
    "class_loss_weight": 4.0,
    "sample_interval": 200,
}
# Below this difference of two float32 computations of the same network.
SAME = 1e-4


def main():
    output = Path(FLAGS.output_dir)
    if output.exists() and any(output.iterdir()):
        if not FLAGS.overwrite:
            raise UserError(f"--output_dir={output}: exists already; give another, or --overwrite")
        if not (output / "flags.txt").is_file():
            raise UserError(f"--output_dir={output}: holds something else than a quickstart; not overwritten")
        shutil.rmtree(output)
    program.write_flags(output)
    started = time.monotonic()
    data, run, exported = output / "data", output / "run", output / "exported"
    training = {**TRAINING, "epochs": FLAGS.epochs, "epoch_decay": FLAGS.epochs // 2, "seed": FLAGS.seed}

    _call(
        "data_prep.phantoms", output_dir=data, size=64, train=480, val=0, test=60, severity="moderate", seed=FLAGS.seed
    )
    _call("r2c_gan.cli.train", datasets_dir=data, output_dir=run, **training)
    _call("r2c_gan.cli.evaluate", model=run, datasets_dir=data, output_dir=output / "evaluation")
    _call("r2c_gan.cli.restore", model=run, input=data / "testA", output=output / "restored")
    _call("r2c_gan.cli.export", model=run, output=exported)
    _call("r2c_gan.cli.evaluate", model=exported, datasets_dir=data, output_dir=output / "evaluation_exported")

    result = files.read_json(output / "evaluation" / "result.json")
    difference = largest_difference(result, files.read_json(output / "evaluation_exported" / "result.json"))
    if difference > SAME:
        raise UserError(f"{exported}: the exported model's figures differ from the run's by {difference}")
    seconds = time.monotonic() - started
    summary = {
        "data": "synthetic phantoms, moderate degradations",
        "training": training,
        "n": result["n"],
        **{name: result["restoration"][name]["mean"] for name in sorted(result["restoration"])},
        "f1": result["classification"]["f1"],
        "auroc": result["classification"]["auroc"],
        "exported_difference": difference,
        "seconds": round(seconds, 1),
    }
    files.write_json(output / "result.json", summary)
    print(table(summary))
    print(f"picture: {output / 'evaluation' / 'panel.png'}")
    print("Synthetic phantoms, settings unlike the paper's (run/flags.txt). Research only, not for diagnosis.")


def largest_difference(one, other):
    """The largest absolute difference between the numbers of two results; what they say of the model is left out.

    Anything else that differs is an infinite difference.
    """
    if isinstance(one, dict):
        shared = set(one) - {"model"}
        return max((largest_difference(one[name], other[name]) for name in shared), default=0.0)
    if isinstance(one, list):
        return max((largest_difference(a, b) for a, b in zip(one, other, strict=True)), default=0.0)
    if isinstance(one, int | float) and isinstance(other, int | float):
        return float(abs(one - other))
    return 0.0 if one == other else float("inf")


def table(summary):
    """The closing table."""
    return "\n".join(
        [
            "",
            f"| {summary['n']} test phantoms | input | restored |",
            "|---|---|---|",
            f"| PSNR (dB) | {summary['psnr_input']:.2f} | {summary['psnr_restored']:.2f} |",
            f"| SSIM | {summary['ssim_input']:.3f} | {summary['ssim_restored']:.3f} |",
            f"| F1 of the COVID-19 head | | {summary['f1']:.3f} |",
            f"| seconds, all steps | | {summary['seconds']:.0f} |",
            "",
        ]
    )


def _call(module, **arguments):
    command = [sys.executable, "-m", module, *(f"--{name}={value}" for name, value in arguments.items())]
    print(f"\n$ python {' '.join(command[1:])}", flush=True)
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"{module}: failed; its message is above")


def console():
    # Here and not above, so that importing this module defines no flags.
    flags.DEFINE_string("output_dir", "quickstart", "Folder for the data, the run, the results and the exported model.")
    flags.DEFINE_bool("overwrite", False, "Delete an earlier quickstart in --output_dir first.")
    flags.DEFINE_integer("epochs", 19, "Epochs of the training.")
    flags.DEFINE_integer("seed", 0, "Seed of the phantoms and of the training.")
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
