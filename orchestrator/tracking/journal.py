"""Each stage as an Optuna study in a journal, `stages/NN-name/optuna.log`, which optuna-dashboard opens.

A proposal is a trial of the study once all its seeds have ended, in the order in which they end; a stage of scores,
whose values are ranks among all its candidates, is written when it ends. Trials have values as a person would write
them, where the study that a sampler sees has indices. The file only ever grows, so that a reader can keep it open; a
resumed run writes it anew from the ledger, in place of one that a kill has torn.
"""

import math
import warnings
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search.sample import Categorical, Integer

from analysis.naming import student_name
from analysis.schema import direction
from orchestrator.book import Book
from orchestrator.ledger import Event
from orchestrator.prepared import book_of
from orchestrator.recipe import Recipe, domains_in
from orchestrator.specs import StageSpec
from orchestrator.stage import stage_folder
from orchestrator.tracking.entries import numbers
from spaces import Space
from spaces.domains import Domain, from_unit, to_config
from trainables.files import replacing
from trainables.store import Store

FILE = "optuna.log"
STATES = {"completed": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}


class Journal:
    """A tracker that writes a journal for each stage of a run.

    Args:
        recipe: the run's.
        space: the students'.
        run: the run's directory.
        store: where its files belong; a journal goes to an object store when its stage ends.
    """

    to = "files"

    def __init__(self, recipe: Recipe, space: Space, run: Path, store: Store) -> None:
        self.recipe, self.space, self.run, self.store = recipe, space, run, store
        self._studies: dict[str, Study] = {}
        self._name = ""

    def recall(self, events: list[Event]) -> None:
        """Make of it what would be in the files, which are only written when there is more."""
        for study in self._apply(events):
            study.advance()

    def take(self, events: list[Event]) -> None:
        """Write what has ended by now."""
        for study in self._apply(events):
            study.advance()
            study.write()
            if study.book.ended and self.store.remote:
                self.store.write(f"{study.folder}/{FILE}", study.file.read_bytes())

    def close(self) -> None:
        """A stage of an object store that was cut off has its journal there, too."""
        for study in self._studies.values():
            if not study.book.ended and self.store.remote and study.file.exists():
                self.store.write(f"{study.folder}/{FILE}", study.file.read_bytes())

    def _apply(self, events: list[Event]) -> list["Study"]:
        """The studies of which there is something new."""
        changed = {}
        for event in events:
            if event["event"] == "run":
                self._name = event["name"]
            name = str(event.get("stage"))
            index = next((i for i, stage in enumerate(self.recipe.stages) if stage.name == name), None)
            if index is None:
                continue
            if name not in self._studies:
                self._studies[name] = Study(self.recipe, index, self.space, self._name, self.run)
            self._studies[name].apply(event)
            changed[name] = self._studies[name]
        return list(changed.values())


