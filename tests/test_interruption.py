"""A training that is killed, asked to end, started twice, or has no room left: nothing is lost, nothing is doubled."""

import json
import os
import random
import signal
import subprocess
import textwrap
import time
from pathlib import Path

import programs
import pytest
from conftest import tiny_config
from test_training import assert_same_weights, history, weights_file

from r2c_gan.errors import Interrupted, UserError
from r2c_gan.evaluation import figures
from r2c_gan.models import checkpoints
from r2c_gan.training.interruption import Interruption
from r2c_gan.training.run_lock import run_lock
from r2c_gan.training.trainer import train

TESTS = Path(__file__).parent
EPOCHS = 4
KILLS = 20
# Many short steps, and a network that is traced in no time.
KILLED = {"epochs": 30, "method": "convolutional-light", "filters": 2, "crop_size": 16, "sample_interval": 0}

PROGRAM = """
    import os, sys

    sys.path.insert(0, sys.argv.pop(1))
    from conftest import tiny_config
    from r2c_gan.training import trainer as training
    from r2c_gan.cli import program

    datasets, run, changes = sys.argv.pop(1), sys.argv.pop(1), eval(sys.argv.pop(1))

    def main():
        training.train(tiny_config(datasets, run, **changes), begin=lambda: print("began", os.getpid(), flush=True))

    program.run(main, "A tiny training.")
"""
# Before it: each step is told of.
TOLD = """
    from r2c_gan.training import callbacks

    watch = callbacks.TerminateOnNaN.on_train_batch_end

    def told(self, batch, logs=None):
        watch(self, batch, logs)
        print("stepped", flush=True)

    callbacks.TerminateOnNaN.on_train_batch_end = told
"""


def start(source, *arguments, **options):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])}
    command = programs.python("-c", textwrap.dedent(source), *arguments)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, **{**pipes, **options})


def begun(program):
    """Waits until its training has begun; returns the number of the process."""
    for line in program.stdout:
        word, *number = line.split()
        if word == "began":
            return int(*number)
    raise AssertionError(program.stderr and program.stderr.read())


