"""DICOM files that were changed at random: whatever comes, `read` and `derived` answer or refuse, and say so."""

import io
import random
import warnings

import numpy as np
import pytest

from r2c_gan.data.image_limits import ImageError
from r2c_gan.data.window import Window

pydicom = pytest.importorskip("pydicom", reason="DICOM needs the extra 'dicom'")

from pydicom import config, uid  # noqa: E402
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402

from r2c_gan.data import derived_dicom, dicom  # noqa: E402

# Values that real headers hold where they should not, and the ends of what fits.
NUMBERS = [0, 1, 2, 7, 8, 11, 12, 15, 16, 17, 31, 32, 255, 256, 4095, 32767, 32768, 65535]
TEXTS = [
    *("", " ", "0", "-1", "1A", "1,5", "nan", "inf", "-inf", "1e308", "1e-320", "2147483647", "-2147483648"),
    *(
        "99999999999999999999",
        "1\\2",
        "\\",
        "\\\\\\",
        "\0\0",
        "é",
        "\x1b$B",
        "ISO_IR 999",
        "ISO 2022 IR 87",
        "ISO_IR 192",
    ),
    *("MONOCHROME1", "monochrome2", "RGB", "YBR_FULL_422", "PALETTE COLOR", "SIGMOID", "LINEAR_EXACT", "YES", "CHEST"),
    *("20240229", "20240230", "064Y", "1.2.3", "1.2.840.10008.1.2", "1.2.840.10008.5.1.4.1.1.1.1", "A" * 70, "=cmd|1"),
]
VRS = ["CS", "DS", "IS", "US", "SS", "UL", "FD", "UI", "LO", "PN", "DA", "TM", "SQ", "UN", "OW", "OB", "UT", "AT", "ZZ"]


def sources():
    """Small files of the kinds that are read: bare, with windows, LUTs and padding, compressed, deflated, in colour."""
    levels = np.linspace(0, 4095, 16 * 20).astype(np.uint16).reshape(16, 20)
    lut = Dataset()
    lut.LUTDescriptor, lut.LUTData = [4096, 0, 12], np.arange(4096, dtype=np.uint16).tobytes()
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "51185008", "SCT", "Thorax"
    plain = _source(levels)
    yield _bytes(plain)
    rich = {
        "WindowCenter": [2000, 1],
        "WindowWidth": [900, 1],
        "VOILUTFunction": "LINEAR",
        "RescaleSlope": 1,
        "RescaleIntercept": -5,
        "PixelPaddingValue": 3,
        "PixelPaddingRangeLimit": 5,
        "NumberOfFrames": 1,
        "PixelSpacing": [0.1, 0.1],
        "PixelAspectRatio": [1, 2],
        "SeriesNumber": 3,
        "ImageType": ["ORIGINAL", "PRIMARY"],
        "SpecificCharacterSet": "ISO_IR 100",
        "BurnedInAnnotation": "NO",
        "PixelIntensityRelationshipSign": 1,
        "AnatomicRegionSequence": [code],
        "Manufacturer": "Maker",
    }
    yield _bytes(_source(levels, **rich))
    yield _bytes(_source(levels, VOILUTSequence=[lut], ModalityLUTSequence=[lut]))
    compressed = _source(levels, **rich)
    compressed.compress(uid.RLELossless, generate_instance_uid=False)
    yield _bytes(compressed)
    deflated = _source(levels, **rich)
    deflated.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    yield _bytes(deflated)
    implicit = _source(levels, **rich)
    implicit.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
    yield _bytes(implicit)
    yield _bytes(_source(np.repeat(levels[..., None] >> 4, 3, axis=-1).astype(np.uint8)))


