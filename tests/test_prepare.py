"""From a pile of files to a datasets folder: what goes where, what is said of what cannot be used."""

import collections
import csv
import dataclasses
import json
import os
import subprocess
from pathlib import Path

import cv2
import numpy as np
import programs
import pytest
from PIL import Image
from test_duplicates import film
from test_images import write_dicom

from data_prep.manifest import COLUMNS, new_folder, read_manifest
from data_prep.prepare import Preparation, fit, format_table, load, prepare, unique_names
from data_prep.sources import Problem, Record, read_source
from r2c_gan import files
from r2c_gan.data import images
from r2c_gan.data.datasets import read_domain
from r2c_gan.errors import UserError

SIDE = 48


def gray(seed, side=SIDE):
    """An 8-bit film: uint8 [H, W], H and W differ."""
    return np.rint(255 * film(seed, side)).astype(np.uint8)


def make_source(root, covid=20, control=20, side=SIDE):
    """Class folders of distinct films."""
    for label, count in (("covid", covid), ("control", control)):
        (root / label).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            Image.fromarray(gray(1000 * (label == "covid") + index, side)).save(root / label / f"{label}{index}.png")
    return root


def run(source, folder, workers=1, **settings):
    """Prepares a source into a new folder and returns the rows of its manifest."""
    folder.mkdir()
    prepare(folder, *read_source(source), Preparation(**settings), workers)
    return manifest_rows(folder)


