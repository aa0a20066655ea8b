"""Trains a plain classifier: what a user would put beside R2C-GAN.

  python -m experiments.classifiers --datasets_dir dataset --network densenet121 --output_dir runs/poor
  python -m experiments.classifiers --datasets_dir dataset --network resnet50 --train_on trainB --output_dir runs/clean
  python -m experiments.classifiers --datasets_dir dataset --restorer runs/paper --output_dir runs/restored

The network sees the images that R2C-GAN is trained on, with the augmentation of the evidence's rows: resized and
mirrored. With --restorer it sees them restored; the restored copy is kept below the run folder. After every epoch it is
validated, and the epoch with the best validation F1 becomes model.keras. A run that was killed goes on with its last
whole epoch when the same command is given again, and in deterministic mode ends as if nothing had happened.

Writes classifier.json (the settings), data.json (the images), flags.txt, history.csv, losses.png, events/,
checkpoints/, model.keras and result.json. Research only, not for diagnosis.
"""

from experiments.classifiers.training import ClassifierConfig, train
from r2c_gan.cli import option_flags, program

option_flags.define(ClassifierConfig, "experiments.classifiers")


def main():
    config = ClassifierConfig(**option_flags.given(ClassifierConfig))
    config.check()
    program.start_tensorflow(only=True)
    result = train(config, begin=lambda: program.write_flags(config.output_dir))
    validated = result["validation"]
    f1, auroc = (
        "undefined" if validated[name] is None else f"{validated[name]:.3f}" for name in ("val_f1", "val_auroc")
    )
    print(
        f"{config.output_dir}: epoch {result['best_epoch']} of {result['epochs']}, validation F1 {f1}, AUROC {auroc}, "
        f"{result['seconds']:.0f} s"
    )


if __name__ == "__main__":
    program.run(main, __doc__)
