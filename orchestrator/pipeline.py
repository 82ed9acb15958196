"""A search from its recipe to its ranked students: the teacher, the stages in order, and who goes on."""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from orchestrator import disk, nodes, outcome, reuse
from orchestrator.addresses import to_resume
from orchestrator.book import Book, Proposal
from orchestrator.errors import CannotGoOn, Interrupted, RunFailed
from orchestrator.experiment import Experiment
from orchestrator.ledger import Event, Ledger
from orchestrator.prepared import Search
from orchestrator.proposers import rivals_of
from orchestrator.pruning import Pruner
from orchestrator.recipe import Recipe
from orchestrator.run_directory import Run
from orchestrator.specs import StageSpec
from orchestrator.stage import StageRun, TrialsFailed, quiet, stage_folder
from orchestrator.teaching import Teachers, too_large_to_keep
from orchestrator.watch import watched
from spaces import BadInput
from spaces.seeding import generator
from trainables.context import StageContext, TeacherContext


def execute(run: Run, search: Search, on_change: Any) -> None:
    """Run all that is left of a run. Ray is up.

    Raises:
        Interrupted, RunFailed: it can be resumed.
    """
    started = time.monotonic()
    watched(lambda: nodes.check_nodes(run))
    try:
        _stages(run, search, on_change)
    except CannotGoOn as error:
        run.write_tables()
        how = " --retry-failed" if isinstance(error, TrialsFailed) else ""
        raise RunFailed(f"{error}; go on once that is mended: {to_resume(run.path)}{how}") from error
    except Interrupted:
        run.write_tables()
        raise
    outcome.keep(run, search)
    reuse.finished(run)
    run.ledger.append("run_end", seconds=time.monotonic() - started)
    run.write_tables()
    disk.clear(run.path)


def _stages(run: Run, search: Search, on_change: Any) -> None:
    """Each of the stages with the survivors of the one before; all of them, and the teachers, in the same workers."""
    survivors: list[Proposal] | None = None
    quiet()
    with Experiment(run.path, search.data, run.recipe.resources, run.recipe.workers) as experiment:
        teachers = Teachers(run, search, experiment)
        for index in range(len(run.recipe.stages)):
            survivors = _stage(run, search, index, teachers, experiment, survivors, on_change)
            run.write_tables()
            run.sync()
        teachers.all()  # of a run that none of its stages waits for


def _stage(
    run: Run,
    search: Search,
    index: int,
    teachers: Teachers,
    experiment: Experiment,
    survivors: list[Proposal] | None,
    on_change: Any,
) -> list[Proposal]:
    """Run, go on with, or read back one stage; the proposals that go on."""
    stage = run.recipe.stages[index]
    book = search.book(stage, run.ledger)
    events = [event for event in run.events() if event.get("stage") == stage.name]
    for event in events:
        book.apply(event)
    context = None
    if not book.ended:
        taught_by = teachers.of_stage(stage, len(survivors or search.students))
        context = _context(run, search, index, stage, taught_by)
    if context is not None and not events:
        book.apply(_announce(run.ledger, index, stage, search, context.teachers))
    for proposal in book.proposals:
        if proposal.fault is None:
            search.feasible.know(proposal.hash, proposal.cost)
    on_change.stage(index, book)
    prune = _pruner(run, index, stage, book)
    if context is not None:
        last = index == len(run.recipe.stages) - 1
        context.folder.mkdir(parents=True, exist_ok=True)
        unkept = stage.trial == "distill" and any(teacher.outputs is None for teacher in context.teachers.values())
        if unkept and (why := too_large_to_keep(stage, run, search)):
            run.note(stage.name, why)
        proposer = search.proposer(stage, _joined_by_rivals(run, search, stage, survivors))
        reuse.begin(run, book, proposer, context)
        StageRun(stage, book, proposer, context, experiment, last, on_change, prune).run()
    prune()  # what nobody starts from once the stage has ended, and what a kill left of it
    assert book.kept is not None
    return [book.proposals[p] for p in book.kept]


def _pruner(run: Run, index: int, stage: StageSpec, book: Book) -> Pruner:
    folder, last = stage_folder(index, stage), stage is run.recipe.stages[-1]
    later = None if run.mirror is None else partial(run.mirror.discard, folder)
    return Pruner(book, run.store.within(folder), last, later)


def _joined_by_rivals(
    run: Run, search: Search, stage: StageSpec, survivors: list[Proposal] | None
) -> list[Proposal] | None:
    if stage.rivals is None or survivors is None:
        return survivors
    rng = generator(run.recipe.seed, stage.name, "rivals")
    try:
        rivals = rivals_of(survivors, search.feasible, stage.rivals, rng)
    except BadInput as error:
        raise RunFailed(f"stage {stage.name!r}: {error}; change it in {run.path / 'recipe.yaml'} and resume") from error
    if len(rivals) < stage.rivals.count:
        run.note(stage.name, f"{len(rivals)} rivals instead of {stage.rivals.count}: no more are of that size")
    return [*survivors, *rivals]


def _announce(
    ledger: Ledger, index: int, stage: StageSpec, search: Search, taught_by: Mapping[str, TeacherContext]
) -> Event:
    basis = reuse.basis(search, stage, taught_by, sees_test_images(search.recipe, stage))
    return announce(ledger, index, search.book(stage, None), basis)


def announce(ledger: Ledger, index: int, book: Book, basis: Any) -> Event:
    """Note that a stage begins; `basis` is what its results depend on besides its own specification."""
    stage = book.stage
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
        ensemble=stage.ensemble,
        basis=basis,
    )


def sees_test_images(recipe: Recipe, stage: StageSpec) -> bool:
    """Whether a stage's students are evaluated on the test images: at the very end alone."""
    return stage.name == recipe.stages[-1].name and stage.trial == "distill"


def _context(
    run: Run, search: Search, index: int, stage: StageSpec, teachers: Mapping[str, TeacherContext]
) -> StageContext:
    objective = search.book(stage, None).weights
    if "teacher_guidance" in stage.pareto:
        objective = {"teacher_guidance": 0.0, **objective}  # it is measured where the objective names it
    return StageContext(
        data=search.data,
        space=search.space,
        teachers=teachers,
        seed=run.recipe.seed,
        folder=run.path.resolve() / stage_folder(index, stage),
        remote=run.store.within(stage_folder(index, stage)).root if run.store.remote else None,
        gpu=run.recipe.resources.gpu > 0,
        epochs=stage.epochs or 0,
        objective=objective if stage.trial == "distill" else None,
        test=sees_test_images(run.recipe, stage),
        scores=stage.scores,
        score_batch=stage.score_batch,
        compiled=run.recipe.resources.compile,
    )
