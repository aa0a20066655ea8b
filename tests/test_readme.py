"""The README's commands and its Python are run as they are written, made small by flags added at the end."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import programs
import pytest

from r2c_gan.data.images import write_image

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PROGRAMS = ("train", "evaluate", "restore", "export")
SMALL = ["--filters=4", "--load_size=36", "--crop_size=32", "--epochs=1", "--sample_interval=0", "--pool_size=2"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}


def blocks(language):
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [text for name, text in fenced if name == language]


def run(arguments, folder):
    result = subprocess.run(arguments, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, f"{shlex.join(map(str, arguments))}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory, datasets_dir):
    """A folder in which the README's names exist; `dataset` is made by its first command."""
    folder = tmp_path_factory.mktemp("readme")
    rng = np.random.default_rng(0)
    for index in range(40):
        name = f"collection/{('control', 'covid')[index % 2]}/{index}.png"
        # Blocks of noise: unlike each other at every scale, so that none is taken for a near-duplicate.
        write_image(folder / name, rng.uniform(-1, 1, (10, 10)).repeat(5, axis=0).repeat(5, axis=1))
    (folder / "radiographs").symlink_to(datasets_dir / "testA")
    (folder / "radiograph.png").symlink_to(next((datasets_dir / "testA").glob("*.png")))
    return folder


@pytest.mark.guides
def test_the_programs_in_the_order_of_the_readme(place):
    commands = [shlex.split(line, comments=True) for block in blocks("sh") for line in block.splitlines()]
    modules = []
    for name, *arguments in filter(None, commands):
        if name == "make":
            continue
        if name == "python":
            assert arguments.pop(0) == "-m"
            modules.append(arguments.pop(0))
        else:
            modules.append("r2c_gan.cli." + name.removeprefix("r2c-gan-").replace("-", "_"))
        small = SMALL if modules[-1].endswith(".train") else []
        run(programs.python("-m", modules[-1], *arguments, *small), place)
    assert {"data_prep.prepare", *(f"r2c_gan.cli.{name}" for name in PROGRAMS)} == set(modules)
    assert (place / "results" / "paper" / "result.json").is_file()
    assert (place / "restored" / "predictions.csv").is_file()
    assert (place / "exported" / "saved_model.pb").is_file()


@pytest.mark.guides
def test_the_python_example(place, datasets_dir):
    if not (place / "dataset").exists():  # where this test runs alone
        (place / "dataset").symlink_to(datasets_dir)
    (example,) = blocks("python")
    example = example.replace("epochs=2", "epochs=1, load_size=36, crop_size=32, filters=4, precision='float32'")
    assert "'covid'" in run(programs.python("-c", example), place)
    assert (place / "restored.png").is_file()


def test_make_commands_are_targets_and_what_ci_runs():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    ci = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    commands = [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    makes = [command for command in commands if command.startswith("make ")]
    assert makes == ["make quickstart", "make test"]
    for command in makes:
        assert f"\n{command.split()[1]}:" in makefile
        assert command in ci


def test_it_is_one_page():
    assert len(README.splitlines()) <= 120


@pytest.mark.parametrize("page", [REPOSITORY / "README.md", REPOSITORY / "data_prep/README.md"], ids=str)
def test_links_point_to_what_exists(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert "://" in link or (page.parent / link).exists(), link


def test_the_map_points_to_what_exists():
    design = (REPOSITORY / "docs" / "design.md").read_text(encoding="utf-8")
    mapped = re.findall(r"^([a-z0-9_]+)/  ", design, re.MULTILINE)
    assert {"r2c_gan", "tests"} <= set(mapped)
    for path in mapped:
        assert (REPOSITORY / path).is_dir(), path


def test_every_preset_is_named():
    from r2c_gan.training import presets

    assert set(presets.names()) == set(re.findall(r"^\| `([a-z0-9-]+)`", README, re.MULTILINE))
