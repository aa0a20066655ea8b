"""R2CGAN: its training step against one written out by hand, and exact restoring in another process."""

import os
import subprocess
import textwrap
from pathlib import Path

import keras
import numpy as np
import programs
import pytest
import tensorflow as tf
from keras import ops

from r2c_gan.models.losses import LossWeights
from r2c_gan.models.model import DISCRIMINATOR_TERMS, GENERATOR_TERMS, METRICS, R2CGAN
from r2c_gan.models.optimizers import Adam
from r2c_gan.models.schedules import LinearDecay
from r2c_gan.options.network import PAPER_METHODS

SIZE = 16
# The deep network's steps take as long as all others together.
EACH = [pytest.param(name, marks=pytest.mark.slow) if name == "convolutional" else name for name in PAPER_METHODS]


def batch(seed=0, n=2, size=SIZE, channels=3):
    rng = np.random.default_rng(seed)
    one_hot = np.eye(2, dtype="float32")

    def domain():
        return rng.uniform(-1, 1, (n, size, size, channels)).astype("float32"), one_hot[rng.integers(0, 2, n)]

    return domain(), domain()


def dataset(*seeds, **arguments):
    data = [batch(seed, **arguments) for seed in seeds]
    return tf.data.Dataset.from_tensor_slices(
        tuple(tuple(np.stack([b[d][i] for b in data]) for i in range(2)) for d in range(2))
    )


def fit(model, *seeds):
    """An epoch of the batches of these seeds, in a graph."""
    model.fit(dataset(*seeds), shuffle=False, verbose=0)


def train(model, *seeds):
    """The same without a graph, which for a few steps is much faster; returns the epoch's mean losses."""
    model.reset_metrics()
    for seed in seeds:
        logs = model.train_step(batch(seed))
    return {name: float(value) for name, value in logs.items()}


def tiny(method="convolutional-light", **arguments):
    return R2CGAN(method, **{"q": 2, "filters": 3, "image_size": SIZE, "pool_size": 0, **arguments})


def state(model):
    """Every number that a training depends on: networks, pools, both optimizers."""
    variables = [*model.weights, *model.optimizer.variables, *model.discriminator_optimizer.variables]
    return [variable.numpy() for variable in variables]


