"""What `training` asks of the backend, on JAX; `tensorflow_training` has the same functions for TensorFlow.

Several processes, one a machine or a GPU, train together where `keras.distribution` is told so by its own environment
variables: KERAS_DISTRIBUTION_JOB_ADDRESSES (host:port of the first process), KERAS_DISTRIBUTION_NUM_PROCESSES and
KERAS_DISTRIBUTION_PROCESS_ID. The first one leads: it alone writes the run folder, from which all of them resume.
"""

import atexit
import contextlib
import json
import os
import sys

import jax
import keras
import numpy as np
from jax.experimental import multihost_utils

from r2c_gan.errors import Interrupted, UserError

STRATEGIES = ("none", "data_parallel")
JIT_COMPILE = True  # without XLA, JAX would run operation by operation
PROCESSES = "KERAS_DISTRIBUTION_NUM_PROCESSES"
COLLECTIVES = ("Gloo", "NCCL")  # the libraries that exchange gradients, by which their errors are known
LOST_AFTER = 30  # seconds without a sign of life after which a process counts as lost


def check(config):
    """Refuses what JAX cannot do.

    Raises:
        UserError: naming the flag.
    """
    if int(os.environ.get(PROCESSES, "1")) > 1 and config.distribute == "none":
        raise UserError(f"--distribute=none: {PROCESSES} asks for several processes; give --distribute=data_parallel")


@contextlib.contextmanager
def prepared(config):
    """Sets JAX up for a training: determinism, the processes, and the distribution over all of their devices."""
    if config.deterministic:
        # Read when JAX first looks for devices; processors are deterministic in any case.
        flag = "--xla_gpu_deterministic_ops=true"
        if flag not in os.environ.get("XLA_FLAGS", ""):
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    if config.distribute == "none":
        yield
        return
    _join()
    devices = keras.distribution.list_devices()
    if config.batch_size % len(devices):
        raise UserError(
            f"--batch_size={config.batch_size}: must be a multiple of the {len(devices)} devices that share each batch"
        )
    before = keras.distribution.distribution()
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False))
    try:
        yield
    except Exception as error:
        if jax.process_count() > 1 and not isinstance(error, Interrupted):  # which ends all of them at the same step
            atexit.register(_leave)
        raise
    finally:
        keras.distribution.set_distribution(before)


def _leave():
    """Ends this process without waiting for the others, as JAX would, and be aborted for it when they do not come."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _join():
    """Joins the other processes, if there are any."""
    number = int(os.environ.get(PROCESSES, "1"))
    if number == 1 or jax.distributed.is_initialized():
        return
    addresses = os.environ.get("KERAS_DISTRIBUTION_JOB_ADDRESSES", "")
    process = os.environ.get("KERAS_DISTRIBUTION_PROCESS_ID", "")
    if not addresses or not process:
        raise UserError(
            f"{PROCESSES}={number}: needs KERAS_DISTRIBUTION_JOB_ADDRESSES (host:port of the first process) and "
            "KERAS_DISTRIBUTION_PROCESS_ID"
        )
    # As `keras.distribution.initialize`, which cannot be told the time after which a process is lost.
    try:
        jax.distributed.initialize(
            addresses.partition(",")[0],
            number,
            int(process),
            heartbeat_timeout_seconds=LOST_AFTER,
            shutdown_timeout_seconds=LOST_AFTER,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{PROCESSES}={number}: the processes did not find each other ({error})") from error


def scope(config):
    """The scope in which the model is made and restored."""
    return contextlib.nullcontext()


def batches(stream, epochs, initial_step):
    """What `fit` is fed: this process' share of each batch."""
    return stream.batches(epochs, initial_step, (jax.process_index(), jax.process_count()))


@contextlib.contextmanager
def failures(config, stream):
    """Turns failures of a step that a person can put right into a `UserError`."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # A collective that fails on processors is a ValueError.
        if isinstance(error, ValueError) and not any(name in str(error) for name in COLLECTIVES):
            raise
        if "RESOURCE_EXHAUSTED" in str(error):
            raise UserError(
                f"--batch_size={config.batch_size}: the device's memory does not hold a step; give a smaller batch, "
                "smaller images or a smaller network"
            ) from error
        if jax.process_count() > 1:
            raise UserError(
                f"process {jax.process_index()} of {jax.process_count()} lost touch with another one "
                f"({str(error).splitlines()[0][:200]}); start all of them again to go on from the last checkpoint"
            ) from error
        raise


@contextlib.contextmanager
def local_scope():
    """Within it, what is built and run concerns this process alone."""
    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)


def machine():
    """What the order of sums depends on, hence the last bits of a result: dictionary of JSON's values."""
    return {"backend": f"jax {jax.__version__}", "devices": [device.device_kind for device in jax.devices()]}


def is_chief():
    """Whether this process writes the run folder."""
    return jax.process_index() == 0


def all_reduce_max(value):
    """The largest of the numbers that the processes give."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.process_allgather(np.int32(value)).max())


def check_same_step(run, step):
    """Checks that all processes go on from the same step.

    Raises:
        UserError: if they do not.
    """
    if all_reduce_max(step) != -all_reduce_max(-step):
        raise UserError(f"{run}: process {jax.process_index()} does not see the checkpoints that others see")


def broadcast(value):
    """Gives every process the leader's value, of JSON's types."""
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.zeros(length, np.uint8)
    padded[: len(text)] = text[:length]
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())
