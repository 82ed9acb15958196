"""The ledger as entries: one for each trial of a distillation, and one for a whole stage of scores.

A scored candidate is one report. As a run of its own in a tool it would be a row among hundreds with a single point;
so a stage of scores is one entry, whose steps are the trials' numbers, with a table of its candidates at its end.
"""

import math
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from analysis.naming import student_name
from orchestrator.ledger import Event
from spaces.seeding import stable_hash


@dataclass(frozen=True)
class Point:
    """What one report says: finite numbers by name, at an epoch or, of scores, for a trial's number."""

    step: int
    time: float  # unix time
    metrics: Mapping[str, float]


@dataclass
class Entry:
    """What a tool calls a run.

    Attributes:
        key: `short/7`, or `score` for a stage of scores; the same in each session.
        name: to be read by people.
        folder: the same as a path of plain characters, such as `02-short/0007-2-1-1_width_5-seed-0`.
        step: what steps count, `epoch` or `number`.
        config: the student, how it is taught, and what it costs, by the columns' names in `trials.parquet`.
        points: what is yet to be sent; of an entry that this session has not begun, all.
        rows: the candidates of a stage of scores.
        status, reason, ended: how and when (unix time) it has ended.
    """

    key: str
    stage: str
    name: str
    folder: str
    step: str
    config: dict[str, Any]
    created: float
    points: list[Point] = field(default_factory=list)
    rows: dict[int, dict[str, Any]] | None = None
    last: Mapping[str, float] = field(default_factory=dict)
    status: str | None = None
    reason: str | None = None
    ended: float | None = None
    begun: bool = False


class Tool(Protocol):
    """A tool that has runs with a configuration, metrics by step, and an end."""

    @property
    def to(self) -> str:
        """Where to; see `Tracker`."""
        ...

    def connect(self, run: "RunFacts") -> None:
        """Before anything else, once there is something to send."""
        ...

    def begin(self, entry: Entry) -> Container[int]:
        """Begin an entry, or take it up again; the steps that are there already."""
        ...

    def send(self, entry: Entry, points: list[Point]) -> None:
        """Send points in their order."""
        ...

    def end(self, entry: Entry) -> None:
        """Note how it has ended, and write its table if it has one."""
        ...

    def flush(self) -> None:
        """Put what has been sent where others can see it."""
        ...

    def finish(self) -> None:
        """The whole run has ended well."""
        ...

    def close(self) -> None:
        """Give back what is open; entries that have not ended can be taken up again."""
        ...


@dataclass(frozen=True)
class RunFacts:
    """What a tool is told of the whole run; `id` is its own, wherever its directory is moved to."""

    id: str
    name: str
    recipe: str
    began: float


