"""Restored DICOM images as derived images of their sources' studies.

Needs pydicom (the extra `dicom`). Attributes are called by their keywords in DICOM PS3.6.
"""

import datetime
import functools
import math
import re

import numpy as np

from r2c_gan import __version__
from r2c_gan.data.dicom import read, silence_pydicom
from r2c_gan.data.dicom_grayscale import HeaderError, number, said, value_of
from r2c_gan.data.image_limits import ImageError
from r2c_gan.data.images import with_channels
from r2c_gan.data.window import Window
from r2c_gan.files import atomic_path

MODEL_NAME = "R2C-GAN"

_COMPUTED_RADIOGRAPHY = "1.2.840.10008.5.1.4.1.1.1"
_DIGITAL_RADIOGRAPHY = "1.2.840.10008.5.1.4.1.1.1.1"
_DIGITAL_RADIOGRAPHY_RAW = "1.2.840.10008.5.1.4.1.1.1.1.1"  # "for processing": what is written is for presentation
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

# What describes the source's numbers, its bytes or its maker's mark, and is not true of the new ones.
_OF_THE_SOURCE_PIXELS = {
    *("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept", "RescaleType", "VOILUTSequence", "VOILUTFunction"),
    *("WindowCenter", "WindowWidth", "WindowCenterWidthExplanation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("SmallestImagePixelValue", "LargestImagePixelValue", "SmallestPixelValueInSeries", "LargestPixelValueInSeries"),
    *("PlanarConfiguration", "PixelRepresentation", "NumberOfFrames", "FrameIncrementPointer", "PresentationLUTShape"),
    *("PresentationLUTSequence", "ICCProfile", "ColorSpace", "IconImageSequence", "PixelDataProviderURL"),
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in ("Red", "Green", "Blue", "Alpha")),
    *(f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue", "Alpha")),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue", "Alpha")),
    *(
        "PaletteColorLookupTableUID",
        "ExtendedOffsetTable",
        "ExtendedOffsetTableLengths",
        "DataSetTrailingPadding",
        "DigitalSignaturesSequence",
    ),
    *("MACParametersSequence", "EncryptedAttributesSequence", "ReferencedImageSequence", "SourceImageSequence"),
    *("DerivationDescription", "DerivationCodeSequence", "SeriesDate", "SeriesTime", "ContentDate", "ContentTime"),
    *("InstanceCreationDate", "InstanceCreationTime", "InstanceCreatorUID", "StationName", "DeviceSerialNumber"),
    *("DeviceUID", "GantryID", "UDISequence", "SecondaryCaptureDeviceManufacturer"),
    *("SecondaryCaptureDeviceManufacturerModelName", "SecondaryCaptureDeviceSoftwareVersions"),
    *("SecondaryCaptureDeviceID", "DateOfSecondaryCapture", "TimeOfSecondaryCapture", "InstitutionalDepartmentName"),
}

# All that a de-identified image keeps of its source. Short on purpose: what is not here is removed, so that an
# attribute nobody thought of is not left behind. None of it is free text about a person, a place or a date.
_KEPT_WITHOUT_IDENTITY = {
    *("SpecificCharacterSet", "Modality", "ConversionType", "PresentationIntentType", "BodyPartExamined"),
    *("AnatomicRegionSequence", "ViewPosition", "ViewCodeSequence", "Laterality", "ImageLaterality"),
    *("PatientOrientation", "InstanceNumber", "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"),
    *("PixelSpacingCalibrationType", "PixelAspectRatio", "EstimatedRadiographicMagnificationFactor"),
    *("DistanceSourceToDetector", "DistanceSourceToPatient", "KVP", "ExposureTime", "XRayTubeCurrent", "Exposure"),
    *("ExposureInuAs", "ExposureIndex", "TargetExposureIndex", "DeviationIndex", "RelativeXRayExposure", "Grid"),
    *("ImageAndFluoroscopyAreaDoseProduct", "FocalSpots", "DetectorType", "PositionerType", "FieldOfViewShape"),
    *("PixelIntensityRelationship", "PixelIntensityRelationshipSign", "BurnedInAnnotation", "LossyImageCompression"),
    *("LossyImageCompressionRatio", "LossyImageCompressionMethod"),
}

