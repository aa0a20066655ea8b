"""A trained restorer as a SavedModel that needs neither this package nor Keras."""

from pathlib import Path

import keras

from r2c_gan import __version__, files
from r2c_gan.data import images, plausibility
from r2c_gan.data.datasets import CLASSES
from r2c_gan.errors import UserError
from r2c_gan.evaluation import model_card
from r2c_gan.models.networks import GENERATOR_STRIDE
from r2c_gan.restoration import saved_models


def export_saved_model(model, folder, source=None, origin=None, films=None):
    """Writes the restorer of a model as a SavedModel, with `r2c_gan.json` and `model_card.md` beside it.

    Its signatures:

    `serving_default`  `image`, float32 [N, H, W, C] in [-1, 1], H and W multiples of the stride -> `restored`, float32
                       [N, H, W, C] in [-1, 1], and `probabilities`, float32 [N, classes]. Other sizes and values are
                       an InvalidArgumentError.
    `serve_encoded`    `encoded`, string [N], the bytes of PNG or JPEG files, which are decoded and resized to the
                       model's size -> `restored_png`, string [N], PNG files of the model's size; `probabilities`;
                       `label`, string [N], the name of the likelier class.
    `serve_rest`       the same, with `restored_png` named `restored_png_bytes`, because TensorFlow Serving's REST
                       interface writes bytes as base64 only under names that end so.

    Args:
        model: an `R2CGAN`.
        folder: the folder to make; it must not exist, or be empty.
        source: dictionary that says where the weights come from.
        origin: a `model_card.Origin`, for the card.
        films: the `plausibility.Plausibility` of the training films, which is written beside the model, or None.

    Raises:
        UserError: if the folder holds something already, or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists already; give another --output, or delete it")
    description = describe(model, source)
    archive = _archive(model, description)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        files.sweep_scratch(folder.parent, f".{folder.name}.")
        with files.scratch_folder(folder.parent, f".{folder.name}.") as scratch:
            temporary = scratch / "new"
            archive.write_out(temporary, verbose=False)
            if films is not None:
                films.save(temporary / plausibility.FILE)
            exported = model_card.checksums(temporary)
            files.write_json(
                temporary / saved_models.RECORD, {"format": saved_models.FORMAT, **description, "files": exported}
            )
            files.write_text(
                temporary / model_card.FILE, model_card.render("SavedModel", description, exported, origin)
            )
            temporary.replace(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error})") from error


def describe(model, source=None):
    """What a client must know of an exported model, as a dictionary of plain values."""
    config = model.config
    return {
        "r2c_gan": __version__,
        "classes": list(CLASSES),
        "image_size": list(config["image_size"]),
        "channels": config["channels"],
        "stride": GENERATOR_STRIDE[config["method"]],
        "model": config,
        "source": source or {},
        "use": "research only, not for diagnosis",
    }


def _archive(model, description):
    import tensorflow as tf

    from r2c_gan.serving import graph_images

    restorer, stride, channels = model.restorer, description["stride"], description["channels"]
    height, width = description["image_size"]

    def serve(image):
        sides = tf.shape(image)[1:3]
        given = tf.strings.join([tf.strings.as_string(sides[0]), " x ", tf.strings.as_string(sides[1])])
        message = tf.strings.join(["image: ", given, f" pixels; height and width must be multiples of {stride}"])
        ends = [tf.strings.as_string(end(image), shortest=True) for end in (tf.reduce_min, tf.reduce_max)]
        found = tf.strings.join(["image: values from ", ends[0], " to ", ends[1], "; finite ones in -1..1 are needed"])
        within = tf.reduce_all(tf.abs(image) <= 1 + images.TOLERANCE)  # false of NaN
        checks = [tf.debugging.Assert(tf.reduce_all(sides % stride == 0), [message])]
        checks.append(tf.debugging.Assert(within, [found]))
        with tf.control_dependencies(checks):
            restored, probabilities = restorer(tf.identity(image), training=False)
        return {"restored": restored, "probabilities": probabilities}

    def serve_encoded(encoded):
        restored, probabilities = restorer(graph_images.decode_batch(encoded, height, width, channels), training=False)
        return {
            "restored_png": graph_images.encode_batch(restored),
            "probabilities": probabilities,
            "label": tf.gather(tf.constant(description["classes"]), tf.argmax(probabilities, axis=-1)),
        }

    def serve_rest(encoded):
        outputs = serve_encoded(encoded)
        return {"restored_png_bytes": outputs.pop("restored_png"), **outputs}

    archive = keras.export.ExportArchive()
    archive.track(restorer)
    image = tf.TensorSpec((None, None, None, channels), tf.float32, name="image")
    encoded = tf.TensorSpec((None,), tf.string, name="encoded")
    archive.add_endpoint("serving_default", serve, input_signature=[image])
    archive.add_endpoint("serve_encoded", serve_encoded, input_signature=[encoded])
    archive.add_endpoint("serve_rest", serve_rest, input_signature=[encoded])
    return archive
