"""The comparison of classifiers against scikit-learn, SciPy and arithmetic, with classifiers whose answer is known."""

import csv
import json
import subprocess
from pathlib import Path

import numpy as np
import programs
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from experiments.classifiers import compare as compare_classifiers
from experiments.classifiers.classifier import CONFIG, FORMAT, MODEL, RESULT
from experiments.classifiers.compare import Prediction, best_threshold, compare, judge, measure, pairs, patients, stages
from experiments.classifiers.networks import build_classifier
from r2c_gan import files
from r2c_gan.data import images
from r2c_gan.data.datasets import read_domain
from r2c_gan.data.streams import read_batches
from r2c_gan.errors import UserError
from r2c_gan.restoration.restorer import Restorer

SIZE = 32
RNG = np.random.default_rng(5)
LABELS = np.tile([0, 1], 40)
FIRST = np.clip(0.5 + 0.25 * (LABELS - 0.5) + RNG.normal(0, 0.2, 80), 0.01, 0.99)
SECOND = np.clip(0.4 + 0.6 * (LABELS - 0.5) + RNG.normal(0, 0.3, 80), 0.01, 0.99)


def brighten(batch):
    """A "restorer" of known effect, whose head's probability of COVID-19 is the mean brightness."""
    batch = np.asarray(batch, np.float32)
    covid = (batch.mean((1, 2, 3)) + 1) / 2
    return np.clip(1.5 * batch + 0.2, -1, 1), np.stack([1 - covid, covid], axis=-1)


def by_left_side(batch):
    """A classifier: p(COVID-19) is how much brighter the left side is."""
    covid = 1 / (1 + np.exp(-5 * (batch[:, :, :8].mean((1, 2, 3)) - batch[:, :, -8:].mean((1, 2, 3)))))
    return np.stack([1 - covid, covid], axis=-1)


@pytest.fixture(scope="module")
def restorers():
    return {"gan": Restorer(brighten, (SIZE, SIZE), channels=3, stride=2)}


def test_every_prediction_sees_its_images(datasets_dir, restorers):
    predictions, test, val = judge(datasets_dir, {"left": by_left_side}, restorers, SIZE, batch_size=3)
    assert [prediction.name for prediction in predictions] == [
        "joint head of gan on poor",
        "left on poor",
        "left on restored by gan",
        "left on clean",
    ]
    for split, domain in (("testA", test), ("valA", val)):
        assert domain.folder.name == split
        (poor,) = read_batches(domain.files, SIZE, 1, 4)
        (clean,) = read_batches([datasets_dir / f"{split}_reference" / file.name for file in domain.files], SIZE, 1, 4)
        expected = [brighten(poor)[1], by_left_side(poor), by_left_side(brighten(poor)[0]), by_left_side(clean)]
        for prediction, probabilities in zip(predictions, expected, strict=True):
            measured = prediction.test if split == "testA" else prediction.val
            np.testing.assert_allclose(measured, probabilities[:, 1], atol=1e-5)


def test_later_passes_restore_what_the_first_gave(datasets_dir, restorers):
    domain = read_domain(datasets_dir / "testA")
    (poor,) = read_batches(domain.files, SIZE, 1, 4)
    ((found, _),) = stages(domain, None, restorers, SIZE, iterations=2)
    assert set(found) == {"poor", "restored by gan"}
    np.testing.assert_allclose(found["restored by gan"], brighten(brighten(poor)[0])[0], atol=1e-5)


def test_without_clean_images_or_validation(datasets_dir, restorers, tmp_path):
    (tmp_path / "testA").symlink_to(datasets_dir / "testA")
    predictions, _, val = judge(tmp_path, {"left": by_left_side}, restorers, SIZE)
    assert val is None
    assert {prediction.stage for prediction in predictions} == {"poor", "restored by gan"}
    assert {prediction.val for prediction in predictions} == {None}
    assert measure(predictions[0], np.array([0, 1, 0, 1]))["at_validation_threshold"] is None


