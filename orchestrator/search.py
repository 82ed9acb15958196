"""The one Tune searcher and the one Tune scheduler: both only carry between Tune and the stage's book."""

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from orchestrator.book import Book, Proposer, Trial

Config = dict[str, Any]
ROOM = 1 << 20  # bytes; with less, a disk is full
WORKER_LOST = "its worker was lost too often (killed, or out of memory)"


class _NotTunesToKeep:
    """Tune pickles searcher and scheduler into a state of its own, which dux never reads: the ledger is the truth."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class BookSearcher(_NotTunesToKeep, Searcher):
    """Hands out the book's unfinished trials, then new proposals, `chunk` trials to a Tune trial."""

    def __init__(
        self,
        book: Book,
        proposer: Proposer,
        make_config: Callable[[list[Trial]], Config],
        folder: Path,
        chunk: int = 1,
    ) -> None:
        super().__init__(metric="objective", mode="max")
        self.book, self.proposer, self.make_config, self.chunk = book, proposer, make_config, chunk
        self.folder = folder
        self._handed_out: set[int] = set()
        self._numbers: dict[str, list[int]] = {}  # by Tune's name of the trial

    def suggest(self, trial_id: str) -> Config | str | None:  # type: ignore[override]
        """A Tune trial's config; None to wait for results; FINISHED when nothing is left."""
        trials: list[Trial] = []
        while len(trials) < self.chunk and (trial := self._next()) is not None:
            trials.append(trial)
        if trials:
            self._numbers[trial_id] = [trial.number for trial in trials]
            return self.make_config(trials)
        waiting = self.proposer.waits and self.book.unfinished()
        return None if waiting else Searcher.FINISHED

    def _next(self) -> Trial | None:
        for trial in self.book.unfinished():
            if trial.number not in self._handed_out:
                self._handed_out.add(trial.number)
                return trial
        proposal = self.proposer.propose(self.book)
        if proposal is None:
            return None
        self.book.propose(proposal)
        return self._next()

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """What went well is in the book already. An error here is final: Tune has retried as often as it may.

        (Tune tells its scheduler of an error before every retry too, so the scheduler cannot know.)
        """
        if error:
            if shutil.disk_usage(self.folder).free < ROOM:
                # Nobody can work on a full disk: the trials stay unfinished, and the run ends until there is room.
                self.book.failure = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                raise self.book.failure
            for number in self._numbers[trial_id]:
                self.book.end(number, "failed", WORKER_LOST)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the truth, and a resumed stage is a new experiment made from it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore; see `save`."""


class BookScheduler(_NotTunesToKeep, FIFOScheduler):
    """Writes every report into the book before anything is decided, and stops what the book's rule stops."""

    def __init__(self, book: Book, on_change: Callable[[list[int]], None]) -> None:
        super().__init__()
        self.book, self.on_change = book, on_change

    def on_trial_result(self, tune_controller: TuneController, trial: TuneTrial, result: dict[str, Any]) -> str:
        self._take(trial, result)
        done = all(self.book.trials[number].done for number in _numbers(trial))
        return TrialScheduler.STOP if done else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: TuneController, trial: TuneTrial, result: dict[str, Any]) -> None:
        self._take(trial, result)

    def _take(self, trial: TuneTrial, result: dict[str, Any]) -> None:
        for report in result.get("reports", []):
            self._note(report)
        self.on_change(_numbers(trial))

    def _note(self, report: Mapping[str, Any]) -> None:
        number = report["number"]
        if "disk" in report:
            # No fault of the trial: it stays unfinished, and the run ends until there is room.
            self.book.failure = OSError(*report["disk"])
            raise self.book.failure
        if "failed" in report:
            self.book.end(number, "failed", report["failed"])
            return
        names = ("epoch", "metrics", "seconds", "worker", "reasons")
        self.book.report(number, **{name: report[name] for name in names if report.get(name) not in (None, {})})
        if report["done"]:
            self.book.end(number, "completed")


def _numbers(trial: TuneTrial) -> list[int]:
    """The numbers, in the book, of what a Tune trial works on."""
    return [entry["number"] for entry in trial.config.get("trials", [trial.config])]
