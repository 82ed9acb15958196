"""What the tests of runs in an object store share."""

from collections.abc import Iterator

import pytest
from object_store import BUCKET, ObjectStore, serving

from analysis.remote import Address, place
from orchestrator import mirror as mirrors
from orchestrator.recipe import Recipe


@pytest.fixture(scope="module")
def s3() -> Iterator[ObjectStore]:
    with serving() as server:
        yield server


@pytest.fixture
def where(s3, tmp_path, monkeypatch) -> Iterator[Address]:
    """The address of a run that is not there, for a machine with an empty cache."""
    monkeypatch.setenv("DUX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mirrors, "HASTE", 0.6)
    yield place(f"s3://{BUCKET}/{tmp_path.name}/runs") / "a"
    s3.fails = lambda environ: None


@pytest.fixture(scope="module")
def quickstart() -> Recipe:
    return Recipe.load("quickstart", {"stages.short.epochs": 2})
