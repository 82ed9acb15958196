"""A recipe with its parts loaded and checked: what a run is made from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch

import spaces
from orchestrator import schedulers
from orchestrator.book import Book, Proposal, Proposer
from orchestrator.checks import check_programs, check_stage, corners
from orchestrator.feasible import Feasible
from orchestrator.ledger import Ledger
from orchestrator.proposers import PopulationProposer, SearchProposer
from orchestrator.recipe import Recipe, domains_in, drawn
from orchestrator.specs import SpaceSpec, StageSpec, TeacherSpec
from spaces import BadInput, Space, own
from spaces.others import check_space
from spaces.seeding import generator
from trainables import data, losses, regimes, scores, teachers
from trainables.contracts import Data, Member
from trainables.declare import Program


@dataclass(frozen=True)
class Search:
    """A recipe with its parts loaded and checked; nothing has been created yet."""

    recipe: Recipe
    data: Data
    space: Space
    feasible: Feasible
    teachers: Mapping[str, teachers.TeacherConfig]

    @classmethod
    def prepare(cls, recipe: Recipe, kept: Path | None = None) -> "Search":
        """Load the data and check all that can be checked before anything runs.

        Args:
            kept: a run's directory, whose copies of the teachers stand in for files of weights that may be gone.

        Raises:
            BadInput: with the first mistake that is found.
        """
        space = space_of(recipe.space)
        for stage in recipe.stages:
            check_stage(stage, space, recipe)
        for arch in recipe.given:
            space.check(arch)
        loaded = data.load(data_config(recipe))
        check_space(space, loaded.task)
        device = "cuda" if recipe.resources.gpu and torch.cuda.is_available() else "cpu"
        feasible = Feasible(space, loaded.task, recipe.limits.given(), device)
        taught_by = {name: teacher_config(spec) for name, spec in recipe.teachers.items()}
        search = cls(recipe, loaded, space, feasible, taught_by)
        search.check_fit(kept)
        return search

    def check_fit(self, kept: Path | None = None) -> None:
        """Raises `BadInput` unless students are within the limits and fit the teacher, the losses and the data."""
        if kept is None:  # a run that goes on was within its limits; a latency that is measured again may not be
            if not self.recipe.given:
                self.feasible.check()
            for student in self.students:
                self.feasible.check_one(student.arch)
        for name, config in self.teachers.items():
            member = self.teacher_net(name)  # one that nobody reads of must be one, too
            if config.weights and not (kept is not None and (kept / f"{name}.safetensors").exists()):
                teachers.load_weights(member, Path(config.weights))
        self._check_all_taught()
        for stage in self.recipe.stages:
            if stage.trial == "distill":
                check_programs(stage, self.recipe, self.declared(stage))
            elif self.teachers:
                losses.shapes_of(self.teacher_net("teacher"), self.data.task)

    def _check_all_taught(self) -> None:
        """Raises `BadInput` if further teachers would be trained for nothing."""
        readers = [name for name, regime in regimes.REGIMES.items() if regime.teachers > 1]
        used: set[Any] = set()
        for stage in self.recipe.stages:
            if stage.trial == "distill":
                domain = domains_in(stage.settings()).get("regime.name")
                used |= set(corners(domain) if domain else [stage.settings()["regime"]["name"]])
        if self.recipe.more_teachers and used.isdisjoint(readers):
            raise BadInput(f"more_teachers are read by no stage; regimes that read them: {', '.join(readers)}")

    def program(self, stage: StageSpec) -> tuple[dict[str, Any], Program]:
        """A distillation's settings, with a value drawn for each domain, and what it declares for some student."""
        settings = drawn(stage, generator("terms", self.recipe.seed, stage.name))
        return settings, self.declared(stage)(settings)

    def declared(self, stage: StageSpec) -> Callable[[Mapping[str, Any]], Program]:
        """What settings without domains declare for some student: drawn at random unless it is given."""
        arch = next(iter(self.recipe.given), None) or self.feasible.draw(generator("shapes", self.recipe.seed))
        known, seed = {name: partial(self.teacher_net, name) for name in self.teachers}, self.recipe.seed

        def declare(settings: Mapping[str, Any]) -> Program:
            kit = regimes.Kit(self.data, self.space, arch, settings["losses"], stage.epochs or 0, seed, teachers=known)
            return regimes.declare(settings["regime"], kit)

        return declare

    def teacher_net(self, name: str) -> Member:
        """A teacher for its sizes: its weights are not read."""
        if name not in self._built:
            self._built[name] = teachers.build(self.teachers[name], self.data)
        return self._built[name]

    @cached_property
    def _built(self) -> dict[str, Member]:
        return {}

    @cached_property
    def students(self) -> list[Proposal]:
        """The students that the recipe gives, each network once."""
        found: dict[str, Proposal] = {}
        for arch in self.recipe.given:
            name = self.space.hash(arch)
            found.setdefault(name, Proposal(arch, name, self.feasible.cost(arch)))
        return list(found.values())

    def book(self, stage: StageSpec, ledger: Ledger | None) -> Book:
        """An empty book of a stage."""
        return book_of(self.recipe, stage, ledger)

    def proposer(self, stage: StageSpec, survivors: list[Proposal] | None) -> Proposer:
        """Where the stage's proposals come from."""
        candidates = survivors or self.students or None
        if stage.scheduler.name == "pbt":
            assert candidates is not None
            return PopulationProposer(stage, candidates[0], self.recipe.seed)
        return SearchProposer(stage, self.space, self.feasible, self.recipe.seed, candidates)


def book_of(recipe: Recipe, stage: StageSpec, ledger: Ledger | None) -> Book:
    """An empty book of a recipe's stage."""
    rule = schedulers.make(stage.scheduler.name, stage.scheduler.settings, stage.epochs or 0, recipe.seed)
    combine: Literal["sum", "rank"] = "rank" if stage.trial == "score" else "sum"
    return Book(stage, ledger, rule, combine, recipe.max_failures, recipe.max_failure_rate)


def reads_teacher(stage: StageSpec) -> bool:
    """Whether a stage looks at the teacher: one of scores does if any of them needs it."""
    return stage.trial == "distill" or any(scores.SCORES[name].needs_teacher for name in stage.scores or ())


def space_of(spec: SpaceSpec) -> Space:
    """The students' space. Raises `BadInput` for an unknown one, or a file that defines none."""
    space = own.load(spec.file) if spec.file else spaces.get(spec.name or "")
    return space.restrict(spec.choices, **spec.options)


def data_config(recipe: Recipe) -> data.DataConfig:
    """The data's configuration."""
    given: dict[str, Any] = recipe.task.model_dump(exclude_none=True)
    columns = (given.pop("image_column", None), given.pop("label_column", None))
    if any(columns):
        if not all(columns):
            raise BadInput("task: image_column and label_column go together")
        given["columns"] = columns
    return data.DataConfig(**given)


def teacher_config(spec: TeacherSpec) -> teachers.TeacherConfig:
    """The teacher's configuration."""
    return teachers.TeacherConfig(**spec.model_dump())
