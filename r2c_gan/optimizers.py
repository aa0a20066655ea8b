"""Adam, stepping the biases of operational layers as the authors' training does."""

import keras


@keras.saving.register_keras_serializable("r2c_gan")
class Adam(keras.optimizers.Adam):
    """`keras.optimizers.Adam` that multiplies the learning rate of a variable by its `learning_rate_multiplier`.

    The authors' operational layer adds q convolutions that each have a bias. The q biases get the same gradient, hence
    the same Adam steps, so their sum moves q times as fast as a single bias would. Ours has the single bias of the
    formula and carries the multiplier q; a variable without the attribute has 1.

    Arguments as in `keras.optimizers.Adam`; the defaults of the learning rate and of beta_1 are the authors'.
    """

    def __init__(self, learning_rate=2e-4, beta_1=0.5, **kwargs):
        super().__init__(learning_rate=learning_rate, beta_1=beta_1, **kwargs)

    def build(self, variables):
        super().build(variables)
        self._multipliers = [getattr(variable, "learning_rate_multiplier", 1) for variable in variables]

    def update_step(self, gradient, variable, learning_rate):
        multiplier = self._multipliers[self._get_variable_index(variable)]
        super().update_step(gradient, variable, learning_rate * multiplier)

    @property
    def averages(self):
        """The moving averages of the variables that it was built with, in their order; None without `use_ema`."""
        return self._model_variables_moving_average if self.use_ema else None

    def finalize_variable_values(self, var_list):
        """Leaves the variables as they are at the end of `fit`; Keras would overwrite them with the averages.

        The averages are for evaluation; a training that is resumed goes on from the weights themselves.
        """
