"""MirroredStrategy on two logical processors against one: the same losses, networks and pools."""

import os
import subprocess
import textwrap
from pathlib import Path

import numpy as np
import programs
import pytest
from conftest import tiny_config
from test_training import arrays_of, history, weights_file

from r2c_gan.models import checkpoints
from r2c_gan.restoration.restorer import Restorer
from r2c_gan.training.trainer import train

TESTS = Path(__file__).parent
PROGRAM = """
    import sys

    sys.path.insert(0, sys.argv[1])
    import tensorflow as tf

    (processor,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 2)
    from conftest import tiny_config
    from r2c_gan import errors
    from r2c_gan.training import trainer as training

    try:
        training.train(tiny_config(*sys.argv[2:4], distribute="mirrored", **eval(sys.argv[4])))
    except errors.UserError as error:
        sys.exit(f"error: {error}")
"""
# No sample pictures; a pool that is full after two steps; noise; averages and class weights under the strategy too.
SETTINGS = {
    "batch_size": 2,
    "pool_size": 3,
    "noise_channels": 1,
    "sample_interval": 0,
    "ema_decay": 0.5,
    "class_weights": "balanced",
    "keep_checkpoints": 3,
}


def mirrored(datasets_dir, run, settings):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])}
    command = programs.python("-c", textwrap.dedent(PROGRAM), TESTS, datasets_dir, run, repr(settings))
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def runs(datasets_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("distribution")
    done = mirrored(datasets_dir, folder / "two", SETTINGS)
    assert done.returncode == 0, done.stderr
    train(tiny_config(datasets_dir, folder / "one", **SETTINGS))
    return folder / "one", folder / "two"


@pytest.mark.slow
def test_two_devices_train_what_one_trains(runs):
    """After three steps: later, Adam has made more of the order in which two shares of a gradient are added up."""
    one, two = (arrays_of(weights_file(run, 1)) for run in runs)
    assert one.keys() == two.keys()
    for name, array in one.items():
        np.testing.assert_allclose(two[name], array, rtol=1e-5, atol=1e-5, err_msg=name)
    after = arrays_of(weights_file(runs[0], 2))
    assert max(np.abs(one[name] - after[name]).max() for name in one if "image_pool" in name) > 0.1


@pytest.mark.slow
def test_two_devices_report_the_losses_of_one(runs):
    for one, two in zip(*map(history, runs), strict=True):
        for name in one:
            assert float(two[name]) == pytest.approx(float(one[name]), rel=1e-4, abs=1e-5), name


@pytest.mark.slow
def test_the_run_is_an_ordinary_one(runs):
    images = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3))
    one, two = (Restorer.load(run, "latest")(images) for run in runs)
    np.testing.assert_allclose(two.passes[0], one.passes[0], atol=1e-4)
    assert checkpoints.read_config(runs[1])["training"]["distribute"] == "mirrored"


def test_a_batch_that_the_devices_do_not_divide_is_refused(datasets_dir, tmp_path):
    done = mirrored(datasets_dir, tmp_path / "run", {"batch_size": 3})
    assert done.returncode == 1
    expected = "error: --batch_size=3: must be a multiple of the 2 devices that share each batch"
    assert done.stderr.strip().splitlines()[-1] == expected
    assert not (tmp_path / "run").exists()
