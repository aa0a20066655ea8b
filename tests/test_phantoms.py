import csv
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import programs
import pytest

from data_prep import phantoms
from data_prep.manifest import new_folder
from data_prep.phantoms import PhantomSet, make_phantom, write_dataset
from r2c_gan.errors import UserError

SEEDS = range(12)


def make(seed, size=64, label="control"):
    return make_phantom(np.random.default_rng(seed), size, label)


@pytest.fixture(scope="module")
def pairs():
    """The same patients without and with opacities."""
    return [(make(seed), make(seed, label="covid")) for seed in SEEDS]


@pytest.mark.parametrize(("size", "label"), [(32, "covid"), (75, "control"), (128, "covid")])
def test_forms(size, label):
    phantom = make(1, size, label)
    assert phantom.image.shape == phantom.lung_mask.shape == phantom.opacity_mask.shape == (size, size)
    assert phantom.image.dtype == np.float32
    assert phantom.lung_mask.dtype == phantom.opacity_mask.dtype == bool
    assert phantom.image.min() >= 0
    assert phantom.image.max() <= 1
    assert json.loads(json.dumps(phantom.parameters, allow_nan=False)) == phantom.parameters
    assert phantom.parameters["label"] == label


def test_a_generator_state_is_a_patient():
    first, again, other = make(5, label="covid"), make(5, label="covid"), make(6, label="covid")
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.opacity_mask, again.opacity_mask)
    assert np.abs(first.image - other.image).mean() > 0.02
    rng = np.random.default_rng(5)
    np.testing.assert_array_equal(make_phantom(rng, 64, "covid").image, first.image)
    assert np.abs(make_phantom(rng, 64, "covid").image - first.image).mean() > 0.02


def test_a_patient_is_the_same_at_every_size():
    for seed in SEEDS[:4]:
        small, large = make(seed, 64, "covid"), make(seed, 192, "covid")
        assert small.parameters == large.parameters
        shrunk = cv2.resize(large.image, (64, 64), interpolation=cv2.INTER_AREA)
        assert np.corrcoef(small.image.ravel(), shrunk.ravel())[0, 1] > 0.99
        lungs = cv2.resize(large.lung_mask.astype(np.float32), (64, 64), interpolation=cv2.INTER_AREA) > 0.5
        assert (lungs & small.lung_mask).sum() / (lungs | small.lung_mask).sum() > 0.95


def test_only_the_opacities_tell_the_classes_apart(pairs):
    for control, covid in pairs:
        for key in ("anatomy", "display"):
            assert control.parameters[key] == covid.parameters[key]
        np.testing.assert_array_equal(control.lung_mask, covid.lung_mask)
        change = covid.image - control.image
        near_lung = cv2.dilate(control.lung_mask.astype(np.uint8), np.ones((5, 5))) > 0
        assert np.all(change[~near_lung] == 0)
        assert change.min() >= -1e-6
        assert np.abs(change[~covid.opacity_mask]).mean() < 0.05 * change[covid.opacity_mask].mean()


def test_controls_have_no_opacity(pairs):
    for control, covid in pairs:
        assert not control.opacity_mask.any()
        assert control.parameters["opacities"] == []
        assert covid.parameters["opacities"]


def test_opacities_are_bilateral_inside_the_lungs_and_brighter(pairs):
    for control, covid in pairs:
        assert not np.any(covid.opacity_mask & ~covid.lung_mask)
        assert covid.opacity_mask[:, :32].sum() > 20
        assert covid.opacity_mask[:, 32:].sum() > 20
        assert (covid.image - control.image)[covid.opacity_mask].mean() > 0.06
        assert covid.opacity_mask.sum() < 0.8 * covid.lung_mask.sum()


def test_opacities_are_lower_and_more_peripheral_than_the_lungs(pairs):
    rows, columns = np.mgrid[:64, :64]
    for _, covid in pairs:
        assert rows[covid.opacity_mask].mean() > rows[covid.lung_mask].mean()
    away = [
        np.abs(columns[mask] - 31.5).mean()
        for _, covid in pairs
        for mask in (covid.opacity_mask, covid.lung_mask & ~covid.opacity_mask)
    ]
    assert np.mean(away[::2]) > np.mean(away[1::2])


