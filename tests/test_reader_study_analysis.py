"""The analysis of a reader study: against published numbers, simulated readers, and files that are wrong."""

import copy
import csv
import json
import math
import os
import subprocess
from pathlib import Path

import cv2
import numpy as np
import programs
import pytest
from simulated_readers import TIME, Reader, answer, make_key

from experiments.reader_study import answers, measures, report
from r2c_gan.errors import UserError
from r2c_gan.evaluation import metrics

ROOT = Path(__file__).parents[1]
# Fleiss 1971, table 1: 30 patients, 6 psychiatrists each, 5 diagnoses; kappa .430.
FLEISS = """00060 03003 01401 00006 03030 20400 00402 20310 20040 00006 10050 11040 03300 10050 02031 00501 30012 51000
02040 10203 00006 01050 02013 20040 10041 05010 40002 02040 10500 00006"""


def unblinded(key, documents):
    return answers.unblind({name: {a["id"]: a for a in each["answers"]} for name, each in documents.items()}, key)


def within(truth, low_high):
    return low_high[0] <= truth <= low_high[1]


# --- Measures against independent numbers -------------------------------------------------------------------------


def test_fleiss_kappa_is_that_of_the_paper_that_defined_it():
    counts = np.array([[int(digit) for digit in row] for row in FLEISS.split()])
    assert counts.shape == (30, 5) and (counts.sum(axis=1) == 6).all()
    assert measures.fleiss_kappa(counts) == pytest.approx(0.430, abs=5e-4)
    assert measures.raw_agreement(counts) == pytest.approx(0.5556, abs=5e-5)


def test_fleiss_kappa_of_full_agreement_none_and_of_one_category():
    assert measures.fleiss_kappa([[4, 0], [0, 4], [4, 0]]) == 1
    assert measures.fleiss_kappa([[2, 2], [2, 2]]) == pytest.approx(-1 / 3)
    assert measures.fleiss_kappa([[3, 0], [3, 0]]) is None
    for wrong in ([[2, 1], [2, 2]], [[1, 0], [0, 1]]):
        with pytest.raises(ValueError, match="same number of ratings"):
            measures.fleiss_kappa(wrong)


def test_the_bootstrap_over_cases_is_that_of_the_library():
    rng = np.random.default_rng(0)
    values, cases = rng.random(200), np.arange(200) // 4
    readers = np.arange(200) % 4
    kept = np.ones(200, bool)
    found = measures.CrossedBootstrap(readers, cases, n=4000).intervals(
        lambda weights: measures.weighted_mean(weights, values, kept)
    )
    expected = metrics.bootstrap_interval(np.mean, values, clusters=cases, n=4000)
    assert found["cases"] == pytest.approx(expected, abs=0.004)


def test_drawing_readers_and_cases_has_the_variance_of_the_pigeonhole_bootstrap():
    """For Y_rc = a_r + b_c, the variance of the mean is var(a)/R + var(b)/C, by the plug-in variances."""
    rng = np.random.default_rng(1)
    by_reader, by_case = rng.normal(0, 1, 8), rng.normal(0, 2, 30)
    readers, cases = np.repeat(np.arange(8), 30), np.tile(np.arange(30), 8)
    values = by_reader[readers] + by_case[cases]
    bootstrap = measures.CrossedBootstrap(readers, cases, n=20_000)
    deviations = {}

    def statistic(weights):
        means = measures.weighted_mean(weights, values, np.ones(240, bool))
        deviations[len(deviations)] = means.std()
        return means

    bootstrap.intervals(statistic)
    parts = by_reader.var() / 8, by_case.var() / 30
    expected = [math.sqrt(parts[0]), math.sqrt(parts[1]), math.sqrt(sum(parts))]
    assert list(deviations.values()) == pytest.approx(expected, rel=0.03)


