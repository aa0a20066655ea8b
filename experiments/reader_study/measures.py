"""What the answers of a reader study say, with intervals. Pure functions of the unblinded answers.

Answers of one reader hang together, and so do those to one case. The Wilson interval treats them as independent, so it
is too narrow with few readers or few cases; it stands beside bootstrap intervals that draw whole readers, whole cases,
or both at once (Owen 2007, the pigeonhole bootstrap). What does not vary gets no bootstrap interval.
"""

import functools
import statistics

import numpy as np
from scipy import stats

from experiments.reader_study.answers import NO_PREFERENCE
from experiments.reader_study.design import IMAGES, SIDES
from r2c_gan.data import datasets as data
from r2c_gan.evaluation import metrics

PUBLISHED = {
    "value": 0.68,
    "low": None,
    "high": None,
    "source": "Ahishali et al. 2024, Pattern Recognition 156:110765; its interval and number of readers were not found",
}
FEW_READERS = 5
SCHEMES = ("readers", "cases", "readers_and_cases")


def fleiss_kappa(counts):
    """Fleiss' kappa (1971): agreement of several raters beyond chance.

    kappa = (P - P_e) / (1 - P_e), where P is the mean over subjects of sum_j n_ij (n_ij - 1) / (n (n - 1)) and P_e the
    sum over categories of squared shares.

    Args:
        counts: integers [subjects, categories]: how many of the n raters put a subject into a category.

    Returns:
        A float; None where all ratings are of one category, or there are no subjects.

    Raises:
        ValueError: if the subjects have not all n >= 2 ratings.
    """
    counts = np.asarray(counts)
    raters = counts.sum(axis=1)
    if not len(counts):
        return None
    if (raters != raters[0]).any() or raters[0] < 2:
        raise ValueError("every subject needs the same number of ratings, 2 or more")
    observed, chance = raw_agreement(counts), float(((counts.sum(axis=0) / counts.sum()) ** 2).sum())
    return None if chance == 1 else (observed - chance) / (1 - chance)


def raw_agreement(counts):
    """The share of pairs of raters that agree, mean over subjects: P in `fleiss_kappa`."""
    counts = np.asarray(counts)
    raters = counts[0].sum()
    return float((counts * (counts - 1)).sum(axis=1).mean() / (raters * (raters - 1)))


class CrossedBootstrap:
    """Percentile bootstrap of answers that are crossed: every reader answers the same cases.

    "readers" draws whole readers, "cases" whole patients, "readers_and_cases" both, independently: an answer weighs as
    often as its reader was drawn, times as often as its case was (Owen 2007, Annals of Applied Statistics 1:386, which
    shows it to be somewhat conservative).

    Args:
        readers: one id an answer.
        cases: one id an answer: of the patient.
        n: number of bootstrap samples.
        confidence: coverage aimed at.
        seed: seed of the drawing.
    """

    def __init__(self, readers, cases, n=2000, confidence=0.95, seed=0):
        self.groups = [np.unique(ids, return_inverse=True)[1] for ids in (np.asarray(readers), np.asarray(cases))]
        self.n, self.confidence, self.seed = n, confidence, seed

    @functools.cached_property
    def _weights(self):
        """{scheme: how often each answer was drawn, [n, answers]}; None where there is one group only."""
        rng = np.random.default_rng(self.seed)
        drawn = []
        for group in self.groups:
            size = group.max() + 1
            drawn.append(rng.multinomial(size, np.full(size, 1 / size), self.n)[:, group] if size > 1 else None)
        readers, cases = drawn
        both = None if readers is None or cases is None else readers * cases
        return dict(zip(SCHEMES, (readers, cases, both), strict=True))

    def intervals(self, statistic):
        """{scheme: (low, high)} of a statistic; (None, None) where there is one group only or nothing varies.

        Args:
            statistic: function of weights [n, answers] that returns n values, NaN where undefined.
        """
        found = {}
        for scheme, weights in self._weights.items():
            values = np.empty(0) if weights is None else statistic(weights)
            values = values[np.isfinite(values)]
            found[scheme] = (None, None)
            if len(values) and values.min() < values.max():
                tails = [(1 - self.confidence) / 2, (1 + self.confidence) / 2]
                found[scheme] = tuple(float(limit) for limit in np.quantile(values, tails))
        return found


def weighted_mean(weights, values, kept):
    """Means of `values[kept]` under each row of `weights`; NaN where nothing of it was drawn."""
    weights = weights[:, kept].astype(float)
    total = weights.sum(axis=1)
    return np.divide(weights @ values[kept], total, out=np.full(len(total), np.nan), where=total > 0)


