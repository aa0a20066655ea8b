"""Every bit depth, kind of samples and compression of PNG, JPEG and TIFF, against hand-made bytes or Pillow."""

import io
import itertools
import shutil
import struct
import subprocess
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image
from raster_files import COMPRESSIONS, lzw, png, png_chunk, random_levels, tiff

from r2c_gan.data import image_limits, images
from r2c_gan.data.images import ImageError

SIDES = (21, 29)  # of odd sides: rows end inside a byte, tiles and Adam7 passes are not full


@pytest.fixture
def read(tmp_path):
    def read_bytes(data, window="full", name="image"):
        (tmp_path / name).write_bytes(data)
        return images.read_image(tmp_path / name, window=window)

    return read_bytes


def same(found, unit, tolerance=1e-5):
    """Whether what was read is what lies in [0, 1]."""
    np.testing.assert_allclose(found, 2.0 * unit - 1, atol=tolerance)


# --- PNG --------------------------------------------------------------------------------------------------------------

GRAY, RGB, PALETTE, GRAY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
KINDS = [
    *((bits, GRAY, 1) for bits in (1, 2, 4, 8, 16)),
    *((bits, RGB, 3) for bits in (8, 16)),
    *((bits, GRAY_ALPHA, 2) for bits in (8, 16)),
    *((bits, RGB_ALPHA, 4) for bits in (8, 16)),
]


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits, color, samples", KINDS)
def test_png(read, bits, color, samples, interlaced):
    levels = random_levels(*SIDES, samples, bits)
    unit = levels / (2.0**bits - 1)
    if color in (GRAY_ALPHA, RGB_ALPHA):
        unit = unit[..., :-1] * unit[..., -1:]
    same(read(png(levels, bits, color, interlaced)), unit)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits, color, samples", [kind for kind in KINDS if kind[1] in (GRAY, RGB)])
def test_png_with_a_transparent_colour(read, bits, color, samples, interlaced):
    levels = random_levels(*SIDES, samples, bits)
    key = levels[7, 9].astype(int)
    unit = levels / (2.0**bits - 1) * (levels != key).any(axis=-1, keepdims=True)
    same(read(png(levels, bits, color, interlaced, [(b"tRNS", struct.pack(f">{samples}H", *key))])), unit)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("transparent", [False, True])
def test_png_palette(read, bits, interlaced, transparent):
    levels = random_levels(*SIDES, 1, bits)
    rng = np.random.default_rng(1)
    colors, alpha = rng.integers(0, 256, (2**bits, 3), np.uint8), rng.integers(0, 256, 2**bits, np.uint8)
    alpha[2 ** (bits - 1) :] = 255  # a short tRNS: the others are opaque
    chunks = [(b"PLTE", colors.tobytes())]
    unit = colors[levels[..., 0]] / 255
    if transparent:
        chunks.append((b"tRNS", alpha[: 2 ** (bits - 1)].tobytes()))
        unit = unit * (alpha / 255)[levels]
    same(read(png(levels, bits, PALETTE, interlaced, chunks)), unit)


def test_what_does_not_bear_on_the_pixels_of_a_png_does_not_matter(read, capfd):
    levels = random_levels(*SIDES, 1, 8)
    profile = b"name\0\0" + zlib.compress(b"no profile" * 1000)
    before = [
        (b"acTL", struct.pack(">II", 2, 0)),  # an animated one: its first picture is that of plain PNG
        (b"fcTL", struct.pack(">IIIIIHHBB", 0, SIDES[1], SIDES[0], 0, 0, 1, 1, 0, 0)),
        (b"gAMA", struct.pack(">I", 45455)),
        (b"iCCP", profile),
        (b"zTXt", b"Comment\0\0" + zlib.compress(b"words" * 2_000_000)),
        (b"eXIf", b"no EXIF at all"),
    ]
    after = [(b"fdAT", b"\0\0\0\1" + b"no pixels"), (b"tEXt", b"a\0b")]
    same(read(png(levels, 8, GRAY, before=before, after=after)), levels / 255)
    wrong = png(levels, 8, GRAY, before=[(b"tEXt", b"checksum")]).replace(b"checksum", b"Checksum")
    same(read(wrong + b"behind the end"), levels / 255)
    assert capfd.readouterr().err == ""


