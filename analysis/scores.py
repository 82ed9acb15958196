"""Tables of scores without training: a row per candidate and seed, as they were made, or a row per candidate."""

import json
from collections import Counter

import numpy as np
import pandas as pd

from analysis.errors import BadInput, unknown
from analysis.ranking import FINISHED, candidates
from analysis.schema import SIZES, is_setting, score_columns
from analysis.sources import Source, completed, is_summary, trials_of


def load_scores(source: Source, stage: str | None = None) -> pd.DataFrame:
    """A row per candidate: each score's mean over seeds and its `_std`, `seeds`, hash, arch and its choices, size, and
    why values are missing (`reasons`, JSON by score). A score that no candidate has is left out; see `missing`.

    Args:
        source: a run or its directory, a Parquet file as `dux score` writes it, or a frame with at least the columns
            `hash` and a score, and `seed` where there are several.
        stage: default: the last stage of scores.

    Raises:
        BadInput: no Parquet, no column `hash`, no score, or an unknown stage.
    """
    trials, _ = trials_of(source)
    if is_summary(trials) and score_columns(trials):
        return trials
    trials = score_trials(source, stage)
    trials = trials[trials["stage_index"] == trials["stage_index"].max()]
    # One row for each hash, whatever run or proposal it came from.
    keys = ["run", "stage", "proposal"]
    table = candidates(trials.assign(**trials.groupby("hash", sort=False)[keys].transform("first")))
    scores = [name for column in score_columns(trials) for name in (column, f"{column}_std")]
    sizes = [*SIZES, *(c for c in ("bytes", "latency_ms") if table[c].notna().any())]
    settings = [c for c in table.columns if is_setting(c)]
    front = ["run", "stage", "proposal", "hash", "seeds", "status", "epochs"]
    return table[[*front, "arch", *settings, *sizes, *scores, "reasons"]]


def score_trials(source: Source, stage: str | None = None) -> pd.DataFrame:
    """The finished trials of scores, of every stage or of one; raises `BadInput` as `load_scores`."""
    trials = _unlearned(source)
    if stage is not None and stage not in set(trials["stage"]):
        raise unknown("stage of scores", stage, dict.fromkeys(trials["stage"]))
    trials = trials[trials["status"].isin(FINISHED) & (trials["stage"].eq(stage) if stage is not None else True)]
    if not score_columns(trials):
        raise BadInput(f"{_name(source)} holds {_nothing(trials)}")
    return trials


def missing(source: Source) -> pd.DataFrame:
    """A row per score: stage, score, candidates, how many of them have no value, and the commonest reason.

    A candidate counts as missing where it has a value under no seed. Failed trials count, with the reason of their end.

    Raises:
        BadInput: as `load_scores`.
    """
    trials = _unlearned(source)
    trials = trials[trials["status"].isin([*FINISHED, "failed"])]
    rows = []
    for stage, part in trials.groupby("stage", sort=False):
        why = [json.loads(text) if isinstance(text, str) else {} for text in part["reasons"]]
        for score in score_columns(part, empty=True):
            if part[score].notna().any() or any(score in one for one in why):
                gap = _gap(part, score, [one.get(score) for one in why])
                rows.append((stage, score, part["hash"].nunique(), *gap))
    if not rows:
        raise BadInput(f"{_name(source)} holds no score without training")
    table = pd.DataFrame(rows, columns=["stage", "score", "candidates", "missing", "reason"])
    return table.astype({"stage": "string", "score": "string", "reason": "string"})


def _unlearned(source: Source) -> pd.DataFrame:
    """Trials of the stages that train nothing."""
    trials, stages = trials_of(source)
    trials = completed(trials)
    if stages is not None:
        return trials[trials["stage"].isin(stages.loc[stages["trial"] == "score", "stage"])]
    return trials[trials["valid_accuracy"].isna().groupby(trials["stage"]).transform("all")]


def _gap(part: pd.DataFrame, score: str, why: list[str | None]) -> tuple[int, str | None]:
    """How many candidates have no value, and the commonest reason."""
    lacking = part[score].groupby(part["hash"]).transform("count").to_numpy() == 0
    reasons: dict[str, str] = {}
    for candidate, given, end in zip(
        part["hash"][lacking], np.array(why)[lacking], part["reason"][lacking], strict=True
    ):
        if given or isinstance(end, str):
            reasons.setdefault(candidate, given or end)
    # Sorted, so that of equally common ones it is always the same.
    common = Counter(sorted(reasons.values())).most_common(1)
    return part["hash"][lacking].nunique(), common[0][0] if common else None


def _nothing(trials: pd.DataFrame) -> str:
    """What a table without scores holds; where they could not be computed, with a reason."""
    for reasons in trials["reasons"].dropna():
        score, reason = next(iter(json.loads(reasons).items()))
        return f"no value of any score; {score}: {reason}"
    return "no score without training"


def _name(source: Source) -> str:
    return "the table" if isinstance(source, pd.DataFrame) else str(getattr(source, "paths", [source])[0])