@pytest.fixture(autouse=True, scope="module")
def no_drawing():
    """A fifth of so short a training; what is drawn has tests of its own."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(figures, "save_losses", lambda history, path: None)
        yield


@pytest.fixture(scope="module")
def uninterrupted(datasets_dir, tmp_path_factory):
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(tiny_config(datasets_dir, run, epochs=EPOCHS))
    return run


def assert_same_run(run, other, epochs=EPOCHS):
    assert history(run) == history(other)
    assert_same_weights(weights_file(run, epochs), weights_file(other, epochs))
    assert checkpoints.list_unfinished(run) == []
    assert not [path for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]


@pytest.mark.kills
def test_killed_twenty_times_equals_uninterrupted(datasets_dir, tmp_path):
    """SIGKILL at random moments after the start of the training; every step is saved, so many hit a saving."""
    rng = random.Random(0)
    run = tmp_path / "run"
    arguments = TESTS, datasets_dir, run, {**KILLED, "save_minutes": 1e-5}
    reached = [0]
    for kill in range(KILLS):
        with start(TOLD + PROGRAM, *arguments, stderr=subprocess.DEVNULL) as program:
            process = begun(program)
            for _ in range(rng.randint(0, 4)):  # none: while the first step is still being traced
                assert program.stdout.readline() == "stepped\n"
            time.sleep(rng.uniform(0, 0.2))
            os.kill(process, signal.SIGKILL)
        assert program.returncode == -9, f"the run was over before kill {kill}"
        found = checkpoints.list_checkpoints(run) + checkpoints.list_unfinished(run)
        reached.append(max((checkpoint.step for checkpoint in found), default=0))
        assert reached[-1] >= reached[-2]
    with start(TOLD + PROGRAM, *arguments, stderr=subprocess.DEVNULL) as program:
        program.communicate()
    assert program.returncode == 0
    assert len(set(reached)) > 10
    train(tiny_config(datasets_dir, tmp_path / "uninterrupted", **KILLED))
    assert_same_run(run, tmp_path / "uninterrupted", KILLED["epochs"])


@pytest.mark.kills
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_end_it_saves_and_goes_on(uninterrupted, datasets_dir, tmp_path, number):
    run = tmp_path / "run"
    program = start(PROGRAM, TESTS, datasets_dir, run, {"epochs": EPOCHS, "save_minutes": 0})
    begun(program)
    while not (run / "history.csv").exists():  # into the second epoch
        time.sleep(0.01)
        assert program.poll() is None
    program.send_signal(number)
    _, errors = program.communicate(timeout=60)
    assert program.returncode == 128 + number
    assert "Traceback" not in errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith("interrupted: step ")
    assert last.endswith(f"is saved in {run}; run the same command again to go on")
    saved = checkpoints.list_checkpoints(run) + checkpoints.list_unfinished(run)
    assert max(checkpoint.step for checkpoint in saved) == int(last.split()[2])
    train(tiny_config(datasets_dir, run, epochs=EPOCHS, save_minutes=0))
    assert_same_run(run, uninterrupted)


@pytest.mark.kills
def test_a_saving_in_the_middle_of_an_epoch_is_exact(uninterrupted, datasets_dir, tmp_path, monkeypatch):
    """Interrupted after every single step, so that each step is resumed from."""
    run, steps = tmp_path / "run", 4
    config = tiny_config(datasets_dir, run, epochs=EPOCHS)
    monkeypatch.setattr(Interruption, "__enter__", lambda self: setattr(self, "signal", signal.SIGTERM) or self)
    for step in range(1, steps + 1):
        with pytest.raises(Interrupted, match=f"step {step} is saved"):
            train(config)
    monkeypatch.undo()
    train(config)
    assert_same_run(run, uninterrupted)


@pytest.mark.kills
def test_a_damaged_unfinished_checkpoint_is_passed_over(uninterrupted, datasets_dir, tmp_path, monkeypatch, caplog):
    config = tiny_config(datasets_dir, tmp_path, epochs=EPOCHS)
    monkeypatch.setattr(Interruption, "__enter__", lambda self: setattr(self, "signal", signal.SIGTERM) or self)
    for _ in range(4):
        with pytest.raises(Interrupted):
            train(config)
    monkeypatch.undo()
    (unfinished,) = checkpoints.list_unfinished(tmp_path)
    assert unfinished.step == 4
    with unfinished.weights.open("r+b") as file:
        file.seek(3000)
        file.write(b"\xff" * 64)
    train(config)
    assert "step-000000004.weights.h5: damaged" in caplog.text
    assert_same_run(tmp_path, uninterrupted)


def test_a_second_process_is_refused(datasets_dir, tmp_path):
    run = tmp_path / "run"
    first = start(PROGRAM, TESTS, datasets_dir, run, {"epochs": 5000})
    try:
        process = begun(first)
        with pytest.raises(UserError, match=rf"is being trained by another process \(process {process} on .+\)"):
            train(tiny_config(datasets_dir, run, epochs=5000))
    finally:
        first.kill()
        first.communicate()
    with run_lock(run):  # the lock went with the process
        pass


def test_a_lock_leaves_no_empty_folder(tmp_path):
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path / "run"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_named(datasets_dir, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"--output_dir=.*cannot be written"):
        train(tiny_config(datasets_dir, tmp_path / "run"))


def test_a_file_in_the_place_of_the_run_folder_is_named(datasets_dir, tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(UserError, match=r"--output_dir=.*run: cannot be written"):
        train(tiny_config(datasets_dir, tmp_path / "run"))
    assert (tmp_path / "run").read_text() == "a file"


@pytest.mark.kills
def test_no_room_for_a_checkpoint_keeps_the_last_good_one(uninterrupted, datasets_dir, tmp_path):
    """A limit on the size of files makes the operating system refuse the writing, as a full disk would."""
    run = tmp_path / "run"
    train(tiny_config(datasets_dir, run, epochs=1))
    size = weights_file(run, 1).stat().st_size

    limit = f"""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, ({size // 2}, resource.RLIM_INFINITY))
"""
    program = start(limit + PROGRAM, TESTS, datasets_dir, run, {"epochs": EPOCHS, "sample_interval": 0})
    _, errors = program.communicate(timeout=120)
    assert program.returncode == 1, errors
    assert "Traceback" not in errors
    assert "cannot be written" in errors.strip().splitlines()[-1]
    (kept,) = checkpoints.list_checkpoints(run)
    assert kept.epoch == 1
    checkpoints.load_model(run)
    assert not [path for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_early_stopping_is_recorded_and_final(datasets_dir, tmp_path, monkeypatch):
    """F1 is made to fall from the second epoch on: with a patience of 2, the third is the last."""
    scores = iter([0.5, 0.4, 0.5, 0.9])
    monkeypatch.setattr("r2c_gan.training.trainer._validator", lambda *_: lambda: {"f1": next(scores)})
    config = tiny_config(datasets_dir, tmp_path, epochs=EPOCHS, early_stopping=2)
    result = train(config)
    assert (result["epochs"], result["stopped_early"], result["best_epoch"]) == (3, True, 1)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert train(config)["epochs"] == 3  # it does not go on
