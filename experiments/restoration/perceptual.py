"""HaarPSI, a measure of restoration that agrees with readers better than PSNR and SSIM do.

Reisenhofer, Bosse, Kutyniok and Wiegand, "A Haar wavelet-based perceptual similarity index for image quality
assessment", Signal Processing: Image Communication 61 (2018) 33-43, arXiv 1607.06140. Of the usual measures it ranked
chest radiographs most like experts did (Breger et al. 2024, arXiv 2405.19224).
"""

import cv2
import numpy as np

C = 30.0  # of the similarity of two coefficients, for gray values 0 to 255
ALPHA = 4.2  # slope of the logistic function
SCALES = 3  # the first two are compared, the third says where it matters

_GRAY_RANGE = 255.0  # that C and ALPHA were fitted on


def haarpsi(reference, image, limits=(-1.0, 1.0), subsample=True, c=C, alpha=ALPHA):
    """The Haar wavelet-based perceptual similarity index of gray images, 1 for equal ones.

    With g_j the Haar wavelet of scale j (2^j x 2^j pixels, half of them -2^-j, half 2^-j), horizontal (k = 1) or
    vertical (k = 2), f and h the two images in 0..255, and all operations but the convolution * pixel by pixel:

        similarity_k = 1/2 sum over j = 1, 2 of (2 |g_j*f| |g_j*h| + C) / (|g_j*f|^2 + |g_j*h|^2 + C)
        weight_k     = max(|g_3*f|, |g_3*h|)
        logistic(x)  = 1 / (1 + exp(-alpha x))
        HaarPSI      = logistic^-1(sum over k, pixels of logistic(similarity_k) weight_k / sum of weight_k) ^ 2

    Outside of the images there are zeros (black), as in the authors' program.

    Args:
        reference: the clean image, float [H, W] or [H, W, 1], within `limits`.
        image: the image to judge, of the same shape.
        limits: lowest and highest possible value; they become 0 and 255.
        subsample: take means of 2x2 pixels first, the authors' allowance for the distance of a viewer. An image of 64
            pixels then has 32.
        c, alpha: the two constants of the measure.

    Returns:
        A float from 0 to 1.

    Raises:
        ValueError: if the shapes differ, are not those of gray images, or a value is not finite.
    """
    reference, image = np.asarray(reference, np.float64), np.asarray(image, np.float64)
    if reference.shape != image.shape or not reference.size or reference.shape[2:] not in ((), (1,)):
        raise ValueError(f"two gray images [H, W] or [H, W, 1] of one shape needed: {reference.shape}, {image.shape}")
    if reference.ndim < 2 or not (np.isfinite(reference).all() and np.isfinite(image).all()):
        raise ValueError("two images of finite values are needed")
    pair = [_GRAY_RANGE * (array.reshape(array.shape[:2]) - limits[0]) / (limits[1] - limits[0])
            for array in (reference, image)]  # fmt: skip
    if subsample:
        pair = [_halve(array) for array in pair]

    total, weights = 0.0, 0.0
    for horizontal in (True, False):
        first, second = ([_response(array, scale, horizontal) for scale in range(1, SCALES + 1)] for array in pair)
        similarity = np.mean(
            [(2 * a * b + c) / (a**2 + b**2 + c) for a, b in zip(first[:-1], second[:-1], strict=True)], axis=0
        )
        weight = np.maximum(first[-1], second[-1])
        total += np.sum(weight / (1 + np.exp(-alpha * similarity)))
        weights += np.sum(weight)
    if not weights:  # two black images
        return 1.0
    mean = total / weights
    return float(min((np.log(mean / (1 - mean)) / alpha) ** 2, 1.0))  # equal images may round to a little more


def _response(image, scale, horizontal):
    """|g_j * f|, [H, W]: differences of the means of neighbouring halves, times the pixels of a half."""
    side = 2**scale
    step = np.concatenate([-np.ones(side // 2), np.ones(side // 2)])
    across, along = (np.ones(side), step) if horizontal else (step, np.ones(side))
    # A kernel of even size has no middle: the pixel left of it (above it), as MATLAB's conv2 has it.
    anchor = (side // 2 - 1, side // 2 - 1)
    response = cv2.sepFilter2D(image, cv2.CV_64F, across, along, anchor=anchor, borderType=cv2.BORDER_CONSTANT)
    return np.abs(response) / side


def _halve(image):
    """Means of 2x2 pixels; beyond an odd last row or column there are zeros."""
    height, width = image.shape
    image = np.pad(image, ((0, height % 2), (0, width % 2)))
    return image.reshape((height + 1) // 2, 2, (width + 1) // 2, 2).mean(axis=(1, 3))
