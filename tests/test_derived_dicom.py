"""Derived DICOM images: what they say, what they keep, what de-identification leaves; transfer syntaxes."""

import shutil
import subprocess
import threading

import numpy as np
import pytest
from test_images import write_dicom

from r2c_gan.data import images
from r2c_gan.data.images import ImageError

pydicom = pytest.importorskip("pydicom", reason="DICOM needs the extra 'dicom'")

from pydicom import config, uid  # noqa: E402
from pydicom.dataset import Dataset  # noqa: E402

from r2c_gan.data import derived_dicom  # noqa: E402

SALT = "salt"
COMPUTED, DIGITAL, CAPTURE = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("1", "1.1", "7"))
IDENTITY = {
    "PatientName": "Doe^Jane",
    "PatientID": "P-4711",
    "PatientBirthDate": "19400305",
    "PatientSex": "F",
    "PatientAge": "064Y",
    "OtherPatientIDs": "Q-26210",
    "StudyDate": "20040826",
    "StudyTime": "185059",
    "AcquisitionDate": "20040825",
    "AccessionNumber": "ACC99",
    "InstitutionName": "Some Hospital",
    "ReferringPhysicianName": "Roe^Richard",
    "OperatorsName": "Poe^Paul",
    "StationName": "ROOM7",
    "StudyID": "S5",
    "StudyDescription": "Thorax of Jane",
    "ImageComments": "called Dr Roe",
    "DeviceSerialNumber": "SN92003",
    "RequestAttributesSequence": [Dataset()],
}
IDENTITY["RequestAttributesSequence"][0].RequestedProcedureDescription = "for Jane"


@pytest.fixture(autouse=True)
def strict(monkeypatch):
    """Everything here is read and written under pydicom's strict rules."""
    monkeypatch.setattr(config.settings, "reading_validation_mode", config.RAISE)
    monkeypatch.setattr(config.settings, "writing_validation_mode", config.RAISE)


@pytest.fixture
def stored():
    return np.linspace(0, 4095, 24 * 30).astype(np.uint16).reshape(24, 30)


def study(**elements):
    """What a real file has and `write_dicom` has not."""
    return {
        "StudyInstanceUID": "1.2.3.1",
        "SeriesInstanceUID": "1.2.3.2",
        "SOPInstanceUID": "1.2.3.3",
        "Modality": "CR",
        "SeriesNumber": 3,
        "InstanceNumber": 2,
        "SeriesDescription": "PA",
        "ImageType": ["ORIGINAL", "PRIMARY", "", "LEFT"],
        "Manufacturer": "Maker",
        "ManufacturerModelName": "Machine",
        "PixelSpacing": [0.15, 0.2],
        "ImagerPixelSpacing": [0.1, 0.1],
        "PatientOrientation": ["L", "F"],
        "BodyPartExamined": "CHEST",
        "ViewPosition": "PA",
        "BurnedInAnnotation": "NO",
        **IDENTITY,
        **elements,
    }


def derive(tmp_path, source, change=lambda image: image, patient=None, description="Restored.", salt=SALT):
    """Reads a file, changes its pixels, writes the derived file and reads that again, all of it."""
    file = images.read_file(source)
    dataset, left_out = derived_dicom.derived(file.dicom, change(file.pixels), description, salt, patient)
    derived_dicom.write(tmp_path / "derived.dcm", dataset)
    again = pydicom.dcmread(tmp_path / "derived.dcm")
    for element in again.iterall():
        assert element.value is not Ellipsis  # read and checked here
    return again, left_out


@pytest.mark.parametrize(
    ("bits", "kind"), [(8, np.uint8), (10, np.uint16), (12, np.uint16), (15, np.uint16), (16, np.uint16)]
)
def test_pixels_keep_depth_and_levels(tmp_path, bits, kind):
    levels = np.linspace(0, 2**bits - 1, 23 * 31).astype(kind).reshape(23, 31)  # an odd number of bytes, too
    derived, left_out = derive(tmp_path, write_dicom(tmp_path / "a.dcm", levels, bits, **study()))
    assert left_out == []
    assert (derived.BitsStored, derived.HighBit, derived.PixelRepresentation) == (bits, bits - 1, 0)
    assert derived.BitsAllocated == (8 if bits == 8 else 16)
    assert (derived.Rows, derived.Columns, derived.PhotometricInterpretation) == (23, 31, "MONOCHROME2")
    np.testing.assert_allclose(derived.pixel_array.astype(int), levels.astype(int), atol=1)
    assert len(derived.PixelData) % 2 == 0
    shown = images.read_image(tmp_path / "derived.dcm")  # its own window shows every level
    np.testing.assert_allclose(shown, images.read_image(tmp_path / "a.dcm"), atol=2.1 / 2**bits)


