"""The run folder's checkpoints, and the weights and checkpoints of the authors' implementation."""

import json
import os
from pathlib import Path

import keras
import numpy as np
import oracles
import pytest
import tensorflow as tf

from r2c_gan import files
from r2c_gan.errors import UserError
from r2c_gan.layers.operational import OperationalConv2DTranspose
from r2c_gan.models import checkpoints
from r2c_gan.models.model import R2CGAN
from r2c_gan.models.networks import build_discriminator, build_generator
from r2c_gan.models.optimizers import Adam
from r2c_gan.models.reference_weights import assign_reference_weights, read_authors_checkpoint
from r2c_gan.models.schedules import LinearDecay
from r2c_gan.options.network import PAPER_METHODS
from r2c_gan.restoration.restorer import Restorer


def model_config(**changes):
    return {"method": "convolutional-light", "filters": 2, "image_size": 16, "pool_size": 2, **changes}


def images(n=2, size=16, channels=3):
    return np.random.default_rng(0).uniform(-1, 1, (n, size, size, channels)).astype("float32")


# --- the run folder --------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """A run folder with one real checkpoint, of epoch 3, and its model."""
    model = R2CGAN(**model_config())
    model.compile()
    checkpoints.write_config(tmp_path, model.config, {"method": "convolutional-light"})
    checkpoints.save_checkpoint(tmp_path, model, epoch=3, step=30, measures={"cycle_a": 0.5, "val_f1": 0.75})
    return tmp_path, model


def plant(run, *epochs, f1=None):
    """Checkpoints whose weights are a few bytes: enough for listing, selecting and pruning."""
    for index, epoch in enumerate(epochs):
        weights = run / "checkpoints" / f"epoch-{epoch:05d}.weights.h5"
        weights.parent.mkdir(parents=True, exist_ok=True)
        weights.write_bytes(b"weights")
        files.write_json(
            weights.with_name(f"epoch-{epoch:05d}.json"),
            {
                "weights": weights.name,
                "epoch": epoch,
                "step": 10 * epoch,
                "measures": {} if f1 is None else {"val_f1": f1[index]},
                "sha256": files.sha256(weights),
            },
        )
    return run


def epochs(run):
    return [checkpoint.epoch for checkpoint in checkpoints.list_checkpoints(run)]


def test_saved_and_listed(run):
    folder, _ = run
    (checkpoint,) = checkpoints.list_checkpoints(folder)
    assert (checkpoint.epoch, checkpoint.step) == (3, 30)
    assert checkpoint.measures == {"cycle_a": 0.5, "val_f1": 0.75}
    assert checkpoint.weights == folder / "checkpoints" / "epoch-00003.weights.h5"
    assert checkpoint.sha256 == files.sha256(checkpoint.weights)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "epoch-00003.json",
        "epoch-00003.weights.h5",
    ]


