"""The order of reads and writes in the training step that TensorFlow runs, which is not the one it was told."""

import itertools
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from r2c_gan.models.model import R2CGAN
from r2c_gan.models.optimizers import Adam
from r2c_gan.training import tensorflow_backend as tensorflow_training

DRAWN = {"skip": "tone_curve", "noise_channels": 2, "drawn_tone": True}


@pytest.fixture
def as_in_training():
    """TensorFlow set up as a training sets it up: what the graph optimizer does depends on it."""
    with tensorflow_training.prepared(types.SimpleNamespace(deterministic=True)):
        yield


def compiled(average=False, clip_norm=None, **options):
    small = {"method": "convolutional-light", "q": 1, "filters": 2, "channels": 1, "image_size": 16, "pool_size": 0}
    model = R2CGAN(**{**small, **options})
    settings = {"global_clipnorm": clip_norm}
    model.compile(Adam(0.01, use_ema=average, **settings), Adam(0.01, **settings))
    return model


def batch(model):
    rng = np.random.default_rng(0)
    shape = (2, *model.config["image_size"], model.config["channels"])
    labels = tf.constant(np.eye(2, dtype="float32"))
    return tuple((tf.constant(rng.uniform(-1, 1, shape).astype("float32")), labels) for _ in range(2))


def optimized_graphs(function, *arguments):
    """(the graph as it was traced, the graph as it runs) of a call."""
    function.get_concrete_function(*arguments)
    context.enable_graph_collection()
    try:
        function(*arguments)
        graphs = context.export_run_metadata().function_graphs
    finally:
        context.disable_graph_collection()
    largest = max(graphs, key=lambda graph: len(graph.pre_optimization_graph.node))
    return largest.pre_optimization_graph, largest.post_optimization_graph


class Order:
    """Which nodes of a graph come before which, by data and control edges."""

    def __init__(self, graph):
        self.nodes = {node.name: node for node in graph.node}
        self.places = {name: place for place, name in enumerate(self.nodes)}
        self.before = {}  # name -> bits of the places of all nodes that come before
        for name in self.nodes:
            self._visit(name)

    def inputs(self, name):
        return [text.lstrip("^").split(":")[0] for text in self.nodes[name].input]

    def _visit(self, name):
        waiting = [name]
        while waiting:
            name = waiting[-1]
            missing = [other for other in self.inputs(name) if other not in self.before]
            if missing:
                waiting += missing
                continue
            waiting.pop()
            bits = 0
            for other in self.inputs(name):
                bits |= self.before[other] | 1 << self.places[other]
            self.before[name] = bits

    def ordered(self, first, second):
        return bool(self.before[second] >> self.places[first] & 1)

    def accesses(self):
        """Variable -> (reads, writes)."""
        found = {}
        for name, node in self.nodes.items():
            if node.op.endswith("VariableOp"):
                variable = self.inputs(name)[0]
                found.setdefault(variable, ([], []))[node.op != "ReadVariableOp"].append(name)
        return found


def lost_orders(traced, run):
    """Pairs of accesses of one variable, one of them a write, whose order the graph optimizer dropped."""
    told, left = Order(traced), Order(run)
    kept = left.accesses()
    lost = []
    for variable, (reads, writes) in told.accesses().items():
        here = set(itertools.chain(*kept.get(variable, ([], []))))
        for write in writes:
            assert write in here, f"{write}: a write is gone, or has another name"
            for other in {*reads, *writes} & here - {write}:
                lost += [(a, b) for a, b in ((write, other), (other, write)) if told.ordered(a, b)]
    assert kept
    return [(first, second) for first, second in lost if not left.ordered(first, second)]


@pytest.mark.parametrize(
    "options",
    [
        DRAWN,
        {"method": "operational", "q": 3, "channels": 3, "pool_size": 2},
        pytest.param(
            {"method": "operational", "q": 2, "channels": 3, "pool_size": 3, "average": True, **DRAWN},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {
                "method": "convolutional",
                "skip": "tone_curve",
                "upsampling": "resize",
                "noise_channels": 1,
                "pool_size": 2,
                "average": True,
                "clip_norm": 1.0,
            },
            marks=pytest.mark.slow,
        ),
    ],
    ids=["drawn", "paper", "drawn and all else", "noise"],
)
def test_the_graph_optimizer_keeps_the_order_of_reads_and_writes(as_in_training, options):
    model = compiled(**options)
    assert lost_orders(*optimized_graphs(tf.function(model.train_step), batch(model))) == []


def test_the_check_sees_an_order_that_is_lost(as_in_training, monkeypatch):
    """Gradients that wait for nothing: the curve's weights may then be read before or after they are written."""
    monkeypatch.setattr("r2c_gan.models.tensorflow_step._after", lambda values, gradients: gradients)
    model = compiled(**DRAWN)
    lost = lost_orders(*optimized_graphs(tf.function(model.train_step), batch(model)))
    assert lost
    assert all("drawn_tone_curve" in first and "exposure" in first for first, _ in lost)


def test_a_step_with_a_drawn_tone_is_the_same_300_times(as_in_training):
    keras.utils.set_random_seed(1)
    model = compiled(**DRAWN)
    data = batch(model)
    kept = [*model.variables, *model.generator_optimizer.variables, *model.discriminator_optimizer.variables]
    kept = [variable.value for variable in (*kept, model.noise.draws.state)]
    step = tf.function(model.train_step)
    step(data)  # the optimizers' state is then no longer zero
    start = [tf.constant(variable.numpy()) for variable in kept]

    @tf.function
    def restore():
        for variable, value in zip(kept, start, strict=True):
            variable.assign(value)

    @tf.function
    def read():
        return tf.concat([tf.reshape(tf.cast(variable, tf.float64), [-1]) for variable in kept], axis=0)

    results = set()
    for _ in range(300):
        restore()
        step(data)
        results.add(read().numpy().tobytes())
    assert len(results) == 1
