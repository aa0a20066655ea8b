"""Named settings of a training: `r2c-gan-train --preset NAME`, `TrainingConfig.from_preset(NAME)`.

Each is a file NAME.toml beside this module: a description, the preset that it is based on, if any, and the options that
differ from it.
"""

import tomllib
from pathlib import Path

from r2c_gan.errors import UserError

PAPER = "paper"


def names():
    """The names of the presets, the authors' first."""
    return sorted((file.stem for file in Path(__file__).parent.glob("*.toml")), key=lambda name: (name != PAPER, name))


def read(name):
    """A preset.

    Returns:
        (its description, dictionary of the options that differ from the authors').

    Raises:
        UserError: if there is no preset of that name.
    """
    if name not in names():
        raise UserError(f"--preset={name}: must be one of {', '.join(names())}")
    preset = tomllib.loads((Path(__file__).parent / f"{name}.toml").read_text(encoding="utf-8"))
    based_on = read(preset["based_on"])[1] if "based_on" in preset else {}
    return preset["description"], {**based_on, **preset["options"]}
