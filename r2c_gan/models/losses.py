"""Every loss of R2C-GAN as a named function, and how they add up.

Notation: A is the poor-quality domain, B the good one; G restores (A to B), F degrades (B to A). Each network's head
classifies whatever the network is fed, so a step gives six predictions: of G fed A, F(B) and B, of F fed B, G(A) and A.
`a2b2a` names what belongs to F(G(A)), and so on. Images are float [N, H, W, C] in [-1, 1]; every loss is a float32
scalar, a mean over all elements.
"""

import dataclasses

from keras import ops

from r2c_gan.layers.operational import powers
from r2c_gan.layers.tone_curve import WINDOW, tone

TONE_MOMENTS = 4
# The head's probabilities are kept this far from 0 and 1, as Keras keeps them.
PROBABILITY_EPSILON = 1e-7
DISTANCE_EPSILON = 1e-4


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Weights of the families of generator losses.

    The defaults are the authors'. Their code multiplies the classification terms by 0.1, 10 * 0.01 and 5 * 0.02, that
    is, by 0.1 throughout, at the default weights.

    Args:
        cycle: weight of the cycle-consistency terms.
        identity: weight of the identity terms.
        classification: weight of all six classification terms.
        adversarial: weight of both adversarial terms, fixed at 1 in the paper.
        cycle_a, identity_a: not in the paper: weights of their own for |F(G(a)) - a| and |F(a) - a|, which ask the
            degrader for the one poor image that was given. None for those of `cycle` and `identity`.
        classes: weight of each class within the classification terms, not in the paper; empty for equal weights.
    """

    cycle: float = 10.0
    identity: float = 5.0
    classification: float = 0.1
    adversarial: float = 1.0
    cycle_a: float | None = None
    identity_a: float | None = None
    classes: tuple = ()

    def __post_init__(self):
        object.__setattr__(self, "classes", tuple(self.classes))
        for name, values in dataclasses.asdict(self).items():
            for value in values if name == "classes" else (values,):
                if value is not None and not value >= 0:
                    raise ValueError(f"loss weight {name} must be at least 0, got {value}")


def mean_absolute_error(target, image):
    """The mean of |target - image|."""
    return ops.mean(ops.abs(_float32(target) - _float32(image)))


def cycle_consistency_loss(image, cycled):
    """L1 distance of an image to itself after both translations: |F(G(a)) - a| (Zhu et al. 2017, eq. 2)."""
    return mean_absolute_error(image, cycled)


def identity_loss(image, mapped):
    """L1 distance of an image to its mapping into its own domain: |G(b) - b| (Zhu et al. 2017, section 5.2)."""
    return mean_absolute_error(image, mapped)


def generator_adversarial_loss(fake_logits):
    """Least-squares GAN loss of a generator: mean (D(fake) - 1)^2 (Mao et al. 2017)."""
    return ops.mean(ops.square(_float32(fake_logits) - 1.0))


def discriminator_real_loss(real_logits):
    """Least-squares GAN loss of a discriminator on real images: mean (D(real) - 1)^2 (Mao et al. 2017)."""
    return ops.mean(ops.square(_float32(real_logits) - 1.0))


def discriminator_fake_loss(fake_logits):
    """Least-squares GAN loss of a discriminator on generated images: mean D(fake)^2 (Mao et al. 2017)."""
    return ops.mean(ops.square(_float32(fake_logits)))


def energy_distance(x, y):
    """The squared energy distance between two distributions, estimated without bias from samples of each.

        2 mean |x_i - y_j| - mean_(i != j) |x_i - x_j| - mean_(i != j) |y_i - y_j|

    Its expectation is 0 where the distributions are equal and positive elsewhere (Szekely and Rizzo, Journal of
    Statistical Planning and Inference 143, 2013); an estimate may be negative.

    Args:
        x, y: float [N, features] and [M, features], N and M at least 2.
    """

    def distances(one, other):
        # The root of 0 has no gradient.
        return ops.sqrt(ops.sum(ops.square(one[:, None] - other[None]), axis=-1) + DISTANCE_EPSILON**2)

    def within(one):
        n = ops.cast(ops.shape(one)[0], "float32")
        return (ops.sum(distances(one, one)) - n * DISTANCE_EPSILON) / (n * (n - 1.0))

    x, y = _float32(x), _float32(y)
    return 2.0 * ops.mean(distances(x, y)) - within(x) - within(y)


def tone_loss(images, generated):
    """The energy distance between the tones of the real images of a domain and of those generated for it.

    The tone of an image is its first four moments and its darkest and brightest place, as `tone_curve.tone` has them.
    Discriminators of patches say little about how dark or flat whole images are, and how much they differ in that.

    Args:
        images, generated: [N, H, W, C] and [M, H, W, C], N and M at least 2.
    """
    real, fake = (tone(powers(_float32(x), TONE_MOMENTS), WINDOW) for x in (images, generated))
    return energy_distance(real, fake)


def classification_loss(labels, probabilities, class_weights=()):
    """Categorical cross-entropy: mean over the samples of -sum_c weight_c labels_c log probabilities_c.

    Args:
        labels: one-hot [N, classes].
        probabilities: [N, classes], each row adding up to 1.
        class_weights: weight of each class; 1 each if empty.
    """
    labels = _float32(labels)
    if class_weights:
        labels = labels * ops.convert_to_tensor(class_weights, "float32")
    probabilities = ops.clip(_float32(probabilities), PROBABILITY_EPSILON, 1.0 - PROBABILITY_EPSILON)
    return -ops.mean(ops.sum(labels * ops.log(probabilities), axis=-1))


def generator_loss(terms, weights):
    """Total generator loss.

        adversarial (adversarial_a2b + adversarial_b2a) + cycle (cycle_a + cycle_b)
            + identity (identity_a + identity_b)
            + classification (class_a2b + class_b2a + class_a2b2a + class_b2a2b + class_a2a + class_b2b)
            + tone_b2a

    Args:
        terms: dictionary of the terms by the names above; `tone_b2a` may be missing. It needs no weight, because
            nothing else moves what it moves, and Adam's steps do not depend on the scale of a loss.
        weights: a `LossWeights`.
    """
    cycle_a = weights.cycle if weights.cycle_a is None else weights.cycle_a
    identity_a = weights.identity if weights.identity_a is None else weights.identity_a
    classes = ("class_a2b", "class_b2a", "class_a2b2a", "class_b2a2b", "class_a2a", "class_b2b")
    return (
        weights.adversarial * (terms["adversarial_a2b"] + terms["adversarial_b2a"])
        + (cycle_a * terms["cycle_a"] + weights.cycle * terms["cycle_b"])
        + (identity_a * terms["identity_a"] + weights.identity * terms["identity_b"])
        + weights.classification * sum(terms[name] for name in classes)
        + terms.get("tone_b2a", 0.0)
    )


def discriminator_loss(terms):
    """Total discriminator loss: the sum of the real and the fake term of both discriminators."""
    return (
        terms["discriminator_a_real"]
        + terms["discriminator_a_fake"]
        + terms["discriminator_b_real"]
        + terms["discriminator_b_fake"]
    )


def _float32(x):
    return ops.cast(x, "float32")