def test_what_does_not_vary_or_has_one_group_has_no_interval():
    bootstrap = measures.CrossedBootstrap([0, 0, 0], [0, 1, 2], n=200)
    values = np.array([1.0, 2.0, 4.0])
    found = bootstrap.intervals(lambda weights: measures.weighted_mean(weights, values, values > 0))
    assert found["readers"] == found["readers_and_cases"] == (None, None)
    assert found["cases"][0] < found["cases"][1]
    constant = np.ones(3)
    found = bootstrap.intervals(lambda weights: measures.weighted_mean(weights, constant, constant > 0))
    assert set(found.values()) == {(None, None)}


def test_all_measures_of_a_study_that_was_counted_by_hand():
    key = make_key(cases=4, repeats=1, seed=1)
    document = answer(key, {"a": Reader()}, 0)["a"]
    wanted = {0: ("restored", 2, 4), 1: ("original", 3, 3), 2: ("restored", 1, 5), 3: ("restored", 2, 3)}
    for shown, given in zip(key["presentations"], document["answers"], strict=True):
        preferred, original, restored = wanted[shown["case"]]
        on_side = {shown["restored_side"]: restored}
        on_side |= {side: original for side in ("left", "right") if side not in on_side}
        given["preferred"] = next(
            side for side in on_side if (side == shown["restored_side"]) == (preferred == "restored")
        )
        given |= {f"rating_{side}": rating for side, rating in on_side.items()}
        given |= {"covid": True, "diagnosed_side": shown["restored_side"]}
    result = measures.analyse(unblinded(key, {"a": document}), n=200)
    restored = result["preference"]["restored"]
    assert (restored["successes"], restored["n"]) == (3, 4)
    assert restored["wilson"] == metrics.wilson_interval(3, 4)
    assert {name: each["value"] for name, each in result["preference"]["by_class"].items()} == {
        "control": 1.0,
        "covid": 0.5,
    }
    assert result["ratings"]["original"]["value"] == 2 and result["ratings"]["restored"]["value"] == 3.75
    assert result["ratings"]["counts"] == {"original": [1, 2, 1, 0, 0], "restored": [0, 0, 2, 1, 1]}
    # Differences 2, 0, 4, 1: the zero is left out, all positive, so p = 2 / 2^3.
    assert result["ratings"]["wilcoxon"] == {"n": 3, "zeros": 1, "statistic": 0, "p_value": pytest.approx(0.25)}
    assert result["consistency"]["preference"]["value"] == 1 and result["consistency"]["pairs"] == 1
    assert result["consistency"]["rating_change"] == 0
    assert result["diagnosis"]["sensitivity"]["restored"]["value"] == 1
    assert result["diagnosis"]["specificity"]["restored"]["value"] == 0
    assert result["diagnosis"]["sensitivity"]["original"] is None
    assert result["diagnosis"]["sensitivity"]["difference"] is None
    assert result["agreement"]["kappa"] is None and result["readers"] == 1
    assert result["seconds"] == 10.5
    assert (result["preference"]["published"]["value"], result["preference"]["published"]["low"]) == (0.68, None)


# --- Simulated readers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reader",
    [Reader(), Reader(preference=0.5, left=0.3), Reader(preference=0.85, guess=0.3, common=0.7)],
    ids=["plain", "side bias", "inconsistent, agreeing"],
)
def test_the_truth_of_simulated_readers_lies_within_the_intervals(reader):
    """95% intervals, 25 studies: 20 or more hold the truth (with 23.75 expected, fewer come up in 1 of 80)."""
    hits = dict.fromkeys(("preference", "side", "consistency", "rating", "sensitivity", "specificity"), 0)
    studies = 25
    for seed in range(studies):
        key = make_key(cases=40, repeats=10, seed=seed)
        documents = answer(key, {f"reader-{number}": reader for number in range(6)}, seed)
        result = measures.analyse(unblinded(key, documents), n=300, seed=seed)
        both = "readers_and_cases"
        hits["preference"] += within(reader.chosen, result["preference"]["restored"]["bootstrap"][both])
        hits["side"] += within(reader.left_chosen, result["side_bias"]["mean"]["bootstrap"][both])
        same = result["consistency"]["preference"]["wilson"]
        hits["consistency"] += within(reader.consistency, (same[0], same[1] + 1e-12))
        gain = reader.rating[1] - reader.rating[0]
        hits["rating"] += within(gain, result["ratings"]["difference"]["bootstrap"][both])
        for name in ("sensitivity", "specificity"):
            before, after = getattr(reader, name)
            hits[name] += within(after - before, result["diagnosis"][name]["difference"]["bootstrap"][both])
    assert min(hits.values()) >= 20, hits


