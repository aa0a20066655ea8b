"""Run folders that were edited or damaged: a line that names the file, never another exception."""

import json
import math

import pytest

from r2c_gan.errors import UserError
from r2c_gan.models import checkpoints
from r2c_gan.training import callbacks

MODEL = {
    "method": "operational",
    "q": 2,
    "channels": 1,
    "filters": 2,
    "num_classes": 2,
    "image_size": [16, 16],
    "pool_size": 0,
    "seed": 0,
    "upsampling": "transposed",
    "skip": "none",
    "noise_channels": 0,
    "drawn_tone": False,
    "power_init": "equal",
}
TRAINING = {"method": "operational", "epochs": 3, "ema_decay": 0.5}
RECORD = {
    "weights": "step-000000004.weights.h5",
    "epoch": 1,
    "step": 4,
    "measures": {"val_f1": 0.5, "val_auroc": None},
    "sha256": "0" * 64,
    "unfinished": {"means": {"cycle_a": [1.0, 2.0]}, "seconds": 3.5},
}
NOT_JSON = [b"", b"\xff\xfe\x00", b"{", b"[]", b"null", b"1", b'"x"', b"[" * 100_000, b"\x00" * 50]
# What stands where a value of another kind was: as text, because not all of it is JSON.
VALUES = ["null", '"x"', "[]", "{}", "NaN", "Infinity", "-1", "0.5", "1e400", "9" * 400, "[[1]]", '{"a": "b"}']


def mutations(value, place=()):
    """Texts of a JSON document in which one value is another one, or missing."""
    marker = "@@@"
    for key in value if isinstance(value, dict) else range(len(value)):
        for text in VALUES:
            copied = json.loads(json.dumps(value))
            copied[key] = marker
            yield (*place, key), text, json.dumps(copied).replace(f'"{marker}"', text)
        if isinstance(value, dict):
            yield (*place, key), "missing", json.dumps({name: other for name, other in value.items() if name != key})
        if isinstance(value[key], (dict, list)) and value[key]:
            for path, text, inner in mutations(value[key], (*place, key)):
                copied = json.loads(json.dumps(value))
                copied[key] = marker
                yield path, text, json.dumps(copied).replace(f'"{marker}"', inner)


def one_line(error, name):
    text = str(error)
    assert name in text
    assert "\n" not in text
    assert len(text) < 900


def test_every_damage_of_a_config(tmp_path):
    path = tmp_path / "config.json"
    whole = {"format": 1, "model": MODEL, "training": TRAINING, "machines": [{"from_step": 0, "processors": 2}]}
    for data in [*NOT_JSON, *(text.encode() for *_, text in mutations(whole))]:
        path.write_bytes(data)
        try:
            config = checkpoints.read_config(tmp_path)
        except UserError as error:
            one_line(error, str(path))
            continue
        # What is read can be used as what it is.
        assert 1 <= config["training"].get("epochs", 1) < math.inf
        assert 0 <= config["training"].get("ema_decay", 0) < 1
        assert all(machine.items() is not None for machine in config["machines"])


def test_a_model_of_other_values_is_refused(tmp_path, monkeypatch):
    """Before its weights are looked at."""
    monkeypatch.setattr(checkpoints, "load_weights", lambda *_: pytest.fail("a model was made"))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "epoch-00001.weights.h5").write_bytes(b"")
    record = {"weights": "epoch-00001.weights.h5", "epoch": 1, "step": 1, "measures": {}, "sha256": ""}
    (tmp_path / "checkpoints" / "epoch-00001.json").write_text(json.dumps(record))
    path = tmp_path / "config.json"
    for (key, *_), value, text in mutations(MODEL):
        if value == "missing" or (key, value) in {("drawn_tone", "true")}:
            continue
        path.write_text(f'{{"format": 1, "model": {text}, "training": {{}}}}')
        with pytest.raises(UserError) as raised:
            checkpoints.load_model(tmp_path)
        one_line(raised.value, "config.json")
    for huge in ('{"filters": 1000000000}', '{"q": 100000}', '{"pool_size": 1000000000}', '{"image_size": 200000}'):
        path.write_text(f'{{"format": 1, "model": {huge}}}')
        with pytest.raises(UserError, match=r"config\.json: describes no model of this version \(\w+ must be"):
            checkpoints.load_model(tmp_path)


@pytest.mark.filterwarnings("ignore:.*not a readable checkpoint record")
def test_every_damage_of_a_record(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / RECORD["weights"]).write_bytes(b"")
    path = folder / "step-000000004.json"
    path.write_text(json.dumps(RECORD))
    assert len(checkpoints.list_unfinished(tmp_path)) == 1
    for data in [*NOT_JSON, *(text.encode() for *_, text in mutations(RECORD))]:
        path.write_bytes(data)
        for checkpoint in checkpoints.list_unfinished(tmp_path):  # no exception
            assert checkpoint.epoch + checkpoint.step >= 0
            assert checkpoint.measures.get("val_f1") is None or checkpoint.measures["val_f1"] + 1 >= 0
            means = checkpoint.unfinished.get("means", {})
            assert all(math.isfinite(value) for values in means.values() for value in values)


def test_a_record_that_is_passed_over_is_named(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "epoch-00001.json"
    path.write_text("{")
    with pytest.warns(UserWarning, match=r"epoch-00001\.json: not a readable checkpoint record"):
        assert checkpoints.list_checkpoints(tmp_path) == []


GOOD = "epoch,step,seconds,generator_loss,val_f1\n1,3,1.5,2.0,\n2,6,1.5,1.0,0.5\n"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe\x00",
        b"\x00" * 50,
        GOOD.replace("epoch,", "epo,").encode(),
        GOOD.replace("step,", "").encode(),
        GOOD.replace("2.0", "x").encode(),
        GOOD.replace("2,6", "2,").encode(),
        GOOD.replace("2,6", "nan,6").encode(),
        GOOD.replace("2,6", "2,inf").encode(),
        GOOD.replace("2,6", "2,1e999").encode(),
        GOOD.replace("2,6", "1,6").encode(),
        GOOD.replace("1,3,1.5", "1,3,").encode(),
        GOOD.replace("1,3,1.5", "1,3,nan").encode(),
        GOOD.replace("0.5", "0.5,7,8").encode(),
        GOOD.replace("0.5", '"0.5').encode(),
        (GOOD + "3\n").encode(),
    ],
    ids=range(16),
)
def test_a_damaged_history_is_named(tmp_path, data):
    (tmp_path / "history.csv").write_bytes(data)
    with pytest.raises(UserError) as raised:
        callbacks.read_history(tmp_path)
    one_line(raised.value, "history.csv")


@pytest.mark.parametrize("text", ["epoch,step\n", GOOD])
def test_a_sound_history_is_read(tmp_path, text):
    (tmp_path / "history.csv").write_text(text)
    rows = callbacks.read_history(tmp_path)
    assert [row["epoch"] for row in rows] == ([1, 2] if text == GOOD else [])
