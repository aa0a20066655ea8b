"""Class-activation maps: the head's own verdict is the oracle, and features placed by hand."""

import keras
import numpy as np
import pytest

from r2c_gan.evaluation import activation_maps
from r2c_gan.models.networks import build_generator
from r2c_gan.options.network import CONTEXT_METHODS, PAPER_METHODS


@pytest.mark.parametrize("method", PAPER_METHODS)
def test_the_peaks_sum_up_to_the_log_odds_of_the_verdict(method):
    generator = build_generator(method, q=2, channels=1, filters=4)
    batch = np.random.default_rng(0).uniform(-1, 1, (3, 32, 24, 1)).astype(np.float32)
    maps = activation_maps.activation_maps(generator, batch)
    probabilities = generator.predict_on_batch(batch)[1]
    np.testing.assert_allclose(maps.log_odds, np.log(probabilities[:, 1] / probabilities[:, 0]), atol=1e-4)
    np.testing.assert_allclose(maps.probabilities, probabilities, atol=1e-6)
    scale = 4 if method == "convolutional" else 2
    assert maps.evidence.shape == maps.peaks.shape == (3, 32 // scale, 24 // scale)


@pytest.mark.parametrize("method", CONTEXT_METHODS)
def test_a_head_that_also_takes_the_mean_has_no_such_maps(method):
    generator = build_generator(method, q=1, channels=1, filters=4)
    with pytest.raises(ValueError, match="has no head of one global max-pooling"):
        activation_maps.activation_maps(generator, np.zeros((1, 32, 32, 1), np.float32))


def generator_of_known_features(weights, biases):
    """The features are the image itself."""
    image = keras.Input((None, None, len(weights)))
    pooled = keras.layers.GlobalMaxPooling2D()(image)
    head = keras.layers.Dense(len(biases), activation="softmax", name="probabilities")
    generator = keras.Model(image, (image, head(pooled)))
    head.set_weights([np.array(weights, np.float32), np.array(biases, np.float32)])
    return generator


def test_maps_of_features_placed_by_hand():
    image = np.zeros((1, 4, 5, 2), np.float32)
    image[0, 1, 2] = (0.5, -1)
    image[0, 3, 4] = (0.2, 0.4)
    # For the second class: 3 - 1 = 2 times the first feature, -1 - 0 = -1 times the other, 0.25 beside.
    maps = activation_maps.activation_maps(generator_of_known_features([[1, 3], [0, -1]], [0.0, 0.25]), image)
    evidence, peaks = np.zeros((4, 5)), np.zeros((4, 5))
    evidence[1, 2], evidence[3, 4] = 2 * 0.5 + 1, 2 * 0.2 - 0.4
    peaks[1, 2], peaks[3, 4] = 2 * 0.5, -0.4
    np.testing.assert_allclose(maps.evidence[0], evidence, atol=1e-6)
    np.testing.assert_allclose(maps.peaks[0], peaks, atol=1e-6)
    assert maps.bias == 0.25


def test_the_other_class_gets_the_opposite_map():
    generator = generator_of_known_features([[1, 3], [0, -1]], [0.5, 0.25])
    image = np.random.default_rng(0).uniform(-1, 1, (2, 4, 4, 2))
    one, other = (activation_maps.activation_maps(generator, image, target) for target in (1, 0))
    np.testing.assert_allclose(one.evidence, -other.evidence, atol=1e-6)
    np.testing.assert_allclose(one.log_odds, -other.log_odds, atol=1e-6)


def test_what_has_no_such_head_or_class_is_refused():
    with pytest.raises(ValueError, match="target must be a class from 0 to 1"):
        activation_maps.activation_maps(generator_of_known_features([[1, 1]], [0, 0]), np.zeros((1, 2, 2, 1)), 2)
    image = keras.Input((8, 8, 1))
    with pytest.raises(ValueError, match="has no head"):
        activation_maps.activation_maps(keras.Model(image, image), np.zeros((1, 8, 8, 1)))


def test_agreement_of_maps():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 40, 50))
    assert activation_maps.correlation(one, 3 * one + 2) == pytest.approx(1)
    assert activation_maps.correlation(one, -one) == pytest.approx(-1)
    assert activation_maps.correlation(one, other) == pytest.approx(np.corrcoef(one.ravel(), other.ravel())[0, 1])
    assert activation_maps.correlation(one, np.ones_like(one)) is None
    assert activation_maps.overlap_of_top(one, one) == 1
    assert activation_maps.overlap_of_top(one, -one) == 0
    assert activation_maps.overlap_of_top(one, other) == pytest.approx(0.05, abs=0.03)
    # Tops {7, 8, 9} and {6, 7, 8} of ten pixels: 2 of 4.
    assert activation_maps.overlap_of_top(np.arange(10), np.array([0, 1, 2, 3, 4, 5, 7, 8, 9, 6]), 0.3) == 0.5


def test_what_of_a_map_lies_in_a_mask():
    mask = np.zeros((4, 4), bool)
    mask[:2] = True
    evidence = np.full((4, 4), -1.0)
    assert activation_maps.share_inside(evidence, mask) is None
    evidence[0, 3], evidence[3, 3] = 3, 1
    assert activation_maps.share_inside(evidence, mask) == 0.75
    assert activation_maps.points_inside(evidence, mask)
    assert not activation_maps.points_inside(-evidence, mask[::-1] & (evidence == 1))


def test_enlarge_keeps_the_place():
    evidence = np.zeros((4, 4))
    evidence[1, 2] = 1
    large = activation_maps.enlarge(evidence, 8, 16)
    assert large.shape == (8, 16)
    rows, columns = np.nonzero(large == large.max())
    assert rows.mean() == pytest.approx(2.5, abs=0.6) and columns.mean() == pytest.approx(9.5, abs=0.6)
