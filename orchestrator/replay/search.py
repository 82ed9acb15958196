"""A recipe and the table that it is replayed from: prepared, checked, and run."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator import outcome
from orchestrator.book import Book, Proposal
from orchestrator.checks import check_stage
from orchestrator.errors import CannotGoOn, Interrupted, RunFailed
from orchestrator.feasible import Feasible
from orchestrator.ledger import Event, Ledger
from orchestrator.pipeline import announce, sees_test_images
from orchestrator.prepared import book_of, space_of
from orchestrator.proposers import SearchProposer
from orchestrator.recipe import Recipe, domains_in
from orchestrator.replay.simulation import Clock, Simulation
from orchestrator.replay.table import Table
from orchestrator.run_directory import Run
from orchestrator.specs import StageSpec
from orchestrator.stage import check_failures, survivors
from spaces import BadInput, Space, unknown


class Listed(Feasible):
    """The students of a table that are within the limits."""

    def __init__(self, table: Table, limits: Mapping[str, float]) -> None:
        self.space, self.table, self.limits = table.space, table, dict(limits)
        self.within = [student.arch for student in table.students.values() if self.meets(student.cost)]

    def cost(self, arch: Mapping[str, Any]) -> Mapping[str, float]:
        """Nothing at all for a student that is not in the table; it is passed over like one over a limit."""
        student = self.table.students.get(self.space.hash(arch))
        return {} if student is None else student.cost

    def meets(self, found: Mapping[str, float]) -> bool:
        return bool(found) and super().meets(found)

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        return dict(self.within[int(rng.integers(len(self.within)))])

    def listed(self) -> Iterator[dict[str, Any]]:
        return map(dict, self.within)


@dataclass(frozen=True)
class Replay:
    """A recipe with the table that its results come from, checked; nothing has been created yet."""

    recipe: Recipe
    table: Table
    feasible: Listed

    @classmethod
    def prepare(cls, recipe: Recipe, table: Table | None = None) -> "Replay":
        """Check all that can be checked before anything runs.

        Args:
            table: in place of the file that `recipe.replay` names.

        Raises:
            BadInput: with the first mistake that is found.
        """
        if table is None:
            assert recipe.replay is not None
            space = space_of(recipe.space)
            table = Table.load(Path(recipe.replay.table), recipe.replay.where, space)
        for name in recipe.limits.given():
            if name not in table.costs:
                raise unknown("column of costs for the limit", name, table.costs)
        feasible = Listed(table, recipe.limits.given())
        if not feasible.within:
            limits = ", ".join(f"{name} <= {value:,g}" for name, value in recipe.limits.given().items())
            raise BadInput(f"no student of {table.name} is within {limits}")
        replay = cls(recipe, table, feasible)
        for arch in recipe.given:
            if not feasible.allows(arch):
                raise BadInput(f"{table.name} has no student {dict(arch)} within the limits")
        for stage in recipe.stages:
            check_stage(stage, table.space, recipe)
            replay.check_columns(stage)
        return replay

    @property
    def space(self) -> Space:
        """Of the students."""
        return self.table.space

    def check_columns(self, stage: StageSpec) -> None:
        """Raises `BadInput` unless the table has what a stage reads."""
        here = f"stage {stage.name!r}"
        if stage.scheduler.name == "pbt":
            raise BadInput(f"{here}: pbt changes trainings in the middle, which no table records; choose another")
        if stage.trial == "distill" and (hyper := domains_in(stage.settings())):
            raise BadInput(f"{here}: {next(iter(hyper))} is searched, and a table records students alone; set a value")
        if stage.rivals:
            raise BadInput(f"{here}: rivals are drawn beside a search's survivors; a replay has none, leave them out")
        if stage.control:
            raise BadInput(f"{here}: control trains without the teacher, which the table does not record; leave it out")
        known = (*self.table.metrics, *self.table.costs) if stage.trial == "score" else self.table.metrics
        for name in (*book_of(self.recipe, stage, None).weights, *stage.pareto):
            if name not in (*known, *self.table.costs) and not name.startswith("ensemble."):
                raise unknown(f"column of {self.table.name} that {here} reads", name, known)

    def book(self, stage: StageSpec, ledger: Ledger | None) -> Book:
        """An empty book of a stage."""
        return book_of(self.recipe, stage, ledger)

    def stages(
        self, ledger: Ledger, clock: Clock, events: Iterable[Event] = (), on_change: Any = None
    ) -> Iterator[Book]:
        """Run, go on with, or read back each stage in order; the book of each that has ended.

        Raises:
            CannotGoOn: nobody can go on.
        """
        known, kept = list(events), None
        given = [Proposal(arch, self.table.space.hash(arch), self.feasible.cost(arch)) for arch in self.recipe.given]
        for index, stage in enumerate(self.recipe.stages):
            book = self.book(stage, ledger)
            told = [event for event in known if event.get("stage") == stage.name]
            for event in told or [announce(ledger, index, book, {"replay": self.table.name})]:
                book.apply(event)
            if on_change is not None:
                on_change.stage(index, book)
            if not book.ended:
                self._run(book, kept or given or None, clock, on_change or (lambda: None))
            assert book.kept is not None
            kept = [book.proposals[p] for p in book.kept]
            yield book

    def execute(self, run: Run, on_change: Any) -> None:
        """Run all that is left of a replayed run. Its ledger's times are virtual.

        Raises:
            Interrupted, RunFailed: it can be resumed; what had been begun and not reported is then begun again.
        """
        events = run.events()
        clock = Clock(max(event["time"] for event in events))
        run.ledger.clock = clock
        started = clock.now
        try:
            for _ in self.stages(run.ledger, clock, events, on_change):
                run.write_tables()
                run.sync()
        except KeyboardInterrupt:
            raise Interrupted from None
        except CannotGoOn as error:
            run.write_tables()
            raise RunFailed(f"{error}; mend the table or {run.path / 'recipe.yaml'} and resume") from error
        outcome.keep(run, None)
        run.ledger.append("run_end", seconds=clock.now - started)
        run.write_tables()

    def _run(self, book: Book, candidates: list[Proposal] | None, clock: Clock, changed: Callable[[], None]) -> None:
        stage, started = book.stage, clock.now
        proposer = SearchProposer(stage, self.table.space, self.feasible, self.recipe.seed, candidates)
        workers = self.recipe.workers or 1
        book.mend()
        check_failures(book)  # a resumed stage, of which too many had failed
        Simulation(book, proposer, self.table, clock, workers, sees_test_images(self.recipe, stage), changed).run()
        book.keep(survivors(book, last=stage is self.recipe.stages[-1]))
        book.close(seconds=clock.now - started, slots=workers)


class InMemory(Ledger):
    """A ledger that is nowhere written: of a replay that is over in a moment."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.events = clock, list[Event]()

    def append(self, event: str, **values: Any) -> Event:
        """Keep an event."""
        self.events.append({"event": event, "time": self.clock(), **values})
        return self.events[-1]

    def close(self) -> None:
        """There is nothing to close."""


def simulate(recipe: Recipe, table: Table) -> list[Event]:
    """The events of a replayed search that leaves no directory behind; their `time` is virtual, from 0.

    Raises:
        BadInput: the recipe and the table do not go together.
        CannotGoOn: nobody can go on.
    """
    clock = Clock()
    ledger = InMemory(clock)
    for _ in Replay.prepare(recipe, table).stages(ledger, clock):
        pass
    return ledger.events
