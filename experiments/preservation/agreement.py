"""How the predictions of one classifier on two versions of the same images agree, and which of them turn."""

import numpy as np
from sklearn.metrics import cohen_kappa_score

from r2c_gan.data.datasets import CLASSES
from r2c_gan.evaluation import metrics


def kappa(first, second):
    """Cohen's kappa (1960) of two vectors of booleans: agreement beyond chance; None where chance explains all."""
    if len({*np.ravel(first), *np.ravel(second)}) == 1:
        return None
    return float(cohen_kappa_score(first, second))


def agreement(first, second, clusters=None):
    """How often two predictions agree.

    Args:
        first, second: booleans [N], whether COVID-19 is called.
        clusters: one patient a case, or None.

    Returns:
        A dictionary: `table` ([[both control, only second COVID-19], [only first, both]]), `agreeing` (a proportion)
        and `kappa` with its 95% bootstrap interval.
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    low, high = metrics.bootstrap_interval(kappa, first, second, clusters=clusters)
    return {
        "table": np.bincount(2 * first + second, minlength=4).reshape(2, 2).tolist(),
        "agreeing": proportion(first == second),
        "kappa": {"value": kappa(first, second), "low": low, "high": high},
    }


def proportion(hits):
    """Count, number, share and 95% Wilson interval of a vector of booleans; None where it is empty."""
    hits = np.asarray(hits, bool)
    count, n = int(hits.sum()), len(hits)
    low, high = metrics.wilson_interval(count, n) if n else (None, None)
    return {"count": count, "n": n, "share": count / n if n else None, "low": low, "high": high}


def prediction_changes(labels, poor, restored, clean=None, clusters=None):
    """What restoring does to the predictions of a classifier.

    Args:
        labels: integers [N], the truth.
        poor, restored, clean: floats [N], the probability of COVID-19 by the image that the classifier was shown.
        clusters: one patient a case, or None.

    Returns:
        A dictionary:
        `agreement`: by pair of images, of `agreement`;
        `towards_clean`: McNemar's test of "as on the clean image", restored (b) against poor (c);
        `changes`: by true class, the share of predictions on poor images that restoring turns, either way;
        `against_clean`: by image, the share of COVID-19 cases found on the clean image that are `lost`, and of controls
        called so on the clean image that are `invented`;
        `probability_change`: by true class, mean change of the probability of COVID-19 with 95% interval.
        What needs the clean images is None without them.
    """
    labels = np.asarray(labels)
    probabilities = {"poor": np.asarray(poor), "restored": np.asarray(restored)}
    if clean is not None:
        probabilities["clean"] = np.asarray(clean)
    called = {name: values > 0.5 for name, values in probabilities.items()}
    compared = [pair for pair in (("poor", "restored"), ("poor", "clean"), ("restored", "clean")) if pair[1] in called]
    classes = {name: labels == label for label, name in enumerate(CLASSES)}
    result = {
        "n": len(labels),
        "f1": {name: metrics.f1(labels, values) for name, values in called.items()},
        "agreement": {f"{one}_{other}": agreement(called[one], called[other], clusters) for one, other in compared},
        "towards_clean": None,
        "changes": {
            name: {
                "control_to_covid": proportion(called["restored"][members & ~called["poor"]]),
                "covid_to_control": proportion(~called["restored"][members & called["poor"]]),
            }
            for name, members in classes.items()
        },
        "against_clean": None,
        "probability_change": {
            name: {
                f"{other}_minus_{one}": _mean(probabilities[other] - probabilities[one], members, clusters)
                for one, other in (("poor", "restored"), ("clean", "restored"), ("clean", "poor"))
                if one in probabilities
            }
            for name, members in {"all": np.ones(len(labels), bool), **classes}.items()
        },
    }
    if clean is not None:
        agrees = {name: called[name] == called["clean"] for name in ("restored", "poor")}
        result["towards_clean"] = metrics.mcnemar(agrees["restored"], agrees["poor"])
        result["against_clean"] = {
            name: {
                "lost": proportion(~called[name][classes["covid"] & called["clean"]]),
                "invented": proportion(called[name][classes["control"] & ~called["clean"]]),
            }
            for name in ("poor", "restored")
        }
    return result


def _mean(values, members, clusters):
    chosen = None if clusters is None else np.asarray(clusters)[members]
    return metrics.summary(values[members], clusters=chosen)
