"""The grayscale pipeline of DICOM: stored values -> what is shown (PS3.3 C.7.6.3, C.11.1, C.11.2; PS3.4 N.2).

Written from the standard's formulas: pydicom's own functions index a LUT in the LUT's type, so that 8-bit ones wrap,
and take empty LUTs for full ones. Values are checked where they are taken from the header, because pydicom parses them
only then.
"""

import collections.abc
import dataclasses
import math

import numpy as np


class HeaderError(ValueError):
    """What in a header cannot be used, in words; without the file's name."""


# --- Values of a header -----------------------------------------------------------------------------------------------


def value_of(dataset, keyword):
    """The value of an attribute; None if it is missing.

    Raises:
        HeaderError: if it cannot be parsed.
    """
    try:
        return dataset.get(keyword)
    except Exception as error:  # pydicom raises many kinds, all about this value
        raise HeaderError(f"{keyword} cannot be read ({said(error)})") from error


def said(error):
    """What an exception of pydicom or one of its decoders says, in one line without its advice on pydicom's use."""
    lines = [line.strip().split(". ")[0] for line in str(error).splitlines()]
    return " ".join(filter(None, lines))[:200] or type(error).__name__


def number(dataset, keyword, default=None, first=False):
    """A finite float; `default` if the attribute is missing or empty.

    Args:
        dataset: a `pydicom` dataset.
        keyword: its attribute.
        default: what a missing or empty one means.
        first: whether the first of several values is meant; otherwise several are an error.

    Raises:
        HeaderError: if there is another value than a finite number.
    """
    value = value_of(dataset, keyword)
    if isinstance(value, collections.abc.MutableSequence):
        if len(value) > 1 and not first:
            raise HeaderError(f"{keyword} has {len(value)} values; one is expected")
        value = value[0] if len(value) else None
    if value is None or str(value).strip(" \0") == "":
        return default
    try:
        result = float(value)
    except (TypeError, ValueError) as error:
        raise HeaderError(f"{keyword} is {_short(value)}; a number is expected") from error
    if not math.isfinite(result):
        raise HeaderError(f"{keyword} is {_short(value)}; a finite number is expected")
    return result


def integer(dataset, keyword, default=None):
    """`number` where only an integer will do; a missing one without a default is an error too."""
    result = number(dataset, keyword, default)
    if result is None:
        raise HeaderError(f"{keyword} is missing")
    if result != int(result):
        raise HeaderError(f"{keyword} is {result:g}; an integer is expected")
    return int(result)


def _short(value):
    text = repr(value) if isinstance(value, bytes) else f'"{value}"'
    return text if len(text) <= 40 else f"{text[:36]}..."


# --- Stored values ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Depth:
    """How stored values lie in their containers: BitsAllocated, BitsStored, HighBit and PixelRepresentation.

    Raises:
        HeaderError: from `of`, if they contradict each other, or are not of a kind that is read.
    """

    allocated: int
    stored: int
    high: int
    signed: bool

    @classmethod
    def of(cls, dataset):
        allocated, stored = integer(dataset, "BitsAllocated"), integer(dataset, "BitsStored")
        high = integer(dataset, "HighBit", stored - 1)
        signed = integer(dataset, "PixelRepresentation")
        if allocated not in (8, 16, 32):
            raise HeaderError(f"BitsAllocated {allocated} is not supported; 8, 16 or 32 is read")
        if not 1 <= stored <= allocated:
            raise HeaderError(f"BitsStored {stored} in BitsAllocated {allocated}")
        if not stored - 1 <= high < allocated:
            raise HeaderError(f"HighBit {high} with BitsStored {stored} and BitsAllocated {allocated}")
        if signed not in (0, 1):
            raise HeaderError(f"PixelRepresentation {signed}; 0 or 1 is expected")
        return cls(allocated, stored, high, bool(signed))

    @property
    def ends(self):
        """The lowest and the highest value that can be stored."""
        if self.signed:
            return -(2 ** (self.stored - 1)), 2 ** (self.stored - 1) - 1
        return 0, 2**self.stored - 1

    def values(self, containers):
        """Containers -> the values in them: the other bits, which may hold anything, are cut off, the sign extended.

        Args:
            containers: integer array of any shape, of at most `allocated` bits.
        """
        bits = containers.dtype.itemsize * 8
        if bits < self.allocated:  # decoders of compressed pixels may give a smaller type
            containers, bits = containers.astype(f"{containers.dtype.kind}{self.allocated // 8}"), self.allocated
        kind = np.dtype(f"{'i' if self.signed else 'u'}{bits // 8}")
        values = containers.astype(containers.dtype.newbyteorder("="), copy=False).view(kind)
        return (values << (bits - 1 - self.high)) >> (bits - self.stored)

    def padding(self, dataset, containers, values):
        """Which pixels are padding: bool of the values' shape, or None without PixelPaddingValue.

        The value has the pixels' bits, whatever its own type says: as US 63536 it is -2000 in signed pixels.
        """
        first = number(dataset, "PixelPaddingValue")
        if first is None:
            return None
        ends = [self._as_stored(first), self._as_stored(number(dataset, "PixelPaddingRangeLimit", first))]
        mask = np.less_equal(min(ends), values) & np.less_equal(values, max(ends))
        if self.high != self.stored - 1:  # of shifted values the containers are other numbers
            return mask
        # Bits above BitsStored may be set in padding only; they are cut off in the values.
        raw = containers.view(f"{containers.dtype.byteorder}u{containers.dtype.itemsize}")
        return mask | (raw == int(first) % 2**self.allocated)

    def _as_stored(self, value):
        value = int(value) % 2**self.allocated
        return value - 2**self.allocated if self.signed and value >= 2 ** (self.allocated - 1) else value


