"""The programs, as a person starts them: flags in; files, exit codes and one-line errors out."""

import contextlib
import csv
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import programs
import pytest
from absl import flags

from r2c_gan.cli import program
from r2c_gan.data import images
from r2c_gan.data.datasets import read_domain
from r2c_gan.errors import UserError
from r2c_gan.evaluation.evaluation import Evaluation
from r2c_gan.restoration.restorer import Restorer

PROGRAMS = ("train", "evaluate", "restore", "export", "import_checkpoint")
REPOSITORY = Path(__file__).parents[1]


class Outcome:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    def assert_one_line_error(self, *parts):
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert self.code == 1
        assert len(lines) == 1, self.err
        assert self.err.rstrip().endswith(lines[0])  # the error is the last word
        assert "Traceback" not in self.err
        for part in parts:
            assert str(part) in lines[0]


@contextlib.contextmanager
def no_programs_flags():
    """Takes the flags of all programs away, for a while: programs share flag names, and other tests import some."""
    ours = ("r2c_gan.", "data_prep.", "experiments.")

    def defined():
        groups = flags.FLAGS.flags_by_module_dict().items()
        return [(module, flag) for module, group in groups if module.startswith(ours) for flag in group]

    def remove(pairs):
        for _, flag in pairs:
            delattr(flags.FLAGS, flag.name)

    before = defined()
    remove(before)
    try:
        yield
    finally:
        remove(defined())
        for module, flag in before:
            flags.FLAGS[flag.name] = flag
            flags.FLAGS.register_flag_by_module(module, flag)


@contextlib.contextmanager
def imported(name):
    """A program's module, imported anew so that it defines its flags."""
    module_name = f"r2c_gan.cli.{name}"
    before = sys.modules.pop(module_name, None)
    try:
        yield importlib.import_module(module_name)
    finally:
        sys.modules.pop(module_name, None)
        if before is not None:
            sys.modules[module_name] = before


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a program in this process."""

    def run(name, **arguments):
        flag_texts = [f"--{key}" if value is True else f"--{key}={value}" for key, value in arguments.items()]
        monkeypatch.setattr(sys, "argv", [f"r2c-gan-{name.replace('_', '-')}", *flag_texts])
        monkeypatch.setattr(sys.modules["__main__"], "__doc__", None)
        capsys.readouterr()
        code = 0
        with no_programs_flags(), imported(name) as module:
            try:
                module.console()
            except SystemExit as stop:
                code = stop.code or 0
        return Outcome(code, *capsys.readouterr())

    return run


def start(*arguments, **options):
    """Runs a program in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    result = subprocess.run(
        programs.python("-m", *arguments), env=environment, capture_output=True, text=True, **options
    )
    return Outcome(result.returncode, result.stdout, result.stderr)


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


TINY = {
    "method": "convolutional-light",
    "filters": 3,
    "load_size": 20,
    "crop_size": 16,
    "batch_size": 3,
    "epochs": 1,
    "sample_interval": 0,
}


# --- what each one does ----------------------------------------------------------------------------------------------


def test_train_and_its_flags_file(call, datasets_dir, tmp_path):
    """Trained in a process of its own; `flags.txt` then gives the same command."""
    run = tmp_path / "run"
    arguments = {**TINY, "datasets_dir": datasets_dir, "output_dir": run}
    started = start("r2c_gan.cli.train", *(f"--{name}={value}" for name, value in arguments.items()))
    assert started.code == 0, started.err
    assert "1 epochs, 2 steps, " in started.out and str(run) in started.out
    assert "trainA: 6 images (3 control, 3 covid; labels from file names)" in started.out.splitlines()
    assert "epoch 1/1" in started.err and "cycA=" in started.err  # the progress bar
    lines = (run / "flags.txt").read_text().splitlines()
    for expected in ("--method=convolutional-light", "--lr=0.0002", "--crop_size=16", "--check_images"):
        assert expected in lines
    config = json.loads((run / "config.json").read_text())["training"]
    named = {line.removeprefix("--").partition("=")[0] for line in lines}
    given = {name for name, value in config.items() if value is not None}
    assert given <= named | {name.removeprefix("no") for name in named}
    again = call("train", flagfile=run / "flags.txt")
    assert again.code == 0, again.err
    assert json.loads((run / "config.json").read_text())["training"] == config


