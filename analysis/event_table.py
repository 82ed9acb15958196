"""From a run's ledger to the table of its events."""

from collections.abc import Iterable

import pandas as pd

from analysis.ledger import KNOWN, Columns, Event
from analysis.schema import LEDGER


def event_table(events: Iterable[Event]) -> pd.DataFrame:
    """A row an event, in the order they were written; `schema.LEDGER` describes the columns."""
    rows = Columns()
    seen: set[tuple[object, ...]] = set()
    name = ""
    for event in events:
        kind = event["event"]
        if kind not in KNOWN:
            continue
        name = name or str(event.get("name", "")) * (kind == "run")
        told = _told_once(event)
        spent = "wall_seconds" if kind in ("stage_end", "run_end") else "device_seconds"
        row = {column: event.get(column) for column in ("time", "event", "stage", "number", "epoch", "worker")}
        rows.add({**row, spent: event.get("seconds"), "repeated": told in seen, "text": _words(event)})
        if told:
            seen.add(told)
    return rows.frame(LEDGER, run=name)


def _told_once(event: Event) -> tuple[object, ...]:
    """What an event is about, where another one about the same says it again; empty of the others."""
    if event["event"] == "report":
        return event["stage"], event["number"], event["epoch"]
    return ("teacher", event.get("which") or event["name"]) if event["event"] == "teacher" else ()


def _words(event: Event) -> str | None:
    """The words of an event: of an end its status and reason, of a teacher where he is from."""
    said = [
        event.get(name) for name in ("status", "reason", "text", *(("name", "source") if "source" in event else ()))
    ]
    return ": ".join(str(part) for part in said if part) or None