def test_measures_against_scikit_learn():
    result = measure(Prediction("net", "poor", False, FIRST, SECOND), LABELS, LABELS)
    called = FIRST > 0.5
    value = {name: entry["value"] for name, entry in result["measures"].items()}
    assert value["f1"] == pytest.approx(sklearn_metrics.f1_score(LABELS, called))
    assert value["auroc"] == pytest.approx(sklearn_metrics.roc_auc_score(LABELS, FIRST))
    assert result["n"] == 80
    for entry in result["measures"].values():
        assert entry["low"] <= entry["value"] <= entry["high"] or entry["method"] == "bootstrap"
    tuned = result["at_validation_threshold"]
    decided = tuned["threshold"] < FIRST
    assert tuned["measures"]["f1"]["value"] == pytest.approx(sklearn_metrics.f1_score(LABELS, decided))
    assert tuned["measures"]["sensitivity"]["value"] == pytest.approx(sklearn_metrics.recall_score(LABELS, decided))
    assert tuned["validation_f1"] == pytest.approx(sklearn_metrics.f1_score(LABELS, tuned["threshold"] < SECOND))


def test_no_threshold_has_a_higher_f1():
    threshold, f1 = best_threshold(LABELS, FIRST)
    assert sklearn_metrics.f1_score(LABELS, threshold < FIRST) == pytest.approx(f1)
    # A threshold on each case, and one below them all, are all that differ.
    others = [sklearn_metrics.f1_score(LABELS, one < FIRST) for one in [0, *sorted(FIRST)[:-1]]]
    assert f1 == pytest.approx(max(others))


@pytest.mark.parametrize(
    ("labels", "probabilities", "expected"),
    [
        ([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], (0.5, 1.0)),  # any in between would do: the nearest to one half
        ([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], (0.25, 1.0)),
        ([0, 1, 1], [0.7, 0.7, 0.7], (0.5, 0.8)),  # all called
        ([0, 0], [0.2, 0.3], (0.5, None)),
    ],
)
def test_thresholds_by_hand(labels, probabilities, expected):
    threshold, f1 = best_threshold(labels, probabilities)
    assert (threshold, f1) == (pytest.approx(expected[0]), expected[1] and pytest.approx(expected[1]))


def test_mcnemar_and_difference_of_f1():
    result = compare(Prediction("a", "poor", False, FIRST), Prediction("b", "clean", False, SECOND), LABELS)
    right = [(values > 0.5) == LABELS for values in (FIRST, SECOND)]
    b, c = int(np.sum(right[0] & ~right[1])), int(np.sum(~right[0] & right[1]))
    assert (result["mcnemar"]["b"], result["mcnemar"]["c"]) == (b, c)
    assert result["mcnemar"]["p_value"] == pytest.approx(stats.binomtest(b, b + c).pvalue)
    difference = sklearn_metrics.f1_score(LABELS, FIRST > 0.5) - sklearn_metrics.f1_score(LABELS, SECOND > 0.5)
    assert result["f1_difference"]["value"] == pytest.approx(difference)
    assert result["f1_difference"]["low"] < difference < result["f1_difference"]["high"]
    assert (result["first"], result["second"]) == ("a on poor", "b on clean")
    same = compare(Prediction("a", "poor", False, FIRST), Prediction("b", "poor", False, FIRST), LABELS)
    assert same["mcnemar"]["p_value"] == 1
    assert (same["f1_difference"]["low"], same["f1_difference"]["high"]) == (0, 0)


def test_pairs_of_the_study():
    predictions = [
        Prediction(name, stage, head, FIRST)
        for name, stage, head in (
            ("m1", "poor", True),
            ("m2", "poor", True),
            ("net", "poor", False),
            ("net", "restored by m1", False),
            ("net", "restored by m2", False),
            ("net", "clean", False),
        )
    ]
    assert {(one.name, other.name) for one, other in pairs(predictions)} == {
        ("joint head of m1 on poor", "net on poor"),
        ("joint head of m1 on poor", "net on restored by m1"),
        ("joint head of m2 on poor", "net on poor"),
        ("joint head of m2 on poor", "net on restored by m2"),
        ("net on restored by m1", "net on poor"),
        ("net on restored by m2", "net on poor"),
        ("net on clean", "net on poor"),
    }