def manifest_rows(folder):
    with (folder / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def kept(rows, folder=None):
    return [row for row in rows if row["file"] and (folder is None or row["file"].split("/")[0] == folder)]


def pixels(path):
    return np.asarray(Image.open(path))


@pytest.fixture(scope="module")
def pile(tmp_path_factory):
    return make_source(tmp_path_factory.mktemp("pile") / "pile")


@pytest.fixture(scope="module")
def made(pile, tmp_path_factory):
    """(folder, rows) of the pile prepared by degradation; not to be written to."""
    folder = tmp_path_factory.mktemp("made") / "set"
    return folder, run(pile, folder, size=32, val_fraction=0.2, test_fraction=0.2)


# --- by degradation --------------------------------------------------------------------------------------------------


def test_training_reads_what_was_made(made):
    folder, rows = made
    sizes = {"trainA": 12, "trainB": 12, "valA": 4, "valB": 4, "testA": 4, "testB": 4}
    for name, size in sizes.items():
        domain = read_domain(folder / name)
        assert len(domain) == size
        assert sum(domain.labels) == size / 2
    assert {row["file"].split("/")[0] for row in kept(rows)} == {*sizes, "valA_reference", "testA_reference"}


def test_all_validation_and_test_images_can_be_poor(pile, tmp_path):
    rows = run(pile, tmp_path / "set", size=32, val_fraction=0.2, test_fraction=0.2, test_poor=1)
    counts = collections.Counter(row["file"].split("/")[0] for row in kept(rows))
    twins = {"valA_reference": 8, "testA_reference": 8}
    assert counts == {"trainA": 12, "trainB": 12, "valA": 8, "testA": 8, **twins}
    with pytest.raises(UserError, match="--test_poor=0: must be above 0"):
        run(pile, tmp_path / "none", test_poor=0)


def test_references_of_trainA_are_written_on_demand(pile, tmp_path):
    rows = run(pile, tmp_path / "set", size=32, train_reference=True)
    poor = {row["file"].removeprefix("trainA/") for row in kept(rows) if row["file"].startswith("trainA/")}
    assert poor == {row["file"].removeprefix("trainA_reference/") for row in kept(rows)
                    if row["file"].startswith("trainA_reference/")}  # fmt: skip
    with pytest.raises(UserError, match="--train_reference: needs --domains=by_degradation"):
        run(pile, tmp_path / "none", train_reference=True, domains="by_quality")


def test_every_original_is_used_once_and_the_halves_are_disjoint(made, pile):
    used = collections.Counter(row["original"] for row in kept(made[1]) if row["domain"] != "A_reference")
    assert set(used.values()) == {1}
    assert set(used) == {record.name for record in read_source(pile)[0]}


def test_domain_b_and_the_twins_are_the_originals_made_smaller(made, pile):
    for row in kept(made[1]):
        if row["domain"] == "A":
            continue
        original = pixels(pile.parent / row["original"]).astype(np.float64)
        width = original.shape[1]
        # Each output pixel is the mean of the area it covers: 3/2 pixels down, width/32 across.
        down, across = coverage(SIDE, 32), coverage(width, 32)
        np.testing.assert_allclose(pixels(made[0] / row["file"]), down @ original @ across.T, atol=1.0)


def coverage(old, new):
    """[new, old]: the share of each old pixel in the mean over each new one."""
    edges = np.linspace(0, old, new + 1)
    overlap = np.minimum(edges[1:, None], np.arange(1, old + 1)) - np.maximum(edges[:-1, None], np.arange(old))
    return np.clip(overlap, 0, None) * new / old


def test_domain_a_is_degraded_as_the_manifest_says(made):
    twins = {row["original"]: row["file"] for row in kept(made[1]) if row["domain"] == "A_reference"}
    degraded = [row for row in kept(made[1]) if row["domain"] == "A"]
    assert set(twins) == {row["original"] for row in degraded if row["split"] != "train"}
    changed = []
    for row in degraded:
        steps = json.loads(row["parameters"])
        assert 1 <= len(steps) <= 3
        assert all(step["severity"] == "moderate" for step in steps)
        if row["split"] != "train":
            twin = twins[row["original"]]
            assert twin == row["file"].replace("A/", "A_reference/")
            changed.append(np.abs(pixels(made[0] / row["file"]) - pixels(made[0] / twin).astype(float)).mean() > 1)
    assert np.mean(changed) > 0.7  # a slight blur alone changes nothing at 32 pixels


def test_the_manifest_describes_the_files(made):
    folder, rows = made
    with (folder / "manifest.csv").open(newline="") as file:
        assert tuple(csv.DictReader(file).fieldnames) == COLUMNS
    assert list(read_manifest(folder).values()) == kept(rows)  # it has none of what was left out
    on_disk = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
    assert on_disk == {row["file"] for row in kept(rows)}
    for row in kept(rows):
        assert row["sha256"] == files.sha256(folder / row["file"])
        assert row["file"].split("/")[:2] == [row["split"] + row["domain"], row["label"]]
        assert len(row["phash"]) == 64
        assert 0 <= float(row["quality"]) <= 1
        assert (row["source"], row["patient"], row["view"]) == ("pile", "unknown", "unknown")


def test_the_counts_are_those_of_the_folder(made):
    folder, _ = made
    with (folder / "counts.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["source"], row["label"]) for row in table] == [("pile", "control"), ("pile", "covid")]
    for row in table:
        for name in set(row) - {"source", "label"}:
            assert int(row[name]) == len(list((folder / name / row["label"]).glob("*.png")))


def test_the_number_of_workers_changes_nothing_and_the_seed_does(pile, made, tmp_path):
    settings = {"size": 32, "val_fraction": 0.2, "test_fraction": 0.2}
    run(pile, tmp_path / "two", workers=2, **settings)
    run(pile, tmp_path / "other", seed=1, **settings)
    manifests = [(folder / "manifest.csv").read_bytes() for folder in (made[0], tmp_path / "two", tmp_path / "other")]
    assert manifests[0] == manifests[1]
    assert manifests[0] != manifests[2]


def test_a_file_more_changes_no_other_degradation(pile, made, tmp_path):
    root = make_source(tmp_path / "pile", 21, 20)
    again = {row["original"]: row["parameters"] for row in run(root, tmp_path / "set", size=32) if row["parameters"]}
    before = {row["original"]: row["parameters"] for row in kept(made[1]) if row["parameters"]}
    both = set(again) & set(before)
    assert len(both) > 3
    assert all(again[name] == before[name] for name in both)


def test_severity_reaches_the_degradations(pile, tmp_path):
    rows = run(pile, tmp_path / "set", size=32, severity="mild")
    assert all(step["severity"] == "mild" for row in kept(rows, "trainA") for step in json.loads(row["parameters"]))


def test_images_said_to_be_poor_are_not_clean(pile, tmp_path):
    records, _ = read_source(pile)
    records[3] = dataclasses.replace(records[3], quality="poor")
    (tmp_path / "set").mkdir()
    prepare(tmp_path / "set", records, [], Preparation(size=32))
    rows = manifest_rows(tmp_path / "set")
    (left_out,) = (row for row in rows if row["left_out"])
    assert left_out["original"] == records[3].name
    assert "poor" in left_out["left_out"]
    assert records[3].name not in {row["original"] for row in kept(rows)}


# --- what stays together ---------------------------------------------------------------------------------------------


def places(rows):
    """original -> (split, domain)."""
    return {row["original"]: (row["split"], row["domain"]) for row in kept(rows) if row["domain"] in "AB"}


@pytest.mark.parametrize("seed", range(3))
def test_a_patient_and_near_duplicates_stay_in_one_place(tmp_path, seed):
    root = make_source(tmp_path / "pile", 12, 12)
    copy = cv2.resize(gray(1000), None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA)
    Image.fromarray(copy).save(root / "covid" / "resized.jpg", quality=60)
    lines = [f"covid/covid{index}.png,covid,p{index // 3}" for index in range(12)] + ["covid/resized.jpg,covid,"]
    lines += [f"control/control{index}.png,control," for index in range(12)]
    (root / "list.csv").write_text("file,label,patient\n" + "\n".join(lines) + "\n")
    (tmp_path / "set").mkdir()
    settings = Preparation(size=32, val_fraction=0.25, test_fraction=0.25, seed=seed)
    prepared = prepare(tmp_path / "set", *read_source(root / "list.csv"), settings)
    rows = manifest_rows(tmp_path / "set")
    place = places(rows)
    assert prepared.pairs == [("pile/covid/covid0.png", "pile/covid/resized.jpg")]
    assert prepared.largest_group == 4
    assert place["pile/covid/covid0.png"] == place["pile/covid/resized.jpg"]
    for patient in range(4):
        assert len({place[f"pile/covid/covid{3 * patient + index}.png"] for index in range(3)}) == 1
    assert {row["patient"] for row in kept(rows)} == {"p0", "p1", "p2", "p3", "unknown"}


def test_sources_are_spread_evenly(tmp_path):
    root = make_source(tmp_path / "pile", 20, 20)
    lines = [f"{label}/{label}{i}.png,{label},{'ab'[i % 2]}" for label in ("covid", "control") for i in range(20)]
    (root / "list.csv").write_text("file,label,source\n" + "\n".join(lines) + "\n")
    rows = run(root / "list.csv", tmp_path / "set", size=32, val_fraction=0, test_fraction=0.2)
    counts = collections.Counter((row["source"], row["label"], row["split"] + row["domain"]) for row in kept(rows))
    for source in "ab":
        for label in ("covid", "control"):
            assert [counts[source, label, name] for name in ("trainA", "trainB", "testA", "testB")] == [4, 4, 1, 1]
    assert not (tmp_path / "set" / "valA").exists()


# --- by quality ------------------------------------------------------------------------------------------------------


def write_qualities(root, qualities):
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    lines = [f"{name},{name.split('/')[0]},{qualities(index)}" for index, name in enumerate(names)]
    (root / "list.csv").write_text("file,label,quality\n" + "\n".join(lines) + "\n")
    return root / "list.csv", names


def test_by_a_humans_column(pile, tmp_path):
    path, names = write_qualities(make_source(tmp_path / "pile"), lambda index: ("good", "poor")[index % 2])
    rows = run(path, tmp_path / "set", domains="by_quality", size=32)
    domains = {row["original"]: row["domain"] for row in kept(rows)}
    assert domains == {f"pile/{name}": "BA"[index % 2] for index, name in enumerate(names)}
    assert not any(row["parameters"] for row in rows)
    assert {row["split"] for row in rows} == {"train", "val", "test"}
    twice = coverage(SIDE, 32) @ pixels(path.parent / names[1]).astype(float)
    assert twice.shape[0] == 32  # a poor image is taken as it is
    poor = next(row for row in rows if row["original"] == f"pile/{names[1]}")
    expected = twice @ coverage(twice.shape[1], 32).T
    np.testing.assert_allclose(pixels(tmp_path / "set" / poor["file"]), expected, atol=1.0)


def test_by_thresholds_on_scores(tmp_path):
    path, names = write_qualities(make_source(tmp_path / "pile"), lambda index: index / 40)
    settings = {"domains": "by_quality", "poor_below": 0.3, "good_above": 0.75, "size": 32}
    rows = run(path, tmp_path / "set", **settings)
    by_name = {row["original"]: row for row in rows}
    for index, name in enumerate(names):
        expected = "A" if index / 40 < 0.3 else "B" if index / 40 >= 0.75 else ""
        assert by_name[f"pile/{name}"]["domain"] == expected
    assert by_name[f"pile/{names[20]}"]["left_out"] == "quality 0.500, between 0.300 and 0.750"


def test_without_thresholds_the_thirds(tmp_path):
    path, names = write_qualities(make_source(tmp_path / "pile", 15, 15), lambda index: index / 100)
    rows = run(path, tmp_path / "set", domains="by_quality", size=32)
    domains = collections.Counter(row["domain"] for row in rows)
    assert domains == {"A": 10, "": 10, "B": 10}
    assert {row["original"] for row in rows if row["domain"] == "A"} == {f"pile/{name}" for name in names[:10]}


def test_images_without_a_mark_are_scored(pile, tmp_path, monkeypatch):
    scored = []

    def score(image):
        scored.append(image.shape)
        return float(image.mean() > 0.5)

    monkeypatch.setattr("data_prep.quality.quality_score", score)
    rows = run(pile, tmp_path / "set", domains="by_quality", poor_below=0.5, good_above=0.5, size=40)
    assert set(scored) == {(40, 40)}  # as they are written
    for row in rows:
        original = pixels(pile.parent / row["original"])
        assert row["domain"] == ("B" if fit(original / np.float32(255), 40).mean() > 0.5 else "A")


def test_a_domain_without_images_is_said(pile, tmp_path):
    with pytest.raises(UserError, match="of 40 images none is left for trainA"):
        path, _ = write_qualities(make_source(tmp_path / "pile"), lambda index: "good")
        run(path, tmp_path / "set", domains="by_quality", size=32)


# --- a split of the source's own -------------------------------------------------------------------------------------


def test_keep_split_keeps_the_authors_test_images(tmp_path):
    root = tmp_path / "archive"
    for number, (folder, count) in enumerate({"trainA": 12, "trainB": 12, "testA": 4}.items()):
        (root / folder).mkdir(parents=True)
        for index in range(count):
            image = Image.fromarray(gray(100 * number + index))
            image.save(root / folder / f"{('covid', 'normal')[index % 2]}_{folder}_{index}.png")
    Image.fromarray(gray(200)).save(root / "trainB" / "covid_again.jpg", quality=90)  # that of testA/covid_testA_0.png
    rows = run(root, tmp_path / "set", domains="by_quality", keep_split=True, val_fraction=0.25)
    place = places(rows)
    assert {name for name, (split, _) in place.items() if split == "test"} == {
        "archive/trainB/covid_again.jpg", *(f"archive/testA/{path.name}" for path in (root / "testA").iterdir())
    }  # fmt: skip
    assert all(domain == Path(name).parent.name[-1] for name, (_, domain) in place.items())
    splits = collections.Counter(split for split, _ in place.values())
    assert splits["train"] + splits["val"] == 24
    assert 6 <= splits["val"] <= 8  # 0.25 of 0.9, rounded up in each of four strata at most


def test_keep_split_needs_one(pile, tmp_path):
    with pytest.raises(UserError, match="--keep_split: no source has a split of its own"):
        run(pile, tmp_path / "set", keep_split=True)


# --- formats ---------------------------------------------------------------------------------------------------------


def test_every_kind_of_file_that_is_handled(tmp_path):
    root = make_source(tmp_path / "pile", 10, 10)
    image = gray(500)
    colour = np.stack([image] * 3, axis=-1)
    Image.fromarray(colour).convert("CMYK").save(root / "covid" / "cmyk.jpg", quality=95)
    Image.fromarray(gray(501)).convert("P").save(root / "covid" / "palette.png")
    Image.fromarray(np.dstack([np.stack([gray(502)] * 3, -1), np.full_like(gray(502), 255)])).save(
        root / "covid" / "alpha.png"
    )
    deep = (film(503, SIDE) * 65535).astype(np.uint16)
    cv2.imwrite(str(root / "covid" / "deep.png"), deep)
    wide = np.repeat(gray(504), 300, axis=1)[:, :20_000]
    Image.fromarray(wide).save(root / "covid" / "wide.png")
    write_dicom(
        root / "covid" / "film.dcm", (film(505, SIDE) * 4095).astype(np.uint16), PatientID="secret", Modality="CR"
    )
    os.symlink(root, root / "control" / "loop")
    rows = run(root, tmp_path / "set", domains="by_quality", size=40, bits=16, poor_below=0.5, good_above=0.5)
    found = {Path(row["original"]).name: row for row in rows}
    assert not any(row["left_out"] for row in rows)
    assert len(rows) == 26
    expected = {
        "cmyk.jpg": (image / 255, 2), "palette.png": (gray(501) / 255, 1), "alpha.png": (gray(502) / 255, 1),
        "deep.png": (deep / 65535, 0.01), "wide.png": (wide / 255, 1), "film.dcm": (film(505, SIDE), 0.2),
    }  # fmt: skip
    for name, (values, tolerance) in expected.items():
        written = pixels(tmp_path / "set" / found[name]["file"])
        assert written.dtype == np.uint16
        assert written.shape == (40, 40)
        small = coverage(values.shape[0], 40) @ values @ coverage(values.shape[1], 40).T
        assert np.abs(written / 65535 - small).mean() < tolerance / 255, name
    assert (found["film.dcm"]["patient"], found["film.dcm"]["modality"]) == ("dicom-00001", "CR")
    assert "secret" not in (tmp_path / "set" / "manifest.csv").read_text()


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("kind", ["png", "tif", "dcm"])
def test_few_bits_in_a_16_bit_file_fill_the_range(tmp_path, kind, bits):
    """Left as they are, 12 of 16 bits would become a film of 8 bits that ends at 16 of 255."""
    root = make_source(tmp_path / "pile", 6, 6)
    levels = np.rint(film(600, SIDE) * (2**bits - 1)).astype(np.uint16)
    path = root / "covid" / f"few.{kind}"
    if kind == "dcm":
        write_dicom(path, levels, bits_stored=16)
    else:
        cv2.imwrite(str(path), levels)
    rows = run(root, tmp_path / "set", domains="by_quality", poor_below=0.5, good_above=0.5)
    (row,) = (row for row in rows if row["original"].endswith(path.name))
    written = pixels(tmp_path / "set" / row["file"])
    assert written.min() == 0
    assert written.max() > 250
    expected = (levels - levels.min()) / np.ptp(levels) * 255
    assert np.corrcoef(written.ravel(), expected.ravel())[0, 1] > 0.999


def test_size_0_keeps_the_sizes_and_the_pixels(pile, tmp_path):
    rows = run(pile, tmp_path / "set")
    for row in kept(rows, "trainB"):
        np.testing.assert_array_equal(pixels(tmp_path / "set" / row["file"]), pixels(pile.parent / row["original"]))


def test_fit_enlarges_within_the_range():
    image = film(3, 40)
    large = fit(image, 100)
    assert large.shape == (100, 100)
    assert image.min() <= large.min() <= large.max() <= image.max()
    assert fit(image, 0) is image


def test_dicom_patients_are_numbered_and_grouped(tmp_path):
    root = tmp_path / "pile"
    for label in ("covid", "control"):
        (root / label).mkdir(parents=True)
        for index in range(8):
            stored = (film(index + 100 * len(label), SIDE) * 4095).astype(np.uint16)
            write_dicom(root / label / f"{index}.dcm", stored, PatientID=f"{label}{index // 2}", ViewPosition="AP")
    rows = run(root, tmp_path / "set", size=32, val_fraction=0, test_fraction=0.5)
    patients = collections.defaultdict(set)
    for row in kept(rows):
        patients[row["patient"]].add((row["split"], row["domain"][0]))
        assert (row["view"], row["modality"]) == ("AP", "unknown")
    assert sorted(patients) == [f"dicom-{number:05d}" for number in range(1, 9)]
    assert all(len(found) == 1 for found in patients.values())


# --- bad input -------------------------------------------------------------------------------------------------------


def truncated(path):
    Image.fromarray(gray(1)).save(path)
    path.write_bytes(path.read_bytes()[:-200])


def frames(path):
    stored = np.zeros((3, 40, 40), np.uint16)
    write_dicom(path.with_suffix(".dcm"), stored[0], NumberOfFrames=3, PixelData=stored.tobytes())


def one_pixel(path):
    Image.fromarray(gray(1)[:1, :1]).save(path)


def too_wide(path):
    Image.new("L", (20_001, 40)).save(path)


def no_pixels(path):
    write_dicom(path.with_suffix(".dcm"), np.zeros((40, 40), np.uint16), PixelData=None)


def no_dicom(path):
    path.with_suffix(".dcm").write_text("hello")


def unreadable(path):
    if os.name != "posix" or os.geteuid() == 0:
        pytest.skip("root may read every file")
    Image.fromarray(gray(1)).save(path)
    path.chmod(0)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(truncated, "truncated or damaged PNG", id="truncated"),
        pytest.param(lambda path: path.write_bytes(b""), "the file is empty", id="empty"),
        pytest.param(lambda path: path.write_text("hello"), "not a PNG, JPEG, TIFF or DICOM image", id="text"),
        pytest.param(one_pixel, "1 x 1 pixels; at least 32 a side", id="1 x 1"),
        pytest.param(too_wide, "20001 x 40 pixels; at most 20000", id="too wide"),
        pytest.param(frames, "3 frames; a DICOM file with one frame", id="frames"),
        pytest.param(no_pixels, "a DICOM file without pixels", id="no pixels"),
        pytest.param(no_dicom, "not a readable DICOM file", id="no DICOM"),
        pytest.param(lambda path: os.symlink(path, path), "cannot be read", id="loop"),
        pytest.param(os.mkfifo, "not a file but a named pipe", id="FIFO"),
        pytest.param(unreadable, "cannot be read", id="unreadable"),
    ],
)
def test_a_bad_file_is_named_or_skipped(tmp_path, make, says):
    root = make_source(tmp_path / "pile", 6, 6)
    make(root / "covid" / "bad.png")
    (path,) = (root / "covid").glob("bad.*")
    with (
        pytest.raises(UserError, match=rf"^{path}: {says}.*--on_error=skip") as caught,
        new_folder(tmp_path / "failed") as folder,
    ):
        prepare(folder, *read_source(root), Preparation(size=32))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "failed").exists()
    assert not list(tmp_path.glob(".failed*"))

    rows = run(root, tmp_path / "set", size=32, on_error="skip")
    (row,) = (row for row in rows if row["left_out"])
    assert row["original"] == f"pile/covid/{path.name}"
    assert row["left_out"].startswith(says)  # without the path of this machine
    assert len({row["original"] for row in kept(rows)}) == 12