def test_where_readers_agree_on_cases_wilson_is_too_narrow_and_the_bootstrap_is_not():
    reader = Reader(preference=0.6, common=0.95)
    wilson = bootstrap = 0
    for seed in range(40):
        key = make_key(cases=30, repeats=0, seed=seed)
        rows = unblinded(key, answer(key, {f"r{number}": reader for number in range(8)}, seed))
        found = measures.analyse(rows, n=300, seed=seed)["preference"]["restored"]
        wilson += within(reader.chosen, found["wilson"])
        bootstrap += within(reader.chosen, found["bootstrap"]["readers_and_cases"])
    assert bootstrap >= 34 and wilson <= 28, (bootstrap, wilson)


def test_kappa_is_the_squared_share_of_common_judgement():
    found = []
    for seed in range(3):
        key = make_key(cases=500, repeats=0, seed=seed)
        documents = answer(key, {f"r{number}": Reader(preference=0.5, common=0.8) for number in range(6)}, seed)
        agreement = measures.analyse(unblinded(key, documents), n=100)["agreement"]
        assert agreement["low"] < agreement["kappa"] < agreement["high"] and agreement["cases"] == 500
        found.append(agreement["kappa"])
    assert np.mean(found) == pytest.approx(0.8**2, abs=0.04)


def test_a_side_bias_is_reported_and_none_is_not():
    key = make_key(cases=40, repeats=4)
    for left, expected in ((0.5, 1), (0.0, 0)):
        documents = answer(key, {f"r{number}": Reader(left=left) for number in range(6)})
        result = measures.analyse(unblinded(key, documents), n=300)
        assert sum("Side bias: the left image" in line for line in report.cautions(result)) == expected


def test_patients_are_drawn_whole():
    key = make_key(cases=40, repeats=0, patients=5)
    rows = unblinded(key, answer(key, {"a": Reader(common=1.0), "b": Reader(common=1.0)}))
    for row in rows:
        row["preferred"] = "restored" if int(row["patient"]) < 3 else "original"
    result = measures.analyse(rows, n=300)
    low, high = result["preference"]["restored"]["bootstrap"]["cases"]
    assert result["patients"] == 5 and high - low > 0.6  # 3 of 5 patients, not 24 of 40 cases


def test_no_preference_is_counted_apart():
    key = make_key(cases=10, repeats=0, allow_no_preference=True)
    documents = answer(key, {"a": Reader(), "b": Reader()})
    for document in documents.values():
        for given in document["answers"][:4]:
            given["preferred"] = "none"
    result = measures.analyse(unblinded(key, documents), n=200)
    assert result["preference"]["no_preference"] == 8
    assert result["preference"]["restored"]["n"] == 12
    assert '8 answers were "no preference"' in report.markdown({"study": "s", "title": "t", "notes": [], **result})


# --- Files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path):
    """A key, and a folder of the answers of three readers."""
    key = make_key(cases=12, repeats=2)
    (tmp_path / "key.json").write_text(json.dumps(key))
    (tmp_path / "answers").mkdir()
    for name, document in answer(key, {f"reader-{number}": Reader() for number in (1, 2, 3)}).items():
        (tmp_path / "answers" / f"{name}.json").write_text(json.dumps(document))
    return tmp_path


def change(path, edit):
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def read(study):
    key = answers.read_key(study / "key.json")
    return answers.read_answers(answers.find_files([study / "answers"]), key)


def first(field, value):
    return lambda document: document["answers"][0].__setitem__(field, value)


