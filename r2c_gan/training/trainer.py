"""The training: data, model, callbacks, fit, exact resume."""

import contextlib
import dataclasses
import time
from pathlib import Path

import keras
import numpy as np
from tqdm import tqdm

from r2c_gan import files
from r2c_gan.data import datasets as data
from r2c_gan.data import plausibility
from r2c_gan.data.datasets import read_domain
from r2c_gan.data.streams import UnpairedStream, read_batches
from r2c_gan.errors import UserError
from r2c_gan.evaluation import metrics
from r2c_gan.evaluation.evaluation import Evaluation
from r2c_gan.models import checkpoints
from r2c_gan.models.losses import LossWeights
from r2c_gan.models.model import NETWORKS, R2CGAN
from r2c_gan.models.networks import build_generator
from r2c_gan.models.optimizers import Adam
from r2c_gan.models.schedules import LinearDecay
from r2c_gan.restoration.restorer import Restorer
from r2c_gan.training import callbacks, run_data, run_folder
from r2c_gan.training.configuration import TrainingConfig
from r2c_gan.training.interruption import Interruption
from r2c_gan.training.run_lock import run_lock

if keras.backend.backend() == "jax":
    from r2c_gan.training import jax_backend as backend
else:
    from r2c_gan.training import tensorflow_backend as backend


__all__ = ["Trainer", "TrainingConfig", "train"]


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
    return Trainer(config).train(begin)


