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

SIZES = ("model", "native")


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


@dataclasses.dataclass(frozen=True)
class RestoredImage:
    """One image, restored, and what the classifier head says of it.

    Attributes:
        image: float32 [H, W, C] in [-1, 1], of the input's height and width.
        before: float32 [classes], the head's probabilities on the input. This is what the paper's classification
            figures are about.
        after: float32 [classes], the head's probabilities on `image`.
    """

    image: np.ndarray
    before: np.ndarray
    after: np.ndarray

    @property
    def label_changed(self):
        """Whether the likeliest class of the restored image is another than that of the input."""
        return bool(np.argmax(self.before) != np.argmax(self.after))


class Restorer:
    """Restores and classifies images with the generator that maps poor quality to good.

    Args:
        network: a function of an image batch float32 [N, H, W, C] that returns (restored images, probabilities).
        size: (height, width) that the model was trained at.
        channels: 1 or 3.
        stride: height and width are padded by mirroring to a multiple of this, and cropped back.
        source: what the model was loaded from, for records.
        classify: a function of an image batch that returns the probabilities alone, where that is cheaper than
            `network`.
        config: the arguments of the `R2CGAN`, where they are known; `size="native"` predicts its memory from them.
    """

    def __init__(self, network, size, channels, stride, source=None, classify=None, config=None):
        self.network = network
        self.size = tuple(size)
        self.channels = channels
        self.stride = stride
        self.source = source or {}
        self.classify = classify or (lambda batch: network(batch)[1])
        self.config = config or {}

    @classmethod
    def of_model(cls, model, source=None):
        """The restorer of an `R2CGAN`."""
        import keras

        config, generator = model.config, model.restorer
        head = keras.Model(generator.inputs, generator.outputs[1], name="head")
        return cls(
            generator.predict_on_batch,
            config["image_size"],
            config["channels"],
            GENERATOR_STRIDE[config["method"]],
            source,
            classify=head.predict_on_batch,
            config=config,
        )

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
        return cls(
            network,
            record["image_size"],
            record["channels"],
            record["stride"],
            record.get("source"),
            config=record.get("model"),
        )

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
        batch = self._checked(batch)
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")
        height, width = batch.shape[1:3]
        result = Restoration([], [])
        for _ in range(iterations):
            restored, probabilities = self.network(self._padded(batch))
            batch = np.asarray(restored)[:, :height, :width]
            result.passes.append(batch)
            result.probabilities.append(np.asarray(probabilities))
        return result

    def probabilities(self, batch):
        """The head's verdict on a batch as it is: float [N, H, W, C] in [-1, 1] -> float32 [N, classes]."""
        return np.asarray(self.classify(self._padded(self._checked(batch))))

    def restore(self, image, iterations=1, size="model", keep_detail=True):
        """Restores one image of any size.

        Args:
            image: float [H, W, channels] in [-1, 1].
            iterations: number of passes, at least 1.
            size: at which size the network works.
                "model": at the one that it was trained at; the image is resized to it, and the result carried back.
                "native": at the image's own, padded by mirroring to a multiple of the stride.
            keep_detail: how a result at the model's size is carried back to the image's own. True: the change that
                the network made is enlarged and added to the image, so that what the model's size cannot hold stays as
                it was, detail and fine noise alike. False: the restored image itself is enlarged.

        Returns:
            A `RestoredImage` of the image's height and width.

        Raises:
            ValueError: if an argument does not fit.
        """
        return self.restore_batch([image], iterations, size, keep_detail)[0]

    def restore_batch(self, batch, iterations=1, size="model", keep_detail=True):
        """Restores several images in one call of the network; arguments as of `restore`.

        Args:
            batch: list of images. For `size="native"` they have one shape, otherwise any.
            iterations: number of passes.
            size: "model" or "native".
            keep_detail: see `restore`.

        Returns:
            A list of `RestoredImage`.
        """
        if size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}, not {size!r}")
        batch = [np.asarray(image, np.float32) for image in batch]
        if size == "native":
            result = self(np.stack(batch), iterations)
            restored = list(np.clip(result.passes[-1], -1, 1))
            after = self.probabilities(restored)
        else:
            poor = self._at_model_size(batch)
            result = self(poor, iterations)
            carry = _carry_change if keep_detail else _enlarge
            restored = [carry(*images_of) for images_of in zip(batch, poor, result.passes[-1], strict=True)]
            after = self.probabilities(self._at_model_size(restored))
        return [RestoredImage(*row) for row in zip(restored, result.probabilities[0], after, strict=True)]

    def restore_image(self, image, iterations=1):
        """`restore` with its defaults, as a pair: (restored float32 [H, W, C], probabilities of the input)."""
        result = self.restore(image, iterations)
        return result.image, result.before

    def _checked(self, batch):
        batch = np.asarray(batch, np.float32)
        if batch.ndim != 4 or batch.shape[-1] != self.channels:
            raise ValueError(f"a batch [N, H, W, {self.channels}] is needed, got {batch.shape}")
        return batch

    def _padded(self, batch):
        padding = [(0, -side % self.stride) for side in batch.shape[1:3]]
        return np.pad(batch, [(0, 0), *padding, (0, 0)], mode="symmetric")

    def _at_model_size(self, batch):
        return np.stack([images.resize(image, *self.size) for image in batch])


def _carry_change(image, poor, restored):
    """What the network changed at the model's size (restored - poor), enlarged and added to the image."""
    return np.clip(image + images.resize(restored - poor, *image.shape[:2]), -1, 1)


def _enlarge(image, poor, restored):
    """The restored image, enlarged."""
    return np.clip(images.resize(restored, *image.shape[:2]), -1, 1)


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
