"""The picture of a degrader's draws, and its program."""

import subprocess
from pathlib import Path

import cv2
import numpy as np
import programs
import pytest

from experiments.evidence.draw_degrader import draw
from r2c_gan.errors import UserError
from r2c_gan.models import checkpoints
from r2c_gan.models.model import R2CGAN

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise") / "run"
    model = R2CGAN(q=2, filters=4, image_size=32, noise_channels=2)
    model.compile()
    checkpoints.write_config(folder, model.config)
    checkpoints.save_checkpoint(folder, model, epoch=1, step=3)
    return folder


def program(*arguments):
    command = programs.python("-m", "experiments.evidence.draw_degrader", *arguments)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_each_draw_is_another_and_the_seed_decides(run, tmp_path):
    def gray(size, channels):
        return np.zeros((3, size, size, channels), "float32")

    poor = draw(run, gray, 2, tmp_path / "a.png")
    assert poor.shape == (2, 3, 32, 32, 3)
    assert np.abs(poor[0] - poor[1]).mean() > 1e-3
    np.testing.assert_array_equal(draw(run, gray, 2, tmp_path / "b.png"), poor)
    assert np.abs(draw(run, gray, 2, tmp_path / "c.png", seed=1) - poor).mean() > 1e-3
    assert cv2.imread(str(tmp_path / "a.png")).std() > 1


def test_the_program_draws(run, datasets_dir, tmp_path):
    done = program("--model", run, "--datasets_dir", datasets_dir, "--images=2", "--output", tmp_path / "out.png")
    assert done.returncode == 0, done.stderr
    assert cv2.imread(str(tmp_path / "out.png")).std() > 1


def test_bad_flags_are_named(run, datasets_dir, tmp_path):
    done = program("--model", run, "--datasets_dir", datasets_dir, "--images=99", "--output", tmp_path / "out.png")
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "--images=99: must be 1 to " in done.stderr
    assert not (tmp_path / "out.png").exists()


def test_a_degrader_without_noise_is_refused(run_dir, tmp_path):
    with pytest.raises(UserError, match="train with --noise_channels=4"):
        draw(run_dir, None, 2, tmp_path / "out.png")
