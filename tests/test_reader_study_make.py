"""Making a reader study: the random design, the pairs, and what the readers' folder gives away (nothing)."""

import importlib.util
import json
import os
import re
import struct
import subprocess
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import programs
import pytest
from PIL import Image

from experiments.reader_study import answers, design
from experiments.reader_study.pairs import find_pairs
from experiments.reader_study.study import write_study
from r2c_gan.data import images
from r2c_gan.errors import UserError

ROOT = Path(__file__).parents[1]


def write_pairs(folder, count=6, size=(24, 20)):
    """originals/ and restored/ with `count` images each; odd ones are COVID-19 by name."""
    rng = np.random.default_rng(0)
    for index in range(count):
        name = f"{'covid' if index % 2 else 'normal'}_{index}.png"
        image = rng.uniform(-1, 1, (*size, 1))
        images.write_image(folder / "originals" / name, image)
        images.write_image(folder / "restored" / name, image / 2)
    return folder / "originals", folder / "restored"


def make(folder, seed=0, repeats=2, output="study", max_side=2048, **write):
    pairs, _ = find_pairs(*(write_pairs(folder, **write) if write else (folder / "originals", folder / "restored")))
    settings = {"title": "A study", "max_side": max_side, "allow_no_preference": False}
    key = write_study(folder / output, pairs, repeats=repeats, seed=seed, **settings)
    return key, pairs, folder / output


# --- The design -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cases", "repeats"), [(2, 0), (2, 1), (5, 2), (20, 2), (50, 5), (51, 25)])
def test_the_design_keeps_its_promises_for_every_seed(cases, repeats):
    labels = ["covid" if index % 3 == 0 else "control" for index in range(cases)]
    for seed in range(20):
        shown = design.draw_presentations(labels, repeats, np.random.default_rng(seed))
        first = [each for each in shown if not each.repeat]
        again = [each for each in shown if each.repeat]
        assert sorted(each.case for each in first) == list(range(cases))
        assert len(again) == repeats == len({each.case for each in again})
        for repeat in again:
            before = next(each for each in first if each.case == repeat.case)
            assert {before.restored_side, repeat.restored_side} == {"left", "right"}
            assert before.diagnosed == repeat.diagnosed
            assert shown.index(repeat) - shown.index(before) > design.gap(cases) >= 1
        for label in set(labels):
            members = [each for each in first if labels[each.case] == label]
            combinations = Counter((each.restored_side, each.diagnosed) for each in members)
            counts = [combinations[side, image] for side in design.SIDES for image in design.IMAGES]
            assert max(counts) - min(counts) <= 1
    with pytest.raises(ValueError, match="do not fit"):
        design.draw_presentations(labels, cases, np.random.default_rng(0))


def test_every_case_and_side_can_come_first_and_a_seed_gives_one_design():
    labels = ["covid", "control"] * 4

    def draw(seed):
        return design.draw_presentations(labels, 1, np.random.default_rng(seed))

    openings = {(draw(seed)[0].case, draw(seed)[0].restored_side, draw(seed)[0].diagnosed) for seed in range(300)}
    assert len(openings) == 8 * 2 * 2
    assert draw(5) == draw(5) != draw(6)


def test_what_is_on_a_side_follows_from_the_restored_one():
    shown = design.Presentation(0, False, "right", "original")
    assert [shown.image_on(side) for side in ("left", "right")] == ["original", "restored"]
    assert [shown.side_of(image) for image in ("original", "restored")] == ["left", "right"]


@pytest.mark.parametrize(
    ("control", "covid", "number", "expected"), [(50, 50, 20, {10}), (50, 4, 20, {16, 4}), (3, 4, 7, {3, 4})]
)
def test_the_classes_of_the_chosen_cases_are_balanced_where_they_can_be(control, covid, number, expected):
    labels = ["control"] * control + ["covid"] * covid
    chosen = [design.choose_cases(labels, number, np.random.default_rng(seed)) for seed in range(5)]
    for indices in chosen:
        assert len(set(indices)) == number
        assert set(Counter(labels[index] for index in indices).values()) == expected
    assert number == len(labels) or chosen[0] != chosen[1]


