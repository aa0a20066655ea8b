"""Times a training step under Keras on JAX, beside the same step on TensorFlow where that is installed.

  python -m experiments.benchmarks.backends --output_dir results/benchmark_jax
  python -m experiments.benchmarks.backends --output_dir results/gpu --backends=jax --sizes=256 --batches=1,4,16

Each backend runs in a process of its own; they take turns, step by step, and the figures to read are the ratios of each
turn. FLOPs are those of the convolutions (`experiments.benchmarks.flops`); the peak is that of matrix products, on JAX
in the same run and precision. Memory is the peak of the device where it tells, else that of the process. On a
GPU, float32 may mean 10 bits of mantissa in products (TF32); `--matmul_precision=highest` asks for all 24.
"""

import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

from absl import flags
from tqdm import tqdm

from experiments.benchmarks.machine import machine
from r2c_gan import files
from r2c_gan.cli import program
from r2c_gan.errors import UserError

FLAGS = flags.FLAGS
BACKENDS = ("tensorflow", "jax")
PRECISIONS = ("float32", "mixed_bfloat16")
WARM_UP = 2

flags.DEFINE_string("output_dir", "results/benchmark_jax", "Folder for result.json.")
flags.DEFINE_list("backends", list(BACKENDS), "Of tensorflow and jax, those to be timed.")
flags.DEFINE_list("sizes", ["64"], "Height and width of the images, in pixels.")
flags.DEFINE_list("batches", ["1", "4"], "Images a domain and step.")
flags.DEFINE_list("precisions", list(PRECISIONS), "Of float32 and mixed_bfloat16.")
flags.DEFINE_integer("q", 3, "Order of the operational layers' polynomials.")
flags.DEFINE_integer("filters", 64, "Base width of the networks.")
flags.DEFINE_integer("repeats", 10, "Steps timed, after two more.")
flags.DEFINE_integer("peak_side", 0, "Side of the matrices that measure the peak; by default what suits the device.")
flags.DEFINE_string("matmul_precision", "default", "JAX's precision of float32 products: default, high or highest.")
flags.DEFINE_string("internal", "", "Used by the program itself.")


def main():
    if FLAGS.internal:
        _work(**json.loads(FLAGS.internal))
        return
    for name, given, known in (("backends", FLAGS.backends, BACKENDS), ("precisions", FLAGS.precisions, PRECISIONS)):
        unknown = sorted(set(given) - set(known))
        if unknown or not given:
            raise UserError(f"--{name}={','.join(given)}: must be some of {', '.join(known)}")
    output = Path(FLAGS.output_dir)
    program.write_flags(output)
    result = {"machine": machine(), "load_average": [os.getloadavg()], "steps": []}
    with _worker("jax", {"task": "peak", "side": FLAGS.peak_side}) as worker:
        result["machine"].update(worker.said["machine"])
        result["peak_tflops"] = worker.said["peak_tflops"]
    cells = [
        (int(size), int(batch), name) for size in FLAGS.sizes for batch in FLAGS.batches for name in FLAGS.precisions
    ]
    for cell in tqdm(cells, "steps"):
        result["steps"].append(_cell(*cell, result["peak_tflops"]))
        files.write_json(output / "result.json", result)
    result["load_average"].append(os.getloadavg())
    files.write_json(output / "result.json", result)
    print(table(result))


