"""Tiny trainings: what they leave behind, exact resuming, and how they fail."""

import csv
import dataclasses
import json
import math
import os
import shutil
import subprocess
import textwrap
from pathlib import Path

import h5py
import numpy as np
import programs
import pytest
import tensorflow as tf
from conftest import tiny_config, write_dataset

from r2c_gan.data import images
from r2c_gan.data.datasets import read_domain
from r2c_gan.data.images import ImageError
from r2c_gan.errors import UserError
from r2c_gan.evaluation import figures
from r2c_gan.evaluation.evaluation import Evaluation
from r2c_gan.models import checkpoints
from r2c_gan.models.model import METRICS, NETWORKS, R2CGAN
from r2c_gan.restoration.restorer import Restorer
from r2c_gan.training import callbacks
from r2c_gan.training.trainer import TrainingConfig, train

STEPS_PER_EPOCH = 3
DRAWN = {"drawn_tone": True, "skip": "tone_curve", "noise_channels": 2}


def arrays_of(weights):
    """Every array of a weights file: four networks, two optimizers, two pools."""
    found = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(weights) as file:
        file.visititems(visit)
    return found


def assert_same_weights(one, other):
    one, other = arrays_of(one), arrays_of(other)
    assert one.keys() == other.keys()
    assert len(one) > 100
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def history(run):
    """The rows without the time they took, which is the one thing that no seed decides."""
    with (run / "history.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def weights_file(run, epoch):
    return run / "checkpoints" / f"epoch-{epoch:05d}.weights.h5"


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def copied_run(run_dir, tmp_path):
    return Path(shutil.copytree(run_dir, tmp_path / "run"))


# --- the run folder --------------------------------------------------------------------------------------------------


def test_a_training_leaves_the_run_folder(run_dir):
    assert {path.name for path in run_dir.iterdir()} == {
        ".lock",
        "config.json",
        "data.json",
        "result.json",
        "history.csv",
        "losses.png",
        "events",
        "samples",
        "checkpoints",
    }
    # Every four steps, and after the first epoch, which has three.
    samples = ["step-0000003.png", "step-0000004.png", "step-0000008.png"]
    assert sorted(path.name for path in (run_dir / "samples").iterdir()) == samples
    for picture in [run_dir / "losses.png", *(run_dir / "samples").iterdir()]:
        assert images.read_image(picture).std() > 0.05  # something is drawn


@pytest.mark.slow
def test_a_run_tells_what_is_unlike_its_films(tmp_path):
    """Of few films, as in the other tests, it cannot."""
    dataset = write_dataset(tmp_path / "films", training=(30, 30), test=2)
    train(tiny_config(dataset, tmp_path / "run", batch_size=30, epochs=1, q=1))
    smooth = np.tile(np.linspace(-1, 1, 40)[:, None, None], (1, 48, 3))
    films = Restorer.load(tmp_path / "run").films
    assert films.score(smooth) > 1 > films.score(images.read_image(dataset / "trainB" / "normal-0.png", 3))


def test_newest_checkpoints_and_the_best_are_kept(run_dir):
    measured = {int(row["epoch"]): float(row["val_f1"]) for row in history(run_dir)}
    best = max(measured, key=lambda epoch: (measured[epoch], -epoch))
    kept = checkpoints.list_checkpoints(run_dir)
    assert {checkpoint.epoch for checkpoint in kept} == {2, 3, best}
    for checkpoint in kept:
        assert checkpoint.step == STEPS_PER_EPOCH * checkpoint.epoch
        assert checkpoint.measures["val_f1"] == measured[checkpoint.epoch]


def test_history_has_every_loss_and_the_learning_rate(run_dir):
    rows = history(run_dir)
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "3"), ("2", "6"), ("3", "9")]
    for row in rows:
        assert all(math.isfinite(float(row[name])) for name in METRICS)
        assert 0 <= float(row["accuracy"]) <= 1
        assert float(row["val_psnr_restored"]) > 0
        assert float(row["val_psnr_input"]) == float(rows[0]["val_psnr_input"])
    # The rate of each epoch's last step: steps 2, 5 and 8 of a decay from step 3 to step 9.
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([1e-3, 1e-3 * 4 / 6, 1e-3 / 6], rel=1e-5)


