"""Training a restorer alone, on pairs: no cycle, no adversary. It runs on TensorFlow and on JAX.

RUN/config.json, RUN/checkpoints/    a run as `r2c-gan-train` leaves it: its restorer has the averaged weights, the
                                     other three networks are untrained
RUN/state/                           what a resumed training goes on from
RUN/history.csv                      losses and validation measures, epoch by epoch
"""

import dataclasses
import math
import shutil
import time
from pathlib import Path

import keras
import numpy as np
from keras import ops

from r2c_gan import files, options
from r2c_gan.data import images
from r2c_gan.data.streams import read_batches
from r2c_gan.errors import UserError
from r2c_gan.evaluation import metrics
from r2c_gan.models import checkpoints, losses
from r2c_gan.models.model import R2CGAN
from r2c_gan.models.networks import build_generator
from r2c_gan.models.optimizers import Adam, step_biases_as_sums
from r2c_gan.training.run_lock import run_lock

HISTORY = "history.csv"
STATE = "state"
AVERAGE_EVERY = 5  # steps


class RestorerOnPairs(keras.Model):
    """A generator with the losses of pairs.

    Its targets are (good image, one-hot label, paired [N, 1]); where `paired` is 0 the image has no say.

    Args:
        generator: what `networks.build_generator` returned.
        image_loss_weight, gradient_loss_weight, class_loss_weight: as in `restorer_options`.
    """

    def __init__(self, generator, image_loss_weight=10.0, gradient_loss_weight=0.0, class_loss_weight=1.0, **kwargs):
        super().__init__(**kwargs)
        self.generator = generator
        self.weights_of_losses = (image_loss_weight, gradient_loss_weight, class_loss_weight)
        self.means = {name: keras.metrics.Mean(name) for name in ("loss", "l1", "class", "accuracy")}
        self.built = True

    def call(self, inputs, training=False):
        return self.generator(inputs, training=training)

    @property
    def metrics(self):
        return list(self.means.values())

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        good, labels, paired = y
        restored, probabilities = y_pred
        l1, gradient = image_losses(good, restored, paired)
        classification = losses.classification_loss(labels, probabilities)
        image_weight, gradient_weight, class_weight = self.weights_of_losses
        total = image_weight * l1 + class_weight * classification
        if gradient_weight:
            total = total + gradient_weight * gradient
        right = ops.equal(ops.argmax(probabilities, -1), ops.argmax(labels, -1))
        for name, value in (("loss", total), ("l1", l1), ("class", classification), ("accuracy", right)):
            self.means[name].update_state(ops.cast(value, "float32"))
        return total


def image_losses(good, restored, paired):
    """(mean absolute error, that of the differences of neighbours) over the images that are paired.

    Args:
        good, restored: [N, H, W, C].
        paired: [N, 1], 1 or 0.
    """
    share = paired[:, 0] / ops.maximum(ops.sum(paired), 1.0)
    error = ops.cast(good, "float32") - ops.cast(restored, "float32")

    def mean(values):
        return ops.sum(ops.mean(ops.abs(values), axis=(1, 2, 3)) * share)

    return mean(error), mean(error[:, 1:] - error[:, :-1]) + mean(error[:, :, 1:] - error[:, :, :-1])