def test_the_chest_is_laid_out_as_a_frontal_radiograph(pairs):
    for control, _ in pairs:
        lungs, image = control.lung_mask, control.image
        parts, labels = cv2.connectedComponents(lungs.astype(np.uint8))
        assert sorted(np.bincount(labels.ravel())[1:])[-2:][0] > 200, "two lungs"
        assert parts >= 3
        rows = np.nonzero(lungs.any(axis=1))[0]
        middle = image[rows[0] + 10 : rows[-1] - 10, 30:34]
        assert np.median(image[lungs]) < np.median(middle) - 0.2, "the mediastinum is brighter than the lungs"
        assert image[:6, [*range(4), *range(60, 64)]].min() < 0.1, "air is black"
        assert np.median(image[rows[-1] - 2 :, 20:28]) > np.median(image[lungs]) + 0.2, "the liver is brighter"
    right, left = (np.mean([c.lung_mask[:, part].sum() for c, _ in pairs]) for part in (slice(32), slice(32, 64)))
    assert right > 1.05 * left, "the heart takes room from the left lung, at the right of the image"


def test_anatomy_varies():
    areas = [make(seed, 32).lung_mask.sum() for seed in SEEDS]
    assert np.std(areas) > 0.05 * np.mean(areas)
    markers = {make(seed, 32).parameters["display"]["marker"] for seed in SEEDS}
    assert markers == {"R", "L", ""}


def test_the_marker_is_white_and_on_its_own_side():
    seen = set()
    for seed in SEEDS:
        letter = (phantom := make(seed, 128)).parameters["display"]["marker"]
        corners = {"R": phantom.image[5:28, 2:24], "L": phantom.image[5:28, -24:-2]}
        if letter:
            assert corners[letter].max() > 0.8
            seen.add(letter)
        else:
            assert min(corner.max() for corner in corners.values()) < 0.8
    assert seen == {"R", "L"}


@pytest.mark.parametrize("size", [16, 5000])
def test_refuses_a_size(size):
    with pytest.raises(UserError, match=f"size={size}.*32 to 2048"):
        make(0, size)


def test_refuses_a_label():
    with pytest.raises(UserError, match=r"'flu'.*control, covid"):
        make(0, label="flu")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 16}, "--size=16"),
        ({"train": 0}, "--train=0"),
        ({"test": 1}, "--test=1.*one of each class"),
        ({"val": -1}, "--val=-1.*0, or at least 2"),
        ({"severity": "awful"}, "--severity=awful.*mild, moderate, severe"),
        ({"seed": -1}, "--seed=-1"),
    ],
)
def test_refuses_a_set(values, message):
    with pytest.raises(UserError, match=message):
        PhantomSet(**values)


SET = PhantomSet(size=32, train=6, val=2, test=4, seed=3, masks=True)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    return folder, write_dataset(folder, SET)


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def test_layout(dataset):
    folder, _ = dataset
    counts = {
        str(path.relative_to(folder)): len(list(path.glob("*.png"))) for path in folder.rglob("*") if path.is_dir()
    }
    assert counts == {
        "trainA": 6, "trainB": 6, "valA": 2, "valB": 2, "testA": 4, "testB": 4, "testA_reference": 4,
        "masks": 0, "masks/lungs": 8, "masks/opacities": 8,
    }  # fmt: skip
    for path in folder.rglob("*.png"):
        image = read(path)
        assert image.dtype == np.uint8
        assert image.shape == (32, 32)
    for name in ("trainA", "trainB", "valA", "valB", "testA", "testB"):
        labels = [path.name.startswith("covid_p") for path in (folder / name).iterdir()]
        assert sum(labels) == len(labels) / 2


def test_no_patient_is_in_two_places(dataset):
    folder, rows = dataset
    names = [path.name for part in ("train", "val", "test") for d in "AB" for path in (folder / f"{part}{d}").iterdir()]
    assert len(set(names)) == len(names) == 24
    patients = [row["patient"] for row in rows if row["domain"] != "A_reference"]
    assert len(set(patients)) == len(patients) == 24


def test_the_references_are_the_clean_twins(dataset):
    folder, _ = dataset
    assert {p.name for p in (folder / "testA").iterdir()} == {p.name for p in (folder / "testA_reference").iterdir()}
    changes = []
    for path in (folder / "testA_reference").iterdir():
        changes.append(np.abs(read(folder / "testA" / path.name).astype(float) - read(path)).mean())
        number = int(path.stem[-5:])
        child = np.random.SeedSequence(SET.seed, spawn_key=(number,)).spawn(2)[0]
        clean = make_phantom(np.random.default_rng(child), 32, path.stem.split("_")[0]).image
        np.testing.assert_allclose(read(path), 255 * clean, atol=0.51)
    assert min(changes) > 0
    assert np.mean(changes) > 2


def test_masks_follow_the_labels(dataset):
    folder, _ = dataset
    for path in (folder / "masks" / "opacities").iterdir():
        opacity, lungs = read(path), read(folder / "masks" / "lungs" / path.name)
        assert set(np.unique(lungs)) == {0, 255}
        assert opacity.any() == path.name.startswith("covid")
        assert not np.any(opacity[lungs == 0])


