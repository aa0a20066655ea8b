"""Every layout becomes the same kind of records; whatever is wrong with a row is said with its line."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from test_images import write_dicom

from data_prep.sources import read_header, read_source
from r2c_gan.data.images import write_image
from r2c_gan.errors import UserError


def touch(root, *names):
    """Files with these names; the layouts are read without opening them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def by_name(root):
    records, problems = read_source(root)
    assert not problems
    return {record.path.relative_to(root).as_posix(): record for record in records}


# --- class folders ---------------------------------------------------------------------------------------------------


def test_class_folders_in_any_spelling(tmp_path):
    root = touch(tmp_path / "clinic", "COVID-19/b.png", "Normal/a.JPG", "Normal/2021/c.dcm", "Normal/notes.txt")
    records, problems = read_source(root)
    assert not problems
    assert [(record.name, record.label) for record in records] == [
        ("clinic/COVID-19/b.png", "covid"),
        ("clinic/Normal/2021/c.dcm", "control"),
        ("clinic/Normal/a.JPG", "control"),
    ]
    assert {record.source for record in records} == {"clinic"}
    assert {(record.patient, record.view, record.quality, record.split) for record in records} == {
        ("unknown", "unknown", None, None)
    }


def test_masks_are_no_radiographs(tmp_path):
    root = touch(tmp_path, "covid/images/a.png", "covid/masks/a.png", "covid/mask_a.png", "covid/Ground-truths/b.png")
    assert [record.path.name for record in read_source(root)[0]] == ["a.png"]


def test_masks_are_counted(tmp_path):
    root = touch(tmp_path, "covid/a.png", "covid/a_mask.png", "Ground-truths/a.png", "control/b.png")
    assert not read_source(root, masks := [])[1]
    assert [path.relative_to(root).as_posix() for path in masks] == ["Ground-truths/a.png", "covid/a_mask.png"]
    path = write_list(root, "file,label\ncovid/a.png,1\ncovid/a_mask.png,1\n")
    assert len(read_source(path, listed := [])[0]) == len(listed) == 1


def test_a_labels_file_beside_class_folders_is_not_overlooked(tmp_path):
    root = touch(tmp_path, "covid/a.png", "control/b.png", "Labels.csv")
    with pytest.raises(UserError, match=rf"Labels\.csv: to use its labels, give --source={root}/Labels\.csv"):
        read_source(root)


def test_folders_that_are_no_label_are_named(tmp_path):
    records, problems = read_source(touch(tmp_path, "covid/a.png", "Lung_Opacity/b.png", "c.png"))
    assert len(records) == 1
    assert f"{tmp_path}/Lung_Opacity/b.png: the folder 'Lung_Opacity' is no label; labels are" in str(problems[0])
    assert f"{tmp_path}/c.png: is in no class folder" in str(problems[1])
    assert problems[1].name == f"{tmp_path.name}/c.png"


def test_the_current_folder_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(touch(tmp_path / "here", "covid/a.png"))
    assert read_source(Path())[0][0].name == "here/covid/a.png"


def test_a_symlink_loop_is_entered_once(tmp_path):
    root = touch(tmp_path / "x", "covid/a.png")
    os.symlink(root, root / "covid" / "again")
    assert [record.name for record in read_source(root)[0]] == ["x/covid/a.png"]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "no such file or folder"),
        (lambda path: path.mkdir(), "holds no image"),
        (lambda path: path.write_bytes(b"PK"), r"a folder or a \.csv file is expected"),
    ],
)
def test_no_source(tmp_path, make, says):
    make(tmp_path / "there")
    with pytest.raises(UserError, match=f"there: {says}"):
        read_source(tmp_path / "there")


# --- the authors' archive --------------------------------------------------------------------------------------------


def test_the_authors_archive(tmp_path):
    root = touch(
        tmp_path / "archive", "trainA/covid_1.png", "trainA/normal_2.png", "trainB/covid_3.png", "testA/normal_4.png",
        "testA_reference/normal_4.png", "checkpoints/x.png",
    )  # fmt: skip
    records = by_name(root)
    assert {name: (record.label, record.quality, record.split) for name, record in records.items()} == {
        "trainA/covid_1.png": ("covid", "poor", "train"),
        "trainA/normal_2.png": ("control", "poor", "train"),
        "trainB/covid_3.png": ("covid", "good", "train"),
        "testA/normal_4.png": ("control", "poor", "test"),
    }


# --- QaTa-COV19 ------------------------------------------------------------------------------------------------------