class _Table:
    """Answers as arrays."""

    def __init__(self, rows, n, seed):
        self.rows = rows
        for name in ("reader", "patient", "label", "diagnosed", "preferred", "preferred_side", "restored_side"):
            setattr(self, name, np.array([row[name] for row in rows], dtype=object).astype(str))
        for name in ("rating_original", "rating_restored", "covid", "correct"):
            setattr(self, name, np.array([row[name] for row in rows], dtype=float))
        self.bootstrap = CrossedBootstrap(self.reader, self.patient, n=n, seed=seed)
        self.everything = np.ones(len(rows), bool)

    def mean(self, values, kept):
        """Mean with bootstrap intervals; None without answers."""
        if not kept.any():
            return None
        intervals = self.bootstrap.intervals(lambda weights: weighted_mean(weights, values, kept))
        return {"value": float(values[kept].mean()), "n": int(kept.sum()), "bootstrap": intervals}

    def proportion(self, values, kept):
        """`mean` of 0 and 1, with Wilson's interval beside it."""
        found = self.mean(values, kept)
        if found is not None:
            found["successes"] = int(values[kept].sum())
            found["wilson"] = metrics.wilson_interval(found["successes"], found["n"])
        return found

    def difference(self, values, kept, than):
        """Mean over `kept` minus mean over `than`; None if one has no answers."""
        if not (kept.any() and than.any()):
            return None
        intervals = self.bootstrap.intervals(
            lambda weights: weighted_mean(weights, values, kept) - weighted_mean(weights, values, than)
        )
        return {"value": float(values[kept].mean() - values[than].mean()), "bootstrap": intervals}


def analyse(rows, n=2000, seed=0):
    """All measures of a study.

    Everything but `consistency` and `side_bias` counts the first showing of a case only.

    Args:
        rows: what `answers.unblind` returned.
        n: number of bootstrap samples.
        seed: seed of the bootstrap.

    Returns:
        A dict, ready for JSON: `readers`, `cases`, `answers`, `preference`, `agreement`, `side_bias`, `consistency`,
        `ratings`, `diagnosis`, `per_reader`, `seconds`. Shares lie in [0, 1]; what the answers do not define is None.
    """
    rows_first = [row for row in rows if not row["repeat"]]
    first, whole = _Table(rows_first, n, seed), _Table(rows, n, seed)
    return {
        "readers": len(set(first.reader)),
        "cases": len({row["case"] for row in rows_first}),
        "patients": len(set(first.patient)),
        "answers": len(rows_first),
        "repeated_answers": len(rows) - len(rows_first),
        "preference": _preference(first),
        "agreement": _agreement(rows_first, n, seed),
        "side_bias": _side_bias(whole),
        "consistency": _consistency(rows),
        "ratings": _ratings(first),
        "diagnosis": _diagnosis(first),
        "per_reader": [_reader(name, rows) for name in sorted({row["reader"] for row in rows})],
        "seconds": _seconds(rows_first),
    }


def _by_class(table, measure):
    return {name: measure(table.label == name) for name in data.CLASSES if (table.label == name).any()}


def _preference(table):
    chosen = table.preferred != NO_PREFERENCE
    restored = (table.preferred == "restored").astype(float)
    return {
        "restored": table.proportion(restored, chosen),
        "no_preference": int((~chosen).sum()),
        "by_class": _by_class(table, lambda members: table.proportion(restored, chosen & members)),
        "published": PUBLISHED,
    }


def _agreement(rows, n, seed):
    """Fleiss' kappa of the preference, over the cases that every reader answered."""
    readers = sorted({row["reader"] for row in rows})
    by_case = {}
    for row in rows:
        by_case.setdefault(row["case"], []).append(row)
    shared = [members for members in by_case.values() if len(members) == len(readers)]
    found = {"cases": len(shared), "readers": len(readers), "kappa": None, "low": None, "high": None, "raw": None}
    if len(readers) < 2 or not shared:
        return found
    categories = [*IMAGES, NO_PREFERENCE]
    counts = np.array([[sum(row["preferred"] == name for row in members) for name in categories] for members in shared])
    found["kappa"], found["raw"] = fleiss_kappa(counts), raw_agreement(counts)
    if found["kappa"] is not None:
        patients = [members[0]["patient"] for members in shared]
        low, high = metrics.bootstrap_interval(fleiss_kappa, counts, clusters=patients, n=n, seed=seed)
        found |= {"low": low, "high": high} if low != high else {}
    return found


