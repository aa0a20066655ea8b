"""The ONNX model in onnxruntime, against the network in Keras."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import programs
import pytest

from r2c_gan import __version__, files
from r2c_gan.errors import UserError
from r2c_gan.models import checkpoints
from r2c_gan.models.model import R2CGAN
from r2c_gan.models.networks import GENERATOR_STRIDE
from r2c_gan.serving import onnx_export

onnx = pytest.importorskip("onnx", reason="the packages of r2c-gan[onnx] are not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the packages of r2c-gan[onnx] are not installed")
pytest.importorskip("tf2onnx", reason="the packages of r2c-gan[onnx] are not installed")

CONFIGURATIONS = [
    ("operational", 1, 3, 6),
    ("operational", 3, 1, 6),
    ("operational", 3, 3, 17),  # operational layers of 34 channels take another form
    ("operational", 5, 3, 6),
    ("convolutional-light", 1, 3, 6),
    ("convolutional", 1, 1, 4),
]


def exported(model, path, **options):
    onnx_export.export_onnx(model, path, **options)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def random(*shape):
    return np.random.default_rng(0).uniform(-1, 1, shape).astype("float32")


@pytest.fixture(scope="module")
def small():
    return R2CGAN(filters=4, channels=1, image_size=16)


@pytest.mark.parametrize("method, q, channels, filters", CONFIGURATIONS)
def test_equal_to_keras_at_any_size(method, q, channels, filters, tmp_path):
    model = R2CGAN(method=method, q=q, channels=channels, filters=filters, image_size=16)
    # Trained weights are larger than initial ones, and scales and shifts are not 1 and 0.
    rng = np.random.default_rng(1)
    model.restorer.set_weights(
        [w * 1.5 + rng.normal(0, 0.1, w.shape).astype("float32") for w in model.restorer.get_weights()]
    )
    session = exported(model, tmp_path / "model.onnx")
    stride = GENERATOR_STRIDE[method]
    # The last size is no multiple of the stride: it comes back rounded up, as from Keras.
    for count, height, width in ((1, 16, 16), (3, 32, 20), (2, 8, 64), (1, 4 * stride + 1, 5 * stride - 1)):
        batch = random(count, height, width, channels)
        restored, probabilities = session.run(["restored", "probabilities"], {"image": batch})
        expected, expected_probabilities = model.restorer(batch)
        rounded_up = [-(-side // stride) * stride for side in (height, width)]
        assert restored.shape == (count, *rounded_up, channels)
        assert restored.dtype == probabilities.dtype == np.float32
        np.testing.assert_allclose(restored, expected, atol=1e-4)
        np.testing.assert_allclose(probabilities, expected_probabilities, atol=1e-4)


def test_equal_to_keras_on_a_trained_run(run_dir, tmp_path):
    model, _ = checkpoints.load_model(run_dir)
    batch = random(2, 32, 32, 3)
    restored, probabilities = exported(model, tmp_path / "model.onnx").run(
        ["restored", "probabilities"], {"image": batch}
    )
    np.testing.assert_allclose(restored, model.restorer(batch)[0], atol=1e-4)
    np.testing.assert_allclose(probabilities, model.restorer(batch)[1], atol=1e-4)


def test_names_and_shapes(small, tmp_path):
    session = exported(small, tmp_path / "model.onnx")
    (image,) = session.get_inputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(float)", ["N", "H", "W", 1])
    outputs = {output.name: (output.type, output.shape) for output in session.get_outputs()}
    assert outputs == {
        "restored": ("tensor(float)", ["N", "H_out", "W_out", 1]),
        "probabilities": ("tensor(float)", ["N", 2]),
    }


def test_metadata(small, tmp_path):
    source = {"run": "a name", "epoch": 3, "sha256": "ab" * 32}
    session = exported(small, tmp_path / "model.onnx", source=source)
    found = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    assert found["classes"] == ["control", "covid"]
    assert found["source"] == source
    assert (found["image_size"], found["channels"], found["stride"]) == ([16, 16], 1, 2)
    assert found["r2c_gan"] == __version__
    assert "not for diagnosis" in found["use"]
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    nodes = onnx.load(tmp_path / "model.onnx").graph.node
    assert {node.domain for node in nodes} == {""}  # standard operators alone: any runtime has them
    assert [node.op_type for node in nodes].count("InstanceNormalization") == 3  # and not their slower parts


def test_the_card_beside_it_gives_its_checksum(small, tmp_path):
    onnx_export.export_onnx(small, tmp_path / "new" / "restorer.onnx")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"restorer.onnx", "model_card.md"}
    card = (tmp_path / "new" / "model_card.md").read_text()
    assert files.sha256(tmp_path / "new" / "restorer.onnx") in card and "`restorer.onnx`" in card


def test_a_folder_will_do(small, tmp_path):
    onnx_export.export_onnx(small, tmp_path / "new")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"model.onnx", "model_card.md"}


@pytest.mark.parametrize("existing", ["model.onnx", "model_card.md"])
def test_nothing_is_overwritten(existing, small, tmp_path):
    (tmp_path / existing).write_text("mine")
    with pytest.raises(UserError, match=f"{existing}: exists already"):
        onnx_export.export_onnx(small, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_text() == "mine"


def test_a_failing_export_leaves_nothing(small, tmp_path, monkeypatch):
    def full(*_):
        raise UserError("model_card.md: cannot be written (No space left on device)")

    monkeypatch.setattr("r2c_gan.files.write_text", full)
    with pytest.raises(UserError, match="No space left"):
        onnx_export.export_onnx(small, tmp_path / "new" / "model.onnx")
    assert list((tmp_path / "new").iterdir()) == []


def test_missing_packages_are_named(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(UserError, match=r"needs tf2onnx; pip install 'r2c-gan\[onnx\]'"):
        onnx_export.export_onnx(small, tmp_path / "model.onnx")


# --- the program -----------------------------------------------------------------------------------------------------


def run_program(*arguments):
    repository = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([repository, os.environ.get("PYTHONPATH", "")])}
    command = programs.python("-m", "r2c_gan.cli.export", *arguments)
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_program_writes_onnx_with_the_figures_of_an_evaluation(run_dir, tmp_path):
    checkpoint = checkpoints.select(run_dir)
    (tmp_path / "evaluation").mkdir()
    files.write_json(
        tmp_path / "evaluation" / "result.json",
        {
            "model": {"epoch": checkpoint.epoch, "sha256": checkpoint.sha256},
            "datasets_dir": "dataset",
            "n": 4,
            "classification": {"f1": 0.625},
            "restoration": None,
        },
    )
    output = tmp_path / "new" / "restorer.onnx"
    result = run_program(
        f"--model={run_dir}", "--format=onnx", f"--output={output}", f"--evaluation={tmp_path / 'evaluation'}"
    )
    assert result.returncode == 0, result.stderr
    assert str(output) in result.stdout
    card = (tmp_path / "new" / "model_card.md").read_text()
    assert "| f1 | 0.625 |" in card and checkpoint.sha256 in card and files.sha256(output) in card
    metadata = onnxruntime.InferenceSession(output).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["source"])["sha256"] == checkpoint.sha256


def test_the_program_refuses_a_saved_model_named_onnx(run_dir, tmp_path):
    result = run_program(f"--model={run_dir}", f"--output={tmp_path / 'model.onnx'}")
    assert result.returncode == 1 and "give --format=onnx" in result.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
