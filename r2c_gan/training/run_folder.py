"""What a run folder says of the training that it holds, and how that goes on."""

import os
from pathlib import Path

from absl import logging

from r2c_gan import options
from r2c_gan.errors import UserError
from r2c_gan.models import checkpoints
from r2c_gan.training.configuration import RETIRED


def holds_run(config):
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


def machines(config, previous, step, here):
    """The machines that a run has trained on, in order, this one last. Warns if the result may depend on the change.

    Args:
        config: the `TrainingConfig`.
        previous: whether the folder holds the run already.
        step: steps trained so far.
        here: dictionary of what the backend says of this machine.
    """
    run = Path(config.output_dir)
    known = checkpoints.read_config(run)["machines"] if previous else []
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    here = {"processors": processors, **here}
    before = {name: value for name, value in known[-1].items() if name != "from_step"} if known else here
    if before == here and known:
        return known
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
    return [*known, {"from_step": step, **here}]
