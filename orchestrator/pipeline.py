"""A search from its recipe to its ranked students: the teacher, the stages in order, and who goes on."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray
import torch

import spaces
from orchestrator import samplers, schedulers
from orchestrator.book import Book, Proposal, Proposer
from orchestrator.feasible import Feasible
from orchestrator.ledger import Event, Ledger
from orchestrator.proposers import PopulationProposer, SearchProposer
from orchestrator.recipe import Recipe, StageSpec, TeacherSpec, domains_in, resolved
from orchestrator.run_directory import Run, RunFailed
from orchestrator.stage import Interrupted, StageFailed, StageRun, stage_folder
from spaces import BadInput, Space, unknown
from spaces.seeding import generator
from spaces.space import sample
from trainables import cost, data, export, losses, scores, teacher_training, teachers
from trainables.contracts import Data
from trainables.curriculum import Augment
from trainables.fit import OptimizerConfig
from trainables.teacher_outputs import bytes_per_image
from trainables.trial import StageContext, TeacherContext, checkpoint_path


@dataclass(frozen=True)
class Search:
    """A recipe with its parts loaded and checked; nothing has been created yet."""

    recipe: Recipe
    data: Data
    space: Space
    feasible: Feasible
    teacher: teachers.TeacherConfig | None

    @classmethod
    def prepare(cls, recipe: Recipe) -> "Search":
        """Load the data and check all that can be checked before anything runs.

        Raises:
            BadInput: with the first mistake that is found.
        """
        space = spaces.get(recipe.space.name).restrict(recipe.space.choices, **recipe.space.options)
        for stage in recipe.stages:
            _check_stage(stage, space, recipe)
        loaded = data.load(data_config(recipe))
        device = "cuda" if recipe.resources.gpu and torch.cuda.is_available() else "cpu"
        feasible = Feasible(space, loaded.task, recipe.limits.given(), device)
        if recipe.student is not None:
            space.check(recipe.student)
        else:
            feasible.check()
        teacher = teacher_config(recipe.teacher) if recipe.teacher else None
        search = cls(recipe, loaded, space, feasible, teacher)
        search.check_fit()
        return search

    def check_fit(self) -> None:
        """Raises `BadInput` unless teacher, students and losses fit each other and the data."""
        teacher = None
        if self.teacher is not None:
            member = teachers.build(self.teacher, self.data)
            if self.teacher.weights:
                teachers.load_weights(member, Path(self.teacher.weights))
            teacher = losses.shapes_of(member, self.data.task)
        rng = generator("fit", self.recipe.seed)
        arch = self.recipe.student or self.feasible.draw(rng)
        context = StageContext(self.data, self.space, None, 0, Path(), gpu=False)
        student = losses.shapes_of(context.student(arch, 0), self.data.task)
        for stage in self.recipe.stages:
            if stage.trial == "distill":
                losses.make_terms(_drawn(stage, rng)["losses"], student, teacher)

    @cached_property
    def student(self) -> Proposal | None:
        """The fixed student of the recipe, if it has one."""
        arch = self.recipe.student
        return Proposal(arch, self.space.hash(arch), self.feasible.cost(arch)) if arch else None

    def book(self, stage: StageSpec, ledger: Ledger | None) -> Book:
        """An empty book of a stage."""
        rule = schedulers.make(stage.scheduler.name, stage.scheduler.settings, stage.epochs or 0, self.recipe.seed)
        combine: Literal["sum", "rank"] = "rank" if stage.trial == "score" else "sum"
        return Book(stage, ledger, rule, combine)

    def proposer(self, stage: StageSpec, survivors: list[Proposal] | None) -> Proposer:
        """Where the stage's proposals come from."""
        if stage.scheduler.name == "pbt":
            student = self.student or (survivors[0] if survivors else None)
            assert student is not None
            return PopulationProposer(stage, student, self.recipe.seed)
        if survivors is None and self.student is not None:
            survivors = [self.student]
        return SearchProposer(stage, self.space, self.feasible, self.recipe.seed, survivors)


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


def execute(run: Run, search: Search, on_change: Any) -> None:
    """Run all that is left of a run. Ray is up.

    Raises:
        Interrupted, RunFailed: it can be resumed.
    """
    started = time.monotonic()
    try:
        teacher = _teacher(run, search)
        survivors: list[Proposal] | None = None
        for index, stage in enumerate(run.recipe.stages):
            survivors = _stage(run, search, index, stage, teacher, survivors, on_change)
            run.write_tables()
    except StageFailed as error:
        run.write_tables()
        raise RunFailed(str(error)) from error
    except Interrupted:
        run.write_tables()
        raise
    _keep_best(run, search)
    run.ledger.append("run_end", seconds=time.monotonic() - started)
    run.write_tables()


