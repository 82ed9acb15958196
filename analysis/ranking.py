"""Who is best: a row per student, averaged over seeds, best first."""

import json
import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd

from analysis import where as filters
from analysis.errors import BadInput, unknown
from analysis.results import Results
from analysis.schema import TRIALS, direction, is_metric, is_score, is_setting, number_columns

By = Mapping[str, float] | str | None
Combine = Literal["sum", "rank"]

FINISHED = ("completed", "stopped")
_CANDIDATE = ["run", "stage", "hash", "proposal"]
_STUDENT = ["run", "hash"]
_COSTS = [column.name for column in TRIALS if column.role == "cost"]
_ALONE = ["valid_accuracy", "test_accuracy"]


def rank(
    results: Results | pd.DataFrame,
    by: By = None,
    where: str | None = None,
    stage: str | None = None,
    top: int | None = None,
    *,
    combine: Combine | None = None,
    include_test: bool = False,
    each: Literal["student", "proposal"] = "student",
) -> pd.DataFrame:
    """A row per student, best first: each result's mean over seeds and its `_std`, `seeds`, and the same without the
    teacher (`valid_accuracy_alone`) where control trials ran.

    By the stage's own objective, who trained for longer stands first: he has outlasted the others at every rung. Equal
    students share the smaller rank and stand in order of size, then of hash. One without a score is last. Failed and
    unfinished trials do not count.

    Args:
        results: of one or several runs, or a table of trials.
        by: column or weights of columns; columns of which less is better (params, kl, ...) count negatively.
            Default: the stage's objective.
        where: a filter over the columns of the result, as in `params <= 20000 and arch.width == 8`.
        stage: default: each run's last with finished distillation trials, else the last with finished trials.
        top: number of rows at most.
        combine: `sum` of weighted values, or weighted mean of normalised ranks. Default: the stage's way.
        include_test: let `by` and `where` read test metrics. Who is chosen on test data looks better than he is.
        each: `student`: one row for each architecture, with the hyperparameters that did best; `proposal`: one for
            each pair of architecture and hyperparameters.

    Raises:
        BadInput: an unknown stage or column, a test metric, a weight of the wrong sign, or an unreadable filter.
    """
    trials, stages = (results.trials, results.stages) if isinstance(results, Results) else (results, None)
    chosen = trials[_of_stage(trials, stage) if stage is not None else _last_stage(trials)]
    return _ranked(candidates(chosen), stages, by, where, top, combine, include_test, each)


def rank_scores(
    results: Results | pd.DataFrame,
    by: By = None,
    where: str | None = None,
    stage: str | None = None,
    top: int | None = None,
) -> pd.DataFrame:
    """Like `rank`, for the last stage of scores without training: by their combined normalised ranks, in [0, 1].

    Every score counts as higher is better, `params` and `flops` too, the controls that a score must beat.
    """
    trials, stages = (results.trials, results.stages) if isinstance(results, Results) else (results, None)
    scored = trials[trials["valid_accuracy"].isna()]
    chosen = scored[_of_stage(scored, stage) if stage is not None else _last_stage(scored)]
    return _ranked(candidates(chosen), stages, by, where, top, "rank", False, "student")


def _of_stage(trials: pd.DataFrame, stage: str) -> pd.Series:
    if len(trials) and stage not in set(trials["stage"]):
        raise unknown("stage", stage, dict.fromkeys(trials["stage"]))
    return trials["stage"] == stage


def _last_stage(trials: pd.DataFrame) -> pd.Series:
    """Which trials are of their run's last stage with finished distillation, or else with anything finished."""
    finished = trials[trials["status"].isin(FINISHED) & ~trials["control"]]
    distilled = finished[finished["valid_accuracy"].notna()]
    last = finished.groupby("run")["stage_index"].max()
    last.update(distilled.groupby("run")["stage_index"].max())
    return trials["stage_index"] == trials["run"].map(last).fillna(-1)


