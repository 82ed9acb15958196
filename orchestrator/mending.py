"""Before a run is taken up, and after it has finished: is its directory whole, and what can be brought back?"""

from collections.abc import Sequence
from pathlib import Path

import analysis
from analysis.ledger import broken
from orchestrator import disk, outcome
from orchestrator.addresses import to_resume
from orchestrator.book import Book
from orchestrator.errors import RunFailed
from orchestrator.prepared import Search, book_of
from orchestrator.recipe import Recipe
from orchestrator.run_directory import Run, is_json


def check_ledger(path: Path, recipe: Recipe) -> None:
    """Raises `BadInput`, with the line, unless the ledger tells a whole story of the recipe's stages."""
    books = {stage.name: book_of(recipe, stage, None) for stage in recipe.stages}
    for number, event in enumerate(analysis.events(path), 1):
        try:
            if event.get("stage") in books:
                books[event["stage"]].apply(event)
            if event["event"] == "run_end" and not _can_end(list(books.values())):
                raise ValueError
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            fault = f"the event {event['event']!r} does not follow from the lines before it"
            raise broken(path / "ledger.jsonl", number, fault) from None


def _can_end(books: Sequence[Book]) -> bool:
    """Whether a run of these stages can have ended: they have, and the last one has a best student or scores."""
    last = books[-1]
    return all(book.ended for book in books) and (last.stage.trial == "score" or bool(last.best()))


def restore(path: Path) -> None:
    """Bring back what a finished run has lost: its tables, `best/` or `scores.parquet`, and what Python, torch and
    machine it ran with. Nothing is written where all is well.

    Raises:
        BadInput: a folder lies where a file should, or another process holds the run.
        RunFailed: the best student's weights are gone, or the disk cannot be written to.
    """
    damaged = outcome.damaged(path)
    if not (damaged or disk.leftovers(path)) and analysis.are_current(path) and is_json(path / "environment.json"):
        return
    disk.check_files(path)
    with Run(path) as run:
        disk.sweep(path)
        try:
            if damaged:
                check_ledger(path, run.recipe)
                outcome.keep(run, None if run.recipe.replay else Search.prepare(run.recipe, kept=path))
            run.write_tables()
        except OSError as error:
            where = error.filename or path
            raise RunFailed(f"{where}: {error.strerror}; go on once that is mended: {to_resume(path)}") from error
        disk.clear(path)
