"""What happens around the steps of a training: progress, checkpoints, history, events, samples."""

import csv
import gc
import math
import sys
import time
from pathlib import Path

import keras
import numpy as np
from absl import logging
from keras import ops
from tqdm import tqdm

from r2c_gan import files
from r2c_gan.errors import Interrupted, UserError
from r2c_gan.evaluation import figures
from r2c_gan.models import checkpoints

SHOWN = {"generator_loss": "G", "discriminator_loss": "D", "cycle_a": "cycA", "cycle_b": "cycB", "accuracy": "acc"}
HISTORY = "history.csv"
DRAW_EVERY = 30  # seconds between drawings of the losses, which take most of one


class Progress(keras.callbacks.Callback):
    """One bar over all steps of the run, with the running losses of the epoch.

    Args:
        steps_per_epoch, epochs: of the run.
        shown: dictionary, name of a loss or score -> what it is called in the bar.
    """

    def __init__(self, steps_per_epoch, epochs, shown=SHOWN):
        super().__init__()
        self.steps_per_epoch, self.epochs, self.shown = steps_per_epoch, epochs, shown
        self.bar = None

    def on_train_begin(self, logs=None):
        # Where nobody is watching, a line now and then will do.
        often = 0.2 if sys.stderr.isatty() else 30
        total, done = self.epochs * self.steps_per_epoch, self.model.steps_trained
        self.bar = tqdm(total=total, initial=done, unit="step", mininterval=often, ncols=120)

    def on_epoch_begin(self, epoch, logs=None):
        self.bar.set_description(f"epoch {epoch + 1}/{self.epochs}", refresh=False)

    def on_train_batch_end(self, batch, logs=None):
        # TQDM_DISABLE makes a bar without counters.
        if not self.bar.disable and self.bar.n + 1 - self.bar.last_print_n >= self.bar.miniters:
            losses = {short: f"{float(logs[name]):.3g}" for name, short in self.shown.items() if name in logs}
            self.bar.set_postfix(losses, refresh=False)
        self.bar.update(self.model.steps_trained - self.bar.n)

    def close(self):
        """Ends the bar's line. Keras does not call `on_train_end` after an exception."""
        if self.bar is not None:
            self.bar.close()


class TerminateOnNaN(keras.callbacks.Callback):
    """Ends the run at a loss that is not finite, before a checkpoint is made of it.

    Args:
        watched: names of the losses; those that others add up to are enough, each costs a wait for the device.
        remedy: what may help.
    """

    def __init__(
        self,
        watched=("generator_loss", "discriminator_loss"),
        remedy="a lower --lr, a smaller --q or --precision=float32",
    ):
        super().__init__()
        self.watched, self.remedy = watched, remedy

    def on_train_batch_end(self, batch, logs=None):
        total = sum(float(logs[name]) for name in self.watched)
        if not math.isfinite(total):
            terms = ", ".join(name for name, value in logs.items() if not math.isfinite(float(value)))
            raise UserError(
                f"step {self.model.steps_trained}: not a finite number: {terms}. The last checkpoint is good; "
                f"{self.remedy} may help"
            )


class RestoreMetrics(keras.callbacks.Callback):
    """Gives the first epoch the running means of the steps that were trained before the interruption.

    Args:
        unfinished: what `CheckpointSaver` kept with the checkpoint; empty at the beginning of an epoch.
    """

    def __init__(self, unfinished):
        super().__init__()
        self.means = unfinished.get("means", {})

    def on_epoch_begin(self, epoch, logs=None):
        for name, values in self.means.items():
            if name not in self.model.means or len(values) != len(self.model.means[name].variables):
                raise UserError(
                    f"the checkpoint in the middle of epoch {epoch + 1} holds no mean {name!r} of this model"
                )
            for variable, value in zip(self.model.means[name].variables, values, strict=True):
                variable.assign(value)
        self.means = {}


class FolderGuard(keras.callbacks.Callback):
    """Ends the training, before anything is written, if the run folder is no longer there.

    Args:
        still_there: what `run_lock` yields.
    """

    def __init__(self, still_there):
        super().__init__()
        self.still_there = still_there

    def on_train_batch_end(self, batch, logs=None):
        self.still_there()

    def on_epoch_end(self, epoch, logs=None):
        self.still_there()


