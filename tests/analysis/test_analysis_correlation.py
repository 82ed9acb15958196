"""Statistics of two orders: against scipy and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis import correlation

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


def test_tau_of_many() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3000)).round(2)
    tau = correlation.kendall_tau(x, y, np.ones((1, 3000), int))
    assert tau[0] == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)


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
