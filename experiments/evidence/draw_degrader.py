"""Draws what a degrader that is fed noise makes of good images, and what the restorer makes of that.

  python -m experiments.evidence.draw_degrader --model runs/noise --datasets_dir dataset --output degrader.png

A row a good image of `--domain`: as it is, some draws of the degrader, the first of them restored.
"""

from pathlib import Path

import numpy as np
from absl import flags

from r2c_gan.cli import program
from r2c_gan.errors import UserError
from r2c_gan.evaluation import figures

FLAGS = flags.FLAGS


def draw(run, images, draws, path, checkpoint="latest", seed=0):
    """Draws the picture.

    Args:
        run: the run folder.
        images: function of (size, channels) that gives good images, float32 [N, size, size, channels] in [-1, 1].
        draws: how many poor images to make of each.
        path: the PNG to write.
        checkpoint: as in `checkpoints.select`.
        seed: of the noise.

    Returns:
        The poor images, float32 [draws, N, size, size, channels].

    Raises:
        UserError: if the run's degrader is fed no noise, or its images are not square.
    """
    from keras import ops

    from r2c_gan.layers.noise import UniformNoise
    from r2c_gan.models import checkpoints

    model, _ = checkpoints.load_model(run, checkpoint)
    if model.noise is None:
        raise UserError(f"{run}: its degrader makes one poor image of a good one; train with --noise_channels=4")
    height, width = model.config["image_size"]
    if height != width:
        raise UserError(f"{run}: works at {height} x {width}; only square images are drawn")
    good = images(width, model.config["channels"])
    noise = UniformNoise(model.config["noise_channels"], seed)
    noise.build()
    poor = [ops.convert_to_numpy(model.degrade(good, noise(good, training=True))[0]) for _ in range(draws)]
    restored = ops.convert_to_numpy(model(poor[0])[0])
    titles = ["good", *(f"draw {number}" for number in range(1, draws + 1)), "draw 1, restored"]
    figures.save_panel(list(zip(good, *poor, restored, strict=True)), path, titles)
    return np.stack(poor)


def main():
    program.start_tensorflow()
    from r2c_gan.data.datasets import read_domain
    from r2c_gan.data.streams import read_batches

    domain = read_domain(Path(FLAGS.datasets_dir) / FLAGS.domain)
    if not 1 <= FLAGS.images <= len(domain):
        raise UserError(f"--images={FLAGS.images}: must be 1 to {len(domain)}, the images of {domain.folder}")
    if FLAGS.draws < 1:
        raise UserError(f"--draws={FLAGS.draws}: must be at least 1")
    # Spread over the domain, whose classes lie one after the other.
    chosen = [domain.files[place] for place in np.linspace(0, len(domain) - 1, FLAGS.images, dtype=int)]

    def read(size, channels):
        (images,) = read_batches(chosen, size, channels, len(chosen))
        return images

    draw(FLAGS.model, read, FLAGS.draws, FLAGS.output, FLAGS.checkpoint, FLAGS.seed)
    print(f"{FLAGS.output}: {len(chosen)} images, {FLAGS.draws} draws each")


def console():
    # Here and not above, so that importing this module defines no flags.
    flags.DEFINE_string("model", None, "A run folder, trained with --noise_channels.", required=True)
    flags.DEFINE_string("datasets_dir", None, "A datasets folder with good images.", required=True)
    flags.DEFINE_string("domain", "trainB", "Sub-folder of the good images.")
    flags.DEFINE_integer("images", 4, "Images to draw, spread over the domain.")
    flags.DEFINE_integer("draws", 4, "Poor images to make of each.")
    flags.DEFINE_string("checkpoint", "latest", "latest, best, an epoch, or auto.")
    flags.DEFINE_integer("seed", 0, "Of the noise.")
    flags.DEFINE_string("output", "degrader.png", "The picture.")
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
