"""How well one order of candidates foretells another: statistics with intervals, spread and the size's own."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis import correlation
from analysis.errors import BadInput
from analysis.predictors import Predictor
from analysis.target import ENOUGH

STATISTICS = ("tau", "spearman", "recall")
_INTERVALS = {f"{name}{end}": "float64" for name in STATISTICS for end in ("", "_low", "_high")}
DTYPES = {
    "predictor": "string",
    "stage": "string",
    "epoch": "Int64",
    "n": "int64",
    "k": "int64",
    **_INTERVALS,
    "seeds": "int64",
    "tau_mean": "float64",
    "tau_std": "float64",
    "beats_size": "bool",
    "over_size": "float64",
    "over_size_low": "float64",
    "over_size_high": "float64",
}


@dataclass(frozen=True)
class Judge:
    """Compares predictors with one truth, all under the same resamples of the candidates.

    Args:
        truth: by hash, higher is better.
        sizes: the predictors that each other one has to beat.
        k: how many of the best are to be recalled; default: a tenth of the candidates, at least 3.
        resamples: of the bootstrap.
        seed: of its draws.
    """

    truth: pd.Series
    sizes: tuple[Predictor, ...]
    k: int | None
    resamples: int
    seed: int
    _known: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for name, value in (("k", self.k), ("resamples", self.resamples)):
            if value is not None and value < 1:
                raise BadInput(f"{name} must be at least 1, not {value}")

    def row(self, one: Predictor) -> dict[str, object]:
        """A predictor's row: the statistics over the candidates that have both values."""
        both = pd.concat([one.values.rename("x"), self.truth.rename("y")], axis=1, join="inner").dropna().sort_index()
        n = len(both)
        k = min(self.k if self.k is not None else max(3, round(n / 10)), max(n, 1))
        row: dict[str, object] = {"predictor": one.name, "stage": one.stage, "epoch": one.epoch, "n": n, "k": k}
        row |= {"seeds": max(len(one.by_seed), 1), "beats_size": False}
        if n < 2:
            return row
        x, y = both["x"].to_numpy(dtype="float64"), both["y"].to_numpy(dtype="float64")
        weights, size = self._drawn(both["y"])
        tau = correlation.kendall_tau(x, y, weights)
        found = {"tau": tau, "spearman": correlation.spearman(x, y, weights), "over_size": tau - size}
        found["recall"] = correlation.top_k_recall(x, y, k, weights)
        for name, values in found.items():
            row |= _interval(name, values if n >= ENOUGH else values[:1])
        return row | {"beats_size": bool(tau[0] > size[0])} | self._spread(one, both["y"])

    def _drawn(self, truth: pd.Series) -> tuple[np.ndarray, np.ndarray]:
        """Weights of the candidates [R, N], the first row drawing each one once: the estimate itself; and the larger
        tau of the sizes [R], NaN where none is known of all these candidates."""
        key = tuple(truth.index)
        if key not in self._known:
            n = len(truth)
            drawn = correlation.resamples(n, self.resamples, self.seed)
            weights = np.concatenate([np.ones((1, n), dtype=np.int64), drawn])
            larger = np.full(len(weights), np.nan)
            for one in self.sizes:
                values = one.values.reindex(truth.index).to_numpy(dtype="float64")
                if not np.isnan(values).any():
                    larger = np.fmax(larger, correlation.kendall_tau(values, truth.to_numpy(), weights))
            self._known.clear()  # the last one only: they are large, and rows of the same candidates follow each other
            self._known[key] = weights, larger
        return self._known[key]

    def _spread(self, one: Predictor, truth: pd.Series) -> dict[str, float]:
        """Mean and standard deviation of the taus of single seeds."""
        taus = []
        for values in one.by_seed:
            both = pd.concat([values.rename("x"), truth], axis=1, join="inner").dropna()
            x, y = both["x"].to_numpy(dtype="float64"), both["y"].to_numpy(dtype="float64")
            taus.append(correlation.kendall_tau(x, y, np.ones((1, len(both)), dtype=np.int64))[0])
        known = pd.Series(taus, dtype="float64")
        return {"tau_mean": float(known.mean()), "tau_std": float(known.std())}


def table(rows: list[dict[str, object]]) -> pd.DataFrame:
    """Rows of a judge, one below the other."""
    return pd.DataFrame(rows, columns=list(DTYPES)).astype(DTYPES)


def _interval(name: str, values_R: np.ndarray) -> dict[str, float]:
    """The estimate, first in its resamples, and the bounds of its 95 % bootstrap interval; NaN without resamples.

    Of very few candidates there are none: nearly every resample of three that are in order is in order, too.
    """
    drawn = values_R[1:][np.isfinite(values_R[1:])]
    low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) and np.isfinite(values_R[0]) else (np.nan, np.nan)
    return {name: float(values_R[0]), f"{name}_low": float(low), f"{name}_high": float(high)}