# What their values may be, as regular expressions: the defined terms of PS3.3, for any word fits a code string.
_TERMS = {
    "Modality": "CR|DX|RG|OT|CT|MR|US|NM|PT|XA|RF|MG|IO|PX|ES|XC|GM|SM|OP",
    "ConversionType": "DV|DI|DF|WSD|SD|SI|DRW|SYN",
    "PresentationIntentType": "FOR PRESENTATION|FOR PROCESSING",
    "BodyPartExamined": "CHEST|CHESTABDOMEN|CHESTABDPELVIS|NECKCHEST|NECKCHESTABDOMEN|THORAX|LUNG|RIB|RIBS|STERNUM|"
    "HEART|CLAVICLE|SHOULDER|BREAST|ABDOMEN|ABDOMENPELVIS|SPINE|CSPINE|TSPINE|LSPINE|HEAD|SKULL|NECK|PELVIS|"
    "WHOLEBODY",
    "ViewPosition": "AP|PA|LL|RL|RLD|LLD|RLO|LLO|LAT|LATERAL",
    "Laterality": "[RLUB]",
    "ImageLaterality": "[RLUB]",
    "PatientOrientation": "[APRLHF]{1,3}",
    "PixelSpacingCalibrationType": "GEOMETRY|FIDUCIAL",
    "Grid": "NONE|FIXED|FOCUSED|MOVING|RECIPROCATING|PARALLEL|CROSSED",
    "DetectorType": "DIRECT|SCINTILLATOR|STORAGE|FILM",
    "PositionerType": "CARM|COLUMN|NONE|MAMMOGRAPHIC|PANORAMIC|CEPHALOSTAT|RIGID",
    "FieldOfViewShape": "RECTANGLE|ROUND|HEXAGONAL",
    "PixelIntensityRelationship": "LIN|LOG|DISP",
    "BurnedInAnnotation": "YES|NO",
    "LossyImageCompression": "00|01",
    "LossyImageCompressionMethod": "ISO_10918_1|ISO_14495_1|ISO_15444_1|ISO_15444_15|ISO_18181_1",
}

# What it keeps inside of sequences, which are of codes here (PS3.3 section 8): an item may hold anything else too.
_KEPT_IN_CODES = {"CodeValue", "CodingSchemeDesignator", "AnatomicRegionModifierSequence", "ViewModifierCodeSequence"}

# Attributes that the patient, study and series modules want to be there, be it without a value (type 2).
_MAY_BE_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName"),
    *("StudyID", "AccessionNumber", "SeriesNumber", "InstanceNumber", "PatientOrientation"),
)

_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")

_DEIDENTIFICATION = [  # of at most 64 characters each
    f"{MODEL_NAME}: only technical attributes of the image kept",
    "UIDs replaced; private attributes removed",
    "Text burned into the pixels not removed",
]


