"""PNG and TIFF files of every kind, put together byte by byte from the standards: no library that reads writes them."""

import struct
import zlib

import numpy as np

# --- samples ----------------------------------------------------------------------------------------------------------


def random_levels(height, width, samples, bits, seed=0):
    """Unsigned samples [height, width, samples] that use all of their bits."""
    levels = np.random.default_rng(seed).integers(0, 2**bits, (height, width, samples))
    levels[0, 0], levels[-1, -1] = 0, 2**bits - 1
    return levels.astype(np.uint8 if bits <= 8 else np.uint16)


def pack_rows(levels, bits, order=">"):
    """Samples [rows, columns, samples] -> list of the bytes of each row, the most significant bit first."""
    rows = levels.reshape(len(levels), -1)
    if bits == 16:
        return [row.astype(f"{order}u2").tobytes() for row in rows]
    weights = 1 << np.arange(bits - 1, -1, -1)
    return [np.packbits((row[:, None] & weights != 0).ravel()).tobytes() for row in rows]


# --- PNG --------------------------------------------------------------------------------------------------------------

_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 8, 4), (2, 0, 4, 4), (0, 2, 4, 2), (1, 0, 2, 2), (0, 1, 2, 1))


def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(levels, bits, color, interlaced=False, before=(), after=(), stream=lambda rows: zlib.compress(rows)):
    """A PNG of samples [H, W, samples].

    Args:
        levels: the samples.
        bits: of each.
        color: 0 gray, 2 RGB, 3 palette, 4 gray with alpha, 6 RGB with alpha.
        interlaced: whether in Adam7's seven passes.
        before, after: chunks (kind, body) before and behind the pixels.
        stream: compresses the rows.
    """
    height, width, _ = levels.shape
    parts = [levels]
    if interlaced:  # (x, y, step down, step across), as PNG's table 8.1 gives them
        parts = [levels[y::down, x::across] for x, y, down, across in _PASSES]
    rows = b"".join(b"\0" + row for part in parts if part.size for row in pack_rows(part, bits))
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, interlaced)
    chunks = [(b"IHDR", header), *before, (b"IDAT", stream(rows)), *after, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


# --- TIFF -------------------------------------------------------------------------------------------------------------


def lzw(data):
    """LZW as TIFF has it, without matches: a clear code before every 200 literals keeps the codes at 9 bits."""
    codes = [code for start in range(0, len(data), 200) for code in (256, *data[start : start + 200])] + [257]
    bits = "".join(f"{code:09b}" for code in codes)
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def packbits(data):
    """PackBits, with literal runs alone."""
    return b"".join(bytes([len(run) - 1]) + run for run in (data[at : at + 128] for at in range(0, len(data), 128)))


COMPRESSIONS = {
    "none": (1, bytes),
    "LZW": (5, lzw),
    "deflate": (8, zlib.compress),
    "old deflate": (32946, zlib.compress),
    "PackBits": (32773, packbits),
}


def tiff(
    levels,
    bits,
    photometric,
    compression="none",
    order="<",
    big=False,
    planar=False,
    tile=None,
    rows=None,
    predictor=False,
    reverse_bits=False,
    tags=(),
    change_strip=lambda number, strip: strip,
):
    """A TIFF of samples [H, W, samples].

    Args:
        levels: the samples.
        bits: of each.
        photometric: PhotometricInterpretation.
        compression: a key of `COMPRESSIONS`.
        order: "<" or ">", the byte order.
        big: whether a BigTIFF.
        planar: whether each sample has a plane of its own.
        tile: (height, width) of tiles; strips where None.
        rows: rows a strip; all where None.
        predictor: whether differences along rows are stored.
        reverse_bits: FillOrder 2.
        tags: more (tag, type, list of values).
        change_strip: (number, compressed strip) -> what is written in its place.
    """
    height, width, samples = levels.shape
    code, compress = COMPRESSIONS[compression]
    tall, wide = tile or (rows or height, width)
    planes = [levels[..., index : index + 1] for index in range(samples)] if planar else [levels]
    strips = []
    for plane in planes:
        for top in range(0, height, tall):
            for left in range(0, width, wide):
                part = plane[top : top + tall, left : left + wide]
                if tile:
                    grown = [(0, tall - part.shape[0]), (0, wide - part.shape[1]), (0, 0)]
                    part = np.pad(part, grown, mode="edge")
                if predictor:
                    part = np.diff(part, axis=1, prepend=np.zeros_like(part[:, :1]))  # wraps, as it should
                data = b"".join(pack_rows(part, bits, order))
                if reverse_bits:
                    data = bytes(int(f"{byte:08b}"[::-1], 2) for byte in data)
                strips.append(change_strip(len(strips), compress(data)))
    fields = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [bits] * samples),
        259: (3, [code]),
        262: (3, [photometric]),
        277: (3, [samples]),
        284: (3, [2 if planar else 1]),
    }
    if reverse_bits:
        fields[266] = (3, [2])
    if predictor:
        fields[317] = (3, [2])
    offsets, sizes = (324, 325) if tile else (273, 279)
    if tile:
        fields |= {322: (4, [wide]), 323: (4, [tall])}
    else:
        fields[278] = (4, [tall])
    start = 16 if big else 8
    places = [start + sum(map(len, strips[:number])) for number in range(len(strips))]
    fields |= {offsets: (4, places), sizes: (4, [len(strip) for strip in strips])}
    fields |= {tag: (kind, values) for tag, kind, values in tags}
    pixels = b"".join(strips)
    pixels += b"\0" * (len(pixels) % 2)
    directory = _directory(fields, order, big, start + len(pixels))
    mark = b"II" if order == "<" else b"MM"
    if big:
        return mark + struct.pack(f"{order}HHHQ", 43, 8, 0, 16 + len(pixels)) + pixels + directory
    return mark + struct.pack(f"{order}HI", 42, 8 + len(pixels)) + pixels + directory


def _directory(fields, order, big, at):
    codes = {1: "B", 3: "H", 4: "I"}
    count, entry, number, room = ("Q", "HHQ", "Q", 8) if big else ("H", "HHI", "I", 4)
    size = struct.calcsize(f"={count}") + len(fields) * (struct.calcsize(f"={entry}") + room) + room
    entries, more = b"", b""
    for tag, (kind, values) in sorted(fields.items()):
        body = struct.pack(f"{order}{len(values)}{codes[kind]}", *values)
        if len(body) > room:
            place = at + size + len(more)
            more += body + b"\0" * (len(body) % 2)
            body = struct.pack(order + number, place)
        entries += struct.pack(order + entry, tag, kind, len(values)) + body.ljust(room, b"\0")
    return struct.pack(order + count, len(fields)) + entries + b"\0" * room + more
