"""Which image goes where: groups that must stay together, and a stratified assignment of whole groups."""

import collections

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data_prep.manifest import UNKNOWN


def group_images(patients, pairs):
    """Groups the images that one split must hold together.

    Args:
        patients: list of patient ids, one an image; "unknown" is a patient of its own.
        pairs: int [P, 2], near-duplicates as indices of images.

    Returns:
        int64 [N], the number of each image's group, from 0.
    """
    first = {}
    known = [(index, patient) for index, patient in enumerate(patients) if patient != UNKNOWN]
    links = [(first.setdefault(patient, index), index) for index, patient in known]
    links = np.concatenate([np.asarray(group, np.int64).reshape(-1, 2) for group in (links, pairs)])
    count = len(patients)
    graph = coo_array((np.ones(len(links), bool), (links[:, 0], links[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def assign(groups, strata, shares, seed):
    """Divides images into cells: every group whole, every stratum in the same shares.

    Large groups go first. Each goes where its strata are furthest below their share, then where the cell as a whole
    is, so that with groups of one image every cell is within one image of its share of every stratum.

    Args:
        groups: int [N], the group of each image.
        strata: list of N sortable values, such as (label, source).
        shares: dictionary, cell -> share of the images; they sum to 1.
        seed: non-negative integer; another seed gives another division.

    Returns:
        list of N cells.
    """
    cells = list(shares)
    numbers = {stratum: number for number, stratum in enumerate(sorted(set(strata)))}
    contents = collections.defaultdict(collections.Counter)
    for group, stratum in zip(np.asarray(groups).tolist(), strata, strict=True):
        contents[group][numbers[stratum]] += 1
    totals = np.bincount([numbers[stratum] for stratum in strata], minlength=len(numbers))
    missing = totals[:, None] * np.array([shares[cell] for cell in cells])  # [strata, cells], images
    order = np.random.default_rng(seed).permutation(sorted(contents)).tolist()
    order.sort(key=lambda group: -contents[group].total())
    chosen = {}
    for group in order:
        members, counts = (np.array(values) for values in zip(*contents[group].items(), strict=True))
        need = counts @ missing[members]
        neediest = np.flatnonzero(need >= need.max() - 1e-9)
        cell = neediest[np.argmax(missing[:, neediest].sum(axis=0))]
        missing[members, cell] -= counts
        chosen[group] = cells[cell]
    return [chosen[group] for group in np.asarray(groups).tolist()]