class Trainer:
    """One training, stage by stage: check, load data, check the run, build (and resume), record, fit, report.

    Args:
        config: a `TrainingConfig`.
    """

    def __init__(self, config):
        self.config = config
        self.run = Path(config.output_dir)
        self.started = time.monotonic()

    def train(self, begin=lambda: None):
        """All stages in order; see `train`."""
        self.check()
        with backend.prepared(self.config):
            self.load_data()
            with self.locked_run():
                self.check_run()
                self.build()
                self.record(begin)
                self.fit()
                return self.report()

    def check(self):
        """The settings."""
        config = self.config
        config.check()
        if config.distribute not in backend.STRATEGIES:
            raise UserError(
                f"--distribute={config.distribute}: Keras on {keras.backend.backend()} has it not; must be one of "
                f"{', '.join(backend.STRATEGIES)}"
            )
        backend.check(config)

    def load_data(self):
        """The lists of images: both training domains, and the validation domain with its reference images."""
        config, folder = self.config, Path(self.config.datasets_dir)
        limit = config.limit_train_images or None
        self.domains = [read_domain(folder / name, limit) for name in ("trainA", "trainB")]
        self.validation = read_domain(folder / "valA") if (folder / "valA").is_dir() else None
        self.reference_dir = folder / "valA_reference" if (folder / "valA_reference").is_dir() else None
        if config.early_stopping and self.validation is None:
            raise UserError(f"--early_stopping={config.early_stopping}: needs {folder}/valA to validate on")
        if backend.is_chief():
            for domain in self._all_domains():
                print(domain.summary())

    @contextlib.contextmanager
    def locked_run(self):
        """Holds the run folder; `self.still_there()` raises if it was moved or deleted."""
        lock = run_lock(self.run) if backend.is_chief() else contextlib.nullcontext(lambda: None)
        with lock as self.still_there:
            yield

    def check_run(self):
        """The images, and the run that the folder holds already, if any: it must have these settings and images."""
        config = self.config
        self.previous = run_folder.holds_run(config)
        keras.utils.set_random_seed(config.seed)
        sizes = (config.load_size, config.crop_size, config.channels, config.batch_size)
        self.stream = UnpairedStream(*self.domains, *sizes, config.seed, config.window)
        if config.check_images and not self.previous:
            data.check_images(self._all_domains(), _bar("checking images"), config.window)
        described = dict(zip(("trainA", "trainB"), self.domains, strict=True))
        if self.validation is not None:
            described["valA"] = self.validation
            if self.reference_dir is not None:
                described["valA_reference"] = data.reference_images(self.validation, self.reference_dir)
        self.images = run_data.describe(described, _bar("reading images"))
        if self.previous:
            run_data.check(self.run, self.images)

    def build(self):
        """The compiled model, in the state of the newest sound checkpoint.

        A new run may start with the networks of another one (`initial_run`).
        """
        config, steps = self.config, self.stream.steps_per_epoch
        schedules = [LinearDecay(config.lr, config.epochs * steps, config.epoch_decay * steps) for _ in range(2)]
        average = {"use_ema": True, "ema_momentum": config.ema_decay} if config.ema_decay else {}
        weights = LossWeights(
            config.cycle_loss_weight,
            config.identity_loss_weight,
            config.class_loss_weight,
            config.adversarial_loss_weight,
            cycle_a=config.cycle_a_loss_weight,
            identity_a=config.identity_a_loss_weight,
        )
        if config.class_weights == "balanced":
            weights = dataclasses.replace(weights, classes=data.balanced_class_weights(self.domains))
        with backend.failures(config, self.stream), backend.scope(config):
            self.model = R2CGAN(**_model_config(config), dtype=config.precision)
            self.model.compile(
                Adam(schedules[0], beta_1=config.beta_1, **average),
                Adam(schedules[1], beta_1=config.beta_1),
                weights,
                jit_compile=backend.JIT_COMPILE,
            )
            # In the same scope: it belongs to the devices that the model was made on.
            self.epoch, self.step, self.unfinished = checkpoints.resume(self.run, self.model, steps)
        self.schedule = schedules[0]
        if config.initial_run is not None and self.step == 0:
            _start_from(config.initial_run, self.model)
        backend.check_same_step(self.run, self.step)

    def record(self, begin):
        """Settings, images, machine and what tells films apart from other pictures, written to the run folder."""
        if not backend.is_chief():
            return
        machines = run_folder.machines(self.config, self.previous, self.step, backend.machine())
        begin()
        run_data.write(self.run, self.images)
        checkpoints.write_config(self.run, _model_config(self.config), dataclasses.asdict(self.config), machines)
        self._describe_films()

    def fit(self):
        """Trains to the last epoch, to the end of patience, or until asked to end."""
        config, steps = self.config, self.stream.steps_per_epoch
        with Interruption() as interruption:
            # An epoch that was interrupted is finished by a `fit` of its own, because it has fewer steps.
            for end in [self.epoch + 1, config.epochs] if self.unfinished else [config.epochs]:
                history = callbacks.read_history(self.run) if backend.is_chief() else []
                history = [row for row in history if row["epoch"] <= self.epoch]
                patient = not backend.all_reduce_max(callbacks.out_of_patience(history, config.early_stopping))
                if self.epoch < end and patient:
                    self._fit_until(end, interruption)
                    self.step = self.model.steps_trained
                    self.epoch, self.unfinished = self.step // steps, {}
        self.still_there()

    def report(self):
        """Writes `result.json` and returns what it holds."""
        if not backend.is_chief():
            return backend.broadcast(None)
        last = checkpoints.select(self.run, "latest")
        best = checkpoints.best_checkpoint(checkpoints.list_checkpoints(self.run))
        validation = len(self.validation) if self.validation else 0
        result = {
            "epochs": last.epoch,
            "steps": last.step,
            "steps_per_epoch": self.stream.steps_per_epoch,
            "stopped_early": last.epoch < self.config.epochs,
            "images": {"trainA": len(self.domains[0]), "trainB": len(self.domains[1]), "valA": validation},
            "parameters": {name: getattr(self.model, name).count_params() for name in NETWORKS},
            "training_seconds": sum(row.get("seconds", 0) for row in callbacks.read_history(self.run)),
            "seconds_since_last_start": round(time.monotonic() - self.started, 1),
            "last": last.measures,
            "best_epoch": best.epoch if best else None,
        }
        files.write_json(self.run / "result.json", result)
        return backend.broadcast(result)

    def _all_domains(self):
        return [domain for domain in (*self.domains, self.validation) if domain is not None]

    def _describe_films(self):
        """Writes `plausibility.npz`, by which the run tells what is unlike its films, unless they are too few."""
        path = self.run / plausibility.FILE
        if path.is_file():
            return
        total = min(sum(map(len, self.domains)), plausibility.MOST)
        fitted = plausibility.fit_files(
            [domain.files for domain in self.domains],
            self.config.window,
            progress=lambda films: tqdm(films, "describing films", total, unit="film", leave=False),
        )
        if fitted is not None:
            fitted.save(path)

    def _fit_until(self, end, interruption):
        """Trains from where the run is to the end of the epochs before `end`."""
        config, steps = self.config, self.stream.steps_per_epoch
        progress = callbacks.Progress(steps, config.epochs) if backend.is_chief() else None
        self.model.stop_training = False
        try:
            with backend.failures(config, self.stream):
                self.model.fit(
                    backend.batches(self.stream, end, self.step),
                    steps_per_epoch=steps - self.step % steps,
                    epochs=end,
                    initial_epoch=self.epoch,
                    shuffle=False,
                    verbose=0,
                    callbacks=self._callbacks(interruption, progress),
                )
        finally:
            if progress is not None:
                progress.close()
        trained = self.model.steps_trained
        if trained != end * steps and not self.model.stop_training:
            raise RuntimeError(f"{trained} steps were trained, not {end} epochs of {steps}")

    def _callbacks(self, interruption, progress):
        """In the order in which they must be called; what writes runs in one process only."""
        config, run = self.config, self.run
        recorder = None
        called = [
            callbacks.FolderGuard(self.still_there),
            callbacks.RestoreMetrics(self.unfinished),
            callbacks.TerminateOnNaN(),
        ]
        if backend.is_chief():
            validate = _validator(config, self.model, self.validation, self.reference_dir)
            seconds = self.unfinished.get("seconds", 0.0)
            recorder = callbacks.HistoryWriter(
                run, self.schedule, validate, config.keep_checkpoints, self.epoch, seconds, self.still_there
            )
            samples = callbacks.Samples(run, *self._shown_images(), config.sample_interval, self.still_there)
            called += [progress, samples, recorder]
        return [
            *called,
            callbacks.EarlyStopping(recorder, config.early_stopping, backend.all_reduce_max),
            callbacks.CheckpointSaver(
                run,
                config.save_minutes,
                self.stream.steps_per_epoch,
                interruption,
                recorder,
                backend.all_reduce_max,
                self.still_there,
            ),
        ]

    def _shown_images(self):
        """The few images of each domain that `samples/` shows, as many of one as of the other."""
        size, channels, window = self.config.crop_size, self.config.channels, self.config.window
        shown = [
            np.concatenate(list(read_batches(_spread(domain.files), size, channels, 1, window)))
            for domain in self.domains
        ]
        return [batch[: min(map(len, shown))] for batch in shown]


