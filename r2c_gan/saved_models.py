"""Opening a SavedModel of `r2c-gan-export`, and no other.

    EXPORTED/saved_model.pb, variables/, fingerprint.pb    as TensorFlow writes them
    EXPORTED/r2c_gan.json                                  what a client must know: sizes, classes, source, checksums
    EXPORTED/model_card.md                                 what a person must know

A SavedModel is a program, and TensorFlow has operations that read and write files. So the operations are looked at
before anything is loaded, and a model that has others than an export of ours is refused.
"""

from pathlib import Path

from r2c_gan import files
from r2c_gan.errors import UserError

RECORD = "r2c_gan.json"
FORMAT = 1

# What exports consist of (tests/test_saved_models.py), and the likes of it: none of these reaches outside the graph.
_OPERATIONS = """
    Abs AddN AddV2 All Any ArgMax AsString Assert AssignVariableOp AvgPool BiasAdd BroadcastTo Cast Ceil
    ClipByValue Concat ConcatV2 Const Conv2D Conv2DBackpropFilter Conv2DBackpropInput DecodeJpeg DecodePng
    DecodeRaw DepthToSpace DepthwiseConv2dNative Div DivNoNan EncodePng EnsureShape Equal Exp ExpandDims
    ExtractJpegShape Fill Floor FloorDiv FloorMod FusedBatchNormV3 GatherNd GatherV2 Greater GreaterEqual
    Identity IdentityN If LeakyRelu LeftShift Less LessEqual Log LogicalAnd LogicalNot LogicalOr MatMul Max
    MaxPool Maximum Mean Min Minimum MirrorPad MirrorPadGrad Mul Neg NoOp NotEqual OnesLike Pack Pad PadV2
    PartitionedCall Placeholder Pow Prod Range Rank ReadVariableOp RealDiv Reciprocal Relu Reshape ResizeArea
    ResizeBilinear Round Rsqrt Select SelectV2 Shape ShapeN Sigmoid Size Slice Softmax SpaceToDepth Split Sqrt
    Square SquaredDifference Squeeze StatefulPartitionedCall StatelessIf StatelessWhile StopGradient
    StridedSlice StringJoin StringLength Sub Substr Sum Tanh TensorListFromTensor TensorListGetItem
    TensorListReserve TensorListSetItem TensorListStack Tile Transpose Unpack VarHandleOp VarIsInitializedOp
    Where While ZerosLike
"""
# TensorFlow's own saving and restoring of variables, which every SavedModel carries and loading does not call.
_CHECKPOINT_OPERATIONS = {
    "DisableCopyOnRead",
    "MergeV2Checkpoints",
    "RestoreV2",
    "SaveV2",
    "ShardedFilename",
    "StaticRegexFullMatch",
}
_OBJECTS = {"bare_concrete_function", "captured_tensor", "constant", "function", "user_object", "variable"}


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
    return record


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
    if not (folder / "saved_model.pb").is_file():
        raise UserError(f"{folder}: not a SavedModel (it holds no saved_model.pb); give the --output of r2c-gan-export")
    record = read_record(folder)
    _check_files(folder, record["files"])
    _check_operations(folder / "saved_model.pb")
    try:
        return tf.saved_model.load(str(folder)), record
    except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{folder}: not a SavedModel of r2c-gan-export ({reason})") from error


def _check_files(folder, expected):
    try:
        checksums = {folder / name: values["sha256"] for name, values in expected.items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{folder / RECORD}: its list of files is damaged; export the model again") from error
    for path, checksum in checksums.items():
        if not path.is_file():
            raise UserError(f"{path}: no such file; the SavedModel is not complete")
        if files.sha256(path) != checksum:
            raise UserError(f"{path}: damaged: its checksum is not the one in {RECORD}")


def _check_operations(path):
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel()
    try:
        model.ParseFromString(path.read_bytes())
    except (DecodeError, OSError) as error:
        raise UserError(f"{path}: not a SavedModel ({error})") from error
    if len(model.meta_graphs) != 1 or not model.meta_graphs[0].HasField("object_graph_def"):
        raise UserError(f"{path}: not a SavedModel of r2c-gan-export (another kind of SavedModel)")
    graph, objects = model.meta_graphs[0].graph_def, model.meta_graphs[0].object_graph_def
    functions = graph.library.function
    harmless = set(_OPERATIONS.split())
    checkpointing = {
        function.signature.name
        for function in functions
        if any(node.op in _CHECKPOINT_OPERATIONS for node in function.node_def)
    }
    unknown = {f"object {node.WhichOneof('kind')}" for node in objects.nodes} - {f"object {kind}" for kind in _OBJECTS}
    # Only the main graph, which is there for TensorFlow 1 and not run, may lead to the functions that touch files.
    unknown |= checkpointing & set(objects.concrete_functions)
    for function in functions:
        operations = {node.op for node in function.node_def}
        if function.signature.name in checkpointing:
            operations -= _CHECKPOINT_OPERATIONS
        else:
            unknown |= checkpointing & _functions_called(function.node_def)
        unknown |= operations - harmless
    unknown |= {node.op for node in graph.node} - harmless
    if unknown:
        raise UserError(
            f"{path}: not loaded: it has operations that no export of r2c-gan has ({', '.join(sorted(unknown))})"
        )


def _functions_called(nodes):
    called = set()
    for node in nodes:
        called.add(node.op)  # a function can be called by its own name
        for attribute in node.attr.values():
            called.add(attribute.func.name)
            called.update(function.name for function in attribute.list.func)
    return called
