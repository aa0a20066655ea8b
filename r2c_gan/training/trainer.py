"""train(config): data, model, callbacks, fit, exact resume."""

import contextlib
import dataclasses
import os
import time
from pathlib import Path

import keras
import numpy as np
from absl import logging
from tqdm import tqdm

from r2c_gan import files, options
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
from r2c_gan.training import callbacks, run_data
from r2c_gan.training.configuration import RETIRED, TrainingConfig
from r2c_gan.training.interruption import Interruption
from r2c_gan.training.run_lock import run_lock

if keras.backend.backend() == "jax":
    from r2c_gan.training import jax_backend as backend
else:
    from r2c_gan.training import tensorflow_backend as backend


__all__ = ["TrainingConfig", "train"]


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
    if config.distribute not in backend.STRATEGIES:
        raise UserError(
            f"--distribute={config.distribute}: Keras on {keras.backend.backend()} has it not; must be one of "
            f"{', '.join(backend.STRATEGIES)}"
        )
    backend.check(config)
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
    with run_lock(config.output_dir) if backend.leads() else contextlib.nullcontext(lambda: None) as still_there:
        return _train(config, domains, validation, begin, still_there)


def _train(config, domains, validation, begin, still_there):
    run = Path(config.output_dir)
    started = time.monotonic()
    previous = _refuse_another_run(config)
    keras.utils.set_random_seed(config.seed)
    stream = UnpairedStream(
        *domains, config.load_size, config.crop_size, config.channels, config.batch_size, config.seed, config.window
    )
    if config.check_images and not previous:
        checked = [domain for domain in (*domains, validation) if domain]
        data.check_images(checked, _bar("checking images"), config.window)
    images = _described(config, domains, validation)
    if previous:
        run_data.check(run, images)

    steps = stream.steps_per_epoch
    schedules = [LinearDecay(config.lr, config.epochs * steps, config.epoch_decay * steps) for _ in range(2)]
    with backend.failures(config, stream), backend.scope(config):
        model = _compiled_model(config, schedules, domains)
        epoch, step, unfinished = checkpoints.resume(run, model, steps)
    if config.initial_run is not None and step == 0:
        _start_from(config.initial_run, model)
    backend.check_alike(run, step)
    if backend.leads():
        machines = _machines(config, run, previous, step)
        begin()
        run_data.write(run, images)
        checkpoints.write_config(run, _model_config(config), dataclasses.asdict(config), machines)
        _describe_films(config, domains)
    with Interruption() as interruption:
        # An epoch that was interrupted is finished by a `fit` of its own, because it has fewer steps than the others.
        ends = [epoch + 1, config.epochs] if unfinished else [config.epochs]
        for end in ends:
            history = [row for row in callbacks.read_history(run) if row["epoch"] <= epoch] if backend.leads() else []
            if epoch < end and not backend.agree(callbacks.out_of_patience(history, config.early_stopping)):
                at = (epoch, end, step, unfinished)
                _fit(config, model, stream, validation, schedules[0], interruption, still_there, *at)
                step = model.steps_trained
                epoch, unfinished = step // steps, {}

    still_there()
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
        "training_seconds": sum(row.get("seconds", 0) for row in callbacks.read_history(run)),
        "seconds_since_last_start": round(time.monotonic() - started, 1),
        "last": last.measures,
        "best_epoch": best.epoch if best else None,
    }
    files.write_json(run / "result.json", result)
    return result


def _model_config(config):
    """What `R2CGAN` takes beside its dtype."""
    return {
        **dataclasses.asdict(config.network),
        "image_size": config.crop_size,
        "pool_size": config.pool_size,
        "seed": config.seed,
    }


def _compiled_model(config, schedules, domains):
    model = R2CGAN(**_model_config(config), dtype=config.precision)
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
        weights = dataclasses.replace(weights, classes=data.balanced_class_weights(domains))
    model.compile(
        Adam(schedules[0], beta_1=config.beta_1, **average),
        Adam(schedules[1], beta_1=config.beta_1),
        weights,
        jit_compile=backend.JIT_COMPILE,
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


def _fit(config, model, stream, validation, schedule, interruption, still_there, epoch, end, step, unfinished):
    """Trains from `step`, which lies in `epoch`, to the end of the epochs before `end`."""
    run = Path(config.output_dir)
    shown = [
        np.concatenate(list(read_batches(_spread(domain.files), config.crop_size, config.channels, 1, config.window)))
        for domain in stream.domains
    ]
    shown = [batch[: min(map(len, shown))] for batch in shown]
    steps = stream.steps_per_epoch
    recorder = progress = None
    watching = [callbacks.FolderGuard(still_there), callbacks.GoOn(unfinished), callbacks.StopOnNaN()]
    if backend.leads():
        validate = _validator(config, model, validation)
        recorder = callbacks.Recorder(
            run, schedule, validate, config.keep_checkpoints, epoch, unfinished.get("seconds", 0.0), still_there
        )
        progress = callbacks.Progress(steps, config.epochs)
        watching += [progress, callbacks.Samples(run, *shown, config.sample_interval, still_there), recorder]
    watching += [
        callbacks.EarlyStopping(recorder, config.early_stopping, backend.agree),
        callbacks.Saver(run, config.save_minutes, steps, interruption, recorder, backend.agree, still_there),
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


def _bar(title):
    return lambda items: tqdm(items, title, unit="image", leave=False)


def _described(config, domains, validation):
    """The images of the training and of the validation, for the run's record."""
    found = dict(zip(("trainA", "trainB"), domains, strict=True))
    if validation is not None:
        found["valA"] = validation
        reference = Path(config.datasets_dir) / "valA_reference"
        if reference.is_dir():
            found["valA_reference"] = data.clean_twins(validation, reference)
    return run_data.describe(found, _bar("reading images"))


def _machines(config, run, previous, step):
    """The machines that a run has trained on, in order, this one last. Warns if the result may depend on the change."""
    machines = checkpoints.read_config(run)["machines"] if previous else []
    here = {
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        **backend.machine(),
    }
    before = {name: value for name, value in machines[-1].items() if name != "from_step"} if machines else here
    if before == here and machines:
        return machines
    if before != here and step and config.deterministic:
        changed = ", ".join(
            f"{name} {before.get(name)} -> {here.get(name)}"
            for name in {**before, **here}
            if before.get(name) != here.get(name)
        )
        logging.warning(
            "%s: trained on another machine so far (%s): sums are made in another order there, so the result will not "
            "be, bit for bit, that of a training on one machine",
            run,
            changed,
        )
    return [*machines, {"from_step": step, **here}]


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
            copy = build_generator(config.network.without_noise())
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
    before = {field.name: field.default for field in options.fields(config)} | before
    for name, unused in RETIRED.items():
        if before.get(name, unused) != unused:
            raise UserError(
                f"{run}: was trained with --{name}={before[name]}, which this version no longer has; it can "
                "be evaluated and used, not trained on"
            )
    options.check_unchanged(run, config, before)
    if config.epochs < before["epochs"]:
        raise UserError(
            f"{run}: holds a run of --epochs={before['epochs']}; it can grow, not shrink to {config.epochs}"
        )
    return True
