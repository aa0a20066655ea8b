"""The model card of an exported model: what it was trained on, what it reached, what it is for and what it is not.

After Mitchell et al., "Model cards for model reporting", FAT* 2019. Every figure is read from the files of the run and
of the evaluation; what they do not hold is said to be absent.
"""

import dataclasses
from pathlib import Path

from r2c_gan import files
from r2c_gan.errors import UserError

FILE = "model_card.md"


@dataclasses.dataclass(frozen=True)
class Origin:
    """What is known of where a model comes from. All of it may be missing.

    Attributes:
        checkpoint: the exported `checkpoints.Checkpoint`.
        training: settings of the training, as in the run's `config.json`.
        result: the run's `result.json`.
        evaluation: the `result.json` of an evaluation of that checkpoint.
    """

    checkpoint: object = None
    training: dict = dataclasses.field(default_factory=dict)
    result: dict = dataclasses.field(default_factory=dict)
    evaluation: dict = dataclasses.field(default_factory=dict)


def read_origin(run, checkpoint, evaluation=None):
    """Gathers what a run and an evaluation have recorded.

    Args:
        run: the run folder.
        checkpoint: the `checkpoints.Checkpoint` that is exported.
        evaluation: folder of `r2c-gan-evaluate`; None if there is none.

    Returns:
        An `Origin`.

    Raises:
        UserError: if a file cannot be read, or the evaluation is of another checkpoint.
    """
    run = Path(run)
    training = files.read_json(run / "config.json").get("training", {})
    result = files.read_json(run / "result.json") if (run / "result.json").is_file() else {}
    measured = _read_evaluation(evaluation, checkpoint) if evaluation else {}
    return Origin(checkpoint, training, result, measured)


def _read_evaluation(folder, checkpoint):
    path = Path(folder) / "result.json"
    result = files.read_json(path)
    if not isinstance(result, dict) or not {"model", "n", "classification"} <= set(result):
        raise UserError(f"{path}: not a result of r2c-gan-evaluate")
    measured = result["model"] if isinstance(result["model"], dict) else {}
    if measured.get("sha256") != checkpoint.sha256:
        raise UserError(
            f"{path}: an evaluation of other weights (epoch {measured.get('epoch')}) than those exported "
            f"(epoch {checkpoint.epoch}); evaluate these, or choose others by --checkpoint"
        )
    return result


def checksums(folder):
    """{relative name: {bytes, sha256}} of every file below a folder, sorted."""
    found = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
        for path in found
    }


def render(kind, description, exported, origin=None):
    """The text of a card, in Markdown.

    Args:
        kind: "SavedModel" or "ONNX".
        description: the dictionary of `export.describe`.
        exported: {file: {bytes, sha256}}, as `checksums` gives it.
        origin: an `Origin`, or None if nothing is known.
    """
    origin = origin or Origin()
    sections = [
        _heading(description),
        _model(kind, description, origin),
        _data(origin),
        _training(origin),
        _figures(origin),
        _USE,
        _files(exported),
        _LICENCE,
    ]
    return "\n\n".join(sections) + "\n"


def _heading(description):
    return (
        f"# Model card: R2C-GAN, {description['model']['method']}\n\n"
        "**Research only, not for diagnosis.** Restores chest radiographs of poor quality and gives a probability of "
        "COVID-19 for each."
    )


def _model(kind, description, origin):
    config, (height, width) = description["model"], description["image_size"]
    rows = {
        "method": config["method"],
        "order of the polynomials (q)": config["q"] if config["method"] == "operational" else "none",
        "width (filters)": config["filters"],
        "trained at": f"{height} x {width} pixels, {description['channels']} channel(s)",
        "sizes accepted": f"multiples of {description['stride']} pixels",
        "input": f"`image`, float32 [N, H, W, {description['channels']}] in [-1, 1]",
        "output": "`restored`, of the same shape; `probabilities`, float32 [N, classes]",
        "classes": ", ".join(description["classes"]),
        "parameters": _known(origin.result.get("parameters", {}).get("restorer")),
        "exported as": f"{kind}, by r2c-gan {description['r2c_gan']}",
    }
    if origin.checkpoint:
        rows["weights"] = f"epoch {origin.checkpoint.epoch}, step {origin.checkpoint.step}"
        rows["SHA-256 of the checkpoint"] = f"`{origin.checkpoint.sha256}`"
    else:
        rows["weights"] = "their checkpoint is not recorded"
    return "## Model\n\n" + _table(("", ""), rows.items())


def _data(origin):
    lines = ["## Training data", ""]
    if "imported_from" in origin.training:
        lines.append(
            f"The weights were imported from a checkpoint of the authors' implementation "
            f"(`{origin.training['imported_from']}`). What it was trained on is not recorded here."
        )
        return "\n".join(lines)
    folder = origin.training.get("datasets_dir")
    lines.append(f"Folder: `{Path(folder).name}`." if folder else "The folder is not recorded.")
    counts = origin.result.get("images")
    if counts:
        lines += ["", _table(("domain", "images"), counts.items())]
        lines += ["", "A (trainA, valA) is the poor-quality domain, B the good one; they are not paired."]
    else:
        lines.append("The numbers of images are not recorded: the run has no finished `result.json`.")
    return "\n".join(lines)


