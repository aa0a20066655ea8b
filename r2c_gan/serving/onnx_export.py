"""A trained restorer as an ONNX model, for runtimes other than TensorFlow."""

import json
from pathlib import Path

import keras

from r2c_gan import files
from r2c_gan.errors import UserError
from r2c_gan.evaluation import model_card
from r2c_gan.layers import operational as layers
from r2c_gan.models.networks import build_generator
from r2c_gan.serving.export import describe

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
    with layers.portable():
        network = _network_to_convert(model)
        signature = [tf.TensorSpec((None, None, None, description["channels"]), tf.float32, name="image")]

        @tf.function(input_signature=signature)
        def serve(image):
            restored, probabilities = network(image, training=False)
            return {"restored": restored, "probabilities": probabilities}

        handlers = {"FusedBatchNormV3": (_to_instance_normalization, [])}
        converted, _ = tf2onnx.convert.from_function(serve, signature, opset=OPSET, custom_op_handlers=handlers)
    for value in (*converted.graph.input, *converted.graph.output):
        for axis, name in zip(value.type.tensor_type.shape.dim, _axes(value.name), strict=True):
            if not axis.HasField("dim_value"):
                axis.dim_param = name
    onnx.helper.set_model_props(converted, {name: json.dumps(value) for name, value in description.items()})
    converted.doc_string = "R2C-GAN, the restorer. Research only, not for diagnosis."
    onnx.checker.check_model(converted, full_check=True)
    return converted


class _Marked(layers.InstanceNormalization):
    """In the place of instance normalisation, one operation that the converter finds and replaces.

    It is not computed: over several samples, batch normalisation is another thing.
    """

    def call(self, inputs):
        import tensorflow as tf

        return tf.compat.v1.nn.fused_batch_norm(inputs, self.gamma, self.beta, epsilon=self.epsilon, is_training=True)[
            0
        ]


def _network_to_convert(model):
    """The restorer in float32, its instance normalisations marked."""
    options = model.options.without_noise()
    network = build_generator(options, num_classes=model.config["num_classes"], dtype="float32")

    def mark(layer):
        kind = _Marked if isinstance(layer, layers.InstanceNormalization) else type(layer)
        return kind.from_config(layer.get_config())

    network = keras.models.clone_model(network, clone_function=mark)
    network.set_weights(model.restorer.get_weights())
    return network


def _to_instance_normalization(context, node, name, _):
    """Replaces a marked normalisation by ONNX's own, which is twice as fast as its parts (moments, scale, shift).

    tf2onnx calls it with its graph and the node, which it gives the image, scale and shift; ONNX has channels first.
    """
    image, scale, shift = node.input[:3]
    epsilon, output = node.get_attr_value("epsilon"), node.output[0]
    shape, dtype = context.get_shape(output), context.get_dtype(output)
    context.remove_node(node.name)
    first = context.make_node("Transpose", [image], attr={"perm": [0, 3, 1, 2]}).output[0]
    normal = context.make_node("InstanceNormalization", [first, scale, shift], attr={"epsilon": epsilon}).output[0]
    last = {"perm": [0, 2, 3, 1]}
    context.make_node("Transpose", [normal], attr=last, name=name, outputs=[output], shapes=[shape], dtypes=[dtype])


def _axes(name):
    """Names of the axes of an input or output."""
    if name == "probabilities":
        return ("N", "classes")
    return ("N", "H", "W", "C") if name == "image" else ("N", "H_out", "W_out", "C")
