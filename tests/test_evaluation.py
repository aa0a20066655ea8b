"""Evaluation against measures computed another way, with a restorer whose answer is known."""

import csv

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn import metrics as sklearn_metrics

from r2c_gan.data import images
from r2c_gan.data.datasets import read_domain
from r2c_gan.data.streams import read_batches
from r2c_gan.errors import UserError
from r2c_gan.evaluation.evaluation import Evaluation
from r2c_gan.restoration.restorer import Restorer

SIZE = 32
NAMES = ["covid-1", "covid-3", "normal-0", "normal-2"]  # sorted, as a domain lists them


def brighten(batch):
    """A "restorer" that undoes half of the darkening, and calls covid what is brighter at its left."""
    batch = np.asarray(batch, "float64")
    covid = 1 / (1 + np.exp(-(batch[:, :, :8].mean((1, 2, 3)) - batch[:, :, -8:].mean((1, 2, 3)))))
    return np.clip(1.5 * batch + 0.2, -1, 1).astype("float32"), np.stack([1 - covid, covid], axis=-1).astype("float32")


@pytest.fixture(scope="module")
def restorer():
    return Restorer(brighten, (SIZE, SIZE), channels=1, stride=2, source={"run": "known"})


@pytest.fixture(scope="module")
def domain(datasets_dir):
    return read_domain(datasets_dir / "testA")


@pytest.fixture(scope="module")
def evaluation(restorer, domain, datasets_dir):
    return Evaluation(restorer, domain, datasets_dir / "testA_reference", iterations=2, batch_size=3)


@pytest.fixture(scope="module")
def pixels(domain, datasets_dir):
    """(poor, clean): what the evaluation is about, read one by one."""
    folders = (datasets_dir / "testA", datasets_dir / "testA_reference")
    return tuple(
        np.stack([images.resize(images.read_image(folder / f"{name}.png", 1), SIZE, SIZE) for name in NAMES])
        for folder in folders
    )


def test_probabilities_are_those_of_the_poor_images(evaluation, pixels):
    np.testing.assert_allclose(evaluation.probabilities, brighten(pixels[0])[1], atol=1e-6)


def test_restoration_scores_against_scikit_image(evaluation, pixels):
    poor, clean = pixels
    once = brighten(poor)[0]
    twice = brighten(once)[0]
    assert set(evaluation.scores) == {
        f"{name}_{stage}" for name in ("psnr", "ssim") for stage in ("input", "restored", "restored_2")
    }
    for stage, batch in (("input", poor), ("restored", once), ("restored_2", twice)):
        for case in range(4):
            truth, image = clean[case, ..., 0], batch[case, ..., 0]
            psnr = peak_signal_noise_ratio(truth, image, data_range=2)
            ssim = structural_similarity(  # of values that start at 0
                truth + 1, image + 1, data_range=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
            )
            assert evaluation.scores[f"psnr_{stage}"][case] == pytest.approx(psnr, abs=1e-3)
            assert evaluation.scores[f"ssim_{stage}"][case] == pytest.approx(ssim, abs=1e-3)
    means = evaluation.restoration()
    assert means["psnr_restored"]["mean"] == pytest.approx(np.mean(evaluation.scores["psnr_restored"]))
    assert means["psnr_restored"]["mean"] > means["psnr_input"]["mean"] + 1


def test_classification_against_scikit_learn(evaluation, domain):
    predicted = evaluation.probabilities.argmax(-1)
    measures = evaluation.classification()
    assert measures["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(domain.labels, predicted))
    assert measures["f1"] == pytest.approx(sklearn_metrics.f1_score(domain.labels, predicted))
    assert measures["f2"] == pytest.approx(sklearn_metrics.fbeta_score(domain.labels, predicted, beta=2))
    assert measures["auroc"] == pytest.approx(
        sklearn_metrics.roc_auc_score(domain.labels, evaluation.probabilities[:, 1])
    )


def test_measures_are_complete_and_json(evaluation):
    measures = evaluation.measures()
    assert measures["n"] == 4
    wanted = {"accuracy", "sensitivity", "specificity", "precision", "f1", "f2", "auroc", "intervals"}
    assert wanted <= set(measures["classification"])
    assert "psnr_restored" in measures["restoration"]


def test_batch_size_does_not_matter(evaluation, restorer, domain, datasets_dir):
    one_by_one = Evaluation(restorer, domain, datasets_dir / "testA_reference", iterations=2, batch_size=1)
    np.testing.assert_allclose(one_by_one.probabilities, evaluation.probabilities, atol=1e-6)
    for name, values in evaluation.scores.items():
        np.testing.assert_allclose(one_by_one.scores[name], values, atol=1e-6)


def test_progress_wraps_the_batches(restorer, domain):
    wrapped = []
    Evaluation(restorer, domain, batch_size=3, progress=lambda batches: wrapped.append(len(batches)) or batches)
    assert wrapped == [2]


def test_without_clean_images_there_are_no_scores(restorer, domain, tmp_path):
    evaluation = Evaluation(restorer, domain)
    assert evaluation.scores == evaluation.restoration() == {}
    assert evaluation.measures()["restoration"] is None
    evaluation.write(tmp_path)
    with (tmp_path / "predictions.csv").open(newline="") as file:
        assert csv.DictReader(file).fieldnames == ["file", "p_control", "p_covid", "label", "true_label"]


def test_written_files(evaluation, tmp_path):
    evaluation.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "predictions.csv",
        "confusion_matrix.png",
        "roc.png",
        "panel.png",
    }
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [f"{name}.png" for name in NAMES]
    assert [row["true_label"] for row in rows] == ["covid", "covid", "control", "control"]
    for case, row in enumerate(rows):
        assert float(row["p_covid"]) == pytest.approx(evaluation.probabilities[case, 1], abs=1e-6)
        assert float(row["psnr_restored"]) == pytest.approx(evaluation.scores["psnr_restored"][case], abs=1e-4)
    for picture in tmp_path.glob("*.png"):
        assert images.read_image(picture).std() > 0.05