def _source(levels, **elements):
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3.3"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.Modality = "1.2.3.1", "1.2.3.2", "CR"
    dataset.PatientName, dataset.PatientID, dataset.AccessionNumber = "Doe^Jane", "P-4711", "ACC99"
    dataset.Rows, dataset.Columns = levels.shape[:2]
    dataset.SamplesPerPixel = 3 if levels.ndim == 3 else 1
    if levels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = "RGB" if levels.ndim == 3 else "MONOCHROME2"
    dataset.BitsAllocated = 8 * levels.dtype.itemsize
    dataset.BitsStored = 8 if levels.dtype == np.uint8 else 12
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, 0
    dataset.PixelData = levels.tobytes()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def _bytes(dataset):
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def mutated(data, draw):
    """One or two changes: of bytes, of the length, or of a whole element in the encoding of Explicit VR."""
    data = bytearray(data)
    for _ in range(draw.randint(1, 2)):
        kind = min(draw.randrange(12), 5)  # what moves the bytes behind it makes most files unreadable
        # Most of a header lies before the pixels; the preamble means nothing.
        place = draw.randrange(132, min(len(data), 1500)) if len(data) > 140 else 0
        if kind == 0:
            data[place] = draw.randrange(256)
        elif kind == 1:
            data[place : place + 2] = draw.choice(NUMBERS).to_bytes(2, "little")
        elif kind == 2:
            del data[draw.randrange(132, len(data) + 1) if len(data) > 132 else 0 :]
        elif kind == 3:
            data[place:place] = draw.randbytes(draw.randint(1, 9))
        elif kind == 4:
            del data[place : place + draw.randint(1, 9)]
        else:
            _replace_element(data, draw)
    return bytes(data)


def _replace_element(data, draw):
    """Another VR or another value for one of the elements of two-byte lengths."""
    starts = [
        start
        for start in range(132, min(len(data) - 8, 1500))
        if data[start + 1] == 0 and data[start : start + 2] != b"\0\0" and bytes(data[start + 4 : start + 6]).isalpha()
    ]
    if not starts:
        return
    start = draw.choice(starts)
    length = int.from_bytes(data[start + 6 : start + 8], "little")
    if draw.random() < 0.3:
        data[start + 4 : start + 6] = draw.choice(VRS).encode()
        return
    value = draw.choice(NUMBERS).to_bytes(2, "little") if draw.random() < 0.4 else draw.choice(TEXTS).encode()
    value += b" " * (len(value) % 2)
    data[start + 6 : start + 8 + length] = len(value).to_bytes(2, "little") + value


def attempt(data, number, tmp_path):
    """Reads, and derives and writes what could be read; returns what became of it."""
    window = Window.parse(("full", "auto", "min-max", "percentile", "1000,500")[number % 5])
    try:
        pixels, dataset, scaling, _ = dicom.read("a.dcm", data, window)
    except ImageError as error:
        said = str(error)
        assert said.startswith("a.dcm: ") and said.isprintable() and "pip install" not in said and "force=" not in said
        return "refused"
    assert pixels.dtype == np.float32 and pixels.ndim == 3 and pixels.shape[-1] in (1, 3) and scaling
    assert np.isfinite(pixels).all() and np.abs(pixels).max() <= 1
    dicom.unlike_chest_radiograph(dataset)
    patient = "ANON-0001" if number % 2 else None
    try:
        new, _ = derived_dicom.derived(dataset, pixels, "Restored.", "salt", patient)
    except ValueError:
        return "not derived"
    try:
        derived_dicom.write(tmp_path / "b.dcm", new)
    except ImageError:
        return "not written"
    if patient:
        written = (tmp_path / "b.dcm").read_bytes()
        assert not any(secret in written for secret in (b"Doe^J", b"P-4711", b"ACC99"))
    return "derived"


def attempt_many(seeds, tmp_path):
    outcomes = {}
    originals = list(sources())
    for original in originals:
        assert attempt(original, 0, tmp_path) == "derived"
    for seed in seeds:
        draw = random.Random(seed)
        data = mutated(draw.choice(originals), draw)
        try:
            outcome = attempt(data, seed, tmp_path)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return outcomes


@pytest.fixture(autouse=True)
def as_users_have_it(monkeypatch):
    """Without the test suite's rule that warnings are errors, and with pydicom's own settings."""
    monkeypatch.setattr(config.settings, "reading_validation_mode", config.WARN)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_nothing_escapes(tmp_path):
    outcomes = attempt_many(range(500), tmp_path)
    assert outcomes["refused"] > 50 and outcomes["derived"] > 50, outcomes


@pytest.mark.slow
def test_nothing_escapes_from_many(tmp_path):
    outcomes = attempt_many(range(500, 5500), tmp_path)
    assert outcomes["refused"] > 500 and outcomes["derived"] > 500, outcomes
