"""DICOM pixels, against the standard's formulas in NumPy, bytes made by hand, and DCMTK's `dcm2pnm` if installed."""

import io
import shutil
import subprocess
import time
import zlib

import numpy as np
import pytest
from test_images import write_dicom

from r2c_gan.data import images, plausibility
from r2c_gan.data.image_limits import ImageError, NotAnImageError

pydicom = pytest.importorskip("pydicom", reason="DICOM needs the extra 'dicom'")

from pydicom import uid  # noqa: E402
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402

from r2c_gan.data import dicom  # noqa: E402

SIZE = (18, 22)
DEPTHS = [(8, 8), (8, 6), (16, 8), (16, 10), (16, 12), (16, 15), (16, 16), (32, 16), (32, 24), (32, 32)]
KINDS = ["MONOCHROME1", "MONOCHROME2"]


@pytest.fixture(autouse=True)
def as_in_the_wild(monkeypatch):
    """Files may break rules here: pydicom is not to check what the tests write."""
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.IGNORE)
    monkeypatch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.IGNORE)


def ends_of(stored, signed):
    return (-(2 ** (stored - 1)), 2 ** (stored - 1) - 1) if signed else (0, 2**stored - 1)


def ramp(stored, signed):
    """Every part of the range of stored values, both ends too."""
    return np.rint(np.linspace(*ends_of(stored, signed), SIZE[0] * SIZE[1])).astype(np.int64).reshape(SIZE)


def packed(values, allocated, stored, high=None, noise=False):
    """Values in containers of unsigned integers; `noise` fills the bits that are not theirs."""
    shift = (stored - 1 if high is None else high) + 1 - stored
    containers = (values % 2**stored) << shift
    if noise:
        others = np.random.default_rng(0).integers(0, 2**allocated, values.shape)
        containers = containers | (others & ~((2**stored - 1) << shift))
    return containers.astype(f"<u{allocated // 8}")


def write(path, values, allocated=16, stored=12, signed=False, high=None, noise=False, **elements):
    elements = {"HighBit": stored - 1 if high is None else high, "PixelRepresentation": int(signed), **elements}
    return write_dicom(path, packed(values, allocated, stored, high, noise), stored, **elements)


def read(path, window="full"):
    return images.read_file(path, window=window).pixels[..., 0]


