"""PNG and JPEG bytes <-> images inside a TensorFlow graph, for models that are served without this package.

The same pixels as the programs read by `data.images` with the window "auto", but for the EXIF orientation of a JPEG,
which is not applied here: PNG of 1 to 16 bits, gray, colour, palette or with transparency (laid over black), and JPEG.
Pixels of 8 bits are equal, and resized ones differ by the rounding of float32, less than 5e-6; where 16 bits are
stretched or laid over black, they are rounded to 16 bits, 2e-5 (tests/test_graph_images.py).
"""

import tensorflow as tf

from r2c_gan.data.image_limits import MAX_SIDE

MAX_PIXELS = 40_000_000
"""The most pixels of an image that is decoded: 350 (JPEG) to 870 MB (16-bit PNG with transparency) while it is.

A digitised chest film has up to 30 million.
"""

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_PNG_HEADER = 33  # bytes of the signature and the IHDR chunk
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, of red, green and blue
_TOP = 65535
_BIG_ENDIAN = (1 << 24, 1 << 16, 1 << 8, 1)


def decode_batch(encoded, height, width, channels):
    """Decodes, resizes and scales images.

    Args:
        encoded: string tensor [N], each the bytes of a PNG or JPEG file.
        height, width: size of the result, in pixels.
        channels: 1 (colour becomes luma) or 3 (gray is repeated).

    Returns:
        float32 [N, height, width, channels] in [-1, 1].

    Raises:
        tf.errors.InvalidArgumentError: when run, if one of them is damaged, of another kind or too large. The size is
            read from its header, before anything of that size is allocated.
    """
    return tf.map_fn(
        lambda one: _scale(resize(_decode(one), height, width), channels),
        encoded,
        fn_output_signature=tf.TensorSpec((height, width, channels), tf.float32),
        parallel_iterations=1,  # one large image in memory at a time
    )


def encode_batch(images):
    """Encodes images float32 [N, H, W, 1 or 3] in [-1, 1], rounded to 8 bits, as PNG: a string tensor [N]."""
    levels = tf.cast(tf.round((tf.clip_by_value(images, -1.0, 1.0) + 1.0) * 127.5), tf.uint8)
    return tf.map_fn(tf.io.encode_png, levels, fn_output_signature=tf.TensorSpec((), tf.string))


def resize(image, height, width):
    """Resizes as `r2c_gan.data.images.resize` does: an axis by area if it shrinks to half or less, else bilinearly.

    Args:
        image: uint16 or float32 [H, W, C].
        height, width: size of the result.

    Returns:
        float32 [height, width, C].
    """
    size = tf.shape(image)
    image = _resize_to(image[None], [height, size[1]], by_area=size[0] >= 2 * height)
    return _resize_to(image, [height, width], by_area=size[1] >= 2 * width)[0]


def _resize_to(images, size, by_area):
    return tf.cond(
        by_area,
        lambda: tf.raw_ops.ResizeArea(images=images, size=size),
        lambda: tf.raw_ops.ResizeBilinear(images=images, size=size, half_pixel_centers=True),
    )


def _scale(image, channels):
    """RGB float32 in [0, 65535] -> float32 of `channels` in [-1, 1]."""
    if channels == 1:
        image = tf.reduce_sum(image * tf.constant(_LUMA), axis=-1, keepdims=True)
    return tf.clip_by_value(image / (_TOP / 2) - 1.0, -1.0, 1.0)


def _decode(encoded):
    """The bytes of a PNG or JPEG -> RGB, uint16 [H, W, 3]."""
    is_png = tf.strings.substr(encoded, 0, len(_PNG)) == _PNG
    is_jpeg = tf.strings.substr(encoded, 0, len(_JPEG)) == _JPEG
    with _require(is_png | is_jpeg, "not the bytes of a PNG or JPEG file"):
        encoded = tf.identity(encoded)
    return tf.cond(is_png, lambda: _decode_png(encoded), lambda: _decode_jpeg(encoded))


