"""How sure a ranking is: what of it would stand if every student were trained again with other seeds.

Each resample trains every student anew, as it were: to each mean over n seeds, n deviations are added, drawn with
replacement and averaged. They are the deviations of seeds from their student's mean, of all students that have at least
two, each times sqrt(n / (n - 1)), since deviations from a mean of few are too small (residual bootstrap: Davison and
Hinkley 1997, Bootstrap Methods and Their Application, section 3.3). They are pooled since two or three seeds of one
student say next to nothing of their own spread. Simulated with 4 students of 2 seeds: where their true values spread
half as much as the seeds do, the pairs of at least 95 % were right in 87 % of cases (with each student's own seeds
alone: 81 %), those of at least 99 % in 88 %; where they spread 1.5 times as much, in 97 and 98 %. So students that are
nearly alike take more seeds to tell apart, whatever is printed here.

Shape suffixes: B resamples at a time, N candidates, S seeds of a candidate, K candidates that are shown.
"""

import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.displays import Part, Shown, show
from analysis.errors import BadInput
from analysis.naming import student_name
from analysis.ranking import By, Combine, Rule, lasted, rank, ruled, scored, seeds_of
from analysis.schema import is_setting
from analysis.sources import Source, is_summary, trials_of

_KEY = ["run", "stage", "hash", "proposal"]
_BLOCK = 2**20  # numbers of one array at a time
_SHOWN = 16  # roughly how many candidates are shown
_PAIRS = "% of resamples in which the row's student is better than that of the column's number"


@dataclass(frozen=True, eq=False, repr=False)
class Confidence:
    """A ranking with what resampling its seeds did to it.

    Args:
        ranks: a row per student, best first: `rank`, who it is, `score`, `seeds`; `rank_mean` over the resamples and
            the bounds `rank_low`, `rank_high` of its 95 % interval (1 is best, equal ones share their mean rank), and
            `first`, its chance to be the best of all (equal ones share it).
        pairs: by hash, the share of resamples in which the student of the row is better than that of the column; a
            tie counts half, so that a pair and its opposite add up to 1. NaN on the diagonal.
        of: how many students were ranked, shown or not.
        pooled: how many seeds of students of at least two the spread was taken from; 0: nothing is known of it.
        resamples: how many.
    """

    ranks: pd.DataFrame
    pairs: pd.DataFrame
    of: int
    pooled: int
    resamples: int

    def __repr__(self) -> str:
        return self.summary()

    def summary(self) -> str:
        """A few lines: how sure the first place is, the table, and who is better than whom."""
        return "\n".join([self._verdict(), repr(self._table()), *(f"\n{_PAIRS}\n{pairs}" for pairs in self._shares())])

    def _repr_html_(self) -> str:
        shares = "".join(f"<div>{_PAIRS}</div>{pairs._repr_html_()}" for pairs in self._shares())
        return f"<div>{html.escape(self._verdict())}</div>{self._table()._repr_html_()}{shares}"

    def _verdict(self) -> str:
        if self.ranks.empty:
            return "no candidates"
        if self.ranks["first"].isna().all():
            return "every student has one seed: nothing says how much of the order is chance; train with `seeds: 3`"
        best = self.ranks.iloc[0]
        low, high = best["rank_low"], best["rank_high"]
        return (f"{self._names()[0]} is first of {self.of} in {100 * best['first']:.0f} % of {self.resamples} resamples"
                f" (rank {low:g} to {high:g}, 95 %); spread taken from {self.pooled} seeds")  # fmt: skip

    def _names(self) -> list[str]:
        """Of the students that are shown; of several runs with their run's."""
        several = self.ranks["run"].nunique() > 1
        rows = zip(self.ranks["arch"], self.ranks["run"], strict=True)
        return [student_name(arch) + (f" ({run})" if several else "") for arch, run in rows]

    def _table(self) -> Shown:
        shown = show(self.ranks, top=max(1, len(self.ranks)))
        seeds = Part("seeds", tuple(map(str, self.ranks["seeds"])), "seeds that its score is the mean of")
        return replace(shown, parts=(*shown.parts, seeds))

    def _shares(self) -> Iterator[Shown]:
        """The pairs in percent, where anything is known of them; a column a row, by number."""
        if self.pairs.notna().any(axis=None):
            names = tuple(f"{row}: {name}" for row, name in enumerate(self._names(), 1))
            shares = (100 * self.pairs.to_numpy()).T
            cells = (tuple("-" if math.isnan(one) else f"{one:.0f}" for one in column) for column in shares)
            yield Shown((Part("", names, words=True), *(Part(str(row), one) for row, one in enumerate(cells, 1))))


