"""What happens around the steps of a training: progress, checkpoints, history, events, samples."""

import csv
import math
import sys
import time
from pathlib import Path

import keras
import numpy as np
from tqdm import tqdm

from r2c_gan import checkpoints, figures, files
from r2c_gan.errors import UserError

SHOWN = ("generator_loss", "discriminator_loss", "cycle_a", "cycle_b", "accuracy")
SHORT = {"generator_loss": "G", "discriminator_loss": "D", "cycle_a": "cycA", "cycle_b": "cycB", "accuracy": "acc"}
HISTORY = "history.csv"
DRAW_EVERY = 30  # seconds between drawings of the losses, which take most of one


class Progress(keras.callbacks.Callback):
    """One bar over all steps of the run, with the running losses of the epoch."""

    def __init__(self, steps_per_epoch, epochs, initial_epoch=0):
        super().__init__()
        self.steps_per_epoch, self.epochs, self.initial_epoch = steps_per_epoch, epochs, initial_epoch

    def on_train_begin(self, logs=None):
        # Where nobody is watching, a line now and then will do.
        often = 0.2 if sys.stderr.isatty() else 30
        steps = self.steps_per_epoch
        self.bar = tqdm(
            total=self.epochs * steps, initial=self.initial_epoch * steps, unit="step", mininterval=often, ncols=120
        )

    def on_epoch_begin(self, epoch, logs=None):
        self.bar.set_description(f"epoch {epoch + 1}/{self.epochs}", refresh=False)

    def on_train_batch_end(self, batch, logs=None):
        if self.bar.n + 1 - self.bar.last_print_n >= self.bar.miniters:
            losses = {SHORT[name]: f"{float(logs[name]):.3g}" for name in SHOWN if name in logs}
            self.bar.set_postfix(losses, refresh=False)
        self.bar.update()

    def on_train_end(self, logs=None):
        self.bar.close()


class StopOnNaN(keras.callbacks.Callback):
    """Ends the run at a loss that is not finite, before a checkpoint is made of it."""

    def on_train_batch_end(self, batch, logs=None):
        total = float(logs["generator_loss"]) + float(logs["discriminator_loss"])
        if not math.isfinite(total):
            terms = ", ".join(name for name, value in logs.items() if not math.isfinite(float(value)))
            step = int(self.model.generator_optimizer.iterations)
            raise UserError(
                f"step {step}: not a finite number: {terms}. The last checkpoint is good; a lower --lr, a smaller --q "
                "or --precision=float32 may help"
            )


class Recorder(keras.callbacks.Callback):
    """At the end of an epoch: validates, then writes history.csv, losses.png, the events and a checkpoint.

    Args:
        run: the run folder.
        schedule: learning rate by step.
        validate: a function that returns a dictionary of validation measures, or None.
        keep: checkpoints kept, besides the best.
        initial_epoch: epochs trained before; later rows of the history, of epochs that were not saved, are dropped.
    """

    def __init__(self, run, schedule, validate=None, keep=5, initial_epoch=0):
        super().__init__()
        self.run, self.schedule, self.validate, self.keep = Path(run), schedule, validate, keep
        self.drawn = -DRAW_EVERY
        self.rows = [row for row in read_history(run) if row["epoch"] <= initial_epoch]
        self.events = None

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        step = int(self.model.generator_optimizer.iterations)
        row = {
            "epoch": epoch + 1,
            "step": step,
            "seconds": round(time.monotonic() - self.started, 2),
            "learning_rate": float(self.schedule(step - 1)),
            **{name: float(value) for name, value in logs.items()},
        }
        if self.validate:
            row.update({f"val_{name}": value for name, value in self.validate().items()})
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
        """Scalars in TensorBoard's format, through TensorFlow's core, so that TensorBoard need not be installed."""
        import tensorflow as tf

        if self.events is None:
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
        self.drawn = time.monotonic()

    def on_train_end(self, logs=None):
        self._draw()
        if self.events is not None:
            self.events.close()


class Samples(keras.callbacks.Callback):
    """Every `interval` steps: both cycles of a few fixed images, as a picture below `samples/`.

    Args:
        run: the run folder.
        poor, good: images float32 [n, H, W, C].
        interval: steps; 0 for none.
    """

    def __init__(self, run, poor, good, interval):
        super().__init__()
        self.run, self.poor, self.good, self.interval = Path(run), poor, good, interval

    def on_train_batch_end(self, batch, logs=None):
        step = int(self.model.generator_optimizer.iterations)
        if self.interval == 0 or step % self.interval:
            return
        restore = self.model.restorer.predict_on_batch
        degrade = self.model.degrader.predict_on_batch
        a2b, b2a = restore(self.poor)[0], degrade(self.good)[0]
        a2b2a, b2a2b = degrade(a2b)[0], restore(b2a)[0]
        path = self.run / "samples" / f"step-{step:07d}.png"
        figures.save_training_samples(self.poor, a2b, a2b2a, self.good, b2a, b2a2b, path)


def read_history(run):
    """The rows of `history.csv` as dictionaries of numbers; empty where there is none."""
    path = Path(run) / HISTORY
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [{name: float(value) if value else None for name, value in row.items()} for row in csv.DictReader(file)]
    return [{**row, "epoch": int(row["epoch"]), "step": int(row["step"])} for row in rows]
