"""Searches on a cluster of three nodes: one that is taken away, one that does not see the run, GPUs that are shared."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pandas as pd
import pytest
import three_nodes

import analysis
from orchestrator.recipe import Recipe

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(480)]

STAGE = {"name": "only", "trial": "distill", "epochs": 30, "trials": 3, "sampler": "random"}
TINY = {
    "name": "tiny",
    "task": {"dataset": "digits", "subset": 100},
    "teacher": {"space": "resnet", "arch": {"depth1": 1, "depth2": 1, "depth3": 1, "width": 4}, "train_epochs": 1},
    "space": {"name": "resnet", "choices": {"depth1": [1, 2], "depth2": [1], "depth3": [1], "width": [2, 3, 4]}},
    "stages": [STAGE],
}
RESULT = ["number", "hash", "seed", "status", "objective", "test_accuracy", "epochs"]
CURVE = ["number", "epoch", "objective", "train_loss", "kl"]


class ThreeNodes:
    """The cluster of `three_nodes`, in its process."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, three_nodes.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.address = self._line()
        self.drivers: list[subprocess.Popen[bytes]] = []

    def run(self, recipe: Recipe, folder: Path, name: str) -> "subprocess.Popen[bytes]":
        """`dux run` on the cluster, with its output in NAME.log."""
        (folder / f"{name}.yaml").write_text(recipe.to_yaml())
        where = ["--storage", str(folder), "--name", name, "--address", self.address]
        command = [sys.executable, "-m", "orchestrator.cli", "run", str(folder / f"{name}.yaml"), *where]
        with (folder / f"{name}.log").open("wb") as log:
            self.drivers.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
        return self.drivers[-1]

    def remove_node_of(self, worker: int) -> None:
        """Take away, without a warning, the node that a worker process is on."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"remove {worker}\n")
        self.process.stdin.flush()
        assert self._line() == "removed"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        for driver in self.drivers:
            driver.kill()
            driver.wait()
        self.process.communicate("end\n", timeout=60)


@pytest.fixture(scope="module")
def cluster() -> Iterator[ThreeNodes]:
    found = ThreeNodes()
    yield found
    found.end()


def events(run: Path, kind: str) -> list[dict]:
    try:
        lines = (run / "ledger.jsonl").read_text().split("\n")[:-1]
    except FileNotFoundError:
        return []
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.fixture(scope="module")
def whole(cluster: ThreeNodes, tmp_path_factory: pytest.TempPathFactory) -> analysis.Results:
    """A search on both nodes, undisturbed."""
    folder = tmp_path_factory.mktemp("whole")
    process = cluster.run(Recipe.parse(TINY), folder, "whole")
    assert process.wait(200) == 0, (folder / "whole.log").read_text()
    return analysis.load(folder / "whole")


def test_a_search_uses_all_nodes(whole: analysis.Results) -> None:
    assert whole.finished
    assert events(whole.path, "stage_end")[0]["slots"] == 2
    assert whole.epochs["worker"].nunique() >= 2


def test_gpus_are_shared_and_never_overbooked(cluster: ThreeNodes, tmp_path: Path) -> None:
    """One of the nodes has a (fake) GPU, which holds four trials; the CPUs of both would hold eight."""
    stage = {**STAGE, "epochs": 2, "trials": 6}
    recipe = Recipe.parse({**TINY, "resources": {"cpu": 0.25, "gpu": 0.25}, "stages": [stage]})
    process = cluster.run(recipe, tmp_path, "packed")
    assert process.wait(200) == 0, (tmp_path / "packed.log").read_text()
    assert events(tmp_path / "packed", "stage_end")[0]["slots"] == 4
    spans = [(event["time"] - event["seconds"], event["time"]) for event in events(tmp_path / "packed", "report")]
    at_once = [sum(begin < now < end for begin, end in spans) for now, _ in spans]
    assert 2 <= max(at_once) <= 4
    assert len({event["worker"] for event in events(tmp_path / "packed", "report")}) == 4


@pytest.mark.skipif(os.geteuid() != 0, reason="hiding a folder from one node takes root")
def test_a_node_that_does_not_see_the_run_is_named(cluster: ThreeNodes, tmp_path: Path) -> None:
    hidden = f"mount -t tmpfs tmpfs {tmp_path} && exec ray start --address {cluster.address} --num-cpus 1 --block"
    hiding = ["unshare", "-m", "sh", "-c", hidden]
    node = subprocess.Popen(hiding, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert node.stdout is not None
        said = list(takewhile(lambda line: "Ray runtime started" not in line, node.stdout))
        assert node.poll() is None, said
        process = cluster.run(Recipe.parse(TINY), tmp_path, "apart")
        assert process.wait(200) == 1
        [line] = [line for line in (tmp_path / "apart.log").read_text().splitlines() if line.startswith("dux: ")]
        assert "not every node can take part: node " in line
        assert line.count(f"does not see {tmp_path / 'apart'}") == 1
        assert f"dux resume {tmp_path / 'apart'}" in line
        assert not list((tmp_path / "apart").glob(".nodes*"))
    finally:
        node.terminate()
        node.communicate(timeout=60)


def test_a_node_taken_away_in_mid_trial_costs_the_current_epoch(
    cluster: ThreeNodes, whole: analysis.Results, tmp_path: Path
) -> None:
    process = cluster.run(Recipe.parse(TINY), tmp_path, "cut")
    deadline = time.monotonic() + 150
    while not (seen := [event for event in events(tmp_path / "cut", "report") if event["epoch"] >= 3]):
        assert process.poll() is None, (tmp_path / "cut.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    cluster.remove_node_of(int(seen[0]["worker"].split(":")[1]))
    assert process.wait(200) == 0, (tmp_path / "cut.log").read_text()
    cut = analysis.load(tmp_path / "cut")
    moved = cut.epochs[cut.epochs.number == seen[0]["number"]]
    assert moved["worker"].nunique() == 2
    assert not moved["epoch"].duplicated().any()
    pd.testing.assert_frame_equal(cut.trials[RESULT], whole.trials[RESULT], check_exact=True)
    curves = [run.epochs[CURVE].sort_values(["number", "epoch"], ignore_index=True) for run in (cut, whole)]
    pd.testing.assert_frame_equal(*curves, check_exact=True)
