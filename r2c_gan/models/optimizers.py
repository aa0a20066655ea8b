"""Optimizers: operational biases stepped as in the authors' training, and Adam with averages for evaluation."""

import keras
from keras import ops


def step_biases_as_sums(optimizer):
    """Makes an optimizer step the bias of an operational layer of order q as the sum of q biases.

    The authors' operational layer adds q convolutions that each have a bias. The q biases get the same gradient, hence
    the same steps, so their sum moves q times as far as a single bias would. Ours has the single bias of the formula,
    and with it the attribute `learning_rate_multiplier`, q, which multiplies the learning rate here.

    Args:
        optimizer: a `keras.optimizers.Optimizer` whose steps are proportional to the learning rate, as all of Keras'
            are. It is changed in place; a second call changes nothing.
    """
    if hasattr(optimizer.update_step, "of_sums"):
        return
    plain = optimizer.update_step

    def update_step(gradient, variable, learning_rate):
        # TensorFlow's own variable comes in; the attribute is on the Keras one that wraps it.
        kept = optimizer._trainable_variables[optimizer._get_variable_index(variable)]
        plain(gradient, variable, learning_rate * getattr(kept, "learning_rate_multiplier", 1))

    update_step.of_sums = True
    optimizer.update_step = update_step


@keras.saving.register_keras_serializable("r2c_gan")
class Adam(keras.optimizers.Adam):
    """`keras.optimizers.Adam` with the authors' defaults, whose moving averages stay apart from the weights.

    Arguments as in `keras.optimizers.Adam`. With `use_ema=True`, `averages` can be evaluated while the weights train.
    The average begins as the weights after the first step; after n more its decay is

        min(ema_momentum, (1 + n) / (10 + n)),

    as that of `tf.train.ExponentialMovingAverage`, so that a short training is not averaged with where it began.
    """

    def __init__(self, learning_rate=2e-4, beta_1=0.5, **kwargs):
        super().__init__(learning_rate=learning_rate, beta_1=beta_1, **kwargs)

    @property
    def averages(self):
        """The moving averages of the variables that it was built with, in their order; None without `use_ema`."""
        return self._model_variables_moving_average if self.use_ema else None

    def _update_model_variables_moving_average(self, trainable_variables):
        # Keras has a constant decay. `iterations` is counted up after this.
        step = ops.cast(self.iterations, "float32")
        decay = ops.where(step > 0, ops.minimum(self.ema_momentum, (1 + step) / (10 + step)), 0.0)
        for variable, average in zip(trainable_variables, self.averages, strict=True):
            average.assign(decay * average + (1 - decay) * variable)

    def finalize_variable_values(self, var_list):
        """Leaves the variables as they are at the end of `fit`; Keras would overwrite them with the averages.

        A training that is resumed goes on from the weights themselves.
        """
