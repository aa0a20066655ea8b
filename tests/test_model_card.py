"""The model card: every figure from a file, and what is absent said to be."""

import json
import re
import shutil
from pathlib import Path

import pytest

from r2c_gan import files
from r2c_gan.errors import UserError
from r2c_gan.evaluation import model_card
from r2c_gan.models import checkpoints
from r2c_gan.models.model import R2CGAN
from r2c_gan.serving import export

EVALUATION = {
    "datasets_dir": "/home/someone/collections/lung set",
    "n": 60,
    "classification": {
        "n": 60,
        "confusion_matrix": [[28, 2], [0, 30]],
        "f1": 0.96774,
        "auroc": 0.99667,
        "precision": None,
        "intervals": {"f1": {"value": 0.96774, "low": 0.91228, "high": 1.0, "method": "bootstrap"}},
    },
    "restoration": {"psnr_restored": {"n": 60, "mean": 23.46317, "low": 22.74294, "high": 24.2384}},
}


@pytest.fixture
def run(run_dir, tmp_path):
    return shutil.copytree(run_dir, tmp_path / "run")


def card_of(run, evaluation=None):
    checkpoint = checkpoints.select(run)
    origin = model_card.read_origin(run, checkpoint, evaluation)
    config = checkpoints.read_config(run)["model"]
    description = export.describe(R2CGAN(**config), {"sha256": checkpoint.sha256})
    return model_card.render("SavedModel", description, {"a.pb": {"bytes": 5, "sha256": "cd" * 32}}, origin)


def table_row(card, name):
    (line,) = [line for line in card.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")[1:]]


def evaluated(folder, checkpoint, **changes):
    folder.mkdir()
    model = {"run": "run", "epoch": checkpoint.epoch, "sha256": checkpoint.sha256}
    files.write_json(folder / "result.json", {"model": model, **EVALUATION, **changes})
    return folder


def test_figures_of_the_run(run):
    card, checkpoint = card_of(run), checkpoints.select(run)
    result = json.loads((run / "result.json").read_text())
    assert (
        table_row(card, "trainA") == ["6"] and table_row(card, "trainB") == ["4"] and table_row(card, "valA") == ["4"]
    )
    assert f"{result['epochs']} epochs, {result['steps']} steps" in card
    assert table_row(card, "parameters") == [str(result["parameters"]["restorer"])]
    assert table_row(card, "SHA-256 of the checkpoint") == [f"`{checkpoint.sha256}`"]
    assert table_row(card, "`--lr`") == ["`0.001`"] and table_row(card, "`--q`") == ["`2`"]
    assert table_row(card, "classes") == ["control, covid"]
    assert float(table_row(card, "val_psnr_restored")[0]) == pytest.approx(
        checkpoint.measures["val_psnr_restored"], rel=1e-3
    )
    assert table_row(card, "`a.pb`") == ["5", f"`{'cd' * 32}`"]
    assert "Absent: no evaluation was given" in card


def test_paths_of_the_machine_stay_on_it(run):
    config = json.loads((run / "config.json").read_text())
    for name in ("initial_run", "a_flag_of_next_year"):
        config["training"][name] = f"/home/someone/runs/{name}/"
    files.write_json(run / "config.json", config)
    card = card_of(run, evaluated(run.parent / "evaluation", checkpoints.select(run)))
    for name in ("datasets_dir", "output_dir"):
        assert "/" in config["training"][name]
        assert config["training"][name] not in card
    assert "/home/someone" not in card and "`lung set`" in card
    assert table_row(card, "`--initial_run`") == ["`initial_run`"]


def test_figures_of_the_evaluation(run, tmp_path):
    card = card_of(run, evaluated(tmp_path / "evaluation", checkpoints.select(run)))
    assert "60 images of `lung set`" in card
    assert table_row(card, "f1") == ["0.968", "0.912 to 1"]
    assert table_row(card, "auroc") == ["0.997", ""]
    assert table_row(card, "precision") == ["undefined", ""]
    assert table_row(card, "psnr_restored (mean)") == ["23.46", "22.74 to 24.24"]
    assert "Absent: no evaluation" not in card


def test_an_evaluation_without_clean_images(run, tmp_path):
    card = card_of(run, evaluated(tmp_path / "evaluation", checkpoints.select(run), restoration=None))
    assert "PSNR and SSIM are absent" in card


def test_an_evaluation_of_other_weights_is_refused(run, tmp_path):
    other = checkpoints.select(run, "1") if checkpoints.select(run).epoch != 1 else checkpoints.select(run, "2")
    folder = evaluated(tmp_path / "evaluation", other)
    with pytest.raises(UserError, match=r"result\.json: an evaluation of other weights \(epoch \d\) than those"):
        card_of(run, folder)
    files.write_json(folder / "result.json", {"steps": 3})
    with pytest.raises(UserError, match=r"result\.json: not a result of r2c-gan-evaluate"):
        card_of(run, folder)
    with pytest.raises(UserError, match=r"nowhere/result\.json: no such file"):
        card_of(run, tmp_path / "nowhere")


def test_what_is_absent_is_said_to_be(run):
    (run / "result.json").unlink()
    card = card_of(run)
    assert "numbers of images are not recorded" in card and "Length of the training: not recorded" in card
    assert table_row(card, "parameters") == ["not recorded"]
    bare = model_card.render("ONNX", export.describe(R2CGAN(filters=3, image_size=16)), {})
    for said in (
        "their checkpoint is not recorded",
        "The folder is not recorded",
        "Its settings are not recorded",
        "Absent: the run was not validated",
        "Absent: no evaluation was given",
    ):
        assert said in bare
    assert "None" not in card + bare and "nan" not in card + bare


def test_imported_weights(run):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "training": {"imported_from": "theirs"}}))
    (run / "result.json").unlink()
    card = card_of(run)
    assert "imported from a checkpoint of the authors' implementation (`theirs`)" in card
    assert "trainA" not in card and "Its settings are not recorded" in card


def test_every_table_is_whole(run, tmp_path):
    card = card_of(run, evaluated(tmp_path / "evaluation", checkpoints.select(run)))
    for block in re.findall(r"(?:^\|.*\|\n?)+", card, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1, block
    for heading in ("Intended use", "Out of scope", "Limits", "Licence and citation", "Files", "Figures"):
        assert f"## {heading}\n" in card
    assert card.count("not for diagnosis") >= 1


def test_the_card_of_an_export_gives_the_checksums_of_its_files(tmp_path):
    export.export_saved_model(R2CGAN(filters=3, channels=1, image_size=16), tmp_path / "exported")
    card = (tmp_path / "exported" / "model_card.md").read_text()
    for name in ("saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"):
        assert table_row(card, f"`{name}`")[1] == f"`{files.sha256(tmp_path / 'exported' / name)}`"


def test_an_export_holds_no_path_of_the_machine(run, tmp_path):
    model, checkpoint = checkpoints.load_model(run)
    config = json.loads((run / "config.json").read_text())
    export.export_saved_model(model, tmp_path / "exported", {"run": "run"}, model_card.read_origin(run, checkpoint))
    written = [path.read_bytes() for path in (tmp_path / "exported").rglob("*") if path.is_file()]
    assert len(written) > 4 and any(b"trainA" in text for text in written)
    places = {
        str(tmp_path),
        str(Path(model_card.__file__).parent),
        str(Path.home()),
        config["training"]["datasets_dir"],
    }
    assert not [place for place in places if any(place.encode() in text for text in written)]
