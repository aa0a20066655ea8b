"""What test_jax.py runs on TensorFlow and on JAX alike: a few steps of a tiny network, from given weights."""

import numpy as np

from r2c_gan.models.losses import LossWeights
from r2c_gan.models.model import R2CGAN
from r2c_gan.models.optimizers import Adam
from r2c_gan.models.schedules import LinearDecay

SIZE, BATCH, STEPS = 16, 2, 3


def compiled(pool_size=0, **options):
    """With every option that touches the step: a schedule, averages, clipping, class weights."""
    model = R2CGAN(q=2, filters=2, image_size=SIZE, pool_size=pool_size, **options)
    rates = [LinearDecay(1e-3, total_steps=6, decay_start=1) for _ in range(2)]
    model.compile(
        Adam(rates[0], global_clipnorm=2.0, use_ema=True, ema_momentum=0.5),
        Adam(rates[1], global_clipnorm=2.0),
        LossWeights(classes=(0.5, 1.5)),
    )
    return model


def feed(seed=0):
    rng = np.random.default_rng(seed)
    while True:
        images = rng.uniform(-1, 1, (2, BATCH, SIZE, SIZE, 3)).astype("float32")
        labels = np.eye(2, dtype="float32")[rng.integers(0, 2, (2, BATCH))]
        yield (images[0], labels[0]), (images[1], labels[1])


def fitted(model, steps):
    """The mean losses of the steps."""
    history = model.fit(feed(), steps_per_epoch=steps, shuffle=False, verbose=0).history
    return {name: float(values[0]) for name, values in history.items()}


def stepped(start, folder):
    """Losses, and in the folder all weights, after one and after three steps."""
    found = {}
    for steps in (1, STEPS):
        model = compiled()
        model.load_weights(start)
        found[str(steps)] = fitted(model, steps)
        model.save_weights(folder / f"{steps}.weights.h5")
    found["evaluated"] = model.evaluate(feed(1), steps=1, verbose=0, return_dict=True)
    return {when: {name: float(loss) for name, loss in losses.items()} for when, losses in found.items()}
