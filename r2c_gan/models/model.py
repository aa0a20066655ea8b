"""R2CGAN: two generators that translate and classify, two discriminators, trained jointly on unpaired batches."""

import dataclasses
import functools

import keras
import numpy as np
from keras import ops

from r2c_gan.layers.drawn_tone_curve import DrawnToneCurve
from r2c_gan.layers.noise import UniformNoise
from r2c_gan.models import losses
from r2c_gan.models.image_pool import ImagePool
from r2c_gan.models.losses import LossWeights
from r2c_gan.models.networks import build_discriminator, build_generator
from r2c_gan.models.optimizers import Adam, step_biases_as_sums
from r2c_gan.options.network import NetworkOptions

if keras.backend.backend() == "jax":
    from r2c_gan.models.jax_step import JaxStep as TrainingStep
else:
    from r2c_gan.models.tensorflow_step import TensorFlowStep as TrainingStep

GENERATOR_TERMS = (
    "adversarial_a2b",
    "adversarial_b2a",
    "cycle_a",
    "cycle_b",
    "identity_a",
    "identity_b",
    "class_a2b",
    "class_b2a",
    "class_a2b2a",
    "class_b2a2b",
    "class_a2a",
    "class_b2b",
)
DISCRIMINATOR_TERMS = (
    "discriminator_a_real",
    "discriminator_a_fake",
    "discriminator_b_real",
    "discriminator_b_fake",
)
NETWORKS = ("restorer", "degrader", "discriminator_a", "discriminator_b")
# Least and largest value of the numbers that are no `NetworkOptions`. Seeds of pools are twice the seed, in 32 bits.
RANGES = {
    "num_classes": (2, 10_000),
    "image_size": (1, 16_384),
    "pool_size": (0, 1_000_000),
    "seed": (0, 2**30 - 1),
}
TONE_TERM = "tone_b2a"  # only where the degrader draws its tone curve
METRICS = ("generator_loss", "discriminator_loss", *GENERATOR_TERMS, *DISCRIMINATOR_TERMS, "accuracy")


