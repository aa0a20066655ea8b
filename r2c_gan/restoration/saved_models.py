"""Opening a SavedModel of `r2c-gan-export`, and no other.

    EXPORTED/saved_model.pb, variables/, fingerprint.pb    as TensorFlow writes them
    EXPORTED/r2c_gan.json                                  what a client must know: sizes, classes, source, checksums
    EXPORTED/model_card.md                                 what a person must know

A SavedModel is a program, and TensorFlow has operations that read and write files. So a model that has others than an
export of ours is refused before anything is loaded. Every SavedModel also carries TensorFlow's functions that save and
restore it; they are taken out, and what is left is loaded. So no name in the model can lead to them.
"""

import tempfile
from pathlib import Path

from r2c_gan import files
from r2c_gan.errors import UserError

RECORD = "r2c_gan.json"
FORMAT = 1

SCRATCH = "r2c-gan-model-"

# What exports consist of (tests/test_saved_models.py), and the likes of it: none of these reaches outside the graph.
_OPERATIONS = """
    Abs Add AddN AddV2 All Any ArgMax ArgMin AsString Assert AssignVariableOp Atan AvgPool BatchMatMulV2 BiasAdd
    Bincount BitwiseAnd BitwiseOr BitwiseXor BroadcastArgs BroadcastTo Bucketize Cast Ceil ClipByValue Concat
    ConcatV2 Const Conv2D Conv2DBackpropFilter Conv2DBackpropInput Cos Cumprod Cumsum DecodeJpeg DecodePng
    DecodeRaw DenseBincount DepthToSpace DepthwiseConv2dNative Div DivNoNan Einsum Elu EncodePng EnsureShape Equal
    Erf Exp ExpandDims Expm1 ExtractJpegShape Fill Floor FloorDiv FloorMod FusedBatchNormV3 GatherNd GatherV2
    Greater GreaterEqual HistogramFixedWidth Identity IdentityN If InvertPermutation IsFinite IsInf IsNan L2Loss
    LeakyRelu LeftShift Less LessEqual LinSpace Log Log1p LogSoftmax LogicalAnd LogicalNot LogicalOr MatMul Max
    MaxPool Maximum Mean Min Minimum MirrorPad MirrorPadGrad Mul MulNoNan Neg NoOp NotEqual OneHot OnesLike Pack
    Pad PadV2 PartitionedCall Placeholder Pow Prod Range Rank ReadVariableOp RealDiv Reciprocal Relu Relu6 Reshape
    ResizeArea ResizeBilinear ResizeNearestNeighbor ReverseV2 RightShift Roll Round Rsqrt ScatterNd SegmentSum
    Select SelectV2 Shape ShapeN Sigmoid Sign Sin Size Slice Softmax Softplus SpaceToDepth Split SplitV Sqrt
    Square SquaredDifference Squeeze StatefulPartitionedCall StatelessIf StatelessWhile StopGradient StridedSlice
    StringFormat StringJoin StringLength Sub Substr Sum Tan Tanh TensorListFromTensor TensorListGetItem
    TensorListReserve TensorListSetItem TensorListStack TensorScatterAdd TensorScatterUpdate Tile TopKV2 Transpose
    TruncateDiv TruncateMod Unpack UnsortedSegmentSum VarHandleOp VarIsInitializedOp Where While ZerosLike
"""
# TensorFlow's own saving and restoring of variables. A function with one of them is taken out.
_CHECKPOINT_OPERATIONS = frozenset(
    ("DisableCopyOnRead", "MergeV2Checkpoints", "RestoreV2", "SaveV2", "ShardedFilename", "StaticRegexFullMatch")
)
_OBJECTS = {"bare_concrete_function", "captured_tensor", "constant", "function", "user_object", "variable"}
_USER_OBJECTS = {
    "_generic_user_object",
    "signature_map",
    "trackable_dict_wrapper",
    "trackable_list_wrapper",
    "trackable_tuple_wrapper",
}


def read_record(folder):
    """Reads `r2c_gan.json`.

    Raises:
        UserError: if it is missing, or of another kind or version.
    """
    path = Path(folder) / RECORD
    if not path.is_file():
        raise UserError(f"{path}: no such file; the folder is not a SavedModel of r2c-gan-export")
    record = files.read_json(path)
    found = record.get("format") if isinstance(record, dict) else None
    if found != FORMAT:
        newer = isinstance(found, int) and found > FORMAT
        remedy = "install a newer r2c-gan" if newer else "export the model again"
        raise UserError(
            f"{path}: not a SavedModel of r2c-gan-export that this version reads "
            f"(format {found}, where {FORMAT} is read); {remedy}"
        )
    missing = {"classes", "image_size", "channels", "stride", "files"} - set(record)
    if missing:
        raise UserError(f"{path}: does not say {', '.join(sorted(missing))}; export the model again")
    wrong = [name for name, right in _RIGHT.items() if not right(record[name])]
    if wrong:
        raise UserError(f"{path}: {wrong[0]} is {str(record[wrong[0]])[:80]!r}, which no export wrote; export again")
    return record


def _is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 2**16


