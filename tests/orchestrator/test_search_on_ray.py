"""Whole searches on a real, local Ray: what they leave behind, and that an interrupted one ends like a whole one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import analysis
import orchestrator
import spaces
from orchestrator.errors import RunFailed
from orchestrator.launch import launch
from orchestrator.recipe import Recipe
from trainables.contracts import Member
from trainables.data import DataConfig, load
from trainables.evaluate import accuracy, predict

pytestmark = [pytest.mark.ray, pytest.mark.timeout(480)]

TINY = {
    "name": "tiny",
    "task": {"dataset": "digits", "subset": 100},
    "teacher": {"space": "resnet", "arch": {"depth1": 1, "depth2": 1, "depth3": 1, "width": 8}, "train_epochs": 2},
    "space": {"name": "resnet", "choices": {"depth1": [1, 2], "depth2": [1, 2], "depth3": [1], "width": [2, 3, 4]}},
    "limits": {"params": 9000},
    "stages": [
        {
            "name": "score",
            "trial": "score",
            "scores": ["diswot", "snip", "params"],
            "sampler": {"name": "evolution", "population": 4, "sample_size": 2},
            "trials": 9,
            "keep": 4,
        },
        {
            "name": "short",
            "trial": "distill",
            "epochs": 3,
            "losses": {"cross_entropy": 0.1, "kd": {"weight": 0.9, "temperature": {"choice": [2, 4, 8]}}},
            "augment": {"crop": 1},
            "objective": {"valid_accuracy": 1.0, "teacher_similarity": 0.25},
            "sampler": "tpe",
            "scheduler": {"name": "asha", "min_epochs": 1, "reduction_factor": 2},
            "keep": 2,
        },
        {"name": "final", "trial": "distill", "epochs": 3, "seeds": 2, "control": True},
    ],
}
RESULT = ["stage", "number", "hash", "seed", "control", "status", "objective", "test_accuracy", "epochs"]
CURVE = ["stage", "number", "epoch", "objective", "train_loss", "kl"]


@pytest.fixture(scope="module")
def finished(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> analysis.Results:
    """One whole tiny search, with one worker, so that it can be compared."""
    recipe = Recipe.parse({**TINY, "workers": 1})
    return orchestrator.run(recipe, storage=tmp_path_factory.mktemp("runs"), name="whole", progress=False)


def test_a_search_goes_from_scores_to_a_ranked_table(finished: analysis.Results) -> None:
    trials = finished.trials
    assert finished.finished
    assert list(finished.stages["stage"]) == ["score", "short", "final"]
    assert trials.groupby("stage").size().to_dict() == {"score": 9, "short": 4, "final": 2 * 2 * 2}
    assert set(trials[trials.stage == "final"].status) == {"completed"}
    assert trials.params.max() <= 9000
    table = analysis.rank(finished)
    assert len(table) == 2
    assert table["valid_accuracy"].is_monotonic_decreasing
    assert table[["test_accuracy", "test_accuracy_alone", "teacher_similarity"]].notna().all(axis=None)
    assert set(table["hash"]) <= set(trials[trials.stage == "short"].hash) <= set(trials[trials.stage == "score"].hash)


def test_a_worker_stays_from_the_first_stage_to_the_last(finished: analysis.Results) -> None:
    assert finished.epochs.groupby("stage")["worker"].nunique().to_dict() == {"score": 1, "short": 1, "final": 1}
    assert finished.epochs["worker"].nunique() == 1


def test_no_candidate_is_scored_or_distilled_twice(finished: analysis.Results) -> None:
    searched = finished.trials[finished.trials.stage != "final"]
    assert not searched.duplicated(["stage", "hash"]).any()


def test_the_test_split_is_looked_at_once_at_the_end(finished: analysis.Results) -> None:
    seen = finished.epochs[finished.epochs["test_accuracy"].notna()]
    assert set(seen.stage) == {"final"}
    assert set(seen.epoch) == {3}
    assert len(seen) == 8


def test_the_teacher_sees_each_epoch_once_whatever_the_number_of_students(finished: analysis.Results) -> None:
    # Both distillation stages share seed, batches and augmentation, so three epochs serve them both.
    assert finished.epochs["teacher_passes"].sum() == 3
    assert len(finished.epochs[finished.epochs.epoch > 0]) > 20


def test_survivors_keep_the_temperature_that_was_found(finished: analysis.Results) -> None:
    trials = finished.trials.set_index("hash")["set.losses.kd.temperature"]
    for name in analysis.rank(finished)["hash"]:
        assert trials[name].dropna().nunique() == 1


def test_the_best_student_is_what_it_was_reported_to_be(finished: analysis.Results) -> None:
    best = json.loads((finished.path / "best" / "student.json").read_text())
    assert best["cost"]["deployed"] == {name: best["cost"][name] for name in ("params", "flops", "bytes")}
    data = load(DataConfig(dataset="digits", subset=100))
    space = spaces.get(best["space"])
    net = space.build(best["arch"], data.task)
    net.load_state_dict(load_file(finished.path / "best" / "weights.safetensors"))
    student = Member(net, space.taps, space.head, best["mean"], best["std"])
    found = accuracy(predict(student, data.valid, "cpu").logits, data.valid.labels)
    assert found == best["metrics"]["valid_accuracy"]
    assert analysis.rank(finished)["hash"][0] == space.restrict({}).hash(best["arch"])


def test_a_finished_run_is_not_run_again(finished: analysis.Results) -> None:
    before = (finished.path / "ledger.jsonl").read_bytes()
    again = orchestrator.resume(finished.path, progress=False)
    assert again.finished
    assert (finished.path / "ledger.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_lost_worker_costs_nothing_but_its_epoch(ray_local: None, tmp_path: Path) -> None:
    """Each worker is killed once in mid-trial; Tune starts another, which goes on from the checkpoint."""
    stage = {"name": "only", "trial": "distill", "epochs": 12, "trials": 1, "sampler": "random"}
    recipe = Recipe.parse({**TINY, "stages": [stage], "workers": 1})
    whole = orchestrator.run(recipe, storage=tmp_path, name="whole", progress=False)
    killer = subprocess.Popen([sys.executable, "-c", KILL_A_WORKER, str(tmp_path / "cut" / "ledger.jsonl")])
    cut = orchestrator.run(recipe, storage=tmp_path, name="cut", progress=False)
    assert killer.wait(10) == 0
    assert cut.epochs["worker"].nunique() == 2
    pd.testing.assert_frame_equal(cut.epochs[CURVE], whole.epochs[CURVE], check_exact=True)


KILL_A_WORKER = """
import json, os, signal, sys, time
path, deadline = sys.argv[1], time.monotonic() + 100
while time.monotonic() < deadline:
    time.sleep(0.01)
    text = open(path).read() if os.path.exists(path) else ""
    reports = [line for line in text.split("\\n")[:-1] if '"report"' in line]
    if len(reports) >= 3:
        os.kill(int(json.loads(reports[-1])["worker"].split(":")[1]), signal.SIGKILL)
        sys.exit(0)
