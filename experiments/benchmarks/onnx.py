"""Images a second of an exported model in onnxruntime beside TensorFlow, on the processor.

  r2c-gan-export --model runs/paper --output exported/
  r2c-gan-export --model runs/paper --output exported_onnx/model.onnx --format onnx
  python -m experiments.benchmarks.onnx --saved_model exported/ --onnx exported_onnx/model.onnx

Both get the same threads and the same batches and take turns, so that what else the machine does falls on both. The
figure to read is the ratio. The largest difference of the two outputs is given too.
"""

import statistics
import time
from pathlib import Path

import numpy as np
from absl import flags
from tqdm import tqdm

from experiments.benchmarks.machine import machine
from r2c_gan import files
from r2c_gan.cli import program

FLAGS = flags.FLAGS

WARM_UP = 2


def main():
    program.start_tensorflow()
    import onnxruntime
    import tensorflow as tf

    from r2c_gan.restoration import saved_models

    tf.config.threading.set_intra_op_parallelism_threads(FLAGS.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    loaded, record = saved_models.load(FLAGS.saved_model)
    serve = loaded.signatures["serving_default"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = FLAGS.threads
    options.inter_op_num_threads = 1
    # Its threads must not go on spinning while TensorFlow has its turn.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(FLAGS.onnx, options, providers=["CPUExecutionProvider"])
    engines = {
        "tensorflow": lambda batch: serve(image=tf.constant(batch))["restored"].numpy(),
        "onnxruntime": lambda batch: session.run(["restored"], {"image": batch})[0],
    }
    program.write_flags(FLAGS.output_dir)
    rows = [_measure(engines, size, record["channels"]) for size in map(int, FLAGS.batch_sizes)]
    result = {
        "machine": {**machine(), "onnxruntime": onnxruntime.__version__},
        "model": record["model"],
        "size": FLAGS.size,
        "threads": FLAGS.threads,
        "rows": rows,
    }
    files.write_json(Path(FLAGS.output_dir) / "result.json", result)
    print("batch  tensorflow  onnxruntime  ratio   (images a second; above 1, onnxruntime is faster)")
    for row in rows:
        rate = row["images_per_second"]
        print(f"{row['batch_size']:5d}  {rate['tensorflow']:10.2f}  {rate['onnxruntime']:11.2f}  {row['ratio']:5.2f}")


def _measure(engines, batch_size, channels):
    shape = (batch_size, FLAGS.size, FLAGS.size, channels)
    batch = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    seconds, outputs = {name: [] for name in engines}, {}
    for repeat in tqdm(range(FLAGS.repeats + WARM_UP), f"batches of {batch_size}"):
        for name, engine in engines.items():
            started = time.perf_counter()
            outputs[name] = engine(batch)
            if repeat >= WARM_UP:
                seconds[name].append(time.perf_counter() - started)
    rate = {name: batch_size / statistics.median(values) for name, values in seconds.items()}
    return {
        "batch_size": batch_size,
        "images_per_second": {name: round(value, 3) for name, value in rate.items()},
        "ratio": round(rate["onnxruntime"] / rate["tensorflow"], 3),
        "largest_difference": float(np.abs(outputs["onnxruntime"] - outputs["tensorflow"]).max()),
    }


def console():
    # Here and not above, so that importing this module defines no flags.
    flags.DEFINE_string("saved_model", None, "A SavedModel of r2c-gan-export.", required=True)
    flags.DEFINE_string("onnx", None, "The ONNX file of the same checkpoint.", required=True)
    flags.DEFINE_integer("size", 256, "Side of the images, in pixels.")
    flags.DEFINE_list("batch_sizes", ["1", "4"], "Images a batch.")
    flags.DEFINE_integer("threads", 2, "Threads of either.")
    flags.DEFINE_integer("repeats", 20, "Timed batches of either.")
    flags.DEFINE_string("output_dir", "results/benchmark_onnx", "Folder for result.json.")
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
