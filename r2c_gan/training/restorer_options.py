"""The options of a training on pairs (`restorer_training`). No Keras here, so that `--help` starts at once."""

import dataclasses

from r2c_gan import options
from r2c_gan.options import option
from r2c_gan.options.network import METHODS, NetworkOptions
from r2c_gan.training.configuration import PRECISIONS


@dataclasses.dataclass(frozen=True)
class PairTrainingOptions:
    """Training on pairs."""

    output_dir: str = option("output/", "The run folder.", fixed=False, common=True)
    size: int = option(128, "Side of the images, in pixels.", least=8, most=8192, common=True)
    batch_size: int = option(8, "Pairs a step.", least=1, most=4096, common=True)
    epochs: int = option(30, "Passes over the pairs.", least=1, most=100_000, common=True)
    lr: float = option(1e-3, "Largest learning rate of Adam; it falls to 0 as a cosine.", least=0)
    warmup: int = option(100, "Steps in which the learning rate rises.", least=0)
    image_loss_weight: float = option(10.0, "Weight of the mean absolute error.", least=0)
    gradient_loss_weight: float = option(
        0.0, "Weight of the mean absolute error of the differences between neighbours.", least=0
    )
    class_loss_weight: float = option(1.0, "Weight of the cross-entropy.", least=0)
    largest_gradient: float = option(1.0, "Largest norm of the gradient; 0 for no limit.", least=0)
    ema_decay: float = option(
        0.998, "Decay a step of the average of the weights, which is what counts.", least=0, below=1
    )
    seed: int = option(0, "Of weights, order and degradations.", least=0, most=2**31 - 1)
    precision: str = option("float32", "Of the network.", choices=PRECISIONS)
    initial_run: str | None = option(None, "Run folder, or .npz of weights, that the restorer starts from.")


@dataclasses.dataclass(frozen=True)
class RestorerTraining(NetworkOptions, PairTrainingOptions):
    """How a restorer is trained on pairs."""

    method: str = option("operational-context", "Kind of the network.", choices=METHODS, common=True)
    channels: int = option(1, "Channels of the images.", choices=(1, 3))

    def network(self):
        """The options of the network alone."""
        return options.part(self, NetworkOptions)

    def model_config(self):
        """The arguments of the `R2CGAN` of the run."""
        return {**dataclasses.asdict(self.network()), "seed": self.seed, "image_size": self.size, "pool_size": 0}
