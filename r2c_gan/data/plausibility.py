"""How unlike the training films an image is: a warning beside a prediction on what is no chest radiograph.

A network gives a probability of COVID-19 for a photograph too. So every training describes its films by two groups of
features, and stores their mean and covariance in `plausibility.npz`, which goes along with the weights:

    structure   where edges lie and which way they face: a histogram of gradient directions in 6 x 6 cells
                (Dalal and Triggs 2005, with signed directions, so that a negative is another thing than a film)
    statistics  how strong edges and fine detail are, how well edges and tones lie as in the mean film, and how far the
                structure lies towards films that are turned, negative or cropped, along Fisher's discriminants

An image's unlikeness is the larger of its two Mahalanobis distances (Lee et al. 2018), each over the distance that
99.5% of held-out films stay below; more than 1 is a warning. Features are taken at 64 x 64 pixels and do not depend on
brightness and contrast, because poor films are what the network is for.
"""

import concurrent.futures
import os
import zipfile
from pathlib import Path

import cv2
import numpy as np

from r2c_gan import files
from r2c_gan.data import dicom, images
from r2c_gan.data.image_limits import ImageError, NotAnImageError
from r2c_gan.errors import UserError

FILE = "plausibility.npz"
FEWEST = 50
"""Films that are needed for a covariance and a threshold."""

MOST = 1500  # films that are read: more would make it slower, and hardly better
QUANTILE = 0.995  # of held-out films, below the threshold
_SIDE, _CELLS, _DIRECTIONS, _TONES = 64, 6, 8, 16
# What training films are changed into, to learn in which direction such images differ from films.
_OTHERS = {
    "turned left": lambda image: np.rot90(image),
    "turned right": lambda image: np.rot90(image, 3),
    "upside down": lambda image: np.rot90(image, 2),
    "negative": lambda image: -image,
    "the middle": lambda image: _part(image, 0.25, 0.25),
    "the lower middle": lambda image: _part(image, 0.5, 0.25),
    "the upper left": lambda image: _part(image, 0, 0),
}
_GROUPS = {"structure": _CELLS**2 * _DIRECTIONS, "statistics": 8 + len(_OTHERS)}
_LARGEST = 4 * 2**20  # bytes of all arrays
MISSING = (
    "the model holds no plausibility.npz (it is older, or was trained on few films): images that are no chest "
    "radiographs are not warned of, but for blank and two-valued ones; see python -m data_prep.fit_plausibility --help"
)


