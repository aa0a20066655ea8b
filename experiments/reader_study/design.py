"""Who sees what, where and when: the random part of a reader study, a function of the seed."""

import dataclasses

import numpy as np

SIDES = ("left", "right")
IMAGES = ("original", "restored")
SMALLEST_GAP = 10
"""Presentations between a case and its repeat, where the study is long enough."""


@dataclasses.dataclass(frozen=True)
class Presentation:
    """One pair as it is shown.

    Attributes:
        case: index of the case.
        repeat: whether the case is shown for the second time.
        restored_side: "left" or "right".
        diagnosed: "original" or "restored": which of the two is first shown on its own, for the diagnosis, to readers
            of group 0. Readers of group 1 get the other one, so that each case is diagnosed from both images.
    """

    case: int
    repeat: bool
    restored_side: str
    diagnosed: str

    def side_of(self, image):
        """The side of "original" or "restored"."""
        return self.restored_side if image == "restored" else other(SIDES, self.restored_side)

    def image_on(self, side):
        """What is on a side: "original" or "restored"."""
        return "restored" if side == self.restored_side else "original"


def other(pair, value):
    """The one of two that `value` is not."""
    return pair[1] if value == pair[0] else pair[0]


def choose_cases(labels, number, rng):
    """Draws cases, equally many of each class as far as there are.

    Args:
        labels: sequence of class names, one a case.
        number: cases to draw, at most `len(labels)`.
        rng: NumPy generator.

    Returns:
        Sorted list of indices.
    """
    rank = np.empty(len(labels), int)
    for name in sorted(set(labels)):
        members = [i for i, label in enumerate(labels) if label == name]
        rank[rng.permutation(members)] = np.arange(len(members))
    return sorted(int(i) for i in np.lexsort((rng.permutation(len(labels)), rank))[:number])


def draw_presentations(labels, repeats, rng):
    """The order of all pairs, their sides, and the image of each that is diagnosed.

    Within each class the four combinations of side and diagnosed image are equally frequent (to one). A repeat comes
    with the sides swapped and the same image for the diagnosis, and `gap(len(labels))` or more other pairs after its
    case.

    Args:
        labels: sequence of class names, one a case.
        repeats: number of cases that are shown twice.
        rng: NumPy generator.

    Returns:
        List of `Presentation`, in the order in which they are shown.

    Raises:
        ValueError: if there are more repeats than cases that leave room for one.
    """
    count = len(labels)
    early = count - gap(count)  # a later case leaves no room for its repeat
    if not 0 <= repeats <= early:
        raise ValueError(f"{repeats} repeats do not fit behind {count} cases")
    combinations = [(side, image) for side in SIDES for image in IMAGES]
    drawn = {}
    for name in sorted(set(labels)):
        members = rng.permutation([i for i, label in enumerate(labels) if label == name])
        # Starting anywhere, so that what is left over after whole rounds favours no combination.
        order = [combinations[i] for i in rng.permutation(len(combinations))]
        drawn |= {int(case): order[k % len(order)] for k, case in enumerate(members)}
    shown = [Presentation(int(case), False, *drawn[int(case)]) for case in rng.permutation(count)]
    for place in sorted(rng.choice(early, repeats, replace=False), reverse=True):
        first = shown[place]
        again = dataclasses.replace(first, repeat=True, restored_side=other(SIDES, first.restored_side))
        shown.insert(int(rng.integers(place + gap(count) + 1, len(shown) + 1)), again)
    return shown


def gap(cases):
    """The least number of pairs between a case and its repeat."""
    return max(1, min(SMALLEST_GAP, cases // 2))
