"""A run that is there: whether a directory is one, what it began with, and who holds it. No torch, no Ray."""

import fcntl
from pathlib import Path

import analysis
from analysis.ledger import broken
from orchestrator.addresses import Address, is_there
from orchestrator.ledger import Event
from spaces.errors import BadInput


def beginning(folder: Path) -> Event:
    """The first event of a run's ledger.

    Raises:
        BadInput: there is none.
    """
    first = next(analysis.events(folder, header_only=True), None)
    if first is None or first["event"] != "run":
        raise broken(folder / "ledger.jsonl", 1, "not the beginning of a run")
    return first


def check_run(path: Path | Address) -> None:
    """Raises `BadInput` unless `path` is a run's directory, or address."""
    if isinstance(path, Address):
        if not is_there(path):
            raise BadInput(f"{path} is no run: the object store holds none of that name")
        return
    for name in ("recipe.yaml", "ledger.jsonl"):
        if not (path / name).is_file() and not (name == "recipe.yaml" and _has_recipe(path)):
            raise BadInput(f"{path} is no run's directory: it has no {name}")


def _has_recipe(path: Path) -> bool:
    """Whether the ledger tells the recipe, whose file is gone."""
    return (path / "ledger.jsonl").is_file() and not (path / "recipe.yaml").exists() and "resolved" in beginning(path)


def holder(path: Path) -> int | None:
    """The process that holds the run, 0 where the lock does not tell which; None where nobody does."""
    if not (path / "lock").is_file():
        return None
    with open(path / "lock", errors="replace") as file:  # for reading: a run may lie where this user cannot write
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            told = file.read(20)
            return int(told) if told.isdecimal() else 0
    return None