SUB = "sub-S11596_ses-E21420_run-1_bp-chest_vp-ap_dx"
V2 = "QaTa-COV19/QaTa-COV19-v2"
CONTROL = "QaTa-COV19/Control_Group"


@pytest.fixture
def qata(tmp_path):
    return touch(
        tmp_path / "archive",
        f"{V2}/Train Set/Images/covid_12.png",
        f"{V2}/Train Set/Ground-truths/mask_covid_12.png",
        f"{V2}/Test Set/Images/{SUB}.png",
        f"{V2}/Test Set/Ground-truths/mask_{SUB}.png",
        "QaTa-COV19/QaTa-COV19-v1/Images/covid_1.png",
        "QaTa-COV19/QaTa-COV19-v1/Ground-truths/covid_1.png",
        "QaTa-COV19/Early-QaTa-COV19/No_COVID-19_Pneumonia_Cases/sub-S03_ses-E1_run-2_bp-chest_cr.png",
        "QaTa-COV19/Early-QaTa-COV19/Limited_COVID-19_Pneumonia_Cases/b.png",
        f"{CONTROL}/Control_Group_I/c.png",
        f"{CONTROL}/Control_Group_II/CHESTXRAY-14/Train/00000013_005.png",
        f"{CONTROL}/Control_Group_II/CHESTXRAY-14/Test/00000013_006.png",
        f"{CONTROL}/Control_Group_II/Pediatric_Viral_Pneumonia/person1_virus_7.jpeg",
    )


def test_qata_whole(qata):
    found = {
        record.path.name: (record.label, record.source, record.split) for record in by_name(qata).values()
    }  # without the masks
    early = "sub-S03_ses-E1_run-2_bp-chest_cr.png"
    assert found == {
        "covid_12.png": ("covid", "QaTa-COV19-v2", "train"),
        f"{SUB}.png": ("covid", "QaTa-COV19-v2", "test"),
        "covid_1.png": ("covid", "QaTa-COV19-v1", None),
        early: ("covid", "Early-QaTa-COV19/No_COVID-19_Pneumonia_Cases", None),
        "b.png": ("covid", "Early-QaTa-COV19/Limited_COVID-19_Pneumonia_Cases", None),
        "c.png": ("control", "Control_Group/Control_Group_I", None),
        "00000013_005.png": ("control", "Control_Group/Control_Group_II/CHESTXRAY-14", "train"),
        "00000013_006.png": ("control", "Control_Group/Control_Group_II/CHESTXRAY-14", "test"),
        "person1_virus_7.jpeg": ("control", "Control_Group/Control_Group_II/Pediatric_Viral_Pneumonia", None),
    }


def test_qata_names_tell_patient_view_and_modality(qata):
    records = {record.path.name: record for record in by_name(qata).values()}
    told = {name: (record.patient, record.view, record.modality) for name, record in records.items()}
    assert told[f"{SUB}.png"] == ("S11596", "AP", "DX")
    assert told["sub-S03_ses-E1_run-2_bp-chest_cr.png"] == ("S03", "unknown", "CR")
    assert told["covid_12.png"] == ("unknown", "unknown", "unknown")
    assert told["00000013_005.png"] == told["00000013_006.png"] == ("NIH-00000013", "unknown", "unknown")


@pytest.mark.parametrize(
    ("part", "labels", "sources"),
    [
        (V2, {"covid"}, {"QaTa-COV19-v2"}),
        (f"{V2}/Test Set", {"covid"}, {"QaTa-COV19-v2"}),
        (f"{CONTROL}/Control_Group_I", {"control"}, {"Control_Group/Control_Group_I"}),
        (CONTROL, {"control"}, {
            "Control_Group/Control_Group_I", "Control_Group/Control_Group_II/CHESTXRAY-14",
            "Control_Group/Control_Group_II/Pediatric_Viral_Pneumonia",
        }),
        ("QaTa-COV19/Early-QaTa-COV19", {"covid"}, {
            "Early-QaTa-COV19/No_COVID-19_Pneumonia_Cases", "Early-QaTa-COV19/Limited_COVID-19_Pneumonia_Cases",
        }),
    ],
)  # fmt: skip
def test_qata_part(qata, part, labels, sources):
    records = by_name(qata / part).values()
    assert {record.label for record in records} == labels
    assert {record.source for record in records} == sources


