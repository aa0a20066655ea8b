"""Restorer: a run, a SavedModel or a network -> restored images and class probabilities."""

import dataclasses
import warnings
from pathlib import Path

import cv2
import numpy as np

from r2c_gan import files
from r2c_gan.data import images, plausibility
from r2c_gan.data.noise_level import noise_variance
from r2c_gan.errors import UserError
from r2c_gan.layers import operational as layers
from r2c_gan.models import checkpoints, pretrained
from r2c_gan.models.networks import GENERATOR_STRIDE
from r2c_gan.restoration import memory, saved_models

SIZES = ("model", "native")
DETAILS = ("filtered", "all", "none")

# The noise that the Wiener filter takes away, in units of the variance estimated; more than 1 leaves less of it. Set
# with `_WINDOW` on radiographs (docs/restore.md).
_OVER_SUBTRACTION = 2.5
_WINDOW = 5  # pixels

# Peak bytes a pixel of the input and unit of width (`filters`), without and with upsampling="resize", whose features
# reach the full size: a constant, and what each power adds. Measured on a CPU in float32 (docs/restore.md).
_BYTES_PER_FILTER = {
    "convolutional": ((22.0, 0.0), (26.0, 0.0)),
    "convolutional-light": ((12.0, 0.0), (16.0, 0.0)),
    "operational": ((6.5, 3.0), (11.0, 5.0)),
}
_BYTES_PER_FILTER_RESIZED_IN_PARTS = 37.0  # of any network with "resize" where no kernel enlarges at once: on JAX
_BYTES_PER_CHANNEL = 60.0  # the image itself, its copies and the result


@dataclasses.dataclass(frozen=True)
class Restoration:
    """What n passes made of a batch.

    Attributes:
        passes: list of n arrays, float32 [N, H, W, C] in [-1, 1]; each pass restores what the one before gave.
        probabilities: list of n arrays, float32 [N, classes]: the head's prediction on the input of each pass. The
            first is on the poor image, which is what the paper's classification figures are about.
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
        unlikeness: how unlike the training films the input is, see `plausibility`; more than 1 is suspicious. None if
            the model does not tell.
        warning: why the input may be no chest radiograph, in words; None if nothing speaks against it.
    """

    image: np.ndarray
    before: np.ndarray
    after: np.ndarray
    unlikeness: float | None = None
    warning: str | None = None

    @property
    def label_changed(self):
        """Whether the likeliest class of the restored image is another than that of the input."""
        return bool(np.argmax(self.before) != np.argmax(self.after))


