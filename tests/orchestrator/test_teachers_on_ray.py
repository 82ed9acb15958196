"""A teacher that is trained by one of a run's workers, beside scores that need none; and one whose worker dies."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import analysis
import orchestrator
from orchestrator.disk import TUNE
from orchestrator.recipe import Recipe
from trainables import heartbeat

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

RECIPE = {
    "name": "tiny",
    "task": {"dataset": "digits", "subset": 100},
    "teacher": {"space": "resnet", "arch": {"depth1": 1, "depth2": 1, "depth3": 1, "width": 8}, "train_epochs": 30},
    "space": {"name": "resnet", "choices": {"depth1": [1, 2], "depth2": [1, 2], "depth3": [1], "width": [2, 3]}},
    "stages": [
        {"name": "size", "trial": "score", "scores": ["params", "snip"], "objective": {"snip": 1}, "sampler": "grid",
         "trials": 8, "keep": 2},
        {"name": "final", "trial": "distill", "epochs": 2},
    ],
}  # fmt: skip


def run(folder: Path, **changes: Any) -> tuple[analysis.Results, list[dict[str, Any]]]:
    results = orchestrator.run(Recipe.parse({**RECIPE, **changes}), storage=folder, name="a", progress=False)
    assert results.finished
    return results, list(analysis.events(folder / "a"))


def test_a_teacher_comes_while_others_are_scored(ray_local, tmp_path) -> None:
    results, events = run(tmp_path, workers=2)
    kinds = [event["event"] for event in events]
    [taught] = [event for event in events if event["event"] == "teacher"]
    assert kinds.index("stage") < kinds.index("teacher")  # it was not waited for
    assert (taught["source"], taught["seconds"] > 0) == ("trained", True)
    assert len({taught["worker"], *results.epochs["worker"]}) <= 2  # no worker of its own


def test_a_teacher_whose_worker_dies_is_trained_again_by_another(ray_local, tmp_path) -> None:
    killed: list[int] = []

    def kill() -> None:
        """The only worker, while it trains the teacher."""
        while not killed:
            for path in (tmp_path / "a" / TUNE / heartbeat.FOLDER).glob("*"):
                if (beat := heartbeat.read(path)) is not None:
                    time.sleep(0.3)
                    assert '"event":"teacher"' not in (tmp_path / "a" / "ledger.jsonl").read_text()
                    os.kill(beat.pid, signal.SIGKILL)
                    killed.append(beat.pid)
            time.sleep(0.05)

    killing = threading.Thread(target=kill, daemon=True)
    killing.start()
    _, events = run(tmp_path, workers=1, teacher={**RECIPE["teacher"], "train_epochs": 100})
    killing.join(1)
    [pid] = killed
    [taught] = [event for event in events if event["event"] == "teacher"]
    assert taught["source"] == "trained"
    assert not taught["worker"].endswith(f":{pid}")