def _training(origin):
    settings = {
        name: _without_folders(value)
        for name, value in origin.training.items()
        if name != "imported_from" and value is not None  # a flag that was not given
    }
    result = origin.result
    lines = ["## Training", ""]
    if result.get("epochs") is not None:
        lines.append(
            f"{result['epochs']} epochs, {result.get('steps')} steps, "
            f"{_known(result.get('training_seconds'), '{:.0f} seconds')}."
        )
    else:
        lines.append("Length of the training: not recorded.")
    if settings:
        lines += ["", _table(("flag", "value"), [(f"`--{name}`", f"`{settings[name]}`") for name in sorted(settings)])]
    else:
        lines.append("Its settings are not recorded.")
    return "\n".join(lines)


def _figures(origin):
    lines = ["## Figures", "", "### Validation, at the exported checkpoint", ""]
    measures = origin.checkpoint.measures if origin.checkpoint else {}
    validated = {name: value for name, value in sorted(measures.items()) if name.startswith("val_")}
    if validated:
        lines.append(_table(("measure", "value"), [(name, _number(value)) for name, value in validated.items()]))
    else:
        lines.append("Absent: the run was not validated, or its measures are not recorded.")
    lines += ["", "### Test", ""]
    evaluation = origin.evaluation
    if not evaluation:
        lines.append("Absent: no evaluation was given to the export (`--evaluation`).")
        return "\n".join(lines)
    lines.append(
        f"{evaluation['n']} images of `{Path(evaluation.get('datasets_dir') or 'unknown').name}`, "
        "by `r2c-gan-evaluate`. Intervals are of 95%. The classification is of the poor images."
    )
    rows = [(name, *_with_interval(value)) for name, value in _classification(evaluation).items()]
    for name, value in (evaluation.get("restoration") or {}).items():
        rows.append((f"{name} (mean)", *_with_interval({**value, "value": value["mean"]})))
    lines += ["", _table(("measure", "value", "interval"), rows)]
    if not evaluation.get("restoration"):
        lines += ["", "PSNR and SSIM are absent: there were no clean images to compare with."]
    return "\n".join(lines)


def _classification(evaluation):
    measured = evaluation["classification"]
    intervals = measured.get("intervals", {})
    numbers = {name: value for name, value in measured.items() if value is None or isinstance(value, int | float)}
    return {name: intervals.get(name) or {"value": value} for name, value in numbers.items() if name != "n"}


def _with_interval(value):
    low, high = value.get("low"), value.get("high")
    return _number(value.get("value")), "" if low is None or high is None else f"{_number(low)} to {_number(high)}"


_USE = """\
## Intended use

Research on the restoration of chest radiographs and on classification that goes with it: reproducing the paper,
comparing methods, studying failures.

## Out of scope

- Diagnosis, triage, or any decision about a patient. It is not a medical device, and no regulator has seen it.
- Replacing the image a reader sees. Keep the original beside every restored image.
- Other body parts or modalities, children, and equipment unlike that of the training data: not tested.

## Limits

- A CycleGAN can add or remove findings (Cohen et al. 2018, arXiv 1805.08841). The restored image is what the network
  takes for likely, not what a better exposure would have shown.
- The class probabilities are of the poor image. They do not show that restoring it helps a reader.
- Public COVID-19 collections take the two classes from different sources; a classifier may have learned the source
  instead of the disease (DeGrave et al. 2021).
- If the poor images were made by degrading clean ones, other faults of real images are outside of what was learned, and
  figures on synthetic degradations say little about real ones.
- The probabilities are not calibrated for another population or prevalence."""

_LICENCE = """\
## Licence and citation

The software is under the MIT licence. Whether and how the weights may be passed on depends on the images they were
trained on. Please cite M. Ahishali, A. Degerli, S. Kiranyaz, T. Hamid, R. Mazhar, M. Gabbouj, "R2C-GAN:
Restore-to-Classify Generative Adversarial Networks for blind X-ray restoration and COVID-19 classification", Pattern
Recognition 156 (2024) 110765, arXiv 2209.14770."""


def _files(exported):
    rows = [(f"`{name}`", values["bytes"], f"`{values['sha256']}`") for name, values in exported.items()]
    return "## Files\n\n" + _table(("file", "bytes", "SHA-256"), rows)


def _table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _without_folders(value):
    """Of a path the last part, because the card leaves the machine; any other setting as it is."""
    return Path(value).name if isinstance(value, str) and "/" in value else value


def _known(value, form="{}"):
    return "not recorded" if value is None else form.format(value)


def _number(value):
    return "undefined" if value is None else f"{value:.4g}" if abs(value) >= 1 else f"{value:.3f}"
