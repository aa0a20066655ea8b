"""The same model under Keras on JAX: its steps, trainings and run folders against those of TensorFlow.

The tests run on TensorFlow and start other processes on JAX, by R2C_GAN_JAX_PYTHON (`make test-jax`: an environment
without TensorFlow), or by this Python where JAX is installed beside TensorFlow.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import tiny_config
from jax_steps import BATCH, SIZE, STEPS, compiled, stepped
from record_reference import GOLDEN
from test_reference import NETWORKS, draw_weights
from test_training import arrays_of, assert_same_weights, history, weights_file

from r2c_gan.errors import UserError
from r2c_gan.models import checkpoints
from r2c_gan.models.model import R2CGAN
from r2c_gan.models.reference_weights import assign_reference_weights
from r2c_gan.restoration.restorer import Restorer
from r2c_gan.training.trainer import train

TESTS = Path(__file__).parent
JAX_PYTHON = os.environ.get("R2C_GAN_JAX_PYTHON") or (sys.executable if importlib.util.find_spec("jax") else None)
pytestmark = pytest.mark.skipif(JAX_PYTHON is None, reason="JAX is not installed; see `make test-jax`")

# A small, quickly traced network; every option that touches the step; a pool that is full after two steps.
TRAINING = {
    "filters": 2,
    "load_size": 18,
    "crop_size": SIZE,
    "epochs": 2,
    "ema_decay": 0.5,
    "class_weights": "balanced",
    "early_stopping": 5,
    "noise_channels": 1,
    "skip": "tone_curve",
    "drawn_tone": True,
}

# Nothing that each backend draws in its own way.
UNDRAWN = {**TRAINING, "pool_size": 0, "noise_channels": 0, "drawn_tone": False, "sample_interval": 0}

BEGINNING = """
    import json, signal, sys
    from pathlib import Path

    sys.path.insert(0, sys.argv[1])
    import keras
    import numpy as np
    from conftest import tiny_config
    from jax_steps import STEPS, compiled, fitted, stepped

    from r2c_gan.models.model import R2CGAN
    from r2c_gan.training.trainer import train

    assert keras.backend.backend() == "jax"
    folder, given = Path(sys.argv[2]), json.loads(sys.argv[3])
    found = {}
"""
ENDING = """
    found["tensorflow"] = "tensorflow" in sys.modules
    (folder / "found.json").write_text(json.dumps(found))
"""


def jax_process(source, folder, given, **environment):
    """Starts a program on JAX. It finds `folder` and `given`, and leaves what it `found`."""
    # XLA compiles tiny networks longer than they run.
    platform = os.environ.get("JAX_PLATFORMS", "cpu")
    fast = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true" if platform == "cpu" else ""
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": platform,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")]),
        **environment,
        "XLA_FLAGS": f"{fast} {environment.get('XLA_FLAGS', '')}",
    }
    program = "".join(map(textwrap.dedent, (BEGINNING, source, ENDING)))
    folder.mkdir(parents=True, exist_ok=True)
    command = [JAX_PYTHON, "-c", program, TESTS, folder, json.dumps(given)]
    return subprocess.Popen(
        list(map(str, command)), env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def on_jax(source, folder, given, **environment):
    """What such a program found."""
    process = jax_process(source, folder, given, **environment)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    return json.loads((folder / "found.json").read_text())


# --- steps -----------------------------------------------------------------------------------------------------------

STEPS_ON_JAX = """
    found["losses"] = stepped(given["start"], folder)

    model = compiled(pool_size=3)
    model.load_weights(given["pooled"])
    fitted(model, STEPS)
    model.save_weights(folder / "pooled.weights.h5")
    found["images"] = np.asarray(model.pool_a.images).tolist()

    model = compiled(dtype="mixed_bfloat16")
    model.load_weights(given["start"])
    found["low"] = fitted(model, 1)
    found["dtypes"] = sorted({variable.dtype for variable in model.variables if "seed" not in variable.path})

    record = json.loads(Path(given["golden"]).read_text())[given["configuration"]]
    model = R2CGAN(record["method"], record["q"], image_size=64, pool_size=0)
    weights = np.load(given["weights"])
    for name in ("restorer", "degrader", "discriminator_a", "discriminator_b"):
        arrays = [weights[f"{name}/{index}"] for index in range(len(getattr(model, name).weights))]
        getattr(model, name).set_weights(arrays)
    model.compile()
    arrays = np.load(given["batch"])
    batch = ((arrays["A"], arrays["label_A"]), (arrays["B"], arrays["label_B"]))
    found["golden"] = model.evaluate((batch for _ in range(1)), steps=1, return_dict=True, verbose=0)
