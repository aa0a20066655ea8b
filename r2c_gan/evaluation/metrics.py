"""Measures of classification and of restoration, with their confidence intervals.

Pure functions of NumPy arrays. A value that the data do not define (sensitivity without a positive case, say) is
`None`, which JSON writes as null. It is never NaN and never a warning.
"""

import math

import cv2
import numpy as np
from scipy import stats

CALIBRATION_BINS = 10

_SSIM_WINDOW = 11
_SSIM_SIGMA = 1.5


# --- Classification ---------------------------------------------------------------------------------------------------


def classification_metrics(labels, probabilities):
    """How well the class probabilities tell COVID-19 (1, the positive class) from control (0).

    The decision is the likelier class; a tie is control, as `argmax` has it.

    Args:
        labels: integers [N], 0 or 1.
        probabilities: floats [N, 2] (columns control, COVID-19, rows that sum to 1), or [N] (that of COVID-19).

    Returns:
        A dict of Python numbers: `n`, `confusion_matrix` ([[tn, fp], [fn, tp]]), `accuracy`, `sensitivity`,
        `specificity`, `precision`, `f1`, `f2` (= 5 P R / (4 P + R)), `auroc`, `brier` (mean of (p - label)^2, which is
        0.25 for a coin) and `expected_calibration_error` (Guo et al. 2017: ten equal bins of the confidence in the
        decision). Undefined ones are None: sensitivity without a positive case, specificity without a negative one,
        precision without a positive decision, AUROC with one class only. F1 and F2 are computed from counts: they are 0
        where cases are missed and nothing is found, and None only where there is nothing to find and nothing found.

    Raises:
        ValueError: if the shapes differ, there are no cases, a label is not 0 or 1, or a row is no distribution.
    """
    return _metrics(*_labels_and_probabilities(labels, probabilities))


def f1(labels, decisions):
    """F1 of decisions, for where a bootstrap needs this one measure thousands of times.

    Args:
        labels: integers [N], 0 or 1.
        decisions: booleans [N]: called COVID-19.

    Returns:
        A float, or None where there is nothing to find and nothing found.
    """
    positive = labels == 1
    found = np.count_nonzero(positive & decisions)
    return _ratio(2 * found, np.count_nonzero(positive) + np.count_nonzero(decisions))


