"""Data parallelism on JAX: two devices of one process, and two processes on loopback, against one device."""

import json
import re
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from test_jax import JAX_PYTHON, jax_process, on_jax
from test_training import arrays_of, history, weights_file

from r2c_gan.models import checkpoints

pytestmark = pytest.mark.skipif(JAX_PYTHON is None, reason="JAX is not installed; see `make test-jax`")

# A pool that is full after two steps; noise; averages, clipping and class weights; a validation and a picture, which
# one process makes alone.
SETTINGS = {
    "filters": 2,
    "load_size": 18,
    "crop_size": 16,
    "epochs": 1,
    "noise_channels": 1,
    "sample_interval": 2,
    "save_minutes": 0,
    "ema_decay": 0.5,
    "class_weights": "balanced",
}
TRAIN = """
    from r2c_gan.cli import program

    def main():
        found.update(train(tiny_config(given["datasets"], given["run"], **given["settings"])))

    sys.argv[1:] = []
    try:
        program.run(main, "A tiny training.")
    except SystemExit as ending:
        if ending.code:
            raise
"""
EPOCHS = 12


def settings(datasets_dir, run, **changes):
    return {"datasets": str(datasets_dir), "run": str(run), "settings": {**SETTINGS, **changes}}


def two_processes(folder, given):
    """Starts both; each has one device and reads its half of every batch."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        jax_process(
            TRAIN,
            folder / f"process{process}",
            given,
            KERAS_DISTRIBUTION_JOB_ADDRESSES=address,
            KERAS_DISTRIBUTION_NUM_PROCESSES="2",
            KERAS_DISTRIBUTION_PROCESS_ID=str(process),
        )
        for process in range(2)
    ]


@pytest.fixture(scope="module")
def one(datasets_dir, tmp_path_factory):
    """The folder, which holds a run on one device."""
    folder = tmp_path_factory.mktemp("jax_distribution")
    on_jax(TRAIN, folder / "single", settings(datasets_dir, folder / "one"))
    return folder


def assert_same_run(run, expected):
    theirs, ours = (arrays_of(weights_file(folder, 1)) for folder in (expected, run))
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, rtol=1e-5, atol=1e-5, err_msg=name)
    for row, other in zip(history(run), history(expected), strict=True):
        for name in row:
            assert float(row[name]) == pytest.approx(float(other[name]), rel=1e-4, abs=1e-5), name
    assert [path.name for path in (run / "samples").iterdir()] == ["step-0000002.png"]


def test_two_devices_train_what_one_trains(one, datasets_dir):
    given = settings(datasets_dir, one / "two", distribute="data_parallel")
    on_jax(TRAIN, one / "forced", given, XLA_FLAGS="--xla_force_host_platform_device_count=2")
    assert_same_run(one / "two", one / "one")
    assert checkpoints.read_config(one / "two")["training"]["distribute"] == "data_parallel"


def test_a_batch_that_the_devices_do_not_divide_is_refused(one, datasets_dir):
    given = settings(datasets_dir, one / "refused", distribute="data_parallel", batch_size=3)
    process = jax_process(TRAIN, one / "odd", given, XLA_FLAGS="--xla_force_host_platform_device_count=2")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    expected = "error: --batch_size=3: must be a multiple of the 2 devices that share each batch"
    assert errors.strip().splitlines()[-1] == expected
    assert not (one / "refused").exists()


@pytest.fixture(scope="module")
def pair(one, datasets_dir):
    """The folder, which holds a run of two processes too."""
    for process in two_processes(one, settings(datasets_dir, one / "processes", distribute="data_parallel")):
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
    return one


def going_on(pair, datasets_dir, folder):
    """Grows a copy of the run of one epoch to many; returns it when three are done, its settings and both processes."""
    run = Path(shutil.copytree(pair / "processes", folder / "run"))
    given = settings(datasets_dir, run, distribute="data_parallel", epochs=EPOCHS)
    processes = two_processes(folder, given)
    while len(history(run)) < 3:
        time.sleep(0.05)
        assert all(process.poll() is None for process in processes)
    return run, given, processes


def test_two_processes_train_what_one_device_trains(pair):
    one = pair
    assert_same_run(one / "processes", one / "one")
    results = [json.loads((one / f"process{process}" / "found.json").read_text()) for process in range(2)]
    assert results[0]["steps"] == 3
    assert results[0] == results[1]


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_run_which_then_resumes(pair, datasets_dir, tmp_path, lost):
    """The run of one epoch grows to many, in which a process is killed; started again, both go on to the end."""
    run, given, processes = going_on(pair, datasets_dir, tmp_path)
    processes[lost].kill()
    processes[lost].communicate()
    _, errors = processes[1 - lost].communicate(timeout=300)
    assert processes[1 - lost].returncode != 0, errors
    # The one that leads is missed by JAX itself too, which may be first to say so, and aborts.
    said = [f"error: process {1 - lost} of 2 lost touch with another one", *["another task died"] * (lost == 0)]
    assert any(line in errors for line in said), errors
    reached = checkpoints.list_checkpoints(run)[-1].epoch
    assert 2 <= reached < EPOCHS  # its row of the history is written before the checkpoint
    for process in two_processes(tmp_path, given):
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
    assert checkpoints.list_checkpoints(run)[-1].epoch == EPOCHS
    assert [int(row["epoch"]) for row in history(run)] == list(range(1, EPOCHS + 1))


def test_a_signal_to_one_process_ends_both_at_the_same_step(pair, datasets_dir, tmp_path):
    run, given, processes = going_on(pair, datasets_dir, tmp_path)
    processes[1].terminate()
    said = []
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 143, errors
        said.append(re.search(r"step (\d+) is saved in .*; run the same command again to go on", errors)[1])
    assert said[0] == said[1]
    assert int(said[0]) < 3 * EPOCHS
    for process in two_processes(tmp_path, given):
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
    assert [int(row["epoch"]) for row in history(run)] == list(range(1, EPOCHS + 1))