class Runs:
    """A tracker that tells a tool of entries."""

    def __init__(self, tool: Tool) -> None:
        self.tool = tool
        self._run = RunFacts("", "", "", 0.0)
        self._stages: dict[str, Event] = {}
        self._open: dict[str, Entry] = {}
        self._connected = self._finished = False

    @property
    def to(self) -> str:
        """The tool's."""
        return self.tool.to

    def recall(self, events: list[Event]) -> None:
        """Remember entries that have not ended, and failed ones, which may be begun again."""
        for event in events:
            self._add(event)
        for entry in [entry for entry in self._open.values() if entry.status not in (None, "failed")]:
            del self._open[entry.key]
        self._finished = False

    def take(self, events: list[Event]) -> None:
        """Send what is new, entry by entry."""
        changed = {entry.key: entry for event in events if (entry := self._add(event)) is not None}
        for entry in changed.values():
            if entry.points or entry.status is not None:
                self._send(entry)
        if self._finished:
            self._connect()
            self.tool.finish()
        if self._connected:
            self.tool.flush()

    def close(self) -> None:
        """Nothing was opened, unless there was something to send."""
        if self._connected:
            self.tool.close()

    def _connect(self) -> None:
        if not self._connected:
            self._connected = True
            self.tool.connect(self._run)

    def _send(self, entry: Entry) -> None:
        self._connect()
        points, entry.points = entry.points, []
        if not entry.begun:
            entry.points = points  # a tool may look at what there is
            there = self.tool.begin(entry)
            entry.begun, entry.points = True, []
            points = [point for point in points if point.step not in there]
        if points:
            self.tool.send(entry, points)
        if entry.status is not None:
            self.tool.end(entry)
            del self._open[entry.key]

    def _add(self, event: Event) -> Entry | None:
        """Take in an event; the entry that it changes."""
        match event["event"]:
            case "run":
                found = stable_hash([event["name"], event["time"]])[:12]
                self._run = RunFacts(found, event["name"], event.get("recipe", ""), event["time"])
            case "run_end":
                self._finished = True
            case "resume":
                self._finished = False
            case "stage":
                self._stages[event["stage"]] = event
            case "trial":
                self._trial(event)
            case "stage_end":
                return self._ended(self._open.get(event["stage"]), "completed", None, event["time"])
            case "report" | "end" | "retry":
                return self._of_trial(event)
        return None

    def _scored(self, event: Event) -> bool:
        return bool(self._stages[event["stage"]]["trial"] == "score")

    def _trial(self, event: Event) -> None:
        stage, number = event["stage"], event["number"]
        index = self._stages[stage]["index"]
        if not self._scored(event):
            self._open.setdefault(f"{stage}/{number}", _entry(event, index))
            return
        folder, facts = f"{index:02d}-{stage}", self._stages[stage]
        config = {name: facts.get(name) for name in ("stage", "sampler", "combine")}
        config |= {f"objective.{name}": weight for name, weight in (facts.get("objective") or {}).items()}
        entry = Entry(stage, stage, f"{self._run.name} {stage}", folder, "number", config, event["time"], rows={})
        rows = self._open.setdefault(stage, entry).rows
        assert rows is not None
        rows[number] = {"number": number, "student": student_name(event["arch"]), **_config(event)}

    def _of_trial(self, event: Event) -> Entry | None:
        number = event["number"]
        entry = self._open.get(event["stage"] if self._scored(event) else f"{event['stage']}/{number}")
        if entry is None:
            return None  # it had ended; a ledger says so once
        if event["event"] == "report":
            point = Point(number if entry.rows is not None else event["epoch"], event["time"], numbers(event))
            entry.points.append(point)
            entry.last = point.metrics
            if entry.rows is not None:
                entry.rows[number].update(point.metrics)
            return entry
        if entry.rows is not None:
            entry.rows[number].update(status=event.get("status"), reason=event.get("reason"))
            return None
        return self._ended(entry, event.get("status"), event.get("reason"), event["time"])

    @staticmethod
    def _ended(entry: Entry | None, status: str | None, reason: str | None, at: float) -> Entry | None:
        """Of a trial that is begun again, no status."""
        if entry is not None:
            entry.status, entry.reason, entry.ended = status, reason, at
        return entry


def _entry(event: Event, index: int) -> Entry:
    stage, number, student = event["stage"], event["number"], student_name(event["arch"])
    alone = " alone" if event["control"] else ""
    plain = re.sub(r"[^A-Za-z0-9.=_-]+", "_", student)[:80]
    folder = f"{index:02d}-{stage}/{number:04d}-{plain}-seed-{event['seed']}{alone.replace(' ', '-')}"
    name = f"{stage} {number}: {student} seed {event['seed']}{alone}"
    config = {"stage": stage, "number": number, **_config(event)}
    return Entry(f"{stage}/{number}", stage, name, folder, "epoch", config, event["time"])


def _config(event: Event) -> dict[str, Any]:
    return {
        **{name: event[name] for name in ("proposal", "seed", "control", "hash")},
        "origin": event.get("origin") or "search",
        **(event.get("cost") or {}),
        **{f"arch.{name}": value for name, value in event["arch"].items()},
        **{f"set.{name}": value for name, value in (event.get("params") or {}).items()},
    }


def numbers(report: Event) -> dict[str, float]:
    """The finite numbers of a report, with the seconds that it took."""
    values = {**report["metrics"], "seconds": report.get("seconds")}
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