def test_qata_with_spaces_instead_of_underscores(tmp_path):
    root = touch(tmp_path, "Early-QaTa-COV19/No COVID-19 Pneumonia Cases/a.png", "Control Group/Control Group I/b.png")
    assert [record.label for record in read_source(root)[0]] == ["control", "covid"]


def test_what_is_not_qata_is_named(qata):
    touch(qata, "QaTa-COV19/extra/x.png")
    assert "x.png: not in a folder of a QaTa-COV19 release" in str(read_source(qata)[1][0])


# --- CSV -------------------------------------------------------------------------------------------------------------


def write_list(root, text, encoding="utf-8"):
    (root / "list.csv").write_text(text, encoding=encoding)
    return root / "list.csv"


def test_csv_with_every_column(tmp_path):
    root = touch(tmp_path / "clinic", "in/a.png", "in/b.dcm", "in/c.png", "in/d.png")
    path = write_list(
        root,
        "file,label,patient,view,source,quality,split,remark\n"
        "in/a.png,COVID-19,p7,AP,east,good,test,x\n"
        "in/b.dcm,normal,,,,Poor,,\n"
        "in/c.png,1,Anonymous,n/a,west,0.25,train,\n"
        "in/d.png, control ,,,,,,\n",
        encoding="utf-8-sig",
    )
    records, problems = read_source(path)
    assert not problems
    told = [(r.label, r.patient, r.view, r.source, r.quality, r.split) for r in records]
    assert told == [
        ("covid", "p7", "AP", "east", "good", "test"),
        ("control", "unknown", "unknown", "clinic", "poor", None),
        ("covid", "unknown", "unknown", "west", 0.25, "train"),
        ("control", "unknown", "unknown", "clinic", None, None),
    ]
    assert records[0].name == "clinic/in/a.png"
    assert records[0].path == root / "in/a.png"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("none.png,covid,,", r"none\.png: no such file"),
        (",covid,,", "an empty name: no such file"),
        ("loop.png,covid,,", r"loop\.png: no such file"),
        ("b.png,maybe,,", "unknown label 'maybe'; labels are control"),
        ("b.png,,,", "unknown label ''"),
        ("b.png", "unknown label ''"),
        ("a.png,covid,,", r"a\.png is already listed in line 2"),
        ("./a.png,covid,,", "is already listed in line 2"),
        ("../a.png,covid,,", r"\.\./a\.png: no such file"),
        ("b.png,covid,fair,", "unknown quality 'fair'; it must be good, poor or a score"),
        ("b.png,covid,1.5,", r"unknown quality '1\.5'"),
        ("b.png,covid,nan,", "unknown quality 'nan'"),
        ("b.png,covid,,holdout", "unknown split 'holdout'; it must be train, val, test or empty"),
    ],
)
def test_a_bad_row_is_said_with_its_line(tmp_path, row, says):
    touch(tmp_path, "a.png", "b.png")
    os.symlink(tmp_path / "loop.png", tmp_path / "loop.png")
    path = write_list(tmp_path, f"file,label,quality,split\na.png,covid,,\n{row}\n")
    records, problems = read_source(path)
    assert [record.path.name for record in records] == ["a.png"]
    assert len(problems) == 1
    assert re.search(rf"^{path}: line 3: .*{says}", str(problems[0]))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a.png,covid\n", "its first line must name the columns file,label"),
        (b"", "its first line must name the columns file,label"),
        (b"file,label\n\xff\xfe,covid\n", "not a readable CSV file"),
        (b"file,label\n", "holds no image"),
        (b'file,label\na.png,"covid\nb.png,covid\n', ", line 2: a quotation mark is opened"),
    ],
)
def test_a_csv_that_is_none(tmp_path, content, says):
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(UserError, match=rf"list\.csv(: )?{says}"):
        read_source(tmp_path / "list.csv")


# --- DICOM headers ---------------------------------------------------------------------------------------------------


def test_dicom_header(tmp_path):
    stored = np.zeros((40, 40), np.uint16)
    path = write_dicom(tmp_path / "a", stored, PatientID="77", ViewPosition="PA", Modality="DX")
    assert read_header(path) == {"patient": "77", "view": "PA", "modality": "DX"}
    nobody = write_dicom(tmp_path / "b.dcm", stored, PatientID="ANONYMOUS", ViewPosition="")
    assert read_header(nobody) == {}


def test_no_dicom_header_in_a_png(tmp_path):
    write_image(tmp_path / "a.png", np.zeros((40, 40)))
    assert read_header(tmp_path / "a.png") == {}
