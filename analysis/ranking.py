"""Who is best: a row per student, averaged over seeds, best first."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from analysis import where as filters
from analysis.combine import combine_ranks, ensemble, families, terms
from analysis.errors import BadInput, unknown
from analysis.schema import (
    ENSEMBLES,
    TRIALS,
    direction,
    is_metric,
    is_setting,
    number_columns,
    only_scores,
    score_columns,
)
from analysis.sources import Source, is_summary, trials_of

By = Mapping[str, float] | str | None
Combine = Literal["sum", "rank"]

FINISHED = ("completed", "stopped")
_CANDIDATE = ["run", "stage", "hash", "proposal"]
_STUDENT = ["run", "hash"]
_COSTS = [column.name for column in TRIALS if column.role == "cost"]
_ALONE = ["valid_accuracy", "test_accuracy"]


@dataclass(frozen=True)
class Rule:
    """How candidates are scored: a weighted sum, or a weighted mean of normalised ranks.

    Args:
        weights: by column or score.
        combine: `sum`, or `rank` among the candidates of the table.
        of: the scores of the ensembles that the weights name; default: all.
    """

    weights: Mapping[str, float]
    combine: Combine
    of: list[str] | None = None

    @property
    def by_row(self) -> bool:
        """Whether a candidate's score does not depend on who else is in the table."""
        return self.combine == "sum" and set(ENSEMBLES).isdisjoint(self.weights)

    def columns(self, table: pd.DataFrame) -> list[str]:
        """The columns that it reads."""
        scores = [] if set(ENSEMBLES).isdisjoint(self.weights) else self.of or score_columns(table)
        names = [*(name for name in self.weights if name not in ENSEMBLES), *scores]
        return list(dict.fromkeys(column for name in names for column in terms(table, name, 1.0)))


def rank(
    results: Source,
    by: By = None,
    where: str | None = None,
    stage: str | None = None,
    top: int | None = None,
    *,
    combine: Combine | None = None,
    include_test: bool = False,
    each: Literal["student", "proposal"] = "student",
) -> pd.DataFrame:
    """A row per student, best first: each result's mean over seeds and its `_std`, `seeds`, and where control trials
    ran the same without the teacher (`valid_accuracy_alone`), and what the teacher is worth (`valid_accuracy_delta`):
    with him minus without, seed by seed. Both of validation and test accuracy, NaN without controls.

    By the stage's own objective, who trained for longer stands first: he has outlasted the others at every rung. Equal
    students share the smaller rank and stand in order of size, then of hash. One without a score is last. Failed and
    unfinished trials do not count.

    Args:
        results: of one or several runs; a run's directory; a table of trials or of scores, or its Parquet file.
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
    trials, stages = trials_of(results)
    return _ranked(_chosen(trials, stage), stages, by, where, top, combine, include_test, each)


def rank_scores(
    results: Source,
    by: By = None,
    where: str | None = None,
    stage: str | None = None,
    top: int | None = None,
) -> pd.DataFrame:
    """Like `rank`, for the last stage of scores without training: by their combined normalised ranks, in [0, 1].

    Every score counts as higher is better, `params` and `flops` too, the controls that a score must beat.
    """
    trials, stages = trials_of(results)
    scored = trials if is_summary(trials) else trials[trials["valid_accuracy"].isna()]
    return _ranked(_chosen(scored, stage), stages, by, where, top, "rank", False, "student")


def _chosen(trials: pd.DataFrame, stage: str | None) -> pd.DataFrame:
    """The candidates of one stage, default the last."""
    if is_summary(trials):
        table = trials.drop(columns=["rank", "score"], errors="ignore")
        return table if stage is None else table[_of_stage(table, stage)]
    return candidates(trials[_of_stage(trials, stage) if stage is not None else _last_stage(trials)])


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
    metrics = _metrics(trials)
    groups = taught.groupby(_CANDIDATE, sort=False)
    fixed = ["arch", "origin", "reasons", *_COSTS, *filter(is_setting, trials.columns)]
    values = taught[metrics].astype("float64").groupby([taught[c] for c in _CANDIDATE], sort=False)
    means, spread = values.mean(), values.std().add_suffix("_std")
    parts = [
        # Of several seeds: stopped, if one was; the epochs that all of them reached.
        groups.agg(seeds=("seed", "nunique"), status=("status", "max"), epochs=("epochs", "min")),
        *[part[[c]] for c in metrics for part, c in ((means, c), (spread, f"{c}_std"))],
        *[part.reindex(means.index) for part in _against_controls(taught, trials[trials["control"]])],
        groups[fixed].first(),
    ]
    return pd.concat(parts, axis=1).reset_index()


def _metrics(trials: pd.DataFrame) -> list[str]:
    """The columns that a candidate's seeds are averaged in."""
    metrics = [c for c in number_columns(trials) if is_metric(c) and c != "epochs"]
    # Empty scores too: an objective may name them.
    empty = {name for reasons in trials["reasons"].dropna().unique() for name in json.loads(reasons)}
    return [c for c in metrics if trials[c].notna().any() or c in {"valid_accuracy", *empty}]