def test_train_refuses_another_flag_and_keeps_the_record(call, run_dir, datasets_dir, tmp_path):
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    (run / "flags.txt").write_text("--lr=0.001\n")
    call("train", **TINY, datasets_dir=datasets_dir, output_dir=run).assert_one_line_error(
        run, "--load_size=36", "--load_size=20"
    )
    assert (run / "flags.txt").read_text() == "--lr=0.001\n"


def test_evaluate(call, run_dir, datasets_dir, tmp_path):
    outcome = call("evaluate", model=run_dir, datasets_dir=datasets_dir, output_dir=tmp_path, save_images=True)
    assert outcome.code == 0, outcome.err
    domain = read_domain(datasets_dir / "testA")
    restorer = Restorer.load(run_dir)
    evaluation = Evaluation(restorer, domain, datasets_dir / "testA_reference", iterations=3)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["model"] == restorer.source
    assert result["n"] == 4
    expected = evaluation.measures()
    for name in ("accuracy", "f1", "f2", "auroc", "sensitivity", "specificity", "precision"):
        assert result["classification"][name] == pytest.approx(expected["classification"][name]), name
    for name in ("psnr_input", "psnr_restored", "ssim_restored", "psnr_restored_3"):
        assert result["restoration"][name]["mean"] == pytest.approx(expected["restoration"][name]["mean"], abs=1e-4)
    rows = read_csv(tmp_path / "predictions.csv")
    np.testing.assert_allclose([float(row["p_covid"]) for row in rows], evaluation.probabilities[:, 1], atol=1e-5)
    for name in ("roc.png", "confusion_matrix.png", "panel.png", "flags.txt"):
        assert (tmp_path / name).is_file()
    assert len(list((tmp_path / "panels").iterdir())) == 4
    assert f"psnr_restored        {expected['restoration']['psnr_restored']['mean']:.4f}" in outcome.out


def test_evaluate_goes_on_without_bad_files(call, run_dir, datasets_dir, tmp_path):
    spoiled = Path(shutil.copytree(datasets_dir, tmp_path / "set"))
    for name in ("covid-1.png", "normal-2.png"):
        (spoiled / "testA" / name).write_bytes(b"")
    outcome = call("evaluate", model=run_dir, datasets_dir=spoiled, output_dir=tmp_path / "out")
    assert outcome.code == 1
    assert "testA: 4 images (2 control, 2 covid; labels from file names)" in outcome.out
    for name in ("covid-1.png", "normal-2.png"):
        assert f"left out: {name}: the file is empty" in outcome.err.splitlines()
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["n"] == 2
    assert [failure["file"] for failure in result["failures"]] == ["covid-1.png", "normal-2.png"]
    assert [row["file"] for row in read_csv(tmp_path / "out" / "predictions.csv")] == ["covid-3.png", "normal-0.png"]


def test_evaluate_writes_into_the_run_unless_told(call, run_dir, datasets_dir, tmp_path):
    run = Path(shutil.copytree(run_dir, tmp_path / "run"))
    assert call("evaluate", model=run, datasets_dir=datasets_dir, split="valA", checkpoint="latest").code == 0
    result = json.loads((run / "evaluation" / "result.json").read_text())
    assert result["model"]["epoch"] == 3
    assert "psnr_restored_2" not in result["restoration"]


def test_export_and_restore_agree_with_the_run(call, run_dir, datasets_dir, tmp_path):
    exported = call("export", model=run_dir, output=tmp_path / "saved_model")
    assert exported.code == 0, exported.err
    for name, model in (("run", run_dir), ("exported", tmp_path / "saved_model")):
        outcome = call("restore", model=model, input=datasets_dir / "testA", output=tmp_path / name, iterations=2)
        assert outcome.code == 0, outcome.err
        assert "4 images" in outcome.out and "not for diagnosis" in outcome.out
    one, other = (read_csv(tmp_path / name / "predictions.csv") for name in ("run", "exported"))
    assert [row["file"] for row in one] == [path.name for path in read_domain(datasets_dir / "testA").files]
    restorer = Restorer.load(run_dir)
    for first, second in zip(one, other, strict=True):
        assert float(first["p_covid"]) == pytest.approx(float(second["p_covid"]), abs=1e-5)
        pictures = [images.read_image(tmp_path / name / first["file"]) for name in ("run", "exported")]
        np.testing.assert_allclose(*pictures, atol=2.1 / 255)  # one level of eight bits
        poor = images.read_image(datasets_dir / "testA" / first["file"], 3)
        restored, probabilities = restorer.restore_image(poor, 2)
        np.testing.assert_allclose(pictures[0], restored, atol=1.1 / 255)
        assert float(first["p_covid"]) == pytest.approx(float(probabilities[1]), abs=1e-5)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["images"], result["iterations"]) == (4, 2)
    assert sum(result["labels"].values()) == 4


