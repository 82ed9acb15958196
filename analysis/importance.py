"""Which choices of the space, and which hyperparameters, matter.

A forest of extremely randomised trees (Geurts et al. 2006, Mach. Learn. 63) foretells the results from the settings,
judged by cross-validation. Another way, fANOVA (Hutter et al. 2014, ICML), splits the variance of a forest within the
candidates that it was fitted to: its shares add up to 1 even where all is noise, and it gives no interval.

Shape suffixes: N candidates, F settings, R resamples.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from pandas.api import types

from analysis.correlation import resamples as drawn
from analysis.errors import BadInput, unknown
from analysis.ranking import FINISHED, rank
from analysis.results import Results
from analysis.schema import is_metric, is_setting, number_columns
from analysis.target import Censored

ENOUGH = 10
"""Candidates below which neither a forest nor a mean per choice says anything."""

_FOLDS, _TREES, _SHUFFLES = 5, 100, 5
_REPEATED = 2000  # candidates judged: of a few, each in up to 4 cross-validations


@dataclass(frozen=True)
class _Study:
    """The candidates of one stage: their settings [N, F] and what they reached [N]."""

    settings: pd.DataFrame
    values: pd.Series
    attributes: dict[str, str | None]


def importance(
    results: Results,
    stage: str | None = None,
    metric: str | None = None,
    resamples: int = 1000,
    seed: int = 0,
    censored: Censored | None = None,
) -> pd.DataFrame:
    """How much each choice of the architecture and each hyperparameter matters: a row per setting that varies.

    `importance` is how much worse the results of candidates that a forest has not seen are foretold when a setting's
    values are shuffled among them: the rise of the mean squared error, as a share of the variance (permutation
    importance: Breiman 2001, Mach. Learn. 45; Fisher et al. 2019, arXiv:1801.01489). About 0: it does not matter, or
    not beyond noise; 2: everything hangs on it, as results of two candidates differ by twice the variance. `low` and
    `high` bound its 95 % interval over bootstrap resamples of the candidates; `values` counts its different values, `n`
    the candidates. `attrs` names metric, stage and censored, and `r2`, the share of the variance that the forest
    foretells: near or below 0, nothing here can be believed.

    Settings that always change together share their importance. Candidates are pairs of architecture and
    hyperparameters, seeds averaged, controls left out.

    Args:
        stage: default: the last one with at least 10 candidates.
        metric: a metric of the last report, or a column of costs; default: the score that `rank` orders by.
        resamples: bootstrap resamples of the candidates.
        seed: of forests, folds, shuffles and resamples.
        censored: candidates that were stopped early: `drop` them, or take their `last` value. Default: drop, when at
            least 10 are left then.

    Raises:
        BadInput: several runs, fewer than 10 candidates, an unknown stage or metric, or settings that do not vary.
    """
    if resamples < 1:
        raise BadInput(f"resamples must be at least 1, not {resamples}")
    study = _study(results, stage, metric, censored)
    y_N = study.values.to_numpy()
    x_NF = np.column_stack([_encoded(study.settings[name]) for name in study.settings])
    plain_N, shuffled_NF = _errors(x_NF, y_N, seed)
    squares_N = (y_N - y_N.mean()) ** 2
    shares_RF = _shares(shuffled_NF - plain_N[:, None], squares_N, drawn(len(y_N), resamples, seed))
    low_F, high_F = np.nanquantile(shares_RF[1:], [0.025, 0.975], axis=0)
    table = pd.DataFrame({"setting": pd.Series(study.settings.columns, dtype="string"), "importance": shares_RF[0],
                          "low": low_F, "high": high_F, "values": study.settings.nunique().to_numpy(),
                          "n": len(y_N)})  # fmt: skip
    table = table.sort_values("importance", ascending=False, kind="stable", ignore_index=True)
    table.attrs.update(study.attributes, r2=float(1 - plain_N.sum() / squares_N.sum()))
    return table


def effects(
    results: Results,
    stage: str | None = None,
    metric: str | None = None,
    bins: int = 5,
    censored: Censored | None = None,
) -> pd.DataFrame:
    """The mean of a metric per value of each setting: a row per setting and value, `n` candidates, `mean`, and the
    bounds `low` and `high` of its 95 % interval (Student's t; NaN of one candidate).

    Numbers of more than `bins` different values are binned, in equal steps, or in equal ratios where their median says
    that they were drawn on a logarithmic scale; empty bins are left out. A search tries good values more often and
    beside other good ones, so that a difference of means is no proof of an effect: see `importance`. `attrs` and
    candidates as there.

    Args:
        stage, metric, censored: as of `importance`.
        bins: of a number.

    Raises:
        BadInput: as `importance`.
    """
    if bins < 1:
        raise BadInput(f"bins must be at least 1, not {bins}")
    study = _study(results, stage, metric, censored)
    rows = [row for name in study.settings for row in _of_setting(study, str(name), bins)]
    table = pd.DataFrame(rows, columns=["setting", "value", "n", "mean", "low", "high"])
    table = table.astype({"setting": "string", "value": "string"})
    table.attrs.update(study.attributes)
    return table


def _of_setting(study: _Study, name: str, bins: int) -> Iterator[tuple[str, str, int, float, float, float]]:
    from scipy.stats import t as student

    labels = _labels(study.settings[name], bins)
    for label in labels.cat.categories:
        values = study.values[labels == label]
        n, mean = len(values), float(values.mean())
        half = float(student.ppf(0.975, n - 1) * values.std() / math.sqrt(n)) if n > 1 else math.nan
        yield name, str(label), n, mean, mean - half, mean + half


def _study(results: Results, stage: str | None, metric: str | None, censored: Censored | None) -> _Study:
    """What is to be explained. Raises `BadInput` as `importance` says."""
    if results.trials["run"].nunique() > 1:
        raise BadInput(f"importance is of one run, not of {results.name}; load each on its own")
    if censored not in (None, "drop", "last"):
        raise BadInput(f"censored is 'drop' or 'last', not {censored!r}")
    stage = stage if stage is not None else _default_stage(results.trials)
    table = rank(results, stage=stage, each="proposal")
    known = [c for c in number_columns(table) if is_metric(c) and not c.endswith("_std")]
    if metric is not None and metric not in known:
        raise unknown("metric", metric, known)
    name = metric or "score"
    table = table[table[name].notna()]
    completed = table[table["status"] == "completed"]
    if censored is None:
        censored = "drop" if len(completed) >= ENOUGH else "last"
    table = completed if censored == "drop" else table
    if len(table) < ENOUGH:
        where = f"stage {stage!r}" if stage is not None else "the run"
        raise BadInput(f"what matters takes at least {ENOUGH} candidates with a {name}; {where} has {len(table)}")
    varying = [c for c in table.columns if is_setting(c) and table[c].nunique(dropna=False) > 1]
    if not varying or table[name].nunique() < 2:
        what = "no setting varies" if not varying else f"{name} is the same for all"
        raise BadInput(f"nothing to tell apart in stage {stage!r}: {what}")
    values = table[name].astype("float64").reset_index(drop=True)
    attributes = {"metric": name, "stage": stage, "censored": censored}
    return _Study(table[varying].reset_index(drop=True), values, attributes)


def _default_stage(trials: pd.DataFrame) -> str | None:
    """The last stage with enough finished candidates, or else the one with most."""
    done = trials[trials["status"].isin(FINISHED) & ~trials["control"]]
    counts = done.groupby(["stage_index", "stage"])["proposal"].nunique()
    if counts.empty:
        return None
    enough = counts[counts >= ENOUGH]
    return str(enough.index[-1][1] if len(enough) else counts.idxmax()[1])  # type: ignore[index]


def _encoded(column: pd.Series) -> np.ndarray:
    """A setting as numbers: text by its alphabetical place, a missing value (a choice that does not apply) below."""
    if types.is_numeric_dtype(column):
        numbers = column.astype("Float64").to_numpy(dtype="float64", na_value=np.nan)
    else:
        codes = column.astype("category").cat.codes.to_numpy(dtype="float64")
        numbers = np.where(codes < 0, np.nan, codes)
    return np.where(np.isnan(numbers), np.nanmin(numbers) - 1, numbers)


def _errors(x_NF: np.ndarray, y_N: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared errors of forests that have not seen the candidate: as it is [N], and with each setting shuffled among
    those held out with it [N, F]; means over repeated cross-validations."""
    from sklearn.ensemble import ExtraTreesRegressor
    from sklearn.model_selection import KFold

    rng = np.random.default_rng(seed)
    count, width = x_NF.shape
    repeats = int(np.clip(_REPEATED // count, 1, 4))
    plain_N, shuffled_NF = np.zeros(count), np.zeros((count, width))
    for repeat in range(repeats):
        for train, held in KFold(_FOLDS, shuffle=True, random_state=seed + repeat).split(x_NF):
            forest = ExtraTreesRegressor(_TREES, random_state=seed + repeat).fit(x_NF[train], y_N[train])
            # All shuffles in one call: of small tables the call is what takes time.
            asked = np.tile(x_NF[held], (1 + width * _SHUFFLES, 1, 1))
            for place in range(width * _SHUFFLES):
                asked[1 + place, :, place % width] = rng.permutation(x_NF[held, place % width])
            errors = (forest.predict(asked.reshape(-1, width)).reshape(len(asked), -1) - y_N[held]) ** 2
            plain_N[held] += errors[0] / repeats
            shuffled_NF[held] += errors[1:].reshape(_SHUFFLES, width, -1).mean(0).T / repeats
    return plain_N, shuffled_NF


def _shares(rises_NF: np.ndarray, squares_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """The mean rise of the squared error as a share of the variance, [1 + R, F]: of all candidates, then resampled."""
    weights = np.concatenate([np.ones((1, len(squares_N))), weights_RN])
    with np.errstate(invalid="ignore", divide="ignore"):
        return weights @ rises_NF / (weights @ squares_N)[:, None]


def _is_logarithmic(positive: np.ndarray) -> bool:
    """Whether the median lies nearer to the middle of the logarithms than to the middle, as a ratio."""
    low, high = positive.min(), positive.max()
    return bool(np.median(positive) ** 2 < math.sqrt(low * high) * (low + high) / 2)


def _labels(column: pd.Series, bins: int) -> pd.Series:
    """Each candidate's value of a setting, or the bin it falls in, as ordered text; `-` where it does not apply."""
    missing = column.isna()
    numeric = types.is_numeric_dtype(column) and not types.is_bool_dtype(column)
    if numeric and column.nunique() > bins:
        numbers = column.astype("Float64").to_numpy(dtype="float64", na_value=np.nan)
        low, high = np.nanmin(numbers), np.nanmax(numbers)
        scale = np.geomspace if low > 0 and _is_logarithmic(numbers[~missing]) else np.linspace
        edges = scale(low, high, bins + 1)
        place = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, bins - 1)
        named = [f"{a:.4g} to {b:.4g}" for a, b in pairwise(edges)]
        order = [named[i] for i in sorted(set(place[~missing]))]
        labels = pd.Series([named[i] for i in place], index=column.index)
    else:
        shown = {value: f"{value:g}" if numeric else str(value) for value in sorted(column.dropna().unique())}
        order = list(shown.values())
        labels = column.astype("object").map(shown)
    order = list(dict.fromkeys([*order, *(["-"] if missing.any() else [])]))
    return labels.mask(missing, "-").astype(pd.CategoricalDtype(order, ordered=True))