def _side_bias(table):
    """The share of choices of the left image, given where the restored one was.

    A preference moves the two shares apart; a bias moves their mean away from one half, balanced sides or not.
    """
    chosen = table.preferred_side != NO_PREFERENCE
    left = (table.preferred_side == "left").astype(float)
    given = {side: table.proportion(left, chosen & (table.restored_side == side)) for side in SIDES}
    places = [chosen & (table.restored_side == side) for side in SIDES]
    found = {"left": table.proportion(left, chosen), "left_if_restored": given, "mean": None}
    if all(place.any() for place in places):
        intervals = table.bootstrap.intervals(
            lambda weights: sum(weighted_mean(weights, left, place) for place in places) / 2
        )
        found["mean"] = {"value": sum(given[side]["value"] for side in SIDES) / 2, "bootstrap": intervals}
    return found


def _consistency(rows):
    """The same case twice, sides swapped: what stays the same."""
    first = {(row["reader"], row["case"]): row for row in rows if not row["repeat"]}
    pairs = [(first.get((row["reader"], row["case"])), row) for row in rows if row["repeat"]]
    pairs = [(before, after) for before, after in pairs if before]
    found = {"pairs": len(pairs), "preference": None, "diagnosis": None, "rating_within_1": None, "rating_change": None}
    if pairs:
        changes = [
            abs(before[f"rating_{image}"] - after[f"rating_{image}"]) for before, after in pairs for image in IMAGES
        ]
        found["preference"] = _share([before["preferred"] == after["preferred"] for before, after in pairs])
        found["diagnosis"] = _share([before["covid"] == after["covid"] for before, after in pairs])
        found["rating_within_1"] = _share([change <= 1 for change in changes])
        found["rating_change"] = statistics.mean(changes)
    return found


def _share(values):
    """The share of true values, with Wilson's interval; None without values."""
    values = list(values)
    if not values:
        return None
    successes = sum(map(bool, values))
    return {
        "value": successes / len(values),
        "successes": successes,
        "n": len(values),
        "wilson": metrics.wilson_interval(successes, len(values)),
    }


def _ratings(table):
    change = table.rating_restored - table.rating_original
    by_patient = [float(change[table.patient == patient].mean()) for patient in sorted(set(table.patient))]
    return {
        **{image: table.mean(getattr(table, f"rating_{image}"), table.everything) for image in IMAGES},
        "counts": {
            image: [int((getattr(table, f"rating_{image}") == rating).sum()) for rating in range(1, 6)]
            for image in IMAGES
        },
        "difference": table.mean(change, table.everything),
        "difference_by_class": _by_class(table, lambda members: table.mean(change, members)),
        "wilcoxon": _wilcoxon(by_patient),
    }


def _wilcoxon(differences):
    """Wilcoxon's signed-rank test (1945) of each patient's mean difference; those of 0 are left out."""
    kept = [value for value in differences if value]
    found = {"n": len(kept), "zeros": len(differences) - len(kept), "statistic": None, "p_value": None}
    if kept:
        test = stats.wilcoxon(kept)
        found |= {"statistic": float(test.statistic), "p_value": float(test.pvalue)}
    return found


def _diagnosis(table):
    measures = {"sensitivity": table.label == "covid", "specificity": table.label == "control"}
    measures["accuracy"] = table.everything
    shown = {image: table.diagnosed == image for image in IMAGES}
    return {
        name: {
            **{image: table.proportion(table.correct, members & shown[image]) for image in IMAGES},
            "difference": table.difference(table.correct, members & shown["restored"], members & shown["original"]),
        }
        for name, members in measures.items()
    }


def _reader(name, rows):
    rows = [row for row in rows if row["reader"] == name]
    first = [row for row in rows if not row["repeat"]]
    chosen = [row for row in first if row["preferred"] != NO_PREFERENCE]
    return {
        "reader": name,
        "answers": len(rows),
        "preference": _share(row["preferred"] == "restored" for row in chosen),
        "left": _share(row["preferred_side"] == "left" for row in rows if row["preferred"] != NO_PREFERENCE),
        "consistency": _consistency(rows)["preference"],
        "rating_difference": statistics.mean(row["rating_restored"] - row["rating_original"] for row in first)
        if first
        else None,
        "accuracy": _share(row["correct"] for row in first),
        "seconds": _seconds(first),
    }


def _seconds(rows):
    """Median seconds in view a pair, of both steps (a reload starts a step anew); None without answers."""
    return statistics.median(row["seconds_diagnosis"] + row["seconds_pair"] for row in rows) if rows else None