def test_monochrome1_window_and_rescale_are_applied_once(tmp_path, stored):
    elements = study(
        PhotometricInterpretation="MONOCHROME1",
        PresentationLUTShape="INVERSE",
        WindowCenter=2000,
        WindowWidth=1000,
        RescaleSlope=1,
        RescaleIntercept=10,
        RescaleType="US",
        PixelIntensityRelationship="LIN",
        PixelIntensityRelationshipSign=1,
    )
    source = write_dicom(tmp_path / "a.dcm", stored, **elements)
    derived, _ = derive(tmp_path, source)
    expected = images.read_image(source)[..., 0]
    np.testing.assert_allclose(derived.pixel_array / 2047.5 - 1, expected, atol=1 / 2047)
    assert derived.pixel_array[0, 0] == 4095 and derived.pixel_array[-1, -1] == 0  # dark was bright
    assert (derived.RescaleSlope, derived.RescaleIntercept, derived.RescaleType) == (1, 0, "US")
    assert (derived.WindowCenter, derived.WindowWidth) == (2048, 4096)
    assert derived.PresentationLUTShape == "IDENTITY" and derived.PixelIntensityRelationshipSign == -1
    np.testing.assert_array_equal(images.read_image(tmp_path / "derived.dcm").shape, (24, 30, 1))
    np.testing.assert_allclose(images.read_image(tmp_path / "derived.dcm")[..., 0], expected, atol=1 / 2047)


def test_colour_and_three_channels_become_gray(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)
    source = write_dicom(tmp_path / "a.dcm", rgb, 8, **study(SOPClassUID=CAPTURE))
    derived, _ = derive(tmp_path, source)
    assert (derived.SamplesPerPixel, derived.PhotometricInterpretation) == (1, "MONOCHROME2")
    assert "PlanarConfiguration" not in derived
    np.testing.assert_allclose(derived.pixel_array, rgb @ [0.299, 0.587, 0.114], atol=0.51)


def test_values_outside_the_range_are_clipped(tmp_path, stored):
    derived, _ = derive(tmp_path, write_dicom(tmp_path / "a.dcm", stored, **study()), lambda image: image * 3)
    assert derived.pixel_array.min() == 0 and derived.pixel_array.max() == 4095


def test_what_a_derived_image_says(tmp_path, stored):
    derived, _ = derive(tmp_path, write_dicom(tmp_path / "a.dcm", stored, **study()), description="Restored by X.")
    assert list(derived.ImageType) == ["DERIVED", "SECONDARY", "", "LEFT"]
    assert derived.SOPClassUID == derived.file_meta.MediaStorageSOPClassUID == COMPUTED
    assert derived.SOPInstanceUID == derived.file_meta.MediaStorageSOPInstanceUID != "1.2.3.3"
    assert derived.StudyInstanceUID == "1.2.3.1" and derived.SeriesInstanceUID != "1.2.3.2"
    assert uid.UID(derived.SOPInstanceUID).is_valid and uid.UID(derived.SeriesInstanceUID).is_valid
    (reference,) = derived.SourceImageSequence
    assert (reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID) == (COMPUTED, "1.2.3.3")
    assert reference.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
    assert derived.DerivationDescription == "Restored by X."
    assert derived.DerivationCodeSequence[0].CodingSchemeDesignator == "99R2CGAN"
    assert list(derived.PixelSpacing) == [0.15, 0.2] and list(derived.ImagerPixelSpacing) == [0.1, 0.1]
    assert derived.file_meta.TransferSyntaxUID == uid.ExplicitVRLittleEndian
    assert (derived.Manufacturer, derived.ManufacturerModelName) == ("R2C-GAN", "r2c-gan-restore")
    (device,) = derived.ContributingEquipmentSequence
    assert (device.Manufacturer, device.ManufacturerModelName, device.StationName) == ("Maker", "Machine", "ROOM7")
    assert device.PurposeOfReferenceCodeSequence[0].CodeValue == "109101"
    assert derived.SeriesNumber == 1003 and "restored" in derived.SeriesDescription
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "AccessionNumber"):
        assert derived[keyword].value == IDENTITY[keyword]
    assert derived.BurnedInAnnotation == "NO"


