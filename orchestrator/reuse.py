"""A run that starts from an earlier one: from its trials where they would come out the same, else its best students.

From its first instant the new run has a copy of all that it may need of the earlier run, in `origin/`. A stage takes
from there before its first trial, and what it takes stands in the new run's own ledger.
"""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import analysis
from orchestrator.addresses import address_of
from orchestrator.book import Book, Proposal, Proposer, Trial
from orchestrator.existing import check_run, holder
from orchestrator.ledger import Event, Ledger
from orchestrator.prepared import Search, book_of, reads_teacher, space_of
from orchestrator.pruning import is_needed
from orchestrator.recipe import Recipe, domains_in, resolved
from orchestrator.run_directory import Run, own_recipe
from orchestrator.specs import SpaceSpec, StageSpec
from orchestrator.stage import stage_folder
from spaces import BadInput, Space
from spaces.domains import to_config
from spaces.seeding import stable_hash
from trainables import teachers
from trainables.checkpoints import checkpoint_name
from trainables.context import StageContext, TeacherContext
from trainables.curves import curves_name
from trainables.store import Store

FOLDER = "origin"
# What of a stage determines how its trials come out, apart from student, hyperparameters, seed and control.
SETTINGS = ("epochs", "regime", "losses", "optimizer", "batch_size", "augment", "precision")
NETWORK = ("space", "arch", "options", "timm", "torchvision", "mean", "std")  # of a teacher, beside its weights


def basis(search: Search, stage: StageSpec, taught_by: Mapping[str, TeacherContext], test: bool) -> Event:
    """What determines how a stage's trials come out, part by part as short hashes; noted where the stage begins.

    A domain's values are no part of it: each trial has its own.
    """
    parts: dict[str, Any] = {"seed": search.recipe.seed, "trial": stage.trial, "data": _data(search)}
    if stage.trial == "score":
        parts |= {"scores": stage.scores, "score_batch": stage.score_batch}
        parts["teacher"] = [stage.teacher, _named(search, taught_by)] if reads_teacher(stage) else None
    else:
        settings = stage.settings()
        population = stage.scheduler.name == "pbt"
        if not population:
            settings = resolved(settings, dict.fromkeys(domains_in(settings), "searched"))
        parts |= {name: {**settings, "epochs": stage.epochs}[name] for name in SETTINGS}
        parts["objective"] = [search.book(stage, None).weights, "teacher_guidance" in stage.pareto]
        parts["teacher"] = _named(search, taught_by)
        if population:  # whose segments start from each other
            parts["scheduler"] = [stage.scheduler.settings, stage.seeds, stage.control]
    return {**{name: _short(value) for name, value in parts.items()}, "test": test}


def _short(value: Any) -> str:
    return stable_hash(value)[:8]


def _data(search: Search) -> list[Any]:
    """The images, and what they are turned into."""
    return [search.data.fingerprint, list(search.data.mean), list(search.data.std), list(search.data.classes)]


def _named(search: Search, taught_by: Mapping[str, TeacherContext]) -> dict[str, Any]:
    """The teachers, by what they put out."""
    return {
        name: [teacher.hash, *(getattr(search.teachers[name], part) for part in NETWORK)]
        for name, teacher in taught_by.items()
    }


