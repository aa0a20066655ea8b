"""The run folder: what a training leaves behind, and how it is read again.

    RUN/config.json                          the model's and the training's configuration
    RUN/plausibility.npz                     what the training films look like, see `plausibility`
    RUN/data.json                            names, labels and checksums of the images (`run_data`)
    RUN/flags.txt, RUN/result.json           what was asked for, what came out
    RUN/history.csv, RUN/losses.png          losses, epoch by epoch
    RUN/events/                              the same for TensorBoard
    RUN/samples/                             training samples
    RUN/checkpoints/epoch-00012.weights.h5   four networks, both optimizers, both pools
    RUN/checkpoints/epoch-00012.json         its epoch, step, measures and SHA-256
    RUN/checkpoints/step-000001234.*         the same in the middle of an epoch, to resume from; only the newest is kept
    RUN/.lock                                held by the process that trains

A checkpoint is complete once its JSON file is there, which is written last. Of the model, saving asks for `variables`,
`optimizers`, `local_scope` and `save_weights` only, so that other trainings than that of R2C-GAN use it too.
"""

import dataclasses
import math
import warnings
from pathlib import Path

from absl import logging

from r2c_gan import files
from r2c_gan.errors import UserError
from r2c_gan.models.model import R2CGAN
from r2c_gan.models.optimizers import Adam
from r2c_gan.models.reference_weights import assign_reference_weights, read_authors_checkpoint
from r2c_gan.models.schedules import LinearDecay
from r2c_gan.options.network import RENAMED_SKIPS

__all__ = [
    "Checkpoint",
    "assign_reference_weights",
    "import_authors_checkpoint",
    "list_checkpoints",
    "list_unfinished",
    "load_model",
    "load_weights",
    "prune",
    "read_config",
    "resume",
    "save_checkpoint",
    "save_unfinished",
    "select",
    "write_config",
]

CONFIG = "config.json"
RUN_FORMAT = 2
BEST_BY = "val_f1"
HDF5_OVERHEAD = 2048  # bytes an array, at most; measured: 1,110


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint of a run.

    Attributes:
        weights: path of the weights file.
        epoch: epochs trained, whole ones.
        step: steps trained.
        measures: dictionary of the epoch's losses and validation measures.
        sha256: checksum of the weights file.
        unfinished: of a checkpoint in the middle of an epoch, what the epoch's row of the history will be made of.
    """

    weights: Path
    epoch: int
    step: int
    measures: dict
    sha256: str
    unfinished: dict = dataclasses.field(default_factory=dict)


def write_config(run, model_config, training_config=None, machines=()):
    """Writes `config.json`: the arguments of `R2CGAN` and of the training, and the machines that it ran on."""
    config = {"format": RUN_FORMAT, "model": model_config, "training": training_config or {}}
    files.write_json(Path(run) / CONFIG, {**config, "machines": list(machines)} if machines else config)


def read_config(run):
    """Reads `config.json`.

    Raises:
        UserError: if the folder is not a run, or a run of a newer version, or the file is damaged.
    """
    path = Path(run) / CONFIG
    if not path.is_file():
        raise UserError(f"{run}: not a run folder (it holds no {CONFIG}); give the --output_dir of a training")
    config = files.read_json(path)
    if not isinstance(config, dict) or config.get("format") not in (1, RUN_FORMAT) or "model" not in config:
        raise UserError(f"{path}: not a run of this version (format {RUN_FORMAT})")
    training, machines = config.setdefault("training", {}), config.setdefault("machines", [])
    sound = (
        isinstance(config["model"], dict)
        and isinstance(training, dict)
        and _is_number(training.get("epochs", 1), int)
        and training.get("epochs", 1) >= 1
        and _is_number(training.get("ema_decay", 0))
        and 0 <= training.get("ema_decay", 0) < 1
        and isinstance(machines, list)
        and all(isinstance(machine, dict) for machine in machines)
    )
    if not sound:
        raise UserError(f"{path}: damaged: it does not hold what a training writes; put back the file as it was")
    if config["format"] == 1:
        for part in (config["model"], config["training"]):
            if isinstance(part.get("skip"), str):
                part["skip"] = RENAMED_SKIPS.get(part["skip"], part["skip"])
    return config


def _is_number(value, kinds=(int, float)):
    return isinstance(value, kinds) and not isinstance(value, bool) and -(2**63) < value < 2**63


def save_checkpoint(run, model, epoch, step, measures=None):
    """Saves the whole state of a model as the checkpoint of an epoch, atomically.

    Returns:
        The `Checkpoint`.

    Raises:
        UserError: if the folder cannot be written or the disk is full; earlier checkpoints are left as they are.
    """
    weights = _folder(run) / f"epoch-{epoch:05d}.weights.h5"
    return _save(model, Checkpoint(weights, epoch, step, dict(measures or {}), sha256=""))


def save_unfinished(run, model, epoch, step, unfinished):
    """Saves the whole state of a model in the middle of an epoch, atomically, and deletes older ones of that kind.

    Args:
        run: the run folder.
        model: the model.
        epoch: whole epochs trained.
        step: steps trained.
        unfinished: dictionary, kept with the checkpoint.

    Returns:
        The `Checkpoint`.

    Raises:
        UserError: as `save_checkpoint`.
    """
    weights = _folder(run) / f"step-{step:09d}.weights.h5"
    checkpoint = _save(model, Checkpoint(weights, epoch, step, {}, "", dict(unfinished)))
    for other in list_unfinished(run):
        if other.step < step:
            _delete(other)
    return checkpoint


def _save(model, checkpoint):
    weights = checkpoint.weights
    # HDF5 does not survive a disk that fills up while it writes.
    variables = [*model.variables, *(variable for optimizer in model.optimizers for variable in optimizer.variables)]
    files.require_space(weights, sum(math.prod(variable.shape) * 4 + HDF5_OVERHEAD for variable in variables))
    with files.atomic_path(weights) as temporary, model.local_scope():
        model.save_weights(temporary, overwrite=True)
    checkpoint = dataclasses.replace(checkpoint, sha256=files.sha256(weights))
    files.write_json(_record(weights), {**dataclasses.asdict(checkpoint), "weights": weights.name})
    return checkpoint


def list_checkpoints(run):
    """The complete checkpoints of a run's epochs, oldest first. Their weights are not read."""
    return _list(run, "epoch-*.json")