def _decode_png(encoded):
    with _require(tf.strings.length(encoded) > _PNG_HEADER, "truncated or damaged PNG"):
        header = tf.strings.substr(encoded, 0, _PNG_HEADER)
    with _require(tf.strings.substr(header, 12, 4) == b"IHDR", "truncated or damaged PNG"):
        header = tf.cast(tf.io.decode_raw(header, tf.uint8), tf.int64)
        width, height = (tf.reduce_sum(header[at : at + 4] * _BIG_ENDIAN) for at in (16, 20))
    with _require_size(width, height):
        pixels = tf.io.decode_png(encoded, channels=4, dtype=tf.uint16)  # 8 bits become 16 by a factor of 257
    # Where a PNG has no transparency, TensorFlow sets the alpha to the largest value of the file's own depth.
    depth = tf.cast(header[24], tf.int32)
    opaque = tf.where(depth == 16, _TOP, (tf.bitwise.left_shift(1, tf.minimum(depth, 8)) - 1) * 257)
    # 16 bits may hold 10 or 12: as `window.Window("auto")`, unless the file says that it uses all.
    deep = tf.cond(depth == 16, lambda: ~_uses_all_bits(encoded), lambda: False)
    pixels = tf.cond(deep, lambda: _stretch(pixels), lambda: pixels)
    alpha = pixels[..., 3:]
    return tf.cond(
        tf.reduce_all(alpha == tf.cast(opaque, tf.uint16)),
        lambda: pixels[..., :3],
        lambda: _over_black(pixels[..., :3], alpha),
    )


def _uses_all_bits(encoded):
    """Whether a PNG of 16 bits has a chunk sBIT before its pixels, of 16 for every channel."""
    end = tf.cast(tf.strings.length(encoded), tf.int64)

    def step(at, _):
        length = tf.cast(tf.io.decode_raw(tf.strings.substr(encoded, at, 4), tf.uint8), tf.int64)
        length = tf.reduce_sum(length[:4] * _BIG_ENDIAN)
        kind = tf.strings.substr(encoded, at + 4, 4)
        bits = tf.strings.substr(encoded, at + 8, tf.minimum(length, 4))
        found = (kind == b"sBIT") & tf.reduce_any(bits == tf.constant([b"\x10" * count for count in range(1, 5)]))
        return tf.where((kind == b"sBIT") | (kind == b"IDAT"), end, at + 12 + length), found

    start = (tf.constant(_PNG_HEADER, tf.int64), tf.constant(False))
    return tf.while_loop(lambda at, _: at + 12 <= end, step, start)[1]


def _stretch(pixels):
    """RGB and alpha, uint16 [H, W, 4]: the visible colours from the lowest to the highest level become all levels."""
    color, alpha = pixels[..., :3], pixels[..., 3:]
    low = tf.cast(tf.reduce_min(tf.where(alpha > 0, color, tf.constant(_TOP, tf.uint16))), tf.float32)
    high = tf.cast(tf.reduce_max(tf.where(alpha > 0, color, tf.constant(0, tf.uint16))), tf.float32)

    def stretched():
        levels = tf.clip_by_value((tf.cast(color, tf.float32) - low) / (high - low), 0.0, 1.0)
        return tf.concat([tf.cast(tf.round(levels * _TOP), tf.uint16), alpha], axis=-1)

    return tf.cond(low < high, stretched, lambda: pixels)


def _over_black(pixels, alpha):
    product = tf.cast(pixels, tf.float32) * (tf.cast(alpha, tf.float32) / _TOP)
    return tf.cast(tf.round(product), tf.uint16)


def _decode_jpeg(encoded):
    height, width, _ = tf.unstack(tf.cast(tf.io.extract_jpeg_shape(encoded), tf.int64))
    with _require_size(width, height):
        pixels = tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")
    return tf.cast(pixels, tf.uint16) * 257


def _require_size(width, height):
    message = tf.strings.join(
        [
            tf.strings.as_string(width),
            " x ",
            tf.strings.as_string(height),
            f" pixels; at most {MAX_SIDE} a side and {MAX_PIXELS // 1_000_000} million together are decoded",
        ]
    )
    low, high = tf.minimum(width, height), tf.maximum(width, height)
    return _require((low >= 1) & (high <= MAX_SIDE) & (width * height <= MAX_PIXELS), message)


def _require(condition, message):
    """A context whose operations run only where the condition holds; otherwise the call fails with the message."""
    return tf.control_dependencies([tf.debugging.Assert(condition, [message])])
