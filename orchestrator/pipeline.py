"""A search from its recipe to its ranked students: the teacher, the stages in order, and who goes on."""

import time
from collections.abc import Mapping
from typing import Any

from orchestrator import outcome, teaching
from orchestrator.book import Proposal
from orchestrator.ledger import Event, Ledger
from orchestrator.prepared import Search
from orchestrator.proposers import rivals_of
from orchestrator.run_directory import Run, RunFailed
from orchestrator.specs import StageSpec
from orchestrator.stage import Interrupted, StageFailed, StageRun, stage_folder
from spaces import BadInput
from spaces.seeding import generator
from trainables.trial import StageContext, TeacherContext


def execute(run: Run, search: Search, on_change: Any) -> None:
    """Run all that is left of a run. Ray is up.

    Raises:
        Interrupted, RunFailed: it can be resumed.
    """
    started = time.monotonic()
    try:
        taught_by = {name: teaching.obtained(run, search, name) for name in search.teachers}
        survivors: list[Proposal] | None = None
        for index, stage in enumerate(run.recipe.stages):
            survivors = _stage(run, search, index, stage, taught_by, survivors, on_change)
            run.write_tables()
    except StageFailed as error:
        run.write_tables()
        raise RunFailed(str(error)) from error
    except Interrupted:
        run.write_tables()
        raise
    outcome.keep(run, search)
    run.ledger.append("run_end", seconds=time.monotonic() - started)
    run.write_tables()


def _stage(
    run: Run,
    search: Search,
    index: int,
    stage: StageSpec,
    taught_by: Mapping[str, TeacherContext],
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
        context = _context(run, search, index, stage, taught_by, last)
        proposer = search.proposer(stage, _joined_by_rivals(run, search, stage, survivors))
        resources, workers = run.recipe.resources, run.recipe.workers
        StageRun(stage, book, proposer, context, resources, workers, last, on_change).run()
    assert book.kept is not None
    return [book.proposals[p] for p in book.kept]


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
        ensemble=stage.ensemble,
    )


def _context(
    run: Run, search: Search, index: int, stage: StageSpec, taught_by: Mapping[str, TeacherContext], last: bool
) -> StageContext:
    folder = run.path.resolve() / stage_folder(index, stage)
    folder.mkdir(parents=True, exist_ok=True)
    objective = search.book(stage, None).weights
    if "teacher_guidance" in stage.pareto:
        objective = {"teacher_guidance": 0.0, **objective}  # it is measured where the objective names it
    return StageContext(
        data=search.data,
        space=search.space,
        teachers=teaching.of_stage(stage, taught_by, run, search),
        seed=run.recipe.seed,
        folder=folder,
        remote=run.store.within(stage_folder(index, stage)).root if run.store.remote else None,
        gpu=run.recipe.resources.gpu > 0,
        epochs=stage.epochs or 0,
        objective=objective if stage.trial == "distill" else None,
        test=last and stage.trial == "distill",
        scores=stage.scores,
        score_batch=stage.score_batch,
    )
