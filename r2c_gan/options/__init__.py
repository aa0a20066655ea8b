"""Options, each declared once: a dataclass field with its default, help, choices and range.

Flags (`cli.option_flags`), checks and the constructors of networks and trainings follow from the fields, so that a new
option is one line here beside the code that uses it.
"""

import dataclasses
import math
import typing

from r2c_gan.errors import UserError


def option(default, help, *, choices=None, least=None, most=None, below=None, in_paper=True, fixed=True, common=False):
    """A dataclass field that is an option.

    Args:
        default: its value unless given.
        help: what it means; one or two short sentences.
        choices: the values that it may have, or None.
        least: smallest value of a number, or None.
        most: largest value, or None.
        below: a bound that a number must stay below, or None.
        in_paper: whether the authors' method has it.
        fixed: whether the result depends on it, so that a run cannot go on with another value.
        common: whether `--help` shows it first.
    """
    names = ("help", "choices", "least", "most", "below", "in_paper", "fixed", "common")
    values = (help, choices, least, most, below, in_paper, fixed, common)
    return dataclasses.field(default=default, metadata=dict(zip(names, values, strict=True)))


def check(options):
    """Checks type, choice and range of every option of a dataclass.

    Raises:
        UserError: naming the first flag that is wrong, and what would be right.
    """
    for name, value, wrong in problems(options):
        raise UserError(f"--{name}={value}: {wrong}")


def check_unchanged(run, options, before):
    """Checks that a run can go on with these options: those that its result depends on are what they were.

    Args:
        run: the run folder.
        options: the dataclass.
        before: dictionary, name -> value, of the run so far.

    Raises:
        UserError: naming the first flag that is another.
    """
    for field in fields(options):
        name, value = field.name, getattr(options, field.name)
        if field.metadata["fixed"] and before.get(name) != value:
            raise UserError(
                f"{run}: holds a run with --{name}={before.get(name)}; it cannot go on with --{name}={value}. "
                "Give the same flag, or another --output_dir"
            )


def problems(options):
    """What is wrong with the options of a dataclass: (name, value, what would be right), one at a time."""
    hints = typing.get_type_hints(type(options))
    for field in fields(options):
        value = getattr(options, field.name)
        wrong = _wrong(value, hints[field.name], field.metadata)
        if wrong:
            yield field.name, value, wrong


def fields(options):
    """The fields of a dataclass, or of an instance, that are options."""
    return [field for field in dataclasses.fields(options) if "help" in field.metadata]


def part(options, kind):
    """The options of another one that a dataclass has too: an instance of `kind`."""
    return kind(**{field.name: getattr(options, field.name) for field in fields(kind)})


def _wrong(value, hint, meta):
    """What is wrong with a value, or None."""
    kind, optional = kind_of(hint)
    if value is None and optional:
        return None
    if meta["choices"] is not None and value not in meta["choices"]:
        return f"must be one of {', '.join(map(str, meta['choices']))}"
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        return f"must be {_KINDS[kind]}"
    if kind is float and not math.isfinite(value):
        return "must be a finite number"
    if kind not in (int, float):
        return None
    least, most, below = meta["least"], meta["most"], meta["below"]
    if (least is None or value >= least) and (most is None or value <= most) and (below is None or value < below):
        return None
    if below is not None:
        return f"must be in [{least}, {below})"
    return f"must be at least {least}" if value < least else f"must be at most {most}"


def kind_of(hint):
    """(bool, int, float or str, whether None is allowed too) of an option's annotation."""
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None)]
    return kinds[0], len(typing.get_args(hint)) > 1


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