class Study:
    """A stage's study: a book of its own that follows the ledger, and the operations that are not in the file yet."""

    def __init__(self, recipe: Recipe, index: int, space: Space, run_name: str, run: Path) -> None:
        self.stage = stage = recipe.stages[index]
        self.book = book_of(recipe, stage, None)
        self.folder = stage_folder(index, stage)
        self.file = run / self.folder / FILE
        hyper = domains_in(stage.settings()) if stage.trial == "distill" else {}
        self._distributions = {name: _distribution(domain) for name, domain in {**space.param_space, **hyper}.items()}
        self._touched: dict[int, None] = {}  # proposals that may have ended, in the order of their last ends
        self._times: dict[int, tuple[float, float]] = {}  # when each was proposed, and last heard of
        self._rewrite = True
        self._buffer = _Buffer()
        self._study = _empty(self._buffer, f"{run_name}/{stage.name}", self.book)

    def apply(self, event: Event) -> None:
        """Take in an event of the stage."""
        if event["event"] == "retry":
            self.advance()  # it has failed; whether that was written by now must not depend on when
        self.book.apply(event)
        if "number" in event:
            proposal = self.book.trials[event["number"]].proposal
            self._times[proposal] = (self._times.get(proposal, (event["time"],))[0], event["time"])
            if event["event"] == "end":
                self._touched.pop(proposal, None)
                self._touched[proposal] = None

    def advance(self) -> None:
        """Add the proposals that have ended, in the order of their ends."""
        if self.stage.trial == "score" and not self.book.ended:
            return
        done = [p for p in self._touched if all(trial.ended for trial in self.book.taught(p))]
        for proposal in done:
            del self._touched[proposal]
            self._study.add_trial(self._frozen(proposal))

    def write(self) -> None:
        """Bring the file up to date."""
        if self._rewrite:
            with replacing(self.file) as temporary:
                _append(temporary, self._buffer.taken())
            self._rewrite = False
        elif operations := self._buffer.taken():
            _append(self.file, operations)

    def _frozen(self, p: int) -> FrozenTrial:
        proposal, trials, status = self.book.proposals[p], self.book.taught(p), self.book.status(p)
        values = self._values(p)
        state = STATES[status]
        if state is TrialState.COMPLETE and not (values and all(map(math.isfinite, values))):
            state = TrialState.FAIL  # a score that could not be computed
        if state is TrialState.FAIL or (self.stage.pareto and state is TrialState.PRUNED):
            values = []
        last = [numbers(trial.reports[-1]) for trial in trials if trial.reports]
        attributes: dict[str, Any] = {
            "proposal": p,
            "student": student_name(proposal.arch),
            "hash": proposal.hash,
            "origin": proposal.origin,
            "seeds": [trial.seed for trial in trials],
            **proposal.cost,
            **_means(last),
            "seconds": sum(report["seconds"] or 0.0 for trial in trials for report in trial.reports),
        }
        if proposal.parent is not None:
            attributes["parent"] = proposal.parent
        if reasons := [trial.reason for trial in trials if trial.reason]:
            attributes["reason"] = reasons[0]
        params = {**proposal.arch, **proposal.params}
        made = optuna.trial.create_trial(
            state=state,
            values=values or None,
            params={name: _shown(self._distributions[name], params[name]) for name in self._distributions},
            distributions=self._distributions,
            user_attrs=attributes,
            intermediate_values={} if self.stage.pareto else self._curve(p),
        )
        made.datetime_start, made.datetime_complete = map(datetime.fromtimestamp, self._times[p])
        return made

    def _values(self, p: int) -> list[float]:
        value = self.book.value(p)
        if value is None:
            return []
        if not self.stage.pareto:
            return [value]
        signs = [-1 if goal is StudyDirection.MINIMIZE else 1 for goal in _directions(self.stage)]
        return [sign * value for sign, value in zip(signs, self.book.pareto_values(p), strict=True)]

    def _curve(self, p: int) -> dict[int, float]:
        """The objective by epoch, averaged over the seeds that have come so far."""
        epochs: dict[int, list[float]] = {}
        for trial in self.book.taught(p):
            for report in trial.reports:
                objective = report["metrics"].get("objective")
                if objective is not None:
                    epochs.setdefault(report["epoch"], []).append(objective)
        return {epoch: float(np.mean(values)) for epoch, values in epochs.items()}


class _Buffer(BaseJournalBackend):
    """Holds a journal's operations until they are written together: Optuna's own file would sync the disk for each."""

    def __init__(self) -> None:
        self._first, self._held = 0, list[dict[str, Any]]()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self._held += logs

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        return self._held[log_number_from - self._first :]

    def taken(self) -> list[dict[str, Any]]:
        """What is held, which is let go."""
        self._first, held, self._held = self._first + len(self._held), self._held, []
        return held


def _append(file: Path, operations: list[dict[str, Any]]) -> None:
    """In Optuna's own format. The worker's name differs from session to session; readers need none."""
    plain = [{**operation, "worker_id": "dux"} for operation in operations]
    JournalFileBackend(str(file), lock_obj=JournalFileOpenLock(str(file))).append_logs(plain)


def _empty(buffer: _Buffer, name: str, book: Book) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    stage = book.stage
    study = optuna.create_study(storage=JournalStorage(buffer), study_name=name, directions=_directions(stage))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(stage.pareto or ["objective"])
    for key, value in {"trial": stage.trial, "sampler": stage.sampler.name, "objective": book.weights}.items():
        study.set_user_attr(key, value)
    return study


def _directions(stage: StageSpec) -> list[StudyDirection]:
    lower = [direction(name) == "lower" for name in stage.pareto] or [False]
    return [StudyDirection.MINIMIZE if is_lower else StudyDirection.MAXIMIZE for is_lower in lower]


def _distribution(domain: Domain) -> BaseDistribution:
    """A domain's values as they are; steps of a quantised one are left out, which Optuna would want to fit."""
    if isinstance(domain, Categorical):
        return CategoricalDistribution(list(domain.categories))
    [kind] = to_config(domain)
    if isinstance(domain, Integer):
        low, high = (round(from_unit(domain, end)) for end in (0.0, 1.0))
        return IntDistribution(low, high, log="log" in kind)
    return FloatDistribution(domain.lower, domain.upper, log="log" in kind)


def _shown(distribution: BaseDistribution, value: Any) -> Any:
    if isinstance(distribution, IntDistribution | FloatDistribution):
        return min(max(value, distribution.low), distribution.high)  # a rounded step may lie just outside
    return value


def _means(reports: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for report in reports for name in report)
    return {name: float(np.mean([report[name] for report in reports if name in report])) for name in names}
