"""An extended search on a real, local Ray ends bit for bit like one that was so long from the start."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

import analysis
import orchestrator
from orchestrator.recipe import Recipe

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(200)]

RECIPE = {
    "name": "tiny",
    "task": {"dataset": "digits", "subset": 60, "valid": 60, "test_subset": 60},
    "teacher": {"space": "resnet", "arch": {"depth1": 1, "depth2": 1, "depth3": 1, "width": 4}, "train_epochs": 1},
    "space": {"name": "resnet", "choices": {"depth1": [1], "depth2": [1], "depth3": [1], "width": [2, 3, 4]}},
    "workers": 1,
    "stages": [
        {
            "name": "only",
            "trial": "distill",
            "epochs": 3,
            "trials": 3,
            "losses": {"cross_entropy": 0.1, "kd": {"weight": 0.9, "temperature": {"choice": [2, 4, 8]}}},
            "sampler": {"name": "tpe", "n_startup_trials": 2},
            "scheduler": {"name": "asha", "min_epochs": 1, "reduction_factor": 2},
        }
    ],
}
RESULT = ["number", "hash", "seed", "status", "objective", "test_accuracy", "epochs"]
CURVE = ["number", "epoch", "objective", "train_loss", "kl"]


def test_an_extended_search_ends_like_a_whole_one(ray_local: None, tmp_path: Path) -> None:
    before = orchestrator.run(Recipe.parse(RECIPE), storage=tmp_path, name="before", progress=False)
    more = {"stages.only.trials": 6}
    whole = orchestrator.run(Recipe.parse(RECIPE), overrides=more, storage=tmp_path, name="whole", progress=False)
    extended = orchestrator.run(
        before.path, overrides=more, storage=tmp_path, name="extended", progress=False, start_from=before.path
    )
    pd.testing.assert_frame_equal(extended.trials[RESULT], whole.trials[RESULT], check_exact=True)
    pd.testing.assert_frame_equal(extended.epochs[CURVE], whole.epochs[CURVE], check_exact=True)
    assert (extended.trials["seconds"] > 0).tolist() == [False] * 3 + [True] * 3  # what was known took no time
    events = list(analysis.events(extended.path))
    [teacher] = [event for event in events if event["event"] == "teacher"]
    assert (teacher["from"], teacher["seconds"]) == ("before", 0.0)
    assert [event["text"] for event in events if event["event"] == "note"] == ["3 of 3 trials taken over from before"]
    weights = [(results.path / "best" / "weights.safetensors").read_bytes() for results in (extended, whole)]
    assert weights[0] == weights[1]
    shutil.rmtree(before.path)
    assert orchestrator.resume(extended.path, progress=False).finished
