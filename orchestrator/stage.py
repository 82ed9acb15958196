"""One stage as one Tune experiment: the only place that builds a `tune.Tuner`."""

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner

from orchestrator.book import Book, Proposer, Trial
from orchestrator.recipe import resolved
from orchestrator.search import BookScheduler, BookSearcher, Config
from orchestrator.specs import Resources, StageSpec
from trainables.trial import DistillTrial, ScoreTrial, StageContext, checkpoint_name

WORKER_RETRIES = 2  # how often a trial is taken up again after its worker was lost
SCORES_PER_TRIAL = 8  # so that a Tune trial outlasts what Tune itself takes for it
SCORES_AT_MOST = 64  # where no proposal waits for results, and there are enough for every worker


class Interrupted(Exception):
    """The stage was interrupted before its end; the run can be resumed."""


class StageFailed(Exception):
    """Nothing of the stage can go on; the message says why."""


@dataclass(frozen=True)
class StageRun:
    """A stage that is about to run: its specification, its book, and what its trials share."""

    spec: StageSpec
    book: Book
    proposer: Proposer
    context: StageContext
    resources: Resources
    workers: int | None
    last: bool
    on_change: Callable[[], None]

    def run(self) -> None:
        """Run what is left of the stage.

        Raises:
            Interrupted: by Ctrl-C.
            StageFailed: nobody can go on; see `survivors`.
        """
        slots = self.slots()
        started = time.monotonic()
        quiet()
        self.book.mend()
        try:
            self._tuner(slots).fit()
        except Exception:
            if self.book.failure is not None:
                raise self.book.failure from None
            raise
        if self.book.unfinished():
            raise Interrupted
        self.book.keep(survivors(self.book, self.last))
        self.book.close(seconds=time.monotonic() - started, slots=slots)

    def slots(self) -> int:
        """How many trials can run at once."""
        have = ray.cluster_resources()
        wanted = {"CPU": self.resources.cpu, "GPU": self.resources.gpu}
        fits = min(int(have.get(kind, 0) / amount + 1e-9) for kind, amount in wanted.items() if amount)
        if fits < 1:
            offered = ", ".join(f"{kind} {have.get(kind, 0):g}" for kind, amount in wanted.items() if amount)
            raise StageFailed(f"no trial fits: resources asks for {wanted}, the cluster has {offered}")
        return min(fits, self.workers) if self.workers else fits

    def _tuner(self, slots: int) -> Tuner:
        trainable = ScoreTrial if self.spec.trial == "score" else DistillTrial
        chunk = self._scores_per_trial(slots) if self.spec.trial == "score" else 1
        shipped = tune.with_parameters(trainable, context=self.context)
        resources = {"cpu": self.resources.cpu, "gpu": self.resources.gpu}
        # One more than the slots: with fewer, a reused actor can keep the others from ever starting.
        at_once = slots if self.workers else slots + 1
        return Tuner(
            tune.with_resources(shipped, resources),
            tune_config=TuneConfig(
                search_alg=BookSearcher(self.book, self.proposer, self.config, self.context.folder, chunk),
                scheduler=BookScheduler(self.book, self._changed),
                num_samples=-1,
                max_concurrent_trials=at_once,
                reuse_actors=True,
            ),
            run_config=RunConfig(
                name="tune",
                storage_path=str(self.context.folder.resolve()),
                checkpoint_config=CheckpointConfig(checkpoint_at_end=False, checkpoint_frequency=0),
                failure_config=FailureConfig(max_failures=WORKER_RETRIES),
                verbose=0,
            ),
        )

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
        proposal = self._proposal(trial)
        return {
            **self._named(trial),
            "arch": dict(proposal.arch),
            "control": trial.control,
            "settings": resolved(self.spec.settings(), proposal.params),
            "until": proposal.until,
            "reported": trial.epoch or proposal.start_epoch,
            "parent": proposal.parent,
        }

    def _named(self, trial: Trial) -> Mapping[str, Any]:
        return {"number": trial.number, "seed": trial.seed}

    def _proposal(self, trial: Trial) -> Any:
        return self.book.proposals[trial.proposal]

    def _changed(self, numbers: list[int]) -> None:
        """Prune checkpoints that nothing will start from, and tell the display."""
        for trial in (self.book.trials[number] for number in numbers):
            keeps = trial.status == "completed" and (self.last or self.spec.scheduler.name == "pbt")
            if trial.done and not keeps:
                self.context.store.remove(checkpoint_name(trial.number))
        self.on_change()


def survivors(book: Book, last: bool) -> list[int]:
    """The proposals of a stage that go on, best first. Scores at the end may have no value: they are what was asked.

    Raises:
        StageFailed: there is none, with the commonest reason.
    """
    best = book.best()
    if best or (last and book.stage.trial == "score" and book.count("completed")):
        return best[: book.stage.keep]
    what = f"all {len(book.trials)} trials failed"
    if book.count("completed"):
        what = f"no candidate has a value of the objective ({', '.join(book.weights)})"
    reasons = sorted(filter(None, map(_why, book.trials.values()))) or ["no reason was given"]
    raise StageFailed(f"stage {book.stage.name!r}: {what}; {max(reasons, key=reasons.count)}")


def _why(trial: Trial) -> str:
    """Why a trial came to nothing, where it did."""
    scores = trial.reports[-1].get("reasons", {}) if trial.reports else {}
    return trial.reason or "; ".join(f"{name}: {text}" for name, text in scores.items())


def quiet() -> None:
    """Turn off Tune's own output and files: dux has a display and a record of its own."""
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "3600"
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)


def stage_folder(index: int, spec: StageSpec) -> str:
    """Where a stage's files lie within a run's directory, such as `stages/02-short`."""
    return f"stages/{index + 1:02d}-{spec.name}"
