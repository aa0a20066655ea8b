"""All that a training depends on, in groups. Each option is declared here or in `NetworkOptions`, and nowhere else."""

import dataclasses

from r2c_gan import options
from r2c_gan.data.window import HELP as WINDOW_HELP
from r2c_gan.data.window import Window
from r2c_gan.errors import UserError
from r2c_gan.options import option
from r2c_gan.options.network import GENERATOR_STRIDE, NetworkOptions
from r2c_gan.restoration import memory
from r2c_gan.training import presets

PRECISIONS = ("float32", "mixed_bfloat16")
CLASS_WEIGHTS = ("none", "balanced")
STRATEGIES = ("none", "mirrored", "data_parallel")
# Options of earlier versions, and the value at which they changed nothing.
RETIRED = {"clip_norm": 0.0, "jit_compile": False}


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Data."""

    datasets_dir: str = option(
        "dataset/", "Folder with trainA/, trainB/ and optionally valA/ with valA_reference/.", fixed=False, common=True
    )
    output_dir: str = option(
        "output/", "The run folder: checkpoints, history.csv, samples, result.json.", fixed=False, common=True
    )
    load_size: int = option(286, "Side in pixels to which images are resized.", least=1, most=8192, common=True)
    crop_size: int = option(256, "Side of the random crop, at most --load_size.", least=1, most=8192, common=True)
    batch_size: int = option(1, "Images a domain and step.", least=1, most=4096, common=True)
    window: str = option("auto", WINDOW_HELP)
    limit_train_images: int = option(
        0, "Use this many images of each training domain; 0 for all.", least=0, most=2**31 - 1
    )
    check_images: bool = option(True, "Decode every image before the training begins.", fixed=False)


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """Losses."""

    cycle_loss_weight: float = option(10.0, "Weight of the cycle-consistency losses.", least=0)
    identity_loss_weight: float = option(5.0, "Weight of the identity losses.", least=0)
    class_loss_weight: float = option(0.1, "Weight of the six classification losses.", least=0)
    adversarial_loss_weight: float = option(1.0, "Weight of the adversarial losses.", least=0, in_paper=False)
    cycle_a_loss_weight: float | None = option(None, "A weight of its own for |F(G(a)) - a|.", least=0, in_paper=False)
    identity_a_loss_weight: float | None = option(None, "A weight of its own for |F(a) - a|.", least=0, in_paper=False)
    class_weights: str = option(
        "none",
        "balanced: the classification losses of a class are weighed by the inverse of its share of the images.",
        choices=CLASS_WEIGHTS,
        in_paper=False,
    )
    pool_size: int = option(50, "Generated images kept for each discriminator; 0 for none.", least=0, most=100_000)


@dataclasses.dataclass(frozen=True)
class ScheduleOptions:
    """Schedule."""

    epochs: int = option(
        2000,
        "Passes over the longer domain. May grow when a run is resumed.",
        least=1,
        most=10**6,
        fixed=False,
        common=True,
    )
    epoch_decay: int = option(
        100,
        "Epoch from which the learning rate falls linearly, to 0 at the end.",
        least=0,
        most=10**6,
        common=True,
    )
    lr: float = option(2e-4, "Learning rate of Adam, for generators and discriminators.", least=0, common=True)
    beta_1: float = option(0.5, "Decay of Adam's first moment.", least=0, below=1)
    ema_decay: float = option(
        0.0,
        "Decay of a moving average of the generators' weights, which validation, evaluation and export then use; try "
        "0.998.",
        least=0,
        below=1,
        in_paper=False,
    )
    early_stopping: int = option(
        0,
        "End after this many epochs without a better validation F1; 0 for never.",
        least=0,
        most=10**6,
        in_paper=False,
        fixed=False,
    )
    initial_run: str | None = option(
        None,
        "Start from the networks of this run folder, as its latest checkpoint has them; sizes may differ.",
        in_paper=False,
    )


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Run."""

    seed: int = option(0, "Seed of weights, order, augmentation and pools.", least=0, most=2**30 - 1, common=True)
    precision: str = option(
        "float32",
        "mixed_bfloat16: float32 weights and losses, bfloat16 convolutions; fast where the processor has bfloat16.",
        choices=PRECISIONS,
        common=True,
    )
    deterministic: bool = option(True, "Use deterministic operations, so that one seed gives one result.")
    sample_interval: int = option(500, "Steps between pictures of the training; 0 for none.", least=0, fixed=False)
    keep_checkpoints: int = option(
        5, "Newest checkpoints kept, besides the best by validation F1.", least=1, fixed=False
    )
    save_minutes: float = option(
        10.0, "Minutes between savings in the middle of an epoch; 0 for none.", least=0, fixed=False
    )
    distribute: str = option(
        "none",
        "Share each batch: mirrored: all GPUs of this machine; data_parallel (KERAS_BACKEND=jax): all of all machines.",
        choices=STRATEGIES,
    )