_RIGHT = {
    "classes": lambda value: isinstance(value, list) and value and all(isinstance(name, str) for name in value),
    "image_size": lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_count, value)),
    "channels": lambda value: value in (1, 3),
    "stride": _is_count,
    "files": lambda value: isinstance(value, dict),
}


def network(folder):
    """The restorer of a SavedModel as a function, after the checks of `load`.

    Returns:
        (function of a float32 batch [N, H, W, C] that gives restored images and probabilities, the dictionary of
        `r2c_gan.json`).

    Raises:
        UserError: as `load`.
    """
    import tensorflow as tf

    loaded, record = load(folder)
    serve = loaded.signatures["serving_default"]

    def restore(batch):
        outputs = serve(image=tf.constant(batch))
        return outputs["restored"].numpy(), outputs["probabilities"].numpy()

    restore.keep = loaded  # a signature does not keep its model alive
    return restore, record


def load(folder):
    """Loads a SavedModel of `r2c-gan-export`, after looking at what it is made of.

    Args:
        folder: the folder that holds `saved_model.pb`.

    Returns:
        (what `tf.saved_model.load` gives, the dictionary of `r2c_gan.json`).

    Raises:
        UserError: if it is of another kind or version, damaged, or has operations that no export of ours has.
    """
    import tensorflow as tf

    folder = Path(folder)
    path = folder / "saved_model.pb"
    if not path.is_file():
        raise UserError(f"{folder}: not a SavedModel (it holds no saved_model.pb); give the --output of r2c-gan-export")
    record = read_record(folder)
    _check_files(folder, record["files"])
    model = _read_model(path)
    _remove_checkpointing(model)
    _check_operations(model, path)
    try:
        files.sweep_scratch(tempfile.gettempdir(), SCRATCH)
        with files.scratch_folder(tempfile.gettempdir(), SCRATCH) as checked:
            (checked / path.name).write_bytes(model.SerializeToString())
            for name in ("variables", "fingerprint.pb"):
                (checked / name).symlink_to((folder / name).absolute())
            return tf.saved_model.load(str(checked)), record
    except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{folder}: not a SavedModel of r2c-gan-export ({reason})") from error


def _check_files(folder, expected):
    record = folder / RECORD
    try:
        checksums = {files.within(folder, name, record): values["sha256"] for name, values in expected.items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{record}: its list of files is damaged; export the model again") from error
    for path, checksum in checksums.items():
        if not path.is_file():
            raise UserError(f"{path}: no such file; the SavedModel is not complete")
        if files.sha256(path) != checksum:
            raise UserError(f"{path}: damaged: its checksum is not the one in {RECORD}")


def _read_model(path):
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel()
    try:
        model.ParseFromString(path.read_bytes())
    except (DecodeError, OSError) as error:
        raise UserError(f"{path}: not a SavedModel ({error})") from error
    if len(model.meta_graphs) != 1 or not model.meta_graphs[0].HasField("object_graph_def"):
        raise UserError(f"{path}: not a SavedModel of r2c-gan-export (another kind of SavedModel)")
    return model


def _remove_checkpointing(model):
    """Takes out the functions that save and restore, and of the main graph all but constants.

    The main graph is there for TensorFlow 1 and calls these functions. TensorFlow 2 reads no more than its constants.
    """
    graph = model.meta_graphs[0].graph_def
    functions = list(graph.library.function)
    removed = {
        function.signature.name
        for function in functions
        if any(node.op in _CHECKPOINT_OPERATIONS for node in function.node_def)
    }
    kept = [function for function in functions if function.signature.name not in removed]
    constants = [node for node in graph.node if node.op == "Const"]
    del graph.library.function[:], graph.node[:]
    graph.library.function.extend(kept)
    graph.node.extend(constants)


def _check_operations(model, path):
    """Refuses what is not listed here, and names of functions that are not there: TensorFlow might find them elsewhere.

    All functions are checked, whether or not something is seen to call them.
    """
    library, objects = model.meta_graphs[0].graph_def.library, model.meta_graphs[0].object_graph_def
    allowed, unknown, called = frozenset(_OPERATIONS.split()), set(), set(objects.concrete_functions)
    for function in library.function:
        unknown.update(node.op for node in function.node_def if node.op not in allowed)
        for attributes in (function.attr, *(node.attr for node in function.node_def)):
            for attribute in attributes.values():
                called.add(attribute.func.name)
                called.update(each.name for each in attribute.list.func)
    for gradient in library.gradient:
        called.update((gradient.function_name, gradient.gradient_func))
    called.update(gradient.gradient_func for gradient in library.registered_gradients)
    for node in objects.nodes:
        kind = node.WhichOneof("kind")
        if kind not in _OBJECTS or node.registered_name or node.registered_saver:
            unknown.add(f"object {kind}")
        if kind == "user_object" and node.user_object.identifier not in _USER_OBJECTS:
            unknown.add(f"object {node.user_object.identifier}")
        called.update(node.function.concrete_functions)
        called.update((node.bare_concrete_function.concrete_function_name, node.captured_tensor.concrete_function))
    unknown |= called - {function.signature.name for function in library.function} - {""}
    if unknown:
        raise UserError(
            f"{path}: not loaded: it has operations that no export of r2c-gan has ({', '.join(sorted(unknown))})"
        )