def test_what_described_the_old_pixels_is_gone(tmp_path, stored):
    icon, lut = Dataset(), Dataset()
    icon.Rows = 3
    lut.LUTDescriptor, lut.LUTData = [4096, 0, 12], np.arange(4096, dtype=np.uint16).tobytes()
    source = write_dicom(
        tmp_path / "a.dcm",
        stored,
        **study(VOILUTSequence=[lut], IconImageSequence=[icon], PixelPaddingValue=5, SmallestImagePixelValue=1),
    )
    with_private = pydicom.dcmread(source)
    with_private.add_new(0x00091010, "LO", "vendor")
    with_private.add_new(0x60000010, "US", 24)  # an overlay that was kept in spare bits of the old pixels
    with_private.add_new(0x60000102, "US", 14)
    with_private.save_as(source)
    derived, _ = derive(tmp_path, source)
    for gone in ("VOILUTSequence", "IconImageSequence", "PixelPaddingValue", "SmallestImagePixelValue"):
        assert gone not in derived
    assert not [element for element in derived if element.tag.is_private or element.tag.group == 0x6000]


def test_one_series_for_each_of_the_sources(tmp_path, stored):
    def uids(series, instance, salt=SALT):
        elements = study(SeriesInstanceUID=series, SOPInstanceUID=instance)
        derived, _ = derive(tmp_path, write_dicom(tmp_path / "a.dcm", stored, **elements), salt=salt)
        return derived.SeriesInstanceUID, derived.SOPInstanceUID

    first, second, third = uids("1.5.1", "1.6.1"), uids("1.5.1", "1.6.2"), uids("1.5.2", "1.6.3")
    assert first[0] == second[0] != third[0]
    assert len({first[1], second[1], third[1]}) == 3
    assert uids("1.5.1", "1.6.1") == first
    assert not set(uids("1.5.1", "1.6.1", salt="another run")) & set(first)


def test_a_raw_image_is_shown_and_others_become_secondary_captures(tmp_path, stored):
    for source_class, expected in [
        (DIGITAL, DIGITAL),
        (f"{DIGITAL}.1", DIGITAL),
        (CAPTURE, CAPTURE),
        ("1.2.840.10008.5.1.4.1.1.12.2", CAPTURE),  # radiofluoroscopy
    ]:
        elements = study(SOPClassUID=source_class, PresentationIntentType="FOR PROCESSING")
        derived, _ = derive(tmp_path, write_dicom(tmp_path / "a.dcm", stored, **elements))
        assert derived.SOPClassUID == expected
        assert derived.SourceImageSequence[0].ReferencedSOPClassUID == source_class
        if expected == DIGITAL:
            assert derived.PresentationIntentType == "FOR PRESENTATION"
        else:
            assert derived.ConversionType == "WSD"


def test_invalid_values_are_left_out_and_told(tmp_path, stored, monkeypatch):
    """As in public collections: an age of "62", a spacing of zero. Neither stops a strict writer."""
    monkeypatch.setattr(config.settings, "reading_validation_mode", config.IGNORE)
    monkeypatch.setattr(config.settings, "writing_validation_mode", config.IGNORE)
    elements = study(PatientAge="62", PixelSpacing=[0, 0], PatientBirthDate="yesterday", StudyID=None)
    del elements["StudyID"]
    file = images.read_file(write_dicom(tmp_path / "a.dcm", stored, **elements))
    monkeypatch.setattr(config.settings, "reading_validation_mode", config.RAISE)
    monkeypatch.setattr(config.settings, "writing_validation_mode", config.RAISE)
    dataset, left_out = derived_dicom.derived(file.dicom, file.pixels, "Restored.", SALT)
    derived_dicom.write(tmp_path / "derived.dcm", dataset)
    derived = pydicom.dcmread(tmp_path / "derived.dcm")
    assert left_out == ["PatientAge", "PatientBirthDate", "PixelSpacing"]
    assert "PatientAge" not in derived and "PixelSpacing" not in derived
    assert derived.PatientBirthDate == "" and derived.StudyID == ""  # must be there, may be empty
    assert list(derived.ImagerPixelSpacing) == [0.1, 0.1]


