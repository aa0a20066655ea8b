"""The layers and networks once more, in NumPy and from the formulas: what the tests compare the package with.

Nothing here imports the package. Arrays are [N, H, W, C]; kernels [height, width, in, out], of a transposed convolution
[height, width, out, in]; everything is computed in float64.
"""

import numpy as np

EPSILON = 1e-3  # of the instance normalisation


def pair(value):
    return (value, value) if isinstance(value, int) else value


def pads(size, kernel, stride, rate, padding):
    """Pixels put before and after one axis."""
    reach = rate * (kernel - 1)
    if padding == "valid":
        return 0, 0
    if padding == "reflect":
        return reach // 2, reach - reach // 2
    total = max((-(-size // stride) - 1) * stride + reach + 1 - size, 0)
    return total // 2, total - total // 2


def conv(x, kernel, strides=1, padding="valid", dilation=1):
    """A convolution: for each place of the kernel, what it sees times its weights."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    strides, dilation = pair(strides), pair(dilation)
    width = [pads(x.shape[axis + 1], kernel.shape[axis], strides[axis], dilation[axis], padding) for axis in (0, 1)]
    x = np.pad(x, [(0, 0), *width, (0, 0)], mode="reflect" if padding == "reflect" else "constant")
    rows, columns = (
        (x.shape[axis + 1] - dilation[axis] * (kernel.shape[axis] - 1) - 1) // strides[axis] + 1 for axis in (0, 1)
    )
    y = np.zeros((len(x), rows, columns, kernel.shape[-1]))
    for row in range(rows):
        for column in range(columns):
            for i in range(kernel.shape[0]):
                for j in range(kernel.shape[1]):
                    pixel = x[:, row * strides[0] + i * dilation[0], column * strides[1] + j * dilation[1]]
                    y[:, row, column] += pixel @ kernel[i, j]
    return y


def conv_transpose(x, kernel, strides=1, padding="valid", dilation=1):
    """A transposed convolution: each input pixel adds its weighted kernel to the output, `strides` apart."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    strides, dilation = pair(strides), pair(dilation)
    n, height, width, _ = x.shape
    reach = [dilation[axis] * (kernel.shape[axis] - 1) + 1 for axis in (0, 1)]
    y = np.zeros(
        (
            n,
            height * strides[0] + max(reach[0], strides[0]),
            width * strides[1] + max(reach[1], strides[1]),
            kernel.shape[2],
        )
    )
    for row in range(height):
        for column in range(width):
            for i in range(kernel.shape[0]):
                for j in range(kernel.shape[1]):
                    place = row * strides[0] + i * dilation[0], column * strides[1] + j * dilation[1]
                    y[:, place[0], place[1]] += x[:, row, column] @ kernel[i, j].T
    excess = [max(reach[axis] - strides[axis], 0) for axis in (0, 1)]
    start = [side // 2 if padding == "same" else 0 for side in excess]
    size = [x.shape[axis + 1] * strides[axis] + (excess[axis] if padding == "valid" else 0) for axis in (0, 1)]
    return y[:, start[0] : start[0] + size[0], start[1] : start[1] + size[1]]


def operational(x, kernels, bias=0.0, convolution=conv, **arguments):
    """y = b + sum over p of W_p * x^p."""
    return bias + sum(convolution(np.asarray(x, np.float64) ** p, w, **arguments) for p, w in enumerate(kernels, 1))


def instance_norm(x, gamma, beta):
    mean, variance = x.mean((1, 2), keepdims=True), x.var((1, 2), keepdims=True)
    return (x - mean) / np.sqrt(variance + EPSILON) * gamma + beta


def relu(x):
    return np.maximum(x, 0)


def leaky_relu(x):
    return np.where(x > 0, x, 0.2 * x)


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


class Weights:
    """Hands out the weights of a network in the order in which its equations need them.

    The arrays come as the authors list them: q kernels a layer (and q biases), gamma and beta, the head last.
    """

    def __init__(self, arrays, q):
        self.arrays, self.q = [np.asarray(array, np.float64) for array in arrays], q

    def conv(self, x, bias=False, convolution=conv, **arguments):
        kernels, biases = [], []
        for _ in range(self.q):
            kernels.append(self.arrays.pop(0))
            if bias:
                biases.append(self.arrays.pop(0))
        return operational(x, kernels, sum(biases, np.float64(0)), convolution, **arguments)

    def norm(self, x):
        return instance_norm(x, self.arrays.pop(0), self.arrays.pop(0))

    def head(self, features):
        kernel, bias = self.arrays
        return softmax(features.max((1, 2)) @ kernel + bias)


def operational_generator(x, arrays, q):
    w = Weights(arrays, q)
    x = w.norm(w.conv(x, strides=2, padding="same"))
    h = w.norm(w.conv(np.tanh(x), padding="reflect"))
    h = w.norm(w.conv(np.tanh(h), padding="reflect"))
    features = np.tanh(x + h)  # x itself is added, not tanh(x)
    image = np.tanh(w.conv(features, bias=True, convolution=conv_transpose, strides=2, padding="same"))
    return image, w.head(features)


def light_generator(x, arrays):
    w = Weights(arrays, 1)
    x = relu(w.norm(w.conv(x, strides=2, padding="same")))
    features = _residual_block(x, w)
    image = np.tanh(w.conv(features, bias=True, convolution=conv_transpose, strides=2, padding="same"))
    return image, w.head(features)


def convolutional_generator(x, arrays):
    w = Weights(arrays, 1)
    x = relu(w.norm(w.conv(x, padding="reflect")))
    for _ in range(2):
        x = relu(w.norm(w.conv(x, strides=2, padding="same")))
    for block in range(1, 10):
        x = _residual_block(x, w)
        if block == 5:
            features = x
    for _ in range(2):
        x = relu(w.norm(w.conv(x, convolution=conv_transpose, strides=2, padding="same")))
    image = np.tanh(w.conv(x, bias=True, padding="reflect"))
    return image, w.head(features)


def _residual_block(x, w):
    h = relu(w.norm(w.conv(x, padding="reflect")))
    return x + w.norm(w.conv(h, padding="reflect"))


def shallow_discriminator(x, arrays, q, leaky_end):
    w = Weights(arrays, q)
    x = leaky_relu(w.conv(x, bias=True, strides=2, padding="same"))
    x = leaky_relu(w.norm(w.conv(x, strides=4, padding="same")))
    x = w.conv(x, bias=True, padding="same")
    return leaky_relu(x) if leaky_end else x


def convolutional_discriminator(x, arrays):
    w = Weights(arrays, 1)
    x = leaky_relu(w.conv(x, bias=True, strides=2, padding="same"))
    for stride in (2, 2, 1):
        x = leaky_relu(w.norm(w.conv(x, strides=stride, padding="same")))
    return w.conv(x, bias=True, padding="same")