def confidence(
    results: Source,
    by: By = None,
    where: str | None = None,
    stage: str | None = None,
    top: int = 10,
    resamples: int = 1000,
    seed: int = 0,
    *,
    combine: Combine | None = None,
) -> Confidence:
    """How sure the order of `rank` is, by resampling seeds; the same candidates, weights and order as `rank`.

    The deviations of seeds from their students' means are pooled, and drawn with replacement; the file's head says
    how, why, and how far the result can be believed.

    A student with one seed gets the spread of the others. Where no student has two, nothing is known of it: intervals,
    chances and pairs are NaN. The spread is taken to be alike among the students. What is not resampled: which
    hyperparameters did best for a student, who was stopped early, and costs.

    Args:
        results, by, where, stage, combine: as of `rank`; a table must have a row per trial.
        top: how many of the best are shown; ranks are among all.
        resamples: of the seeds.
        seed: of the draws; the same seed gives the same result.

    Raises:
        BadInput: as `rank`; a table of candidates' means, or an argument out of its range.
    """
    for name, value in (("top", top), ("resamples", resamples)):
        if value < 1:
            raise BadInput(f"{name} must be at least 1, not {value}")
    trials, stages = trials_of(results)
    if is_summary(trials):
        raise BadInput("confidence needs a row per trial, not per candidate: the seeds are averaged in this table")
    shown = rank(results, by, where, stage, combine=combine)
    every = rank(results, by, where, stage, combine=combine, each="proposal")
    parts = list(ruled(every, stages, by, combine))
    spreads = _spreads(every, seeds_of(trials), [c for part, rule in parts for c in rule.columns(part)])
    known = all(len(one.pool_P) for one in spreads.values())
    scores = _scores(every, parts, spreads, resamples, np.random.default_rng(seed))
    placed = _placed(scores, every, lasted(every, by), min(top, len(shown))) if known else None
    names = pd.Index(shown["hash"].head(top), name=None)
    return Confidence(
        ranks=_table(shown.head(top), placed),
        pairs=pd.DataFrame(placed.pairs_KK if placed else math.nan, index=names, columns=names),
        of=len(shown),
        pooled=max((len(one.pool_P) for one in spreads.values()), default=0) if known else 0,
        resamples=resamples,
    )


@dataclass(frozen=True)
class _Spread:
    """A column: its mean of each candidate [N], of how many seeds [N], and the deviations of seeds from means [P]."""

    mean_N: np.ndarray
    seeds_N: np.ndarray
    pool_P: np.ndarray

    def drawn(self, chance_BNS: np.ndarray) -> np.ndarray:
        """Resampled means [B, N]. What was measured in the same trials is drawn from the same ones."""
        counted_NS = np.arange(chance_BNS.shape[2]) < self.seeds_N[:, None]
        deviations_BNS = self.pool_P[(chance_BNS * len(self.pool_P)).astype(np.int64)] * counted_NS
        return self.mean_N + deviations_BNS.sum(2) / np.maximum(self.seeds_N, 1)


def _spreads(every: pd.DataFrame, seeds: list[pd.DataFrame], columns: list[str]) -> dict[str, _Spread]:
    """Of each of the columns that varies with the seed."""
    who = pd.MultiIndex.from_frame(every[_KEY])
    found = {}
    for table in seeds:
        table = table[table.index.isin(who)]
        for name in table.columns.intersection(columns):
            values = table[name].dropna()
            groups = values.groupby(level=_KEY)
            n = groups.transform("count")
            deviations = ((values - groups.transform("mean")) * np.sqrt(n / (n - 1).where(n > 1)))[n > 1]
            counts = groups.size().reindex(who, fill_value=0).to_numpy()
            found[str(name)] = _Spread(every[name].to_numpy(dtype="float64"), counts, deviations.to_numpy())
    return found


