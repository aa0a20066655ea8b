"""The one door for pixels: PNG, JPEG, TIFF and DICOM files <-> float32 arrays in [-1, 1].

`raster` decodes PNG, JPEG and TIFF, `dicom` the rest, both outside Python's global lock for the most part, so many
threads can decode at once.
"""

import dataclasses
import hashlib
import os
import stat
from pathlib import Path

import cv2
import numpy as np

from r2c_gan.data import raster
from r2c_gan.data.image_limits import MAX_SIDE as MAX_SIDE  # also found here
from r2c_gan.data.image_limits import ImageError
from r2c_gan.data.window import Window
from r2c_gan.errors import UserError
from r2c_gan.files import atomic_path

DICOM_SUFFIXES = (".dcm", ".dicom")
_DICOM_MAGIC = b"DICM"  # at byte 128
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", *DICOM_SUFFIXES)

TOLERANCE = 1e-3
"""How far values may lie outside [-1, 1], as rounding and interpolation may bring them."""

_LUMA = np.array([[0.299, 0.587, 0.114]], np.float32)  # ITU-R BT.601, of red, green and blue

MAX_BYTES = 1 << 30
"""The largest file that is read."""


def list_images(folder, recursive=False, unnamed_dicom=False):
    """The image files of a folder, by suffix (`IMAGE_SUFFIXES`, in any case), sorted.

    Hidden files and folders (a leading dot) are skipped. Symbolic links are followed; every real folder is
    entered once.

    Args:
        folder: a folder.
        recursive: whether to enter sub-folders.
        unnamed_dicom: whether DICOM files with another suffix or none count, as archives export them.

    Returns:
        A sorted list of `pathlib.Path`, each beginning with `folder`.

    Raises:
        UserError: if the folder, or one below it, is missing or cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: " + ("not a folder" if folder.exists() else "no such folder"))
    found, entered = [], set()
    for parent, folders, names in os.walk(folder, onerror=_unreadable, followlinks=True):
        real = os.path.realpath(parent)
        if real in entered:  # a link that leads back up
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        paths = [Path(parent, name) for name in names if not name.startswith(".")]
        found += [
            path for path in paths if path.name.lower().endswith(IMAGE_SUFFIXES) or (unnamed_dicom and is_dicom(path))
        ]
    return sorted(found)


def is_dicom(path):
    """Whether a file is DICOM, by its first bytes.

    A name that ends as DICOM files do counts only where the contents are none of the other formats: files without the
    preamble of 128 bytes. False for what cannot be read.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with Path(path).open("rb") as file:
            return _is_dicom(path, file.read(132))
    except (OSError, ValueError):
        return False


def _is_dicom(path, data):
    if data[128:132] == _DICOM_MAGIC:
        return not data.startswith((raster.PNG, raster.JPEG))  # of a TIFF: both, as the preamble is for
    return Path(path).suffix.lower() in DICOM_SUFFIXES and not raster.is_raster(data)  # without a preamble


def _unreadable(error):
    raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error


@dataclasses.dataclass
class ImageFile:
    """What a file held.

    Attributes:
        pixels: float32 [H, W, C] in [-1, 1].
        bits: 8 or 16: what a PNG needs to hold the file's levels.
        sha256: of the file's bytes, as hexadecimal digits.
        dicom: the `pydicom` dataset of a DICOM file, without its pixels; None for other files.
        scaling: how the stored values became [-1, 1], in words without numbers of this file.
        warning: None, or that little of the range of gray levels is used, see `window.warning`.
    """

    pixels: np.ndarray
    bits: int
    sha256: str
    dicom: object = None
    scaling: str = "full range"
    warning: str | None = None


def read_image(path, channels=None, window="full"):
    """Reads one image.

    By default the whole range of the stored numbers (8 or 16 bit; for DICOM the window, else BitsStored) becomes
    [-1, 1]. A palette becomes colour; transparent pixels are laid over black; the EXIF orientation of a JPEG and the
    orientation of a TIFF are applied; of a TIFF with several pages the first is read, and "min is white" is inverted.
    For DICOM see `dicom.read`. The contents decide what a file is, its suffix does not.

    Args:
        path: a PNG, JPEG, TIFF or DICOM file.
        channels: 1 (colour becomes BT.601 luma), 3 (gray is repeated) or None (as stored: gray 1, colour 3).
        window: a `Window`, or the text of one: which stored values become -1 and 1. The programs use "auto".

    Returns:
        float32 [H, W, C] in [-1, 1].

    Raises:
        ImageError: if the file is missing, unreadable, truncated, damaged, of another kind, or larger than `MAX_SIDE`.
    """
    return read_file(path, channels, window).pixels


def read_file(path, channels=None, window="full"):
    """`read_image` with what else the file says: an `ImageFile`."""
    return decode(path, _read_bytes(path), channels, window)


def decode(path, data, channels=None, window="full"):
    """`read_file` of the bytes of a file, whose name `path` stands in messages."""
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1, 3 or None, not {channels!r}")
    window = Window.parse(window)
    try:
        file = _read_dicom(path, data, window) if _is_dicom(path, data) else _read_raster(path, data, window)
        file.pixels = np.ascontiguousarray(with_channels(file.pixels, channels))
    except UserError:
        raise
    except MemoryError as error:
        raise ImageError(f"{path}: not enough memory to read it") from error
    except Exception as error:  # the libraries raise many kinds for what is wrong with a file
        raise ImageError(f"{path}: truncated, damaged or unsupported ({_reason(error)})") from error
    return file


def _reason(error):
    return " ".join(str(error).split()) or type(error).__name__