def lut_item(first, table, bits, kind="US"):
    """A LUT; `kind` US: numbers, OW: words, packed: two entries in a word."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(table) % 2**16, first % 2**16, bits])
    if kind == "US":
        item.add_new("LUTData", "US", [int(entry) for entry in table])
    elif kind == "OW":
        item.add_new("LUTData", "OW", np.asarray(table, "<u2").tobytes())
    else:
        item.add_new("LUTData", "OW", np.asarray(table, np.uint8).tobytes())
    return item


def linear(values, center, width):
    """PS3.3 C.11.2.1.2.1, the pseudo-code with an output of -1 to 1."""
    below = values <= center - 0.5 - (width - 1) / 2
    above = values > center - 0.5 + (width - 1) / 2
    inside = ((values - (center - 0.5)) / max(width - 1, 1) + 0.5) * 2 - 1
    return np.select([below, above], [-1.0, 1.0], inside)


def curve(count, bits):
    return np.rint(np.sqrt(np.linspace(0, 1, count)) * (2**bits - 1)).astype(int)


# --- Every depth, sign and interpretation ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("allocated", "stored"), DEPTHS)
def test_depths(tmp_path, allocated, stored, signed, kind):
    values = ramp(stored, signed)
    low, high = ends_of(stored, signed)
    sign = -1 if kind == "MONOCHROME1" else 1
    both = {"allocated": allocated, "stored": stored, "signed": signed, "PhotometricInterpretation": kind}

    got = read(write(tmp_path / "plain.dcm", values, **both))
    np.testing.assert_allclose(got, sign * ((values - low) / (high - low) * 2 - 1), atol=2e-6)

    center, width = (low + high) / 3 + 1, (high - low) / 2
    window = {"WindowCenter": f"{center:.10g}", "WindowWidth": f"{width:.10g}"}
    got = read(write(tmp_path / "window.dcm", values, **both, **window))
    np.testing.assert_allclose(got, sign * linear(values, center, width), atol=1e-5)

    slope = {"RescaleSlope": "-0.5", "RescaleIntercept": "7", "RescaleType": "US"}
    got = read(write(tmp_path / "rescale.dcm", values, **both, **slope))
    np.testing.assert_allclose(got, sign * ((high - values) / (high - low) * 2 - 1), atol=2e-6)

    for bits in (8, 12, 16):
        count = min(2**stored, 3000)
        first, table = max(low, -1500), curve(count, bits)
        expected = table[np.clip(values - first, 0, count - 1)] / (2**bits - 1) * 2 - 1
        for sequence in ("VOILUTSequence", "ModalityLUTSequence"):
            elements = {sequence: [lut_item(first, table, bits)]}
            got = read(write(tmp_path / "lut.dcm", values, **both, **elements))
            np.testing.assert_allclose(got, sign * expected, atol=2e-6, err_msg=f"{sequence}, {bits} bits")


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    ("allocated", "stored", "high"), [(16, 12, 15), (16, 12, 13), (16, 12, 11), (8, 6, 7), (32, 16, 27)]
)
def test_high_bit_and_foreign_bits(tmp_path, allocated, stored, high, signed):
    """Bits outside of the stored ones may hold overlays, or nothing where the sign should be."""
    values = ramp(stored, signed)
    low, top = ends_of(stored, signed)
    for noise in (False, True):
        path = write(tmp_path / "a.dcm", values, allocated, stored, signed, high, noise)
        np.testing.assert_allclose(read(path), (values - low) / (top - low) * 2 - 1, atol=2e-6)


# --- LUTs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "kind"), [(8, "US"), (8, "OW"), (8, "packed"), (10, "OW"), (12, "US"), (14, "OW"), (16, "OW")]
)
@pytest.mark.parametrize("count", [255, 4096, 2**16])
def test_lut_storage(tmp_path, bits, kind, count):
    if kind == "US" and count > 2**15:
        pytest.skip("a value of type US with an explicit VR holds less than 64 KiB")
    values, table = ramp(12, False), curve(count, bits)
    path = write(tmp_path / "a.dcm", values, VOILUTSequence=[lut_item(100, table, bits, kind)])
    expected = table[np.clip(values - 100, 0, count - 1)] / (2**bits - 1) * 2 - 1
    np.testing.assert_allclose(read(path), expected, atol=1e-6)


def test_lut_after_a_rescale_with_a_negative_first_value(tmp_path):
    values, table = ramp(12, False), curve(2000, 16)
    elements = {"RescaleSlope": 1, "RescaleIntercept": -1024, "VOILUTSequence": [lut_item(-500, table, 16)]}
    expected = table[np.clip(values - 1024 + 500, 0, 1999)] / 65535 * 2 - 1
    np.testing.assert_allclose(read(write(tmp_path / "a.dcm", values, **elements)), expected, atol=1e-6)


def test_a_lut_without_data_is_none(tmp_path):
    values, empty = ramp(12, False), Dataset()
    empty.add_new("LUTDescriptor", "US", [0, 0, 16])
    empty.add_new("LUTData", "OW", b"")
    for sequence in ([], [empty], [Dataset()]):
        path = write(tmp_path / "a.dcm", values, VOILUTSequence=sequence, WindowCenter=2000, WindowWidth=2500)
        np.testing.assert_allclose(read(path), linear(values, 2000, 2500), atol=1e-6)
        path = write(tmp_path / "a.dcm", values, ModalityLUTSequence=sequence)
        np.testing.assert_allclose(read(path), values / 2047.5 - 1, atol=1e-6)


def test_big_endian_files(tmp_path):
    """Explicit VR Big Endian is retired, and still met. Packed entries: the word's lower byte first, in any order."""
    values, table = ramp(12, False), curve(4096, 8)
    item = lut_item(0, table, 8, "packed")
    item.LUTData = np.frombuffer(item.LUTData, "<u2").astype(">u2").tobytes()
    dataset = pydicom.dcmread(write(tmp_path / "a.dcm", values, VOILUTSequence=[item]))
    for element in dataset.iterall():
        element.value  # noqa: B018 - parsed before it is written in the other order
    dataset.PixelData = packed(values, 16, 12).astype(">u2").tobytes()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRBigEndian
    pydicom.dcmwrite(tmp_path / "b.dcm", dataset, implicit_vr=False, little_endian=False)
    np.testing.assert_allclose(read(tmp_path / "b.dcm"), table[values] / 127.5 - 1, atol=1e-6)


