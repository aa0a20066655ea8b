"""The SavedModel, loaded where this package is not."""

import io
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2c_gan.data import images, plausibility
from r2c_gan.errors import UserError
from r2c_gan.models import checkpoints
from r2c_gan.models.model import R2CGAN
from r2c_gan.models.networks import METHODS
from r2c_gan.restoration import saved_models
from r2c_gan.restoration.restorer import Restorer
from r2c_gan.serving import export

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


ENCODED_ELSEWHERE = """
    import sys
    import numpy as np
    import tensorflow as tf

    signatures = tf.saved_model.load(sys.argv[1]).signatures
    assert set(signatures) == {"serving_default", "serve_encoded", "serve_rest"}, signatures
    serve = signatures["serve_encoded"]
    ((), inputs) = serve.structured_input_signature
    assert list(inputs) == ["encoded"], inputs
    assert inputs["encoded"].dtype == tf.string and inputs["encoded"].shape.as_list() == [None], inputs
    outputs = serve(encoded=tf.constant([open(path, "rb").read() for path in sys.argv[3:]]))
    assert set(outputs) == {"restored_png", "probabilities", "label"}, outputs
    restored = [tf.io.decode_png(png).numpy() for png in outputs["restored_png"].numpy()]
    labels = [label.decode() for label in outputs["label"].numpy()]
    np.savez(sys.argv[2], restored=restored, probabilities=outputs["probabilities"], labels=labels)
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


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory):
    """Three files: gray PNG, 16-bit PNG, colour JPEG; none of the model's size."""
    folder = tmp_path_factory.mktemp("radiographs")
    rng = np.random.default_rng(3)
    images.write_image(folder / "gray.png", rng.uniform(-1, 1, (45, 70, 1)))
    images.write_image(folder / "deep.png", rng.uniform(-1, 1, (20, 33, 1)), bits=16)
    smooth = np.stack([*np.meshgrid(np.arange(90), np.arange(80)), np.full((80, 90), 99)], -1).astype(np.uint8)
    Image.fromarray(smooth).save(folder / "colour.jpg")
    return sorted(folder.iterdir())


def expected_of_encoded(model, radiographs):
    """What the library's own reader and network make of the files: (levels, probabilities)."""
    height, width = model.config["image_size"]
    batch = np.stack([images.resize(images.read_image(file, 3), height, width) for file in radiographs])
    restored, probabilities = model.restorer(batch)
    return images.to_uint(restored), np.asarray(probabilities)


def test_encoded_images_in_a_process_without_the_package(model, exported, radiographs, tmp_path):
    program = [sys.executable, "-I", "-c", textwrap.dedent(ENCODED_ELSEWHERE)]
    subprocess.run([*program, exported, tmp_path / "out.npz", *radiographs], cwd=tmp_path, check=True)
    found = np.load(tmp_path / "out.npz")
    levels, probabilities = expected_of_encoded(model, radiographs)
    assert found["restored"].shape == levels.shape and found["restored"].dtype == np.uint8
    # A value between two levels may be rounded either way.
    difference = np.abs(found["restored"].astype(int) - levels.astype(int))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01
    np.testing.assert_allclose(found["probabilities"], probabilities, atol=1e-4)
    assert found["labels"].tolist() == [("control", "covid")[index] for index in probabilities.argmax(-1)]


def test_labels_follow_the_probabilities(tmp_path):
    """Both names come out of the graph."""
    import tensorflow as tf

    gray = io.BytesIO()
    Image.new("L", (20, 20), 90).save(gray, "PNG")
    model = R2CGAN(method="convolutional-light", filters=3, channels=1, image_size=16)
    kernel, bias = model.restorer.get_layer("probabilities").get_weights()
    for shift, label in ((50.0, b"control"), (-50.0, b"covid")):
        model.restorer.get_layer("probabilities").set_weights([kernel * 0, bias + np.array([shift, 0])])
        export.export_saved_model(model, tmp_path / label.decode())
        loaded = tf.saved_model.load(str(tmp_path / label.decode()))
        for name in ("serve_encoded", "serve_rest"):
            outputs = loaded.signatures[name](encoded=tf.constant([gray.getvalue()] * 2))
            assert outputs["label"].numpy().tolist() == [label, label]
        assert set(outputs) == {"restored_png_bytes", "probabilities", "label"}