def test_events_hold_the_history(run_dir):
    (path,) = (run_dir / "events").iterdir()
    logged = {}
    for record in tf.data.TFRecordDataset(str(path)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            logged[event.step, value.tag] = float(tf.make_ndarray(value.tensor))
    for row in history(run_dir):
        for name in ("generator_loss", "cycle_a", "learning_rate", "val_f1"):
            assert logged[int(row["step"]), name] == pytest.approx(float(row[name]), rel=1e-5)


def test_all_that_is_measured_is_drawn(run_dir):
    """Of what a training writes, not of what a test supposes."""
    rows = callbacks.read_history(run_dir)
    panels = figures._loss_panels({name: np.array([row[name] for row in rows]) for name in rows[0]})
    assert panels["PSNR (dB)"] == ["val_psnr_input", "val_psnr_restored"]
    assert panels["SSIM"] == ["val_ssim_input", "val_ssim_restored"]
    drawn = [name for names in panels.values() for name in names]
    assert sorted(drawn) == sorted(set(rows[0]) - {"epoch", "step", "seconds"})


def test_result_sums_up(run_dir):
    result = json.loads((run_dir / "result.json").read_text())
    rows = history(run_dir)
    assert (result["epochs"], result["steps"], result["steps_per_epoch"]) == (3, 9, STEPS_PER_EPOCH)
    assert result["images"] == {"trainA": 6, "trainB": 4, "valA": 4}
    model, _ = checkpoints.load_model(run_dir)
    assert result["parameters"]["restorer"] == sum(int(np.prod(w.shape)) for w in model.restorer.weights)
    assert result["last"]["generator_loss"] == float(rows[-1]["generator_loss"])
    assert result["best_epoch"] in (1, 2, 3)


def test_config_rebuilds_the_training(run_dir, datasets_dir):
    config = checkpoints.read_config(run_dir)
    assert TrainingConfig(**config["training"]) == tiny_config(datasets_dir, run_dir)


def test_an_epoch_reaches_every_network_optimizer_and_pool(run_dir):
    first, last = arrays_of(weights_file(run_dir, 2)), arrays_of(weights_file(run_dir, 3))
    moved = {name for name, array in first.items() if not np.array_equal(array, last[name])}
    networks = ("layers/functional", "degrader", "discriminator_a", "discriminator_b")  # Keras' name of the restorer
    optimizers = ("generator_optimizer", "discriminator_optimizer")
    for part in (*networks, *optimizers, "layers/image_pool", "layers/image_pool_1"):
        assert any(name.startswith(f"{part}/") for name in moved), part


# --- resuming --------------------------------------------------------------------------------------------------------

KILLED_AT_STEP_8 = """
    import os, signal, sys

    sys.path.insert(0, sys.argv[3])
    from conftest import tiny_config
    from r2c_gan.training import callbacks, trainer as training

    watch = callbacks.TerminateOnNaN.on_train_batch_end

    def killed(self, batch, logs=None):
        watch(self, batch, logs)
        if int(self.model.generator_optimizer.iterations) == 8:
            os.kill(os.getpid(), signal.SIGKILL)

    callbacks.TerminateOnNaN.on_train_batch_end = killed
    training.train(tiny_config(sys.argv[1], sys.argv[2]))
"""


def test_killed_damaged_and_resumed_equals_uninterrupted(run_dir, datasets_dir, tmp_path, caplog):
    """Killed in the middle of epoch 3, in another process; the newest checkpoint damaged; resumed in this process."""
    run, tests = tmp_path / "run", Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), os.environ.get("PYTHONPATH", "")])}
    program = programs.python("-c", textwrap.dedent(KILLED_AT_STEP_8), datasets_dir, run, tests)
    killed = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert [checkpoint.epoch for checkpoint in checkpoints.list_checkpoints(run)] == [1, 2]
    assert not (run / "result.json").exists()
    assert_same_weights(weights_file(run, 2), weights_file(run_dir, 2))  # two processes, one result
    with weights_file(run, 2).open("r+b") as file:
        file.truncate(5000)
    train(tiny_config(datasets_dir, run))
    assert "epoch-00002.weights.h5: damaged" in caplog.text
    for epoch in (2, 3):
        assert_same_weights(weights_file(run, epoch), weights_file(run_dir, epoch))
    assert history(run) == history(run_dir)
    for step in (3, 4, 8):
        name = f"samples/step-{step:07d}.png"
        assert (run / name).read_bytes() == (run_dir / name).read_bytes()


