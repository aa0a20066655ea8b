"""How films go bad, as a few numbers: a parametric model of degradations that can be fitted to films without pairs.

A good film passes these operations in random order, each with a probability of its own:

`blur`            a Gaussian of log-normal width; or, as often as `blur.motion` says, along a line
`tone`            a x^g + o; log a, log g and o are normal
`tone_2`          the same with numbers of its own, because films go too dark and too light in different ways
`veil`            (1 - v) x + v m; m is x blurred over a sixth of the film, v is logit-normal
`noise`           normal, of log-normal strength times exp(w (x - 1/2)); correlated as often as `noise.correlated` says
`low_resolution`  shrunk by 1 + a log-normal factor, and enlarged
`jpeg`            of 100 times a logit-normal quality
`grid`            a sinusoid of log-normal amplitude along one axis

Of what is log-normal the number is the median, of what is normal the mean (for `gamma` and `gain`, of the logarithm;
for `share` and `quality`, of the logit); `_spread` is the standard deviation of the logarithm, or of the logit. Lengths
are shares of the film's side, in per cent. `data_prep.fit_degradation` finds the numbers; nothing here is taken
from `data_prep.degradations`, whose ranges a user's films do not know.
"""

import dataclasses

import cv2
import numpy as np

from r2c_gan import files
from r2c_gan.errors import UserError

FORMAT = 1
OPERATIONS = ("blur", "tone", "tone_2", "veil", "noise", "low_resolution", "jpeg", "grid")
WIDE = 1 / 6  # of the side: the blur of the veil
SHRUNK = 32  # pixels at which so wide a blur is computed
# Name: (transform, where the fit begins, its first step). Probabilities are logistic functions of what is fitted.
PARAMETERS = {
    "blur.probability": ("logistic", -0.8, 1.0),
    "blur.width": ("exp", np.log(0.6), 0.5),
    "blur.width_spread": ("exp", np.log(0.4), 0.4),
    "blur.motion": ("logistic", -2.0, 0.7),
    "tone.probability": ("logistic", -1.2, 1.0),
    "tone.gamma": ("real", 0.0, 0.2),
    "tone.gamma_spread": ("exp", np.log(0.2), 0.5),
    "tone.gain": ("real", 0.0, 0.1),
    "tone.gain_spread": ("exp", np.log(0.1), 0.5),
    "tone.offset": ("real", 0.05, 0.1),
    "tone.offset_spread": ("exp", np.log(0.05), 0.5),
    "tone_2.probability": ("logistic", -1.2, 1.0),
    "tone_2.gamma": ("real", 0.0, 0.2),
    "tone_2.gamma_spread": ("exp", np.log(0.2), 0.5),
    "tone_2.gain": ("real", 0.0, 0.1),
    "tone_2.gain_spread": ("exp", np.log(0.1), 0.5),
    "tone_2.offset": ("real", -0.05, 0.1),
    "tone_2.offset_spread": ("exp", np.log(0.05), 0.5),
    "veil.probability": ("logistic", -2.5, 0.7),
    "veil.share": ("real", -1.0, 0.4),
    "veil.share_spread": ("exp", np.log(0.4), 0.4),
    "noise.probability": ("logistic", -0.8, 1.0),
    "noise.strength": ("exp", np.log(0.05), 0.6),
    "noise.strength_spread": ("exp", np.log(0.4), 0.4),
    "noise.dependence": ("real", 0.0, 1.0),
    "noise.correlated": ("logistic", -2.0, 0.7),
    "low_resolution.probability": ("logistic", -2.5, 0.7),
    "low_resolution.factor": ("exp", np.log(0.7), 0.4),
    "low_resolution.factor_spread": ("exp", np.log(0.4), 0.4),
    "jpeg.probability": ("logistic", -2.5, 0.7),
    "jpeg.quality": ("real", -1.2, 0.5),
    "jpeg.quality_spread": ("exp", np.log(0.4), 0.4),
    "grid.probability": ("logistic", -3.0, 0.7),
    "grid.amplitude": ("exp", np.log(0.03), 0.4),
    "grid.amplitude_spread": ("exp", np.log(0.3), 0.4),
}
START = np.array([start for _, start, _ in PARAMETERS.values()])
STEPS = np.array([step for *_, step in PARAMETERS.values()])


