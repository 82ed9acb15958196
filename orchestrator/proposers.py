"""Where a stage's proposals come from: a search of the space, the survivors of the stage before, or a population."""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import optuna

from orchestrator import samplers
from orchestrator.book import Book, Proposal
from orchestrator.feasible import LISTABLE, Feasible
from orchestrator.recipe import StageSpec, domains_in
from orchestrator.samplers.distributions import decode, distributions, encode
from orchestrator.samplers.grid import point
from orchestrator.schedulers import Population
from spaces import Space
from spaces.domains import ParamSpace
from spaces.seeding import derive_seed, generator, stable_hash
from spaces.space import sample, size

ATTEMPTS = 50  # asks of the sampler for a new feasible candidate before one is drawn at random
State = optuna.trial.TrialState


class SearchProposer:
    """Asks an Optuna sampler for points of the space and of the stage's hyperparameters.

    A suggestion is a function of (seed, number of the proposal, book): each ask has a sampler of its own, seeded for
    it, and a study made from the book. A candidate over a limit, or known already, is never handed out.

    Args:
        candidates: survivors of the stage before, to take in turn instead of searching the space. What the stage
            before has found for a hyperparameter stays.
    """

    waits = False

    def __init__(
        self,
        stage: StageSpec,
        space: Space,
        feasible: Feasible,
        seed: int,
        candidates: Sequence[Proposal] | None = None,
    ) -> None:
        self.stage, self.space, self.feasible, self.seed = stage, space, feasible, seed
        self.hyper: ParamSpace = domains_in(stage.settings()) if stage.trial == "distill" else {}
        self.candidates = None if candidates is None else self._distinct(candidates)
        self.param_space: ParamSpace = {**space.param_space, **self.hyper}
        every = math.inf if self.candidates is None else len(self.candidates)  # a grid ends by itself
        self.total = stage.trials or every

    def propose(self, book: Book) -> Proposal | None:
        number = len(book.proposals)
        if number >= self.total:
            return None
        fixed = self._fixed(number)
        if len(fixed) == len(self.param_space):
            return self._new(fixed, book)
        study = self._study(book)
        try:
            for attempt in range(self._attempts(fixed)):
                found = self._new(self._ask(study, number, attempt, fixed), book)
                if found is not None:
                    return found
        except samplers.Exhausted:
            pass  # the grid's end
        return self._drawn(book, number, fixed)

    def _attempts(self, fixed: Mapping[str, Any]) -> int:
        """How often the sampler is asked: a grid for each of its points, the others until it seems in vain."""
        if self.stage.sampler.name != "grid":
            return ATTEMPTS
        return int(min(size(self._free(fixed)), LISTABLE))

    def _free(self, fixed: Mapping[str, Any]) -> ParamSpace:
        return {name: domain for name, domain in self.param_space.items() if name not in fixed}

    def _fixed(self, number: int) -> dict[str, Any]:
        """What is not searched: all that is known of a survivor."""
        if self.candidates is None:
            return {}
        return self._known(self.candidates[number % len(self.candidates)])

    def _known(self, survivor: Proposal) -> dict[str, Any]:
        return {**survivor.arch, **{name: value for name, value in survivor.params.items() if name in self.hyper}}

    def _distinct(self, survivors: Sequence[Proposal]) -> list[Proposal]:
        """Without those that differ only in hyperparameters that this stage does not have."""
        found: dict[str, Proposal] = {}
        for survivor in survivors:
            found.setdefault(stable_hash(self._known(survivor)), survivor)
        return list(found.values())

    def _new(self, params: Mapping[str, Any], book: Book) -> Proposal | None:
        """The proposal of a point; None if it is over a limit or known."""
        arch = {name: params[name] for name in self.space.param_space}
        cost = self.feasible.cost(arch)
        if not self.feasible.meets(cost):
            return None
        hyper = {name: params[name] for name in self.hyper}
        proposal = Proposal(arch, self.space.hash(arch), cost, hyper, until=self.stage.epochs or 0)
        return None if proposal.key in book.keys else proposal

    def _drawn(self, book: Book, number: int, fixed: Mapping[str, Any]) -> Proposal | None:
        """A new feasible point at random, or None where no new one is left."""
        for attempt in range(4 * ATTEMPTS):
            rng = generator(self.seed, self.stage.name, "drawn", number, attempt)
            arch = {} if fixed else self.feasible.draw(rng)
            found = self._new({**sample(self.hyper, rng), **arch, **fixed}, book)
            if found is not None:
                return found
        rng = generator(self.seed, self.stage.name, "listed", number)
        listed: Iterable[Mapping[str, Any]] = [fixed] if fixed else self.feasible.listed()
        for known in listed:
            for hyper in self._hyper_points(known, rng):
                found = self._new({**known, **hyper}, book)
                if found is not None:
                    return found
        return None

    def _hyper_points(self, fixed: Mapping[str, Any], rng: np.random.Generator) -> Iterator[dict[str, Any]]:
        """Every choice of the hyperparameters that are not fixed, or one at random where there is no end of them."""
        free = {name: domain for name, domain in self.hyper.items() if name not in fixed}
        if size(free) <= LISTABLE:
            yield from (point(free, index) for index in range(int(size(free))))
        else:
            yield sample(free, rng)

    def _ask(self, study: optuna.Study, number: int, attempt: int, fixed: Mapping[str, Any]) -> dict[str, Any]:
        """What the sampler suggests beside what is fixed. A study that is asked again knows what it said before."""
        name, free = self.stage.sampler.name, self._free(fixed)
        # A model learns from the fixed names too; a grid would only repeat itself over them.
        asked = free if name == "grid" else self.param_space
        settings = {"order_seed": derive_seed(self.seed, self.stage.name), **self.stage.sampler.settings}
        seed = derive_seed(self.seed, self.stage.name, number, attempt)
        at = (number + attempt) % int(size(free)) if name == "grid" else number
        sampler = samplers.make(name, asked, seed, settings, number=at)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if fixed and asked is not free:
                known = {name: domain for name, domain in self.param_space.items() if name in fixed}
                sampler = optuna.samplers.PartialFixedSampler(encode(known, fixed), sampler)
            study.sampler = sampler
            trial = study.ask(distributions(asked))
        return {**decode(asked, trial.params), **fixed}

    def _study(self, book: Book) -> optuna.Study:
        """What the book holds, as Optuna sees it."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(directions=["maximize"] * max(1, len(self.stage.pareto)))
        study.add_trials([self._frozen(book, p) for p in range(len(book.proposals))])
        return study

    def _frozen(self, book: Book, p: int) -> optuna.trial.FrozenTrial:
        """A proposal as Optuna sees it: failed, pruned (with its curve), running, or complete with its value."""
        proposal, status, value = book.proposals[p], book.status(p), book.value(p)
        states = {"failed": State.FAIL, "stopped": State.PRUNED, "completed": State.COMPLETE}
        state = states.get(status, State.RUNNING)
        values = [] if value is None else book.pareto_values(p) or [value]
        if state != State.RUNNING and not (values and all(map(math.isfinite, values))):
            state = State.FAIL
        if state == State.PRUNED and (self.stage.sampler.name not in PRUNING_SAMPLERS or self.stage.pareto):
            state = State.COMPLETE  # at its fidelity: otherwise the sampler would learn from the survivors alone
        curve = {
            r["epoch"]: r["metrics"]["objective"] for r in book.taught(p)[0].reports if "objective" in r["metrics"]
        }
        return optuna.trial.create_trial(
            state=state,
            values=values if state == State.COMPLETE else None,
            params=encode(self.param_space, {**proposal.arch, **proposal.params}),
            distributions=distributions(self.param_space),
            intermediate_values={} if self.stage.pareto else curve,
        )


# Samplers that know what a pruned trial's curve means; the others would pass pruned trials over.
PRUNING_SAMPLERS = ("tpe",)


class PopulationProposer:
    """Population based training of a fixed student: members train in segments and copy each other (arXiv:1711.09846).

    A segment is a trial of `interval` epochs that starts from the checkpoint of a segment before it. All members end
    a segment before the next one is proposed, so that who copies whom does not depend on which worker was quicker.
    """

    waits = True

    def __init__(self, stage: StageSpec, student: Proposal, seed: int) -> None:
        assert stage.epochs is not None
        self.student, self.epochs = student, stage.epochs
        hyper = domains_in(stage.settings())
        self.population = Population(hyper, derive_seed(seed, stage.name), **stage.scheduler.settings)

    @property
    def total(self) -> int:
        """Segments of all members."""
        return self.population.population * math.ceil(self.epochs / self.population.interval)

    def propose(self, book: Book) -> Proposal | None:
        number, members = len(book.proposals), self.population.population
        generation, member = divmod(number, members)
        start = generation * self.population.interval
        if start >= self.epochs:
            return None
        until = min(start + self.population.interval, self.epochs)
        if generation == 0:
            return replace(self.student, params=self.population.first(member), until=until)
        before = range((generation - 1) * members, generation * members)
        if not all(trial.done for p in before for trial in book.taught(p)):
            return None
        standing = {p % members: (start, _or_nan(book.value(p)), book.proposals[p].params) for p in before}
        donor, params = self.population.next(member, start, standing)
        parent = book.taught(before[donor])[0]
        if book.status(before[donor]) == "failed":
            return None  # and so has everybody else: there is nobody to copy
        return replace(self.student, params=params, parent=parent.number, start_epoch=start, until=until)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
