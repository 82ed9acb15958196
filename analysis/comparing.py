"""How a search went on, and two searches side by side: two teachers, two methods, two spaces."""

import html
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import target as targets
from analysis.displays import Shown, heading_of, show
from analysis.errors import BadInput, unknown
from analysis.judge import Judge
from analysis.naming import student_name
from analysis.predictors import Predictor
from analysis.ranking import FINISHED, rank
from analysis.results import Results, distinct_names, load, renamed
from analysis.schema import direction, number_columns
from analysis.target import ENOUGH, Censored, Target

Run = Results | str | Path
_SIDES = ("one", "other")


def best_so_far(results: Run, metric: str | None = None, stage: str | None = None) -> pd.DataFrame:
    """The best value known after each finished trial: a row per trial that has one, in the order they ended.

    Columns: run, stage, number, hash, `value` of the trial's last report, `best` so far, and what was spent by then:
    `device_seconds` of all trials (controls, failed and other stages' too) and of training the teachers, and
    `wall_seconds` since the run began, without the pauses before resumptions. Each run has its own best.

    Args:
        results: of one or several runs, or a run's directory.
        metric: of the last report, or a cost; default: `valid_accuracy`, or where nothing was distilled `objective`.
        stage: count the trials of this stage only; what the others cost counts all the same.

    Raises:
        BadInput: an unknown stage, or a metric that is unknown, has no better direction, or that no trial has.
    """
    results = _loaded(results)
    trials = results.trials
    if stage is not None and stage not in set(results.stages["stage"]):
        raise unknown("stage", stage, dict.fromkeys(results.stages["stage"]))
    name = metric or ("valid_accuracy" if trials["valid_accuracy"].notna().any() else "objective")
    better = _direction(trials, name)
    chosen = trials[trials["status"].isin(FINISHED) & ~trials["control"] & trials[name].notna()]
    chosen = chosen if stage is None else chosen[chosen["stage"] == stage]
    if chosen.empty:
        raise BadInput(f"no finished trial of {results.name} has a {name}")
    keys = ["run", "stage", "number"]
    table = chosen[[*keys, "hash"]].assign(value=chosen[name].astype("float64"))
    table = table.merge(_ends(results), on=keys, how="inner").sort_values(["run", "time"], kind="stable")
    upwards = table["value"] if better == "higher" else -table["value"]
    table["best"] = upwards.groupby(table["run"]).cummax() * (1 if better == "higher" else -1)
    columns = [*keys, "hash", "value", "best", "device_seconds", "wall_seconds"]
    table = table[columns].reset_index(drop=True)
    table.attrs.update(metric=name, stage=stage)
    return table


def _direction(trials: pd.DataFrame, name: str) -> str:
    known = [c for c in number_columns(trials) if direction(c) != "none"]
    if name not in known:
        raise unknown("metric", name, known)
    return direction(name)


def _ends(results: Results) -> pd.DataFrame:
    """When each trial ended (the time of its last report), and what was spent by then."""
    keys = ["run", "stage", "number"]
    reports = results.epochs[[*keys, "time", "seconds"]].sort_values(["run", "time"], kind="stable")
    spent = reports["seconds"].fillna(0.0).groupby(reports["run"]).cumsum()
    teachers = pd.Series(0.0, index=dict.fromkeys(reports["run"]))
    for teacher in results.teachers:
        if teacher["run"] in teachers.index:
            teachers[teacher["run"]] += teacher.get("seconds") or 0.0
    reports = reports.assign(device_seconds=spent + reports["run"].map(teachers).astype("float64"))
    last = reports.drop_duplicates(keys, keep="last").drop(columns="seconds")
    walls = [_wall_seconds(results.sessions.get(str(run), ()), part) for run, part in last.groupby("run")["time"]]
    return last.assign(wall_seconds=pd.concat(walls) if walls else pd.Series(dtype="float64"))


