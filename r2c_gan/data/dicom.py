"""DICOM files: their pixels as a radiologist would be shown them.

Needs pydicom (the extra `dicom`). `images.read_image` is the door for reading. Attributes are called by their keywords
in DICOM PS3.6.
"""

import copy
import importlib.util
import io
import struct
import warnings
import zlib

import numpy as np

from r2c_gan.data.dicom_grayscale import Depth, HeaderError, integer, rescaled, said, value_of, windowed
from r2c_gan.data.image_limits import MAX_PIXELS, ImageError, NotAnImageError, check_size
from r2c_gan.data.window import warning

MAX_BYTES = 8 * MAX_PIXELS
"""The most bytes that a deflated file may hold."""

MAX_ELEMENTS = 20_000
"""The most data elements that a file may hold, those inside of sequences too. A radiograph has some hundred."""

_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_JPEG = {f"1.2.840.10008.1.2.4.{end}" for end in ("50", "51", "57", "70", "80", "81")}  # JPEG and JPEG-LS
_DEFLATED = b"\x02\0\x10\0UI\x16\0001.2.840.10008.1.2.1.99"  # the element TransferSyntaxUID
_INFLATED = _DEFLATED[:-3] + b"\0\0\0"  # Explicit VR Little Endian
_PIXEL_DATA = 0x7FE00010
_ITEMS = {True: b"\xfe\xff\0\xe0", False: b"\xff\xfe\xe0\0"}  # what a sequence begins with; little endian?


def read(path, data, window):
    """DICOM bytes -> (float32 [H, W, 1 or 3] in [-1, 1], the dataset without its pixels, scaling, warning).

    The grayscale pipeline of DICOM PS3.3 (C.11.1, C.11.2) and PS3.4 (N.2): modality LUT or rescale, then the first VOI
    LUT or window of the file, or else what `window` says, then MONOCHROME1 is inverted, once. "full" is the range of
    BitsStored after rescaling. Pixels of PixelPaddingValue become black.

    Args:
        path: names the file in messages.
        data: its bytes.
        window: a `Window`; "full" and "auto" leave a VOI LUT or window of the file its precedence.

    Returns:
        The image, the dataset, and `scaling` and `warning` of `window.Scaled`.

    Raises:
        NotAnImageError: if it is a DICOM object without pixels by its kind: a directory, report, presentation state.
        ImageError: if it is no image of one frame that can be shown.
    """
    try:
        import pydicom  # noqa: F401
    except ImportError as error:
        raise ImageError(f"{path}: DICOM needs pydicom; pip install r2c-gan[dicom]") from error
    silence_pydicom()
    try:
        dataset = _parsed(data)
        _require_image(path, dataset)
        image, scaling, says = _shown(path, dataset, window)
        del dataset.PixelData
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"{path}: not enough memory to decode it") from error
    except HeaderError as error:
        raise ImageError(f"{path}: {_printable(error)}") from error
    except Exception as error:  # pydicom parses values when they are first touched, and raises many kinds
        raise ImageError(f"{path}: damaged DICOM file ({_printable(said(error))})") from error
    return (image[..., None] if image.ndim == 2 else image), dataset, scaling, says


def header(data):
    """The dataset of DICOM bytes without its pixels; None if they are none, or too damaged. Values may still not parse.

    It is as bounded as `read`: by `MAX_BYTES` of a deflated file and `MAX_ELEMENTS`.
    """
    try:
        silence_pydicom()
        return _parsed(data, stop_before_pixels=True)
    except (ImportError, HeaderError, MemoryError):
        return None


def _printable(text):
    """Text in which nothing of a file can move a terminal's cursor."""
    return "".join(sign if sign.isprintable() else "?" for sign in str(text))


def silence_pydicom():
    """Turns off pydicom's warnings: what is wrong with a file is said once, with its name, by an exception.

    Warning filters belong to the process: to set them back after a call would be wrong where other threads are reading.
    """
    warnings.filterwarnings("ignore", module=r"pydicom\b")


# --- The file ---------------------------------------------------------------------------------------------------------


def _parsed(data, stop_before_pixels=False):
    import pydicom

    if data[128:132] != b"DICM":
        raise HeaderError(_without_prefix(data))
    data, deflated = _inflated(data)
    try:
        dataset = pydicom.dcmread(_Bounded(data), stop_before_pixels=stop_before_pixels)
        _check_elements(dataset)
    except HeaderError:
        raise
    except Exception as error:  # many kinds, all about these bytes
        raise HeaderError(f"not a readable DICOM file ({said(error)})") from error
    if not getattr(dataset, "file_meta", {}).get("TransferSyntaxUID"):
        raise HeaderError("not a readable DICOM file (its File Meta Information names no TransferSyntaxUID)")
    if deflated:
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    return dataset