def seeds_of(trials: pd.DataFrame) -> list[pd.DataFrame]:
    """What `candidates` averages: tables of a row a seed, by run, stage, hash and proposal. The first is of the
    finished trials, the others of what they reach without the teacher and of what he is worth."""
    trials = trials.sort_values(["stage_index", "number"], kind="stable")
    trials = trials[trials["status"].isin(FINISHED)]
    taught = trials[~trials["control"]]
    values = taught.set_index(_CANDIDATE)[_metrics(trials)].astype("float64")
    paired = _paired(taught, trials[trials["control"]])
    return [values, *[table.droplevel("seed").add_suffix(f"_{name}") for name, table in paired]]


def _paired(taught: pd.DataFrame, controls: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """By candidate and seed, what the students reach without the teacher, and how much more with him."""
    taught = taught[taught["proposal"].isin(controls["proposal"].unique())]
    paired, alone = (part.groupby([*_CANDIDATE, "seed"], sort=False)[_ALONE].mean() for part in (taught, controls))
    yield "alone", alone
    yield "delta", paired.reindex(alone.index) - alone


def _against_controls(taught: pd.DataFrame, controls: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """By candidate, the means and spreads of those."""
    for name, values in _paired(taught, controls):
        groups = values.groupby(_CANDIDATE, sort=False)
        table = groups.mean().add_suffix(f"_{name}").join(groups.std().add_suffix(f"_{name}_std"))
        yield table[[f"{column}_{name}{end}" for column in _ALONE for end in ("", "_std")]].astype("float64")


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
        _refuse_test([by] if isinstance(by, str) else list(by), include_test)
    parts = [part.assign(score=scored(part, rule)) for part, rule in ruled(table, stages, by, combine)]
    table = pd.concat(parts) if parts else table.assign(score=pd.Series(dtype="float64"))
    table = table.assign(_lasted=lasted(table, by))
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


def lasted(table: pd.DataFrame, by: By) -> pd.Series:
    """What is compared before the score: epochs, by the stage's own objective; -1 where there is no score."""
    epochs = table["epochs"] if by is None else pd.Series(0, index=table.index)
    return epochs.where(table["score"].notna(), -1)


def ruled(
    table: pd.DataFrame, stages: pd.DataFrame | None, by: By, combine: Combine | None
) -> Iterator[tuple[pd.DataFrame, Rule]]:
    """The parts of a table of candidates that are scored together, each with its rule."""
    if by is not None:
        way: Combine = combine or ("rank" if only_scores(table) and len(table) else "sum")
        yield table, Rule({by: 1.0} if isinstance(by, str) else dict(by), way)
        return
    for _, part in table.groupby("run"):
        yield part, _objective(part, stages, combine)


def _objective(part: pd.DataFrame, stages: pd.DataFrame | None, combine: Combine | None) -> Rule:
    """How the candidates of one stage are scored by that stage's own objective."""
    row = None
    if stages is not None:
        found = stages[(stages["run"] == part["run"].iloc[0]) & (stages["stage"] == part["stage"].iloc[0])]
        row = found.iloc[0] if len(found) else None
    weights = json.loads(row["objective"]) if row is not None else {}
    way = combine or (row["combine"] if row is not None and row["combine"] is not pd.NA else None)
    if way != "rank" and "objective" in part and part["objective"].notna().any():
        return Rule({"objective": 1.0}, "sum")
    if not weights:
        names = families(score_columns(part)) if only_scores(part) else ["valid_accuracy"]
        weights = dict.fromkeys(names, 1.0)
    of = json.loads(row["ensemble"]) if row is not None and pd.notna(row["ensemble"]) else None
    return Rule(weights, way or ("rank" if only_scores(part) else "sum"), of)


def scored(table: pd.DataFrame, rule: Rule) -> pd.Series:
    """The candidates' scores; each column counted in its better direction.

    Raises:
        BadInput: an unknown column, one without a better direction, or a weight of the wrong sign.
    """
    scores_only = only_scores(table)
    if not set(ENSEMBLES).isdisjoint(rule.weights):
        table = table.join(ensemble(table, rule.of))
    signed: dict[str, float] = {}
    for name, weight in rule.weights.items():
        for column, share in terms(table, name, weight).items():
            better = "higher" if scores_only else direction(column)
            if better == "none":
                raise BadInput(f"column {column!r} has no better direction; rank by a metric or a cost")
            if better == "lower" and weight < 0:
                raise BadInput(f"less {column!r} is better and counts so; its weight must be positive, not {weight}")
            signed[column] = signed.get(column, 0.0) + (share if better == "higher" else -share)
    if rule.combine == "rank":
        return combine_ranks(table, signed)
    total = pd.Series(0.0, index=table.index)
    for column, share in signed.items():
        total += share * table[column].astype("float64")
    return total