def candidates(trials: pd.DataFrame) -> pd.DataFrame:
    """A row per stage, architecture and hyperparameters: what its finished trials measured, averaged over seeds."""
    # In one order, so that means do not depend, in their last bit, on the order of the rows.
    trials = trials.sort_values(["stage_index", "number"], kind="stable")
    trials = trials[trials["status"].isin(FINISHED)]
    taught = trials[~trials["control"]]
    metrics = [c for c in number_columns(trials) if is_metric(c) and c != "epochs"]
    metrics = [c for c in metrics if trials[c].notna().any() or c == "valid_accuracy"]
    groups = taught.groupby(_CANDIDATE, sort=False)
    fixed = ["arch", "reasons", *_COSTS, *filter(is_setting, trials.columns)]
    values = taught[metrics].astype("float64").groupby([taught[c] for c in _CANDIDATE], sort=False)
    means, spread = values.mean(), values.std().add_suffix("_std")
    parts = [
        # Of several seeds: stopped, if one was; the epochs that all of them reached.
        groups.agg(seeds=("seed", "nunique"), status=("status", "max"), epochs=("epochs", "min")),
        *[part[[c]] for c in metrics for part, c in ((means, c), (spread, f"{c}_std"))],
        _alone(trials[trials["control"]]).reindex(means.index),
        groups[fixed].first(),
    ]
    return pd.concat(parts, axis=1).reset_index()


def _alone(controls: pd.DataFrame) -> pd.DataFrame:
    """What the same students reach without the teacher, by candidate."""
    groups = controls.groupby(_CANDIDATE, sort=False)[_ALONE]
    table = groups.mean().add_suffix("_alone").join(groups.std().add_suffix("_alone_std"))
    return table[[f"{name}_alone{end}" for name in _ALONE for end in ("", "_std")]].astype("float64")


def _ranked(
    table: pd.DataFrame,
    stages: pd.DataFrame | None,
    by: By,
    where: str | None,
    top: int | None,
    combine: Combine | None,
    include_test: bool,
    each: Literal["student", "proposal"],
) -> pd.DataFrame:
    if top is not None and top < 1:
        raise BadInput(f"top must be at least 1, not {top}")
    if where is not None:
        comparisons = filters.parse(where)
        _refuse_test([one.column for one in comparisons], include_test)
        table = table[filters.matches(table, comparisons)]
    if by is not None:
        weights = {by: 1.0} if isinstance(by, str) else dict(by)
        _refuse_test(weights, include_test)
        table = table.assign(score=_weighted(table, weights, combine))
    else:
        parts = [part.assign(score=_by_objective(part, stages, combine)) for _, part in table.groupby("run")]
        table = pd.concat(parts) if parts else table.assign(score=pd.Series(dtype="float64"))
    lasted = table["epochs"] if by is None else pd.Series(0, index=table.index)
    table = table.assign(_lasted=lasted.where(table["score"].notna(), -1))
    order = ["_lasted", "score", "params", "hash", "run", "proposal"]
    table = table.sort_values(order, ascending=[False, False, *[True] * 4], kind="stable", na_position="last")
    if each == "student":
        table = table.drop_duplicates(_STUDENT)
    place = _places(table[["_lasted", "score"]])
    front = ["run", "hash", "stage", "proposal", "score"]
    table = table[[*front, *[c for c in table if c not in [*front, "_lasted"]]]]
    table.insert(0, "rank", place)
    return table.head(top if top is not None else len(table)).reset_index(drop=True)


def _places(ordered: pd.DataFrame) -> pd.Series:
    """Ranks from 1 of rows in their order; equal rows share the first one's."""
    values = ordered.fillna(-math.inf)
    new = (values != values.shift()).any(axis=1)
    numbers = pd.Series(np.arange(1, len(ordered) + 1), index=ordered.index)
    return numbers.where(new).ffill().astype("int64")


def _refuse_test(columns: Mapping[str, float] | list[str], include_test: bool) -> None:
    for name in columns:
        if name.startswith("test_") and not include_test:
            raise BadInput(f"choosing by {name!r} would fit the choice to the test data; use a validation metric")


