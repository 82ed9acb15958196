"""From a run's ledger, one JSON object a line, to tables."""

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.errors import BadInput
from analysis.remote import Address, fetched, place
from analysis.schema import EPOCHS, STAGES, TRIALS, Column, is_setting

SCHEMA = 1
"""The newest ledger that can be read."""

Event = dict[str, Any]

# What each known event must hold; events that are not listed are ignored.
_REQUIRED: dict[str, tuple[str, ...]] = {
    "run": ("name", "schema"),
    "teacher": ("name",),
    "note": ("stage", "text"),
    "taken": ("stage", "first"),
    "kept": ("files",),
    "stage": ("stage", "index", "trial"),
    "trial": ("stage", "number", "proposal", "seed", "control", "arch", "hash"),
    "report": ("stage", "number", "epoch", "seconds", "metrics"),
    "end": ("stage", "number", "status"),
    "lost": ("stage", "number", "reason"),
    "retry": ("stage", "number"),
    "keep": ("stage", "proposals"),
    "stage_end": ("stage", "seconds"),
    "run_end": ("seconds",),
    "resume": (),
}
KNOWN = frozenset(_REQUIRED)
# Types of an event's values, whichever it is; null where it may be missing. JSON has no other integers and numbers.
_NUMBER = (int, float)
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("name", "stage", "hash", "status", "text", "sha256"), (str,)),
    **dict.fromkeys(("index", "schema", "number", "proposal", "seed", "epoch"), (int,)),
    **dict.fromkeys(("arch", "metrics", "files"), (dict,)),
    **dict.fromkeys(("cost", "objective", "reasons", "resolved"), (dict, type(None))),
    "params": (dict, int, type(None)),  # a trial's hyperparameters; how many a teacher has
    **dict.fromkeys(("time",), _NUMBER),
    **dict.fromkeys(("which", "reason", "combine", "sampler", "scheduler", "origin", "worker"), (str, type(None))),
    **dict.fromkeys(("start_epoch", "epochs", "seeds", "parent", "slots"), (int, type(None))),
    "seconds": (*_NUMBER, type(None)),
    "control": (bool, type(None)),
    **dict.fromkeys(("proposals", "first"), (list,)),
}
_GREATEST = 2**63  # what a column of whole numbers holds
_PER_TRIAL = ("trial", "report", "lost", "end", "retry")
_BULKY = re.compile(rb'"event"\s*:\s*"(trial|report|lost|end|retry)"')
_BULKY_AS_WRITTEN = tuple(f'{{"event":"{kind}",'.encode() for kind in _PER_TRIAL)  # nearly all, told at once
_STAGE_DTYPES = {column.name: column.dtype for column in STAGES}


def ledger_file(path: str | Path) -> Path:
    """The ledger of a run's directory (or the ledger itself).

    Raises:
        BadInput: there is none.
    """
    file = Path(path) / "ledger.jsonl" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise BadInput(f"{path} is not a run: a run is a directory with a ledger.jsonl")
    return file


def events(path: str | Path, header_only: bool = False) -> Iterator[Event]:
    """The events of a run's directory (or address) or ledger, in order, read as they are asked for.

    A last line without its newline was being written when the run was cut off, and is left out.

    Args:
        header_only: leave out (without parsing) the events of trials, which are nearly all of a ledger.

    Raises:
        BadInput: no ledger, a broken line (named), or a ledger of a newer dux.
    """
    where = place(path)
    return _far(where, header_only) if isinstance(where, Address) else _parse(ledger_file(where), header_only)


def _far(address: Address, header_only: bool) -> Iterator[Event]:
    with fetched(address) as folder:
        yield from _parse(ledger_file(folder), header_only)


def _parse(file: Path, header_only: bool) -> Iterator[Event]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if header_only and line.startswith(_BULKY_AS_WRITTEN):
                continue
            if not line.endswith(b"\n"):
                return
            if line.isspace() or (header_only and _BULKY.search(line, 0, 64)):
                continue
            try:
                event = json.loads(line)
                kind = event["event"]
            except (ValueError, TypeError, KeyError, RecursionError):
                raise broken(file, number, "not a JSON object with an 'event'") from None
            if fault := _fault(kind, event):
                raise broken(file, number, f"the event {kind!r} {fault}")
            if kind == "run" and event["schema"] > SCHEMA:
                raise BadInput(f"{file} was written by a newer dux: schema {event['schema']}, known up to {SCHEMA}")
            yield event


def broken(file: Path, number: int, fault: str) -> BadInput:
    """A line of a ledger that cannot be, and how to go on from the lines before it."""
    if number == 1:
        how = f"put the file back from a copy, or begin anew: dux run {file.with_name('recipe.yaml')}"
    else:
        how = f"go on from the lines before it, and what they lack is computed again: {cut_off(file, number)}"
    return BadInput(f"{file}, line {number}: {fault}; {how}")


