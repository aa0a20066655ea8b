"""train(config): data, model, callbacks, fit, exact resume."""

import contextlib
import dataclasses
import functools
import time
from pathlib import Path

import keras
import numpy as np
from absl import logging
from tqdm import tqdm

from r2c_gan import callbacks, checkpoints, data, files, metrics, plausibility
from r2c_gan.data import CLASSES, UnpairedStream, read_batches, read_domain
from r2c_gan.errors import UserError
from r2c_gan.evaluation import Evaluation
from r2c_gan.interruption import Interruption
from r2c_gan.layers import POWER_INITS
from r2c_gan.losses import LossWeights
from r2c_gan.model import NETWORKS, R2CGAN
from r2c_gan.networks import GENERATOR_STRIDE, METHODS, SKIPS, UPSAMPLINGS, build_generator
from r2c_gan.optimizers import Adam
from r2c_gan.restoration import Restorer
from r2c_gan.run_lock import run_lock
from r2c_gan.schedules import LinearDecay
from r2c_gan.window import Window

if keras.backend.backend() == "jax":
    from r2c_gan import jax_training as backend
else:
    from r2c_gan import tensorflow_training as backend

PRECISIONS = ("float32", "mixed_bfloat16")
# What may change between a run and its resumption without changing the result of the epochs that are done.
FREE_TO_CHANGE = (
    "output_dir",
    "datasets_dir",
    "epochs",
    "early_stopping",
    "sample_interval",
    "keep_checkpoints",
    "save_minutes",
    "check_images",
    "steps_per_execution",
)
CLASS_WEIGHTS = ("none", "balanced")
STRATEGIES = ("none", "mirrored", "data_parallel")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """All that a training depends on. The defaults are the authors'.

    Attributes:
        datasets_dir: folder with `trainA/` and `trainB/`, and `valA/` (and `valA_reference/`) for validation.
        output_dir: the run folder.
        method, q, filters, channels: the networks, as in `build_generator`.
        load_size, crop_size: side in pixels to which images are resized, and of the random crop.
        window: which stored values become black and white, the text of a `Window`.
        batch_size: images a domain and step.
        epochs: passes over the longer domain.
        epoch_decay: epoch from which the learning rate falls linearly, to zero at the end.
        lr, beta_1: of Adam, for generators and discriminators alike.
        cycle_loss_weight, identity_loss_weight, class_loss_weight, adversarial_loss_weight: as in `LossWeights`.
        pool_size: generated images kept for each discriminator.
        seed: of weights, order, augmentation and pools.
        upsampling, skip: not in the paper: of the generators, as in `build_generator`.
        noise_channels: not in the paper: channels of noise that the degrader is fed, as in `R2CGAN`; 0 for none.
        drawn_tone: not in the paper: whether the degrader draws its tone curve from the noise alone, as in `R2CGAN`.
        power_init: not in the paper: how the powers of operational layers are initialised, as in `build_generator`.
        cycle_a_loss_weight, identity_a_loss_weight: not in the paper: weights of their own for the terms of the poor
            domain, as in `LossWeights`; None for those of the good one.
        initial_run: not in the paper: a run folder whose networks, as its latest checkpoint has them, the training
            starts from, averages where it kept them; None for random ones. The images may be of another size.
        ema_decay: not in the paper: decay a step of a moving average of the generators' weights, which validation,
            evaluation and export then use; 0 for none.
        early_stopping: not in the paper: epochs without a better validation F1 after which the training ends; 0 for
            never.
        clip_norm: not in the paper: largest norm of the gradients, of both generators together and of both
            discriminators together; 0 for no limit.
        class_weights: not in the paper: "balanced" weighs the classification losses of a class by the inverse of its
            share of the training images, "none" weighs all alike.
        precision: "float32" or "mixed_bfloat16" (float32 weights and losses, bfloat16 convolutions).
        deterministic: whether only deterministic operations may be used.
        limit_train_images: images of each training domain that are used; 0 for all.
        sample_interval: steps between training samples; 0 for none.
        keep_checkpoints: newest checkpoints kept, besides the best.
        save_minutes: minutes between savings in the middle of an epoch; 0 for none.
        check_images: whether every image is decoded before the training begins.
        distribute: "none", or "mirrored" (TensorFlow), "data_parallel" (JAX): each device takes an equal share of every
            batch.
        steps_per_execution: steps between two looks at the training from Python; more is faster with tiny networks.
        jit_compile: whether XLA compiles the step; on processors it is slower than TensorFlow's own kernels. JAX
            always does.
    """

    datasets_dir: str
    output_dir: str
    method: str = "operational"
    q: int = 3
    filters: int = 64
    channels: int = 3
    load_size: int = 286
    crop_size: int = 256
    window: str = "auto"
    batch_size: int = 1
    epochs: int = 2000
    epoch_decay: int = 100
    lr: float = 2e-4
    beta_1: float = 0.5
    cycle_loss_weight: float = 10.0
    identity_loss_weight: float = 5.0
    class_loss_weight: float = 0.1
    adversarial_loss_weight: float = 1.0
    pool_size: int = 50
    seed: int = 0
    upsampling: str = "transposed"
    skip: str = "none"
    noise_channels: int = 0
    drawn_tone: bool = False
    power_init: str = "equal"
    cycle_a_loss_weight: float | None = None
    identity_a_loss_weight: float | None = None
    initial_run: str | None = None
    ema_decay: float = 0.0
    early_stopping: int = 0
    clip_norm: float = 0.0
    class_weights: str = "none"
    precision: str = "float32"
    deterministic: bool = True
    limit_train_images: int = 0
    sample_interval: int = 500
    keep_checkpoints: int = 5
    save_minutes: float = 10.0
    check_images: bool = True
    distribute: str = "none"
    steps_per_execution: int = 1
    jit_compile: bool = False

    def check(self):
        """Checks what can be checked without the data.

        Raises:
            UserError: naming the flag.
        """
        Window.parse(self.window)
        for name, choices in (
            ("method", METHODS),
            ("upsampling", UPSAMPLINGS),
            ("skip", SKIPS),
            ("power_init", POWER_INITS),
            ("class_weights", CLASS_WEIGHTS),
            ("distribute", STRATEGIES),
        ):
            if getattr(self, name) not in choices:
                raise UserError(f"--{name}={getattr(self, name)}: must be one of {', '.join(choices)}")
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
        for name in (
            "q",
            "filters",
            "epochs",
            "batch_size",
            "crop_size",
            "load_size",
            "keep_checkpoints",
            "steps_per_execution",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}={getattr(self, name)}: must be at least 1")
        for name in (
            "epoch_decay",
            "lr",
            "cycle_loss_weight",
            "identity_loss_weight",
            "class_loss_weight",
            "adversarial_loss_weight",
            "cycle_a_loss_weight",
            "identity_a_loss_weight",
            "noise_channels",
            "pool_size",
            "seed",
            "sample_interval",
            "limit_train_images",
            "early_stopping",
            "clip_norm",
            "save_minutes",
        ):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UserError(f"--{name}={getattr(self, name)}: must be at least 0")
        for name in ("beta_1", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--{name}={getattr(self, name)}: must be in [0, 1)")
        if self.distribute not in backend.STRATEGIES:
            raise UserError(
                f"--distribute={self.distribute}: Keras on {keras.backend.backend()} has it not; must be one of "
                f"{', '.join(backend.STRATEGIES)}"
            )
        if self.drawn_tone:
            self._check_drawn_tone()
        backend.check(self)
        stride = GENERATOR_STRIDE[self.method]
        if self.crop_size % stride:
            raise UserError(f"--crop_size={self.crop_size}: must be a multiple of {stride} for --method={self.method}")

    def _check_drawn_tone(self):
        if self.skip == "none" or not self.noise_channels:
            raise UserError(
                "--drawn_tone: needs a --skip with a tone curve, and --noise_channels to draw it from; try 4"
            )
        if self.batch_size < 2:
            raise UserError("--drawn_tone: compares the images of a batch; give --batch_size=2 or more")
        if self.distribute != "none":
            raise UserError(f"--drawn_tone: compares whole batches; it does not go with --distribute={self.distribute}")

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
            "upsampling": self.upsampling,
            "skip": self.skip,
            "noise_channels": self.noise_channels,
            "drawn_tone": self.drawn_tone,
            "power_init": self.power_init,
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
        Interrupted: if Ctrl-C or SIGTERM ended it; the step it was in is finished and saved.
    """
    config.check()
    with backend.prepared(config):
        return _prepared(config, begin)


def _prepared(config, begin):
    limit = config.limit_train_images or None
    domains = [read_domain(Path(config.datasets_dir) / name, limit) for name in ("trainA", "trainB")]
    validation = _validation_domain(config)
    if config.early_stopping and validation is None:
        raise UserError(f"--early_stopping={config.early_stopping}: needs {config.datasets_dir}/valA to validate on")
    if backend.leads():
        for domain in filter(None, (*domains, validation)):
            print(domain.summary())
    with run_lock(config.output_dir) if backend.leads() else contextlib.nullcontext():
        return _train(config, domains, validation, begin)


def _train(config, domains, validation, begin):
    run = Path(config.output_dir)
    started = time.monotonic()
    previous = _refuse_another_run(config)
    keras.utils.set_random_seed(config.seed)
    stream = UnpairedStream(
        *domains, config.load_size, config.crop_size, config.channels, config.batch_size, config.seed, config.window
    )
    if config.check_images and not previous:
        checked = [domain for domain in (*domains, validation) if domain]
        bar = functools.partial(tqdm, desc="checking images", unit="image", leave=False)
        data.check_images(checked, bar, config.window)

    steps = stream.steps_per_epoch
    schedules = [LinearDecay(config.lr, config.epochs * steps, config.epoch_decay * steps) for _ in range(2)]
    with backend.scope(config):
        model = _compiled_model(config, schedules, domains)
        epoch, step, unfinished = _resume(run, model, steps)
    if config.initial_run is not None and step == 0:
        _start_from(config.initial_run, model)
    backend.check_alike(run, step)
    if backend.leads():
        begin()
        checkpoints.write_config(run, config.model_config(), dataclasses.asdict(config))
        _describe_films(config, domains)
    with Interruption() as interruption:
        # An epoch that was interrupted is finished by a `fit` of its own, because it has fewer steps than the others.
        ends = [epoch + 1, config.epochs] if unfinished else [config.epochs]
        for end in ends:
            history = [row for row in callbacks.read_history(run) if row["epoch"] <= epoch] if backend.leads() else []
            if epoch < end and not backend.agree(callbacks.out_of_patience(history, config.early_stopping)):
                _fit(config, model, stream, validation, schedules[0], interruption, epoch, end, step, unfinished)
                step = model.steps_trained
                epoch, unfinished = step // steps, {}

    result = _result(config, model, domains, validation, steps, started) if backend.leads() else None
    return backend.share(result)


def _describe_films(config, domains):
    """Writes `plausibility.npz`, by which the run tells what is unlike its films, unless they are too few."""
    path = Path(config.output_dir) / plausibility.FILE
    if path.is_file():
        return
    total = min(sum(map(len, domains)), plausibility.MOST)
    fitted = plausibility.fit_files(
        [domain.files for domain in domains],
        config.window,
        progress=lambda films: tqdm(films, "describing films", total, unit="film", leave=False),
    )
    if fitted is not None:
        fitted.save(path)


def _result(config, model, domains, validation, steps, started):
    """Writes `result.json`."""
    run = Path(config.output_dir)
    last = checkpoints.select(run, "latest")
    best = checkpoints.best_checkpoint(checkpoints.list_checkpoints(run))
    result = {
        "epochs": last.epoch,
        "steps": last.step,
        "steps_per_epoch": steps,
        "stopped_early": last.epoch < config.epochs,
        "images": {"trainA": len(domains[0]), "trainB": len(domains[1]), "valA": len(validation) if validation else 0},
        "parameters": {name: getattr(model, name).count_params() for name in NETWORKS},
        "training_seconds": sum(row["seconds"] for row in callbacks.read_history(run)),
        "seconds_since_last_start": round(time.monotonic() - started, 1),
        "last": last.measures,
        "best_epoch": best.epoch if best else None,
    }
    files.write_json(run / "result.json", result)
    return result


def _compiled_model(config, schedules, domains):
    model = R2CGAN(**config.model_config(), dtype=config.precision)
    average = {"use_ema": True, "ema_momentum": config.ema_decay} if config.ema_decay else {}
    limit = config.clip_norm or None
    weights = LossWeights(
        config.cycle_loss_weight,
        config.identity_loss_weight,
        config.class_loss_weight,
        config.adversarial_loss_weight,
        cycle_a=config.cycle_a_loss_weight,
        identity_a=config.identity_a_loss_weight,
    )
    if config.class_weights == "balanced":
        weights = dataclasses.replace(weights, classes=_balanced_class_weights(domains))
    model.compile(
        Adam(schedules[0], beta_1=config.beta_1, global_clipnorm=limit, **average),
        Adam(schedules[1], beta_1=config.beta_1, global_clipnorm=limit),
        weights,
        steps_per_execution=config.steps_per_execution,
        jit_compile=backend.jit_compile(config),
    )
    return model


def _start_from(run, model):
    """Gives the networks of a model the weights of those of another run.

    Raises:
        UserError: if it is no run, or its networks are not of the same form.
    """
    source, _ = checkpoints.load_model(run, "latest")
    for name, value in model.config.items():
        if name not in ("image_size", "pool_size", "seed", "power_init") and source.config[name] != value:
            raise UserError(
                f"--initial_run={run}: its networks are of --{name}={source.config[name]}, not {value}; "
                "give the same flag, or another run"
            )
    for name in NETWORKS:
        getattr(model, name).set_weights(getattr(source, name).get_weights())


def _balanced_class_weights(domains):
    """For each class, the number of training images over that of the class, over the number of classes.

    Raises:
        UserError: if a class has no image.
    """
    labels = np.concatenate([domain.labels for domain in domains])
    counts = np.bincount(labels, minlength=len(CLASSES))
    if not counts.all():
        raise UserError(f"--class_weights=balanced: no training image is of class {CLASSES[int(counts.argmin())]}")
    return tuple(float(weight) for weight in len(labels) / (len(CLASSES) * counts))


def _fit(config, model, stream, validation, schedule, interruption, epoch, end, step, unfinished):
    """Trains from `step`, which lies in `epoch`, to the end of the epochs before `end`."""
    run = Path(config.output_dir)
    shown = [
        np.concatenate(list(read_batches(_spread(domain.files), config.crop_size, config.channels, 1, config.window)))
        for domain in stream.domains
    ]
    shown = [batch[: min(map(len, shown))] for batch in shown]
    steps = stream.steps_per_epoch
    recorder = progress = None
    watching = [callbacks.GoOn(unfinished), callbacks.StopOnNaN()]
    if backend.leads():
        validate = _validator(config, model, validation)
        recorder = callbacks.Recorder(
            run, schedule, validate, config.keep_checkpoints, epoch, unfinished.get("seconds", 0.0)
        )
        progress = callbacks.Progress(steps, config.epochs)
        watching += [progress, callbacks.Samples(run, *shown, config.sample_interval), recorder]
    watching += [
        callbacks.EarlyStopping(recorder, config.early_stopping, backend.agree),
        callbacks.Saver(run, config.save_minutes, steps, interruption, recorder, backend.agree),
    ]
    model.stop_training = False
    try:
        with backend.failures(config, stream):
            model.fit(
                backend.batches(stream, end, step),
                steps_per_epoch=steps - step % steps,
                epochs=end,
                initial_epoch=epoch,
                shuffle=False,
                verbose=0,
                callbacks=watching,
            )
    finally:
        if progress is not None:
            progress.close()
    trained = model.steps_trained
    if trained != end * steps and not model.stop_training:
        raise RuntimeError(f"{trained} steps were trained, not {end} epochs of {steps}")


def _validation_domain(config):
    folder = Path(config.datasets_dir) / "valA"
    return read_domain(folder) if folder.is_dir() else None


def _validator(config, model, validation):
    if validation is None:
        return None
    reference = Path(config.datasets_dir) / "valA_reference"
    restorer = Restorer.of_model(model)
    copy = None
    if config.ema_decay or config.distribute != "none":
        # A network of its own: the averages must not enter the training, and only one device validates.
        with backend.alone():
            copy = build_generator(
                config.method, config.q, config.channels, config.filters, upsampling=config.upsampling, skip=config.skip
            )
        restorer = Restorer(copy.predict_on_batch, restorer.size, restorer.channels, restorer.stride)

    def validate():
        if copy is not None:
            copy.set_weights(model.averaged_restorer_weights() or model.restorer.get_weights())
        with backend.alone() if copy is not None else contextlib.nullcontext():
            result = Evaluation(restorer, validation, reference if reference.is_dir() else None)
        classification = result.classification()
        measures = {name: classification[name] for name in ("accuracy", "sensitivity", "specificity", "f1", "auroc")}
        return {**measures, **{name: metrics.finite_mean(values) for name, values in result.scores.items()}}

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
    # A run that is older than a setting was made with its default.
    before = {field.name: field.default for field in dataclasses.fields(config)} | before
    for name, value in dataclasses.asdict(config).items():
        if name not in FREE_TO_CHANGE and before[name] != value:
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
    """Restores the newest sound checkpoint.

    Returns:
        (whole epochs trained, steps trained, what is kept of an unfinished epoch); zeros if there is no checkpoint.
    """
    problem = None
    found = checkpoints.list_checkpoints(run) + checkpoints.list_unfinished(run)
    for checkpoint in sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True):
        try:
            checkpoints.load_weights(model, checkpoint)
        except UserError as error:
            problem = error
            logging.warning("%s; taking the checkpoint before it", error)
            continue
        epochs, rest = divmod(checkpoint.step, steps_per_epoch)
        if epochs != checkpoint.epoch or (rest and not checkpoint.unfinished):
            raise UserError(
                f"{run}: was trained with {checkpoint.step // max(checkpoint.epoch, 1)} steps an epoch, the data and "
                f"--batch_size now give {steps_per_epoch}; resume with the same data"
            )
        return checkpoint.epoch, checkpoint.step, checkpoint.unfinished
    if problem is not None:
        raise UserError(f"{run}: no checkpoint is sound; the last said: {problem}")
    return 0, 0, {}
