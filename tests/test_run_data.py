"""The record of a run's images, and what it says of other ones. No TensorFlow."""

import hashlib
import json
import shutil

import pytest
from conftest import write_dataset

from r2c_gan.data.datasets import read_domain
from r2c_gan.errors import UserError
from r2c_gan.training import run_data


def described(datasets, *names, limit=None):
    return run_data.describe({name: read_domain(datasets / name, limit) for name in names or ("trainA", "valA")})


@pytest.fixture
def datasets(tmp_path):
    return write_dataset(tmp_path / "datasets")


@pytest.fixture
def run(tmp_path, datasets):
    run_data.write(tmp_path / "run", described(datasets))
    return tmp_path / "run"


def test_a_line_a_file(run, datasets):
    path = datasets / "trainA" / "covid-1.png"
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    lines = (run / "data.json").read_text().splitlines()
    assert f'["covid-1.png", "covid", {path.stat().st_size}, "{checksum}"]' in [line.strip(" ,") for line in lines]
    domains = json.loads("\n".join(lines))["domains"]
    assert {name: len(found) for name, found in domains.items()} == {"trainA": 6, "valA": 4}


def test_the_same_images_elsewhere_are_the_same(run, datasets, tmp_path):
    shutil.copytree(datasets, tmp_path / "moved")
    shutil.rmtree(datasets)
    run_data.check(run, described(tmp_path / "moved"))


def test_what_is_not_used_does_not_matter(tmp_path, datasets):
    run_data.write(tmp_path / "run", described(datasets, "trainA", limit=2))  # the first and the last
    (datasets / "trainA" / "normal-2.png").write_bytes((datasets / "trainA" / "normal-4.png").read_bytes())
    run_data.check(tmp_path / "run", described(datasets, "trainA", limit=2))


def relabelled(datasets):
    names = [path.name for path in sorted((datasets / "trainA").iterdir())]
    rows = [f"{name},{'covid' if name in ('normal-0.png', 'covid-1.png') else 'control'}\n" for name in names]
    (datasets / "trainA" / "labels.csv").write_text("file,label\n" + "".join(rows))


def swapped(datasets):
    one, other = (datasets / "valA" / name for name in ("covid-1.png", "covid-3.png"))
    contents = one.read_bytes(), other.read_bytes()
    other.write_bytes(contents[0])
    one.write_bytes(contents[1])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (relabelled, r"trainA/covid-3\.png was labelled covid and is now control \(3 differences in all\)"),
        (swapped, r"valA/covid-1\.png has other contents .* \(2 differences"),
        (lambda folder: (folder / "trainA" / "covid-5.png").unlink(), r"trainA/covid-5\.png is gone\. Give the same"),
        (
            lambda folder: shutil.copy(folder / "trainA" / "covid-5.png", folder / "trainA" / "covid-7.png"),
            r"trainA/covid-7\.png is new",
        ),
    ],
)
def test_the_first_difference_is_named(run, datasets, change, said):
    change(datasets)
    with pytest.raises(UserError, match=rf"run: was trained on other images: {said}"):
        run_data.check(run, described(datasets))


@pytest.mark.parametrize(
    ("names", "said"), [(("trainA",), "valA/ is gone"), (("trainA", "valA", "testA"), "testA/ is new")]
)
def test_a_domain_that_comes_or_goes_is_named(run, datasets, names, said):
    with pytest.raises(UserError, match=said):
        run_data.check(run, described(datasets, *names))


def test_a_run_of_an_older_version_is_taken_with_a_warning(run, datasets, caplog):
    (run / "data.json").unlink()
    run_data.check(run, described(datasets))
    assert "has no data.json" in caplog.text


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"format": 2}', '{"format": 1}', '{"format": 1, "domains": [1]}']
    + [
        f'{{"format": 1, "domains": {{"trainA": {lines}}}}}'
        for lines in ("1", "[1]", '[["a"]]', '[["a", "covid", 1, NaN]]')
    ],
)
def test_a_damaged_record_is_named(run, datasets, text):
    (run / "data.json").write_text(text)
    with pytest.raises(UserError, match=r"data\.json: ") as raised:
        run_data.check(run, described(datasets))
    assert "\n" not in str(raised.value)