def test_png_whose_own_checksum_of_the_pixels_lacks(read, capfd):
    levels = random_levels(*SIDES, 1, 8)
    same(read(png(levels, 8, GRAY, stream=lambda rows: zlib.compress(rows)[:-4])), levels / 255)
    same(read(png(levels, 8, GRAY, stream=lambda rows: zlib.compress(rows + b"more"))), levels / 255)
    assert capfd.readouterr().err == ""


LEVELS = random_levels(*SIDES, 1, 8)
BAD_PNG = {
    "pixels end too early": (png(LEVELS, 8, GRAY, stream=lambda rows: zlib.compress(rows[:-1])), "truncated PNG"),
    "half a stream": (png(LEVELS, 8, GRAY, stream=lambda rows: zlib.compress(rows)[:300]), "truncated PNG"),
    "no stream": (png(LEVELS, 8, GRAY, stream=lambda rows: b"nothing of the kind"), "damaged PNG"),
    "wrong checksum of the stream": (
        png(LEVELS, 8, GRAY, stream=lambda rows: zlib.compress(rows)[:-1] + b"?"),
        "damaged PNG",
    ),
    "no such filter": (png(LEVELS, 8, GRAY, stream=lambda rows: zlib.compress(b"\7" + rows[1:])), "damaged"),
    "colour beyond the palette": (png(LEVELS, 8, PALETTE, before=[(b"PLTE", bytes(30))]), "of a palette of 10"),
    "no palette": (png(LEVELS, 8, PALETTE), "no valid palette"),
    "transparent colour of two samples": (png(LEVELS, 8, GRAY, before=[(b"tRNS", bytes(4))]), "transparent colour"),
    "no pixels": (png(LEVELS, 8, GRAY).split(b"IDAT")[0][:-4] + png_chunk(b"IEND", b""), "truncated or damaged"),
    "without its end": (png(LEVELS, 8, GRAY)[:-12], "truncated or damaged"),
    "3 bits": (png(LEVELS & 7, 8, GRAY).replace(b"\x08\0\0\0\0", b"\x03\0\0\0\0", 1), "checksum of IHDR"),
    "an unknown critical chunk": (png(LEVELS, 8, GRAY, before=[(b"WHAT", b"")]), "unsupported or damaged"),
    "width 0": (png(LEVELS[:, :0], 8, GRAY), "nothing to read"),
}


@pytest.mark.parametrize("name", BAD_PNG)
def test_bad_png(read, capfd, name):
    data, says = BAD_PNG[name]
    with pytest.raises(ImageError, match=says):
        read(data)
    assert capfd.readouterr().err == ""


def test_a_png_that_claims_more_than_it_holds_takes_no_memory(read):
    """20,000 x 20,000 pixels in a few bytes, and rows that unpack to far more than the header says."""
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 16, RGB_ALPHA, 0, 0, 0)
    huge = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"x") + png_chunk(b"IEND", b"")
    endless = png(LEVELS, 8, GRAY, stream=lambda rows: zlib.compress(rows + bytes(500_000_000), 9))
    just = struct.pack(">IIBBBBB", 10_000, 9_000, 16, GRAY, 0, 0, 0)
    rich = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 10_000, 9_000, 16, RGB_ALPHA, 0, 0, 0))
    empty = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", just) + png_chunk(b"IDAT", zlib.compress(b"x"))
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="20000 x 20000 pixels; at most"):
            read(huge)
        with pytest.raises(ImageError, match="truncated PNG"):
            read(empty + png_chunk(b"IEND", b""))
        with pytest.raises(ImageError, match="pixels of 8 bytes; at most 300 million bytes"):
            read(empty[:8] + rich + empty[33:] + png_chunk(b"IEND", b""))
        same(read(endless), LEVELS / 255)
        assert tracemalloc.get_traced_memory()[1] < 150e6
    finally:
        tracemalloc.stop()