def test_a_worker_names_the_bad_file_too(tmp_path):
    root = make_source(tmp_path / "pile", 6, 6)
    truncated(root / "covid" / "bad.png")
    with pytest.raises(UserError, match=r"bad\.png: truncated"):
        run(root, tmp_path / "set", workers=2, size=32)


def test_every_bad_file_is_named_at_once(tmp_path):
    root = make_source(tmp_path / "pile", 6, 6)
    for name in ("a", "b"):
        truncated(root / "covid" / f"{name}.png")
    with pytest.raises(UserError, match=r"covid/a\.png: truncated.*; so with 1 more: pile/covid/b\.png\. --on_error"):
        run(root, tmp_path / "set", size=32)


def test_any_exception_is_the_failure_of_its_file(tmp_path, monkeypatch):
    root, read = make_source(tmp_path / "pile", 6, 6), images.read_image

    def broken(file, *arguments, **more):
        if file.name == "covid3.png":
            raise RuntimeError("of a library\nin two lines")
        return read(file, *arguments, **more)

    monkeypatch.setattr(images, "read_image", broken)
    rows = run(root, tmp_path / "set", size=32, on_error="skip")
    (row,) = (row for row in rows if row["left_out"])
    assert row["original"] == "pile/covid/covid3.png"
    assert row["left_out"] == "cannot be read (RuntimeError: of a library in two lines)"
    assert len({row["original"] for row in kept(rows)}) == 11


