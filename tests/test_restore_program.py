"""Restoring files: what is read, what is written, what happens to broken ones, and going on after a kill."""

import contextlib
import csv
import dataclasses
import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import cv2
import numpy as np
import programs
import pytest
from PIL import Image
from test_cli import call  # noqa: F401 - a fixture
from test_images import write_dicom

from r2c_gan import files
from r2c_gan.cli.restore import find_sources
from r2c_gan.data import derived_dicom, images
from r2c_gan.data.image_limits import NotAnImageError
from r2c_gan.errors import UserError
from r2c_gan.evaluation import figures
from r2c_gan.restoration import file_restoration
from r2c_gan.restoration.file_restoration import COLUMNS, Journal, Settings, restore_files
from r2c_gan.restoration.restorer import Restorer

STUDY = {
    "StudyInstanceUID": "1.2.3.1",
    "SeriesInstanceUID": "1.2.3.2",
    "PatientName": "Doe^Jane",
    "PatientID": "P-4711",
    "PixelSpacing": [0.2, 0.2],
}


class Halving:
    """A network that halves the image, and says how bright it was; it remembers the shapes it was given."""

    def __init__(self):
        self.shapes = []

    def __call__(self, batch):
        self.shapes.append(batch.shape)
        covid = (batch.mean((1, 2, 3)) + 1) / 2
        return batch / 2, np.stack([1 - covid, covid], axis=-1).astype("float32")


def halving(network=None, checksum="abc"):
    return Restorer(network or Halving(), (8, 8), 1, 2, checksum=checksum)


def negating():
    """Bright becomes dark, so that every label changes."""
    return Restorer(lambda batch: (-batch, Halving()(batch)[1]), (8, 8), 1, 2, checksum="abc")


def flat(path, level, size=(10, 14), bits=8):
    images.write_image(path, np.full((*size, 1), level), bits)
    return path