def test_restore_one_file_and_sub_folders(call, run_dir, tmp_path):
    gradient = np.linspace(-1, 1, 21 * 34).reshape(21, 34, 1)
    images.write_image(tmp_path / "in" / "deep" / "a.png", gradient, bits=16)
    single = call("restore", model=run_dir, input=tmp_path / "in" / "deep" / "a.png", output=tmp_path / "one")
    folder = call("restore", model=run_dir, input=tmp_path / "in", output=tmp_path / "many")
    assert single.code == folder.code == 0
    one, many = tmp_path / "one" / "a.png", tmp_path / "many" / "deep" / "a.png"
    assert one.read_bytes() == many.read_bytes()
    assert images.read_image(one).shape == (21, 34, 3)
    assert read_csv(tmp_path / "many" / "predictions.csv")[0]["file"] == "deep/a.png"


def test_imported_checkpoint_can_be_used(call, datasets_dir, tmp_path):
    from test_checkpoints import write_authors_checkpoint

    write_authors_checkpoint(tmp_path / "authors", "convolutional-light", epoch=5)
    run = tmp_path / "run"
    arguments = {"checkpoint": tmp_path / "authors", "crop_size": 32, "output_dir": run}
    refused = call("import_checkpoint", **arguments, method="operational", q=3)
    refused.assert_one_line_error(tmp_path / "authors", "--method=convolutional-light", "--method=operational --q=3")
    assert not run.exists()
    assert call("import_checkpoint", **arguments, method="convolutional-light").code == 0
    assert "--method=convolutional-light" in (run / "flags.txt").read_text().splitlines()
    assert call("evaluate", model=run, datasets_dir=datasets_dir, output_dir=tmp_path / "evaluation").code == 0
    assert call("restore", model=run, input=datasets_dir / "testA", output=tmp_path / "restored").code == 0
    assert call("export", model=run, output=tmp_path / "saved_model").code == 0
    assert json.loads((tmp_path / "saved_model" / "r2c_gan.json").read_text())["source"]["epoch"] == 5


# --- help and errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", (*PROGRAMS, "serve", "view"))
def test_help_lists_the_flags(call, name):
    helped = call(name, help=True)
    assert helped.code == 0
    assert f"r2c-gan-{name.replace('_', '-')} " in helped.out  # an example
    wanted = {"import_checkpoint": "--checkpoint", "train": "--cycle_loss_weight"}.get(name, "--model")
    assert wanted in helped.out
    assert "--[no]logtostderr" not in helped.out


def test_help_in_a_process_of_its_own_is_quick():
    """TensorFlow takes seconds to start; who only asks for help need not wait."""
    imports = start("r2c_gan.cli.train", "--help", timeout=60)
    assert imports.code == 0
    assert "--epoch_decay" in imports.out
    check = "import sys, r2c_gan, r2c_gan.cli.train; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    assert subprocess.run([sys.executable, "-c", check], env=environment).returncode == 0