"""
CONFIGURATION = "operational_q3"


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """(folder of TensorFlow's weights, its losses, folder of JAX's weights, what JAX found)."""
    folder = tmp_path_factory.mktemp("jax")
    keras.utils.set_random_seed(0)
    compiled().save_weights(folder / "start.weights.h5")
    compiled(pool_size=3).save_weights(folder / "pooled.weights.h5")
    record = json.loads((GOLDEN / "reference.json").read_text())[CONFIGURATION]
    model = R2CGAN(record["method"], record["q"], image_size=64, pool_size=0)
    arrays = {}
    for k, (theirs, ours) in enumerate(NETWORKS.items()):
        assign_reference_weights(getattr(model, ours), draw_weights(k, record["variables"][theirs]))
        arrays.update({f"{ours}/{index}": array for index, array in enumerate(getattr(model, ours).get_weights())})
    np.savez(folder / "golden_weights.npz", **arrays)
    given = {
        "start": str(folder / "start.weights.h5"),
        "pooled": str(folder / "pooled.weights.h5"),
        "golden": str(GOLDEN / "reference.json"),
        "batch": str(GOLDEN / "reference.npz"),
        "weights": str(folder / "golden_weights.npz"),
        "configuration": CONFIGURATION,
    }
    found = on_jax(STEPS_ON_JAX, folder / "on_jax", given)
    (folder / "on_tensorflow").mkdir()
    return folder / "on_tensorflow", stepped(given["start"], folder / "on_tensorflow"), folder / "on_jax", found


@pytest.mark.parametrize("when", ["1", str(STEPS), "evaluated"])
def test_losses_are_tensorflows(steps, when):
    _, expected, _, found = steps
    assert found["losses"][when].keys() == expected[when].keys()
    assert len(expected[when]) == 19
    for name, loss in expected[when].items():
        assert found["losses"][when][name] == pytest.approx(loss, rel=1e-4), name


@pytest.mark.parametrize("after", [1, STEPS])
def test_weights_optimizers_and_averages_are_tensorflows(steps, after):
    theirs, _, ours, _ = steps
    theirs, ours = (arrays_of(folder / f"{after}.weights.h5") for folder in (theirs, ours))
    start = arrays_of(steps[0].parent / "start.weights.h5")
    assert ours.keys() == theirs.keys() == start.keys()
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, rtol=1e-4, atol=1e-4 * np.abs(array).max(), err_msg=name)
    assert sum(not np.array_equal(start[name], theirs[name]) for name in start) > 100


def test_the_pool_holds_what_was_generated(steps):
    _, _, folder, found = steps
    model = compiled(pool_size=3)
    model.load_weights(folder / "pooled.weights.h5")
    assert int(model.pool_a.seen) == int(model.pool_b.seen) == STEPS * BATCH
    images = model.pool_a.images.numpy()
    np.testing.assert_array_equal(images, np.array(found["images"], np.float32))
    assert all(image.std() > 0.01 for image in images)


def test_mixed_precision(steps):
    _, expected, _, found = steps
    assert found["dtypes"] == ["float32"]
    low = found["low"]["generator_loss"]
    assert low != expected["1"]["generator_loss"]
    assert low == pytest.approx(expected["1"]["generator_loss"], rel=0.02)


def test_losses_of_the_authors_implementation(steps):
    recorded = json.loads((GOLDEN / "reference.json").read_text())[CONFIGURATION]["losses"][0]
    assert len(recorded) == 18
    for name, loss in recorded.items():
        assert steps[3]["golden"][name] == pytest.approx(loss, rel=1e-5), name


# --- trainings -------------------------------------------------------------------------------------------------------

TRAININGS = """
    from r2c_gan.errors import Interrupted, UserError
    from r2c_gan.training.interruption import Interruption
    from r2c_gan.restoration.restorer import Restorer

    found["result"] = train(tiny_config(given["datasets"], folder / "whole", **given["settings"]))

    broken = tiny_config(given["datasets"], folder / "broken", **{**given["settings"], "sample_interval": 0})
    enter = Interruption.__enter__
    Interruption.__enter__ = lambda self: setattr(self, "signal", signal.SIGTERM) or self
    found["interrupted"] = []
    for _ in range(2):
        try:
            train(broken)
        except Interrupted as interruption:
            found["interrupted"].append(str(interruption))
    Interruption.__enter__ = enter
    train(broken)

    train(tiny_config(given["datasets"], folder / "begun_on_tensorflow", **given["undrawn"]))

    images = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3))
    found["restored"] = Restorer.load(folder / "whole", "latest")(images).passes[0].tolist()
    for name, changes in {"mirrored": {"distribute": "mirrored"}, "unknown": {"distribute": "two"}}.items():
        try:
            train(tiny_config(given["datasets"], folder / "refused", **changes))
        except UserError as error:
            found[name] = str(error)