@dataclasses.dataclass(frozen=True)
class TrainingConfig(RunOptions, ScheduleOptions, LossOptions, NetworkOptions, DataOptions):
    """All that a training depends on; the defaults are the authors'.

    Its attributes are the options of `DataOptions`, `NetworkOptions`, `LossOptions`, `ScheduleOptions` and
    `RunOptions`, which are the flags of `r2c-gan-train`; the help of each says what it means.

    Example:
        >>> config = TrainingConfig("dataset", "runs/small", load_size=72, crop_size=64, epochs=20, epoch_decay=10)
        >>> config.network.q
        3
    """

    preset: str = presets.PAPER  # what the settings started from, for the record

    @classmethod
    def from_preset(cls, name, **changes):
        """A preset's settings, with changes.

        Args:
            name: one of `presets.names()`.
            **changes: options that differ.

        Raises:
            UserError: if there is no preset of that name.
        """
        return cls(**{**presets.read(name)[1], **changes, "preset": name})

    @property
    def network(self):
        """The `NetworkOptions`."""
        return options.part(self, NetworkOptions)

    def check(self):
        """Checks what can be checked without the data.

        Raises:
            UserError: naming the flag.
        """
        if "float16" in str(self.precision) and self.precision not in PRECISIONS:
            raise UserError(
                f"--precision={self.precision}: must be one of {', '.join(PRECISIONS)}; float16 is refused because its "
                "range needs a loss scaling that Keras gives to one optimizer only"
            )
        options.check(self)
        Window.parse(self.window)
        if self.drawn_tone:
            self._check_drawn_tone()
        stride = GENERATOR_STRIDE[self.method]
        if self.crop_size % stride:
            raise UserError(f"--crop_size={self.crop_size}: must be a multiple of {stride} for --method={self.method}")
        self._check_memory()

    def _check_memory(self):
        """Refuses sizes of which one alone takes more memory than there is; what a step takes is not foreseen."""
        free = memory.available()
        for name, size in (
            ("load_size", self.load_size**2 * self.channels * 4),
            ("pool_size", 2 * self.pool_size * self.crop_size**2 * self.channels * 4),
        ):
            if free is not None and size > free:
                raise UserError(
                    f"--{name}={getattr(self, name)}: takes {size / 1e9:.1f} GB of memory, of which "
                    f"{free / 1e9:.1f} GB are free; give a smaller one"
                )

    def _check_drawn_tone(self):
        if self.skip == "none" or not self.noise_channels:
            raise UserError("--drawn_tone: needs --skip=tone_curve, and --noise_channels to draw it from; try 4")
        if self.batch_size < 2:
            raise UserError("--drawn_tone: compares the images of a batch; give --batch_size=2 or more")
        if self.distribute != "none":
            raise UserError(f"--drawn_tone: compares whole batches; it does not go with --distribute={self.distribute}")
