"""The options that the four networks are built from. No Keras here, so that `--help` starts at once."""

import dataclasses

from r2c_gan import options
from r2c_gan.options import option

PAPER_METHODS = ("operational", "convolutional", "convolutional-light")
CONTEXT_METHODS = ("operational-context", "convolutional-context")  # beside the paper: they see the whole film
METHODS = (*PAPER_METHODS, *CONTEXT_METHODS)
UPSAMPLINGS = ("transposed", "resize")
SKIPS = ("none", "tone_curve")
POWER_INITS = ("equal", "maclaurin")
# Height and width of a generator's input must be multiples of this.
GENERATOR_STRIDE = {"operational": 2, "convolutional": 4, "convolutional-light": 2, **dict.fromkeys(CONTEXT_METHODS, 4)}
# What `skip` was called in runs of format 1; the curve of "global_tone_curve" does not see the darkest and brightest
# place. Such networks still load; new ones are not made.
RENAMED_SKIPS = {"tone_curve": "global_tone_curve", "ranged_tone_curve": "tone_curve"}


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
    """Networks."""

    method: str = option("operational", "Kind of the four networks.", choices=METHODS, common=True)
    q: int = option(3, "Order of the operational layers' polynomials.", least=1, most=20, common=True)
    channels: int = option(3, "Channels of the images.", choices=(1, 3))
    filters: int = option(64, "Base width of the networks.", least=1, most=4096)
    upsampling: str = option(
        "transposed",
        "transposed: a strided transposed convolution. resize: bilinear, then a convolution; it leaves no checkerboard "
        "(Odena et al., Distill 2016).",
        choices=UPSAMPLINGS,
        in_paper=False,
    )
    skip: str = option(
        "none",
        "none: the image is drawn anew. tone_curve: it is corrected by a tone curve and a residual.",
        choices=SKIPS,
        in_paper=False,
    )
    noise_channels: int = option(
        0,
        "Channels of noise for the degrader, which then makes many poor images of a good one; try 4, with "
        "--cycle_a_loss_weight=0 --identity_a_loss_weight=0.",
        least=0,
        most=64,
        in_paper=False,
    )
    drawn_tone: bool = option(
        False,
        "The degrader draws brightness and contrast at random, distributed as in the poor images.",
        in_paper=False,
    )
    power_init: str = option(
        "equal",
        "maclaurin: the first weights of x^p are divided by p!; for orders above 3.",
        choices=POWER_INITS,
        in_paper=False,
    )

    @classmethod
    def of(cls, *given, **changes):
        """Options that were checked.

        Args:
            *given: options to start from, or the first fields in order: `of("operational", 3)`.
            **changes: fields that differ.

        Raises:
            ValueError: naming the option that is wrong, and what would be right.
        """
        ready = given and isinstance(given[0], cls)
        changed = dataclasses.replace(given[0], **changes) if ready else cls(*given, **changes)
        known = dataclasses.replace(changed, skip="tone_curve") if changed.skip in RENAMED_SKIPS.values() else changed
        for name, value, wrong in options.problems(known):
            raise ValueError(f"{name} {wrong}, got {value!r}")
        if changed.drawn_tone and (changed.skip == "none" or not changed.noise_channels):
            raise ValueError("drawn_tone needs a skip with a tone curve, and noise_channels to draw it from")
        if changed.drawn_tone and changed.method in CONTEXT_METHODS:
            raise ValueError(f"drawn_tone: method {changed.method!r} has a tone curve of its own")
        return changed

    def without_noise(self):
        """The options of the restorer: those of the degrader, without its noise."""
        return dataclasses.replace(self, noise_channels=0, drawn_tone=False)
