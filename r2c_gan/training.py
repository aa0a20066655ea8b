"""train(config): data, model, callbacks, fit, exact resume."""

import dataclasses
import time
from pathlib import Path

import keras
import numpy as np
from absl import logging
from tqdm import tqdm

from r2c_gan import callbacks, checkpoints, data, files
from r2c_gan.data import UnpairedStream, read_batches, read_domain
from r2c_gan.errors import UserError
from r2c_gan.evaluation import Evaluation
from r2c_gan.losses import LossWeights
from r2c_gan.model import R2CGAN
from r2c_gan.networks import GENERATOR_STRIDE, METHODS, build_generator
from r2c_gan.optimizers import Adam
from r2c_gan.restoration import Restorer
from r2c_gan.schedules import LinearDecay

PRECISIONS = ("float32", "mixed_bfloat16")
# What may change between a run and its resumption without changing the result of the epochs that are done.
FREE_TO_CHANGE = ("output_dir", "datasets_dir", "epochs", "sample_interval", "keep_checkpoints", "check_images")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """All that a training depends on. The defaults are the authors'.

    Attributes:
        datasets_dir: folder with `trainA/` and `trainB/`, and `valA/` (and `valA_reference/`) for validation.
        output_dir: the run folder.
        method, q, filters, channels: the networks, as in `build_generator`.
        load_size, crop_size: side in pixels to which images are resized, and of the random crop.
        batch_size: images a domain and step.
        epochs: passes over the longer domain.
        epoch_decay: epoch from which the learning rate falls linearly, to zero at the end.
        lr, beta_1: of Adam, for generators and discriminators alike.
        cycle_loss_weight, identity_loss_weight, class_loss_weight: as in `LossWeights`.
        pool_size: generated images kept for each discriminator.
        seed: of weights, order, augmentation and pools.
        ema_decay: not in the paper: decay a step of a moving average of the generators' weights, which validation,
            evaluation and export then use; 0 for none.
        precision: "float32" or "mixed_bfloat16" (float32 weights and losses, bfloat16 convolutions).
        deterministic: whether TensorFlow must use deterministic operations.
        limit_train_images: images of each training domain that are used; 0 for all.
        sample_interval: steps between training samples; 0 for none.
        keep_checkpoints: newest checkpoints kept, besides the best.
        check_images: whether every image is decoded before the training begins.
    """

    datasets_dir: str
    output_dir: str
    method: str = "operational"
    q: int = 3
    filters: int = 64
    channels: int = 3
    load_size: int = 286
    crop_size: int = 256
    batch_size: int = 1
    epochs: int = 2000
    epoch_decay: int = 100
    lr: float = 2e-4
    beta_1: float = 0.5
    cycle_loss_weight: float = 10.0
    identity_loss_weight: float = 5.0
    class_loss_weight: float = 0.1
    pool_size: int = 50
    seed: int = 0
    ema_decay: float = 0.0
    precision: str = "float32"
    deterministic: bool = True
    limit_train_images: int = 0
    sample_interval: int = 500
    keep_checkpoints: int = 5
    check_images: bool = True

    def check(self):
        """Checks what can be checked without the data.

        Raises:
            UserError: naming the flag.
        """
        if self.method not in METHODS:
            raise UserError(f"--method={self.method}: must be one of {', '.join(METHODS)}")
        if self.precision not in PRECISIONS:
            reason = (
                "; float16 is refused because its range needs a loss scaling that Keras gives to one optimizer only"
            )
            raise UserError(
                f"--precision={self.precision}: must be one of {', '.join(PRECISIONS)}"
                + (reason if "float16" in self.precision else "")
            )
        if self.channels not in (1, 3):
            raise UserError(f"--channels={self.channels}: must be 1 or 3")
        for name in ("q", "filters", "epochs", "batch_size", "crop_size", "load_size", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}={getattr(self, name)}: must be at least 1")
        for name in (
            "epoch_decay",
            "lr",
            "cycle_loss_weight",
            "identity_loss_weight",
            "class_loss_weight",
            "pool_size",
            "seed",
            "sample_interval",
            "limit_train_images",
        ):
            if not getattr(self, name) >= 0:
                raise UserError(f"--{name}={getattr(self, name)}: must be at least 0")
        for name in ("beta_1", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--{name}={getattr(self, name)}: must be in [0, 1)")
        stride = GENERATOR_STRIDE[self.method]
        if self.crop_size % stride:
            raise UserError(f"--crop_size={self.crop_size}: must be a multiple of {stride} for --method={self.method}")

    def model_config(self):
        """The arguments of `R2CGAN`."""
        return {
            "method": self.method,
            "q": self.q,
            "channels": self.channels,
            "filters": self.filters,
            "image_size": self.crop_size,
            "pool_size": self.pool_size,
            "seed": self.seed,
        }


def train(config, begin=lambda: None):
    """Trains an R2C-GAN, or goes on with a run that was interrupted, from its last checkpoint.

    In deterministic mode, an interrupted and resumed run equals an uninterrupted one bit for bit.

    Args:
        config: a `TrainingConfig`.
        begin: called once settings, data and run folder have been found usable, before anything is written.

    Returns:
        The dictionary that is written to `result.json`.

    Raises:
        UserError: if a setting, the data or the run folder is not usable.
    """
    config.check()
    run = Path(config.output_dir)
    started = time.monotonic()
    previous = _refuse_another_run(config)
    keras.utils.set_random_seed(config.seed)
    import tensorflow as tf

    # TensorFlow 2.21's remapper fails at the discriminators' leaky ReLU, says so at length and leaves the graph alone.
    tf.config.optimizer.set_experimental_options({"remapping": False})
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()

    limit = config.limit_train_images or None
    domain_a, domain_b = (read_domain(Path(config.datasets_dir) / name, limit) for name in ("trainA", "trainB"))
    validation = _validation_domain(config)
    stream = UnpairedStream(
        domain_a, domain_b, config.load_size, config.crop_size, config.channels, config.batch_size, config.seed
    )
    if config.check_images and not previous:
        domains = [domain for domain in (domain_a, domain_b, validation) if domain]
        data.check_images(domains, lambda files: tqdm(files, "checking images", unit="image", leave=False))

    steps = stream.steps_per_epoch
    model = R2CGAN(**config.model_config(), dtype=config.precision)
    schedules = [LinearDecay(config.lr, config.epochs * steps, config.epoch_decay * steps) for _ in range(2)]
    average = {"use_ema": True, "ema_momentum": config.ema_decay} if config.ema_decay else {}
    model.compile(
        Adam(schedules[0], beta_1=config.beta_1, **average),
        Adam(schedules[1], beta_1=config.beta_1),
        LossWeights(config.cycle_loss_weight, config.identity_loss_weight, config.class_loss_weight),
    )
    initial_epoch = _resume(run, model, steps)
    begin()
    checkpoints.write_config(run, config.model_config(), dataclasses.asdict(config))
    if initial_epoch < config.epochs:
        _fit(config, model, stream, validation, schedules[0], initial_epoch)

    last = checkpoints.select(run, "latest")
    best = checkpoints.best_checkpoint(checkpoints.list_checkpoints(run))
    result = {
        "epochs": last.epoch,
        "steps": last.step,
        "steps_per_epoch": steps,
        "images": {"trainA": len(domain_a), "trainB": len(domain_b), "valA": len(validation) if validation else 0},
        "parameters": {
            name: getattr(model, name).count_params()
            for name in ("restorer", "degrader", "discriminator_a", "discriminator_b")
        },
        "training_seconds": sum(row["seconds"] for row in callbacks.read_history(run)),
        "seconds_since_last_start": round(time.monotonic() - started, 1),
        "last": last.measures,
        "best_epoch": best.epoch if best else None,
    }
    files.write_json(run / "result.json", result)
    return result


def _fit(config, model, stream, validation, schedule, initial_epoch):
    run = Path(config.output_dir)
    shown = [
        np.concatenate(list(read_batches(_spread(domain.files), config.crop_size, config.channels, 1)))
        for domain in stream.domains
    ]
    shown = [batch[: min(map(len, shown))] for batch in shown]
    import tensorflow as tf

    try:
        model.fit(
            stream.dataset(config.epochs, initial_epoch),
            steps_per_epoch=stream.steps_per_epoch,
            epochs=config.epochs,
            initial_epoch=initial_epoch,
            shuffle=False,
            verbose=0,
            callbacks=[
                callbacks.StopOnNaN(),
                callbacks.Progress(stream.steps_per_epoch, config.epochs, initial_epoch),
                callbacks.Samples(run, *shown, config.sample_interval),
                callbacks.Recorder(
                    run, schedule, _validator(config, model, validation), config.keep_checkpoints, initial_epoch
                ),
            ],
        )
    except tf.errors.OpError:
        if stream.error is not None:
            raise stream.error from None
        raise
    trained = int(model.generator_optimizer.iterations)
    if trained != config.epochs * stream.steps_per_epoch:
        raise RuntimeError(f"{trained} steps were trained, not {config.epochs} epochs of {stream.steps_per_epoch}")


def _validation_domain(config):
    folder = Path(config.datasets_dir) / "valA"
    return read_domain(folder) if folder.is_dir() else None


def _validator(config, model, validation):
    if validation is None:
        return None
    reference = Path(config.datasets_dir) / "valA_reference"
    restorer = Restorer.of_model(model)
    averaged = None
    if config.ema_decay:
        averaged = build_generator(config.method, config.q, config.channels, config.filters)
        restorer = Restorer(averaged.predict_on_batch, restorer.size, restorer.channels, restorer.stride)

    def validate():
        if averaged is not None:
            averaged.set_weights(model.averaged_restorer_weights())
        result = Evaluation(restorer, validation, reference if reference.is_dir() else None)
        classification, restoration = result.classification(), result.restoration()
        measures = {name: classification[name] for name in ("accuracy", "sensitivity", "specificity", "f1", "auroc")}
        return {**measures, **{name: restoration[name]["mean"] for name in restoration}}

    return validate


def _spread(files, count=3):
    """A few files, spread evenly over the list."""
    return [files[index] for index in sorted({int(place) for place in np.linspace(0, len(files) - 1, count)})]


def _refuse_another_run(config):
    """Whether the run folder holds a run of the same settings; one of other settings is refused."""
    run = Path(config.output_dir)
    if not (run / checkpoints.CONFIG).is_file():
        return False
    before = checkpoints.read_config(run)["training"]
    if "method" not in before:
        raise UserError(f"{run}: holds imported weights, not a training; give another --output_dir")
    now = dataclasses.asdict(config)
    for name, value in now.items():
        if name not in FREE_TO_CHANGE and before.get(name, value) != value:
            raise UserError(
                f"{run}: holds a run with --{name}={before[name]}; it cannot go on with --{name}={value}. "
                "Give the same flag, or another --output_dir"
            )
    if config.epochs < before["epochs"]:
        raise UserError(
            f"{run}: holds a run of --epochs={before['epochs']}; it can grow, not shrink to {config.epochs}"
        )
    return True


def _resume(run, model, steps_per_epoch):
    """Restores the newest sound checkpoint; returns the number of epochs it has trained, 0 if there is none."""
    problem = None
    for checkpoint in reversed(checkpoints.list_checkpoints(run)):
        try:
            checkpoints.load_weights(model, checkpoint)
        except UserError as error:
            problem = error
            logging.warning("%s; taking the checkpoint before it", error)
            continue
        if checkpoint.step != checkpoint.epoch * steps_per_epoch:
            raise UserError(
                f"{run}: was trained with {checkpoint.step // max(checkpoint.epoch, 1)} steps an epoch, the data and "
                f"--batch_size now give {steps_per_epoch}; resume with the same data"
            )
        return checkpoint.epoch
    if problem is not None:
        raise UserError(f"{run}: no checkpoint is sound; the last said: {problem}")
    return 0