@dataclass(frozen=True)
class Origin:
    """An earlier run, which is only read."""

    path: Path
    recipe: Recipe
    events: list[Event]

    @classmethod
    def read(cls, path: Path) -> "Origin":
        """Raises `BadInput` for no run, one of a newer dux, or one that cannot be read."""
        check_run(path)
        return cls(path, own_recipe(path), list(analysis.events(path)))

    @classmethod
    def of(cls, path: Path, search: Search) -> "Origin":
        """The run that a new one is to start from.

        Raises:
            BadInput: no such run, one that another process holds, or one of other students.
        """
        origin = cls.read(path)
        if (by := holder(path)) is not None:
            raise BadInput(f"{path} is held by another process ({by}); start from it once that has ended")
        if (difference := _difference(search, origin.recipe.space)) is not None:
            raise BadInput(f"a run can only start from one of the same students; in {path} {difference}")
        return origin

    @property
    def name(self) -> str:
        """The run's name."""
        return next((str(event["name"]) for event in self.events if event["event"] == "run"), self.path.name)

    @cached_property
    def books(self) -> dict[str, Book]:
        """Each stage as far as it came, by name."""
        books = {stage.name: book_of(self.recipe, stage, None) for stage in self.recipe.stages}
        for event in self.events:
            if event.get("stage") in books:
                books[event["stage"]].apply(event)
        return books

    def of_stage(self, name: str) -> list[Event]:
        """What was recorded of a stage."""
        return [event for event in self.events if event.get("stage") == name]

    def files(self, name: str, copy: Path | None = None) -> Store:
        """The files of a stage, or where a copy of the run would have them."""
        index = [stage.name for stage in self.recipe.stages].index(name)
        root = copy or address_of(self.path) or self.path.resolve()
        return Store(str(root)).within(stage_folder(index, self.recipe.stages[index]))

    def best(self, name: str) -> list[Proposal]:
        """The best students of the stage of this name, or of the last one that has any; the best first."""
        first = [self.books[name]] if name in self.books else []
        for book in [*first, *reversed(self.books.values())]:
            if best := book.best():
                return [book.proposals[p] for p in best]
        return []

    # Into the new run's directory

    def copy_to(self, search: Search, folder: Path) -> None:
        """Put all that a new run may need of this one into its directory, which is only being made."""
        kept = folder / FOLDER
        kept.mkdir()
        files = ["recipe.yaml", "ledger.jsonl"]
        if self.recipe.space.file:
            files.append(Path(self.recipe.space.file).name)
        for name in files:
            if (self.path / name).exists():  # a recipe that is gone stands in the ledger too
                shutil.copyfile(self.path / name, kept / name)
        for stage in search.recipe.stages:
            if stage.trial == "distill" and stage.name in self.books:
                there, here = self.files(stage.name), self.files(stage.name, kept)
                for number in self.books[stage.name].trials:
                    _copy_file(checkpoint_name(number), there, here)
                    _copy_file(curves_name(number), there, here)
        with Ledger(folder / "ledger.jsonl") as ledger:
            ledger.append("from", run=self.name, path=str(self.path.resolve()))
            for name in search.recipe.teachers:
                self._copy_teacher(search, name, folder, ledger)

    def _copy_teacher(self, search: Search, which: str, folder: Path, ledger: Ledger) -> None:
        """Take over a teacher that would be trained or loaded alike; a file of weights is read again, being at hand."""
        ours, theirs, file = search.recipe, self.recipe, f"{which}.safetensors"
        told = (event for event in self.events if event["event"] == "teacher")
        noted = next((event for event in told if event.get("which", "teacher") == which), None)
        spec = ours.teachers[which]
        images = {event.get("basis", {}).get("data") for event in self.events if event["event"] == "stage"}
        alike = spec == theirs.teachers.get(which) and teachers_augment(ours) == teachers_augment(theirs)
        if not alike or spec.weights or noted is None or _short(_data(search)) not in images:
            return
        member = teachers.build(search.teachers[which], search.data)
        try:
            teachers.load_weights(member, self.path / file)
        except BadInput:  # gone or damaged: it is obtained again
            return
        if teachers.weights_hash(member) == noted["sha256"]:
            shutil.copyfile(self.path / file, folder / file)
            again = {name: value for name, value in noted.items() if name != "time"}
            ledger.append(**{**again, "source": "kept", "seconds": 0.0, "from": self.name})


def teachers_augment(recipe: Recipe) -> dict[str, Any]:
    """What a teacher is trained with."""
    return next((stage.augment for stage in recipe.stages if stage.augment), {})


def _copy_file(name: str, there: Store, here: Store, new_name: str | None = None) -> None:
    data = there.read(name)
    if data is not None:
        here.write(new_name or name, data)


# The students


def _difference(search: Search, there: SpaceSpec) -> str | None:
    """What differs first between the students of two recipes; None for the same space."""
    here = search.recipe.space
    if here.file and there.file and Path(here.file).read_bytes() != Path(there.file).read_bytes():
        return f"{Path(there.file).name} has another text"  # which is not executed
    if (here.file is None) != (there.file is None):
        return f"the space is {there.name or Path(there.file or '').name!r}, not {search.space.name!r}"
    return _differing(search.space, space_of(there))


def _differing(here: Space, there: Space) -> str | None:
    if here.name != there.name:
        return f"the space is {there.name!r}, not {here.name!r}"
    kinds = {
        "option": (here.options, there.options),
        "choices of": tuple({n: to_config(d) for n, d in space.param_space.items()} for space in (here, there)),
    }
    for kind, (ours, theirs) in kinds.items():
        for name in {**ours, **theirs}:
            if ours.get(name) != theirs.get(name):
                return f"{kind} {name} is {theirs.get(name)!r}, not {ours.get(name)!r}"
    return None


# What a stage begins with


def begin(run: Run, book: Book, proposer: Proposer, context: StageContext) -> None:
    """Before a stage's first trial, take over what the earlier run knows of it; on a resume, remember what that was."""
    events = run.events()
    of_stage = [event for event in events if event.get("stage") == book.stage.name]
    taken = next((event for event in of_stage if event["event"] == "taken"), None)
    if taken is None:
        if not any(event["event"] == "from" for event in events):
            return
        taken = _take(run, of_stage[0].get("basis", {}), book, proposer, context)
    proposer.first = taken["first"]