def test_loaded_model_computes_the_same(run):
    folder, model = run
    keras.utils.set_random_seed(77)
    loaded, checkpoint = checkpoints.load_model(folder)
    assert checkpoint.epoch == 3
    x = images()
    for name in ("restorer", "degrader"):
        for ours, theirs in zip(getattr(loaded, name)(x), getattr(model, name)(x), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    for name in ("discriminator_a", "discriminator_b"):
        np.testing.assert_array_equal(getattr(loaded, name)(x), getattr(model, name)(x))


def test_a_run_folder_may_move(run, tmp_path_factory):
    folder, _ = run
    moved = folder.rename(tmp_path_factory.mktemp("elsewhere") / "run")
    assert checkpoints.load_model(moved)[1].weights.parent == moved / "checkpoints"


def test_incomplete_checkpoints_do_not_count(tmp_path):
    plant(tmp_path, 1, 2, 3, 4)
    folder = tmp_path / "checkpoints"
    (folder / "epoch-00002.json").unlink()  # killed between the weights and the record
    (folder / "epoch-00003.weights.h5").unlink()
    (folder / "epoch-00004.json").write_text("{ not json")
    with pytest.warns(UserWarning, match=r"epoch-00004\.json"):
        assert epochs(tmp_path) == [1]


def test_a_failing_save_leaves_what_was_there(run, monkeypatch):
    folder, model = run
    before = {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()}

    def save_half(path, overwrite):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(model, "save_weights", save_half)
    for epoch in (3, 4):
        with pytest.raises(UserError, match=r"cannot be written.*No space left"):
            checkpoints.save_checkpoint(folder, model, epoch, step=40)
    assert {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()} == before


def test_selecting(tmp_path):
    plant(tmp_path, 2, 10, 100000, f1=[0.5, 0.9, 0.9])
    selected = {which: checkpoints.select(tmp_path, which).epoch for which in ("latest", "best", "auto", "2", 10)}
    assert selected == {"latest": 100000, "best": 10, "auto": 10, "2": 2, 10: 10}  # of equals the earliest


def test_selecting_without_validation(tmp_path):
    plant(tmp_path, 1, 2)
    assert checkpoints.select(tmp_path).epoch == 2
    with pytest.raises(UserError, match=r"no best checkpoint.*valA"):
        checkpoints.select(tmp_path, "best")


def test_selecting_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        checkpoints.select(tmp_path)
    plant(tmp_path, 1, 2)
    with pytest.raises(UserError, match=r"no checkpoint '7'.*latest, best, auto or one of the epochs 1, 2"):
        checkpoints.select(tmp_path, "7")


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    plant(tmp_path, 1, 2, 3, 4, 5, f1=[0.1, 0.8, 0.3, 0.2, 0.2])
    checkpoints.prune(tmp_path, keep=2)
    assert epochs(tmp_path) == [2, 4, 5]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 6
    checkpoints.prune(tmp_path, keep=9)
    assert epochs(tmp_path) == [2, 4, 5]


@pytest.mark.parametrize("name", ["epoch-00002.weights.h5", "epoch-00002.json", "step-000000004.weights.h5"])
def test_pruning_sweeps_what_a_killed_saving_left(tmp_path, name):
    plant(tmp_path, 1)
    kept = set((tmp_path / "checkpoints").iterdir())
    with files.atomic_path(tmp_path / "checkpoints" / name) as leftover:
        os.link(leftover, tmp_path / "half")
    (tmp_path / "checkpoints" / name).unlink()
    os.rename(tmp_path / "half", leftover)
    checkpoints.prune(tmp_path, keep=2)
    assert set((tmp_path / "checkpoints").iterdir()) == kept


def test_pruning_without_validation(tmp_path):
    plant(tmp_path, 1, 2, 3)
    checkpoints.prune(tmp_path, keep=1)
    assert epochs(tmp_path) == [3]


def test_damaged_weights_are_refused(run):
    folder, model = run
    (checkpoint,) = checkpoints.list_checkpoints(folder)
    data = bytearray(checkpoint.weights.read_bytes())
    data[len(data) // 2] ^= 1
    checkpoint.weights.write_bytes(data)
    before = model.get_weights()
    with pytest.raises(UserError, match=r"epoch-00003\.weights\.h5: damaged"):
        checkpoints.load_weights(model, checkpoint)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("changes", [{"filters": 3}, {"method": "operational", "q": 2}, {"image_size": 32}], ids=str)
def test_weights_of_another_model_are_refused(run, changes):
    folder, _ = run
    other = R2CGAN(**model_config(**changes))
    with pytest.raises(UserError, match="does not fit this model"):
        checkpoints.load_weights(other, checkpoints.select(folder))


def test_weights_without_optimizers_cannot_go_on_training(tmp_path):
    """Keras would drop the state with a warning, and the training would go on from empty moments."""
    model = R2CGAN(**model_config())
    checkpoint = checkpoints.save_checkpoint(tmp_path, model, epoch=1, step=1)
    model.compile()
    with pytest.raises(UserError, match="does not fit this model"):
        checkpoints.load_weights(model, checkpoint)


@pytest.mark.slow
def test_a_run_with_moving_averages_restores_with_these(tmp_path):
    model = R2CGAN(**model_config(pool_size=0))
    schedule = LinearDecay(0.05, total_steps=9, decay_start=9)
    model.compile(Adam(schedule, use_ema=True, ema_momentum=0.5), Adam(schedule))
    one_hot = np.eye(2, dtype="float32")
    seen = []
    for _ in range(3):
        model.train_step(((images(), one_hot), (images()[::-1], one_hot)))
        seen.append(model.restorer.get_weights())
    # Decays of 2/11 and 3/12, which are on their way to 0.5.
    expected = [
        (first * 2 / 11 + second * 9 / 11) / 4 + third * 3 / 4 for first, second, third in zip(*seen, strict=True)
    ]
    checkpoints.write_config(tmp_path, model.config, {"ema_decay": 0.5})
    checkpoints.save_checkpoint(tmp_path, model, epoch=1, step=3)
    loaded, checkpoint = checkpoints.load_model(tmp_path)
    for average, by_hand, last in zip(loaded.restorer.get_weights(), expected, seen[-1], strict=True):
        np.testing.assert_allclose(average, by_hand, atol=1e-5)
        assert not np.allclose(average, last, atol=1e-4)
    # A training that is resumed goes on from the weights themselves.
    resumed = R2CGAN(**model_config(pool_size=0))
    resumed.compile(Adam(schedule, use_ema=True, ema_momentum=0.5), Adam(schedule))
    checkpoints.load_weights(resumed, checkpoint)
    for weights, last in zip(resumed.restorer.get_weights(), seen[-1], strict=True):
        np.testing.assert_array_equal(weights, last)


def test_config_round_trip(tmp_path):
    checkpoints.write_config(tmp_path, model_config(), {"lr": 0.1})
    config = checkpoints.read_config(tmp_path)
    assert config["model"] == model_config()
    assert config["training"] == {"lr": 0.1}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (None, "not a run folder"),
        ("{", "not a readable JSON file"),
        ("[]", "not a run of this version"),
        ('{"format": 3, "model": {}}', "not a run of this version"),
        ('{"format": 1}', "not a run of this version"),
    ],
)
def test_a_folder_that_is_no_run(tmp_path, text, named):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=named):
        checkpoints.load_model(tmp_path)


