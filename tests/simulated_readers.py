"""Readers of a reader study whose true preference, side bias, consistency and skill are known."""

import dataclasses

import numpy as np

from experiments.reader_study import answers, design
from experiments.reader_study.study import KEY_FORMAT

TIME = "2024-01-01T12:00:00.000Z"


@dataclasses.dataclass(frozen=True)
class Reader:
    """How a simulated reader answers.

    Attributes:
        preference: probability that the restored image of a case is the one that the reader would rather diagnose from.
        common: probability that this is taken from what all readers share about the case, and not drawn anew.
        left: probability that the left image is chosen whatever it is.
        guess: probability that a coin is tossed.
        rating: mean rating of (original, restored).
        sensitivity, specificity: of (original, restored).
    """

    preference: float = 0.7
    common: float = 0.0
    left: float = 0.0
    guess: float = 0.0
    rating: tuple = (2.5, 3.3)
    sensitivity: tuple = (0.7, 0.85)
    specificity: tuple = (0.8, 0.75)

    @property
    def chosen(self):
        """The share of restored images chosen, sides being balanced."""
        return (1 - self.left - self.guess) * self.preference + (self.left + self.guess) / 2

    @property
    def left_chosen(self):
        """The mean, over both places of the restored image, of the share of left images chosen."""
        return self.left + (1 - self.left) / 2

    @property
    def consistency(self):
        """The share of repeats, sides swapped, that get the same image."""
        on_the_left, on_the_right = 1 - self.guess / 2, 1 - self.left - self.guess / 2
        return on_the_left * on_the_right + (1 - on_the_left) * (1 - on_the_right)


def make_key(cases=40, repeats=4, seed=0, patients=None, allow_no_preference=False):
    """A key as the making of a study writes it, without images."""
    labels = [("control", "covid")[index % 2] for index in range(cases)]
    rng = np.random.default_rng(seed)
    shown = design.draw_presentations(labels, repeats, rng)
    return {
        "format": KEY_FORMAT,
        "version": 1,
        "study": f"{seed:012x}",
        "title": "Simulated readers",
        "seed": seed,
        "allow_no_preference": allow_no_preference,
        "cases": [
            {
                "name": f"{index}.png",
                "label": label,
                "patient": str(index % (patients or cases)),
                "original_sha256": "0",
                "restored_sha256": "0",
            }
            for index, label in enumerate(labels)
        ],
        "presentations": [
            {
                "id": f"{seed:06x}{place:06x}",
                "case": each.case,
                "repeat": each.repeat,
                "restored_side": each.restored_side,
                "diagnosed_side": each.side_of(each.diagnosed),
                "left": "images/a.png",
                "right": "images/b.png",
            }
            for place, each in enumerate(shown)
        ],
    }


def answer(key, readers, seed=0):
    """{name: the document that the page would save} for {name: `Reader`}."""
    rng = np.random.default_rng([seed, 1])
    shared = rng.random(len(key["cases"]))
    return {name: _document(key, name, reader, shared, rng) for name, reader in readers.items()}


def _document(key, name, reader, shared, rng):
    own = rng.random(len(key["cases"]))
    liked = np.where(rng.random(len(own)) < reader.common, shared, own) < reader.preference
    # As the page does it: two groups of readers diagnose from opposite images.
    swapped = sum(map(ord, name)) % 2
    given = []
    for shown in key["presentations"]:
        restored = shown["restored_side"]
        original = design.other(design.SIDES, restored)
        draw = rng.random()
        if draw < reader.left:
            preferred = "left"
        elif draw < reader.left + reader.guess:
            preferred = design.SIDES[rng.integers(2)]
        else:
            preferred = restored if liked[shown["case"]] else original
        diagnosed = design.other(design.SIDES, shown["diagnosed_side"]) if swapped else shown["diagnosed_side"]
        image = int(diagnosed == restored)
        positive = key["cases"][shown["case"]]["label"] == "covid"
        right = rng.random() < (reader.sensitivity if positive else reader.specificity)[image]
        rating = {side: _rating(reader.rating[side == restored], rng) for side in design.SIDES}
        given.append(
            {
                "id": shown["id"],
                "diagnosed_side": diagnosed,
                "covid": bool(positive == right),
                "preferred": preferred,
                "rating_left": rating["left"],
                "rating_right": rating["right"],
                "seconds_diagnosis": 4.0,
                "seconds_pair": 6.5,
                "answered": TIME,
            }
        )
    return {
        "format": answers.FORMAT,
        "version": 1,
        "study": key["study"],
        "reader": name,
        "consented": TIME,
        "saved": TIME,
        "presentations": len(key["presentations"]),
        "answers": given,
    }


def _rating(mean, rng):
    """1 to 5 with this mean: one plus the successes of four tries."""
    return 1 + int(rng.binomial(4, (mean - 1) / 4))