def derived(source, image, description, salt, patient=None):
    """The dataset of an image that was computed from a DICOM image of the same height and width.

    A display-ready grayscale image (MONOCHROME2, identity rescale, a window over the whole range) of the source's
    BitsStored, with new SOP instance and series UIDs in the source's study. It says that it is derived, from which
    image and how; equipment is this package, the acquiring device goes to ContributingEquipmentSequence. A spacing of
    zero, values that break DICOM's rules and private attributes are left out: the latter may describe the old pixels.

    Args:
        source: the dataset, as `images.read_file` gives it.
        image: float [H, W, 1 or 3] in [-1, 1]; of three channels the luma is written.
        description: text of DerivationDescription.
        salt: a secret text. New UIDs are functions of it and of the old ones, so that the files of one run get one
            series for each of the source's, and so that the old ones cannot be found from the new.
        patient: None keeps what the source says of patient and study. A placeholder removes it: it becomes patient
            name and ID, and all that is left of the source are technical attributes of the image and replaced UIDs, as
            the Basic Application Confidentiality Profile (PS3.15 Annex E) wants it or stricter. Text burned into the
            pixels stays.

    Returns:
        (`pydicom.FileDataset`, list of the source's attributes that were left out because their value is not valid).

    Raises:
        ValueError: if the source names no study, series or instance, the shapes differ, or its header cannot be copied.
    """
    try:
        return _derived(source, image, description, salt, patient)
    except (ValueError, MemoryError):
        raise
    except Exception as error:  # pydicom parses values when they are first touched, and raises many kinds
        raise ValueError(f"the DICOM header cannot be copied ({said(error)})") from error


def _derived(source, image, description, salt, patient):
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"):
        if not value_of(source, keyword) or not isinstance(source.get(keyword), str):
            raise ValueError(f"the DICOM file has no {keyword}, so that no image can be derived from it")
    if tuple(image.shape[:2]) != (source.Rows, source.Columns):
        raise ValueError(f"an image of {source.Rows} x {source.Columns} pixels is needed, got {image.shape[:2]}")

    silence_pydicom()
    invalid = []
    deidentify = patient is not None
    body = _valid_copy(
        source,
        lambda tag, keyword: _kept(tag, keyword, source, deidentify),
        lambda tag, keyword: keyword in _KEPT_IN_CODES if deidentify else not tag.is_private,
        invalid,
    )
    if deidentify:
        _keep_defined_terms(body)
    acquisition = None if deidentify else _acquisition_equipment(source, invalid)
    new = FileDataset(None, body, preamble=b"\0" * 128, file_meta=FileMetaDataset())
    for keyword in _MAY_BE_EMPTY:
        if keyword not in new:
            setattr(new, keyword, None)
    for keyword in _SPACINGS:
        if keyword in new and not _is_spacing(new[keyword].value):
            delattr(new, keyword)
            invalid.append(keyword)
    spaced = any(keyword in new for keyword in _SPACINGS)
    if "PixelAspectRatio" in new and (spaced or not _is_aspect(new["PixelAspectRatio"].value)):
        del new.PixelAspectRatio  # only for pixels that are not square and have no spacing (PS3.3 C.7.6.3.1.7)
    if not new.get("Laterality"):
        new.pop("Laterality", None)  # only of a paired body part

    now = datetime.datetime.now()
    new.SOPClassUID = _class_of(source)
    new.SOPInstanceUID = _new_uid(salt, "instance", source.SOPInstanceUID)
    new.SeriesInstanceUID = _new_uid(salt, "series", source.SeriesInstanceUID)
    new.StudyInstanceUID = source.StudyInstanceUID
    new.SpecificCharacterSet = _character_set(new)
    new.Modality = new.get("Modality") or "OT"
    kinds = new.get("ImageType") or []
    new.ImageType = ["DERIVED", "SECONDARY", *([] if isinstance(kinds, str) else list(kinds)[2:])]
    new.SeriesDescription = _series_description(new)  # without the source's where identity is removed
    if new.SeriesNumber is not None:
        number = int(new.SeriesNumber)
        new.SeriesNumber = number + (1000 if number < 2**31 - 1000 else -1000)  # apart from the source's in a list
    new.InstanceCreationDate = new.SeriesDate = new.ContentDate = now.strftime("%Y%m%d")
    new.InstanceCreationTime = new.SeriesTime = new.ContentTime = now.strftime("%H%M%S")
    if new.SOPClassUID == _SECONDARY_CAPTURE:
        new.ConversionType = new.get("ConversionType") or "WSD"
    if new.SOPClassUID == _COMPUTED_RADIOGRAPHY:
        for keyword in ("BodyPartExamined", "ViewPosition"):
            if keyword not in new:
                setattr(new, keyword, None)
    if new.SOPClassUID == _DIGITAL_RADIOGRAPHY:
        new.PresentationIntentType = "FOR PRESENTATION"

    reference = _dataset(
        ReferencedSOPClassUID=source.SOPClassUID,
        ReferencedSOPInstanceUID=source.SOPInstanceUID,
        SpatialLocationsPreserved="YES",
        PurposeOfReferenceCodeSequence=[_code("121322", "DCM", "Source image for image processing operation")],
    )
    new.SourceImageSequence = [reference]
    new.DerivationDescription = description[:1024]
    # No code of context group 7203 says "restored by a neural network"; schemes that begin with 99 are private.
    new.DerivationCodeSequence = [_code("RESTORATION", "99R2CGAN", "Blind image restoration by a neural network")]
    new.Manufacturer, new.ManufacturerModelName, new.SoftwareVersions = MODEL_NAME, "r2c-gan-restore", __version__
    if acquisition:
        new.ContributingEquipmentSequence = [*(new.get("ContributingEquipmentSequence") or []), acquisition]
    if patient is not None:
        _remove_identity(new, salt, patient, _is_burned_in(source))

    _set_pixels(new, source, image)
    new.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    new.file_meta.MediaStorageSOPClassUID = new.SOPClassUID
    new.file_meta.MediaStorageSOPInstanceUID = new.SOPInstanceUID
    return new, sorted(set(invalid))