class Plausibility:
    """What the training films look like.

    Args:
        arrays: dictionary: `tones` [256], of the mean film; `discriminants` [structure, others]; and of each group of
            n features, `GROUP_mean` [n] and `GROUP_whitening` [n, n], of which the distance is the length of
            (features - mean) @ whitening; 1 is the threshold.
    """

    def __init__(self, arrays):
        self.arrays = arrays

    def score(self, image):
        """The unlikeness of an image, float [H, W, C] in [-1, 1]: at least 0, more than 1 for a warning."""
        return float(self.distances([describe(image)]).max())

    def distances(self, described):
        """[N, 2], the distance in each group, of a list of what `describe` gives."""
        return np.stack(
            [
                np.linalg.norm((features - self.arrays[f"{name}_mean"]) @ self.arrays[f"{name}_whitening"], axis=1)
                for name, features in _features(described, self.arrays).items()
            ],
            axis=1,
        )

    def save(self, path):
        """Writes the arrays."""
        with files.atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **{name: array.astype(np.float32) for name, array in self.arrays.items()})

    @classmethod
    def load(cls, folder):
        """Reads `plausibility.npz` of a folder; None if it holds none.

        Raises:
            UserError: if it is damaged, or of another kind.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            return None
        shapes = {"tones": (_TONES**2,), "discriminants": (_GROUPS["structure"], len(_OTHERS))}
        for name, size in _GROUPS.items():
            shapes |= {f"{name}_mean": (size,), f"{name}_whitening": (size, size)}
        try:
            with zipfile.ZipFile(path) as archive:
                if sum(member.file_size for member in archive.infolist()) > _LARGEST:
                    raise ValueError("too large")
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            sound = {name: array.shape for name, array in arrays.items()} == shapes and all(
                array.dtype == np.float32 and np.isfinite(array).all() for array in arrays.values()
            )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zipfile.zlib.error) as error:
            raise UserError(f"{path}: damaged ({error}); fit it again: python -m data_prep.fit_plausibility") from error
        if not sound:
            raise UserError(f"{path}: of another kind or version; fit it again: python -m data_prep.fit_plausibility")
        return cls(arrays)


def judge(plausibility, image):
    """What is to be said of an image before a prediction on it is believed.

    Args:
        plausibility: a `Plausibility`, or None if the model has none.
        image: float [H, W, C] in [-1, 1].

    Returns:
        (its unlikeness or None, a warning or None).
    """
    score = None if plausibility is None else plausibility.score(image)
    low, high = image.min(), image.max()
    if low == high:
        return score, "blank: all pixels have one value"
    if (np.minimum(image - low, high - image) <= 0.05 * (high - low)).mean() > 0.98:
        return score, "of two gray values, as a mask or a drawing, not a radiograph"
    if score is not None and score > 1:
        return score, f"unlike the films that the model was trained on (unlikeness {score:.2f}, usual are 0 to 1)"
    return score, None


def read_film(path, channels=None, window="full", force=False):
    """`images.read_file` of what may be a chest radiograph.

    Args:
        path, channels, window: as of `images.read_file`.
        force: whether a DICOM file is read whatever its header says that it shows.

    Returns:
        An `images.ImageFile`.

    Raises:
        NotAnImageError: if the header of a DICOM file says that it shows something else, or it holds no image.
        ImageError: if it cannot be read.
    """
    try:
        file = images.read_file(path, channels, window)
    except NotAnImageError:
        raise
    except ImageError:
        if not force:
            _check_header(path, _header(path))  # of CT in several frames, say that it is CT
        raise
    if not force:
        _check_header(path, file.dicom)
    return file


def _header(path):
    """What a DICOM file says that it shows; None if it is none or cannot be parsed."""
    if not os.path.isfile(path) or not images.is_dicom(path):
        return None
    try:
        return dicom.header(Path(path).read_bytes())
    except Exception:  # the file's own error has been raised
        return None


def _check_header(path, header):
    if header is None:
        return
    reason = dicom.unlike_chest_radiograph(header)
    if reason is not None:
        raise NotAnImageError(f"{path}: by its header no chest radiograph: {reason}; --force takes it all the same")


def describe(image):
    """The features that need no training films, of an image float [H, W, C] in [-1, 1].

    Returns:
        (structure [288], tones [256], strengths [5]), float32.
    """
    small = images.resize(images.with_channels(np.asarray(image, np.float32), 1), _SIDE, _SIDE)[..., 0]
    low, high = np.percentile(small, [1, 99])
    small = np.clip((small - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)
    return _directions(cv2.GaussianBlur(small, (0, 0), 1)), _ranks(small), _strengths(small)


def _gradient(image):
    return np.diff(image, axis=1)[:-1], np.diff(image, axis=0)[:, :-1]


def _directions(image):
    """Square roots of the share of each direction in each cell; a gradient counts for the two directions beside it."""
    across, down = _gradient(image)
    angle = np.arctan2(down, across) * (_DIRECTIONS / (2 * np.pi))
    lower = np.floor(angle)
    size = np.hypot(across, down)
    cells = []
    for direction in range(_DIRECTIONS):
        share = np.where(lower % _DIRECTIONS == direction, 1 - (angle - lower), 0)
        share += np.where((lower + 1) % _DIRECTIONS == direction, angle - lower, 0)
        cells.append(cv2.resize((share * size).astype(np.float32), (_CELLS, _CELLS), interpolation=cv2.INTER_AREA))
    cells = np.stack(cells)
    return np.sqrt(cells / (cells.sum() + 1e-6)).ravel()


def _ranks(image):
    """Where the dark and the bright lie, whatever the tone curve: the mean rank of the pixels of each block."""
    _, place, counts = np.unique(image, return_inverse=True, return_counts=True)
    ranks = ((np.cumsum(counts) - counts / 2) / image.size)[place].reshape(image.shape).astype(np.float32)
    return cv2.resize(ranks, (_TONES, _TONES), interpolation=cv2.INTER_AREA).ravel()


def _strengths(image):
    """Logarithms of the detail of three octaves, and of the usual and the strongest gradients."""
    found = []
    octave = image
    for _ in range(3):
        found.append((octave - cv2.GaussianBlur(octave, (0, 0), 1)).std() + 2e-3)
        octave = cv2.resize(octave, (octave.shape[1] // 2, octave.shape[0] // 2), interpolation=cv2.INTER_AREA)
    found += list(np.quantile(np.hypot(*_gradient(image)), [0.5, 0.98]) + 1e-3)
    return np.log(np.array(found, np.float32))


def _features(described, templates):
    structure, tones, strengths = (np.stack(part).astype(np.float64) for part in zip(*described, strict=True))
    likeness = [
        _correlations(structure, templates["structure_mean"]),
        _correlations(tones, templates["tones"]),
        np.log(structure.std(axis=1) + 1e-4),
    ]
    towards = (structure - templates["structure_mean"]) @ templates["discriminants"]
    return {"structure": structure, "statistics": np.column_stack([strengths, *likeness, towards])}


def _correlations(rows, template):
    rows, template = rows - rows.mean(axis=1, keepdims=True), template - template.mean()
    return rows @ template / np.sqrt((rows**2).sum(axis=1) * (template**2).sum() + 1e-9)


def describe_film(image, number):
    """What `fit` needs of a film, float [H, W, C] in [-1, 1]: `describe` of it, of its mirror image, of another image.

    The training mirrors every other sample. Which other image it is, of `_OTHERS`, is decided by the film's number.
    """
    change = list(_OTHERS.values())[number % len(_OTHERS)]
    return [describe(image), describe(image[:, ::-1]), describe(change(image))]


def _part(image, top, left):
    """Half the height and half the width, from a share of each on."""
    height, width = image.shape[:2]
    rows, columns = max(1, height // 2), max(1, width // 2)
    return image[int(top * height) :][:rows, int(left * width) :][:, :columns]


def fit(films):
    """Fits the training films.

    Args:
        films: list of what `describe_film` gives of films 0, 1, ...

    Returns:
        A `Plausibility`; None for fewer than `FEWEST` films.
    """
    if len(films) < FEWEST:
        return None
    numbers = np.arange(len(films))
    held_out = np.zeros((len(films), len(_GROUPS)))
    for fold in range(5):
        out = numbers % 5 == fold
        held_out[out] = Plausibility(_fit(films, numbers[~out])).distances(
            [films[number][0] for number in numbers[out]]
        )
    thresholds = np.quantile(held_out, QUANTILE, axis=0)
    thresholds *= np.quantile((held_out / thresholds).max(axis=1), QUANTILE)
    arrays = _fit(films, numbers)
    for name, threshold in zip(_GROUPS, thresholds, strict=True):
        arrays[f"{name}_whitening"] /= threshold
    return Plausibility({name: array.astype(np.float32) for name, array in arrays.items()})


def _fit(films, numbers):
    views = [view for number in numbers for view in films[number][:2]]
    structure, tones, _ = (np.stack(part) for part in zip(*views, strict=True))
    arrays = {"tones": tones.mean(axis=0)}
    arrays["structure_mean"], arrays["structure_whitening"] = _whitening(structure)
    others = [
        np.mean([films[number][2][0] for number in numbers if number % len(_OTHERS) == kind], axis=0)
        for kind in range(len(_OTHERS))
    ]
    whitening = arrays["structure_whitening"]
    apart = (np.stack(others) - arrays["structure_mean"]) @ whitening
    arrays["discriminants"] = whitening @ (apart / np.linalg.norm(apart, axis=1, keepdims=True)).T
    statistics = _features(views, arrays)["statistics"]
    arrays["statistics_mean"], arrays["statistics_whitening"] = _whitening(statistics)
    return arrays


def _whitening(features):
    """Mean [n] and whitening [n, n] of features [N, n], with a covariance shrunken as Ledoit and Wolf (2004) do."""
    from sklearn.covariance import LedoitWolf

    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-3
    precision = np.linalg.inv(LedoitWolf().fit((features - mean) / scale).covariance_)
    return mean, np.linalg.cholesky(precision) / scale[:, None]


def fit_files(domains, window="auto", readers=2, progress=lambda iterable: iterable):
    """`fit` of the films of training domains, at most `MOST`, spread evenly over their files.

    Args:
        domains: list of sequences of files.
        window: which stored values become black and white, a `Window` or its text.
        readers: threads that read.
        progress: wraps the iterable of films, for a progress bar.

    Returns:
        A `Plausibility`; None for fewer than `FEWEST` films.

    Raises:
        ImageError: if a file cannot be read.
    """
    chosen = [file for domain in domains for file in domain]
    if len(chosen) < FEWEST:
        return None
    chosen = [chosen[index] for index in np.unique(np.linspace(0, len(chosen) - 1, MOST).round().astype(int))]

    def described(number):
        return describe_film(images.read_image(chosen[number], 1, window), number)

    with concurrent.futures.ThreadPoolExecutor(readers) as pool:
        return fit(list(progress(pool.map(described, range(len(chosen))))))
