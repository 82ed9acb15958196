"""Several scores as one order: their ranks averaged, or candidates compared in pairs and decided by majority.

Shape suffixes: S scores, N candidates, B candidates of a block.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from analysis.errors import BadInput, unknown
from analysis.schema import ENSEMBLES, SIZES, number_columns, only_scores, score_columns

_BLOCK = 64  # rows of the N x N table of margins held at once: with 15,625 candidates they fit a core's cache


def combine_ranks(frame: pd.DataFrame, weights: Mapping[str, float]) -> pd.Series:
    """Weighted mean of normalised ranks by the frame's index: 1 is best in every term, 0 worst in every term.

    Terms of different units are added this way because raw sums are ruled by the term of the largest spread. Ties
    share their mean rank; a missing value gets 0, and a row without any value NaN.

    Args:
        weights: by column, higher is better; a negative weight turns a column around. A name that has several terms
            (`diswot`: `diswot.semantic`, `diswot.relation`) shares its weight equally among them.

    Raises:
        BadInput: an unknown column, one without numbers, or no weight other than 0.
    """
    shares: dict[str, float] = {}
    for name, weight in weights.items():
        for column, share in terms(frame, name, weight).items():
            shares[column] = shares.get(column, 0.0) + share
    shares = {column: share for column, share in shares.items() if share}
    if not shares:
        raise BadInput("a ranking takes at least one weight other than 0")
    total = sum(map(abs, shares.values()))
    mean = np.zeros(len(frame))
    for column, share in shares.items():
        mean += abs(share) / total * _normalised_rank(math.copysign(1, share) * frame[column].astype("float64"))
    # Rounded, so that means that are equal stay so whatever they were added up from.
    known = frame[list(shares)].notna().any(axis=1).to_numpy()
    return pd.Series(np.where(known, np.clip(mean.round(12), 0, 1), np.nan), index=frame.index)


def ensemble(frame: pd.DataFrame, of: Iterable[str] | None = None) -> pd.DataFrame:
    """Scores as one, by the frame's index, in two ways; both lie in [0, 1], higher is better.

    `ensemble.rank` is the mean of their normalised ranks (see `combine_ranks`). `ensemble.vote` is the share of the
    other candidates that a candidate beats (Abdelfattah et al. 2021, arXiv:2101.08134, majority vote of scores): of two
    candidates the one wins that more scores prefer, a draw counts half. A missing value ranks last and beats nothing.
    Both are NaN where every score is missing.

    Args:
        of: names of columns; one that has several terms counts once, as the mean of its terms' ranks. Default: every
            score of the table, so neither `params` nor `flops`.

    Raises:
        BadInput: no score, or a name that is no column of numbers.
    """
    every = score_columns(frame) or score_columns(frame, empty=True)
    names = [of] if isinstance(of, str) else list(of) if of is not None else families(every)
    if not names:
        raise BadInput("an ensemble takes at least one score; the table has none")
    orders_SN = np.array([combine_ranks(frame, {name: 1.0}).fillna(0.0) for name in names])
    ranks = combine_ranks(frame, dict.fromkeys(names, 1.0))
    votes = np.where(ranks.isna(), np.nan, _majority(orders_SN))
    return pd.DataFrame(dict(zip(ENSEMBLES, (ranks, votes), strict=True)), index=frame.index)


def families(columns: Iterable[str]) -> list[str]:
    """Names of scores from names of columns, which hold a score or, after a dot, one of its terms."""
    return list(dict.fromkeys(name.split(".")[0] for name in columns))


def terms(frame: pd.DataFrame, name: str, weight: float) -> dict[str, float]:
    """The columns that a name stands for, each with its share of the weight; raises `BadInput` as `combine_ranks`."""
    if not math.isfinite(weight):
        raise BadInput(f"the weight of {name!r} must be finite, not {weight}")
    # `diswot` alone is there, empty, where no candidate could be scored in any of its terms.
    columns = [name] if name in frame.columns and frame[name].notna().any() else []
    columns = columns or [c for c in frame.columns if c.startswith(f"{name}.") and not c.endswith("_std")]
    columns = columns or [c for c in frame.columns if c == name]
    numbers = number_columns(frame)
    if not columns or not set(columns) <= set(numbers):
        known = [*score_columns(frame), *(size for size in SIZES if size in numbers)]
        raise unknown("column of numbers", name, known if only_scores(frame) else numbers)
    return {column: weight / len(columns) for column in columns}


def _normalised_rank(values: pd.Series) -> np.ndarray:
    """0 for the worst to 1 for the best (a single one: 1); 0 for NaN."""
    ranks = values.rank(method="average", na_option="top").to_numpy(dtype="float64")
    normal = (ranks - 1) / (len(values) - 1) if len(values) > 1 else np.ones(len(values))
    return np.where(values.isna(), 0.0, normal)


def _majority(orders_SN: np.ndarray) -> np.ndarray:
    """Share of the others that each candidate beats by majority, draws by half, [N]; a single one: 1."""
    count = orders_SN.shape[1]
    if count < 2:
        return np.ones(count)
    # Small whole numbers in place of floats: comparing all pairs is several times as fast.
    small = np.uint16 if count <= 2**16 else np.uint32
    ranks_SN = np.array([np.unique(order_N, return_inverse=True)[1] for order_N in orders_SN], dtype=small)
    beaten_N = np.empty(count)
    for start in range(0, count, _BLOCK):
        part = slice(start, start + _BLOCK)
        margin_BN = np.zeros((*ranks_SN[0, part].shape, count), dtype=np.int16)
        for rank_N in ranks_SN:
            margin_BN += rank_N[part, None] > rank_N
            margin_BN -= rank_N[part, None] < rank_N
        draws_B = (margin_BN == 0).sum(1) - 1  # without that against itself
        beaten_N[part] = (margin_BN > 0).sum(1) + draws_B / 2
    return beaten_N / (count - 1)
