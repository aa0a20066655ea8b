"""What the viewer shows of one file, without the web page: pixels for display, the change in words, the limits."""

import base64
import dataclasses
import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from r2c_gan.data import dicom, images, plausibility
from r2c_gan.errors import UserError

DISPLAY_SIDE = 1024
"""Longest side of what is shown, in pixels. The download has the file's own size."""

COLORS = "berlin"  # Crameri 2018: blue, black, red; black means no change, as beside a radiograph it should
_SCALES = (1, 2, 5, 10, 20, 50, 100)  # ends of the colour scale, in percent of the gray range


@dataclasses.dataclass(frozen=True)
class Case:
    """One file and its restoration.

    Attributes:
        poor: float32 [H, W, C] in [-1, 1], as read.
        result: the `RestoredImage`.
        bits: 8 or 16, of the file.
        warning: why the result may mean nothing, in words; None if nothing speaks against it.
    """

    poor: np.ndarray
    result: object
    bits: int
    warning: str | None = None


def open_case(restorer, path, passes, max_megapixels, force=False):
    """Reads a file, within the limit, and restores it.

    Args:
        restorer: a `Restorer`.
        path: a PNG, JPEG, TIFF or DICOM file.
        passes: number of passes.
        max_megapixels: more pixels than this are refused, before they are decoded where the header tells.
        force: whether a DICOM file is taken whatever its header says that it shows.

    Returns:
        A `Case`.

    Raises:
        UserError: if the file cannot be used; the message begins with its name, without the folder.
    """
    path = Path(path)
    try:
        _check_pixels(path, _header_size(path), max_megapixels)
        file = plausibility.read_film(path, restorer.channels, "auto", force)
        _check_pixels(path, file.pixels.shape[:2], max_megapixels)
    except UserError as error:
        raise UserError(str(error).replace(str(path), path.name)) from error
    result = restorer.restore(file.pixels, passes)
    return Case(file.pixels, result, file.bits, " | ".join(filter(None, (result.warning, file.warning))) or None)


def _header_size(path):
    """(height, width) from the header; (0, 0) where it does not tell, which reading will find out."""
    try:
        with Image.open(path, formats=("PNG", "JPEG", "TIFF")) as file:
            return file.size[::-1]
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: too large ({error})") from error
    except (OSError, SyntaxError, ValueError, UserWarning):
        pass
    try:
        header = dicom.header(path.read_bytes())
        return int(header.get("Rows") or 0), int(header.get("Columns") or 0)
    except Exception:  # no pydicom, no DICOM, or a damaged one: reading says which
        return 0, 0


def _check_pixels(path, size, max_megapixels):
    height, width = size
    if height * width > max_megapixels * 1e6:
        raise UserError(f"{path}: {width} x {height} pixels; at most {max_megapixels:g} megapixels are taken")


def png(image, bits=8):
    """Float [H, W, C] in [-1, 1] -> the bytes of a PNG."""
    pixels = images.to_uint(image, bits)
    return cv2.imencode(".png", pixels[..., ::-1] if pixels.shape[-1] == 3 else pixels)[1].tobytes()


def display(image):
    """Float [H, W, C] -> float32, shrunk so that no side is longer than `DISPLAY_SIDE`."""
    height, width = image.shape[:2]
    factor = min(1, DISPLAY_SIDE / max(height, width))
    return images.resize(image, max(1, round(height * factor)), max(1, round(width * factor)))


def data_uri(png_bytes):
    """The bytes of a PNG as an address that a page can hold, so that no file is left behind."""
    return "data:image/png;base64," + base64.b64encode(png_bytes).decode()


def change(case):
    """Restored minus poor, mean over channels, in percent of the gray range: float32 [H, W, 1] in [-100, 100]."""
    return (case.result.image - case.poor).mean(axis=-1, keepdims=True) * 50


def scale_of(difference):
    """The end of the colour scale, in percent: the smallest step that holds 99% of the pixels."""
    needed = np.percentile(np.abs(difference), 99)
    return next((step for step in _SCALES if step >= needed), _SCALES[-1])


def difference_map(difference, scale):
    """Percent [H, W, 1] -> the bytes of a colour PNG: -scale and below blue, 0 black, +scale and above red."""
    shown = display(np.asarray(difference, np.float32))[..., 0]
    file = io.BytesIO()
    Image.fromarray(_colors()((shown / scale + 1) / 2, bytes=True)[..., :3]).save(file, "PNG")
    return file.getvalue()


def gradient():
    """The colour scale as a CSS gradient, from left (darker) to right (lighter)."""
    stops = ", ".join("rgb({}, {}, {})".format(*_colors()(k / 16, bytes=True)[:3]) for k in range(17))
    return f"linear-gradient(to right, {stops})"


def _colors():
    import matplotlib

    return matplotlib.colormaps[COLORS]


def in_words(difference):
    """What the difference map means, as a sentence with figures."""
    size = np.abs(difference)
    return (
        f"Black: unchanged. Red: lighter in the restored image. Blue: darker. The mean absolute change is "
        f"{size.mean():.1f}% of the gray range, the largest {size.max():.1f}%; {(size > 5).mean():.0%} of the pixels "
        "changed by more than 5%. A change is what the network takes for likely; it can add or remove a finding."
    )
