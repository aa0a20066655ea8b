"""What is refused as an image: the errors, and the sizes that are not read."""

from r2c_gan.errors import UserError

MAX_SIDE = 20_000
"""The longest side that is read, in pixels. A digitised chest film has 2,000 to 5,000."""

MAX_PIXELS = 100_000_000
"""The most pixels of an image that are read. A digitised chest film has up to 30 million."""


class ImageError(UserError):
    """A file that cannot be used as an image. The message begins with its path."""


class NotAnImageError(ImageError):
    """A sound file that holds no picture, as the index, reports and presentation states on a hospital's disc.

    Programs that go through folders skip and count these; they are no failures.
    """


def check_size(path, height, width):
    """Raises `ImageError` for an image without pixels, or with more than `MAX_SIDE` a side or `MAX_PIXELS` in all."""
    if max(height, width) > MAX_SIDE:
        raise ImageError(f"{path}: {width} x {height} pixels; at most {MAX_SIDE} a side are read")
    if min(height, width) < 1:
        raise ImageError(f"{path}: {width} x {height} pixels: nothing to read")
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"{path}: {width} x {height} pixels; at most {MAX_PIXELS // 1_000_000} million in all are read"
        )