# --- the authors' arrays ---------------------------------------------------------------------------------------------


def authors_shapes(method, q, filters, channels, generator):
    """The authors' variables, layer by layer: lists of (name, shape), a layer a list, an operational one q times."""

    def conv(kernel, inputs, outputs, bias=False, transposed=False):
        shape = (kernel, kernel, outputs, inputs) if transposed else (kernel, kernel, inputs, outputs)
        return [("kernel", shape)] + [("bias", (outputs,))] * bias

    def norm(width):
        return [("gamma", (width,)), ("beta", (width,))]

    f = filters
    if not generator:
        if method == "convolutional":
            layers = [conv(4, channels, f, bias=True)]
            for inputs, outputs in ((1, 2), (2, 4), (4, 8)):
                layers += [conv(4, inputs * f, outputs * f), norm(outputs * f)]
            return [*layers, conv(4, 8 * f, 1, bias=True)]
        return [conv(4, channels, f, bias=True), conv(4, f, 2 * f), norm(2 * f), conv(4, 2 * f, 1, bias=True)]
    if method == "convolutional":
        layers = [conv(7, channels, f), norm(f), conv(3, f, 2 * f), norm(2 * f), conv(3, 2 * f, 4 * f), norm(4 * f)]
        layers += 18 * [conv(3, 4 * f, 4 * f), norm(4 * f)]
        layers += [conv(3, 4 * f, 2 * f, transposed=True), norm(2 * f), conv(3, 2 * f, f, transposed=True), norm(f)]
        layers += [conv(7, f, channels, bias=True)]
        head = 4 * f
    else:
        layers = [conv(3, channels, 2 * f), norm(2 * f), *2 * [conv(3, 2 * f, 2 * f), norm(2 * f)]]
        layers += [conv(3, 2 * f, channels, bias=True, transposed=True)]
        head = 2 * f
    return [*layers, [("kernel", (head, 2)), ("bias", (2,))]]


def authors_layers(method, q=1, filters=2, channels=3, generator=True, seed=0):
    """Random weights by layer: [{name: array}, ...], q dictionaries for an operational layer, one for any other."""
    rng = np.random.default_rng(seed)
    layers = []
    for shapes in authors_shapes(method, q, filters, channels, generator):
        operational = method == "operational" and len(shapes[0][1]) == 4
        parts = []
        for _ in range(q if operational else 1):
            parts.append(
                {
                    name: rng.normal(0, 1 / np.sqrt(np.prod(shape[:-1]) if len(shape) > 1 else 4), shape).astype("f4")
                    for name, shape in shapes
                }
            )
        layers.append((operational, parts))
    return layers


def in_order(layers):
    return [array for _, parts in layers for part in parts for array in part.values()]


