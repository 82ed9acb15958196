"""One stage: its turn in the run's experiment, and what comes of it."""

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray import ObjectRef
from ray.tune.execution import class_cache

from orchestrator.book import Book, Proposer, Trial
from orchestrator.errors import CannotGoOn, Interrupted
from orchestrator.experiment import Experiment, Turn, put
from orchestrator.failures import commonest
from orchestrator.pruning import Pruner
from orchestrator.recipe import resolved
from orchestrator.search import BookScheduler, BookSearcher, Config, full_disk
from orchestrator.specs import StageSpec
from orchestrator.watch import ClusterLost, watched
from trainables.context import StageContext
from trainables.trial import trial_of

SCORES_PER_TRIAL = 8  # so that a Tune trial outlasts what Tune itself takes for it
SCORES_AT_MOST = 64  # where no proposal waits for results, and there are enough for every worker


class TrialsFailed(CannotGoOn):
    """Too many trials failed. What they failed of may be mended, and they begun again (`Book.retry`)."""


@dataclass(frozen=True)
class StageRun:
    """A stage that is about to run: its specification, its book, what its trials share, and where they run."""

    spec: StageSpec
    book: Book
    proposer: Proposer
    context: StageContext
    experiment: Experiment
    last: bool
    on_change: Callable[[], None]
    prune: Pruner

    def run(self) -> None:
        """Run what is left of the stage.

        Raises:
            Interrupted: by Ctrl-C.
            ClusterLost: Ray has died or hangs.
            CannotGoOn: nobody can go on; see `check_failures` and `survivors`.
        """
        slots = watched(self.experiment.slots)
        shared = put(partial(trial_of, self.context.but_for_images()))
        started = time.monotonic()
        self.book.mend()
        check_failures(self.book)  # a resumed stage, of which too many had failed
        scheduler = BookScheduler(self.book, self._changed)
        try:
            turn = Turn(self._searcher(slots, scheduler, shared), scheduler)
            self.experiment.begin(turn)
            watched(lambda: self.experiment.finish(turn), give_up=self.experiment.halt)
        except KeyboardInterrupt:
            raise Interrupted from None
        except ClusterLost:
            raise
        except Exception as error:
            found = self.book.failure or full_disk(self.context.folder)  # Tune itself may have met that
            if found in (None, error):
                raise
            raise found from error
        if self.book.failure is not None:
            raise self.book.failure
        check_failures(self.book)
        if self.book.unfinished():
            raise Interrupted
        self.book.keep(survivors(self.book, self.last))
        self.book.close(seconds=time.monotonic() - started, slots=slots)

    def _searcher(self, slots: int, scheduler: BookScheduler, shared: ObjectRef) -> BookSearcher:
        def config(trials: list[Trial]) -> Config:
            return {"shared": shared, **self.config(trials)}

        chunk = self._scores_per_trial(slots) if self.spec.trial == "score" else 1
        return BookSearcher(self.book, self.proposer, config, self.context.folder, chunk, scheduler.why)

    def _scores_per_trial(self, slots: int) -> int:
        if self.proposer.learns:
            return SCORES_PER_TRIAL
        share = self.proposer.total * self.spec.seeds / (4 * slots)
        return int(min(SCORES_AT_MOST, max(SCORES_PER_TRIAL, share)))

    def config(self, trials: list[Trial]) -> Config:
        """What the workers are told of the trials."""
        if self.spec.trial == "score":
            return {"trials": [{**self._named(trial), "arch": dict(self._proposal(trial).arch)} for trial in trials]}
        [trial] = trials
        return self._distilling(trial)

    def _distilling(self, trial: Trial) -> Config:
        proposal = self._proposal(trial)
        return {
            **self._named(trial),
            "arch": dict(proposal.arch),
            "control": trial.control,
            "settings": resolved(self.spec.settings(), proposal.params),
            "until": proposal.until,
            "reported": trial.epoch or proposal.start_epoch,
            "parent": None if proposal.parent is None else self._distilling(self.book.trials[proposal.parent]),
        }

    def _named(self, trial: Trial) -> Mapping[str, Any]:
        return {"number": trial.number, "seed": trial.seed}

    def _proposal(self, trial: Trial) -> Any:
        return self.book.proposals[trial.proposal]

    def _changed(self, numbers: list[int]) -> None:
        """Prune checkpoints that nothing will start from, and tell the display."""
        self.prune(numbers)
        self.on_change()


def check_failures(book: Book, at_end: bool = False) -> None:
    """Raises `TrialsFailed` if more trials have failed than may, with the commonest reason.

    Args:
        at_end: all trials have ended; their share says something then, be they ever so few.
    """
    if book.hopeless or (at_end and book.fails_too_often()):
        failed, ended = book.count("failed"), sum(trial.done for trial in book.trials.values())
        few = f"{failed} of {ended} trials failed (max_failure_rate {book.max_failure_rate:g})"
        raise TrialsFailed(_said(book, f"all {ended} trials failed" if failed == ended else few))


def survivors(book: Book, last: bool) -> list[int]:
    """The proposals of a stage that go on, best first. Scores at the end may have no value: they are what was asked.

    Raises:
        CannotGoOn: there is none, with the commonest reason.
    """
    check_failures(book, at_end=True)
    # Of a population those count that have come to the end.
    best = [p for p in book.best() if book.proposals[p].until == (book.stage.epochs or 0)]
    if best or (last and book.stage.trial == "score" and book.count("completed")):
        return best[: book.stage.keep]
    nobody = f"no candidate has a value of the objective ({', '.join(book.weights)})"
    if failed := book.count("failed"):
        raise TrialsFailed(_said(book, f"{nobody}; {failed} of {len(book.trials)} trials failed"))
    raise CannotGoOn(_said(book, nobody))


def _said(book: Book, what: str) -> str:
    """What has happened, and why: of the trials that failed, or else of those whose scores have no value."""
    failed = [trial.reason for trial in book.trials.values() if trial.reason]
    return f"stage {book.stage.name!r}: {what}; {commonest(failed or map(_lacking, book.trials.values()))}"


def _lacking(trial: Trial) -> str:
    """Why scores of a trial have no value, where it says so."""
    scores = trial.reports[-1].get("reasons", {}) if trial.reports else {}
    return "; ".join(f"{name}: {text}" for name, text in scores.items())


def quiet() -> None:
    """Turn off Tune's own output and files, for dux has a display and a record of its own; and what slows it down."""
    # Of a switch for Lightning: an actor with variables of its own takes none of the workers that Ray has ready.
    class_cache.DEFAULT_ENV_VARS.clear()
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "3600"
    os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"] = "0"
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)


def stage_folder(index: int, spec: StageSpec) -> str:
    """Where a stage's files lie within a run's directory, such as `stages/02-short`."""
    return f"stages/{index + 1:02d}-{spec.name}"