def assert_same_state(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


# --- the training step -----------------------------------------------------------------------------------------------


def cross_entropy(labels, probabilities):
    return -ops.mean(ops.sum(labels * ops.log(probabilities), axis=-1))


def step_by_hand(model, data, rates, weights, fakes_after_the_update=False):
    """A step of the authors' training, pass by pass, with plain gradient descent. Returns its losses."""
    (a, label_a), (b, label_b) = data
    g, f, d_a, d_b = model.restorer, model.degrader, model.discriminator_a, model.discriminator_b
    with tf.GradientTape() as tape:
        fake_b, class_a2b = g(a)
        cycled_a, class_a2b2a = f(fake_b)
        fake_a, class_b2a = f(b)
        cycled_b, class_b2a2b = g(fake_a)
        same_a, class_a2a = f(a)
        same_b, class_b2b = g(b)
        terms = {
            "adversarial_a2b": ops.mean((d_b(fake_b) - 1) ** 2),
            "adversarial_b2a": ops.mean((d_a(fake_a) - 1) ** 2),
            "cycle_a": ops.mean(ops.abs(a - cycled_a)),
            "cycle_b": ops.mean(ops.abs(b - cycled_b)),
            "identity_a": ops.mean(ops.abs(a - same_a)),
            "identity_b": ops.mean(ops.abs(b - same_b)),
            "class_a2b": cross_entropy(label_a, class_a2b),
            "class_b2a": cross_entropy(label_b, class_b2a),
            "class_a2b2a": cross_entropy(label_a, class_a2b2a),
            "class_b2a2b": cross_entropy(label_b, class_b2a2b),
            "class_a2a": cross_entropy(label_a, class_a2a),
            "class_b2b": cross_entropy(label_b, class_b2b),
        }
        factor = {"a": 1.0, "c": weights.cycle, "i": weights.identity}
        total = sum(
            value * (weights.classification if name.startswith("class") else factor[name[0]])
            for name, value in terms.items()
        )
    losses = {**terms, "generator_loss": total}
    variables = g.trainable_variables + f.trainable_variables
    descend((g, f), tape.gradient(total, [variable.value for variable in variables]), rates[0])
    if fakes_after_the_update:
        fake_b, fake_a = g(a)[0], f(b)[0]
    with tf.GradientTape() as tape:
        terms = {
            "discriminator_a_real": ops.mean((d_a(a) - 1) ** 2),
            "discriminator_a_fake": ops.mean(d_a(fake_a) ** 2),
            "discriminator_b_real": ops.mean((d_b(b) - 1) ** 2),
            "discriminator_b_fake": ops.mean(d_b(fake_b) ** 2),
        }
        total = sum(terms.values())
    variables = d_a.trainable_variables + d_b.trainable_variables
    descend((d_a, d_b), tape.gradient(total, [variable.value for variable in variables]), rates[1])
    losses = {**losses, **terms, "discriminator_loss": total}
    return {name: float(value) for name, value in losses.items()}


def descend(networks, gradients, rate):
    """Plain gradient descent; an operational layer's bias stands for the q biases of the authors', which move alike."""
    layers = [layer for network in networks for layer in network.layers if hasattr(layer, "q") and layer.use_bias]
    biases = {layer.bias.path: layer.q for layer in layers}
    variables = [variable for network in networks for variable in network.trainable_variables]
    for variable, gradient in zip(variables, gradients, strict=True):
        variable.assign_sub(rate * biases.get(variable.path, 1) * gradient)


@pytest.mark.parametrize("method", EACH)
def test_a_step_is_the_authors_step(method):
    weights = LossWeights(cycle=3.0, identity=2.0, classification=0.7)
    rates = 0.05, 0.02
    ours, by_hand, wrong = tiny(method), tiny(method), tiny(method)
    for other in (by_hand, wrong):
        other.set_weights(ours.get_weights())
    before = ours.get_weights()
    ours.compile(*map(keras.optimizers.SGD, rates), weights)
    history = train(ours, 0)
    losses = step_by_hand(by_hand, batch(0), rates, weights)
    assert set(losses) == set(METRICS) - {"accuracy"}
    for name, value in losses.items():
        assert history[name] == pytest.approx(value, rel=1e-5), name
    for path, was, now, expected in zip(
        [weight.path for weight in ours.weights], before, ours.get_weights(), by_hand.get_weights(), strict=True
    ):
        assert not np.array_equal(was, now), path
        change = expected - was
        np.testing.assert_allclose(now - was, change, atol=1e-3 * np.abs(change).max(), err_msg=path)
    # The order matters to this test: fakes drawn after the generators' update train the discriminators differently.
    step_by_hand(wrong, batch(0), rates, weights, fakes_after_the_update=True)
    discriminator = [weight.numpy() for weight in wrong.discriminator_b.weights]
    gaps = [
        np.abs(mine - other).max()
        for mine, other in zip([w.numpy() for w in ours.discriminator_b.weights], discriminator, strict=True)
    ]
    assert max(gaps) > 1e-4


def test_domains_may_differ_in_batch_size():
    model = tiny()
    model.compile()
    (a, label_a), _ = batch(0, n=2)
    _, (b, label_b) = batch(1, n=3)
    _, terms, fake_b, fake_a, classes = model.generator_step(a, label_a, b, label_b)
    assert (fake_b.shape[0], fake_a.shape[0], classes.shape[0]) == (2, 3, 2)
    cycled, class_b2a2b = model.restorer(model.degrader(b)[0])
    assert float(terms["cycle_b"]) == pytest.approx(float(ops.mean(ops.abs(b - cycled))), rel=1e-5)
    assert float(terms["class_b2a2b"]) == pytest.approx(float(cross_entropy(label_b, class_b2a2b)), rel=1e-4)
    real, fake = (ops.mean((model.discriminator_b(images) - target) ** 2) for images, target in ((b, 1), (fake_b, 0)))
    _, terms = model.discriminator_step(a, b, fake_a, fake_b)
    assert float(terms["discriminator_b_real"]) == pytest.approx(float(real), rel=1e-5)
    assert float(terms["discriminator_b_fake"]) == pytest.approx(float(fake), rel=1e-5)


def test_pools_hold_the_generated_images_of_their_own_domain():
    model = tiny(pool_size=3)
    model.compile()
    (a, _), (b, _) = batch(0)
    fake_b, fake_a = model.restorer(a)[0].numpy(), model.degrader(b)[0].numpy()
    train(model, 0)
    for pool, fakes in ((model.pool_a, fake_a), (model.pool_b, fake_b)):
        np.testing.assert_allclose(pool.images.numpy()[:2], fakes, atol=1e-5)
        assert np.all(pool.images.numpy()[2] == 0)
        assert int(pool.seen.numpy()) == 2


def test_discriminators_see_what_the_pools_return():
    """Pools that return an image of their own: the fake terms are those of that image."""
    model = tiny()
    model.compile()
    planted = np.full((2, SIZE, SIZE, 3), 0.5, "float32")
    model.pool_a = model.pool_b = lambda fakes: ops.convert_to_tensor(planted)
    expected = [float(ops.mean(d(planted) ** 2)) for d in (model.discriminator_a, model.discriminator_b)]
    losses = train(model, 0)
    assert losses["discriminator_a_fake"] == pytest.approx(expected[0], rel=1e-5)
    assert losses["discriminator_b_fake"] == pytest.approx(expected[1], rel=1e-5)


def test_metrics_are_means_over_the_epoch():
    model = tiny()
    model.compile(keras.optimizers.SGD(0.0), keras.optimizers.SGD(0.0))
    together = train(model, 0, 1)
    alone = [train(model, seed) for seed in (0, 1)]
    assert set(together) == set(METRICS)
    for name in METRICS:
        assert together[name] == pytest.approx((alone[0][name] + alone[1][name]) / 2, rel=1e-5)


def test_accuracy_is_that_of_the_restorer_on_poor_images():
    model = tiny()
    model.compile()
    (a, label_a), _ = batch(3, n=8)
    right = np.argmax(model.restorer(a)[1], axis=-1) == np.argmax(label_a, axis=-1)
    assert float(model.test_step(batch(3, n=8))["accuracy"]) == pytest.approx(np.mean(right))


def test_evaluation_changes_nothing_and_agrees_with_training():
    model = tiny("operational", pool_size=3)
    model.compile()
    train(model, 0)
    before = state(model)
    result = model.evaluate(dataset(5), return_dict=True, verbose=0)
    assert_same_state(before, state(model))
    model.pool_a = model.pool_b = lambda fakes: fakes
    trained = train(model, 5)
    for name in (*GENERATOR_TERMS, *DISCRIMINATOR_TERMS):
        assert trained[name] == pytest.approx(result[name], rel=1e-5)


@pytest.mark.parametrize("method", EACH)
def test_training_lowers_the_cycle_loss(method):
    model = tiny(method, filters=4)
    model.compile(Adam(2e-3), Adam(2e-3))
    history = [train(model, 0) for _ in range(5)]
    for name in ("cycle_a", "cycle_b", "identity_a", "identity_b"):
        assert history[-1][name] < history[0][name], name


def test_graph_and_eager_steps_agree():
    eager, graph = tiny("operational", pool_size=3), tiny("operational", pool_size=3)
    graph.set_weights(eager.get_weights())
    for model in (eager, graph):
        model.compile(keras.optimizers.SGD(0.01), keras.optimizers.SGD(0.01))
    fit(graph, 0, 1, 2)
    losses = train(eager, 0, 1, 2)
    assert graph.metrics[0].name == "generator_loss"
    assert float(graph.metrics[0].result()) == pytest.approx(losses["generator_loss"], rel=1e-4)
    for a, b in zip(state(eager), state(graph), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_mixed_bfloat16_trains_in_float32():
    exact, mixed = tiny("operational"), tiny("operational", dtype="mixed_bfloat16")
    mixed.set_weights(exact.get_weights())
    losses = []
    for model in (exact, mixed):
        model.compile(Adam(1e-3), Adam(1e-3))
        losses.append(train(model, 0))
    assert {weight.dtype for weight in mixed.weights if "seed" not in weight.name} == {"float32"}
    for name in ("generator_loss", "discriminator_loss", "cycle_a", "identity_b"):
        assert losses[1][name] == pytest.approx(losses[0][name], rel=0.05)
        assert losses[1][name] != losses[0][name]


def test_calling_the_model_restores():
    model = tiny()
    (a, _), _ = batch(0)
    for ours, expected in zip(model(a), model.restorer(a), strict=True):
        np.testing.assert_array_equal(ours, expected)


# --- compiling -------------------------------------------------------------------------------------------------------


def test_compile_defaults():
    model = tiny()
    model.compile()
    assert model.loss_weights == LossWeights()
    assert type(model.generator_optimizer) is type(model.discriminator_optimizer) is Adam
    assert model.generator_optimizer is not model.discriminator_optimizer
    # All state exists before the first step, or a file could not restore it.
    assert model.generator_optimizer.built and model.discriminator_optimizer.built
    counts = [2 * len(variables) + 2 for variables in (model.generator_variables, model.discriminator_variables)]
    assert [len(o.variables) for o in (model.generator_optimizer, model.discriminator_optimizer)] == counts


def test_one_optimizer_for_both_is_refused():
    optimizer = Adam()
    with pytest.raises(ValueError, match="two objects"):
        tiny().compile(optimizer, optimizer)


def test_training_without_compiling_is_refused():
    with pytest.raises(ValueError, match="compile"):
        fit(tiny(), 0)


@pytest.mark.parametrize(
    ("arguments", "named"), [({"method": "x"}, "method"), ({"q": 0}, "q must"), ({"pool_size": -1}, "pool")], ids=str
)
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        R2CGAN(**{"filters": 2, "image_size": SIZE, **arguments})


def test_pools_draw_differently():
    model = tiny(pool_size=2, seed=4)
    other = tiny(pool_size=2, seed=5)
    assert len({model.pool_a.seed, model.pool_b.seed, other.pool_a.seed, other.pool_b.seed}) == 4


# --- saving ----------------------------------------------------------------------------------------------------------

CONFIG = {"method": "operational", "q": 2, "filters": 2, "image_size": SIZE, "pool_size": 3, "seed": 6}

IN_A_FRESH_PROCESS = """
    import sys
    from pathlib import Path

    import keras
    import numpy as np
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
    sys.path.insert(0, sys.argv[2])
    import test_model
    from r2c_gan.models.model import R2CGAN

    folder = Path(sys.argv[1])
    keras.utils.set_random_seed(99)
    whole = keras.saving.load_model(folder / "model.keras")
    rebuilt = R2CGAN(**test_model.CONFIG)
    test_model.compile_with_schedules(rebuilt)
    rebuilt.load_weights(folder / "model.weights.h5")
    for name, model in (("keras", whole), ("h5", rebuilt)):
        np.savez(folder / f"{name}-restored.npz", *test_model.state(model))
        test_model.fit(model, 7, 8)
        np.savez(folder / f"{name}-trained.npz", *test_model.state(model))
"""


def compile_with_schedules(model):
    model.compile(
        Adam(LinearDecay(1e-2, total_steps=8, decay_start=2), beta_1=0.4),
        Adam(LinearDecay(2e-2, total_steps=8, decay_start=3), beta_1=0.6),
        LossWeights(cycle=2.0, identity=3.0, classification=4.0),
    )


def load_arrays(path):
    with np.load(path) as arrays:
        return [arrays[f"arr_{index}"] for index in range(len(arrays))]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model in mid-training, saved in both formats, restored and trained on in a process of its own, and here."""
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(1)
    folder = tmp_path_factory.mktemp("saved")
    model = R2CGAN(**CONFIG)
    compile_with_schedules(model)
    fit(model, 0, 1, 2, 3)  # the pools are full and have swapped
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    restored = state(model)
    fit(model, 7, 8)
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), os.environ.get("PYTHONPATH", "")])}
    script = programs.python("-c", textwrap.dedent(IN_A_FRESH_PROCESS), folder, tests)
    subprocess.run(script, check=True, env=environment)
    return folder, restored, state(model)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["keras", "h5"])
def test_a_fresh_process_restores_everything(saved, kind):
    folder, restored, _ = saved
    assert_same_state(load_arrays(folder / f"{kind}-restored.npz"), restored)
    model = R2CGAN(**CONFIG)
    compile_with_schedules(model)
    fresh = state(model)
    assert [array.shape for array in fresh] == [array.shape for array in restored]
    assert not all(np.array_equal(a, b) for a, b in zip(fresh, restored, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["keras", "h5"])
def test_a_fresh_process_trains_on_bit_for_bit(saved, kind):
    folder, before, trained = saved
    assert_same_state(load_arrays(folder / f"{kind}-trained.npz"), trained)
    assert not all(np.array_equal(a, b) for a, b in zip(before, trained, strict=True))


@pytest.mark.slow
def test_loaded_model_keeps_its_settings(saved):
    model = keras.saving.load_model(saved[0] / "model.keras")
    assert model.config == R2CGAN(**CONFIG).config
    assert model.loss_weights == LossWeights(cycle=2.0, identity=3.0, classification=4.0)
    assert (model.generator_optimizer.beta_1, model.discriminator_optimizer.beta_1) == (0.4, 0.6)
    assert float(model.generator_optimizer.learning_rate.numpy()) == pytest.approx(1e-2 * 4 / 6)  # at step 4


def test_a_model_that_was_never_called_or_compiled_can_be_saved(tmp_path):
    model = tiny("operational", pool_size=2, dtype="mixed_bfloat16")
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.dtype_policy.name == again.restorer.layers[1].dtype_policy.name == "mixed_bfloat16"
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
