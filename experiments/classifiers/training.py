"""The training of a plain classifier: settings, data, `keras.Model.fit`, exact resume."""

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
from tqdm import tqdm

from experiments.classifiers.classifier import CONFIG, FORMAT, MODEL, RESULT, predict_batch, read_record
from experiments.classifiers.data import domains_of, restored_copy
from experiments.classifiers.networks import NETWORKS, WEIGHTS, build_classifier
from r2c_gan import files, options
from r2c_gan.data import datasets as data
from r2c_gan.data.datasets import CLASSES
from r2c_gan.data.streams import UnpairedStream, read_batches
from r2c_gan.errors import UserError
from r2c_gan.evaluation import metrics
from r2c_gan.options import option
from r2c_gan.training import run_data
from r2c_gan.training.configuration import CLASS_WEIGHTS, PRECISIONS
from r2c_gan.training.run_lock import run_lock

MEASURES = ("accuracy", "sensitivity", "specificity", "f1", "auroc")


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """Other flags."""

    datasets_dir: str = option("dataset/", "Folder with trainA/, trainB/ and valA/.", fixed=False, common=True)
    output_dir: str = option("output/", "The run folder.", fixed=False, common=True)
    network: str = option(
        "densenet121",
        "The network; all but small_cnn are keras.applications'.",
        choices=NETWORKS,
        common=True,
    )
    weights: str = option(
        "none", "Start: random, or ImageNet weights, which are downloaded.", choices=WEIGHTS, common=True
    )
    train_on: str = option("trainA", "trainA (poor), trainB (good), both, or a folder of labelled images.", common=True)
    validate_on: str | None = option(
        None,
        "Folder to choose the epoch by; by default valA, and for trainB the clean images of valA_reference, or valB.",
    )
    restorer: str | None = option(
        None, "R2C-GAN run or SavedModel that restores all images first; none by default.", common=True
    )
    checkpoint: str = option("auto", "Of the restorer's run: latest, best, an epoch, or auto.")
    size: int = option(128, "Side of the images, in pixels.", least=16, most=8192, common=True)
    epochs: int = option(
        30, "Passes over the images; the learning rate falls in the second half.", least=1, most=10**6, common=True
    )
    batch_size: int = option(16, "Images a step.", least=1, most=4096)
    lr: float = option(1e-3, "Learning rate of Adam.", least=0)
    # keras.applications' 0.99 remembers the last few hundred steps: until a training has done several times as many,
    # what it validates is little better than noise.
    bn_momentum: float = option(
        0.9, "Momentum of batch normalisation's moving averages; keras.applications have 0.99.", least=0, below=1
    )
    class_weights: str = option(
        "none", "balanced: the loss of a class is weighed by the inverse of its share.", choices=CLASS_WEIGHTS
    )
    precision: str = option(
        "float32", "mixed_bfloat16: float32 weights and losses, bfloat16 convolutions.", choices=PRECISIONS
    )
    seed: int = option(0, "Seed of weights, order and augmentation.", least=0, most=2**32 - 1)
    deterministic: bool = option(True, "Use deterministic operations, so that one seed gives one result.")

    def check(self):
        """Checks what can be checked without the data.

        Raises:
            UserError: naming the flag.
        """
        options.check(self)
        if self.weights == "imagenet" and self.network == "small_cnn":
            raise UserError("--weights=imagenet: there are none of small_cnn; give --weights=none")


def train(config, begin=lambda: None):
    """Trains a classifier, or goes on with a run that was interrupted, after its last whole epoch.

    In deterministic mode, an interrupted and resumed run equals an uninterrupted one bit for bit.

    Args:
        config: a `ClassifierConfig`.
        begin: called once settings, data and run folder have been found usable.

    Returns:
        The dictionary that is written to `result.json`.

    Raises:
        UserError: if a setting, the data or the run folder is not usable.
    """
    from r2c_gan.training import tensorflow_backend

    config.check()
    training, validation = domains_of(config)
    with tensorflow_backend.prepared(config), run_lock(config.output_dir) as still_there:
        return _train(config, training, validation, begin, still_there)


