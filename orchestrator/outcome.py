"""What a run leaves behind: a table of scores, or its best student."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import analysis
from analysis.ledger import cut_off
from orchestrator.book import Book, Proposal, Trial
from orchestrator.errors import RunFailed
from orchestrator.ledger import Event
from orchestrator.prepared import Search, book_of
from orchestrator.recipe import Recipe, resolved
from orchestrator.run_directory import SCORES, Run
from orchestrator.specs import StageSpec
from orchestrator.stage import stage_folder
from trainables import export
from trainables.checkpoints import checkpoint_name, unpacked
from trainables.files import replacing


def keep(run: Run, search: Search | None) -> None:
    """Write what the last stage leaves behind, a table of scores or the best student, and note it in the ledger.

    Args:
        search: None for a replay, which trains nothing and has no student to leave behind.
    """
    stage = run.recipe.stages[-1]
    if stage.trial == "distill" and search is None:
        files = []
    elif stage.trial == "distill":
        assert search is not None
        _keep_best(run, search, len(run.recipe.stages) - 1, stage)
        files = sorted(path for path in (run.path / "best").iterdir() if path.is_file())
    else:
        run.write_scores(stage.name)
        files = [run.path / SCORES]
    digests = {str(file.relative_to(run.path)): _sha256(file) for file in files}
    if digests != _noted(run.path):
        run.ledger.append("kept", files=digests)


def damaged(path: Path) -> bool:
    """Whether something that a finished run has left behind is not what it was."""
    noted = _noted(path)
    return noted is None or any(_sha256(path / name) != digest for name, digest in noted.items())


def _noted(path: Path) -> dict[str, str] | None:
    """The digests of what the run has left behind, by name."""
    noted = [event["files"] for event in analysis.events(path, header_only=True) if event["event"] == "kept"]
    return noted[-1] if noted else None


def _sha256(file: Path) -> str | None:
    if not file.is_file():  # a pipe would be read for ever
        return None
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError:
        return None


def _deployed(metrics: Mapping[str, float]) -> dict[str, int]:
    begin = "deployed_"
    return {name.removeprefix(begin): int(value) for name, value in metrics.items() if name.startswith(begin)}


def replayed(recipe: Recipe, stage: StageSpec, events: Iterable[Event]) -> Book:
    """The book of a stage, as a run's events tell it."""
    book = book_of(recipe, stage, None)
    for event in events:
        if event.get("stage") == stage.name:
            book.apply(event)
    return book


def best_trial(book: Book, proposal: int) -> Trial:
    """Of a proposal's finished trials with the teacher the best by the objective."""
    finished = [trial for trial in book.taught(proposal) if trial.status in ("completed", "stopped")]
    return max(finished, key=lambda trial: trial.metrics["objective"])


def description(search: Search, stage: StageSpec, proposal: Proposal, trial: Trial) -> dict[str, Any]:
    """What a student's weights belong to, and what they have reached."""
    return {
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
    }


def _keep_best(run: Run, search: Search, index: int, stage: StageSpec) -> None:
    """Write the best student's weights and description to `best/`, and the file that defines its space."""
    book = replayed(run.recipe, stage, run.events())
    best = book.best()[0]
    trial = best_trial(book, best)
    state = _checkpoint(run, index, stage, trial)
    export.save_student(state, run.path / "best", description(search, stage, book.proposals[best], trial))
    if run.recipe.space.file:
        source = Path(run.recipe.space.file)
        with replacing(run.path / "best" / source.name) as temporary:
            temporary.write_bytes(source.read_bytes())


def _checkpoint(run: Run, index: int, stage: StageSpec, trial: Trial) -> dict[str, Any]:
    """Where a trial has ended.

    Raises:
        RunFailed: that is lost; the line says how to have it computed again.
    """
    store = run.store.within(stage_folder(index, stage))
    state = unpacked(store.read(checkpoint_name(trial.number)), None, "cpu")
    if state is None:
        events = enumerate(run.events(), 1)
        of_trial = (
            line for line, event in events if (event.get("stage"), event.get("number")) == (stage.name, trial.number)
        )
        _, line = next(of_trial), next(of_trial)  # its first report: the trial itself stays
        raise RunFailed(
            f"{store.root}/{checkpoint_name(trial.number)} is gone or damaged, and with it the best student; put it "
            f"back, or have it trained again: {cut_off(run.path / 'ledger.jsonl', line)}"
        )
    return state
