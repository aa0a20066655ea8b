"""Writing files whole or not at all."""

import csv
import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from r2c_gan import files
from r2c_gan.errors import UserError


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "folder" / "a.tar.gz"
    with files.atomic_path(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.parent == path.parent  # a rename is atomic within one file system only
        assert temporary.name.endswith(".tar.gz")
        assert temporary.name.startswith(".")
    assert path.read_text() == "whole"
    assert listing(path.parent) == ["a.tar.gz"]


def test_a_failing_block_changes_nothing(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")
    with pytest.raises(RuntimeError, match="half way"), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("half way")
    assert path.read_text() == "before"
    assert listing(tmp_path) == ["a.txt"]


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "a.txt"
    for text in ("one", "two"):
        files.write_text(path, text)
    assert path.read_text() == "two"
    assert listing(tmp_path) == ["a.txt"]


def test_permissions_are_those_of_any_other_file(tmp_path):
    program = "from r2c_gan import files; files.write_text('a.txt', '')"
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, umask=0o027, check=True)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/a\.txt: cannot be written"):
        files.write_text(tmp_path / "file" / "a.txt", "")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder: cannot be written"):
        files.write_text(tmp_path / "folder", "")
    assert listing(tmp_path) == ["file", "folder"]


def test_a_full_disk_is_named(tmp_path):
    message = r"a\.txt: cannot be written \(No space left on device\)"
    with pytest.raises(UserError, match=message), files.atomic_path(tmp_path / "a.txt") as temporary:
        raise OSError(28, "No space left on device", str(temporary))
    assert listing(tmp_path) == []


def test_an_error_about_another_file_passes_through(tmp_path):
    with pytest.raises(FileNotFoundError), files.atomic_path(tmp_path / "a.txt"):
        (tmp_path / "missing").read_text()


def test_json_round_trip(tmp_path):
    value = {"a": [1, 2.5, None, True], "é": "ü"}
    files.write_json(tmp_path / "a.json", value)
    assert files.read_json(tmp_path / "a.json") == value
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == value


def test_json_has_a_line_for_what_holds_plain_values(tmp_path):
    value = {"rows": [{"n": 2, "of": "[a\n  b]"}, {"n": 3, "of": '}"\\{'}], "none": [], "pairs": [[1, 2], {}]}
    files.write_json(tmp_path / "a.json", value)
    assert files.read_json(tmp_path / "a.json") == value
    lines = (tmp_path / "a.json").read_text(encoding="utf-8").splitlines()
    assert (
        len(lines) == 11
        and lines[2] == r"""    {"n": 2, "of": "[a\n  b]"},"""
        and lines[-4:-2] == ["    [1, 2],", "    {}"]
    )
    files.write_json(tmp_path / "b.json", [{"n": 2, "mean": 0.5}])
    assert (tmp_path / "b.json").read_text(encoding="utf-8") == '[\n  {"n": 2, "mean": 0.5}\n]\n'


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_without_nan(tmp_path, value):
    files.write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", {"loss": value})
    assert files.read_json(tmp_path / "a.json") == 1


def test_json_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"a\.json: no such file"):
        files.read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match=r"a\.json: not a readable JSON file"):
        files.read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"a\.json: not a readable JSON file"):
        files.read_json(tmp_path / "a.json")


def test_csv(tmp_path):
    rows = [{"a": 1, "b": "with, comma"}, {"a": 2.5}, {"a": None, "b": 'a "quote"'}]
    files.write_csv(tmp_path / "a.csv", rows, ["a", "b"])
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["a", "b"], ["1", "with, comma"], ["2.5", ""], ["", 'a "quote"']]


def test_a_failing_csv_changes_nothing(tmp_path):
    files.write_csv(tmp_path / "a.csv", [{"a": 1}], ["a"])
    before = (tmp_path / "a.csv").read_bytes()
    with pytest.raises(ValueError, match="not in fieldnames"):
        files.write_csv(tmp_path / "a.csv", [{"a": 1}, {"b": 2}], ["a"])
    assert (tmp_path / "a.csv").read_bytes() == before
    assert listing(tmp_path) == ["a.csv"]


def test_sha256(tmp_path):
    data = bytes(range(256)) * 9999
    (tmp_path / "a").write_bytes(data)
    assert files.sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()


# --- CSV that a spreadsheet opens -------------------------------------------------------------------------------------

NAMES = [
    "=HYPERLINK(A1).png",
    "+a.png",
    "-a.png",
    "@a.png",
    "\ta.png",
    "\ra.png",
    "'=a.png",
    "''-a",
    "'a.png",
    "a,b\n.png",
]


def test_a_name_never_becomes_a_formula_and_is_read_back_as_it_was(tmp_path):
    numbers = {"number": -0.5, "text": "-0.5000"}
    files.write_csv(tmp_path / "a.csv", ({"file": name, **numbers} for name in NAMES), ["file", *numbers])
    with (tmp_path / "a.csv").open(newline="") as file:
        seen = list(csv.reader(file))[1:]  # as a spreadsheet sees it
    assert not [row for row in seen if row[0][0] in "=+-@\t\r"]
    assert [row[0] for row in seen[:5]] == ["'" + name for name in NAMES[:5]] and seen[8][0] == "'a.png"
    assert {tuple(row[1:]) for row in seen} == {("-0.5", "-0.5000")}
    with (tmp_path / "a.csv").open(newline="") as file:
        assert [row["file"] for row in files.CsvReader(file)] == NAMES


def test_rows_of_other_lengths_are_read(tmp_path):
    rows = list(files.CsvReader(["file,label\n", "=a,b,-c,d\n", "e\n"]))
    assert rows == [{"file": "=a", "label": "b", None: ["-c", "d"]}, {"file": "e", "label": None}]


# --- names out of received files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../a", "b/../../a", "/etc/passwd", "", ".", "./", "..", "a\0b", None, 5, ["a"], "link/a"]
)
def test_a_name_that_leads_out_of_the_folder_is_refused(name, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"^the record: "):
        files.within(tmp_path / "run", name, "the record")


def test_a_name_inside_is_taken(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    assert files.within(tmp_path / "link", "b/a.png", "the record") == tmp_path / "link" / "b" / "a.png"
    assert files.within("here", "..a", "the record") == Path("here/..a")


# --- folders that are deleted whatever happens ------------------------------------------------------------------------


def test_a_scratch_folder_goes_with_its_block_and_is_private(tmp_path):
    with files.scratch_folder(tmp_path, ".set.") as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "a").write_text("")
        files.sweep_scratch(tmp_path, ".set.")
        assert (folder / "a").exists()  # it is in use
    assert listing(tmp_path) == []


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path):
    program = (
        "import os, signal\nfrom r2c_gan import files\n"
        "with files.scratch_folder('.', 'view-') as folder:\n"
        "    (folder / 'upload').write_text('')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment)
    assert len(listing(tmp_path)) == 2
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / files._SCRATCH_LOCK).write_text("")
    (tmp_path / "view-00000000").symlink_to(tmp_path / "precious")
    (tmp_path / "view-11111111").mkdir()  # somebody's own
    seen = []
    files.sweep_scratch(tmp_path, "view-", lambda folder: seen.append((folder / "upload").is_file()))
    assert seen == [True, True]
    assert listing(tmp_path) == ["precious", "view-00000000", "view-11111111"]
    files.sweep_scratch(tmp_path / "nowhere", "view-")
