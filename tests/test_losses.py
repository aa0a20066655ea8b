"""Every loss by hand, and how the terms add up."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from r2c_gan.models import losses
from r2c_gan.models.losses import LossWeights

CLASSES = ("class_a2b", "class_b2a", "class_a2b2a", "class_b2a2b", "class_a2a", "class_b2b")
TERMS = {
    "adversarial_a2b": 1.0,
    "adversarial_b2a": 2.0,
    "cycle_a": 4.0,
    "cycle_b": 8.0,
    "identity_a": 16.0,
    "identity_b": 32.0,
    **{name: 64.0 * 2**index for index, name in enumerate(CLASSES)},
}


def test_distances_are_means_of_absolute_differences():
    image = np.array([0.5, -1.0, 0.0, 1.0], "float32").reshape(1, 2, 2, 1)
    other = np.array([0.0, 1.0, 0.25, 1.0], "float32").reshape(1, 2, 2, 1)
    for loss in (losses.mean_absolute_error, losses.cycle_consistency_loss, losses.identity_loss):
        assert float(loss(image, other)) == pytest.approx((0.5 + 2 + 0.25 + 0) / 4)
        assert float(loss(image, image)) == 0


def test_least_squares_losses():
    logits = np.array([0.0, 1.0, 3.0, -1.0], "float32").reshape(1, 2, 2, 1)
    assert float(losses.generator_adversarial_loss(logits)) == pytest.approx((1 + 0 + 4 + 4) / 4)
    assert float(losses.discriminator_real_loss(logits)) == pytest.approx((1 + 0 + 4 + 4) / 4)
    assert float(losses.discriminator_fake_loss(logits)) == pytest.approx((0 + 1 + 9 + 1) / 4)


def test_classification_is_the_mean_cross_entropy():
    labels = np.array([[1, 0], [0, 1], [0, 1]], "float32")
    probabilities = np.array([[0.25, 0.75], [0.5, 0.5], [0.1, 0.9]], "float32")
    expected = -(math.log(0.25) + math.log(0.5) + math.log(0.9)) / 3
    assert float(losses.classification_loss(labels, probabilities)) == pytest.approx(expected, rel=1e-6)


def test_classification_stays_finite_at_certainty():
    wrong = float(losses.classification_loss([[1.0, 0.0]], [[0.0, 1.0]]))
    assert wrong == pytest.approx(-math.log(1e-7), rel=1e-3)
    assert float(losses.classification_loss([[0.0, 1.0]], [[0.0, 1.0]])) == pytest.approx(0, abs=1e-6)


def test_losses_are_float32_whatever_they_are_fed():
    image = tf.constant(np.linspace(-1, 1, 4096).reshape(1, 64, 64, 1), "bfloat16")
    for value in (
        losses.mean_absolute_error(image, -image),
        losses.generator_adversarial_loss(image),
        losses.discriminator_real_loss(image),
        losses.discriminator_fake_loss(image),
        losses.classification_loss([[1.0, 0.0]], tf.constant([[0.5, 0.5]], "bfloat16")),
    ):
        assert value.dtype == "float32"
    # A mean over 4096 bfloat16 numbers, taken in bfloat16, would be off by much more.
    exact = np.mean(2 * np.abs(image.numpy().astype("float64")))
    assert float(losses.mean_absolute_error(image, -image)) == pytest.approx(exact, rel=1e-5)


def test_total_by_hand():
    weights = LossWeights(cycle=3.0, identity=0.5, classification=0.25, adversarial=2.0)
    total = losses.generator_loss(TERMS, weights)
    assert float(total) == 2 * (1 + 2) + 3 * (4 + 8) + 0.5 * (16 + 32) + 0.25 * 64 * 63


def test_the_terms_of_the_poor_domain_can_have_weights_of_their_own():
    weights = LossWeights(cycle=3.0, identity=0.5, classification=0.0, adversarial=0.0, cycle_a=7.0, identity_a=0.0)
    assert float(losses.generator_loss(TERMS, weights)) == 7 * 4 + 3 * 8 + 0.5 * 32


def test_discriminator_total_is_the_plain_sum():
    terms = {
        "discriminator_a_real": 1.0,
        "discriminator_a_fake": 2.0,
        "discriminator_b_real": 4.0,
        "discriminator_b_fake": 8.0,
    }
    assert float(losses.discriminator_loss(terms)) == 15  # the authors do not halve it


def authors_total(terms, cycle, identity):
    """The authors' formula: fixed class weights, two of them tied to the other weights."""
    return (
        terms["adversarial_a2b"]
        + terms["adversarial_b2a"]
        + cycle * (terms["cycle_a"] + terms["cycle_b"])
        + identity * (terms["identity_a"] + terms["identity_b"])
        + 0.1 * (terms["class_a2b"] + terms["class_b2a"])
        + 0.01 * cycle * (terms["class_a2b2a"] + terms["class_b2a2b"])
        + 0.02 * identity * (terms["class_a2a"] + terms["class_b2b"])
    )


