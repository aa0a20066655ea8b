"""What the notebooks share: a quiet start, data, a small trained model, pictures in a cell.

Data and model are the reader's own (`DATASETS_DIR`, `MODEL` at the top of a notebook), or phantoms that are made on the
spot and a small network that is trained on them.
"""

import contextlib
import io
import os
import tempfile
from pathlib import Path

# Far smaller than the paper's network, with those options with which it learns something within a minute on 2 cores.
TRAINING = {
    "method": "operational",
    "q": 3,
    "filters": 8,
    "channels": 1,
    "load_size": 66,
    "crop_size": 64,
    "batch_size": 4,
    "epochs": 12,
    "epoch_decay": 6,
    "lr": 2e-3,
    "cycle_loss_weight": 2.0,
    "class_loss_weight": 4.0,
    "skip": "tone_curve",
    "upsampling": "resize",
    "ema_decay": 0.98,
    "sample_interval": 0,
}
PHANTOMS = {"size": 64, "train": 160, "test": 40, "severity": "moderate", "masks": True}
JPEG_QUALITY = 78


def start(seed=0):
    """Starts TensorFlow without its notes, and seeds everything."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from r2c_gan.cli import program

    program.start_tensorflow()
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    tf.get_logger().setLevel("ERROR")
    tf.config.experimental.enable_op_determinism()


def without_progress():
    """A context without progress bars, which a notebook would keep line by line."""
    return contextlib.redirect_stderr(io.StringIO())


def datasets_folder(given=None, **changes):
    """The reader's datasets folder, or one of phantoms made on the spot, in a temporary folder.

    Args:
        given: a folder as `r2c_gan.data.datasets` describes it, or None.
        **changes: other values of `data_prep.phantoms.PhantomSet` than `PHANTOMS`.

    Returns:
        A `pathlib.Path`.
    """
    if given is not None:
        return Path(given)
    from data_prep.phantoms import PhantomSet, write_dataset

    folder = Path(tempfile.mkdtemp(prefix="phantoms-"))
    with without_progress():
        write_dataset(folder, PhantomSet(**{**PHANTOMS, **changes}))
    return folder


def trained_model(given, datasets_dir, **changes):
    """The reader's model, or a small one that is trained on the spot.

    Args:
        given: a run folder, the word "pretrained", or None.
        datasets_dir: what to train on if it is None.
        **changes: other settings of `r2c_gan.TrainingConfig` than `TRAINING`.

    Returns:
        (`R2CGAN`, its run folder or None): pretrained weights have none.
    """
    import r2c_gan
    from r2c_gan.models import checkpoints, pretrained

    if given == pretrained.NAME:
        return pretrained.load()[0], None
    run = Path(given or tempfile.mkdtemp(prefix="run-"))
    if given is None:
        with without_progress():
            r2c_gan.train(r2c_gan.TrainingConfig(str(datasets_dir), str(run), **{**TRAINING, **changes}))
    return checkpoints.load_model(run)[0], run


def show(save, *arguments, width=None, **keywords):
    """The picture that a function of `r2c_gan.evaluation.figures` or its like writes to a file, for a cell to show.

    Args:
        save: a function of `path` and other arguments that writes a PNG.
        *arguments, **keywords: its arguments but `path`.
        width: pixels to shrink the picture to if it is wider, or None.

    Returns:
        An `IPython.display.Image`: PNG or JPEG, whichever takes less room.
    """
    import cv2
    from IPython.display import Image

    with tempfile.TemporaryDirectory() as folder, without_progress():
        path = Path(folder) / "picture.png"
        save(*arguments, path=path, **keywords)
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    height = picture.shape[0]
    if width is not None and width < picture.shape[1]:
        height = round(height * width / picture.shape[1])
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    if (picture == picture[..., :1]).all():
        picture = picture[..., 0]
    encoded = (
        cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes(),
        cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes(),
    )
    return Image(data=min(encoded, key=len))