def test_no_sound_checkpoint_is_an_error(copied_run, datasets_dir):
    for checkpoint in checkpoints.list_checkpoints(copied_run):
        checkpoint.weights.write_bytes(b"damaged")
    before = snapshot(copied_run)
    with pytest.raises(UserError, match="no checkpoint is sound"):
        train(tiny_config(datasets_dir, copied_run))
    assert snapshot(copied_run) == before


def test_a_finished_run_is_left_alone(copied_run, datasets_dir, monkeypatch):
    monkeypatch.setattr("r2c_gan.models.model.R2CGAN.fit", lambda *_, **__: pytest.fail("trained again"))
    before = snapshot(copied_run)
    result = train(tiny_config(datasets_dir, copied_run))
    assert result["epochs"] == 3
    after = snapshot(copied_run)
    assert {path for path in after if after[path] != before.get(path)} <= {
        copied_run / "result.json",
        copied_run / "config.json",
    }


@pytest.mark.parametrize("name", ["trainB/covid-1.png", "valA_reference/covid-1.png"])
def test_a_run_does_not_go_on_with_another_image(run_dir, datasets_dir, tmp_path, name):
    datasets = Path(shutil.copytree(datasets_dir, tmp_path / "datasets"))
    images.write_image(datasets / name, np.zeros((40, 48, 1)))
    before = snapshot(run_dir)
    with pytest.raises(UserError, match=rf"whole: was trained on other images: {name} has other contents"):
        train(tiny_config(datasets, run_dir, epochs=4), begin=lambda: pytest.fail("began"))
    assert snapshot(run_dir) == before


def test_a_run_of_before_goes_on_elsewhere_and_then_knows_its_images(copied_run, datasets_dir, tmp_path, caplog):
    """On more processors, as far as the record knows; with its images in another folder."""
    (copied_run / "data.json").unlink()
    config = json.loads((copied_run / "config.json").read_text())
    (machine,) = config["machines"]
    assert machine["processors"] == len(os.sched_getaffinity(0))
    (copied_run / "config.json").write_text(
        json.dumps({**config, "machines": [{**machine, "processors": machine["processors"] + 1}]})
    )
    datasets = Path(shutil.copytree(datasets_dir, tmp_path / "datasets"))
    train(tiny_config(datasets, copied_run))
    assert "has no data.json" in caplog.text
    assert f"processors {machine['processors'] + 1} -> {machine['processors']}" in caplog.text
    assert len(json.loads((copied_run / "data.json").read_text())["domains"]) == 4
    machines = checkpoints.read_config(copied_run)["machines"]
    assert [one["from_step"] for one in machines] == [0, 9]


@pytest.mark.parametrize(
    "change",
    [
        {"method": "convolutional"},
        {"q": 3},
        {"filters": 8},
        {"load_size": 40},
        {"batch_size": 1},
        {"epoch_decay": 2},
        {"lr": 2e-3},
        {"beta_1": 0.9},
        {"cycle_loss_weight": 1.0},
        {"class_loss_weight": 1.0},
        {"pool_size": 0},
        {"seed": 1},
        {"precision": "mixed_bfloat16"},
        {"ema_decay": 0.5},
        {"initial_run": "elsewhere"},
        {"class_weights": "balanced"},
        {"deterministic": False},
        {"limit_train_images": 4},
    ],
    ids=str,
)
def test_another_flag_is_refused(run_dir, datasets_dir, change):
    ((name, value),) = change.items()
    before = snapshot(run_dir)
    was = getattr(tiny_config(datasets_dir, run_dir), name)
    with pytest.raises(UserError, match=f"holds a run with --{name}={was}; it cannot go on with --{name}={value}"):
        train(tiny_config(datasets_dir, run_dir, **change), begin=lambda: pytest.fail("began"))
    assert snapshot(run_dir) == before


