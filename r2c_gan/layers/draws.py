"""Random draws that a checkpoint continues."""

from keras import ops


def restore_draws(generator, seed, count):
    """Sets a seed generator to where it stands after `count` draws.

    A seed generator's own state is not saved, so it is set from a weight that is.

    Args:
        generator: a `keras.random.SeedGenerator`.
        seed: integer.
        count: integer scalar, what was drawn so far.
    """
    state = ops.stack([ops.convert_to_tensor(seed, "int32"), ops.convert_to_tensor(count, "int32")])
    generator.state.assign(ops.cast(state, generator.state.dtype))
