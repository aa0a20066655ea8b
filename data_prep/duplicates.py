"""Perceptual hashes of radiographs, and which of them are near-duplicates: the same film, resized or saved again."""

import cv2
import numpy as np

HASH_BITS = 256
NEAR = 40
"""Two hashes that differ in at most this many of 256 bits are called near-duplicates."""

_SIDE = 64
_FREQUENCIES = 16


def perceptual_hash(image):
    """The DCT hash of an image: which of its 256 lowest frequencies are above their median.

    Size, compression, brightness and contrast change few of the bits; another chest changes about half.

    Args:
        image: float [H, W].

    Returns:
        uint8 [32], 256 bits.
    """
    small = cv2.resize(np.ascontiguousarray(image, np.float32), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    frequencies = cv2.dct(small)[:_FREQUENCIES, :_FREQUENCIES].ravel()
    return np.packbits(frequencies > np.median(frequencies))


def near_pairs(hashes, distance=NEAR):
    """The pairs of hashes that differ in at most `distance` bits.

    Args:
        hashes: uint8 [N, 32].
        distance: bits.

    Returns:
        int64 [pairs, 2], first index below second.
    """
    bits = np.unpackbits(np.asarray(hashes, np.uint8).reshape(-1, HASH_BITS // 8), axis=1).astype(np.float32) * 2 - 1
    pairs = [np.zeros((0, 2), np.int64)]
    block = 1024
    for start in range(0, len(bits), block):
        # The product of two sign vectors counts equal bits less different ones.
        differing = (HASH_BITS - bits[start : start + block] @ bits[start:].T) / 2
        first, second = np.nonzero(differing <= distance)
        upper = first < second
        pairs.append(np.stack([first[upper], second[upper]], axis=1) + start)
    return np.concatenate(pairs)