# --- Windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("elements", "formula"),
    [
        ({"WindowCenter": 2000, "WindowWidth": 2500, "VOILUTFunction": ""}, lambda x: linear(x, 2000, 2500)),
        ({"WindowCenter": 2000, "WindowWidth": 1}, lambda x: np.where(x > 1999.5, 1.0, -1.0)),
        ({"WindowCenter": ["2000", "9"], "WindowWidth": ["2500", "9"]}, lambda x: linear(x, 2000, 2500)),
        (
            {"WindowCenter": 2000, "WindowWidth": 2500, "VOILUTFunction": "LINEAR_EXACT"},
            lambda x: np.clip((x - 2000) / 2500 * 2, -1, 1),
        ),
        (
            {"WindowCenter": 2000, "WindowWidth": 0.5, "VOILUTFunction": "LINEAR_EXACT"},
            lambda x: np.clip((x - 2000) / 0.5 * 2, -1, 1),
        ),
        (
            {"WindowCenter": 2000, "WindowWidth": 900, "VOILUTFunction": "sigmoid"},
            lambda x: 2 / (1 + np.exp(-4 * (x - 2000) / 900)) - 1,
        ),
        ({"WindowCenter": None, "WindowWidth": ""}, lambda x: x / 2047.5 - 1),
        ({"WindowCenter": 2000, "WindowWidth": 0}, lambda x: x / 2047.5 - 1),
        ({"RescaleSlope": "", "RescaleIntercept": ""}, lambda x: x / 2047.5 - 1),
        ({"RescaleSlope": 2}, lambda x: x / 2047.5 - 1),
        ({"RescaleIntercept": -100, "WindowCenter": 2000, "WindowWidth": 2500}, lambda x: linear(x - 100, 2000, 2500)),
        ({"PresentationLUTShape": "INVERSE"}, lambda x: x / 2047.5 - 1),
        ({"PhotometricInterpretation": "monochrome2"}, lambda x: x / 2047.5 - 1),
        ({"PhotometricInterpretation": "monochrome1 "}, lambda x: 1 - x / 2047.5),
        ({"NumberOfFrames": ""}, lambda x: x / 2047.5 - 1),
    ],
)
def test_what_headers_say_of_values(tmp_path, elements, formula):
    values = ramp(12, False)
    elements = {name: "" if value is None else value for name, value in elements.items()}
    np.testing.assert_allclose(read(write(tmp_path / "a.dcm", values, **elements)), formula(values), atol=2e-6)


