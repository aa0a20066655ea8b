"""Trains an R2C-GAN on a datasets folder, or goes on with an interrupted run.

The folder holds trainA/ (poor images) and trainB/ (good ones), and optionally valA/ with valA_reference/. A label
comes from labels.csv (file,label), from class folders (covid/, control/), or from "covid" in the file's own name. The
defaults are those of the paper's authors. Ctrl-C and SIGTERM end the step and save; run the same command again to
go on.

  r2c-gan-train --datasets_dir dataset --output_dir runs/paper
  KERAS_BACKEND=jax r2c-gan-train --datasets_dir dataset --output_dir runs/paper   # the same, on JAX
"""

import dataclasses

from absl import flags

from r2c_gan import window
from r2c_gan.cli import program

FLAGS = flags.FLAGS

flags.DEFINE_string("datasets_dir", "dataset/", "Folder with trainA/, trainB/ and optionally valA/.")
flags.DEFINE_string("output_dir", "output/", "The run folder: checkpoints, history.csv, samples, result.json.")
flags.DEFINE_enum(
    "method", "operational", ["operational", "convolutional", "convolutional-light"], "Kind of the four networks."
)
flags.DEFINE_integer("q", 3, "Order of the operational layers' polynomials.")
flags.DEFINE_integer("filters", 64, "Base width of the networks; 64 is the authors'.")
flags.DEFINE_integer("channels", 3, "Channels of the images, 1 or 3.")
flags.DEFINE_integer("load_size", 286, "Images are resized to this side, in pixels,")
flags.DEFINE_integer("crop_size", 256, "and cropped at random to this one.")
flags.DEFINE_string("window", "auto", window.HELP)
flags.DEFINE_integer("batch_size", 1, "Images a domain and step.")
flags.DEFINE_integer("epochs", 2000, "Passes over the longer domain. May grow when a run is resumed.")
flags.DEFINE_integer("epoch_decay", 100, "Epoch from which the learning rate falls linearly, to 0 at the end.")
flags.DEFINE_float("lr", 2e-4, "Learning rate of Adam, for generators and discriminators.")
flags.DEFINE_float("beta_1", 0.5, "Decay of Adam's first moment.")
flags.DEFINE_float("cycle_loss_weight", 10.0, "Weight of the cycle-consistency losses.")
flags.DEFINE_float("identity_loss_weight", 5.0, "Weight of the identity losses.")
flags.DEFINE_float("class_loss_weight", 0.1, "Weight of the six classification losses.")
flags.DEFINE_float("adversarial_loss_weight", 1.0, "Weight of the adversarial losses; the authors' is always 1.")
flags.DEFINE_integer("pool_size", 50, "Generated images kept for each discriminator; 0 for none.")
flags.DEFINE_integer("seed", 0, "Seed of weights, order, augmentation and pools.")
flags.DEFINE_enum(
    "upsampling",
    "transposed",
    ["transposed", "resize"],
    "resize: not in the paper: bilinear, then a convolution; leaves no checkerboard.",
)
flags.DEFINE_enum(
    "skip",
    "none",
    ["none", "tone_curve", "ranged_tone_curve"],
    "tone_curve: not in the paper: correct the image by a tone curve and a residual instead of drawing it anew; "
    "ranged_tone_curve: by one that also sees the darkest and the brightest place.",
)
flags.DEFINE_integer(
    "noise_channels",
    0,
    "Not in the paper: channels of noise for the degrader, which then makes many poor images of a good one; try 4, with"
    " both weights below at 0.",
)
flags.DEFINE_bool(
    "drawn_tone",
    False,
    "Not in the paper: the degrader draws brightness and contrast at random, distributed as in the poor images.",
)
flags.DEFINE_enum(
    "power_init",
    "equal",
    ["equal", "maclaurin"],
    "maclaurin: not in the paper: the initial weights of x^p are divided by p!; for orders above 3.",
)
flags.DEFINE_float("cycle_a_loss_weight", None, "Not in the paper: a weight of its own for |F(G(a)) - a|.")
flags.DEFINE_float("identity_a_loss_weight", None, "Not in the paper: a weight of its own for |F(a) - a|.")
flags.DEFINE_string(
    "initial_run",
    None,
    "Not in the paper: start from the networks of this run folder (its latest checkpoint); sizes may differ.",
)
flags.DEFINE_float("ema_decay", 0.0, "Not in the paper: evaluate and export moving averages of the weights; try 0.998.")
flags.DEFINE_integer("early_stopping", 0, "Not in the paper: end after this many epochs without a better F1; 0: never.")
flags.DEFINE_float("clip_norm", 0.0, "Not in the paper: largest norm of the gradients; 0 for no limit.")
flags.DEFINE_enum(
    "class_weights", "none", ["none", "balanced"], "Not in the paper: weigh the rarer class up in the losses."
)
flags.DEFINE_string("precision", "float32", "float32, or mixed_bfloat16 (fast where the processor has bfloat16).")
flags.DEFINE_bool("deterministic", True, "Use deterministic operations, so that one seed gives one result.")
flags.DEFINE_integer("limit_train_images", 0, "Use this many images of each training domain; 0 for all.")
flags.DEFINE_integer("sample_interval", 500, "Steps between pictures of the training; 0 for none.")
flags.DEFINE_integer("keep_checkpoints", 5, "Newest checkpoints kept, besides the best by validation F1.")
flags.DEFINE_float("save_minutes", 10.0, "Minutes between savings in the middle of an epoch; 0 for none.")
flags.DEFINE_bool("check_images", True, "Decode every image before the training begins.")
flags.DEFINE_enum(
    "distribute",
    "none",
    ["none", "mirrored", "data_parallel"],
    "Share each batch: mirrored: all GPUs of this machine; data_parallel (KERAS_BACKEND=jax): all of all machines.",
)
flags.DEFINE_integer("steps_per_execution", 1, "Steps between two looks at the training from Python.")
flags.DEFINE_bool("jit_compile", False, "Compile the step with XLA; slower on processors, try it on a GPU.")


def main():
    program.start_tensorflow()
    from r2c_gan.training import TrainingConfig, train

    config = TrainingConfig(**{field.name: FLAGS[field.name].value for field in dataclasses.fields(TrainingConfig)})
    result = train(config, begin=lambda: program.write_flags(config.output_dir))
    print(
        f"{result['epochs']} epochs, {result['steps']} steps, {result['training_seconds']:.0f} s -> {config.output_dir}"
    )


def console():
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
