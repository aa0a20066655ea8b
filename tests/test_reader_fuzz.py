"""Mutated files of every kind: the reader gives pixels in [-1, 1] or an `ImageError`, nothing else, and soon."""

import io
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from raster_files import png, png_chunk, random_levels, tiff

from r2c_gan.data import images
from r2c_gan.data.images import ImageError

SIDES = (20, 27)
SECONDS = 20  # for one file, on a machine that does much else


def test_500_mutated_files(tmp_path):
    read_mutations(tmp_path, 500)


@pytest.mark.slow
def test_5000_mutated_files(tmp_path):
    read_mutations(tmp_path, 5000, seed=1)


def read_mutations(folder, count, seed=0):
    sources = [*raster_sources(), *dicom_sources()]
    path, read = folder / "mutated", 0
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        data = mutated(sources[number % len(sources)], rng)
        path.write_bytes(data)
        started = time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                file = images.read_file(path, (None, 1, 3)[number % 3], WINDOWS[number % len(WINDOWS)])
        except ImageError as error:
            assert str(error).startswith(f"{path}: "), f"number {number}: {error}"
            assert "\n" not in str(error), f"number {number}: {error}"
        except Exception as error:
            raise AssertionError(f"number {number}: {type(error).__name__} escaped") from error
        else:
            read += 1
            pixels = file.pixels
            assert pixels.dtype == np.float32 and pixels.ndim == 3 and pixels.size, f"number {number}"
            assert np.isfinite(pixels).all() and np.abs(pixels).max() <= 1, f"number {number}"
        assert time.monotonic() - started < SECONDS, f"number {number} takes too long"
    assert 0.05 * count < read < 0.95 * count  # neither are all refused nor is all passed over


WINDOWS = ("full", "auto", "min-max", "percentile", "100,80")


def raster_sources():
    kinds = [(1, 0, 1), (8, 0, 1), (16, 0, 1), (8, 2, 3), (16, 2, 3), (16, 4, 2), (8, 6, 4)]
    for number, (bits, color, samples) in enumerate(kinds):
        yield png(random_levels(*SIDES, samples, bits), bits, color, interlaced=number % 2 == 1)
    chunks = [(b"PLTE", bytes(range(192))), (b"tRNS", bytes(range(40)))]
    yield png(random_levels(*SIDES, 1, 4), 8, 3, before=chunks)
    y, x = np.mgrid[:40, :53]
    picture = np.stack([x * 4, y * 5, (x * y) % 200], -1).astype(np.uint8)
    for mode, options in [
        ("L", {}),
        ("RGB", {"progressive": True}),
        ("RGB", {"restart_marker_blocks": 2, "subsampling": 2}),
        ("CMYK", {}),
    ]:
        exif = Image.Exif()
        exif[274], exif[282] = 6, 72.0
        buffer = io.BytesIO()
        Image.fromarray(picture).convert(mode).save(buffer, "JPEG", exif=exif, **options)
        yield buffer.getvalue()
    for bits, photometric, samples, options in [
        (1, 0, 1, {"compression": "deflate"}),
        (8, 0, 1, {"compression": "LZW", "rows": 6}),
        (12, 1, 1, {"order": ">"}),
        (16, 1, 1, {"tile": (16, 16), "compression": "LZW", "predictor": True}),
        (16, 2, 3, {"planar": True, "rows": 7, "compression": "PackBits"}),
        (8, 2, 4, {"tags": [(338, 3, [2]), (274, 3, [5])], "big": True}),
        (4, 3, 1, {"tags": [(320, 3, list(range(0, 48 * 1300, 1300)))]}),
        (8, 5, 4, {"compression": "deflate", "rows": 3}),
    ]:
        yield tiff(random_levels(*SIDES, samples, bits), bits, photometric, **options)
    for compression in ("jpeg", "group4"):
        buffer = io.BytesIO()
        Image.fromarray(picture).convert("1" if compression == "group4" else "RGB").save(
            buffer, "TIFF", compression=compression
        )
        yield buffer.getvalue()


def dicom_sources():
    try:
        import pydicom
    except ImportError:  # the extra is not installed: the other formats are still tried
        return
    from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    def lut(first):
        item = pydicom.Dataset()
        item.LUTDescriptor, item.LUTData = [256, first, 12], np.arange(0, 4096, 16, dtype=np.uint16).tobytes()
        return [item]

    for syntax, bits, signed, elements in [
        (ExplicitVRLittleEndian, 12, False, {"WindowCenter": 2000, "WindowWidth": 3000}),
        (ImplicitVRLittleEndian, 16, True, {"RescaleSlope": 2, "RescaleIntercept": -7, "PixelPaddingValue": 5}),
        (DeflatedExplicitVRLittleEndian, 12, False, {"PhotometricInterpretation": "MONOCHROME1"}),
        (ExplicitVRLittleEndian, 10, False, {"VOILUTSequence": lut(100)}),
        (ExplicitVRLittleEndian, 16, False, {"ModalityLUTSequence": lut(0), "VOILUTFunction": "SIGMOID"}),
    ]:
        meta = pydicom.dataset.FileMetaDataset()
        meta.TransferSyntaxUID = syntax
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3"
        dataset = pydicom.Dataset()
        dataset.file_meta = meta
        dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = meta.MediaStorageSOPClassUID, "1.2.3", "CR"
        dataset.BodyPartExamined, dataset.PatientName = "CHEST", "Nobody^Real"
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = *SIDES, 1
        dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", int(signed)
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
        dataset.PixelData = random_levels(*SIDES, 1, bits).astype("<u2").tobytes()
        dataset["PixelData"].VR = "OW"
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
        yield buffer.getvalue()


def mutated(data, rng):
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        kind = rng.integers(7)
        # Half of the places lie in headers, which are at either end.
        reach = min(len(data), 400) if rng.integers(2) else len(data)
        place = int(rng.integers(reach)) if rng.integers(4) else len(data) - 1 - int(rng.integers(min(reach, 300)))
        if kind == 0:
            data[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[place] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFE, 0xFF, rng.integers(256)]))
        elif kind == 2 and len(data) > 40:
            del data[max(20, place) :]
        elif kind == 3:
            del data[place : place + int(rng.integers(1, 9))]
        elif kind == 4:
            data[place:place] = rng.bytes(int(rng.integers(1, 9)))
        elif kind == 5:
            size = int(rng.choice([2, 4]))
            number = int(rng.choice([0, 1, 2**15, 2**16 - 1, rng.integers(2**16)])) << (16 if size == 4 else 0)
            data[place : place + size] = number.to_bytes(size, "big" if rng.integers(2) else "little")
        else:
            other = int(rng.integers(len(data)))
            size = int(rng.integers(1, 30))
            data[place : place + size] = data[other : other + size]
        if not data:
            data = bytearray(b"\0")
    data = bytes(data)
    return mended(data) if rng.integers(3) else data


def mended(data):
    """A PNG with right checksums, so that what was changed reaches the decoder."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        body = data[at + 8 : at + 8 + length]
        kind = data[at + 4 : at + 8]
        if kind == b"IDAT" and len(body) > 6:  # the stream's own checksum, too
            try:
                rows = zlib.decompressobj().decompress(body)
                body = zlib.compress(rows[:7] + b"\3" + rows[8:])
            except zlib.error:
                pass
        parts.append(png_chunk(kind, body))
        at += 12 + length
    return b"".join(parts)
