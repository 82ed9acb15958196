"""Early signs judged by one truth, for pictures: as `agreement` does, in a fraction of its time."""

from collections.abc import Iterable

import pandas as pd

from analysis.judge import Judge, table
from analysis.predictors import Predictor
from analysis.target import Target

LEAST = 3
"""Candidates of which an order says anything."""


def judged(truth: Target, predictors: Iterable[Predictor]) -> pd.DataFrame:
    """A row per predictor, with Kendall's tau and its 95 % interval; fewer resamples of many candidates, whose
    intervals are narrow anyhow."""
    judge = Judge(truth.values, (), None, 1000 if len(truth.values) <= 500 else 100, seed=0)
    return table([judge.row(one) for one in predictors])
