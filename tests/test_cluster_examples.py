"""The cluster files as far as one machine can try them: Ray's schema, KubeRay's structure, the Slurm script run."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from ray.autoscaler._private.commands import prepare_config
from ray.autoscaler._private.util import validate_config

import analysis
from orchestrator.cli import app
from orchestrator.reading import recipe_names
from orchestrator.recipe import Recipe

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "examples" / "cluster"


def parsed(command: str) -> dict[str, Any]:
    """What the options of a `dux` command line are taken for; typer exits where it would refuse one."""
    program, name, *arguments = shlex.split(command)
    assert program == "dux"
    found = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    return found.make_context(name, arguments).params


def test_ray_takes_the_cluster_with_its_defaults() -> None:
    """As `ray up` does before it asks the cloud for anything."""
    config = yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text())
    filled = prepare_config(config)
    validate_config(filled)
    assert filled["available_node_types"]["head"]["resources"] == {"CPU": 0}
    assert filled["available_node_types"]["worker"]["min_workers"] == 1
    assert "--dashboard-host=127.0.0.1" in filled["head_start_ray_commands"][-1]


def test_a_misspelt_key_of_the_cluster_would_be_noticed() -> None:
    config = yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text())
    config["head_node_typ"] = config.pop("head_node_type")
    with pytest.raises(Exception, match="head_node_typ"):
        validate_config({**config, "cluster_synced_files": []})


def containers(job: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each container of a RayJob with the spec of its pod."""
    spec = job["spec"]["rayClusterSpec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        yield from ((container, pod) for container in pod["containers"])


def test_the_rayjob_has_what_kuberay_asks_for() -> None:
    job = yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert set(job["metadata"]) == {"name"}
    assert set(job["spec"]) <= {
        "entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "rayClusterSpec",
    }  # fmt: skip
    assert job["spec"]["backoffLimit"] > 0
    cluster = job["spec"]["rayClusterSpec"]
    assert set(cluster) == {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
    assert all(isinstance(v, str) for v in cluster["headGroupSpec"]["rayStartParams"].values())
    for group in cluster["workerGroupSpecs"]:
        assert group["groupName"]
        assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    images = set()
    for container, pod in containers(job):
        images.add(container["image"])
        limits, requests = (container["resources"][kind] for kind in ("limits", "requests"))
        assert limits == requests  # Ray counts limits, Kubernetes places by requests
        assert set(limits) >= {"cpu", "memory"}
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(mounted) == {volume["name"] for volume in pod["volumes"]}
        assert str(parsed(job["spec"]["entrypoint"])["storage"]) == mounted["runs"]
    assert len(images) == 1


def test_the_rayjobs_entrypoint_can_be_repeated() -> None:
    entry = parsed(yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())["spec"]["entrypoint"])
    assert entry["recipe"] in recipe_names()
    assert (entry["address"], entry["or_resume"]) == ("auto", True)
    assert entry["name"]


# Slurm's commands, as far as the script uses them: each runs what it is given on this machine.
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do
  case $1 in -w) shift 2 ;; *) shift ;; esac
done
if [[ "$*" == "hostname --ip-address" ]]; then echo 127.0.0.1; exit; fi
exec "$@"
"""
SCONTROL = """#!/bin/bash
case $1 in
  show) echo localhost; echo localhost ;;
  requeue) echo "$2" >> "$REQUEUED" ;;
esac
"""
DUX = """#!/bin/bash
exec {python} -m orchestrator.cli "$@"
"""


def port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def commands(folder: Path, **texts: str) -> None:
    """Put stand-ins where the script finds them first."""
    (folder / "bin").mkdir()
    for name, text in texts.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)


def sbatch(folder: Path, **given: str) -> "subprocess.Popen[str]":
    """The script as Slurm would start it on two nodes, both this machine."""
    given = {
        "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "localhost,localhost",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "1",
        "RAY_PORT": str(port()),
        "RAY_HEAD_SECONDS": "5",
        "RAY_WORKER_SECONDS": "5",
        "RUNS": str(folder / "runs"),
        "REQUEUED": str(folder / "requeued"),
        **given,
    }
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    command = ["bash", str(CLUSTER / "slurm.sh"), str(folder / "tiny.yaml"), "a"]
    with (folder / "log").open("a") as log:
        return subprocess.Popen(command, env={**kept, **given}, stdout=log, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, True)])
def test_the_slurm_script_is_requeued_only_for_a_search_that_did_not_end_well(
    tmp_path: Path, code: int, requeued: bool
) -> None:
    search = f"#!/bin/bash\ntrap 'exit {code}' TERM\ntouch {tmp_path}/begun\nwhile true; do sleep 0.05; done\n"
    commands(tmp_path, srun=SRUN, scontrol=SCONTROL, dux=search, ray="#!/bin/bash\nexec sleep 100\n")
    job = sbatch(tmp_path, RAY_HEAD_SECONDS="0", RAY_WORKER_SECONDS="0")
    deadline = time.monotonic() + 20
    while not (tmp_path / "begun").exists():
        assert job.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(20) == code, (tmp_path / "log").read_text()
    assert (tmp_path / "requeued").exists() == requeued


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(280)
def test_the_slurm_script_is_requeued_and_goes_on(tmp_path: Path) -> None:
    commands(tmp_path, srun=SRUN, scontrol=SCONTROL, dux=DUX.format(python=sys.executable))
    stage = {"name": "only", "trial": "distill", "epochs": 30, "trials": 2, "sampler": "random"}
    choices = {"depth1": [1], "depth2": [1], "depth3": [1], "width": [2, 3]}
    space = {"name": "resnet", "choices": choices}
    recipe = {"name": "tiny", "task": {"dataset": "digits", "subset": 100}, "space": space, "stages": [stage]}
    (tmp_path / "tiny.yaml").write_text(Recipe.parse(recipe).to_yaml())
    ledger, log = tmp_path / "runs" / "a" / "ledger.jsonl", tmp_path / "log"

    job = sbatch(tmp_path)
    deadline = time.monotonic() + 120
    while not ledger.exists() or '"report"' not in ledger.read_text():
        assert job.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(100) == 1, log.read_text()
    assert (tmp_path / "requeued").read_text() == "7\n"
    assert not analysis.load(tmp_path / "runs" / "a").finished
    assert sbatch(tmp_path).wait(150) == 0, log.read_text()
    results = analysis.load(tmp_path / "runs" / "a")
    assert results.finished
    assert ledger.read_text().count('"event":"resume"') == 1
    assert not results.epochs.duplicated(["number", "epoch"]).any()
    assert (tmp_path / "requeued").read_text() == "7\n"  # once
    assert not list((tmp_path / "runs").glob(".ray-token*"))
