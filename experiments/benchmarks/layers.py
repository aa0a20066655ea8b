"""Times the two forms of the operational layer side by side, and measures their peak memory.

  python -m experiments.benchmarks.layers --output_dir results/benchmark_layers

Each form convolves the same powers with the same weights: "concatenated" once over all of them, "summed" once for each.
The layers measured are those of the paper's networks at a training size. A step is a forward and a backward pass; the
two forms take turns, and the figure to read is the ratio of their medians. Peak memory is that of a fresh process,
TensorFlow included, that does nothing else.
"""

import json
import re
import resource
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

FLAGS = flags.FLAGS

flags.DEFINE_string("output_dir", "results/benchmark_layers", "Folder for result.json.")
flags.DEFINE_list("q", ["2", "3", "5"], "Orders of the polynomial.")
flags.DEFINE_integer("size", 128, "Side of the image that the network would get, in pixels.")
flags.DEFINE_integer("batch_size", 4, "Images a batch.")
flags.DEFINE_integer("repeats", 10, "Timed steps of each form.")
flags.DEFINE_enum("precision", "float32", ["float32", "mixed_bfloat16"], "Dtype policy.")
flags.DEFINE_string("memory_of", None, "Internal: JSON of one layer whose peak memory this process is to print.")

FORMS = ("concatenated", "summed")
# Name: (transposed, filters, kernel, strides, padding, side of the input as a share of the image's, its channels).
LAYERS = {
    "generator, first": (False, 128, 3, 2, "same", 1, 3),
    "generator, residual": (False, 128, 3, 1, "reflect", 2, 128),
    "generator, last (transposed)": (True, 3, 3, 2, "same", 2, 128),
    "discriminator, second": (False, 128, 4, 4, "same", 2, 64),
}


def main():
    if FLAGS.memory_of:
        print(_peak_memory(**json.loads(FLAGS.memory_of)))
        return
    program.write_flags(FLAGS.output_dir)
    rows = []
    for name in tqdm(LAYERS, "layers"):
        for q in map(int, FLAGS.q):
            seconds = _time(name, q)
            memory = {form: _memory(name, q, form) for form in FORMS}
            rows.append(
                {
                    "layer": name,
                    "q": q,
                    "seconds": seconds,
                    "peak_mib": memory,
                    "time_ratio": round(seconds["summed"] / seconds["concatenated"], 3),
                    "memory_ratio": round(memory["summed"] / memory["concatenated"], 3),
                }
            )
    result = {"machine": machine(), "ratio": "summed over concatenated; below 1, summed is better", "rows": rows}
    files.write_json(Path(FLAGS.output_dir) / "result.json", result)
    print(f"{'layer':30s} q   time  memory   (summed / concatenated)")
    for row in rows:
        print(f"{row['layer']:30s} {row['q']}  {row['time_ratio']:5.2f}  {row['memory_ratio']:5.2f}")


def _step(name, q, form):
    import keras
    import numpy as np
    import tensorflow as tf

    from r2c_gan.layers.operational import OperationalConv2D, OperationalConv2DTranspose

    transposed, filters, kernel, strides, padding, share, channels = LAYERS[name]
    side = FLAGS.size // share
    kind = OperationalConv2DTranspose if transposed else OperationalConv2D
    keras.utils.set_random_seed(0)
    layer = kind(filters, kernel, q=q, strides=strides, padding=padding, form=form, dtype=FLAGS.precision)
    shape = (FLAGS.batch_size, side, side, channels)
    inputs = tf.constant(np.random.default_rng(0).uniform(-1, 1, shape), layer.compute_dtype)
    layer.build(shape)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = tf.reduce_mean(tf.square(tf.cast(layer(inputs), tf.float32)))
        return tape.gradient(loss, [inputs, layer.kernel.value])

    return step


def _time(name, q):
    steps = {form: _step(name, q, form) for form in FORMS}
    seconds = {form: [] for form in FORMS}
    for repeat in range(FLAGS.repeats + 2):  # the first two trace and warm up
        for form in FORMS:
            started = time.perf_counter()
            for gradient in steps[form]():
                gradient.numpy()
            if repeat >= 2:
                seconds[form].append(time.perf_counter() - started)
    return {form: round(statistics.median(values), 5) for form, values in seconds.items()}


def _memory(name, q, form):
    command = [
        *(sys.executable, "-m", "experiments.benchmarks.layers"),
        f"--memory_of={json.dumps({'name': name, 'q': q, 'form': form})}",
        *(f"--{flag}={FLAGS[flag].value}" for flag in ("size", "batch_size", "precision")),
    ]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output.split()[-1])


def _peak_memory(name, q, form):
    """Peak resident memory of this process after three steps, in MiB."""
    step = _step(name, q, form)
    for _ in range(3):
        step()
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent had before it started this process
        return round(int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text()).group(1)) / 1024, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def console():
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
