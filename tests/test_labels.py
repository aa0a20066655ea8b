"""Which class a radiograph gets and by what rule; what is refused because nobody can tell; what is a mask."""

import os

import cv2
import numpy as np
import pytest
from PIL import Image
from test_duplicates import film

from r2c_gan.data import datasets as data
from r2c_gan.data.datasets import check_images, is_two_valued, read_domain, usable_cases, why_no_film
from r2c_gan.data.images import ImageError
from r2c_gan.data.labels import class_of, class_of_name, is_mask
from r2c_gan.errors import UserError


def touch(folder, *names):
    """Files with these names; a domain is listed without opening them."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def gray(seed):
    return np.rint(255 * film(seed, 64)).astype(np.uint8)


def disc(size=64):
    """A mask: uint8 [H, W] of 0 and 255."""
    axis = np.linspace(-1, 1, size)
    return np.where(np.hypot(axis[:, None], axis) < 0.6, 255, 0).astype(np.uint8)


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["covid_123.png", "covid-19_7.png", "COVID19.png", "covid19(2).jpg", "COVID-19 (12).png", "covid.png",
     "a_COVID.png", "CovidPositive1.png", "testCovid_3.png", "COVIDPneumonia-4.png", "university_covid_3.png",
     "mask-covid-1.png", "covid-19-infection-exclusive-symptoms-l.png", "covid_0.png", "COVID-00012.png",
     "covid_cxnet_0125.png", "covid-19-pneumonia-12-PA.png", "COVID - 3.png", "sub-S09876_ses-E1_covid_vp-ap_dx.png",
     "covid_patient3_day2_nonagon_ante.png", "covid+ve_1.png", "covid_1a2f.png"],
)  # fmt: skip
def test_covid_as_a_word_of_its_own(name):
    assert class_of_name(name) == 1


@pytest.mark.parametrize(
    "name",
    ["normal_1.png", "Normal (0).png", "control-3.png", "person1_virus_7.jpeg", "pneumonia_2.png", "00000013_005.png",
     "sub-S11596_ses-E21420_run-1_bp-chest_vp-ap_dx.png", "negative_1.png", "healthy.png", "1.png", "coronal.png"],
)  # fmt: skip
def test_names_without_covid_are_controls_as_the_authors_have_it(name):
    assert class_of_name(name) == 0


@pytest.mark.parametrize(
    "name",
    ["PCRneg_covid", "PCRNEG_covid", "pcrneg_covid", "coviD_nOn", "covid_ruled_out", "rule-out-covid",
     "viral_pneumonia_covid_rejected", "denied_covid", "covid_unlikely", "covid-absence", "covid_nil", "covid_minus",
     "covid_ve-", "covid-ve", "covid_-ve_3", "covid-", "covid\u2212", "covid_pcr-", "covid-_3", "covid_n", "covid_N_5",
     "other_than_covid", "sin_covid", "sans-covid", "ohne_covid", "kein_covid", "covid_negatief", "covid_negativo",
     "pre_covid", "post-covid", "suspected_covid", "possible covid", "covid_probable", "covid?", "COVID_recovered",
     "exCOVID", "covid=0", "covid_test_negative.1", "no.covid.5", "covid19negative", "C0VID_1", "c\u03bfvid_2"],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["", ".png"])
def test_negations_and_doubts_are_no_label(name, suffix):
    with pytest.raises(ValueError, match="'covid'"):
        class_of_name(name + suffix)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("non-covid_1.png", "beside 'non'"),
        ("non_COVID (3).png", "beside 'non'"),
        ("NonCOVID1.png", "beside 'Non'"),
        ("no_covid.png", "beside 'no'"),
        ("No COVID-19 7.png", "beside 'No'"),
        ("not-covid.png", "beside 'not'"),
        ("COVID-negative_4.png", "beside 'negative'"),
        ("COVIDnegative.png", "beside 'negative'"),
        ("covid_neg_2.png", "beside 'neg'"),
        ("covid19_NEG.png", "beside 'NEG'"),
        ("without_covid.png", "beside 'without'"),
        ("covid-free-2.png", "beside 'free'"),
        ("anti-covid.png", "beside 'anti'"),
        ("covid(-)_1.png", r"beside '\(-\)'"),
        ("covid_normal_1.png", "beside 'normal'"),
        ("noncovid.png", "part of a longer word"),
        ("uncovid.png", "part of a longer word"),
        ("covidnegative.png", "part of a longer word"),
        ("positive_2.png", "'positive' without 'covid'"),
        ("nCoV-radiol.png", "'nCoV' without 'covid'"),
        ("SARS-CoV-2_1.png", "'SARS-CoV' without 'covid'"),
        ("coronavirus_1.png", "'corona' without 'covid'"),
    ],
)
def test_a_name_that_does_not_tell_is_refused(tmp_path, name, why):
    with pytest.raises(ValueError, match=why):
        class_of_name(name)
    touch(tmp_path / "trainA", "covid_1.png", "normal_1.png", name)
    with pytest.raises(UserError, match=rf"{why}\); use class folders .*, or give labels in labels\.csv .*\(1 such"):
        read_domain(tmp_path / "trainA")


def test_a_labels_file_settles_every_name(tmp_path):
    touch(tmp_path, "non-covid_1.png", "covid_2.png").joinpath("labels.csv").write_text(
        "file,label\nnon-covid_1.png,no covid\ncovid_2.png,COVID positive\n"
    )
    assert read_domain(tmp_path).labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "label"),
    [("COVID", 1), ("covid_19", 1), ("Covid 19", 1), ("covid19", 1), ("covid-positive", 1), ("1", 1), ("non_COVID", 0),
     ("Non COVID", 0), ("noncovid", 0), ("COVID_negative", 0), ("0", 0), ("-1", None), ("", None), ("sick", None),
     ("non-covid pneumonia", None)],
)  # fmt: skip
def test_what_labels_may_be_called(text, label):
    assert class_of(text) == label


# --- class folders ---------------------------------------------------------------------------------------------------


def test_a_file_beside_class_folders_is_named(tmp_path):
    folder = touch(tmp_path / "trainA", "control/a.png", "covid/b.png", "covid_1.png", "extra.png")
    says = r"trainA/covid_1\.png: lies beside class folders \(control, covid\); move it into one of .*\(2 such files\)"
    with pytest.raises(UserError, match=says):
        read_domain(folder)


# --- labels files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Labels.csv", "LABELS.CSV", "labels.Csv"])
@pytest.mark.parametrize("where", ["domain", "dataset"])
def test_the_case_of_the_labels_file_does_not_matter(tmp_path, name, where):
    folder = touch(tmp_path / "trainA", "covid_1.png", "b.png")
    prefix = "" if where == "domain" else "trainA/"
    text = f"file,label\n{prefix}covid_1.png,control\n{prefix}b.png,covid\n"
    (folder if where == "domain" else tmp_path).joinpath(name).write_text(text)
    domain = read_domain(folder)
    assert domain.labels.tolist() == [1, 0]
    assert domain.rule == name


def test_two_labels_files_in_one_folder(tmp_path):
    touch(tmp_path, "covid.png", "b.png")
    for name in ("labels.csv", "Labels.csv"):
        (tmp_path / name).write_text("file,label\ncovid.png,0\nb.png,1\n")
    if len(list(tmp_path.glob("[Ll]abels.csv"))) < 2:
        pytest.skip("the file system knows no case")
    with pytest.raises(UserError, match=r"Labels\.csv: beside it lies labels\.csv; keep one"):
        read_domain(tmp_path)


def test_labels_files_of_the_domain_and_of_the_dataset(tmp_path):
    folder = touch(tmp_path / "trainA", "a.png", "b.png")
    (folder / "labels.csv").write_text("file,label\na.png,0\nb.png,1\n")
    (tmp_path / "labels.csv").write_text("file,label\ntrainB/c.png,0\n")
    assert read_domain(folder).labels.tolist() == [0, 1]
    (tmp_path / "labels.csv").write_text("file,label\ntrainB/c.png,0\ntrainA/a.png,1\n")
    with pytest.raises(UserError, match=rf"^{tmp_path}/labels\.csv, line 3: trainA/a\.png has a label already"):
        read_domain(folder)


def test_a_folder_called_labels_csv(tmp_path):
    touch(tmp_path, "covid.png", "b.png").joinpath("labels.csv").mkdir()
    with pytest.raises(UserError, match=r"labels\.csv: not a file"):
        read_domain(tmp_path)


@pytest.mark.parametrize(
    ("rows", "line", "says"),
    [
        (['a.png,"covid', "b.png,control"], 2, "a quotation mark is opened"),
        (['a.png,"covid', "b.png,control", 'c.png,"control"'], 2, "a quotation mark is opened"),
        (["a.png,covid", '"b.png,control', 'c.png",control'], 3, "a quotation mark is opened"),
        (["a.png,covid", 'b.png,"con"trol'], 3, "a quotation mark"),
        (['a.png,"covid', *(f"{number:060d}.png,control" for number in range(5000))], 2, "a quotation mark is opened"),
        (["a.png,covid", ",control"], 3, "names no file"),
    ],
    ids=["to the end", "to the next", "in a name", "in the middle", "past the limit", "no name"],
)
def test_a_row_that_is_no_csv_is_one_line(tmp_path, rows, line, says):
    touch(tmp_path, "a.png", "b.png").joinpath("labels.csv").write_text("\n".join(["file,label", *rows]) + "\n")
    with pytest.raises(UserError, match=rf"^{tmp_path}/labels\.csv, line {line}: {says}") as caught:
        read_domain(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_labels_file_about_other_paths(tmp_path):
    touch(tmp_path / "trainA", "a.png", "b.png")
    (tmp_path / "labels.csv").write_text("file,label\na.png,0\nb.png,1\n")
    with pytest.raises(UserError, match=rf"a\.png: has no label in .*; the paths in it must be relative to {tmp_path}"):
        read_domain(tmp_path / "trainA")


def test_a_column_twice(tmp_path):
    touch(tmp_path, "a.png").joinpath("labels.csv").write_text("file,label,label\na.png,0,1\n")
    with pytest.raises(UserError, match="names the column label twice"):
        read_domain(tmp_path)


# --- what is said of a domain ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "labels", "summary"),
    [
        (["covid/a.png", "control/b.png", "control/c.png"], None,
         "trainA: 3 images (2 control, 1 covid; labels from class folders)"),
        (["covid_a.png", "b.png"], None, "trainA: 2 images (1 control, 1 covid; labels from file names)"),
        (["a.png", "b.png", "a_mask.png"], "file,label\na.png,0\nb.png,1\na_mask.png,0\n",
         "trainA: 2 images (1 control, 1 covid; labels from labels.csv; 1 mask passed over)"),
    ],
)  # fmt: skip
def test_the_summary_counts_and_names_the_rule(tmp_path, names, labels, summary):
    folder = touch(tmp_path / "trainA", *names)
    if labels:
        (folder / "labels.csv").write_text(labels)
    assert read_domain(folder).summary() == summary


def test_a_name_that_is_not_utf_8(tmp_path):
    touch(tmp_path, "covid.png", "b.png")
    try:
        with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb"):
            pass
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    with pytest.raises(UserError, match=r"caf\\udce9\.png: the name is not UTF-8 text; rename it"):
        read_domain(tmp_path)


# --- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["a_mask.png", "mask_a.png", "mask.png", "CHNCXR_1_mask_2.png", "LungMask-1.png", "a masks.png", "masks/a.png",
     "covid/Ground-truths/b.png", "infection masks/b.png", "ManualMask/leftMask/a.png", "a-ground truth.png"],
)  # fmt: skip
def test_masks_by_name(path):
    assert is_mask(path)


@pytest.mark.parametrize("path", ["a.png", "unmasked_1.png", "masked/a.png", "damask.png", "covid/images/a.png"])
def test_no_masks_by_name(path):
    assert not is_mask(path)


def test_masks_are_passed_over_and_counted(tmp_path):
    folder = touch(tmp_path / "trainA", "covid/a.png", "covid/a_mask.png", "control/b.png", "control/masks/b.png")
    domain = read_domain(folder)
    assert [file.name for file in domain.files] == ["b.png", "a.png"]
    assert {file.name for file in domain.masks} == {"a_mask.png", "b.png"}
    with pytest.raises(UserError, match=r"masks: holds no image \(but 1 mask \(such as mask_b\.png\)\)"):
        read_domain(touch(tmp_path / "masks", "mask_b.png"))


def masks():
    """The same mask as scanners of labels save it: exact, in other levels, enlarged and smooth, compressed."""
    exact = disc()
    smooth = cv2.resize(disc(128), (200, 200), interpolation=cv2.INTER_LINEAR)
    return {"exact": exact, "levels": exact // 255, "sides": 50 + exact // 3, "smooth": smooth}


@pytest.mark.parametrize("kind", masks())
def test_pictures_of_two_values_are_masks(kind):
    assert is_two_valued(masks()[kind].astype(np.float32) / 127.5 - 1)


def test_a_mask_as_jpeg_and_in_colour_is_found_in_its_file(tmp_path):
    assert why_no_film(save(tmp_path / "a.jpg", disc(), quality=75)) == data.MASK
    assert why_no_film(save(tmp_path / "b.png", np.stack([disc(), disc() * 0, disc() * 0], -1))) == data.MASK
    assert why_no_film(save(tmp_path / "c.png", gray(1))) is None


@pytest.mark.parametrize("seed", range(5))
def test_films_are_no_masks(seed):
    image = film(seed, 64)
    assert not is_two_valued(image)
    overexposed = np.clip(image, *np.quantile(image, (0.25, 0.75)))  # half of the pixels burnt out
    assert not is_two_valued(overexposed)


# --- bad files -------------------------------------------------------------------------------------------------------


def test_every_bad_file_is_named_before_the_training(tmp_path):
    for name in ("covid_1.png", "covid_2.png", "normal_1.png"):
        save(tmp_path / name, gray(1))
    save(tmp_path / "normal_2.png", disc())
    (tmp_path / "covid_1.png").write_bytes(b"")
    says = r"^2 of \d+ images cannot be used: .*covid_1\.png: the file is empty; .*normal_2\.png: "
    with pytest.raises(ImageError, match=says):
        check_images([read_domain(tmp_path)])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_and_loops_are_named_and_waited_for_by_nobody(tmp_path):
    save(tmp_path / "normal_1.png", gray(1))
    os.mkfifo(tmp_path / "covid_1.png")
    os.symlink("covid_2.png", tmp_path / "covid_2.png")
    os.symlink(".", tmp_path / "loop")
    domain = read_domain(tmp_path)
    assert [bool(why_no_film(file)) for file in domain.files] == [True, True, False]
    os.mkfifo(tmp_path / "labels.csv")
    with pytest.raises(UserError, match=r"labels\.csv: not a file"):
        read_domain(tmp_path)


def test_any_exception_is_the_failure_of_its_file(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", gray(1))
    for error, says in ((ZeroDivisionError("by\nzero"), "cannot be read (ZeroDivisionError: by zero)"),
                        (MemoryError(), "not enough memory"), (PermissionError(13, "Permission denied"),
                        "cannot be read (Permission denied)")):  # fmt: skip
        monkeypatch.setattr(data.images, "read_image", lambda *arguments, error=error: (_ for _ in ()).throw(error))
        assert why_no_film(path) == says


def test_an_evaluation_goes_on_without_bad_cases(tmp_path):
    for index in range(4):
        for folder in ("testA", "testA_reference"):
            save(tmp_path / folder / f"{('covid', 'normal')[index % 2]}_{index}.png", gray(index))
    (tmp_path / "testA" / "covid_0.png").write_bytes(b"GIF89a")
    (tmp_path / "testA_reference" / "normal_3.png").write_bytes(b"")
    domain, failures = usable_cases(read_domain(tmp_path / "testA"), tmp_path / "testA_reference")
    assert [file.name for file in domain.files] == ["covid_2.png", "normal_1.png"]
    assert domain.labels.tolist() == [1, 0]
    assert [failure["file"] for failure in failures] == ["covid_0.png", "normal_3.png"]
    assert failures[0]["reason"].startswith("not a PNG")
    assert failures[1]["reason"].endswith("testA_reference/normal_3.png: the file is empty")
    for file in domain.files:
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"testA: no image can be used; covid_0\.png: "):
        usable_cases(read_domain(tmp_path / "testA"), tmp_path / "testA_reference")