class _Bounded(io.BytesIO):
    """Bytes that are not read without end: pydicom takes 1 to 3 readings for an element, and goes on to the last."""

    def __init__(self, data):
        super().__init__(data)
        self._left = 3 * MAX_ELEMENTS

    def read(self, *size):
        self._left -= 1
        if self._left < 0:
            raise _too_many()
        return super().read(*size)


def _too_many():
    return HeaderError(f"not a readable DICOM file (it has more than {MAX_ELEMENTS:,} data elements)")


def _check_elements(dataset):
    """Raises if an element is cut short, or sequences that pydicom parses later hold too many elements."""
    left = MAX_ELEMENTS
    for tag, element in _elements(dataset):
        value = element.value
        if tag == _PIXEL_DATA or not isinstance(value, bytes) or not hasattr(element, "is_little_endian"):
            continue  # pixels are checked when they are decoded; others are parsed
        if element.length != 0xFFFFFFFF and len(value) < element.length:
            raise HeaderError(
                f"damaged DICOM file (it ends inside of the element {tag}, which would have {element.length:,} bytes)"
            )
        if value.startswith(_ITEMS[element.is_little_endian]):
            left -= _count(value, "<" if element.is_little_endian else ">", element.is_implicit_VR, left)


def _elements(dataset):
    """(tag, element) of a dataset and of the sequences in it that are parsed; nothing else is parsed for it."""
    for tag, element in dataset.items():
        yield tag, element
        if element.VR == "SQ" and not isinstance(element.value, bytes | None):
            for item in element.value:
                yield from _elements(item)


def _count(data, order, implicit, limit):
    """How many elements and items a sequence has, at all depths: those inside lie between the headers of the outer."""
    header, position, count = struct.Struct(f"{order}HH2sH"), 0, 0
    while position + 8 <= len(data):
        count += 1
        if count > limit:
            raise _too_many()
        group, _, vr, length = header.unpack_from(data, position)
        long = struct.unpack_from(f"{order}I", data, position + 4)[0]
        position += 8
        if group == 0xFFFE:  # an item or the end of one or of a sequence
            continue
        if implicit or not vr.isalpha():
            length = long
        elif vr in _LONG_VRS and position + 4 <= len(data):
            length = struct.unpack_from(f"{order}I", data, position)[0]
            position += 4
        if length != 0xFFFFFFFF and data[position : position + 4] != _ITEMS[order == "<"]:
            position += length
    return count


_LONG_VRS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}


def _without_prefix(data):
    if data[:2] in (b"\x02\0", b"\x08\0") and data[3:4] == b"\0":  # an element of group 2 or 8, little endian
        return (
            "not supported: a DICOM data set without the preamble and File Meta Information of a DICOM file; "
            "DCMTK's dcmconv adds them"
        )
    return "not a readable DICOM file (no DICM at byte 128)"


def _inflated(data):
    """(the file with its data set inflated, whether it was deflated), piece by piece: pydicom would take what comes."""
    if _DEFLATED not in data[132:4096]:
        return data, False
    if data[132:140] != b"\x02\0\0\0UL\x04\0":
        raise HeaderError("not a readable DICOM file (its File Meta Information has no group length)")
    start = 144 + struct.unpack_from("<I", data, 140)[0]
    inflater, pieces, total, rest = zlib.decompressobj(-zlib.MAX_WBITS), [], 0, data[start:]
    try:
        while rest and not inflater.eof:
            pieces.append(inflater.decompress(rest, 1 << 20))
            total += len(pieces[-1])
            rest = inflater.unconsumed_tail
            if total > MAX_BYTES:
                raise HeaderError(f"the deflated data set holds more than {MAX_BYTES // 1_000_000} MB")
    except zlib.error as error:
        raise HeaderError(f"the deflated data set is damaged ({error})") from error
    if not inflater.eof:
        raise HeaderError("the deflated data set is cut short")
    return b"".join([data[:start].replace(_DEFLATED, _INFLATED, 1), *pieces]), True


