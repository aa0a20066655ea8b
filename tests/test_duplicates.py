"""Perceptual hashes: what leaves them alike, what does not, and every pair found."""

import cv2
import numpy as np
import pytest

from data_prep import duplicates
from data_prep.duplicates import NEAR, distance, from_hex, near_pairs, perceptual_hash, to_hex


def film(seed, size=160):
    """A smooth image with detail at all of the hash's frequencies, float32 [H, W] in [0, 1], unlike another seed's."""
    rng = np.random.default_rng(seed)
    image = np.zeros((size, size + 20))
    for cells, weight in ((4, 1.0), (8, 0.5), (16, 0.25), (32, 0.12)):
        image += weight * cv2.resize(rng.standard_normal((cells, cells)), image.shape[::-1])
    image = (image - image.min()) / np.ptp(image)
    return image.astype(np.float32)


def as_jpeg(image, quality):
    encoded = cv2.imencode(".jpg", np.rint(255 * image).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE).astype(np.float32) / 255


COPIES = {
    "half the size": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "another shape": lambda image: cv2.resize(image, (256, 128)),
    "JPEG": lambda image: as_jpeg(image, 30),
    "gamma": lambda image: image**1.4,
    "darker": lambda image: 0.5 * image,
    "noise": lambda image: image + np.random.default_rng(0).normal(0, 0.03, image.shape).astype(np.float32),
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_a_copy_is_near(copy):
    distances = [distance(perceptual_hash(film(seed)), perceptual_hash(copy(film(seed)))) for seed in range(10)]
    assert max(distances) <= NEAR, distances


def test_other_films_are_far():
    hashes = [perceptual_hash(film(seed)) for seed in range(20)]
    distances = [distance(hashes[i], hashes[j]) for i in range(20) for j in range(i)]
    assert min(distances) > NEAR
    assert 100 < np.mean(distances) < 140  # half of the bits


def test_contrast_and_brightness_change_no_bit():
    image = film(1)
    np.testing.assert_array_equal(perceptual_hash(image), perceptual_hash(0.25 * image + 0.5))


def test_the_hash_has_as_many_ones_as_zeros():
    assert np.unpackbits(perceptual_hash(film(2))).sum() == duplicates.HASH_BITS // 2


def test_a_blank_image_has_a_hash():
    assert perceptual_hash(np.zeros((40, 40), np.float32)).shape == (32,)


def test_distance_counts_bits():
    first = np.zeros(32, np.uint8)
    second = first.copy()
    second[[0, 31]] = 0b11, 0b10000001
    assert distance(first, second) == 4
    assert distance(first, first) == 0


@pytest.mark.parametrize("blocks", [None, (16, 8)], ids=["one block", "many blocks"])
def test_near_pairs_are_those_of_a_full_comparison(monkeypatch, blocks):
    if blocks:
        monkeypatch.setattr(duplicates, "_CELLS", blocks[0])
        monkeypatch.setattr(duplicates, "_BLOCK", blocks[1])
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (60, 256), dtype=np.uint8)
    for copy, (original, flips) in {59: (0, 40), 30: (29, 0), 31: (29, 41), 5: (40, 12)}.items():
        bits[copy] = bits[original]
        bits[copy, rng.permutation(256)[:flips]] ^= 1
    differing = (bits[:, None] != bits[None]).sum(-1)
    expected = [(i, j) for i in range(60) for j in range(i + 1, 60) if differing[i, j] <= NEAR]
    assert (0, 59) in expected
    assert (29, 31) not in expected
    assert [tuple(pair) for pair in near_pairs(np.packbits(bits, axis=1))] == expected


def test_near_pairs_of_nothing():
    assert near_pairs(np.zeros((0, 32), np.uint8)).shape == (0, 2)
    assert near_pairs(np.zeros((1, 32), np.uint8)).shape == (0, 2)


def test_hex_round_trip_and_no_hash():
    phash = perceptual_hash(film(3))
    assert len(to_hex(phash)) == 64
    np.testing.assert_array_equal(from_hex(to_hex(phash)), phash)
    for text in ("00", "not hexadecimal"):
        with pytest.raises(ValueError):
            from_hex(text)
