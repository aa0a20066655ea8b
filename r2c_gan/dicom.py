"""DICOM files: their pixels as a radiologist would be shown them.

Needs pydicom (the extra `dicom`). `images.read_image` is the door for reading. Attributes are called by their keywords
in DICOM PS3.6.
"""

import io

import numpy as np

from r2c_gan import window as window_module
from r2c_gan.image_limits import ImageError, check_size


def read(path, data, window):
    """DICOM bytes -> (float32 [H, W, 1 or 3] in [-1, 1], the dataset without its pixels, scaling, warning).

    The grayscale pipeline of DICOM PS3.3 (C.11.1, C.11.2) and PS3.4 (N.2): modality LUT or rescale, then the first VOI
    LUT or window, then MONOCHROME1 is inverted, once. The output range of the window, or without one the range of
    BitsStored after rescaling, becomes [-1, 1]. Pixels of PixelPaddingValue become black.

    Args:
        path: names the file in messages.
        data: its bytes.
        window: a `Window`.

    Returns:
        The image, the dataset, and `scaling` and `warning` of `window.Scaled`.

    Raises:
        ImageError: if it is no image of one frame that can be shown.
    """
    try:
        import pydicom
    except ImportError as error:
        raise ImageError(f"{path}: DICOM needs pydicom; pip install r2c-gan[dicom]") from error
    try:
        dataset = pydicom.dcmread(io.BytesIO(data))
    except (pydicom.errors.InvalidDicomError, OSError, ValueError, KeyError) as error:
        raise ImageError(f"{path}: not a readable DICOM file ({error})") from error

    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ImageError(f"{path}: {frames} frames; a DICOM file with one frame is expected")
    if "PixelData" not in dataset:
        raise ImageError(f"{path}: a DICOM file without pixels (no PixelData)")
    kind = dataset.get("PhotometricInterpretation", "")
    if kind == "PALETTE COLOR" or not kind:
        raise ImageError(
            f"{path}: PhotometricInterpretation {kind or 'missing'}; MONOCHROME1, MONOCHROME2 or RGB expected"
        )
    check_size(path, int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0))
    try:
        stored = pydicom.pixels.pixel_array(dataset)  # YBR becomes RGB here
        image = _unit(stored, dataset)
    except Exception as error:  # pydicom and its decoder plugins raise many kinds, all about this file
        raise ImageError(
            f"{path}: the DICOM pixels cannot be decoded ({error}); for compressed ones pip install r2c-gan[dicom]"
        ) from error
    if kind == "MONOCHROME1":
        image = 1 - image
    if "PixelPaddingValue" in dataset and stored.ndim == 2:
        ends = [dataset.PixelPaddingValue, dataset.get("PixelPaddingRangeLimit", dataset.PixelPaddingValue)]
        image[(stored >= min(ends)) & (stored <= max(ends))] = 0
    image = image.astype(np.float32) * 2 - 1
    del dataset.PixelData
    return (image[..., None] if image.ndim == 2 else image), dataset, "full range", window_module.warning(image)


def _unit(stored, dataset):
    """Stored values -> float64 in [0, 1], modality and VOI transformations applied, MONOCHROME1 not inverted."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    low, high = _stored_range(dataset)
    if stored.ndim == 3:  # colour has neither a modality nor a VOI transformation
        return (stored - low) / (high - low)
    values = apply_modality_lut(stored, dataset)
    if dataset.get("ModalityLUTSequence"):
        low, high = 0, 2 ** dataset.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    elif dataset.get("RescaleSlope") is not None and dataset.get("RescaleIntercept") is not None:
        low, high = (end * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept) for end in (low, high))
    windowed = apply_voi_lut(values, dataset, index=0, prefer_lut=True)
    if dataset.get("VOILUTSequence"):
        low, high = 0, 2 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
    elif windowed is values:  # no window: a negative slope puts the range's ends in the wrong order
        low, high = min(low, high), max(low, high)
    return np.clip((windowed - low) / (high - low), 0, 1)


def _stored_range(dataset):
    bits = int(dataset.BitsStored)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dataset.PixelRepresentation else (0, 2**bits - 1)


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
        return f"its Modality is {modality}, not a radiograph (CR, DX or RG)"
    chest = _is_chest(dataset, body_part)
    if chest is False:
        return f"its body part is {body_part or 'another'}, not the chest"
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
        regions = list(dataset.get("AnatomicRegionSequence") or [])
    except Exception:  # pydicom reads values late, and raises many kinds
        return None
    codes = {_header_text(region, "CodeValue") for region in regions} - {""}
    meanings = " ".join(_header_text(region, "CodeMeaning") for region in regions)
    if not codes and not meanings.strip():
        return None
    return bool(codes & _CHEST_CODES) or any(word in meanings for word in _CHEST_WORDS)


def _class_name(class_uid):
    from pydicom.uid import UID

    return UID(class_uid).name


def _header_text(dataset, keyword):
    """A value as text in capitals without padding; empty if it is missing or broken."""
    try:
        value = dataset.get(keyword)
    except Exception:  # pydicom reads values late, and raises many kinds
        return ""
    return "" if value is None else str(value).strip(" \0").upper()
