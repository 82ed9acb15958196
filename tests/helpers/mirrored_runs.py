"""Runs in the object store of a test: begun, noted in, refused, seen from another machine. Without Ray."""

import json
import time
from pathlib import Path

import pytest
from object_store import ObjectStore

import analysis
from analysis.remote import Address
from orchestrator.addresses import working_directory
from orchestrator.mirror import LEASE, mirrored
from orchestrator.recipe import Recipe
from orchestrator.run_directory import Run
from spaces.errors import BadInput


def begun(where: Address, recipe: Recipe) -> Path:
    """A run that has been begun, brought over and let go."""
    folder = made(where, recipe)
    enter(where, new=True)
    return folder


def made(where: Address, recipe: Recipe) -> Path:
    """The working directory of a run that has not been brought over."""
    folder = working_directory(where)
    Run.create(recipe, folder.parent, folder.name).close()
    return folder


def elsewhere(monkeypatch, tmp_path, name="other") -> None:
    """From here on this is another machine: its cache is empty."""
    monkeypatch.setenv("DUX_CACHE", str(tmp_path / name))


def note(folder: Path, *texts: str) -> None:
    with Run(folder) as run:
        for text in texts:
            run.ledger.append("note", stage="score", text=text)


def notes(folder: Path | Address) -> list[str]:
    return [event["text"] for event in analysis.events(folder) if event["event"] == "note"]


def refused(action) -> str:
    with pytest.raises((BadInput, analysis.BadInput)) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def enter(where, **how) -> None:
    with mirrored(where, **how):
        pass


def there(s3: ObjectStore, where: Address) -> set[str]:
    prefix = f"{prefix_of(where)}/"
    return {key.removeprefix(prefix) for key in s3.keys(prefix) if not key.endswith("/")}


def prefix_of(where: Address) -> str:
    return where.partition("://")[2].partition("/")[2]


def held_since(s3: ObjectStore, where: Address, seconds: float) -> None:
    """A lease that a killed process of another machine has left."""
    text = json.dumps({"host": "far", "pid": 7, "time": time.time() - seconds, "token": "another"})
    s3.put(f"{prefix_of(where)}/{LEASE}", text.encode())