def test_masks_are_left_out_and_are_no_failures(tmp_path):
    root = make_source(tmp_path / "pile", 6, 6)
    for name in ("covid/covid1_mask.png", "masks/covid2.png", "covid/two_values.png", "control/mask_control1.png"):
        (root / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.uint8(255 * (gray(1) > 100))).save(root / name)
    found, problems = read_source(root, masks := [])
    assert problems == []
    assert {path.name for path in masks} == {"covid1_mask.png", "covid2.png", "mask_control1.png"}
    (tmp_path / "set").mkdir()
    prepared = prepare(tmp_path / "set", found, problems, Preparation(size=32))
    assert prepared.radiographs == 12
    (problem,) = prepared.left_out
    assert (problem.name, problem.reason) == (
        "pile/covid/two_values.png", "two gray values only: a mask, no radiograph"
    )  # fmt: skip


def test_a_blank_picture_is_no_film(tmp_path):
    root = make_source(tmp_path / "pile", 6, 6)
    Image.new("L", (40, 40), 7).save(root / "covid" / "bad.png")
    with pytest.raises(UserError, match=r"bad\.png: all pixels have one value"):
        run(root, tmp_path / "set", size=32)


def test_a_name_that_is_not_utf_8_is_a_failure(tmp_path):
    root = make_source(tmp_path / "pile", 6, 6)
    try:
        os.rename(root / "covid" / "covid0.png", os.fsencode(root) + b"/covid/caf\xe9.png")
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    with pytest.raises(UserError, match=r"covid/caf\\udce9\.png: the name is not UTF-8 text"):
        run(root, tmp_path / "failed", size=32)
    rows = run(root, tmp_path / "set", size=32, on_error="skip")
    assert [row["original"] for row in rows if row["left_out"]] == [r"pile/covid/caf\udce9.png"]


