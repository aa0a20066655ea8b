"""Which file becomes which: the settings of a restoration, its outputs' names, and what may not be overwritten."""

import dataclasses
import os
from pathlib import Path
from typing import NamedTuple

from r2c_gan import files
from r2c_gan.data import images
from r2c_gan.errors import UserError

FORMATS = ("auto", "png", "dicom")
PANELS = "panels"
RECORDS = ("predictions.csv", "predictions.json", "result.json", "flags.txt")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the restored files depend on, beside the input; the fields are the flags of `r2c-gan-restore`.

    Attributes:
        iterations: passes.
        size: "model" or "native", see `Restorer.restore`.
        detail: "filtered", "all" or "none", see `Restorer.restore`.
        format: "auto" (derived DICOM for DICOM, PNG for others), "png" or "dicom".
        deidentify: whether derived DICOM files lose what identifies the patient, see `derived_dicom.derived`.
        panels: whether a panel of each image is drawn.
        window: which stored values become black and white, the text of a `window.Window`.
    """

    iterations: int = 1
    size: str = "model"
    detail: str = "filtered"
    format: str = "auto"
    deidentify: bool = False
    panels: bool = False
    window: str = "auto"


class Target(NamedTuple):
    """One file that is to be restored.

    Attributes:
        file: the path to read.
        name: its name below the output folder, with the file's own suffix.
        output: the restored image, below the output folder.
        panel: the panel, below the output folder; None if none is drawn.
    """

    file: Path
    name: Path
    output: Path
    panel: Path | None

    @property
    def key(self):
        """The name as text, as the journal and the tables know it."""
        return files.path_text(self.name)

    @property
    def made(self):
        """The paths that are written, below the output folder."""
        return [self.output] if self.panel is None else [self.output, self.panel]


def plan(sources, settings, known=None):
    """The targets of a list of (file, its name below the output folder).

    The suffix of an output takes the place of the input's. Of inputs that differ in the suffix alone, all but one have
    theirs before it: a.png and a.tif become a.png and a.tif.png.

    Args:
        sources: the list.
        settings: the `Settings`.
        known: dictionary from names, as `Target.key`, to the outputs that they have from an earlier run, below the
            output folder. They keep these, and no other name gets one of them.
    """
    known = {key: Path(output) for key, output in (known or {}).items()}
    owners = {output: key for key, output in known.items()}
    named = []
    for number, (file, name) in enumerate(sources):
        file, name = Path(file), Path(name)
        image = name.suffix.lower() in images.IMAGE_SUFFIXES  # a DICOM file may be called by its UID, without one
        stem = name.with_suffix("") if image else name
        derive = settings.format == "dicom" or (settings.format == "auto" and _seems_dicom(file))
        short, long = (base.with_name(base.name + (".dcm" if derive else ".png")) for base in (stem, name))
        named.append((short != name, short != long, number, file, name, short, long))
    found = {}
    for _, _, number, file, name, short, long in sorted(named):  # those first that have the better claim
        key = files.path_text(name)
        output = known.get(key)
        if output not in (short, long):
            output = short if owners.get(short, key) == key else long
        owners.setdefault(output, key)
        found[number] = Target(file, name, output, _panel_of(output) if settings.panels else None)
    return [found[number] for number in range(len(found))]


def _seems_dicom(file):
    """Whether a file is DICOM, or is called so and cannot be looked into: then it must not be in another's way."""
    if images.is_dicom(file):
        return True
    readable = os.path.isfile(file) and os.access(file, os.R_OK)
    return not readable and file.suffix.lower() in images.DICOM_SUFFIXES


def _panel_of(output):
    """The panel of an output; a.png and a.dcm have panels of their own."""
    return Path(PANELS) / (output if output.suffix == ".png" else output.with_name(f"{output.name}.png"))


def refuse_collisions(targets, output_dir):
    """Two inputs of one name would become one file, and an input's own folder would lose it.

    Raises:
        UserError: if so, and if a result would lie among the panels.
    """
    taken = {}
    inputs = {os.path.realpath(target.file) for target in targets}
    for target in targets:
        if target.panel is not None and target.output.parts[0] == PANELS:
            raise UserError(
                f"{target.file}: its result would lie among the panels, in {output_dir / PANELS}; rename its folder, "
                "or leave out --panels"
            )
        for path in target.made:
            if path in taken:
                raise UserError(f"{target.file}: would overwrite the result of {taken[path]}; rename one of them")
            if os.path.realpath(output_dir / path) in inputs:
                raise UserError(
                    f"--output={output_dir}: would overwrite the input {output_dir / path}; give another folder"
                )
        taken.update(dict.fromkeys(target.made, target.file))


def refuse_existing(targets, output_dir, journal):
    """Files that no run into this folder made are not replaced, nor results of other files of the same name.

    Args:
        targets: those that are to be done.
        output_dir: the folder.
        journal: its `restoration_journal.Journal`, entered.

    Raises:
        UserError: if a file is in the way.
    """
    if journal.is_new:
        for name in RECORDS:
            if (output_dir / name).exists():
                raise UserError(f"{output_dir / name}: exists already; give another --output, or --overwrite")
    for target in targets:
        other = journal.source_of(target.key)
        if other not in (None, target.file.absolute()) and _differ(other, target.file):
            raise UserError(
                f"{target.file}: would overwrite the result of {other} in {output_dir}; give another --output"
            )
        if files.path_text(target.output) in journal.announced:
            continue
        for path in target.made:
            if os.path.lexists(output_dir / path):
                raise UserError(f"{output_dir / path}: exists already; give another --output, or --overwrite")


def _differ(other, file):
    """Whether two paths are two files that both exist."""
    return os.path.exists(other) and os.path.realpath(other) != os.path.realpath(file)
