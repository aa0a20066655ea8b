"""What `training` asks of the backend, on TensorFlow; `jax_training` has the same functions for JAX."""

import contextlib

import tensorflow as tf

from r2c_gan.errors import UserError

STRATEGIES = ("none", "mirrored")
JIT_COMPILE = False  # slower on processors than TensorFlow's own kernels, and refused by deterministic mode


@contextlib.contextmanager
def prepared(config):
    """Sets TensorFlow up for a training."""
    # TensorFlow 2.21's remapper fails at the discriminators' leaky ReLU, says so at length and leaves the graph alone.
    tf.config.optimizer.set_experimental_options({"remapping": False})
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    yield


def check(config):
    """Refuses what TensorFlow cannot do: nothing that `STRATEGIES` does not say."""


def scope(config):
    """The scope in which the model is made and restored."""
    if config.distribute == "none":
        return contextlib.nullcontext()
    # Where there is no GPU, TensorFlow's strategy would take one of several logical processors.
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if config.batch_size % len(devices):
        raise UserError(
            f"--batch_size={config.batch_size}: must be a multiple of the {len(devices)} devices that share each batch"
        )
    return tf.distribute.MirroredStrategy([device.name for device in devices]).scope()


def batches(stream, epochs, initial_step):
    """What `fit` is fed."""
    return stream.dataset(epochs, initial_step)


@contextlib.contextmanager
def failures(config, stream):
    """Turns failures of a step that a person can put right into a `UserError`."""
    try:
        yield
    except tf.errors.OpError as error:
        if stream.error is not None:
            raise stream.error from None
        if isinstance(error, tf.errors.ResourceExhaustedError):
            raise UserError(
                f"--batch_size={config.batch_size}: the device's memory does not hold a step; give a smaller batch, "
                "smaller images or a smaller network"
            ) from error
        raise


def local_scope():
    """Within it, what is built and run concerns this process alone."""
    return contextlib.nullcontext()


def machine():
    """What the order of sums depends on, hence the last bits of a result: dictionary of JSON's values."""
    return {
        "backend": f"tensorflow {tf.__version__}",
        "devices": [device.device_type for device in tf.config.list_physical_devices()],
        "intra_op_threads": tf.config.threading.get_intra_op_parallelism_threads(),
        "inter_op_threads": tf.config.threading.get_inter_op_parallelism_threads(),
    }


def is_chief():
    """Whether this process writes the run folder."""
    return True


def all_reduce_max(value):
    """The largest of the numbers that the processes give."""
    return value


def check_same_step(run, step):
    """Checks that all processes go on from the same step."""


def broadcast(value):
    """Gives every process the leader's value, of JSON's types."""
    return value
