"""A naive implementation of the authors' algorithm in today's Keras, which `experiments.benchmarks` times too.

The library uses nothing of it. It is what one writes straight from the paper and the authors' description:

- an operational layer is q `Conv2D` layers of `tf.pow(x, p)`, each with a bias of its own, added up;
- a step passes the generators six times and the discriminators six times, one batch of images at a time;
- the step of the generators and that of the discriminators are two functions;
- the history of generated images is a list on the host, so the fakes leave the graph and come back.
"""

import random

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from r2c_gan.layers.operational import ReflectionPadding2D
from r2c_gan.models.losses import LossWeights
from r2c_gan.models.networks import BLOCKS, HEAD_AFTER_BLOCK, LEAKY_SLOPE


class SumOfConvolutions(layers.Layer):
    """q convolutions of the powers of x, added up."""

    def __init__(self, kind, filters, kernel_size, q, **kwargs):
        super().__init__()
        self.terms = [kind(filters, kernel_size, **kwargs) for _ in range(q)]

    def call(self, x):
        return sum(term(tf.pow(x, power)) for power, term in enumerate(self.terms, start=1))


class NaiveImplementation:
    """The four networks, the optimizers, the pools and the two functions of a step.

    Args:
        method, q, channels, filters: as in `r2c_gan.models.networks.build_generator`.
    """

    def __init__(self, method="operational", q=3, channels=3, filters=64):
        self.method, self.q, self.channels, self.filters = method, q, channels, filters
        self.g_a2b, self.g_b2a = self._generator(), self._generator()
        self.d_a, self.d_b = self._discriminator(), self._discriminator()
        self.g_optimizer = keras.optimizers.Adam(2e-4, beta_1=0.5)
        self.d_optimizer = keras.optimizers.Adam(2e-4, beta_1=0.5)
        self.g_variables = self.g_a2b.trainable_variables + self.g_b2a.trainable_variables
        self.d_variables = self.d_a.trainable_variables + self.d_b.trainable_variables
        self.pool_a, self.pool_b = HostPool(), HostPool()

    def _conv(self, filters, kernel_size, **kwargs):
        if self.method == "operational":
            return SumOfConvolutions(layers.Conv2D, filters, kernel_size, self.q, **kwargs)
        return layers.Conv2D(filters, kernel_size, **kwargs)

    def _conv_transpose(self, filters, kernel_size, **kwargs):
        if self.method == "operational":
            return SumOfConvolutions(layers.Conv2DTranspose, filters, kernel_size, self.q, **kwargs)
        return layers.Conv2DTranspose(filters, kernel_size, **kwargs)

    def _residual_block(self, x):
        operational = self.method == "operational"
        width = x.shape[-1]
        h = layers.Activation("tanh")(x) if operational else x
        h = self._conv(width, 3, use_bias=False)(ReflectionPadding2D(1)(h))
        h = layers.Activation("tanh" if operational else "relu")(_normalization()(h))
        h = self._conv(width, 3, use_bias=False)(ReflectionPadding2D(1)(h))
        h = layers.Add()([x, _normalization()(h)])
        return layers.Activation("tanh")(h) if operational else h

    def _generator(self):
        image = keras.Input((None, None, self.channels))
        if self.method == "convolutional":
            x = layers.Conv2D(self.filters, 7, use_bias=False)(ReflectionPadding2D(3)(image))
            x = layers.ReLU()(_normalization()(x))
            for width in (2, 4):
                x = layers.Conv2D(self.filters * width, 3, strides=2, padding="same", use_bias=False)(x)
                x = layers.ReLU()(_normalization()(x))
            for block in range(1, BLOCKS + 1):
                x = self._residual_block(x)
                if block == HEAD_AFTER_BLOCK:
                    features = x
            for width in (2, 1):
                x = layers.Conv2DTranspose(self.filters * width, 3, strides=2, padding="same", use_bias=False)(x)
                x = layers.ReLU()(_normalization()(x))
            x = layers.Conv2D(self.channels, 7)(ReflectionPadding2D(3)(x))
        else:
            x = self._conv(self.filters * 2, 3, strides=2, padding="same", use_bias=False)(image)
            x = _normalization()(x)
            x = features = self._residual_block(x if self.method == "operational" else layers.ReLU()(x))
            x = self._conv_transpose(self.channels, 3, strides=2, padding="same")(x)
        classes = layers.Dense(2, activation="softmax")(layers.GlobalMaxPooling2D()(features))
        return keras.Model(image, (layers.Activation("tanh")(x), classes))

    def _discriminator(self):
        image = keras.Input((None, None, self.channels))
        x = layers.LeakyReLU(LEAKY_SLOPE)(self._conv(self.filters, 4, strides=2, padding="same")(image))
        if self.method == "convolutional":
            for width, stride in ((2, 2), (4, 2), (8, 1)):
                x = layers.Conv2D(self.filters * width, 4, strides=stride, padding="same", use_bias=False)(x)
                x = layers.LeakyReLU(LEAKY_SLOPE)(_normalization()(x))
        else:
            x = self._conv(self.filters * 2, 4, strides=4, padding="same", use_bias=False)(x)
            x = layers.LeakyReLU(LEAKY_SLOPE)(_normalization()(x))
        x = self._conv(1, 4, padding="same")(x)
        return keras.Model(image, layers.LeakyReLU(LEAKY_SLOPE)(x) if self.method == "operational" else x)

    def step(self, image_a, label_a, image_b, label_b):
        """One step; returns the losses of the generators and of the discriminators."""
        g_loss, fake_b, fake_a = self.train_generators(image_a, label_a, image_b, label_b)
        fake_a, fake_b = self.pool_a(fake_a.numpy()), self.pool_b(fake_b.numpy())
        return g_loss, self.train_discriminators(image_a, image_b, fake_a, fake_b)

    @tf.function
    def train_generators(self, image_a, label_a, image_b, label_b):
        weights = LossWeights()
        cross_entropy = keras.losses.CategoricalCrossentropy()
        with tf.GradientTape() as tape:
            a2b, class_a2b = self.g_a2b(image_a, training=True)
            b2a, class_b2a = self.g_b2a(image_b, training=True)
            a2b2a, class_a2b2a = self.g_b2a(a2b, training=True)
            b2a2b, class_b2a2b = self.g_a2b(b2a, training=True)
            a2a, class_a2a = self.g_b2a(image_a, training=True)
            b2b, class_b2b = self.g_a2b(image_b, training=True)
            adversarial = _mse(1.0, self.d_b(a2b, training=True)) + _mse(1.0, self.d_a(b2a, training=True))
            cycle = _mae(image_a, a2b2a) + _mae(image_b, b2a2b)
            identity = _mae(image_a, a2a) + _mae(image_b, b2b)
            classes_a = sum(cross_entropy(label_a, classes) for classes in (class_a2b, class_a2b2a, class_a2a))
            classes_b = sum(cross_entropy(label_b, classes) for classes in (class_b2a, class_b2a2b, class_b2b))
            loss = adversarial + weights.cycle * cycle + weights.identity * identity
            loss += weights.classification * (classes_a + classes_b)
        gradients = tape.gradient(loss, self.g_variables)
        self.g_optimizer.apply_gradients(zip(gradients, self.g_variables, strict=True))
        return loss, a2b, b2a

    @tf.function
    def train_discriminators(self, image_a, image_b, fake_a, fake_b):
        with tf.GradientTape() as tape:
            real = _mse(1.0, self.d_a(image_a, training=True)) + _mse(1.0, self.d_b(image_b, training=True))
            fake = _mse(0.0, self.d_a(fake_a, training=True)) + _mse(0.0, self.d_b(fake_b, training=True))
            loss = real + fake
        gradients = tape.gradient(loss, self.d_variables)
        self.d_optimizer.apply_gradients(zip(gradients, self.d_variables, strict=True))
        return loss


class HostPool:
    """The history of generated images as a list."""

    def __init__(self, size=50, seed=0):
        self.size, self.images, self.random = size, [], random.Random(seed)

    def __call__(self, images):
        returned = []
        for image in images:
            if len(self.images) < self.size:
                self.images.append(image)
            elif self.random.random() < 0.5:
                place = self.random.randrange(self.size)
                image, self.images[place] = self.images[place], image
            returned.append(image)
        return np.stack(returned)


def _mse(target, logits):
    return tf.reduce_mean(tf.square(target - logits))


def _mae(target, image):
    return tf.reduce_mean(tf.abs(target - image))


def _normalization():
    return layers.GroupNormalization(groups=-1, epsilon=1e-3)
