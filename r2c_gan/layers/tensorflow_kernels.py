"""What TensorFlow computes faster, or in less memory, than `keras.ops` can say; other backends do not import it.

Each function computes what its caller computes with `keras.ops` on other backends; tests hold the two together, and
`experiments/benchmarks/training_step.py` measures what each is worth.
"""

import tensorflow as tf


def instance_normalization(x, gamma, beta, epsilon):
    """Instance normalisation by the fused kernel of batch normalisation, applied to one sample at a time.

    Args:
        x: [N, H, W, C], float32 or bfloat16; a sample's statistics are float32 in any case.
        gamma, beta: scale and offset, float32 [C].
        epsilon: added to the variance.

    Returns:
        [N, H, W, C] of x's dtype.
    """
    if x.shape[0] is not None:
        samples = [_fused(sample, gamma, beta, epsilon) for sample in tf.split(x, x.shape[0])]
        return samples[0] if len(samples) == 1 else tf.concat(samples, axis=0)
    # The number of samples is known only when it runs: each channel of each sample becomes a channel of one sample.
    n, height, width, channels = tf.unstack(tf.shape(x))
    folded = tf.reshape(tf.transpose(x, [1, 2, 0, 3]), [1, height, width, n * channels])
    folded = _fused(folded, tf.tile(gamma, [n]), tf.tile(beta, [n]), epsilon)
    folded = tf.transpose(tf.reshape(folded, [height, width, n, channels]), [2, 0, 1, 3])
    return tf.ensure_shape(folded, x.shape)


def _fused(x, gamma, beta, epsilon):
    return tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, epsilon=epsilon, is_training=True)[0]


def sum_over_powers(x, kernels, sides, convolve):
    """The sum over p of convolve(pad(x)^p, W_p), whose backward pass computes the powers again instead of keeping them.

    Kept, the powers would be most of what a training step holds. The gradient of pad(x) is evaluated as Horner's rule
    has it, d_1 + x (2 d_2 + x (3 d_3 + ...)), d_p being that of the p-th convolution's input; the factors p are
    multiplied into the small kernels, not into the images.

    Args:
        x: input of the layer, [N, H, W, C].
        kernels: the q kernels.
        sides: ((top, bottom), (left, right)), the pixels of mirrored padding.
        convolve: function of (input, kernel), linear in both.

    Returns:
        The sum, without the bias.
    """
    q = len(kernels)

    @tf.custom_gradient
    def forward(x, *kernels):
        def backward(upstream):
            # The dependency keeps the powers from being computed before they are needed, and from being taken for the
            # same as those of the forward pass.
            with tf.control_dependencies([upstream]):
                again = tf.identity(x)
            terms = _padded_powers(again, q, sides)
            weighted = [kernel * tf.cast(p, kernel.dtype) for p, kernel in enumerate(kernels, start=1)]
            with tf.GradientTape() as tape:
                tape.watch([terms, weighted])
                # In a graph these convolutions are never run: only their gradients are asked for.
                outputs = [convolve(term, kernel) for term, kernel in zip(terms, weighted, strict=True)]
            d_terms, d_kernels = tape.gradient(outputs, [terms, weighted], output_gradients=[upstream] * q)
            d_padded = d_terms[-1]
            for d_term in reversed(d_terms[:-1]):
                d_padded = d_term + terms[0] * d_padded
            return _unpad(d_padded, sides), *d_kernels

        terms = _padded_powers(x, q, sides)
        return tf.add_n([convolve(term, kernel) for term, kernel in zip(terms, kernels, strict=True)]), backward

    return forward(x, *kernels)


def _padded_powers(x, q, sides):
    terms = [tf.pad(x, _paddings(sides), "REFLECT") if any(map(any, sides)) else x]
    for _ in range(q - 1):
        terms.append(terms[-1] * terms[0])
    return terms


def _unpad(x, sides):
    """The gradient of mirrored padding: what a border got goes back to where it was mirrored from."""
    if not any(map(any, sides)):
        return x
    return tf.raw_ops.MirrorPadGrad(input=x, paddings=_paddings(sides), mode="REFLECT")


def _paddings(sides):
    return [(0, 0), *sides, (0, 0)]


def bilinear_upsampling(x):
    """Twice the height and width, by the kernel of `tf.image.resize`, which interpolates in float32.

    Args:
        x: [N, H, W, C]; H and W may be known only when it runs.

    Returns:
        [N, 2 H, 2 W, C] of x's dtype.
    """
    height, width = (side or tf.shape(x)[axis] for axis, side in ((1, x.shape[1]), (2, x.shape[2])))
    # Cast here, because XLA derives a wrong gradient for a kernel that is given bfloat16 and returns float32.
    enlarged = tf.image.resize(tf.cast(x, tf.float32), (2 * height, 2 * width), "bilinear")
    return tf.cast(enlarged, x.dtype)


def of_whole_batch(function, share):
    """A function of the whole batch, applied by each replica, which then keeps its share of the result.

    Args:
        function: function of images [N, H, W, C] that returns as many.
        share: the replica's share of the images.

    Returns:
        The replica's share of the result.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return function(share)
    size = share.shape[0]
    whole = context.all_gather(share, axis=0)  # which forgets the shape
    whole = tf.ensure_shape(whole, (context.num_replicas_in_sync * size, *share.shape[1:]))
    first = context.replica_id_in_sync_group * size
    return function(whole)[first : first + size]


def may_write_in_place():
    """Whether one element of a variable can be written; the replicas of a strategy only take whole values."""
    return not tf.distribute.has_strategy()


class InPlace:
    """Elements of a variable, read and written where they lie, without copies of the whole."""

    def __init__(self, variable):
        self.variable = variable

    def read(self, place):
        return self.variable.sparse_read(place)

    def write(self, place, element):
        self.variable.scatter_nd_update([[place]], element[None])

    def close(self):
        """Nothing is left to do."""
