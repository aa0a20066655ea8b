"""Labelled lists of files -> streams of batches, by tf.data or by threads.

What a training stream yields is a function of (seed, epoch, index) alone, so a run that is resumed at an epoch sees
what it would have seen without the interruption.
"""

import collections
import concurrent.futures
import functools
import os

import numpy as np

from r2c_gan.data import images
from r2c_gan.data.labels import CLASSES
from r2c_gan.data.window import Window
from r2c_gan.errors import UserError


class UnpairedStream:
    """The training samples of two domains, each a function of (seed, epoch, index).

    An epoch passes once over the longer domain, in an order of its own, while the shorter one cycles, reordered at
    each cycle. Every image is resized to `load_size`, cropped at random to `crop_size` and mirrored left to right with
    probability 1/2.

    Args:
        domain_a, domain_b: the `Domain`s.
        load_size, crop_size: side of the resized image and of the crop, in pixels.
        channels: 1 or 3.
        batch_size: images a domain and step; what is left over at the end of an epoch is dropped.
        seed: non-negative integer.
        window: which stored values become black and white, a `Window` or its text.

    Raises:
        UserError: if a size does not fit.
    """

    def __init__(self, domain_a, domain_b, load_size=286, crop_size=256, channels=3, batch_size=1, seed=0,
                 window="auto"):  # fmt: skip
        longest = max(len(domain_a), len(domain_b))
        if not 1 <= crop_size <= load_size:
            raise UserError(f"--crop_size={crop_size}: must be from 1 to --load_size={load_size}")
        if not 1 <= batch_size <= longest:
            raise UserError(f"--batch_size={batch_size}: must be from 1 to the {longest} images of the longer domain")
        self.domains = (domain_a, domain_b)
        self.load_size, self.crop_size, self.channels = load_size, crop_size, channels
        self.batch_size, self.seed, self.window = batch_size, seed, Window.parse(window)
        self.steps_per_epoch = longest // batch_size
        self.error = None

    def sample(self, domain, epoch, index):
        """Sample `index` of an epoch: (image float32 [crop, crop, channels] in [-1, 1], one-hot label float32 [2]).

        Args:
            domain: 0 for A, 1 for B.
            epoch, index: from 0; `index` below `steps_per_epoch * batch_size`.
        """
        files = self.domains[domain]
        cycle, place = divmod(index, len(files))
        chosen = self._order(domain, epoch, cycle)[place]
        rng = np.random.default_rng([self.seed, domain, epoch, index])
        image = images.read_image(files.files[chosen], self.channels, self.window)
        image = images.resize(image, self.load_size, self.load_size)
        top, left = rng.integers(0, self.load_size - self.crop_size + 1, 2)
        image = image[top : top + self.crop_size, left : left + self.crop_size]
        if rng.integers(2):
            image = image[:, ::-1]
        label = np.eye(len(CLASSES), dtype=np.float32)[files.labels[chosen]]
        return np.clip(image, -1, 1).astype(np.float32), label

    @functools.lru_cache(maxsize=8)  # noqa: B019 -- a stream lives as long as its run
    def _order(self, domain, epoch, cycle):
        return np.random.default_rng([self.seed, 2 + domain, epoch, cycle]).permutation(len(self.domains[domain]))

    def dataset(self, epochs, initial_step=0, domains=(0, 1)):
        """The batches of all epochs, from step `initial_step` on.

        Args:
            epochs: the last epoch, from 1.
            initial_step: steps to leave out.
            domains: which of the two domains to read, 0 for A and 1 for B.

        Returns:
            A `tf.data.Dataset` of known cardinality, epochs * steps_per_epoch - initial_step, of
            ((image_a, label_a), (image_b, label_b)): images float32 [N, crop, crop, channels], labels one-hot [N, 2].
            A file that cannot be read ends the iteration with a `tf.errors.OpError`; `error` then holds the reason.
        """
        import tensorflow as tf

        per_epoch = self.steps_per_epoch * self.batch_size

        def read(number):
            epoch, index = divmod(int(number), per_epoch)
            try:
                return tuple(part for domain in domains for part in self.sample(domain, epoch, index))
            except Exception as error:
                self.error = error  # TensorFlow passes on the text alone
                raise

        def load(number):
            # Declared stateless, which it is, so that deterministic mode keeps the calls parallel.
            parts = tf.numpy_function(
                read, [number], (tf.float32,) * 2 * len(domains), stateful=False, name="read_images"
            )
            shape = (self.crop_size, self.crop_size, self.channels)
            return tuple(
                (tf.ensure_shape(image, shape), tf.ensure_shape(label, (len(CLASSES),)))
                for image, label in zip(parts[::2], parts[1::2], strict=True)
            )

        numbers = tf.data.Dataset.range(initial_step * self.batch_size, epochs * per_epoch)
        return (
            numbers.map(load, num_parallel_calls=os.cpu_count() or 1, deterministic=True)
            .batch(self.batch_size, drop_remainder=True)
            .prefetch(2)
            .with_options(untuned())
        )

    def batches(self, epochs, initial_step=0, share=(0, 1)):
        """What `dataset` yields, as NumPy arrays that threads read ahead; it needs no TensorFlow.

        Args:
            epochs, initial_step: as in `dataset`.
            share: (k, n): only the k-th (from 0) of n equal shares of each batch, for n processes.

        Yields:
            ((image_a, label_a), (image_b, label_b)), in order.

        Raises:
            ImageError: when it comes to a file that cannot be decoded.
        """
        part, parts = share
        size = self.batch_size // parts
        threads = os.cpu_count() or 1
        waiting = collections.deque()
        with concurrent.futures.ThreadPoolExecutor(threads) as readers:
            try:
                for step in range(initial_step, epochs * self.steps_per_epoch):
                    epoch, rest = divmod(step, self.steps_per_epoch)
                    first = rest * self.batch_size + part * size
                    samples = [
                        [readers.submit(self.sample, domain, epoch, first + place) for place in range(size)]
                        for domain in (0, 1)
                    ]
                    waiting.append(samples)
                    if len(waiting) > max(2, threads // size):
                        yield _stacked(waiting.popleft())
                while waiting:
                    yield _stacked(waiting.popleft())
            finally:
                readers.shutdown(wait=False, cancel_futures=True)


def untuned():
    """Options without automatic tuning, whose thread is waited for at the end, up to a minute after a long training."""
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return options


def _stacked(domains):
    """The batch of the samples that are being read, domain by domain."""
    pairs = [zip(*(sample.result() for sample in samples), strict=True) for samples in domains]
    return tuple((np.stack(pictures), np.stack(labels)) for pictures, labels in pairs)


def read_batches(files, size, channels, batch_size, window="auto"):
    """Reads images for evaluation: resized to `size` x `size`, without augmentation, in order; `window` as elsewhere.

    Yields:
        float32 [n, size, size, channels] in [-1, 1], n = batch_size but for the last.

    Raises:
        ImageError: if a file cannot be decoded.
    """
    for start in range(0, len(files), batch_size):
        batch = [images.read_image(file, channels, window) for file in files[start:][:batch_size]]
        batch = [images.resize(image, size, size) for image in batch]
        yield np.clip(np.stack(batch), -1, 1).astype(np.float32)