def list_unfinished(run):
    """The complete checkpoints in the middle of an epoch, oldest first."""
    return _list(run, "step-*.json")


def _list(run, pattern):
    found = []
    for record in sorted(_folder(run).glob(pattern)):
        try:
            values = files.read_json(record)
            # `prune` deletes it: a received record must not name another file.
            weights = files.within(record.parent, values["weights"], record)
            if _record(weights) != record:
                raise UserError(f"names the weights {weights.name}")
            checkpoint = _checked(Checkpoint(**{**values, "weights": weights}))
        except (UserError, TypeError, KeyError, AttributeError) as error:
            warnings.warn(f"{record}: not a readable checkpoint record, passed over ({error})", stacklevel=3)
            continue
        if checkpoint.weights.is_file():
            found.append(checkpoint)
    return found


def _checked(checkpoint):
    """A checkpoint whose record holds what `_save` writes; a `UserError` for another."""
    if not all(_is_number(value, int) and value >= 0 for value in (checkpoint.epoch, checkpoint.step)):
        raise UserError("its epoch and step are no counts")
    if not isinstance(checkpoint.sha256, str):
        raise UserError("its checksum is no text")
    if not isinstance(checkpoint.measures, dict) or not all(
        value is None or _is_number(value) for value in checkpoint.measures.values()
    ):
        raise UserError("its measures are not numbers")
    unfinished = checkpoint.unfinished
    means = unfinished.get("means", {}) if isinstance(unfinished, dict) else None
    if (
        not isinstance(means, dict)
        or not all(isinstance(values, list) and all(map(_is_number, values)) for values in means.values())
        or not _is_number(unfinished.get("seconds", 0))
    ):
        raise UserError("its means of the epoch are not numbers")
    return checkpoint


def select(run, which="auto"):
    """Chooses a checkpoint.

    Args:
        run: the run folder.
        which: "latest"; "best" by validation F1; "auto", the best if the run was validated, else the latest; or an
            epoch's number.

    Raises:
        UserError: if there is no such checkpoint.
    """
    found = list_checkpoints(run)
    if not found:
        raise UserError(f"{run}: holds no complete checkpoint; has its training finished an epoch?")
    best = best_checkpoint(found)
    if which == "latest" or (which == "auto" and best is None):
        return found[-1]
    if which in ("best", "auto"):
        if best is None:
            raise UserError(f"{run}: has no best checkpoint, because it was trained without valA/; take latest")
        return best
    for checkpoint in found:
        if str(checkpoint.epoch) == str(which):
            return checkpoint
    epochs = ", ".join(str(checkpoint.epoch) for checkpoint in found)
    raise UserError(f"{run}: no checkpoint {which!r}; it must be latest, best, auto or one of the epochs {epochs}")


def best_checkpoint(checkpoints):
    """The checkpoint with the highest validation F1, the earliest of equals; None if none has one."""
    validated = [checkpoint for checkpoint in checkpoints if checkpoint.measures.get(BEST_BY) is not None]
    return max(validated, key=lambda checkpoint: checkpoint.measures[BEST_BY], default=None)