def test_the_films_go_along(model, tmp_path):
    """And are among the files whose checksums are looked at."""
    rng = np.random.default_rng(0)
    films = [plausibility.describe_film(rng.uniform(-1, 1, (16, 16, 1)), number) for number in range(60)]
    films = plausibility.fit(films)
    export.export_saved_model(model, tmp_path / "exported", films=films)
    assert Restorer.load(tmp_path / "exported").films.arrays.keys() == films.arrays.keys()
    (tmp_path / "exported" / "plausibility.npz").write_bytes(b"other")
    with pytest.raises(UserError, match=r"plausibility\.npz: damaged"):
        Restorer.load(tmp_path / "exported")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1.01", "-1.01", "255"])
def test_values_that_no_image_has_are_refused(exported, value):
    """As `tf.constant(uint8 levels, tf.float32)` has them."""
    import tensorflow as tf

    serve = tf.saved_model.load(str(exported)).signatures["serving_default"]
    image = np.zeros((2, 4, 4, 3), "float32")
    serve(image=tf.constant(image - 1.0005))
    image[1, 2, 3, 0] = float(value)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"image: values from .* finite ones in -1..1 are needed"):
        serve(image=tf.constant(image))


@pytest.mark.parametrize("size", [(33, 32), (32, 31), (1, 1)])
def test_sizes_that_the_stride_does_not_divide_are_refused(exported, size):
    import tensorflow as tf

    serve = tf.saved_model.load(str(exported)).signatures["serving_default"]
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"{size[0]} x {size[1]} pixels; .* multiples of 2"):
        serve(image=tf.zeros((1, *size, 3)))


def saved_model_cli(*arguments):
    """TensorFlow's own program, in a process that cannot find this package."""
    program = Path(sys.executable).with_name("saved_model_cli")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run([program, *map(str, arguments)], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_saved_model_cli_shows_and_runs_it(model, exported, tmp_path):
    shown = saved_model_cli("show", "--dir", exported, "--tag_set", "serve", "--signature_def", "serve_encoded")
    for part in ("inputs['encoded']", "DT_STRING", "outputs['restored_png']", "outputs['label']", "(-1, 2)"):
        assert part in shown
    batch = np.random.default_rng(0).uniform(-1, 1, (2, 16, 20, 3)).astype("float32")
    np.save(tmp_path / "batch.npy", batch)
    saved_model_cli(
        *("run", "--dir", exported, "--tag_set", "serve", "--signature_def", "serving_default"),
        *("--inputs", f"image={tmp_path / 'batch.npy'}", "--outdir", tmp_path),
    )
    restored, probabilities = model.restorer(batch)
    np.testing.assert_allclose(np.load(tmp_path / "restored.npy"), restored, atol=1e-5)
    np.testing.assert_allclose(np.load(tmp_path / "probabilities.npy"), probabilities, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_exported_and_loaded_again(method, tmp_path):
    """Wide enough that the operational layers take the form of the paper's width."""
    model = R2CGAN(method=method, q=3, channels=1, filters=17, image_size=16)
    export.export_saved_model(model, tmp_path / "exported")
    loaded, record = saved_models.load(tmp_path / "exported")
    assert record["model"]["method"] == method
    batch = np.random.default_rng(0).uniform(-1, 1, (2, 16, 24, 1)).astype("float32")
    restored, probabilities = model.restorer(batch)
    found = loaded.signatures["serving_default"](image=batch)
    np.testing.assert_allclose(found["restored"], restored, atol=1e-4)
    np.testing.assert_allclose(found["probabilities"], probabilities, atol=1e-4)


def test_record_beside_the_model(exported, model):
    record = json.loads((exported / "r2c_gan.json").read_text())
    assert record["classes"] == ["control", "covid"]
    assert (record["image_size"], record["channels"], record["stride"]) == ([32, 32], 3, 2)
    assert record["source"] == {"run": "a name", "epoch": 3}
    assert "not for diagnosis" in record["use"]
    assert record["model"] == json.loads(json.dumps(model.config))
    assert record["format"] == saved_models.FORMAT
    assert set(record["files"]) >= {"saved_model.pb", "variables/variables.index"}


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
