r"""Does restoring keep the disease? Three tests that ask neither R2C-GAN's own head nor its losses.

  python -m experiments.preservation --datasets_dir dataset --classifier runs/clean --models runs/paper \
      --output_dir results/preservation
  python -m experiments.preservation --phantoms_dir phantoms --models runs/paper --output_dir results/phantoms

--datasets_dir: the prediction of a frozen outside classifier, trained on clean images (`experiments.classifiers
--train_on trainB`), on the poor image, on the restored one and on the reference image. Restoring ought to move the
prediction towards that on the reference image; a finding lost or invented is what Cohen et al. 2018 warn of.

--phantoms_dir (made by `data_prep.phantoms`): phantoms have known lungs and opacities. How much of the opacities'
contrast is kept; whether opacities appear in controls; how much is changed inside and outside the lungs.

Writes result.json, predictions.csv, predictions-MODEL.png, changed-MODEL.png, contrast.png and flags.txt. Research
only, not for diagnosis.
"""

from pathlib import Path

from absl import flags
from tqdm import tqdm

from experiments.classifiers.compare import load, patients, predict, restored_stage, stages
from experiments.preservation.agreement import prediction_changes
from experiments.preservation.figures import save_contrast, save_predictions, save_turned
from experiments.preservation.opacity_contrast import anatomies, phantom_scores, summarise_phantoms
from r2c_gan import files
from r2c_gan.cli import program
from r2c_gan.data.datasets import CLASSES, read_domain, reference_images
from r2c_gan.errors import UserError

FLAGS = flags.FLAGS


def radiographs(datasets_dir, classifier, restorers, size, output, iterations=1, batch_size=16):
    """The predictions of a classifier on `testA/`; writes its figures and returns its part of result.json."""
    domain = read_domain(Path(datasets_dir) / "testA")
    folder = Path(datasets_dir) / "testA_reference"
    reference = reference_images(domain, folder) if folder.is_dir() else None
    batches = stages(
        domain,
        reference,
        restorers,
        size,
        iterations,
        batch_size,
        lambda items: tqdm(items, "radiographs", unit="batch"),
    )
    predicted = {stage: values for (_, stage), values in predict(batches, {"": classifier}).items() if stage}
    clusters = patients(datasets_dir, domain)
    result = {"n": len(domain), "resampled": "cases" if clusters is None else "patients", "models": {}}
    for name, restorer in restorers.items():
        shown = {"poor": predicted["poor"], "restored": predicted[restored_stage(name)]}
        if reference is not None:
            shown["clean"] = predicted["clean"]
        result["models"][name] = prediction_changes(domain.labels, *shown.values(), clusters=clusters)
        called = {image: values > 0.5 for image, values in shown.items()}
        save_predictions(domain.labels, called, output / f"predictions-{name}.png", name)
        save_turned(domain, reference, restorer, iterations, shown, output / f"changed-{name}.png")
    rows = [
        {
            "file": file.relative_to(domain.folder).as_posix(),
            "label": CLASSES[domain.labels[index]],
            **{stage: f"{values[index]:.6f}" for stage, values in predicted.items()},
        }
        for index, file in enumerate(domain.files)
    ]
    files.write_csv(output / "predictions.csv", rows, list(rows[0]))
    return result


def phantoms(phantoms_dir, restorers, size, output, iterations=1, batch_size=16):
    """Contrast and change on the phantoms of `testA/`; writes the figure and returns its part of result.json."""
    domain = read_domain(Path(phantoms_dir) / "testA")
    folder = Path(phantoms_dir) / "testA_reference"
    if not folder.is_dir():
        raise UserError(f"--phantoms_dir={phantoms_dir}: has no testA_reference/; give a folder of data_prep.phantoms")
    if len(set(domain.labels.tolist())) < len(CLASSES):
        raise UserError(f"{domain.folder}: all its phantoms are of one class")
    reference = reference_images(domain, folder)
    found = anatomies(phantoms_dir, reference, size, lambda cases: tqdm(cases, "anatomy", unit="phantom"))
    if sum(anatomy.measurable for anatomy in found) < 2:
        raise UserError(f"--phantoms_dir={phantoms_dir}: no opacities large enough to measure at {size} pixels")
    batches = stages(
        domain, reference, restorers, size, iterations, batch_size, lambda items: tqdm(items, "phantoms", unit="batch")
    )
    scores = phantom_scores(batches, found)
    save_contrast(scores, domain.labels, output / "contrast.png")
    return summarise_phantoms(scores, domain.labels, found)


