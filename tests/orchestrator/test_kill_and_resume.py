"""A short soak: a whole pipeline, killed while it writes, twice in a row, and in a worker, ends as if nothing had been.

And the soak's judge: what is wrong with a run, it finds.
"""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import orchestrator
from orchestrator.recipe import Recipe

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(480)]

ROOT = Path(__file__).parents[2]


def loaded() -> ModuleType:
    """The benchmark, which is no module of a package."""
    spec = importlib.util.spec_from_file_location("kill_and_resume", ROOT / "benchmarks" / "kill_and_resume.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["kill_and_resume"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


soak = loaded()


@pytest.fixture(scope="module")
def whole(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run; its recipe lies beside it."""
    folder = tmp_path_factory.mktemp("soak")
    recipe = soak.recipe_of("pipeline", 16, 1, folder)
    return orchestrator.run(Recipe.load(recipe), storage=folder, name="whole", progress=False).path


def test_killed_while_writing_and_twice_and_in_a_worker_it_ends_as_if_nothing_had_been(whole: Path) -> None:
    recipe, cut = whole.parent / "recipe.yaml", whole.parent / "cut"
    row = soak.soaked("pipeline", ["writing", "twice", "worker"], recipe, whole, cut, seed=0)
    assert row["kinds"] == {"writing": 1, "twice": 2, "worker": 1}
    assert {name: row[name] for name in soak.COUNTS if name != "epochs_repeated"} == {
        "lost": 0, "doubled": 0, "differing": 0, "beyond": 0, "wrong": 0, "hung": 0, "left": 0,
    }, row  # fmt: skip
    noted = Path(f"{cut}.epochs").read_text().split()
    assert noted.count("saved") == len(set(Path(f"{cut}.epochs").read_text().splitlines())) // 2 > 20


def without(event: dict[str, Any]) -> list[dict[str, Any]]:
    return []


def twice(event: dict[str, Any]) -> list[dict[str, Any]]:
    return [event, {**event, "number": event["number"] + 1000}]


def better(event: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**event, "metrics": {**event["metrics"], "objective": event["metrics"]["objective"] + 1e-12}}]


def deeper(event: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**event, "arch": {**event["arch"], "depth1": 3 - event["arch"]["depth1"]}}]


def turned(event: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**event, "proposals": event["proposals"][::-1]}]


@pytest.mark.parametrize(("kind", "change", "found"), [
    ("end", without, {"lost": 1}),
    ("trial", twice, {"doubled": 1}),
    ("report", better, {"differing": 1}),
    ("keep", turned, {"differing": 1}),
], ids=["lost", "doubled", "differing", "out-of-order"])  # fmt: skip
def test_the_judge_finds_what_differs(
    whole: Path, tmp_path: Path, kind: str, change: Callable[..., list[dict[str, Any]]], found: dict[str, int]
) -> None:
    told = soak.Told.of(whole)
    none = {"lost": 0, "doubled": 0, "differing": 0}
    assert soak.compared(told, soak.Told.of(whole), exact=True, in_order=True) == none
    other = soak.Told.of(changed(whole, tmp_path, "short", kind, change))
    assert {**none, **found}.items() <= soak.compared(told, other, exact=True, in_order=True).items()


def test_the_judge_finds_decisions_that_do_not_follow(whole: Path, tmp_path: Path) -> None:
    assert soak.not_implied(whole) == []
    assert soak.not_implied(changed(whole, tmp_path / "a", "short", "keep", turned))[0] == "short: who was kept"
    assert "short: proposal 0" in soak.not_implied(changed(whole, tmp_path / "b", "short", "trial", deeper))


def changed(
    whole: Path, folder: Path, stage: str, kind: str, change: Callable[[dict[str, Any]], list[dict[str, Any]]]
) -> Path:
    """A copy of the run, with the first event of a kind in a stage replaced."""
    shutil.copytree(whole, folder / "run", ignore=shutil.ignore_patterns("stages", "best"))
    events = [json.loads(line) for line in (whole / "ledger.jsonl").read_text().splitlines()]
    at = next(i for i, event in enumerate(events) if (event.get("stage"), event["event"]) == (stage, kind))
    events[at : at + 1] = change(events[at])
    (folder / "run" / "ledger.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder / "run"
