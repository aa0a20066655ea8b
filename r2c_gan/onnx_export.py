"""A trained restorer as an ONNX model, for runtimes other than TensorFlow."""

import json
from pathlib import Path

from r2c_gan import files, layers, model_card
from r2c_gan.errors import UserError
from r2c_gan.export import describe
from r2c_gan.networks import build_generator

OPSET = 18
FILE = "model.onnx"


def export_onnx(model, path, source=None, origin=None):
    """Writes the restorer of a model as an ONNX file, with `model_card.md` beside it.

    Input `image`, float32 [N, H, W, C] in [-1, 1], with N, H and W free; outputs `restored`, float32 [N, H', W', C] in
    [-1, 1], and `probabilities`, float32 [N, classes]. H' and W' are H and W rounded up to multiples of the stride:
    ONNX cannot refuse a size, so a client that wants H and W back pads to a multiple first, and crops. The file's
    metadata (`metadata_props`, JSON values) hold what `r2c_gan.json` of a SavedModel holds.

    Args:
        model: an `R2CGAN`.
        path: the file to make, or a folder for `model.onnx`; neither the file nor a card beside it may exist.
        source: dictionary that says where the weights come from.
        origin: a `model_card.Origin`, for the card.

    Raises:
        UserError: if tf2onnx is not installed, or the file exists or cannot be written.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        path = path / FILE
    card = path.with_name(model_card.FILE)
    for existing in (path, card):
        if existing.exists():
            raise UserError(f"{existing}: exists already; give another --output, or delete it")
    description = describe(model, source)
    converted = _convert(model, description)
    with files.atomic_path(path) as temporary:
        temporary.write_bytes(converted.SerializeToString())
        exported = {path.name: {"bytes": temporary.stat().st_size, "sha256": files.sha256(temporary)}}
        files.write_text(card, model_card.render("ONNX", description, exported, origin))


def _convert(model, description):
    try:
        import onnx
        import tensorflow as tf
        import tf2onnx
    except ImportError as error:
        raise UserError(f"ONNX export needs {error.name}; pip install 'r2c-gan[onnx]'") from error
    names = ("method", "q", "channels", "filters", "num_classes")
    with layers.portable():
        network = build_generator(**{name: model.config[name] for name in names}, dtype="float32")
        network.set_weights(model.restorer.get_weights())
        signature = [tf.TensorSpec((None, None, None, description["channels"]), tf.float32, name="image")]

        @tf.function(input_signature=signature)
        def serve(image):
            restored, probabilities = network(image, training=False)
            return {"restored": restored, "probabilities": probabilities}

        converted, _ = tf2onnx.convert.from_function(serve, signature, opset=OPSET)
    for value in (*converted.graph.input, *converted.graph.output):
        for axis, name in zip(value.type.tensor_type.shape.dim, _axes(value.name), strict=True):
            if not axis.HasField("dim_value"):
                axis.dim_param = name
    onnx.helper.set_model_props(converted, {name: json.dumps(value) for name, value in description.items()})
    converted.doc_string = "R2C-GAN, the restorer. Research only, not for diagnosis."
    onnx.checker.check_model(converted, full_check=True)
    return converted


def _axes(name):
    """Names of the axes of an input or output."""
    if name == "probabilities":
        return ("N", "classes")
    return ("N", "H", "W", "C") if name == "image" else ("N", "H_out", "W_out", "C")
