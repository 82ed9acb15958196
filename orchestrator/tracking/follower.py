"""A thread that reads a run's ledger for one tracker, and remembers how far the tracker has it."""

import hashlib
import json
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from orchestrator.ledger import Event
from orchestrator.plain_values import printable
from trainables.failures import reason
from trainables.files import replacing

FOLDER = "tracking"  # in a run's directory
EVERY = 2.0  # seconds between two looks at the ledger
CHUNK = 1 << 20  # bytes of the ledger that are sent together, at least a line


class Tracker(Protocol):
    """Who is told of the run's events, in their order; all of it by one thread."""

    @property
    def to(self) -> str:
        """Where to. What was sent elsewhere is sent again."""
        ...

    def recall(self, events: list[Event]) -> None:
        """Remember what an earlier session has sent."""
        ...

    def take(self, events: list[Event]) -> None:
        """Send; when this returns, whatever has ended is where it belongs, and the rest can be found out again."""
        ...

    def close(self) -> None:
        """Send no more in this session."""
        ...


class Reader:
    """The whole lines of a ledger that grows."""

    def __init__(self, file: Path) -> None:
        self.file, self.read = file, 0
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Of all that was read."""
        return self._hash.hexdigest()

    def skip(self, end: int) -> None:
        """Read on to the byte `end`, and make nothing of it."""
        while self._bytes(end):
            pass

    def more(self, end: int | None = None) -> list[Event]:
        """The next events, some at a time; none where there are no more, or none before the byte `end`."""
        return [json.loads(line) for line in self._bytes(end).splitlines() if line.strip()]

    def _bytes(self, end: int | None) -> bytes:
        with open(self.file, "rb") as file:
            file.seek(self.read)
            data = file.read(CHUNK if end is None else min(CHUNK, end - self.read))
            while data and b"\n" not in data and (rest := file.read(CHUNK)):
                data += rest
        data = data[: data.rfind(b"\n") + 1]
        self.read += len(data)
        self._hash.update(data)
        return data


def cursor(run: Path, name: str) -> dict[str, Any]:
    """How far a tracker is: `to`, the bytes of the ledger that it has, and their hash; empty where nobody knows."""
    try:
        found = json.loads((run / FOLDER / f"{name}.json").read_text())
        return {"to": str(found["to"]), "read": int(found["read"]), "sha256": str(found["sha256"])}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def behind(run: Path, name: str) -> bool:
    """Whether a tracker lacks something of a run's ledger."""
    return cursor(run, name).get("read") != (run / "ledger.jsonl").stat().st_size


class Follower(threading.Thread):
    """Follows the ledger until it is asked to end. An error ends it too, and is told; the search goes on.

    Args:
        name: of the tool.
        tracker: who is told.
        run: the run's directory.
        how: what to type to have the rest sent.
    """

    def __init__(self, name: str, tracker: Tracker, run: Path, how: str) -> None:
        super().__init__(name=name, daemon=True)
        self.tracker, self.path, self.how = tracker, run, how
        self._end, self._cut = threading.Event(), threading.Event()

    def ask_to_end(self) -> None:
        """End once everything is sent that is in the ledger now."""
        self._end.set()

    def cut_off(self) -> None:
        """End after what is being sent: the run is nobody's from here."""
        self._cut.set()

    def run(self) -> None:
        try:
            self._follow()
            self.tracker.close()
        except Exception as error:
            with suppress(Exception):
                self.tracker.close()
            said = f"{self.name} is off: {reason(error)}; the search goes on without it, and it gets the rest by"
            print(f"dux: tracking: {printable(said)} {self.how}", file=sys.stderr)

    def _follow(self) -> None:
        reader = Reader(self.path / "ledger.jsonl")
        known = self._known()
        reader.skip(known)
        while True:
            last = self._end.is_set()
            while not self._cut.is_set() and (events := reader.more()):
                if known:
                    self._recall(known)
                    known = 0
                self.tracker.take(events)
                self._note(reader)
            if last:
                return
            self._end.wait(EVERY)

    def _known(self) -> int:
        """Bytes of the ledger that the tracker has: none where the ledger was cut since, or it is another place."""
        known, look = cursor(self.path, self.name), Reader(self.path / "ledger.jsonl")
        if known.get("to") != self.tracker.to:
            return 0
        look.skip(known["read"])
        return look.read if (look.read, look.sha256) == (known["read"], known["sha256"]) else 0

    def _recall(self, end: int) -> None:
        reader = Reader(self.path / "ledger.jsonl")
        while events := reader.more(end):
            self.tracker.recall(events)

    def _note(self, reader: Reader) -> None:
        how_far = {"to": self.tracker.to, "read": reader.read, "sha256": reader.sha256}
        with replacing(self.path / FOLDER / f"{self.name}.json") as temporary:
            temporary.write_text(json.dumps(how_far) + "\n")