CASES = [("operational", 1), ("operational", 2), ("operational", 5), ("convolutional-light", 1), ("convolutional", 1)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("method", "q"), CASES)
def test_reference_weights_make_the_reference_network(method, q, channels):
    x = images(2, 16, channels)
    arrays = in_order(authors_layers(method, q, channels=channels))
    network = build_generator(method, q, channels, filters=2)
    assign_reference_weights(network, arrays)
    expected = {
        "operational": lambda: oracles.operational_generator(x, arrays, q),
        "convolutional-light": lambda: oracles.light_generator(x, arrays),
        "convolutional": lambda: oracles.convolutional_generator(x, arrays),
    }[method]()
    for ours, theirs in zip(network(x), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)
    arrays = in_order(authors_layers(method, q, channels=channels, generator=False))
    network = build_discriminator(method, q, channels, filters=2)
    assign_reference_weights(network, arrays)
    if method == "convolutional":
        expected = oracles.convolutional_discriminator(x, arrays)
    else:
        expected = oracles.shallow_discriminator(x, arrays, q, leaky_end=method == "operational")
    np.testing.assert_allclose(network(x), expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("method", "q", "change"),
    [
        ("operational", 3, lambda arrays: arrays[:-1]),
        ("operational", 3, lambda arrays: [*arrays, arrays[-1]]),
        ("operational", 3, lambda arrays: []),
        ("operational", 2, lambda arrays: arrays),
        ("operational", 4, lambda arrays: arrays),
        ("convolutional-light", 1, lambda arrays: arrays),
        ("convolutional", 1, lambda arrays: arrays),
    ],
)
def test_arrays_that_do_not_fit_change_nothing(method, q, change):
    arrays = change(in_order(authors_layers("operational", 3)))
    network = build_generator(method, q, filters=2)
    before = network.get_weights()
    with pytest.raises(ValueError, match="another"):
        assign_reference_weights(network, arrays)
    for a, b in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_arrays_of_another_width_are_refused():
    with pytest.raises(ValueError, match="has shape"):
        assign_reference_weights(
            build_generator("operational", 3, filters=4), in_order(authors_layers("operational", 3))
        )


# --- the authors' checkpoints ----------------------------------------------------------------------------------------


def write_authors_checkpoint(folder, method, q=1, filters=64, epoch=7, left_out=()):
    """Writes four networks as the authors' training script does; returns their layers."""
    drawn, roots = {}, {}
    for seed, (name, generator) in enumerate((("G_A2B", True), ("G_B2A", True), ("D_A", False), ("D_B", False))):
        drawn[name] = authors_layers(method, q, filters, generator=generator, seed=seed)
        network = tf.Module()
        for index, (operational, parts) in enumerate(drawn[name]):
            nodes = []
            for part in parts:
                node = tf.Module()
                for variable, array in part.items():
                    setattr(node, variable, tf.Variable(array))
                nodes.append(node)
            layer = nodes[0]
            if operational:
                layer = tf.Module()
                layer.all_layers = nodes
            setattr(network, f"layer_with_weights-{index}", layer)
        if name not in left_out:
            roots[name] = network
    checkpoint = tf.train.Checkpoint(**roots, ep_cnt=tf.Variable(epoch))
    tf.train.CheckpointManager(checkpoint, folder, max_to_keep=5).save(checkpoint_number=epoch)
    return drawn


def by_hand(method, q, layers, build):
    """A network of ours, assigned layer by layer: kernels stacked along the inputs, biases added up."""
    network = build(method, q)
    ours = [layer for layer in network.layers if layer.weights]
    if build is build_generator:
        ours.sort(key=lambda layer: layer.name == "probabilities")
    for layer, (operational, parts) in zip(ours, layers, strict=True):
        if operational:
            axis = 3 if isinstance(layer, OperationalConv2DTranspose) else 2
            weights = [np.concatenate([part["kernel"] for part in parts], axis)]
            if "bias" in parts[0]:
                weights.append(np.sum([part["bias"] for part in parts], axis=0))
            layer.set_weights(weights)
        else:
            layer.set_weights(list(parts[0].values()))
    return network


@pytest.fixture(scope="module", params=[("operational", 2), ("convolutional-light", 1)], ids=str)
def imported(request, tmp_path_factory):
    """An authors' checkpoint, imported: (method, q, what it held, run folder)."""
    method, q = request.param
    folder = tmp_path_factory.mktemp("authors")
    drawn = write_authors_checkpoint(folder / "checkpoint", method, q, epoch=12)
    checkpoints.import_authors_checkpoint(folder / "checkpoint", folder / "run", method, q, image_size=32)
    return method, q, drawn, folder / "run"