# --- starting from another run ----------------------------------------------------------------------------------------


def networks_of(run, which="latest"):
    model, _ = checkpoints.load_model(run, which)
    return {name: getattr(model, name).get_weights() for name in NETWORKS}


@pytest.mark.slow
def test_a_training_starts_from_the_networks_of_another_run_and_then_needs_it_no_more(datasets_dir, tmp_path):
    """With a rate of 0 they stay what they were, the restorer its averages; images and draw are others."""
    first, config = (
        tmp_path / "first",
        tiny_config(datasets_dir, tmp_path / "run", load_size=16, crop_size=16, epochs=1),
    )
    train(dataclasses.replace(config, output_dir=str(first), load_size=20, crop_size=20, ema_decay=0.5))
    config = dataclasses.replace(config, initial_run=str(first), lr=0.0, power_init="maclaurin")
    train(config)
    before, after = networks_of(first), networks_of(tmp_path / "run")
    for name in NETWORKS:
        for one, other in zip(before[name], after[name], strict=True):
            np.testing.assert_array_equal(one, other)
    shutil.rmtree(first)
    assert train(dataclasses.replace(config, epochs=2))["epochs"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": 3}, r"--initial_run=.*: its networks are of --q=2, not 3; give the same flag, or another run"),
        ({"skip": "tone_curve"}, r"--initial_run=.*: its networks are of --skip=none, not tone_curve"),
        ({"initial_run": "nowhere"}, r"nowhere: not a run folder"),
    ],
    ids=str,
)
def test_a_run_of_another_form_is_no_start(run_dir, datasets_dir, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        train(tiny_config(datasets_dir, tmp_path / "run", **{"initial_run": str(run_dir), **change}))
    assert not list((tmp_path / "run").glob("*.json"))


def test_a_run_does_not_shrink(run_dir, datasets_dir):
    with pytest.raises(UserError, match=r"--epochs=3; it can grow, not shrink to 2"):
        train(tiny_config(datasets_dir, run_dir, epochs=2))


def test_imported_weights_are_not_trained_over(tmp_path, datasets_dir):
    checkpoints.write_config(tmp_path, {"method": "operational"}, {"imported_from": "checkpoint"})
    with pytest.raises(UserError, match="holds imported weights"):
        train(tiny_config(datasets_dir, tmp_path))


def test_a_dataset_of_another_size_is_refused(copied_run, tmp_path):
    other = write_dataset(tmp_path / "datasets", training=(8, 4))
    with pytest.raises(UserError, match=r"was trained on other images"):
        train(tiny_config(other, copied_run))
    (copied_run / "data.json").unlink()
    with pytest.raises(UserError, match=r"3 steps an epoch.*now give 4"):
        train(tiny_config(other, copied_run))


@pytest.mark.slow
def test_another_seed_is_another_training_and_a_run_can_grow(run_dir, datasets_dir, tmp_path):
    began = []
    config = tiny_config(datasets_dir, tmp_path / "run", epochs=1, seed=1)
    train(config, begin=lambda: began.append((tmp_path / "run" / "config.json").exists()))
    assert began == [False]
    (first,), (other, *_) = history(tmp_path / "run"), history(run_dir)
    assert all(other[name] != first[name] for name in ("generator_loss", "cycle_a", "class_b2b", "discriminator_loss"))
    assert train(dataclasses.replace(config, epochs=2))["epochs"] == 2
    assert [row["epoch"] for row in history(tmp_path / "run")] == ["1", "2"]
    assert history(tmp_path / "run")[0] == first
    assert checkpoints.read_config(tmp_path / "run")["training"]["epochs"] == 2


def validated(run, datasets_dir):
    """What `Evaluation` says of the newest checkpoint on the validation images."""
    domain = read_domain(datasets_dir / "valA")
    evaluation = Evaluation(Restorer.load(run, "latest"), domain, datasets_dir / "valA_reference")
    return {**evaluation.classification(), **{name: value["mean"] for name, value in evaluation.restoration().items()}}


def test_validation_is_the_evaluation_of_the_checkpoint(run_dir, datasets_dir):
    expected = validated(run_dir, datasets_dir)
    last = history(run_dir)[-1]
    for name in ("accuracy", "f1", "auroc", "psnr_input", "psnr_restored", "ssim_restored"):
        assert float(last[f"val_{name}"]) == pytest.approx(expected[name], abs=1e-4), name


@pytest.mark.slow
def test_with_moving_averages_these_are_validated(run_dir, datasets_dir, tmp_path):
    """They change what is validated and loaded, and nothing of the training (whose first epoch knows no decay)."""
    train(tiny_config(datasets_dir, tmp_path, epochs=1, ema_decay=0.5))
    (averaged,), (plain, *_) = history(tmp_path), history(run_dir)
    assert averaged.items() - plain.items() == {item for item in averaged.items() - plain.items() if "val_" in item[0]}
    assert averaged["val_psnr_restored"] != plain["val_psnr_restored"]
    expected = validated(tmp_path, datasets_dir)
    for name in ("auroc", "psnr_input", "psnr_restored", "ssim_restored"):
        assert float(averaged[f"val_{name}"]) == pytest.approx(expected[name], abs=1e-4), name


@pytest.mark.slow
def test_gray_images_in_low_precision_without_validation(tmp_path, datasets_dir):
    for name in ("trainA", "trainB"):
        shutil.copytree(datasets_dir / name, tmp_path / "datasets" / name)
    changes = {"method": "convolutional-light", "channels": 1, "precision": "mixed_bfloat16", "sample_interval": 0}
    result = train(tiny_config(tmp_path / "datasets", tmp_path / "run", epochs=2, keep_checkpoints=1, **changes))
    assert result["best_epoch"] is None
    assert result["images"]["valA"] == 0
    assert not (tmp_path / "run" / "samples").exists()
    assert not any(name.startswith("val_") for row in history(tmp_path / "run") for name in row)
    (checkpoint,) = checkpoints.list_checkpoints(tmp_path / "run")
    assert checkpoint.epoch == 2
    assert {array.dtype.name for array in arrays_of(checkpoint.weights).values()} <= {"float32", "int32", "int64"}
    restored = Restorer.load(tmp_path / "run")(np.zeros((1, 32, 32, 1))).passes[0]
    assert np.isfinite(restored).all()


# --- failing ---------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path, datasets_dir):
    config = tiny_config(datasets_dir, tmp_path, method="convolutional-light", lr=1e36)
    with pytest.raises(UserError, match=r"step 2: not a finite number: .*loss.*--lr"):
        train(config)
    assert checkpoints.list_checkpoints(tmp_path) == []


@pytest.mark.parametrize("deleted", [False, True])
def test_a_run_folder_that_goes_away_is_not_made_again(tmp_path, datasets_dir, monkeypatch, deleted):
    run, watch = tmp_path / "run", callbacks.TerminateOnNaN.on_train_batch_end

    def watched(self, batch, logs=None):
        watch(self, batch, logs)
        if self.model.steps_trained == 2:
            shutil.rmtree(run) if deleted else run.rename(tmp_path / "elsewhere")

    monkeypatch.setattr(callbacks.TerminateOnNaN, "on_train_batch_end", watched)
    with pytest.raises(UserError, match="run: was moved or deleted during the training") as raised:
        train(tiny_config(datasets_dir, run, method="convolutional-light", q=1, filters=2, sample_interval=2))
    assert "\n" not in str(raised.value)
    assert not run.exists()


def corrupt(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-30])
    return path


