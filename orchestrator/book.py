"""The book of one stage: every trial that was proposed and what became of it.

Its state is a function of the ledger's events. A running stage writes an event and applies it; a resumed stage applies
the events that are there. Proposals and stopping decisions are functions of the book, so both go on alike.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
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
from orchestrator.trials import Proposal, Status, Trial

ENOUGH = 10  # trials that must have ended before the share of failed ones says something


class Proposer(Protocol):
    """Where proposals come from: a function of the book."""

    waits: bool  # whether results of running trials can lead to further proposals when there is none now
    first: Sequence[Mapping[str, Any]]  # what is fixed of the first proposals

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

    def again(self, earlier: Proposal, book: "Book") -> Proposal | None:
        """A proposal of an earlier run as one of this stage; None if this stage would not make it."""
        ...

    def starts(self, students: Iterable[Proposal]) -> list[dict[str, Any]]:
        """What `first` is where a search begins with these students, best first."""
        ...


class Book:
    """The trials of one stage.

    Args:
        stage: its specification.
        ledger: where events go; None for a book that is only read.
        rule: stops trials early.
        combine: how several terms of the objective become one value: `sum` of the metrics, or `rank` (the mean
            of normalised ranks among the stage's candidates: for scores, whose scales do not compare).
        max_failures, max_failure_rate: see `recipe.Recipe`.
    """

    def __init__(
        self,
        stage: StageSpec,
        ledger: Ledger | None,
        rule: StopRule,
        combine: Literal["sum", "rank"],
        max_failures: int = 2,
        max_failure_rate: float = 0.8,
    ) -> None:
        self.stage, self.rule, self.combine = stage, rule, combine
        self.max_failures, self.max_failure_rate = max_failures, max_failure_rate
        self._ledger = ledger
        self.trials: dict[int, Trial] = {}
        self.proposals: list[Proposal] = []
        self.members: list[list[Trial]] = []  # the trials of each proposal
        self.keys: dict[str, int] = {}  # proposal by key
        self._open: dict[int, Trial] = {}  # trials whose end is not in the ledger
        self.kept: list[int] | None = None
        self.ended = False
        self.touched: list[int] = []  # proposals, in the order in which something has happened to them
        self.hopeless = False  # whether too many trials have failed to go on
        self._ends: Counter[Status] = Counter()
        self.failure: Exception | None = None  # what Tune's callbacks have raised, which Tune hides
        self._values: dict[int, float] = {}  # of proposals, as far as they have been asked for
        self._are_ranked = False  # whether `_values` are ranks among all results so far

    # What happens

    def propose(self, proposal: Proposal) -> None:
        """Note a proposal: a trial for each seed, and for each control. They have failed if it cannot be built."""
        self._write_trials(len(self.proposals), proposal, known=0)
        for trial in self.members[-1]:
            self._end_if_due(trial)

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
                **({"fault": proposal.fault} if proposal.fault else {}),
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

    def lose(self, number: int, why: str, alone: bool) -> None:
        """Note that a trial's worker was lost. It is begun again, unless that has happened too often.

        Args:
            alone: whether the worker had no other trials in hand; if it had, nobody knows whose fault it was.
        """
        trial = self.trials[number]
        if not trial.done:
            self._write("lost", number=number, reason=why, alone=alone)
            self._end_if_due(trial)

    def retry(self, number: int, **mended: Any) -> None:
        """Note that a failed trial is begun again, with what it has reported.

        Args:
            mended: the proposal's `cost`, if it could not be built before.
        """
        assert self.trials[number].status == "failed"
        self._write("retry", number=number, **mended)

    def _end_if_due(self, trial: Trial) -> None:
        """End a trial that cannot be built, or whose worker was lost too often."""
        blamed = [event["reason"] for event in trial.lost if event["alone"]]
        if fault := self.proposals[trial.proposal].fault:
            self.end(trial.number, "failed", fault)
        elif len(blamed) > self.max_failures:
            often = f"failed {len(blamed)} times, the last time: " if len(blamed) > 1 else ""
            self.end(trial.number, "failed", often + blamed[-1])

    def mend(self) -> None:
        """Write what a kill has cut off: further trials of the last proposal, and ends of trials that had ended."""
        if self.proposals:
            self._write_trials(len(self.proposals) - 1, self.proposals[-1], known=len(self.members[-1]))
        for trial in list(self._open.values()):
            if trial.status == "stopped":
                self.end(trial.number, "stopped")
            elif trial.epoch is not None and trial.epoch >= self.proposals[trial.proposal].until:
                self.end(trial.number, "completed")
            else:
                self._end_if_due(trial)

    def give_up(self) -> None:
        """Write nothing more: the run is left as it is, and whoever comes late with a report gets an error."""
        if self._ledger is not None:
            self._ledger.close()

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
            names = ("arch", "hash", "cost", "params", "parent", "start_epoch", "until")
            more = {name: event[name] for name in ("origin", "fault") if name in event}
            proposal = Proposal(**{name: event[name] for name in names}, **more)
            self.keys[proposal.key] = len(self.proposals)
            self.proposals.append(proposal)
            self.members.append([])
        trial = Trial(event["number"], event["proposal"], event["seed"], event["control"])
        self.trials[trial.number] = self._open[trial.number] = trial
        self._touch(trial)  # it may have been begun anew: a further seed that a kill had cut off
        self.members[trial.proposal].append(trial)

    def _apply_report(self, event: Event) -> None:
        trial = self._touch(self.trials[event["number"]])
        trial.status = "running"
        trial.reports.append(event)
        objective = event["metrics"].get("objective")
        if objective is not None and self.rule.stops(trial.number, event["epoch"], objective):
            trial.status = "stopped"

    def _apply_end(self, event: Event) -> None:
        trial = self._touch(self.trials[event["number"]])
        trial.status, trial.reason, trial.ended = event["status"], event["reason"], True
        self._open.pop(trial.number, None)
        self._ends[trial.status] += 1
        self.hopeless |= self._ends.total() >= ENOUGH and self.fails_too_often()

    def _apply_lost(self, event: Event) -> None:
        self.trials[event["number"]].lost.append(event)

    def _apply_retry(self, event: Event) -> None:
        trial = self._touch(self.trials[event["number"]])
        trial.status = "running" if trial.reports else "waiting"
        trial.reason, trial.ended, trial.lost = None, False, []
        self._open[trial.number] = trial
        self._ends["failed"] -= 1
        self.hopeless = False
        if "cost" in event:
            self.proposals[trial.proposal] = replace(self.proposals[trial.proposal], cost=event["cost"], fault=None)

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
        if self.combine == "rank" and not self._are_ranked:
            self._values, self._are_ranked = self._ranked(), True
        if self.combine == "sum" and proposal not in self._values and (summed := self._summed(proposal)) is not None:
            self._values[proposal] = summed
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

    def fails_too_often(self) -> bool:
        """Whether of the trials that have ended a larger share has failed than may."""
        return self._ends["failed"] > self.max_failure_rate * self._ends.total()

    def count(self, status: Status) -> int:
        """How many trials are in this state."""
        return sum(trial.status == status for trial in self.trials.values())

    def _summed(self, proposal: int) -> float | None:
        trials = self.taught(proposal)
        if not all(trial.status in ("completed", "stopped") and trial.reports for trial in trials):
            return None
        return float(np.mean([trial.metrics["objective"] for trial in trials]))

    def _touch(self, trial: Trial) -> Trial:
        """What a trial's proposal is worth has changed; ranks may have, of all proposals."""
        self.touched.append(trial.proposal)
        self._values.pop(trial.proposal, None)
        self._are_ranked = False
        return trial

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
