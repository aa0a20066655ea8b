"""What is loaded, what is refused, and that nothing runs on the way."""

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from r2c_gan import files
from r2c_gan.errors import UserError
from r2c_gan.models import checkpoints
from r2c_gan.models.model import R2CGAN
from r2c_gan.restoration import saved_models
from r2c_gan.restoration.restorer import Restorer
from r2c_gan.serving import export


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "saved_model"
    export.export_saved_model(R2CGAN(filters=3, channels=1, image_size=16), folder, source={"run": "a name"})
    return folder


@pytest.fixture
def altered(exported, tmp_path):
    """A copy of the export, and a function that changes its record."""
    folder = shutil.copytree(exported, tmp_path / "altered")

    def change(**values):
        record = json.loads((folder / "r2c_gan.json").read_text())
        record.update(values)
        (folder / "r2c_gan.json").write_text(json.dumps({k: v for k, v in record.items() if v is not None}))

    return folder, change


def test_an_export_is_loaded(exported):
    loaded, record = saved_models.load(exported)
    assert set(loaded.signatures) == {"serving_default", "serve_encoded", "serve_rest"}
    assert (record["format"], record["source"]) == (1, {"run": "a name"})


def test_other_versions_are_named(altered):
    folder, change = altered
    change(format=2)
    with pytest.raises(UserError, match=r"r2c_gan\.json: .*format 2, where 1 is read\); install a newer r2c-gan"):
        saved_models.load(folder)
    for other in (None, "1", 0):
        change(format=other)
        with pytest.raises(UserError, match=r"r2c_gan\.json: not a SavedModel .*; export the model again"):
            saved_models.load(folder)
    change(format=1, stride=None, classes=None)
    with pytest.raises(UserError, match="does not say classes, stride"):
        saved_models.load(folder)


def test_what_is_no_export_is_named(altered, tmp_path):
    folder, _ = altered
    with pytest.raises(UserError, match=r"holds no saved_model\.pb"):
        saved_models.load(tmp_path / "nowhere")
    for text, message in (("[]", "format None"), ("{", "not a readable JSON file")):
        (folder / "r2c_gan.json").write_text(text)
        with pytest.raises(UserError, match=message):
            saved_models.load(folder)
    (folder / "r2c_gan.json").unlink()
    with pytest.raises(UserError, match=r"r2c_gan\.json: no such file; the folder is not a SavedModel of r2c-gan"):
        saved_models.load(folder)


def test_damage_is_named(altered):
    folder, change = altered
    files_before = json.loads((folder / "r2c_gan.json").read_text())["files"]
    for damaged in ([], "all", {"saved_model.pb": 5}, {"saved_model.pb": {}}):
        change(files=damaged)
        with pytest.raises(UserError, match=r"its list of files is damaged|files is"):
            saved_models.load(folder)
    change(files=files_before)
    variables = folder / "variables" / "variables.data-00000-of-00001"
    whole = variables.read_bytes()
    variables.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"variables\.data-00000-of-00001: damaged"):
        saved_models.load(folder)
    variables.unlink()
    with pytest.raises(UserError, match=r"variables\.data-00000-of-00001: no such file"):
        saved_models.load(folder)


def with_record_of(folder, exported):
    """Gives a foreign SavedModel the record of an export, checksums and all: what an attacker would do."""
    record = json.loads((exported / "r2c_gan.json").read_text())
    pb = folder / "saved_model.pb"
    record["files"] = {"saved_model.pb": {"bytes": pb.stat().st_size, "sha256": files.sha256(pb)}}
    (folder / "r2c_gan.json").write_text(json.dumps(record))
    return folder


class WritesWhenCalled(tf.Module):
    """A model that writes a file when it is asked for a prediction."""

    def __init__(self, path):
        super().__init__()
        self.path = str(path)

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 1), tf.float32)])
    def serve(self, image):
        with tf.control_dependencies([tf.io.write_file(self.path, "was here")]):
            return {"restored": tf.identity(image), "probabilities": tf.reduce_mean(image, (1, 2))}


class ReadsFiles(tf.Module):
    """A model that hands out any file of the machine that it is run on."""

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
    def serve(self, encoded):
        return {"label": tf.io.read_file(encoded[0])}


class SavesWhenCalled(tf.Module):
    """Writes by the operation that TensorFlow's own checkpoints are written with."""

    def __init__(self, path):
        super().__init__()
        self.path = str(path)

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.float32)])
    def serve(self, image):
        tf.raw_ops.SaveV2(prefix=self.path, tensor_names=["a"], shape_and_slices=[""], tensors=[image])
        return {"restored": image}