def test_imported_run_is_the_authors_model(imported):
    method, q, drawn, run = imported
    model, checkpoint = checkpoints.load_model(run)
    assert checkpoint.epoch == 12
    assert (model.config["method"], model.config["image_size"]) == (method, (32, 32))
    x = images()
    for theirs, ours, build in (
        ("G_A2B", "restorer", build_generator),
        ("G_B2A", "degrader", build_generator),
        ("D_A", "discriminator_a", build_discriminator),
        ("D_B", "discriminator_b", build_discriminator),
    ):
        expected = keras.tree.flatten(by_hand(method, q, drawn[theirs], build)(x))
        for one, other in zip(keras.tree.flatten(getattr(model, ours)(x)), expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_imported_run_restores(imported):
    _, _, _, run = imported
    x = images()
    expected, _ = checkpoints.load_model(run)[0].restorer(x)
    restorer = Restorer.load(run)
    np.testing.assert_allclose(restorer(x).passes[0], expected, atol=1e-6)
    assert restorer.source["epoch"] == 12


def test_a_run_is_not_imported_over(imported, tmp_path):
    method, q, _, run = imported
    with pytest.raises(UserError, match="holds a run already"):
        checkpoints.import_authors_checkpoint(run.parent / "checkpoint", run, method, q)


@pytest.mark.parametrize(
    ("method", "q"), [("operational", 3), ("operational", 1), ("convolutional", 2), ("convolutional-light", 2)]
)
def test_another_method_or_q_is_refused(tmp_path, method, q):
    write_authors_checkpoint(tmp_path / "checkpoint", "operational", 2, filters=2)
    with pytest.raises(UserError, match=rf"a checkpoint of --method=operational --q=2, not of --method={method}"):
        checkpoints.import_authors_checkpoint(tmp_path / "checkpoint", tmp_path / "run", method, q)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("method", "q"), [("operational", 1), ("convolutional-light", 1), ("convolutional", 1)])