def write(path, dataset):
    """Writes a dataset of `derived` as a DICOM file (Explicit VR Little Endian), atomically, and reads it back first.

    Raises:
        ImageError: if the dataset cannot be written, or would not be read as what it holds.
        UserError: if the file cannot be written.
    """
    import pydicom

    with atomic_path(path) as temporary:
        try:
            pydicom.dcmwrite(temporary, dataset, enforce_file_format=True, overwrite=True)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # pydicom encodes values here, and raises many kinds
            raise ImageError(f"{path}: the DICOM file cannot be written ({said(error)})") from error
        _check_written(path, temporary.read_bytes(), dataset)


def _check_written(path, data, dataset):
    """A file counts as written when a reader sees in it the levels that were meant."""
    kind = np.uint8 if dataset.BitsStored <= 8 else np.dtype("<u2")
    shape = dataset.Rows, dataset.Columns
    levels = np.frombuffer(dataset.PixelData, kind, shape[0] * shape[1]).reshape(*shape, 1)
    pixels, again, _, _ = read(path, data, Window("full"))
    same = again.SOPInstanceUID == dataset.SOPInstanceUID and again.BitsStored == dataset.BitsStored
    top = 2.0**dataset.BitsStored - 1
    if not same or not np.array_equal(np.rint((pixels.astype(np.float64) + 1) * (top / 2)), levels):
        raise ImageError(f"{path}: what was written is not what can be read again")


def _set_pixels(new, source, image):
    bits = min(int(source.BitsStored), 16)  # of 32, the network's 24 could not be told from noise
    top = 2**bits - 1
    if image.shape[-1] == 3:
        image = with_channels(image, 1)
    levels = np.rint((np.clip(image[..., 0].astype(np.float64), -1, 1) + 1) * (top / 2))
    stored = levels.astype(np.uint8 if bits <= 8 else np.uint16)
    new.Rows, new.Columns = stored.shape
    new.SamplesPerPixel, new.PhotometricInterpretation, new.PixelRepresentation = 1, "MONOCHROME2", 0
    new.BitsAllocated, new.BitsStored, new.HighBit = stored.dtype.itemsize * 8, bits, bits - 1
    new.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes() + b"\0" * (stored.nbytes % 2)
    new["PixelData"].VR = "OB" if bits <= 8 else "OW"
    new.RescaleIntercept, new.RescaleSlope, new.RescaleType = 0, 1, "US"
    new.WindowCenter, new.WindowWidth = 2 ** (bits - 1), 2**bits
    if new.SOPClassUID != _SECONDARY_CAPTURE:
        new.PresentationLUTShape = "IDENTITY"
    turned = (source.PhotometricInterpretation == "MONOCHROME1") != (number(source, "RescaleSlope", 1.0) < 0)
    if turned and new.get("PixelIntensityRelationshipSign"):
        new.PixelIntensityRelationshipSign = -int(new.PixelIntensityRelationshipSign)
    if not new.get("LossyImageCompression") and _is_lossy(source):
        new.LossyImageCompression = "01"  # once lossy, always lossy (PS3.3 C.7.6.1.1.5)