@keras.saving.register_keras_serializable("r2c_gan")
class WarmCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly to `peak` in `warmup` steps, then falls as a cosine, to 0 at `total` steps."""

    def __init__(self, peak, warmup, total):
        self.peak, self.warmup, self.total = peak, warmup, total

    def __call__(self, step):
        step = ops.cast(step, "float32")
        rise = (step + 1.0) / max(self.warmup, 1)
        part = ops.clip((step - self.warmup) / max(self.total - self.warmup, 1), 0.0, 1.0)
        return self.peak * ops.minimum(rise, 0.5 * (1.0 + ops.cos(math.pi * part)))

    def get_config(self):
        return {"peak": self.peak, "warmup": self.warmup, "total": self.total}


class Average(keras.callbacks.Callback):
    """The moving average of a network's weights, on the host, with a warm-up: decay min(d, (1 + t) / (10 + t)).

    Args:
        network: the network.
        decay: d, a step; t counts steps.
    """

    def __init__(self, network, decay):
        super().__init__()
        self.network, self.decay = network, decay
        self.weights, self.step = None, 0

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        if self.step % AVERAGE_EVERY == 0:
            self.update()

    def on_epoch_end(self, epoch, logs=None):
        if self.weights is None:  # an epoch of very few steps
            self.update()

    def update(self):
        """Takes the weights as they are into the average."""
        if self.weights is None:
            self.weights = [np.array(weight) for weight in self.network.get_weights()]
            return
        # In units of the steps between two updates.
        kept = min(self.decay**AVERAGE_EVERY, (1 + self.step / AVERAGE_EVERY) / (10 + self.step / AVERAGE_EVERY))
        for average, weight in zip(self.weights, self.network.get_weights(), strict=True):
            average += (1 - kept) * (weight - average)


def train(config, sequence, validation, report=print):
    """Trains a restorer, or goes on with a training that was interrupted, from its last whole epoch.

    Args:
        config: a `restorer_options.RestorerTraining`.
        sequence: a `pairs.PairSequence`.
        validation: (domain A, domain of its good films), two `data.datasets.Domain`, or None.
        report: takes a line of text an epoch.

    Returns:
        The restorer, a `keras.Model` with the averaged weights, float32.

    Raises:
        UserError: if an option is wrong, the run folder holds another training, or another process trains in it.
    """
    options.check(config)
    with run_lock(config.output_dir):
        return _train(config, sequence, validation, report)


def _train(config, sequence, validation, report):
    run = Path(config.output_dir)
    keras.utils.set_random_seed(config.seed)
    gan = R2CGAN(**config.model_config())
    measured = gan.restorer
    if config.initial_run:
        measured.set_weights(initial_weights(config.initial_run, measured))
    model = _compiled(config, len(sequence), measured)
    average = Average(model.generator, config.ema_decay)
    state = run / STATE
    rows, epoch = _resume(config, run, state, model, average)
    checkpoints.write_config(run, gan.config, {"restorer_alone": dataclasses.asdict(config)})
    while epoch < config.epochs:
        started = time.monotonic()
        sequence.epoch = epoch
        seen = model.fit(sequence, epochs=1, verbose=0, shuffle=False, callbacks=[average]).history
        epoch += 1
        if not math.isfinite(seen["loss"][0]):
            raise UserError(f"epoch {epoch}: the loss is not a finite number; a lower --lr may help")
        measured.set_weights(average.weights)
        row = {"epoch": epoch, **{name: values[0] for name, values in seen.items()}}
        row["seconds"] = time.monotonic() - started
        row |= {f"val_{name}": value for name, value in (measure(measured, *validation) if validation else {}).items()}
        rows.append(row)
        # The last epoch is the result; a choice by F1 would take one that does not restore yet.
        kept = {name: value for name, value in row.items() if name != checkpoints.BEST_BY}
        checkpoints.save_checkpoint(run, gan, epoch, epoch * len(sequence), kept)
        checkpoints.prune(run, 1)
        files.write_csv(run / HISTORY, rows, list(rows[0]))
        _save_state(state, model, average, epoch, rows)
        report(" ".join(f"{name} {value:.4g}" for name, value in row.items()))
    if average.weights is not None:
        measured.set_weights(average.weights)
    return measured


def _compiled(config, steps, measured):
    generator = build_generator(config.network(), dtype=config.precision)
    generator.set_weights(measured.get_weights())
    names = ("image_loss_weight", "gradient_loss_weight", "class_loss_weight")
    model = RestorerOnPairs(generator, **{name: getattr(config, name) for name in names})
    schedule = WarmCosine(config.lr, config.warmup, config.epochs * steps)
    optimizer = Adam(schedule, beta_1=0.9, beta_2=0.99, global_clipnorm=config.largest_gradient or None)
    step_biases_as_sums(optimizer)
    model.compile(optimizer)
    optimizer.build(model.trainable_variables)
    return model


def initial_weights(path, network):
    """The restorer's weights of a run folder, or of a `.npz` file of weights alone, as a list.

    Raises:
        UserError: if they are not there, or do not fit the network.
    """
    path = Path(path)
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as arrays:
                weights = [arrays[name].astype(np.float32) for name in sorted(arrays.files)]
        except (OSError, ValueError) as error:
            raise UserError(f"--initial_run={path}: not a readable file of weights ({error})") from error
    else:
        weights = checkpoints.load_model(path, "latest")[0].restorer.get_weights()
    shapes = [weight.shape for weight in weights], [tuple(weight.shape) for weight in network.weights]
    if shapes[0] != shapes[1]:
        raise UserError(f"--initial_run={path}: its restorer is another network")
    return weights


def _save_state(state, model, average, epoch, rows):
    """Replaces the state by that of an epoch; a process that is killed meanwhile leaves the one or the other."""
    new, old = state.with_name(STATE + ".new"), state.with_name(STATE + ".old")
    for folder in (new, old):
        shutil.rmtree(folder, ignore_errors=True)
    new.mkdir(parents=True)
    variables = [*model.trainable_variables, *model.optimizer.variables]
    arrays = {f"v{number:04d}": ops.convert_to_numpy(variable) for number, variable in enumerate(variables)}
    arrays |= {f"a{number:04d}": weight for number, weight in enumerate(average.weights)}
    np.savez(new / "arrays.npz", **arrays)
    files.write_json(new / "state.json", {"epoch": epoch, "average_step": average.step, "rows": rows})
    if state.is_dir():
        state.rename(old)
    new.rename(state)
    shutil.rmtree(old, ignore_errors=True)


def _resume(config, run, state, model, average):
    if not state.is_dir():
        state = next((other for name in (".new", ".old") if (other := state.with_name(STATE + name)).is_dir()), state)
    if not (state / "state.json").is_file():
        return [], 0
    before = checkpoints.read_config(run)["training"].get("restorer_alone", {})
    changed = [
        name
        for name, value in dataclasses.asdict(config).items()
        if before.get(name) != value and name not in ("output_dir", "initial_run")
    ]
    if changed:
        raise UserError(f"{run}: holds a training with another --{changed[0]}; give another --output_dir")
    record = files.read_json(state / "state.json")
    with np.load(state / "arrays.npz", allow_pickle=False) as arrays:
        for number, variable in enumerate([*model.trainable_variables, *model.optimizer.variables]):
            variable.assign(arrays[f"v{number:04d}"])
        average.weights = [arrays[name] for name in sorted(arrays.files) if name.startswith("a")]
    average.step = record["average_step"]
    return record["rows"], record["epoch"]


def measure(network, domain, references, mirrored=False, batch_size=16):
    """PSNR and SSIM of restored films, F1 and AUROC of the head, as a dictionary of floats.

    Args:
        network: a generator.
        domain, references: poor films and their good ones.
        mirrored: whether the mean of a film and of its mirror image is measured.
        batch_size: films at a time.
    """
    scores = per_film(network, domain, references, mirrored, batch_size)
    head = metrics.classification_metrics(domain.labels, scores.pop("probabilities"))
    means = {name: float(np.mean(values)) for name, values in scores.items()}
    return means | {"f1": float(head["f1"] or 0), "auroc": head["auroc"] if head["auroc"] is not None else math.nan}


def per_film(network, domain, references, mirrored=False, batch_size=16):
    """As `measure`, film by film: dictionary of float arrays [N]; `probabilities` is [N, 2]."""
    size, channels = references_size(references), network.input_shape[-1]
    found = {"psnr": [], "ssim": [], "probabilities": []}
    poor_films, good_films = (read_batches(each.files, size, channels, batch_size) for each in (domain, references))
    for poor, good in zip(poor_films, good_films, strict=True):
        restored, probabilities = (np.asarray(each) for each in network.predict_on_batch(poor))
        if mirrored:
            again, said = (
                np.asarray(each) for each in network.predict_on_batch(np.ascontiguousarray(poor[:, :, ::-1]))
            )
            restored, probabilities = (restored + again[:, :, ::-1]) / 2, (probabilities + said) / 2
        for one, other in zip(good, restored, strict=True):
            found["psnr"].append(metrics.psnr(one, other))
            found["ssim"].append(metrics.ssim(one, other))
        found["probabilities"].extend(probabilities)
    return {name: np.array(values) for name, values in found.items()}


def references_size(domain):
    """Side in pixels of the films of a domain, that of the first."""
    return images.read_image(domain.files[0], 1).shape[0]