def test_a_corrupt_image_is_named_before_training(tmp_path):
    datasets = write_dataset(tmp_path / "datasets")
    path = corrupt(datasets, "trainB/covid-3.png")
    with pytest.raises(ImageError, match=r"covid-3\.png") as raised:
        train(tiny_config(datasets, tmp_path / "run"))
    assert str(path) in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_all_corrupt_images_are_named(tmp_path):
    datasets = write_dataset(tmp_path / "datasets", training=(14, 4))
    paths = [corrupt(datasets, f"trainA/normal-{k}.png") for k in range(0, 14, 2)]
    paths += [corrupt(datasets, f"trainA/covid-{k}.png") for k in range(1, 14, 2)]
    with pytest.raises(ImageError, match=r"^14 of 22 images cannot be used: .*; and 4 more$") as raised:
        train(tiny_config(datasets, tmp_path / "run"))
    assert sum(str(path) in str(raised.value) for path in paths) == 10


def test_a_corrupt_image_is_named_in_the_middle(tmp_path):
    datasets = write_dataset(tmp_path / "datasets")
    path = corrupt(datasets, "trainA/normal-2.png")
    # The first, middle and last files are also shown as samples: this one is none of them.
    shown = read_domain(datasets / "trainA").files
    assert path not in (shown[0], shown[2], shown[-1])
    config = tiny_config(datasets, tmp_path / "run", method="convolutional-light", check_images=False)
    with pytest.raises(ImageError, match=r"normal-2\.png"):
        train(config)