def main():
    for name in ("iterations", "batch_size"):
        if FLAGS[name].value < 1:
            raise UserError(f"--{name}={FLAGS[name].value}: must be at least 1")
    if not FLAGS.models:
        raise UserError("--models: name at least one run of r2c-gan-train")
    if not (FLAGS.datasets_dir or FLAGS.phantoms_dir):
        raise UserError("--datasets_dir, --phantoms_dir: give one of them, or both")
    if bool(FLAGS.datasets_dir) != bool(FLAGS.classifier):
        raise UserError("--datasets_dir and --classifier: are needed together")
    program.start_tensorflow()
    classifiers, restorers, size = load([FLAGS.classifier] if FLAGS.classifier else [], FLAGS.models, FLAGS.checkpoint)
    output = Path(FLAGS.output_dir)
    result = {
        "size": size,
        "iterations": FLAGS.iterations,
        "models": {name: restorer.source for name, restorer in restorers.items()},
        "classifier": None,
        "radiographs": None,
        "phantoms": None,
    }
    if FLAGS.datasets_dir:
        (classifier,) = classifiers.values()
        if classifier.config["train_on"] != "trainB":
            print(
                f"note: {classifier.name} was trained on {classifier.config['train_on']}, not on clean images (trainB)"
            )
        result["classifier"] = {"name": classifier.name, **classifier.result}
        arguments = FLAGS.datasets_dir, classifier, restorers, size, output, FLAGS.iterations, FLAGS.batch_size
        result["radiographs"] = radiographs(*arguments)
    if FLAGS.phantoms_dir:
        result["phantoms"] = phantoms(FLAGS.phantoms_dir, restorers, size, output, FLAGS.iterations, FLAGS.batch_size)
    program.write_flags(output)
    files.write_json(output / "result.json", result)
    print(report(result))
    print(f"Research only, not for diagnosis. -> {output}")


def report(result):
    """A few lines for the terminal."""
    lines = []
    if result["radiographs"]:
        for name, measured in result["radiographs"]["models"].items():
            lines.append(f"{name}: predictions of {result['classifier']['name']}, n = {measured['n']}")
            for pair, values in measured["agreement"].items():
                lines.append(
                    f"  agreement {pair.replace('_', ' and '):20s} {_cell(values['agreeing'], 'share')}, kappa "
                    f"{_cell(values['kappa'], 'value')}"
                )
            for image, values in (measured["against_clean"] or {}).items():
                lines.append(
                    f"  against clean, on {image:9s} lost {_cell(values['lost'], 'share')}, invented "
                    f"{_cell(values['invented'], 'share')}"
                )
    if result["phantoms"]:
        lines.append(f"phantoms, n = {result['phantoms']['n']}")
        for name, measured in result["phantoms"]["stages"].items():
            lines.append(
                f"  {name}: opacity contrast kept {_cell(measured['opacities']['kept'], 'value')}, beyond anatomy "
                f"{_cell(measured['opacities']['kept_beyond_anatomy'], 'value')}, false opacities "
                f"{_cell(measured['controls']['false_opacity_in_place'], 'share')}"
            )
    return "\n".join(lines)


def _cell(measured, key):
    if measured[key] is None:
        return "undefined"
    interval = "" if measured["low"] is None else f" [{measured['low']:.2f}, {measured['high']:.2f}]"
    return f"{measured[key]:.2f}{interval}"


def define_flags():
    """Defines the flags of the program. Not at import: this module is a library too."""
    flags.DEFINE_string("datasets_dir", None, "Radiographs: testA/ and testA_reference/ of a datasets folder.")
    flags.DEFINE_string("phantoms_dir", None, "Phantoms: a datasets folder of data_prep.phantoms.")
    flags.DEFINE_string("classifier", None, "For --datasets_dir: a run of experiments.classifiers --train_on trainB.")
    flags.DEFINE_list("models", [], "Runs of r2c-gan-train, or SavedModels.")
    flags.DEFINE_string("output_dir", None, "Folder for the results.", required=True)
    flags.DEFINE_string("checkpoint", "auto", "Of the models' runs: latest, best, an epoch, or auto.")
    flags.DEFINE_integer("iterations", 1, "Passes of restoring.")
    flags.DEFINE_integer("batch_size", 16, "Images a batch.")


def console():
    define_flags()
    program.run(main, __doc__)


if __name__ == "__main__":
    console()