sys.exit("no worker reported")
"""


def test_a_non_finite_loss_fails_its_trial_and_the_search_goes_on(ray_local: None, tmp_path: Path) -> None:
    stage = {
        "name": "only",
        "trial": "distill",
        "epochs": 2,
        "trials": 4,
        "sampler": "grid",
        "optimizer": {"learning_rate": {"choice": [0.1, 1e30]}},
    }
    recipe = Recipe.parse({**TINY, "student": {"depth1": 1, "depth2": 1, "depth3": 1, "width": 3}, "stages": [stage]})
    results = orchestrator.run(recipe, storage=tmp_path, name="half", progress=False)
    by_rate = results.trials.set_index("set.optimizer.learning_rate")
    assert by_rate.loc[0.1, "status"] == "completed"
    assert by_rate.loc[1e30, "status"] == "failed"
    assert "non-finite loss in epoch " in by_rate.loc[1e30, "reason"]


@pytest.mark.slow
def test_a_stage_of_which_all_fails_ends_the_run_with_the_reason(ray_local: None, tmp_path: Path) -> None:
    stage = {"name": "only", "trial": "distill", "epochs": 2, "trials": 2, "optimizer": {"learning_rate": 1e30}}
    with pytest.raises(RunFailed, match=r"all 2 trials failed; non-finite loss in epoch \d"):
        orchestrator.run(Recipe.parse({**TINY, "stages": [stage]}), storage=tmp_path, name="none", progress=False)
    assert (analysis.load(tmp_path / "none").trials["status"] == "failed").all()


def test_population_based_training_copies_the_better(ray_local: None, tmp_path: Path) -> None:
    stage = {
        "name": "population",
        "trial": "distill",
        "epochs": 6,
        "batch_size": 16,
        "scheduler": {"name": "pbt", "population": 4, "interval": 2},
        "optimizer": {"learning_rate": {"loguniform": [1e-6, 1.0]}},
    }
    student = {"depth1": 1, "depth2": 1, "depth3": 1, "width": 4}
    recipe = Recipe.parse({**TINY, "student": student, "stages": [stage]})
    results = launch(recipe, {}, tmp_path, "pbt", None, False)
    trials = results.trials
    assert len(trials) == 4 * 3
    assert trials.groupby("start_epoch").size().to_dict() == {0: 4, 2: 4, 4: 4}
    copied = trials[(trials.start_epoch > 0) & (trials.parent % 4 != trials.number % 4)]
    assert len(copied) >= 1
    rates = trials["set.optimizer.learning_rate"]
    assert rates.between(1e-6, 1.0).all()
    # A segment goes on from its parent's weights: its losses are below what the same epochs give from scratch.
    losses = results.epochs.groupby("epoch")["train_loss"].min()
    assert losses[6] < losses[4] < losses[2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_students_share_a_gpu(tmp_path: Path) -> None:
    recipe = Recipe.parse({**TINY, "resources": {"cpu": 1, "gpu": 0.5}})
    results = orchestrator.run(recipe, storage=tmp_path, name="gpu", progress=False)
    assert results.finished
    assert os.path.exists(results.path / "best" / "weights.safetensors")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
def test_a_full_disk_is_one_line_and_the_run_can_be_resumed(ray_local: None, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1600k", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        stage = {"name": "only", "trial": "distill", "epochs": 2, "trials": 2}
        recipe = Recipe.parse({**TINY, "stages": [stage], "workers": 1})
        ballast = disk / "ballast"
        ballast.write_bytes(b"0" * 1_350_000)
        with pytest.raises(RunFailed, match=r"No space left on device; .* dux resume"):
            orchestrator.run(recipe, storage=disk, name="full", progress=False)
        ballast.unlink()
        resumed = orchestrator.resume(disk / "full", progress=False)
        assert list(resumed.trials["status"]) == ["completed"] * 2
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