def cut_off(file: Path, number: int) -> str:
    """What to type to remove a ledger's lines from this one on, and to go on."""
    return f"sed -i '{number},$d' {shlex.quote(str(file))}; dux resume {shlex.quote(str(file.parent))}"


def _fault(kind: Any, event: Event) -> str | None:
    """What is wrong with a known event: a value that is missing, or of another type."""
    required = _REQUIRED.get(kind) if isinstance(kind, str) else None
    if required is None:
        return None
    for name in required:
        if name not in event:
            return f"lacks {name!r}"
    for name, value in event.items():
        if name in _TYPES and not isinstance(value, _TYPES[name]):
            return f"has {name!r} of type {type(value).__name__}"
        if name in _TYPES and isinstance(value, int) and abs(value) >= _GREATEST:
            return f"has {name!r} beyond 64 bits"
    return None


class Columns:
    """Rows of varying keys, kept column by column: a tenth of the memory of a list of dicts."""

    def __init__(self) -> None:
        self._rows = 0
        self._values: dict[str, list[Any]] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """Append one row; what it lacks is missing."""
        for name, value in row.items():
            column = self._values.setdefault(name, [])
            if len(column) < self._rows:
                column.extend([None] * (self._rows - len(column)))
            column.append(value)
        self._rows += 1

    def frame(self, schema: Iterable[Column], **constants: str) -> pd.DataFrame:
        """The table: the schema's columns, then architecture, hyperparameters and other metrics as they came."""
        listed = {column.name: column.dtype for column in schema}
        rest = [name for name in self._values if name not in listed]
        order = [*listed, *sorted(rest, key=lambda name: (not name.startswith("arch."), not name.startswith("set.")))]
        done = {}
        for name in order:
            values = [constants[name]] * self._rows if name in constants else self._values.get(name, [])
            values.extend([None] * (self._rows - len(values)))
            done[name] = _series(name, values, listed.get(name))
        return pd.DataFrame(done, index=pd.RangeIndex(self._rows))


