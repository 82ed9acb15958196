"""What early signs should foretell: final results of a run, or published ones."""

from dataclasses import dataclass
from typing import Literal

import pandas as pd

from analysis.errors import BadInput, unknown
from analysis.ranking import FINISHED
from analysis.results import Results
from analysis.schema import direction, is_metric, number_columns

Censored = Literal["drop", "last"]

ENOUGH = 5
"""Candidates that a target needs before an order of them says anything."""


@dataclass(frozen=True)
class Target:
    """A final result.

    Args:
        values: by hash, averaged over seeds; higher is better.
        name: the metric.
        stage: where it was measured.
        censored: what became of candidates that were stopped early.
    """

    values: pd.Series
    name: str
    stage: str | None = None
    censored: Censored | None = None

    @property
    def attributes(self) -> dict[str, str | None]:
        """What a table about it carries in its `attrs`."""
        return {"target": self.name, "stage": self.stage, "censored": self.censored}


def final(results: Results, target: str, stage: str | None, censored: Censored | None) -> Target:
    """The last report of a run's candidates; raises `BadInput` as `agreement.agreement` says."""
    if results.trials["run"].nunique() > 1:
        raise BadInput(f"agreement is of one run, not of {results.name}; load each on its own")
    metrics = [c for c in number_columns(results.trials) if is_metric(c)]
    if target not in metrics:
        raise unknown("metric", target, metrics)
    if stage is not None and stage not in set(results.stages["stage"]):
        raise unknown("stage", stage, results.stages["stage"])
    if censored not in (None, "drop", "last"):
        raise BadInput(f"censored is 'drop' or 'last', not {censored!r}")
    trials = results.trials[~results.trials["control"] & results.trials["status"].isin(FINISHED)]
    trials = trials[trials[target].notna() & trials["valid_accuracy"].notna()]
    stage = stage if stage is not None else _default_stage(trials)
    trials = trials[trials["stage"] == stage]
    completed = trials[trials["status"] == "completed"]
    if censored is None:
        censored = "drop" if completed["hash"].nunique() >= ENOUGH else "last"
    kept = completed if censored == "drop" else trials
    return Target(_upwards(kept.groupby("hash")[target].mean(), target), target, stage, censored)


def published(truth: pd.DataFrame, target: str) -> Target:
    """A column of a table by hash, its rows of one hash averaged; raises `BadInput` for an unknown column."""
    numbers = [name for name in number_columns(truth) if not name.startswith("arch.")]
    if target not in numbers:
        raise unknown("column of numbers", target, numbers)
    return Target(_upwards(truth.groupby("hash")[target].mean().dropna(), target), target)


def with_hash(truth: pd.DataFrame | pd.Series, scores: pd.DataFrame) -> pd.DataFrame:
    """Published results with the hash of each candidate, found by its choices where the table has none.

    Args:
        truth: a series by hash, or a frame with the column `hash` or every column `arch.*` that the scores have.
        scores: a table that tells which choices belong to which hash.

    Raises:
        BadInput: neither column of names, or no candidate in common.
    """
    if isinstance(truth, pd.Series):
        truth = truth.rename_axis("hash").to_frame(truth.name or "target").reset_index()
    if "hash" not in truth.columns:
        choices = [c for c in scores.columns if c.startswith("arch.")]
        lacking = [c for c in choices if c not in truth.columns]
        if lacking or not choices:
            raise BadInput(f"published results need the column 'hash', or a column for each choice; lacking: "
                           f"{', '.join(lacking) or 'the choices of the scores, arch.*'}")  # fmt: skip
        truth = truth.merge(scores[["hash", *choices]].drop_duplicates(), on=choices)
    truth = truth.assign(hash=truth["hash"].astype("string"))
    if not truth["hash"].isin(scores["hash"]).any():
        raise BadInput("the scores and the published results have no candidate in common")
    return truth


def _upwards(values: pd.Series, name: str) -> pd.Series:
    values = values.astype("float64")
    return -values if direction(name) == "lower" else values


def _default_stage(trials: pd.DataFrame) -> str | None:
    """The last stage with enough candidates, or else the one with most."""
    counts = trials.groupby(["stage_index", "stage"])["hash"].nunique()
    if counts.empty:
        return None
    enough = counts[counts >= ENOUGH]
    return str(enough.index[-1][1] if len(enough) else counts.idxmax()[1])  # type: ignore[index]
