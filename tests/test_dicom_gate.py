"""What a DICOM header must say for its image to be taken for a chest radiograph."""

import pytest

pydicom = pytest.importorskip("pydicom", reason="DICOM needs the extra 'dicom'")

from r2c_gan.data import dicom  # noqa: E402

COMPUTED, DIGITAL, CAPTURE, MAGNETIC, FLUOROSCOPY = (
    f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("1", "1.1", "7", "4", "12.2")
)


def header(**elements):
    dataset = pydicom.Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def region(value, meaning):
    return [header(CodeValue=value, CodingSchemeDesignator="SCT", CodeMeaning=meaning)]


@pytest.mark.parametrize(
    "elements",
    [
        {"Modality": "CR", "SOPClassUID": COMPUTED},
        {"Modality": "DX", "SOPClassUID": DIGITAL, "BodyPartExamined": "CHEST"},
        {"Modality": "DX", "SOPClassUID": f"{DIGITAL}.1", "BodyPartExamined": "THORAX"},
        {"Modality": "DX", "SOPClassUID": DIGITAL, "AnatomicRegionSequence": region("51185008", "Thorax")},
        {"Modality": "RG", "SOPClassUID": CAPTURE},
        {"Modality": "CR", "SOPClassUID": CAPTURE, "BodyPartExamined": ""},
        {"Modality": "CR", "SOPClassUID": CAPTURE, "BodyPartExamined": "PORT CHEST"},
        {"Modality": "OT", "SOPClassUID": CAPTURE, "BodyPartExamined": "CHEST"},
        {"SOPClassUID": COMPUTED},
        {"Modality": "CR"},
    ],
)
def test_may_be_a_chest_radiograph(elements):
    assert dicom.unlike_chest_radiograph(header(**elements)) is None


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"Modality": "MR", "SOPClassUID": MAGNETIC, "BodyPartExamined": "CHEST"}, "MR Image Storage"),
        ({"Modality": "CT"}, "Modality is CT"),
        ({"Modality": "CR", "SOPClassUID": FLUOROSCOPY}, "X-Ray Radiofluoroscopic Image Storage"),
        ({"Modality": "US", "SOPClassUID": CAPTURE}, "Modality is US"),
        ({"Modality": "CR", "SOPClassUID": COMPUTED, "BodyPartExamined": "TIBIA"}, "body part is TIBIA"),
        ({"Modality": "DX", "BodyPartExamined": "THORACIC SPINE"}, "body part is THORACIC SPINE"),
        ({"Modality": "DX", "AnatomicRegionSequence": region("12611008", "Tibia")}, "not the chest"),
        ({"Modality": "OT", "SOPClassUID": CAPTURE}, "neither"),
        ({}, "neither"),
    ],
)
def test_is_unlike_a_chest_radiograph(elements, reason):
    assert reason in dicom.unlike_chest_radiograph(header(**elements))


def test_lower_case_counts(monkeypatch):
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.IGNORE)
    assert dicom.unlike_chest_radiograph(header(Modality="dx", BodyPartExamined="thorax")) is None
