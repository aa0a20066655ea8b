"""Pairs of a poor film and its good one, for training a restorer alone: found on disk, or made of good films.

A sample is a function of (seed, epoch, index), as in `data.streams.UnpairedStream`, so that a resumed training goes on
as it would have. Where films are degraded on the fly, every epoch has fresh degradations.
"""

import dataclasses

import keras
import numpy as np

from r2c_gan.data import images
from r2c_gan.data.datasets import CLASSES
from r2c_gan.errors import UserError

MARGIN = 1 / 16  # of the side: how far a film that is degraded afterwards may be shifted


@dataclasses.dataclass(frozen=True)
class Source:
    """Where pairs come from.

    Attributes:
        domain: a `data.datasets.Domain`: the films that are degraded, or that are poor already.
        references: a `data.datasets.Domain` of the good films of `domain`, in its order, or None.
        degrade: function (image float32 [H, W] in [0, 1], rng) -> image, which makes a film of `domain` poor, or None.
            With neither references nor this, the films have a class and no good film: they teach the head alone.
        weight: how many samples an epoch takes from here, in units of the number of films.
    """

    domain: object
    references: object = None
    degrade: object = None
    weight: float = 1.0


class PairSequence(keras.utils.PyDataset):
    """Batches of an epoch: (poor [N, S, S, C], (good [N, S, S, C], one-hot label [N, 2], paired [N, 1])).

    Images are float32 in [-1, 1], as they are on disk (of side `size`; others are resized), mirrored left to right with
    probability 1/2. Films that are degraded on the fly are first shifted by up to `MARGIN`, and left as they are with
    probability `clean_share`, so that a restorer learns to leave good films alone. `paired` is 0 where there is no good
    film.

    Args:
        sources: list of `Source`.
        size: side of the images, in pixels.
        channels: 1 or 3.
        batch_size: samples a batch; what is left over at the end of an epoch is dropped.
        clean_share: share of films to be degraded that are not.
        seed: non-negative integer.

    Raises:
        UserError: if there are fewer samples than `batch_size`.
        ImageError: if a film cannot be read.
    """

    def __init__(self, sources, size, channels=1, batch_size=8, clean_share=0.1, seed=0, workers=1):
        super().__init__(workers=workers, use_multiprocessing=False)
        self.sources, self.size, self.channels = sources, size, channels
        self.batch_size, self.clean_share, self.seed = batch_size, clean_share, seed
        self.epoch = 0
        self.counts = [round(source.weight * len(source.domain)) for source in sources]
        self.steps = sum(self.counts) // batch_size
        if not self.steps:
            raise UserError(f"--batch_size={batch_size}: must be at most the {sum(self.counts)} samples of an epoch")
        self._films = {}
        self._orders = {}

    def __len__(self):
        return self.steps

    def __getitem__(self, step):
        samples = [self.sample(self.epoch, step * self.batch_size + place) for place in range(self.batch_size)]
        poor, good, labels, paired = (np.stack(parts) for parts in zip(*samples, strict=True))
        return poor, (good, labels, paired)

    def on_epoch_end(self):
        self.epoch += 1

    def sample(self, epoch, index):
        """Sample `index` of an epoch: (poor, good, label float32 [2], paired float32 [1])."""
        source, film = self._order(epoch)[index]
        given = self.sources[source]
        rng = np.random.default_rng([self.seed, epoch, index])
        good = self._film((given.references or given.domain).files[film])
        poor = self._film(given.domain.files[film]) if given.references else good
        if rng.integers(2):
            poor, good = poor[:, ::-1], good[:, ::-1]
        if given.degrade:
            good = poor = _shifted(good, rng)
            if rng.random() >= self.clean_share:
                gray = (good[..., 0] + 1) / 2
                poor = np.repeat(2 * given.degrade(gray, rng)[..., None] - 1, self.channels, -1)
        label = np.eye(len(CLASSES), dtype=np.float32)[given.domain.labels[film]]
        paired = np.float32([bool(given.references or given.degrade)])
        return poor.astype(np.float32), good.astype(np.float32), label, paired

    def _order(self, epoch):
        if epoch not in self._orders:
            rng = np.random.default_rng([self.seed, 1 << 20, epoch])
            chosen = []
            for number, (source, count) in enumerate(zip(self.sources, self.counts, strict=True)):
                films = np.concatenate([
                    rng.permutation(len(source.domain)) for _ in range(-(-count // max(len(source.domain), 1)))
                ])[:count]  # fmt: skip
                chosen += [(number, film) for film in films]
            self._orders = {epoch: [chosen[place] for place in rng.permutation(len(chosen))]}
        return self._orders[epoch]

    def _film(self, file):
        if file not in self._films:
            image = images.read_image(file, self.channels)
            if image.shape[:2] != (self.size, self.size):
                image = np.clip(images.resize(image, self.size, self.size), -1, 1)
            self._films[file] = image.astype(np.float16)
        return self._films[file].astype(np.float32)


def _shifted(image, rng):
    """The image, shifted by whole pixels; what comes in is mirrored. Nothing is smoothed."""
    margin = round(MARGIN * min(image.shape[:2]))
    top, left = rng.integers(0, 2 * margin + 1, 2)
    padded = np.pad(image, [(margin, margin), (margin, margin), (0, 0)], mode="reflect")
    return padded[top : top + image.shape[0], left : left + image.shape[1]]
