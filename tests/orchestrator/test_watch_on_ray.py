"""What dies or hangs under a running search: it ends in one line or goes on, and can always be resumed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
import yaml

import analysis
import orchestrator
from orchestrator import cluster, watch
from orchestrator.recipe import Recipe
from orchestrator.watch import ClusterLost, watched
from trainables import heartbeat

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(480)]

ROOT = Path(__file__).parents[2]
LONG = {
    "name": "long",
    "task": {"dataset": "digits", "subset": 300},
    "space": {"name": "resnet", "choices": {"depth1": [1], "depth2": [1], "depth3": [1], "width": [2, 3]}},
    "workers": 1,
    "stages": [{"name": "only", "trial": "distill", "epochs": 2000, "sampler": "grid"}],
}
# The command, with less patience than a user's Ray deserves.
DUX = """
from orchestrator import watch
watch.STOPPED = 4.0
from orchestrator.cli import main
main()
"""
WITHIN = 60.0  # seconds from a death to the end of the command


def reports(run: Path) -> list[dict]:
    if not (run / "ledger.jsonl").exists():
        return []
    return [event for event in analysis.events(run) if event["event"] == "report"]


class Command:
    """`dux run` in a process of its own, which trains until something happens to it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        recipe = folder / "long.yaml"
        recipe.write_text(yaml.safe_dump(LONG))
        self.run = folder / "runs" / "a"
        given = ["run", str(recipe), "--storage", str(folder / "runs"), "--name", "a"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", DUX, *given],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for_a_report(self) -> None:
        deadline = time.monotonic() + 400
        while not reports(self.run):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def server(self, name: str) -> psutil.Process:
        [found] = [
            child
            for child in psutil.Process(self.process.pid).children(recursive=True)
            if child.cmdline() and child.cmdline()[0].endswith(f"/{name}")
        ]
        return found

    def ended(self) -> tuple[float, str]:
        """How long it took to end with exit code 1, and its last line."""
        began = time.monotonic()
        printed, said = self.process.communicate(timeout=2 * WITHIN)
        assert self.process.returncode == 1, said
        assert "Traceback" not in said
        assert printed == ""
        return time.monotonic() - began, said.splitlines()[-1]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Command]]:
    """Three searches, which all train; side by side, since they mostly wait."""
    names = ("raylet", "gcs_server", "interrupted")
    running = {name: Command(tmp_path_factory.mktemp("watched") / name) for name in names}
    try:
        for command in running.values():
            command.wait_for_a_report()
        yield running
    finally:
        for command in running.values():
            command.process.kill()
            command.process.communicate()


def check_it_can_be_resumed(run: Path) -> None:
    """The tables are there, and nothing in the ledger blames a trial for what was done to Ray."""
    assert len(analysis.load(run).epochs) > 0
    events = [event["event"] for event in analysis.events(run)]
    assert {"lost", "end", "stage_end", "run_end"}.isdisjoint(events)
    assert (run / "ledger.jsonl").read_bytes().endswith(b"\n")
    assert not list(run.rglob(heartbeat.FOLDER))


@pytest.mark.parametrize(
    ("server", "happens", "said"),
    [("raylet", signal.SIGKILL, "has died"), ("gcs_server", signal.SIGSTOP, "has been stopped")],
    ids=["raylet-killed", "head-stopped"],
)
def test_a_dead_or_hanging_server_ends_the_search_in_one_line(
    commands: dict[str, Command], server: str, happens: signal.Signals, said: str
) -> None:
    command = commands[server]
    command.server(server).send_signal(happens)
    seconds, last = command.ended()
    assert seconds < WITHIN
    assert last.startswith(f"dux: Ray's {server} {said}")
    assert last.endswith(f"; go on with it: dux resume {command.run}")
    check_it_can_be_resumed(command.run)


def test_sigterm_ends_a_search_in_seconds(commands: dict[str, Command]) -> None:
    command = commands["interrupted"]
    command.process.send_signal(signal.SIGTERM)
    seconds, last = command.ended()
    assert seconds < 15
    assert last == f"dux: interrupted; go on with it: dux resume {command.run}"
    check_it_can_be_resumed(command.run)


@pytest.fixture(scope="module")
def own_ray() -> Iterator[None]:
    """The Ray that a search starts for itself."""
    with cluster.connected(None):
        yield


LISTENING = """
import contextlib, json, os, psutil, ray
from orchestrator import cluster
with cluster.connected(None):
    ray.get(ray.remote(num_cpus=0)(lambda: None).remote())
    found = []
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            sockets = process.net_connections("inet")
            found += [[process.name(), socket.laddr.ip] for socket in sockets if socket.status == psutil.CONN_LISTEN]
    print(json.dumps({"mode": os.environ["RAY_AUTH_MODE"], "listening": found}))
"""


def test_ray_listens_on_localhost_only_and_asks_for_a_token() -> None:
    """In a process of its own, which has no other Ray."""
    command = [sys.executable, "-c", LISTENING]
    told = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    assert len(told["listening"]) >= 5
    local = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
    assert [(name, ip) for name, ip in told["listening"] if ip not in local] == []
    assert told["mode"] == "token"
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        assert (Path.home() / ".ray" / "auth_token").stat().st_mode & 0o077 == 0


def test_a_worker_that_is_stopped_is_killed_and_its_trial_goes_on(
    own_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "SILENT", 6.0)
    [only] = LONG["stages"]
    recipe = Recipe.parse({**LONG, "stages": [{**only, "trials": 1, "epochs": 40}]})
    stopped: list[int] = []

    def stop() -> None:
        while not reports(tmp_path / "a"):
            time.sleep(0.05)
        stopped.append(int(reports(tmp_path / "a")[0]["worker"].rpartition(":")[2]))
        os.kill(stopped[0], signal.SIGSTOP)

    threading.Thread(target=stop, daemon=True).start()
    results = orchestrator.run(recipe, storage=tmp_path, name="a", progress=False)
    assert results.finished
    assert list(results.trials["status"]) == ["completed"]
    assert [report["epoch"] for report in reports(tmp_path / "a")] == list(range(1, 41))
    workers = {int(report["worker"].rpartition(":")[2]) for report in reports(tmp_path / "a")}
    assert len(workers) == 2
    assert not psutil.pid_exists(stopped[0])


def test_what_fails_while_ray_lives_fails_as_it_is_and_leaves_it_alone(own_ray: None) -> None:
    def fails() -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        watched(fails)
    assert watched(lambda: ray.get(ray.put(3))) == 3


def test_outside_the_main_thread_bad_news_ends_the_wait_too(own_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    told, given_up, let_go = [], [], threading.Event()

    class Dead(watch.Watch):
        def trouble(self) -> str | None:
            return "Ray's raylet has died"

    def wait() -> None:
        try:
            watched(let_go.wait, give_up=lambda: (given_up.append(True), let_go.set()))
        except ClusterLost as error:
            told.append(str(error))

    monkeypatch.setattr(watch, "Watch", Dead)
    waiting = threading.Thread(target=wait)
    waiting.start()
    waiting.join(30)
    assert told == ["Ray's raylet has died"]
    assert given_up == [True]
    assert not cluster.hangs()
