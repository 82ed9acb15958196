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
from orchestrator.recipe import domains_in
from orchestrator.samplers.distributions import decode, distributions, encode
from orchestrator.samplers.grid import order, point
from orchestrator.samplers.known import Known, study_of
from orchestrator.schedulers import Population
from orchestrator.specs import Rivals, StageSpec
from spaces import BadInput, Space
from spaces.domains import ParamSpace, contains
from spaces.redact import redacted
from spaces.seeding import derive_seed, generator, stable_hash
from spaces.space import sample, size

BLIND = ("grid", "random")  # samplers that do not look at what is known
DRAWS = 1000  # candidates drawn for rivals, before all are looked through
ATTEMPTS = 50  # asks of the sampler for a new feasible candidate before one is drawn at random
State = optuna.trial.TrialState


class SearchProposer:
    """Asks an Optuna sampler for points of the space and of the stage's hyperparameters.

    A suggestion is a function of (seed, number of the proposal, book): each ask has a sampler of its own, seeded for
    it, and a study made from the book. A candidate over a limit, or known already, is never handed out.

    Args:
        candidates: survivors of the stage before, to take in turn instead of searching the space. What the stage
            before has found for a hyperparameter stays.

    Attributes:
        first: what is fixed of the first proposals, where a search begins with students that are known to be good.
    """

    waits = False
    first: Sequence[Mapping[str, Any]] = ()

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
        self._origins = {candidate.hash: candidate.origin for candidate in self.candidates or ()}
        self.param_space: ParamSpace = {**space.param_space, **self.hyper}
        if self.candidates is not None:
            every: float = len(self.candidates)
        else:
            every = size(self.param_space) if stage.sampler.name == "grid" else math.inf
        self.total = stage.trials or every
        self._places = {self._candidate(one): at for at, one in enumerate(self.candidates or ())}
        self._times = np.zeros(len(self._places), dtype=int)  # that each candidate was proposed
        self._counted = 0  # proposals that are in `_times`
        self._passed: dict[str, int] = {}  # of each grid: how many of its points are known or over a limit
        self._distributions = distributions(self.param_space)
        self._history = Known([optuna.study.StudyDirection.MAXIMIZE] * max(1, len(stage.pareto)))
        self._study = study_of(self._history)
        self._seen = 0  # of `Book.touched`
        optuna.logging.set_verbosity(optuna.logging.ERROR)

    @property
    def learns(self) -> bool:
        """Whether proposals depend on results."""
        listed = self.candidates is not None and not self.hyper
        return not listed and self.stage.sampler.name not in BLIND

    def propose(self, book: Book) -> Proposal | None:
        number = len(book.proposals)
        if number >= self.total:
            return None
        fixed = self._fixed(book)
        if len(fixed) == len(self.param_space):
            found = self._new(fixed, book)
            if found is not None or self.candidates is not None:
                return found
            fixed = {}  # a student to begin with that is known by now, or over a limit when measured again
        if self.stage.sampler.name == "grid":
            return self._on_grid(book, fixed)
        study = self._told(book)
        for attempt in range(ATTEMPTS):
            found = self._new(self._ask(study, number, attempt, fixed), book)
            if found is not None:
                return found
        return self._drawn(book, number, fixed)

    def _on_grid(self, book: Book, fixed: Mapping[str, Any]) -> Proposal | None:
        """The first point that is new, in the grid's order. What was passed over is never looked at again."""
        free, grid = self._free(fixed), stable_hash(fixed)
        settings = {"order_seed": derive_seed(self.seed, self.stage.name), **self.stage.sampler.settings}
        points = order(int(size(free)), settings["order_seed"])
        for at in range(self._passed.get(grid, 0), len(points)):
            found = self._new({**point(free, int(points[at])), **fixed}, book)
            self._passed[grid] = at
            if found is not None:
                return found
        return None

    def _free(self, fixed: Mapping[str, Any]) -> ParamSpace:
        return {name: domain for name, domain in self.param_space.items() if name not in fixed}

    def again(self, earlier: Proposal, book: Book) -> Proposal | None:
        """A proposal of an earlier run as one of this stage; None if this stage would not make it."""
        if len(book.proposals) >= self.total or not set(self.hyper) == set(earlier.params) == set(
            self._allowed_of(earlier)
        ):
            return None
        if self.candidates is not None and self._candidate(earlier) not in self._places:
            return None
        return self._new({**earlier.arch, **earlier.params}, book)

    def starts(self, students: Iterable[Proposal]) -> list[dict[str, Any]]:
        """What `first` is where a search begins with these students, best first; none where candidates are given.

        At most as many as the stage keeps, and half of its trials; students over a limit are left out.
        """
        if self.candidates is not None:
            return []
        at_most = min(self.stage.keep or self.total, max(1, self.total // 2))
        found: dict[str, dict[str, Any]] = {}
        for student in students:
            if len(found) < at_most and self.feasible.allows(student.arch):
                params = self._allowed_of(student)
                found.setdefault(stable_hash([student.hash, params]), {**student.arch, **params})
        return list(found.values())

    def _allowed_of(self, earlier: Proposal) -> dict[str, Any]:
        """The hyperparameters that this stage has, at values that it can give them."""
        mine = {name: value for name, value in earlier.params.items() if name in self.hyper}
        return {name: value for name, value in mine.items() if contains(self.hyper[name], value)}

    def _fixed(self, book: Book) -> Mapping[str, Any]:
        """What is not searched of the next proposal: all that is known of a survivor, or of a student to begin with."""
        if self.candidates is None:
            return self.first[len(book.proposals)] if len(book.proposals) < len(self.first) else {}
        for proposal in book.proposals[self._counted :]:
            self._times[self._places[self._candidate(proposal)]] += 1
        self._counted = len(book.proposals)
        return self._known(self.candidates[int(np.argmin(self._times))])  # of those that had fewest turns, the first

    def _candidate(self, proposal: Proposal) -> str:
        """Equal for proposals of one candidate."""
        names = self._known(self.candidates[0]) if self.candidates else ()
        return stable_hash([proposal.hash, {name: proposal.params[name] for name in names if name in self.hyper}])

    def _known(self, survivor: Proposal) -> dict[str, Any]:
        return {**survivor.arch, **{name: value for name, value in survivor.params.items() if name in self.hyper}}

    def _distinct(self, survivors: Sequence[Proposal]) -> list[Proposal]:
        """Without those that differ only in hyperparameters that this stage does not have."""
        found: dict[str, Proposal] = {}
        for survivor in survivors:
            found.setdefault(stable_hash(self._known(survivor)), survivor)
        return list(found.values())

    def _new(self, params: Mapping[str, Any], book: Book) -> Proposal | None:
        """The proposal of a point; None if it is known, over a limit, or no architecture.

        One that cannot be built is a proposal with a `fault`.
        """
        arch = {name: params[name] for name in self.space.param_space}
        if not self.space.allows(arch):
            return None
        hyper = {name: params[name] for name in self.hyper}
        name, until = self.space.hash(arch), self.stage.epochs or 0
        # What it costs is only counted for what is new.
        proposal = Proposal(arch, name, {}, hyper, until=until, origin=self._origins.get(name, "search"))
        if proposal.key in book.keys:
            return None
        try:
            cost = self.feasible.cost(arch)
        except BadInput as error:  # from here on a failed candidate, with its reason
            return replace(proposal, fault=redacted(str(error)))
        return replace(proposal, cost=cost) if self.feasible.meets(cost) else None

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
        seed = derive_seed(self.seed, self.stage.name, number, attempt)
        method = self.stage.sampler
        if method.name == "random":  # what the sampler would say, without a study around it
            drawn = sample(self.param_space, np.random.default_rng(seed))
            return self._allowed({**drawn, **fixed}, seed)
        sampler = samplers.make(method.name, self.param_space, seed, method.settings, number, self.space.moves)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            if fixed:  # a model learns from the fixed names too
                known = {name: domain for name, domain in self.param_space.items() if name in fixed}
                sampler = optuna.samplers.PartialFixedSampler(encode(known, fixed), sampler)
            study.sampler = sampler
            trial = study.ask(self._distributions)
        return self._allowed({**decode(self.param_space, trial.params), **fixed}, seed)

    def _allowed(self, params: dict[str, Any], seed: int) -> dict[str, Any]:
        """The point; where the space does not allow it, one that differs in one choice.

        A sampler knows nothing of what is not allowed. Asked again, a Gaussian process says much the same.
        """
        arch = {name: params[name] for name in self.space.param_space}
        return params if self.space.allows(arch) else {**params, **self.space.mutate(arch, generator(seed, "allowed"))}

    def _told(self, book: Book) -> optuna.Study:
        """What the book holds, as Optuna sees it. Only what may have changed since the last ask is looked at."""
        self._history.forget()
        if not self.learns:
            return self._study
        for p in sorted({*book.touched[self._seen :]}):
            self._history.know(p, self._frozen(book, p))
        self._seen = len(book.touched)
        if book.combine == "rank" and not self.stage.pareto:  # each result may change the ranks of all
            for p, trial in enumerate(self._history.trials):
                if trial.state == State.COMPLETE:
                    trial.values = [book.value(p)]
        return self._study

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
            distributions=self._distributions,
            intermediate_values={} if self.stage.pareto else curve,
        )


# Samplers that know what a pruned trial's curve means; the others would pass pruned trials over.
PRUNING_SAMPLERS = ("tpe",)


class PopulationProposer:
    """Population based training of a fixed student: members train in segments and copy each other (arXiv:1711.09846).

    A segment is a trial of `interval` epochs that starts from the checkpoint of a segment before it. All members end
    a segment before the next one is proposed, so that who copies whom does not depend on which worker was quicker.
    """

    waits = learns = True
    first: Sequence[Mapping[str, Any]] = ()

    def __init__(self, stage: StageSpec, student: Proposal, seed: int) -> None:
        assert stage.epochs is not None
        self.student, self.epochs = student, stage.epochs
        hyper = domains_in(stage.settings())
        self.population = Population(hyper, derive_seed(seed, stage.name), **stage.scheduler.settings)

    @property
    def total(self) -> int:
        """Segments of all members."""
        return self.population.population * math.ceil(self.epochs / self.population.interval)

    def again(self, earlier: Proposal, book: Book) -> Proposal | None:
        """A segment of an earlier run that was tuned alike; None if it is of another student."""
        return replace(earlier, cost=self.student.cost) if earlier.hash == self.student.hash else None

    def starts(self, students: Iterable[Proposal]) -> list[dict[str, Any]]:
        """None: a population tunes the student that it is given."""
        return []

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


def rivals_of(
    survivors: Sequence[Proposal], feasible: Feasible, wanted: Rivals, rng: np.random.Generator
) -> list[Proposal]:
    """Random students about as large as the first survivor, none of them a survivor: what a search has to beat.

    Raises:
        BadInput: there is none.
    """
    size = survivors[0].cost["params"]
    found: dict[str, Proposal] = {}
    seen = {survivor.hash for survivor in survivors}
    nearest = math.inf
    for arch in _at_random(feasible, rng):
        if (name := feasible.space.hash(arch)) in seen:
            continue
        seen.add(name)
        cost = feasible.cost(arch)
        nearest = min(nearest, off := abs(cost["params"] / size - 1))
        if off <= wanted.within:
            found[name] = Proposal(arch, name, cost, origin="rival")
        if len(found) == wanted.count:
            break
    if not found:
        closest = f"the nearest is {nearest:.1%} off" if seen and math.isfinite(nearest) else "there is no other"
        raise BadInput(
            f"rivals: no other student within the limits has {size:,.0f} parameters, as the best survivor has, "
            f"within {wanted.within:.0%}; {closest}"
        )
    return list(found.values())


def _at_random(feasible: Feasible, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Candidates within the limits: many at random, then all of a small space in a random order."""
    yield from (feasible.draw(rng) for _ in range(DRAWS))
    listed = list(feasible.listed())
    yield from (listed[i] for i in rng.permutation(len(listed)))
