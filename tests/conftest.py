"""What the test files share: a quiet TensorFlow on the processor, a tiny dataset and a tiny trained run."""

import gc
import os
import sys

# Before TensorFlow is first imported. No test needs a GPU, and float32 there may mean less than 24 bits.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import programs
import pytest

# Begun first, so that no worker is left alone with one of them at the end.
LONG = (
    *("test_jax_distribution", "test_jax", "test_docs", "test_interruption", "test_notebooks", "test_training"),
    *("test_readme", "test_model", "test_reader_study_page", "test_restore_program", "test_noise", "test_step_order"),
    *("test_benchmark", "test_reference", "test_server", "test_restorer_training", "test_distribution", "test_cli"),
)


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


def pytest_collection_finish():
    # What has been imported stays. To look through it again and again takes a tenth of the time of the tests.
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    programs.stop()


@pytest.fixture(scope="session", autouse=True)
def _jax_cache(tmp_path_factory):
    """What one process on JAX has compiled, the others need not."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path_factory.getbasetemp() / "jax_compiled")


@pytest.fixture(autouse=True)
def _seed():
    """Every test starts from the same seeds. Files that need no Keras do not pay for its import."""
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(1)


def write_dataset(folder, seed=0, size=40, training=(6, 4), test=4):
    """A datasets folder of small noisy images: "covid" ones are bright at the left, the poor ones (A) dark and flat.

    Args:
        folder: the folder to make.
        seed: integer seed.
        size: height of the images, in pixels; they are a little wider.
        training: images of trainA and of trainB.
        test: images of valA and of testA (each with its clean twins).
    """
    from r2c_gan.data.images import write_image

    rng = np.random.default_rng(seed)
    columns = np.linspace(-1, 1, size + 8)

    def clean(covid):
        noise = rng.uniform(-0.3, 0.3, (size, size + 8, 1))
        return np.clip(0.5 * (-columns if covid else columns)[None, :, None] + noise, -1, 1)

    def degrade(image):
        return 0.4 * image - 0.3

    for name, count in (("trainA", training[0]), ("trainB", training[1]), ("valA", test), ("testA", test)):
        for index in range(count):
            covid = index % 2 == 1
            image = clean(covid)
            file = f"{'covid' if covid else 'normal'}-{index}.png"
            write_image(folder / name / file, image if name == "trainB" else degrade(image))
            if name in ("valA", "testA"):
                write_image(folder / f"{name}_reference" / file, image)
    return folder


@pytest.fixture(scope="session")
def datasets_dir(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("datasets"))


def tiny_config(datasets_dir, output_dir, **changes):
    """A training of three epochs of three steps, in seconds."""
    from r2c_gan.training.trainer import TrainingConfig

    settings = {
        "q": 2,
        "filters": 4,
        "load_size": 36,
        "crop_size": 32,
        "batch_size": 2,
        "epochs": 3,
        "epoch_decay": 1,
        "lr": 1e-3,
        "pool_size": 3,
        "sample_interval": 4,
        "keep_checkpoints": 2,
    }
    return TrainingConfig(datasets_dir=str(datasets_dir), output_dir=str(output_dir), **{**settings, **changes})


@pytest.fixture(scope="session")
def run_dir(datasets_dir, tmp_path_factory):
    """The run folder of an uninterrupted tiny training. Read it, do not write to it."""
    from r2c_gan.training.trainer import train

    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(tiny_config(datasets_dir, folder))
    return folder
