"""Several scores as one: ranks averaged and votes counted, by hand and by brute force."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import analysis
from analysis import BadInput, combine, combine_ranks, ensemble

FEW = settings(max_examples=40, deadline=None)
TABLES = st.integers(1, 9).flatmap(
    lambda n: st.lists(
        st.lists(st.one_of(st.none(), st.integers(-3, 3)), min_size=n, max_size=n), min_size=1, max_size=5
    )
)


def _frame(columns: list[list[int | None]]) -> pd.DataFrame:
    return pd.DataFrame({f"s{i}": pd.Series(values, dtype="float64") for i, values in enumerate(columns)})


@pytest.mark.parametrize(
    ("scores", "votes", "ranks"),
    [
        # A beats B and C by two to one, B beats C by three to none; yet A and B have the same mean rank.
        ([[3, 2, 1], [3, 2, 1], [1, 3, 2]], [1, 1 / 2, 0], [2 / 3, 2 / 3, 1 / 6]),
        # Rock, paper, scissors, and one that loses to all.
        ([[4, 3, 2, 1], [2, 4, 3, 1], [3, 2, 4, 1]], [2 / 3, 2 / 3, 2 / 3, 0], [2 / 3, 2 / 3, 2 / 3, 0]),
        ([[1, 2, 3], [3, 2, 1]], [1 / 2, 1 / 2, 1 / 2], [1 / 2, 1 / 2, 1 / 2]),
        # The first score does not know A, the second knows A only: draws between A and each other.
        ([[None, 1, 2], [3, None, None]], [1 / 2, 1 / 4, 3 / 4], [1 / 2, 1 / 4, 1 / 2]),
        # Nobody knows A, so it stands nowhere; both others beat it and are even: each prefers one of them.
        ([[None, 1, 2], [None, 3, None]], [math.nan, 3 / 4, 3 / 4], [math.nan, 3 / 4, 1 / 2]),
        ([[5]], [1], [1]),
    ],
)
def test_votes_and_ranks_by_hand(scores: list[list[int | None]], votes: list[float], ranks: list[float]) -> None:
    both = ensemble(_frame(scores))
    assert both["ensemble.vote"].tolist() == pytest.approx(votes, nan_ok=True)
    assert both["ensemble.rank"].tolist() == pytest.approx(ranks, nan_ok=True)


@given(TABLES)
@FEW
def test_votes_are_those_of_brute_force(columns: list[list[int | None]]) -> None:
    frame = _frame(columns)
    filled = frame.fillna(-np.inf).to_numpy()
    count = len(frame)
    for mine, found in zip(filled, ensemble(frame, frame.columns)["ensemble.vote"], strict=True):
        margins = [int((mine > other).sum()) - int((mine < other).sum()) for other in filled]
        beaten = sum(1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in margins) - 0.5
        wanted = beaten / (count - 1) if count > 1 else 1.0
        assert found == pytest.approx(math.nan if np.isinf(mine).all() else wanted, nan_ok=True)


@given(TABLES, st.sampled_from([np.exp, np.cbrt, lambda x: 3 * x - 7]), st.randoms(use_true_random=False))
@FEW
def test_only_the_order_of_values_counts_and_not_that_of_rows(columns: Any, bend: Any, random: Any) -> None:
    frame = _frame(columns)
    both = ensemble(frame, frame.columns)
    assert both.dropna().stack().between(0, 1).all()
    assert both.isna().all(axis=1).tolist() == both.isna().any(axis=1).tolist() == frame.isna().all(axis=1).tolist()
    pd.testing.assert_frame_equal(ensemble(bend(frame), frame.columns), both)
    rows = random.sample(range(len(frame)), len(frame))
    pd.testing.assert_frame_equal(ensemble(frame.iloc[rows], frame.columns), both.iloc[rows])


@given(TABLES)
@FEW
def test_the_vote_of_one_score_is_its_own_order(columns: list[list[int | None]]) -> None:
    frame = _frame(columns[:1])
    both = ensemble(frame, ["s0"])
    assert both.isna().all(axis=1).tolist() == frame["s0"].isna().tolist()
    both, frame = both.dropna(), frame.dropna()
    ordered = frame["s0"].sort_values().index
    for lower, higher in pairwise(ordered):
        step = frame["s0"][higher] > frame["s0"][lower]
        assert (both.loc[higher] > both.loc[lower]).tolist() == [step, step]
    if len(frame) == len(columns[0]):
        assert both["ensemble.vote"].tolist() == pytest.approx(both["ensemble.rank"].tolist())


def test_votes_over_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.DataFrame(np.random.default_rng(0).integers(0, 9, size=(50, 3)), columns=list("abc"))
    whole = ensemble(frame)
    monkeypatch.setattr(combine, "_BLOCK", 7)
    pd.testing.assert_frame_equal(ensemble(frame), whole)


def test_a_score_of_two_terms_has_one_vote() -> None:
    frame = pd.DataFrame(
        {"params": [1, 2, 3], "snip": [3.0, 2.0, 1.0], "d.x": [1.0, 2.0, 3.0], "d.y": [1.0, 2.0, 3.0],
         "snip_std": [9.0, 1.0, 5.0], "seeds": [1, 2, 3], "arch.width": [1, 2, 3]}
    )  # fmt: skip
    both = ensemble(frame)  # neither size nor spread nor choices have a say
    assert both["ensemble.vote"].tolist() == [0.5, 0.5, 0.5]
    assert both["ensemble.rank"].tolist() == [0.5, 0.5, 0.5]
    assert ensemble(frame, ["snip", "d.x", "d.y"])["ensemble.vote"].tolist() == [0, 0.5, 1]
    assert ensemble(frame, ["snip", "params"])["ensemble.vote"].tolist() == [0.5, 0.5, 0.5]
    assert ensemble(frame, "d")["ensemble.vote"].tolist() == [0, 0.5, 1]


def test_equal_means_are_equal_whatever_they_were_added_up_from() -> None:
    rng = np.random.default_rng(1)
    halves = pd.DataFrame([rng.permutation(6) for _ in range(5)]).T.astype("float64")
    # Each column and its mirror image: every mean is one half exactly, and every pair a draw.
    frame = pd.concat([halves, 5 - halves], axis=1, keys=["a", "b"])
    frame.columns = [f"{side}{i}" for side, i in frame.columns]
    assert set(combine_ranks(frame, dict.fromkeys(frame.columns, 1.0))) == {0.5}
    assert set(ensemble(frame)["ensemble.vote"]) == {0.5}


def test_a_row_without_a_value_of_any_term_that_counts_has_none() -> None:
    frame = pd.DataFrame({"a": [1.0, math.nan, 2.0], "b": [math.nan, 5.0, 3.0]})
    assert combine_ranks(frame, {"a": 1.0, "b": 0.0}).tolist() == pytest.approx([1 / 2, math.nan, 1], nan_ok=True)
    assert combine_ranks(frame, {"a": 1.0, "b": 1.0}).tolist() == pytest.approx([1 / 4, 1 / 2, 3 / 4])


def test_bad_arguments() -> None:
    with pytest.raises(BadInput, match="unknown column of numbers 'snap'; did you mean 'snip'"):
        ensemble(pd.DataFrame({"snip": [1.0]}), ["snap"])
    with pytest.raises(BadInput, match="at least one score"):
        ensemble(pd.DataFrame({"params": [1.0]}))


def test_ranking_by_an_ensemble(run: Any) -> None:
    """A stage may have it as its objective, over the scores that the stage names."""
    results = analysis.load(run.path)
    table = analysis.rank_scores(results, by="ensemble.vote")
    assert table["arch.width"].tolist() == [16, 8, 4, 2]
    # Two voters: snip 2 < 4 < 8 < 16; diswot's mean ranks by hand 0, 1/2, 2/3, 5/6. They agree.
    assert analysis.rank(results, by={"ensemble.rank": 1.0}, stage="score")["arch.width"].tolist() == [16, 8, 4, 2]
    run.stage("again", 4, "score", objective={"ensemble.rank": 1.0}, combine="rank", ensemble=["snip"], epochs=None)
    for number, width in enumerate((2, 4, 8)):
        run.trial("again", number, width)
        run.score("again", number, snip=float(width), synflow=-100.0 * width, grasp=-1.0 * width)
        run.end("again", number)
    ranked = analysis.rank_scores(analysis.load(run.path), stage="again")
    assert ranked["arch.width"].tolist() == [8, 4, 2]
    table = analysis.agreement(analysis.load(run.path), stage="final", resamples=5).set_index(["stage", "predictor"])
    assert table.loc[("again", "ensemble.rank"), "tau"] == 1
    assert table.loc[("again", "combined"), "tau"] == 1
    assert table.loc[("again", "synflow"), "tau"] == -1