def _read_bytes(path):
    try:
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode):  # a FIFO would never end
            raise ImageError(f"{path}: not a file but {_what(about.st_mode)}")
        if about.st_size > MAX_BYTES:
            raise ImageError(f"{path}: {about.st_size:,} bytes; at most {MAX_BYTES:,} are read")
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if not data:
        raise ImageError(f"{path}: the file is empty")
    return data


def _what(mode):
    kinds = {"directory": stat.S_ISDIR, "named pipe": stat.S_ISFIFO, "socket": stat.S_ISSOCK}
    return "a " + next((name for name, holds in kinds.items() if holds(mode)), "device")


def _read_dicom(path, data, window):
    from r2c_gan.data import dicom  # pydicom is an extra

    pixels, header, scaling, warning = dicom.read(path, data, window)
    bits = 8 if header.BitsStored <= 8 else 16
    return ImageFile(pixels, bits, hashlib.sha256(data).hexdigest(), header, scaling, warning)


def _read_raster(path, data, window):
    """PNG, JPEG and TIFF bytes -> `ImageFile`."""
    stored = raster.decode(path, data)
    scaled = window.scale(stored.levels, (0, 2**stored.bits - 1), stored.deep, stored.visible)
    image = scaled.pixels
    if stored.inverted:
        np.negative(image, out=image)
    if stored.alpha is not None:  # over black, the colour of air and of the collimated border
        image += 1
        image *= stored.alpha
        image -= 1
    image = raster.oriented(image, stored.orientation)
    bits = 8 if stored.bits <= 8 else 16
    return ImageFile(image, bits, hashlib.sha256(data).hexdigest(), None, scaled.scaling, scaled.warning)


def with_channels(image, channels):
    """[H, W, 1 or 3] -> [H, W, channels]: luma of a colour image, a gray one repeated; None leaves it as it is."""
    if channels is None or image.shape[-1] == channels:
        return image
    return image @ _LUMA.T if channels == 1 else np.repeat(image, 3, axis=-1)


def write_image(path, image, bits=8):
    """Writes a PNG, gray or RGB, atomically.

    Args:
        path: the file, ending in `.png`.
        image: float [H, W], [H, W, 1] or [H, W, 3] in [-1, 1]; what lies outside is clipped.
        bits: 8 or 16.

    Raises:
        UserError: if the file cannot be written; `ImageError` if it would not be read as what was meant.
        ValueError: for another suffix, shape or number of bits, or if a value is not finite.
    """
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"{path}: images are written as .png")
    pixels = to_uint(image, bits)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[-1] not in (1, 3)):
        raise ValueError(f"an image has shape [H, W], [H, W, 1] or [H, W, 3], not {list(pixels.shape)}")
    if pixels.ndim == 3 and pixels.shape[-1] == 3:
        pixels = np.ascontiguousarray(pixels[..., ::-1])
    encoded = cv2.imencode(".png", pixels)[1].tobytes()
    if bits == 16:  # or a program that looks for 12 bits in 16 would stretch it
        encoded = raster.with_significant_bits(encoded, bits, 1 if pixels.ndim == 2 or pixels.shape[-1] == 1 else 3)
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded)
        again = cv2.imdecode(np.frombuffer(temporary.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
        if again is None or not np.array_equal(again.squeeze(), pixels.squeeze()):
            raise ImageError(f"{path}: what was written is not what can be read again")


def to_uint(image, bits=8):
    """Float in [-1, 1] -> uint8 or uint16 of the same shape, rounded to the nearest level; outside values are clipped.

    Raises:
        ValueError: if a value is not finite, or `bits` is neither 8 nor 16.
    """
    image = np.asarray(image)
    if not np.isfinite(image).all():
        raise ValueError("the image has values that are not finite")
    top = _top(bits)
    image = np.clip(image.astype(np.float64), -1, 1)  # float32 would round 16-bit levels wrongly now and then
    return np.rint((image + 1) * (top / 2)).astype(np.uint8 if bits == 8 else np.uint16)


def from_uint(array, bits=None):
    """uint8 or uint16 levels -> float32 of the same shape in [-1, 1]; the inverse of `to_uint`.

    `bits` (8 or 16) is that of the array's type unless given.
    """
    array = np.asarray(array)
    return array.astype(np.float32) / _top(bits or 8 * array.dtype.itemsize) * 2 - 1


def _top(bits):
    if bits not in (8, 16):
        raise ValueError(f"bits must be 8 or 16, not {bits!r}")
    return np.float32(2**bits - 1)


def resize(image, height, width):
    """Resizes an image; every value stays inside the input's range.

    Along each axis: bilinear with half-pixel centres (as `tf.image.resize`) when enlarging or shrinking by less than 2,
    the mean over the covered area from 2 on, where two bilinear taps would skip pixels and fold fine structure (ribs'
    edges, grid lines) into false coarse structure.

    Args:
        image: float [H, W, C].
        height: rows of the result, >= 1.
        width: columns of the result, >= 1.

    Returns:
        float32 [height, width, C].
    """
    if image.ndim != 3:
        raise ValueError(f"an image has shape [H, W, C], not {list(image.shape)}")
    channels = image.shape[-1]
    image = np.ascontiguousarray(image, np.float32)
    down, across = _interpolation(image.shape[0], height), _interpolation(image.shape[1], width)
    if down == across:
        image = cv2.resize(image, (width, height), interpolation=down)
    else:
        image = cv2.resize(image, (image.shape[1], height), interpolation=down)
        image = cv2.resize(image, (width, height), interpolation=across)
    return image.reshape(height, width, channels)


def _interpolation(old, new):
    return cv2.INTER_AREA if old >= 2 * new else cv2.INTER_LINEAR