def _require_image(path, dataset):
    """Raises if there are no pixels: `NotAnImageError` if the object is of a kind that has none."""
    if "PixelData" in dataset:
        return
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        raise HeaderError("floating point pixels are not supported")
    from pydicom.uid import UID_dictionary

    class_uid = _header_text(dataset, "SOPClassUID") or _header_text(dataset.file_meta, "MediaStorageSOPClassUID")
    name = _class_name(class_uid)
    if class_uid not in UID_dictionary or "Image Storage" in name or "Rows" in dataset:
        for keyword in ("NumberOfFrames", "Rows", "Columns", "BitsAllocated"):  # one may have swallowed the rest
            integer(dataset, keyword, 0)
        raise HeaderError("a DICOM file without pixels (no PixelData); cut short?")
    raise NotAnImageError(f"{path}: a DICOM file of another kind ({name}), which holds no picture")


# --- Pixels -----------------------------------------------------------------------------------------------------------


def _shown(path, dataset, window):
    """The image, [H, W] or [H, W, 3] in [-1, 1], and `scaling` and `warning` of `window.Scaled`."""
    frames = integer(dataset, "NumberOfFrames", 1)
    if frames > 1:
        raise HeaderError(f"{frames} frames; a DICOM file with one frame is expected")
    check_size(path, integer(dataset, "Rows", 0), integer(dataset, "Columns", 0))
    kind = _header_text(dataset, "PhotometricInterpretation")
    if kind not in ("MONOCHROME1", "MONOCHROME2", *_COLOUR):
        raise HeaderError(f"PhotometricInterpretation {kind or 'missing'}; MONOCHROME1, MONOCHROME2 or RGB expected")
    dataset.PhotometricInterpretation = kind  # as the standard spells it, for those who read the dataset
    samples = 3 if kind in _COLOUR else 1
    if integer(dataset, "SamplesPerPixel", samples) != samples:
        raise HeaderError(
            f"SamplesPerPixel {integer(dataset, 'SamplesPerPixel')} with PhotometricInterpretation {kind}"
        )
    depth = Depth.of(dataset)
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored"):  # integers, whatever the type that the file gave
        dataset.add_new(keyword, "US", integer(dataset, keyword))
    if kind in _COLOUR:  # it has neither a modality nor a VOI transformation
        if depth.signed or depth.high != depth.stored - 1:
            raise HeaderError("colour pixels that are signed or shifted are not supported")
        scaled = window.scale(_decoded(dataset, depth, kind), depth.ends, depth.stored > 8)
        return scaled.pixels, scaled.scaling, scaled.warning

    containers = _decoded(dataset, depth, kind)
    stored = depth.values(containers)
    padding = depth.padding(dataset, containers, stored)
    valid = None if padding is None else ~padding
    image, scaling = _by_its_own_window(dataset, stored, depth) if window.prefers_own else (None, None)
    if image is None:
        values, full = rescaled(dataset, stored, depth.ends)
        scaled = window.scale(values, full, depth.stored > 8, valid)
        image, scaling, says = scaled.pixels, scaled.scaling, scaled.warning
    else:
        says = warning(image, valid)
    if kind == "MONOCHROME1":
        image = -image
    if padding is not None:
        image[padding] = -1
    return image, scaling, says


def _by_its_own_window(dataset, stored, depth):
    """`windowed` of stored values, float32 in [-1, 1]; (None, None) if the header has neither VOI LUT nor window."""
    low, high = depth.ends
    few = depth.stored <= 16  # one entry for each value that there can be is less work than one for each pixel
    values, full = rescaled(dataset, np.arange(low, high + 1) if few else stored, depth.ends)
    shown, scaling = windowed(dataset, values, full[0])
    if shown is None:
        return None, None
    shown = (shown * 2 - 1).astype(np.float32)
    return (shown[stored.astype(np.int32) - low] if few else shown), scaling


