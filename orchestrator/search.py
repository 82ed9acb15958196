"""What a stage has of a Tune searcher and a Tune scheduler: both only carry between Tune and the stage's book."""

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from orchestrator.book import Book, Proposer, Trial
from orchestrator.failures import why_lost

Config = dict[str, Any]
ROOM = 1 << 20  # bytes; with less, a disk is full


def full_disk(folder: Path) -> OSError | None:
    """The error of a full disk, where it is one."""
    if shutil.disk_usage(folder).free < ROOM:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return None


class BookSearcher:
    """Hands out the book's unfinished trials, then new proposals, `chunk` trials to a Tune trial.

    Tune retries nothing by itself: a trial whose worker was lost is handed out again, as a new trial of Tune's, until
    the book has it fail. So it counts alike whether the run was interrupted in between or not.

    Args:
        why: why trials were lost, by Tune's names of them; the scheduler fills it.
    """

    def __init__(
        self,
        book: Book,
        proposer: Proposer,
        make_config: Callable[[list[Trial]], Config],
        folder: Path,
        chunk: int,
        why: Mapping[str, str],
    ) -> None:
        self.book, self.proposer, self.make_config, self.chunk = book, proposer, make_config, chunk
        self.folder, self.why = folder, why
        self._seen = 0  # trials of the book that were put in line or handed out
        self._in_line: list[int] = []  # trials that nobody works on, oldest first
        self._numbers: dict[str, list[int]] = {}  # by Tune's name of the trial
        self._all_proposed = False

    def suggest(self, trial_id: str) -> Config | str | None:
        """A Tune trial's config; None to wait for what is running; FINISHED when nothing is left, or can go on.

        Tune would wait ten minutes for a trial where nothing runs.
        """
        if self.book.failure is not None:
            return Searcher.FINISHED
        try:
            trials = self._some()
        except Exception as error:
            self.book.failure = error
            return Searcher.FINISHED
        if trials:
            self._numbers[trial_id] = [trial.number for trial in trials]
            return self.make_config(trials)
        return None if self.book.unfinished() and not self.book.hopeless else Searcher.FINISHED

    def _some(self) -> list[Trial]:
        """Trials for one worker; one that has lost a worker goes alone, so that it takes no other with it."""
        trials: list[Trial] = []
        while (trial := self._next(trials)) is not None:
            trials.append(trial)
            if trial.lost or len(trials) == self.chunk or (trial.number + 1) % self.chunk == 0:
                break
        return trials

    def _next(self, chosen: list[Trial]) -> Trial | None:
        while not self.book.hopeless:
            if (trial := self._first_in_line(chosen)) is not None:
                return trial
            # Chunks end at multiples of `chunk`: the rest of one that was cut off proposes no more than the whole did.
            if chosen and len(self.book.trials) // self.chunk > chosen[0].number // self.chunk:
                return None
            proposal = None if self._all_proposed else self.proposer.propose(self.book)
            if proposal is None:
                self._all_proposed = not self.proposer.waits
                return None
            self.book.propose(proposal)  # has failed by now, if it cannot be built
        return None

    def _first_in_line(self, chosen: list[Trial]) -> Trial | None:
        """Taken out of the line. Looks at no trial that is at work: there may be thousands."""
        self._in_line += range(self._seen, len(self.book.trials))
        self._seen = len(self.book.trials)
        self._in_line = [number for number in self._in_line if not self.book.trials[number].done]
        for trial in (self.book.trials[number] for number in self._in_line):
            if not (chosen and trial.lost):
                self._in_line.remove(trial.number)
                return trial
        return None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """What went well is in the book already."""
        if not error:
            return
        # Nobody can work on a full disk: the trials stay unfinished, and the run ends until there is room.
        self.book.failure = self.book.failure or full_disk(self.folder)
        if self.book.failure is not None:
            return
        left = [number for number in self._numbers[trial_id] if not self.book.trials[number].done]
        for number in left:
            self.book.lose(number, self.why[trial_id], alone=len(left) == 1)
        self._in_line = sorted([*self._in_line, *left])


class BookScheduler:
    """Writes every report into the book before anything is decided, and stops what the book's rule stops."""

    def __init__(self, book: Book, on_change: Callable[[list[int]], None]) -> None:
        self.book, self.on_change = book, on_change
        self.why: dict[str, str] = {}  # why trials were lost, by Tune's names of them

    @property
    def failure(self) -> Exception | None:
        """Why the whole experiment is to end, if it is."""
        return self.book.failure

    def give_up(self) -> None:
        """Write nothing more."""
        self.book.give_up()

    def on_trial_error(self, tune_controller: TuneController, trial: TuneTrial) -> None:
        """Note why. Tune tells its searcher next, unless it goes on by itself (where a node was called back)."""
        self.why[trial.trial_id] = why_lost(trial)

    def on_trial_result(self, tune_controller: TuneController, trial: TuneTrial, result: dict[str, Any]) -> str:
        self._take(tune_controller, trial, result)
        done = all(self.book.trials[number].done for number in _numbers(trial))
        return TrialScheduler.STOP if done else TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: TuneController, trial: TuneTrial, result: dict[str, Any]) -> None:
        self._take(tune_controller, trial, result)

    def _take(self, tune_controller: TuneController, trial: TuneTrial, result: dict[str, Any]) -> None:
        try:
            for report in result.get("reports", []):
                self.note(report)
            self.on_change(_numbers(trial))
        except Exception as error:
            # Not raised: of a trial's last report, Tune would print it, go on, and have the trial fail of it.
            self.book.failure = error
        if self.book.hopeless:
            tune_controller.request_stop_experiment()

    def note(self, report: Mapping[str, Any]) -> None:
        """Write what a worker has told of one trial into the book."""
        number = report["number"]
        if "disk" in report:
            raise OSError(*report["disk"])  # no fault of the trial: it stays unfinished, and the run ends
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
