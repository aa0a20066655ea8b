"""Trains a plain classifier: what a user would put beside R2C-GAN.

  python -m experiments.classifiers --datasets_dir dataset --network densenet121 --output_dir runs/poor
  python -m experiments.classifiers --datasets_dir dataset --network resnet50 --train_on trainB --output_dir runs/clean
  python -m experiments.classifiers --datasets_dir dataset --restorer runs/paper --output_dir runs/restored

The network sees the images that R2C-GAN is trained on, with the augmentation of the evidence's rows: resized and
mirrored. With --restorer it sees them restored; the restored copy is kept below the run folder. After every epoch it is
validated, and the epoch with the best validation F1 becomes model.keras. A run that was killed goes on with its last
whole epoch when the same command is given again, and in deterministic mode ends as if nothing had happened.

Writes classifier.json (the settings), flags.txt, history.csv, history.png, checkpoints/, model.keras and result.json.
Research only, not for diagnosis.
"""

import dataclasses
import hashlib
import itertools
import math
import sys
import time
from pathlib import Path

import numpy as np
from absl import flags, logging
from tqdm import tqdm

from experiments.classifiers.data import domains_of, restored_copy, training_batches
from experiments.classifiers.figures import save_history
from experiments.classifiers.networks import NETWORKS, WEIGHTS, build_classifier
from r2c_gan import files
from r2c_gan.cli import program
from r2c_gan.data import datasets as data
from r2c_gan.data import images
from r2c_gan.data.datasets import CLASSES
from r2c_gan.data.streams import UnpairedStream, read_batches
from r2c_gan.errors import UserError
from r2c_gan.evaluation import metrics
from r2c_gan.training.run_lock import run_lock

FLAGS = flags.FLAGS

CLASS_WEIGHTS = ("none", "balanced")
PRECISIONS = ("float32", "mixed_bfloat16")