def _decoded(dataset, depth, kind):
    """Containers of gray pixels, [H, W] integers; of colour the values, [H, W, 3], YBR become RGB."""
    from pydicom.dataset import Dataset
    from pydicom.pixels import get_decoder
    from pydicom.uid import RLELossless

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise HeaderError(f"the transfer syntax {syntax.name} is not supported") from error
    if not decoder.is_available:
        installed = all(map(importlib.util.find_spec, ("pylibjpeg", "libjpeg", "openjpeg")))
        hint = "not supported" if installed else "needs a decoder; pip install r2c-gan[dicom]"
        raise HeaderError(f"the transfer syntax {syntax.name}: {hint}")

    # Only what bears on the pixels, checked and spelt as the standard does.
    pixels = Dataset()
    pixels.file_meta = dataset.file_meta
    pixels.Rows, pixels.Columns = integer(dataset, "Rows"), integer(dataset, "Columns")
    pixels.PhotometricInterpretation, pixels.SamplesPerPixel = kind, 3 if kind in _COLOUR else 1
    pixels.BitsAllocated, pixels.BitsStored, pixels.HighBit = depth.allocated, depth.stored, depth.high
    pixels.PixelRepresentation = int(depth.signed)
    if kind in _COLOUR:
        pixels.PlanarConfiguration = integer(dataset, "PlanarConfiguration", 0)
    pixels.add(dataset["PixelData"])
    if not isinstance(pixels.PixelData, bytes):
        raise HeaderError("PixelData are no bytes")
    if syntax.is_encapsulated:
        _check_stream(pixels, depth)
    else:
        _check_length(pixels)
    array = _array(decoder, pixels)
    if syntax.is_encapsulated:
        # RLE holds the containers as they are; their other bits are cut off as in uncompressed pixels.
        gray = kind not in _COLOUR and not depth.signed and syntax != RLELossless
        if gray and int(array.max()) > depth.ends[1]:
            raise HeaderError(f"the decoded pixels exceed BitsStored {depth.stored}")
        if syntax in _JPEG and not np.array_equal(array, _array(decoder, _with_noise(pixels))):
            raise HeaderError("the DICOM pixels cannot be decoded (the JPEG stream ends too early)")
    return array


def _array(decoder, pixels):
    gray = pixels.SamplesPerPixel == 1
    options = {"raw": True, "correct_unused_bits": False} if gray else {}
    try:
        return decoder.as_array(pixels, index=0, allow_excess_frames=False, **options)[0]
    except MemoryError:
        raise
    except Exception as error:  # pydicom and its decoder plugins raise many kinds, all about these pixels
        raise HeaderError(f"the DICOM pixels cannot be decoded ({said(error)})") from error


def _with_noise(pixels):
    """The same with other bytes behind the JPEG stream's last: decoders fill up what is missing, and say nothing."""
    from pydicom import encaps

    stream = encaps.get_frame(pixels.PixelData, 0, number_of_frames=1).rstrip(b"\0").removesuffix(b"\xff\xd9")
    noise = bytes(np.random.default_rng(0).integers(0, 255, 4096, np.uint8))  # no 255: no marker
    other = copy.copy(pixels)
    other.PixelData = encaps.encapsulate([stream + noise + b"\xff\xd9"])
    other["PixelData"].is_undefined_length = True
    return other


def _check_length(pixels):
    """Uncompressed pixels fill their frame, but for padding."""
    samples = 2 if pixels.PhotometricInterpretation == "YBR_FULL_422" else pixels.SamplesPerPixel
    row = pixels.Columns * samples * pixels.BitsAllocated // 8
    expected, there = pixels.Rows * row, len(pixels.PixelData)
    if there < expected:
        raise HeaderError(f"the DICOM pixels cannot be decoded ({there} bytes; {expected} expected): cut short?")
    if there >= expected + max(row, 2):
        raise HeaderError(f"the DICOM pixels cannot be decoded ({there} bytes; {expected} expected): too many")


def _check_stream(pixels, depth):
    """A compressed stream is of one frame and of the size that the header says, before anything is allocated for it."""
    from pydicom import encaps
    from pydicom.uid import RLELossless

    try:
        offsets = encaps.parse_basic_offsets(pixels.PixelData)
        stream = encaps.get_frame(pixels.PixelData, 0, number_of_frames=1)
    except Exception as error:  # many kinds, all about these bytes
        raise HeaderError(f"the DICOM pixels cannot be decoded ({said(error)})") from error
    if len(offsets) > 1:
        raise HeaderError(f"{len(offsets)} frames in the compressed pixels; one is expected")
    if pixels.file_meta.TransferSyntaxUID == RLELossless:
        return
    if depth.high != depth.stored - 1:
        raise HeaderError(f"HighBit {depth.high} with BitsStored {depth.stored} in compressed pixels is not supported")
    _check_boxes(stream)
    size = _stream_size(stream)
    if size is not None and size != (pixels.Rows, pixels.Columns):
        raise HeaderError(
            f"the compressed pixels are {size[1]} x {size[0]}, the header says {pixels.Columns} x {pixels.Rows}"
        )


def _check_boxes(stream):
    """The boxes before the pixels of a JP2 file have lengths: pydicom would walk over one of 0 bytes for ever."""
    position = 12
    while stream.startswith(b"\0\0\0\x0cjP  ") and stream[position + 4 : position + 8] != b"jp2c":
        length = int.from_bytes(stream[position : position + 4], "big")
        if length < 8 or position + length >= len(stream):
            raise HeaderError("the DICOM pixels cannot be decoded (damaged JP2 box)")
        position += length