@dataclasses.dataclass(frozen=True)
class Degradation:
    """A model of how films go bad. Calling it degrades one film: (image float [H, W] in [0, 1], rng) -> the same.

    Attributes:
        values: dictionary, name of `PARAMETERS` -> value: probabilities in [0, 1], means and spreads (standard
            deviations) as the module says; widths, strengths and amplitudes are medians.
    """

    values: dict

    @classmethod
    def of_vector(cls, vector):
        """From numbers as a fit moves them, one a parameter in the order of `PARAMETERS`."""
        transforms = {"logistic": _logistic, "exp": np.exp, "real": float}
        return cls(
            {
                name: float(transforms[kind](number))
                for (name, (kind, *_)), number in zip(PARAMETERS.items(), vector, strict=True)
            }
        )

    @classmethod
    def load(cls, file):
        """Reads what `data_prep.fit_degradation` wrote.

        Raises:
            UserError: if the file is no such file, or of another version.
        """
        record = files.read_json(file)
        if not isinstance(record, dict) or record.get("format") != FORMAT or "operations" not in record:
            raise UserError(f"{file}: not a file of data_prep.fit_degradation (format {FORMAT})")
        values = {
            f"{operation}.{name}": value
            for operation, numbers in record["operations"].items()
            for name, value in numbers.items()
        }
        if set(values) != set(PARAMETERS):
            raise UserError(f"{file}: has other numbers than this version; fit again")
        return cls(values)

    def record(self):
        """What `load` reads as `operations`: dictionary, operation -> its numbers by name."""
        found = {operation: {} for operation in OPERATIONS}
        for name, value in self.values.items():
            operation, number = name.split(".")
            found[operation][number] = float(f"{value:.5g}")
        return found

    def __call__(self, image, rng):
        return self.degrade(image[None], rng)[0]

    def degrade(self, films, rng):
        """Degrades each film of a batch on its own.

        Args:
            films: float [N, H, W] in [0, 1].
            rng: `numpy.random.Generator`.

        Returns:
            float32 [N, H, W] in [0, 1].
        """
        drawn = self.draw(len(films), rng)
        done = np.empty(films.shape, np.float32)
        for number, film in enumerate(films):
            film = np.ascontiguousarray(film, np.float32)
            for operation in drawn["order"][number]:
                if drawn["applied"][number, operation]:
                    film = _APPLY[OPERATIONS[operation]](film, {key: each[number] for key, each in drawn.items()}, rng)
            done[number] = film
        return done

    def draw(self, count, rng):
        """What happens to each of `count` films, as a dictionary of arrays of that length."""
        v = self.values
        normal = rng.standard_normal((count, 14)).astype(np.float32).T
        uniform = rng.random((count, 6)).astype(np.float32).T
        applied = rng.random((count, len(OPERATIONS))) < [v[f"{name}.probability"] for name in OPERATIONS]

        def spread(name, number):
            return v[name + "_spread"] * normal[number]

        drawn = {
            "order": rng.permuted(np.tile(np.arange(len(OPERATIONS)), (count, 1)), axis=1),
            "applied": applied,
            "blur": v["blur.width"] / 100 * np.exp(spread("blur.width", 0)),
            "motion": uniform[0] < v["blur.motion"],
            "angle": np.pi * uniform[1],
            "veil": _logistic(v["veil.share"] + spread("veil.share", 7)),
            "noise": v["noise.strength"] * np.exp(spread("noise.strength", 8)),
            "dependence": np.full(count, v["noise.dependence"]),
            "correlated": uniform[2] < v["noise.correlated"],
            "factor": 1 + v["low_resolution.factor"] * np.exp(spread("low_resolution.factor", 9)),
            "quality": 100 * _logistic(v["jpeg.quality"] + spread("jpeg.quality", 10)),
            "grid": v["grid.amplitude"] * np.exp(spread("grid.amplitude", 11)),
            "period": 2.2 + 8 * uniform[3] ** 2,
            "phase": 2 * np.pi * uniform[4],
            "vertical": uniform[5] < 0.5,
        }
        for number, name in enumerate(("tone", "tone_2")):
            drawn[f"{name}.gamma"] = np.exp(v[f"{name}.gamma"] + spread(f"{name}.gamma", 1 + 3 * number))
            drawn[f"{name}.gain"] = np.exp(v[f"{name}.gain"] + spread(f"{name}.gain", 2 + 3 * number))
            drawn[f"{name}.offset"] = v[f"{name}.offset"] + spread(f"{name}.offset", 3 + 3 * number)
        return drawn