def test_a_name_of_250_bytes(tmp_path):
    root = make_source(tmp_path / "pile", 6, 6)
    os.rename(root / "covid" / "covid0.png", root / "covid" / f"{'胸' * 82}.png")
    assert len({row["original"] for row in kept(run(root, tmp_path / "set", size=32))}) == 12


def test_rows_that_cannot_be_used_are_listed(tmp_path):
    root = make_source(tmp_path / "pile", 6, 6)
    lines = [f"{path.relative_to(root)},{path.parent.name}" for path in sorted(root.rglob("*.png"))]
    lines += ["none.png,covid", "covid/covid1.png,covid", "covid/covid2.png,flu"]
    (root / "list.csv").write_text("file,label\n" + "\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"list\.csv: line 14: none\.png: no such file"):
        run(root / "list.csv", tmp_path / "failed", size=32)
    rows = run(root / "list.csv", tmp_path / "set", size=32, on_error="skip")
    reasons = {row["original"]: row["left_out"] for row in rows if row["left_out"]}
    assert set(reasons) == {"pile/none.png", "pile/covid/covid1.png", "pile/covid/covid2.png"}
    assert reasons["pile/covid/covid1.png"].startswith("line 15: covid/covid1.png is already listed")
    assert reasons["pile/covid/covid2.png"].startswith("line 16: unknown label 'flu'")
    assert len({row["original"] for row in kept(rows)}) == 12


def test_two_sources_with_one_name(tmp_path):
    first, second = (make_source(tmp_path / parent / "pile", 4, 4) for parent in "ab")
    records = read_source(first)[0] + read_source(second)[0]
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match=r"b/pile/control/control0\.png: another --source also has a file of"):
        prepare(tmp_path / "set", records, [], Preparation(size=32))


