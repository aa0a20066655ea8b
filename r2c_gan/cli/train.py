"""Trains an R2C-GAN on a datasets folder, or goes on with an interrupted run.

The folder holds trainA/ (poor images) and trainB/ (good ones), and optionally valA/ with valA_reference/. A label
comes from labels.csv (file,label), from class folders (covid/, control/), or from "covid" in the file's own name. The
defaults are those of the paper's authors. Ctrl-C and SIGTERM end the step and save; run the same command again to
go on.

  r2c-gan-train --datasets_dir dataset --output_dir runs/paper
  KERAS_BACKEND=jax r2c-gan-train --datasets_dir dataset --output_dir runs/paper   # the same, on JAX
"""

from absl import flags

from r2c_gan.cli import option_flags, program
from r2c_gan.training import presets
from r2c_gan.training.configuration import TrainingConfig

FLAGS = flags.FLAGS
PROGRAM = "r2c_gan.cli.train"  # whatever it is started as

option_flags.define(TrainingConfig, PROGRAM)
flags.DEFINE_enum(
    "preset",
    presets.PAPER,
    presets.names(),
    " ".join(
        [
            "Settings to start from; a flag given beside it wins.",
            *(f"{name}: {presets.read(name)[0]}" for name in presets.names()),
        ]
    ),
    module_name=f"{PROGRAM}/0/Common flags",
)


def main():
    program.start_tensorflow()
    from r2c_gan.training.trainer import train

    config = TrainingConfig.from_preset(FLAGS.preset, **option_flags.given(TrainingConfig))
    option_flags.record(config)
    result = train(config, begin=lambda: program.write_flags(config.output_dir))
    print(
        f"{result['epochs']} epochs, {result['steps']} steps, {result['training_seconds']:.0f} s -> {config.output_dir}"
    )


def console():
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
