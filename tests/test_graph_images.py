"""Pixels decoded and resized in the graph, against the reader that training uses."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import raster_files
import tensorflow as tf
from PIL import Image

from r2c_gan.data import images, raster
from r2c_gan.serving import graph_images

SIZE = (24, 20)


@tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
def decode_gray(encoded):
    return graph_images.decode_batch(encoded, *SIZE, 1)


@tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
def decode_colour(encoded):
    return graph_images.decode_batch(encoded, *SIZE, 3)


DECODERS = {1: decode_gray, 3: decode_colour}


def file_bytes(pixels, suffix=".png", **options):
    """Encodes an array or a Pillow image with Pillow."""
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, {".png": "PNG", ".jpg": "JPEG"}[suffix], **options)
    return buffer.getvalue()


def png(array):
    """Encodes with OpenCV, which can write 16-bit colour (its order is blue, green, red)."""
    return cv2.imencode(".png", array)[1].tobytes()


def random(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape, dtype)


def smooth(height, width):
    """A picture that JPEG can hold."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([128 + 90 * np.sin(x / 9), 128 + 90 * np.cos(y / 7), (x * y) % 256], -1).astype(np.uint8)


def bordered():
    image = random(37, 50, 4, dtype=np.uint16) // 16
    image[..., 3] = 65535
    image[:, :4] = (65535, 65535, 65535, 0)
    return image


def hand_made(bits, chunks):
    levels = raster_files.random_levels(37, 50, 1, min(bits, 12))
    return raster_files.png(levels, bits, 0, before=[(name.encode(), body) for name, body in chunks.items()])


def without_adobe(data):
    at = data.index(b"\xff\xee")
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