# --- JPEG -------------------------------------------------------------------------------------------------------------


def picture(height=120, width=150):
    """A picture that JPEG can hold, with noise, so that every block has something to say."""
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(0)
    waves = np.stack([120 + 70 * np.sin(x / 9), 120 + 70 * np.cos(y / 7), 60 + x + 0 * y], -1)
    return np.clip(waves + rng.normal(0, 12, waves.shape), 0, 255).astype(np.uint8)


def jpeg(mode="RGB", **options):
    buffer = io.BytesIO()
    Image.fromarray(picture()).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


OPTIONS = {
    "baseline": {},
    "progressive": {"progressive": True},
    "4:2:0": {"subsampling": 2},
    "4:4:4": {"subsampling": 0},
    "restarts": {"restart_marker_blocks": 3},
    "progressive with restarts": {"restart_marker_rows": 1, "progressive": True},
}


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", OPTIONS)
def test_jpeg_is_what_pillow_reads(read, mode, options):
    data = jpeg(mode, **OPTIONS[options])
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("L" if mode == "L" else "RGB"))
    same(read(data), expected.reshape(120, 150, -1) / 255, 1.1 / 127.5 if mode == "CMYK" else 1e-6)


def without_adobe(data):
    at = data.index(b"\xff\xee")
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


def test_inks_of_a_jpeg_are_inverted_only_where_adobe_says_so(read):
    inverted = jpeg("CMYK", quality=95)  # Pillow writes Adobe's marker and inverted inks
    light = picture() / 255
    assert np.abs((read(inverted) + 1) / 2 - light).mean() < 0.02
    inks = 255 - np.asarray(Image.fromarray(picture()).convert("CMYK"))
    buffer = io.BytesIO()
    Image.fromarray(inks, "CMYK").save(buffer, "JPEG", quality=95)  # Pillow inverts back: plain inks
    assert np.abs((read(without_adobe(buffer.getvalue())) + 1) / 2 - light).mean() < 0.02


def test_luminance_chroma_and_black_of_a_jpeg(read):
    """YCCK: the light that is left by black's, and the inks as red, green and blue in YCbCr; Adobe's transform 2."""
    inks = np.asarray(Image.fromarray(picture()).convert("CMYK"))
    first = np.asarray(Image.fromarray(np.ascontiguousarray(inks[..., :3])).convert("YCbCr"))
    stored = np.concatenate([first, 255 - inks[..., 3:]], axis=-1)
    buffer = io.BytesIO()
    Image.fromarray(255 - stored, "CMYK").save(buffer, "JPEG", quality=95)
    data = bytearray(buffer.getvalue())
    data[data.index(b"Adobe") + 11] = 2
    assert np.abs((read(bytes(data)) + 1) / 2 - picture() / 255).mean() < 0.02


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.7, 0.9, 0.97])
@pytest.mark.parametrize("ended", [False, True])
def test_a_cut_jpeg_is_refused_also_where_its_end_was_mended(read, mode, options, fraction, ended):
    data = jpeg(mode, **OPTIONS[options])
    with pytest.raises(ImageError, match="truncated"):
        read(data[: int(fraction * len(data))].rstrip(b"\xff") + (b"\xff\xd9" if ended else b""))


