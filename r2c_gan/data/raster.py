"""PNG, JPEG and TIFF bytes -> the numbers that they store, and what these mean. `images.read_image` is the door.

imagecodecs and tifffile decode. What they would pass over in silence is refused here: damaged and cut files, sizes
beyond the limits of `image_limits` (before anything of that size is allocated), kinds that cannot be shown.
"""

import dataclasses
import io
import logging
import re
import struct
import zlib

import imagecodecs
import numpy as np

from r2c_gan.data.image_limits import ImageError, check_size

for _name in ("imagecodecs", "tifffile"):  # what is wrong with a file is said once, by ImageError
    logging.getLogger(_name).setLevel(logging.CRITICAL)

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the latter two: BigTIFF

_OTHERS = {  # what may well be called .png, and is not read
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"%PDF": "a PDF",
    b"\0\0\0\x0cjP  ": "a JPEG 2000",
    b"\xff\x4f\xff\x51": "a JPEG 2000",
    b"\xff\x0a": "a JPEG XL",
    b"\0\0\0\x0cJXL ": "a JPEG XL",
    b"PK\x03\x04": "a ZIP",
    b"\x1f\x8b": "a gzip",
}


MAX_DECODED = 300_000_000
"""The most bytes of samples that are decoded; reading takes up to 2 GB then."""


@dataclasses.dataclass
class Raster:
    """What a file stores.

    Attributes:
        levels: uint8 or uint16 [H, W, 1 or 3], gray or red, green, blue.
        bits: of a level: they go from 0 to 2**bits - 1.
        deep: whether a picture of more than 8 bits is stored, which may use a part of its range only. A PNG that
            says so itself, by the chunk sBIT, uses all of it.
        inverted: whether 0 is white.
        alpha: float32 [H, W, 1] in [0, 1] by which the shown colour is to be multiplied; None where all is opaque.
        visible: boolean [H, W], False where a pixel is wholly transparent; None where all are visible.
        orientation: 1 to 8, as in TIFF and EXIF.
    """

    levels: np.ndarray
    bits: int
    deep: bool
    inverted: bool = False
    alpha: np.ndarray | None = None
    visible: np.ndarray | None = None
    orientation: int = 1


def is_raster(data):
    """Whether bytes begin as a PNG, JPEG or TIFF file does."""
    return data.startswith((PNG, JPEG, *TIFF))


def decode(path, data):
    """Decodes a file.

    Args:
        path: names the file in messages.
        data: its bytes.

    Returns:
        A `Raster`.

    Raises:
        ImageError: if it is of another kind, too large, damaged or cannot be shown. Of damaged files the decoders raise
            many kinds of exceptions, which the caller has to expect.
    """
    if data.startswith(PNG):
        return _png(path, data)
    if data.startswith(JPEG):
        return _jpeg(path, data)
    if data.startswith(TIFF):
        return _tiff(path, data)
    kind = next((name for start, name in _OTHERS.items() if data.startswith(start)), None)
    kind = "a WebP" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else kind
    kind = "a HEIF or AVIF" if data[4:8] == b"ftyp" else kind
    raise ImageError(f"{path}: not a PNG, JPEG, TIFF or DICOM image" + (f", but {kind} file" if kind else ""))


def count_pixels(path, data):
    """The pixels of a PNG or JPEG by its header.

    Raises:
        ImageError: if it is none, or a JPEG that is damaged.
    """
    if data.startswith(PNG):
        return int.from_bytes(data[16:20]) * int.from_bytes(data[20:24])
    if data.startswith(JPEG):
        jpeg = _parsed_jpeg(path, data)
        return jpeg.height * jpeg.width
    raise ImageError(f"{path}: not the bytes of a PNG or JPEG file")


