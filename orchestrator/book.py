"""The book of one stage: every trial that was proposed and what became of it.

Its state is a function of the ledger's events. A running stage writes an event and applies it; a resumed stage applies
the events that are there. Proposals and stopping decisions are functions of the book, so both go on alike.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd

import analysis
from analysis.schema import direction
from orchestrator.ledger import Event, Ledger
from orchestrator.schedulers import StopRule
from orchestrator.specs import StageSpec
from spaces.seeding import stable_hash

Status = Literal["waiting", "running", "completed", "stopped", "failed"]
FINISHED: tuple[Status, ...] = ("completed", "stopped", "failed")


@dataclass(frozen=True)
class Proposal:
    """A student and how it is distilled; one trial for each seed, and for each control."""

    arch: Mapping[str, Any]
    hash: str  # of the architecture's canonical form
    cost: Mapping[str, float]
    params: Mapping[str, Any] = field(default_factory=dict)  # hyperparameters by dotted path
    parent: int | None = None  # the trial whose weights it starts from
    start_epoch: int = 0
    until: int = 0  # the epoch after which it is done
    origin: str = "search"  # or "rival"; see `recipe.Rivals`

    @property
    def key(self) -> str:
        """Equal for proposals that would give the same result."""
        return stable_hash([self.hash, dict(self.params), self.parent, self.start_epoch])


@dataclass
class Trial:
    """One trial: a proposal with a seed, with or without the teacher."""

    number: int
    proposal: int
    seed: int
    control: bool
    status: Status = "waiting"
    reports: list[Event] = field(default_factory=list)
    reason: str | None = None
    ended: bool = False  # whether its end is in the ledger

    @property
    def epoch(self) -> int | None:
        """The last epoch that was reported."""
        return self.reports[-1]["epoch"] if self.reports else None

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Of the last report."""
        return self.reports[-1]["metrics"] if self.reports else {}

    @property
    def done(self) -> bool:
        """Whether nothing more will be reported."""
        return self.status in FINISHED


class Proposer(Protocol):
    """Where proposals come from: a function of the book."""

    waits: bool  # whether results of running trials can lead to further proposals when there is none now

    @property
    def learns(self) -> bool:
        """Whether proposals depend on results."""
        ...

    @property
    def total(self) -> float:
        """Proposals at most."""
        ...

    def propose(self, book: "Book") -> Proposal | None:
        """The next proposal; None if there is none now (all made, or waiting for results)."""
        ...