@keras.saving.register_keras_serializable("r2c_gan")
class R2CGAN(TrainingStep, keras.Model):
    """Restore-to-classify GAN (Ahishali et al., Pattern Recognition 156, 2024, 110765; arXiv 2209.14770).

    Four networks: `restorer` maps the poor-quality domain A to the good one B (the paper's G, the authors' G_A2B),
    `degrader` maps B to A (F, G_B2A), `discriminator_a` and `discriminator_b` judge A and B. Both generators classify
    what they are fed. One step takes an unpaired batch ((image_a, label_a), (image_b, label_b)): images [N, H, W, C]
    in [-1, 1], labels one-hot [N, num_classes]; the generators step first, then the discriminators, on the fakes of
    that same step as the pools return them.

    Args:
        *options: `NetworkOptions` of all four networks, or its first fields in order (method, q, channels, filters);
            the authors' by default.
        num_classes: number of classes.
        image_size: height and width of the training images, an integer or a pair; only the pools need it.
        pool_size: generated images that each pool holds.
        seed: seed of the draws of pools and noise. The weights follow `keras.utils.set_random_seed`.
        **changes: options that differ, by name, and what `keras.Model` takes.

    Calling the model restores: image [N, H, W, C] -> (restored image, class probabilities).

    Raises:
        ValueError: if an argument is of another kind, or out of its range.
    """

    def __init__(self, *options, num_classes=2, image_size=256, pool_size=50, seed=0, **changes):
        names = {field.name for field in dataclasses.fields(NetworkOptions)}
        super().__init__(**{name: value for name, value in changes.items() if name not in names})
        options = NetworkOptions.of(*options, **{name: changes[name] for name in changes if name in names})
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        channels, noise_channels = options.channels, options.noise_channels
        self.options = options
        for name, value in (
            ("num_classes", num_classes),
            ("image_size", height),
            ("image_size", width),
            ("pool_size", pool_size),
            ("seed", seed),
        ):
            check_range(name, value, *RANGES[name])
        self.config = {
            **dataclasses.asdict(options),
            "num_classes": num_classes,
            "image_size": (height, width),
            "pool_size": pool_size,
            "seed": seed,
        }
        shared = {"num_classes": num_classes, "dtype": self.dtype_policy}
        self.restorer = build_generator(options.without_noise(), name="restorer", **shared)
        self.degrader = build_generator(options, name="degrader", **shared)
        self.discriminator_a, self.discriminator_b = (
            build_discriminator(options, name=name, dtype=self.dtype_policy)
            for name in ("discriminator_a", "discriminator_b")
        )
        self.pool_a = ImagePool(pool_size, seed=2 * seed, name="pool_a", dtype="float32")
        self.pool_b = ImagePool(pool_size, seed=2 * seed + 1, name="pool_b", dtype="float32")
        for pool in (self.pool_a, self.pool_b):
            pool.build((None, height, width, channels))
            pool.built = True
        self.noise = UniformNoise(noise_channels, seed=seed, name="noise", dtype="float32") if noise_channels else None
        if self.noise:
            self.noise.build()
        self.means = {name: keras.metrics.Mean(name) for name in (*METRICS, TONE_TERM)}
        self.build()

    def build(self, input_shape=None):
        """Nothing is left to build; without this Keras would refuse to save a model that was never called."""
        self.built = True

    def call(self, inputs, training=False):
        return self.restorer(inputs, training=training)

    def degrade(self, images, noise=None, training=False):
        """Passes images through the degrader.

        Args:
            images: [N, H, W, C] in [-1, 1].
            noise: [N, H, W, noise_channels] as `UniformNoise` draws it; None for the first that the seed gives. Without
                meaning where the degrader takes none.
            training: as in `keras.Model`.

        Returns:
            (degraded images, class probabilities).
        """
        if self.noise is None:
            return self.degrader(images, training=training)
        given = [images, self.noise(images) if noise is None else noise]
        return self.degrader([ops.convert_to_tensor(each) for each in given], training=training)

    # Compiling

    def compile(self, generator_optimizer=None, discriminator_optimizer=None, loss_weights=None, **kwargs):
        """Sets the optimizers and the loss weights.

        Args:
            generator_optimizer: one optimizer for both generators; `r2c_gan.models.optimizers.Adam()` by default.
            discriminator_optimizer: one for both discriminators, an object of its own; the same default.
            loss_weights: a `LossWeights`; the authors' by default.
            **kwargs: `steps_per_execution`, `jit_compile` and `run_eagerly`, as in `keras.Model.compile`.

        Raises:
            ValueError: if both optimizers are one object, which would mix up their states.
        """
        generator_optimizer = generator_optimizer or Adam()
        discriminator_optimizer = discriminator_optimizer or Adam()
        if generator_optimizer is discriminator_optimizer:
            raise ValueError("generator_optimizer and discriminator_optimizer must be two objects")
        for optimizer in (generator_optimizer, discriminator_optimizer):
            step_biases_as_sums(optimizer)
        super().compile(optimizer=generator_optimizer, **kwargs)
        self.discriminator_optimizer = discriminator_optimizer
        self.loss_weights = loss_weights or LossWeights()
        # Built now, because the state of an optimizer that is not built is not restored from a file.
        self.optimizer.build(self.generator_variables)
        self.discriminator_optimizer.build(self.discriminator_variables)

    @property
    def generator_optimizer(self):
        return self.optimizer

    @property
    def optimizers(self):
        """The optimizers, whose state is saved with the weights; none before `compile`."""
        return [self.generator_optimizer, self.discriminator_optimizer] if self.compiled else []

    @property
    def generator_variables(self):
        return self.restorer.trainable_variables + self.degrader.trainable_variables

    @property
    def discriminator_variables(self):
        return self.discriminator_a.trainable_variables + self.discriminator_b.trainable_variables

    @property
    def steps_trained(self):
        """Number of training steps that the compiled model has taken."""
        return int(_array(self.iterations()))

    def averaged_restorer_weights(self):
        """The moving averages of the restorer's weights that the generator optimizer keeps, or None if it keeps none.

        A `models.optimizers.Adam` keeps them if it was made with `use_ema=True`; `ema_momentum` is the decay a step.
        """
        averages = getattr(self.generator_optimizer, "averages", None) if self.compiled else None
        if averages is None:
            return None
        # The optimizer's variables are the restorer's, then the degrader's.
        return [_array(average) for average in averages[: len(self.restorer.trainable_variables)]]

    @property
    def metrics(self):
        return list(self.means.values())

    # Losses: shared by the training steps of every backend (`tensorflow_step`, `jax_step`)

    def draw_noise(self, image_a, image_b, draw):
        """The noise of a step, for F(B), F(A) and F(G(A)), each drawn for the images it goes with; None for none."""
        return self.noise and [draw(images) for images in (image_b, image_a, image_a)]

    def generator_step(self, image_a, label_a, image_b, label_b, noise=None, training=True):
        """Passes one unpaired batch through both cycles.

        Both inputs that a generator gets at the same time go through it as one batch; normalisation is per sample, so
        the result is that of two passes.

        Returns:
            (total loss, dictionary of the twelve terms and that of tone, G(A), F(B), G's class probabilities of A).
        """
        n = ops.shape(image_a)[0]
        restored, g_classes = self.restorer(ops.concatenate([image_a, image_b]), training=training)
        noise_b, noise_a, noise_a2b = noise or (None, None, None)
        both = ops.concatenate([noise_b, noise_a]) if noise else None
        degraded, f_classes = self.degrade(ops.concatenate([image_b, image_a]), both, training)
        a2b, b2b = restored[:n], restored[n:]
        m = ops.shape(image_b)[0]
        b2a, a2a = degraded[:m], degraded[m:]
        b2a2b, class_b2a2b = self.restorer(b2a, training=training)
        a2b2a, class_a2b2a = self.degrade(a2b, noise_a2b, training)
        classification_loss = functools.partial(losses.classification_loss, class_weights=self.loss_weights.classes)
        terms = {
            "adversarial_a2b": losses.generator_adversarial_loss(self.discriminator_b(a2b, training=training)),
            "adversarial_b2a": losses.generator_adversarial_loss(self.discriminator_a(b2a, training=training)),
            "cycle_a": losses.cycle_consistency_loss(image_a, a2b2a),
            "cycle_b": losses.cycle_consistency_loss(image_b, b2a2b),
            "identity_a": losses.identity_loss(image_a, a2a),
            "identity_b": losses.identity_loss(image_b, b2b),
            "class_a2b": classification_loss(label_a, g_classes[:n]),
            "class_b2a": classification_loss(label_b, f_classes[:m]),
            "class_a2b2a": classification_loss(label_a, class_a2b2a),
            "class_b2a2b": classification_loss(label_b, class_b2a2b),
            "class_a2a": classification_loss(label_a, f_classes[m:]),
            "class_b2b": classification_loss(label_b, g_classes[n:]),
        }
        if self.options.drawn_tone:
            curve = next(layer for layer in self.degrader.layers if isinstance(layer, DrawnToneCurve))
            terms[TONE_TERM] = losses.tone_loss(image_a, curve.exposed(image_b, noise_b))
        return losses.generator_loss(terms, self.loss_weights), terms, a2b, b2a, g_classes[:n]

    def discriminator_step(self, image_a, image_b, fake_a, fake_b, training=True):
        """Judges real and generated images.

        Returns:
            (total loss, dictionary of the four terms).
        """
        n, m = ops.shape(image_a)[0], ops.shape(image_b)[0]
        logits_a = self.discriminator_a(ops.concatenate([image_a, fake_a]), training=training)
        logits_b = self.discriminator_b(ops.concatenate([image_b, fake_b]), training=training)
        terms = {
            "discriminator_a_real": losses.discriminator_real_loss(logits_a[:n]),
            "discriminator_a_fake": losses.discriminator_fake_loss(logits_a[n:]),
            "discriminator_b_real": losses.discriminator_real_loss(logits_b[:m]),
            "discriminator_b_fake": losses.discriminator_fake_loss(logits_b[m:]),
        }
        return losses.discriminator_loss(terms), terms

    def compute_losses(self, data):
        """What `update_metrics` takes, of one batch and without a step or the pools."""
        (image_a, label_a), (image_b, label_b) = data
        noise = self.draw_noise(image_a, image_b, self.noise)
        g_loss, g_terms, fake_b, fake_a, classes = self.generator_step(image_a, label_a, image_b, label_b, noise, False)
        d_loss, d_terms = self.discriminator_step(image_a, image_b, fake_a, fake_b, False)
        return g_loss, d_loss, {**g_terms, **d_terms}, label_a, classes

    def update_metrics(self, g_loss, d_loss, terms, label_a, classes):
        """Adds the losses of a batch to the running means, and returns these."""
        correct = ops.equal(ops.argmax(classes, axis=-1), ops.argmax(label_a, axis=-1))
        values = {"generator_loss": g_loss, "discriminator_loss": d_loss, "accuracy": ops.cast(correct, "float32")}
        values.update(terms)
        for name, value in values.items():
            self.means[name].update_state(value)
        return {name: self.means[name].result() for name in values}

    # Saving

    def get_config(self):
        return {**super().get_config(), **self.config}

    def get_compile_config(self):
        if not self.compiled:
            return None
        return {
            "generator_optimizer": keras.saving.serialize_keras_object(self.generator_optimizer),
            "discriminator_optimizer": keras.saving.serialize_keras_object(self.discriminator_optimizer),
            "loss_weights": dataclasses.asdict(self.loss_weights),
        }

    def compile_from_config(self, config):
        self.compile(
            keras.saving.deserialize_keras_object(config["generator_optimizer"]),
            keras.saving.deserialize_keras_object(config["discriminator_optimizer"]),
            LossWeights(**config["loss_weights"]),
        )


def check_range(name, value, least, most):
    """Raises a `ValueError` for what is no integer from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
        raise ValueError(f"{name} must be an integer from {least} to {most}, got {value!r}")


def _array(variable):
    # By way of a tensor, because a variable that several devices mirror is no array by itself.
    return ops.convert_to_numpy(ops.convert_to_tensor(variable))
