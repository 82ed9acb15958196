"""How well what was known early foretells what came out at last."""

import math
from collections.abc import Sequence

import pandas as pd

from analysis import target as targets
from analysis.errors import BadInput, unknown
from analysis.judge import STATISTICS, Judge, table
from analysis.predictors import Predictor, early_epochs, of_epochs, of_scores, of_size, of_stage
from analysis.results import Results
from analysis.schema import SIZES, direction, is_metric, number_columns
from analysis.scores import score_trials
from analysis.sources import Source
from analysis.target import Censored


def agreement(
    results: Results,
    target: str = "valid_accuracy",
    stage: str | None = None,
    k: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
    censored: Censored | None = None,
    scores: Source | None = None,
) -> pd.DataFrame:
    """Agreement of every early sign with the final result: a row per predictor.

    Predictors: the control `params` and `flops`; each score without training, one of several terms also as the mean
    rank of its terms; the scores of a stage as `ensemble.rank` and `ensemble.vote` (see `ensemble`) and, as the stage
    combined them, `combined`; `valid_accuracy`, `objective` and `teacher_guidance` at each epoch before the target's.
    Candidates are joined by hash, seeds averaged. `attrs` names target, stage and censored.

    Columns: predictor, stage, epoch, n candidates, k, and `tau` (Kendall's tau-b), `spearman` and `recall` (of the
    target's k best among the predictor's k best), each with the bounds `_low` and `_high` of its 95 % bootstrap
    interval; NaN where a predictor or the target is constant. Fewer than 5 candidates have no interval: resamples of
    three in the right order say little else. `seeds` of the predictor, and where there are several `tau_mean` and
    `tau_std` of the taus of each on its own. `beats_size`: whether tau is above that of `params` and that of `flops` on
    the same candidates; `over_size` says by how much, with its interval: a predictor whose `over_size_low` is not
    above 0 may owe its lead to the choice of candidates.

    Args:
        target: a metric of the last report of a trial; positive values agree with its better direction.
        stage: of the target; default: the last distillation stage with at least 5 different candidates.
        k: default: a tenth of the candidates, at least 3.
        resamples: bootstrap resamples of the candidates. Time grows as resamples * n log n.
        seed: of the resamples.
        censored: candidates that were stopped early: `drop` them, or take their `last` value. Default: drop, when at
            least 5 candidates are left then.
        scores: more scores of the candidates, as `load_scores` takes them. In a stage of the same name as one of the
            run they join its scores, or take their place.

    Raises:
        BadInput: several runs, an unknown stage or target, an argument out of its range, or a table without scores.
    """
    truth = targets.final(results, target, stage, censored)
    sizes = of_size(results.trials)
    judge = Judge(truth.values, tuple(sizes), k, resamples, seed)
    extra = score_trials(scores) if scores is not None else None
    predictors = [*sizes, *of_scores(results, extra), *of_epochs(results, truth.stage)]
    return _judged(judge, predictors, truth)


def agreement_with(
    scores: Source,
    truth: pd.DataFrame | pd.Series,
    target: str | None = None,
    k: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Agreement of scores with results that come from elsewhere, such as a benchmark's table: as `agreement`.

    Args:
        scores: as `load_scores` takes them.
        truth: accuracies by hash: a series, or a frame with the column `hash` or else with every column `arch.*` of
            the scores. Several rows of a candidate are averaged.
        target: the column; of a series, what to call it. One of which less is better by its name (`test_error`) is
            turned around.
        k, resamples, seed: as in `agreement`.

    Raises:
        BadInput: no score, no such column, no candidate in common, or an argument out of its range.
    """
    trials = score_trials(scores)
    if isinstance(truth, pd.Series):
        target = target or str(truth.name or "target")
        truth = truth.rename(target)
    elif target is None:
        raise BadInput(f"name the target, a column of the results: {', '.join(number_columns(truth)) or 'none'}")
    joined = targets.with_hash(truth, trials)
    found = targets.published(joined, target)
    sizes = of_size(trials, joined)
    judge = Judge(found.values, tuple(sizes), k, resamples, seed)
    stages = trials.groupby("stage", sort=False)
    return _judged(judge, [*sizes, *[one for name, part in stages for one in of_stage(part, str(name), {})]], found)


def weight_sweep(
    results: Results,
    base: str = "valid_accuracy",
    other: str = "teacher_guidance",
    weights: Sequence[float] = (0, 0.25, 0.5, 1, 2),
    target: str = "valid_accuracy",
    stage: str | None = None,
    k: int | None = None,
    resamples: int = 1000,
    seed: int = 0,
    censored: Censored | None = None,
) -> pd.DataFrame:
    """Agreement of `base + weight * other` at each early epoch with the final result: a row per epoch and weight.

    With the defaults this is TGSA's question (Bashivan et al. 2019, arXiv:1808.01405): how much weight the teacher's
    guidance deserves beside the accuracy after limited training. Columns: stage, epoch, weight, n, k, and tau,
    spearman and recall with their intervals, as in `agreement`. All weights are judged on the same candidates, those
    that have both values, under the same resamples. A metric of which less is better counts negatively.

    Args:
        base, other: metrics that are reported every epoch.
        weights: of `other`.
        target, stage, k, resamples, seed, censored: as in `agreement`.

    Raises:
        BadInput: as `agreement`; an unknown metric, no finite weight, or two metrics that no early epoch reports.
    """
    metrics = [c for c in number_columns(results.epochs) if is_metric(c)]
    for name in (base, other):
        if name not in metrics:
            raise unknown("metric", name, metrics)
    if not len(weights) or not all(map(math.isfinite, weights)):
        raise BadInput(f"weights are finite numbers, at least one, not {list(weights)}")
    truth = targets.final(results, target, stage, censored)
    judge = Judge(truth.values, (), k, resamples, seed)
    rows = []
    for name, epoch, part in early_epochs(results, truth.stage):
        values = part.groupby("hash")[list({base, other})].mean().dropna()
        first, second = (values[c] * (-1 if direction(c) == "lower" else 1) for c in (base, other))
        for weight in weights if len(values) else ():
            found = judge.row(Predictor(f"{base} + {weight:g} {other}", name, epoch, first + weight * second))
            rows.append(found | {"weight": float(weight)})
    if not rows:
        raise BadInput(f"no epoch before the target's reports both {base!r} and {other!r}")
    columns = ["stage", "epoch", "n", "k", *[f"{name}{end}" for name in STATISTICS for end in ("", "_low", "_high")]]
    swept = table(rows)[columns]
    swept.insert(2, "weight", [row["weight"] for row in rows])
    swept.attrs.update(truth.attributes)
    return swept


def _judged(judge: Judge, predictors: Sequence[Predictor], truth: targets.Target) -> pd.DataFrame:
    rows = [judge.row(one) for one in predictors] if len(judge.truth) else []
    judged = table([row for row in rows if row["n"] or row["predictor"] in SIZES])
    judged.attrs.update(truth.attributes)
    return judged
