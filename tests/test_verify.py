"""A sound folder passes; every way to leak, and every kind of damage, is found and named."""

import csv
import dataclasses
import json
import os
import shutil
import subprocess

import cv2
import numpy as np
import programs
import pytest
from PIL import Image
from test_prepare import gray, make_source

from data_prep.manifest import COLUMNS, UNKNOWN, read_manifest
from data_prep.prepare import Preparation, prepare
from data_prep.sources import read_source
from data_prep.verify import Item, _duplicates, guess_by_source, probe_sources, report, verify
from r2c_gan import files
from r2c_gan.data import images
from r2c_gan.errors import UserError


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A datasets folder of 32 films of 16 patients and two sources, each with both classes."""
    root = make_source(tmp_path_factory.mktemp("source") / "pile", 32, 32, side=64)
    lines = [
        f"{label}/{label}{index}.png,{label},{label}-{index // 2},{'ab'[index % 4 // 2]}"
        for label in ("covid", "control")
        for index in range(32)
    ]
    (root / "list.csv").write_text("file,label,patient,source\n" + "\n".join(lines) + "\n")
    folder = tmp_path_factory.mktemp("sound") / "set"
    folder.mkdir()
    prepare(folder, *read_source(root / "list.csv"), Preparation(size=64, val_fraction=0.25, test_fraction=0.25))
    return folder


@pytest.fixture
def folder(sound, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(sound, tmp_path / "set")


def first(folder, name, index=0):
    return sorted((folder / name).rglob("*.png"))[index]


def edit_manifest(folder, change):
    """Rewrites the manifest with `change(row)` applied to every row; None drops the row."""
    rows = [change(dict(row)) for row in read_manifest(folder).values()]
    files.write_csv(folder / "manifest.csv", [row for row in rows if row], COLUMNS)


def leaks(result, kind):
    return [sorted(leak["files"]) for leak in result["leaks"] if leak["kind"] == kind]


def relative(folder, *paths):
    return sorted(path.relative_to(folder).as_posix() for path in paths)


# --- a sound folder --------------------------------------------------------------------------------------------------


def test_a_sound_folder_has_nothing_to_say(sound):
    result = verify(sound)
    assert result["leaks"] == result["errors"] == result["warnings"] == []
    assert result["images"] == result["patients_known"] == len(list(sound.rglob("*.png")))
    assert result["counts"]["trainA"] == {"control": 8, "covid": 8}
    assert list(result["counts"]) == [
        "trainA", "trainB", "valA", "valA_reference", "valB", "testA", "testA_reference", "testB"
    ]  # fmt: skip
    assert result["label_by_source"]["cramers_v"] < 0.1
    json.dumps(result, allow_nan=False)


def test_the_report_shows_counts_and_ends_with_a_verdict(sound):
    lines = report(verify(sound)).splitlines()
    assert lines[0].split() == ["folder", "control", "covid"]
    assert ["trainA", "8", "8"] in [line.split() for line in lines]
    assert lines[-1].endswith("0 leaks, 0 errors, 0 warnings")


def test_it_writes_nothing_into_the_folder(sound):
    before = sorted(sound.rglob("*"))
    verify(sound)
    assert sorted(sound.rglob("*")) == before


# --- leaks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "target"), [("trainB", "testB"), ("trainA", "valA"), ("testA_reference", "trainB")])
def test_the_same_file_in_two_splits(folder, source, target):
    original = first(folder, source)
    copy = folder / target / original.parent.name / "another_name.png"
    copy.parent.mkdir(exist_ok=True)
    shutil.copy(original, copy)
    assert relative(folder, original, copy) in leaks(verify(folder), "same file")


def test_a_file_saved_again_in_another_split(folder):
    original = first(folder, "trainB")
    small = cv2.resize(np.asarray(Image.open(original)), (40, 40), interpolation=cv2.INTER_AREA)
    copy = folder / "testB" / original.parent.name / "another.jpg"
    Image.fromarray(small).save(copy, quality=60)
    result = verify(folder)
    assert leaks(result, "near-duplicates") == [relative(folder, original, copy)]
    assert "bits differ" in result["leaks"][0]["detail"]


def test_a_degraded_image_whose_clean_film_is_in_another_split(folder):
    """Only the manifest knows: the image is degraded beyond recognition here."""
    degraded = first(folder, "trainA")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)
    Image.fromarray(noise).save(degraded)
    name = degraded.relative_to(folder).as_posix()
    clean = first(folder, "testB")
    phash = read_manifest(folder)[clean.relative_to(folder).as_posix()]["phash"]
    changes = {"sha256": files.sha256(degraded), "phash": phash}
    edit_manifest(folder, lambda row: row | changes if row["file"] == name else row)
    assert leaks(verify(folder), "near-duplicates") == [relative(folder, degraded, clean)]
    (folder / "manifest.csv").unlink()
    assert leaks(verify(folder), "near-duplicates") == []


def test_a_false_hash_in_the_manifest_does_not_hide_a_leak(folder):
    original = first(folder, "trainB")
    copy = folder / "testB" / original.parent.name / "copy.png"
    shutil.copy(original, copy)
    name = original.relative_to(folder).as_posix()
    edit_manifest(folder, lambda row: row | {"phash": "0f" * 32} if row["file"] == name else row)
    assert leaks(verify(folder), "same file") == [relative(folder, original, copy)]


def test_a_patient_in_two_splits(folder):
    chosen = relative(folder, first(folder, "trainB"), first(folder, "testA"))
    edit_manifest(folder, lambda row: row | {"patient": "p"} if row["file"] in chosen else row)
    result = verify(folder)
    assert leaks(result, "patient") == [chosen]
    assert "patient p is in train and test" in result["leaks"][0]["detail"]


def test_unknown_patients_are_not_compared(folder):
    edit_manifest(folder, lambda row: row | {"patient": "unknown"})
    result = verify(folder)
    assert result["leaks"] == []
    assert result["patients_known"] == 0


# --- errors ----------------------------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_decoded(folder):
    path = first(folder, "testA")
    path.write_bytes(path.read_bytes()[:-100])
    result = verify(folder)
    assert result["errors"] == [f"{path}: truncated or damaged PNG"]


def test_any_exception_is_the_error_of_its_file(folder, monkeypatch):
    path, read = first(folder, "trainB"), images.read_image

    def broken(file, *arguments, **more):
        if file == path:
            raise ZeroDivisionError("division by zero")
        return read(file, *arguments, **more)

    monkeypatch.setattr(images, "read_image", broken)
    result = verify(folder)
    assert result["errors"] == [f"{path}: cannot be read (ZeroDivisionError: division by zero)"]
    assert result["images"] == len(list(folder.rglob("*.png"))) - 1


def test_a_mask_among_the_images(folder):
    path = first(folder, "trainB")
    Image.fromarray(np.uint8(255 * (gray(1) > 100))).save(path)
    shutil.copy(first(folder, "trainB", 1), path.with_name("film_mask.png"))
    result = verify(folder)
    assert result["errors"] == [f"{path}: two gray values only: a mask, no radiograph"]
    assert warned(result, "trainB: 1 masks are passed over, such as trainB/control/film_mask.png")


def test_the_rule_of_the_labels_is_said(folder):
    rows = [f"{path.relative_to(folder / 'trainB')},{path.parent.name}" for path in (folder / "trainB").rglob("*.png")]
    (folder / "trainB" / "Labels.csv").write_text("\n".join(["file,label", *rows]) + "\n")
    result = verify(folder)
    assert result["labels"]["trainA"] == "class folders"
    assert result["labels"]["trainB"] == "Labels.csv"
    assert "labels from Labels.csv: trainB" in report(result).splitlines()
    assert "labels from class folders: trainA, valA, valA_reference, valB, testA" in report(result)


def test_a_missing_twin(folder):
    twin = first(folder, "testA_reference")
    twin.unlink()
    image = twin.relative_to(folder).as_posix().replace("_reference", "")
    assert verify(folder)["errors"] == [f"{image}: has no reference image"]


def test_an_unknown_label_is_named(folder):
    (folder / "trainA" / "covid").rename(folder / "trainA" / "flu")
    with pytest.raises(UserError, match=r"trainA/flu: a class folder: unknown label 'flu'"):
        verify(folder)


@pytest.mark.parametrize("name", ["trainA", "trainB"])
def test_a_missing_training_domain(folder, name):
    shutil.rmtree(folder / name)
    with pytest.raises(UserError, match=f"--datasets_dir={folder}: has no folder {name}"):
        verify(folder)


def test_a_missing_folder(tmp_path):
    with pytest.raises(UserError, match="none: no such folder"):
        verify(tmp_path / "none")


# --- warnings --------------------------------------------------------------------------------------------------------


def warned(result, *parts):
    return any(all(part in line for part in parts) for line in result["warnings"])


def test_a_domain_of_one_class(folder):
    shutil.rmtree(folder / "testB" / "covid")
    assert warned(verify(folder), "testB", "'control'", "needs both classes")


def test_domains_of_different_composition(folder):
    for path in list((folder / "trainB" / "covid").iterdir())[:6]:
        path.unlink()
    assert warned(verify(folder), "the class covid is 50% of trainA but 20% of trainB")


def test_a_label_that_follows_from_the_source(folder):
    edit_manifest(folder, lambda row: row | {"source": f"only {row['label']}"})
    result = verify(folder)
    assert warned(result, "right in 100% of the images", "in 50%", "V 1.00")
    assert {(row["source"], row["label"]) for row in result["sources"]} == {
        ("only covid", "covid"), ("only control", "control")
    }  # fmt: skip


def test_an_image_and_its_clean_film_in_the_other_domain(folder):
    clean, degraded = first(folder, "testA_reference"), first(folder, "testA")
    copy = folder / "testB" / clean.parent.name / "copy.png"
    shutil.copy(clean, copy)
    result = verify(folder)
    assert result["leaks"] == []
    assert warned(result, "which should be unpaired", *relative(folder, degraded, copy))


def test_twins_that_were_mixed_up(folder):
    one, other = first(folder, "testA_reference"), first(folder, "testA_reference", 1)
    one_bytes, other_bytes = one.read_bytes(), other.read_bytes()
    one.write_bytes(other_bytes)
    other.write_bytes(one_bytes)
    assert warned(verify(folder), "2 images do not look like their clean twins")


def test_a_manifest_that_does_not_fit(folder):
    changed, dropped, lost = first(folder, "trainA"), first(folder, "trainB"), first(folder, "valB")
    Image.fromarray(gray(4000, 64)).save(changed)
    lost.unlink()
    names = [path.relative_to(folder).as_posix() for path in (changed, dropped, lost)]
    edit_manifest(folder, lambda row: None if row["file"] == names[1] else row)
    result = verify(folder)
    assert warned(result, "1 files have changed since the manifest was written", names[0])
    assert warned(result, "1 files are not in the manifest", names[1])
    assert warned(result, "1 files are in the manifest but not in the folder", names[2])


def test_a_manifest_that_is_none(folder):
    path = folder / "manifest.csv"
    for text, says in (("name\na.png\n", ": its first line must name the columns file"),
                       ('file,label\na.png,"covid\n', ", line 2: a quotation mark")):  # fmt: skip
        path.write_text(text)
        with pytest.raises(UserError, match=rf"manifest\.csv{says}"):
            verify(folder)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"manifest\.csv: not a file"):  # and does not wait for a writer
        verify(folder)


def test_a_folder_without_a_manifest(folder):
    (folder / "manifest.csv").unlink()
    result = verify(folder)
    assert warned(result, "there is no manifest.csv")
    assert result["sources"] is result["label_by_source"] is None


# --- confounding -----------------------------------------------------------------------------------------------------


def items(*cells, thumbnail=None):
    """Items of (source, label, count)."""
    return [
        Item("trainA/x.png", label, "", np.zeros(32, np.uint8), thumbnail, source, "unknown")
        for source, label, count in cells
        for _ in range(count)
    ]


def test_guess_by_source_by_hand():
    # 30 of 40 and 15 of 20 are right by source; 40 of 60 by the commoner class.
    result = guess_by_source(items(("a", 1, 30), ("a", 0, 10), ("b", 1, 5), ("b", 0, 15)))
    assert result["accuracy"] == pytest.approx(45 / 60)
    assert result["majority"] == pytest.approx(35 / 60)
    # Chi squared of [[30, 10], [5, 15]] = 60 (30 * 15 - 10 * 5)^2 / (40 * 20 * 35 * 25)
    assert result["cramers_v"] == pytest.approx(np.sqrt((450 - 50) ** 2 / (40 * 20 * 35 * 25)))


@pytest.mark.parametrize(
    ("cells", "cramers_v"),
    [((("a", 1, 5), ("b", 0, 5)), 1), ((("a", 1, 5), ("a", 0, 5)), 0), ((("a", 1, 5), ("b", 1, 5)), 0)],
)
def test_guess_by_source_at_the_ends(cells, cramers_v):
    assert guess_by_source(items(*cells))["cramers_v"] == pytest.approx(cramers_v)


def probed(where, strength=1.0, count=60):
    """Items of noise; in those of class 1 the part `where` of the image is brighter."""
    rng = np.random.default_rng(0)
    axis = np.linspace(-1, 1, 32)
    radius = np.hypot(axis[:, None], axis)
    part = {"corners": radius > 1.15, "centre": radius < 0.4, "nowhere": np.zeros((32, 32), bool)}[where]
    found = []
    for index in range(count):
        image = rng.normal(0.5, 0.1, (32, 32)) + strength * (index % 2) * part
        found.append(Item("trainA/x.png", index % 2, "", np.zeros(32, np.uint8), image, "s", "unknown"))
    return found


def test_the_probe_finds_a_class_marked_in_the_corners():
    result = probe_sources(probed("corners"), np.arange(60))
    assert result["corners"]["auroc"] > 0.95
    assert result["nearly_as_well"]
    assert result["images"] == 60


def test_the_probe_does_not_see_the_lungs():
    result = probe_sources(probed("centre"), np.arange(60))
    assert result["whole"]["auroc"] > 0.95
    assert 0.2 < result["corners"]["auroc"] < 0.8
    assert not result["nearly_as_well"]


def test_the_probe_finds_nothing_in_noise():
    result = probe_sources(probed("nowhere"), np.arange(60))
    assert result["corners"]["low"] < 0.5 < result["corners"]["high"]
    assert not result["nearly_as_well"]


def test_the_probe_keeps_groups_together():
    """Each image twice: were the copies divided, noise alone would be told apart."""
    once = probed("nowhere")
    doubled = [item for item in once for _ in range(2)]
    apart = probe_sources(doubled, np.arange(120))["whole"]["auroc"]
    together = probe_sources(doubled, np.arange(120) // 2)["whole"]["auroc"]
    assert apart > 0.9
    assert together < 0.75


def test_the_probe_needs_both_classes(folder):
    with pytest.raises(UserError, match="--source_probe: needs at least 10 images of each class"):
        probe_sources(probed("centre")[::2], np.arange(30))


def test_the_probe_in_a_folder(folder):
    """A mark in the corner of every covid image, as a source leaves it."""
    for path in folder.rglob("covid/*.png"):
        image = np.asarray(Image.open(path)).copy()
        image[:10, :10] = 255
        Image.fromarray(image).save(path)
    result = verify(folder, source_probe=True)
    assert result["source_probe"]["corners"]["auroc"] > 0.95
    assert warned(result, "corners of the images tell the classes apart nearly as well")
    assert "AUROC over 64 images" in report(result)


# --- the program -----------------------------------------------------------------------------------------------------


def program(*arguments):
    return subprocess.run(
        programs.python("-m", "data_prep.verify", "--workers=1", *arguments), capture_output=True, text=True
    )


def test_the_exit_code(folder, tmp_path):
    passed = program(f"--datasets_dir={folder}", f"--output_dir={tmp_path / 'checked'}")
    assert passed.returncode == 0, passed.stderr
    assert json.loads((tmp_path / "checked" / "result.json").read_text())["leaks"] == []
    assert "--datasets_dir=" in (tmp_path / "checked" / "flags.txt").read_text()
    original = first(folder, "trainB")
    shutil.copy(original, folder / "testB" / original.parent.name / "copy.png")
    failed = program(f"--datasets_dir={folder}")
    assert failed.returncode == 1
    assert "leak: trainB/" in failed.stdout
    assert "Traceback" not in failed.stderr


def test_phantoms_pass(tmp_path):
    """The manifest of the phantoms has other columns."""
    from data_prep.phantoms import PhantomSet, write_dataset

    write_dataset(tmp_path, PhantomSet(size=32, train=4, test=2))
    result = verify(tmp_path)
    assert result["errors"] == []
    assert leaks(result, "same file") == leaks(result, "patient") == []
    with (tmp_path / "manifest.csv").open(newline="") as file:
        assert result["patients_known"] == len(list(csv.DictReader(file)))


@pytest.mark.parametrize(
    ("patients", "sources", "leaks"),
    [
        (("p1", "p2"), ("clinic", "clinic"), 0),  # the source knows them apart
        (("p1", "p1"), ("clinic", "clinic"), 1),
        (("p1", UNKNOWN), ("clinic", "clinic"), 1),
        (("p1", "p2"), ("clinic", "other"), 1),  # each source has numbers of its own
    ],
)
def test_films_alike_of_two_patients_of_one_source_are_no_leak(patients, sources, leaks):
    phash = np.zeros(32, np.uint8)
    items = [
        Item(f"{folder}/{patient}.png", 0, folder, phash, None, source, patient)
        for folder, patient, source in zip(("trainA", "testB"), patients, sources, strict=True)
    ]
    found, _, alike = _duplicates(items, [(0, 1)])
    assert (len(found), len(alike)) == (leaks, 1 - leaks)
    same_bytes = [dataclasses.replace(item, sha256="same") for item in items]
    assert len(_duplicates(same_bytes, [(0, 1)])[0]) == 1
