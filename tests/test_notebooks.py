"""Every notebook runs from top to bottom, and what is committed of it is complete, small and of no one's machine."""

import base64
import json
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

REPOSITORY = Path(__file__).parent.parent
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
LIMIT_SECONDS = 180
LARGEST = 500_000  # bytes

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_notebooks():
    assert NOTEBOOKS


def code_cells(path):
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


@every_notebook
def test_it_is_committed_with_its_outputs(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    pictures = [
        data
        for output in outputs
        for kind, data in output.get("data", {}).items()
        if kind in ("image/png", "image/jpeg")
    ]
    assert pictures
    for picture in pictures:
        assert cv2.imdecode(np.frombuffer(base64.b64decode(picture), np.uint8), cv2.IMREAD_COLOR).std() > 1
    assert sum("assert" in "".join(cell["source"]) for cell in cells) >= 2


@every_notebook
def test_it_is_small_and_holds_no_path_and_no_time(path):
    assert path.stat().st_size < LARGEST
    for cell in code_cells(path):
        for output in cell["outputs"]:
            text = "".join(output.get("text", "")) + "".join(
                "".join(data) for kind, data in output.get("data", {}).items() if kind.startswith("text/")
            )
            assert not re.search(r"/(tmp|home|work|root|usr|opt)\b|[A-Z]:\\|\d\d:\d\d:\d\d", text), text
        assert "execution" not in cell["metadata"]  # times of each cell


@every_notebook
def test_it_says_what_it_is(path):
    first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
    text = "".join(first["source"])
    assert text.startswith("# ") and "arxiv.org/abs/2209.14770" in text and "Research only, not for diagnosis" in text


def run(path, folder, monkeypatch, **given):
    """Executes a notebook in a folder, with other values of what its first lines set."""
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient: pip install '.[notebooks]'")
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat: pip install '.[notebooks]'")
    pytest.importorskip("ipykernel", reason="needs ipykernel: pip install '.[notebooks]'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("TMPDIR", str(folder))  # what a notebook makes goes with the test
    notebook = nbformat.read(path, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    for name, value in given.items():
        first.source, count = re.subn(rf"^{name} = None", f"{name} = {str(value)!r}", first.source, flags=re.MULTILINE)
        assert count == 1
    client = nbclient.NotebookClient(
        notebook, timeout=LIMIT_SECONDS, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()  # raises if a cell does, an assertion for one


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run folder that a notebook has trained."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as monkeypatch:
        run(REPOSITORY / "notebooks" / "train_and_restore.ipynb", folder, monkeypatch)
    (found,) = folder.glob("run-*")
    return found


@pytest.mark.notebooks
def test_one_trains(trained):
    assert (trained / "result.json").is_file()


@pytest.mark.notebooks
def test_one_takes_the_run_of_another(trained, tmp_path, monkeypatch):
    run(REPOSITORY / "notebooks" / "where_it_looks.ipynb", tmp_path, monkeypatch, MODEL=trained)
    assert not list(tmp_path.glob("run-*"))  # nothing was trained anew


OTHERS = [path for path in NOTEBOOKS if path.stem not in ("train_and_restore", "where_it_looks")]


@pytest.mark.notebooks
@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    run(path, tmp_path, monkeypatch)


def test_a_picture_is_kept_in_the_smaller_format_and_width(tmp_path):
    pytest.importorskip("IPython")
    from experiments import notebook
    from r2c_gan.data.images import write_image

    def save(image, path):
        write_image(path, image)

    noise = np.random.default_rng(0).uniform(-1, 1, (60, 200, 1))
    shown = notebook.show(save, noise, width=100)
    assert shown.data.startswith(b"\xff\xd8")
    assert cv2.imdecode(np.frombuffer(shown.data, np.uint8), cv2.IMREAD_COLOR).shape == (30, 100, 3)
    flat = notebook.show(save, np.zeros((60, 200, 1)))
    assert flat.data.startswith(b"\x89PNG")


def test_the_readers_own_folder_is_taken(tmp_path):
    from experiments import notebook

    assert notebook.datasets_folder(tmp_path) == tmp_path