def test_the_method_is_read_from_the_checkpoint(tmp_path, method, q):
    drawn = write_authors_checkpoint(tmp_path, method, q, filters=2, epoch=4)
    read = read_authors_checkpoint(tmp_path)
    assert (read.method, read.q, read.epoch) == (method, q if method == "operational" else None, 4)
    for theirs, ours in (("G_A2B", "restorer"), ("D_B", "discriminator_b")):
        for one, other in zip(read.networks[ours], in_order(drawn[theirs]), strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_newest_of_several_is_read(tmp_path):
    for epoch in (9, 10):  # by name, 9 would be the last
        write_authors_checkpoint(tmp_path, "convolutional-light", filters=2, epoch=epoch)
    assert read_authors_checkpoint(tmp_path).epoch == 10


def test_another_width_is_refused(tmp_path):
    write_authors_checkpoint(tmp_path / "checkpoint", "operational", 2, filters=2)
    with pytest.raises(UserError, match="does not fit the authors' networks"):
        checkpoints.import_authors_checkpoint(tmp_path / "checkpoint", tmp_path / "run", "operational", 2)
    assert not (tmp_path / "run").exists()


def test_checkpoints_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        read_authors_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no TensorFlow checkpoint"):
        read_authors_checkpoint(tmp_path)
    write_authors_checkpoint(tmp_path / "no-network", "convolutional-light", filters=2, left_out=("D_A",))
    with pytest.raises(UserError, match="holds no D_A"):
        read_authors_checkpoint(tmp_path / "no-network")
    damaged = tmp_path / "damaged"
    write_authors_checkpoint(damaged, "convolutional-light", filters=2)
    (data,) = damaged.glob("*.data-*")
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a readable TensorFlow checkpoint"):
        read_authors_checkpoint(damaged)
    data.unlink()
    with pytest.raises(UserError, match="not a readable TensorFlow checkpoint"):
        read_authors_checkpoint(damaged)
    (index,) = damaged.glob("*.index")
    index.write_bytes(b"not an index")
    with pytest.raises(UserError, match="not a readable TensorFlow checkpoint"):
        read_authors_checkpoint(damaged)


@pytest.fixture
def reference_dir():
    folder = os.environ.get("R2C_GAN_REFERENCE_DIR")
    if not folder:
        pytest.skip("R2C_GAN_REFERENCE_DIR names no folder with the record of the authors' implementation")
    return Path(folder) / "operational_q3"


@pytest.mark.parametrize("step", [0, 3])
def test_a_real_checkpoint_of_the_authors(reference_dir, tmp_path, step):
    arrays = np.load(reference_dir / "arrays.npz")
    folder = reference_dir / f"checkpoint_step{step}"
    checkpoints.import_authors_checkpoint(folder, tmp_path, "operational", 3, image_size=64)
    model, _ = checkpoints.load_model(tmp_path)
    outputs = {
        **dict(zip(("G_A2B_image", "G_A2B_class"), model.restorer(arrays["A"]), strict=True)),
        **dict(zip(("G_B2A_image", "G_B2A_class"), model.degrader(arrays["B"]), strict=True)),
        "D_A_logits": model.discriminator_a(arrays["A"]),
        "D_B_logits": model.discriminator_b(arrays["B"]),
    }
    for name, output in outputs.items():
        recorded = arrays[f"step{step}_{name}"]
        scale = np.abs(recorded).max() if name.endswith("logits") else 1
        assert np.abs(output - recorded).max() <= 1e-4 * scale, name
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["training"] == {"imported_from": folder.name}


@pytest.mark.parametrize("method", PAPER_METHODS)
def test_oracle_shapes_are_the_networks(method):
    """The shapes that these tests write down for the authors' networks, against the parameter counts they report."""
    counts = {"operational": (906_507, 409_027), "convolutional": (11_383_941, 2_765_633)}
    counts["convolutional-light"] = (302_853, 136_513)
    q = 3 if method == "operational" else 1
    for generator, count in zip((True, False), counts[method], strict=True):
        total = 0
        for shapes in authors_shapes(method, q, 64, 3, generator):
            size = sum(int(np.prod(shape)) for _, shape in shapes)
            total += size * (q if len(shapes[0][1]) == 4 else 1)
        assert total == count


# --- room on the disk ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("averaged", [False, True])
def test_the_room_asked_for_is_what_a_checkpoint_takes(tmp_path, monkeypatch, averaged):
    asked = []
    monkeypatch.setattr("r2c_gan.files.require_space", lambda path, size: asked.append(size))
    model = R2CGAN(filters=4, image_size=32)
    model.compile(Adam(use_ema=averaged), Adam())
    taken = checkpoints.save_checkpoint(tmp_path, model, 1, 0).weights.stat().st_size
    assert taken <= asked[0] < 1.2 * taken


def test_no_room_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(
        UserError, match=r"epoch-00001\.weights\.h5: cannot be written \(.*it needs 9000000000000\.0 MB"
    ):
        files.require_space(tmp_path / "checkpoints" / "epoch-00001.weights.h5", 9 * 10**18)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def received_run(folder, **records):
    """A run folder from somewhere else: `{epoch: what its record names as the weights}`."""
    values = {"step": 1, "measures": {}, "sha256": ""}
    for epoch, weights in records.items():
        files.write_json(
            folder / "checkpoints" / f"epoch-{epoch[1:]}.json", {**values, "epoch": int(epoch[1:]), "weights": weights}
        )


@pytest.mark.parametrize("weights", ["../../precious.txt", "/etc/hostname", "epoch-00002.json", "..", "", None, 7])
def test_a_received_run_deletes_nothing_but_its_own_checkpoints(weights, tmp_path):
    run, precious = tmp_path / "run", tmp_path / "precious.txt"
    precious.write_text("mine")
    weights = str(precious) if weights == "/etc/hostname" else weights
    received_run(run, e00001=weights, e00002="epoch-00002.weights.h5", e00003="epoch-00003.weights.h5")
    for epoch in (2, 3):
        (run / "checkpoints" / f"epoch-{epoch:05d}.weights.h5").touch()
    with pytest.warns(UserWarning, match=r"epoch-00001\.json: not a readable checkpoint record, passed over"):
        assert [checkpoint.epoch for checkpoint in checkpoints.list_checkpoints(run)] == [2, 3]
    with pytest.warns(UserWarning, match="passed over"):
        checkpoints.prune(run, keep=1)
    assert precious.read_text() == "mine"
    assert sorted(path.name for path in (run / "checkpoints").glob("epoch-*[23]*")) == [
        "epoch-00003.json",
        "epoch-00003.weights.h5",
    ]