def _stream_size(stream):
    """(height, width) of a JPEG, JPEG-LS or JPEG 2000 stream, from its header; None if that is not found."""
    start = stream.find(b"\xff\x4f\xff\x51")  # JPEG 2000: SOC, SIZ; in a JP2 box too
    if start >= 0 and not stream.startswith(b"\xff\xd8"):
        if len(stream) < start + 24:
            return None
        width, height, left, top = struct.unpack_from(">4I", stream, start + 8)
        return height - top, width - left
    position = 2
    while position + 9 <= len(stream) and stream[position] == 0xFF:
        marker = stream[position + 1]
        if marker == 0xFF:  # filling
            position += 1
            continue
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            height, width = struct.unpack_from(">HH", stream, position + 5)
            return (height, width) if height else None  # 0: said after the first scan
        position += 2 + struct.unpack_from(">H", stream, position + 2)[0]
    return None


# --- What the header says it shows -----------------------------------------------------------------------------------

_RADIOGRAPHS = {"CR", "DX", "RG"}  # computed, digital, conventional (digitised film)
_UNSAID = {"", "OT", "SC", "UNKNOWN", "OTHER", "ANY"}
_RADIOGRAPH_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.1",  # computed radiography
    "1.2.840.10008.5.1.4.1.1.1.1",  # digital radiography for presentation
    "1.2.840.10008.5.1.4.1.1.1.1.1",  # for processing
}
_CAPTURE_CLASSES = {f"1.2.840.10008.5.1.4.1.1.7{end}" for end in ("", ".1", ".2", ".3", ".4")}
_CHEST_WORDS = ("CHEST", "THORAX", "TORAX", "THORAC", "LUNG", "PULMO", "CXR", "THX", "POUMON", "BRUSTKORB")
_NOT_CHEST_WORDS = ("SPINE", "VERTEBR")  # the thoracic spine
_CHEST_CODES = {"51185008", "43799004", "39607008", "T-D3000", "T-28000"}  # thorax, thoracic cavity, lung


def unlike_chest_radiograph(dataset):
    """Why a header does not say that its image is a chest radiograph, in words; None if it may be one.

    Radiographs are Modality CR, DX or RG. A secondary capture that names no modality must name the chest. A body part,
    where one is named, must be the chest; without one a radiograph is taken for a chest.

    Args:
        dataset: a `pydicom` dataset, as `images.read_file` gives it.
    """
    modality = _header_text(dataset, "Modality")
    class_uid = _header_text(dataset, "SOPClassUID")
    body_part = _header_text(dataset, "BodyPartExamined")
    if class_uid and class_uid not in _RADIOGRAPH_CLASSES | _CAPTURE_CLASSES:
        return f"its SOP class is {_class_name(class_uid)}, not a radiograph"
    if modality not in _RADIOGRAPHS | _UNSAID:
        return f"its Modality is {_printable(modality[:16])}, not a radiograph (CR, DX or RG)"
    chest = _is_chest(dataset, body_part)
    if chest is False:
        return f"its body part is {_printable(body_part[:64]) or 'another'}, not the chest"
    if chest is None and modality not in _RADIOGRAPHS and class_uid not in _RADIOGRAPH_CLASSES:
        return "it says neither that it is a radiograph (Modality) nor that it shows the chest (BodyPartExamined)"
    return None


def _is_chest(dataset, body_part):
    """Whether a header names the chest; None if it names no body part."""
    if body_part not in _UNSAID:
        return any(word in body_part for word in _CHEST_WORDS) and not any(
            word in body_part for word in _NOT_CHEST_WORDS
        )
    try:
        regions = list(value_of(dataset, "AnatomicRegionSequence") or [])
    except (HeaderError, TypeError):
        return None
    codes = {_header_text(region, "CodeValue") for region in regions} - {""}
    meanings = " ".join(_header_text(region, "CodeMeaning") for region in regions)
    if not codes and not meanings.strip():
        return None
    return bool(codes & _CHEST_CODES) or any(word in meanings for word in _CHEST_WORDS)


def _class_name(class_uid):
    from pydicom.uid import UID_dictionary

    return UID_dictionary[class_uid][0] if class_uid in UID_dictionary else f"unknown ({_printable(class_uid[:64])})"


def _header_text(dataset, keyword):
    """A value as text in capitals without padding; empty if it is missing or broken."""
    try:
        value = value_of(dataset, keyword)
        return "" if value is None else str(value).strip(" \0").upper()
    except Exception:  # a sequence in its place is parsed only when it is made text
        return ""
