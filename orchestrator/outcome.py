"""What a run leaves behind: a table of scores, or its best student."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from orchestrator.prepared import Search
from orchestrator.recipe import resolved
from orchestrator.run_directory import Run, RunFailed
from orchestrator.specs import StageSpec
from orchestrator.stage import stage_folder
from trainables import export
from trainables.files import replacing
from trainables.trial import checkpoint_name


def keep(run: Run, search: Search) -> None:
    """What the last stage leaves behind: a table of scores, or the best student."""
    stage = run.recipe.stages[-1]
    if stage.trial == "distill":
        _keep_best(run, search, len(run.recipe.stages) - 1, stage)
    else:
        run.write_scores(stage.name)


def _deployed(metrics: Mapping[str, float]) -> dict[str, int]:
    begin = "deployed_"
    return {name.removeprefix(begin): int(value) for name, value in metrics.items() if name.startswith(begin)}


def _keep_best(run: Run, search: Search, index: int, stage: StageSpec) -> None:
    """Write the best student's weights and description to `best/`, and the file that defines its space."""
    book = search.book(stage, None)
    for event in run.events():
        if event.get("stage") == stage.name:
            book.apply(event)
    best = book.best()[0]
    trial = max(book.taught(best), key=lambda trial: trial.metrics["objective"])
    proposal = book.proposals[best]
    checkpoint = run.store.within(stage_folder(index, stage)).read(checkpoint_name(trial.number))
    if checkpoint is None:
        raise RunFailed(f"the weights of the best student, trial {trial.number} of stage {stage.name!r}, are gone")
    export.save_student(
        checkpoint,
        run.path / "best",
        {
            "space": search.space.name,
            "arch": dict(proposal.arch),
            "options": dict(search.space.options),
            "params": dict(proposal.params),
            "regime": resolved(stage.settings(), proposal.params)["regime"],
            "cost": {**proposal.cost, "deployed": _deployed(trial.metrics)},
            "seed": trial.seed,
            "metrics": dict(trial.metrics),
            "classes": list(search.data.classes),
            "mean": list(search.data.mean),
            "std": list(search.data.std),
            "task": asdict(search.data.task),
        },
    )
    if run.recipe.space.file:
        source = Path(run.recipe.space.file)
        with replacing(run.path / "best" / source.name) as temporary:
            temporary.write_bytes(source.read_bytes())