def test_patients_are_resampled_only_where_one_has_several_images(datasets_dir, tmp_path):
    (tmp_path / "testA").symlink_to(datasets_dir / "testA")
    domain = read_domain(tmp_path / "testA")
    assert patients(tmp_path, domain) is None

    def manifest(ids):
        rows = [f"testA/{file.name},{patient}" for file, patient in zip(domain.files, ids, strict=True)]
        (tmp_path / "manifest.csv").write_text("file,patient\n" + "\n".join(rows) + "\n")

    manifest(["a", "b", "unknown", "unknown"])
    assert patients(tmp_path, domain) is None
    manifest(["a", "unknown", "a", "unknown"])
    ids = patients(tmp_path, domain)
    assert ids[0] == ids[2]
    assert len(set(ids)) == 3


def test_table_and_figures(tmp_path):
    predictions = [Prediction("gan", "poor", True, SECOND, SECOND)]
    predictions += [
        Prediction(name, stage, False, values, values if stage != "clean" else None)
        for name, stage, values in (("one", "poor", FIRST), ("one", "restored by gan", SECOND), ("two", "clean", FIRST))
    ]
    measured = [measure(prediction, LABELS, LABELS) for prediction in predictions]
    lines = compare_classifiers.table(measured).splitlines()
    assert len(lines) == 2 + len(predictions)
    assert len({line.count("|") for line in lines}) == 1
    assert f"{sklearn_metrics.f1_score(LABELS, FIRST > 0.5):.3f} [" in lines[3]
    compare_classifiers.save_roc(predictions, LABELS, tmp_path / "roc.png")
    compare_classifiers.save_f1(measured, tmp_path / "f1.png")
    for name in ("roc.png", "f1.png"):
        assert images.read_image(tmp_path / name).std() > 0.1


def test_names_and_sizes_that_do_not_fit_are_refused(monkeypatch):
    with pytest.raises(UserError, match="nowhere: not a classifier"):
        compare_classifiers.load(["nowhere"], [])
    with pytest.raises(UserError, match="--models: two folders are called run"):
        compare_classifiers.load(["a/net"], ["a/run", "b/run"])

    class Sized:
        size = 64

    monkeypatch.setattr(compare_classifiers.Classifier, "load", lambda path: Sized())
    monkeypatch.setattr(
        Restorer, "load", lambda path, checkpoint: Restorer(brighten, (SIZE, SIZE), channels=1, stride=2)
    )
    with pytest.raises(UserError, match=r"different sizes.*net 64 x 64, run 32 x 32"):
        compare_classifiers.load(["a/net"], ["a/run"])


def write_untrained_classifier(run):
    """What the training of a classifier leaves behind, without the training."""
    run.mkdir()
    build_classifier("small_cnn", SIZE).save(run / MODEL)
    files.write_json(run / CONFIG, {"format": FORMAT, "training": {"train_on": "trainA", "size": SIZE}})
    files.write_json(run / RESULT, {"network": "small_cnn", "sha256": files.sha256(run / MODEL)})


def test_the_program(datasets_dir, run_dir, tmp_path):
    write_untrained_classifier(tmp_path / "net")
    command = programs.python("-m", "experiments.classifiers.compare", f"--datasets_dir={datasets_dir}")
    command += [f"--models={run_dir}", f"--output_dir={tmp_path / 'out'}"]
    root = Path(__file__).parents[1]
    done = subprocess.run([*command, f"--classifiers={tmp_path / 'net'}"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["n"], result["n_validation"], result["resampled"]) == (4, 4, "cases")
    assert len(result["predictions"]) == 4
    assert len(result["comparisons"]) == 4
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["covid", "covid", "control", "control"]
    assert 0 <= float(rows[0]["net on restored by whole"]) <= 1
    assert {"f1.png", "flags.txt", "roc.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