class SavesDeepInside(SavesWhenCalled):
    """The same, in a function that another calls."""

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.float32)])
    def serve(self, image):
        @tf.function
        def inner(x):
            tf.raw_ops.SaveV2(prefix=self.path, tensor_names=["a"], shape_and_slices=[""], tensors=[x])
            return x

        return {"restored": inner(image)}


class RunsPython(tf.Module):
    """Calls whatever Python function has that number in the process."""

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.float32)])
    def serve(self, image):
        return {"restored": tf.numpy_function(lambda x: x, [image], tf.float32)}


class PrintsIntoFiles(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((None,), tf.float32)])
    def serve(self, image):
        tf.print("was here", output_stream="file:///tmp/never")
        return {"restored": image}


class HoldsAnAsset(tf.Module):
    """Knows the path of a file that comes with it, and reads it."""

    def __init__(self, path):
        super().__init__()
        path.write_text("a")
        self.asset = tf.saved_model.Asset(str(path))

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.float32)])
    def serve(self, image):
        return {"label": tf.io.read_file(self.asset.asset_path)}


class InABranch(tf.Module):
    """Writes in a function that is an attribute of an operation of another function."""

    def __init__(self, path):
        super().__init__()
        self.path = str(path)

    @tf.function(input_signature=[tf.TensorSpec((), tf.float32)])
    def serve(self, image):
        def write():
            with tf.control_dependencies([tf.io.write_file(self.path, "was here")]):
                return tf.identity(image)

        return {"restored": tf.cond(image > 0, write, lambda: image)}


class TableFromFile(tf.Module):
    """Reads a file when it is loaded, to fill a table."""

    def __init__(self, path):
        super().__init__()
        path.write_text("a\nb\n")
        initializer = tf.lookup.TextFileInitializer(str(path), tf.string, 0, tf.int64, 1)
        initializer._key_index, initializer._value_index = -2, -1
        self.table = tf.lookup.StaticHashTable(initializer, -1)

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
    def serve(self, encoded):
        return {"label": self.table.lookup(encoded)}


def test_the_attacks_work_where_nothing_is_checked(tmp_path):
    """Or else the test below could not fail."""
    module = WritesWhenCalled(tmp_path / "written")
    tf.saved_model.save(module, str(tmp_path / "evil"), signatures={"serving_default": module.serve})
    tf.saved_model.load(str(tmp_path / "evil")).signatures["serving_default"](tf.zeros((1, 2, 2, 1)))
    assert (tmp_path / "written").read_text() == "was here"


@pytest.mark.parametrize(
    "kind, operation",
    [
        (lambda path: WritesWhenCalled(path), "WriteFile"),
        (lambda path: ReadsFiles(), "ReadFile"),
        (lambda path: SavesWhenCalled(path), "serve"),
        (lambda path: SavesDeepInside(path), "inner"),
        (lambda path: TableFromFile(path), "object resource"),
        (lambda path: RunsPython(), "PyFunc"),
        (lambda path: PrintsIntoFiles(), "PrintV2"),
        (lambda path: HoldsAnAsset(path), "object asset"),
        (lambda path: InABranch(path), "WriteFile"),
    ],
    ids=[
        "writes a file", "reads files", "writes a checkpoint", "writes one deep inside", "reads a file on loading",
        "runs Python", "prints into files", "holds an asset", "writes in a branch",
    ],
)  # fmt: skip
def test_a_model_that_touches_files_is_not_loaded(kind, operation, exported, tmp_path, monkeypatch):
    module = kind(tmp_path / "written")
    tf.saved_model.save(module, str(tmp_path / "evil"), signatures={"serving_default": module.serve})
    folder = with_record_of(tmp_path / "evil", exported)
    monkeypatch.setattr(tf.saved_model, "load", lambda path: pytest.fail("it was loaded"))
    with pytest.raises(UserError, match=f"not loaded: it has operations that no export of r2c-gan has .*{operation}"):
        saved_models.load(folder)


def changed(exported, folder, change):
    """A copy of an export that was changed by `change(library, objects, name of the function that writes)`."""
    shutil.copytree(exported, folder)
    model = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    library, objects = model.meta_graphs[0].graph_def.library, model.meta_graphs[0].object_graph_def
    (writes,) = [f.signature.name for f in library.function if any(node.op == "SaveV2" for node in f.node_def)]
    change(library, objects, writes)
    (folder / "saved_model.pb").write_bytes(model.SerializeToString())
    return with_record_of(folder, exported), writes