@pytest.mark.parametrize("files_", [0, 1])
def test_too_few_images(tmp_path, files_):
    root = make_source(tmp_path / "pile", files_, 0)
    records, problems = read_source(root) if files_ else ([], [Problem("x", Path("x.png"), "is bad")])
    (tmp_path / "set").mkdir()
    with pytest.raises(
        UserError, match="of 1 images none is left for trainB" if files_ else r"no image is left; x\.png: is bad"
    ):
        prepare(tmp_path / "set", records, problems, Preparation(size=32, on_error="skip"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"size": 31}, "--size=31: must be 0"),
        ({"size": 20_001}, "--size=20001"),
        ({"val_fraction": -0.1}, r"--val_fraction=-0\.1: must be from 0 up to 1"),
        ({"test_fraction": 1.0}, r"--test_fraction=1\.0"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
        ({"poor_below": 0.5}, "give both, or neither"),
        ({"poor_below": 0.6, "good_above": 0.5}, "the first not above the second"),
        ({"seed": -1}, "--seed=-1: must not be negative"),
    ],
)
def test_flags_out_of_range(settings, says):
    with pytest.raises(UserError, match=says):
        Preparation(**settings)


# --- small parts -----------------------------------------------------------------------------------------------------


def test_names_are_unique_on_every_file_system():
    paths = ["a/x.png", "b/x.png", "c/X.jpg", "c/y.png", f"d/{'z' * 300}.png"]
    names = unique_names([Record(Path(path), path, "covid", "s") for path in paths])
    assert len({name.lower() for name in names}) == 5
    assert names[3] == "y"
    assert names[4] == "z" * 100
    assert all(name.startswith(("x_", "X_")) for name in names[:3])