def test_the_window_that_the_caller_wants(tmp_path):
    values = ramp(10, False) + 500  # 500 to 1523 of 4095
    plain = write(tmp_path / "plain.dcm", values)
    windowed = write(tmp_path / "windowed.dcm", values, WindowCenter=1000, WindowWidth=400, RescaleSlope=2)
    occupied = (values - 500) / 1023 * 2 - 1
    own = linear(2 * values, 1000, 400)
    for path, window, expected in [
        (plain, "full", values / 2047.5 - 1),
        (plain, "auto", occupied),
        (plain, "min-max", occupied),
        (plain, "800,301", linear(values, 800, 301)),
        (windowed, "full", own),
        (windowed, "auto", own),
        (windowed, "min-max", occupied),
        (windowed, "800,301", linear(2 * values, 800, 301)),
    ]:
        np.testing.assert_allclose(read(path, window), expected, atol=2e-6, err_msg=f"{path.stem} {window}")
    assert read(plain, "percentile").min() == -1 and read(plain, "percentile").max() == 1
    assert images.read_file(windowed).scaling == "window of the file"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("vr", "value", "limit"),
    [("SS", -2000, None), ("US", 63536, None), ("SS", -2000, -1900), ("SS", -1900, -2000), ("US", 63636, 63536)],
)
def test_padding_is_black_and_does_not_count(tmp_path, vr, value, limit, kind):
    """The same bits, as a signed and as an unsigned number."""
    values = ramp(12, True) // 4 + 600  # 88 to 1111
    values[:4] = -2000
    values[4:6] = -2000 if limit is None else -1950
    path = write(tmp_path / "a.dcm", values, 16, 16, True, PhotometricInterpretation=kind)
    dataset = pydicom.dcmread(path)
    dataset.add_new("PixelPaddingValue", vr, value)
    if limit is not None:
        dataset.add_new("PixelPaddingRangeLimit", vr, limit)
    dataset.save_as(path)
    shown = read(path, "auto")
    assert (shown[:6] == -1).all()
    lowest, highest = values[6:].min(), values[6:].max()
    expected = (values[6:] - lowest) / (highest - lowest) * 2 - 1
    np.testing.assert_allclose(shown[6:], -expected if kind == "MONOCHROME1" else expected, atol=2e-6)


def test_padding_of_shifted_values_is_compared_with_values_alone(tmp_path):
    """16 in the upper 12 of 16 bits is 256 in its container; the container 16 holds the value 1."""
    values = ramp(12, False)
    values[0, :3] = 0, 1, 16
    shown = read(write(tmp_path / "a.dcm", values, high=15, PixelPaddingValue=16))
    expected = np.where(values == 16, -1, values / 2047.5 - 1)
    np.testing.assert_allclose(shown, expected, atol=1e-6)


def test_padding_above_the_stored_bits(tmp_path):
    """65535 in pixels of 12 bits is padding; the brightest pixel, 4095, is none."""
    values = ramp(12, False)
    containers = packed(values, 16, 12)
    containers[0] = 65535
    shown = read(write_dicom(tmp_path / "a.dcm", containers, 12, PixelPaddingValue=65535))
    assert (shown[0] == -1).all() and shown[-1, -1] == 1


# --- Refused, for the true reason ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, "RescaleSlope is 0"),
        ({"RescaleSlope": "nan"}, "RescaleSlope is .*finite number"),
        ({"RescaleSlope": "1e308", "RescaleIntercept": "1e308"}, "leave no range"),
        ({"WindowCenter": 5, "WindowWidth": -400}, "WindowWidth is -400"),
        ({"WindowCenter": 5, "WindowWidth": 0.5}, "WindowWidth is 0.5"),
        ({"WindowCenter": 5, "WindowWidth": 5, "VOILUTFunction": "CUBIC"}, "VOILUTFunction CUBIC is not supported"),
        ({"HighBit": 5}, "HighBit 5 with BitsStored 12"),
        ({"HighBit": 16}, "HighBit 16"),
        ({"BitsStored": 17}, "BitsStored 17 in BitsAllocated 16"),
        ({"BitsStored": 0}, "BitsStored 0"),
        ({"BitsAllocated": 12}, "BitsAllocated 12 is not supported"),
        ({"BitsAllocated": 64}, "BitsAllocated 64 is not supported"),
        ({"BitsStored": None}, "BitsStored is missing"),
        ({"PixelRepresentation": 2}, "PixelRepresentation 2"),
        ({"NumberOfFrames": "2"}, "2 frames"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"),
        ({"PhotometricInterpretation": None}, "PhotometricInterpretation missing"),
        ({"SamplesPerPixel": 3}, "SamplesPerPixel 3"),
        ({"Rows": 60000}, "60000 pixels; at most"),
        ({"Rows": 15000, "Columns": 15000}, "million in all"),
        ({"Rows": 0}, "nothing to read"),
        ({"Rows": 17}, "bytes; .* expected.*too many"),
        ({"Rows": 19}, "cut short"),
        ({"PixelPaddingValue": [1, 2]}, "PixelPaddingValue has 2 values"),
        ({"PixelData": None}, "without pixels"),
    ],
)
def test_refused_for_the_true_reason(tmp_path, elements, reason):
    path = write(tmp_path / "a.dcm", ramp(12, False), **elements)
    with pytest.raises(ImageError, match=reason) as caught:
        images.read_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "pip install" not in str(caught.value) and "force" not in str(caught.value)


