"""Where a run's device-time went: slots x wall time, split into parts that add up to it.

A slot is a share of the cluster that runs one trial at a time. What reports do not account for is start-up, until a
slot's first work began, or waiting.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.results import Results

PARTS = ("student", "teacher", "scoring", "evaluation", "checkpoint", "start-up", "waiting", "other")
"""student, teacher: the students' steps, and the teacher's outputs and training. start-up: until a slot's first work
began (processes, imports, data), and building or loading students. waiting: slots without work, such as while the
driver proposes, or at a stage's end; and epochs whose reports were lost. other: what reports do not tell apart."""

OUTSIDE = "between stages"
"""The time before the first stage, between stages and after the last."""

ALL = "the whole run"
USEFUL = ("student", "teacher", "scoring")
_METRICS = {"student": "student_seconds", "teacher": "teacher_seconds", "evaluation": "evaluate_seconds"}
_OWN = {
    "start-up": "setup_seconds",
    "checkpoint": "checkpoint_seconds",
}  # of the report itself, whatever its epoch took
_CLOCK = 0.01  # seconds by which two workers of a slot may seem to overlap
_KNOWN = ("stage", "time", "seconds", "worker")
_DTYPES = {"run": "string", "stage": "string", "part": "string", "seconds": "float64", "percent": "float64"}

Parts = dict[str, float]
Span = tuple[float, float]


def profile(results: Results) -> pd.DataFrame:
    """Where the device-time of a run went, finished or not.

    Returns:
        A row for each run, stage and part (`PARTS`, in that order): `run`, `stage`, `part`, `seconds` (device-seconds),
        `percent` (of the stage). The parts of a stage add up to its slots x its wall time without pauses before
        resumptions. After the stages stands `between stages`, with the teacher's training and, as start-up, what
        comes before a session's first stage; then `the whole run`, their sum.
    """
    rows = [row for run in results.sessions for row in _rows_of(results, run)]
    return pd.DataFrame(rows, columns=list(_DTYPES)).astype(_DTYPES)


def useful_percent(table: pd.DataFrame, stage: str = ALL) -> float:
    """Of a profile: the share of students, teacher and scoring in what follows start-up, in percent; NaN if nothing."""
    seconds = table[table["stage"] == stage].groupby("part")["seconds"].sum()
    after = float(seconds.sum()) - float(seconds.get("start-up", 0.0))
    return 100 * float(seconds.reindex(list(USEFUL)).sum()) / after if after > 0 else float("nan")


def shown(results: Results) -> tuple[list[str], list[list[str]], str]:
    """The profile of one run for people: headings, a row of texts for each part, and a line that stands below."""
    table = profile(results)
    wide = table.pivot(index="part", columns="stage", values="seconds")
    wide = wide.reindex(index=list(PARTS), columns=table["stage"].drop_duplicates())
    whole = wide.sum().tolist()
    rows = [
        [part, *map(_cell, seconds, whole)]
        for part, seconds in zip(PARTS, wide.to_numpy().tolist(), strict=True)
        if any(seconds)
    ]
    rows.append(["device-seconds", *(f"{seconds:,.1f}" for seconds in whole)])
    useful = useful_percent(table)
    line = "" if np.isnan(useful) else f"students, teacher and scoring are {useful:.0f} % of what follows start-up"
    return ["", *map(str, wide)], rows, line


def _cell(seconds: float, whole: float) -> str:
    return f"{seconds:,.1f} ({100 * seconds / whole:.0f} %)" if seconds > 0 else "-"


def _rows_of(results: Results, run: str) -> Iterator[tuple[str, str, str, float, float]]:
    stages = results.stages[results.stages["run"] == run]
    names = [name for name in (*_KNOWN, *_OWN.values(), *_METRICS.values()) if name in results.epochs]
    epochs = results.epochs.loc[results.epochs["run"] == run, names].dropna(subset=["time"])
    sessions = results.sessions[run]
    taught = _taught([one for one in results.teachers if one.get("run") == run])
    found: dict[str, Parts] = {}
    spans: list[Span] = []
    most = 1
    for stage in stages.to_dict("records"):
        own = epochs[epochs["stage"] == stage["stage"]]
        here = _spans(stage["began"], stage["ended"], sessions)
        spans += here
        parts = dict.fromkeys(PARTS, 0.0)
        for span, work in zip(here, _by_session(own, here), strict=True):
            told = 0 if pd.isna(stage["slots"]) else int(stage["slots"])
            spent, slots = _spent(work, taught, span, told, stage["trial"] == "score")
            most = max(most, slots)
            parts = {part: parts[part] + spent[part] for part in PARTS}
        found[str(stage["stage"])] = parts
    found[OUTSIDE] = _outside(sessions, spans, most, taught)
    found[ALL] = {part: sum(parts[part] for parts in found.values()) for part in PARTS}
    for name, parts in found.items():
        whole = sum(parts.values())
        yield from ((run, name, part, parts[part], 100 * parts[part] / whole if whole else 0.0) for part in PARTS)


def _spans(began: float, ended: float, sessions: Sequence[Span]) -> list[Span]:
    """A stage's time in each session; one that has not ended, up to the session's last event."""
    if np.isnan(began):
        return []
    within = ((max(began, start), end if np.isnan(ended) else min(ended, end)) for start, end in sessions)
    return [span for span in within if span[1] > span[0]]


def _by_session(epochs: pd.DataFrame, spans: Sequence[Span]) -> list[pd.DataFrame]:
    """The reports of each span; all of them belong to one, the last that had begun."""
    place = np.searchsorted([start for start, _ in spans], epochs["time"].to_numpy(), side="right") - 1
    return [epochs[np.maximum(place, 0) == number] for number in range(len(spans))]


