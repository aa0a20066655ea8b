"""Classification and restoration measures against hand computation, other libraries and simulation."""

import json
import math

import numpy as np
import pytest
import sklearn.metrics
from scipy import stats

from r2c_gan.evaluation import metrics

MEASURES = {
    "accuracy",
    "sensitivity",
    "specificity",
    "precision",
    "f1",
    "f2",
    "auroc",
    "brier",
    "expected_calibration_error",
}


def simulated_scores(n=400, seed=0):
    """Labels and overlapping scores with many ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    scores = np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0, 1).round(2)
    return labels, scores


def image_pair(*shape, seed=0, noise=0.3):
    rng = np.random.default_rng(seed)
    reference = rng.uniform(-1, 1, shape)
    return reference, np.clip(reference + rng.normal(0, noise, shape), -1, 1)


class TestClassification:
    def test_by_hand(self):
        # Decisions: 1 1 1 0 | 0 0 0 0 1 0, so tp 3, fn 1, fp 1, tn 5.
        labels = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
        scores = [0.9, 0.8, 0.7, 0.4, 0.1, 0.2, 0.3, 0.1, 0.6, 0.2]
        result = metrics.classification_metrics(labels, scores)
        assert result["n"] == 10
        assert result["confusion_matrix"] == [[5, 1], [1, 3]]
        assert result["accuracy"] == pytest.approx(8 / 10)
        assert result["sensitivity"] == pytest.approx(3 / 4)
        assert result["specificity"] == pytest.approx(5 / 6)
        assert result["precision"] == pytest.approx(3 / 4)
        assert result["f1"] == pytest.approx(3 / 4)
        assert result["f2"] == pytest.approx(5 * 0.75 * 0.75 / (4 * 0.75 + 0.75))
        assert result["auroc"] == pytest.approx(23 / 24)  # of 4 x 6 pairs only (0.4, 0.6) is in the wrong order
        squares = [0.01, 0.04, 0.09, 0.36, 0.01, 0.04, 0.09, 0.01, 0.36, 0.04]
        assert result["brier"] == pytest.approx(sum(squares) / 10)

    def test_calibration_by_hand(self):
        # Confidence bin (0.5, 0.6]: three cases at 0.6, one right. Bin (0.8, 0.9]: two cases at 0.9, both right.
        labels = [1, 0, 0, 1, 0]
        scores = [0.6, 0.6, 0.6, 0.9, 0.1]
        result = metrics.classification_metrics(labels, scores)
        assert result["expected_calibration_error"] == pytest.approx(3 / 5 * (0.6 - 1 / 3) + 2 / 5 * (1 - 0.9))

    def test_calibrated_scores_have_a_small_calibration_error(self):
        rng = np.random.default_rng(0)
        scores = rng.uniform(size=20_000)
        labels = (rng.uniform(size=20_000) < scores).astype(int)
        calibrated = metrics.classification_metrics(labels, scores)["expected_calibration_error"]
        overconfident = metrics.classification_metrics(labels, np.where(scores > 0.5, 0.99, 0.01))
        assert calibrated < 0.02
        assert overconfident["expected_calibration_error"] == pytest.approx(0.99 - 0.75, abs=0.02)

    def test_scikit_learn_agrees(self):
        labels, scores = simulated_scores()
        decisions = (scores > 0.5).astype(int)
        result = metrics.classification_metrics(labels, np.stack([1 - scores, scores], axis=1))
        expected = {
            "accuracy": sklearn.metrics.accuracy_score(labels, decisions),
            "sensitivity": sklearn.metrics.recall_score(labels, decisions),
            "specificity": sklearn.metrics.recall_score(labels, decisions, pos_label=0),
            "precision": sklearn.metrics.precision_score(labels, decisions),
            "f1": sklearn.metrics.f1_score(labels, decisions),
            "f2": sklearn.metrics.fbeta_score(labels, decisions, beta=2),
            "auroc": sklearn.metrics.roc_auc_score(labels, scores),
            "brier": sklearn.metrics.brier_score_loss(labels, scores),
        }
        assert {name: result[name] for name in expected} == pytest.approx(expected, abs=1e-12)
        assert result["confusion_matrix"] == sklearn.metrics.confusion_matrix(labels, decisions).tolist()

    def test_a_tie_is_control(self):
        assert metrics.classification_metrics([1, 0], [0.5, 0.5])["confusion_matrix"] == [[1, 0], [1, 0]]

    @pytest.mark.parametrize(
        ("labels", "scores", "undefined"),
        [
            pytest.param([0, 0], [0.1, 0.8], {"sensitivity", "auroc"}, id="no positive case"),
            pytest.param([0, 0], [0.1, 0.2], {"sensitivity", "precision", "f1", "f2", "auroc"}, id="nothing to find"),
            pytest.param([1, 1], [0.1, 0.8], {"specificity", "auroc"}, id="no negative case"),
            pytest.param([1, 0], [0.1, 0.2], {"precision"}, id="no positive decision"),
            pytest.param([1, 0], [0.9, 0.2], set(), id="perfect"),
        ],
    )
    def test_undefined_is_none(self, labels, scores, undefined):
        result = metrics.classification_metrics(labels, scores)
        assert {name for name, value in result.items() if value is None} == undefined
        json.dumps(result, allow_nan=False)  # Python numbers only, none of them NaN

    def test_all_missed_gives_f1_of_zero(self):
        result = metrics.classification_metrics([1, 1, 0], [0.1, 0.2, 0.3])
        assert (result["f1"], result["f2"], result["sensitivity"]) == (0, 0, 0)

    @pytest.mark.parametrize(
        ("labels", "probabilities"),
        [
            ([], []),
            ([0, 1], [0.1]),
            ([0, 2], [0.1, 0.2]),
            ([0, 1], [0.1, 1.2]),
            ([0, 1], [0.1, math.nan]),
            ([0, 1], [[0.9, 0.9], [0.1, 0.9]]),
            ([0, 1], [[0.2, 0.3, 0.5], [0.2, 0.3, 0.5]]),
        ],
    )
    def test_refuses_what_is_no_classification(self, labels, probabilities):
        with pytest.raises(ValueError):
            metrics.classification_metrics(labels, probabilities)


class TestReport:
    def test_values_lie_in_their_intervals(self):
        labels, scores = simulated_scores()
        report = metrics.classification_report_with_intervals(labels, scores, n=300)
        value = metrics.classification_metrics(labels, scores)
        assert report.keys() == MEASURES
        for name in MEASURES - {"expected_calibration_error"}:
            assert report[name]["value"] == value[name]
            assert report[name]["low"] < value[name] < report[name]["high"]

    def test_a_perfect_classifier_has_no_perfect_interval(self):
        report = metrics.classification_report_with_intervals([0] * 10 + [1] * 10, [0.1] * 10 + [0.9] * 10, n=50)
        assert report["sensitivity"]["value"] == report["sensitivity"]["high"] == 1
        assert report["sensitivity"]["low"] == pytest.approx(0.7225, abs=1e-4)  # Wilson, 10 of 10
        assert report["sensitivity"]["method"] == "wilson"
        assert report["auroc"] == report["f1"] == {"value": 1, "low": None, "high": None, "method": None}

    def test_patients_widen_the_intervals(self):
        labels, scores = simulated_scores(60)
        labels, scores, patients = (np.repeat(array, 10) for array in (labels, scores, np.arange(60)))
        alone = metrics.classification_report_with_intervals(labels, scores, n=300)
        clustered = metrics.classification_report_with_intervals(labels, scores, clusters=patients, n=300)
        for name in ("accuracy", "f1", "auroc"):
            assert clustered[name]["method"] == "bootstrap"
            wide, narrow = (report[name]["high"] - report[name]["low"] for report in (clustered, alone))
            assert wide == pytest.approx(math.sqrt(10) * narrow, rel=0.3)

    def test_one_class(self):
        report = metrics.classification_report_with_intervals([0, 0, 0], [0.1, 0.2, 0.9], n=20)
        assert report["auroc"] == {"value": None, "low": None, "high": None, "method": None}
        json.dumps(report, allow_nan=False)


class TestPsnr:
    def test_by_hand(self):
        # A constant error of 0.2 of a range of 2: 20 log10(2 / 0.2) = 20 dB.
        assert metrics.psnr(np.zeros((4, 5)), np.full((4, 5), 0.2)) == pytest.approx(20)
        assert metrics.psnr(np.zeros((4, 5)), np.full((4, 5), 0.2), limits=(0, 1)) == pytest.approx(20 * math.log10(5))

    def test_equal_images(self):
        assert metrics.psnr(np.ones((3, 3)), np.ones((3, 3))) == math.inf

    def test_opencv_agrees_on_the_8_bit_scale(self):
        cv2 = pytest.importorskip("cv2")
        reference, image = image_pair(20, 30, 3)
        scaled = [((array + 1) * 127.5).astype(np.float32) for array in (reference, image)]
        assert metrics.psnr(reference, image) == pytest.approx(cv2.PSNR(*scaled, 255), abs=1e-4)

    @pytest.mark.parametrize("measure", [metrics.psnr, metrics.ssim])
    def test_refuses_what_is_no_pair(self, measure):
        with pytest.raises(ValueError, match="one shape"):
            measure(np.zeros((20, 20)), np.zeros((20, 20, 1)))
        with pytest.raises(ValueError, match="not finite"):
            measure(np.zeros((20, 20)), np.full((20, 20), np.nan))


def ssim_from_the_formula(reference, image, data_range):
    """Wang et al. 2004, window by window, for [H, W]."""
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = []
    for row in range(reference.shape[0] - 10):
        for column in range(reference.shape[1] - 10):
            x, y = (array[row : row + 11, column : column + 11] for array in (reference, image))
            mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
            variance_x, variance_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
            covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
            luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
            values.append(luminance * (2 * covariance + c2) / (variance_x + variance_y + c2))
    return np.mean(values)


class TestSsim:
    def test_formula(self):
        reference, image = image_pair(17, 23)
        expected = ssim_from_the_formula(reference + 1, image + 1, 2)
        assert metrics.ssim(reference, image) == pytest.approx(expected, abs=1e-10)

    @pytest.mark.parametrize("shape", [(40, 33), (33, 40, 1), (30, 31, 3)])
    def test_scikit_image_agrees(self, shape):
        skimage_metrics = pytest.importorskip("skimage.metrics")
        reference, image = image_pair(*shape)
        expected = skimage_metrics.structural_similarity(
            reference + 1,
            image + 1,
            data_range=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            channel_axis=None if len(shape) == 2 else 2,
        )
        assert metrics.ssim(reference, image) == pytest.approx(expected, abs=1e-10)

    def test_does_not_depend_on_how_pixels_are_coded(self):
        reference, image = image_pair(30, 30)
        as_bytes = [(array + 1) * 127.5 for array in (reference, image)]
        assert metrics.ssim(*as_bytes, limits=(0, 255)) == pytest.approx(metrics.ssim(reference, image), abs=1e-12)

    def test_equal_images_and_falling_with_noise(self):
        values = [metrics.ssim(*image_pair(40, 40, noise=noise)) for noise in (0, 0.1, 0.3, 1)]
        assert values[0] == pytest.approx(1, abs=1e-12)
        assert values == sorted(values, reverse=True)

    def test_refuses_images_smaller_than_the_window(self):
        assert metrics.ssim(np.zeros((11, 11)), np.zeros((11, 11))) == pytest.approx(1)
        with pytest.raises(ValueError, match="at least 11x11"):
            metrics.ssim(np.zeros((10, 30)), np.zeros((10, 30)))


def test_finite_mean():
    assert metrics.finite_mean([20.0, math.inf, 23.0]) == 21.5
    assert metrics.finite_mean([math.inf]) is None


class TestSummary:
    def test_by_hand(self):
        result = metrics.summary([20.0, 22.0, 24.0, math.inf])
        assert (result["n"], result["n_infinite"], result["mean"]) == (3, 1, 22)
        assert result["standard_deviation"] == pytest.approx(2)
        assert 20 <= result["low"] < 22 < result["high"] <= 24

    @pytest.mark.parametrize("values", [[], [math.inf], [30.0]])
    def test_few_values_are_still_json(self, values):
        result = metrics.summary(values, clusters=["patient"] * len(values))
        json.dumps(result, allow_nan=False)
        assert result["n"] + result["n_infinite"] == len(values)

    def test_refuses_nan(self):
        with pytest.raises(ValueError, match="NaN"):
            metrics.summary([1.0, math.nan])


class TestBootstrap:
    def test_close_to_the_normal_interval_of_a_mean(self):
        values = np.random.default_rng(1).normal(5, 2, 400)
        low, high = metrics.bootstrap_interval(np.mean, values)
        expected = stats.norm.interval(0.95, values.mean(), values.std() / math.sqrt(400))
        assert (low, high) == pytest.approx(expected, abs=0.02)

    def test_covers_the_truth_as_often_as_it_says(self):
        rng = np.random.default_rng(2)
        covered = 0
        for trial in range(200):
            low, high = metrics.bootstrap_interval(np.mean, rng.exponential(1, 60), n=300, confidence=0.9, seed=trial)
            covered += low <= 1 <= high
        assert 0.82 <= covered / 200 <= 0.96

    def test_clusters_are_drawn_whole(self):
        patients = np.array(["a", "b", "a", "c", "c", "b"])
        seen = set()

        def whole(ids):
            values, counts = np.unique(ids, return_counts=True)
            assert (counts % 2 == 0).all() and counts.sum() == 6
            seen.update(values)
            return 0.0

        metrics.bootstrap_interval(whole, patients, clusters=patients, n=50)
        assert seen == {"a", "b", "c"}

    def test_clusters_of_one_are_cases(self):
        values = np.random.default_rng(3).normal(size=30)
        by_case = metrics.bootstrap_interval(np.mean, values, seed=4)
        assert metrics.bootstrap_interval(np.mean, values, clusters=np.arange(30), seed=4) == by_case

    def test_arrays_are_resampled_together(self):
        values = np.random.default_rng(5).normal(size=50)
        assert metrics.bootstrap_interval(lambda x, y: np.mean(x - y), values + 3, values) == pytest.approx((3, 3))

    def test_undefined_samples_are_left_out(self):
        def sensitivity(labels, decisions):
            return float(decisions[labels == 1].mean()) if labels.any() else None

        assert metrics.bootstrap_interval(sensitivity, [1, 0, 0], [1, 0, 0], n=100) == (1, 1)
        assert metrics.bootstrap_interval(sensitivity, [0, 0, 0], [1, 0, 0], n=100) == (None, None)

    def test_seed(self):
        values = np.random.default_rng(6).normal(size=50)
        intervals = [metrics.bootstrap_interval(np.mean, values, n=100, seed=seed) for seed in (0, 0, 1)]
        assert intervals[0] == intervals[1] != intervals[2]

    @pytest.mark.parametrize(
        ("arrays", "clusters"), [([[]], None), ([[1, 2], [1]], None), ([[1, 2]], ["a"]), ([], None)]
    )
    def test_refuses_wrong_lengths(self, arrays, clusters):
        with pytest.raises(ValueError):
            metrics.bootstrap_interval(np.mean, *arrays, clusters=clusters)


class TestWilson:
    @pytest.mark.parametrize(("successes", "n"), [(0, 10), (7, 10), (68, 100), (10, 10)])
    def test_formula(self, successes, n):
        z, p = stats.norm.ppf(0.975), successes / n
        centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        assert metrics.wilson_interval(successes, n) == pytest.approx((centre - half, centre + half), abs=1e-9)

    @pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 2)])
    def test_refuses_no_proportion(self, successes, n):
        with pytest.raises(ValueError):
            metrics.wilson_interval(successes, n)


class TestMcNemar:
    def test_by_hand(self):
        # 5 cases only the first has right, 1 only the second: 2 (C(6,0) + C(6,1)) / 2^6 = 14/64.
        first = [True] * 5 + [False] + [True] * 4
        second = [False] * 5 + [True] + [True] * 4
        assert metrics.mcnemar(first, second) == {"b": 5, "c": 1, "p_value": pytest.approx(14 / 64)}

    def test_no_difference(self):
        assert metrics.mcnemar([True, False], [True, False]) == {"b": 0, "c": 0, "p_value": 1.0}

    def test_refuses_other_cases(self):
        with pytest.raises(ValueError, match="one length"):
            metrics.mcnemar([True], [True, False])
