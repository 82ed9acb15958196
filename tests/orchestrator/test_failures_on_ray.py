"""Failing trials on a real, local Ray: a worker that dies, memory that runs out, a search of which everything fails."""

import json
from pathlib import Path
from typing import Any

import pytest

import analysis
import orchestrator
from orchestrator.errors import RunFailed
from orchestrator.recipe import Recipe

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(240)]

SPACE = """
import os, signal, sys
from ray import tune
from torch import nn
PARAM_SPACE = {"width": tune.choice([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])}
def build(arch, task):
    if sys.argv[0].endswith("default_worker.py"):
        TROUBLE
    return nn.Sequential(nn.Flatten(), nn.Linear(task.image_size**2, arch["width"]), nn.Linear(arch["width"], 10))
"""
ONCE = "if arch['width'] == 1 and not os.path.exists(MARK): open(MARK, 'w').close(); raise MemoryError"


def recipe(folder: Path, trouble: str, stage: dict[str, Any], **keys: Any) -> Recipe:
    (folder / "own.py").write_text(SPACE.replace("TROUBLE", trouble))
    task = {"dataset": "digits", "subset": 100, "valid": 40, "test_subset": 40}
    space = {"file": str(folder / "own.py")}
    return Recipe.parse({"name": "r", "task": task, "space": space, "workers": 1, "stages": [stage], **keys})


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    return [event for event in found if event["event"] == kind]


def test_a_candidate_that_kills_its_worker_takes_no_other_with_it(ray_local: None, tmp_path: Path) -> None:
    stage = {"name": "only", "trial": "score", "scores": ["params", "l2_norm"], "sampler": "grid", "trials": 12}
    given = recipe(tmp_path, "if arch['width'] == 5: os.kill(os.getpid(), signal.SIGKILL)", stage, max_failures=0)
    trials = orchestrator.run(given, storage=tmp_path, name="killed", progress=False).trials.set_index("arch.width")
    assert trials.loc[5, ["status", "reason"]].tolist() == ["failed", "its worker was killed"]
    assert trials.loc[5, "lost"] == 2  # with others, and alone
    assert (trials.drop(5)["status"] == "completed").all()
    assert trials.drop(5)["lost"].max() == 1


def test_a_search_of_which_everything_fails_stops_early_and_goes_on_once_mended(
    ray_local: None, tmp_path: Path
) -> None:
    stage = {"name": "only", "trial": "distill", "epochs": 1, "trials": 12, "sampler": "grid"}
    given = recipe(tmp_path, "raise ValueError(f'no such width {arch}')", stage)
    run = tmp_path / "failing"
    with pytest.raises(RunFailed) as failed:
        orchestrator.run(given, storage=tmp_path, name="failing", progress=False)
    said = str(failed.value)
    assert said.startswith("stage 'only': all 10 trials failed; ")
    assert "build fails for width=" in said
    assert said.endswith(f"dux resume {run} --retry-failed")
    before = len(events(run, "trial"))
    with pytest.raises(RunFailed) as again:
        orchestrator.resume(run, progress=False)
    assert str(again.value) == said
    assert (len(events(run, "trial")), len(events(run, "end"))) == (before, 10)
    (run / "own.py").write_text(SPACE.replace("TROUBLE", ONCE.replace("MARK", repr(str(tmp_path / "mark")))))
    trials = orchestrator.resume(run, progress=False, retry_failed=True).trials
    assert len(events(run, "retry")) == 10
    assert list(trials["status"]) == ["completed"] * 12
    assert trials["reason"].isna().all()
    [lost] = events(run, "lost")
    assert "MemoryError" in lost["reason"]
    assert analysis.load(run).finished