def test_a_panel_of_every_case(evaluation, tmp_path):
    wrapped = []
    evaluation.write_panels(tmp_path, lambda cases: wrapped.append(len(cases)) or cases)
    assert wrapped == [4]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.png" for name in NAMES]


def test_one_class_has_no_roc_curve(restorer, tmp_path):
    for index in range(2):
        images.write_image(tmp_path / "testA" / f"covid{index}.png", np.full((8, 8), 0.1 * index - 0.5))
    with pytest.warns(UserWarning, match="all 2 images are labelled 'covid'"):
        domain = read_domain(tmp_path / "testA")
    evaluation = Evaluation(restorer, domain)
    measures = evaluation.measures()["classification"]
    assert measures["auroc"] is None and measures["specificity"] is None
    evaluation.write(tmp_path / "result")
    assert not (tmp_path / "result" / "roc.png").exists()


def test_twins_may_have_another_suffix_but_must_be_there(restorer, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("covid.png", "normal.png"):
        images.write_image(tmp_path / "testA" / "sub" / name, rng.uniform(-1, 1, (8, 8)))
    # A labels file, because "sub" is no class.
    rows = "file,label\nsub/covid.png,covid\nsub/normal.png,control\n"
    (tmp_path / "testA" / "labels.csv").write_text(rows)
    domain = read_domain(tmp_path / "testA")
    reference = tmp_path / "testA_reference"
    images.write_image(reference / "sub" / "covid.png", np.zeros((8, 8)))
    with pytest.raises(UserError, match=r"sub/normal\.png: has no image of the same name in .*testA_reference"):
        Evaluation(restorer, domain, reference)
    images.write_image(reference / "sub" / "normal.png", np.zeros((8, 8)))
    (reference / "sub" / "covid.png").rename(reference / "sub" / "covid.tif")  # contents decide, not the suffix
    assert len(Evaluation(restorer, domain, reference).scores["psnr_input"]) == 2


def test_typical_cases_are_of_both_classes_and_neither_best_nor_worst(restorer, tmp_path):
    """Twenty cases whose gain in PSNR grows with their number."""
    rng = np.random.default_rng(1)
    for index in range(20):
        name = f"{'covid' if index % 2 else 'normal'}-{index:02d}.png"
        clean = rng.uniform(-0.5, 0.5, (SIZE, SIZE))
        images.write_image(tmp_path / "testA" / name, np.clip(clean - 0.02 * index, -1, 1))
        images.write_image(tmp_path / "testA_reference" / name, clean)
    evaluation = Evaluation(restorer, read_domain(tmp_path / "testA"), tmp_path / "testA_reference")
    cases = evaluation.typical_cases()
    assert len(set(cases)) == 6
    assert evaluation.domain.labels[cases].tolist() == [1, 1, 1, 0, 0, 0]
    gain = np.subtract(evaluation.scores["psnr_restored"], evaluation.scores["psnr_input"])
    for label in (0, 1):
        members = np.flatnonzero(evaluation.domain.labels == label)
        chosen = [case for case in cases if case in members]
        assert not {members[gain[members].argmin()], members[gain[members].argmax()]} & set(chosen)
    assert len(evaluation.typical_cases(100)) == 20


def test_square_sizes_only(domain):
    with pytest.raises(UserError, match="32x16"):
        Evaluation(Restorer(brighten, (32, 16), 1, 2), domain)


def test_a_trained_run_is_evaluated(run_dir, domain, datasets_dir):
    """The evaluation of a run is that of its restorer applied by hand."""
    restorer = Restorer.load(run_dir)
    evaluation = Evaluation(restorer, domain, datasets_dir / "testA_reference")
    (poor,) = read_batches(domain.files, SIZE, 3, 4)
    np.testing.assert_allclose(evaluation.probabilities, restorer.network(poor)[1], atol=1e-5)
