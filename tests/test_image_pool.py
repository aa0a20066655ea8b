"""Properties that a pool of images must have, whatever it draws."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from r2c_gan.models.image_pool import ImagePool

SHAPE = (2, 3, 1)


def images(*numbers):
    """Images that can be told apart: all pixels are the number."""
    return np.broadcast_to(np.reshape(numbers, (-1, 1, 1, 1)), (len(numbers), *SHAPE)).astype("float32")


def numbers(batch):
    batch = np.asarray(batch)
    assert (batch == batch[:, :1, :1]).all()  # every image comes back whole
    return batch[:, 0, 0, 0].astype(int).tolist()


def make(size=5, seed=0, trace=True):
    pool = ImagePool(size, seed)
    pool.build((None, *SHAPE))
    pool.built = True
    return pool, (tf.function(pool) if trace else pool)


def feed(call, count, batch=1, first=1):
    """Feeds images first, first + 1, ... in batches; returns what came back, in order."""
    returned = []
    for start in range(first, first + count, batch):
        returned += numbers(call(images(*range(start, start + batch))))
    return returned


@pytest.mark.parametrize("trace", [True, False])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_filling_pool_returns_its_inputs(batch, trace):
    pool, call = make(size=10, trace=trace)
    assert feed(call, 10, batch) == list(range(1, 11))
    assert numbers(pool.images) == list(range(1, 11))


@pytest.mark.parametrize("batch", [1, 3, 12])  # 12: more than the pool holds
def test_no_image_is_lost_or_doubled(batch):
    pool, call = make(size=5)
    fed = 0
    returned = []
    for _ in range(20):
        returned += feed(call, batch, batch, first=fed + 1)
        fed += batch
        filling = [n for n in range(1, fed + 1) if n <= 5]
        inside = [n for n in numbers(pool.images) if n]
        # The first five are returned and kept; from then on one goes in and one comes out.
        assert sorted(returned + inside) == sorted([*range(1, fed + 1), *filling])
    assert int(pool.seen.numpy()) == fed
    later = returned[5:]
    assert len(set(later)) == len(later)  # a pooled image comes back at most once


def test_each_returned_image_is_the_input_or_was_in_the_pool():
    pool, call = make(size=4)
    feed(call, 4)
    for n in range(5, 60):
        inside = numbers(pool.images)
        (returned,) = numbers(call(images(n)))
        after = numbers(pool.images)
        if returned == n:
            assert after == inside
        else:
            assert returned in inside
            assert after == [n if one == returned else one for one in inside]


@pytest.fixture(scope="module", params=[1, 2])
def draws(request):
    """For many images fed to a full pool: the place that each was swapped into, -1 for those returned as they were."""
    size, batch, count = 8, request.param, 3000
    pool, call = make(size=size, seed=3)
    feed(call, size)
    places = []
    for n in range(size + 1, size + 1 + count, batch):
        fed = list(range(n, n + batch))
        before = numbers(pool.images)
        returned = numbers(call(images(*fed)))
        for one, back in zip(fed, returned, strict=True):
            places.append(-1 if back == one else before.index(back))
            if back != one:
                before[before.index(back)] = one
    return np.array(places)


def test_about_half_are_swapped(draws):
    assert np.mean(draws >= 0) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(len(draws)))


def test_every_place_is_as_likely(draws):
    counts = np.bincount(draws[draws >= 0], minlength=8)
    expected = counts.sum() / 8
    assert (
        np.sum((counts - expected) ** 2 / expected) < 24.3
    )  # the 99.9% point of chi-squared with 7 degrees of freedom


def test_the_coin_does_not_know_the_place_before(draws):
    """The draws of successive images must not share bits."""
    swapped_before = draws[:-1] >= 0
    next_swapped = draws[1:] >= 0
    for place in range(8):
        after = next_swapped[swapped_before & (draws[:-1] == place)]
        assert np.mean(after) == pytest.approx(0.5, abs=4.5 * 0.5 / np.sqrt(len(after)))
    after = next_swapped[~swapped_before]
    assert np.mean(after) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(len(after)))


def test_two_seeds_draw_differently():
    histories = [feed(make(seed=seed)[1], 100) for seed in (0, 0, 1)]
    assert histories[0] == histories[1]
    assert histories[0] != histories[2]


def test_a_restored_pool_goes_on_as_the_saved_one_would_have():
    pool, call = make(size=5, seed=2)
    feed(call, 33)
    saved = [weight.numpy() for weight in pool.weights]
    expected = feed(call, 40, batch=4, first=100)
    other, other_call = make(size=5, seed=2)
    other.set_weights(saved)
    assert feed(other_call, 40, batch=4, first=100) == expected


def test_traced_and_eager_pools_draw_the_same():
    assert feed(make(trace=True)[1], 40, 2) == feed(make(trace=False)[1], 40, 2)


def test_size_0_passes_through():
    pool, call = make(size=0)
    assert feed(call, 12, 3) == list(range(1, 13))
    assert pool.weights == []


def test_no_gradient_passes():
    for size in (0, 3):
        _, call = make(size=size, trace=False)
        x = tf.Variable(images(1, 2))
        with tf.GradientTape() as tape:
            y = tf.reduce_sum(call(x * 2.0))
        assert tape.gradient(y, x) is None


def test_weights_are_not_trainable_and_saved():
    pool, _ = make(size=3)
    assert pool.trainable_weights == []
    assert [weight.name for weight in pool.weights] == ["images", "seen"]


def test_low_precision_images_are_kept_as_float32():
    pool, call = make(size=2, trace=False)
    assert call(tf.cast(images(1), "bfloat16")).dtype == tf.float32
    assert pool.images.dtype == "float32"


def test_configuration_round_trip():
    again = keras.layers.deserialize(keras.layers.serialize(ImagePool(7, seed=9)))
    assert (again.size, again.seed, again.trainable) == (7, 9, False)


def test_bad_arguments():
    with pytest.raises(ValueError, match="at least 0"):
        ImagePool(-1)
    with pytest.raises(ValueError, match="height, width and channels"):
        ImagePool(3).build((None, None, 4, 1))
    _, call = make(size=3)
    unknown = tf.function(call, input_signature=[tf.TensorSpec((None, *SHAPE))])
    with pytest.raises(ValueError, match="batch size must be known"):
        unknown(images(1))