def _model_config(config):
    """What `R2CGAN` takes beside its dtype."""
    return {
        **dataclasses.asdict(config.network),
        "image_size": config.crop_size,
        "pool_size": config.pool_size,
        "seed": config.seed,
    }


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


def _validator(config, model, validation, reference_dir):
    """A function that measures the restorer on the validation images; None without any."""
    if validation is None:
        return None
    restorer = Restorer.of_model(model)
    copy = None
    if config.ema_decay or config.distribute != "none":
        # A network of its own: the averages must not enter the training, and only one device validates.
        with backend.local_scope():
            copy = build_generator(config.network.without_noise())
        restorer = Restorer(copy.predict_on_batch, restorer.size, restorer.channels, restorer.stride)

    def validate():
        if copy is not None:
            copy.set_weights(model.averaged_restorer_weights() or model.restorer.get_weights())
        with backend.local_scope() if copy is not None else contextlib.nullcontext():
            result = Evaluation(restorer, validation, reference_dir)
        classification = result.classification()
        measures = {name: classification[name] for name in ("accuracy", "sensitivity", "specificity", "f1", "auroc")}
        return {**measures, **{name: metrics.finite_mean(values) for name, values in result.scores.items()}}

    return validate


def _bar(title):
    return lambda items: tqdm(items, title, unit="image", leave=False)


def _spread(files, count=3):
    """A few files, spread evenly over the list."""
    return [files[index] for index in sorted({int(place) for place in np.linspace(0, len(files) - 1, count)})]
