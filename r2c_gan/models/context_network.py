"""A generator that sees the whole film: a context branch of fixed size beside a detail branch of any size.

The paper's generator sees 11 pixels around each place. Whether a film was exposed badly, or shows a disease, is to be
seen on the film as a whole; how to take out noise is to be seen close by. So there are two branches:

`context`   looks at the film reduced to `view` x `view` pixels, whatever its size, and at how rough the film is at each
            place of that view. Its coarsest level gives the class. Its levels give a tone curve for each place of the
            film, and features for the detail branch. It costs the same for a film of any size.
`detail`    works at a half and a quarter of the film's own size. A tile with a margin of `DETAIL_HALO` pixels gives
            what the whole film gives.

Nothing is normalised. Normalised over a film, features would forget how bright and flat it is, which is half of what is
to be restored, and tiles would not come out as the film does. Each residual block starts as the identity, and a tanh
(operational) or ReLU stands in front of each convolution, so that training is stable without (docs/restorer.md).

The result is the tone curve of the film plus what the detail branch adds, cut off at -1 and 1. It starts as the
identity. Methods: `operational-context`, of operational layers, and its twin `convolutional-context`, of ordinary ones.
"""

from keras import layers, ops

from r2c_gan.layers.film import CURVE_ORDER, VIEW, ContextToneCurve, Enlarge, FilmView, PixelShuffle
from r2c_gan.layers.operational import OperationalConv2D

# Pixels: how far the detail branch looks to each side, by its convolutions one after the other, rounded up.
DETAIL_HALO = 64
# Widths in shares of `filters`, 64 by default.
CONTEXT_WIDTHS = (0.75, 1.0, 1.5, 1.5)
DETAIL_WIDTHS = (0.75, 1.5)
DETAIL_BLOCKS = 3
CURVE_LEVEL = 2  # of the context, that the local curves are read from


def context_generator(image, given, options, num_classes, view=VIEW):
    """Wires the two branches.

    Args:
        image: `keras.Input` of images [N, H, W, C] in [-1, 1], H and W multiples of the method's stride.
        given: what the branches are fed: the image, with noise as further channels where there is some.
        options: a `options.network.NetworkOptions`; `upsampling` and `skip` have no meaning here.
        num_classes: number of classes.
        view: side in pixels of the reduced film.

    Returns:
        (restored image float32 [N, H, W, C], unbounded; class probabilities float32 [N, num_classes]).
    """
    parts = _Parts(options)
    seen = FilmView(view, dtype="float32", name="view")(given)
    levels = _context(parts, seen, options.filters)
    pools = layers.GlobalMaxPooling2D, layers.GlobalAveragePooling2D
    pooled = layers.Concatenate(dtype="float32")([pool(dtype="float32")(levels[-1]) for pool in pools])
    probabilities = layers.Dense(num_classes, activation="softmax", dtype="float32", name="probabilities")(pooled)

    local = parts.conv(CURVE_ORDER + 1, 1, kernel_initializer="zeros", name="local_curves")(levels[CURVE_LEVEL])
    curved = ContextToneCurve(CURVE_ORDER, dtype="float32", name="tone_curve")(image, pooled, local)
    detail = _detail(parts, given, levels, options.filters, options.channels)
    return layers.Add(dtype="float32")([curved, detail]), probabilities


class _Parts:
    """The layers of a branch: what comes in front of a convolution, the convolution, a residual block."""

    def __init__(self, options):
        self.operational = options.method == "operational-context"
        self.powers = {"q": options.q, "power_init": options.power_init}

    def conv(self, filters, kernel_size, padding="same", **arguments):
        if self.operational:
            return OperationalConv2D(filters, kernel_size, padding=padding, **self.powers, **arguments)
        return layers.Conv2D(filters, kernel_size, padding=padding, **arguments)

    def activated(self, x):
        return ops.tanh(x) if self.operational else ops.relu(x)

    def block(self, x):
        """The input plus two convolutions, the second of which starts at zero."""
        h = self.conv(x.shape[-1], 3)(self.activated(x))
        h = self.conv(x.shape[-1], 3, kernel_initializer="zeros")(self.activated(h))
        return layers.Add()([x, h])


def _context(parts, seen, filters):
    """The levels of the context branch, at 1/2, 1/4, 1/8 and 1/16 of the view."""
    x, levels = seen, []
    for number, width in enumerate(CONTEXT_WIDTHS):
        x = parts.conv(round(width * filters), 3, strides=2)(parts.activated(x) if number else x)
        if number:
            x = parts.block(x)
        levels.append(x)
    return levels


def _detail(parts, inputs, levels, filters, channels):
    fine_width, coarse_width = (round(width * filters) for width in DETAIL_WIDTHS)
    fine = parts.conv(fine_width, 3, strides=2)(inputs)
    fine = parts.block(fine)
    coarse = parts.conv(coarse_width, 3, strides=2)(parts.activated(fine))
    for level in levels[1:]:
        given = parts.conv(coarse_width, 1, kernel_initializer="zeros")(parts.activated(level))
        coarse = layers.Add()([coarse, Enlarge()(given, coarse)])
    for _ in range(DETAIL_BLOCKS):
        coarse = parts.block(coarse)
    up = PixelShuffle()(parts.conv(4 * fine_width, 1)(parts.activated(coarse)))
    fine = parts.block(layers.Add()([fine, up]))
    last = parts.conv(4 * channels, 3, kernel_initializer="zeros")(parts.activated(fine))
    return PixelShuffle(dtype="float32", name="detail")(last)
