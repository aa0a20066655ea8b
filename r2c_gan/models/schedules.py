"""The learning-rate schedule of the paper."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("r2c_gan")
class LinearDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Constant for `decay_start` steps, then linear to zero at `total_steps`; zero, never below it, from there on.

    Args:
        initial_learning_rate: the rate at step 0.
        total_steps: the step at which the rate reaches zero.
        decay_start: the step at which the decay begins; from `total_steps` on there is none.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(self, initial_learning_rate, total_steps, decay_start):
        if initial_learning_rate < 0 or total_steps < 1 or decay_start < 0:
            raise ValueError(
                "LinearDecay needs initial_learning_rate >= 0, total_steps >= 1 and decay_start >= 0, "
                f"got {initial_learning_rate}, {total_steps} and {decay_start}"
            )
        self.initial_learning_rate = initial_learning_rate
        self.total_steps = total_steps
        self.decay_start = decay_start

    def __call__(self, step):
        if self.decay_start >= self.total_steps:
            return ops.convert_to_tensor(self.initial_learning_rate, "float32")
        # Subtracted as integers: float32 counts steps exactly only up to 2^24.
        left = ops.cast(self.total_steps - ops.cast(step, "int"), "float32")
        share = left / float(self.total_steps - self.decay_start)
        return self.initial_learning_rate * ops.clip(share, 0.0, 1.0)

    def get_config(self):
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "total_steps": self.total_steps,
            "decay_start": self.decay_start,
        }