class Book:
    """The trials of one stage.

    Args:
        stage: its specification.
        ledger: where events go; None for a book that is only read.
        rule: stops trials early.
        combine: how several terms of the objective become one value: `sum` of the metrics, or `rank` (the mean
            of normalised ranks among the stage's candidates: for scores, whose scales do not compare).
    """

    def __init__(
        self, stage: StageSpec, ledger: Ledger | None, rule: StopRule, combine: Literal["sum", "rank"]
    ) -> None:
        self.stage, self.rule, self.combine = stage, rule, combine
        self._ledger = ledger
        self.trials: dict[int, Trial] = {}
        self.proposals: list[Proposal] = []
        self.members: list[list[Trial]] = []  # the trials of each proposal
        self.keys: dict[str, int] = {}  # proposal by key
        self._open: dict[int, Trial] = {}  # trials whose end is not in the ledger
        self.kept: list[int] | None = None
        self.ended = False
        self.failure: OSError | None = None  # why nothing more can be written; Tune hides what its callbacks raise
        self._values: dict[int, float] | None = None

    # What happens

    def propose(self, proposal: Proposal) -> None:
        """Note a proposal: a trial for each seed, and for each control."""
        self._write_trials(len(self.proposals), proposal, known=0)

    def _write_trials(self, number: int, proposal: Proposal, known: int) -> None:
        """The trials of a proposal from the `known`-th on."""
        controls = (False, True) if self.stage.control else (False,)
        for seed, control in list(product(range(self.stage.seeds), controls))[known:]:
            self._write(
                "trial",
                number=len(self.trials),
                proposal=number,
                seed=seed,
                control=control,
                arch=dict(proposal.arch),
                hash=proposal.hash,
                cost=dict(proposal.cost),
                params=dict(proposal.params),
                parent=proposal.parent,
                start_epoch=proposal.start_epoch,
                until=proposal.until,
                origin=proposal.origin,
            )

    def report(
        self, number: int, epoch: int, metrics: Mapping[str, Any], seconds: float, worker: str, **more: Any
    ) -> None:
        """Note a report. An epoch that is known already (a trial that was taken up again) changes nothing."""
        trial = self.trials[number]
        if trial.done or (trial.epoch is not None and epoch <= trial.epoch):
            return
        self._write("report", number=number, epoch=epoch, seconds=seconds, worker=worker, metrics=dict(metrics), **more)
        if trial.status == "stopped":
            self.end(number, "stopped")

    def end(self, number: int, status: Status, reason: str | None = None) -> None:
        """Note that a trial has finished."""
        if not self.trials[number].ended:
            self._write("end", number=number, status=status, reason=reason)

    def mend(self) -> None:
        """Write what a kill has cut off: further trials of the last proposal, and ends of trials that had ended."""
        if self.proposals:
            self._write_trials(len(self.proposals) - 1, self.proposals[-1], known=len(self.members[-1]))
        for trial in list(self._open.values()):
            if trial.epoch is not None:
                if trial.status == "stopped":
                    self.end(trial.number, "stopped")
                elif trial.epoch >= self.proposals[trial.proposal].until:
                    self.end(trial.number, "completed")

    def keep(self, proposals: Iterable[int]) -> None:
        """Note who goes on to the next stage, best first."""
        self._write("keep", proposals=list(proposals))

    def close(self, seconds: float, slots: int) -> None:
        """Note that the stage has ended."""
        self._write("stage_end", seconds=seconds, slots=slots)

    def apply(self, event: Event) -> None:
        """Take in one event of this stage; unknown events are passed over."""
        handler = getattr(self, f"_apply_{event['event']}", None)
        if handler is not None:
            handler(event)

    def _write(self, event: str, **values: Any) -> None:
        assert self._ledger is not None
        try:
            self.apply(self._ledger.append(event, stage=self.stage.name, **values))
        except OSError as error:
            self.failure = error
            raise

    def _apply_trial(self, event: Event) -> None:
        if event["proposal"] == len(self.proposals):
            fields = ("arch", "hash", "cost", "params", "parent", "start_epoch", "until")
            proposal = Proposal(**{name: event[name] for name in fields}, origin=event.get("origin", "search"))
            self.keys[proposal.key] = len(self.proposals)
            self.proposals.append(proposal)
            self.members.append([])
        trial = Trial(event["number"], event["proposal"], event["seed"], event["control"])
        self.trials[trial.number] = self._open[trial.number] = trial
        if trial.proposal in (self._values or {}):
            self._values = None  # it has been begun anew: a further seed that a kill had cut off
        self.members[trial.proposal].append(trial)

    def _apply_report(self, event: Event) -> None:
        trial, self._values = self.trials[event["number"]], None
        trial.status = "running"
        trial.reports.append(event)
        objective = event["metrics"].get("objective")
        if objective is not None and self.rule.stops(trial.number, event["epoch"], objective):
            trial.status = "stopped"

    def _apply_end(self, event: Event) -> None:
        trial, self._values = self.trials[event["number"]], None
        trial.status, trial.reason, trial.ended = event["status"], event["reason"], True
        self._open.pop(trial.number, None)

    def _apply_keep(self, event: Event) -> None:
        self.kept = event["proposals"]

    def _apply_stage_end(self, event: Event) -> None:
        self.ended = True

    # What it says

    def unfinished(self) -> list[Trial]:
        """Trials that something remains to be done for, oldest first."""
        return [trial for trial in self._open.values() if not trial.done]

    def taught(self, proposal: int) -> list[Trial]:
        """A proposal's trials with the teacher."""
        return [trial for trial in self.members[proposal] if not trial.control]

    def status(self, proposal: int) -> Status:
        """Of a proposal: waiting or running until all its trials are done; failed if any has failed."""
        states = [trial.status for trial in self.taught(proposal)]
        for status in ("failed", "running", "waiting", "stopped"):
            if status in states:
                return status
        return "completed"

    def value(self, proposal: int) -> float | None:
        """A proposal's objective, averaged over its seeds; None while it is not known, or has no term."""
        if self._values is None:
            self._values = self._ranked() if self.combine == "rank" else self._summed()
        value = self._values.get(proposal)
        return None if value is None or math.isnan(value) else value

    def best(self) -> list[int]:
        """Finished proposals by objective, best first; of equals, the one that came first."""
        known = [p for p in range(len(self.proposals)) if self.value(p) is not None]
        reached = {p: min((t.epoch or 0) for t in self.taught(p)) for p in known}
        fronts = self._fronts(known)
        # A student that trained for longer has outlasted others at every rung: it stands before them.
        return sorted(known, key=lambda p: (-reached[p], fronts[p], -(self.value(p) or 0.0), p))

    def pareto_values(self, proposal: int) -> list[float]:
        """What a finished proposal has reached in each of the stage's `pareto` columns, turned so that more is better.

        NaN where a score could not be computed.
        """
        values = []
        for name in self.stage.pareto:
            if name in self.proposals[proposal].cost:
                values.append(-float(self.proposals[proposal].cost[name]))
            else:
                sign = -1 if direction(name) == "lower" else 1
                reached = np.array([t.metrics[name] for t in self.taught(proposal)], dtype=float)  # None becomes NaN
                values.append(sign * float(reached.mean()))
        return values

    def _fronts(self, known: list[int]) -> dict[int, int]:
        """The number of each proposal's Pareto front; all 0 where the stage has one objective."""
        fronts = dict.fromkeys(known, 0)
        values = {p: np.array(self.pareto_values(p)) for p in known} if self.stage.pareto else {}
        left, number = {p for p in values if not np.isnan(values[p]).any()}, 0
        while left:
            front = {p for p in left if not any(_dominates(values[q], values[p]) for q in left)}
            fronts |= dict.fromkeys(front, number)
            left, number = left - front, number + 1
        # Without all its values a proposal dominates nothing and is dominated by nothing: it comes last.
        return fronts | {p: number for p in values if np.isnan(values[p]).any()}

    def count(self, status: Status) -> int:
        """How many trials are in this state."""
        return sum(trial.status == status for trial in self.trials.values())

    def _summed(self) -> dict[int, float]:
        values = {}
        for p in range(len(self.proposals)):
            trials = self.taught(p)
            if all(trial.status in ("completed", "stopped") and trial.reports for trial in trials):
                values[p] = float(np.mean([trial.metrics["objective"] for trial in trials]))
        return values

    def _ranked(self) -> dict[int, float]:
        scored = [p for p in range(len(self.proposals)) if self.status(p) == "completed"]
        rows = [(p, trial.metrics) for p in scored for trial in self.taught(p) if trial.reports]
        if not rows:
            return {}
        frame = pd.DataFrame([metrics for _, metrics in rows], index=[p for p, _ in rows]).astype(float)
        frame = frame.groupby(level=0).mean()  # over seeds
        if any(name.startswith("ensemble.") for name in self.weights):
            frame = frame.join(analysis.ensemble(frame, of=self.stage.ensemble))
        combined: pd.Series = analysis.combine_ranks(frame, self.weights)
        return dict(zip(map(int, frame.index), map(float, combined), strict=True))

    @cached_property
    def weights(self) -> dict[str, float]:
        """The weights of the objective; by default every score alike, or the validation accuracy."""
        if self.stage.objective:
            return dict(self.stage.objective)
        if self.stage.scores:
            return dict.fromkeys(self.stage.scores, 1.0)
        return {"valid_accuracy": 1.0}


def _dominates(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((a >= b).all() and (a > b).any())
