"""The training step of `R2CGAN` on TensorFlow."""

import contextlib
import functools

import tensorflow as tf

from r2c_gan.layers.tensorflow_kernels import of_whole_batch


class TensorFlowStep:
    """Mixed into `R2CGAN` where Keras runs on TensorFlow, as Keras itself picks its trainers."""

    def train_step(self, data):
        """One step on ((image_a, label_a), (image_b, label_b)); returns the running means of all losses."""
        (image_a, label_a), (image_b, label_b) = data
        # Gradients of replicas are summed: each replica's mean loss counts for its share of the batch.
        share = 1 / tf.distribute.get_strategy().num_replicas_in_sync
        noise = self.draw_noise(
            image_a, image_b, lambda images: of_whole_batch(functools.partial(self.noise, training=True), images)
        )
        with tf.GradientTape() as tape:
            g_loss, g_terms, fake_b, fake_a, classes = self.generator_step(image_a, label_a, image_b, label_b, noise)
            loss = share * g_loss
        gradients = _after((g_loss, fake_b, fake_a, classes), tape.gradient(loss, self.generator_variables))
        self.generator_optimizer.apply(gradients, self.generator_variables)
        fake_a, fake_b = of_whole_batch(self.pool_a, fake_a), of_whole_batch(self.pool_b, fake_b)
        with tf.GradientTape() as tape:
            d_loss, d_terms = self.discriminator_step(image_a, image_b, fake_a, fake_b)
            loss = share * d_loss
        gradients = _after((d_loss,), tape.gradient(loss, self.discriminator_variables))
        self.discriminator_optimizer.apply(gradients, self.discriminator_variables)
        return self.update_metrics(g_loss, d_loss, {**g_terms, **d_terms}, label_a, classes)

    def test_step(self, data):
        """The losses of one batch, without a step and without the pools."""
        return self.update_metrics(*self.compute_losses(data))

    @staticmethod
    def local_scope():
        """Within it, the model can be read and called by one of several processes alone; here there is only one."""
        return contextlib.nullcontext()

    def synchronize(self):
        """Brings the variables up to date in the middle of an epoch, as they always are here."""

    def iterations(self):
        """Training steps taken, as a tensor."""
        return self.generator_optimizer.iterations


def _after(values, gradients):
    """The gradients, to be had only once the values are computed.

    TensorFlow's graph optimizer may drop the order between a read of a variable that no gradient passes and the write
    of the optimizer to it. The step would then now and then see the weights of the next one.
    """
    with tf.control_dependencies(values):
        return [gradient if gradient is None else tf.identity(gradient) for gradient in gradients]