def test_load_is_gray_between_0_and_1(pile):
    path = pile / "covid" / "covid0.png"
    np.testing.assert_allclose(load(path), pixels(path) / 255, atol=1e-6)


def test_a_table_ends_with_sums():
    table = [{"source": "a", "label": "covid", "trainA": 3}, {"source": "long name", "label": "control", "trainA": 14}]
    assert format_table(table).splitlines() == [
        "source     label    trainA",
        "a          covid         3",
        "long name  control      14",
        "all                     17",
    ]


# --- the program -----------------------------------------------------------------------------------------------------


def program(*arguments, module_="data_prep.prepare"):
    return subprocess.run(programs.python("-m", module_, *arguments), capture_output=True, text=True)


def test_the_program(tmp_path):
    root = make_source(tmp_path / "pile", 8, 8)
    output = tmp_path / "set"
    done = program(f"--source={root}", f"--output_dir={output}", "--size=32", "--workers=1")
    assert done.returncode == 0, done.stderr
    assert "16 radiographs, 0 left out, 0 near-duplicate pairs" in done.stdout
    assert (output / "flags.txt").read_text().splitlines()[0] == "--bits=8"
    truncated(root / "covid" / "bad.png")
    failed = program(f"--source={root}", f"--output_dir={output}", "--size=32", "--workers=2", "--overwrite")
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith(f"error: {root}/covid/bad.png: truncated")
    assert "Traceback" not in failed.stderr
    assert len(read_manifest(output)) > 16  # what was there before still is


