"""Fronts against brute force, areas by hand."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import analysis
from analysis import BadInput, hypervolume, pareto

VALUE = st.one_of(st.integers(0, 4).map(float), st.just(float("nan")))
ROWS = st.lists(st.tuples(VALUE, VALUE, VALUE), max_size=25)
FEW = settings(max_examples=60, deadline=None)


@given(ROWS)
@FEW
def test_the_front_is_what_brute_force_finds(rows: list[tuple[float, float, float]]) -> None:
    frame = pd.DataFrame(rows, columns=["a", "b", "c"], dtype="float64")
    good = frame.to_numpy() * [1, -1, 1]
    whole = [i for i in range(len(frame)) if not np.isnan(good[i]).any()]
    expected = {i for i in whole if not any((good[j] >= good[i]).all() and (good[j] > good[i]).any() for j in whole)}
    front = pareto(frame, {"a": "max", "b": "min", "c": "max"})
    assert set(front.index) == expected
    assert front["a"].is_monotonic_decreasing


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
@FEW
def test_the_area_is_what_unit_squares_count(rows: list[tuple[int, int]]) -> None:
    frame = pd.DataFrame(rows, columns=["a", "b"])
    squares = {(x, y) for a, b in rows for x in range(a) for y in range(b)}
    assert hypervolume(frame, {"a": "max", "b": "max"}, {"a": 0, "b": 0}) == len(squares)
    turned = frame.assign(b=-frame["b"])
    assert hypervolume(turned, {"a": "max", "b": "min"}, {"a": 0, "b": 0}) == len(squares)


def test_area_by_hand() -> None:
    frame = pd.DataFrame({"valid_accuracy": [0.5, 0.8, 0.6, np.nan], "params": [10, 40, 60, 1]})
    assert pareto(frame, ["valid_accuracy", "params"]).index.tolist() == [1, 0]
    # Down to (0.5, 60): the second row gains 0.3 x 20, the first nothing.
    assert hypervolume(frame, ["valid_accuracy", "params"]) == pytest.approx(0.3 * 20)
    reference = {"valid_accuracy": 0.4, "params": 50.0}
    assert hypervolume(frame, ["valid_accuracy", "params"], reference) == pytest.approx(0.4 * 10 + 0.1 * 30)
    assert hypervolume(frame.head(0), ["valid_accuracy", "params"]) == 0.0


def test_the_front_of_a_ranking(run: Any) -> None:
    ranked = analysis.rank(analysis.load(run.path), stage="short")
    assert pareto(ranked, ["valid_accuracy", "params"])["arch.width"].tolist() == [8, 4]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([], "name the columns"),
        ("params", "name the columns"),
        (["parms"], "did you mean 'params'"),
        (["arch"], "unknown column of numbers"),
        (["number"], "no better direction"),
        ({"params": "least"}, "'max' or 'min', not 'least'"),
    ],
)
def test_bad_columns(run: Any, columns: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        pareto(analysis.load(run.path).trials, columns)


def test_bad_areas() -> None:
    frame = pd.DataFrame({"params": [1], "flops": [2]})
    with pytest.raises(BadInput, match="takes 2 columns, not 1"):
        hypervolume(frame, ["params"])
    with pytest.raises(BadInput, match="must name exactly params, flops"):
        hypervolume(frame, ["params", "flops"], {"params": 1.0})