def prune(run, keep):
    """Deletes all checkpoints but the newest `keep` and the best, and what killed processes left half-written.

    Only the process that trains may call it.
    """
    found = list_checkpoints(run)
    best = best_checkpoint(found)
    for checkpoint in found[:-keep]:
        if best is None or checkpoint.epoch != best.epoch:
            _delete(checkpoint)
    for checkpoint in list_unfinished(run):
        if found and checkpoint.step <= found[-1].step:
            _delete(checkpoint)
    for leftover in files.leftovers_in(_folder(run)):
        leftover.unlink(missing_ok=True)


def _delete(checkpoint):
    # The record goes first: without it the weights no longer count as a checkpoint.
    _record(checkpoint.weights).unlink(missing_ok=True)
    checkpoint.weights.unlink(missing_ok=True)


def load_weights(model, checkpoint):
    """Restores a model, and its optimizers if it is compiled, from a checkpoint.

    Raises:
        UserError: if the file was altered since it was written, or does not fit the model.
    """
    if files.sha256(checkpoint.weights) != checkpoint.sha256:
        raise UserError(f"{checkpoint.weights}: damaged: its checksum is not the one recorded when it was saved")
    try:
        with warnings.catch_warnings():
            # Keras drops the state of an optimizer that does not fit with a warning alone.
            warnings.filterwarnings("error", message="Skipping variable loading")
            model.load_weights(checkpoint.weights)
    except (ValueError, OSError, KeyError, UserWarning) as error:
        raise UserError(f"{checkpoint.weights}: does not fit this model ({_first_line(error)})") from error


def resume(run, model, steps_per_epoch):
    """Restores the newest sound checkpoint of a run that goes on.

    Returns:
        (whole epochs trained, steps trained, what is kept of an unfinished epoch); zeros if there is no checkpoint.

    Raises:
        UserError: if none is sound, or the epochs had another number of steps.
    """
    problem = None
    found = list_checkpoints(run) + list_unfinished(run)
    for checkpoint in sorted(found, key=lambda checkpoint: checkpoint.step, reverse=True):
        try:
            load_weights(model, checkpoint)
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


def load_model(run, which="auto"):
    """Rebuilds the model of a run, for inference, from a checkpoint that `select` chooses.

    Where the run kept moving averages of the weights (`--ema_decay`), the restorer has these.

    Returns:
        (the `R2CGAN`, the `Checkpoint`).

    Raises:
        UserError: if the folder is not a run, or the checkpoint is missing or damaged.
    """
    config = read_config(run)
    checkpoint = select(run, which)
    try:
        model = R2CGAN(**config["model"])
    except (TypeError, ValueError) as error:
        raise UserError(f"{Path(run) / CONFIG}: describes no model of this version ({_first_line(error)})") from error
    if config["training"].get("ema_decay"):
        # Optimizers of the form that was trained, or their state would not fit; the rate itself does not matter.
        rate = LinearDecay(0.0, total_steps=1, decay_start=1)
        model.compile(Adam(rate, use_ema=True, ema_momentum=config["training"]["ema_decay"]), Adam(rate))
    load_weights(model, checkpoint)
    averages = model.averaged_restorer_weights()
    if averages is not None:
        model.restorer.set_weights(averages)
    return model, checkpoint


def import_authors_checkpoint(folder, run, method, q, image_size=256):
    """Turns a checkpoint of the authors' implementation into a run that evaluates, restores and exports.

    The weights of the four networks are taken over; the state of the optimizers is not (their q biases a layer have q
    states, ours one), so a training that goes on from the run starts with fresh optimizers.

    Args:
        folder: the folder of the authors' checkpoint.
        run: the run folder to make; it must not hold a run.
        method, q: what the checkpoint was trained with.
        image_size: side of the images it was trained on.

    Returns:
        The `Checkpoint`.

    Raises:
        UserError: if the checkpoint cannot be read, or is of another method or q.
    """
    if (Path(run) / CONFIG).exists():
        raise UserError(f"{run}: holds a run already; give another --output_dir")
    theirs = read_authors_checkpoint(folder)
    if (method, q if method == "operational" else None) != (theirs.method, theirs.q):
        flags = f"--method={method}" + (f" --q={q}" if method == "operational" else "")
        raise UserError(f"{folder}: a checkpoint of {theirs.flags}, not of {flags}")
    model = R2CGAN(method=method, q=q, image_size=image_size)
    try:
        for name, weights in theirs.networks.items():
            assign_reference_weights(getattr(model, name), weights)
    except ValueError as error:
        raise UserError(f"{folder}: does not fit the authors' networks ({error})") from error
    model.compile()
    write_config(run, model.config, {"imported_from": Path(folder).name})
    return save_checkpoint(run, model, theirs.epoch, step=0)


def _first_line(error):
    return (str(error).strip().splitlines() or [""])[0]


def _folder(run):
    return Path(run) / "checkpoints"


def _record(weights):
    return weights.with_name(weights.name.removesuffix(".weights.h5") + ".json")