class TooLargeError(UserError):
    """An image that does not fit into memory at its own size."""


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
        checksum: SHA-256 of what was loaded, or None.
        films: the `plausibility.Plausibility` of the training films, or None.
    """

    def __init__(
        self, network, size, channels, stride, source=None, classify=None, config=None, checksum=None, films=None
    ):
        self.network = network
        self.size = tuple(size)
        self.channels = channels
        self.stride = stride
        self.source = source or {}
        self.classify = classify or (lambda batch: network(batch)[1])
        self.config = config or {}
        self.checksum = checksum
        self.films = films

    @classmethod
    def of_model(cls, model, source=None, films=None):
        """The restorer of an `R2CGAN`; `source` and `films` as in the class."""
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
            checksum=(source or {}).get("sha256"),
            films=films,
        )

    @classmethod
    def load(cls, path, checkpoint="auto"):
        """Loads a run folder, a SavedModel that `r2c-gan-export` wrote, or the weights that come with the package.

        Args:
            path: the folder, or "pretrained" (a folder of that name is "./pretrained").
            checkpoint: which checkpoint of a run, as in `checkpoints.select`.

        Raises:
            UserError: if it is neither, or cannot be read.
        """
        if str(path) == pretrained.NAME:
            return cls.of_model(*pretrained.load(), plausibility.Plausibility.load(pretrained.FOLDER))
        path = Path(path)
        if (path / "saved_model.pb").is_file():
            return cls._of_saved_model(path)
        if not path.is_dir():
            raise UserError(f"{path}: no such folder; give a run folder, a SavedModel or the word {pretrained.NAME}")
        model, chosen = checkpoints.load_model(path, checkpoint)
        source = {"run": path.name, "epoch": chosen.epoch, "sha256": chosen.sha256}
        return cls.of_model(model, source, plausibility.Plausibility.load(path))

    @classmethod
    def _of_saved_model(cls, path):
        network, record = saved_models.network(path)
        return cls(
            network,
            record["image_size"],
            record["channels"],
            record["stride"],
            record.get("source"),
            config=record.get("model"),
            checksum=files.sha256(path / saved_models.RECORD),  # which holds the checksums of all the others
            films=plausibility.Plausibility.load(path),
        )

    def __call__(self, batch, iterations=1):
        """Restores a batch.

        Args:
            batch: float [N, H, W, C] in [-1, 1], any H and W of at least the stride.
            iterations: number of passes, at least 1.

        Returns:
            A `Restoration`, of the same height and width.

        Raises:
            UserError: if the network gives values that are not finite.
            ValueError: if the number of passes does not fit, or the images: of another shape, not floats, not finite
                or outside [-1, 1]. Values that all lie in [0, 1] give a `UserWarning`.
        """
        return self._passes(self._checked(batch), iterations)

    def _passes(self, batch, iterations):
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {iterations}")
        height, width = batch.shape[1:3]
        result = Restoration([], [])
        for _ in range(iterations):
            restored, probabilities = (np.asarray(output) for output in self.network(self._padded(batch)))
            _check_finite(restored, probabilities)
            batch = restored[:, :height, :width]
            result.passes.append(batch)
            result.probabilities.append(probabilities)
        return result

    def probabilities(self, batch):
        """The head's prediction on a batch as it is: float [N, H, W, C] in [-1, 1] -> float32 [N, classes]."""
        return self._probabilities(self._checked(batch))

    def _probabilities(self, batch):
        probabilities = np.asarray(self.classify(self._padded(batch)))
        _check_finite(probabilities)
        return probabilities

    def restore(self, image, iterations=1, size="model", detail="filtered"):
        """Restores one image of any size.

        Args:
            image: float [H, W, channels] in [-1, 1].
            iterations: number of passes, at least 1.
            size: at which size the network works.
                "model": at the one that it was trained at; the image is resized to it, and the result carried back.
                "native": at the image's own, padded by mirroring to a multiple of the stride.
            detail: for `size="model"`, what becomes of the detail that is too fine for the model's size, which the
                network has not seen. It is the image less itself resized to the model's size and back.
                "filtered": added to the enlarged result after a Wiener filter, so that edges and fine structure come
                    back, and noise as fine as they are does not.
                "all": added as it is, noise too: the image plus the enlarged change.
                "none": left out: the result, enlarged. This is the network alone.

        Returns:
            A `RestoredImage` of the image's height and width.

        Raises:
            TooLargeError: if the image does not fit into memory at its own size.
            UserError, ValueError: as in `__call__`.
        """
        return self.restore_batch([image], iterations, size, detail)[0]

    def restore_batch(self, batch, iterations=1, size="model", detail="filtered"):
        """Restores several images in one call of the network; arguments as of `restore`.

        Args:
            batch: list of images. For `size="native"` they have one shape, otherwise any.
            iterations: number of passes.
            size: "model" or "native".
            detail: "filtered", "all" or "none".

        Returns:
            A list of `RestoredImage`.
        """
        for name, value, known in (("size", size, SIZES), ("detail", detail, DETAILS)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")
        batch = [self._checked(np.asarray(image)[None])[0] for image in batch]
        if size == "native":
            self.check_memory(*batch[0].shape[:2], len(batch))
            result = self._within_memory(np.stack(batch), iterations)
            restored = list(np.clip(result.passes[-1], -1, 1))
            after = self._probabilities(np.stack(restored))
        else:
            poor = self._at_model_size(batch)
            result = self._passes(poor, iterations)
            restored = [_carry_back(*trio, detail) for trio in zip(batch, poor, result.passes[-1], strict=True)]
            after = self._probabilities(self._at_model_size(restored))
        judged = [plausibility.judge(self.films, image) for image in batch]
        rows = zip(restored, result.probabilities[0], after, judged, strict=True)
        return [RestoredImage(*row, *judgement) for *row, judgement in rows]

    def predicted_memory(self, height, width, count=1):
        """Peak bytes of restoring `count` images at their own size; None where the network is not known.

        Proportional to the pixels, as measured on a CPU (docs/restore.md), and a little more than was measured.
        """
        if self.config.get("method") not in _BYTES_PER_FILTER:
            return None
        resized = self.config.get("upsampling") == "resize"
        constant, each_power = _BYTES_PER_FILTER[self.config["method"]][resized]
        if resized and not layers.native_kernels():
            constant, each_power = _BYTES_PER_FILTER_RESIZED_IN_PARTS, 0.0
        per_filter = (constant + each_power * self.config["q"]) * self.config["filters"]
        return int(count * height * width * (per_filter + _BYTES_PER_CHANNEL * self.channels))

    def check_memory(self, height, width, count=1):
        """Raises `TooLargeError` if restoring `count` images at their own size would need more than is available."""
        predicted, available = self.predicted_memory(height, width, count), memory.available()
        if predicted is not None and available is not None and predicted > available:
            raise TooLargeError(
                f"{width} x {height} pixels need about {predicted / 2**30:.1f} GiB of memory at their own size, "
                f"{available / 2**30:.1f} GiB are available; use --size=model"
            )

    def _within_memory(self, batch, iterations):
        """`_passes`, for a network whose device may have less memory than the machine."""
        try:
            return self._passes(batch, iterations)
        except MemoryError as error:
            raise _too_large(batch) from error
        except Exception as error:  # TensorFlow is not imported here: a network may be any function
            if type(error).__name__ != "ResourceExhaustedError":
                raise
            raise _too_large(batch) from error

    def restore_image(self, image, iterations=1):
        """`restore` with its defaults, as a pair: (restored float32 [H, W, C], probabilities of the input)."""
        result = self.restore(image, iterations)
        return result.image, result.before

    def _checked(self, batch):
        """A batch as float32; `ValueError` if it cannot be one of images in [-1, 1]."""
        batch = np.asarray(batch)
        if batch.ndim != 4 or batch.shape[-1] != self.channels or 0 in batch.shape:
            raise ValueError(f"a batch [N, H, W, {self.channels}] is needed, got {batch.shape}")
        if batch.dtype.kind != "f":
            raise ValueError(
                f"images of type {batch.dtype}; floats in [-1, 1] are needed, as images.read_image gives them of a "
                "file, and images.from_uint of 8- or 16-bit levels"
            )
        low, high = batch.min(), batch.max()
        if not (low >= -1 - images.TOLERANCE and high <= 1 + images.TOLERANCE):  # not of NaN either
            raise ValueError(f"images with values from {low:g} to {high:g}; finite ones in [-1, 1] are needed")
        if 0 <= low < high:
            # The programs leave this warning out (cli.program): what is read from a file has the right range.
            warnings.warn(
                f"all values lie in [{low:.2g}, {high:.2g}]; images are in [-1, 1]: 2 * image - 1 of one in [0, 1]",
                stacklevel=3,
            )
        return batch.astype(np.float32, copy=False)

    def _padded(self, batch):
        padding = [(0, -side % self.stride) for side in batch.shape[1:3]]
        return np.pad(batch, [(0, 0), *padding, (0, 0)], mode="symmetric")

    def _at_model_size(self, batch):
        return np.stack([images.resize(image, *self.size) for image in batch])


def _check_finite(*outputs):
    if not all(np.isfinite(output).all() for output in outputs):
        raise UserError("the model gives values that are not finite; its weights are damaged or diverged")


def _too_large(batch):
    height, width = batch.shape[1:3]
    return TooLargeError(f"{width} x {height} pixels do not fit into memory at their own size; use --size=model")


def _carry_back(image, poor, restored, detail):
    """A result at the model's size, enlarged to the image's, with the detail that was too fine for the model's size.

    Args:
        image: float32 [H, W, C] in [-1, 1].
        poor: `image` at the model's size.
        restored: what the network made of `poor`.
        detail: one of `DETAILS`.
    """
    size = image.shape[:2]
    enlarged = images.resize(restored, *size)
    if detail != "none":
        fine = image - images.resize(poor, *size)
        enlarged = enlarged + (fine if detail == "all" else _wiener(fine, noise_variance(image)))
    return np.clip(enlarged, -1, 1)


def _wiener(fine, noise):
    """The local Wiener filter of a signal of zero mean: each pixel times (variance - noise) / variance around it."""
    variance = cv2.blur(fine**2, (_WINDOW, _WINDOW)).reshape(fine.shape)
    gain = np.maximum(variance - _OVER_SUBTRACTION * noise, 0) / np.maximum(variance, np.finfo(np.float32).tiny)
    return gain.astype(np.float32) * fine