"""


@pytest.fixture(scope="module")
def runs(datasets_dir, tmp_path_factory):
    """(folder of JAX's runs, what it found, TensorFlow's run without a pool)."""
    folder = tmp_path_factory.mktemp("jax_runs")
    train(tiny_config(datasets_dir, folder / "tensorflow", **UNDRAWN))
    begun = Path(shutil.copytree(folder / "tensorflow", folder / "on_jax" / "begun_on_tensorflow"))
    for path in (begun / "checkpoints").glob("epoch-00002.*"):
        path.unlink()
    given = {"datasets": str(datasets_dir), "settings": TRAINING, "undrawn": UNDRAWN}
    return folder / "on_jax", on_jax(TRAININGS, folder / "on_jax", given), folder / "tensorflow"


def test_a_training_leaves_an_ordinary_run(runs):
    folder, found, _ = runs
    result = found["result"]
    assert (result["epochs"], result["steps"]) == (2, 6)
    assert json.loads((folder / "whole" / "result.json").read_text()) == result
    assert [row["step"] for row in history(folder / "whole")] == ["3", "6"]
    samples = sorted(path.name for path in (folder / "whole" / "samples").iterdir())
    assert samples == ["step-0000003.png", "step-0000004.png"]  # after the first epoch, and when one is due
    assert (folder / "whole" / "losses.png").is_file()


def test_interrupted_and_resumed_equals_uninterrupted(runs):
    folder, found, _ = runs
    assert [message.split(" is saved")[0] for message in found["interrupted"]] == ["step 1", "step 2"]
    assert history(folder / "broken") == history(folder / "whole")
    assert_same_weights(weights_file(folder / "broken", 2), weights_file(folder / "whole", 2))


def test_a_run_of_jax_restores_alike_on_tensorflow(runs):
    folder, found, _ = runs
    images = np.random.default_rng(0).uniform(-1, 1, (2, SIZE, SIZE, 3))
    restored = Restorer.load(folder / "whole", "latest")(images).passes[0]
    np.testing.assert_allclose(restored, found["restored"], atol=1e-5)
    assert checkpoints.list_checkpoints(folder / "whole")[-1].epoch == 2


def test_a_run_goes_on_from_one_backend_to_the_other(runs, datasets_dir, tmp_path):
    """Its second epoch on JAX instead of TensorFlow, and then again on TensorFlow."""
    folder, _, expected = runs
    once = arrays_of(weights_file(folder / "begun_on_tensorflow", 2))
    begun = Path(shutil.copytree(folder / "begun_on_tensorflow", tmp_path / "run"))
    train(tiny_config(datasets_dir, begun, **{**UNDRAWN, "epochs": 3}))
    assert [row["step"] for row in history(begun)] == ["3", "6", "9"]
    theirs = arrays_of(weights_file(expected, 2))
    assert once.keys() == theirs.keys() == arrays_of(weights_file(begun, 3)).keys()
    for name, array in theirs.items():
        np.testing.assert_allclose(once[name], array, rtol=1e-3, atol=1e-3 * np.abs(array).max(), err_msg=name)
    for ours, row in zip(history(folder / "begun_on_tensorflow"), history(expected), strict=True):
        for name in ("generator_loss", "discriminator_loss"):
            assert float(ours[name]) == pytest.approx(float(row[name]), rel=1e-4)


def test_what_a_backend_has_not_is_refused(runs, datasets_dir, tmp_path):
    _, found, _ = runs
    assert found["mirrored"].startswith("--distribute=mirrored: Keras on jax has it not; must be one of none, data_pa")
    assert found["unknown"].startswith("--distribute=two: must be one of")
    with pytest.raises(UserError, match="--distribute=data_parallel: Keras on tensorflow has it not"):
        train(tiny_config(datasets_dir, tmp_path / "run", distribute="data_parallel"))


def test_tensorflow_is_not_needed(runs, steps):
    """Where it is not installed, all of the above ran without it."""
    known = subprocess.run([JAX_PYTHON, "-c", "import tensorflow"], capture_output=True, check=False)
    if known.returncode == 0:
        pytest.skip("this JAX has TensorFlow beside it; `make test-jax` has not")
    assert not runs[1]["tensorflow"]
    assert not steps[3]["tensorflow"]
    assert not (runs[0] / "whole" / "events").exists()