def finished(run: Run) -> None:
    """Remove the copy of the earlier run: all that was taken over is in this one."""
    folder = run.path / FOLDER
    for file in folder.rglob("*"):
        if run.mirror is not None and file.is_file():
            run.mirror.discard(FOLDER, file.relative_to(folder).as_posix())
    shutil.rmtree(folder, ignore_errors=True)


def _take(run: Run, ours: Event, book: Book, proposer: Proposer, context: StageContext) -> Event:
    """Take over trials, or the best students to begin with, and note it. After a kill in the middle, do the rest."""
    origin, name = Origin.read(run.path / FOLDER), book.stage.name
    theirs = next((event.get("basis", {}) for event in origin.of_stage(name) if event["event"] == "stage"), None)
    why = _why_anew(ours, theirs, origin.name)
    first: list[dict[str, Any]] = []
    trials = 0
    if why is None:
        book.mend()
        trials = retell(origin, book, proposer, context)
        run.note(name, f"{trials} of {len(origin.books[name].trials)} trials taken over from {origin.name}")
    else:
        first = proposer.starts(origin.best(name))
        run.note(name, f"{why}: " + (f"begins with its {len(first)} best students" if first else "begins anew"))
    return run.ledger.append("taken", stage=name, trials=trials, first=first)


def _why_anew(ours: Event, theirs: Event | None, name: str) -> str | None:
    """Why a stage's trials cannot be taken over; None if they can."""
    if theirs is None:
        return f"{name} has not begun such a stage"
    parts = [part for part in {**ours, **theirs} if ours.get(part) != theirs.get(part)]
    if theirs.get("test") and "test" in parts:
        parts.remove("test")  # that it was evaluated on the test images too does no harm
    return f"{', '.join(parts)} not as in {name}" if parts else None


def retell(origin: Origin, book: Book, proposer: Proposer, context: StageContext) -> int:
    """Tell a stage's book what the earlier run recorded, in its order, as far as this stage would propose it.

    The book's own rule decides who stops: a trial that was stopped there and would not be here goes on, one that went
    on there and would not here stops, and trials that were cut off are unfinished. What the book knows already (a kill
    in the middle of this) changes nothing.

    Returns:
        How many trials are known now.
    """
    before = origin.books[book.stage.name]
    places: dict[int, int | None] = {}  # number of the proposal there: here
    numbers: dict[int, int] = {}  # number of the trial there: here
    for event in origin.of_stage(book.stage.name):
        kind, there = event["event"], event.get("number")
        if kind == "trial":
            if event["proposal"] not in places:
                places[event["proposal"]] = _placed(event["proposal"], before, numbers, book, proposer)
            numbers |= _counterpart(before.trials[event["number"]], places[event["proposal"]], book)
        elif kind == "report" and there in numbers:
            known = ("event", "time", "stage", "number", "epoch", "metrics", "seconds", "worker")
            more = {name: value for name, value in event.items() if name not in known}
            # This run spends no time on it.
            more |= {"seconds": 0.0, "worker": event.get("worker"), "from": origin.name}
            book.report(numbers[there], event["epoch"], event["metrics"], **more)
        elif kind == "end" and there in numbers and not book.trials[numbers[there]].done:
            status = event["status"]
            tried_again = before.trials[there].status != status
            could_not_be_built = before.proposals[before.trials[there].proposal].fault is not None
            if status != "stopped" and not tried_again and not could_not_be_built:
                book.end(numbers[there], status, event["reason"])
    if book.stage.trial == "distill":
        files = origin.files(book.stage.name)
        for there, here in numbers.items():
            if is_needed(book, book.trials[here], context.test):
                _copy_file(checkpoint_name(there), files, context.store, checkpoint_name(here))
            if context.test:
                _copy_file(curves_name(there), files, context.store, curves_name(here))
    return len(numbers)


def _placed(number: int, before: Book, numbers: Mapping[int, int], book: Book, proposer: Proposer) -> int | None:
    """The number that an earlier proposal has here, or gets; None if this stage would not make it."""
    proposal = before.proposals[number]
    if proposal.parent is not None:
        if proposal.parent not in numbers:
            return None
        proposal = replace(proposal, parent=numbers[proposal.parent])
    if book.stage.scheduler.name == "pbt":  # whose members may be alike: a segment is known by its number
        known = number if number < len(book.proposals) else None
    else:
        known = book.keys.get(proposal.key)
    if known is not None:
        return known
    again = proposer.again(proposal, book)
    if again is None:
        return None
    book.propose(again)
    return len(book.proposals) - 1


def _counterpart(there: Trial, place: int | None, book: Book) -> dict[int, int]:
    """The trial here of the same proposal, seed and control; where this stage has fewer of them, none."""
    members: Iterable[Trial] = () if place is None else book.members[place]
    here = next((trial for trial in members if (trial.seed, trial.control) == (there.seed, there.control)), None)
    return {} if here is None else {there.number: here.number}