KINDS = {
    "gray": lambda: png(random(37, 50)),
    "gray, 16 bit": lambda: png(random(37, 50, dtype=np.uint16)),
    "colour": lambda: png(random(37, 50, 3)),
    "colour, 16 bit": lambda: png(random(37, 50, 3, dtype=np.uint16)),
    "transparent": lambda: png(random(37, 50, 4)),
    "transparent, 16 bit": lambda: png(random(37, 50, 4, dtype=np.uint16)),
    "gray with alpha": lambda: file_bytes(np.ascontiguousarray(random(37, 50, 2))),
    "one bit": lambda: file_bytes(Image.fromarray(random(37, 50)).convert("1")),
    "palette": lambda: file_bytes(Image.fromarray(random(37, 50, 3)).quantize(200)),
    "palette of two bits": lambda: file_bytes(Image.fromarray(random(37, 50, 3)).quantize(4), bits=2),
    "palette with a transparent colour": lambda: file_bytes(
        Image.fromarray(random(37, 50, 3)).quantize(4), transparency=1
    ),
    "JPEG": lambda: file_bytes(smooth(37, 50), ".jpg"),
    "gray JPEG": lambda: file_bytes(smooth(37, 50)[..., 0], ".jpg"),
    "CMYK JPEG": lambda: file_bytes(Image.fromarray(smooth(37, 50)).convert("CMYK"), ".jpg"),
    "12 bits in 16": lambda: png(random(37, 50, dtype=np.uint16) // 16 + 300),
    "colour, 12 bits in 16": lambda: png(random(37, 50, 3, dtype=np.uint16) // 16 + 300),
    "one level of 16 bits": lambda: png(np.full((37, 50), 4000, np.uint16)),
    "all of 16 bits, as the file says": lambda: raster.with_significant_bits(
        png(random(37, 50, dtype=np.uint16) // 16), 16, 1
    ),
    "12 of 16 bits, as the file says": lambda: raster.with_significant_bits(
        png(random(37, 50, dtype=np.uint16) // 16), 12, 1
    ),
    "16 bits with a white transparent border": lambda: png(bordered()),
    "gray with a transparent level": lambda: hand_made(8, {"tRNS": b"\0\x07"}),
    "gray, 16 bit, with a transparent level": lambda: hand_made(16, {"tRNS": b"\x0f\xff"}),
    "gray, 4 bit, with a transparent level": lambda: hand_made(4, {"tRNS": b"\0\x03"}),
    "CMYK JPEG without Adobe's marker": lambda: without_adobe(
        file_bytes(Image.fromarray(smooth(37, 50)).convert("CMYK"), ".jpg")
    ),
    "progressive JPEG": lambda: file_bytes(smooth(37, 50), ".jpg", progressive=True, subsampling=2),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_pixels_as_the_reader_of_files(kind, channels, tmp_path):
    data = KINDS[kind]()
    (tmp_path / "image").write_bytes(data)
    expected = images.resize(images.read_image(tmp_path / "image", channels, "auto"), *SIZE)
    found = DECODERS[channels](tf.constant([data, data])).numpy()
    assert found.shape == (2, *SIZE, channels) and found.dtype == np.float32
    # Transparency and a stretched range are rounded to 16 bits here.
    tolerance = 2.5e-5 if any(word in kind for word in ("transparent", "alpha", "16")) else 5e-6
    np.testing.assert_allclose(found[0], expected, atol=tolerance)
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize(
    "height, width", [(24, 20), (48, 40), (47, 39), (61, 49), (200, 10), (11, 300), (5, 5), (131, 97)]
)
def test_the_same_resizing(height, width):
    image = random(height, width, 3, dtype=np.uint16)
    found = graph_images.resize(image, *SIZE).numpy() / 65535
    np.testing.assert_allclose(found, images.resize(image / np.float32(65535), *SIZE), atol=5e-6)


def test_images_of_several_sizes_in_one_batch():
    sizes = [(30, 30), (24, 20), (7, 90)]
    batch = [png(np.full(size, 20 * n, np.uint8)) for n, size in enumerate(sizes, 1)]
    found = decode_gray(tf.constant(batch)).numpy()
    for n, image in enumerate(found, 1):
        np.testing.assert_allclose(image, 20 * n / 127.5 - 1, atol=1e-6)
    assert decode_gray(tf.constant([], tf.string)).shape == (0, *SIZE, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_encoding_rounds_and_clips(channels):
    batch = np.random.default_rng(0).uniform(-1.3, 1.3, (3, 6, 8, channels)).astype("float32")
    for encoded, image in zip(graph_images.encode_batch(batch).numpy(), batch, strict=True):
        decoded = np.asarray(Image.open(io.BytesIO(encoded)))
        np.testing.assert_array_equal(decoded.reshape(image.shape), images.to_uint(np.clip(image, -1, 1)))


def claiming(width, height):
    """A PNG whose header claims a size; its pixels are missing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0" * 40


def jpeg_claiming(width, height):
    data = bytearray(file_bytes(smooth(40, 40), ".jpg"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


GOOD = png(random(40, 40))
BAD = {
    "empty": (b"", "not the bytes of a PNG or JPEG"),
    "text": (b"hello, this is text", "not the bytes of a PNG or JPEG"),
    "GIF": (b"GIF89a" + b"\0" * 60, "not the bytes of a PNG or JPEG"),
    "BMP": (cv2.imencode(".bmp", random(8, 8))[1].tobytes(), "not the bytes of a PNG or JPEG"),
    "signature alone": (GOOD[:8], "truncated or damaged PNG"),
    "half a header": (GOOD[:25], "truncated or damaged PNG"),
    "half a PNG": (GOOD[: len(GOOD) // 2], "Invalid PNG data"),
    "a PNG without its end": (GOOD[:-12], "Invalid PNG data"),
    "a flipped bit": (GOOD[:300] + bytes([GOOD[300] ^ 1]) + GOOD[301:], "Invalid PNG data"),
    "half a JPEG": (file_bytes(smooth(40, 40), ".jpg")[:600], "JPEG"),
    "JPEG signature alone": (b"\xff\xd8\xff\xe0", "JPEG"),
    "wide": (claiming(20_001, 1), "20001 x 1 pixels; at most 20000 a side"),
    "many pixels": (claiming(10_000, 10_000), "10000 x 10000 pixels; at most .* 40 million"),
    "negative as a signed number": (claiming(2**32 - 1, 1), "4294967295 x 1 pixels"),
    "no pixels": (claiming(0, 5), "0 x 5 pixels"),
    "a JPEG of many pixels": (jpeg_claiming(60_000, 50_000), "60000 x 50000 pixels"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_decoded(kind):
    data, message = BAD[kind]
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        decode_gray(tf.constant([GOOD, data]))


def test_a_bomb_is_refused_before_it_is_unpacked():
    """12,000 x 12,000 real pixels in 140 kB: refused in a fraction of the time and memory that decoding takes."""
    rows = zlib.compress(b"\0" * (12_001 * 12_000), 9)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 12_000, 12_000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    with pytest.raises(tf.errors.InvalidArgumentError, match="12000 x 12000 pixels"):
        decode_gray(tf.constant([bomb]))
