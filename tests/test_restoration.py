"""The restorer: passes, odd sizes, files; with networks whose answer is known."""

import csv
import json
import shutil

import numpy as np
import pytest

from r2c_gan import checkpoints, images
from r2c_gan.errors import UserError
from r2c_gan.restoration import Restorer, prediction_row, restore_files


def random(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype("float32")


class Halving:
    """A network that halves the image, and says how bright it was; it remembers the shapes it was given."""

    def __init__(self):
        self.shapes = []

    def __call__(self, batch):
        self.shapes.append(batch.shape)
        covid = (batch.mean((1, 2, 3)) + 1) / 2
        return batch / 2, np.stack([1 - covid, covid], axis=-1).astype("float32")


def restorer(network=None, size=(8, 8), channels=1, stride=4):
    return Restorer(network or Halving(), size, channels, stride)


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_each_pass_restores_the_one_before(iterations):
    batch = random(3, 8, 8, 1)
    result = restorer()(batch, iterations)
    assert len(result.passes) == len(result.probabilities) == iterations
    for number in range(iterations):
        np.testing.assert_allclose(result.passes[number], batch / 2 ** (number + 1), rtol=1e-6)
        fed = batch / 2**number
        np.testing.assert_allclose(result.probabilities[number][:, 1], (fed.mean((1, 2, 3)) + 1) / 2, rtol=1e-5)


@pytest.mark.parametrize("size", [(8, 12), (5, 7), (1, 4), (9, 8), (3, 1)])
def test_any_size_comes_back_and_the_network_sees_multiples_of_the_stride(size):
    network, batch = Halving(), random(2, *size, 1)
    result = restorer(network)(batch, 2)
    for restored in result.passes:
        assert restored.shape == batch.shape
    np.testing.assert_allclose(result.passes[0], batch / 2)
    padded = tuple(-(-side // 4) * 4 for side in size)
    assert network.shapes == [(2, *padded, 1)] * 2


def test_padding_mirrors():
    seen = []

    def network(batch):
        seen.append(batch)
        return batch, np.ones((1, 2))

    restorer(network)(random(1, 6, 5, 1))
    mirrored = np.pad(random(1, 6, 5, 1), [(0, 0), (0, 2), (0, 3), (0, 0)], mode="symmetric")
    np.testing.assert_array_equal(seen[0], mirrored)


def test_bad_batches_and_iterations():
    for shape in ((8, 8, 1), (1, 8, 8, 3)):
        with pytest.raises(ValueError, match=r"a batch \[N, H, W, 1\] is needed"):
            restorer()(np.zeros(shape))
    with pytest.raises(ValueError, match="iterations must be at least 1"):
        restorer()(np.zeros((1, 8, 8, 1)), 0)


def test_one_image_is_restored_at_the_models_size_and_comes_back_at_its_own():
    network = Halving()
    image = np.full((30, 21, 1), 0.8, "float32")
    restored, probabilities = restorer(network, size=(16, 8)).restore_image(image, iterations=2)
    assert network.shapes == [(1, 16, 8, 1)] * 3  # two passes, and the head on what came out
    assert restored.shape == image.shape
    np.testing.assert_allclose(restored, 0.2, atol=1e-6)
    np.testing.assert_allclose(probabilities, [0.1, 0.9], atol=1e-6)  # of the image itself, not of the first pass


def test_restored_values_stay_in_range():
    loud = restorer(lambda batch: (batch * 9, np.ones((1, 2))))
    restored, _ = loud.restore_image(random(20, 20, 1))
    assert np.abs(restored).max() == 1


def test_prediction_row():
    assert prediction_row("a/b.png", [0.25, 0.75]) == {
        "file": "a/b.png",
        "p_control": "0.250000",
        "p_covid": "0.750000",
        "label": "covid",
    }
    assert prediction_row("b.png", [0.6, 0.4])["label"] == "control"


def test_files_are_restored_into_a_folder(tmp_path):
    levels = {"bright.png": 0.6, "sub/dark.jpg": -0.4}
    sources = []
    for name, level in levels.items():
        path = (tmp_path / "input" / name).with_suffix(".png")
        images.write_image(path, np.full((10, 14, 1), level))
        sources.append((path, name))
    wrapped = []
    rows = restore_files(restorer(), sources, tmp_path / "output", 1, lambda items: wrapped.append(len(items)) or items)
    assert wrapped == [2]
    for name, level in levels.items():
        restored = images.read_image((tmp_path / "output" / name).with_suffix(".png"))
        assert restored.shape == (10, 14, 1)
        np.testing.assert_allclose(restored, level / 2, atol=1 / 127)
    with (tmp_path / "output" / "predictions.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert written == rows
    assert list(written[0]) == ["file", "p_control", "p_covid", "label"]
    assert [(row["file"], row["label"]) for row in rows] == [("bright.png", "covid"), ("sub/dark.jpg", "control")]
    assert float(rows[0]["p_covid"]) == pytest.approx(0.8, abs=0.005)


def test_a_broken_file_is_named_and_no_predictions_are_written(tmp_path):
    images.write_image(tmp_path / "a.png", np.zeros((8, 8)))
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(images.ImageError, match=r"b\.png"):
        restore_files(restorer(), [(tmp_path / "a.png", "a.png"), (tmp_path / "b.png", "b.png")], tmp_path / "output")
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["a.png"]


# --- loading ---------------------------------------------------------------------------------------------------------


def test_a_run_is_loaded(run_dir):
    model, checkpoint = checkpoints.load_model(run_dir, "latest")
    loaded = Restorer.load(run_dir, "latest")
    assert (loaded.size, loaded.channels, loaded.stride) == ((32, 32), 3, 2)
    assert loaded.source == {"run": "whole", "epoch": 3, "sha256": checkpoint.sha256}
    batch = random(2, 32, 32, 3)
    restored, probabilities = model.restorer(batch)
    result = loaded(batch, 2)
    np.testing.assert_allclose(result.passes[0], restored, atol=1e-6)
    np.testing.assert_allclose(result.probabilities[0], probabilities, atol=1e-6)
    np.testing.assert_allclose(result.passes[1], model.restorer(restored)[0], atol=1e-5)


def test_an_epoch_can_be_chosen(run_dir):
    batch = random(1, 32, 32, 3)
    second, third = (Restorer.load(run_dir, epoch) for epoch in ("2", "3"))
    assert (second.source["epoch"], third.source["epoch"]) == (2, 3)
    assert not np.array_equal(second(batch).passes[0], third(batch).passes[0])


def test_what_cannot_be_loaded_is_named(tmp_path, run_dir):
    with pytest.raises(UserError, match="nowhere: no such folder; give a run folder or a SavedModel"):
        Restorer.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="not a run folder"):
        Restorer.load(tmp_path)
    with pytest.raises(UserError, match="no checkpoint '99'"):
        Restorer.load(run_dir, "99")
    run = shutil.copytree(run_dir, tmp_path / "run")
    (run / "config.json").write_text(json.dumps({"format": 1, "training": {}, "model": {"method": "cubic"}}))
    with pytest.raises(UserError, match=r"config\.json: describes no model.*cubic"):
        Restorer.load(run)


def test_saved_models_that_are_not_ours_are_named(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"r2c_gan\.json: no such file"):
        Restorer.load(tmp_path)
    (tmp_path / "r2c_gan.json").write_text(json.dumps({"image_size": [8, 8], "channels": 1, "stride": 2}))
    with pytest.raises(UserError, match="not a SavedModel of r2c-gan-export"):
        Restorer.load(tmp_path)
