"""Perceptual hashes of radiographs, and which of them are near-duplicates: the same film, resized or saved again."""

import cv2
import numpy as np

HASH_BITS = 256
NEAR = 40
"""Hashes that differ in at most this many of 256 bits belong to near-duplicates.

Measured on 1,565 chest radiographs of four collections: a copy at a third of the size, as a JPEG of quality 30, with
another gamma (0.7 to 1.5), local equalisation, a 1% crop or turned by 1 degree differs in at most 40 bits; different
films differ in 64 or more, but for pairs of one patient. The common 64-bit hash cannot tell them: chests are alike.
"""

_SIDE = 64
_FREQUENCIES = 16
_CELLS = 2**22  # distances in memory at a time
_BLOCK = 2**16


def perceptual_hash(image):
    """The DCT hash of an image: which of its 16 x 16 lowest frequencies are above their median.

    Size, compression, brightness and contrast change few of the bits; another chest changes about half.

    Args:
        image: float [H, W].

    Returns:
        uint8 [32], 256 bits.
    """
    small = cv2.resize(np.ascontiguousarray(image, np.float32), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    frequencies = cv2.dct(small)[:_FREQUENCIES, :_FREQUENCIES].ravel()
    return np.packbits(frequencies > np.median(frequencies))


def distance(first, second):
    """The number of bits in which two hashes differ."""
    return int(np.bitwise_count(first ^ second).sum())


def near_pairs(hashes, most=NEAR):
    """The pairs of hashes that differ in at most `most` bits.

    Every pair is compared: the time grows with the square of N, the memory with N.

    Args:
        hashes: uint8 [N, 32].
        most: bits.

    Returns:
        int64 [pairs, 2], first index below second, sorted.
    """
    hashes = np.ascontiguousarray(hashes, np.uint8).reshape(-1, HASH_BITS // 8)
    matcher = cv2.BFMatcher(cv2.NORM_HAMMING)
    rows = max(1, _CELLS // max(1, min(len(hashes), _BLOCK)))
    pairs = []
    for start in range(0, len(hashes), rows):
        for other in range(start, len(hashes), _BLOCK):
            matches = matcher.radiusMatch(hashes[start : start + rows], hashes[other : other + _BLOCK], most + 0.5)
            found = ((start + match.queryIdx, other + match.trainIdx) for row in matches for match in row)
            pairs += [(first, second) for first, second in found if first < second]
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)


def to_hex(phash):
    """A hash as the manifest holds it: 64 hexadecimal digits."""
    return phash.tobytes().hex()


def from_hex(text):
    """The inverse of `to_hex`.

    Raises:
        ValueError: if the text is no hash.
    """
    phash = np.frombuffer(bytes.fromhex(text), np.uint8)
    if phash.size != HASH_BITS // 8:
        raise ValueError(f"a hash has {HASH_BITS // 4} hexadecimal digits, not {len(text)}")
    return phash