def _taught(teachers: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """When teachers were trained, and by whom: a row for each, like those of reports."""
    told = [one for one in teachers if one.get("seconds") and "time" in one]
    rows = [(one["time"], float(one["seconds"]), one.get("worker")) for one in told]
    return pd.DataFrame(rows, columns=["time", "seconds", "worker"])


def _within(taught: pd.DataFrame, span: Span) -> pd.DataFrame:
    """As much of the teachers' training as lies in a span."""
    end = taught["time"].clip(upper=span[1])
    begin = (taught["time"] - taught["seconds"]).clip(lower=span[0])
    inside = taught.assign(time=end, seconds=(end - begin).astype("float64"))
    return inside[inside["seconds"] > 0]


def _spent(epochs: pd.DataFrame, taught: pd.DataFrame, span: Span, slots: int, scoring: bool) -> tuple[Parts, int]:
    """The parts of one session of a stage, and its slots: as many as it says, or as its workers took."""
    wall = span[1] - span[0]
    parts = dict.fromkeys(PARTS, 0.0)
    beside = _within(taught, span)
    rows = _slots_of(_lives(pd.concat([epochs[["time", "seconds", "worker"]], beside]), span))
    slots = max(slots, len(rows), 1)
    trained = pd.DataFrame({"teacher": beside["seconds"], "worker": beside["worker"].fillna("")})
    work = pd.concat([_work(epochs, scoring), trained]).fillna(0.0)
    for workers in rows:
        late = min(max(min(workers.values()) - span[0], 0.0), wall)
        own = work[work["worker"].isin(list(workers))].drop(columns="worker").sum()
        # Clocks of several machines may differ; no slot has worked for longer than there was time.
        spent, room = float(own.sum()), wall - late
        share = room / max(spent, room) if spent > 0 else 0.0
        for part, seconds in own.items():
            parts[str(part)] += share * float(seconds)
        parts["start-up"] += late
    parts["waiting"] += max(0.0, slots * wall - sum(parts.values()))
    return parts, slots


def _lives(epochs: pd.DataFrame, span: Span) -> pd.DataFrame:
    """By worker: when its first work began and when it last reported.

    A report's time is the driver's, and several may be told at once: after each, so many seconds of work had been done
    since the worker began.
    """
    known = pd.DataFrame({"worker": epochs["worker"].fillna(""), "end": epochs["time"]})
    known["seconds"] = epochs["seconds"].fillna(0.0).clip(lower=0.0)
    known = known.sort_values("end", kind="stable")
    known["begin"] = (known["end"] - known.groupby("worker")["seconds"].cumsum()).clip(lower=span[0])
    return known.groupby("worker").agg(begin=("begin", "min"), end=("end", "max")).sort_values(["begin", "end"])


def _slots_of(lives: pd.DataFrame) -> list[dict[str, float]]:
    """The workers of each slot, with when each began; one that was lost has its successor in its slot."""
    slots: list[dict[str, float]] = []
    free: list[float] = []
    for worker, begin, end in lives.itertuples():
        row = next((row for row, until in enumerate(free) if until <= begin + _CLOCK), len(free))
        if row == len(free):
            slots.append({})
            free.append(end)
        slots[row][str(worker)] = float(begin)
        free[row] = end
    return slots


def _work(epochs: pd.DataFrame, scoring: bool) -> pd.DataFrame:
    """The parts of each report, which add up to its seconds; and its worker."""
    seconds = epochs["seconds"].fillna(0.0).clip(lower=0.0)
    worker = epochs["worker"].fillna("")
    if scoring:
        return pd.DataFrame({"scoring": seconds, "worker": worker})
    # An epoch that an earlier session, or run, has computed is reported in no time, with what it took then.
    parts: dict[str, pd.Series] = {}
    left = seconds
    for names in (_OWN, _METRICS):
        told = pd.DataFrame({part: _column(epochs, name) for part, name in names.items()})
        share = (left / told.sum(axis=1)).clip(upper=1.0).fillna(0.0)
        parts |= {str(part): share * told[part] for part in told}
        left = (left - share * told.sum(axis=1)).clip(lower=0.0)
    return pd.DataFrame({**parts, "other": left, "worker": worker})


def _column(epochs: pd.DataFrame, name: str) -> pd.Series:
    """Seconds; 0 where they are not told, as in ledgers that are older than the column."""
    told = epochs[name] if name in epochs else pd.Series(0.0, index=epochs.index)
    return told.astype("float64").fillna(0.0).clip(lower=0.0)


def _outside(sessions: Sequence[Span], stages: Sequence[Span], slots: int, taught: pd.DataFrame) -> Parts:
    """The parts of what is not in a stage: start-up before a session's first one, the teachers' training, waiting."""
    parts = dict.fromkeys(PARTS, 0.0)
    for start, end in sessions:
        own = sorted((max(a, start), min(b, end)) for a, b in stages if a < end and b > start)
        at = start
        for number, (begin, until) in enumerate([*own, (end, end)]):
            if begin > at:
                trained = _within(taught, (at, begin))
                teacher = min(float(trained["seconds"].sum()), slots * (begin - at))
                others = _covered(trained) * slots if number == 0 else slots * (begin - at)
                parts["teacher"] += teacher
                parts["waiting"] += max(0.0, others - teacher)
                parts["start-up"] += slots * (begin - at) - max(others, teacher)
            at = max(at, until)
    return parts


def _covered(trained: pd.DataFrame) -> float:
    """Seconds in which any teacher was trained."""
    covered, at = 0.0, -np.inf
    for begin, end in sorted(zip(trained["time"] - trained["seconds"], trained["time"], strict=True)):
        covered += max(0.0, end - max(begin, at))
        at = max(at, end)
    return covered