def test_manifest(dataset):
    folder, rows = dataset
    with (folder / "manifest.csv").open(newline="") as file:
        read_rows = list(csv.DictReader(file))
    assert [row["file"] for row in read_rows] == [row["file"] for row in rows]
    listed = {row["file"] for row in read_rows}
    assert listed == {name for name in content(folder) if name.endswith(".png") and not name.startswith("masks")}
    for row in read_rows:
        path = folder / row["file"]
        assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert path.name == f"{row['label']}_{row['patient']}.png"
        assert path.parent.name == f"{row['split']}{row['domain']}"
        assert (row["source"], row["view"], row["original"]) == ("phantom", "PA", "seed 3")
        assert len(row["phash"]) == 64
        assert 0 <= float(row["quality"]) <= 1
        assert json.loads(row["phantom"])["label"] == row["label"]
        assert bool(row["parameters"]) == (row["domain"] == "A")


def test_workers_change_nothing_and_the_seed_everything(dataset, tmp_path):
    folder, _ = dataset
    for name in ("two", "other"):
        (tmp_path / name).mkdir()
    write_dataset(tmp_path / "two", SET, workers=2)
    assert content(tmp_path / "two") == content(folder)
    write_dataset(tmp_path / "other", PhantomSet(size=32, train=2, test=2, seed=4))
    same = {hashlib.sha256(data).digest() for data in content(folder).values()}
    assert not same & {hashlib.sha256(data).digest() for data in content(tmp_path / "other").values()}


def test_new_folder_appears_complete_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "set"
    with pytest.raises(RuntimeError), new_folder(path) as folder:
        (folder / "half").touch()
        raise RuntimeError
    assert list(path.parent.iterdir()) == []
    with new_folder(path) as folder:
        (folder / "manifest.csv").write_text("first")
        assert not path.exists()
    assert content(tmp_path) == {"deep/set/manifest.csv": b"first"}


def test_what_a_killed_process_left_of_a_new_folder(tmp_path):
    """Killed while it writes, or between putting the old folder away and the new one in its place."""
    program = (
        "import os, signal, sys\nfrom data_prep import manifest\n"
        "kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "with manifest.new_folder('set', overwrite=True) as folder:\n"
        "    (folder / 'new').touch()\n"
        "    if sys.argv[1] == 'writing': kill()\n"
        "    rename, os.rename = os.rename, lambda a, b: kill() if a.name == 'new' else rename(a, b)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    (tmp_path / "set").mkdir()
    for name in ("manifest.csv", "flags.txt"):
        (tmp_path / "set" / name).touch()
    for moment in ("writing", "renaming"):
        subprocess.run([sys.executable, "-c", program, moment], cwd=tmp_path, env=environment)
        assert len(list(tmp_path.iterdir())) == (2 if moment == "writing" else 1)
    with pytest.raises(UserError, match="is not empty"), new_folder(tmp_path / "set"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["flags.txt", "manifest.csv"]


def test_new_folder_replaces_only_what_it_may(tmp_path):
    path = tmp_path / "set"
    path.mkdir()
    (path / "thesis.doc").touch()
    with pytest.raises(UserError, match=r"set: is not empty.*--overwrite"), new_folder(path):
        pass
    with pytest.raises(UserError, match="not a datasets folder"), new_folder(path, overwrite=True):
        pass
    for name in ("manifest.csv", "flags.txt"):
        (path / name).touch()
    with new_folder(path, overwrite=True) as folder:
        (folder / "new").touch()
    assert content(tmp_path) == {"set/new": b""}
    with pytest.raises(UserError, match="is a file"), new_folder(path / "new"):
        pass


def program(*arguments):
    root = Path(phantoms.__file__).parents[1]
    command = programs.python("-m", "data_prep.phantoms", *arguments)
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


def test_program(tmp_path):
    flags = [f"--output_dir={tmp_path / 'set'}", "--size=32", "--train=2", "--test=2", "--seed=7", "--workers=1"]
    first = program(*flags)
    assert first.returncode == 0, first.stderr
    assert "10 images of 8 patients" in first.stdout
    assert {"--size=32", "--seed=7", "--severity=moderate"} <= set((tmp_path / "set/flags.txt").read_text().split())
    assert not (tmp_path / "set/masks").exists()
    before = content(tmp_path)
    again = program(*flags)
    assert again.returncode == 1
    assert again.stderr.startswith("error: --output_dir=")
    assert "--overwrite" in again.stderr
    assert content(tmp_path) == before