def _wall_seconds(sessions: Sequence[tuple[float, float]], times: pd.Series) -> pd.Series:
    """Of each time, the seconds of the sessions up to it; NaN where nothing is known of them."""
    if not sessions:
        return pd.Series(math.nan, index=times.index)
    return sum((times.clip(start, end) - start for start, end in sessions), pd.Series(0.0, index=times.index))


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Two runs side by side; `one` and `other` in the names of columns are the first and the second.

    Args:
        overview: a row per run: teacher, trials and seconds of all stages; the `stage` that is compared, and its
            students, the best of them and what he reaches in it.
        agreement: one row: `n` students in common, Kendall's `tau` between their values in both runs, and its 95 %
            bootstrap interval `tau_low`, `tau_high` (NaN of fewer than 5).
        overlap: a row per k: the share of the k best in the other run that are among the k best in the one, of the
            students in common, with its interval, and `chance`, what unrelated orders would share.
        seconds: a row per value that the best so far attained in either run: the device-seconds that each run took to
            reach it (NaN: it never did), and `ratio`, other over one.
        shared: a row per student in common, best mean place first: settings, size, and of both runs value, rank, and
            the epochs that it was trained for, the fewest of any of its trials.
        metric: what is compared.
        censored: what became of trials that were stopped early: `drop`, or `last`, their last report counts.
    """

    overview: pd.DataFrame
    agreement: pd.DataFrame
    overlap: pd.DataFrame
    seconds: pd.DataFrame
    shared: pd.DataFrame
    metric: str
    censored: Censored

    def __repr__(self) -> str:
        return self.summary()

    def summary(self) -> str:
        """The tables as text, the longer ones cut."""
        return "\n".join(f"{title}\n{table}\n" for title, table in self._parts()).rstrip()

    def _repr_html_(self) -> str:
        return "".join(f"<div>{html.escape(title)}</div>{table._repr_html_()}" for title, table in self._parts())

    def _parts(self) -> Iterator[tuple[str, Shown]]:
        heading, times = heading_of(self.metric)
        yield "runs, and the best of the stage that is compared", show(self._named(self.overview, self.metric))
        sides = {f"value_{side}": f"{heading}, {side}" for side in _SIDES}
        who = self.shared.assign(student=[student_name(arch) for arch in self.shared["arch"]])
        told = ["student", "params", *sides, "difference", *(f"rank_{side}" for side in _SIDES)]
        told += [f"epochs_{side}" for side in _SIDES] if self.censored == "last" else []
        scaled = {name: times * who[name].astype("float64") for name in (*sides, "difference")}
        yield self._common(), show(who.assign(**scaled)[told].rename(columns=sides), top=10)
        if len(self.overlap):
            shares = [str(name) for name in self.overlap if name != "k"]
            yield "% of the k best in common", show(self.overlap.assign(**{c: 100 * self.overlap[c] for c in shares}))
        if len(self.seconds):
            thinned = self._named(_thinned(self.seconds, 8), self.metric)
            yield f"device-seconds until the best {self.metric} so far, of any stage", show(thinned)

    def _common(self) -> str:
        found = self.agreement.iloc[0]
        n = int(found["n"])
        common = f"{n} student{'' if n == 1 else 's'} in common"
        if n < 2:
            return f"{common}: nothing to correlate"
        at = ", those that were stopped early at their last report" if self.censored == "last" else ""
        low, high = found["tau_low"], found["tau_high"]
        sure = f"{low:.2f} to {high:.2f}, 95 %" if math.isfinite(low) else f"n = {n}: no interval"
        return f"{common}{at}: Kendall's tau {found['tau']:.2f} ({sure})"

    @staticmethod
    def _named(table: pd.DataFrame, metric: str) -> pd.DataFrame:
        """With a metric's values as a person reads them."""
        heading, times = heading_of(metric)
        return table.assign(**{metric: times * table[metric].astype("float64")}).rename(columns={metric: heading})


def compare(
    one: Run,
    other: Run,
    metric: str = "valid_accuracy",
    stage: str | None = None,
    ks: Iterable[int] = (1, 3, 5, 10),
    resamples: int = 1000,
    seed: int = 0,
    censored: Censored | None = None,
) -> Comparison:
    """Two runs side by side: what each found and spent, and how far they agree on the students that both tried.

    Students in common have the same hash, so the same space and options. Their values are means over seeds and
    hyperparameters.

    Args:
        one, other: results of one run each, or their directories.
        metric: of the last report; less or more is better, as the schema says.
        stage: of both runs; default: of each its last one with at least 5 different students.
        ks: how many of the best are compared; those beyond the students in common are left out.
        resamples: of the bootstrap over students in common.
        seed: of the resamples.
        censored: trials that were stopped early: `drop` them, or take their `last` value, after however few epochs.
            Default: drop, when at least 5 students are in common then.

    Raises:
        BadInput: several runs on a side, an unknown stage or metric, or an argument out of its range.
    """
    sides = _named(_loaded(one), _loaded(other))
    if wrong := [k for k in ks if k < 1]:
        raise BadInput(f"each k must be at least 1, not {wrong[0]}")
    found, way = _finals(sides, metric, stage, censored)
    shared = _shared(sides, found, metric)
    signs = -1 if direction(metric) == "lower" else 1
    truth = (signs * shared.set_index("hash")["value_other"]).rename("value")
    guess = Predictor(metric, None, None, signs * shared.set_index("hash")["value_one"])
    n = len(shared)
    sizes = dict.fromkeys([1, *(k for k in ks if k < n)])
    rows = {k: Judge(truth, (), k, resamples, seed).row(guess) for k in sizes}
    overlap = [{"k": k, **{f"overlap{end}": rows[k].get(f"recall{end}", math.nan) for end in ("", "_low", "_high")},
                "chance": k / n} for k in rows if k in set(ks) and k < n]  # fmt: skip
    columns = ["k", "overlap", "overlap_low", "overlap_high", "chance"]
    return Comparison(
        overview=pd.DataFrame([_overview(side, truth.stage, metric) for side, truth in zip(sides, found, strict=True)]),
        agreement=pd.DataFrame([{"n": n, **{c: rows[1].get(c, math.nan) for c in ("tau", "tau_low", "tau_high")}}]),
        overlap=pd.DataFrame(overlap, columns=columns),
        seconds=_seconds_to_reach(sides, metric),
        shared=shared,
        metric=metric,
        censored=way,
    )