def test_a_lut_that_contradicts_itself(tmp_path):
    values, short = ramp(12, False), lut_item(0, curve(100, 12), 12)
    short.LUTDescriptor = [200, 0, 12]
    deep = lut_item(0, curve(100, 12), 20)
    lost = lut_item(0, curve(100, 12), 12)
    del lost.LUTDescriptor
    for item, reason in [(short, "100 entries.*says 200"), (deep, "20 bits"), (lost, "3 numbers")]:
        with pytest.raises(ImageError, match=reason):
            read(write(tmp_path / "a.dcm", values, VOILUTSequence=[item]))
        assert read(tmp_path / "a.dcm", "min-max").max() == 1  # who asks for another range can have it


@pytest.mark.parametrize(
    ("keyword", "value", "text"),
    [("RescaleSlope", "1.53", "1,53"), ("WindowCenter", "1234", "five"), ("NumberOfFrames", "1 ", "1A")],
)
def test_text_where_a_number_should_be(tmp_path, keyword, value, text):
    path = write(tmp_path / "a.dcm", ramp(12, False), **{"WindowWidth": "55", keyword: value})
    tag = pydicom.tag.Tag(keyword)
    start = path.read_bytes().index(tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little"))
    data = path.read_bytes()
    path.write_bytes(data[:start] + data[start:].replace(value.encode(), text.encode(), 1))
    with pytest.raises(ImageError, match=f'{keyword} is "{text}"; a number is expected'):
        images.read_image(path)


def test_values_that_cannot_be_parsed(tmp_path):
    """Bytes by hand: Rows of three bytes, Columns of an unknown VR."""
    data = write(tmp_path / "a.dcm", ramp(12, False)).read_bytes()
    rows = data.index(b"\x28\0\x10\0US")
    three = data[:rows] + b"\x28\0\x10\0US\x03\0" + data[rows + 8 : rows + 10] + b"\0" + data[rows + 10 :]
    unknown = data.replace(b"\x28\0\x11\0US", b"\x28\0\x11\0ZZ")
    for broken, reason in [(three, "Rows cannot be read"), (unknown, "Columns ")]:
        (tmp_path / "a.dcm").write_bytes(broken)
        with pytest.raises(ImageError, match=rf"a\.dcm: {reason}"):
            images.read_image(tmp_path / "a.dcm")


def test_without_a_preamble(tmp_path):
    data = write(tmp_path / "a.dcm", ramp(12, False)).read_bytes()
    (tmp_path / "a.dcm").write_bytes(data[132:])
    with pytest.raises(ImageError, match="not supported: a DICOM data set without the preamble"):
        images.read_image(tmp_path / "a.dcm")


def deflated(path, change=lambda packed: packed):
    """The file in Deflated Explicit VR Little Endian; `change` is done to the deflated bytes."""
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    data = path.read_bytes()
    start = 144 + int.from_bytes(data[140:144], "little")
    path.write_bytes(data[:start] + change(data[start:]))
    return path


def test_deflated_files(tmp_path, monkeypatch):
    values = ramp(12, False)
    path = deflated(write(tmp_path / "a.dcm", values))
    np.testing.assert_allclose(read(path), values / 2047.5 - 1, atol=1e-6)
    zeros = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = zeros.compress(bytes(10_000_000)) + zeros.flush()
    monkeypatch.setattr(dicom, "MAX_BYTES", 5_000_000)
    for change, reason in [
        (lambda data: data[: len(data) // 2], "cut short"),
        (lambda data: data[:50] + b"\xff" * 40 + data[90:], "damaged"),
        (lambda data: bomb, "more than 5 MB"),
    ]:
        path = deflated(write(tmp_path / "a.dcm", values), change)
        with pytest.raises(ImageError, match=f"the deflated data set .*{reason}"):
            images.read_image(path)
        assert dicom.header(path.read_bytes()) is None


def test_a_header_alone(tmp_path):
    data = write(tmp_path / "a.dcm", ramp(12, False)).read_bytes()
    assert (dicom.header(data).Rows, dicom.header(data[:-300]).Columns) == SIZE
    assert dicom.header(b"no DICOM") is None


@pytest.mark.parametrize("intercept", [0, -1, -100])
def test_a_large_first_value_of_a_lut_where_few_values_are_negative(tmp_path, intercept):
    """39999 is no -25537, below all that there can be."""
    values, table = ramp(12, False) + 40000, curve(4096, 12)
    item = lut_item(40000 + intercept, table, 12)
    path = write(tmp_path / "a.dcm", values, 16, 16, RescaleSlope=1, RescaleIntercept=intercept, VOILUTSequence=[item])
    np.testing.assert_allclose(read(path), table[values - 40000] / 2047.5 - 1, atol=1e-6)


@pytest.mark.parametrize("kind", ["elements", "zeros", "undefined", "nested", "in one", "deflated"])
def test_many_elements_are_refused_before_they_are_read(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(dicom, "MAX_ELEMENTS", 2000)
    path = write(tmp_path / "a.dcm", ramp(12, False))
    data = path.read_bytes()
    start = data.index(b"\x08\0")
    if kind == "deflated":
        data = deflated(path).read_bytes()
        start = 144 + int.from_bytes(data[140:144], "little")
    item = b"\xfe\xff\0\xe0"
    few = b"".join(b"\x09\0" + (0x1000 + number).to_bytes(2, "little") + b"LO\0\0" for number in range(256))
    many = few * 1000  # 2 MB, 256,000 elements
    sequence = b"\x08\0\x40\x11SQ\0\0"
    end = b"\xfe\xff\xdd\xe0\0\0\0\0"
    added = {
        "elements": many,
        "zeros": bytes(50_000_000),
        "undefined": sequence + b"\xff" * 4 + item + len(many).to_bytes(4, "little") + many + end,
        "nested": sequence + (len(many) + 8).to_bytes(4, "little") + item + len(many).to_bytes(4, "little") + many,
        "in one": sequence
        + b"\xff" * 4
        + item
        + (len(many) + 20).to_bytes(4, "little")
        + sequence
        + (len(many) + 8).to_bytes(4, "little")
        + item
        + len(many).to_bytes(4, "little")
        + many
        + end,
        "deflated": many,
    }[kind]
    if kind == "deflated":
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        data = data[:start] + packer.compress(many) + packer.flush()
    else:
        data = data[:start] + added + data[start:]
    path.write_bytes(data)
    begin = time.process_time()
    with pytest.raises(ImageError, match=r"more than 2,000 data elements"):
        images.read_image(path)
    assert dicom.header(data) is None
    assert time.process_time() - begin < 2


@pytest.mark.parametrize("high", [11, 15, 13])
@pytest.mark.parametrize("signed", [False, True])
def test_rle_holds_containers_as_uncompressed_pixels_do(tmp_path, high, signed):
    """Bits beside the stored ones, as those of an overlay, are no pixels."""
    values = ramp(12, signed)
    path = write(tmp_path / "a.dcm", values)
    dataset = pydicom.dcmread(path)
    containers = packed(values, 16, 12, high, noise=True)
    dataset.HighBit, dataset.PixelRepresentation = high, int(signed)
    dataset.PixelData = pydicom.encaps.encapsulate([rle(containers)])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    dataset.file_meta.TransferSyntaxUID = uid.RLELossless
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    low, top = ends_of(12, signed)
    np.testing.assert_allclose(read(path), (values - low) / (top - low) * 2 - 1, atol=1e-6)


def rle(containers):
    """A frame of 16 bits: literal runs alone, the high bytes' segment and the low bytes' (PS3.5 Annex G)."""
    segments = []
    for plane in (containers >> 8, containers & 0xFF):
        rows = [row.astype(np.uint8).tobytes() for row in plane]
        segment = b"".join(bytes([len(row) - 1]) + row for row in rows)
        segments.append(segment + b"\0" * (len(segment) % 2))
    offsets = [2, 64, 64 + len(segments[0])] + [0] * 13
    return np.array(offsets, "<u4").tobytes() + b"".join(segments)


def test_a_file_that_ends_inside_of_an_element_is_damaged(tmp_path):
    """The length of an element takes in the rest, and what says that it is a radiograph."""
    path = write(tmp_path / "a.dcm", ramp(12, False))
    data = path.read_bytes()
    start = data.index(b"\x08\0")
    path.write_bytes(data[:start] + b"\x08\0\x08\0CS\xff\xff" + data[start:])
    with pytest.raises(ImageError, match=r"ends inside of the element \(0008,0008\)") as caught:
        plausibility.read_film(path)
    assert not isinstance(caught.value, NotAnImageError)


def jpeg(levels):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def with_stream(path, levels, streams, **elements):
    write_dicom(path, levels, 8, **elements)
    dataset = pydicom.dcmread(path)
    dataset.PixelData = pydicom.encaps.encapsulate(streams)
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    dataset.save_as(path)
    return path


def test_compressed_streams_are_whole_and_of_the_size_that_the_header_says(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (64, 80), np.uint8)
    stream, path = jpeg(levels), tmp_path / "a.dcm"
    whole = read(with_stream(path, levels, [stream]))
    np.testing.assert_array_equal(read(with_stream(path, levels, [stream.removesuffix(b"\xff\xd9")])), whole)
    half = stream[: len(stream) // 2]
    for streams, elements, reason in [
        ([half], {}, "ends too early"),
        ([half + b"\xff\xd9"], {}, "ends too early"),
        ([jpeg(levels[:32])], {}, "80 x 32, the header says 80 x 64"),
        ([stream, stream], {}, "2 frames"),
        ([stream], {"BitsStored": 7, "HighBit": 6}, "exceed BitsStored 7"),
        ([b"\0" * 100], {}, "cannot be decoded"),
    ]:
        with pytest.raises(ImageError, match=reason):
            read(with_stream(path, levels, streams, **elements))


def test_a_jpeg_2000_stream_of_another_size_is_not_allocated(tmp_path):
    pytest.importorskip("openjpeg", reason="JPEG 2000 needs pylibjpeg-openjpeg")
    dataset = pydicom.dcmread(write(tmp_path / "a.dcm", np.kron(ramp(12, False), np.ones((4, 4), int))))
    dataset.compress(uid.JPEG2000Lossless, generate_instance_uid=False)
    start = dataset.PixelData.index(b"\xff\x4f\xff\x51") + 8
    huge = (60000).to_bytes(4, "big") * 2
    dataset.PixelData = dataset.PixelData[:start] + huge + dataset.PixelData[start + 8 :]
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(tmp_path / "a.dcm")
    with pytest.raises(ImageError, match="60000 x 60000, the header says 88 x 72"):
        images.read_image(tmp_path / "a.dcm")


@pytest.mark.parametrize("length", [0, 1, 200])
def test_a_jp2_box_of_no_length_ends(tmp_path, length):
    """pydicom looks for the pixels from box to box, and would not come past this one."""
    dataset = pydicom.dcmread(write(tmp_path / "a.dcm", ramp(12, False)))
    boxes = b"\0\0\0\x0cjP  \r\n\x87\n" + length.to_bytes(4, "big") + b"ftypjp2 "
    dataset.PixelData = pydicom.encaps.encapsulate([boxes])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = uid.JPEG2000Lossless
    dataset.save_as(tmp_path / "a.dcm")
    with pytest.raises(ImageError, match="damaged JP2 box"):
        images.read_image(tmp_path / "a.dcm")


def test_an_unknown_object_is_named_in_print(tmp_path):
    dataset = pydicom.dcmread(write(tmp_path / "a.dcm", ramp(12, False), PixelData=None, Rows=None))
    dataset.SOPClassUID = "1.2\x1b[2J"
    dataset.save_as(tmp_path / "a.dcm")
    with pytest.raises(ImageError, match="without pixels") as caught:
        images.read_image(tmp_path / "a.dcm")
    assert str(caught.value).isprintable()
    assert dicom.unlike_chest_radiograph(dataset).isprintable()


def test_an_unknown_transfer_syntax_is_said(tmp_path):
    dataset = pydicom.dcmread(write(tmp_path / "a.dcm", ramp(12, False)))
    dataset.PixelData = pydicom.encaps.encapsulate([b"film"])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = uid.MPEG2MPML
    pydicom.dcmwrite(tmp_path / "a.dcm", dataset)
    with pytest.raises(ImageError, match=r"the transfer syntax MPEG2 .* is not supported"):
        images.read_image(tmp_path / "a.dcm")


@pytest.mark.parametrize(
    ("class_uid", "name"),
    [
        ("1.2.840.10008.1.3.10", "Media Storage Directory"),
        ("1.2.840.10008.5.1.4.1.1.88.11", "Basic Text SR"),
        ("1.2.840.10008.5.1.4.1.1.11.1", "Presentation State"),
    ],
)
def test_objects_without_pixels_are_no_images(tmp_path, class_uid, name):
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID, dataset.file_meta.MediaStorageSOPInstanceUID = class_uid, "1.2.3"
    if name != "Media Storage Directory":
        dataset.SOPClassUID = class_uid
    dataset.PatientName = "Doe^J"
    pydicom.dcmwrite(tmp_path / "DICOMDIR", dataset, enforce_file_format=True)
    with pytest.raises(NotAnImageError, match=f"{name}.*holds no picture"):
        images.read_image(tmp_path / "DICOMDIR")


def test_a_radiograph_cut_before_its_pixels_is_damaged(tmp_path):
    data = write(tmp_path / "a.dcm", ramp(12, False)).read_bytes()
    (tmp_path / "a.dcm").write_bytes(data[: data.index(b"\xe0\x7f\x10\0")])
    with pytest.raises(ImageError, match="cut short") as caught:
        images.read_image(tmp_path / "a.dcm")
    assert not isinstance(caught.value, NotAnImageError)


# --- An independent reader -------------------------------------------------------------------------------------------


def dcmtk(path, *options):
    """What DCMTK shows, as 16-bit levels."""
    output = path.with_suffix(".pgm")
    subprocess.run(["dcm2pnm", *options, "--write-16-bit-pnm", str(path), str(output)], check=True, capture_output=True)
    return images.cv2.imread(str(output), images.cv2.IMREAD_UNCHANGED)


@pytest.mark.skipif(not shutil.which("dcm2pnm"), reason="DCMTK is not installed")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("signed", [False, True])
def test_dcmtk_agrees(tmp_path, signed, kind):
    values = ramp(12, signed) // 3 + 100
    low, _ = ends_of(12, signed)
    elements = {
        "WindowCenter": 500,
        "WindowWidth": 700,
        "RescaleSlope": "1.5",
        "RescaleIntercept": "-20",
        "RescaleType": "US",
        "VOILUTSequence": [lut_item(max(low, 0), curve(900, 16), 16, "OW")],
        "PhotometricInterpretation": kind,
        "signed": signed,
    }
    lut = write(tmp_path / "lut.dcm", values, **{**elements, "RescaleSlope": "1", "RescaleIntercept": "0"})
    del elements["VOILUTSequence"]
    window = write(tmp_path / "window.dcm", values, **elements)
    for path, ours, options in [
        (window, "auto", ["+Wi", "1"]),
        (window, "min-max", ["+Wm"]),
        (window, "300,200", ["+Ww", "300", "200"]),
        (lut, "auto", ["+Wl", "1"]),
    ]:
        theirs = dcmtk(path, *options) / 65535 * 2 - 1
        # DCMTK rounds rescaled values and works in whole levels.
        np.testing.assert_allclose(read(path, ours), theirs, atol=0.012, err_msg=f"{path.stem} {ours}")
