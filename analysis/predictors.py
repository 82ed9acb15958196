"""What is known of candidates early: their size, their scores, how they do after few epochs."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import pandas as pd

from analysis.combine import combine_ranks, ensemble, families
from analysis.ranking import FINISHED
from analysis.results import Results
from analysis.schema import SIZES, score_columns

EARLY = ("valid_accuracy", "objective", "teacher_guidance")


@dataclass(frozen=True)
class Predictor:
    """One early sign.

    Args:
        values: by hash, averaged over seeds; higher should be better.
        by_seed: the same of each seed on its own, where there are several.
    """

    name: str
    stage: str | None
    epoch: int | None
    values: pd.Series
    by_seed: tuple[pd.Series, ...] = ()


def of_size(*tables: pd.DataFrame) -> list[Predictor]:
    """The controls, from the first of the tables that knows them."""
    known = {name: [t for t in tables if name in t.columns and t[name].notna().any()] for name in SIZES}
    empty = pd.Series(dtype="float64")
    return [
        Predictor(name, None, None, found[0].groupby("hash")[name].mean().astype("float64") if found else empty)
        for name, found in known.items()
    ]


def of_scores(results: Results, extra: pd.DataFrame | None = None) -> Iterator[Predictor]:
    """The scores of each stage of scores, the stages of a table beside them.

    Args:
        extra: trials of scores; in a stage that the run has too they are added to its scores, or take their place.
    """
    kinds = results.stages.set_index("stage")["trial"]
    trials = results.trials[results.trials["status"].isin(FINISHED)]
    parts = {str(stage): trials[trials["stage"] == stage] for stage in kinds[kinds == "score"].index}
    for stage, more in extra.groupby("stage", sort=False) if extra is not None else ():
        own = parts.get(str(stage), more.head(0))
        parts[str(stage)] = pd.concat([_values(own, without=score_columns(more)), _values(more)], ignore_index=True)
    settings = results.stages.set_index("stage")
    for name, part in parts.items():
        row = settings.loc[name] if name in settings.index else None
        weights = json.loads(str(row["objective"])) if row is not None and row["combine"] == "rank" else {}
        of = json.loads(str(row["ensemble"])) if row is not None and pd.notna(row["ensemble"]) else None
        yield from of_stage(part, name, weights, of)


def of_stage(
    trials: pd.DataFrame, stage: str, weights: Mapping[str, float], of: Iterable[str] | None = None
) -> Iterator[Predictor]:
    """Each score of a stage; a score of several terms also as one; all as ensembles, and as the stage combined them.

    Args:
        weights: of the stage's objective; none: it combined nothing.
        of: the scores of its ensembles.
    """
    names = score_columns(trials)
    means = _combined(trials, names, weights, of)
    parts = trials.groupby("seed") if trials["seed"].nunique() > 1 else ()
    seeds = [_combined(part, names, weights, of) for _, part in parts]
    for name in means.columns:
        yield Predictor(str(name), stage, None, means[name], tuple(one[name] for one in seeds))


def of_epochs(results: Results, target_stage: str | None) -> Iterator[Predictor]:
    """What is reported at each epoch of the stages up to the target's, its last epoch left out."""
    for stage, epoch, part in early_epochs(results, target_stage):
        for name in EARLY:
            if part[name].notna().any():
                seeds = [one.groupby("hash")[name].mean() for _, one in part.groupby("seed")]
                mean = part.groupby("hash")[name].mean()
                yield Predictor(name, stage, epoch, mean, tuple(seeds) if len(seeds) > 1 else ())


def early_epochs(results: Results, target_stage: str | None) -> Iterator[tuple[str, int, pd.DataFrame]]:
    """Stage, epoch and reports of each epoch of the stages up to the target's, its last epoch left out."""
    epochs = results.epochs[~results.epochs["control"] & (results.epochs["epoch"] > 0)]
    index = epochs.loc[epochs["stage"] == target_stage, "stage_index"].max()
    final = epochs.loc[epochs["stage"] == target_stage, "epoch"].max()
    early = epochs[(epochs["stage_index"] < index) | ((epochs["stage_index"] == index) & (epochs["epoch"] < final))]
    for (_, stage, epoch), part in early.groupby(["stage_index", "stage", "epoch"]):
        yield str(stage), int(epoch), part


def _values(trials: pd.DataFrame, without: Iterable[str] = ()) -> pd.DataFrame:
    """Who, which seed, and numbers: what two tables can share a frame with."""
    scores = [name for name in score_columns(trials) if name not in set(without)]
    return trials[["hash", "seed", *SIZES, *scores]].astype(dict.fromkeys([*SIZES, *scores], "float64"))


def _combined(
    trials: pd.DataFrame, names: list[str], weights: Mapping[str, float], of: Iterable[str] | None
) -> pd.DataFrame:
    """A column per predictor, by hash."""
    # Empty scores too: what the stage combined may name them, and they then change nothing.
    every = [*score_columns(trials, empty=True), *SIZES]
    means = trials[every].astype("float64").groupby(trials["hash"]).mean()
    columns: dict[str, pd.Series] = {}
    for score in families(names):
        terms = [name for name in names if name == score or name.startswith(f"{score}.")]
        columns |= {name: means[name] for name in terms}
        if len(terms) > 1 and score not in terms:
            columns[score] = combine_ranks(means, {score: 1.0})
    if len(families(names)) > 1:
        both = ensemble(means, of or families(names))
        columns |= {str(name): both[name] for name in both.columns}
        if weights:
            columns["combined"] = combine_ranks(means.join(both), weights)
    return pd.DataFrame(columns, index=means.index)
