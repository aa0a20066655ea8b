"""Where the classifier head looks: class-activation maps of a generator, and how well two maps agree.

The head is a global max-pooling of the features z [h, w, K] and a dense softmax with weights W and biases b, so the
log-odds of a class t against the others are

    sum over k of v_k max over (x, y) of z_k(x, y), plus a bias,    v = W_t - mean of the other classes' W

The map of Zhou et al. (CVPR 2016, arXiv 1512.04150) is sum over k of v_k z_k(x, y). They pool by the mean; by the
maximum, a feature enters the prediction at one place only, so a second map has v_k max z_k there and nothing elsewhere:
it sums up to the log-odds exactly.
"""

import dataclasses

import cv2
import keras
import numpy as np


@dataclasses.dataclass(frozen=True)
class ActivationMaps:
    """What the head saw in a batch.

    Attributes:
        evidence: float32 [N, h, w], the class-activation map; positive speaks for the class.
        peaks: float32 [N, h, w], what each feature adds to the log-odds, at the place of its maximum.
        bias: float, what the log-odds have beside the sum of `peaks`.
        probabilities: float32 [N, classes], the prediction.
    """

    evidence: np.ndarray
    peaks: np.ndarray
    bias: float
    probabilities: np.ndarray

    @property
    def log_odds(self):
        """Float32 [N]; for two classes log(p / (1 - p)) of the class."""
        return self.peaks.sum(axis=(1, 2)) + self.bias


def activation_maps(generator, batch, target=1):
    """Maps of the evidence for a class.

    Args:
        generator: what `networks.build_generator` returned: `R2CGAN.restorer`, for one.
        batch: float [N, H, W, C] in [-1, 1]; H and W multiples of the generator's stride.
        target: index of the class; 1 is COVID-19.

    Returns:
        `ActivationMaps` of the size of the features: half of the image's, a quarter for "convolutional".

    Raises:
        ValueError: if the network has no such head or no such class.
    """
    pooling = [layer for layer in generator.layers if isinstance(layer, keras.layers.GlobalMaxPooling2D)]
    heads = [layer for layer in generator.layers if layer.name == "probabilities"]
    if len(pooling) != 1 or len(heads) != 1 or heads[0].input.shape[-1] != pooling[0].output.shape[-1]:
        raise ValueError(f"{generator.name}: has no head of one global max-pooling and a layer 'probabilities'")
    weights, biases = heads[0].get_weights()
    classes = len(biases)
    if not 0 <= target < classes:
        raise ValueError(f"target must be a class from 0 to {classes - 1}, got {target!r}")
    versus = np.full(classes, -1 / (classes - 1), np.float32)
    versus[target] = 1
    features, probabilities = keras.Model(
        generator.inputs, (pooling[0].input, heads[0].output), name="features"
    ).predict_on_batch(np.asarray(batch, np.float32))
    features, weights = np.asarray(features, np.float32), weights @ versus
    n, height, width, channels = features.shape
    flat = features.reshape(n, height * width, channels)
    places = flat.argmax(axis=1)
    peaks = np.zeros((n, height * width), np.float32)
    for image in range(n):
        np.add.at(peaks[image], places[image], weights * flat[image].max(axis=0))
    return ActivationMaps(
        features @ weights, peaks.reshape(n, height, width), float(biases @ versus), np.asarray(probabilities)
    )


def enlarge(evidence, height, width):
    """A map [h, w] as float32 [height, width], bilinear, to lay over the image."""
    return cv2.resize(np.asarray(evidence, np.float32), (width, height), interpolation=cv2.INTER_LINEAR)


def correlation(first, second):
    """Pearson's correlation of two maps of one shape, pixel by pixel; None where one of them is constant."""
    first, second = (np.ravel(np.asarray(evidence, np.float64)) for evidence in (first, second))
    first, second = first - first.mean(), second - second.mean()
    norm = np.sqrt(np.dot(first, first) * np.dot(second, second))
    return float(np.dot(first, second) / norm) if norm > 0 else None


def overlap_of_top(first, second, share=0.1):
    """Intersection over union of the pixels with the largest values of two maps of one shape.

    Args:
        first, second: float [h, w].
        share: of the pixels that count as the largest, at least one pixel. Two maps that have nothing to do with each
            other come to about share / (2 - share): 0.05 for a tenth.
    """
    count = max(1, round(share * np.size(first)))
    tops = [set(np.argsort(np.ravel(evidence), kind="stable")[-count:].tolist()) for evidence in (first, second)]
    return len(tops[0] & tops[1]) / len(tops[0] | tops[1])


def points_inside(evidence, mask):
    """The pointing game (Zhang et al., IJCV 2018): whether the largest value of a map lies in a mask of its shape."""
    return bool(np.ravel(mask)[np.argmax(evidence)])


def share_inside(evidence, mask):
    """Share of a map's positive values, by their sum, that lies in a mask of its shape; None without any."""
    positive = np.maximum(np.asarray(evidence, np.float64), 0)
    total = positive.sum()
    return float(positive[np.asarray(mask, bool)].sum() / total) if total > 0 else None