@pytest.fixture
def folder(tmp_path):
    """Five images of three sizes, two of them in a folder below."""
    for index, name in enumerate(["a.png", "b.png", "c.png", "deep/a.png", "deep/d.png"]):
        flat(tmp_path / "in" / name, 0.9 - 0.4 * index, size=(10 + index // 2 * 3, 14))
    return tmp_path / "in"


def sources_of(folder):
    return [(file, file.relative_to(folder)) for file in images.list_images(folder, recursive=True)]


def read_rows(output):
    with (output / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def snapshot(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


# --- what comes out --------------------------------------------------------------------------------------------------


def test_images_and_predictions(folder, tmp_path):
    outcome = restore_files(halving(), sources_of(folder), tmp_path / "out")
    assert (outcome.restored, outcome.kept, outcome.failures) == (5, 0, [])
    rows = read_rows(tmp_path / "out")
    assert rows == outcome.rows and tuple(rows[0]) == COLUMNS
    assert [row["file"] for row in rows] == ["a.png", "b.png", "c.png", "deep/a.png", "deep/d.png"]
    for index, row in enumerate(rows):
        level = images.read_image(folder / row["file"]).mean()
        restored = images.read_image(tmp_path / "out" / row["output"])
        assert restored.shape == (10 + index // 2 * 3, 14, 1)
        np.testing.assert_allclose(restored, level / 2, atol=1 / 127)
        assert float(row["p_covid"]) == pytest.approx((level + 1) / 2, abs=1e-5)
        assert float(row["p_control"]) + float(row["p_covid"]) == pytest.approx(1, abs=1e-5)
        assert float(row["restored_p_covid"]) == pytest.approx((level / 2 + 1) / 2, abs=1e-3)
        assert row["label"] == ("covid" if level > 0 else "control")
        assert row["label_changed"] == "no"
    typed = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [row["file"] for row in typed] == [row["file"] for row in rows]
    assert typed[0]["p_covid"] == float(rows[0]["p_covid"]) and typed[0]["label_changed"] is False
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("a.png", "b.png", "c.png", "deep", "journal.jsonl", "predictions.csv", "predictions.json", "result.json")
    ]


def test_a_label_that_changes_is_told(folder, tmp_path):
    rows = restore_files(negating(), sources_of(folder), tmp_path / "out").rows
    assert {row["label_changed"] for row in rows} == {"yes"}
    assert [row["label"] for row in rows] == ["covid", "covid", "covid", "control", "control"]
    assert [row["restored_label"] for row in rows] == ["control", "control", "control", "covid", "covid"]


def test_a_film_of_12_bits_in_16_is_no_ghost(tmp_path):
    levels = np.linspace(200, 4000, 40 * 50).astype(np.uint16).reshape(40, 50)
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.tif", "c.png"):
        cv2.imwrite(str(tmp_path / "in" / name), levels)
    cv2.imwrite(str(tmp_path / "in" / "c.png"), (levels // 256).astype(np.uint8))  # 8 bits, dark
    sources = sources_of(tmp_path / "in")
    outcome = restore_files(halving(), sources, tmp_path / "out", Settings(size="native"))
    expected = ((levels - 200) / 3800 * 2 - 1) / 2
    for name in ("a.png", "b.png"):
        np.testing.assert_allclose(images.read_image(tmp_path / "out" / name)[..., 0], expected, atol=1e-4)
    assert outcome.scalings == {"values that occur (no window in the file)": 2, "full range": 1}
    assert list(outcome.warnings) == ["c.png"] and "less than a quarter" in outcome.warnings["c.png"]
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["warnings"] == outcome.warnings and result["gray_levels"] == outcome.scalings
    assert restore_files(halving(), sources, tmp_path / "out", Settings(size="native")).warnings == outcome.warnings
    with pytest.raises(UserError, match="--window=auto, not of --window=full"):
        restore_files(halving(), sources, tmp_path / "out", Settings(size="native", window="full"))


def test_depth_is_kept(tmp_path):
    """Levels a step of 16 bits apart come back apart; 8 bits stay 8."""
    (tmp_path / "in").mkdir()
    levels = (np.arange(40 * 50).reshape(40, 50) + 30_000).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "in" / "deep.tif"), levels)
    cv2.imwrite(str(tmp_path / "in" / "other.png"), levels)
    Image.fromarray((levels % 251).astype(np.uint8)).save(tmp_path / "in" / "gray.jpg", quality=90)
    Image.fromarray(np.stack([levels % 251] * 3, axis=-1).astype(np.uint8)).save(tmp_path / "in" / "colour.png")
    restore_files(halving(), sources_of(tmp_path / "in"), tmp_path / "out", Settings(size="native", window="full"))
    for name in ("deep", "other"):
        out = cv2.imread(str(tmp_path / "out" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        assert out.dtype == np.uint16
        np.testing.assert_allclose(out, (levels.astype(float) - 32767.5) / 2 + 32767.5, atol=1)
    for name in ("gray", "colour"):
        assert cv2.imread(str(tmp_path / "out" / f"{name}.png"), cv2.IMREAD_UNCHANGED).dtype == np.uint8


@pytest.mark.parametrize(("size", "expected"), [("model", [2, 2, 1]), ("native", [2, 2, 1])])
def test_batches(folder, tmp_path, size, expected):
    """At the model's size any images share a batch; at their own, those of one size that follow one another."""
    network = Halving()
    restore_files(halving(network), sources_of(folder), tmp_path / "out", Settings(size=size), batch_size=2)
    assert [shape[0] for shape in network.shapes[::2]] == expected
    if size == "native":
        assert [shape[1:3] for shape in network.shapes[::2]] == [(10, 14), (14, 14), (16, 14)]


def test_panels(folder, tmp_path):
    restore_files(halving(), sources_of(folder), tmp_path / "out", Settings(panels=True))
    top = tmp_path / "out" / "panels"
    panels = sorted(path.relative_to(top).as_posix() for path in top.rglob("*.png"))
    assert panels == ["a.png", "b.png", "c.png", "deep/a.png", "deep/d.png"]
    height, width = images.read_image(tmp_path / "out" / "panels" / "a.png").shape[:2]
    assert width > 2 * height  # poor, restored, difference side by side


def test_several_readers_give_the_same(folder, tmp_path):
    one = restore_files(halving(), sources_of(folder), tmp_path / "one", readers=1, batch_size=1)
    many = restore_files(halving(), sources_of(folder), tmp_path / "many", readers=8, batch_size=3)
    assert one.rows == many.rows
    for row in one.rows:
        assert (tmp_path / "one" / row["output"]).read_bytes() == (tmp_path / "many" / row["output"]).read_bytes()


# --- DICOM -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def dicom_folder(tmp_path):
    stored = np.linspace(0, 4095, 24 * 30).astype(np.uint16).reshape(24, 30)
    (tmp_path / "in").mkdir(exist_ok=True)
    write_dicom(tmp_path / "in" / "a.dcm", stored, **STUDY)
    write_dicom(tmp_path / "in" / "1.2.840.7", stored, **{**STUDY, "PhotometricInterpretation": "MONOCHROME1"})
    write_dicom(tmp_path / "in" / "z.dcm", stored, **{**STUDY, "PatientID": "P-5", "SeriesInstanceUID": "1.2.3.9"})
    return tmp_path / "in"


def names_of(folder):
    return [(path, Path(path.name)) for path in sorted(folder.iterdir())]


def test_dicom_becomes_dicom(dicom_folder, tmp_path):
    import pydicom

    outcome = restore_files(halving(), names_of(dicom_folder), tmp_path / "out")
    assert [row["output"] for row in outcome.rows] == ["1.2.840.7.dcm", "a.dcm", "z.dcm"]
    first, second, third = (pydicom.dcmread(tmp_path / "out" / row["output"]) for row in outcome.rows)
    assert first.SeriesInstanceUID == second.SeriesInstanceUID != third.SeriesInstanceUID
    assert first.StudyInstanceUID == second.StudyInstanceUID == third.StudyInstanceUID == "1.2.3.1"
    assert "r2c-gan" in first.DerivationDescription and "1 pass at 8 x 8 pixels" in first.DerivationDescription
    assert first.PatientID == "P-4711"
    for row, dataset in zip(outcome.rows, (first, second, third), strict=True):
        poor = images.read_image(dicom_folder / row["file"])
        restored = images.read_image(tmp_path / "out" / row["output"])
        expected = halving().restore(poor).image
        np.testing.assert_allclose(restored, expected, atol=1 / 2047)
        assert np.corrcoef(poor.ravel(), restored.ravel())[0, 1] > 0.99  # not inverted
        assert dataset.BitsStored == 12


def test_dicom_as_png(dicom_folder, tmp_path):
    outcome = restore_files(halving(), names_of(dicom_folder), tmp_path / "out", Settings(format="png"))
    assert [row["output"] for row in outcome.rows] == ["1.2.840.7.png", "a.png", "z.png"]
    assert cv2.imread(str(tmp_path / "out" / "a.png"), cv2.IMREAD_UNCHANGED).dtype == np.uint16


def test_placeholders_are_the_same_after_an_interruption(dicom_folder, tmp_path):
    import pydicom

    settings = Settings(deidentify=True)
    files = names_of(dicom_folder)
    for some in (files[:1], files[1:]):
        restore_files(halving(), some, tmp_path / "out", settings)
    found = [pydicom.dcmread(tmp_path / "out" / name) for name in ("1.2.840.7.dcm", "a.dcm", "z.dcm")]
    assert [dataset.PatientID for dataset in found] == ["ANON-0001", "ANON-0001", "ANON-0002"]
    assert found[0].SeriesInstanceUID == found[1].SeriesInstanceUID
    assert found[0].StudyInstanceUID == found[2].StudyInstanceUID != "1.2.3.1"
    other = restore_files(halving(), files[:1], tmp_path / "elsewhere", settings)
    elsewhere = pydicom.dcmread(tmp_path / "elsewhere" / other.rows[0]["output"])
    assert elsewhere.StudyInstanceUID != found[0].StudyInstanceUID  # the salt is of the folder


def test_what_cannot_become_dicom_is_a_failure(folder, dicom_folder, tmp_path):
    (folder / "a.png").unlink()
    stored = np.zeros((9, 9), np.uint16)
    write_dicom(dicom_folder / "stray.dcm", stored)  # of no study
    write_dicom(dicom_folder / "frames.dcm", np.zeros((18, 9), np.uint16), Rows=9, NumberOfFrames=2, **STUDY)
    outcome = restore_files(halving(), sources_of(folder), tmp_path / "out", Settings(format="dicom"))
    assert [row["file"] for row in outcome.rows] == ["a.dcm", "z.dcm"]
    reasons = {failure["file"]: failure["reason"] for failure in outcome.failures}
    assert "no StudyInstanceUID" in reasons["stray.dcm"] and "--format=png" in reasons["stray.dcm"]
    assert "2 frames" in reasons["frames.dcm"]
    assert "not DICOM" in reasons["b.png"]
    assert sorted(reasons) == ["b.png", "c.png", "deep/a.png", "deep/d.png", "frames.dcm", "stray.dcm"]


# --- broken files ----------------------------------------------------------------------------------------------------


def test_broken_files_are_named_and_the_rest_is_done(folder, tmp_path):
    (folder / "b.png").write_bytes(b"\x89PNG\r\n")
    (folder / "e.jpg").write_text("words")
    told, moved = [], []

    class Bar:
        def __init__(self, total):
            self.total = total

        def __enter__(self):
            return moved.append

        def __exit__(self, *_):
            assert sum(moved) == self.total

    outcome = restore_files(
        halving(), sources_of(folder), tmp_path / "out", batch_size=2, progress=Bar, report=told.append
    )
    assert [failure["file"] for failure in outcome.failures] == ["b.png", "e.jpg"]
    assert sorted(failure["file"] for failure in told) == ["b.png", "e.jpg"]
    assert all(str(folder) in failure["reason"] for failure in told)
    assert [row["file"] for row in outcome.rows] == ["a.png", "c.png", "deep/a.png", "deep/d.png"]
    assert not (tmp_path / "out" / "b.png").exists()
    flat(folder / "b.png", 0.5)
    (folder / "e.jpg").unlink()
    again = restore_files(halving(), sources_of(folder), tmp_path / "out")
    assert (again.restored, again.kept, again.failures) == (1, 4, [])
    assert [row["file"] for row in again.rows] == ["a.png", "b.png", "c.png", "deep/a.png", "deep/d.png"]


def test_the_tables_come_even_if_every_file_fails(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.dcm").write_bytes(b"words")
    for size in ("model", "native"):
        out = tmp_path / size
        sources = [(tmp_path / name, name) for name in ("a.png", "b.dcm")]
        for _ in range(2):  # the second run is not refused for what the first has written
            outcome = restore_files(halving(), sources, out, Settings(size=size))
            assert (outcome.rows, outcome.restored) == ([], 0)
            assert [failure["file"] for failure in outcome.failures] == ["a.png", "b.dcm"]
        assert read_rows(out) == [] == json.loads((out / "predictions.json").read_text())
        assert len(json.loads((out / "result.json").read_text())["failures"]) == 2


def test_any_exception_about_a_file_is_its_failure(folder, dicom_folder, tmp_path, monkeypatch):
    """Whatever is raised by reading, deriving, drawing or writing, the others are done, and the name is told."""
    reads, draws, derives = images.read_file, figures.save_restoration_panel, derived_dicom.derived

    def breaking(function, word, error):
        def broken(*arguments, **named):
            if any(word in str(argument) for argument in (*arguments[:3], named)):
                raise error
            return function(*arguments, **named)

        return broken

    monkeypatch.setattr(images, "read_file", breaking(reads, "a.png", struct.error("argument\nout of range")))
    monkeypatch.setattr(figures, "save_restoration_panel", breaking(draws, "panels/b.png", TypeError("no canvas")))
    monkeypatch.setattr(derived_dicom, "derived", breaking(derives, "P-5", OverflowError("IS")))
    told = []
    outcome = restore_files(
        halving(), sources_of(folder), tmp_path / "out", Settings(panels=True), batch_size=9, report=told.append
    )
    assert [row["file"] for row in outcome.rows] == ["a.dcm", "c.png", "deep/d.png"]
    reasons = {failure["file"]: failure["reason"] for failure in outcome.failures}
    assert sorted(reasons) == ["a.png", "b.png", "deep/a.png", "z.dcm"] and len(told) == 4
    assert reasons["a.png"] == f"{folder / 'a.png'}: cannot be read (error: argument out of range)"
    assert reasons["b.png"] == f"{folder / 'b.png'}: its panel cannot be drawn (TypeError: no canvas)"
    assert "z.dcm: no DICOM image can be derived from it (OverflowError: IS); use --format=png" in reasons["z.dcm"]
    for name in ("a.png", "b.png", "z.dcm"):
        assert not (tmp_path / "out" / name).exists()
    monkeypatch.undo()
    assert restore_files(halving(), sources_of(folder), tmp_path / "out", Settings(panels=True)).restored == 4


def test_a_batch_that_fails_is_tried_image_by_image(folder, tmp_path):
    class Picky(Halving):
        def __call__(self, batch):
            if (batch < -0.25).any():  # deep/a.png and deep/d.png
                raise RuntimeError(
                    "Graph execution error:\n\nDetected at node x defined at (most recent call last):\n"
                    '  File "restore.py", line 1\n\npaddings must be\nless than 1\n\t [[{{node x}}]] [Op:y]'
                )
            return super().__call__(batch)

    for size in ("model", "native"):
        outcome = restore_files(halving(Picky()), sources_of(folder), tmp_path / size, Settings(size=size))
        assert [row["file"] for row in outcome.rows] == ["a.png", "b.png", "c.png"]
        assert [failure["file"] for failure in outcome.failures] == ["deep/a.png", "deep/d.png"]
        reason = outcome.failures[0]["reason"]
        assert "deep/a.png: its 14 x 13 pixels cannot be restored" in reason.replace("14 x 14", "14 x 13")
        assert "(RuntimeError: paddings must be less than 1)" in reason
        assert ("use --size=model" in reason) == (size == "native")


def test_values_that_are_not_finite_are_a_failure(folder, tmp_path, monkeypatch):
    class Overflowing(Halving):
        def __call__(self, batch):
            image, probabilities = super().__call__(batch)
            probabilities[batch.mean((1, 2, 3)) > 0.8] = np.nan  # a.png
            image[abs(batch.mean((1, 2, 3)) - 0.5) < 0.1] = np.inf  # b.png
            return image, probabilities

    def read_file(path, *arguments):
        file = reads(path, *arguments)
        return dataclasses.replace(file, pixels=file.pixels * (np.nan if path.name == "c.png" else 1))

    reads = images.read_file
    monkeypatch.setattr(images, "read_file", read_file)
    settings = Settings(size="native")
    outcome = restore_files(halving(Overflowing()), sources_of(folder), tmp_path / "out", settings, batch_size=1)
    reasons = [failure["reason"] for failure in outcome.failures]
    assert [failure["file"] for failure in outcome.failures] == ["a.png", "b.png", "c.png"]
    assert "a.png: the model gives values that are not finite" in reasons[0]
    assert "c.png: has pixels that are not finite" in reasons[2]
    assert [row["file"] for row in outcome.rows] == ["deep/a.png", "deep/d.png"]
    assert not (tmp_path / "out" / "a.png").exists()


def test_what_is_no_chest_by_its_header_is_skipped_unless_forced(tmp_path):
    stored = np.arange(108, dtype=np.uint16).reshape(9, 12) * 37
    chest = {**STUDY, "Modality": "CR", "BodyPartExamined": "CHEST"}
    (tmp_path / "in").mkdir()
    write_dicom(tmp_path / "in" / "chest.dcm", stored, **chest)
    write_dicom(tmp_path / "in" / "ct.dcm", stored, **{**STUDY, "Modality": "CT"})
    write_dicom(tmp_path / "in" / "tibia.dcm", stored, **{**chest, "BodyPartExamined": "TIBIA"})
    frames = {**STUDY, "Modality": "MR", "Rows": 9, "NumberOfFrames": 2}  # is refused for its frames, too
    write_dicom(tmp_path / "in" / "mr.dcm", np.zeros((18, 12), np.uint16), **frames)
    sources = sources_of(tmp_path / "in")
    outcome = restore_files(halving(), sources, tmp_path / "out")
    assert [row["file"] for row in outcome.rows] == ["chest.dcm"] and outcome.failures == []
    found = {entry["file"]: entry["reason"] for entry in outcome.skipped}
    assert list(found) == ["ct.dcm", "mr.dcm", "tibia.dcm"]
    for name, words in (("ct", "Modality is CT"), ("mr", "Modality is MR"), ("tibia", "body part is TIBIA")):
        assert words in found[f"{name}.dcm"] and "--force takes it all the same" in found[f"{name}.dcm"]
    forced = restore_files(halving(), sources, tmp_path / "out", force=True)  # into the same folder
    assert [row["file"] for row in forced.rows] == ["chest.dcm", "ct.dcm", "tibia.dcm"] and forced.kept == 1
    assert "frames" in forced.failures[0]["reason"] and forced.skipped == []


def test_what_is_unlike_the_films_gets_a_warning(tmp_path):
    class Films:
        def score(self, image):
            return 1 + float(image[0, 0, 0])

    rng = np.random.default_rng(0)
    for name, corner in (("odd", 0.75), ("usual", -0.75)):
        image = rng.uniform(-1, 1, (12, 9, 1))
        image[0, 0] = corner
        images.write_image(tmp_path / "in" / f"{name}.png", image, 16)
    flat(tmp_path / "in" / "blank.png", 0)
    restorer = Restorer(Halving(), (8, 8), 1, 2, checksum="abc", films=Films())
    restore_files(restorer, sources_of(tmp_path / "in"), tmp_path / "out")
    blank, odd, usual = read_rows(tmp_path / "out")
    assert (odd["unlikeness"], usual["unlikeness"], usual["warning"]) == ("1.750", "0.250", "")
    assert odd["warning"].startswith("unlike the films") and blank["warning"].startswith("blank: ")
    typed = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [row["unlikeness"] for row in typed[1:]] == [1.75, 0.25] and typed[2]["warning"] is None
    warnings = json.loads((tmp_path / "out" / "result.json").read_text())["warnings"]
    assert warnings == {"blank.png": blank["warning"], "odd.png": odd["warning"]}
    rows = restore_files(halving(), sources_of(tmp_path / "in"), tmp_path / "none").rows
    assert {row["unlikeness"] for row in rows} == {""}


def test_what_is_no_image_is_skipped(folder, tmp_path, monkeypatch):
    def read_file(path, *arguments):
        if path.name == "b.png":
            raise NotAnImageError(f"{path}: a structured report, which holds no image")
        return reads(path, *arguments)

    reads = images.read_file
    monkeypatch.setattr(images, "read_file", read_file)
    outcome = restore_files(halving(), sources_of(folder), tmp_path / "out")
    assert (outcome.failures, len(outcome.rows)) == ([], 4)
    assert outcome.skipped == [
        {"file": "b.png", "reason": f"{folder / 'b.png'}: a structured report, which holds no image"}
    ]
    assert json.loads((tmp_path / "out" / "result.json").read_text())["skipped"] == outcome.skipped


def test_links_fifos_and_long_names(folder, tmp_path):
    """A loop of links is named; two links to one file, as git-annex makes them, are two files; 250 bytes are a name."""
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "twin.png").symlink_to(folder / "a.png")
    (folder / "b.dcm").symlink_to(folder / "gone")  # beside b.png
    os.mkfifo(folder / "pipe.png")
    (folder / "device.png").symlink_to("/dev/zero")
    long = flat(folder / f"{'x' * 246}.png", 0.3)
    uid = flat(folder / f"{'.12345' * 41}.png".lstrip("."), 0.3)
    sources = find_sources(str(folder), tmp_path / "out")
    assert len(sources) == 12
    outcome = restore_files(halving(), sources, tmp_path / "out", Settings(panels=True))
    assert [failure["file"] for failure in outcome.failures] == ["b.dcm", "device.png", "loop.png", "pipe.png"]
    assert "symbolic link" in outcome.failures[2]["reason"]
    rows = {row["file"]: row for row in outcome.rows}
    assert {long.name, uid.name, "twin.png", "a.png"} <= set(rows)
    assert rows["twin.png"]["p_covid"] == rows["a.png"]["p_covid"] != rows[long.name]["p_covid"]
    assert (tmp_path / "out" / "twin.png").read_bytes() == (tmp_path / "out" / "a.png").read_bytes()
    flat(tmp_path / "new.png", -0.7)
    (folder / "twin.png").unlink()
    (folder / "twin.png").symlink_to(tmp_path / "new.png")  # another version of the film
    assert restore_files(halving(), sources, tmp_path / "out", Settings(panels=True)).restored == 1


@pytest.mark.slow
def test_names_that_are_not_utf_8(tmp_path):
    """The tables, the journal and what is printed hold the bytes of the name, in any locale, and so does a CSV read."""
    names = [b"caf\xe9.png", "Thorax Müller $x$.png".encode(), b"=1+1.png"]
    (tmp_path / "in").mkdir()
    for level, name in enumerate(names):
        flat(tmp_path / "made.png", level / 4).rename(os.fsdecode(os.fsencode(tmp_path / "in") + b"/" + name))
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from r2c_gan.data import images
        from r2c_gan.restoration import file_restoration, restorer as restoration
        from r2c_gan.cli import program
        from r2c_gan.cli.restore import FLAGS, find_sources

        def halve(batch):
            return batch / 2, [[0.25, 0.75]] * len(batch)

        def main():
            restorer = restoration.Restorer(halve, (8, 8), 1, 2, checksum="abc")
            sources = find_sources(FLAGS.input, FLAGS.output)
            outcome = file_restoration.restore_files(restorer, sources, "out", file_restoration.Settings(panels=True))
            for row in outcome.rows:
                print(row["file"])
            print(outcome.failures, outcome.kept, file=sys.stderr)

        program.run(main, "")
    """)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}

    def run(text, locale):
        command = [sys.executable, "-c", script, "--model=x", "--output=out", f"--input={text}"]
        variables = {**environment, "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        return subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True)

    found = run("in", "C")
    assert found.returncode == 0 and found.stderr.splitlines()[-1] == b"[] 0"
    assert sorted(os.listdir(os.fsencode(tmp_path / "out" / "panels"))) == sorted(names)
    with (tmp_path / "out" / "predictions.csv").open(encoding="utf-8", errors="surrogateescape") as file:
        rows = [row["file"].encode("utf-8", "surrogateescape") for row in files.CsvReader(file)]
    assert rows == sorted(names)
    typed = json.loads((tmp_path / "out" / "predictions.json").read_bytes())
    assert [row["file"].encode("utf-8", "surrogateescape") for row in typed] == sorted(names)
    # In another locale, and given as a list, all are finished.
    (tmp_path / "in" / "list.csv").write_bytes(b"file\n" + b"\n".join(sorted(names)))
    again = run("in/list.csv", "C.UTF-8")
    assert again.stderr.splitlines()[-1] == b"[] 3"
    assert again.stdout.split(b"\n")[:-1] == sorted(names)


def test_large_images_are_read_one_at_a_time(folder, tmp_path, monkeypatch):
    """What is decoded and not yet restored stays below the limit, whatever the number of readers."""
    held, most, lock = 0, 0, threading.Lock()
    reads = images.read_file
    one = 10 * 14 * 4
    for index in range(12):
        flat(tmp_path / "many" / f"{index:02d}.png", 0.1)

    def read_file(path, *arguments):
        nonlocal held, most
        with lock:
            held += 1
            most = max(most, held)
        return reads(path, *arguments)

    class Counting(Restorer):
        def restore_batch(self, batch, *arguments):
            nonlocal held
            result = super().restore_batch(batch, *arguments)
            with lock:
                held -= len(batch)
            return result

    monkeypatch.setattr(images, "read_file", read_file)
    restorer = Counting(Halving(), (8, 8), 1, 2, checksum="abc")
    for limit, expected in ((4 * one, 5), (one // 2, 2)):  # and one that did not fit the batch
        monkeypatch.setattr(file_restoration, "_IN_FLIGHT", limit)
        most = 0
        out = tmp_path / str(limit)
        assert restore_files(restorer, sources_of(tmp_path / "many"), out, readers=8).restored == 12
        assert held == 0 and most <= expected


def test_too_large_for_memory_is_a_failure_with_a_hint(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("r2c_gan.data.image_limits.MAX_SIDE", 1000)
    known = {"method": "operational", "q": 3, "filters": 64}
    restorer = Restorer(Halving(), (8, 8), 1, 2, config=known, checksum="abc")
    needed = restorer.predicted_memory(10, 14)
    monkeypatch.setattr("r2c_gan.restoration.memory.available", lambda: int(needed * 1.1))
    outcome = restore_files(restorer, sources_of(folder), tmp_path / "out", Settings(size="native"))
    assert [row["file"] for row in outcome.rows] == ["a.png", "b.png"]
    assert all("use --size=model" in failure["reason"] for failure in outcome.failures)
    assert all(shape[0] == 1 for shape in restorer.network.shapes)  # two at once would not fit


def test_a_full_disk_ends_the_run(folder, tmp_path, monkeypatch):
    def full(path, image, bits):
        if "d.png" not in path.name:
            return writes(path, image, bits)
        with files.atomic_path(path):
            raise OSError(errno.ENOSPC, "No space left on device")

    writes = images.write_image
    monkeypatch.setattr(images, "write_image", full)
    with pytest.raises(UserError, match=r"d\.png: cannot be written \(No space left"):
        restore_files(halving(), sources_of(folder), tmp_path / "out", batch_size=2)
    assert len(read_rows(tmp_path / "out")) == 4  # what was done is written down
    assert json.loads((tmp_path / "out" / "result.json").read_text())["interrupted"] is True
    monkeypatch.undo()
    assert restore_files(halving(), sources_of(folder), tmp_path / "out").restored == 1


def test_ctrl_c_loses_nothing(folder, tmp_path):
    class Interrupted(Halving):
        def __call__(self, batch):
            if len(self.shapes) == 4:  # two calls a batch
                raise KeyboardInterrupt
            return super().__call__(batch)

    with pytest.raises(KeyboardInterrupt):
        restore_files(halving(Interrupted()), sources_of(folder), tmp_path / "out", batch_size=2)
    assert [row["file"] for row in read_rows(tmp_path / "out")] == ["a.png", "b.png", "c.png", "deep/a.png"]
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["images"], result["interrupted"]) == (4, True)
    again = restore_files(halving(), sources_of(folder), tmp_path / "out")
    assert (again.restored, again.kept) == (1, 4)
    assert json.loads((tmp_path / "out" / "result.json").read_text())["interrupted"] is False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_file_whose_reading_does_not_end_does_not_hold_up_the_end(number):
    """The interpreter would wait for its threads."""
    program = textwrap.dedent(
        """
        import concurrent.futures, time
        from r2c_gan.cli import restore
        restore._LAST_RESORT = 0.5
        with restore._ended_in_order(), concurrent.futures.ThreadPoolExecutor(1) as pool:
            reading = pool.submit(time.sleep, 60)
            print("reads", flush=True)
            reading.result()
        """
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout.readline() == "reads\n"
            running.send_signal(number)
            assert running.wait(20) == 128 + number
        finally:
            running.kill()


# --- going on --------------------------------------------------------------------------------------------------------


def test_what_is_finished_is_left_alone(folder, tmp_path):
    restore_files(halving(), sources_of(folder), tmp_path / "out")
    before = snapshot(tmp_path / "out")
    network = Halving()
    again = restore_files(halving(network), sources_of(folder), tmp_path / "out")
    assert (again.restored, again.kept) == (0, 5) and network.shapes == []
    after = snapshot(tmp_path / "out")
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert changed <= {"predictions.csv", "predictions.json", "result.json"}
    assert read_rows(tmp_path / "out") == again.rows and len(again.rows) == 5


def test_what_is_gone_or_changed_is_done_again(folder, tmp_path):
    first = restore_files(halving(), sources_of(folder), tmp_path / "out")
    (tmp_path / "out" / "a.png").unlink()
    flat(folder / "c.png", -0.6, size=(13, 14))
    os.utime(folder / "deep" / "d.png", (1, 1))  # touched, the same bytes
    again = restore_files(halving(), sources_of(folder), tmp_path / "out")
    assert (again.restored, again.kept) == (2, 3)
    assert [row["file"] for row in again.rows] == [row["file"] for row in first.rows]
    assert again.rows[0] == first.rows[0] and again.rows[2]["label"] == "control"
    np.testing.assert_allclose(images.read_image(tmp_path / "out" / "c.png"), -0.3, atol=1 / 127)


def test_inputs_can_be_added(folder, tmp_path):
    sources = sources_of(folder)
    restore_files(halving(), sources[:2], tmp_path / "out")
    outcome = restore_files(halving(), sources[2:], tmp_path / "out")
    assert [row["file"] for row in outcome.rows] == ["c.png", "deep/a.png", "deep/d.png", "a.png", "b.png"]


def test_the_same_name_from_elsewhere_is_refused(folder, tmp_path):
    restore_files(halving(), sources_of(folder), tmp_path / "out")
    other = flat(tmp_path / "other" / "a.png", -0.9)
    with pytest.raises(UserError, match=r"other/a\.png: would overwrite the result of .*in/a\.png"):
        restore_files(halving(), [(other, Path("a.png"))], tmp_path / "out")
    moved = Path(shutil.move(folder, tmp_path / "moved"))  # the same files in another place are finished, though
    assert restore_files(halving(), sources_of(moved), tmp_path / "out").kept == 5


@pytest.mark.parametrize("damage", [b"", b"cut", b"X"], ids=["empty", "cut short", "one byte"])
@pytest.mark.parametrize("path", ["a.png", "panels/a.png"])
def test_what_is_no_longer_as_it_was_written_is_done_again(folder, tmp_path, path, damage):
    settings = Settings(panels=True)
    first = restore_files(halving(), sources_of(folder), tmp_path / "out", settings)
    path = tmp_path / "out" / path
    whole = path.read_bytes()
    path.write_bytes({b"": b"", b"cut": whole[:-1], b"X": whole[:-1] + b"X"}[damage])
    again = restore_files(halving(), sources_of(folder), tmp_path / "out", settings)
    assert (again.restored, again.kept) == (1, 4) and again.rows == first.rows
    assert path.read_bytes() == whole
    os.utime(path, (1, 1))
    assert restore_files(halving(), sources_of(folder), tmp_path / "out", settings).kept == 5  # touched only


def test_a_file_of_another_folder_is_known_by_its_contents(folder, tmp_path):
    """The same name, size and time are not the same film."""
    restore_files(halving(), sources_of(folder)[:1], tmp_path / "out")
    other = tmp_path / "other" / "a.png"
    other.parent.mkdir()
    data = bytearray((folder / "a.png").read_bytes())
    data[-5] ^= 1  # of the checksum of IEND
    other.write_bytes(data)
    status = (folder / "a.png").stat()
    (folder / "a.png").unlink()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    outcome = restore_files(halving(), [(other, Path("a.png"))], tmp_path / "out")
    assert outcome.kept == 0


@pytest.mark.parametrize(
    ("settings", "checksum", "says"),
    [
        (Settings(iterations=2), "abc", "--iterations=1, not of --iterations=2"),
        (Settings(size="native"), "abc", "--size=model, not of --size=native"),
        (Settings(deidentify=True), "abc", "--deidentify=False, not of --deidentify=True"),
        (Settings(), "another", "another model"),
    ],
)
def test_other_settings_are_refused(folder, tmp_path, settings, checksum, says):
    restore_files(halving(), sources_of(folder), tmp_path / "out")
    before = snapshot(tmp_path / "out")
    with pytest.raises(UserError, match=says) as caught:
        restore_files(halving(checksum=checksum), sources_of(folder), tmp_path / "out", settings)
    assert "--overwrite" in str(caught.value)
    assert snapshot(tmp_path / "out") == before
    some = sources_of(folder)[:2]
    outcome = restore_files(halving(checksum=checksum), some, tmp_path / "out", settings, overwrite=True)
    assert len(outcome.rows) == len(read_rows(tmp_path / "out")) == 2
    assert not (tmp_path / "out" / "c.png").exists()  # of the other settings


@pytest.mark.parametrize("again", [Settings(), Settings(iterations=2)], ids=["sweeping", "replacing"])
def test_a_received_journal_deletes_nothing_of_yours(folder, tmp_path, again):
    restore_files(halving(), sources_of(folder), tmp_path / "out")
    for name in ("precious.png", ".precious.12345678.png"):
        (tmp_path / name).touch()
    journal = Journal(tmp_path / "out", {}).path
    with journal.open("a") as file:
        file.write(json.dumps({"writing": ["../precious.png"]}) + "\n")
    with pytest.raises(UserError, match=r"names '\.\./precious\.png', which is not in"):
        restore_files(halving(), sources_of(folder), tmp_path / "out", again, overwrite=again != Settings())
    assert (tmp_path / "precious.png").exists() and (tmp_path / ".precious.12345678.png").exists()


def test_files_in_the_way_are_refused(folder, tmp_path):
    mine = flat(tmp_path / "out" / "c.png", 0.1)
    before = mine.read_bytes()
    with pytest.raises(UserError, match=r"out/c\.png: exists already"):
        restore_files(halving(), sources_of(folder), tmp_path / "out")
    assert snapshot(tmp_path / "out").keys() == {mine} and mine.read_bytes() == before
    assert restore_files(halving(), sources_of(folder), tmp_path / "out", overwrite=True).restored == 5
    assert mine.read_bytes() != before


def test_names_that_differ_in_the_suffix_alone(folder, tmp_path):
    out = tmp_path / "out"

    def restored(sources):
        outcome = restore_files(halving(), sources, out, Settings(panels=True))
        found = {row["file"]: row["output"] for row in outcome.rows}
        for name, value in values.items():
            if name in found:
                np.testing.assert_allclose(images.read_image(out / found[name]), value / 2, atol=1 / 127)
                assert (out / "panels" / found[name]).exists()
        return outcome, found

    values = {"x.jpg": 0.2, "x.tif": -0.4, "x.PNG": 0.8}
    for name, value in values.items():
        flat(folder / "new.png", value).rename(folder / name)
    (folder / "a.tif").write_bytes(b"")
    all_of_them = sources_of(folder)
    by_name = {str(name): (file, name) for file, name in all_of_them}
    assert restored([by_name["x.tif"]])[1] == {"x.tif": "x.png"}
    outcome, found = restored(all_of_them)
    assert [failure["file"] for failure in outcome.failures] == ["a.tif"] and outcome.kept == 1
    assert {name: found[name] for name in values} == {"x.tif": "x.png", "x.jpg": "x.jpg.png", "x.PNG": "x.PNG.png"}
    assert found["a.png"] == "a.png"  # whatever comes first: it has the name already
    for some in (all_of_them, all_of_them[::-1], [by_name["x.jpg"]]):
        again, same = restored(some)
        assert again.restored == 0 and same == found
    flat(folder / "new.png", 0.6).rename(folder / "a.tif")
    assert restored([by_name["a.tif"]])[1]["a.tif"] == "a.tif.png"


def test_a_long_name_that_is_taken(folder, tmp_path):
    (folder / "a.tif").write_bytes(b"")
    flat(folder / "a.tif.png", 0)
    with pytest.raises(UserError, match=r"a\.tif\.png: would overwrite the result of .*a\.tif"):
        restore_files(halving(), sources_of(folder), tmp_path / "out")


def test_collisions_are_refused(folder, tmp_path):
    twice = [*sources_of(folder), (folder / "b.png", Path("a.png"))]
    with pytest.raises(UserError, match=r"b\.png: would overwrite the result of .*a\.png"):
        restore_files(halving(), twice, tmp_path / "out")
    with pytest.raises(UserError, match="would overwrite the input"):
        restore_files(halving(), sources_of(folder), folder)
    with pytest.raises(UserError, match="would overwrite the input"):
        restore_files(halving(), sources_of(folder), folder, overwrite=True)
    assert not (tmp_path / "out").exists()


def test_panels_and_results_do_not_meet(folder, tmp_path):
    flat(folder / "panels" / "a.png", 0.2)
    with pytest.raises(UserError, match=r"panels/a\.png: its result would lie among the panels"):
        restore_files(halving(), sources_of(folder), tmp_path / "out", Settings(panels=True))
    assert not (tmp_path / "out").exists()
    assert restore_files(halving(), sources_of(folder), tmp_path / "out").restored == 6
    mine = flat(tmp_path / "new" / "panels" / "a.png", 0.2)
    before = mine.read_bytes()
    with pytest.raises(UserError, match=r"new/panels/a\.png: exists already"):
        restore_files(halving(), sources_of(folder)[:1], tmp_path / "new", Settings(panels=True))
    with pytest.raises(UserError, match="would overwrite the input"):
        restore_files(halving(), [(folder / "b.png", "b.png"), (mine, "c.png")], mine.parents[1], Settings(panels=True))
        restore_files(halving(), [(folder / "a.png", "a.png"), (mine, "c.png")], mine.parents[1], Settings(panels=True))
    assert mine.read_bytes() == before


@pytest.mark.parametrize("name", ["predictions.csv", "result.json"])
def test_tables_of_others_are_refused(folder, tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name}: exists already"):
        restore_files(halving(), sources_of(folder), tmp_path / "out")
    assert (tmp_path / "out" / name).read_text() == "mine"
    assert restore_files(halving(), sources_of(folder), tmp_path / "out", overwrite=True).restored == 5


def test_output_inside_input(folder, tmp_path, capsys):
    out = folder / "restored"
    for kept in (0, 5, 5):
        sources = find_sources(str(folder), out)
        outcome = restore_files(halving(), sources, out, Settings(panels=True))
        assert (len(outcome.rows), outcome.kept, outcome.failures) == (5, kept, [])
    assert "its 10 images are no inputs" in capsys.readouterr().err
    assert len(find_sources(f"{folder}/**/*.png", out)) == 5
    with pytest.raises(UserError, match="is the input folder, too"):
        find_sources(str(folder), folder)
    assert len(find_sources(str(folder / "deep"), folder)) == 2  # the output folder holds the input: no result is one


def test_one_process_at_a_time(folder, tmp_path):
    """A second run into the same folder is refused while the first is at work."""
    entered, leave = threading.Event(), threading.Event()

    class Slow(Halving):
        def __call__(self, batch):
            result = super().__call__(batch)
            if len(self.shapes) == 3:  # the first batch is written
                entered.set()
                leave.wait(20)
            return result

    run = threading.Thread(
        target=restore_files, args=(halving(Slow()), sources_of(folder), tmp_path / "out"), kwargs={"batch_size": 1}
    )
    run.start()
    try:
        assert entered.wait(20)
        with pytest.raises(UserError, match="another process restores into it"):
            restore_files(halving(), sources_of(folder), tmp_path / "out")
    finally:
        leave.set()
        run.join()
    assert restore_files(halving(), sources_of(folder), tmp_path / "out").kept == 5


def test_a_line_that_was_cut_short_is_dropped(folder, tmp_path):
    restore_files(halving(), sources_of(folder), tmp_path / "out")
    journal = tmp_path / "out" / "journal.jsonl"
    whole = journal.read_bytes()
    for cut in (len(whole) - 5, len(whole) // 2, 10, 0):
        journal.write_bytes(whole[:cut])
        overwrite = cut < 20  # without its header the journal does not know its own files
        outcome = restore_files(halving(), sources_of(folder), tmp_path / "out", overwrite=overwrite)
        assert outcome.restored + outcome.kept == 5 and outcome.restored >= 1
        assert [row["file"] for row in outcome.rows] == ["a.png", "b.png", "c.png", "deep/a.png", "deep/d.png"]
        assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_a_damaged_journal_is_named(folder, tmp_path):
    restore_files(halving(), sources_of(folder), tmp_path / "out")
    (tmp_path / "out" / "journal.jsonl").write_text("words\n")
    with pytest.raises(UserError, match=r"journal\.jsonl: damaged"):
        restore_files(halving(), sources_of(folder), tmp_path / "out")


def test_damaged_lines_are_done_again(folder, tmp_path):
    """A journal of before probabilities were checked, edited, or of a bad disk."""
    first = restore_files(halving(), sources_of(folder), tmp_path / "out")
    journal = tmp_path / "out" / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    finished = [index for index, line in enumerate(lines) if "file" in line]
    lines[finished[0]]["p_covid"] = "nan"
    lines[finished[1]]["bytes"] = float("nan")
    del lines[finished[2]]["output"]
    texts = [json.dumps(line) for line in lines]
    texts[finished[3]] = texts[finished[3]][:40]
    texts[1:1] = ["", "[1, 2]", "null", '{"file": ["a"]}', '{"writing": 3}', '{"patient": []}', "\x00\xff"]
    journal.write_text("\n".join(texts) + "\n")
    again = restore_files(halving(), sources_of(folder), tmp_path / "out")
    assert (again.restored, again.kept) == (4, 1) and again.rows == first.rows
    assert restore_files(halving(), sources_of(folder), tmp_path / "out").kept == 5


def test_a_damaged_line_gives_no_placeholder_away_twice(dicom_folder, tmp_path):
    import pydicom

    settings, names = Settings(deidentify=True), names_of(dicom_folder)
    restore_files(halving(), names[:2], tmp_path / "out", settings)
    journal = tmp_path / "out" / "journal.jsonl"
    journal.write_text(journal.read_text().replace('{"patient"', '{"pat'))
    restore_files(halving(), names[2:], tmp_path / "out", settings)
    found = {str(pydicom.dcmread(path).PatientID) for path in (tmp_path / "out").glob("*.dcm")}
    assert len(found) == 2


def test_leftovers_of_a_kill_are_swept(folder, tmp_path):
    restore_files(halving(), sources_of(folder)[:1], tmp_path / "out")
    with Journal(tmp_path / "out", file_restoration._record(halving(), Settings())) as journal:
        journal.announce(["b.png"])
    with files.atomic_path(tmp_path / "out" / "b.png") as leftover:
        leftover.write_bytes(b"half")
        os.link(leftover, tmp_path / "half")
    os.rename(tmp_path / "half", leftover)
    (tmp_path / "out" / "b.png").write_bytes(b"whole, but not in the journal")
    outcome = restore_files(halving(), sources_of(folder), tmp_path / "out")
    assert not leftover.exists()
    assert (outcome.restored, outcome.kept) == (4, 1)
    assert images.read_image(tmp_path / "out" / "b.png").shape == (10, 14, 1)


def test_a_killed_run_loses_and_doubles_nothing(tmp_path):
    """Killed again and again with SIGKILL, at different points; the outcome is that of one run."""
    for index in range(24):
        flat(tmp_path / "in" / f"{index:02d}.png", index / 12 - 1, size=(20 + index % 3, 30))
    sources = sources_of(tmp_path / "in")
    expected = restore_files(halving(), sources, tmp_path / "expected")
    script = textwrap.dedent("""
        import os, sys, time
        import numpy as np
        from r2c_gan.data import images
        from r2c_gan.restoration.file_restoration import restore_files
        from r2c_gan.restoration.restorer import Restorer

        def slow(batch):
            time.sleep(0.02)
            covid = (batch.mean((1, 2, 3)) + 1) / 2
            return batch / 2, np.stack([1 - covid, covid], axis=-1).astype("float32")

        folder = sys.argv[1]
        sources = [(file, file.relative_to(folder)) for file in images.list_images(folder, recursive=True)]
        print(os.getpid(), flush=True)
        restore_files(Restorer(slow, (8, 8), 1, 2, checksum="abc"), sources, sys.argv[2], batch_size=2)
    """)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = programs.python("-c", script, tmp_path / "in", tmp_path / "out")
    kills = 0
    for wait in (0.08, 0.15):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        number = int(process.stdout.readline())
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait)
        if process.poll() is None:
            os.kill(number, signal.SIGKILL)
            kills += 1
        process.wait()
        process.stdout.close()
        for path in (tmp_path / "out").rglob("[!.]*.png"):
            assert images.read_image(path).size  # never half of one
        journal = tmp_path / "out" / "journal.jsonl"
        if journal.exists():
            rows = [json.loads(line) for line in journal.read_bytes().decode().split("\n")[:-1]]
            names = [row["file"] for row in rows if "file" in row]
            assert len(names) == len(set(names))
    assert kills == 2
    outcome = restore_files(halving(), sources, tmp_path / "out")
    assert 0 < outcome.kept < 24 and outcome.restored + outcome.kept == 24
    assert outcome.rows == expected.rows
    for row in expected.rows:
        assert (tmp_path / "out" / row["output"]).read_bytes() == (tmp_path / "expected" / row["output"]).read_bytes()
    assert not list((tmp_path / "out").glob(".*.png"))


# --- --input ---------------------------------------------------------------------------------------------------------


def names(found):
    return [(file.name, name.as_posix()) for file, name in found]


def test_input_is_a_file_or_a_folder_or_several(folder, tmp_path):
    assert names(find_sources(str(folder / "a.png"))) == [("a.png", "a.png")]
    assert [name for _, name in names(find_sources(str(folder)))] == [
        *("a.png", "b.png", "c.png", "deep/a.png", "deep/d.png")
    ]
    both = find_sources(f"{folder / 'b.png'}, {folder / 'deep'},{folder / 'b.png'}")
    assert [name for _, name in names(both)] == ["b.png", "a.png", "d.png"]
    comma = flat(tmp_path / "one, two.png", 0)
    assert names(find_sources(str(comma))) == [("one, two.png", "one, two.png")]


def test_input_is_a_glob(folder):
    assert [name for _, name in names(find_sources(f"{folder}/*/*.png"))] == ["deep/a.png", "deep/d.png"]
    assert [name for _, name in names(find_sources(f"{folder}/**/[ad].png"))] == ["a.png", "deep/a.png", "deep/d.png"]


def test_input_is_a_csv(folder, tmp_path):
    table = folder / "list.csv"
    outside = flat(tmp_path / "outside.png", 0)
    table.write_text(f"label,file\ncovid,deep/a.png\ncontrol,b.png\ncontrol,{outside}\ncontrol,missing.png\n")
    found = find_sources(str(table))
    assert [name.as_posix() for _, name in found] == ["deep/a.png", "b.png", "outside.png", "missing.png"]
    outcome = restore_files(halving(), found, tmp_path / "out")
    assert [row["file"] for row in outcome.rows] == ["deep/a.png", "b.png", "outside.png"]
    assert "missing.png: no such file" in outcome.failures[0]["reason"]


def test_inputs_that_mean_nothing(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.csv").write_text("path\na.png\n")
    (tmp_path / "none.csv").write_text("file\n")
    (tmp_path / "quote.csv").write_text('file,note\na.png,"open\nb.png,\nc.png,\n')
    (tmp_path / "binary.csv").write_bytes(b"file\n\xff\xfe\x00")
    for text, says in [
        ("nowhere", "no such file or folder"),
        (f"{folder / 'a.png'},nowhere.png", "nowhere.png: no such"),
        (str(tmp_path / "empty"), "holds no image"),
        (f"{folder}/*.tif", "no file matches"),
        (str(tmp_path / "bad.csv"), "no column 'file'"),
        (str(tmp_path / "none.csv"), "lists no file"),
        (str(tmp_path / "binary.csv"), "not a readable CSV"),
        (str(tmp_path / "gone.csv"), "no such file"),
        (" , ", "names no file"),
        (str(tmp_path / "quote.csv"), "not a readable CSV (unexpected end of data)"),
        (",".join([f"{tmp_path}/nowhere-{index}.png" for index in range(300)]), "no such file"),
    ]:
        with pytest.raises(UserError, match="--input") as caught:
            find_sources(text)
        assert says in str(caught.value)


# --- the program -----------------------------------------------------------------------------------------------------


def test_the_program(call, run_dir, folder, dicom_folder, tmp_path):  # noqa: F811
    (folder / "broken.png").write_bytes(b"\x89PNG")
    out = tmp_path / "out"
    arguments = {"model": run_dir, "input": folder, "output": out, "iterations": 2, "panels": True}
    outcome = call("restore", **arguments, batch_size=3, readers=3)
    outcome.assert_one_line_error("1 of 9 files", out / "result.json")
    assert "skipped: " in outcome.err and "broken.png" in outcome.err
    assert "8 images" in outcome.out and "not for diagnosis" in outcome.out
    result = json.loads((out / "result.json").read_text())
    assert (result["images"], result["restored_now"], result["iterations"]) == (8, 8, 2)
    assert [failure["file"] for failure in result["failures"]] == ["broken.png"]
    assert sum(result["labels"].values()) == 8
    rows = read_rows(out)
    restorer = Restorer.load(run_dir)
    for row in rows:
        expected = restorer.restore(images.read_image(folder / row["file"], 3), 2)
        assert float(row["p_covid"]) == pytest.approx(float(expected.before[1]), abs=1e-5)
        assert float(row["restored_p_covid"]) == pytest.approx(float(expected.after[1]), abs=1e-5)
        assert row["label_changed"] == ("yes" if expected.label_changed else "no")
        shown = images.read_image(out / row["output"], 1)
        np.testing.assert_allclose(shown, images.with_channels(expected.image, 1), atol=1.1 / 127.5)
    assert (out / "panels" / "a.png").is_file() and (out / "panels" / "a.dcm.png").is_file()
    assert "--iterations=2" in (out / "flags.txt").read_text().splitlines()
    (folder / "broken.png").unlink()
    again = call("restore", **arguments)
    assert again.code == 0 and "8 of them finished before" in again.out
    refused = call("restore", **{**arguments, "iterations": 1})
    refused.assert_one_line_error("--iterations=2, not of --iterations=1", "--overwrite")
    assert json.loads((out / "result.json").read_text())["finished_before"] == 8
    replaced = call("restore", **{**arguments, "iterations": 1}, overwrite=True)
    assert replaced.code == 0, replaced.err


@pytest.mark.parametrize("wrong", [{"size": "huge"}, {"readers": 0}, {"batch_size": 0}, {"format": "gif"}])
def test_wrong_flags(call, run_dir, folder, tmp_path, wrong):  # noqa: F811
    outcome = call("restore", model=run_dir, input=folder, output=tmp_path / "out", **wrong)
    ((name, value),) = wrong.items()
    outcome.assert_one_line_error(f"--{name}={value}" if isinstance(value, int) else f"flag --{name}={value}")
    assert not (tmp_path / "out").exists()