def _stage(
    run: Run,
    search: Search,
    index: int,
    stage: StageSpec,
    teacher: TeacherContext | None,
    survivors: list[Proposal] | None,
    on_change: Any,
) -> list[Proposal]:
    """Run, go on with, or read back one stage; the proposals that go on."""
    events = [event for event in run.events() if event.get("stage") == stage.name]
    if not events:
        events = [_announce(run.ledger, index, stage, search)]
    book = search.book(stage, run.ledger)
    for event in events:
        book.apply(event)
    on_change.stage(index, book)
    if not book.ended:
        last = index == len(run.recipe.stages) - 1
        context = _context(run, search, index, stage, teacher, last)
        proposer = search.proposer(stage, survivors)
        resources, workers = run.recipe.resources, run.recipe.workers
        StageRun(stage, book, proposer, context, resources, workers, last, on_change).run()
    assert book.kept is not None
    return [book.proposals[p] for p in book.kept]


def _announce(ledger: Ledger, index: int, stage: StageSpec, search: Search) -> Event:
    book = search.book(stage, None)
    return ledger.append(
        "stage",
        stage=stage.name,
        index=index + 1,
        trial=stage.trial,
        objective=book.weights,
        combine=book.combine,
        sampler=stage.sampler.name,
        scheduler=stage.scheduler.name,
        epochs=stage.epochs,
        seeds=stage.seeds,
        control=stage.control,
        keep=stage.keep,
    )


def _context(
    run: Run, search: Search, index: int, stage: StageSpec, teacher: TeacherContext | None, last: bool
) -> StageContext:
    folder = stage_folder(run.path, index, stage).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    book = search.book(stage, None)
    return StageContext(
        data=search.data,
        space=search.space,
        teacher=_with_outputs(teacher, run, search, stage) if teacher else None,
        seed=run.recipe.seed,
        folder=folder,
        gpu=run.recipe.resources.gpu > 0,
        epochs=stage.epochs or 0,
        objective=book.weights if stage.trial == "distill" else None,
        test=last and stage.trial == "distill",
        scores=stage.scores,
        score_seeds=1,
        score_batch=stage.score_batch,
    )


def _teacher(run: Run, search: Search) -> TeacherContext | None:
    """The teacher, trained or loaded once and kept in the run's directory."""
    config, path = search.teacher, run.path / "teacher.safetensors"
    if config is None:
        return None
    noted = next((event for event in run.events() if event["event"] == "teacher"), None)
    if noted is not None and path.exists():
        member = teachers.build(config, search.data)
        teachers.load_weights(member, path)
        if teachers.weights_hash(member) != noted["sha256"]:
            raise RunFailed(f"{path} is not the teacher that this run began with; put that file back")
        return TeacherContext(config, _arrays(member.net.state_dict()), noted["sha256"], None)
    resources = run.recipe.resources
    obtain = ray.remote(num_cpus=resources.cpu, num_gpus=resources.gpu)(teacher_training.obtain)
    augment = next((stage.augment for stage in run.recipe.stages if stage.augment), {})
    trained: teacher_training.Trained = ray.get(obtain.remote(config, search.data, augment, resources.gpu > 0))
    member = teachers.build(config, search.data)
    member.net.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in trained.weights.items()})
    teachers.save_weights(member, path)
    source = "kept" if trained.kept else _source(config)
    counted = {"params": cost.params(member.net), "flops": cost.flops(member.net, search.data.task)}
    run.ledger.append(
        "teacher",
        name=teachers.describe(config),
        source=source,
        seconds=trained.seconds,
        sha256=trained.hash,
        metrics=trained.metrics,
        **counted,
    )
    return TeacherContext(config, trained.weights, trained.hash, None)


def _source(config: teachers.TeacherConfig) -> str:
    if config.weights:
        return "file"
    if config.train_epochs:
        return "trained"
    return "random" if config.random else "timm" if config.timm else "torchvision"


def _arrays(state: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.cpu().numpy() for name, tensor in state.items()}


def _with_outputs(teacher: TeacherContext, run: Run, search: Search, stage: StageSpec) -> TeacherContext:
    """Keep the teacher's outputs if they fit into `teacher_cache_gb`; else each student pays for them."""
    if stage.trial != "distill":
        return teacher
    member = teachers.build(teacher.config, search.data)
    shapes = losses.shapes_of(member, search.data.task)
    rng = generator("outputs", run.recipe.seed)
    settings = _drawn(stage, rng)
    arch = run.recipe.student or search.feasible.draw(rng)
    context = StageContext(search.data, search.space, None, 0, Path(), gpu=False)
    student = losses.shapes_of(context.student(arch, 0), search.data.task)
    views = {view for term in losses.make_terms(settings["losses"], student, shapes) for view in term.teacher_views}
    per_image = bytes_per_image(sorted(views), shapes.classes, dict(shapes.maps), settings["batch_size"])
    gigabytes = per_image * len(search.data.train) * (stage.epochs or 0) / 1e9
    if gigabytes <= run.recipe.teacher_cache_gb:
        return replace(teacher, outputs=run.path.resolve() / "teacher-outputs")
    run.ledger.append("note", stage=stage.name, text=(
        f"the teacher's outputs ({', '.join(sorted(views))}) would take {gigabytes:.1f} GB, more than teacher_cache_gb "
        f"{run.recipe.teacher_cache_gb:g}: they are computed for each student"))  # fmt: skip
    return teacher


