"""How much white noise is in an image."""

import cv2
import numpy as np

NORMAL_MEDIAN = 0.6745  # of |x|, x standard normal


def noise_variance(image):
    """Variance of white noise, a channel: Immerkaer 1996, with a median in place of the mean.

    The kernel does not answer to planes, and its weights keep the variance of white noise. The median does not answer
    to edges as long as they are in less than half of the image.

    Args:
        image: float [H, W, C].

    Returns:
        float [C], in the square of the image's unit.
    """
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32) / 6
    image = np.asarray(image, np.float32)
    response = cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT).reshape(image.shape)
    return (np.median(np.abs(response), axis=(0, 1)) / NORMAL_MEDIAN) ** 2
