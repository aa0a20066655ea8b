"""Which stored values become black and white.

A container of 16 bits often holds 10 or 12: over its whole range such a film is a dark ghost. So the range is chosen by
a `Window`, for every file format in the same way.
"""

import dataclasses

import numpy as np

from r2c_gan.errors import UserError

WINDOWS = "auto, full, min-max, percentile or C,W"
HELP = (
    "Which stored values become black and white: auto (the file's own window; else, of more than 8 bits, the values "
    "that occur), full, min-max, percentile (.5 to 99.5), or a centre and a width as in 2048,4096."
)
PERCENTILES = (0.5, 99.5)
_USED_AT_LEAST = 0.25  # of the output range; below it a warning is given
# Values that percentiles are taken of: a regular grid of that many is exact enough, for a warning the fewer.
_SAMPLES, _SAMPLES_OF_A_WARNING = 1 << 18, 1 << 14


@dataclasses.dataclass(frozen=True)
class Window:
    """The rule by which stored values become [-1, 1].

    Attributes:
        kind: "full": the window of the file itself where it has one (DICOM), else every value that the stored bits can
            hold; "auto": the same, but where more than 8 bits are stored and the file has no window, the values from
            the smallest to the largest that occur, as viewers do; "min-max": these in any case; "percentile":
            from percentile .5 to 99.5; "linear": `center` and `width`.
        center, width: of a "linear" window as in DICOM PS3.3 C.11.2.1.2.1, in stored values, after rescaling where the
            file says how.
    """

    kind: str
    center: float | None = None
    width: float | None = None

    @classmethod
    def parse(cls, text):
        """`full`, `auto`, `min-max`, `percentile`, or a centre and a width as in `2048,4096`; a `Window` stays one.

        Raises:
            UserError: for other text.
        """
        if isinstance(text, cls):
            return text
        if text in ("full", "auto", "min-max", "percentile"):
            return cls(text)
        try:
            center, width = (float(part) for part in str(text).split(","))
        except ValueError:
            center = width = np.nan
        if not (np.isfinite(center) and np.isfinite(width) and width >= 1):
            raise UserError(f"--window={text}: must be {WINDOWS}, a centre and a width of at least 1 (2048,4096)")
        return cls("linear", center, width)

    def __str__(self):
        return f"{self.center:g},{self.width:g}" if self.kind == "linear" else self.kind

    @property
    def prefers_own(self):
        """Whether the window or VOI LUT of the file itself comes first, where it has one."""
        return self.kind in ("full", "auto")

    def scale(self, values, full, deep, valid=None):
        """Maps values to [-1, 1]; those outside the window are clipped.

        Args:
            values: integers or floats of any shape, all finite.
            full: (lowest, highest) value that the file could hold.
            deep: whether it holds more than 8 bits.
            valid: boolean array, False for pixels that are no picture (padding, wholly transparent ones): they do not
                bear on the range. Its shape is that of `values`, or that of its first axes.

        Returns:
            A `Scaled`.
        """
        low, high, scaling = self._range(values, full, deep, valid)
        # float32 holds every integer of 16 bits.
        exact = values.dtype.kind in "iu" and values.dtype.itemsize <= 2
        pixels = values.astype(np.float32 if exact else np.float64)
        pixels -= low
        pixels /= high - low
        np.clip(pixels, 0, 1, out=pixels)
        pixels *= 2
        pixels -= 1
        pixels = pixels.astype(np.float32, copy=False)
        return Scaled(pixels, scaling, warning(pixels, valid))

    def _range(self, values, full, deep, valid):
        kind = self.kind
        if kind == "auto":
            kind = "min-max" if deep else "full"
        if kind == "linear":
            if self.width == 1:  # a threshold: black up to center - .5, white above
                low = np.nextafter(self.center - 0.5, -np.inf)
                return low, self.center - 0.5, f"window {self}"
            # (x - (c - .5)) / (w - 1) + .5
            low = self.center - 0.5 - (self.width - 1) / 2
            return low, low + self.width - 1, f"window {self}"
        if kind != "full":
            low, high = _ends(values, valid, kind) or (0, 0)
            if low < high:
                named = "values that occur" if kind == "min-max" else "percentiles .5 to 99.5"
                return low, high, f"{named} (no window in the file)" if self.kind == "auto" else named
        return *(float(end) for end in full), "full range"


@dataclasses.dataclass(frozen=True)
class Scaled:
    """What `Window.scale` gives.

    Attributes:
        pixels: float32 in [-1, 1], of the shape of the values.
        scaling: which rule was applied, in words, equal for all files that it was applied to.
        warning: None, or what `warning` says.
    """

    pixels: np.ndarray
    scaling: str
    warning: str | None


def warning(pixels, valid=None):
    """None, or a sentence, equal for all files, where less than a quarter of the range [-1, 1] is used.

    What counts is from percentile .5 to 99.5: a marker burned into a corner does not make a ghost visible.

    Args:
        pixels: float array in [-1, 1].
        valid: as in `Window.scale`.
    """
    low, high = _ends(pixels, valid, "percentile", _SAMPLES_OF_A_WARNING) or (0, 0)
    if high - low >= 2 * _USED_AT_LEAST:
        return None
    return "less than a quarter of the gray range is used; --window=percentile may show more"


def _ends(values, valid, kind, samples=_SAMPLES):
    """The (lowest, highest) valid value, or percentile; None where no pixel is valid."""
    if kind == "percentile":
        across = min(2, values.ndim if valid is None else valid.ndim)
        step = max(1, round((values.size / samples) ** (1 / across)))
        grid = (slice(None, None, step),) * across
        values = values[grid]
        values = values if valid is None else values[valid[grid]]
        if not values.size:
            return None
        low, high = np.percentile(values, PERCENTILES, method="nearest")
    elif valid is None:
        low, high = values.min(), values.max()
    else:
        if not valid.any():
            return None
        first = values[np.unravel_index(valid.argmax(), valid.shape)].flat[0]
        where = valid.reshape(valid.shape + (1,) * (values.ndim - valid.ndim))
        low, high = values.min(where=where, initial=first), values.max(where=where, initial=first)
    return float(low), float(high)
