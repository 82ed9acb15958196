"""Agreement: statistics against scipy, planted truths, and a published table."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import analysis
from analysis import BadInput, correlation

VECTORS = st.integers(2, 15).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 6), min_size=n, max_size=n)] * 2, st.integers(0, 99))
)


@given(VECTORS)
@settings(max_examples=60, deadline=None)
def test_statistics_are_scipys_on_every_resample(drawn: tuple[list[int], list[int], int]) -> None:
    x, y, seed = np.array(drawn[0], float), np.array(drawn[1], float), drawn[2]
    weights = np.concatenate([np.ones((1, len(x)), int), correlation.resamples(len(x), 3, seed)])
    tau, rho = correlation.kendall_tau(x, y, weights), correlation.spearman(x, y, weights)
    for row, times in enumerate(weights):
        a, b = np.repeat(x, times), np.repeat(y, times)
        if len(set(a)) < 2 or len(set(b)) < 2:
            assert np.isnan(tau[row])
            assert np.isnan(rho[row])
        else:
            assert tau[row] == pytest.approx(stats.kendalltau(a, b).statistic)
            assert rho[row] == pytest.approx(stats.spearmanr(a, b).statistic)


def test_tau_over_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 50))
    whole = correlation.kendall_tau(x, y, np.ones((1, 50), int))
    monkeypatch.setattr(correlation, "_BLOCK", 7)
    assert correlation.kendall_tau(x, y, np.ones((1, 50), int)) == pytest.approx(whole)
    assert whole == pytest.approx(stats.kendalltau(x, y).statistic)


def test_infinite_scores_have_an_order() -> None:
    x, y = np.array([-np.inf, -np.inf, 1.0, 2.0]), np.array([1.0, 2.0, 3.0, 4.0])
    one = np.ones((1, 4), int)
    assert correlation.kendall_tau(x, y, one) == pytest.approx(stats.kendalltau([0, 0, 1, 2], y).statistic)


@pytest.mark.parametrize(
    ("x", "y", "k", "recall"),
    [
        ([5, 4, 3, 2, 1], [5, 4, 3, 2, 1], 2, 1.0),
        ([1, 2, 3, 4, 5], [5, 4, 3, 2, 1], 2, 0.0),
        ([5, 1, 4, 2, 3], [5, 4, 3, 2, 1], 2, 0.5),
        ([7, 7, 7, 7, 7], [5, 4, 3, 2, 1], 2, 0.4),  # a constant recalls what chance does
        ([9, 7, 7, 1, 1], [5, 4, 3, 2, 1], 2, 0.75),  # one of two places is shared by two
        ([5, 4, 3, 2, 1], [9, 8, 8, 1, 1], 2, 1.0),  # three best of y, so three places
    ],
)
def test_recall_by_hand(x: list[float], y: list[float], k: int, recall: float) -> None:
    one = np.ones((1, 5), int)
    assert correlation.top_k_recall(np.array(x, float), np.array(y, float), k, one)[0] == pytest.approx(recall)


def test_a_perfect_order_recalls_everything_in_every_resample() -> None:
    x = np.arange(20.0)
    assert (correlation.top_k_recall(x, x**3, 3, correlation.resamples(20, 200, 0)) == 1).all()


def _planted(run: Any, candidates: int = 40, stopped: int = 0) -> None:
    """Students whose final accuracy the score `oracle` orders perfectly, `inverse` in reverse, `random` not at all."""
    rng = np.random.default_rng(3)
    truth, size = rng.permutation(candidates) / candidates, rng.permutation(candidates) + 1
    weights = {"oracle": 1.0, "inverse": -1.0}
    run.stage("score", 1, "score", objective=weights, combine="rank")
    run.stage("short", 2)
    for i in range(candidates):
        run.trial("score", i, int(size[i]))
        run.score("score", i, oracle=float(np.exp(5 * truth[i])), inverse=-float(truth[i]), random=float(rng.normal()),
                  sparse=float(truth[i]) if i < 10 else None, constant=1.0, score_seconds=float(truth[i]))  # fmt: skip
        run.end("score", i)
        status = "stopped" if i < stopped else "completed"
        run.distil("short", i, [0.5 * truth[i] + 0.01, 0.7 * truth[i], truth[i]], status, width=int(size[i]))


def test_planted_scores(new_run: Callable[..., Any]) -> None:
    run = new_run()
    _planted(run)
    table = analysis.agreement(analysis.load(run.path), resamples=200)
    scores = table[table["epoch"].isna()].set_index("predictor")
    assert scores.index.tolist() == ["params", "flops", "oracle", "inverse", "random", "sparse", "constant", "combined"]
    for name in ("tau", "spearman"):
        low, high = f"{name}_low", f"{name}_high"
        assert scores.loc["oracle", [name, low, high]].tolist() == pytest.approx([1, 1, 1])
        assert scores.loc["inverse", [name, low, high]].tolist() == pytest.approx([-1, -1, -1])
        assert scores.loc["combined", name] == pytest.approx(1)
        assert scores.loc["random", low] < 0 < scores.loc["random", high]
        assert scores.loc["params", low] < 0 < scores.loc["params", high]
        assert scores.loc["constant", [name, low, high]].isna().all()
    assert scores.loc["oracle", "recall"] == 1
    assert scores.loc["inverse", "recall"] == 0
    assert scores["n"].to_dict() == {name: 10 if name == "sparse" else 40 for name in scores.index}
    assert scores.loc["oracle", "k"] == 4
    early = table[table["epoch"].notna()]
    assert early[["predictor", "stage", "epoch"]].values.tolist() == [
        ["valid_accuracy", "short", 1], ["objective", "short", 1],
        ["valid_accuracy", "short", 2], ["objective", "short", 2]]  # fmt: skip
    assert early["tau"].tolist() == pytest.approx([1, 1, 1, 1])
    assert table.attrs == {"target": "valid_accuracy", "stage": "short", "censored": "drop"}


def test_a_target_of_which_less_is_better_is_turned(new_run: Callable[..., Any]) -> None:
    run = new_run()
    _planted(run, 12)
    table = analysis.agreement(analysis.load(run.path), "train_loss", resamples=20).set_index("predictor")
    assert table.loc["oracle", "tau"] == pytest.approx(1)


def test_the_same_seed_gives_the_same_table(new_run: Callable[..., Any]) -> None:
    run = new_run()
    _planted(run, 12)
    results = analysis.load(run.path)
    first, again, other = (analysis.agreement(results, resamples=50, seed=seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)


@pytest.mark.parametrize(
    ("stopped", "censored", "said", "n"),
    [(3, None, "drop", 9), (8, None, "last", 12), (3, "last", "last", 12), (8, "drop", "drop", 4)],
)
def test_candidates_that_were_stopped_early(
    new_run: Callable[..., Any], stopped: int, censored: Any, said: str, n: int
) -> None:
    run = new_run()
    _planted(run, 12, stopped)
    table = analysis.agreement(analysis.load(run.path), censored=censored, resamples=10)
    assert table.attrs["censored"] == said
    assert table.set_index("predictor").loc["oracle", "n"] == n


def test_a_final_of_few_leaves_the_target_to_the_stage_before(new_run: Callable[..., Any], run: Any) -> None:
    other = new_run("other")
    _planted(other, 12)
    other.stage("final", 3)
    for i in range(3):
        other.distil("final", i, [0.5, 0.6, 0.7 + i / 10], width=i + 1)
    results = analysis.load(other.path)
    assert analysis.agreement(results, resamples=5).attrs["stage"] == "short"
    final = analysis.agreement(results, stage="final", resamples=5)
    assert final["n"].max() == 3
    assert ("valid_accuracy", "short", 3) in set(
        final[["predictor", "stage", "epoch"]].itertuples(index=False, name=None)
    )
    # Where no stage has enough: the one with most, seeds averaged, controls and failures left out.
    few = analysis.agreement(analysis.load(run.path), resamples=5)
    assert few.attrs["stage"] == "short"
    assert few.set_index("predictor").loc["snip", "n"] == 3


def test_controls_have_no_say(new_run: Callable[..., Any]) -> None:
    tables = []
    for controls in (False, True):
        run = new_run(f"controls-{controls}")
        _planted(run, 12)
        for i in range(12 if controls else 0):
            # In the reverse order, and by far: one that counted would turn every mean around.
            run.distil("short", 100 + i, [-9.0 * i, 9.0 * i, -90.0 * i], control=True, proposal=i,
                       width=int(1 + np.random.default_rng(i).integers(12)))  # fmt: skip
        tables.append(analysis.agreement(analysis.load(run.path), resamples=10))
    pd.testing.assert_frame_equal(*tables)


def test_seeds_are_averaged(run: Any) -> None:
    table = analysis.agreement(analysis.load(run.path), stage="final", resamples=5)
    params = table.set_index("predictor").loc["params"]
    assert (params["n"], params["tau"]) == (2, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "valid_acc"}, "did you mean 'valid_accuracy'"),
        ({"stage": "sort"}, "did you mean 'short'"),
        ({"k": 0}, "k must be at least 1"),
        ({"resamples": 0}, "resamples must be at least 1"),
        ({"censored": "first"}, "'drop' or 'last'"),
    ],
)
def test_bad_arguments(run: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        analysis.agreement(analysis.load(run.path), **arguments)


def test_several_runs_are_refused(new_run: Callable[..., Any], run: Any) -> None:
    other = new_run("other", "second")
    other.stage("short", 1)
    other.distil("short", 0, [0.5])
    with pytest.raises(BadInput, match="agreement is of one run"):
        analysis.agreement(analysis.load_many([run.path, other.path]))


def test_a_published_table(new_run: Callable[..., Any]) -> None:
    """Scores of 200 NAS-Bench-201 cells, through events and back, agree with their accuracies as scipy says."""
    here = Path(__file__).parents[2].parent / "shared" / "data"
    file = Path(os.environ.get("DUX_TEST_DATA", here)) / "tables" / "nasbench201_zero_cost_725.parquet"
    if not file.exists():
        pytest.skip("the benchmark table is not here")
    names = ["snip", "synflow", "params", "flops"]
    cells = pd.read_parquet(file).dropna(subset=[*names, "val_accuracy"]).head(200)
    run = new_run()
    run.stage("score", 1, "score")
    run.stage("final", 2)
    for i, cell in enumerate(cells.itertuples()):
        cost = {"params": int(cell.params * 1e6), "flops": int(cell.flops * 1e6)}
        run.trial("score", i, i, cost=cost)
        run.score("score", i, snip=cell.snip, synflow=cell.synflow)
        run.end("score", i)
        run.distil("final", i, [cell.val_accuracy / 100], width=i, cost=cost)
    table = analysis.agreement(analysis.load(run.path), resamples=100).set_index("predictor")
    for name in names:
        assert table.loc[name, "tau"] == pytest.approx(stats.kendalltau(cells[name], cells.val_accuracy).statistic)
        assert table.loc[name, "spearman"] == pytest.approx(stats.spearmanr(cells[name], cells.val_accuracy).statistic)
        assert table.loc[name, "tau_low"] < table.loc[name, "tau"] < table.loc[name, "tau_high"]