WRONG = {
    "another format": (lambda d: d.update(format="x"), "'format' is 'x'"),
    "a later version": (lambda d: d.update(version=2), "'version' is '2'; it must be 1"),
    "another study": (lambda d: d.update(study="feed"), "is of study 'feed'; the key is of study '000000000000'"),
    "another length": (lambda d: d.update(presentations=3), "'presentations' is 3; this study has 14"),
    "no consent": (lambda d: d.update(consented=None), "'consented' is 'None'; it must be the time"),
    "a strange reader": (lambda d: d.update(reader="../x"), "'reader' is '../x'; it must be a code name"),
    "a missing field": (lambda d: d.pop("saved"), "'saved' is missing"),
    "an unknown field": (lambda d: d.update(more=1), "unknown field 'more'"),
    "answers no list": (lambda d: d.update(answers={}), "'answers' is '{}'; it must be a list"),
    "an answer no object": (lambda d: d["answers"].__setitem__(0, 1), "answer 1: must be an object"),
    "a rating of 6": (first("rating_left", 6), "answer 1: 'rating_left' is '6'; it must be an integer from 1 to 5"),
    "a rating of true": (first("rating_left", True), "'rating_left' is 'True'"),
    "a rating of 3.0": (first("rating_right", 3.0), "'rating_right' is '3.0'"),
    "a choice of up": (first("preferred", "up"), "'preferred' is 'up'"),
    "a choice not offered": (first("preferred", "none"), "which this study did not offer"),
    "a diagnosis of 1": (first("covid", 1), "'covid' is '1'; it must be true or false"),
    "seconds below 0": (first("seconds_pair", -1), "'seconds_pair' is '-1'"),
    "seconds of NaN": (first("seconds_pair", math.nan), "'seconds_pair' is 'nan'"),
    "a time of words": (first("answered", "noon"), "'answered' is 'noon'"),
    "a foreign pair": (first("id", "cafe"), "pair 'cafe' is not of this study"),
    "a pair twice": (lambda d: d["answers"].append(d["answers"][0]), "answered twice in this file"),
}


@pytest.mark.parametrize(("spoil", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_named_and_refused(study, spoil, message):
    change(study / "answers" / "reader-2.json", spoil)
    with pytest.raises(UserError, match=r"reader-2\.json") as caught:
        read(study)
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"", b'{"answers": [', b"\xff\xfe\x00", b"[]", b"3"])
def test_a_file_that_is_no_such_document_is_named_and_refused(study, content):
    (study / "answers" / "reader-2.json").write_bytes(content)
    with pytest.raises(UserError, match=r"reader-2\.json: (not a readable JSON file|must be an object with)"):
        read(study)


def test_two_files_of_one_reader_are_joined_if_they_agree_and_named_if_not(study):
    path = study / "answers" / "reader-1.json"
    part = json.loads(path.read_text())
    part["answers"] = part["answers"][3:9]
    (study / "answers" / "early.json").write_text(json.dumps(part))
    readers, notes = read(study)
    assert len(readers["reader-1"]) == 14 and len(readers) == 3
    assert len(notes) == 1 and "early.json and " in notes[0] and "reader-1.json" in notes[0]
    change(study / "answers" / "early.json", first("covid", not part["answers"][0]["covid"]))
    with pytest.raises(UserError, match=r"reader-1.json: contradicts .*early.json: reader 'reader-1' answered pair"):
        read(study)


def test_incomplete_and_empty_files_are_reported_and_the_rest_used(study):
    change(study / "answers" / "reader-1.json", lambda document: document.update(answers=document["answers"][:5]))
    change(study / "answers" / "reader-2.json", lambda document: document.update(answers=[]))
    readers, notes = read(study)
    assert {name: len(given) for name, given in readers.items()} == {"reader-1": 5, "reader-3": 14}
    assert any("reader-1.json: incomplete, 5 of 14 pairs" in note for note in notes)
    assert any("reader-2.json: incomplete, 0 of 14 pairs" in note for note in notes)
    result = measures.analyse(answers.unblind(readers, answers.read_key(study / "key.json")), n=200)
    assert result["readers"] == 2 and result["agreement"]["cases"] <= 5