def test_a_missing_domain_is_named(tmp_path, datasets_dir):
    shutil.copytree(datasets_dir / "trainA", tmp_path / "datasets" / "trainA")
    with pytest.raises(UserError, match="trainB: no such folder"):
        train(tiny_config(tmp_path / "datasets", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "linear"}, r"--method=linear: must be one of operational"),
        ({"precision": "mixed_float16"}, r"--precision=mixed_float16: .*float16 is refused because"),
        ({"precision": "int8"}, r"--precision=int8: must be one of float32, mixed_bfloat16$"),
        ({"channels": 2}, r"--channels=2: must be one of 1, 3"),
        ({"q": 0}, r"--q=0: must be at least 1"),
        ({"filters": 0}, r"--filters=0"),
        ({"epochs": 0}, r"--epochs=0"),
        ({"batch_size": -1}, r"--batch_size=-1"),
        ({"keep_checkpoints": 0}, r"--keep_checkpoints=0"),
        ({"epoch_decay": -1}, r"--epoch_decay=-1: must be at least 0"),
        ({"lr": float("nan")}, r"--lr=nan: must be a finite number"),
        ({"identity_loss_weight": -0.5}, r"--identity_loss_weight=-0\.5"),
        ({"pool_size": -1}, r"--pool_size=-1"),
        ({"seed": -1}, r"--seed=-1"),
        ({"seed": 2**32}, r"--seed=4294967296: must be at most 1073741823"),
        ({"lr": math.inf}, r"--lr=inf: must be a finite number"),
        ({"load_size": 200_000}, r"--load_size=200000: must be at most 8192"),
        ({"beta_1": 1.0}, r"--beta_1=1\.0: must be in \[0, 1\)"),
        ({"ema_decay": -0.1}, r"--ema_decay=-0\.1: must be in \[0, 1\)"),
        ({"class_weights": "some"}, r"--class_weights=some: must be one of none, balanced"),
        ({"power_init": "taylor"}, r"--power_init=taylor: must be one of equal, maclaurin"),
        ({"distribute": "tpu"}, r"--distribute=tpu: must be one of none, mirrored"),
        ({"drawn_tone": True, "noise_channels": 2}, r"--drawn_tone: needs --skip=tone_curve"),
        ({"drawn_tone": True, "skip": "tone_curve"}, r"--drawn_tone: .*and --noise_channels to draw it from"),
        ({**DRAWN, "batch_size": 1}, r"--drawn_tone: .*give --batch_size=2 or more"),
        ({**DRAWN, "distribute": "mirrored"}, r"--drawn_tone: .*does not go with --distribute=mirrored"),
        ({"crop_size": 33}, r"--crop_size=33: must be a multiple of 2"),
        ({"crop_size": 30, "method": "convolutional"}, r"--crop_size=30: must be a multiple of 4"),
        ({"crop_size": 64}, r"--crop_size=64: must be from 1 to --load_size=36"),
        ({"batch_size": 7}, r"--batch_size=7: must be from 1 to the 6 images"),
    ],
    ids=str,
)
def test_bad_settings_name_their_flag(tmp_path, datasets_dir, change, message):
    with pytest.raises(UserError, match=message):
        train(tiny_config(datasets_dir, tmp_path / "run", **change))
    assert not (tmp_path / "run").exists()