def _keep_best(run: Run, search: Search) -> None:
    """Write the best student's weights and description to `best/`."""
    index, stage = len(run.recipe.stages) - 1, run.recipe.stages[-1]
    if stage.trial != "distill":
        return
    book = search.book(stage, None)
    for event in run.events():
        if event.get("stage") == stage.name:
            book.apply(event)
    best = book.best()[0]
    trial = max(book.taught(best), key=lambda trial: trial.metrics["objective"])
    proposal = book.proposals[best]
    export.save_student(
        checkpoint_path(stage_folder(run.path, index, stage), trial.number),
        run.path / "best",
        {
            "space": search.space.name,
            "arch": dict(proposal.arch),
            "options": dict(search.space.options),
            "params": dict(proposal.params),
            "cost": dict(proposal.cost),
            "seed": trial.seed,
            "metrics": dict(trial.metrics),
            "classes": list(search.data.classes),
            "mean": list(search.data.mean),
            "std": list(search.data.std),
            "task": asdict(search.data.task),
        },
    )


def _check_stage(stage: StageSpec, space: Space, recipe: Recipe) -> None:
    """Raises `BadInput` for a mistake in one stage that shows without data."""
    settings = stage.settings() if stage.trial == "distill" else {}
    hyper = domains_in(settings) if settings else {}
    param_space = {**space.param_space, **hyper}
    where = f"stage {stage.name!r}: "
    try:
        samplers.check_settings(stage.sampler.name, stage.sampler.settings, param_space, max(1, len(stage.pareto)))
        schedulers.check_settings(stage.scheduler.name, stage.scheduler.settings, stage.epochs or 0)
        searches = stage.scheduler.name != "pbt" and stage.sampler.name != "grid" and recipe.student is None
        if stage is recipe.stages[0] and stage.trials is None and searches:
            raise BadInput("trials says how many candidates the first stage proposes; it is missing")
        if stage.scores is not None:
            scores.check_settings(stage.scores)
            _check_objective(stage, tuple(scores.terms_of(stage.scores)))
            if recipe.teacher is None and (
                taught := [name for name in stage.scores if scores.SCORES[name].needs_teacher]
            ):
                raise BadInput(f"score {taught[0]!r} needs a teacher; the recipe has none")
        else:
            drawn = _drawn(stage, generator("check"))
            losses.check_settings(drawn["losses"])
            _settings_of(OptimizerConfig, "optimizer", drawn["optimizer"])
            _settings_of(Augment, "augment", drawn["augment"])
            if not isinstance(drawn["batch_size"], int) or drawn["batch_size"] < 2:
                raise BadInput(f"batch_size must be a whole number from 2, not {drawn['batch_size']!r}")
            _check_objective(stage, METRICS if recipe.teacher else METRICS[:1])
            if stage.scheduler.name == "pbt" and not hyper:
                raise BadInput("pbt tunes hyperparameters, and no value in losses or optimizer is a domain")
            if stage.scheduler.name == "pbt" and recipe.student is None and stage is recipe.stages[0]:
                raise BadInput("pbt works on one student: give `student`, or a stage before it")
    except BadInput as error:
        raise BadInput(where + str(error)) from error


COSTS = ("params", "flops", "bytes")
METRICS = ("valid_accuracy", "teacher_similarity", "agreement", "kl", "cka", "rdm")


def _check_objective(stage: StageSpec, known: tuple[str, ...]) -> None:
    for name in stage.pareto:
        if name not in (*known, *COSTS):
            raise unknown("column of pareto", name, (*known, *COSTS))
    for name in stage.objective or {}:
        if name not in known and not (stage.scores and name in stage.scores):
            raise unknown("metric of the objective", name, known)


_KINDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a name"}


def _settings_of(kind: type, what: str, given: Mapping[str, Any]) -> None:
    types = {field.name: field.type for field in fields(kind)}
    for name, value in given.items():
        if name not in types:
            raise unknown(f"setting of {what}", name, types)
        takes = (int, float) if types[name] is float else (types[name],)
        if type(value) not in takes:
            raise BadInput(f"{what}: {name} must be {_KINDS[types[name]]}, not {value!r}")
    try:
        kind(**given)
    except TypeError as error:
        raise BadInput(f"{what}: {error}") from error


def _drawn(stage: StageSpec, rng: np.random.Generator) -> dict[str, Any]:
    """A stage's settings with a value for each domain."""
    return resolved(stage.settings(), sample(domains_in(stage.settings()), rng))
