"""Tables from recorded results against NumPy, and the study's own files against the programs they are for."""

import csv
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from experiments.evidence import figures as evidence_figures
from experiments.evidence import rows as evidence_rows
from experiments.evidence import study as evidence
from experiments.evidence import tables as evidence_tables
from experiments.evidence import tabulate
from r2c_gan import files
from r2c_gan.errors import UserError

REPOSITORY = Path(__file__).parents[1]
ROW = "operational-3-64-mild"


def record(results, row, seed, n=60, names=None, gain=1.0, error=0.1, test="mild"):
    """A recorded result of which everything is known: returns (labels, probabilities, psnr of poor, of restored)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    right = np.where(rng.uniform(size=n) < error, 1 - labels, labels)
    probabilities = np.where(right == 1, 0.8, 0.2) + rng.uniform(-0.1, 0.1, n)
    poor = np.random.default_rng(0).normal(20, 2, n)
    restored = poor + rng.normal(gain, 0.5, n)
    folder = results / f"{row}-{seed}"
    lines = [
        {
            "file": (names or [f"{i}.png" for i in range(n)])[i],
            "p_covid": f"{probabilities[i]:.6f}",
            "true_label": "covid" if labels[i] else "control",
            **{f"psnr_{stage}": f"{value[i]:.4f}" for stage, value in (("input", poor), ("restored", restored))},
            **{f"ssim_{stage}": f"{value[i] / 40:.4f}" for stage, value in (("input", poor), ("restored", restored))},
        }
        for i in range(n)
    ]
    files.write_csv(folder / f"predictions-{test}.csv", lines, list(lines[0]))
    training = {"training_seconds": 3600 * (1 + seed), "parameters": {"restorer": 906507}}
    files.write_json(folder / "result.json", {"row": row, "seed": seed, "training": training})
    return labels, probabilities, poor, restored


def f1(labels, probabilities):
    said = probabilities > 0.5
    return 2 * np.sum(said & (labels == 1)) / (said.sum() + labels.sum())


def test_a_row_is_the_mean_over_its_seeds(tmp_path):
    truth = [record(tmp_path, ROW, seed) for seed in range(3)]
    row = evidence_rows.load(tmp_path, ROW, [0, 1, 2, 3], "mild")  # seed 3 is not done yet
    assert row.probabilities.shape == (3, 60)
    singles = [f1(labels, probabilities) for labels, probabilities, _, _ in truth]
    assert row.f1().value == pytest.approx(np.mean(singles))
    assert row.f1().deviation == pytest.approx(np.std(singles, ddof=1))
    gains = [restored - poor for _, _, poor, restored in truth]
    gain = row.score("psnr_restored", minus="psnr_input")
    assert gain.value == pytest.approx(np.mean(gains), abs=1e-3)
    np.testing.assert_allclose(row.seed_means("psnr_restored", minus="psnr_input"), np.mean(gains, axis=1), atol=1e-3)
    assert gain.deviation == pytest.approx(np.std([np.mean(one) for one in gains], ddof=1), abs=1e-3)
    # The standard error of the mean over images of the seeds' mean, by the normal approximation.
    half = 1.96 * np.std(np.mean(gains, axis=0), ddof=1) / np.sqrt(60)
    assert (gain.high - gain.low) / 2 == pytest.approx(half, rel=0.1)
    assert row.seconds == 3600


def test_a_pairing_narrows_the_interval_of_a_gain(tmp_path):
    record(tmp_path, ROW, 0)
    row = evidence_rows.load(tmp_path, ROW, [0], "mild")
    gain, restored = row.score("psnr_restored", minus="psnr_input"), row.score("psnr_restored")
    assert gain.deviation is restored.deviation is None
    assert gain.high - gain.low < (restored.high - restored.low) / 2


def test_the_table_says_what_was_recorded(tmp_path):
    truth = record(tmp_path, ROW, 0)
    row = evidence_rows.load(tmp_path, ROW, [0], "mild")
    header, _, poor, line = evidence_tables.methods_table([row]).splitlines()
    assert header.split(" | ")[2:4] == ["F1", "AUROC"]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:2] == ["operational, q=3", "1"]
    assert cells[2].startswith(f"{f1(*truth[:2]):.2f} [")
    assert cells[4].startswith(f"{truth[3].mean():.2f} [")
    assert cells[-2:] == ["906,507", "1.0"]
    assert f"{truth[2].mean():.2f} [" in poor


def test_other_test_images_are_refused(tmp_path):
    record(tmp_path, ROW, 0)
    record(tmp_path, ROW, 1, names=[f"other-{i}.png" for i in range(60)])
    with pytest.raises(UserError, match=f"{ROW}-1: was tested on other images"):
        evidence_rows.load(tmp_path, ROW, [0, 1], "mild")


def test_nothing_recorded_is_nothing(tmp_path):
    assert evidence_rows.load(tmp_path, ROW, [0], "mild") is None
    record(tmp_path, ROW, 0)
    assert evidence_rows.load(tmp_path, ROW, [0], "severe") is None


def test_a_page_is_filled_between_its_comments(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: 64 mild -->\nold\n<!-- end -->\nafter\n<!-- table: x -->\n<!-- end -->\n")
    made = {"64 mild": "| new |", "x": "| x |", "of no place": ""}
    expected = "before\n<!-- table: 64 mild -->\n| new |\n<!-- end -->\nafter\n<!-- table: x -->\n| x |\n<!-- end -->\n"
    assert tabulate.fill(page, made) == expected
    with pytest.raises(UserError, match="there is no table 'x', only 64 mild"):
        tabulate.fill(page, {"64 mild": ""})
    page.write_text("<!-- table: x -->\n")
    with pytest.raises(UserError, match="the table 'x' has no line '<!-- end -->'"):
        tabulate.fill(page, made)
    page.write_text("nothing")
    with pytest.raises(UserError, match="has no lines '<!-- table: NAME -->'"):
        tabulate.fill(page, made)


def test_the_figure_is_drawn(tmp_path):
    record(tmp_path, ROW, 0)
    record(tmp_path, ROW, 1, gain=-1)
    row = evidence_rows.load(tmp_path, ROW, [0, 1], "mild")
    evidence_figures.save_gains({"64 px, mild": [row]}, tmp_path / "gains.png")
    assert (tmp_path / "gains.png").read_bytes()[:4] == b"\x89PNG"


def test_every_row_makes_a_valid_training():
    from r2c_gan.training.configuration import TrainingConfig

    known = evidence.rows()
    assert known
    for name, row in known.items():
        size, _ = evidence.size_and_data(name)
        config = TrainingConfig.from_preset(row["preset"], **evidence.settings(name))
        config.check()
        assert config.crop_size == config.load_size == size, name
        assert row["hours"] > 0 and row["about"] and row["seeds"], name
        assert not {"seed", "datasets_dir", "output_dir", "initial_run"} & set(row["options"]), name


def test_a_row_expects_only_what_was_recorded():
    recorded = {path.name.rpartition("-")[0] for path in (REPOSITORY / "experiments/results/evidence").iterdir()}
    for name, row in evidence.rows().items():
        assert name in recorded or row.get("expected", "failure.") == "failure.", name


def test_a_row_can_start_from_another(tmp_path, monkeypatch):
    """That one is trained first, with the same seed; its folder is given to the training."""
    row = 'preset = "compact"\nseeds = [0]\noptions = {}\n'
    table = tmp_path / "rows.toml"
    table.write_text(f'[first-64-mild]\n{row}[second-128-mild]\n{row}starts_from = "first-64-mild"\n')
    monkeypatch.setattr(evidence, "ROWS", table)
    monkeypatch.setattr(evidence, "prepare", lambda source, study, size, data: f"{source}-{size}-{data}")
    called = []
    monkeypatch.setattr(evidence, "_call", lambda module, **arguments: called.append(arguments))
    run = evidence.train("xray", tmp_path, "second-128-mild", 2)
    assert run == tmp_path / "runs" / "second-128-mild-2"
    first, second = called
    assert first["output_dir"] == second["initial_run"] == tmp_path / "runs" / "first-64-mild-2"
    assert first["datasets_dir"] == "xray-64-mild" and second["datasets_dir"] == "xray-128-mild"
    assert "initial_run" not in first and first["seed"] == second["seed"] == 2
    assert (first["crop_size"], second["crop_size"]) == (64, 128)
    table.write_text(f'[second-128-mild]\n{row}starts_from = "third-64-mild"\n')
    with pytest.raises(UserError, match="starts from third-64-mild, which is no row"):
        evidence.rows()


@pytest.mark.parametrize("name", ["operational-mild", "64-mild", "operational-3-64-foggy", "operational-3-mild-64"])
def test_a_wrong_name_is_refused(name):
    with pytest.raises(UserError, match="a row is named"):
        evidence.size_and_data(name)


@pytest.mark.parametrize("page", ["README.md", "docs/results.md", "docs/design.md", "docs/train.md"])
def test_a_page_holds_what_was_recorded(page):
    """Its tables are those that the recorded results give."""
    page = REPOSITORY / page
    filled = re.findall(r"<!-- table: (.*?) -->", page.read_text())
    made, _ = tabulate.tables(REPOSITORY / "experiments" / "results" / "evidence")
    if not made:
        pytest.skip("no evidence is recorded yet")
    assert set(filled) <= set(made)
    assert tabulate.fill(page, {name: made[name] for name in filled}) == page.read_text()


def test_ablations_have_a_table_of_their_own(tmp_path):
    results = tmp_path / "evidence"
    for row in ("operational-3-64-moderate", "ablation_none-64-moderate", "ablation_no_cycle-64-moderate"):
        record(results, row, 0, test="moderate")
    made, drawn = tabulate.tables(results)
    assert [row.name for row in drawn["64 px, moderate"]] == ["operational-3-64-moderate"]
    titles = [line.split(" | ")[0] for line in made["ablations 64 moderate"].splitlines()[3:]]
    assert titles == ["| the recipe, nothing changed", "| `--cycle_loss_weight=0`"]
    assert "recipe" not in made["64 moderate"] and "summary" in made


def test_recorded_results_are_whole():
    """Every recorded result belongs to a row and says how it came about."""
    known = evidence.rows()
    for path in (REPOSITORY / "experiments" / "results" / "evidence").glob("*/result.json"):
        result = json.loads(path.read_text())
        assert result["seed"] in known[result["row"]]["seeds"], path
        assert path.parent.name == f"{result['row']}-{result['seed']}"
        assert result["training"]["steps"] > 0


# --- Tables and figures made of several results -----------------------------------------------------------------------


def comparison(**means):
    """A result of `experiments.restoration` with these mean PSNRs."""
    rows = []
    for method, mean in means.items():
        for measure, value in (("psnr", mean), ("ssim", mean / 100)):
            row = {"method": method, "measure": measure, "grouping": "all", "group": "all", "n": 60}
            rows.append({**row, "against": None, "mean": value, "low": value - 0.01, "high": value + 0.01})
            if method != "input":
                rows.append({**row, "against": "input", "mean": value - means["input"], "improved": 0.75})
    best = max((name for name in means if name not in ("input", "model")), key=means.get)
    return {"best_classical": {"psnr": best, "ssim": best}, "rows": rows}


def test_an_undegraded_image_is_left_out_of_the_psnr_alone(tmp_path):
    record(tmp_path, ROW, 0)
    path = tmp_path / f"{ROW}-0" / "predictions-mild.csv"
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    lines[3].update(psnr_input="inf", ssim_input="1.0")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)
    row = evidence_rows.load(tmp_path, ROW, [0], "mild")
    kept = [line for index, line in enumerate(lines) if index != 3]
    gain = np.mean([float(line["psnr_restored"]) - float(line["psnr_input"]) for line in kept])
    assert row.score("psnr_restored", minus="psnr_input").value == pytest.approx(gain)
    assert row.score("psnr_input").value == pytest.approx(np.mean([float(line["psnr_input"]) for line in kept]))
    assert row.score("ssim_input").value == pytest.approx(np.mean([float(line["ssim_input"]) for line in lines]))
    assert "inf" not in evidence_tables.methods_table([row]) and "inf" not in evidence_tables.worst_table(row)


def test_the_best_classical_method_stands_between_poor_and_restored(tmp_path):
    record(tmp_path, ROW, 0)
    row = evidence_rows.load(tmp_path, ROW, [0], "mild")
    text = evidence_tables.summary_table(
        {(64, "mild"): [row]}, {(64, "mild"): comparison(input=20.0, clahe=18.0, combination=31.5)}
    )
    poor, restored = (row.score(f"psnr_{stage}").value for stage in ("input", "restored"))
    assert f"| {poor:.1f} | 31.5 | {restored:.1f} [" in text
    assert "31.5" not in evidence_tables.summary_table({(64, "mild"): [row]}, {})


def test_every_method_of_restoring_has_its_line():
    lines = evidence_tables.restoration_table(comparison(input=20.0, clahe=18.0, model=22.5)).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["poor", "CLAHE", "model"]
    assert "| 22.50 [22.49, 22.51] | 0.225 [0.215, 0.235] | 75% |" in lines[-1]


def test_the_speed_table_is_the_benchmark():
    def step(network, size, batch, ratio):
        measured = {"ratio": ratio, "memory_ratio": 0.5}
        return {"network": network, "size": size, "batch": batch, "float32": measured, "mixed_bfloat16": measured}

    text = evidence_tables.speed_table(
        {"steps": [step("operational-3", 64, 4, 0.9), step("convolutional", 256, 1, 0.7)]}
    )
    assert text.splitlines()[2:] == [
        "| operational, q=3 | 64 | 4 | 0.90 | 0.90 | 0.50 |",
        "| convolutional | 256 | 1 | 0.70 | 0.70 | 0.50 |",
    ]


def test_the_worst_are_the_worst(tmp_path):
    record(tmp_path, ROW, 0)
    row = evidence_rows.load(tmp_path, ROW, [0], "mild")
    gains = row.scores["psnr_restored"][0] - row.scores["psnr_input"][0]
    lines = evidence_tables.worst_table(row, 3).splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == [row.files[case] for case in np.argsort(gains)[:3]]
    wrong = np.abs(row.labels - row.probabilities[0])
    assert {line.split("|")[3].strip() for line in lines} == {row.files[case] for case in np.argsort(-wrong)[:3]}


def test_predictions_of_all_seeds_are_counted_and_drawn(tmp_path):
    for seed in (0, 1):
        record(tmp_path, ROW, seed)
    row = evidence_rows.load(tmp_path, ROW, [0, 1], "mild")
    matrix = evidence_figures.confusion_matrix(row)
    assert matrix.sum() == 2 * len(row.files)
    predictions = row.probabilities > 0.5
    assert (
        matrix[1, 1] == (predictions & (row.labels == 1)).sum()
        and matrix[0, 1] == (predictions & (row.labels == 0)).sum()
    )
    evidence_figures.save_rocs([row], tmp_path / "roc.png")
    assert cv2.imread(str(tmp_path / "roc.png")).std() > 1


def test_options_and_the_quickstart_are_what_their_programs_recorded():
    measures = {"f1": 0.845, "psnr": 23.04, "ssim": 0.7249}
    text = evidence_tables.options_table({"ema": {"mean": measures, "sd": dict.fromkeys(measures, 0.04)}, "other": {
        "mean": measures, "sd": dict.fromkeys(measures, 0.04)}})  # fmt: skip
    assert "| `--ema_decay=0.99` | 0.84 ± 0.04 | 23.0 ± 0.0 | 0.72 ± 0.04 |" in text and "other" not in text
    quick = {
        "seconds": 233,
        "n": 60,
        "psnr_input": 21,
        "psnr_restored": 23.46,
        "ssim_input": 0.69,
        "ssim_restored": 0.77,
    }
    lines = evidence_tables.quickstart_table({**quick, "f1": 0.968, "auroc": 0.997}).splitlines()
    assert lines[2].endswith("64 px, moderate: 4 minutes | 60 | 21.0 → 23.5 | 0.69 → 0.77 | 0.97 | 1.00 |")


def test_what_becomes_of_opacities_is_tabulated():
    def ratio(value):
        return {"value": value, "low": value - 0.1, "high": value + 0.1}

    opacities = {"kept": ratio(0.9), "kept_beyond_anatomy": ratio(0.8)}
    controls = {"false_opacity_anywhere": {"count": 2, "n": 50, "share": 0.04, "low": 0.01, "high": 0.13}}
    stages = {"poor": {"opacities": opacities, "controls": controls}}
    lines = evidence_tables.preservation_table({"phantoms": {"n": 100, "n_covid": 50, "stages": stages}}).splitlines()
    assert lines[0].startswith("| 100 phantoms, 50 with opacities |")
    assert lines[2] == "| poor | 0.90 [0.80, 1.00] | 0.80 [0.70, 0.90] | 0.04 [0.01, 0.13] |"


def test_classifiers_are_tabulated_with_their_test_against_the_joint_head():
    def prediction(name, images, value, head=False):
        measures = dict.fromkeys(("f1", "auroc", "sensitivity", "specificity"), interval(value))
        return {"classifier": name, "images": images, "joint_head": head, "measures": measures}

    def interval(value):
        return {"value": value, "low": value - 0.1, "high": value + 0.1}

    def pair(first, second, p_value):
        return {"first": first, "second": second, "mcnemar": {"p_value": p_value}}

    result = {
        "n": 80,
        "classifiers": {
            "cnn-both": {"network": "small_cnn", "train_on": "both", "restorer": None},
            "own": {"network": "resnet50", "train_on": "trainA", "restorer": "run"},
        },
        "predictions": [
            prediction("gan", "poor", 0.8, head=True),
            prediction("cnn-both", "poor", 0.7),
            prediction("cnn-both", "restored by gan", 0.75),
            prediction("own", "clean", 0.6),
        ],
        "comparisons": [
            pair("joint head of gan on poor", "cnn-both on poor", 0.0002),
            pair("joint head of gan on poor", "cnn-both on restored by gan", 0.25),
            pair("cnn-both on clean", "cnn-both on poor", 0.5),
        ],
    }
    lines = evidence_tables.classifiers_table(result).splitlines()
    four = ["0.80 [0.70, 0.90]"] * 4
    assert lines[0].startswith("| n = 80 |")
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == ["joint head", "poor", *four, ""]
    ends = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[3:]]
    assert [(cells[0], cells[1], cells[-1]) for cells in ends] == [
        ("small_cnn, trained on poor and good", "poor", "< 0.001"),
        ("small_cnn, trained on poor and good", "restored", "0.250"),
        ("resnet50, trained on poor, restored", "clean", ""),
    ]


def test_predictions_of_an_outside_classifier_are_tabulated_before_and_after():
    def share(value):
        return {"share": value, "value": value, "low": value - 0.1, "high": value + 0.1}

    def measured(restored):
        agreement = {"poor_clean": {"agreeing": share(0.7), "kappa": share(0.4)}}
        agreement["restored_clean"] = {"agreeing": share(restored), "kappa": share(0.6)}
        against = {image: {"lost": share(0.2), "invented": share(0.1)} for image in ("poor", "restored")}
        return {"agreement": agreement, "against_clean": against, "f1": {"poor": 0.72, "restored": 0.81}}

    classifier = {"name": "clean", "network": "small_cnn", "train_on": "trainB", "restorer": None}
    result = {"classifier": classifier, "radiographs": {"n": 80, "models": {"a": measured(0.8), "b": measured(0.9)}}}
    lines = evidence_tables.agreement_table(result).splitlines()
    assert lines[0].startswith("| 80 radiographs, predictions of small_cnn, trained on good |")
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["poor", "restored by a", "restored by b"]
    assert [line.split("|")[2].strip()[:4] for line in lines[2:]] == ["0.70", "0.80", "0.90"]
    assert lines[2].endswith("| 0.20 [0.10, 0.30] | 0.10 [0.00, 0.20] | 0.72 |") and lines[4].endswith("| 0.81 |")
    assert evidence_tables.agreement_table({"classifier": None, "radiographs": None}) is None
