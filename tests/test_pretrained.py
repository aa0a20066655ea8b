"""Weights that come with the package: half precision, checksum, and never without a word about them."""

import keras
import numpy as np
import pytest

from experiments.evidence import pack_weights
from r2c_gan import files
from r2c_gan.errors import UserError
from r2c_gan.models import checkpoints, pretrained
from r2c_gan.models.model import R2CGAN
from r2c_gan.restoration.restorer import Restorer

DATA = "Trained on noise, for a test."


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(3)
    network = R2CGAN(q=3, filters=4, channels=1, image_size=16, pool_size=0, skip="tone_curve", upsampling="resize")
    rng = np.random.default_rng(0)
    network.restorer.set_weights([w + rng.normal(0, 0.2, w.shape) for w in network.restorer.get_weights()])
    return network


@pytest.fixture
def folder(model, tmp_path, monkeypatch):
    pack_weights.save(model, tmp_path, {"run": "test", "epoch": 7}, DATA)
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    return tmp_path


def test_what_is_loaded_is_what_was_saved_in_half_precision(folder, model):
    restorer = Restorer.load("pretrained")
    for ours, theirs in zip(pretrained.load()[0].restorer.get_weights(), model.restorer.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs.astype(np.float16).astype(np.float32))
    batch = np.random.default_rng(1).uniform(-1, 1, (3, 16, 16, 1)).astype("float32")
    restored, probabilities = model.restorer(batch)
    result = restorer(batch)
    np.testing.assert_allclose(result.passes[0], restored, atol=0.01)
    np.testing.assert_allclose(result.probabilities[0], probabilities, atol=0.01)
    assert restorer.source == {"run": "test", "epoch": 7, "pretrained": restorer.source["pretrained"],
                               "sha256": files.sha256(folder / "restorer.npz")}  # fmt: skip


def test_it_is_never_silent(folder, caplog):
    pretrained.load()
    (message,) = [record.getMessage() for record in caplog.records]
    assert "research only, not for diagnosis" in message and DATA in message and "model_card.md" in message
    card = (folder / "model_card.md").read_text()
    assert DATA in card and "Out of scope" in card and files.sha256(folder / "restorer.npz") in card


def test_altered_weights_are_refused(folder):
    weights = folder / "restorer.npz"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="npz: altered"):
        pretrained.load()


def test_another_format_is_refused(folder):
    record = files.read_json(folder / "pretrained.json")
    files.write_json(folder / "pretrained.json", {**record, "format": 99})
    with pytest.raises(UserError, match="of format 99; this version reads format 1"):
        pretrained.load()


def test_an_installation_without_weights_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    with pytest.raises(UserError, match="holds no weights; give a run folder"):
        Restorer.load("pretrained")


def test_the_shipped_weights_know_their_films():
    films = Restorer.load("pretrained").films
    assert films.score(np.random.default_rng(0).uniform(-1, 1, (64, 64, 1))) > 1


def test_what_cannot_be_shipped_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr(pack_weights, "LARGEST", 100)
    with pytest.raises(UserError, match="at most 100 are shipped"):
        pack_weights.save(model, tmp_path, {}, DATA)
    assert not (tmp_path / "restorer.npz").exists()
    other = R2CGAN(q=1, filters=4, channels=1, image_size=16, pool_size=0)
    weights = other.restorer.get_weights()
    weights[0] = weights[0] + 1e5
    other.restorer.set_weights(weights)
    with pytest.raises(UserError, match="too large for float16"):
        pack_weights.save(other, tmp_path, {}, DATA)


def test_the_shipped_weights_restore_chests_that_they_never_saw(tmp_path):
    """Trained on radiographs, they improve phantoms too."""
    from data_prep.phantoms import PhantomSet, write_dataset
    from r2c_gan.data.datasets import read_domain
    from r2c_gan.evaluation.evaluation import Evaluation

    restorer = Restorer.load("pretrained")
    assert (pretrained.FOLDER / pretrained.WEIGHTS).stat().st_size <= pack_weights.LARGEST
    write_dataset(tmp_path, PhantomSet(size=64, train=4, test=24, severity="moderate", masks=False))
    found = Evaluation(restorer, read_domain(tmp_path / "testA"), tmp_path / "testA_reference", 1).restoration()
    assert found["psnr_restored"]["mean"] > found["psnr_input"]["mean"]
    assert found["ssim_restored"]["mean"] > found["ssim_input"]["mean"] + 0.03


def test_a_run_is_packed_with_its_card_and_none_of_its_folders(run_dir, tmp_path, monkeypatch):
    pack_weights.pack(run_dir, tmp_path, DATA)
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    model, source = pretrained.load()
    expected, found = checkpoints.load_model(run_dir, "latest")
    for ours, theirs in zip(model.restorer.get_weights(), expected.restorer.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs.astype(np.float16).astype(np.float32))
    assert (source["run"], source["epoch"], source["checkpoint_sha256"]) == (run_dir.name, 3, found.sha256)
    text = (tmp_path / "model_card.md").read_text() + (tmp_path / "pretrained.json").read_text()
    assert DATA in text and "`--lr`" in text and str(run_dir.parent) not in text
    with pytest.raises(UserError, match="--data: must say what the weights were trained on"):
        pack_weights.pack(run_dir, tmp_path, " ")