def _loaded(run: Run) -> Results:
    return run if isinstance(run, Results) else load(run)


def _named(one: Results, other: Results) -> tuple[Results, Results]:
    """Both under names that tell them apart."""
    for side in (one, other):
        if len(side.paths) > 1:
            raise BadInput(f"compare takes one run on each side, not {side.name}")
    first, second = distinct_names([one, other])
    return renamed(one, first), renamed(other, second)


def _finals(
    sides: Sequence[Results], metric: str, stage: str | None, censored: Censored | None
) -> tuple[list[Target], Censored]:
    """What the students of both have reached, and what became of those that were stopped early: of both the same."""

    def found(way: Censored) -> tuple[list[Target], int]:
        both = [targets.final(side, metric, stage, way) for side in sides]
        return both, len(both[0].values.index.intersection(both[1].values.index))

    if censored is not None:
        return found(censored)[0], censored
    (finished, few), (every, more) = found("drop"), found("last")
    return (every, "last") if few < ENOUGH and few < more else (finished, "drop")


def _overview(side: Results, stage: str | None, metric: str) -> dict[str, object]:
    ranked = rank(side, stage=stage if stage in set(side.trials["stage"]) else None)
    best = ranked.iloc[0] if len(ranked) and ranked["stage"].iloc[0] == stage else None
    return {
        "run": side.name,
        "teacher": side.teacher.get("name"),
        "finished": side.finished,
        "trials": len(side.trials),
        "device_seconds": side.device_seconds,
        "wall_seconds": side.seconds,
        "stage": stage,
        "students": side.trials.loc[side.trials["stage"] == stage, "hash"].nunique(),
        "best": None if best is None else student_name(best["arch"]),
        "params": None if best is None else best["params"],
        metric: math.nan if best is None else best.get(metric, math.nan),
    }


def _shared(sides: Sequence[Results], found: Sequence[Target], metric: str) -> pd.DataFrame:
    """The students that both runs have a value of, with who they are."""
    values = [truth.values for truth in found]
    sign = -1 if direction(metric) == "lower" else 1
    both = {f"value_{side}": sign * one for side, one in zip(_SIDES, values, strict=True)}
    ranks = {f"rank_{side}": one.rank(ascending=False, method="min") for side, one in zip(_SIDES, values, strict=True)}
    epochs = {f"epochs_{name}": _epochs(side, truth) for name, side, truth in zip(_SIDES, sides, found, strict=True)}
    table = pd.concat({**both, **ranks, **epochs}, axis=1, join="inner").rename_axis("hash")
    table.insert(2, "difference", table["value_other"] - table["value_one"])
    trials = sides[0].trials
    settings = [c for c in trials.columns if c.startswith("arch.")]
    who = trials.drop_duplicates("hash").set_index("hash")[["arch", *settings, "params"]]
    table = table.astype({f"rank_{side}": "int64" for side in _SIDES}).assign(
        _place=table.filter(like="rank_").mean(axis=1)
    )
    table = who.join(table, how="inner").reset_index().sort_values(["_place", "hash"], kind="stable")
    return table.drop(columns="_place").reset_index(drop=True)


def _epochs(side: Results, truth: Target) -> pd.Series:
    """By hash, the epochs that the trials of a target have behind them, the least of any."""
    trials = side.trials[(side.trials["stage"] == truth.stage) & ~side.trials["control"]]
    kept = ("completed",) if truth.censored == "drop" else FINISHED
    return trials[trials["status"].isin(kept)].groupby("hash")["epochs"].min()


def _seconds_to_reach(sides: Sequence[Results], metric: str) -> pd.DataFrame:
    """Device-seconds of each run until its best so far was at least as good as each value that either attained."""
    sign = -1.0 if direction(metric) == "lower" else 1.0
    curves = [best_so_far(side, metric) for side in sides]
    attained = np.unique(np.concatenate([sign * curve["best"].to_numpy() for curve in curves]))
    table = pd.DataFrame({metric: sign * attained})
    for side, curve in zip(_SIDES, curves, strict=True):
        place = np.searchsorted(sign * curve["best"].to_numpy(), attained, side="left")
        spent = np.append(curve["device_seconds"].to_numpy(), math.nan)
        table[f"seconds_{side}"] = spent[place]
    return table.assign(ratio=table["seconds_other"] / table["seconds_one"])


def _thinned(table: pd.DataFrame, rows: int) -> pd.DataFrame:
    """So many rows at most, the first and the last among them."""
    if len(table) <= rows:
        return table
    return table.iloc[np.unique(np.linspace(0, len(table) - 1, rows).round().astype(int))]
