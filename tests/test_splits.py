"""Groups stay whole, strata keep their shares."""

import collections

import numpy as np
import pytest

from data_prep.splits import assign, group_images

SHARES = {("train", "A"): 0.4, ("train", "B"): 0.4, ("test", "A"): 0.1, ("test", "B"): 0.1}


def partition(groups):
    members = collections.defaultdict(set)
    for index, group in enumerate(groups):
        members[group].add(index)
    return sorted(map(sorted, members.values()))


def test_groups_join_patients_and_near_duplicates():
    patients = ["ann", "unknown", "bob", "ann", "unknown", "bob", "unknown"]
    pairs = [(0, 1), (4, 6)]
    assert partition(group_images(patients, pairs)) == [[0, 1, 3], [2, 5], [4, 6]]


def test_groups_join_along_chains():
    patients = ["a", "a", "b", "b", "unknown"]
    assert partition(group_images(patients, [(1, 2), (3, 4)])) == [[0, 1, 2, 3, 4]]


def test_unknown_patients_are_not_one_patient():
    assert partition(group_images(["unknown"] * 3, np.zeros((0, 2), int))) == [[0], [1], [2]]


def test_single_images_meet_every_share_within_one():
    rng = np.random.default_rng(0)
    strata = [("covid", "x")] * 137 + [("control", "x")] * 60 + [("control", "y")] * 23
    rng.shuffle(strata)
    cells = assign(np.arange(len(strata)), strata, SHARES, seed=3)
    counts = collections.Counter(zip(strata, cells, strict=True))
    for stratum, total in collections.Counter(strata).items():
        for cell, share in SHARES.items():
            assert abs(counts[stratum, cell] - share * total) <= 1, (stratum, cell)


def test_groups_are_whole_and_shares_nearly_met():
    rng = np.random.default_rng(1)
    groups = rng.integers(0, 300, 1000)
    strata = [("covid", "control")[group % 2] for group in groups]
    cells = assign(groups, strata, SHARES, seed=0)
    for group in np.unique(groups):
        assert len({cells[index] for index in np.flatnonzero(groups == group)}) == 1
    for stratum in ("covid", "control"):
        total = strata.count(stratum)
        for cell, share in SHARES.items():
            found = sum(pair == (stratum, cell) for pair in zip(strata, cells, strict=True))
            assert abs(found - share * total) < 0.02 * total


def test_a_group_of_two_strata_counts_in_both():
    groups = [0] * 10 + list(range(1, 21))
    strata = ["x"] * 5 + ["y"] * 5 + ["x"] * 10 + ["y"] * 10
    cells = assign(groups, strata, {"train": 0.5, "test": 0.5}, seed=0)
    counts = collections.Counter(zip(strata, cells, strict=True))
    assert all(abs(counts[stratum, cell] - 7.5) <= 1 for stratum in "xy" for cell in ("train", "test"))


def test_a_group_larger_than_a_cell_goes_to_the_largest():
    cells = assign([7] * 60 + list(range(8, 48)), ["x"] * 100, {"train": 0.8, "val": 0.1, "test": 0.1}, seed=0)
    assert set(cells[:60]) == {"train"}
    assert collections.Counter(cells) == {"train": 80, "val": 10, "test": 10}


@pytest.mark.parametrize("seed", [0, 5])
def test_the_seed_decides(seed):
    strata = ["x"] * 40 + ["y"] * 40
    cells = assign(np.arange(80), strata, SHARES, seed)
    assert cells == assign(np.arange(80), strata, SHARES, seed)
    assert cells != assign(np.arange(80), strata, SHARES, seed + 1)
