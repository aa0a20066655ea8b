"""The training step of `R2CGAN` on JAX: a pure function of its state, which Keras compiles."""

import contextlib

import jax
import keras
import numpy as np


class JaxStep:
    """Mixed into `R2CGAN` where Keras runs on JAX, as Keras itself picks its trainers.

    Keras carries the state (trainable variables, other variables, variables of `optimizer`, metrics) from step to step
    as lists of arrays, in the order of the model's attributes of these names. While it does, the variables themselves
    are empty, until `synchronize` is called.
    """

    @property
    def non_trainable_variables(self):
        """The pools, and the state of the second optimizer, for which Keras' own state has no place."""
        optimizer = getattr(self, "discriminator_optimizer", None)
        return super().non_trainable_variables + (optimizer.variables if optimizer is not None else [])

    def train_step(self, state, data):
        """One step on ((image_a, label_a), (image_b, label_b)).

        Returns:
            (the running means of all losses, the new state).
        """
        (image_a, label_a), (image_b, label_b) = data
        trainable, others, optimizer_values, means = state
        values = _Values((self.trainable_variables, trainable), (self.non_trainable_variables, others))

        noise = None
        if self.noise:
            with values.scope() as scope:
                noise = self.draw_noise(image_a, image_b, lambda images: self.noise(images, training=True))
            values.take(scope, self.noise.variables)

        def generator_loss(generator_values):
            with values.scope((self.generator_variables, generator_values)):
                loss, *rest = self.generator_step(image_a, label_a, image_b, label_b, noise)
            return loss, rest

        generators = values.of(self.generator_variables)
        (g_loss, rest), gradients = jax.value_and_grad(generator_loss, has_aux=True)(generators)
        g_terms, fake_b, fake_a, classes = rest
        generators, optimizer_values = self.generator_optimizer.stateless_apply(optimizer_values, gradients, generators)
        values.put(self.generator_variables, generators)

        with values.scope() as scope:
            fake_a, fake_b = self.pool_a(fake_a), self.pool_b(fake_b)
        values.take(scope, self.pool_a.variables + self.pool_b.variables)

        def discriminator_loss(discriminator_values):
            with values.scope((self.discriminator_variables, discriminator_values)):
                return self.discriminator_step(image_a, image_b, fake_a, fake_b)

        discriminators = values.of(self.discriminator_variables)
        (d_loss, d_terms), gradients = jax.value_and_grad(discriminator_loss, has_aux=True)(discriminators)
        optimizer = self.discriminator_optimizer
        discriminators, second = optimizer.stateless_apply(values.of(optimizer.variables), gradients, discriminators)
        values.put(self.discriminator_variables, discriminators)
        values.put(optimizer.variables, second)

        logs, means = self._stateless_means(means, g_loss, d_loss, {**g_terms, **d_terms}, label_a, classes)
        trainable, others = values.of(self.trainable_variables), values.of(self.non_trainable_variables)
        return logs, (trainable, others, optimizer_values, means)

    def test_step(self, state, data):
        """The losses of one batch, without a step and without the pools; returns (their means, the new state)."""
        trainable, others, means = state
        with _Values((self.trainable_variables, trainable), (self.non_trainable_variables, others)).scope():
            losses = self.compute_losses(data)
        logs, means = self._stateless_means(means, *losses)
        return logs, (trainable, others, means)

    def _stateless_means(self, means, *losses):
        values = _Values((self.metrics_variables, means))
        with values.scope() as scope:
            logs = self.update_metrics(*losses)
        values.take(scope, self.metrics_variables)
        return logs, values.of(self.metrics_variables)

    @contextlib.contextmanager
    def local_scope(self):
        """Within it, the model can be read and called by one of several processes alone.

        The values of its variables belong to the devices of all processes, and what is computed from them, be it the
        learning rate that Keras looks up while it saves, would have to be computed by all.
        """
        if jax.process_count() == 1:
            yield
            return
        variables = self.trainable_variables + self.non_trainable_variables
        variables += self.optimizer.variables + self.metrics_variables
        shared = [variable.value for variable in variables]
        distribution = keras.distribution.distribution()
        keras.distribution.set_distribution(None)
        try:
            # Set as Keras' trainer sets it: `assign` would spread the value again.
            for variable, value in zip(variables, shared, strict=True):
                variable._value = jax.numpy.asarray(np.asarray(value))
            yield
        finally:
            for variable, value in zip(variables, shared, strict=True):
                variable._value = value
            keras.distribution.set_distribution(distribution)

    def synchronize(self):
        """Brings the variables up to date in the middle of an epoch, when the state is elsewhere."""
        self.jax_state_sync()

    def iterations(self):
        """Training steps taken, as an array."""
        carried = getattr(self, "_jax_state", None)
        if not carried or self._jax_state_synced or "optimizer_variables" not in carried:
            return self.generator_optimizer.iterations
        # Read where it is, because to synchronise all variables after every step would be slow.
        place = [variable.path for variable in self.generator_optimizer.variables].index(
            self.generator_optimizer.iterations.path
        )
        return carried["optimizer_variables"][place]


class _Values:
    """The values that variables have in the middle of a step, in place of the variables' own.

    Args:
        *pairs: (variables, their values).
    """

    def __init__(self, *pairs):
        self._values = {}
        for variables, values in pairs:
            self.put(variables, values)

    def put(self, variables, values):
        self._values.update(
            (id(variable), (variable, value)) for variable, value in zip(variables, values, strict=True)
        )

    def of(self, variables):
        return [self._values[id(variable)][1] for variable in variables]

    def take(self, scope, variables):
        """Takes over what was assigned to the variables in a scope."""
        self.put(variables, [scope.get_current_value(variable) for variable in variables])

    def scope(self, *changes):
        """A scope in which variables have these values, but for the changes, which are (variables, values)."""
        changed = _Values(*changes)._values
        return keras.StatelessScope(state_mapping=list({**self._values, **changed}.values()))
