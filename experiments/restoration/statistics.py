"""What methods of restoring reach on groups of images, and gain over each other, with intervals."""

import numpy as np

from experiments.restoration import classical

INPUT = "input"
BEST_CLASSICAL = "best classical"
RESAMPLES = 2000
SMALLEST_GROUP = 5  # images; the resamples of fewer say nothing about chance


def mean_intervals(values, clusters, seed=0):
    """Means of columns and their 95% percentile bootstrap intervals; all columns see the same resamples.

    Args:
        values: floats [N, K]; NaN is left out.
        clusters: one id an image; whole clusters are drawn.
        seed: seed of the bootstrap.

    Returns:
        A list of K dictionaries: n, mean, low, high. The mean is None where nothing is finite, the bounds also where
        all values are equal or there are fewer than `SMALLEST_GROUP` clusters.
    """
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    rng = np.random.default_rng(seed)
    count = cluster.max() + 1
    draws = rng.integers(count, size=(RESAMPLES, count))
    weights = np.stack([np.bincount(draw, minlength=count) for draw in draws])[:, cluster].astype(float)
    known = np.isfinite(values)
    sums = weights @ np.where(known, values, 0)
    sizes = weights @ known
    results = []
    for column, present, total, size in zip(values.T, known.T, sums.T, sizes.T, strict=True):
        kept = column[present]
        low = high = None
        if len(np.unique(kept)) > 1 and len(np.unique(cluster[present])) >= SMALLEST_GROUP:
            low, high = (
                round(float(bound), 6) for bound in np.quantile(total[size > 0] / size[size > 0], (0.025, 0.975))
            )
        mean = round(float(kept.mean()), 6) if len(kept) else None
        results.append({"n": len(kept), "mean": mean, "low": low, "high": high})
    return results


def best_classical(scores):
    """The classical method with the highest mean over the altered test images: measure -> its name.

    It is chosen on the images that it is compared on, in its own favour: a model that is better than it is better
    than all of them.
    """
    names = [name for name in scores if name in classical.METHODS or name == classical.COMBINATION]
    return {
        measure: max(names, key=lambda name: np.nanmean(altered(scores, name, measure))) for measure in scores[INPUT]
    }


def altered(scores, method, measure):
    """The values of a method, float [N]; NaN where the poor image is the clean one by this measure (infinite PSNR).

    There is nothing to restore there, and means of two methods are over the same images.
    """
    values, before = (np.array(scores[name][measure], float) for name in (method, INPUT))  # None becomes NaN
    return np.where(np.isfinite(before), values, np.nan)


def tabulate(scores, methods, divisions, patients):
    """The rows of `result.json`.

    Args:
        scores: method -> measure -> one value an image.
        methods: method -> what its rows say of it, a dictionary.
        divisions: what `groups` returns.
        patients: one id an image.

    Returns:
        A list of dictionaries: `method`, what `methods` says of it, `measure`, `against` (None: the value itself;
        "input" or "best classical": the difference to it, image by image), `grouping`, `group`, `n`, `mean`, `low`,
        `high`, and for differences `improved`, the share of images where the method is better.
    """
    rivals = best_classical(scores)
    columns, heads = [], []
    for method, measured in scores.items():
        for measure in measured:
            values = altered(scores, method, measure)
            for against, rival in ((None, None), (INPUT, INPUT), (BEST_CLASSICAL, rivals[measure])):
                if (method == INPUT and against) or (against == BEST_CLASSICAL and methods[method]["kind"] != "model"):
                    continue
                heads.append({"method": method, **methods[method], "measure": measure, "against": against})
                columns.append(values - (altered(scores, rival, measure) if against else 0))
    columns = np.stack(columns, axis=1)
    patients = np.asarray(patients)
    rows = []
    for (grouping, group), members in divisions.items():
        intervals = mean_intervals(columns[members], patients[members])
        for head, interval, column in zip(heads, intervals, columns[members].T, strict=True):
            row = {**head, "grouping": grouping, "group": group, **interval}
            if head["against"]:
                known = column[np.isfinite(column)]
                row["improved"] = round(float(np.mean(known > 0)), 6) if len(known) else None
            rows.append(row)
    return rows
