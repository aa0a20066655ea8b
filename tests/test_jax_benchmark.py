"""The benchmark of the step on JAX: a tiny one, and what its figures must have to do with each other."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from test_jax import JAX_PYTHON

REPOSITORY = Path(__file__).parents[1]


def benchmark(*arguments):
    command = [JAX_PYTHON, "-m", "experiments.benchmarks.backends", *arguments]
    environment = {**os.environ, "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu")}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(JAX_PYTHON is None, reason="JAX is not installed; see `make test-jax`")
def test_a_tiny_benchmark(tmp_path):
    small = ["--sizes=16", "--batches=2", "--precisions=float32", "--q=1", "--filters=2", "--peak_side=64"]
    done = benchmark(f"--output_dir={tmp_path}", "--backends=jax", "--repeats=3", *small)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["machine"]["jax"] and " x " in result["machine"]["device"]
    (row,) = result["steps"]
    assert "tensorflow" not in row
    timed = row["jax"]
    assert 0 < timed["fastest"] <= timed["seconds"] < timed["first"]
    assert timed["images_per_second"] == pytest.approx(2 / timed["seconds"], rel=0.01)
    from experiments.benchmarks.flops import step_flops

    gflop = step_flops(q=1, filters=2, size=16, batch_size=2) / 1e9
    assert row["gflop"] == pytest.approx(gflop, abs=0.05)
    assert timed["tflops"] == pytest.approx(gflop / timed["seconds"] / 1e3, abs=1e-4)
    assert timed["peak_mib"] > 100
    assert "| 16 | 2 | float32 | jax |" in done.stdout


@pytest.mark.skipif(JAX_PYTHON is None, reason="JAX is not installed; see `make test-jax`")
def test_an_unknown_backend_is_refused(tmp_path):
    done = benchmark(f"--output_dir={tmp_path / 'out'}", "--backends=torch")
    assert done.returncode == 1
    assert "error: --backends=torch: must be some of tensorflow, jax" in done.stderr