def _is_spacing(value):
    """Whether a value is two lengths (PS3.3 10.7)."""
    return not isinstance(value, str | float) and value is not None and len(value) == 2 and all(map(_is_length, value))


def _is_aspect(value):
    """Whether a value says that pixels are not square."""
    return _is_spacing(value) and value[0] != value[1]


def _is_length(value):
    return math.isfinite(value) and value > 0


def _is_lossy(source):
    """Whether the source's transfer syntax allows losses: without the flag it cannot be known that there were none."""
    from pydicom import uid

    lossless = {uid.JPEGLossless, uid.JPEGLosslessSV1}
    allowed = {*uid.JPEGTransferSyntaxes, uid.JPEGLSNearLossless, uid.JPEG2000, uid.HTJ2K} - lossless
    return source.file_meta.TransferSyntaxUID in allowed


def _class_of(source):
    kept = (_COMPUTED_RADIOGRAPHY, _DIGITAL_RADIOGRAPHY, _SECONDARY_CAPTURE)
    if source.SOPClassUID == _DIGITAL_RADIOGRAPHY_RAW:
        return _DIGITAL_RADIOGRAPHY
    return source.SOPClassUID if source.SOPClassUID in kept else _SECONDARY_CAPTURE


def _new_uid(salt, role, uid):
    from pydicom.uid import generate_uid

    return generate_uid(entropy_srcs=[salt, role, str(uid)])


def _character_set(new):
    """The source's character set; UTF-8 if it has none, or none that DICOM knows."""
    from pydicom.charset import python_encoding

    names = new.get("SpecificCharacterSet")
    known = names and all(name in python_encoding for name in ([names] if isinstance(names, str) else names))
    return names if known else "ISO_IR 192"


def _series_description(source):
    return f"{source.get('SeriesDescription') or ''} ({MODEL_NAME} restored)".strip()[-64:]


def _kept(tag, keyword, source, deidentify):
    if tag.is_private or tag.group < 0x0008 or 0x5000 <= tag.group < 0x5100 or keyword in _OF_THE_SOURCE_PIXELS:
        return False
    if 0x6000 <= tag.group < 0x6100:  # overlays; those kept in spare bits of the old pixels went with these
        return not deidentify and (tag.group, 0x3000) in source
    return keyword in _KEPT_WITHOUT_IDENTITY if deidentify else True


def _valid_copy(dataset, kept, kept_inside, invalid):
    """A copy of the elements that are to be kept and whose values follow the rules of their VR.

    `kept` and, in the items of sequences, `kept_inside` are functions of tag and keyword.
    """
    from pydicom import config
    from pydicom.datadict import dictionary_VR, keyword_for_tag
    from pydicom.dataelem import DataElement
    from pydicom.dataset import Dataset

    copy = Dataset()
    for tag in dataset.keys():  # noqa: SIM118 - iterating the dataset itself converts what will be left out
        keyword = keyword_for_tag(tag)
        if not kept(tag, keyword):
            continue
        try:
            element = dataset[tag]
            if element.VR not in dictionary_VR(tag).split(" or "):
                raise ValueError(f"VR {element.VR}")
            value = element.value
            if element.VR == "SQ":
                value = [_valid_copy(item, kept_inside, kept_inside, invalid) for item in value]
            elif element.VR in ("LT", "ST", "UT") and not isinstance(value, str) and value is not None:
                value = "\\".join(value)  # a backslash is a character of these, and no separator
            copy.add(DataElement(tag, element.VR, value, validation_mode=config.RAISE))
        except Exception:  # pydicom raises many kinds for values that it cannot convert
            invalid.append(keyword or str(tag))
    return copy


