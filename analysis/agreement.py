"""How well what was known early foretells what came out at last."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from analysis import correlation
from analysis.errors import BadInput, unknown
from analysis.ranking import FINISHED, combine_ranks
from analysis.results import Results
from analysis.schema import direction, is_metric, is_score, number_columns

Censored = Literal["drop", "last"]

ENOUGH = 5
"""Candidates that a target needs before an order of them says anything."""

_STATISTICS = ("tau", "spearman", "recall")
_DTYPES = {
    "predictor": "string",
    "stage": "string",
    "epoch": "Int64",
    "n": "int64",
    "k": "int64",
    **{f"{name}{end}": "float64" for name in _STATISTICS for end in ("", "_low", "_high")},
}


@dataclass(frozen=True)
class _Predictor:
    name: str
    stage: str | None
    epoch: int | None
    values: pd.Series  # by hash


def agreement(
    results: Results,
    target: str = "valid_accuracy",
    stage: str | None = None,
    k: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
    censored: Censored | None = None,
) -> pd.DataFrame:
    """Agreement of every early sign with the final result: a row per predictor.

    Predictors: the control `params` and `flops`; each score without training, and the scores combined as their stage
    combined them; `valid_accuracy` and `objective` at each epoch before the target's. Candidates are joined by hash,
    seeds averaged. Columns: predictor, stage, epoch, n candidates, k, and `tau` (Kendall's tau-b), `spearman` and
    `recall` (of the target's k best among the predictor's k best), each with the bounds `_low` and `_high` of its
    95 % bootstrap interval; NaN where a predictor or the target is constant. `attrs` names target, stage and censored.

    Args:
        target: a metric of the last report of a trial; positive values agree with its better direction.
        stage: of the target; default: the last distillation stage with at least 5 different candidates.
        k: default: a tenth of the candidates, at least 3.
        resamples: bootstrap resamples of the candidates. Time grows as resamples * n^2.
        censored: candidates that were stopped early: `drop` them, or take their `last` value. Default: drop, when at
            least 5 candidates are left then.

    Raises:
        BadInput: several runs, an unknown stage or target, or an argument out of its range.
    """
    _check(results, target, stage, k, resamples, censored)
    trials = results.trials[~results.trials["control"] & results.trials["status"].isin(FINISHED)]
    trials = trials[trials[target].notna() & trials["valid_accuracy"].notna()]
    stage = stage if stage is not None else _default_stage(trials)
    truth, censored = _target(trials[trials["stage"] == stage], target, censored)
    rows = [_row(one, truth, k, resamples, seed) for one in _predictors(results, stage)] if len(truth) else []
    rows = [row for row in rows if row["n"] or row["predictor"] in ("params", "flops")]
    table = pd.DataFrame(rows, columns=list(_DTYPES)).astype(_DTYPES)
    table.attrs.update(target=target, stage=stage, censored=censored)
    return table


def _check(
    results: Results, target: str, stage: str | None, k: int | None, resamples: int, censored: Censored | None
) -> None:
    if results.trials["run"].nunique() > 1:
        raise BadInput(f"agreement is of one run, not of {results.name}; load each on its own")
    metrics = [c for c in number_columns(results.trials) if is_metric(c)]
    if target not in metrics:
        raise unknown("metric", target, metrics)
    if stage is not None and stage not in set(results.stages["stage"]):
        raise unknown("stage", stage, results.stages["stage"])
    if censored not in (None, "drop", "last"):
        raise BadInput(f"censored is 'drop' or 'last', not {censored!r}")
    for name, value in (("k", k), ("resamples", resamples)):
        if value is not None and value < 1:
            raise BadInput(f"{name} must be at least 1, not {value}")


def _default_stage(trials: pd.DataFrame) -> str | None:
    """The last stage with enough candidates, or else the one with most."""
    counts = trials.groupby(["stage_index", "stage"])["hash"].nunique()
    if counts.empty:
        return None
    enough = counts[counts >= ENOUGH]
    return str(enough.index[-1][1] if len(enough) else counts.idxmax()[1])  # type: ignore[index]


def _target(trials: pd.DataFrame, target: str, censored: Censored | None) -> tuple[pd.Series, Censored]:
    """The target's mean by hash, higher is better, and what became of candidates that were stopped early."""
    completed = trials[trials["status"] == "completed"]
    if censored is None:
        censored = "drop" if completed["hash"].nunique() >= ENOUGH else "last"
    kept = completed if censored == "drop" else trials
    values = kept.groupby("hash")[target].mean().astype("float64")
    return (-values if direction(target) == "lower" else values), censored


def _predictors(results: Results, stage: str | None) -> Iterator[_Predictor]:
    trials = results.trials
    for name in ("params", "flops"):
        yield _Predictor(name, None, None, trials.groupby("hash")[name].first().astype("float64"))
    kinds = results.stages.set_index("stage")["trial"]
    for scored in kinds[kinds == "score"].index:
        yield from _scores(results, str(scored))
    yield from _early_epochs(results, stage)


def _scores(results: Results, stage: str) -> Iterator[_Predictor]:
    trials = results.trials[results.trials["stage"] == stage]
    names = [c for c in number_columns(trials) if is_score(c) and trials[c].notna().any()]
    for name in names:
        yield _Predictor(name, stage, None, trials.groupby("hash")[name].mean().astype("float64"))
    row = results.stages[results.stages["stage"] == stage].iloc[0]
    weights = json.loads(row["objective"])
    if len(names) > 1 and weights and row["combine"] == "rank":
        means = trials.groupby("hash")[[*names, "params", "flops"]].mean()
        yield _Predictor("combined", stage, None, combine_ranks(means, weights))


def _early_epochs(results: Results, target_stage: str | None) -> Iterator[_Predictor]:
    """`valid_accuracy` and `objective` at each epoch of the stages up to the target's, its last epoch left out."""
    epochs = results.epochs[~results.epochs["control"] & (results.epochs["epoch"] > 0)]
    index = epochs.loc[epochs["stage"] == target_stage, "stage_index"].max()
    final = epochs.loc[epochs["stage"] == target_stage, "epoch"].max()
    early = epochs[(epochs["stage_index"] < index) | ((epochs["stage_index"] == index) & (epochs["epoch"] < final))]
    for (_, stage, epoch), part in early.groupby(["stage_index", "stage", "epoch"]):
        for name in ("valid_accuracy", "objective"):
            if part[name].notna().any():
                yield _Predictor(name, str(stage), int(epoch), part.groupby("hash")[name].mean())


def _row(one: _Predictor, truth: pd.Series, k: int | None, count: int, seed: int) -> dict[str, object]:
    """A predictor's row: the statistics over the candidates that have both values."""
    both = pd.concat([one.values.rename("x"), truth.rename("y")], axis=1, join="inner").dropna().sort_index()
    n = len(both)
    size = min(k if k is not None else max(3, round(n / 10)), max(n, 1))
    row: dict[str, object] = {"predictor": one.name, "stage": one.stage, "epoch": one.epoch, "n": n, "k": size}
    if n < 2:
        return row
    x, y = both["x"].to_numpy(dtype="float64"), both["y"].to_numpy(dtype="float64")
    # The first row of weights draws each candidate once: the estimate itself.
    weights = np.concatenate([np.ones((1, n), dtype=np.int64), correlation.resamples(n, count, seed)])
    for name, values in (
        ("tau", correlation.kendall_tau(x, y, weights)),
        ("spearman", correlation.spearman(x, y, weights)),
        ("recall", correlation.top_k_recall(x, y, size, weights)),
    ):
        drawn = values[1:][np.isfinite(values[1:])]
        low, high = np.quantile(drawn, [0.025, 0.975]) if len(drawn) and np.isfinite(values[0]) else (np.nan, np.nan)
        row.update({name: values[0], f"{name}_low": low, f"{name}_high": high})
    return row
