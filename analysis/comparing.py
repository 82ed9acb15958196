"""How a search went on, and two searches side by side: two teachers, two methods, two spaces."""

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import target as targets
from analysis.errors import BadInput, unknown
from analysis.judge import Judge
from analysis.naming import student_name
from analysis.predictors import Predictor
from analysis.ranking import FINISHED, rank
from analysis.results import Results, distinct_names, load, renamed
from analysis.schema import direction, number_columns

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


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two runs side by side; `one` and `other` in the names of columns are the first and the second.

    Args:
        overview: a row per run: teacher, stage, trials, seconds, its best student and what he reaches.
        agreement: one row: `n` students in common, Kendall's `tau` between their values in both runs, and its 95 %
            bootstrap interval `tau_low`, `tau_high`.
        overlap: a row per k: the share of the k best in the other run that are among the k best in the one, of the
            students in common, with its interval, and `chance`, what unrelated orders would share.
        seconds: a row per value that the best so far attained in either run: the device-seconds that each run took to
            reach it (NaN: it never did), and `ratio`, other over one.
        shared: a row per student in common, best mean place first: settings, size, value and rank in both.
    """

    overview: pd.DataFrame
    agreement: pd.DataFrame
    overlap: pd.DataFrame
    seconds: pd.DataFrame
    shared: pd.DataFrame
    metric: str

    def summary(self) -> str:
        """The tables as text, the longer ones cut."""
        return "\n".join(f"{title}\n{_text(table)}\n" for title, table in self._parts()).rstrip()

    def _repr_html_(self) -> str:
        return "".join(
            f"<div>{html.escape(title)}</div>"
            f"{table.to_html(index=False, float_format=_number, na_rep='-', escape=True)}"
            for title, table in self._parts()
        )

    def _parts(self) -> list[tuple[str, pd.DataFrame]]:
        found = self.agreement.iloc[0]
        if found["n"] < 2:
            common = f"{found['n']:.0f} students in common: nothing to correlate"
        else:
            common = (f"{found['n']:.0f} students in common, Kendall's tau {found['tau']:.2f} "
                      f"({found['tau_low']:.2f} to {found['tau_high']:.2f}, 95 %)")  # fmt: skip
        parts = [("runs", self.overview), (common, self.shared.head(10).drop(columns=["hash", "arch"]))]
        parts.append(("share of the k best in common", self.overlap))
        parts.append((f"device-seconds until the best {self.metric} so far", _thinned(self.seconds, 8)))
        return [(title, table) for title, table in parts if len(table) or title == common]


def compare(
    one: Run,
    other: Run,
    metric: str = "valid_accuracy",
    stage: str | None = None,
    ks: Iterable[int] = (1, 3, 5, 10),
    resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Two runs side by side: what each found and spent, and how far they agree on the students that both tried.

    Students in common have the same hash, so the same space and options. Their values are means over seeds and
    hyperparameters of trials that were not stopped early, where at least 5 students have one (see `agreement`).

    Args:
        one, other: results of one run each, or their directories.
        metric: of the last report; less or more is better, as the schema says.
        stage: of both runs; default: of each its last one with at least 5 different students.
        ks: how many of the best are compared; those beyond the students in common are left out.
        resamples: of the bootstrap over students in common.
        seed: of the resamples.

    Raises:
        BadInput: several runs on a side, an unknown stage or metric, or an argument out of its range.
    """
    sides = _named(_loaded(one), _loaded(other))
    if wrong := [k for k in ks if k < 1]:
        raise BadInput(f"each k must be at least 1, not {wrong[0]}")
    found = [targets.final(side, metric, stage, None) for side in sides]
    shared = _shared(sides, [truth.values for truth in found], metric)
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


def _overview(side: Results, stage: str | None, metric: str) -> dict[str, object]:
    ranked = rank(side)
    best = ranked.iloc[0] if len(ranked) else None
    return {
        "run": side.name,
        "teacher": side.teacher.get("name"),
        "finished": side.finished,
        "stage": stage,
        "students": side.trials.loc[side.trials["stage"] == stage, "hash"].nunique(),
        "trials": len(side.trials),
        "device_seconds": side.device_seconds,
        "wall_seconds": side.seconds,
        "best": None if best is None else student_name(best["arch"]),
        "params": None if best is None else best["params"],
        metric: math.nan if best is None else best.get(metric, math.nan),
    }


def _shared(sides: Sequence[Results], values: Sequence[pd.Series], metric: str) -> pd.DataFrame:
    """The students that both runs have a value of, with who they are."""
    sign = -1 if direction(metric) == "lower" else 1
    both = {f"value_{side}": sign * found for side, found in zip(_SIDES, values, strict=True)}
    ranks = {
        f"rank_{side}": found.rank(ascending=False, method="min") for side, found in zip(_SIDES, values, strict=True)
    }
    table = pd.concat({**both, **ranks}, axis=1, join="inner").rename_axis("hash")
    table.insert(2, "difference", table["value_other"] - table["value_one"])
    trials = sides[0].trials
    settings = [c for c in trials.columns if c.startswith("arch.")]
    who = trials.drop_duplicates("hash").set_index("hash")[["arch", *settings, "params"]]
    table = table.astype({f"rank_{side}": "int64" for side in _SIDES}).assign(
        _place=table.filter(like="rank_").mean(axis=1)
    )
    table = who.join(table, how="inner").reset_index().sort_values(["_place", "hash"], kind="stable")
    return table.drop(columns="_place").reset_index(drop=True)


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


def _text(table: pd.DataFrame) -> str:
    return "" if table.empty else table.to_string(index=False, float_format=_number, na_rep="-")


def _number(value: float) -> str:
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