@pytest.mark.parametrize("options", ["restarts", "progressive with restarts"])
def test_a_jpeg_cut_at_a_restart_marker_is_refused(read, options):
    data = jpeg("L", **OPTIONS[options])
    marks = [at for at in range(len(data) - 1) if data[at] == 0xFF and 0xD0 <= data[at + 1] <= 0xD7]
    for at in (marks[len(marks) // 2], marks[-1], marks[-1] + 2):
        with pytest.raises(ImageError, match="truncated"):
            read(data[:at] + b"\xff\xd9")


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("options", ["restarts", "progressive with restarts"])
def test_a_jpeg_damaged_between_two_restart_markers_is_refused(read, mode, options):
    """Every other interval is whole, so the decoder goes on after the damage as if nothing were."""
    data = jpeg(mode, **OPTIONS[options])
    marks = [at for at in range(len(data) - 1) if data[at] == 0xFF and 0xD0 <= data[at + 1] <= 0xD7]
    for mark, following in list(itertools.pairwise(marks))[:3]:
        assert b"\xff\xc4" not in data[mark:following], "two scans"
        half = data[: (mark + following) // 2].rstrip(b"\xff")
        with pytest.raises(ImageError, match="truncated"):
            read(half + data[following:])
        for changed in (
            data[:mark] + data[following:],  # an interval lacks, so the numbers jump
            data[:mark] + data[marks[marks.index(mark) + 8] :],  # eight lack, so they do not
            data[:following] + data[mark:following] + data[following:],  # one is there twice
            data[:mark] + b"\xff\xd7" + data[mark + 2 :],
        ):
            with pytest.raises(ImageError, match="restart markers"):
                read(changed)
    plain = jpeg(mode)
    middle = plain.index(b"\xff\xda") + 2000
    with pytest.raises(ImageError, match="restart interval"):  # which no segment announces
        read(plain[:middle].rstrip(b"\xff") + b"\xff\xd0" + plain[middle:])


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("size", [(1, 1), (15, 33), (16, 32), (17, 8)])
def test_restart_intervals_of_any_size(read, rows, subsampling, size):
    for options in ({"restart_marker_rows": rows}, {"restart_marker_blocks": rows}):
        for progressive in (False, True):
            buffer = io.BytesIO()
            Image.fromarray(picture(*size)).save(
                buffer, "JPEG", subsampling=subsampling, progressive=progressive, **options
            )
            data = buffer.getvalue()
            expected = np.asarray(Image.open(io.BytesIO(data)))
            same(read(data), expected / 255, 1e-6)


@pytest.mark.skipif(shutil.which("jpegtran") is None, reason="jpegtran is not installed")
@pytest.mark.parametrize("options", [[], ["-progressive"], ["-restart", "1B"]])
def test_arithmetic_coding_leaves_out_zeros_at_the_end(read, options):
    for quality in range(60, 90, 5):
        data = jpeg("L", quality=quality)
        coded = subprocess.run(["jpegtran", "-arithmetic", *options], input=data, capture_output=True, check=True)
        np.testing.assert_array_equal(read(coded.stdout), read(data))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_whole_jpeg_is_read_whatever_stands_around_its_pixels(read, mode, options):
    data = jpeg(mode, **OPTIONS[options])
    expected = read(data)
    comment = b"\xff\xfe\0\x06abcd"
    for changed in (
        data[:-2],
        data + b"behind the end",
        data[:-2] + b"\0\0\0" + data[-2:],
        data[:2] + comment + data[2:],
        data[:-2] + b"\xff\xff\xff" + data[-2:],
        data + data,
    ):
        np.testing.assert_array_equal(read(changed), expected)


def test_other_jpegs_are_refused(read):
    data = jpeg("L")
    at = data.index(b"\xff\xc0")
    twelve = data[: at + 4] + b"\x0c" + data[at + 5 :]
    hierarchical = data[:at] + b"\xff\xc5" + data[at + 2 :]
    flat = data[: at + 5] + b"\0\0" + data[at + 7 :]
    for changed, says in ((twelve, "12 bits"), (hierarchical, "process 5"), (flat, "nothing to read")):
        with pytest.raises(ImageError, match=says):
            read(changed)


def exif(order, *entries):
    """EXIF with entries (tag, type, count, four bytes)."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    body = b"".join(struct.pack(f"{order}HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    return b"Exif\0\0" + mark + struct.pack(f"{order}IH", 8, len(entries)) + body + b"\0\0\0\0"


def with_segment(data, body):
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_a_jpeg(read, order, orientation):
    entry = (274, 3, 1, struct.pack(f"{order}HH", orientation, 0))
    data = jpeg("L")
    stored = Image.open(io.BytesIO(data))
    stored.getexif()[274] = orientation
    expected = np.asarray(stored.transpose(TURNS[orientation])) if orientation > 1 else np.asarray(stored)
    same(read(with_segment(data, exif(order, entry)))[..., 0], expected / 255)


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIXTH = (274, 3, 1, struct.pack("<HH", 6, 0))


@pytest.mark.parametrize(
    "body, turned",
    [
        (exif("<", (33434, 10, 1, struct.pack("<i", -1)), SIXTH), True),  # a signed rational that lies outside
        (exif("<", (282, 5, 1, struct.pack("<I", 2**31)), SIXTH), True),
        (exif("<", (282, 99, 2**31, b"\0\0\0\0"), SIXTH), True),
        (b"Exif\0\0" + exif("<", SIXTH), True),
        (exif("<", (274, 3, 1, struct.pack("<HH", 77, 0))), False),
        (exif("<", (274, 2, 1, b"6\0\0\0")), False),
        (exif("<", SIXTH)[:20], False),
        (exif("<", SIXTH)[:10], False),
        (b"Exif\0\0", False),
        (b"Exif\0\0QQ*\0" + bytes(30), False),
        (b"http://ns.adobe.com/xap/1.0/\0 no XML", False),
    ],
)
def test_broken_exif_does_not_matter(read, body, turned):
    assert read(with_segment(jpeg("L"), body)).shape == ((150, 120, 1) if turned else (120, 150, 1))


# --- TIFF -------------------------------------------------------------------------------------------------------------

WHITE_IS_ZERO, BLACK_IS_ZERO, TIFF_RGB, TIFF_PALETTE, INKS = 0, 1, 2, 3, 5
LAYOUTS = {
    "one strip": {},
    "strips": {"rows": 5},
    "tiles": {"tile": (16, 16)},
    "planar strips": {"planar": True, "rows": 8},
    "planar tiles": {"planar": True, "tile": (16, 16)},
    "big-endian": {"order": ">", "rows": 6},
    "BigTIFF": {"big": True, "rows": 6},
    "big-endian BigTIFF": {"big": True, "order": ">", "tile": (16, 32)},
}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO])
@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8, 10, 12, 14, 16])
def test_gray_tiff(read, bits, photometric, compression):
    levels = random_levels(*SIDES, 1, bits)
    unit = levels / (2.0**bits - 1)
    for layout in ({}, {"rows": 5}, {"tile": (16, 16)}, {"order": ">"}, {"big": True, "rows": 4}):
        same(read(tiff(levels, bits, photometric, compression, **layout)), unit if photometric else 1 - unit)


@pytest.mark.parametrize("compression", ["none", "LZW", "deflate"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bits, predictor", [(8, False), (8, True), (16, False), (16, True)])
@pytest.mark.parametrize("photometric, samples", [(BLACK_IS_ZERO, 1), (TIFF_RGB, 3)])
def test_layouts_of_a_tiff(read, compression, layout, bits, predictor, photometric, samples):
    levels = random_levels(*SIDES, samples, bits)
    data = tiff(levels, bits, photometric, compression, predictor=predictor, **LAYOUTS[layout])
    same(read(data), levels / (2.0**bits - 1))


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO])
def test_tiff_with_reversed_bits(read, bits, photometric):
    levels = random_levels(*SIDES, 1, bits)
    unit = levels / (2.0**bits - 1)
    same(read(tiff(levels, bits, photometric, reverse_bits=True)), unit if photometric else 1 - unit)


UNSPECIFIED, ASSOCIATED, UNASSOCIATED = 0, 1, 2


@pytest.mark.parametrize("layout", ["one strip", "tiles", "planar strips"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("extra", [UNSPECIFIED, ASSOCIATED, UNASSOCIATED])
@pytest.mark.parametrize("photometric, colors", [(WHITE_IS_ZERO, 1), (BLACK_IS_ZERO, 1), (TIFF_RGB, 3)])
def test_alpha_of_a_tiff(read, layout, bits, extra, photometric, colors):
    levels = random_levels(*SIDES, colors + 1, bits)
    if extra == ASSOCIATED:
        levels[..., :-1] = np.minimum(levels[..., :-1], levels[..., -1:])  # multiplied already
    data = tiff(levels, bits, photometric, tags=[(338, 3, [extra])], **LAYOUTS[layout])
    unit = levels / (2.0**bits - 1)
    color, alpha = unit[..., :-1], unit[..., -1:]
    if photometric == WHITE_IS_ZERO:
        if extra == ASSOCIATED:
            with pytest.raises(ImageError, match="with associated alpha"):
                read(data)
            return
        color = 1 - color
    same(read(data), color * alpha if extra == UNASSOCIATED else color)


@pytest.mark.parametrize("bits", [8, 16])
def test_inks_of_a_tiff(read, bits):
    levels = random_levels(*SIDES, 4, bits)
    light = 1 - levels / (2.0**bits - 1)
    same(read(tiff(levels, bits, INKS)), light[..., :3] * light[..., 3:], 1.01 / (2**bits - 1))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("factor", [257, 1, 201])
def test_palette_of_a_tiff(read, bits, factor):
    levels = random_levels(*SIDES, 1, bits)
    colors = np.random.default_rng(1).integers(0, 256, (3, 2**bits)) * factor
    colors[0, 0] = 255 * factor
    data = tiff(levels, bits, TIFF_PALETTE, tags=[(320, 3, colors.ravel().tolist())])
    same(read(data, "auto"), colors.T[levels[..., 0]] / (65535 if factor > 1 else 255))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_a_tiff(read, bits, orientation):
    levels = random_levels(*SIDES, 1, 8).astype(np.uint8 if bits == 8 else np.uint16)
    expected = Image.fromarray(levels[..., 0].astype(np.uint8))
    expected = np.asarray(expected.transpose(TURNS[orientation]) if orientation > 1 else expected)
    data = tiff(levels, bits, BLACK_IS_ZERO, tags=[(274, 3, [orientation])])
    same(read(data)[..., 0], expected / (2.0**bits - 1))


def test_tiff_of_several_pages_gives_the_first(read, tmp_path):
    pages = [Image.fromarray(random_levels(*SIDES, 1, 8, seed)[..., 0]) for seed in (0, 1)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    same(read((tmp_path / "pages.tif").read_bytes()), LEVELS / 255)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_in_a_tiff_is_what_pillow_reads(read, tmp_path, mode):
    path = tmp_path / "a.tif"
    Image.fromarray(picture()).convert(mode).save(path, compression="jpeg", quality=95)
    expected = np.asarray(Image.open(path)).reshape(120, 150, -1)
    same(read(path.read_bytes()), expected / 255, 2 / 127.5)


@pytest.mark.parametrize("compression", ["group3", "group4"])
def test_fax_in_a_tiff(read, tmp_path, compression):
    bits = np.zeros(SIDES, bool)
    bits[3:9, 5:20] = bits[12:, :4] = True
    Image.fromarray(bits).save(tmp_path / "a.tif", compression=compression)
    same(read((tmp_path / "a.tif").read_bytes())[..., 0], bits)


def gray_tiff(**options):
    return tiff(LEVELS, 8, BLACK_IS_ZERO, **options)


def cut(number, strip):
    return strip[: len(strip) // 2] if number == 1 else strip


def garbled(number, strip):
    return strip[:10] + bytes(byte ^ 0x5A for byte in strip[10:]) if number == 1 else strip


def sparse(number, strip):
    return b"" if number == 1 else strip


DAMAGE = [(change, name) for change in (cut, garbled, sparse) for name in COMPRESSIONS]
DAMAGE.remove((garbled, "none"))  # other bytes are other pixels


@pytest.mark.parametrize("change, compression", DAMAGE)
@pytest.mark.parametrize("bits", [1, 8, 12, 16])
@pytest.mark.parametrize("layout", ["strips", "tiles"])
def test_damaged_strips_are_refused(read, capfd, change, compression, bits, layout):
    levels = random_levels(*SIDES, 1, bits)
    data = tiff(levels, bits, BLACK_IS_ZERO, compression, change_strip=change, **LAYOUTS[layout])
    if change is garbled and compression in ("LZW", "PackBits"):
        _refused_or_whole(read, data)
    else:
        with pytest.raises(ImageError, match=r"truncated or damaged|damaged or unsupported"):
            read(data)
    assert capfd.readouterr().err == ""


def _refused_or_whole(read, data):
    """Neither has a checksum: what decodes to the right number of bytes cannot be told from pixels."""
    try:
        assert read(data).shape == (*SIDES, 1)
    except ImageError as error:
        assert "damaged" in str(error)


def test_lzw_that_breaks_off_is_refused(read):
    for count in (1, 5, 50):
        data = gray_tiff(compression="LZW", change_strip=lambda number, strip, n=count: lzw(bytes(n)))
        with pytest.raises(ImageError, match="damaged"):
            read(data)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_cut_jpeg_in_a_tiff_is_refused(read, tmp_path, mode):
    Image.fromarray(picture()).convert(mode).save(tmp_path / "a.tif", compression="jpeg")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    with Image.open(tmp_path / "a.tif") as file:
        (start, *_), (size, *_) = file.tag_v2[273], file.tag_v2[279]
    middle = start + size // 2
    data[middle : start + size] = b"\xff\xd9" + bytes(start + size - middle - 2)
    with pytest.raises(ImageError, match="damaged"):
        read(bytes(data))


def deep_tiff(bits, kind):
    """Samples of 8, 16, 32 or 64 bits of any type, put in by their bytes."""
    values = np.arange(SIDES[0] * SIDES[1]).reshape(*SIDES, 1)
    plain = values.astype({1: "u", 2: "i", 3: "f"}[kind] + str(bits // 8)).view(np.uint8).reshape(SIDES[0], -1, 1)
    fields = [(256, 4, [SIDES[1]]), (258, 3, [bits]), (339, 3, [kind])]
    return tiff(plain, 8, BLACK_IS_ZERO, tags=fields)


@pytest.mark.parametrize(
    "bits, kind, says",
    [
        (8, 2, "8-bit signed integers"),
        (16, 2, "16-bit signed integers"),
        (32, 1, "32-bit samples"),
        (64, 1, "64-bit samples"),
        (16, 3, "16-bit floating-point"),
        (32, 3, "32-bit floating-point"),
    ],
)
def test_other_numbers_are_unsupported(read, bits, kind, says):
    with pytest.raises(ImageError, match=f"unsupported TIFF .*{says}"):
        read(deep_tiff(bits, kind))


UNSUPPORTED = {
    "YCbCr": (tiff(random_levels(*SIDES, 3, 8), 8, 6, tags=[(530, 3, [1, 1])]), "YCbCr"),
    "CIELAB": (tiff(random_levels(*SIDES, 3, 8), 8, 8), "PhotometricInterpretation 8"),
    "inks without names": (tiff(random_levels(*SIDES, 5, 8), 8, INKS, tags=[(332, 3, [2])]), "inks"),
    "two samples of RGB": (tiff(random_levels(*SIDES, 2, 8), 8, TIFF_RGB), "2 samples"),
    "mixed depths": (tiff(random_levels(*SIDES, 3, 8), 8, TIFF_RGB, tags=[(258, 3, [8, 8, 16])]), "8 and 16 bits"),
    "short palette": (tiff(LEVELS, 8, TIFF_PALETTE, tags=[(320, 3, [0] * 30)]), "palette"),
    "compression of another world": (gray_tiff(tags=[(259, 3, [4711])]), "damaged or unsupported"),
    "pixels outside": (gray_tiff(tags=[(273, 4, [2**31])]), "outside the file"),
    "huge": (gray_tiff(tags=[(256, 4, [19_000]), (257, 4, [19_000])]), "19000 x 19000 pixels; at most"),
    "just not huge": (gray_tiff(tags=[(256, 4, [9_000]), (257, 4, [9_000])]), "damaged"),
    "wide": (gray_tiff(tags=[(256, 4, [2**31])]), "at most"),
    "huge tiles": (gray_tiff(tile=(16, 16), tags=[(322, 4, [2**30]), (323, 4, [2**30])]), "at most|damaged"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_cannot_be_read_of_tiff(read, capfd, name):
    data, says = UNSUPPORTED[name]
    with pytest.raises(ImageError, match=says):
        read(data)
    assert capfd.readouterr().err == ""


def test_a_film_of_12_bits_in_16_is_no_ghost(read):
    levels = random_levels(*SIDES, 1, 12)
    levels[0, 0] = 300
    low, high = levels.min(), levels.max()
    for data in (png(levels, 16, GRAY), tiff(levels, 16, BLACK_IS_ZERO), tiff(levels, 12, BLACK_IS_ZERO)):
        same(read(data, "auto"), (levels - float(low)) / (float(high) - low))
    same(read(tiff(levels, 16, WHITE_IS_ZERO), "auto"), (float(high) - levels) / (float(high) - low))
    same(read(png(levels, 16, GRAY)), levels / 65535)
    same(read(png(levels, 16, GRAY, before=[(b"sBIT", b"\x10")]), "auto"), levels / 65535)
    same(read(png(levels, 16, GRAY, before=[(b"sBIT", b"\x0c")]), "auto"), (levels - float(low)) / (float(high) - low))
    same(read(png(levels, 16, GRAY), "1024,2049"), np.clip(levels / 2048 + 0.5 - 1023.5 / 2048, 0, 1))
    eight = random_levels(*SIDES, 1, 4)
    same(read(png(eight, 8, GRAY), "auto"), eight / 255)


def test_a_transparent_border_does_not_bear_on_the_range(read):
    levels = np.full((*SIDES, 2), 65535, np.uint16)
    levels[:, 5:, 0] = random_levels(SIDES[0], SIDES[1] - 5, 1, 12)[..., 0]
    levels[:, :5, 1] = 0
    found = read(png(levels, 16, GRAY_ALPHA), "auto")[..., 0]
    assert (found[:, :5] == -1).all()
    np.testing.assert_allclose(found[:, 5:], levels[:, 5:, 0] / 4095 * 2 - 1, atol=1e-5)


# --- what a file is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.dcm", "a.png", "a.jpg", "a.tif", "a", "a.DICOM"])
def test_contents_decide_whatever_the_name(read, tmp_path, name):
    for data in (png(LEVELS, 8, GRAY), gray_tiff()):
        same(read(data, name=name), LEVELS / 255)
        assert not images.is_dicom(tmp_path / name)
    assert read(jpeg(), name=name).shape == (120, 150, 3)


@pytest.mark.parametrize(
    "start, says", [(b"RIFF\0\0\0\0WEBPVP8 ", "a WebP"), (b"GIF89a", "a GIF"), (b"BM", "a BMP"), (b"%PDF-1.7", "a PDF")]
)
def test_other_formats_are_named(read, start, says):
    with pytest.raises(ImageError, match=f"not a PNG, JPEG, TIFF or DICOM image, but {says} file"):
        read(start + bytes(100), name="a.png")


def test_the_limits_are_those_of_one_place():
    assert images.MAX_SIDE == image_limits.MAX_SIDE