def test_sizes_that_memory_does_not_hold_are_refused(tmp_path, datasets_dir, monkeypatch):
    monkeypatch.setattr("r2c_gan.restoration.memory.available", lambda: 10**8)
    with pytest.raises(UserError, match=r"--load_size=4000: takes 0\.2 GB of memory, of which 0\.1 GB are free"):
        train(tiny_config(datasets_dir, tmp_path / "run", load_size=4000))
    with pytest.raises(UserError, match=r"--pool_size=9000: takes 0\.2 GB"):
        train(tiny_config(datasets_dir, tmp_path / "run", pool_size=9000))


def test_defaults_are_the_authors():
    defaults = {field.name: field.default for field in dataclasses.fields(TrainingConfig)}
    authors = {
        "method": "operational",
        "q": 3,
        "filters": 64,
        "load_size": 286,
        "crop_size": 256,
        "batch_size": 1,
        "epochs": 2000,
        "epoch_decay": 100,
        "lr": 2e-4,
        "beta_1": 0.5,
        "cycle_loss_weight": 10.0,
        "identity_loss_weight": 5.0,
        "class_loss_weight": 0.1,
        "pool_size": 50,
    }
    assert {name: defaults[name] for name in authors} == authors


def test_history_reads_back_what_was_written(run_dir):
    rows = callbacks.read_history(run_dir)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert all(isinstance(row["step"], int) for row in rows)
    assert callbacks.read_history(run_dir / "samples") == []


# --- beside the paper's recipe ---------------------------------------------------------------------------------------


def test_balanced_class_weights_come_from_the_training_images(tmp_path, monkeypatch):
    datasets = write_dataset(tmp_path / "datasets", training=(6, 4))
    for name in ("trainA/covid-1.png", "trainA/covid-3.png"):
        (datasets / name).unlink()  # three of eight are left, of ten images

    class Compiled(Exception):
        pass

    def compiled(self, generator_optimizer, discriminator_optimizer, weights, **_):
        raise Compiled(weights)

    monkeypatch.setattr(R2CGAN, "compile", compiled)
    with pytest.raises(Compiled) as seen:
        train(tiny_config(datasets, tmp_path / "run", class_weights="balanced"))
    assert seen.value.args[0].classes == pytest.approx((8 / (2 * 5), 8 / (2 * 3)))


@pytest.mark.filterwarnings("ignore:.*the classifier needs both classes")
def test_class_weights_need_both_classes(tmp_path):
    datasets = write_dataset(tmp_path / "datasets")
    for path in [*datasets.glob("trainA/covid*"), *datasets.glob("trainB/covid*")]:
        path.unlink()
    with pytest.raises(UserError, match="--class_weights=balanced: no training image is of class covid"):
        train(tiny_config(datasets, tmp_path / "run", batch_size=1, class_weights="balanced"))


def test_early_stopping_needs_validation(tmp_path, datasets_dir):
    for name in ("trainA", "trainB"):
        shutil.copytree(datasets_dir / name, tmp_path / "datasets" / name)
    with pytest.raises(UserError, match=r"--early_stopping=2: needs .*valA"):
        train(tiny_config(tmp_path / "datasets", tmp_path / "run", early_stopping=2))


def test_patience_counts_epochs_without_a_better_f1():
    rows = [{"val_f1": value} for value in (0.1, 0.4, 0.3, 0.4, 0.2)]
    assert not callbacks.out_of_patience(rows[:3], 2)
    assert callbacks.out_of_patience(rows[:4], 2)  # an equal is not better
    assert not callbacks.out_of_patience([*rows[:3], {"val_f1": 0.5}], 2)
    assert not callbacks.out_of_patience(rows, 0)
    assert not callbacks.out_of_patience(rows[:2], 2)
