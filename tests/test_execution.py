"""Other ways to execute the same training: several steps at once, and compiled by XLA."""

import pytest
from conftest import tiny_config
from test_interruption import TESTS, start
from test_training import history

from r2c_gan.errors import UserError
from r2c_gan.model import METRICS
from r2c_gan.training import train

PROGRAM = """
    import sys

    sys.path.insert(0, sys.argv[1])
    from conftest import tiny_config
    from r2c_gan import training

    training.train(tiny_config(*sys.argv[2:4], epochs=1, jit_compile=True, deterministic=False))
"""


def assert_same_losses(run, expected, tolerance):
    (row,), (first, *_) = history(run), history(expected)
    for name in METRICS:
        assert float(row[name]) == pytest.approx(float(first[name]), rel=tolerance, abs=1e-4), name


def test_several_steps_at_once(run_dir, datasets_dir, tmp_path):
    train(tiny_config(datasets_dir, tmp_path, epochs=1, sample_interval=2, steps_per_execution=2))
    assert_same_losses(tmp_path, run_dir, 1e-6)
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step-0000002.png"]


def test_compiled(run_dir, datasets_dir, tmp_path):
    program = start(PROGRAM, TESTS, datasets_dir, tmp_path / "run")
    _, errors = program.communicate(timeout=300)
    assert program.returncode == 0, errors
    assert_same_losses(tmp_path / "run", run_dir, 5e-3)


def test_compiled_and_deterministic_is_refused(datasets_dir, tmp_path):
    with pytest.raises(UserError, match="--jit_compile: needs --nodeterministic"):
        train(tiny_config(datasets_dir, tmp_path / "run", jit_compile=True))
