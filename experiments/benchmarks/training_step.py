"""Times training steps, restoring and the input pipeline, side by side with a naive implementation.

  python -m experiments.benchmarks --output_dir results/benchmark

For each method, q, size and batch, one process times a naive implementation of the authors' algorithm
(`experiments.benchmarks.baseline`, float32) and the library's step in each precision; they take turns, and the figures
to read are ratios. Peak memory is that of a fresh process, TensorFlow included, that does nothing else. The step is
also timed without each of its optimisations. FLOPs are those of the convolutions (`experiments.benchmarks.flops`), the
peak is that of matrix products measured in the same run. What `result.json` holds already is not measured again.
"""

import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import flags
from tqdm import tqdm

from experiments.benchmarks.machine import machine
from r2c_gan import files
from r2c_gan.cli import program
from r2c_gan.errors import UserError

FLAGS = flags.FLAGS
PRECISIONS = ("float32", "mixed_bfloat16")
NETWORKS = {
    "operational-1": ("operational", 1),
    "operational-3": ("operational", 3),
    "operational-5": ("operational", 5),
    "convolutional-light": ("convolutional-light", 1),
    "convolutional": ("convolutional", 1),
}
# Where the optimisations are taken away one at a time: network, size, batch, options beside the paper.
HEADLINE = [
    ("operational-3", 256, 1, {}),
    ("operational-3", 64, 4, {}),
    ("operational-3", 64, 4, {"upsampling": "resize"}),
    ("operational-3", 128, 4, {"upsampling": "resize"}),
]
RESTORED = 256
WARM_UP = 2


def main():
    if FLAGS.internal:
        print("result " + json.dumps(_INTERNAL[FLAGS.internal](**json.loads(FLAGS.arguments))))
        return
    output = Path(FLAGS.output_dir)
    program.write_flags(output)
    unknown = [name for name in FLAGS.networks if name not in NETWORKS]
    if unknown:
        raise UserError(f"--networks={unknown[0]}: must be some of {', '.join(NETWORKS)}")
    path = output / "result.json"
    result = files.read_json(path) if path.exists() else {"machine": machine(), "steps": [], "optimisations": []}
    if result["machine"] != machine():
        raise UserError(f"{path}: was measured on another machine; give another --output_dir")
    if "peak_gflops" not in result:
        result["peak_gflops"] = _process("peak")
    done = [(row["network"], row["size"], row["batch"]) for row in result["steps"]]
    cells = [
        (name, int(size), int(batch)) for name in FLAGS.networks for size in FLAGS.sizes for batch in FLAGS.batches
    ]
    for cell in tqdm([cell for cell in cells if cell not in done], "steps"):
        result["steps"].append(_cell(*cell, result["peak_gflops"]))
        files.write_json(path, result)
    if FLAGS.optimisations:
        done = [{key: row[key] for key in OPTIMISATION_KEYS} for row in result["optimisations"]]
        rows = [
            dict(zip(OPTIMISATION_KEYS, (*cell, precision), strict=True))
            for cell in HEADLINE
            for precision in PRECISIONS
        ]
        for row in tqdm([row for row in rows if row not in done], "optimisations"):
            result["optimisations"].append({**row, **_process("optimisations", **row, repeats=FLAGS.repeats)})
            files.write_json(path, result)
    if "restoring" not in result:
        result["restoring"] = _process("restoring", repeats=FLAGS.repeats)
        for row in result["restoring"]:
            row["share_of_peak"] = round(row["gflops"] / result["peak_gflops"][row["precision"]], 3)
        result["pipeline"] = _process("pipeline")
    consumed = [row["float32"]["seconds"] for row in result["steps"] if (row["size"], row["batch"]) == (256, 1)]
    if consumed:
        result["pipeline"]["over_consumption"] = round(result["pipeline"]["samples_per_second"] * min(consumed), 1)
    files.write_json(path, result)
    print(table(result))