@pytest.mark.parametrize("missing", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_what_belongs_to_no_study_has_no_derived_image(tmp_path, stored, missing):
    elements = {name: value for name, value in study().items() if name != missing}
    file = images.read_file(write_dicom(tmp_path / "a.dcm", stored, **elements))
    with pytest.raises(ValueError, match=missing):
        derived_dicom.derived(file.dicom, file.pixels, "", SALT)
    whole = images.read_file(write_dicom(tmp_path / "b.dcm", stored, **study()))
    with pytest.raises(ValueError, match="24 x 30 pixels"):
        derived_dicom.derived(whole.dicom, whole.pixels[:20], "", SALT)


def derive_in_the_wild(tmp_path, monkeypatch, source):
    """`derive` of a source that pydicom's strict rules would refuse to read; what is written follows them."""
    monkeypatch.setattr(config.settings, "reading_validation_mode", config.IGNORE)
    file = images.read_file(source)
    monkeypatch.setattr(config.settings, "reading_validation_mode", config.RAISE)
    dataset, left_out = derived_dicom.derived(file.dicom, file.pixels, "Restored.", SALT)
    derived_dicom.write(tmp_path / "derived.dcm", dataset)
    return pydicom.dcmread(tmp_path / "derived.dcm"), left_out


def replace_bytes(path, keyword, old, new):
    """Changes the first `old` behind an element's tag, in the bytes; both have one length."""
    tag, data = pydicom.tag.Tag(keyword), path.read_bytes()
    start = data.index(tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little"))
    path.write_bytes(data[:start] + data[start:].replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("keyword", "old", "new"),
    [
        ("ImagerPixelSpacing", b"0.1\\0.1 ", b"0.1     "),
        ("ImagerPixelSpacing", b"0.1\\0.1 ", b"abc\\0.1 "),
        ("ImagerPixelSpacing", b"0.1\\0.1 ", b"inf\\0.1 "),
        ("PatientAge", b"064Y", b"064 "),
        ("Manufacturer", b"LO\x06\0Maker ", b"ZZ\x06\0Maker "),
        ("StationName", b"SH\x06\0ROOM7 ", b"US\x06\0ROOM7 "),
        ("BurnedInAnnotation", b"CS\x02\0NO", b"UL\x02\0NO"),
    ],
)
def test_broken_values_are_left_out_and_told(tmp_path, stored, monkeypatch, keyword, old, new):
    source = replace_bytes(write_dicom(tmp_path / "a.dcm", stored, **study()), keyword, old, new)
    assert new in source.read_bytes()
    derived, left_out = derive_in_the_wild(tmp_path, monkeypatch, source)
    assert left_out == [keyword]
    assert keyword not in derived or keyword == "Manufacturer"  # that of the new image


@pytest.mark.parametrize(("number", "expected"), [("2147483647", 2147482647), ("-5", 995), ("2147482647", 2147483647)])
def test_series_numbers_stay_in_their_range(tmp_path, stored, number, expected):
    derived, _ = derive(tmp_path, write_dicom(tmp_path / "a.dcm", stored, **study(SeriesNumber=number)))
    assert derived.SeriesNumber == expected


def test_a_series_number_that_is_none_is_left_out(tmp_path, stored, monkeypatch):
    path = write_dicom(tmp_path / "a.dcm", stored, **study(SeriesNumber="2147483647"))
    source = replace_bytes(path, "SeriesNumber", b"2147483647", b"4561151171")
    derived, left_out = derive_in_the_wild(tmp_path, monkeypatch, source)
    assert derived.SeriesNumber is None and left_out == ["SeriesNumber"]


@pytest.mark.parametrize("kinds", ["ORIGINAL", "DERIVED", ["ORIGINAL", "PRIMARY"], None])
def test_image_types_of_few_values(tmp_path, stored, kinds):
    derived, _ = derive(tmp_path, write_dicom(tmp_path / "a.dcm", stored, **study(ImageType=kinds or "")))
    assert list(derived.ImageType) == ["DERIVED", "SECONDARY"]


@pytest.mark.parametrize("known", [b"ISO_IR 100", b"NO_SUCH 12"])
def test_character_sets(tmp_path, stored, monkeypatch, known):
    path = write_dicom(tmp_path / "a.dcm", stored, **study(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^J"))
    replace_bytes(path, "SpecificCharacterSet", b"ISO_IR 100", known)
    derived, _ = derive_in_the_wild(tmp_path, monkeypatch, path)
    assert derived.SpecificCharacterSet == ("ISO_IR 100" if known == b"ISO_IR 100" else "ISO_IR 192")
    assert known != b"ISO_IR 100" or derived.PatientName == "Müller^J"


def test_pixels_of_32_bits_are_written_in_16(tmp_path):
    levels = np.linspace(0, 2**32 - 1, 24 * 30).astype(np.uint32).reshape(24, 30)
    derived, _ = derive(tmp_path, write_dicom(tmp_path / "a.dcm", levels, 32, **study()))
    assert (derived.BitsAllocated, derived.BitsStored, derived.HighBit) == (16, 16, 15)
    np.testing.assert_allclose(derived.pixel_array / 65535, levels / (2**32 - 1), atol=1e-5)


def test_what_cannot_be_read_again_does_not_count_as_written(tmp_path, stored):
    file = images.read_file(write_dicom(tmp_path / "a.dcm", stored, **study()))

    def dataset():
        return derived_dicom.derived(file.dicom, file.pixels, "Restored.", SALT)[0]

    for keyword, value in [
        ("BitsStored", 32),
        ("PixelRepresentation", 1),
        ("PhotometricInterpretation", "MONOCHROME1"),
    ]:
        wrong = dataset()
        setattr(wrong, keyword, value)
        with pytest.raises(ImageError, match=r"b\.dcm"):
            derived_dicom.write(tmp_path / "b.dcm", wrong)
    unwritable = dataset()
    unwritable["PatientID"]._value = 5
    with pytest.raises(ImageError, match=r"b\.dcm: the DICOM file cannot be written"):
        derived_dicom.write(tmp_path / "b.dcm", unwritable)
    assert [path.name for path in tmp_path.iterdir()] == ["a.dcm"]


@pytest.mark.parametrize(
    ("elements", "kept"),
    [
        ({"Laterality": "", "PixelAspectRatio": ""}, set()),
        ({"Laterality": "R", "PixelAspectRatio": [1, 2]}, {"Laterality"}),
        ({"PixelAspectRatio": [1, 2], "PixelSpacing": None, "ImagerPixelSpacing": None}, {"PixelAspectRatio"}),
        ({"PixelAspectRatio": [1, 1], "PixelSpacing": None, "ImagerPixelSpacing": None}, set()),
        ({"PixelAspectRatio": "", "PixelSpacing": None, "ImagerPixelSpacing": None}, set()),
    ],
)
def test_conditional_attributes_are_not_written_empty(tmp_path, stored, elements, kept):
    elements = {key: value for key, value in study(**elements).items() if value is not None}
    source = write_dicom(tmp_path / "a.dcm", stored, **elements)
    derived, _ = derive(tmp_path, source)
    assert {key for key in ("Laterality", "PixelAspectRatio") if key in derived} == kept


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dicom3tools is not installed")
@pytest.mark.parametrize("patient", [None, "ANON-0001"])
def test_a_validator_finds_no_error(tmp_path, stored, patient):
    elements = study(Laterality="", PixelAspectRatio="", RequestAttributesSequence=[])
    del elements["RequestAttributesSequence"]
    derive(tmp_path, write_dicom(tmp_path / "a.dcm", stored, **elements), patient=patient)
    said = subprocess.run(["dciodvfy", str(tmp_path / "derived.dcm")], capture_output=True, text=True).stderr
    assert not [line for line in said.splitlines() if line.startswith("Error")]


# --- de-identification -----------------------------------------------------------------------------------------------


def test_nothing_of_the_patient_is_left(tmp_path, stored):
    source = write_dicom(tmp_path / "a.dcm", stored, **study())
    with_private = pydicom.dcmread(source)
    with_private.add_new(0x00091010, "LO", "Jane again")
    with_private.save_as(source)
    derived, _ = derive(tmp_path, source, patient="ANON-0001")
    kept = (tmp_path / "derived.dcm").read_bytes()
    secrets = ["Doe", "Jane", "P-4711", "Q-26210", "Hospital", "Roe", "Poe", "ROOM7", "Thorax", "SN92003", "ACC99"]
    secrets += ["19400305", "20040826", "20040825", "064Y", "185059", "1.2.3.1", "1.2.3.2", "1.2.3.3"]
    for secret in secrets:
        assert secret.encode() not in kept, secret
    assert (derived.PatientID, str(derived.PatientName).rstrip("^")) == ("ANON-0001", "ANON-0001")
    assert derived.PatientIdentityRemoved == "YES"
    assert derived.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
    assert "not removed" in " ".join(derived.DeidentificationMethod)  # text in the pixels
    assert derived.PatientSex == derived.StudyDate == derived.PatientBirthDate == ""
    assert derived.BurnedInAnnotation == "NO" and list(derived.PixelSpacing) == [0.15, 0.2]
    assert not [element for element in derived.iterall() if element.VR in ("DA", "TM", "DT") and element.value]


def test_nothing_of_the_patient_is_left_inside_of_sequences(tmp_path, stored):
    """An item may hold any attribute; only what makes a code stays, in the codes inside of it too."""

    def code(value, meaning):
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
        item.PatientName, item.PatientID, item.StudyDate = "Doe^Jane", "P-4711", "20040826"
        item.ContextUID, item.SOPInstanceUID, item.OperatorsName = "1.2.3.77", "1.2.3.3", "Poe^Paul"
        item.ContextGroupVersion = "20040826"
        item.add_new(0x00091010, "LO", "Jane again")
        return item

    region, view = code("51185008", "Chest structure"), code("399348003", "antero-posterior projection")
    region.AnatomicRegionModifierSequence = [code("24028007", "Right")]
    view.ReferencedImageSequence = [code("1", "Jane")]
    elements = study(AnatomicRegionSequence=[region], ViewCodeSequence=[view])
    derived, _ = derive(tmp_path, write_dicom(tmp_path / "a.dcm", stored, **elements), patient="ANON-0001")
    written = (tmp_path / "derived.dcm").read_bytes()
    for secret in ("Doe", "Jane", "P-4711", "20040826", "1.2.3.77", "1.2.3.3", "Poe"):
        assert secret.encode() not in written, secret
    assert derived.AnatomicRegionSequence[0].CodeMeaning == "Thoracic structure (body structure)"  # PS3.16
    assert derived.AnatomicRegionSequence[0].AnatomicRegionModifierSequence[0].CodeValue == "24028007"
    assert derived.ViewCodeSequence[0].CodeValue == "399348003"
    kept, _ = derive(tmp_path, tmp_path / "a.dcm")
    assert kept.AnatomicRegionSequence[0].PatientID == "P-4711"  # nothing was asked for


def test_no_free_text_is_left_where_terms_and_codes_are_expected(tmp_path, stored):
    def code(value, **elements):
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", "JANE DOE"
        for keyword, content in elements.items():
            setattr(item, keyword, content)
        return item

    terms = ["BodyPartExamined", "ViewPosition", "DetectorType", "Grid", "PositionerType", "FieldOfViewShape"]
    terms += ["PixelIntensityRelationship", "LossyImageCompressionMethod", "PixelSpacingCalibrationType"]
    terms += ["ConversionType", "PresentationIntentType", "ImageLaterality", "Laterality", "Modality"]
    region = code("51185008", CodingSchemeVersion="JANE", LongCodeValue="JANE")
    region.AnatomicRegionModifierSequence = [code("JANE"), code("24028007")]
    elements = study(
        **{keyword: "CHEST JANE" if keyword == "BodyPartExamined" else "JANE" for keyword in terms},
        PatientOrientation=["DOE", "JANE"],
        ManufacturerModelName="JANE",
        SoftwareVersions=["JANE", "DOE"],
        AnatomicRegionSequence=[region],
        ViewCodeSequence=[code("JANE")],
    )
    file = images.read_file(write_dicom(tmp_path / "a.dcm", stored, **elements))
    dataset, _ = derived_dicom.derived(file.dicom, file.pixels, "Restored.", SALT, "ANON-0001")
    derived_dicom.write(tmp_path / "derived.dcm", dataset)
    written = (tmp_path / "derived.dcm").read_bytes()
    assert b"JANE" not in written and b"DOE" not in written
    again = pydicom.dcmread(tmp_path / "derived.dcm")
    assert [item.CodeValue for item in again.AnatomicRegionSequence] == ["51185008"]
    assert [item.CodeValue for item in again.AnatomicRegionSequence[0].AnatomicRegionModifierSequence] == ["24028007"]
    assert "ViewCodeSequence" not in again and "ContributingEquipmentSequence" not in again


@pytest.mark.parametrize("said", ["YES", "NO", ""])
def test_text_in_the_pixels_is_identity(tmp_path, stored, said):
    source = write_dicom(tmp_path / "a.dcm", stored, **study(BurnedInAnnotation=said))
    derived, _ = derive(tmp_path, source, patient="ANON-0001")
    assert derived.PatientIdentityRemoved == ("NO" if said == "YES" else "YES")
    assert ("DeidentificationMethodCodeSequence" in derived) == (said != "YES")
    assert derived.PatientID == "ANON-0001" and "not removed" in " ".join(derived.DeidentificationMethod)


def test_replaced_uids_agree_between_files(tmp_path, stored):
    def one(instance):
        elements = study(SOPInstanceUID=instance)
        return derive(tmp_path, write_dicom(tmp_path / "a.dcm", stored, **elements), patient="ANON-0001")[0]

    first, second = one("1.7.1"), one("1.7.2")
    assert first.StudyInstanceUID == second.StudyInstanceUID != "1.2.3.1"
    assert first.SeriesInstanceUID == second.SeriesInstanceUID
    assert first.SOPInstanceUID != second.SOPInstanceUID


# --- transfer syntaxes -----------------------------------------------------------------------------------------------


def encode_jpeg(levels):
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write_compressed(path, stored, bits, syntax, **elements):
    """A file in another transfer syntax, by pydicom's own encoders, or Pillow's for JPEG."""
    write_dicom(path, stored, bits, **study(**elements))
    dataset = pydicom.dcmread(path)
    if syntax == uid.JPEGBaseline8Bit:
        dataset.PixelData = pydicom.encaps.encapsulate([encode_jpeg(stored)])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = syntax
    else:
        options = {"j2k_cr": [5]} if syntax == uid.JPEG2000 else {}
        dataset.compress(syntax, generate_instance_uid=False, **options)
    dataset.save_as(path)
    return path


@pytest.mark.parametrize(
    ("syntax", "bits", "tolerance", "lossy"),
    [
        (uid.ImplicitVRLittleEndian, 12, 0, None),
        (uid.DeflatedExplicitVRLittleEndian, 12, 0, None),
        (uid.RLELossless, 12, 0, None),
        (uid.RLELossless, 8, 0, None),
        (uid.JPEG2000Lossless, 12, 0, None),
        (uid.JPEG2000, 12, 100, "01"),
        (uid.JPEGBaseline8Bit, 8, 8, "01"),
    ],
)
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_transfer_syntaxes(tmp_path, syntax, bits, tolerance, lossy, kind):
    if syntax in (uid.JPEG2000, uid.JPEG2000Lossless):
        pytest.importorskip("openjpeg", reason="JPEG 2000 needs pylibjpeg-openjpeg")
    y, x = np.mgrid[:48, :64]
    levels = ((x + y) / 110 * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)
    path = tmp_path / "a.dcm"
    if syntax in (uid.ImplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian):
        write_dicom(path, levels, bits, **study(PhotometricInterpretation=kind))
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = syntax
        pydicom.dcmwrite(path, dataset)
    else:
        write_compressed(path, levels, bits, syntax, PhotometricInterpretation=kind)
    assert pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID == syntax
    shown = levels / (2**bits - 1) * 2 - 1
    expected = -shown if kind == "MONOCHROME1" else shown
    read = images.read_file(path)
    np.testing.assert_allclose(read.pixels[..., 0], expected, atol=2 * tolerance / 2**bits + 1e-6)
    assert read.bits == (8 if bits == 8 else 16)
    derived, _ = derive(tmp_path, path)
    written = derived.pixel_array / (2**bits - 1) * 2 - 1
    np.testing.assert_allclose(written, expected, atol=2 * (tolerance + 1) / 2**bits)
    assert derived.get("LossyImageCompression") == lossy


def test_a_broken_stream_is_named(tmp_path):
    levels = np.zeros((48, 64), np.uint8)
    path = write_compressed(tmp_path / "a.dcm", levels, 8, uid.RLELossless)
    dataset = pydicom.dcmread(path)
    dataset.PixelData = pydicom.encaps.encapsulate([b"\0" * 70])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    with pytest.raises(ImageError, match=r"a\.dcm: the DICOM pixels cannot be decoded"):
        images.read_image(path)


def test_many_threads_derive_at_once(tmp_path, stored):
    file = images.read_file(write_dicom(tmp_path / "a.dcm", stored, **study()))
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(derived_dicom.derived(file.dicom, file.pixels, "", SALT)[0]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({dataset.SOPInstanceUID for dataset in results}) == 1 and len(results) == 8