def _series(name: str, values: list[Any], dtype: str | None) -> pd.Series:
    """A column of the schema's dtype, or of the narrowest that holds every value."""
    try:
        if dtype is None:
            dtype, values = _inferred(values, whole_numbers=is_setting(name))
        return pd.Series(values, dtype=dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise BadInput(f"the ledger's {name} does not fit {dtype}: {error}") from error


def _inferred(values: list[Any], whole_numbers: bool) -> tuple[str, list[Any]]:
    """dtype and values; what is neither all numbers nor all text becomes JSON."""
    kinds = {type(value) for value in values if value is not None}
    if whole_numbers and kinds and kinds <= {bool}:
        return "boolean", values
    if whole_numbers and kinds and kinds <= {int}:
        return "Int64", values
    if kinds <= {bool, int, float} and not (whole_numbers and bool in kinds):
        return "float64", values
    if kinds <= {str}:
        return "string", values
    return "string", [None if value is None else compact(value) for value in values]


def compact(value: object) -> str:
    """JSON without spaces."""
    return json.dumps(value, separators=(",", ":"))


@dataclass
class _Trial:
    event: Event
    end: Event = field(default_factory=dict)
    last: Event = field(default_factory=dict)  # the report of the last epoch
    seen: set[int] = field(default_factory=set)  # epochs
    seconds: float = 0.0
    lost: int = 0  # how often its worker was lost

    def begin_again(self, retry: Event) -> None:
        """It has not failed after all; where its student could not be built before, its cost is known by now."""
        self.end = {}
        self.event = {**self.event, **{name: retry[name] for name in ("cost",) if name in retry}}


@dataclass
class Ledger:
    """What the events of a run say, gathered one by one."""

    run: Event = field(default_factory=dict)
    teachers: dict[str, Event] = field(default_factory=dict)
    stages: dict[str, Event] = field(default_factory=dict)
    finished: bool = False
    seconds: float | None = None  # wall time of the last session, once the run has ended
    sessions: list[float] = field(default_factory=list)  # unix times of the start and of each resumption
    times: list[float] = field(default_factory=list)  # unix times of the events that are not about one trial
    _trials: dict[tuple[str, int], _Trial] = field(default_factory=dict)
    _reports: Columns = field(default_factory=Columns)

    @classmethod
    def of(cls, events: Iterable[Event]) -> "Ledger":
        """Gather all events.

        Raises:
            BadInput: a trial of a stage, or a report of a trial, that the events before it do not name.
        """
        ledger = cls()
        for event in events:
            ledger._add(event)
        return ledger

    def _add(self, event: Event) -> None:
        kind = event["event"]
        if kind not in _PER_TRIAL and "time" in event:
            self.times.append(event["time"])
            if kind == "resume" or not self.sessions:
                self.sessions.append(event["time"])
        match kind:
            case "run":
                self.run = self.run or event
            case "teacher":
                # A resumed run names its teacher again, as kept; the first time says what it cost.
                self.teachers.setdefault(event.get("which") or event["name"], event)
            case "stage":
                self.stages.setdefault(event["stage"], {**event, "began": event.get("time")})
            case "trial":
                self._stage(event)
                self._trials.setdefault((event["stage"], event["number"]), _Trial(event))
            case "report":
                self._report(event)
            case "end":
                self._trial(event).end = event
            case "lost":
                self._trial(event).lost += 1
            case "retry":
                self._trial(event).begin_again(event)
            case "keep":
                self._stage(event)["kept"] = event["proposals"]
            case "stage_end":
                told = {"seconds": event["seconds"], "slots": event.get("slots"), "ended": event.get("time")}
                self._stage(event).update(told)
            case "run_end":
                self.finished, self.seconds = True, event["seconds"]
            case "resume":
                self.finished = False

    def _stage(self, event: Event) -> Event:
        if event["stage"] not in self.stages:
            raise BadInput(
                f"the ledger has the event {event['event']!r} of stage {event['stage']!r}, which never began"
            )
        return self.stages[event["stage"]]

    def _trial(self, event: Event) -> _Trial:
        trial = self._trials.get((event["stage"], event["number"]))
        if trial is None:
            name = f"{event['stage']}/{event['number']}"
            raise BadInput(f"the ledger has the event {event['event']!r} of trial {name}, which never began")
        return trial

    def _report(self, event: Event) -> None:
        trial = self._trial(event)
        if event["epoch"] in trial.seen:  # repeated after a resume, with the same numbers
            return
        trial.seen.add(event["epoch"])
        trial.seconds += event["seconds"] or 0.0
        if event["epoch"] >= trial.last.get("epoch", 0):
            trial.last = event
        known = {name: event.get(name) for name in ("stage", "number", "epoch", "time", "seconds", "worker")}
        self._reports.add({**_metrics(event), **self._identity(trial.event), **known})

    def _identity(self, trial: Event) -> Event:
        names = ("stage", "number", "proposal", "seed", "control", "hash")
        return {**{name: trial[name] for name in names}, "stage_index": self.stages[trial["stage"]]["index"]}

    def _row(self, trial: _Trial) -> Event:
        event, reasons = trial.event, trial.last.get("reasons") or trial.last.get("metrics", {}).get("reasons")
        return {
            **_metrics(trial.last),
            # After the metrics: a student's cost is known for every trial, the score `params` for some.
            **{name: value for name, value in (event.get("cost") or {}).items() if value is not None},
            **{f"arch.{name}": value for name, value in event["arch"].items()},
            **{f"set.{name}": value for name, value in (event.get("params") or {}).items()},
            **self._identity(event),
            "parent": event.get("parent"),
            "origin": event.get("origin") or "search",
            "start_epoch": event.get("start_epoch") or 0,
            "status": trial.end.get("status", "running" if trial.last else "waiting"),
            "reason": trial.end.get("reason"),
            "lost": trial.lost,
            "arch": compact(event["arch"]),
            "epochs": trial.last.get("epoch", event.get("start_epoch") or 0),
            "seconds": trial.seconds,
            "worker": trial.last.get("worker"),
            "reasons": compact(reasons) if reasons else None,
        }

    @property
    def name(self) -> str:
        """The run's name; empty before its first event."""
        return str(self.run.get("name", ""))

    def tables(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Trials (a row a trial, by stage and number) and epochs (a row a report, in the order they came)."""
        rows = Columns()
        for trial in sorted(self._trials.values(), key=self._order):
            rows.add(self._row(trial))
        return rows.frame(TRIALS, run=self.name), self._reports.frame(EPOCHS, run=self.name)

    def _order(self, trial: _Trial) -> tuple[int, int]:
        return self.stages[trial.event["stage"]]["index"], trial.event["number"]

    def stage_table(self) -> pd.DataFrame:
        """A row a stage, as in the recipe; `objective`, `ensemble` and `kept` (proposals, best first) are JSON."""
        rows = [
            {
                **{name: event.get(name) for name in _STAGE_DTYPES},
                "run": self.name,
                "stage_index": event["index"],
                "objective": compact(event.get("objective") or {}),
                "ensemble": compact(event["ensemble"]) if event.get("ensemble") else None,
                "kept": compact(event["kept"]) if "kept" in event else None,
            }
            for event in sorted(self.stages.values(), key=lambda event: event["index"])
        ]
        return pd.DataFrame(rows, columns=list(_STAGE_DTYPES)).astype(_STAGE_DTYPES)


def _metrics(report: Event) -> Event:
    return {name: value for name, value in report.get("metrics", {}).items() if name != "reasons"}


def frames(events: Iterable[Event]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of trials and of epochs that these events make; their columns are in `analysis.schema`."""
    return Ledger.of(events).tables()