def table(result):
    """The steps in Markdown."""
    lines = [
        f"measured peak, GFLOP/s: {result['peak_gflops']}",
        "| network | size | batch | naive (s) | float32 / naive | share of peak | bfloat16 / naive | memory / naive |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["steps"]:
        low = row["mixed_bfloat16"]
        lines.append(
            f"| {row['network']} | {row['size']} | {row['batch']} | {row['naive']['seconds']:.3f} | "
            f"{row['float32']['ratio']:.2f} | {row['float32']['share_of_peak']:.2f} | {low['ratio']:.2f} | "
            f"{row['float32'].get('memory_ratio', float('nan')):.2f} |"
        )
    return "\n".join(lines)


def _cell(name, size, batch, peak):
    from experiments.benchmarks.flops import step_flops

    method, q = NETWORKS[name]
    row = {"network": name, "size": size, "batch": batch}
    row["gflop"] = round(step_flops(method, q, size=size, batch_size=batch) / 1e9, 1)
    seconds = _process("steps", name=name, size=size, batch=batch, repeats=FLAGS.repeats)
    for variant, values in seconds.items():
        median = statistics.median(values)
        row[variant] = {
            "seconds": round(median, 4),
            "fastest": round(min(values), 4),
            "ratio": round(statistics.median([a / b for a, b in zip(values, seconds["naive"], strict=True)]), 3),
            "gflops": round(row["gflop"] / median, 1),
            "share_of_peak": round(row["gflop"] / median / peak["float32" if variant == "naive" else variant], 3),
        }
        if FLAGS.memory:
            row[variant]["peak_mib"] = _process("memory", name=name, size=size, batch=batch, variant=variant)
            row[variant]["memory_ratio"] = round(row[variant]["peak_mib"] / row["naive"]["peak_mib"], 3)
    return row


def _process(task, **arguments):
    """Runs a task in a process of its own and returns its result."""
    command = [
        sys.executable,
        "-m",
        "experiments.benchmarks.training_step",
        f"--internal={task}",
        f"--arguments={json.dumps(arguments)}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{task} {arguments}: failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1].removeprefix("result "))


# What the processes do


def _peak(side=4096, repeats=8):
    """GFLOP/s of a product of two square matrices, in both precisions."""
    import tensorflow as tf

    found = {}
    for precision, dtype in zip(PRECISIONS, (tf.float32, tf.bfloat16), strict=True):
        matrix = tf.cast(tf.random.normal((side, side)), dtype)
        product = tf.function(lambda a: tf.reduce_sum(tf.matmul(a, a)))
        seconds = _timed({"": lambda product=product, matrix=matrix: float(product(matrix))}, repeats)[""]
        found[precision] = round(2 * side**3 / min(seconds) / 1e9, 1)
    return found


def _steps(name, size, batch, repeats):
    return _timed({variant: _step(name, size, batch, variant) for variant in ("naive", *PRECISIONS)}, repeats)


def _optimisations(network, size, batch, options, precision, repeats):
    """Seconds of a step, whole and without each optimisation in turn, and the ratios to the whole."""
    steps = {"whole": _step(network, size, batch, precision, **options)}
    optimisations = [
        optimisation
        for optimisation in OPTIMISATIONS
        if optimisation != ENLARGING or options.get("upsampling") == "resize"
    ]
    for optimisation in optimisations:
        step = _step(network, size, batch, precision, **options)
        with without(optimisation, batch):
            step()  # the first call traces
        steps[optimisation] = step
    seconds = _timed(steps, repeats)
    return {
        "seconds": round(statistics.median(seconds["whole"]), 4),
        "without": {
            optimisation: round(
                statistics.median([a / b for a, b in zip(seconds[optimisation], seconds["whole"], strict=True)]), 3
            )
            for optimisation in optimisations
        },
    }


def _memory(name, size, batch, variant):
    """Peak resident memory of this process after three steps, in MiB."""
    step = _step(name, size, batch, variant)
    for _ in range(3):
        step()
    return round(int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()).group(1)) / 1024, 1)


def _restoring(repeats, network="operational-3"):
    """Images a second of the restorer, and its GFLOP/s."""
    import numpy as np
    import tensorflow as tf

    from experiments.benchmarks.flops import forward_flops
    from r2c_gan.models.networks import build_generator

    _quiet_remapper()
    method, q = NETWORKS[network]
    rows, steps = [], {}
    for batch in (1, 4):
        image = tf.constant(np.random.default_rng(0).uniform(-1, 1, (batch, RESTORED, RESTORED, 3)), tf.float32)
        for precision in PRECISIONS:
            generator = build_generator(method, q, dtype=precision)
            restore = tf.function(lambda image, generator=generator: generator(image)[0])
            steps[batch, precision] = lambda restore=restore, image=image: restore(image).numpy()
    gflop = sum(forward_flops(generator, RESTORED, RESTORED).values()) / 1e9
    for (batch, precision), seconds in _timed(steps, 3 * repeats).items():
        speed = batch / statistics.median(seconds)
        rows.append(
            {
                "network": network,
                "size": RESTORED,
                "batch": batch,
                "precision": precision,
                "images_per_second": round(speed, 2),
                "gflops": round(speed * gflop, 1),
            }
        )
    return rows


def _pipeline(samples=160):
    """Pairs of training samples a second, from 256-pixel PNGs to crops of 256 from 286."""
    import numpy as np

    from r2c_gan.data.datasets import read_domain
    from r2c_gan.data.images import write_image
    from r2c_gan.data.streams import UnpairedStream

    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        for domain in ("a", "b"):
            for index in range(40):
                smooth = np.cumsum(rng.normal(0, 0.01, (256, 256, 1)), axis=1)
                write_image(Path(folder) / domain / f"normal-{index}.png", np.clip(smooth, -1, 1))
        stream = UnpairedStream(*(read_domain(Path(folder) / domain) for domain in ("a", "b")))
        batches = iter(stream.dataset(epochs=1000))
        for _ in range(20):
            next(batches)
        started = time.perf_counter()
        for _ in range(samples):
            next(batches)
        return {
            "samples_per_second": round(samples / (time.perf_counter() - started), 1),
            "size": 256,
            "load_size": 286,
        }