def first(objects, kind):
    return next(getattr(node, kind) for node in objects.nodes if node.WhichOneof("kind") == kind)


def an_operation(library):
    """One of a function that stays."""
    return next(node for f in library.function for node in f.node_def if node.op == "AddV2")


CALLS = {
    "among the functions": lambda library, objects, name: objects.concrete_functions[name].SetInParent(),
    "as a bare function": lambda library, objects, name: setattr(
        first(objects, "bare_concrete_function"), "concrete_function_name", name
    ),
    "of a function object": lambda library, objects, name: first(objects, "function").concrete_functions.append(name),
    "of a captured tensor": lambda library, objects, name: setattr(
        objects.nodes.add().captured_tensor, "concrete_function", name
    ),
    "in an operation": lambda library, objects, name: setattr(an_operation(library).attr["f"].func, "name", name),
    "in a list": lambda library, objects, name: setattr(an_operation(library).attr["f"].list.func.add(), "name", name),
    "of a function": lambda library, objects, name: setattr(library.function[0].attr["f"].func, "name", name),
    "as a gradient": lambda library, objects, name: setattr(library.gradient.add(), "gradient_func", name),
    "for all gradients": lambda library, objects, name: setattr(
        library.registered_gradients.add(), "gradient_func", name
    ),
    "as an operation": lambda library, objects, name: setattr(an_operation(library), "op", name),
}


@pytest.mark.parametrize("where", CALLS)
def test_the_writing_of_checkpoints_cannot_be_called(where, exported, tmp_path, monkeypatch):
    """Every SavedModel carries a function that writes files; in these something refers to it."""
    folder, writes = changed(exported, tmp_path / "evil", CALLS[where])
    monkeypatch.setattr(tf.saved_model, "load", lambda path: pytest.fail("it was loaded"))
    with pytest.raises(UserError, match=f"not loaded: .*{writes}"):
        saved_models.load(folder)


def operations(folder):
    graph = (
        saved_model_pb2.SavedModel.FromString((Path(folder) / "saved_model.pb").read_bytes()).meta_graphs[0].graph_def
    )
    return {node.op for nodes in (graph.node, *(f.node_def for f in graph.library.function)) for node in nodes}


def test_what_writes_checkpoints_is_not_loaded_at_all(exported, monkeypatch):
    seen = []

    def load(path, original=tf.saved_model.load):
        seen.append(operations(path))
        return original(path)

    monkeypatch.setattr(tf.saved_model, "load", load)
    saved_models.load(exported)
    assert {"SaveV2", "RestoreV2"} < operations(exported)
    assert not {"SaveV2", "RestoreV2"} & seen[0] and "Conv2D" in seen[0]


def unused_writer(library, objects, name):
    function = library.function.add()
    function.signature.name = "nobody_calls_this"
    function.node_def.add(name="a", op="WriteFile")


def named_as_an_operation(library, objects, name):
    """A function may have the name of an operation; which of the two a node means is TensorFlow's affair."""
    function = library.function.add()
    function.signature.name = "WriteFile"
    an_operation(library).op = "WriteFile"


def object_of_another_kind(library, objects, name):
    objects.nodes.add().user_object.identifier = "_tf_keras_layer"


def registered_object(library, objects, name):
    objects.nodes.add(registered_name="their.Class").user_object.identifier = "_generic_user_object"


@pytest.mark.parametrize(
    "change, found",
    [
        (unused_writer, "WriteFile"),
        (named_as_an_operation, "WriteFile"),
        (object_of_another_kind, "object _tf_keras_layer"),
        (registered_object, "object user_object"),
    ],
)
def test_all_that_a_model_holds_is_looked_at(change, found, exported, tmp_path, monkeypatch):
    folder, _ = changed(exported, tmp_path / "evil", change)
    monkeypatch.setattr(tf.saved_model, "load", lambda path: pytest.fail("it was loaded"))
    with pytest.raises(UserError, match=f"not loaded: .*{found}"):
        saved_models.load(folder)


def test_the_record_names_files_inside_only(altered):
    folder, change = altered
    for name in ("../outside", "/etc/hostname", ""):
        change(files={name: {"sha256": ""}})
        with pytest.raises(UserError, match=r"r2c_gan\.json: .*(which is not in|is not the name of a file)"):
            saved_models.load(folder)