def test_defaults_are_the_authors():
    assert LossWeights() == LossWeights(cycle=10.0, identity=5.0, classification=0.1)
    assert losses.generator_loss(TERMS, LossWeights()) == pytest.approx(authors_total(TERMS, 10, 5), rel=1e-12)


def test_authors_formula_gives_the_recorded_totals():
    """What `authors_total` says is what their code computed: the oracle of the test above, checked."""
    golden = json.loads((Path(__file__).parent / "golden" / "reference.json").read_text())
    for record in golden.values():
        for terms in record["losses"]:
            ours = losses.generator_loss(terms, LossWeights())
            assert ours == pytest.approx(terms["generator_loss"], rel=1e-6)
            assert losses.discriminator_loss(terms) == pytest.approx(terms["discriminator_loss"], rel=1e-6)


def test_weights_do_not_reach_across_families():
    """In the authors' code another cycle or identity weight changed the weight of the classification too."""

    def share(names, weights):
        without = {name: 0.0 if name in names else value for name, value in TERMS.items()}
        return losses.generator_loss(TERMS, weights) - losses.generator_loss(without, weights)

    for weights in (LossWeights(cycle=0.0), LossWeights(identity=0.0), LossWeights(cycle=99.0, identity=7.0)):
        assert share(CLASSES, weights) == pytest.approx(share(CLASSES, LossWeights()), rel=1e-9)
    doubled = LossWeights(classification=0.2)
    assert share(CLASSES, doubled) == pytest.approx(2 * share(CLASSES, LossWeights()), rel=1e-9)
    others = set(TERMS) - set(CLASSES)
    assert share(others, doubled) == pytest.approx(share(others, LossWeights()), rel=1e-9)


@pytest.mark.parametrize("name", ["cycle", "identity", "classification", "adversarial", "cycle_a", "identity_a"])
@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_bad_weights_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        LossWeights(**{name: value})


def test_the_energy_distance_is_its_formula():
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 1, (3, 2)), rng.normal(0.5, 2, (4, 2))
    between = np.mean([np.linalg.norm(a - b) for a in x for b in y])
    within = [np.mean([np.linalg.norm(a - b) for a, b in itertools.permutations(z, 2)]) for z in (x, y)]
    assert float(losses.energy_distance(x, y)) == pytest.approx(2 * between - sum(within), abs=1e-5)
    assert float(losses.energy_distance(y, x)) == pytest.approx(2 * between - sum(within), abs=1e-5)


def test_small_samples_estimate_the_energy_distance_without_bias():
    """Of normal distributions with means 0 and d it is 2 E|N(d, 2)| - 2 E|N(0, 2)|, E|N(0, s^2)| = s sqrt(2 / pi)."""
    rng = np.random.default_rng(0)
    x, same, other = (rng.normal(shift, 1, (4000, 4, 1)).astype("float32") for shift in (0, 0, 1))

    @tf.function
    def mean_estimate(*samples):
        return tf.reduce_mean(tf.map_fn(lambda pair: losses.energy_distance(*pair), samples, tf.float32))

    s, d = math.sqrt(2), 1
    folded = s * math.sqrt(2 / math.pi) * math.exp(-(d**2) / (2 * s**2)) + d * math.erf(d / (s * math.sqrt(2)))
    expected = 2 * folded - 2 * s * math.sqrt(2 / math.pi)
    assert float(mean_estimate(x, same)) == pytest.approx(0, abs=0.03)
    assert float(mean_estimate(x, other)) == pytest.approx(expected, abs=0.04)


def test_tones_that_are_equal_have_a_gradient():
    x = tf.Variable([[0.5, 0.1], [0.5, 0.1]])
    with tf.GradientTape() as tape:
        distance = losses.energy_distance(x, [[0.5, 0.1], [0.2, 0.3]])
    assert np.isfinite(tape.gradient(distance, x).numpy()).all()


def test_the_tone_of_images_is_compared_not_what_they_show():
    rng = np.random.default_rng(0)
    images = rng.uniform(-0.5, 0.5, (6, 16, 16, 1)).astype("float32")
    mirrored = images[:, ::-1]
    assert float(losses.tone_loss(images, mirrored)) < 0  # equal: all that is between is also within
    assert float(losses.tone_loss(images, images + 0.3)) > 0.3
    # One exposure for all, where the real ones differ, is told apart too.
    exposed = images + rng.choice([-0.4, 0.4], (6, 1, 1, 1)).astype("float32")
    assert float(losses.tone_loss(exposed, images)) > 0.1


def test_the_term_of_tone_is_added_where_there_is_one():
    plain = losses.generator_loss(TERMS, LossWeights())
    assert losses.generator_loss({**TERMS, "tone_b2a": 0.5}, LossWeights(cycle=3)) == pytest.approx(
        losses.generator_loss(TERMS, LossWeights(cycle=3)) + 0.5
    )
    assert losses.generator_loss({**TERMS, "tone_b2a": 0.0}, LossWeights()) == plain