# --- The pairs --------------------------------------------------------------------------------------------------------


def test_pairs_are_found_by_path_whatever_the_suffix(tmp_path):
    image = np.zeros((12, 12))
    for name in ("control/a.png", "covid/a.png", "covid/lonely.png"):
        images.write_image(tmp_path / "originals" / name, image)
    Image.new("L", (12, 12)).save(tmp_path / "originals" / "control" / "b.jpeg")
    for name in ("control/a.png", "control/b.png", "covid/a.png", "panels/a.png"):
        images.write_image(tmp_path / "restored" / name, image)
    pairs, unpaired = find_pairs(tmp_path / "originals", tmp_path / "restored")
    assert [(pair.name, pair.label, pair.patient) for pair in pairs] == [
        ("control/a.png", "control", "control/a.png"),
        ("control/b.jpeg", "control", "control/b.jpeg"),
        ("covid/a.png", "covid", "covid/a.png"),
    ]
    assert pairs[1].restored == tmp_path / "restored" / "control" / "b.png"
    assert unpaired == ["covid/lonely.png"]


def test_labels_and_patients_come_from_a_file(tmp_path):
    originals, restored = write_pairs(tmp_path, 3)
    rows = ["file,label,patient", "normal_0.png,positive,p1", "covid_1.png,0,p1", "normal_2.png,covid,unknown"]
    (tmp_path / "labels.csv").write_text("\n".join([*rows, "another.png,flu,p9"]))
    pairs, _ = find_pairs(originals, restored, tmp_path / "labels.csv")
    assert {pair.name: (pair.label, pair.patient) for pair in pairs} == {
        "normal_0.png": ("covid", "p1"),
        "covid_1.png": ("control", "p1"),
        "normal_2.png": ("covid", "normal_2.png"),
    }
    # Also relative to the CSV's own folder, as a datasets folder's manifest.csv has it.
    (tmp_path / "manifest.csv").write_text("\n".join([rows[0], *("originals/" + row for row in rows[1:])]))
    assert find_pairs(originals, restored, tmp_path / "manifest.csv")[0] == pairs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "labels.csv: no such file"),
        ("name,label\n", "must name the columns file,label"),
        ("file,label\nnormal_0.png,flu\n", "line 2: unknown label 'flu'"),
        ("file,label\nnormal_0.png,0\nnormal_0.png,0\n", "line 3: normal_0.png has a label already"),
        ("file,label\nnormal_0.png,0\n", r"no row for .*covid_1.png \(2 such files\)"),
    ],
)
def test_a_wrong_labels_file_is_named(tmp_path, text, message):
    originals, restored = write_pairs(tmp_path, 3)
    if text is not None:
        (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        find_pairs(originals, restored, tmp_path / "labels.csv")


def test_folders_that_do_not_match_are_named(tmp_path):
    originals, restored = write_pairs(tmp_path, 2)
    (tmp_path / "empty").mkdir()
    images.write_image(tmp_path / "others" / "x.png", np.zeros((4, 4)))
    with pytest.raises(UserError, match=r"--restored=.*empty: holds no image"):
        find_pairs(originals, tmp_path / "empty")
    with pytest.raises(
        UserError, match=r"--restored=.*others: holds no image named as one of .*originals \(covid_1, say"
    ):
        find_pairs(originals, tmp_path / "others")
    Image.new("L", (4, 4)).save(originals / "covid_1.jpg")
    with pytest.raises(UserError, match=r"--original: .*covid_1.jpg and .*covid_1.png would be one case"):
        find_pairs(originals, restored)


# --- The folder -------------------------------------------------------------------------------------------------------


def public_study(folder):
    """What index.html tells the page."""
    text = (folder / "for_readers" / "index.html").read_text(encoding="utf-8")
    return text, json.loads(re.search(r'id="study">(.*?)</script>', text, re.DOTALL)[1])


def test_what_readers_get_is_what_the_key_says(tmp_path):
    key, pairs, folder = make(tmp_path, count=6)
    assert answers.read_key(folder / "key.json") == json.loads(json.dumps(key))
    _, study = public_study(folder)
    assert study["study"] == key["study"] and len(study["presentations"]) == 8
    for shown, private in zip(study["presentations"], key["presentations"], strict=True):
        assert shown == {name: private[name] for name in ("id", "left", "right")} | {
            "diagnose": private["diagnosed_side"]
        }
        pair = pairs[private["case"]]
        for side in design.SIDES:
            source = pair.restored if side == private["restored_side"] else pair.original
            pixels = cv2.imread(str(folder / "for_readers" / shown[side]), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(pixels, cv2.imread(str(source), cv2.IMREAD_UNCHANGED))


def test_the_readers_folder_gives_nothing_away(tmp_path):
    key, pairs, folder = make(tmp_path, count=6)
    readers = folder / "for_readers"
    text, study = public_study(folder)
    files = sorted(path for path in readers.rglob("*") if path.is_file())
    shown = [shown[side] for shown in study["presentations"] for side in design.SIDES]
    # Every showing has files of its own, so that a repeat is not known by its name.
    assert sorted(shown) == sorted(str(path.relative_to(readers)) for path in files if path.suffix == ".png")
    assert all(re.fullmatch(r"images/[0-9a-f]{12}\.png", name) for name in shown)
    assert [path.name for path in readers.iterdir() if path.name != "images"] == ["index.html"]
    assert len({path.stat().st_mtime for path in [*files, readers, readers / "images"]}) == 1
    data = text.split('id="study">')[1].split("</script>")[0]
    for secret in ("restored", "original", "repeat", "control", "covid", "seed", *(pair.name for pair in pairs)):
        assert secret not in data
    for presentation in key["presentations"]:
        headers = [png_header(readers / presentation[side]) for side in design.SIDES]
        assert headers[0] == headers[1] == (20, 24, 8, 0)  # 8-bit gray, as both were
    # The place of a name among the sorted ones says neither side, nor order, nor which is restored.
    order = sorted(shown)
    assert order != shown and any(
        order.index(pair["left"]) > order.index(pair["right"]) for pair in study["presentations"]
    )


def png_header(path):
    """(width, height, bits, colour type) of a PNG that holds nothing but pixels."""
    data, start, kinds = path.read_bytes(), 8, []
    while start < len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        kinds.append(kind)
        start += 12 + length
    assert set(kinds) == {b"IHDR", b"IDAT", b"IEND"} and start == len(data)
    return struct.unpack_from(">IIBB", data, 16)


def test_kinds_of_files_are_told_apart_by_nothing(tmp_path):
    """A 16-bit colour original and a JPEG with EXIF, the restored ones of another size: all come out alike."""
    (tmp_path / "originals").mkdir()
    levels = np.random.default_rng(0).integers(0, 65536, (30, 40, 3), "uint16")
    cv2.imwrite(str(tmp_path / "originals" / "covid.png"), levels)
    exif = Image.Exif()
    exif[0x010E] = "the secret description"
    Image.new("RGB", (40, 30), (90, 90, 90)).save(tmp_path / "originals" / "b.jpg", exif=exif)
    for name in ("covid.png", "b.png"):
        images.write_image(tmp_path / "restored" / name, np.zeros((15, 20)))
    key, _, folder = make(tmp_path, repeats=0, max_side=32)
    headers = {
        png_header(folder / "for_readers" / each[side]) for each in key["presentations"] for side in design.SIDES
    }
    assert headers == {(32, 24, 8, 0)}
    assert all(b"secret" not in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_seed_gives_the_same_bytes_and_another_one_another_study(tmp_path):
    first, _, folder = make(tmp_path, count=5)
    again, _, twin = make(tmp_path, output="again")
    other, _, _ = make(tmp_path, seed=1, output="other")
    assert first == again and first["study"] != other["study"]
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert all((folder / name).read_bytes() == (twin / name).read_bytes() for name in files)
    assert not {each["left"] for each in first["presentations"]} & {each["left"] for each in other["presentations"]}


def test_the_page_names_no_other_machine_and_escapes_its_title(tmp_path):
    pairs, _ = find_pairs(*write_pairs(tmp_path))
    settings = {"repeats": 0, "seed": 0, "max_side": 64, "allow_no_preference": True}
    write_study(tmp_path / "study", pairs, title="<b>Lungs & more</b></script>", **settings)
    text, study = public_study(tmp_path / "study")
    assert "<title>&lt;b&gt;Lungs &amp; more&lt;/b&gt;&lt;/script&gt;</title>" in text and "<b>Lungs" not in text
    assert study["allow_no_preference"] is True
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE))
    assert "{{" not in text and "default-src 'none'" in text


def test_a_failure_leaves_nothing_behind(tmp_path):
    _, restored = write_pairs(tmp_path)
    images.write_image(restored / "normal_4.png", np.zeros((24, 30)))
    with pytest.raises(UserError, match=r"normal_4.png: has not the shape of .*\(30 x 24 and 20 x 24 pixels\)"):
        make(tmp_path)
    (restored / "normal_4.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"normal_4.png: not a PNG"):
        make(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["originals", "restored"]


def test_a_study_is_never_overwritten(tmp_path):
    _, _, folder = make(tmp_path, count=4, repeats=0)
    before = (folder / "key.json").read_bytes()
    with pytest.raises(UserError, match=r"--output_dir=.*study: is not empty; a study is never overwritten"):
        make(tmp_path, seed=3, repeats=0)
    assert (folder / "key.json").read_bytes() == before
    with pytest.raises(UserError, match="is a file; give a folder"):
        make(tmp_path, repeats=0, output="originals/covid_1.png")


# --- The program ------------------------------------------------------------------------------------------------------


def program(folder, *flags):
    command = programs.python("-m", "experiments.reader_study.make", "--original", folder / "originals")
    command += ["--restored", folder / "restored", "--output_dir", folder / "study", *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, check=False)


def test_the_program_makes_a_study(tmp_path):
    write_pairs(tmp_path, 24)
    (tmp_path / "restored" / "normal_0.png").unlink()
    done = program(tmp_path, "--cases", "20", "--repeats", "0.1", "--seed", "7")
    assert done.returncode == 0, done.stderr
    key = answers.read_key(tmp_path / "study" / "key.json")
    assert Counter(case["label"] for case in key["cases"]) == {"control": 10, "covid": 10}
    assert len(key["presentations"]) == 22 and key["seed"] == 7
    assert "left out for want of a restored image: 1 of the originals, normal_0.png first" in done.stdout
    assert "20 cases (10 control, 10 covid), 2 of them shown twice" in done.stdout
    assert "--seed=7" in (tmp_path / "study" / "flags.txt").read_text()
    assert not (tmp_path / "study" / "for_readers" / "flags.txt").exists()  # the seed would unblind


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--cases=99",), "--cases=99: must be from 2 to the 4 pairs that were found"),
        (("--repeats=0.7",), "--repeats=0.7: must be from 0 to 0.5"),
        (("--labels=labels.csv",), "--labels=labels.csv: no such file"),
    ],
)
def test_the_program_refuses_in_one_line(tmp_path, flags, message):
    write_pairs(tmp_path, 4)
    done = program(tmp_path, *flags)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and message in done.stderr
    assert not (tmp_path / "study").exists()


def test_a_study_of_one_class_is_refused(tmp_path):
    write_pairs(tmp_path, 1)
    images.write_image(tmp_path / "originals" / "b.png", np.zeros((9, 9)))
    images.write_image(tmp_path / "restored" / "b.png", np.zeros((9, 9)))
    done = program(tmp_path)
    assert done.returncode == 1 and "all 2 cases are labelled 'control'" in done.stderr


def test_the_package_names_its_two_programs():
    command = programs.python("-m", "experiments.reader_study")
    for flags, code in ((["--help"], 0), ([], 1)):
        done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == code
        for name in ("experiments.reader_study.make", "experiments.reader_study.analyse"):
            assert name in done.stdout + done.stderr and importlib.util.find_spec(name)
