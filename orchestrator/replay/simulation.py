"""Workers that do not compute: each report is looked up, and comes when it would have been ready."""

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.schema import ENSEMBLES
from orchestrator.book import Book, Proposer, Trial
from orchestrator.replay.table import Table
from orchestrator.search import BookScheduler, BookSearcher
from orchestrator.stage import SCORES_PER_TRIAL
from trainables.scores import terms_of

Report = dict[str, Any]


class Clock:
    """Virtual time, in seconds; only ever goes on."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Simulation:
    """One stage on simulated workers.

    Args:
        workers: how many trials run at once.
        tested: whether metrics of the test images are told after the last epoch; they are withheld otherwise.
        changed: told of each report.
    """

    book: Book
    proposer: Proposer
    table: Table
    clock: Clock
    workers: int
    tested: bool
    changed: Callable[[], None]

    def run(self) -> None:
        """Hand out trials to free workers, and jump to the next report, until nothing is left."""
        chunk = SCORES_PER_TRIAL if self.book.stage.trial == "score" else 1
        searcher = BookSearcher(self.book, self.proposer, lambda trials: {"trials": trials}, Path(), chunk, {})
        teller = BookScheduler(self.book, lambda numbers: None)  # no checkpoints lie on disk that could go
        free = list(range(self.workers))[::-1]
        queue: list[tuple[float, int, int, Report, Iterator[tuple[float, Report]]]] = []
        handed = 0
        while True:
            while free and isinstance(config := searcher.suggest(str(handed)), dict):
                handed += 1
                self._next(queue, free, free.pop(), handed, self._work(config["trials"]))
            if self.book.failure is not None:
                raise self.book.failure
            if not queue:
                return
            self.clock.now, order, worker, report, rest = heapq.heappop(queue)
            teller.note({**report, "worker": f"simulated:{worker}"})
            self.changed()
            self._next(queue, free, worker, order, rest)

    def _next(self, queue: list[Any], free: list[int], worker: int, order: int, work: Iterator[Any]) -> None:
        """Queue the next report of a worker's trials that are not over; without one it is free again."""
        for seconds, report in work:
            if not self.book.trials[report["number"]].done:
                heapq.heappush(queue, (self.clock.now + seconds, order, worker, report, work))
                return
        free.append(worker)

    def _work(self, trials: list[Trial]) -> Iterator[tuple[float, Report]]:
        """The reports of a worker's trials, each with the seconds since the one before."""
        for trial in trials:
            yield from (self._scored(trial) if self.book.stage.trial == "score" else self._distilled(trial))

    def _scored(self, trial: Trial) -> Iterator[tuple[float, Report]]:
        _, known, seconds = self.table.scored(self.book.proposals[trial.proposal].hash, trial.seed)
        read = dict.fromkeys((*terms_of(self.book.stage.scores or ()), *self.book.weights, *self.book.stage.pareto))
        # What nothing reads may be missing; what an ensemble makes of the others is made of them here, too.
        metrics = {name: known.get(name) for name in read if name in known or name in self.book.weights}
        metrics = {name: value for name, value in metrics.items() if name not in ENSEMBLES}
        yield seconds, {"number": trial.number, "epoch": 0, "metrics": metrics, "seconds": seconds, "done": True}

    def _distilled(self, trial: Trial) -> Iterator[tuple[float, Report]]:
        proposal, total = self.book.proposals[trial.proposal], self.book.stage.epochs or 0
        begun, at = trial.epoch or 0, 0
        for epoch, known, seconds in self.table.curve(proposal.hash, total, trial.seed):
            at = epoch
            if epoch <= begun:
                continue
            metrics = {k: v for k, v in known.items() if not k.startswith("test_") or (self.tested and epoch >= total)}
            lacking = [name for name in self.book.weights if name not in metrics]
            if lacking:
                why = f"the table has no {lacking[0]} of it after epoch {epoch}"
                yield seconds, {"number": trial.number, "failed": why}
                return
            metrics["objective"] = sum(weight * metrics[name] for name, weight in self.book.weights.items())
            done = epoch >= proposal.until
            report = {"number": trial.number, "epoch": epoch, "metrics": metrics, "seconds": seconds, "done": done}
            yield seconds, report
        if at < proposal.until:
            yield 0.0, {"number": trial.number, "failed": f"the table has nothing of it after epoch {at}"}