def test_files_that_are_not_there_are_named(study):
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        answers.find_files([study / "answers", study / "nowhere"])
    (study / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: holds no \.json file"):
        answers.find_files([study / "empty"])
    both = [study / "answers", study / "answers" / "reader-1.json"]
    assert len(answers.find_files(both)) == 3  # a file that is named twice counts once


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda key: key.update(format="r2c-gan reader study answers"), "'format' is"),
        (lambda key: key["presentations"][0].update(case=99), "presentation 0: there is no case 99"),
        (lambda key: key["cases"][1].update(label="flu"), "case 1: 'label' is 'flu'; it must be control or covid"),
        (lambda key: key["presentations"].append(key["presentations"][0]), "an id occurs twice"),
    ],
)
def test_a_wrong_key_is_named(study, edit, message):
    change(study / "key.json", edit)
    with pytest.raises(UserError, match=r"key.json") as caught:
        answers.read_key(study / "key.json")
    assert message in str(caught.value)


# --- The program ------------------------------------------------------------------------------------------------------


def analyse(study, *flags):
    command = programs.python("-m", "experiments.reader_study.analyse", "--key", study / "key.json", *flags)
    command += ["--answers", study / "answers", "--output_dir", study / "out", "--bootstrap", "200"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, check=False)


def test_the_program_writes_the_report(study):
    change(study / "answers" / "reader-3.json", lambda document: document["answers"].pop())
    done = analyse(study)
    assert done.returncode == 0, done.stderr
    assert "reader-3.json: incomplete, 13 of 14 pairs" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("3 readers, 12 cases: restored preferred in ")
    result = json.loads((study / "out" / "result.json").read_text())
    expected = measures.analyse(unblinded_files(study), n=200)
    assert {name: result[name] for name in expected} == json.loads(json.dumps(expected))
    with (study / "out" / "answers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 41 and list(rows[0]) == list(answers.COLUMNS)
    shares = [row["preferred"] == "restored" for row in rows if row["repeat"] == "False"]
    assert np.mean(shares) == result["preference"]["restored"]["value"]
    text = (study / "out" / "report.md").read_text()
    assert "Research only, not for diagnosis" in text and "| the paper | 68% | not known" in text
    assert "3 readers: with so few" in text and f"{100 * np.mean(shares):.0f}%" in text
    for name in ("preference", "ratings", "diagnosis"):
        assert f"({name}.png)" in text
        assert cv2.imread(str(study / "out" / f"{name}.png")).std() > 10
    assert sorted(path.name for path in (study / "out").iterdir()) == sorted(
        ["answers.csv", "diagnosis.png", "flags.txt", "preference.png", "ratings.png", "report.md", "result.json"]
    )


def unblinded_files(study):
    readers, _ = read(study)
    return answers.unblind(readers, answers.read_key(study / "key.json"))


def test_the_program_refuses_in_one_line_and_writes_nothing(study):
    (study / "answers" / "reader-2.json").write_text("{}")
    done = analyse(study)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"error: {study}/answers/reader-2.json: 'format' is missing"]
    assert not (study / "out").exists()


def test_a_study_without_some_answers_is_reported_all_the_same(tmp_path):
    """One reader, one answer: every table and figure copes with what is undefined."""
    key = make_key(cases=4, repeats=1)
    document = answer(key, {"a": Reader()})["a"]
    for count in (1, 2):
        part = copy.deepcopy(document)
        part["answers"] = part["answers"][:count]
        result = {"study": "s", "title": "t", "notes": [], **measures.analyse(unblinded(key, {"a": part}), n=100)}
        report.save_figures(result, tmp_path)
        assert "One reader: nothing is said about other readers." in report.markdown(result)
        json.dumps(result, allow_nan=False)
    repeat = next(shown["id"] for shown in key["presentations"] if shown["repeat"])
    part["answers"] = [given for given in document["answers"] if given["id"] == repeat]
    result = {"study": "s", "title": "t", "notes": [], **measures.analyse(unblinded(key, {"a": part}), n=100)}
    report.save_figures(result, tmp_path)
    assert result["preference"]["restored"] is None and "| all | no answers |" in report.markdown(result)


def test_the_times_of_the_simulated_readers_are_what_the_page_writes():
    assert answers._is_time(TIME) and not answers._is_time("2024-01-01T12:00:00")  # without a zone