def auroc(labels, scores):
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order, ties counting one half.

    A hundredth of the time of `sklearn.metrics.roc_auc_score`, for the thousands of calls of a bootstrap.

    Args:
        labels: integers [N], 0 or 1.
        scores: floats [N], the higher the likelier 1.

    Returns:
        A float, or None with one class only.
    """
    positives, negatives = scores[labels == 1], np.sort(scores[labels != 1])
    if not len(positives) or not len(negatives):
        return None
    below, not_above = (np.searchsorted(negatives, positives, side).sum() for side in ("left", "right"))
    return float((below + not_above) / (2 * len(positives) * len(negatives)))


def classification_report_with_intervals(labels, probabilities, clusters=None, n=2000, confidence=0.95, seed=0):
    """The measures of `classification_metrics`, each with a confidence interval.

    Accuracy, sensitivity, specificity and precision are proportions of independent cases where there are no clusters;
    they get Wilson intervals. All others, and all measures of clustered cases, get percentile bootstrap intervals.
    Where no resample differs (a perfect score) the bootstrap says nothing about chance, and there is no interval. The
    calibration error is biased upwards by resampling.

    Args:
        labels: integers [N], 0 or 1.
        probabilities: floats [N, 2] or [N], as for `classification_metrics`.
        clusters: one id a case (patients), or None. See `bootstrap_interval`.
        n: number of bootstrap samples.
        confidence: coverage aimed at.
        seed: seed of the bootstrap.

    Returns:
        A dict: measure -> {`value`, `low`, `high`, `method`}, method "wilson" or "bootstrap". The value is None where
        it is undefined; low, high and method are None where there is no interval.
    """
    labels, probabilities = _labels_and_probabilities(labels, probabilities)
    value = _metrics(labels, probabilities)
    ((true_negative, false_positive), (false_negative, true_positive)) = value["confusion_matrix"]
    proportions = {
        "accuracy": (true_negative + true_positive, value["n"]),
        "sensitivity": (true_positive, true_positive + false_negative),
        "specificity": (true_negative, true_negative + false_positive),
        "precision": (true_positive, true_positive + false_positive),
    }
    resampled = [_metrics(labels[rows], probabilities[rows]) for rows in _resamples(len(labels), clusters, n, seed)]
    del value["n"], value["confusion_matrix"]
    report = {}
    for name, measured in value.items():
        low, high, method = None, None, None
        if measured is not None and name in proportions and clusters is None:
            low, high = wilson_interval(*proportions[name], confidence)
            method = "wilson"
        elif measured is not None:
            low, high = _percentiles([sample[name] for sample in resampled], confidence)
            method = "bootstrap"
            if low == high:
                low, high, method = None, None, None
        report[name] = {"value": measured, "low": low, "high": high, "method": method}
    return report


def _labels_and_probabilities(labels, probabilities):
    """Checks both and returns int64 [N] and float64 [N, 2]."""
    labels = np.asarray(labels)
    probabilities = np.asarray(probabilities, np.float64)
    if probabilities.ndim == 1:
        probabilities = np.stack([1 - probabilities, probabilities], axis=1)
    if labels.ndim != 1 or probabilities.shape != (len(labels), 2):
        raise ValueError(
            f"labels [N] and probabilities [N, 2] or [N] are needed, got {labels.shape}, {probabilities.shape}"
        )
    if not len(labels):
        raise ValueError("no cases")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels must be 0 (control) or 1 (COVID-19)")
    # The comparison is also false for NaN.
    if not (np.all(probabilities >= 0) and np.all(np.abs(probabilities.sum(axis=1) - 1) < 1e-2)):
        raise ValueError("probabilities must lie in [0, 1] and each row must sum to 1")
    return labels.astype(np.int64), probabilities


def _metrics(labels, probabilities):
    positive = probabilities[:, 1]
    decisions = probabilities.argmax(axis=1)
    correct = decisions == labels
    counts = np.bincount(2 * labels + decisions, minlength=4)
    true_negative, false_positive, false_negative, true_positive = (int(count) for count in counts)
    found = true_positive
    return {
        "n": len(labels),
        "confusion_matrix": [[true_negative, false_positive], [false_negative, true_positive]],
        "accuracy": float(correct.mean()),
        "sensitivity": _ratio(found, found + false_negative),
        "specificity": _ratio(true_negative, true_negative + false_positive),
        "precision": _ratio(found, found + false_positive),
        "f1": f1(labels, decisions == 1),
        "f2": _ratio(5 * found, 5 * found + 4 * false_negative + false_positive),
        "auroc": auroc(labels, positive),
        "brier": float(np.mean((positive - labels) ** 2)),
        "expected_calibration_error": _calibration_error(correct, probabilities.max(axis=1)),
    }


def _ratio(numerator, denominator):
    return numerator / denominator if denominator else None


def _calibration_error(correct, confidence):
    """Guo et al. 2017, equation 3: the mean gap between confidence and accuracy over bins, weighted by their sizes."""
    inner_edges = np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1]
    bins = np.searchsorted(inner_edges, confidence)  # bin (lower, upper]
    gaps = np.bincount(bins, correct - confidence, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(correct))


# --- Restoration ------------------------------------------------------------------------------------------------------


def psnr(reference, image, limits=(-1.0, 1.0)):
    """Peak signal-to-noise ratio in dB: 10 log10((highest - lowest)^2 / mean squared error).

    Args:
        reference: the clean image, float [H, W] or [H, W, C], within `limits`.
        image: the image to judge, of the same shape.
        limits: lowest and highest possible value.

    Returns:
        A float; `math.inf` for equal images. Infinity is not JSON: give a list of values to `summary`.

    Raises:
        ValueError: if the shapes differ or a value is not finite.
    """
    reference, image = _image_pair(reference, image, 1)
    error = np.mean((reference - image) ** 2)
    return float(10 * np.log10((limits[1] - limits[0]) ** 2 / error)) if error else math.inf


def ssim(reference, image, limits=(-1.0, 1.0)):
    """Structural similarity as Wang et al. 2004 define it, 1 for equal images.

    Gaussian weights (11x11, sigma 1.5), K1 = 0.01, K2 = 0.03, population covariance; the mean over all places where the
    window lies within the image, and over channels. SSIM compares means as a ratio, so it is defined for values that
    start at 0: the lowest limit is subtracted first, and an image gives the same value in [-1, 1] as in 0..255.

    Args:
        reference: the clean image, float [H, W] or [H, W, C], within `limits`; 11x11 or more.
        image: the image to judge, of the same shape.
        limits: lowest and highest possible value.

    Raises:
        ValueError: if the shapes differ, a value is not finite, or the image is smaller than the window.
    """
    reference, image = (array - limits[0] for array in _image_pair(reference, image, _SSIM_WINDOW))
    luminance, contrast_structure = _ssim_maps(reference, image, limits[1] - limits[0])
    return float(np.mean(luminance * contrast_structure))


def finite_mean(values):
    """Mean of the values that are finite (the PSNR of equal images is not), a float; None where none is."""
    finite = np.asarray(values, np.float64)
    finite = finite[np.isfinite(finite)]
    return float(finite.mean()) if len(finite) else None


def summary(values, n=2000, confidence=0.95, seed=0, clusters=None):
    """Mean of a measure over images, ready for JSON.

    Args:
        values: one float an image; infinity (the PSNR of equal images) is counted, and left out of everything else.
        n: number of bootstrap samples.
        confidence: coverage aimed at.
        seed: seed of the bootstrap.
        clusters: one id an image (patients), or None.

    Returns:
        A dict: `n` (finite values), `n_infinite`, and of the finite ones `mean`, `standard_deviation` (None if fewer
        than 2) and the bootstrap interval of the mean, `low` and `high` (None where all values are equal). `mean` is
        None where there is no finite value.

    Raises:
        ValueError: if a value is NaN.
    """
    values = np.asarray(values, np.float64)
    if np.isnan(values).any():
        raise ValueError("a value is NaN")
    finite = np.isfinite(values)
    kept = values[finite]
    low, high = None, None
    if len(np.unique(kept)) > 1:
        clusters = None if clusters is None else np.asarray(clusters)[finite]
        low, high = bootstrap_interval(np.mean, kept, clusters=clusters, n=n, confidence=confidence, seed=seed)
    return {
        "n": len(kept),
        "n_infinite": int(np.sum(~finite)),
        "mean": finite_mean(kept),
        "standard_deviation": float(kept.std(ddof=1)) if len(kept) > 1 else None,
        "low": low,
        "high": high,
    }


def _image_pair(reference, image, smallest):
    """Checks both and returns them as float64 [H, W, C]."""
    reference, image = np.asarray(reference, np.float64), np.asarray(image, np.float64)
    if reference.shape != image.shape or reference.ndim not in (2, 3) or not reference.size:
        raise ValueError(f"two images [H, W] or [H, W, C] of one shape needed, got {reference.shape}, {image.shape}")
    if not (np.isfinite(reference).all() and np.isfinite(image).all()):
        raise ValueError("an image holds a value that is not finite")
    if min(reference.shape[:2]) < smallest:
        raise ValueError(f"images of at least {smallest}x{smallest} are needed, got {reference.shape[:2]}")
    return np.atleast_3d(reference), np.atleast_3d(image)


def _ssim_maps(reference, image, data_range):
    """The luminance and the contrast-structure map of SSIM, [H - 10, W - 10, C] (Wang et al. 2004, equation 13).

    Args:
        reference: float64 [H, W, C] in [0, data_range].
        image: the same.
        data_range: highest possible value.
    """
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mean_1, mean_2 = _smooth(reference), _smooth(image)
    variances = _smooth(reference**2) - mean_1**2 + _smooth(image**2) - mean_2**2
    covariance = _smooth(reference * image) - mean_1 * mean_2
    luminance = (2 * mean_1 * mean_2 + c1) / (mean_1**2 + mean_2**2 + c1)
    return luminance, (2 * covariance + c2) / (variances + c2)


def _smooth(image):
    """The Gaussian-weighted local mean, where the whole window lies within the image."""
    smooth = cv2.GaussianBlur(image, (_SSIM_WINDOW, _SSIM_WINDOW), _SSIM_SIGMA).reshape(image.shape)
    border = _SSIM_WINDOW // 2
    return smooth[border : image.shape[0] - border, border : image.shape[1] - border]


def bootstrap_interval(statistic, *arrays, clusters=None, n=2000, confidence=0.95, seed=0):
    """Percentile bootstrap interval (Efron 1979) of a statistic of cases.

    Args:
        statistic: function of the arrays, resampled together, that returns a number, or None where it is undefined.
        *arrays: arrays with one entry a case along the first axis, all of one length (for two classifiers on the same
            cases give both, and the resampling is paired).
        clusters: one id a case. Whole clusters are drawn, since images of one patient are not independent. A case of
            unknown patient needs an id of its own.
        n: number of bootstrap samples.
        confidence: coverage aimed at.
        seed: seed of the resampling.

    Returns:
        (low, high). Samples whose statistic is None are left out, so the interval holds given that the statistic is
        defined; (None, None) if it never is. Where all cases agree the interval has no width: use `wilson_interval` for
        a proportion.

    Raises:
        ValueError: if there are no cases or the lengths differ.
    """
    arrays = [np.asarray(array) for array in arrays]
    if not arrays or any(len(array) != len(arrays[0]) for array in arrays):
        raise ValueError("arrays of one length are needed")
    samples = _resamples(len(arrays[0]), clusters, n, seed)
    return _percentiles([statistic(*(array[rows] for array in arrays)) for rows in samples], confidence)


def wilson_interval(successes, n, confidence=0.95):
    """Wilson's score interval (1927) of a proportion of independent cases, as (low, high).

    Raises:
        ValueError: if n is 0 or successes lie outside 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"0 <= successes <= n and n >= 1 are needed, got {successes} of {n}")
    interval = stats.binomtest(int(successes), int(n)).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(correct_1, correct_2):
    """McNemar's exact test that two classifiers are right equally often on the same cases.

    Args:
        correct_1: booleans [N]: the first classifier is right.
        correct_2: booleans [N]: the second one is right.

    Returns:
        A dict: `b` (cases that only the first has right), `c` (only the second) and `p_value` (two-sided binomial; 1
        where the two never differ).

    Raises:
        ValueError: if the shapes differ.
    """
    correct_1, correct_2 = np.asarray(correct_1, bool), np.asarray(correct_2, bool)
    if correct_1.shape != correct_2.shape or correct_1.ndim != 1:
        raise ValueError(f"two vectors of one length are needed, got {correct_1.shape}, {correct_2.shape}")
    b, c = int(np.sum(correct_1 & ~correct_2)), int(np.sum(~correct_1 & correct_2))
    return {"b": b, "c": c, "p_value": float(stats.binomtest(b, b + c).pvalue) if b + c else 1.0}


def _resamples(cases, clusters, n, seed):
    """Yields `n` index arrays, drawn with replacement from the cases or from whole clusters."""
    if not cases:
        raise ValueError("no cases")
    rng = np.random.default_rng(seed)
    if clusters is None:
        for _ in range(n):
            yield rng.integers(cases, size=cases)
        return
    _, group = np.unique(np.asarray(clusters), return_inverse=True)
    if group.shape != (cases,):
        raise ValueError(f"one cluster id a case is needed: {group.shape} ids for {cases} cases")
    members = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
    for _ in range(n):
        yield np.concatenate([members[draw] for draw in rng.integers(len(members), size=len(members))])


def _percentiles(values, confidence):
    values = [value for value in values if value is not None]
    if not values:
        return None, None
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