def _check_budget(path, height, width, samples, size):
    """Raises `ImageError` for more than `MAX_DECODED` bytes of samples of `size` bytes, or a size that is not read."""
    check_size(path, height, width)
    if height * width * samples * size > MAX_DECODED:
        raise ImageError(
            f"{path}: {width} x {height} pixels of {samples * size} bytes; at most {MAX_DECODED // 1_000_000} million "
            "bytes are decoded"
        )


def oriented(image, orientation):
    """[H, W, C] as stored -> as it is to be shown, for an orientation 1 to 8 of TIFF or EXIF."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image


# --- PNG --------------------------------------------------------------------------------------------------------------

_GRAY, _RGB, _PALETTE, _GRAY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6
_SAMPLES = {_GRAY: 1, _RGB: 3, _PALETTE: 1, _GRAY_ALPHA: 2, _RGB_ALPHA: 4}
_DEPTHS = {_GRAY: (1, 2, 4, 8, 16), _PALETTE: (1, 2, 4, 8)}
_PASSES = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]  # Adam7


def _png(path, data):
    """The picture of a PNG; of an animated one the picture that viewers of plain PNG show."""
    header, palette, transparent, significant, stream = _png_chunks(path, data)
    width, height, depth, color, *methods, interlaced = struct.unpack(">IIBBBBB", header)
    check_size(path, height, width)
    if color not in _SAMPLES or depth not in _DEPTHS.get(color, (8, 16)) or any(methods) or interlaced > 1:
        raise ImageError(f"{path}: damaged PNG (its header is not valid)")
    _check_budget(path, height, width, _SAMPLES[color] if color != _PALETTE else 4, -(-depth // 8))
    stream = _whole_stream(path, stream, _png_size(height, width, depth * _SAMPLES[color], interlaced))

    # Palette indices are decoded as gray levels: so one that the palette does not have can be told from black.
    plain = struct.pack(">IIBBBBB", width, height, depth, 0 if color == _PALETTE else color, 0, 0, interlaced)
    chunks = [(b"IHDR", plain), (b"IDAT", stream), (b"IEND", b"")]
    levels = imagecodecs.png_decode(PNG + b"".join(_chunk(*chunk) for chunk in chunks))
    levels = levels.reshape(height, width, -1)
    if depth < 8:
        levels //= 255 // (2**depth - 1)  # the decoder has spread them over 8 bits
    if color == _PALETTE:
        return _with_palette(path, levels, palette, transparent)
    top = 2**depth - 1
    if color in (_GRAY_ALPHA, _RGB_ALPHA):
        raster = _with_alpha(levels[..., :-1], depth, levels[..., -1:])
    else:
        raster = Raster(levels, depth, depth > 8)
    if significant and set(significant) == {depth}:
        raster.deep = False
    if transparent is not None and color in (_GRAY, _RGB):
        key = np.frombuffer(transparent, ">u2") & top
        if key.size != levels.shape[-1]:
            raise ImageError(f"{path}: damaged PNG (a transparent colour of {len(transparent)} bytes)")
        raster.visible = (levels != key.astype(levels.dtype)).any(axis=-1)
        raster.alpha = raster.visible[..., None].astype(np.float32)
    return raster


def _png_chunks(path, data):
    """(IHDR, PLTE or None, tRNS or None, sBIT or None, the compressed pixels): all that bears on the picture."""
    found, pixels, start = {}, [], len(PNG)
    while start + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if end > len(data):
            break
        body = data[start + 8 : end - 4]
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"sBIT", b"IDAT", b"IEND"):
            if zlib.crc32(data[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
                raise ImageError(f"{path}: damaged PNG (the checksum of {kind.decode()} is wrong)")
            if (kind == b"IHDR") != (start == len(PNG)) or (kind == b"IHDR" and length != 13):
                raise ImageError(f"{path}: damaged PNG (its header is not valid)")
            if kind == b"IDAT":
                pixels.append(body)
            elif not pixels:
                found.setdefault(kind, body)
        elif not kind[0] & 32:  # a capital letter: cannot be shown without it
            raise ImageError(f"{path}: unsupported or damaged PNG (chunk {kind!r})")
        if kind == b"IEND":
            if not pixels:
                break
            return found[b"IHDR"], *(found.get(kind) for kind in (b"PLTE", b"tRNS", b"sBIT")), b"".join(pixels)
        start = end
    raise ImageError(f"{path}: truncated or damaged PNG")


def _png_size(height, width, bits, interlaced):
    """Bytes of the rows, each with its filter, of `bits` a pixel."""
    passes = _PASSES if interlaced else [(0, 0, 1, 1)]
    sizes = [((height - y + dy - 1) // dy, (width - x + dx - 1) // dx) for y, x, dy, dx in passes]
    return sum(rows * (1 + (columns * bits + 7) // 8) for rows, columns in sizes if rows > 0 and columns > 0)


def _whole_stream(path, stream, size):
    """The zlib stream, if it unpacks to the bytes of all pixels; made whole if only its own checksum lacks.

    What it holds beyond `size` bytes is never unpacked.
    """
    inflate, found = zlib.decompressobj(), 0
    step = 1 << 16  # of compressed bytes: at most 64 MiB come out
    try:
        for start in range(0, len(stream), step):
            found += len(inflate.decompress(stream[start : start + step]))
            if inflate.eof or found > size:
                break
    except zlib.error as error:
        raise ImageError(f"{path}: damaged PNG ({error})") from error
    if found < size:
        raise ImageError(f"{path}: truncated PNG ({found} of {size} bytes of pixels)")
    if inflate.eof and found == size:
        return stream
    return zlib.compress(zlib.decompressobj().decompress(stream, size), 1)


def with_significant_bits(png, bits, channels):
    """A PNG that has only its own header before other chunks, with the statement that all bits of it are used."""
    end = len(PNG) + 12 + 13
    return png[:end] + _chunk(b"sBIT", bytes([bits] * channels)) + png[end:]


def _chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _with_palette(path, indices, palette, transparent):
    if not palette or len(palette) % 3 or len(palette) > 768:
        raise ImageError(f"{path}: damaged PNG (no valid palette)")
    colors = np.frombuffer(palette, np.uint8).reshape(-1, 3)
    if indices.max() >= len(colors):
        raise ImageError(f"{path}: damaged PNG (colour {indices.max()} of a palette of {len(colors)})")
    raster = Raster(colors[indices[..., 0]], 8, False)
    if transparent:
        opacity = np.full(len(colors), 255, np.uint8)
        opacity[: len(transparent)] = np.frombuffer(transparent, np.uint8)[: len(colors)]
        return _with_alpha(raster.levels, 8, opacity[indices])
    return raster


def _with_alpha(levels, bits, alpha):
    visible = alpha[..., 0] > 0
    alpha = alpha.astype(np.float32)
    alpha /= np.float32(2**bits - 1)
    return Raster(levels, bits, bits > 8, alpha=alpha, visible=visible)


# --- JPEG -------------------------------------------------------------------------------------------------------------

_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)  # in compressed data; FF00 and restarts belong to it
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA}  # baseline to lossless, then the arithmetically coded ones
_PROGRESSIVE = {0xC2, 0xCA}
_LOSSLESS, _ARITHMETIC = {0xC3}, {0xC9, 0xCA}
_RESTART = re.compile(rb"\xff+([\xd0-\xd7])", re.DOTALL)
_EXIF = b"Exif\0\0"
_NOISE = bytes(np.random.default_rng(0).integers(1, 255, 1024, np.uint8))  # without FF


def _jpeg(path, data):
    jpeg = _parsed_jpeg(path, data)
    _check_budget(path, jpeg.height, jpeg.width, jpeg.channels, 1)
    levels = imagecodecs.jpeg8_decode(jpeg.whole)
    if not np.array_equal(levels, imagecodecs.jpeg8_decode(jpeg.filled)):
        raise ImageError(f"{path}: truncated JPEG (its compressed pixels end too early)")
    levels = levels.reshape(jpeg.height, jpeg.width, -1)
    if levels.shape[-1] == 4:
        # Adobe stores inks inverted; that is what its marker says.
        levels = _from_inks(levels if jpeg.adobe else 255 - levels)
    if levels.shape[-1] not in (1, 3):
        raise ImageError(f"{path}: unsupported JPEG ({levels.shape[-1]} channels)")
    return Raster(levels, jpeg.bits, jpeg.bits > 8, orientation=jpeg.orientation)


def _from_inks(light):
    """What cyan, magenta, yellow and black let through, uint8 [H, W, 4], 255 for all -> red, green, blue, uint8."""
    light = light.astype(np.uint16)
    return ((light[..., :3] * light[..., 3:] + 127) // 255).astype(np.uint8)


@dataclasses.dataclass
class _Jpeg:
    """A JPEG taken apart: what bears on its pixels, once as it is and once with noise behind each restart interval.

    Where an interval (a whole scan, if there are no restarts) holds all of its pixels, the decoder passes over the
    noise; where it ends too early, it takes it for pixels, while without it they would silently be gray.
    """

    height: int
    width: int
    channels: int
    bits: int
    adobe: bool
    orientation: int
    whole: bytes
    filled: bytes


def _parsed_jpeg(path, data):
    whole, filled = [b"\xff\xd8"], [b"\xff\xd8"]
    frame, adobe, orientation, interval = None, False, None, 0
    missing = {}  # component -> what of its 64 coefficients (progressive), or of itself, no scan has given yet
    at = 2
    while True:
        at = data.find(b"\xff", at)
        while data[at : at + 2] == b"\xff\xff":
            at += 1
        if at < 0 or at + 2 > len(data):
            break  # the end marker lacks: whether the pixels do is seen below
        kind = data[at + 1]
        if kind == 0xD9:
            break
        if kind in (0x00, 0x01, 0xD8) or 0xD0 <= kind <= 0xD7:
            at += 2
            continue
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        end = at + 2 + size
        if size < 2 or end > len(data):
            raise ImageError(f"{path}: truncated or damaged JPEG")
        segment, body = data[at:end], data[at + 4 : end]
        keep = kind < 0xE0 or body.startswith((b"JFIF\0", b"Adobe"))
        if kind in range(0xC0, 0xD0) and kind not in (0xC4, 0xC8, 0xCC):
            if frame:
                raise ImageError(f"{path}: damaged JPEG (two frames)")
            frame = _jpeg_frame(path, kind, body)
            units = range(64) if kind in _PROGRESSIVE else range(1)
            missing = {component: set(units) for component in frame.sampling}
        elif kind == 0xDD:
            interval = int.from_bytes(body[:2], "big")
        elif kind == 0xEE and body.startswith(b"Adobe"):
            adobe = True
        elif kind == 0xE1 and body.startswith(_EXIF) and orientation is None:
            orientation = _exif_orientation(body)
        if keep:
            whole.append(segment)
            filled.append(segment)
        at = end
        if kind == 0xDA:
            if frame:
                _give(path, frame.kind, body, missing)
            match = _MARKER.search(data, at)
            end = match.start() if match else len(data)
            scan = data[at:end].rstrip(b"\xff")
            whole.append(scan)
            filled.append(_filled(path, scan, frame, body, interval) if frame else scan)
            at = end
    if not frame or any(missing.values()):
        raise ImageError(f"{path}: truncated or damaged JPEG")
    whole, filled = (b"".join([*parts, b"\xff\xd9"]) for parts in (whole, filled))
    return _Jpeg(frame.height, frame.width, len(frame.sampling), frame.bits, adobe, orientation or 1, whole, filled)


@dataclasses.dataclass
class _Frame:
    """A frame header; `sampling` has the (horizontal, vertical) factors of each component."""

    kind: int
    height: int
    width: int
    bits: int
    sampling: dict

    def units(self, components):
        """The minimum coded units of a scan of some components."""
        side = 1 if self.kind in _LOSSLESS else 8
        most = [max(factors) for factors in zip(*self.sampling.values(), strict=True)]
        own = self.sampling[components[0]] if len(components) == 1 else most
        count = 1
        for size, factor, largest in zip((self.width, self.height), own, most, strict=True):
            sampled = -(-size * factor // largest)
            count *= -(-sampled // (side if len(components) == 1 else side * largest))
        return count


def _jpeg_frame(path, kind, body):
    if kind not in _FRAMES:
        raise ImageError(f"{path}: unsupported JPEG (process {kind - 0xC0})")
    if len(body) < 6 or len(body) < 6 + 3 * body[5]:
        raise ImageError(f"{path}: truncated or damaged JPEG")
    bits, height, width, count = struct.unpack_from(">BHHB", body)
    if bits != 8:
        raise ImageError(f"{path}: unsupported JPEG ({bits} bits; 8 are read)")
    components = [body[at : at + 2] for at in range(6, 6 + 3 * count, 3)]
    sampling = {name: (factors >> 4, factors & 15) for name, factors in components}
    if len(sampling) != count or not all(across and down for across, down in sampling.values()):
        raise ImageError(f"{path}: truncated or damaged JPEG")
    return _Frame(kind, height, width, bits, sampling)


def _give(path, kind, body, missing):
    """Notes what a scan, by its header, gives."""
    count = body[0] if body else 0
    if len(body) < 4 + 2 * count:
        raise ImageError(f"{path}: truncated or damaged JPEG")
    first, last, approximation = body[1 + 2 * count : 4 + 2 * count]
    if approximation & 15 and kind in _PROGRESSIVE:  # lower bits are still to come
        return
    for component in body[1 : 1 + 2 * count : 2]:
        given = range(first, last + 1) if kind in _PROGRESSIVE else range(1)
        missing.get(component, set()).difference_update(given)


def _filled(path, scan, frame, header, interval):
    """A scan with noise behind each of its restart intervals, which must be as many as its pixels need, in order.

    The decoder skips to the next restart that it expects, and leaves gray what lies between.
    """
    numbers = [mark[0] & 7 for mark in _RESTART.findall(scan)]
    components = header[1 : 1 + 2 * header[0] : 2]
    if not components or not set(components) <= set(frame.sampling):
        raise ImageError(f"{path}: truncated or damaged JPEG")
    count = -(-frame.units(components) // interval) if interval else 1
    if len(numbers) not in (count - 1, count) or numbers != [number % 8 for number in range(len(numbers))]:
        # some programs write one more behind the last interval
        raise ImageError(f"{path}: truncated or damaged JPEG (restart markers lack, or are not in order)")
    noise = _NOISE[: max(32, len(_NOISE) * 1024 // count)]
    if frame.kind in _ARITHMETIC:
        noise = bytes(3) + noise  # zeros are left out at the end of what is coded so
    if not numbers:
        return scan + noise
    if len(numbers) == count:
        last = list(_RESTART.finditer(scan))[-1]
        if last.end() < len(scan):
            raise ImageError(f"{path}: damaged JPEG (pixels behind the last restart interval)")
        scan = scan[: last.start()]
    return _RESTART.sub(lambda mark: noise + mark[0], scan) + noise


def _exif_orientation(exif):
    """The orientation, 1 to 8, that the first directory of EXIF names; None where it names none that can be read."""
    while exif.startswith(_EXIF):  # some programs write it twice
        exif = exif[len(_EXIF) :]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for number in range(count):
            tag, kind, values = struct.unpack_from(order + "HHI", exif, start + 2 + 12 * number)
            if tag == 274 and kind in (3, 4) and values:
                (value,) = struct.unpack_from(order + ("H" if kind == 3 else "I"), exif, start + 10 + 12 * number)
                return value if 1 <= value <= 8 else None
    except (struct.error, TypeError):
        pass
    return None


# --- TIFF -------------------------------------------------------------------------------------------------------------

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _TIFF_RGB, _TIFF_PALETTE, _INKS, _YCBCR = 0, 1, 2, 3, 5, 6
_COLORS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _TIFF_RGB: 3, _TIFF_PALETTE: 1, _INKS: 4, _YCBCR: 3}
_UNSIGNED, _UNDEFINED = 1, 4
_NUMBERS = {2: "signed integers", 3: "floating-point numbers", 5: "complex integers", 6: "complex numbers"}
_ASSOCIATED, _UNASSOCIATED = 1, 2
_JPEG_IN_TIFF = (6, 7)
_MAX_SAMPLES = 8


def _tiff(path, data):
    """The first page of a TIFF."""
    import tifffile  # takes a quarter of a second

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        check_size(path, page.imagelength, page.imagewidth)
        bits, colors, extra = _tiff_kind(path, page)
        _check_budget(path, page.imagelength, page.imagewidth, page.samplesperpixel, 1 if bits <= 8 else 2)
        levels = _tiff_levels(path, page, data)
        tag = page.tags.get("Orientation")
        orientation = tag.value if tag is not None and tag.value in range(1, 9) else 1
        raster = _tiff_raster(path, page, levels, bits, colors, extra)
    raster.orientation = orientation
    return raster


def _tiff_kind(path, page):
    """(bits of a level, samples of colour, kind of the first extra sample or None), if it can be shown."""

    def refuse(reason):
        raise ImageError(f"{path}: unsupported TIFF ({reason})")

    photometric, samples = int(page.photometric), page.samplesperpixel
    depths = page.tags.valueof("BitsPerSample", 1)
    depths = set(depths) if isinstance(depths, tuple) else {depths}
    if len(depths) > 1:
        refuse(f"samples of {' and '.join(map(str, sorted(depths)))} bits; of one size they are read")
    bits = depths.pop()
    formats = page.tags.valueof("SampleFormat", _UNSIGNED)
    for number in formats if isinstance(formats, tuple) else (formats,):
        if number not in (_UNSIGNED, _UNDEFINED):
            refuse(f"{bits}-bit {_NUMBERS.get(number, 'samples')}; 1 to 16 bit unsigned integers are read")
    if not 1 <= bits <= 16:
        refuse(f"{bits}-bit samples; 1 to 16 bit unsigned integers are read")
    if photometric not in _COLORS:
        refuse(f"PhotometricInterpretation {photometric}; gray, RGB, palette and CMYK are read")
    if photometric == _YCBCR and page.compression not in _JPEG_IN_TIFF:
        refuse("YCbCr that is not compressed as JPEG")
    if photometric == _INKS and (bits not in (8, 16) or page.tags.valueof("InkSet", 1) != 1):
        refuse("inks other than CMYK of 8 or 16 bits")
    colors = _COLORS[photometric]
    if not colors <= samples <= _MAX_SAMPLES or page.imagedepth > 1:
        refuse(f"{samples} samples a pixel, {page.imagedepth} deep")
    extra = page.extrasamples[0] if page.extrasamples and samples > colors else None
    if extra == _ASSOCIATED and photometric in (_WHITE_IS_ZERO, _TIFF_PALETTE, _INKS):
        refuse(f"PhotometricInterpretation {photometric} with associated alpha")
    return bits, colors, None if extra is None else int(extra)


def _tiff_levels(path, page, data):
    """The samples, unsigned [H, W, samples], every strip or tile whole."""
    height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
    separate = int(page.planarconfig or 1) == 2 and samples > 1
    tall, wide = (page.tilelength, page.tilewidth) if page.is_tiled else (min(page.rowsperstrip, height), width)
    if not (tall > 0 and wide > 0):
        raise ImageError(f"{path}: damaged TIFF (strips or tiles of {wide} x {tall} pixels)")
    if page.is_tiled:
        check_size(path, tall, wide)  # each is unpacked whole
    count = -(-height // tall) * -(-width // wide) * (samples if separate else 1)
    offsets, sizes = page.dataoffsets, page.databytecounts
    if len(offsets) < count or len(sizes) < count:
        raise ImageError(f"{path}: damaged TIFF ({min(len(offsets), len(sizes))} of {count} strips or tiles)")
    for offset, size in zip(offsets[:count], sizes[:count], strict=True):
        if size <= 0 or offset <= 0 or offset + size > len(data):
            raise ImageError(f"{path}: truncated or damaged TIFF (pixels lie outside the file)")
    levels = np.empty((height, width, samples), np.uint8 if page.bitspersample <= 8 else np.uint16)
    tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if page.compression in _JPEG_IN_TIFF else {}
    for number in range(count):
        piece = data[offsets[number] : offsets[number] + sizes[number]]
        try:
            block, (plane, _, top, left, _), _ = page.decode(piece, number, **tables)
        except Exception as error:  # the decoders have many kinds
            raise ImageError(f"{path}: damaged or unsupported TIFF ({error})") from error
        rows, columns = min(tall, height - top), min(wide, width - left)
        if block is None or block.shape[1] < rows or block.shape[2] < columns or block.dtype.kind not in "bu":
            raise ImageError(f"{path}: truncated or damaged TIFF (strip or tile {number} is not whole)")
        if page.compression == 7 and page.bitspersample == 8:
            _check_jpeg_piece(path, page, piece, number, tables, block)
        into = levels[top : top + rows, left : left + columns]
        if separate:
            into[..., plane] = block[0, :rows, :columns, 0]
        else:
            into[:] = block[0, :rows, :columns]
    return levels


def _check_jpeg_piece(path, page, piece, number, tables, block):
    """A strip or tile that is a JPEG, with its tables elsewhere, must hold all of its pixels as a JPEG file must."""
    filled = page.decode(_parsed_jpeg(path, piece).filled, number, **tables)[0]
    if not np.array_equal(block, filled):
        raise ImageError(f"{path}: truncated or damaged TIFF (strip or tile {number} is not whole)")


def _tiff_raster(path, page, levels, bits, colors, extra):
    photometric = int(page.photometric)
    stored, alpha = levels[..., :colors], None
    if extra in (_ASSOCIATED, _UNASSOCIATED):
        alpha = levels[..., colors : colors + 1]
    deep = bits > 8
    if photometric == _TIFF_PALETTE:
        stored, depth = _tiff_palette(path, page, stored, bits)
        deep = False
    elif photometric == _INKS:
        top = 2**bits - 1
        light = top - stored.astype(np.uint32)
        stored = ((light[..., :3] * light[..., 3:] + top // 2) // top).astype(levels.dtype)
        depth = bits
    else:
        depth = bits
    raster = Raster(stored, depth, deep, inverted=photometric == _WHITE_IS_ZERO)
    if extra == _UNASSOCIATED:
        faded = _with_alpha(stored, bits, alpha)
        raster.alpha, raster.visible = faded.alpha, faded.visible
    elif extra == _ASSOCIATED:  # multiplied already
        raster.visible = alpha[..., 0] > 0
    return raster


def _tiff_palette(path, page, indices, bits):
    """(colours of the indices, their bits)."""
    colors = np.asarray(page.colormap if page.colormap is not None else ())
    if colors.ndim != 2 or colors.shape != (3, 2**bits):
        raise ImageError(f"{path}: damaged TIFF (no valid palette)")
    colors = colors.T.astype(np.uint16)
    if colors.max() < 256:  # by mistake of some programs
        return colors.astype(np.uint8)[indices[..., 0]], 8
    if (colors % 257 == 0).all():
        return (colors // 257).astype(np.uint8)[indices[..., 0]], 8
    return colors[indices[..., 0]], 16
