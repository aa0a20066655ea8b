"""A trained restorer as a SavedModel that needs neither this package nor Keras."""

import shutil
import tempfile
from pathlib import Path

import keras

from r2c_gan import __version__, files
from r2c_gan.data import CLASSES
from r2c_gan.errors import UserError
from r2c_gan.networks import GENERATOR_STRIDE
from r2c_gan.restoration import EXPORT_RECORD


def export_saved_model(model, folder, source=None):
    """Writes the restorer of a model as a SavedModel.

    Its signature `serving_default` takes `image`, float32 [N, H, W, C] in [-1, 1], and returns a dictionary of
    `restored`, float32 [N, H, W, C] in [-1, 1], and `probabilities`, float32 [N, classes]. The stride divides H and W.
    `r2c_gan.json` beside it records the size, the stride, the classes and where the weights come from.

    Args:
        model: an `R2CGAN`.
        folder: the folder to make; it must not exist, or be empty.
        source: dictionary that says where the weights come from.

    Raises:
        UserError: if the folder holds something already, or cannot be written.
    """
    import tensorflow as tf

    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists already; give another --output, or delete it")
    config = model.config
    restorer = model.restorer

    def serve(image):
        restored, probabilities = restorer(image, training=False)
        return {"restored": restored, "probabilities": probabilities}

    archive = keras.export.ExportArchive()
    archive.track(restorer)
    signature = [tf.TensorSpec((None, None, None, config["channels"]), tf.float32, name="image")]
    archive.add_endpoint("serving_default", serve, input_signature=signature)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            archive.write_out(temporary, verbose=False)
            files.write_json(
                temporary / EXPORT_RECORD,
                {
                    "r2c_gan": __version__,
                    "classes": list(CLASSES),
                    "image_size": config["image_size"],
                    "channels": config["channels"],
                    "stride": GENERATOR_STRIDE[config["method"]],
                    "model": config,
                    "source": source or {},
                    "use": "research only, not for diagnosis",
                },
            )
            temporary.chmod(0o755)
            temporary.replace(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error})") from error
