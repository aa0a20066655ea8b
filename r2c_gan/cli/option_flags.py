"""Flags of a program, made from the options of a dataclass (`r2c_gan.options`)."""

import typing

from absl import flags

from r2c_gan.options import fields, kind_of

_DEFINE = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string}


def define(options, program):
    """Defines a flag for each option of a dataclass.

    Args:
        options: the dataclass; it and its base classes are the groups of `--help`, their docstrings' first lines the
            titles.
        program: dotted name of the program's module.
    """
    hints = typing.get_type_hints(options)
    for place, (title, members) in enumerate(groups(options).items()):
        for field in members:
            kind, _ = kind_of(hints[field.name])
            module = {"module_name": f"{program}/{place}/{title}"}  # absl groups flags by module
            if kind is str and field.metadata["choices"] is not None:
                flags.DEFINE_enum(field.name, field.default, field.metadata["choices"], describe(field), **module)
            else:
                _DEFINE[kind](field.name, field.default, describe(field), **module)


def groups(options):
    """Dictionary, title -> fields, of a dataclass's options, the common ones first, each option once."""
    found = {"Common flags": []}
    for base in reversed(options.__mro__[:-1]):
        for field in fields(base):
            if field.name not in {known.name for members in found.values() for known in members}:
                title = "Common flags" if field.metadata["common"] else base.__doc__.partition("\n")[0].rstrip(".")
                found.setdefault(title, []).append(field)
    return found


def describe(field):
    """The help text of an option."""
    return field.metadata["help"] if field.metadata["in_paper"] else f"Not in the paper. {field.metadata['help']}"


def given(options):
    """The options that the command line gave, by itself or through a flag file: dictionary, name -> value."""
    return {field.name: flags.FLAGS[field.name].value for field in fields(options) if flags.FLAGS[field.name].present}


def record(options):
    """Gives every flag the value that an instance has, so that `program.write_flags` writes what was used."""
    for field in fields(options):
        flags.FLAGS[field.name].value = getattr(options, field.name)