def table(result):
    """The steps in Markdown."""
    lines = [
        f"measured peak, TFLOP/s: {result['peak_tflops']}",
        "| size | batch | precision | backend | s a step | images/s | TFLOP/s | share of peak | peak MiB | "
        "over TensorFlow |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["steps"]:
        for backend in BACKENDS:
            if backend in row:
                values = row[backend]
                lines.append(
                    f"| {row['size']} | {row['batch']} | {row['precision']} | {backend} | {values['seconds']:.4f} | "
                    f"{values['images_per_second']:.1f} | {values['tflops']:.3f} | {values.get('share_of_peak', '')} | "
                    f"{values['peak_mib']:.0f} | {values.get('over_tensorflow', '')} |"
                )
    return "\n".join(lines)


def _cell(size, batch, precision, peak):
    arguments = {"task": "steps", "size": size, "batch": batch, "precision": precision, "q": FLAGS.q}
    arguments["filters"] = FLAGS.filters
    seconds = {backend: [] for backend in FLAGS.backends}
    with contextlib.ExitStack() as stack:
        workers = {backend: stack.enter_context(_worker(backend, arguments)) for backend in FLAGS.backends}
        for repeat in range(WARM_UP + FLAGS.repeats):
            for backend, worker in workers.items():
                took = worker.ask("step")
                if repeat >= WARM_UP:
                    seconds[backend].append(took)
        memory = {backend: worker.ask("memory") for backend, worker in workers.items()}
        gflop = next(iter(workers.values())).said["gflop"]
    row = {"size": size, "batch": batch, "precision": precision, "gflop": round(gflop, 1)}
    for backend, values in seconds.items():
        median = statistics.median(values)
        row[backend] = {
            "seconds": round(median, 5),
            "fastest": round(min(values), 5),
            "first": round(workers[backend].said["first"], 2),
            "images_per_second": round(batch / median, 2),
            "tflops": round(gflop / median / 1e3, 4),
            "peak_mib": round(memory[backend], 1),
        }
    if "jax" in row:  # on which the peak was measured
        row["jax"]["share_of_peak"] = round(row["jax"]["tflops"] / peak[precision], 3)
    if set(seconds) == set(BACKENDS):
        turns = zip(seconds["jax"], seconds["tensorflow"], strict=True)
        row["jax"]["over_tensorflow"] = round(statistics.median([ours / theirs for ours, theirs in turns]), 3)
    return row


class _Worker:
    """A process on one backend, which answers each line that it is sent by a line of JSON."""

    def __init__(self, backend, arguments):
        command = [sys.executable, "-m", "experiments.benchmarks.backends", f"--internal={json.dumps(arguments)}"]
        command.append(f"--matmul_precision={FLAGS.matmul_precision}")
        environment = {**os.environ, "KERAS_BACKEND": backend}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.backend = backend
        self.process = subprocess.Popen(command, env=environment, text=True, **pipes)
        self.said = self._answer()

    def ask(self, question):
        print(question, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self):
        for line in self.process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise UserError(f"--backends={self.backend}: its process ended with code {self.process.wait()}; see above")


@contextlib.contextmanager
def _worker(backend, arguments):
    worker = _Worker(backend, arguments)
    try:
        yield worker
    finally:
        worker.process.stdin.close()
        worker.process.stdout.close()
        worker.process.wait()


# What the processes do


def _work(task, **arguments):
    program.start_tensorflow()
    said, questions = {"peak": _peak, "steps": _steps}[task](**arguments)
    _say(said)
    for line in sys.stdin:
        _say(questions[line.strip()]())


def _say(value):
    print("answer " + json.dumps(value), flush=True)


def _peak(side):
    """TFLOP/s of a product of two square matrices in both precisions, and what JAX runs on."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_default_matmul_precision", FLAGS.matmul_precision)
    (device, *_) = jax.devices()
    side = side or (8192 if device.platform == "gpu" else 2048)
    found = {}
    for precision, dtype in zip(PRECISIONS, (jnp.float32, jnp.bfloat16), strict=True):
        matrix = jax.random.normal(jax.random.key(0), (side, side), dtype)
        product = jax.jit(jnp.matmul)
        took = []
        for _ in range(WARM_UP + 10):
            started = time.perf_counter()
            product(matrix, matrix).block_until_ready()
            took.append(time.perf_counter() - started)
        found[precision] = round(2 * side**3 / min(took[WARM_UP:]) / 1e12, 3)
    described = {"jax": jax.__version__, "device": f"{jax.device_count()} x {device.device_kind}"}
    described["matmul_precision"] = FLAGS.matmul_precision
    return {"machine": described, "peak_tflops": found}, {}


def _steps(size, batch, precision, q, filters):
    """The time of the first step, and then of each one that is asked for."""
    import keras
    import numpy as np

    from experiments.benchmarks.flops import step_flops
    from r2c_gan.models.model import R2CGAN

    model = R2CGAN(q=q, filters=filters, image_size=size, dtype=precision)
    model.compile()
    rng = np.random.default_rng(0)
    images = [rng.uniform(-1, 1, (batch, size, size, 3)).astype("float32") for _ in range(2)]
    labels = [np.eye(2, dtype="float32")[np.arange(batch) % 2]] * 2
    on_jax = keras.backend.backend() == "jax"
    step = (_jax_step if on_jax else _tensorflow_step)(model, tuple(zip(images, labels, strict=True)))

    def timed():
        started = time.perf_counter()
        step()
        return time.perf_counter() - started

    said = {"first": timed(), "gflop": step_flops(q=q, filters=filters, size=size, batch_size=batch) / 1e9}
    return said, {"step": timed, "memory": _device_memory if on_jax else _process_memory}


def _jax_step(model, batch):
    """A function that takes one training step and waits for it."""
    import jax

    jax.config.update("jax_default_matmul_precision", FLAGS.matmul_precision)
    batch = jax.device_put(batch)
    step = jax.jit(model.train_step, donate_argnums=0)
    kinds = (model.trainable_variables, model.non_trainable_variables, model.optimizer.variables)
    state = tuple([variable.value for variable in kind] for kind in (*kinds, model.metrics_variables))

    def once():
        nonlocal state
        logs, state = step(state, batch)
        jax.block_until_ready((logs, state))

    return once


def _tensorflow_step(model, batch):
    import tensorflow as tf

    tf.config.optimizer.set_experimental_options({"remapping": False})  # as in r2c_gan.training.tensorflow_backend
    batch = tf.nest.map_structure(tf.constant, batch)
    step = tf.function(lambda: model.train_step(batch)["generator_loss"])
    return lambda: float(step())


def _device_memory():
    """Peak memory in MiB: of the device where it tells, else of this process."""
    import jax

    known = jax.devices()[0].memory_stats() or {}
    return known["peak_bytes_in_use"] / 2**20 if "peak_bytes_in_use" in known else _process_memory()


def _process_memory():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) / 1024


def console():
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