def test_a_saved_model_of_the_first_kind_is_not_loaded(exported, tmp_path):
    """TensorFlow 1's kind, whose loading runs a part of the graph."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, (None,))
        tf.compat.v1.saved_model.simple_save(session, str(tmp_path / "old"), {"image": x}, {"restored": x * 2})
    with pytest.raises(UserError, match="another kind of SavedModel"):
        saved_models.load(with_record_of(tmp_path / "old", exported))
    (tmp_path / "old" / "saved_model.pb").write_bytes(b"\xff\xff nothing")
    with pytest.raises(UserError, match="not a SavedModel"):
        saved_models.load(with_record_of(tmp_path / "old", exported))


# --- other model files -----------------------------------------------------------------------------------------------


class Marks:
    """Pickled, it makes a file when it is read again."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def disguised(run_dir, tmp_path, write):
    """A run whose newest checkpoint is some other file, with its right checksum."""
    run = shutil.copytree(run_dir, tmp_path / "run")
    weights = checkpoints.select(run, "latest").weights
    weights.unlink()
    write(weights)
    record = weights.with_name(weights.name.replace(".weights.h5", ".json"))
    record.write_text(json.dumps({**json.loads(record.read_text()), "sha256": files.sha256(weights)}))
    return run


def test_a_pickled_checkpoint_is_refused_and_not_run(run_dir, tmp_path):
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(Marks(mark))).close()
    assert mark.exists()  # the attack works on a reader that unpickles
    mark.unlink()
    run = disguised(run_dir, tmp_path, lambda path: path.write_bytes(pickle.dumps(Marks(mark))))
    with pytest.raises(UserError, match=r"weights\.h5: does not fit this model"):
        Restorer.load(run, "latest")

    def as_object_array(path):
        with path.open("wb") as file:
            np.savez(file, weights=np.array([Marks(mark)], dtype=object))

    shutil.rmtree(run)
    run = disguised(run_dir, tmp_path, as_object_array)
    with pytest.raises(UserError, match=r"weights\.h5: does not fit this model"):
        Restorer.load(run, "latest")
    assert not mark.exists()


@pytest.fixture
def lambda_model(tmp_path):
    """A `.keras` file whose Lambda layer makes a file, and the path of that file."""
    mark = tmp_path / "mark"

    # A lambda, unlike a function with a name, is saved as its bytecode; the path must be a constant in it.
    run = eval(f"lambda x: (open({str(mark)!r}, 'w').close(), x)[1]")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(run, output_shape=(4,))])
    model.save(tmp_path / "evil.keras")
    mark.unlink(missing_ok=True)
    return tmp_path / "evil.keras", mark


def test_a_lambda_layer_is_refused_and_not_run(lambda_model, run_dir, tmp_path):
    """Keras' safe mode is on, and importing this package does not turn it off."""
    path, mark = lambda_model
    with pytest.raises(ValueError, match="safe"):
        keras.saving.load_model(path)
    with pytest.raises(UserError, match="no such folder; give a run folder, a SavedModel or the word pretrained"):
        Restorer.load(path)
    run = disguised(run_dir, tmp_path, lambda weights: shutil.copy(path, weights))
    with pytest.raises(UserError, match=r"weights\.h5: does not fit this model"):
        Restorer.load(run, "latest")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "unpacked")
    with pytest.raises(UserError, match=r"config\.json: not a run of this version"):
        Restorer.load(tmp_path / "unpacked")
    assert not mark.exists()
    keras.saving.load_model(path, safe_mode=False)(np.zeros((1, 4)))
    assert mark.exists()  # so there was something to be refused


@pytest.mark.parametrize(
    ("name", "value"),
    [("image_size", 64), ("image_size", [64]), ("image_size", ["a", 3]), ("channels", 2), ("stride", 0),
     ("stride", True), ("classes", "covid"), ("classes", []), ("files", [])],
    ids=str,
)  # fmt: skip
def test_an_edited_record_is_one_line(tmp_path, name, value):
    record = {"format": 1, "classes": ["a"], "image_size": [8, 8], "channels": 1, "stride": 2, "files": {}}
    record["format"] = saved_models.FORMAT
    (tmp_path / saved_models.RECORD).write_text(json.dumps({**record, name: value}))
    with pytest.raises(UserError, match=f"r2c_gan.json: {name} is"):
        saved_models.read_record(tmp_path)
