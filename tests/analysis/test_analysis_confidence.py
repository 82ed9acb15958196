"""How sure a ranking is."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal
from scipy.stats import norm

import analysis
from analysis import BadInput


def trials_of(students: Sequence[Sequence[float]], epochs: Sequence[int] | None = None) -> pd.DataFrame:
    """A table of trials: of each student, the accuracy of each of its seeds."""
    events: list[dict[str, Any]] = [{"event": "stage", "stage": "s", "index": 1, "trial": "distill"}]
    for proposal, values in enumerate(students):
        for seed, value in enumerate(values):
            where = {"stage": "s", "number": len(events)}
            last = epochs[proposal] if epochs is not None else 1
            metrics = {"valid_accuracy": value, "objective": value, "cka": -value}
            events += [
                {"event": "trial", **where, "proposal": proposal, "seed": seed, "control": False,
                 "arch": {"i": proposal}, "hash": f"{proposal:016x}", "cost": {"params": 5, "flops": 5}},
                {"event": "report", **where, "epoch": last, "seconds": 1.0, "metrics": metrics},
                {"event": "end", **where, "status": "completed"},
            ]  # fmt: skip
    return analysis.frames(events)[0]


def test_a_pair_by_hand() -> None:
    one, other = [0.80, 0.84], [0.80, 0.82]
    found = analysis.confidence(trials_of([one, other]), by="valid_accuracy", resamples=20_000)
    # Deviations from the means 0.82 and 0.81, times sqrt(2 / 1), of both; two drawn for each mean: 4^4 equal cases.
    deviations = [d * 2**0.5 for d in (-0.02, 0.02, -0.01, 0.01)]
    cases = [round(0.01 + (a + b - c - d) / 2, 12) for a, b, c, d in product(deviations, repeat=4)]
    better = (np.sign(cases) + 1).mean() / 2
    assert found.pairs.iloc[0, 1] == pytest.approx(better, abs=0.01)
    assert found.ranks["first"].tolist() == pytest.approx([better, 1 - better], abs=0.01)
    assert (found.of, found.pooled, found.resamples) == (2, 4, 20_000)


def test_many_seeds_agree_with_the_normal_distribution() -> None:
    rng = np.random.default_rng(1)
    values = np.linspace(0.7, 0.71, 8)[:, None] + 0.01 * rng.normal(size=(8, 6))
    found = analysis.confidence(trials_of(values.tolist()), by="valid_accuracy", resamples=4000)
    means = np.sort(values.mean(1))[::-1]
    pooled = np.sqrt(values.var(1, ddof=1).mean())
    expected = norm.cdf((means[:, None] - means) / (pooled * np.sqrt(2 / 6)))
    off = ~np.eye(8, dtype=bool)
    np.testing.assert_allclose(found.pairs.to_numpy()[off], expected[off], atol=0.03)


def test_ties_are_split() -> None:
    found = analysis.confidence(trials_of([[0.5, 0.5], [0.5, 0.5], [0.4, 0.4]]), by="valid_accuracy")
    assert found.ranks["rank"].tolist() == [1, 1, 3]
    assert found.ranks["first"].tolist() == [0.5, 0.5, 0.0]
    assert found.ranks[["rank_mean", "rank_low", "rank_high"]].values.tolist() == [[1.5] * 3, [1.5] * 3, [3.0] * 3]
    assert found.pairs.iloc[0, 1:].tolist() == [0.5, 1.0]


def test_students_have_their_names() -> None:
    found = analysis.confidence(trials_of([[0.5, 0.52], [0.6, 0.62]]))
    assert repr(found) == found.summary()
    assert found.summary().startswith("i=1 is first of 2 in 100 %")
    for text in (found.summary(), found._repr_html_()):
        assert "2: i=0" in text
        assert "0000" not in text  # no hashes
        assert "arch." not in text
    both = pd.concat([trials_of([[0.5, 0.52]]).assign(run=name) for name in ("a", "b")])
    assert "1: i=0 (a)" in analysis.confidence(both).summary()


def test_with_one_seed_each_nothing_is_known() -> None:
    found = analysis.confidence(trials_of([[0.5], [0.6]]))
    assert found.ranks["score"].tolist() == [0.6, 0.5]
    assert found.ranks[["rank_mean", "rank_low", "rank_high", "first"]].isna().all(axis=None)
    assert found.pairs.isna().all(axis=None)
    assert "every student has one seed" in found.summary()
    assert "every student has one seed" in found._repr_html_()


def test_a_single_seed_has_the_spread_of_the_others() -> None:
    found = analysis.confidence(trials_of([[0.50, 0.54, 0.52], [0.525]]), by="valid_accuracy", resamples=20_000)
    # One deviation is drawn for the single seed, three averaged for the other: 3^4 equal cases.
    deviations = [d * 1.5**0.5 for d in (-0.02, 0.02, 0.0)]
    cases = [round(0.005 + a - (b + c + d) / 3, 12) for a, b, c, d in product(deviations, repeat=4)]
    assert found.pairs.iloc[0, 1] == pytest.approx((np.sign(cases) + 1).mean() / 2, abs=0.01)
    assert 0.05 < found.pairs.iloc[1, 0] < 0.5


def test_who_trained_longer_stands_first_whatever_the_seeds_say() -> None:
    table = trials_of([[0.5, 0.6], [0.9, 0.8]], epochs=[3, 1])
    found = analysis.confidence(table, stage="s")
    assert found.ranks["first"].tolist() == [1.0, 0.0]
    assert analysis.confidence(table, by="valid_accuracy").ranks["hash"].tolist() == ["0" * 15 + "1", "0" * 16]


def test_what_does_not_vary_with_the_seed_is_sure() -> None:
    found = analysis.confidence(trials_of([[0.5], [0.6]]), by="flops")
    assert found.ranks["first"].tolist() == [0.5, 0.5]


def test_less_is_better_counts_and_ranks_combine() -> None:
    rng = np.random.default_rng(0)
    table = trials_of((0.5 + 0.1 * rng.random((5, 3))).tolist())
    up = analysis.confidence(table, by="valid_accuracy")
    # Ranks of one column order as the column itself; and so do ranks of a column that is only turned around.
    for other in (
        analysis.confidence(table, by="valid_accuracy", combine="rank"),
        analysis.confidence(table.assign(kl=table["cka"]), by="kl"),
    ):
        assert_frame_equal(other.pairs, up.pairs)
        assert_frame_equal(other.ranks.drop(columns="score"), up.ranks.drop(columns="score"))


def test_the_gain_over_controls_is_resampled_too(new_run: Callable[..., Any]) -> None:
    run = new_run()
    run.stage("final", 1, seeds=2, control=True)
    number = 0
    for width, gains in ((4, (0.01, 0.05)), (8, (0.02, 0.03))):
        for seed, gain in enumerate(gains):
            for control in (False, True):
                run.distil("final", number, [0.5 if control else 0.5 + gain], width=width, proposal=width, seed=seed,
                           control=control)  # fmt: skip
                number += 1
    found = analysis.confidence(analysis.load(run.path), by="valid_accuracy_delta", resamples=20_000)
    assert found.ranks["score"].tolist() == pytest.approx([0.03, 0.025])
    deviations = [d * 2**0.5 for d in (-0.02, 0.02, -0.005, 0.005)]
    cases = [round(0.005 + (a + b - c - d) / 2, 12) for a, b, c, d in product(deviations, repeat=4)]
    assert found.pairs.iloc[0, 1] == pytest.approx((np.sign(cases) + 1).mean() / 2, abs=0.01)


def test_the_order_is_that_of_rank_and_only_some_are_shown(run: Any) -> None:
    results = analysis.load(run.path)
    found = analysis.confidence(results, top=1)
    ranked = analysis.rank(results)
    assert found.ranks["hash"].tolist() == ranked["hash"].tolist()[:1]
    assert found.of == 2
    assert found.pairs.shape == (1, 1)
    assert "is first of 2 in 100 % of 1000 resamples" in found.summary()
    with pytest.raises(BadInput, match="row per trial"):
        analysis.confidence(ranked)
    with pytest.raises(BadInput, match="top must be at least 1, not 0"):
        analysis.confidence(results, top=0)
    with pytest.raises(BadInput, match="resamples must be at least 1"):
        analysis.confidence(results, resamples=0)
    with pytest.raises(BadInput, match="fit the choice to the test data"):
        analysis.confidence(results, by="test_accuracy")
    with pytest.raises(BadInput, match="unknown stage"):
        analysis.confidence(results, stage="shrt")


def test_the_hyperparameters_that_did_best_speak_for_a_student(new_run: Callable[..., Any]) -> None:
    run = new_run()
    run.stage("short", 1, seeds=2)
    for number, (width, proposal, value) in enumerate([(4, 0, 0.5), (4, 0, 0.52), (4, 1, 0.7), (4, 1, 0.72),
                                                       (8, 2, 0.6), (8, 2, 0.62)]):  # fmt: skip
        run.distil("short", number, [value], width=width, proposal=proposal, seed=number % 2)
    found = analysis.confidence(analysis.load(run.path))
    assert found.of == 2
    assert found.ranks["proposal"].tolist() == [1, 2]
    assert found.ranks["first"].tolist() == [1.0, 0.0]


def test_a_table_without_candidates(new_run: Callable[..., Any]) -> None:
    run = new_run()
    run.stage("short", 1)
    found = analysis.confidence(analysis.load(run.path))
    assert found.of == 0
    assert found.ranks.empty
    assert found.summary().startswith("no candidates")


@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=4), min_size=1, max_size=6), st.integers(0, 5))
@settings(max_examples=10, deadline=None)
def test_shares_and_ranks_fit_together(students: list[list[int]], seed: int) -> None:
    table = trials_of([[value / 4 for value in values] for values in students])
    found = analysis.confidence(table, resamples=50, seed=seed)
    assert_frame_equal(found.ranks, analysis.confidence(table, resamples=50, seed=seed).ranks)
    assert found.ranks["hash"].tolist() == analysis.rank(table)["hash"].tolist()
    pairs = found.pairs.to_numpy()
    off = ~np.eye(len(students), dtype=bool)
    if all(len(values) < 2 for values in students):
        assert np.isnan(pairs).all()
        return
    assert found.ranks["first"].sum() == pytest.approx(1)
    np.testing.assert_allclose((pairs + pairs.T)[off], 1)
    # The expected rank is one more than the expected number of better ones.
    np.testing.assert_allclose(found.ranks["rank_mean"], 1 + np.nansum(pairs, axis=0))
    assert (found.ranks["rank_low"] <= found.ranks["rank_high"]).all()
    assert found.ranks["rank_low"].between(1, len(students)).all()
