"""A trained classifier, as `experiments.classifiers` leaves it in its run folder."""

import dataclasses
from pathlib import Path

import numpy as np

from r2c_gan import files
from r2c_gan.data import images
from r2c_gan.errors import UserError

CONFIG, MODEL, RESULT = "classifier.json", "model.keras", "result.json"
FORMAT = 1
_FULL_BATCH = 16  # batches are filled up to a multiple of this


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A trained classifier.

    Attributes:
        name: of its run folder.
        model: the `keras.Model`.
        size: side of the images it sees, in pixels.
        config: its settings, a dictionary.
        result: its `result.json`, a dictionary.
    """

    name: str
    model: object
    size: int
    config: dict
    result: dict

    @classmethod
    def load(cls, run):
        """Loads the classifier of a finished run, without running any code that the file may bring along.

        Raises:
            UserError: if the folder is not such a run, has not finished, or its model was altered.
        """
        run = Path(run)
        config = read_record(run)["training"]
        if not (run / RESULT).is_file() or not (run / MODEL).is_file():
            raise UserError(f"{run}: its training has not finished; give its command again")
        import keras

        result = files.read_json(run / RESULT)
        if files.sha256(run / MODEL) != result.get("sha256"):
            raise UserError(f"{run / MODEL}: damaged: its checksum is not the one recorded when it was saved")
        try:
            model = keras.saving.load_model(run / MODEL, compile=False, safe_mode=True)
        except (ValueError, TypeError, OSError, KeyError) as error:
            raise UserError(f"{run / MODEL}: not a model that can be loaded safely ({error})") from error
        return cls(run.name, model, config["size"], config, result)

    def __call__(self, batch):
        """Class probabilities, float64 [N, 2], of a batch float [N, H, W, 1 or 3] in [-1, 1] of any size."""
        batch = images.with_channels(np.asarray(batch, np.float32), 1)
        if batch.shape[1:3] != (self.size, self.size):
            batch = np.stack([images.resize(image, self.size, self.size) for image in batch])
        return predict_batch(self.model, np.clip(batch, -1, 1))


def predict_batch(model, batch):
    """Probabilities, float64 [n, 2], of a batch that is filled up: each new size would take a graph of its own.

    Args:
        model: a `keras.Model` of `networks.build_classifier`.
        batch: float32 [n, size, size, 1] in [-1, 1].
    """
    filled = np.pad(batch, [(0, -len(batch) % _FULL_BATCH), (0, 0), (0, 0), (0, 0)])
    probabilities = model.predict_on_batch(filled)[: len(batch)].astype(np.float64)
    return probabilities / probabilities.sum(axis=1, keepdims=True)


def read_record(run):
    """The settings of a classifier's run, as its `classifier.json` has them.

    Raises:
        UserError: if the folder holds no such run.
    """
    path = Path(run) / CONFIG
    if not path.is_file():
        raise UserError(f"{run}: not a classifier (it holds no {CONFIG}); give an --output_dir of this program")
    record = files.read_json(path)
    sound = isinstance(record, dict) and isinstance(record.get("training"), dict)
    if not sound or record.get("format") != FORMAT:
        raise UserError(f"{path}: not a classifier of this version (format {FORMAT})")
    return record
