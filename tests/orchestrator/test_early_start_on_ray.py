"""Ray is started while torch is imported; see `cluster.start_early`."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import ray

from orchestrator import cluster

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
EARLY = """
import sys, time, psutil, ray
from orchestrator import cluster
assert "torch" not in sys.modules
cluster.start_early()
assert "orchestrator.launch" in sys.modules
imported = ray.remote(num_cpus=0)(lambda: {"trainables.worker", "trainables.trial", "ray.tune"} <= set(sys.modules))
with cluster.connected(None) as let_go:
    print(ray.is_initialized(), ray.get(imported.remote()))
    let_go()
    until = time.monotonic() + 20
    while ray.is_initialized() and time.monotonic() < until:
        time.sleep(0.1)
    print(ray.is_initialized())
print(ray.is_initialized(), psutil.Process().children())
"""


def test_a_ray_that_was_started_early_is_the_search_s_and_its_workers_have_imported() -> None:
    command = [sys.executable, "-c", EARLY]
    told = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert told == "True True\nFalse\nFalse []\n"


def test_a_ray_of_the_caller_s_is_left_as_it_is(ray_local: None) -> None:
    with cluster.connected(None) as let_go:
        let_go()
    assert ray.is_initialized()


def test_a_mistake_is_one_line_and_ends_the_ray_that_was_started_meanwhile(tmp_path: Path) -> None:
    marked = {**os.environ, "DUX_CACHE": str(tmp_path)}
    command = [sys.executable, "-m", "orchestrator.cli", "run", "nonsense"]
    ended = subprocess.run(command, cwd=ROOT, env=marked, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("dux: ")
    assert ended.stderr.count("\n") == 1
    environments = (process.info["environ"] or {} for process in psutil.process_iter(["environ"]))
    assert [each for each in environments if each.get("DUX_CACHE") == str(tmp_path)] == []
