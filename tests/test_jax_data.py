"""The stream of batches that needs no TensorFlow against the one by tf.data."""

import itertools

import numpy as np
import pytest

from r2c_gan.data.datasets import read_domain
from r2c_gan.data.images import ImageError
from r2c_gan.data.streams import UnpairedStream


@pytest.fixture
def stream(datasets_dir):
    domains = [read_domain(datasets_dir / name) for name in ("trainA", "trainB")]
    return UnpairedStream(*domains, load_size=20, crop_size=16, channels=1, batch_size=2, seed=3)


def assert_same(batch, other):
    for pair, others in zip(batch, other, strict=True):
        for array, expected in zip(pair, others, strict=True):
            assert array.dtype == expected.dtype == np.float32
            np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("initial_step", [0, 4])
def test_the_same_batches_in_the_same_order(stream, initial_step):
    expected = list(stream.dataset(3, initial_step).as_numpy_iterator())
    batches = list(stream.batches(3, initial_step))
    assert len(batches) == 9 - initial_step
    for batch, other in zip(batches, expected, strict=True):
        assert_same(batch, other)
    assert not np.array_equal(batches[0][0][0], batches[3][0][0])  # another epoch, another order


def test_the_shares_of_processes_make_up_the_batch(stream):
    shares = [stream.batches(1, 0, (part, 2)) for part in range(2)]
    for whole, *parts in zip(stream.batches(1), *shares, strict=True):
        joined = tuple(tuple(map(np.concatenate, zip(*pairs, strict=True))) for pairs in zip(*parts, strict=True))
        assert_same(joined, whole)


def test_reading_runs_ahead_but_not_away(stream, monkeypatch):
    read = []
    sample = stream.sample
    monkeypatch.setattr(stream, "sample", lambda *where: read.append(where) or sample(*where))
    batches = stream.batches(1000)
    list(itertools.islice(batches, 2))
    batches.close()
    assert 8 <= len(read) < 400  # of 12000


def test_a_broken_file_is_named(stream, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(stream.domains[0].files[0].read_bytes()[:-20])
    domain = type(stream.domains[0])(tmp_path, (broken,), np.zeros(1, np.int64))
    stream.domains = (domain, stream.domains[1])
    with pytest.raises(ImageError, match=r"broken\.png: truncated"):
        list(stream.batches(1))
