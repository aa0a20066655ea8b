"""The quickstart's own arithmetic, and the figures that it must reach where it has been run."""

import json
from pathlib import Path

import pytest

from experiments import quickstart

RESULT = Path(__file__).parents[1] / "quickstart" / "result.json"


def test_largest_difference_of_two_results():
    one = {"model": {"epoch": 1}, "f1": 0.5, "psnr": {"mean": 20.0, "low": None}, "matrix": [[1, 2], [3, 4]]}
    assert quickstart.largest_difference(one, {**one, "model": {"epoch": 2}}) == 0
    assert quickstart.largest_difference(one, {**one, "psnr": {"mean": 20.25, "low": None}}) == 0.25
    assert quickstart.largest_difference(one, {**one, "matrix": [[1, 2], [3, 7]]}) == 3
    assert quickstart.largest_difference(one, {**one, "f1": None}) == float("inf")
    with pytest.raises(KeyError):
        quickstart.largest_difference(one, {"f1": 0.5})


def test_table_has_a_row_for_each_figure():
    figures = {"n": 60, "psnr_input": 19, "psnr_restored": 22, "ssim_input": 0.5, "ssim_restored": 0.7, "f1": 0.95}
    rows = quickstart.table({**figures, "seconds": 300}).strip().splitlines()
    assert rows[0].startswith("| 60 test phantoms")
    assert "| 19.00 | 22.00 |" in rows[2]
    assert len({row.count("|") for row in rows}) == 1


@pytest.mark.skipif(not RESULT.is_file(), reason="`make quickstart` has not been run here")
def test_the_quickstart_has_learned_what_it_should():
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    assert result["psnr_restored"] - result["psnr_input"] >= 2
    assert result["ssim_restored"] > result["ssim_input"]
    assert result["f1"] >= 0.9
    assert result["exported_difference"] <= quickstart.SAME