def _by_objective(part: pd.DataFrame, stages: pd.DataFrame | None, combine: Combine | None) -> pd.Series:
    """The score of the candidates of one stage by that stage's own objective."""
    row = None
    if stages is not None:
        found = stages[(stages["run"] == part["run"].iloc[0]) & (stages["stage"] == part["stage"].iloc[0])]
        row = found.iloc[0] if len(found) else None
    weights = json.loads(row["objective"]) if row is not None else {}
    way = combine or (row["combine"] if row is not None and row["combine"] is not pd.NA else None)
    if way != "rank" and "objective" in part and part["objective"].notna().any():
        return part["objective"]
    if not weights:
        scores = [c for c in number_columns(part) if is_score(c) and f"{c}_std" in part]
        weights = dict.fromkeys(scores or ["valid_accuracy"], 1.0)
    return _weighted(part, weights, way)


def _weighted(table: pd.DataFrame, weights: Mapping[str, float], combine: Combine | None) -> pd.Series:
    """Weighted sum, or weighted mean rank; each column counted in its better direction."""
    scores_only = table["valid_accuracy"].isna().all()
    signed: dict[str, float] = {}
    for name, weight in weights.items():
        for column, share in _terms(table, name, weight).items():
            better = "higher" if scores_only else direction(column)
            if better == "none":
                raise BadInput(f"column {column!r} has no better direction; rank by a metric or a cost")
            if better == "lower" and weight < 0:
                raise BadInput(f"less {column!r} is better and counts so; its weight must be positive, not {weight}")
            signed[column] = signed.get(column, 0.0) + (share if better == "higher" else -share)
    if combine == "rank" or (combine is None and scores_only and len(table)):
        return combine_ranks(table, signed)
    total = pd.Series(0.0, index=table.index)
    for column, share in signed.items():
        total += share * table[column].astype("float64")
    return total


def combine_ranks(frame: pd.DataFrame, weights: Mapping[str, float]) -> pd.Series:
    """Weighted mean of normalised ranks by the frame's index: 1 is best in every term, 0 worst in every term.

    Terms of different units are added this way because raw sums are ruled by the term of the largest spread. Ties
    share their mean rank; a missing value gets 0.

    Args:
        weights: by column, higher is better; a negative weight turns a column around. A name that has several terms
            (`diswot`: `diswot.semantic`, `diswot.relation`) shares its weight equally among them.

    Raises:
        BadInput: an unknown column, one without numbers, or no weight other than 0.
    """
    terms: dict[str, float] = {}
    for name, weight in weights.items():
        for column, share in _terms(frame, name, weight).items():
            terms[column] = terms.get(column, 0.0) + share
    total = sum(map(abs, terms.values()))
    if not total:
        raise BadInput("a ranking takes at least one weight other than 0")
    mean = np.zeros(len(frame))
    for column, share in terms.items():
        mean += abs(share) / total * _normalised_rank(math.copysign(1, share) * frame[column].astype("float64"))
    return pd.Series(np.clip(mean, 0, 1), index=frame.index)


def _normalised_rank(values: pd.Series) -> np.ndarray:
    """0 for the worst to 1 for the best (a single one: 1); 0 for NaN."""
    ranks = values.rank(method="average", na_option="top").to_numpy(dtype="float64")
    normal = (ranks - 1) / (len(values) - 1) if len(values) > 1 else np.ones(len(values))
    return np.where(values.isna(), 0.0, normal)


def _terms(frame: pd.DataFrame, name: str, weight: float) -> dict[str, float]:
    """The columns that a name stands for, each with its share of the weight."""
    if not math.isfinite(weight):
        raise BadInput(f"the weight of {name!r} must be finite, not {weight}")
    # `diswot` alone is there, empty, where no candidate could be scored in any of its terms.
    columns = [name] if name in frame.columns and frame[name].notna().any() else []
    columns = columns or [c for c in frame.columns if c.startswith(f"{name}.") and not c.endswith("_std")]
    columns = columns or [c for c in frame.columns if c == name]
    numbers = number_columns(frame)
    if not columns or not set(columns) <= set(numbers):
        raise unknown("column of numbers", name, numbers)
    return {column: weight / len(columns) for column in columns}
