"""A whole search in a real S3 server: killed, gone on with on another machine, and equal to one on a local disk."""

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml
from object_store import BUCKET, ObjectStore, serving

import analysis
import orchestrator
from orchestrator.mirror import LEASE
from orchestrator.recipe import Recipe
from trainables.trial import checkpoint_name

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(480)]

TINY = {
    "name": "tiny",
    "task": {"dataset": "digits", "subset": 100},
    "teacher": {"space": "resnet", "arch": {"depth1": 1, "depth2": 1, "depth3": 1, "width": 8}, "train_epochs": 2},
    "space": {"name": "resnet", "choices": {"depth1": [1, 2], "depth2": [1], "depth3": [1], "width": [2, 3]}},
    "workers": 1,
    "stages": [
        {"name": "score", "trial": "score", "scores": ["snip"], "trials": 4, "keep": 2},
        {"name": "final", "trial": "distill", "epochs": 6, "losses": {"cross_entropy": 0.5, "kd": 0.5}, "keep": 1},
    ],
}
SAME = ["stage", "number", "hash", "seed", "control", "status", "objective", "test_accuracy", "epochs"]
CURVE = ["stage", "number", "epoch", "objective", "train_loss", "kl"]


@pytest.fixture(scope="module")
def s3() -> Iterator[ObjectStore]:
    with serving() as server:
        yield server


def dux(*arguments: str, cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "orchestrator.cli", *arguments]
    environ = {**os.environ, "DUX_CACHE": str(cache), "COLUMNS": "200"}
    return subprocess.Popen(
        command, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def killed_in_the_last_stage(s3: ObjectStore, recipe: Path, cache: Path) -> None:
    """Begin the search; kill it with all its processes once a checkpoint of its last stage has arrived."""
    child = dux("run", str(recipe), "--storage", s3.address(), "--name", "a", cache=cache)
    until = time.monotonic() + 150
    while not any(method == "PUT" and "/02-final/checkpoints/" in path for method, path in s3.requests):
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()


@pytest.fixture(scope="module")
def runs(ray_local: None, s3: ObjectStore, tmp_path_factory: pytest.TempPathFactory):
    """The results of the whole run on a local disk, and of the killed one in the store; and how that went on."""
    base = tmp_path_factory.mktemp("s3")
    whole = orchestrator.run(Recipe.parse(TINY), storage=base / "runs", name="a", progress=False)
    (base / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    killed_in_the_last_stage(s3, base / "tiny.yaml", base / "first")
    before = analysis.load(s3.address("a"))
    shutil.rmtree(base / "first" / "runs")
    s3.client.delete_object(Bucket=BUCKET, Key=f"runs/a/{LEASE}")  # instead of waiting until it expires
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DUX_CACHE", str(base / "second"))
        resumed = orchestrator.resume(s3.address("a"), progress=False)
    return whole, before, resumed


def test_a_search_killed_and_gone_on_with_elsewhere_ends_like_one_on_a_local_disk(runs, s3):
    whole, before, resumed = runs
    assert not before.finished
    assert resumed.finished
    assert len(before.epochs) < len(resumed.epochs)
    found = analysis.load(s3.address("a"))  # as it lies in the store
    assert found.finished
    for results in (resumed, found):
        assert str(results.path) == s3.address("a")
        pd.testing.assert_frame_equal(results.trials[SAME], whole.trials[SAME])
        pd.testing.assert_frame_equal(results.epochs[CURVE], whole.epochs[CURVE])
    pd.testing.assert_frame_equal(
        analysis.curves(found).drop(columns="run"), analysis.curves(whole).drop(columns="run")
    )


def test_what_lies_in_the_store_at_the_end(runs, s3):
    whole, _, _ = runs
    there = {key.removeprefix("runs/a/") for key in s3.keys("runs/a/") if not key.endswith("/")}
    local = {str(path.relative_to(whole.path)) for path in whole.path.rglob("*") if path.is_file()}
    assert {name for name in there if not name.startswith("ledger/")} == local - {"lock", "ledger.jsonl"}
    assert s3.get("runs/a/best/weights.safetensors") == (whole.path / "best" / "weights.safetensors").read_bytes()


def test_the_commands_take_the_address(runs, s3, tmp_path):
    whole, _, _ = runs
    children = [dux(*command, s3.address("a"), cache=tmp_path) for command in (["status"], ["rank", "--format", "csv"])]
    (status, failed), (ranked, also_failed) = (child.communicate(timeout=120) for child in children)
    assert (failed, also_failed) == ("", "")
    assert "finished" in status
    assert pd.read_csv(io.StringIO(ranked))["hash"].tolist() == analysis.rank(whole)["hash"].tolist()
    assert list(tmp_path.iterdir()) == []  # looking leaves nothing here


def test_a_checkpoint_that_is_newer_than_the_ledger_gives_the_same_curve(runs, s3, ray_local, tmp_path, monkeypatch):
    whole, _, _ = runs
    number = int(whole.trials[whole.trials.stage == "final"]["number"].iloc[-1])
    for key in s3.keys("runs/a/"):
        s3.client.copy_object(
            Bucket=BUCKET, Key=key.replace("runs/a/", "runs/b/"), CopySource={"Bucket": BUCKET, "Key": key}
        )
    parts = sorted(s3.keys("runs/b/ledger/"))
    lines = b"".join(s3.get(part) for part in parts).splitlines(keepends=True)
    of_last = [
        place
        for place, line in enumerate(lines)
        if b'"report"' in line and b'"final"' in line and f'"number":{number},'.encode() in line
    ]
    s3.put(parts[0], b"".join(lines[: of_last[1] + 1]))  # two of its six epochs are known
    for part in parts[1:]:
        s3.client.delete_object(Bucket=BUCKET, Key=part)
    assert f"runs/b/stages/02-final/{checkpoint_name(number)}" in s3.keys("runs/b/")  # of all six
    monkeypatch.setenv("DUX_CACHE", str(tmp_path))
    again = orchestrator.resume(s3.address("b"), progress=False)
    pd.testing.assert_frame_equal(again.epochs[CURVE], whole.epochs[CURVE])