def _logistic(x):
    return 1 / (1 + np.exp(-x))


def _clip(film):
    return np.clip(film, 0, 1, out=film)


def _blur(film, drawn, rng):
    width = float(min(drawn["blur"], 0.1)) * min(film.shape)
    if drawn["motion"]:
        return cv2.filter2D(film, -1, _line(width, float(drawn["angle"])), borderType=cv2.BORDER_REFLECT)
    return cv2.GaussianBlur(film, (0, 0), max(width, 1e-3), borderType=cv2.BORDER_REFLECT)


def _line(width, angle):
    """Kernel of a movement along a line, Gaussian, of so many pixels' standard deviation."""
    half = int(np.ceil(2.5 * width)) + 1
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    # Across, as narrow as a kernel of pixels can be.
    kernel = np.exp(-0.5 * (along / max(width, 0.3)) ** 2 - 0.5 * (across / 0.3) ** 2).astype(np.float32)
    return kernel / kernel.sum()


def _tone(name):
    def apply(film, drawn, rng):
        film = cv2.pow(film, float(np.clip(drawn[f"{name}.gamma"], 0.1, 10)))
        return _clip(film * np.float32(drawn[f"{name}.gain"]) + np.float32(drawn[f"{name}.offset"]))

    return apply


def _veil(film, drawn, rng):
    height, width = film.shape
    small = cv2.resize(film, (SHRUNK, SHRUNK), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), WIDE * SHRUNK, borderType=cv2.BORDER_REFLECT)
    share = np.float32(drawn["veil"])
    return _clip((1 - share) * film + share * cv2.resize(small, (width, height)))


def _noise(film, drawn, rng):
    noise = rng.standard_normal(film.shape, np.float32)
    if drawn["correlated"]:
        noise = cv2.GaussianBlur(noise, (3, 3), 0.7) * np.float32(2.0)  # about as strong as before
    strength = np.float32(drawn["noise"]) * np.exp(np.float32(drawn["dependence"]) * (film - np.float32(0.5)))
    return _clip(film + strength * noise)


def _low_resolution(film, drawn, rng):
    height, width = film.shape
    factor = float(min(drawn["factor"], 8))
    small = (max(round(width / factor), 1), max(round(height / factor), 1))
    return cv2.resize(cv2.resize(film, small, interpolation=cv2.INTER_AREA), (width, height))


def _jpeg(film, drawn, rng):
    pixels = np.round(film * 255).astype(np.uint8)
    _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, int(np.clip(drawn["quality"], 1, 100))])
    return cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255


def _grid(film, drawn, rng):
    vertical = bool(drawn["vertical"])
    lines = np.sin(2 * np.pi * np.arange(film.shape[vertical]) / drawn["period"] + drawn["phase"])
    lines = (drawn["grid"] * lines).astype(np.float32)
    return _clip(film + (lines[None] if vertical else lines[:, None]))


_APPLY = {
    "blur": _blur,
    "tone": _tone("tone"),
    "tone_2": _tone("tone_2"),
    "veil": _veil,
    "noise": _noise,
    "low_resolution": _low_resolution,
    "jpeg": _jpeg,
    "grid": _grid,
}
