"""Ray is started while torch is imported; see `cluster.start_early`."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
EARLY = """
import sys, psutil, ray
from orchestrator import cluster
assert "torch" not in sys.modules
cluster.start_early()
assert "orchestrator.launch" in sys.modules
imported = ray.remote(num_cpus=0)(lambda: "trainables.trial" in sys.modules)
with cluster.connected(None):
    print(ray.is_initialized(), ray.get(imported.remote()))
print(ray.is_initialized(), psutil.Process().children())
"""


def test_a_ray_that_was_started_early_is_the_search_s_and_its_workers_have_imported() -> None:
    command = [sys.executable, "-c", EARLY]
    told = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert told == "True True\nFalse []\n"


def test_a_mistake_is_one_line_and_ends_the_ray_that_was_started_meanwhile(tmp_path: Path) -> None:
    marked = {**os.environ, "DUX_CACHE": str(tmp_path)}
    command = [sys.executable, "-m", "orchestrator.cli", "run", "nonsense"]
    ended = subprocess.run(command, cwd=ROOT, env=marked, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("dux: ")
    assert ended.stderr.count("\n") == 1
    environments = (process.info["environ"] or {} for process in psutil.process_iter(["environ"]))
    assert [each for each in environments if each.get("DUX_CACHE") == str(tmp_path)] == []