def test_real_radiographs(tmp_path):
    if "R2C_GAN_XRAY_DIR" not in os.environ:
        pytest.skip("R2C_GAN_XRAY_DIR is not set")
    source = Path(os.environ["R2C_GAN_XRAY_DIR"])
    records = read_source(source / "manifest.csv")[0][::40]
    (tmp_path / "set").mkdir()
    prepared = prepare(tmp_path / "set", records, [], Preparation(size=64, val_fraction=0.2, test_fraction=0.2))
    rows = manifest_rows(tmp_path / "set")
    assert prepared.radiographs == len(records)
    assert {row["original"] for row in kept(rows)} == {record.name for record in records}
    assert not any(row["left_out"] for row in rows)
    assert prepared.counts[0]["source"] == "cohen_talo"


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_films_of_12_bits_in_16_are_no_ghosts(tmp_path, suffix):
    source = make_source(tmp_path / "in", 6, 6)
    for file in source.rglob("*.png"):
        levels = np.rint(4095 * film(int("".join(filter(str.isdigit, file.stem))), SIDE)).astype(np.uint16)
        file.unlink()
        cv2.imwrite(str(file.with_suffix(f".{suffix}")), levels)
    rows = kept(run(source, tmp_path / "auto"), "trainB")
    assert rows and all(pixels(tmp_path / "auto" / row["file"]).max() == 255 for row in rows)
    (tmp_path / "full").mkdir()
    prepared = prepare(tmp_path / "full", *read_source(source), Preparation(window="full"))
    assert len(prepared.faint) == prepared.radiographs == 12
    with pytest.raises(UserError, match="--window=wide: must be"):
        Preparation(window="wide")