def _train(config, training, validation, begin, still_there):
    import keras

    from r2c_gan.models import checkpoints
    from r2c_gan.models.schedules import LinearDecay
    from r2c_gan.training import callbacks

    run = Path(config.output_dir)
    restorer = _restorer(config)
    previous = _refuse_another_run(run, config, restorer)
    keras.utils.set_random_seed(config.seed)
    if not previous:
        data.check_images([training, validation], _bar("checking images", "image"))
    described = run_data.describe({"train": training, "val": validation}, _bar("reading images", "image"))
    if previous:
        run_data.check(run, described)
    stream = UnpairedStream(training, training, config.size, config.size, 1, config.batch_size, config.seed)
    steps = stream.steps_per_epoch
    schedule = LinearDecay(config.lr, config.epochs * steps, config.epochs * steps // 2)
    network = build_classifier(config.network, config.size, config.weights, config.bn_momentum, config.precision)
    model = _trainable(network)
    model.compile(
        keras.optimizers.Adam(schedule),
        "categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=False,  # slower on a processor, and deterministic mode refuses it
    )
    model.optimizer.build(model.trainable_variables)
    epoch, _, _ = checkpoints.resume(run, model, steps)
    begin()
    run_data.write(run, described)
    record = {"format": FORMAT, "training": dataclasses.asdict(config), "restorer": restorer and restorer.checksum}
    files.write_json(run / CONFIG, record)
    if restorer is not None:
        training, validation = (
            restored_copy(domain, restorer, run / "restored" / name, progress=_bar("restoring", "batch"))
            for name, domain in (("train", training), ("val", validation))
        )
        stream.domains = (training, training)
    recorder = callbacks.HistoryWriter(
        run, schedule, lambda: _validate(config, model, validation), 2, epoch, still_there=still_there
    )
    if epoch < config.epochs:
        _fit(config, model, stream, epoch, recorder)
    still_there()
    return _finish(config, network, model, training, validation, recorder.rows)


def _trainable(network):
    """A model with the layers of a network, and with what the callbacks and checkpoints of `r2c_gan` ask of one.

    The network itself is saved without its optimizer.
    """
    import keras

    class Trainable(keras.Model):
        local_scope = staticmethod(contextlib.nullcontext)

        @property
        def optimizers(self):
            return [self.optimizer]

        @property
        def steps_trained(self):
            return int(self.optimizer.iterations)

    return Trainable(network.input, network.output)


def _fit(config, model, stream, epoch, recorder):
    from r2c_gan.training import callbacks, tensorflow_backend

    steps = stream.steps_per_epoch
    progress = callbacks.Progress(steps, config.epochs, {"loss": "loss", "accuracy": "acc"})
    weights = None
    if config.class_weights == "balanced":
        weights = dict(enumerate(data.balanced_class_weights(stream.domains[:1])))
    try:
        with tensorflow_backend.failures(config, stream):
            model.fit(
                stream.dataset(config.epochs, epoch * steps, domains=(0,)).map(lambda labelled: labelled),
                steps_per_epoch=steps,
                epochs=config.epochs,
                initial_epoch=epoch,
                class_weight=weights,
                shuffle=False,
                verbose=0,
                callbacks=[
                    callbacks.FolderGuard(recorder.still_there),
                    callbacks.TerminateOnNaN(("loss",), "a lower --lr"),
                    progress,
                    recorder,
                ],
            )
    finally:
        progress.close()
    if model.steps_trained != config.epochs * steps:
        raise RuntimeError(f"{model.steps_trained} steps were trained, not {config.epochs} epochs of {steps}")


def _bar(title, unit):
    return lambda items: tqdm(items, title, unit=unit, leave=False)


def _validate(config, model, validation):
    """Loss and scores of the validation images."""
    batches = read_batches(validation.files, config.size, 1, config.batch_size)
    probabilities = np.concatenate([predict_batch(model, batch) for batch in batches])
    measured = metrics.classification_metrics(validation.labels, probabilities)
    likelihood = np.take_along_axis(probabilities, validation.labels[:, None], axis=1)
    return {
        "loss": float(-np.log(np.maximum(likelihood, 1e-7)).mean()),
        **{name: measured[name] for name in MEASURES},
    }


def _restorer(config):
    if config.restorer is None:
        return None
    from r2c_gan.restoration.restorer import Restorer

    restorer = Restorer.load(config.restorer, config.checkpoint)
    if restorer.size != (config.size, config.size):
        height, width = restorer.size
        raise UserError(f"--size={config.size}: the restorer works at {height} x {width} pixels; give that size")
    return restorer


def _refuse_another_run(run, config, restorer):
    """Whether the folder holds a run of the same settings and restorer; one of others is refused."""
    if not (run / CONFIG).is_file():
        occupied = [path.name for path in run.iterdir() if path.name in ("config.json", RESULT, "checkpoints")]
        if occupied:
            raise UserError(f"--output_dir={run}: holds {occupied[0]} of something else; give another folder")
        return False
    before = read_record(run)
    options.check_unchanged(run, config, before["training"])
    if before.get("restorer") != (restorer and restorer.checksum):
        raise UserError(f"--restorer={config.restorer}: has other weights than before; give another --output_dir")
    return True


def _finish(config, network, model, training, validation, rows):
    """Writes the best epoch as model.keras, and result.json."""
    from r2c_gan.models import checkpoints

    run = Path(config.output_dir)
    best = checkpoints.select(run)
    checkpoints.load_weights(model, best)
    with files.atomic_path(run / MODEL) as temporary:
        network.save(temporary)
    counts = {
        name: dict(zip(CLASSES, np.bincount(domain.labels, minlength=len(CLASSES)).tolist(), strict=True))
        for name, domain in (("train", training), ("val", validation))
    }
    result = {
        "network": config.network,
        "weights": config.weights,
        "train_on": config.train_on,
        "restorer": config.restorer,
        "size": config.size,
        "parameters": network.count_params(),
        "images": counts,
        "epochs": config.epochs,
        "best_epoch": best.epoch,
        "validation": {name: value for name, value in best.measures.items() if name.startswith("val_")},
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "sha256": files.sha256(run / MODEL),
    }
    files.write_json(run / RESULT, result)
    return result