_INTERNAL = {
    "peak": _peak,
    "steps": _steps,
    "optimisations": _optimisations,
    "memory": _memory,
    "restoring": _restoring,
    "pipeline": _pipeline,
}


def _step(name, size, batch, variant, **options):
    """A function that takes one training step and waits for it; options are those of `R2CGAN`."""
    import numpy as np
    import tensorflow as tf

    _quiet_remapper()
    method, q = NETWORKS[name]
    rng = np.random.default_rng(0)
    images = [tf.constant(rng.uniform(-1, 1, (batch, size, size, 3)), tf.float32) for _ in range(2)]
    labels = [tf.one_hot(np.arange(batch) % 2, 2)] * 2
    if variant == "naive":
        from experiments.benchmarks.baseline import NaiveImplementation

        naive = NaiveImplementation(method, q)
        return lambda: float(naive.step(images[0], labels[0], images[1], labels[1])[1])
    from r2c_gan.models.model import R2CGAN

    model = R2CGAN(method, q, image_size=size, dtype=variant, **options)
    model.compile()
    step = tf.function(lambda: model.train_step(((images[0], labels[0]), (images[1], labels[1])))["generator_loss"])
    return lambda: float(step())


def _quiet_remapper():
    import tensorflow as tf

    tf.config.optimizer.set_experimental_options({"remapping": False})  # as in r2c_gan.training.trainer


def _timed(functions, repeats):
    """Seconds of each function; they take turns."""
    seconds = {name: [] for name in functions}
    for repeat in range(repeats + WARM_UP):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if repeat >= WARM_UP:
                seconds[name].append(time.perf_counter() - started)
    return seconds


# The optimisations, and the step without them

ENLARGING = "enlarging by one kernel"
OPTIMISATIONS = (
    "fused normalisation",
    "powers computed again",
    "pool written in place",
    "one call for both inputs",
    ENLARGING,
)
OPTIMISATION_KEYS = ("network", "size", "batch", "options", "precision")


@contextlib.contextmanager
def without(optimisation, batch):
    """While a step of `batch` images a domain is traced within it, or run eagerly, the step lacks one optimisation."""
    from unittest import mock

    import keras
    from keras import ops

    from r2c_gan.layers import operational as layers
    from r2c_gan.layers import tensorflow_kernels, upsampling
    from r2c_gan.models import model

    def plain_sum(x, kernels, sides, convolve):
        terms = layers.powers(ops.pad(x, [(0, 0), *sides, (0, 0)], mode="reflect"), len(kernels))
        return sum(convolve(term, kernel) for term, kernel in zip(terms, kernels, strict=True))

    def apart(network):
        def call(images, training=False):
            if images.shape[0] == batch:
                return network(images, training=training)
            parts = [network(part, training=training) for part in ops.split(images, 2)]
            return [ops.concatenate(outputs) for outputs in zip(*parts, strict=True)]

        return call

    def generator_step(self, *arguments, **options):
        degrader = apart(self.degrader)

        class Apart:
            restorer = apart(self.restorer)
            discriminator_a, discriminator_b = self.discriminator_a, self.discriminator_b
            options, loss_weights = self.options, self.loss_weights

            def degrade(images, noise, training):
                return degrader(images, training=training)

        return whole(Apart, *arguments, **options)

    whole = model.R2CGAN.generator_step
    patches = {
        "fused normalisation": (layers.InstanceNormalization, "call", keras.layers.GroupNormalization.call),
        "powers computed again": (tensorflow_kernels, "sum_over_powers", plain_sum),
        "pool written in place": (tensorflow_kernels, "may_write_in_place", lambda: False),
        "one call for both inputs": (model.R2CGAN, "generator_step", generator_step),
        ENLARGING: (tensorflow_kernels, "bilinear_upsampling", upsampling.bilinear_upsampling),
    }
    with mock.patch.object(*patches[optimisation]):
        yield


def console():
    # Here and not above, so that importing this module defines no flags.
    flags.DEFINE_string("output_dir", "results/benchmark", "Folder for result.json.")
    flags.DEFINE_list("networks", list(NETWORKS), f"Networks: {', '.join(NETWORKS)}.")
    flags.DEFINE_list("sizes", ["64", "128", "256"], "Sides of the images, in pixels.")
    flags.DEFINE_list("batches", ["1", "4"], "Images a domain and step.")
    flags.DEFINE_integer("repeats", 6, "Timed steps of each variant.")
    flags.DEFINE_bool("memory", True, "Measure peak memory too.")
    flags.DEFINE_bool("optimisations", True, "Time the step without each of its optimisations.")
    flags.DEFINE_string("internal", None, "Internal: the task that this process is to do.")
    flags.DEFINE_string("arguments", "{}", "Internal: its arguments as JSON.")
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
