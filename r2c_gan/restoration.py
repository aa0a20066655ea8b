"""Restorer: a run, a SavedModel or a network -> restored images and class probabilities."""

import dataclasses
from pathlib import Path

import numpy as np

from r2c_gan import checkpoints, files, images
from r2c_gan.data import CLASSES
from r2c_gan.errors import UserError
from r2c_gan.networks import GENERATOR_STRIDE

# Written beside saved_model.pb: what a client must know to feed the model.
EXPORT_RECORD = "r2c_gan.json"


@dataclasses.dataclass(frozen=True)
class Restoration:
    """What n passes made of a batch.

    Attributes:
        passes: list of n arrays, float32 [N, H, W, C] in [-1, 1]; each pass restores what the one before gave.
        probabilities: list of n arrays, float32 [N, classes]: the head's verdict on the input of each pass. The first
            is on the poor image, which is what the paper's classification figures are about.
    """

    passes: list
    probabilities: list


class Restorer:
    """Restores and classifies images with the generator that maps poor quality to good.

    Args:
        network: a function of an image batch float32 [N, H, W, C] that returns (restored images, probabilities).
        size: (height, width) that the model was trained at.
        channels: 1 or 3.
        stride: height and width are padded by mirroring to a multiple of this, and cropped back.
        source: what the model was loaded from, for records.
    """

    def __init__(self, network, size, channels, stride, source=None):
        self.network = network
        self.size = tuple(size)
        self.channels = channels
        self.stride = stride
        self.source = source or {}

    @classmethod
    def of_model(cls, model, source=None):
        """The restorer of an `R2CGAN`."""
        config = model.config
        network = model.restorer.predict_on_batch
        return cls(network, config["image_size"], config["channels"], GENERATOR_STRIDE[config["method"]], source)

    @classmethod
    def load(cls, path, checkpoint="auto"):
        """Loads a run folder or a SavedModel that `r2c-gan-export` wrote.

        Args:
            path: the folder.
            checkpoint: which checkpoint of a run, as in `checkpoints.select`.

        Raises:
            UserError: if it is neither, or cannot be read.
        """
        path = Path(path)
        if (path / "saved_model.pb").is_file():
            return cls._of_saved_model(path)
        if not path.is_dir():
            raise UserError(f"{path}: no such folder; give a run folder or a SavedModel")
        model, chosen = checkpoints.load_model(path, checkpoint)
        return cls.of_model(model, {"run": path.name, "epoch": chosen.epoch, "sha256": chosen.sha256})

    @classmethod
    def _of_saved_model(cls, path):
        import tensorflow as tf

        record = files.read_json(path / EXPORT_RECORD)
        try:
            loaded = tf.saved_model.load(str(path))
            serve = loaded.signatures["serving_default"]
        except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
            raise UserError(f"{path}: not a SavedModel of r2c-gan-export ({str(error).splitlines()[0]})") from error

        def network(batch):
            outputs = serve(image=tf.constant(batch))
            return outputs["restored"].numpy(), outputs["probabilities"].numpy()

        network.keep = loaded  # a signature does not keep its model alive
        return cls(network, record["image_size"], record["channels"], record["stride"], record.get("source"))

    def __call__(self, batch, iterations=1):
        """Restores a batch.

        Args:
            batch: float [N, H, W, C] in [-1, 1], any H and W of at least the stride.
            iterations: number of passes, at least 1.

        Returns:
            A `Restoration`, of the same height and width.

        Raises:
            ValueError: if the shape or the number of passes does not fit.
        """
        batch = np.asarray(batch, np.float32)
        if batch.ndim != 4 or batch.shape[-1] != self.channels:
            raise ValueError(f"a batch [N, H, W, {self.channels}] is needed, got {batch.shape}")
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")
        height, width = batch.shape[1:3]
        padding = [(0, -side % self.stride) for side in (height, width)]
        result = Restoration([], [])
        for _ in range(iterations):
            padded = np.pad(batch, [(0, 0), *padding, (0, 0)], mode="symmetric")
            restored, probabilities = self.network(padded)
            batch = np.asarray(restored)[:, :height, :width]
            result.passes.append(batch)
            result.probabilities.append(np.asarray(probabilities))
        return result

    def restore_image(self, image, iterations=1):
        """Restores one image of any size at the model's size, and gives it back at its own.

        Args:
            image: float [H, W, channels] in [-1, 1].
            iterations: number of passes.

        Returns:
            (restored float32 [H, W, channels] in [-1, 1], probabilities of the input float32 [classes]).
        """
        result = self(images.resize(image, *self.size)[None], iterations)
        restored = images.resize(result.passes[-1][0], *image.shape[:2])
        return np.clip(restored, -1, 1), result.probabilities[0][0]


def restore_files(restorer, sources, output_dir, iterations=1, progress=lambda sources: sources):
    """Restores image files into a folder.

    Args:
        restorer: a `Restorer`.
        sources: list of (file to read, name below `output_dir`, which is given the suffix .png).
        output_dir: the folder to write the restored images and `predictions.csv` to.
        iterations: number of passes.
        progress: wraps the list of sources, for a progress bar.

    Returns:
        The rows of `predictions.csv`: dictionaries of file, p_control, p_covid and label.

    Raises:
        ImageError: if a file cannot be read. What was restored until then is kept, without `predictions.csv`.
    """
    output_dir = Path(output_dir)
    rows = []
    for source, name in progress(sources):
        image = images.read_image(source, restorer.channels)
        restored, probabilities = restorer.restore_image(image, iterations)
        images.write_image((output_dir / name).with_suffix(".png"), restored)
        rows.append(prediction_row(str(name), probabilities))
    files.write_csv(output_dir / "predictions.csv", rows, list(rows[0]))
    return rows


def prediction_row(file, probabilities):
    """One row of `predictions.csv`: file, p_<class> for each class, label."""
    row = {"file": file}
    row.update({f"p_{name}": f"{value:.6f}" for name, value in zip(CLASSES, probabilities, strict=True)})
    row["label"] = CLASSES[int(np.argmax(probabilities))]
    return row
