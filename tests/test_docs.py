"""Every command and every Python example of `docs/` is run as it is written, in the order of its page."""

import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import programs
import pytest
from test_checkpoints import write_authors_checkpoint

from r2c_gan.data.images import write_image

REPOSITORY = Path(__file__).parents[1]
PAGES = sorted((REPOSITORY / "docs").glob("*.md"))
SERVERS = {"r2c-gan-serve": 8501, "r2c-gan-view": 7860}
# The one thing that is changed in a command: trainings are cut short. The last of two equal flags holds.
SHORT = (
    "--epochs=1 --epoch_decay=0 --filters=4 --load_size=33 --crop_size=32 --limit_train_images=4 --sample_interval=0 "
    "--precision=float32"
)
# What the page needs beside the package; without it, it is not run.
NEEDS = {
    "serve": ("starlette", "uvicorn", "orjson", "tf2onnx", "onnxruntime"),
    "view": ("gradio",),
    "restore": ("pydicom",),
}


def blocks(page):
    """(language, text) of the page's fenced blocks that can be run."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(language, text) for language, text in fenced if language in ("sh", "python")]


@pytest.fixture(scope="module")
def made(run_dir, datasets_dir, tmp_path_factory):
    """A folder in which the pages' names exist: a run and its evaluation, a datasets folder, radiographs to restore."""
    folder = tmp_path_factory.mktemp("docs")
    run = folder / "runs" / "paper"
    shutil.copytree(run_dir, run)
    (folder / "dataset").symlink_to(datasets_dir)
    command = programs.python("-m", "r2c_gan.cli.evaluate", "--model", run, "--datasets_dir", folder / "dataset")
    _succeeds([*command, "--output_dir", folder / "results" / "paper"], REPOSITORY)
    rng = np.random.default_rng(0)
    for index in range(3):
        smooth = np.cumsum(rng.normal(0, 0.02, (60, 50, 1)), axis=0)
        write_image(folder / "radiographs" / f"{index}.png", np.clip(smooth, -1, 1))
    shutil.copy(folder / "radiographs" / "0.png", folder / "radiograph.png")
    write_authors_checkpoint(folder / "checkpoints" / "operational", "operational", q=3, epoch=1)
    _write_dicom(folder)
    _write_sources(folder, rng)
    return folder


@pytest.fixture
def place(made, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(made, tmp_path, symlinks=True, dirs_exist_ok=True))


def _write_sources(folder, rng):
    """Class folders and QaTa-COV19's folders."""
    qata = folder / "QaTa-COV19"
    sources = {
        "covid": folder / "clinic/covid",
        "control": folder / "clinic/control",
        "covid_": qata / "QaTa-COV19-v2/Train Set/Images",
        "c": qata / "Control_Group/Control_Group_I",
    }
    for name, source in sources.items():
        for index in range(20):
            write_image(source / f"{name}{index}.png", np.clip(rng.normal(0, 0.4, (48, 48, 1)), -1, 1))


def _write_dicom(folder):
    if importlib.util.find_spec("pydicom") is None:
        return
    from pydicom import examples
    from pydicom.uid import ComputedRadiographyImageStorage

    film = examples.ct  # with a header that is not skipped
    film.SOPClassUID = film.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    film.Modality, film.BodyPartExamined = "CR", "CHEST"
    film.save_as(folder / "radiograph.dcm")
    (folder / "study").mkdir()
    shutil.copy(folder / "radiograph.dcm", folder / "study")


@pytest.mark.guides
@pytest.mark.parametrize("page", list(filter(blocks, PAGES)), ids=lambda page: page.stem)
def test_a_page_does_what_it_says(page, place, monkeypatch):
    missing = [name for name in NEEDS.get(page.stem, ()) if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    bin_folder = place / "bin"
    bin_folder.mkdir()
    for name in re.findall(r"^r2c-gan-[a-z-]+", "\n".join(text for _, text in blocks(page)), re.MULTILINE):
        module = "r2c_gan.cli." + name.removeprefix("r2c-gan-").replace("-", "_")
        _write_program(bin_folder / name, "-m", module)
    _write_program(bin_folder / "python")
    monkeypatch.setenv("PATH", f"{bin_folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    with contextlib.ExitStack() as servers:
        for language, text in blocks(page):
            if language == "python":
                _succeeds(programs.python("-c", text), place)
                continue
            # A line that ends in \ or | goes on in the next.
            for command in re.sub(r"(\\|\|)\n", lambda end: "| " if end[1] == "|" else " ", text).splitlines():
                name = command.split(" ", 1)[0]
                if name in SERVERS:
                    servers.enter_context(_serving(command, SERVERS[name], place))
                elif name != "pip" and command.strip():
                    if name == "r2c-gan-train":
                        command = f"{command} {SHORT}"
                    _succeeds(["bash", "-euo", "pipefail", "-c", command], place)


def _write_program(path, *arguments):
    path.write_text(f'#!/bin/sh\nexec {shlex.join(programs.python(*arguments))} "$@"\n')
    path.chmod(0o755)


def _succeeds(arguments, folder):
    result = subprocess.run(list(map(str, arguments)), cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{shlex.join(map(str, arguments))}\n{result.stdout}\n{result.stderr}"


@contextlib.contextmanager
def _serving(command, port, folder):
    if _listens(port):
        pytest.skip(f"port {port}, which the page uses, is taken")
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(shlex.split(command, comments=True), cwd=folder, stdout=log, stderr=log)
    try:
        started = time.monotonic()
        while not _listens(port):
            assert server.poll() is None and time.monotonic() - started < 120, (folder / "server.log").read_text()
            time.sleep(0.1)
        yield
    finally:
        server.terminate()
        server.wait(30)


def _listens(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_links_of_a_page_point_to_what_exists(page):
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)#]+)\)", prose):
        assert "://" in link or (page.parent / link).exists(), link
