"""The comparison of restorers: what it reads, measures and tabulates, against numbers worked out another way."""

import csv
import dataclasses
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import programs
import pytest
from skimage.metrics import peak_signal_noise_ratio

from data_prep import degradations
from data_prep.manifest import COLUMNS
from experiments.restoration import cases as restoration_cases
from experiments.restoration import classical
from experiments.restoration import comparison as compare_restoration
from experiments.restoration import figures as restoration_figures
from experiments.restoration import statistics as restoration_statistics
from r2c_gan import files
from r2c_gan.data import images
from r2c_gan.errors import UserError
from r2c_gan.evaluation import metrics
from r2c_gan.restoration.restorer import Restorer

SIZE = 40
BLENDS = [["noise"], ["under_exposure"], ["noise", "gaussian_blur"], ["over_exposure", "noise"], ["jpeg"]]


def chest(rng):
    """A smooth image with edges, float32 [SIZE, SIZE] in [0, 1]."""
    rows, columns = np.indices((SIZE, SIZE)) / SIZE
    image = 0.7 - 0.3 * (((rows - 0.5) / 0.3) ** 2 + ((columns - rng.uniform(0.2, 0.8)) / 0.15) ** 2 < 1)
    return np.clip(image + 0.1 * np.sin(12 * columns + rng.uniform(0, 6)), 0, 1).astype(np.float32)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Ten test images of five patients and four validation images, with reference images and a manifest."""
    folder = tmp_path_factory.mktemp("films")
    rng = np.random.default_rng(0)
    rows = []
    for domain, count in (("testA", 10), ("valA", 4)):
        for index in range(count):
            name = f"{('control', 'covid')[index % 2]}/film-{index}.png"
            image = clean = chest(rng)
            applied = []
            for blend in BLENDS[index % len(BLENDS)]:
                image, parameters = degradations.apply(blend, image, rng, "moderate")
                applied.append(parameters)
            images.write_image(folder / domain / name, 2 * image - 1)
            images.write_image(folder / f"{domain}_reference" / name, 2 * clean - 1)
            patient = f"p{index // 2}" if domain == "testA" else "unknown"
            row = {"file": f"{domain}/{name}", "patient": patient, "parameters": json.dumps(applied)}
            rows.append({**dict.fromkeys(COLUMNS, ""), **row})
    files.write_csv(folder / "manifest.csv", rows, COLUMNS)
    return folder


@pytest.fixture
def copied(films, tmp_path):
    """A copy to break."""
    return Path(shutil.copytree(films, tmp_path / "copy"))


@pytest.fixture
def small_grids(monkeypatch):
    chosen = {name: dataclasses.replace(method, grid=method.grid[:2]) for name, method in classical.METHODS.items()}
    monkeypatch.setattr(classical, "METHODS", chosen)


def leave_out_figures(monkeypatch):
    for name in ("save_cases", "save_gains"):
        monkeypatch.setattr(compare_restoration, name, lambda *arguments, **options: None)


def darken(batch):
    """A "restorer" that undoes some of an under-exposure and harms all else."""
    return np.asarray(batch) - 0.15, np.full((len(batch), 2), 0.5, np.float32)


def restorer(channels=1, checksum="a", network=darken):
    return Restorer(network, (SIZE, SIZE), channels, 4, {"run": "known"}, checksum=checksum)


def compare(films, output, model=None, passes=2, **changes):
    models = {"model": Path("runs/model")} if model else {}
    return compare_restoration.compare(
        films, output, models, passes, **{"load": lambda path: model, **changes}
    )  # fmt: skip


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- Reading ----------------------------------------------------------------------------------------------------------


def test_cases_have_their_references_artifacts_and_patients(films):
    cases = restoration_cases.read_cases(films, "testA")
    assert cases.names == sorted(f"{('control', 'covid')[index % 2]}/film-{index}.png" for index in range(10))
    for name, (poor, clean) in zip(cases.names, cases.pairs, strict=True):
        assert poor == films / "testA" / name and clean == films / "testA_reference" / name
    by_name = dict(zip(cases.names, cases.degradations, strict=True))
    assert [step["name"] for step in by_name["control/film-2.png"]] == BLENDS[2]
    assert len(set(cases.patients)) == 5
    unknown = restoration_cases.read_cases(films, "valA").patients
    assert len(set(unknown)) == 4  # each its own


def test_a_limit_spreads_over_the_list(films):
    every = restoration_cases.read_cases(films, "testA").names
    some = restoration_cases.read_cases(films, "testA", 3).names
    assert some == [every[0], every[4], every[9]]
    assert restoration_cases.read_cases(films, "testA", 50).names == every


def test_references_may_have_another_suffix(copied):
    for path in (copied / "testA_reference").rglob("*.png"):
        path.rename(path.with_suffix(".jpg"))
    cases = restoration_cases.read_cases(copied, "testA")
    assert all(clean.suffix == ".jpg" for _, clean in cases.pairs)


@pytest.mark.parametrize("folder", ["testA", "testA_reference", "valA", "valA_reference"])
def test_a_missing_folder_is_named(copied, tmp_path, folder):
    shutil.rmtree(copied / folder)
    with pytest.raises(UserError, match=rf"--datasets_dir=.* has no {folder};"):
        compare(copied, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_reference_is_named(copied):
    (copied / "testA_reference" / "covid" / "film-3.png").unlink()
    with pytest.raises(UserError, match=r"film-3\.png: has no reference image"):
        restoration_cases.read_cases(copied, "testA")


def test_a_reference_of_another_size_is_named(copied, tmp_path, small_grids):
    images.write_image(copied / "testA_reference" / "covid" / "film-3.png", np.zeros((SIZE, SIZE + 2)))
    with pytest.raises(UserError, match=r"film-3\.png: its reference image has another size \(42 x 40, not 40 x 40\)"):
        compare(copied, tmp_path / "out")


def test_too_small_an_image_is_named(tmp_path):
    for name in ("poor.png", "clean.png"):
        images.write_image(tmp_path / name, np.zeros((15, 20)))
    with pytest.raises(UserError, match=r"poor\.png: 20 x 15 pixels; at least 16"):
        restoration_cases.read_pair((tmp_path / "poor.png", tmp_path / "clean.png"))


@pytest.mark.parametrize("text", ["{", '[{"name": "rust", "severity": "mild"}]', '["noise"]', "3"])
def test_a_manifest_of_unknown_degradations_is_named(copied, text):
    rows = table(copied / "manifest.csv")
    rows[2]["parameters"] = text
    files.write_csv(copied / "manifest.csv", rows, COLUMNS)
    with pytest.raises(UserError, match=r"manifest\.csv: .*film-2\.png"):
        restoration_cases.read_cases(copied, "testA")


def test_names_of_models(tmp_path):
    for name in ("a/run", "b/run", "input"):
        (tmp_path / name).mkdir(parents=True)
    read = compare_restoration.model_paths
    assert read([f"{tmp_path}/a/run/", f"second={tmp_path}/b/run"]) == {
        "run": tmp_path / "a/run",
        "second": tmp_path / "b/run",
    }
    with pytest.raises(UserError, match="'run' is taken"):
        read([f"{tmp_path}/a/run", f"{tmp_path}/b/run"])
    with pytest.raises(UserError, match="'input' is taken"):
        read([f"{tmp_path}/input"])
    with pytest.raises(UserError, match="no such folder"):
        read([f"{tmp_path}/c"])
    (tmp_path / "lr=1e-3").mkdir()
    assert list(read([f"{tmp_path}/lr=1e-3"])) == ["lr=1e-3"]


# --- Artifacts --------------------------------------------------------------------------------------------------------


def test_every_degradation_has_a_kind_and_records_its_strength_first(monkeypatch):
    assert set(restoration_cases.KINDS) == set(degradations.DEGRADATIONS)
    rng = np.random.default_rng(0)
    for name in degradations.DEGRADATIONS:
        _, step = degradations.apply(name, chest(rng), rng, "moderate")
        given = []

        def spy(image, strength, rng, given=given):
            given.append(strength)
            return image, {}

        monkeypatch.setitem(degradations.DEGRADATIONS, name, spy)
        restoration_cases.dominant(2 * chest(rng)[..., None] - 1, [step])
        low, high = degradations.RANGES[name]["moderate"]
        assert low <= given[0] <= high, name


def test_the_dominant_artifact_costs_most():
    clean = 2 * chest(np.random.default_rng(0))[..., None] - 1
    shift = {"name": "over_exposure", "severity": "moderate", "shift": 0.15}  # error 0.0225, less what is clipped
    grain = {"name": "noise", "severity": "moderate", "photons": 400.0, "electronic": 0.5}
    coarse = {"name": "noise", "severity": "moderate", "photons": 3.0, "electronic": 0.5}
    blur = {"name": "gaussian_blur", "severity": "moderate", "sigma": 1.0}
    assert restoration_cases.dominant(clean, [grain, shift, blur]) == "over-exposure"
    assert restoration_cases.dominant(clean, [shift, coarse]) == "noise"
    assert restoration_cases.dominant(clean, [coarse, shift]) == "noise"
    assert restoration_cases.dominant(clean, [blur]) == "blur"
    assert restoration_cases.dominant(clean, []) is None


def test_groups():
    def step(name, severity="mild"):
        return {"name": name, "severity": severity}

    steps = [[step("noise"), step("jpeg")], [step("motion_blur")], [step("noise"), step("saturation", "severe")], []]
    cases = restoration_cases.Cases(list("abcd"), [None] * 4, steps, list("abcd"))
    found = restoration_cases.groups(cases, ["noise", "blur", "saturation", None])
    assert {key: members.tolist() for key, members in found.items()} == {
        ("all", "all"): [True, True, True, True],
        ("present", "noise"): [True, False, True, False],
        ("present", "digital"): [True, False, False, False],
        ("present", "blur"): [False, True, False, False],
        ("present", "saturation"): [False, False, True, False],
        ("dominant", "noise"): [True, False, False, False],
        ("dominant", "blur"): [False, True, False, False],
        ("dominant", "saturation"): [False, False, True, False],
        ("severity", "mild"): [True, True, False, False],
        ("severity", "severe"): [False, False, True, False],
    }


# --- Statistics -------------------------------------------------------------------------------------------------------


def test_intervals_agree_with_the_library():
    values = np.random.default_rng(5).normal(20, 3, (60, 2))
    values[3, 1] = np.nan
    found = restoration_statistics.mean_intervals(values, range(60))
    for column, interval in zip(values.T, found, strict=True):
        expected = metrics.summary(np.where(np.isnan(column), np.inf, column))
        assert interval["n"] == expected["n"]
        assert interval["mean"] == pytest.approx(expected["mean"], abs=1e-5)
        assert interval["low"] == pytest.approx(expected["low"], abs=0.12)  # other resamples; the width is 1.5
        assert interval["high"] == pytest.approx(expected["high"], abs=0.12)


def test_intervals_draw_whole_patients():
    values = np.random.default_rng(5).normal(0, 1, (40, 1))
    doubled = values.repeat(2, axis=0)
    once = restoration_statistics.mean_intervals(values, range(40))[0]
    by_patient = restoration_statistics.mean_intervals(doubled, np.arange(40).repeat(2))[0]
    as_if_independent = restoration_statistics.mean_intervals(doubled, range(80))[0]
    assert by_patient["n"] == 80
    assert by_patient["high"] - by_patient["low"] == pytest.approx(once["high"] - once["low"], rel=1e-3)
    assert as_if_independent["high"] - as_if_independent["low"] < 0.85 * (once["high"] - once["low"])


def test_intervals_that_are_none():
    values = np.array([[1, 2, np.nan], [1, 3, np.nan], [1, 4, np.nan], [1, 5, np.nan], [1, 6, np.nan]], float)
    same, different, empty = restoration_statistics.mean_intervals(values, range(5))
    assert same == {"n": 5, "mean": 1.0, "low": None, "high": None}
    assert different["low"] < 4 < different["high"]
    assert empty == {"n": 0, "mean": None, "low": None, "high": None}
    few = restoration_statistics.mean_intervals(values[:, 1:2], [1, 2, 3, 4, 4])[0]
    assert few == {"n": 5, "mean": 4.0, "low": None, "high": None}


def test_rows_of_known_scores():
    scores = {
        "input": {"psnr": [20.0, 22.0, None, 24.0]},
        "clahe": {"psnr": [21.0, 21.0, 30.0, 25.0]},
        "unsharp_mask": {"psnr": [19.0, 19.0, 19.0, 19.0]},
        "net": {"psnr": [24.0, 21.0, 31.0, 26.0]},
    }
    kinds = {"input": "input", "clahe": "classical", "unsharp_mask": "classical", "net": "model"}
    methods = {name: {"kind": kind, "parameters": {"of": name}} for name, kind in kinds.items()}
    divisions = {("all", "all"): np.ones(4, bool), ("present", "noise"): np.array([True, True, False, False])}
    rows = restoration_statistics.tabulate(scores, methods, divisions, list("abcd"))
    found = {(row["method"], row["against"], row["group"]): row for row in rows}
    assert len(rows) == len(found) == 2 * (1 + 2 + 2 + 3)
    # the PSNR of one input is infinite, and there is nothing to restore
    assert all(row["n"] == 3 for row in rows if row["group"] == "all")
    assert found["net", None, "all"]["mean"] == pytest.approx((24 + 21 + 26) / 3, abs=1e-6)
    assert found["net", "input", "all"]["mean"] == pytest.approx((4 - 1 + 2) / 3, abs=1e-6)
    assert found["net", "input", "all"]["improved"] == pytest.approx(2 / 3, abs=1e-6)
    assert found["net", "best classical", "all"]["mean"] == pytest.approx((3 + 0 + 1) / 3, abs=1e-6)
    assert found["net", "best classical", "all"]["improved"] == pytest.approx(2 / 3, abs=1e-6)
    assert found["net", "best classical", "noise"]["mean"] == 1.5
    assert found["clahe", "input", "noise"]["mean"] == 0
    assert found["net", "input", "noise"]["parameters"] == {"of": "net"}
    assert found["net", "input", "noise"]["grouping"] == "present"


# --- All of it --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(films, tmp_path_factory):
    """(result, folder) of a comparison with a known model, on small grids."""
    output = tmp_path_factory.mktemp("results") / "out"
    with pytest.MonkeyPatch.context() as patch:
        grids = {name: dataclasses.replace(method, grid=method.grid[:2]) for name, method in classical.METHODS.items()}
        patch.setattr(classical, "METHODS", grids)
        return compare(films, output, restorer()), output


def pixels(films, name):
    folders = (films / "testA", films / "testA_reference")
    return tuple(images.read_image(folder / name, 1) for folder in folders)


def test_scores_against_scikit_image(compared, films):
    _, output = compared
    rows = table(output / "scores.csv")
    methods = ["input", *classical.METHODS, "combination", "model", "model, 2 passes"]
    assert [row["method"] for row in rows] == methods * 10
    tuned = compared[0]["tuning"]["methods"]
    for row in rows:
        poor, clean = pixels(films, row["file"])
        if row["method"].startswith("model"):
            restored = np.clip(poor - (0.3 if "2" in row["method"] else 0.15), -1, 1)
        else:
            restored = classical.restore(poor, tuned.get(row["method"], {"steps": []})["steps"])
        expected = peak_signal_noise_ratio(clean.astype(float), restored.astype(float), data_range=2)
        assert float(row["psnr"]) == pytest.approx(expected, abs=1e-4)
        assert float(row["ssim"]) == pytest.approx(metrics.ssim(clean, restored), abs=1e-5)
        assert set(row) == {"file", "method", "psnr", "ssim", "haarpsi", "dominant", "artifacts"}


def test_what_is_tuned_is_best_on_validation_images(compared, films, small_grids):
    tuned = compared[0]["tuning"]
    assert tuned["n"] == 4 and tuned["criterion"] == "psnr"
    scores = {}
    for steps in classical.combinations():
        psnr = []
        for pair in restoration_cases.read_cases(films, "valA").pairs:
            poor, clean = restoration_cases.read_pair(pair)
            restored = classical.restore(poor, steps).astype(float)
            psnr.append(peak_signal_noise_ratio(clean.astype(float), restored, data_range=2))
        scores[json.dumps(steps)] = np.mean(psnr)
    combination = tuned["methods"]["combination"]
    assert json.dumps(combination["steps"]) == max(scores, key=scores.get)
    assert combination["score"] == pytest.approx(max(scores.values()), abs=1e-4)
    for name, found in tuned["methods"].items():
        alone = {key: value for key, value in scores.items() if [step[0] for step in json.loads(key)] == [name]}
        if alone:
            assert json.dumps(found["steps"]) == max(alone, key=alone.get)


def test_result_agrees_with_the_scores(compared):
    result, output = compared
    assert files.read_json(output / "result.json") == result
    scores = table(output / "scores.csv")
    psnr = {(row["method"], row["file"]): float(row["psnr"]) for row in scores}
    names = sorted({row["file"] for row in scores})
    assert result["n"] == len(names) == 10
    classical_means = {
        method: np.mean([psnr[method, name] for name in names]) for method in (*classical.METHODS, "combination")
    }
    best = result["best_classical"]["psnr"]
    assert classical_means[best] == max(classical_means.values())
    rows = [row for row in result["rows"] if row["measure"] == "psnr" and row["method"] == "model, 2 passes"]
    for row in rows:
        other = {"input": "input", "best classical": best}.get(row["against"])
        members = [row_["file"] for row_ in scores if row_["method"] == "input"]
        if row["grouping"] == "dominant":
            members = [one["file"] for one in scores if one["method"] == "input" and one["dominant"] == row["group"]]
        elif row["grouping"] == "present":
            members = [
                one["file"]
                for one in scores
                if one["method"] == "input"
                and row["group"] in [restoration_cases.KINDS[name] for name in one["artifacts"].split()]
            ]
        gains = [psnr["model, 2 passes", name] - (psnr[other, name] if other else 0) for name in members]
        assert row["n"] == len(gains)
        assert row["mean"] == pytest.approx(np.mean(gains), abs=2e-5)
        assert row["parameters"] == {"model": "model", "passes": 2} and row["kind"] == "model"
    assert {(row["grouping"], row["against"]) for row in rows} == {
        (grouping, against)
        for grouping in ("all", "present", "dominant")
        for against in (None, "input", "best classical")
    }
    assert result["models"]["model"]["sha256"] == "a"
    assert result["sizes"] == [[SIZE, SIZE]]


def test_figures_are_drawn(compared):
    _, output = compared
    names = {path.name for path in output.glob("*.png")}
    gains = {"gain_psnr.png", "gain_ssim.png", "gain_haarpsi.png", "gain_psnr_dominant.png"}
    assert names == {"methods.png", "worst_model.png"} | gains
    for name in names:
        image = images.read_image(output / name)
        assert image.shape[0] > 200 and image.std() > 0.1
    # five rows of ten pictures; six worst cases of poor, combination, two passes, clean
    tall, wide = images.read_image(output / "methods.png").shape[:2]
    assert wide > 1.7 * tall


def test_worst_cases_come_first():
    scores = {"input": {"psnr": [20, 20, None, 20, 20]}, "net": {"psnr": [22, 15, 19, 21, 18]}}
    assert restoration_figures.worst_cases(scores, "net") == [1, 4, 3, 0]


def forbid(*arguments):
    raise AssertionError("measured again")


def test_nothing_is_measured_again(compared, films, tmp_path, small_grids, monkeypatch):
    result, output = compared
    output = Path(shutil.copytree(output, tmp_path / "out"))
    (output / "result.json").unlink()
    leave_out_figures(monkeypatch)
    for owner, name in (
        (compare_restoration, "tune"),
        (compare_restoration, "measure_classical"),
        (compare_restoration.Model, "measure"),
    ):
        monkeypatch.setattr(owner, name, forbid)
    assert compare(films, output, restorer()) == result
    assert files.read_json(output / "result.json") == result


def test_models_can_be_added(compared, films, tmp_path, small_grids, monkeypatch):
    result, output = compared
    output = Path(shutil.copytree(output, tmp_path / "out"))
    leave_out_figures(monkeypatch)
    monkeypatch.setattr(compare_restoration, "measure_classical", forbid)
    models = {"model": Path("a"), "other": Path("b")}
    both = compare_restoration.compare(films, output, models, 2, load=lambda path: restorer(checksum=str(path)))
    assert [row for row in both["rows"] if not row["method"].startswith("other")] == result["rows"]
    assert {row["method"] for row in both["rows"]} - {row["method"] for row in result["rows"]} == {
        "other",
        "other, 2 passes",
    }


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"criterion": "ssim"}, "criterion"), ({"passes": 3}, "passes"), ({"tuning_images": 2}, "validation images"),
     ({"model": restorer(checksum="b")}, "model")],
)  # fmt: skip
def test_results_of_something_else_are_refused(compared, films, small_grids, changes, named):
    result, output = compared
    with pytest.raises(UserError, match=rf"measured with other {named};"):
        compare(films, output, **{"model": restorer(), **changes})
    assert files.read_json(output / "result.json") == result


def test_recorded_models_stay_without_their_runs(compared, films, tmp_path, small_grids):
    """As if they had been measured beside the new one."""
    result, output = compared
    (name,) = result["models"]
    load = {"load": lambda path: restorer(checksum="new"), "recorded": output / "result.json"}
    beside = compare_restoration.compare(films, tmp_path / "beside", {"new": tmp_path}, 2, **load)
    assert list(beside["models"]) == [name, "new"]
    assert beside["models"][name] == result["models"][name]
    of_it = [row for row in result["rows"] if row["parameters"].get("model") == name]
    assert of_it and [row for row in beside["rows"] if row["parameters"].get("model") == name] == of_it
    again = compare_restoration.compare(films, tmp_path / "beside", {name: tmp_path}, 2, **load)
    assert list(again["models"]) == [name] and again["models"][name]["sha256"] == "new"
    changed = {**result, "sha256": "other"}
    (tmp_path / "other.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match=r"--recorded=.*other.json: was measured with another sha256"):
        compare_restoration.compare(films, tmp_path / "third", {}, 2, recorded=tmp_path / "other.json")


def test_other_images_are_refused(compared, copied, small_grids):
    images.write_image(copied / "testA" / "covid" / "film-3.png", np.zeros((SIZE, SIZE)))
    with pytest.raises(UserError, match="measured with other test images;"):
        compare(copied, compared[1], restorer())


def test_other_grids_are_refused(compared, films):
    with pytest.raises(UserError, match="measured with other grids;"):
        compare(films, compared[1], restorer())


def test_the_tuning_images_are_no_test_images(films, tmp_path):
    with pytest.raises(UserError, match="--split=valA: classical methods are tuned on it"):
        compare(films, tmp_path / "out", split="valA")


def test_a_model_of_colour_images_sees_three_channels_and_is_measured_in_gray(films):
    def tint(batch):
        assert batch.shape[-1] == 3
        return np.asarray(batch) * np.array([1, 0.5, 0], np.float32), np.full((len(batch), 2), 0.5)

    model = compare_restoration.Model("net", restorer(3, network=tint), 1)
    poor = np.random.default_rng(0).uniform(-1, 1, (SIZE, SIZE, 1)).astype(np.float32)
    ((restored,),) = model.restore([poor])
    np.testing.assert_allclose(restored, poor * (0.299 + 0.5 * 0.587), atol=1e-6)


def test_a_diverged_model_is_named(films, tmp_path, small_grids):
    broken = restorer(network=lambda batch: (np.full_like(batch, np.nan), np.full((len(batch), 2), 0.5)))
    with pytest.raises(UserError, match="--models: model: the model gives values that are not finite"):
        compare(films, tmp_path / "out", broken)
    assert not (tmp_path / "out" / "result.json").exists()


def test_nothing_to_restore_is_said(copied, tmp_path, small_grids):
    shutil.rmtree(copied / "testA")
    shutil.copytree(copied / "testA_reference", copied / "testA")
    with pytest.raises(UserError, match="testA: every image equals its reference"):
        compare(copied, tmp_path / "out")


def test_an_unaltered_image_is_in_no_psnr(copied, tmp_path, small_grids, monkeypatch):
    leave_out_figures(monkeypatch)
    shutil.copy(copied / "testA_reference" / "covid" / "film-1.png", copied / "testA" / "covid" / "film-1.png")
    result = compare(copied, tmp_path / "out", restorer())
    assert result["n"] == 10 and result["n_unaltered"] == 1
    every = [row for row in result["rows"] if row["grouping"] == "all"]
    assert {row["n"] for row in every if row["measure"] == "psnr"} == {9}
    assert {row["n"] for row in every if row["measure"] == "ssim"} == {10}
    assert [row["psnr"] for row in table(tmp_path / "out" / "scores.csv")].count("inf") >= 1


def test_images_of_several_sizes(tmp_path, small_grids, monkeypatch):
    leave_out_figures(monkeypatch)
    rng = np.random.default_rng(1)
    for domain in ("testA", "valA"):
        for index, side in enumerate((24, 24, 31, 24)):
            clean = rng.uniform(-1, 1, (side, side + 3, 1))
            for folder, image in ((domain, 0.8 * clean), (f"{domain}_reference", clean)):
                images.write_image(tmp_path / folder / f"covid-{index}.png", image)
    result = compare(tmp_path, tmp_path / "out", restorer(), passes=1)
    assert result["n"] == 4
    assert result["sizes"] == [[24, 27], [31, 34]]
    psnr = {row["method"]: float(row["psnr"]) for row in table(tmp_path / "out" / "scores.csv")
            if row["file"] == "covid-2.png"}  # fmt: skip
    poor, clean = (images.read_image(tmp_path / name / "covid-2.png", 1) for name in ("testA", "testA_reference"))
    assert psnr["model"] == pytest.approx(metrics.psnr(clean, np.clip(poor - 0.15, -1, 1)), abs=1e-4)
    assert {row["grouping"] for row in result["rows"]} == {"all"}  # no manifest


def test_everything_is_measured_at_the_size_asked_for(films, tmp_path, small_grids, monkeypatch):
    leave_out_figures(monkeypatch)
    sizes = set()

    def spy(batch):
        sizes.add(batch.shape[1:3])
        return darken(batch)

    result = compare(films, tmp_path / "out", restorer(network=spy), passes=1, size=32)
    assert result["sizes"] == [[32, 32]] and sizes == {(32, 32)}
    poor, clean = (images.resize(image, 32, 32) for image in pixels(films, "control/film-0.png"))
    row = next(row for row in table(tmp_path / "out" / "scores.csv") if row["method"] == "model")
    assert row["file"] == "control/film-0.png"
    expected = peak_signal_noise_ratio(clean.astype(float), np.clip(poor - 0.15, -1, 1).astype(float), data_range=2)
    assert float(row["psnr"]) == pytest.approx(expected, abs=1e-3)
    with pytest.raises(UserError, match="measured with other size;"):
        compare(films, tmp_path / "out", restorer(network=spy), passes=1)
    with pytest.raises(UserError, match="--size=8: must be 0"):
        compare(films, tmp_path / "out", size=8)


def test_a_run_folder(run_dir, films, tmp_path, small_grids, monkeypatch):
    leave_out_figures(monkeypatch)
    models = compare_restoration.model_paths([f"tiny={run_dir}"])
    result = compare_restoration.compare(films, tmp_path / "out", models, passes=1, size=32)
    loaded = Restorer.load(run_dir)
    assert result["models"]["tiny"]["sha256"] == loaded.checksum and result["models"]["tiny"]["channels"] == 3
    row = next(row for row in table(tmp_path / "out" / "scores.csv") if row["method"] == "tiny")
    poor, clean = (images.resize(image, 32, 32) for image in pixels(films, row["file"]))
    restored = loaded(np.repeat(poor[None], 3, axis=-1)).passes[0][0] @ np.array([[0.299], [0.587], [0.114]])
    expected = peak_signal_noise_ratio(clean.astype(float), restored.astype(float), data_range=2)
    assert float(row["psnr"]) == pytest.approx(expected, abs=1e-3)


def run(*arguments):
    command = programs.python("-m", "experiments.restoration", *arguments)
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_the_program(copied, tmp_path, monkeypatch):
    for folder in ("valA", "valA_reference"):  # two images are enough for the whole grids
        for index in (2, 3):
            (copied / folder / ("control", "covid")[index % 2] / f"film-{index}.png").unlink()
    arguments = (f"--datasets_dir={copied}", f"--output_dir={tmp_path}/out", "--workers=2")
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "best combination" in done.stdout and "Research only" in done.stdout
    assert "tuning classical methods" in done.stderr
    result = files.read_json(tmp_path / "out" / "result.json")
    assert f"--datasets_dir={copied}" in (tmp_path / "out" / "flags.txt").read_text()
    leave_out_figures(monkeypatch)
    assert compare(copied, tmp_path / "again", workers=1) == result  # however many processes
    refused = run(*arguments, "--criterion=ssim")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1 and "other criterion" in refused.stderr
