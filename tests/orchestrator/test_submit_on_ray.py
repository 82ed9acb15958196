"""`dux submit` to a real cluster with a dashboard: sent, let go of, found again, stopped, gone on with."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

import analysis
from orchestrator.recipe import Recipe

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(480)]

TOKEN = "0123456789abcdef" * 4
SPACE = '''"""Says where dux's code was found, and gives a linear student."""

from ray import tune
from torch import nn

import spaces

print(f"code from {spaces.__file__}")
PARAM_SPACE = {"bias": tune.choice([True, False])}


def build(arch, task):
    return nn.Sequential(nn.Flatten(), nn.Linear(task.channels * task.image_size**2, task.classes, bias=arch["bias"]))
'''
STAGE = {"name": "only", "trial": "distill", "epochs": 400, "trials": 2, "sampler": "grid"}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def environment(token: str = TOKEN) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {
        **kept,
        "PATH": path,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "SECRET_THING": "not-to-be-shipped",
    }


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    """A head with a dashboard, guarded by a token; its address."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with TemporaryDirectory(prefix="dux", dir="/tmp", ignore_cleanup_errors=True) as folder:
        options = {"port": free_port(), "dashboard-port": port, "num-cpus": 1, "temp-dir": folder}
        options["dashboard-agent-listen-port"] = free_port()  # another Ray of these tests may have the default one
        start = ["ray", "start", "--head", "--block", *(f"--{key}={value}" for key, value in options.items())]
        head = subprocess.Popen(start, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            asked = urllib.request.Request(f"{address}/api/version", headers={"Authorization": f"Bearer {TOKEN}"})
            while True:
                try:
                    urllib.request.urlopen(asked, timeout=5).close()
                    break
                except OSError:
                    assert head.poll() is None
                    time.sleep(0.2)
            yield address
        finally:
            head.terminate()
            head.wait(60)


def dux(folder: Path, *arguments: str, token: str = TOKEN) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "orchestrator.cli", "submit", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment(token), stdout=pipe, stderr=pipe, text=True)


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=150)
    return process.returncode, out, err


def test_a_job_is_sent_let_go_of_found_again_stopped_and_gone_on_with(dashboard: str, tmp_path: Path) -> None:
    (tmp_path / "linear.py").write_text(SPACE)
    recipe = {"name": "tiny", "task": {"dataset": "digits", "subset": 100}, "space": {"file": "linear.py"}}
    text = Recipe.parse({**recipe, "space": {"file": str(tmp_path / "linear.py")}, "stages": [STAGE]}).to_yaml()
    (tmp_path / "tiny.yaml").write_text(text)
    run, to = tmp_path / "runs" / "a", ["--name", "a", "--address", dashboard]
    sent = ["tiny.yaml", *to, "--storage", str(tmp_path / "runs")]

    first = dux(tmp_path, *sent)
    deadline = time.monotonic() + 180
    while not (run / "ledger.jsonl").exists() or '"report"' not in (run / "ledger.jsonl").read_text():
        assert time.monotonic() < deadline
        assert first.poll() is None, ended(first)
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    code, _, err = ended(first)
    assert code == 130
    assert f"the job goes on; attach to it again: dux submit --name a --address {dashboard}" in err
    stop = ["ray", "job", "stop", "dux-a", "--address", dashboard]
    subprocess.run(stop, env=environment(), check=True, capture_output=True, timeout=60)
    assert not analysis.load(run).finished

    attached = dux(tmp_path, *to)
    unknown = dux(tmp_path, "--name", "b", "--address", dashboard)
    stranger = dux(tmp_path, *sent, token="f" * 64)
    code, _, err = ended(attached)
    assert (code, err.splitlines()[-1]) == (
        1,
        "dux: job dux-a was stopped; the same dux submit with its RECIPE goes on with the run",
    )
    code, _, err = ended(unknown)
    assert code == 2
    assert err == f"dux: the cluster at {dashboard} has no job of a run named 'b'; give its RECIPE to send it\n"
    code, _, err = ended(stranger)
    assert (code, err.count("\n")) == (1, 1), err
    assert "Authentication failed" in err
    assert "f" * 64 not in err

    code, out, err = ended(dux(tmp_path, *sent))
    assert code == 0, out + err
    assert "job dux-a~2;" in err
    results = analysis.load(run)
    assert results.finished
    assert (run / "ledger.jsonl").read_text().count('"event":"resume"') == 1
    assert "working_dir_files" in out.partition("code from ")[2].splitlines()[0], out
    assert f"the run lies in {run}" in out

    again, other = dux(tmp_path, *sent), dux(tmp_path, *sent, "--set", "stages.only.epochs=41")
    assert ended(again)[:2] == (0, out)
    code, _, err = ended(other)
    assert code == 2
    assert err == "dux: job dux-a~2 (succeeded) is a run of another recipe; choose another --name\n"
    kept = [path.read_bytes() for path in run.rglob("*") if path.is_file()]
    assert not any(secret.encode() in data for data in kept for secret in (TOKEN, "not-to-be-shipped"))