BAD = {
    "an unknown flag": ("train", {"epoch": 3}, ["epoch"]),
    "no number": ("train", {"epochs": "many"}, ["--epochs", "many"]),
    "another method": ("train", {"method": "fourier"}, ["--method", "fourier"]),
    "a value out of range": ("train", {"lr": -1}, ["--lr=-1"]),
    "a size that does not fit": ("train", {"crop_size": 15}, ["--crop_size=15"]),
    "no datasets folder": ("train", {"datasets_dir": "nowhere"}, ["nowhere/trainA"]),
    "no model": ("evaluate", {}, ["--model"]),
    "a model that is no run": (
        "evaluate",
        {"model": "{empty}", "datasets_dir": "{datasets}"},
        ["{empty}", "--output_dir"],
    ),
    "no such run": ("evaluate", {"model": "nowhere", "datasets_dir": "{datasets}"}, ["nowhere"]),
    "no such split": ("evaluate", {"model": "{run}", "datasets_dir": "{datasets}", "split": "testC"}, ["testC"]),
    "no such checkpoint": (
        "evaluate",
        {"model": "{run}", "datasets_dir": "{datasets}", "checkpoint": "77"},
        ["{run}", "'77'"],
    ),
    "no iterations": ("evaluate", {"model": "{run}", "iterations": 0}, ["--iterations=0"]),
    "no batch": ("evaluate", {"model": "{run}", "batch_size": 0}, ["--batch_size=0"]),
    "no input": ("restore", {"model": "{run}", "output": "out"}, ["--input"]),
    "no such input": ("restore", {"model": "{run}", "output": "out", "input": "nowhere"}, ["--input=nowhere"]),
    "an input without images": (
        "restore",
        {"model": "{run}", "output": "out", "input": "{empty}"},
        ["--input={empty}"],
    ),
    "no passes": ("restore", {"model": "{run}", "output": "out", "input": "x", "iterations": 0}, ["--iterations=0"]),
    "a broken input": ("restore", {"model": "{run}", "output": "out", "input": "{broken}"}, ["{broken}/broken.png"]),
    "its own input": (
        "restore",
        {"model": "{run}", "output": "{datasets}/testA", "input": "{datasets}/testA"},
        ["--output={datasets}/testA", "the input folder"],
    ),
    "an output that exists": ("export", {"model": "{run}", "output": "{datasets}"}, ["{datasets}", "--output"]),
    "a run without a checkpoint": ("export", {"model": "{bare}", "output": "out"}, ["{bare}"]),
    "no authors' checkpoint": ("import_checkpoint", {"checkpoint": "{empty}", "output_dir": "out"}, ["{empty}"]),
}


@pytest.fixture(scope="module")
def places(run_dir, datasets_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    for name in ("empty", "broken", "bare"):
        (folder / name).mkdir()
    (folder / "broken" / "broken.png").write_bytes(b"not a picture")
    shutil.copy(run_dir / "config.json", folder / "bare")
    return {"run": run_dir, "datasets": datasets_dir} | {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_1(call, places, tmp_path, monkeypatch, case):
    name, arguments, parts = BAD[case]
    monkeypatch.chdir(tmp_path)
    if name == "train":
        arguments = {**TINY, "datasets_dir": "{datasets}", "output_dir": "out", **arguments}
    filled = {key: value.format(**places) if isinstance(value, str) else value for key, value in arguments.items()}
    call(name, **filled).assert_one_line_error(*(part.format(**places) for part in parts))
    if case == "a broken input":  # an outcome, too: the tables come, without rows
        assert json.loads((tmp_path / "out" / "predictions.json").read_text()) == []
        shutil.rmtree(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []  # nothing half-done is left behind


def test_errors_in_a_process_of_its_own():
    outcome = start("r2c_gan.cli.restore", "--model=nowhere", "--inptu=x")
    outcome.assert_one_line_error("inptu", "input")
    outcome = start("r2c_gan.cli.restore", "nowhere")
    assert outcome.code == 1 and outcome.err.startswith("error: ")


@pytest.fixture
def run_main(monkeypatch, capsys):
    """Runs `main` as a program with some arguments."""

    def run(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        monkeypatch.setattr(sys.modules["__main__"], "__doc__", None)
        with no_programs_flags(), pytest.raises(SystemExit) as stop:
            program.run(main, "usage")
        return Outcome(stop.value.code or 0, *capsys.readouterr())

    return run


def test_exit_codes(run_main):
    def user_error():
        raise UserError("a.png: truncated")

    def interrupted():
        raise KeyboardInterrupt

    def defect():
        raise ZeroDivisionError

    assert run_main(lambda: None).code == 0
    run_main(user_error).assert_one_line_error("a.png: truncated")
    assert run_main(interrupted).code == 130
    with pytest.raises(ZeroDivisionError):  # a defect keeps its traceback
        run_main(defect)
    run_main(lambda: None, "stray").assert_one_line_error("'stray': unexpected argument")


def test_a_warning_is_one_line():
    """Without the place in the source that Python adds."""
    ours = REPOSITORY / "r2c_gan" / "files.py"
    warn = f"lambda: warnings.warn_explicit('dark', UserWarning, {str(ours)!r}, 1)"
    code = f"import warnings; from r2c_gan.cli import program; program.run({warn}, 'usage')"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "warning: dark\n")
