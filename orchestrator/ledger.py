"""The run's one record: an append-only file of JSON lines, on disk before anything is decided from it.

What is written here is the truth; Tune's state, Optuna's studies, the Parquet files and the display are made from it.
"""

import json
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

Event = dict[str, Any]


class Ledger:
    """Appends events to `ledger.jsonl`; one process at a time (the run's lock sees to that)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock: Callable[[], float] = time.time  # of the events; virtual in a replay
        _drop_torn_line(path)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (held for the life of the run)
        self._one_at_a_time = threading.Lock()  # a teacher may come while a stage begins
        self.failure: OSError | None = None  # why nothing more may be written: the run's object store stays away

    def append(self, event: str, **values: Any) -> Event:
        """Write an event, and return it as it can be read back. It is on disk when this returns.

        Raises:
            OSError: the disk is full or cannot be written, or `failure` is set; nothing of the event stays.
        """
        if self.failure is not None:
            raise self.failure
        line = json.dumps({"event": event, "time": self.clock(), **values}, default=_plain, allow_nan=True)
        plain: Event = _without_nan(json.loads(line))
        data = (json.dumps(plain, separators=(",", ":"), allow_nan=False) + "\n").encode()
        with self._one_at_a_time:
            self._write(data)
        return plain

    def _write(self, data: bytes) -> None:
        """All of it or nothing."""
        # Not tell(): after an earlier failure the position lies beyond the end.
        before = os.fstat(self._file.fileno()).st_size
        try:
            written = 0
            while written < len(data):
                written += self._file.write(data[written:]) or 0
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(before)
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _drop_torn_line(path: Path) -> None:
    """Cut off a last line without its end: the process died while writing it, and nothing was decided from it."""
    if not path.exists():
        return
    with open(path, "rb+") as file:
        data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            file.truncate(whole)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN or infinity: they become null."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON-able")
