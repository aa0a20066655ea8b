"""The SavedModel, loaded where this package is not."""

import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from r2c_gan import checkpoints, export
from r2c_gan.errors import UserError
from r2c_gan.restoration import Restorer

SHAPES = [(1, 32, 32, 3), (3, 48, 18, 3)]

ELSEWHERE = """
    import sys
    import numpy as np
    import tensorflow as tf

    serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
    ((), inputs) = serve.structured_input_signature
    assert list(inputs) == ["image"], inputs
    assert inputs["image"].dtype == tf.float32 and inputs["image"].shape.as_list() == [None, None, None, 3], inputs
    found = {}
    with np.load(sys.argv[2]) as batches:
        for name in batches:
            outputs = serve(image=tf.constant(batches[name]))
            assert set(outputs) == {"restored", "probabilities"}, outputs
            found.update({f"{name}_{output}": value.numpy() for output, value in outputs.items()})
    np.savez(sys.argv[3], **found)
    assert "r2c_gan" not in sys.modules
"""


@pytest.fixture(scope="module")
def model(run_dir):
    return checkpoints.load_model(run_dir)[0]


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "saved_model"
    export.export_saved_model(model, folder, source={"run": "a name", "epoch": 3})
    return folder


def batches():
    rng = np.random.default_rng(0)
    return {f"batch{index}": rng.uniform(-1, 1, shape).astype("float32") for index, shape in enumerate(SHAPES)}


def test_the_same_numbers_in_a_process_without_the_package(model, exported, tmp_path):
    np.savez(tmp_path / "in.npz", **batches())
    # -I: neither the current folder nor PYTHONPATH is searched for modules.
    program = [sys.executable, "-I", "-c", textwrap.dedent(ELSEWHERE)]
    subprocess.run([*program, exported, tmp_path / "in.npz", tmp_path / "out.npz"], cwd=tmp_path, check=True)
    found = np.load(tmp_path / "out.npz")
    assert len(found) == 2 * len(SHAPES)
    for name, batch in batches().items():
        restored, probabilities = model.restorer(batch)
        np.testing.assert_allclose(found[f"{name}_restored"], restored, atol=1e-5)
        np.testing.assert_allclose(found[f"{name}_probabilities"], probabilities, atol=1e-5)
        assert found[f"{name}_restored"].dtype == found[f"{name}_probabilities"].dtype == np.float32


def test_record_beside_the_model(exported, model):
    record = json.loads((exported / "r2c_gan.json").read_text())
    assert record["classes"] == ["control", "covid"]
    assert (record["image_size"], record["channels"], record["stride"]) == ([32, 32], 3, 2)
    assert record["source"] == {"run": "a name", "epoch": 3}
    assert "not for diagnosis" in record["use"]
    assert record["model"] == json.loads(json.dumps(model.config))


def test_the_restorer_loads_it(exported, model):
    ours, theirs = Restorer.load(exported), Restorer.of_model(model)
    assert (ours.size, ours.channels, ours.stride) == (theirs.size, theirs.channels, theirs.stride)
    assert ours.source == {"run": "a name", "epoch": 3}
    odd = np.random.default_rng(1).uniform(-1, 1, (2, 33, 21, 3))
    one, other = ours(odd, 2), theirs(odd, 2)
    for a, b in zip(one.passes + one.probabilities, other.passes + other.probabilities, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_nothing_is_overwritten(exported, model, tmp_path):
    before = {path: path.read_bytes() for path in exported.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="saved_model: exists already"):
        export.export_saved_model(model, exported)
    assert {path: path.read_bytes() for path in exported.rglob("*") if path.is_file()} == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file: exists already"):
        export.export_saved_model(model, tmp_path / "file")


def test_an_empty_folder_will_do(model, tmp_path):
    (tmp_path / "empty").mkdir()
    export.export_saved_model(model, tmp_path / "empty")
    assert (tmp_path / "empty" / "saved_model.pb").is_file()
    assert (tmp_path / "empty").stat().st_mode & 0o055 == 0o055  # readable by the server that it is meant for


def test_a_failing_export_leaves_nothing(model, tmp_path, monkeypatch):
    def full(path, value):
        raise UserError(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr("r2c_gan.files.write_json", full)
    with pytest.raises(UserError, match="No space left"):
        export.export_saved_model(model, tmp_path / "new" / "saved_model")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file/saved_model: cannot be written"):
        export.export_saved_model(model, tmp_path / "file" / "saved_model")