def _keep_defined_terms(body):
    """Removes what a code string or a code may say beyond the standard's own words."""
    for keyword, terms in _TERMS.items():
        value = body.get(keyword) or []
        if not all(re.fullmatch(terms, part) for part in ([value] if isinstance(value, str) else value)):
            delattr(body, keyword)
    _keep_known_codes(body)


def _keep_known_codes(dataset):
    """Leaves in its sequences, of codes all, those codes that the standard has, with the standard's meaning."""
    for element in [element for element in dataset if element.VR == "SQ"]:
        known = []
        for item in element.value:
            code = str(item.get("CodingSchemeDesignator")), str(item.get("CodeValue"))
            if meaning := _standard_codes().get(code):
                item.CodeMeaning = meaning[:64]
                _keep_known_codes(item)
                known.append(item)
        if known:
            element.value = known
        else:
            del dataset[element.tag]


@functools.cache
def _standard_codes():
    """(CodingSchemeDesignator, CodeValue) -> CodeMeaning, of the anatomy and the views that PS3.16 names."""
    from pydicom.sr.codedict import codes

    concepts = (code for scheme in (codes.SCT, codes.DCM) for code in scheme.concepts.values())
    return {(code.scheme_designator, code.value): code.meaning for code in concepts}


def _acquisition_equipment(source, invalid):
    """The device that acquired the source, for ContributingEquipmentSequence; None if the source names none."""
    keywords = {"Manufacturer", "ManufacturerModelName", "SoftwareVersions", "InstitutionName", "InstitutionAddress"}
    keywords |= {"StationName", "InstitutionalDepartmentName", "DeviceSerialNumber"}
    keywords |= {"DateOfLastCalibration", "TimeOfLastCalibration"}
    item = _valid_copy(source, lambda _, keyword: keyword in keywords, lambda *_: False, invalid)
    for keyword in [element.keyword for element in item if element.VM == 0]:
        delattr(item, keyword)
    if "Manufacturer" not in item:
        return None
    item.PurposeOfReferenceCodeSequence = [_code("109101", "DCM", "Acquisition Equipment")]
    return item


def _remove_identity(new, salt, patient, burned_in):
    new.PatientName, new.PatientID = f"{patient}^", patient
    for keyword in ("ContentDate", "ContentTime", "SeriesDate", "SeriesTime"):
        delattr(new, keyword)
    for keyword in ("InstanceCreationDate", "InstanceCreationTime"):
        delattr(new, keyword)
    new.StudyInstanceUID = _new_uid(salt, "study", new.StudyInstanceUID)
    reference = new.SourceImageSequence[0]
    reference.ReferencedSOPInstanceUID = _new_uid(salt, "source", reference.ReferencedSOPInstanceUID)
    new.DeidentificationMethod = _DEIDENTIFICATION
    if burned_in:  # a name in the pixels is a name
        new.PatientIdentityRemoved = "NO"
    else:
        new.PatientIdentityRemoved = "YES"
        new.DeidentificationMethodCodeSequence = [_code("113100", "DCM", "Basic Application Confidentiality Profile")]
    new.LongitudinalTemporalInformationModified = "REMOVED"


def _is_burned_in(source):
    """Whether the header says that there is text in the pixels, or may be meant to."""
    try:
        said = value_of(source, "BurnedInAnnotation")
    except HeaderError:
        return True
    return bool(said) and str(said).strip(" \0").upper() != "NO"


def _code(value, scheme, meaning):
    return _dataset(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _dataset(**elements):
    from pydicom.dataset import Dataset

    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset
