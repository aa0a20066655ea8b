"""Weights of the authors' implementation, read into ours.

The authors' operational layer is q Keras convolutions, each with a bias of its own; ours stacks the kernels and keeps
the sum of the biases, which is all that the output depends on. Their variables come layer by layer, the classifier
head last, and within an operational layer power by power.
"""

import dataclasses
from pathlib import Path

import keras
import numpy as np

from r2c_gan.errors import UserError
from r2c_gan.layers.operational import OperationalConv2D, OperationalConv2DTranspose

# Their names of the four networks, and ours.
NETWORKS = {
    "G_A2B": "restorer",
    "G_B2A": "degrader",
    "D_A": "discriminator_a",
    "D_B": "discriminator_b",
}


def assign_reference_weights(network, weights):
    """Assigns arrays in the authors' variable order to a generator or discriminator of ours.

    Args:
        network: what `build_generator` or `build_discriminator` returned.
        weights: the arrays, in the order in which the authors' `model.variables` lists them: for each layer, kernel and
            bias, or gamma and beta; an operational layer has q kernels (and q biases, interleaved).

    Raises:
        ValueError: if the number of arrays or a shape does not fit; nothing is assigned then.
    """
    left = list(weights)
    assignments = []
    for layer in _layers_in_authors_order(network):
        for variable, value in _convert(layer, left):
            if tuple(variable.shape) != value.shape:
                raise ValueError(
                    f"{network.name}: {variable.path} has shape {tuple(variable.shape)}, "
                    f"the reference's arrays give {value.shape}: another method, q, width or number of channels"
                )
            assignments.append((variable, value))
    if left:
        raise ValueError(f"{network.name}: {len(left)} arrays are left over: another method or q")
    for variable, value in assignments:
        variable.assign(value)


def _layers_in_authors_order(network):
    weighted = [layer for layer in network.layers if layer.weights]
    return sorted(weighted, key=lambda layer: isinstance(layer, keras.layers.Dense))  # stable: the head goes last


def _convert(layer, arrays):
    """Takes one layer's arrays off the list; returns pairs of a variable and its value."""

    def take():
        if not arrays:
            raise ValueError(f"{layer.name}: the reference's arrays end here: another method or q")
        return np.asarray(arrays.pop(0))

    if isinstance(layer, keras.layers.GroupNormalization):
        return [(layer.gamma, take()), (layer.beta, take())]
    if isinstance(layer, OperationalConv2D | OperationalConv2DTranspose):
        kernels, biases = [], []
        for _ in range(layer.q):
            kernels.append(take())
            if layer.bias is not None:
                biases.append(take())
        axis = -1 if isinstance(layer, OperationalConv2DTranspose) else -2
        if len({kernel.shape for kernel in kernels}) > 1:
            raise ValueError(f"{layer.name}: its {layer.q} kernels differ in shape: another q")
        pairs = [(layer.kernel, np.concatenate(kernels, axis))]
        if biases:
            pairs.append((layer.bias, np.sum(biases, axis=0)))
        return pairs
    return [(variable, take()) for variable in layer.weights]


@dataclasses.dataclass(frozen=True)
class AuthorsCheckpoint:
    """What a checkpoint of the authors' training holds.

    Attributes:
        networks: our names of the four networks -> their arrays in the authors' order.
        epoch: epochs trained.
        method: "operational", "convolutional" or "convolutional-light".
        q: order of the operational layers, None for the other methods.
    """

    networks: dict
    epoch: int
    method: str
    q: int | None

    @property
    def flags(self):
        return f"--method={self.method}" + (f" --q={self.q}" if self.q else "")


def read_authors_checkpoint(folder):
    """Reads the checkpoint that the authors' training script writes (`tf.train.Checkpoint`).

    Args:
        folder: the folder with `checkpoint`, `ckpt-N.index` and `ckpt-N.data-*`; the newest N is read.

    Returns:
        An `AuthorsCheckpoint`.

    Raises:
        UserError: if there is no such checkpoint, or it cannot be read.
    """
    import tensorflow as tf

    prefix = _newest_prefix(Path(folder))
    try:
        reader = tf.train.load_checkpoint(prefix)
        keys = {key.removesuffix(_VALUE) for key in reader.get_variable_to_shape_map() if key.endswith(_VALUE)}
        networks = {
            ours: [reader.get_tensor(key + _VALUE) for key in _keys_in_order(keys, theirs)]
            for theirs, ours in NETWORKS.items()
        }
        epoch = int(reader.get_tensor("ep_cnt" + _VALUE)) if "ep_cnt" in keys else 0
    except (tf.errors.OpError, IndexError, ValueError, RuntimeError) as error:  # IndexError: a truncated data file
        raise UserError(f"{prefix}: not a readable TensorFlow checkpoint ({str(error).splitlines()[0]})") from error
    missing = [theirs for theirs, ours in NETWORKS.items() if not networks[ours]]
    if missing:
        raise UserError(f"{prefix}: not a checkpoint of the authors' training: it holds no {', '.join(missing)}")
    powers = len(_powers(keys, "G_A2B/layer_with_weights-0"))
    large = networks["restorer"][0].shape[0] == 7  # its first layer is 7x7, that of the others 3x3
    method = "operational" if powers else "convolutional" if large else "convolutional-light"
    return AuthorsCheckpoint(networks, epoch, method, powers or None)


_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def _keys_in_order(keys, network):
    """The keys of a network's variables: layer by layer, power by power, kernel before bias, gamma before beta."""
    ordered, index = [], 0
    while True:
        layer = f"{network}/layer_with_weights-{index}"
        names = [
            f"{part}/{name}"
            for part in (layer, *_powers(keys, layer))
            for name in ("kernel", "bias", "gamma", "beta")
            if f"{part}/{name}" in keys
        ]
        if not names:
            return ordered
        ordered += names
        index += 1


def _powers(keys, layer):
    """The parts of an operational layer, one a power; none of any other layer."""
    parts = []
    while f"{layer}/all_layers/{len(parts)}/kernel" in keys:
        parts.append(f"{layer}/all_layers/{len(parts)}")
    return parts


def _newest_prefix(folder):
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder that holds `checkpoint` and `ckpt-N.index`")
    indices = sorted(folder.glob("*.index"), key=lambda path: (len(path.stem), path.stem))
    if not indices:
        raise UserError(f"{folder}: holds no TensorFlow checkpoint (`ckpt-N.index`)")
    return str(indices[-1].with_suffix(""))