def _scores(
    every: pd.DataFrame,
    parts: Sequence[tuple[pd.DataFrame, Rule]],
    spreads: Mapping[str, _Spread],
    resamples: int,
    rng: np.random.Generator,
) -> Iterator[np.ndarray]:
    """Scores of resampled candidates [B, N], some resamples at a time; -inf where there is none."""
    deep = max((int(one.seeds_N.max(initial=1)) for one in spreads.values()), default=1)
    size = max(1, _BLOCK // max(1, len(every) * max(deep, _SHOWN)))
    for begin in range(0, resamples, size):
        count = min(size, resamples - begin)
        chance_BNS = rng.random((count, len(every), deep))
        drawn = {name: one.drawn(chance_BNS) for name, one in spreads.items()}
        scores_BN = np.full((count, len(every)), -np.inf)
        for part, rule in parts:
            scores_BN[:, part.index] = _of_part(part, rule, {name: drawn[name][:, part.index] for name in drawn})
        # Rounded, so that equal students stay equal in whatever order their seeds were added up.
        yield np.where(np.isnan(scores_BN), -np.inf, scores_BN).round(12)


def _of_part(part: pd.DataFrame, rule: Rule, drawn: Mapping[str, np.ndarray]) -> np.ndarray:
    """Scores [B, N] of candidates that are scored together, their columns replaced by drawn ones."""
    count = len(next(iter(drawn.values()))) if drawn else 1
    part = part[list(dict.fromkeys([*rule.columns(part), *part.columns.intersection(["valid_accuracy"])]))]
    if rule.by_row:
        stacked = pd.concat([part] * count, ignore_index=True)
        return scored(stacked.assign(**{c: drawn[c].ravel() for c in drawn}), rule).to_numpy().reshape(count, -1)
    rows = ({c: values[i] for c, values in drawn.items()} for i in range(count))
    return np.array([scored(part.assign(**row), rule).to_numpy() for row in rows])


@dataclass(frozen=True)
class _Placed:
    ranks_RK: np.ndarray
    first_K: np.ndarray
    pairs_KK: np.ndarray


def _placed(scores: Iterable[np.ndarray], every: pd.DataFrame, epochs: pd.Series, shown: int) -> _Placed:
    """Where the best students of the table stand in each resample, among all students."""
    students = np.flatnonzero(~every.duplicated(["run", "hash"]))
    epochs_N = epochs.to_numpy()[students]
    longer_KN, as_long_KN = (way(epochs_N[:shown, None], epochs_N) for way in (np.greater, np.equal))
    ranks, first_K, pairs_KK = [], np.zeros(shown), np.zeros((shown, shown))
    for scores_BN in scores:
        values_BN = scores_BN[:, students]
        values_BK1 = values_BN[:, :shown, None]
        above_BKN = longer_KN | (as_long_KN & (values_BK1 > values_BN[:, None]))
        equal_BKN = as_long_KN & (values_BK1 == values_BN[:, None])
        equal_BK = equal_BKN.sum(2)  # itself too
        behind_BK = len(students) - above_BKN.sum(2) - equal_BK
        ranks.append(behind_BK + (equal_BK + 1) / 2)
        first_K += ((behind_BK == 0) / equal_BK).sum(0)
        pairs_KK += (above_BKN[..., :shown] + equal_BKN[..., :shown] / 2).sum(0)
    ranks_RK = np.concatenate(ranks)
    np.fill_diagonal(pairs_KK, math.nan)
    return _Placed(ranks_RK, first_K / len(ranks_RK), pairs_KK / len(ranks_RK))


def _table(shown: pd.DataFrame, placed: _Placed | None) -> pd.DataFrame:
    """The rows of a ranking with what the resamples say of them."""
    settings = [c for c in shown.columns if is_setting(c)]
    table = shown[["rank", "run", "hash", "stage", "proposal", "arch", *settings, "params", "score", "seeds"]].copy()
    none = np.full((1, len(table)), math.nan)
    ranks_RK = placed.ranks_RK if placed else none
    low, high = np.quantile(ranks_RK, [0.025, 0.975], axis=0)
    said = {"rank_mean": ranks_RK.mean(0), "rank_low": low, "rank_high": high}
    return table.assign(**said, first=placed.first_K if placed else none[0])