# --- Modality transformation ------------------------------------------------------------------------------------------


def rescaled(dataset, values, ends):
    """Applies the modality LUT or the rescale.

    Args:
        dataset: the header.
        values: integers, the stored values.
        ends: (lowest, highest) value that can be stored.

    Returns:
        (values, finite numbers; the lowest and highest that there can be).

    Raises:
        HeaderError: if the transformation cannot be used.
    """
    lut = Lut.of(dataset, "ModalityLUTSequence", ends[0])
    if lut is not None:
        return lut(values), (0, 2**lut.bits - 1)
    slope, intercept = number(dataset, "RescaleSlope", 1.0), number(dataset, "RescaleIntercept", 0.0)
    if slope == 0:
        raise HeaderError("RescaleSlope is 0: every pixel would be the same")
    if (slope, intercept) == (1, 0):
        return values, ends
    low, high = sorted(end * slope + intercept for end in ends)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise HeaderError(f"RescaleSlope {slope:g} and RescaleIntercept {intercept:g} leave no range of values")
    return values.astype(np.float64) * slope + intercept, (low, high)


@dataclasses.dataclass(frozen=True)
class Lut:
    """A lookup table (PS3.3 C.11.1.1.1, C.11.2.1.1).

    Attributes:
        first: the value that is mapped to the first entry, those below it too.
        entries: unsigned integers.
        bits: of an entry.
    """

    first: int
    entries: np.ndarray
    bits: int

    @classmethod
    def of(cls, dataset, sequence, low):
        """The first LUT of a sequence; None if there is none, or one without data.

        Args:
            dataset: the header.
            sequence: keyword of the sequence.
            low: the lowest value that there can be: whether they can be negative says how the first is meant.

        Raises:
            HeaderError: if its parts contradict each other.
        """
        items = value_of(dataset, sequence)
        if not items:
            return None
        data = value_of(items[0], "LUTData")
        if data is None or (not isinstance(data, int) and len(data) == 0):
            return None
        descriptor = value_of(items[0], "LUTDescriptor")
        try:
            count, first, bits = (int(part) & 0xFFFF for part in descriptor)  # the type may say signed where it is not
        except (TypeError, ValueError) as error:
            raise HeaderError(f"LUTDescriptor of {sequence} is {_short(descriptor)}; 3 numbers are expected") from error
        count = count or 2**16
        # Of values that can be negative the first is signed, unless the whole table would then lie below them all, as
        # where a rescale by -1 of unsigned values makes one negative.
        if low < 0 and first >= 2**15 and first - 2**16 + count > low:
            first -= 2**16
        if not 1 <= bits <= 16:
            raise HeaderError(f"{sequence} has entries of {bits} bits; 1 to 16 are read")
        little = dataset.file_meta.TransferSyntaxUID.is_little_endian
        entries = _entries(data, "<" if little else ">")
        if len(entries) < count and bits <= 8 and 2 * len(entries) >= count:  # two in a word, the lower byte first
            entries = np.stack([entries & 0xFF, entries >> 8], axis=-1).reshape(-1)
        if len(entries) < count:
            raise HeaderError(f"{sequence} has {len(entries)} entries; its descriptor says {count}")
        return cls(first, entries[:count], bits)

    def __call__(self, values):
        """Maps numbers of any type to entries; an index is never of a type in which it could wrap."""
        index = np.rint(values).astype(np.int64) - self.first
        return self.entries[np.clip(index, 0, len(self.entries) - 1)]


def _entries(data, order):
    if isinstance(data, bytes):
        if len(data) % 2:
            data += b"\0"
        return np.frombuffer(data, f"{order}u2").astype(np.uint16)
    return (np.atleast_1d(np.asarray(data, np.int64)) & 0xFFFF).astype(np.uint16)


# --- VOI transformation -----------------------------------------------------------------------------------------------


def windowed(dataset, values, low):
    """Applies the header's first VOI LUT, or else its first window.

    Args:
        dataset: the header.
        values: what `rescaled` gives.
        low: the lowest value that there can be.

    Returns:
        (float64 of the values' shape in [0, 1], what was applied, in words); (None, None) if the header has neither.

    Raises:
        HeaderError: if they cannot be used.
    """
    lut = Lut.of(dataset, "VOILUTSequence", low)
    if lut is not None:
        return np.clip(lut(values) / (2**lut.bits - 1), 0, 1), "VOI LUT of the file"
    center = number(dataset, "WindowCenter", first=True)
    width = number(dataset, "WindowWidth", first=True)
    if center is None or not width:  # a width of 0 is what some devices write for none
        return None, None
    function = str(value_of(dataset, "VOILUTFunction") or "LINEAR").strip(" \0").upper() or "LINEAR"
    least = 1 if function == "LINEAR" else 0
    if width < least:
        raise HeaderError(f"WindowWidth is {width:g}; at least {least} is expected")
    values = values.astype(np.float64)
    if function == "LINEAR":
        if width == 1:
            return (values > center - 0.5).astype(np.float64), "window of the file"
        shown = (values - (center - 0.5)) / (width - 1) + 0.5
    elif function == "LINEAR_EXACT":
        shown = (values - center) / width + 0.5
    elif function == "SIGMOID":
        shown = 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    else:
        raise HeaderError(f"VOILUTFunction {function} is not supported; LINEAR, LINEAR_EXACT or SIGMOID is read")
    return np.clip(shown, 0, 1), "window of the file"