CONFIG, MODEL, RESULT = "classifier.json", "model.keras", "result.json"
FORMAT = 1
# What may change between a run and its resumption: where things lie.
FREE_TO_CHANGE = ("datasets_dir", "output_dir")
_FULL_BATCH = 16  # batches of validation and use are filled up to a multiple of this


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """All that the training of a classifier depends on.

    Attributes:
        datasets_dir: the datasets folder.
        output_dir: the run folder.
        network: one of `NETWORKS`.
        weights: "none" for a random start, "imagenet" for the weights that keras.applications downloads.
        train_on: "trainA" (poor), "trainB" (good), "both", or a folder of labelled images.
        validate_on: a folder below `datasets_dir`, or any folder; "" for the kind of image that is trained on: `valA/`,
            and for `trainB` the clean twins of `valA/`, or `valB/`.
        restorer: a run of R2C-GAN or its SavedModel that restores training and validation images first; "" for none.
        checkpoint: which of the run's checkpoints, as in `checkpoints.select`.
        size: side of the images in pixels.
        epochs: passes over the images. The learning rate is constant for half of them, then falls linearly to zero.
        batch_size: images a step.
        lr: of Adam.
        bn_momentum: of the moving averages of batch normalisation. keras.applications' 0.99 remembers the last few
            hundred steps, and until a training has done several times as many, what it validates is little better than
            noise.
        class_weights: "balanced" weighs the loss of a class by the inverse of its share, "none" all alike.
        precision: "float32" or "mixed_bfloat16" (float32 weights and losses).
        seed: of weights, order and augmentation.
        deterministic: whether TensorFlow must use deterministic operations.
    """

    datasets_dir: str
    output_dir: str
    network: str = "densenet121"
    weights: str = "none"
    train_on: str = "trainA"
    validate_on: str = ""
    restorer: str = ""
    checkpoint: str = "auto"
    size: int = 128
    epochs: int = 30
    batch_size: int = 16
    lr: float = 1e-3
    bn_momentum: float = 0.9
    class_weights: str = "none"
    precision: str = "float32"
    seed: int = 0
    deterministic: bool = True

    def check(self):
        """Checks what can be checked without the data.

        Raises:
            UserError: naming the flag.
        """
        for name, choices in (
            ("network", NETWORKS),
            ("weights", WEIGHTS),
            ("class_weights", CLASS_WEIGHTS),
            ("precision", PRECISIONS),
        ):
            if getattr(self, name) not in choices:
                raise UserError(f"--{name}={getattr(self, name)}: must be one of {', '.join(choices)}")
        for name, lowest in (("size", 16), ("epochs", 1), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < lowest:
                raise UserError(f"--{name}={getattr(self, name)}: must be at least {lowest}")
        if not self.lr > 0:
            raise UserError(f"--lr={self.lr}: must be above 0")
        if not 0 <= self.bn_momentum < 1:
            raise UserError(f"--bn_momentum={self.bn_momentum}: must be in [0, 1)")
        if self.weights == "imagenet" and self.network == "small_cnn":
            raise UserError("--weights=imagenet: there are none of small_cnn; give --weights=none")


# --- Training ---------------------------------------------------------------------------------------------------------


def train(config, begin=lambda: None):
    """Trains a classifier, or goes on with a run that was interrupted, after its last whole epoch.

    Args:
        config: a `ClassifierConfig`.
        begin: called once settings, data and run folder have been found usable.

    Returns:
        The dictionary that is written to `result.json`.

    Raises:
        UserError: if a setting, the data or the run folder is not usable.
    """
    config.check()
    training, validation = domains_of(config)
    with run_lock(config.output_dir):
        return _train(config, training, validation, begin)


def _train(config, training, validation, begin):
    import keras
    import tensorflow as tf

    from r2c_gan.models import checkpoints
    from r2c_gan.models.schedules import LinearDecay
    from r2c_gan.training.callbacks import HISTORY, read_history

    run = Path(config.output_dir)
    restorer = _restorer(config)
    record = {"format": FORMAT, "training": dataclasses.asdict(config), "data": _digest(training, validation, restorer)}
    going_on = _refuse_another_run(run, record)
    keras.utils.set_random_seed(config.seed)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    if not going_on:
        data.check_images(
            [training, validation], lambda found: tqdm(found, "checking images", unit="image", leave=False)
        )
    stream = UnpairedStream(training, training, config.size, config.size, 1, config.batch_size, config.seed)
    steps = stream.steps_per_epoch
    model = build_classifier(config.network, config.size, config.weights, config.bn_momentum, config.precision)
    total = config.epochs * steps
    model.compile(
        keras.optimizers.Adam(LinearDecay(config.lr, total, total // 2)),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=False,  # slower on a processor, and deterministic mode refuses it
    )
    model.optimizer.build(model.trainable_variables)
    epoch = _resume(run, model)
    begin()
    files.write_json(run / CONFIG, record)
    if restorer is not None:
        training, validation = (
            restored_copy(domain, restorer, run / "restored" / name, progress=_restoring)
            for name, domain in (("train", training), ("val", validation))
        )
        stream.domains = (training, training)

    weights = _class_weights(config, training)
    rows = [row for row in read_history(run) if row["epoch"] <= epoch]
    batches = iter(training_batches(stream, config.batch_size, config.epochs, epoch))
    often = 0.5 if sys.stderr.isatty() else 30
    with tqdm(total=total, initial=epoch * steps, unit="step", mininterval=often, ncols=110) as bar:
        while epoch < config.epochs:
            started = time.monotonic()
            bar.set_description(f"epoch {epoch + 1}/{config.epochs}", refresh=False)
            logs = _train_epoch(config, model, stream, batches, weights, bar)
            epoch += 1
            measures = {
                "seconds": round(time.monotonic() - started, 2),
                "learning_rate": float(model.optimizer.learning_rate),
                **logs,
                **_validate(config, model, validation),
            }
            bar.set_postfix_str(f"validation F1 {_number(measures['val_f1'])}", refresh=False)
            rows.append({"epoch": epoch, "step": epoch * steps, **measures})
            files.write_csv(run / HISTORY, rows, list(rows[0]))
            _save_checkpoint(run, model, epoch, epoch * steps, measures)
            checkpoints.prune(run, keep=2)
    save_history(rows, run / "history.png")
    return _finish(config, run, model, training, validation, rows)


def _restoring(batches):
    return tqdm(batches, "restoring", unit="batch")


def _train_epoch(config, model, stream, batches, weights, bar):
    """Trains the next epoch; its mean loss and accuracy."""
    import tensorflow as tf

    sums = dict.fromkeys(("loss", "accuracy"), 0.0)
    try:
        for pixels, labels in itertools.islice(batches, stream.steps_per_epoch):
            logs = model.train_on_batch(pixels, labels, class_weight=weights, return_dict=True)
            if not math.isfinite(logs["loss"]):
                raise UserError(f"--lr={config.lr}: the loss is not a finite number; a lower rate may help")
            sums = {name: value + float(logs[name]) for name, value in sums.items()}  # the logs are of one batch
            bar.update()
    except tf.errors.OpError as error:
        if stream.error is not None:
            raise stream.error from None
        if isinstance(error, tf.errors.ResourceExhaustedError):
            raise UserError(f"--batch_size={config.batch_size}: does not fit into the device's memory") from error
        raise
    return {name: value / stream.steps_per_epoch for name, value in sums.items()}


def _validate(config, model, validation):
    probabilities = _predict(model, validation, config.size, config.batch_size)
    measured = metrics.classification_metrics(validation.labels, probabilities)
    likelihood = np.take_along_axis(probabilities, validation.labels[:, None], axis=1)
    names = ("accuracy", "sensitivity", "specificity", "f1", "auroc")
    return {
        "val_loss": float(-np.log(np.maximum(likelihood, 1e-7)).mean()),
        **{f"val_{name}": measured[name] for name in names},
    }


def _predict(model, domain, size, batch_size):
    return np.concatenate([_predict_batch(model, batch) for batch in read_batches(domain.files, size, 1, batch_size)])


def _predict_batch(model, batch):
    """Probabilities, float64 [n, 2], of a batch that is filled up: each new size would take a graph of its own."""
    filled = np.pad(batch, [(0, -len(batch) % _FULL_BATCH), (0, 0), (0, 0), (0, 0)])
    probabilities = model.predict_on_batch(filled)[: len(batch)].astype(np.float64)
    return probabilities / probabilities.sum(axis=1, keepdims=True)


def _class_weights(config, training):
    if config.class_weights == "none":
        return None
    counts = np.bincount(training.labels, minlength=len(CLASSES))
    return {label: len(training) / (len(CLASSES) * int(count)) for label, count in enumerate(counts)}


def _restorer(config):
    if not config.restorer:
        return None
    from r2c_gan.restoration.restorer import Restorer

    restorer = Restorer.load(config.restorer, config.checkpoint)
    if restorer.size != (config.size, config.size):
        height, width = restorer.size
        raise UserError(f"--size={config.size}: the restorer works at {height} x {width} pixels; give that size")
    return restorer


def _digest(training, validation, restorer):
    """SHA-256 of what the images are called, their labels and the restorer's weights."""
    digest = hashlib.sha256()
    for domain in (training, validation):
        for file, label in zip(domain.files, domain.labels, strict=True):
            digest.update(f"{file.relative_to(domain.folder).as_posix()} {label}\n".encode())
    digest.update(str(restorer and restorer.checksum).encode())
    return digest.hexdigest()


def _refuse_another_run(run, record):
    """Whether the folder holds a run of the same settings and data; one of others is refused."""
    if not (run / CONFIG).is_file():
        occupied = [path.name for path in run.iterdir() if path.name in ("config.json", RESULT, "checkpoints")]
        if occupied:
            raise UserError(f"--output_dir={run}: holds {occupied[0]} of something else; give another folder")
        return False
    before = read_record(run)
    for name, value in record["training"].items():
        if name not in FREE_TO_CHANGE and before["training"].get(name) != value:
            raise UserError(
                f"{run}: holds a run with --{name}={before['training'].get(name)}; it cannot go on with "
                f"--{name}={value}. Give the same flag, or another --output_dir"
            )
    if before["data"] != record["data"]:
        raise UserError(f"{run}: was trained on other images or labels; give another --output_dir")
    return True


def read_record(run):
    """The settings of a classifier's run.

    Raises:
        UserError: if the folder holds no such run.
    """
    path = Path(run) / CONFIG
    if not path.is_file():
        raise UserError(f"{run}: not a classifier (it holds no {CONFIG}); give an --output_dir of this program")
    record = files.read_json(path)
    if not isinstance(record, dict) or record.get("format") != FORMAT or not {"training", "data"} <= set(record):
        raise UserError(f"{path}: not a classifier of this version (format {FORMAT})")
    return record


def _save_checkpoint(run, model, epoch, step, measures):
    """Saves weights and optimizer in the form that `r2c_gan.models.checkpoints` lists, loads and prunes."""
    from r2c_gan.models import checkpoints

    weights = Path(run) / "checkpoints" / f"epoch-{epoch:05d}.weights.h5"
    variables = [*model.variables, *model.optimizer.variables]
    size = sum(math.prod(variable.shape) * 4 + checkpoints.HDF5_OVERHEAD for variable in variables)
    files.require_space(weights, size)
    with files.atomic_path(weights) as temporary:
        model.save_weights(temporary, overwrite=True)
    saved = checkpoints.Checkpoint(weights, epoch, step, measures, files.sha256(weights))
    record = weights.with_name(weights.name.removesuffix(".weights.h5") + ".json")
    files.write_json(record, {**dataclasses.asdict(saved), "weights": weights.name})


def _resume(run, model):
    """Restores the newest sound checkpoint; the number of whole epochs trained, 0 if there is none."""
    from r2c_gan.models import checkpoints

    problem = None
    for checkpoint in reversed(checkpoints.list_checkpoints(run)):
        try:
            checkpoints.load_weights(model, checkpoint)
            return checkpoint.epoch
        except UserError as error:
            problem = error
            logging.warning("%s; taking the checkpoint before it", error)
    if problem is not None:
        raise UserError(f"{run}: no checkpoint is sound; the last said: {problem}")
    return 0


def _finish(config, run, model, training, validation, rows):
    """Writes the best epoch as model.keras, and result.json."""
    from r2c_gan.models import checkpoints

    found = checkpoints.list_checkpoints(run)
    best = checkpoints.best_checkpoint(found) or found[-1]
    checkpoints.load_weights(model, best)
    alone = build_classifier(config.network, config.size, "none", config.bn_momentum, config.precision)
    alone.set_weights(model.get_weights())  # without the optimizer
    with files.atomic_path(run / MODEL) as temporary:
        alone.save(temporary)
    counts = {
        name: dict(zip(CLASSES, np.bincount(domain.labels, minlength=len(CLASSES)).tolist(), strict=True))
        for name, domain in (("train", training), ("val", validation))
    }
    result = {
        "network": config.network,
        "weights": config.weights,
        "train_on": config.train_on,
        "restorer": config.restorer or None,
        "size": config.size,
        "parameters": model.count_params(),
        "images": counts,
        "epochs": config.epochs,
        "best_epoch": best.epoch,
        "validation": {name: value for name, value in best.measures.items() if name.startswith("val_")},
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "sha256": files.sha256(run / MODEL),
    }
    files.write_json(run / RESULT, result)
    return result


# --- Use --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A trained classifier.

    Attributes:
        name: of its run folder.
        model: the `keras.Model`.
        size: side of the images it sees, in pixels.
        config: its settings, a dictionary.
        result: its `result.json`, a dictionary.
    """

    name: str
    model: object
    size: int
    config: dict
    result: dict

    @classmethod
    def load(cls, run):
        """Loads the classifier of a finished run, without running any code that the file may bring along.

        Raises:
            UserError: if the folder is not such a run, has not finished, or its model was altered.
        """
        run = Path(run)
        config = read_record(run)["training"]
        if not (run / RESULT).is_file() or not (run / MODEL).is_file():
            raise UserError(f"{run}: its training has not finished; give its command again")
        import keras

        result = files.read_json(run / RESULT)
        if files.sha256(run / MODEL) != result.get("sha256"):
            raise UserError(f"{run / MODEL}: damaged: its checksum is not the one recorded when it was saved")
        try:
            model = keras.saving.load_model(run / MODEL, compile=False, safe_mode=True)
        except (ValueError, TypeError, OSError, KeyError) as error:
            raise UserError(f"{run / MODEL}: not a model that can be loaded safely ({error})") from error
        return cls(run.name, model, config["size"], config, result)

    def __call__(self, batch):
        """Class probabilities, float64 [N, 2], of a batch float [N, H, W, 1 or 3] in [-1, 1] of any size."""
        batch = images.with_channels(np.asarray(batch, np.float32), 1)
        if batch.shape[1:3] != (self.size, self.size):
            batch = np.stack([images.resize(image, self.size, self.size) for image in batch])
        return _predict_batch(self.model, np.clip(batch, -1, 1))


def main():
    config = ClassifierConfig(**{field.name: FLAGS[field.name].value for field in dataclasses.fields(ClassifierConfig)})
    config.check()
    program.start_tensorflow()
    result = train(config, begin=lambda: program.write_flags(config.output_dir))
    validated = result["validation"]
    print(
        f"{config.output_dir}: epoch {result['best_epoch']} of {result['epochs']}, validation F1 "
        f"{_number(validated['val_f1'])}, AUROC {_number(validated['val_auroc'])}, {result['seconds']:.0f} s"
    )


def _number(value):
    return "undefined" if value is None else f"{value:.3f}"


def define_flags():
    """Defines the flags of the program. Not at import: this module is a library too."""
    default = ClassifierConfig("", "")
    flags.DEFINE_string("datasets_dir", None, "Folder with trainA/, trainB/ and valA/.", required=True)
    flags.DEFINE_string("output_dir", None, "The run folder.", required=True)
    flags.DEFINE_enum("network", default.network, NETWORKS, "The network; all but small_cnn are keras.applications'.")
    flags.DEFINE_enum("weights", default.weights, WEIGHTS, "Start: random, or ImageNet weights, which are downloaded.")
    flags.DEFINE_string("train_on", default.train_on, "trainA (poor), trainB (good), both, or a folder.")
    flags.DEFINE_string(
        "validate_on",
        default.validate_on,
        "Folder to choose the epoch by; by default valA, and for trainB the clean twins of valA, or valB.",
    )
    flags.DEFINE_string("restorer", default.restorer, "R2C-GAN run that restores all images first; none by default.")
    flags.DEFINE_string("checkpoint", default.checkpoint, "Of the restorer's run: latest, best, an epoch, or auto.")
    flags.DEFINE_integer("size", default.size, "Side of the images, in pixels.")
    flags.DEFINE_integer("epochs", default.epochs, "Passes over the images; the rate falls in the second half.")
    flags.DEFINE_integer("batch_size", default.batch_size, "Images a step.")
    flags.DEFINE_float("lr", default.lr, "Learning rate of Adam.")
    flags.DEFINE_float("bn_momentum", default.bn_momentum, "Of batch normalisation; keras.applications have 0.99.")
    flags.DEFINE_enum("class_weights", default.class_weights, CLASS_WEIGHTS, "Whether classes weigh alike in the loss.")
    flags.DEFINE_enum("precision", default.precision, PRECISIONS, "Of the convolutions.")
    flags.DEFINE_integer("seed", default.seed, "Of weights, order and augmentation.")
    flags.DEFINE_bool("deterministic", default.deterministic, "The same result every time; slower on a GPU.")


def console():
    define_flags()
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