class CheckpointSaver(keras.callbacks.Callback):
    """Saves in the middle of an epoch: every few minutes, and when the training is asked to end.

    Args:
        run: the run folder.
        minutes: between two savings; 0 for none but the last.
        steps_per_epoch: steps of an epoch.
        interruption: an `Interruption`.
        recorder: the `HistoryWriter`, which knows how long the epoch has taken; None in a process that writes nothing.
        all_reduce_max: gives the largest of the numbers that the processes of a training give.
        still_there: what `run_lock` yields, called before anything is written.
    """

    def __init__(
        self,
        run,
        minutes,
        steps_per_epoch,
        interruption,
        recorder,
        all_reduce_max=lambda value: value,
        still_there=lambda: None,
    ):
        super().__init__()
        self.still_there = still_there
        self.run, self.minutes, self.steps_per_epoch = Path(run), minutes, steps_per_epoch
        self.interruption, self.recorder = interruption, recorder
        self.all_reduce_max = all_reduce_max
        self.saved = time.monotonic()

    def on_train_batch_end(self, batch, logs=None):
        step = self.model.steps_trained
        if step % self.steps_per_epoch == 0:
            return  # the checkpoint of the epoch comes next
        due = self.minutes and time.monotonic() - self.saved >= 60 * self.minutes
        signal = self.all_reduce_max(self.interruption.signal or 0)
        if (due or signal) and self.recorder is not None:
            self._save(step)
        self._end_if_asked(step, signal)

    def _save(self, step):
        self.model.synchronize()
        means = {
            name: [float(ops.convert_to_numpy(ops.convert_to_tensor(variable))) for variable in mean.variables]
            for name, mean in self.model.means.items()
        }
        unfinished = {"means": means, "seconds": self.recorder.seconds()}
        self.still_there()
        checkpoints.save_unfinished(self.run, self.model, step // self.steps_per_epoch, step, unfinished)
        self.saved = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        self.saved = time.monotonic()
        self._end_if_asked(self.model.steps_trained, self.all_reduce_max(self.interruption.signal or 0))

    def _end_if_asked(self, step, signal):
        if signal:
            raise Interrupted(f"step {step} is saved in {self.run}; run the same command again to go on", signal)


class HistoryWriter(keras.callbacks.Callback):
    """At the end of an epoch: validates, then writes history.csv, losses.png, the events and a checkpoint.

    Args:
        run: the run folder.
        schedule: learning rate by step.
        validate: a function that returns a dictionary of validation measures, or None.
        keep: checkpoints kept, besides the best.
        initial_epoch: epochs trained before; later rows of the history, of epochs that were not saved, are dropped.
        seconds_before: seconds that the epoch had taken before an interruption.
        still_there: what `run_lock` yields, called after the validation, which may take long.
    """

    def __init__(
        self, run, schedule, validate=None, keep=5, initial_epoch=0, seconds_before=0.0, still_there=lambda: None
    ):
        super().__init__()
        self.still_there = still_there
        self.run, self.schedule, self.validate, self.keep = Path(run), schedule, validate, keep
        self.seconds_before = seconds_before
        self.drawn = time.monotonic()
        self.rows = [row for row in read_history(run) if row["epoch"] <= initial_epoch]
        self.events = None

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.monotonic() - self.seconds_before
        self.seconds_before = 0.0

    def seconds(self):
        """Seconds that the epoch has taken so far."""
        return round(time.monotonic() - self.started, 2)

    def on_epoch_end(self, epoch, logs=None):
        step = self.model.steps_trained
        row = {
            "epoch": epoch + 1,
            "step": step,
            "seconds": self.seconds(),
            "learning_rate": float(self.schedule(step - 1)),
            **{name: float(value) for name, value in logs.items()},
        }
        if self.validate:
            row.update({f"val_{name}": value for name, value in self.validate().items()})
            self.still_there()
        self.rows.append(row)
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        files.write_csv(self.run / HISTORY, self.rows, columns)
        if time.monotonic() - self.drawn > DRAW_EVERY:
            self._draw()
        self._write_events(row, step)
        measures = {name: value for name, value in row.items() if name not in ("epoch", "step")}
        checkpoints.save_checkpoint(self.run, self.model, epoch + 1, step, measures)
        checkpoints.prune(self.run, self.keep)

    def _write_events(self, row, step):
        """Scalars in TensorBoard's format, through TensorFlow's core, so that TensorBoard need not be installed.

        Under another backend, where TensorFlow may be missing, nothing is written then.
        """
        try:
            import tensorflow as tf
        except ModuleNotFoundError:
            if len(self.rows) == 1:
                logging.info("TensorFlow is not installed: no events are written for TensorBoard")
            return
        if self.events is None:
            if keras.backend.backend() != "tensorflow":
                tf.config.set_visible_devices([], "GPU")  # TensorFlow would take all of its memory
            self.events = tf.summary.create_file_writer(str(self.run / "events"))
        metadata = tf.compat.v1.SummaryMetadata(
            plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
        )
        with self.events.as_default():
            for name, value in row.items():
                if name not in ("epoch", "step") and value is not None:
                    tf.summary.write(name, np.float32(value), step=step, metadata=metadata)
        self.events.flush()

    def _draw(self):
        columns = dict.fromkeys(name for row in self.rows for name in row)
        figures.save_losses({name: [row.get(name) for row in self.rows] for name in columns}, self.run / "losses.png")
        gc.collect()  # a figure refers to itself, and would stay, 15 MB each, until Python looks by itself
        self.drawn = time.monotonic()

    def on_train_end(self, logs=None):
        self._draw()
        if self.events is not None:
            self.events.close()


class EarlyStopping(keras.callbacks.Callback):
    """Ends the training after `patience` epochs in which the validation F1 was not the highest so far.

    It reads the history, so that a resumed run stops where the uninterrupted one would have.

    Args:
        recorder: the `HistoryWriter`, which must come before this one; None in a process that writes nothing.
        patience: epochs; 0 for never.
        all_reduce_max: gives the largest of the numbers that the processes of a training give.
    """

    def __init__(self, recorder, patience, all_reduce_max=lambda value: value):
        super().__init__()
        self.recorder, self.patience, self.all_reduce_max = recorder, patience, all_reduce_max

    def on_epoch_end(self, epoch, logs=None):
        rows = [] if self.recorder is None else self.recorder.rows
        if self.all_reduce_max(out_of_patience(rows, self.patience)):
            self.model.stop_training = True


def out_of_patience(rows, patience):
    """Whether the validation F1 of the last `patience` epochs stayed at or below the best before them.

    Args:
        rows: rows of the history.
        patience: epochs; 0 for never.
    """
    measured = [row[checkpoints.BEST_BY] for row in rows if row.get(checkpoints.BEST_BY) is not None]
    return bool(patience) and len(measured) > patience and max(measured[-patience:]) <= max(measured[:-patience])


class Samples(keras.callbacks.Callback):
    """Every `interval` steps, and after the first epoch if that is shorter: both cycles of a few fixed images.

    Each is a picture below `samples/`.

    Args:
        run: the run folder.
        poor, good: images float32 [n, H, W, C].
        interval: steps; 0 for none.
        still_there: what `run_lock` yields, called before anything is written.
    """

    def __init__(self, run, poor, good, interval, still_there=lambda: None):
        super().__init__()
        self.still_there = still_there
        self.run, self.poor, self.good, self.interval = Path(run), poor, good, interval

    def on_train_begin(self, logs=None):
        self.last = self.model.steps_trained

    def on_train_batch_end(self, batch, logs=None):
        step = self.model.steps_trained
        # Several steps may have been executed at once.
        due = self.interval and step // self.interval > self.last // self.interval
        self.last = step
        if due:
            self._draw(step)

    def on_epoch_end(self, epoch, logs=None):
        step = self.model.steps_trained
        if epoch == 0 and step < self.interval:
            self._draw(step)

    def _draw(self, step):
        self.model.synchronize()
        a2b, b2a = self._apply(self.model.restorer, self.poor), self._apply(self.model.degrade, self.good)
        a2b2a, b2a2b = self._apply(self.model.degrade, a2b), self._apply(self.model.restorer, b2a)
        path = self.run / "samples" / f"step-{step:07d}.png"
        self.still_there()
        figures.save_training_samples(self.poor, a2b, a2b2a, self.good, b2a, b2a2b, path)
        gc.collect()

    def _apply(self, network, images):
        # Not `predict_on_batch`, which under a strategy gives every replica the whole batch.
        with self.model.local_scope():
            return ops.convert_to_numpy(network(images, training=False)[0])


def read_history(run):
    """The rows of `history.csv` as dictionaries of numbers; empty where there is none.

    Raises:
        UserError: if the file does not hold what `HistoryWriter` writes.
    """
    path = Path(run) / HISTORY
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            if not {"epoch", "step"} <= set(reader.fieldnames or ()):
                raise ValueError("its first line names no epoch and step")
            rows = [{name: float(value) if value else None for name, value in row.items()} for row in reader]
        rows = [{**row, "epoch": int(row["epoch"]), "step": int(row["step"])} for row in rows]
        epochs = [row["epoch"] for row in rows]
        if epochs != sorted(set(epochs)):
            raise ValueError("its epochs do not go up")
        if not all(math.isfinite(row.get("seconds", 0)) for row in rows):
            raise ValueError("an epoch has no seconds")
    except (OSError, csv.Error, KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{path}: not a history that a training wrote ({error}); put back the file as it was"
        ) from error
    return rows
