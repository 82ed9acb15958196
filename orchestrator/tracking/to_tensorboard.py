"""Event files for TensorBoard: a folder an entry, with its metrics as scalars and its configuration as hparams.

An entry that was cut off is written anew from the ledger, which knows all of it.
"""

import shutil
from collections.abc import Container
from pathlib import Path
from typing import Any

from orchestrator.tracking.entries import Entry, Point, RunFacts


class TensorBoard:
    """Writes below a folder, as `tensorboard --logdir` reads it."""

    to = "files"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writers: dict[str, Any] = {}

    def connect(self, run: RunFacts) -> None:
        """Nothing to connect to."""

    def begin(self, entry: Entry) -> Container[int]:
        """Begin its file anew."""
        from tensorboardX import SummaryWriter

        shutil.rmtree(self.folder / entry.folder, ignore_errors=True)
        self._writers[entry.key] = SummaryWriter(str(self.folder / entry.folder))
        return ()

    def send(self, entry: Entry, points: list[Point]) -> None:
        """A scalar for each metric and point."""
        writer = self._writers[entry.key]
        for point in points:
            for name, value in point.metrics.items():
                writer.add_scalar(name, value, point.step, point.time)

    def end(self, entry: Entry) -> None:
        """Of a trial, add its hyperparameters, and what it has come to."""
        writer = self._writers.pop(entry.key)
        if entry.rows is None:
            from tensorboardX.summary import hparams

            config = {
                name: value for name, value in entry.config.items() if isinstance(value, str | bool | int | float)
            }
            for summary in hparams({**config, "status": entry.status}, dict(entry.last)):
                writer.file_writer.add_summary(summary)
        writer.close()

    def flush(self) -> None:
        """Have the files written."""
        for writer in self._writers.values():
            writer.flush()

    def finish(self) -> None:
        """Nothing more."""

    def close(self) -> None:
        """Close the files of entries that have not ended."""
        while self._writers:
            self._writers.popitem()[1].close()
