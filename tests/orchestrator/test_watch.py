"""What the watch is made of, without Ray: patience, heartbeats, signals, the token."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator import cluster, schedulers, signals
from orchestrator.book import Book, Proposal
from orchestrator.ledger import Ledger
from orchestrator.recipe import Recipe
from orchestrator.search import BookScheduler
from orchestrator.watch import Heartbeats, Patience
from trainables import heartbeat

ROOT = Path(__file__).parents[2]


class Clock:
    """Seconds that go by when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that sleeps."""
    sleeper = subprocess.Popen(["sleep", "60"])
    yield sleeper
    sleeper.kill()
    sleeper.wait()


def written(folder: Path, pid: int, **other: str | int) -> heartbeat.Beat:
    """The last heartbeat of a process, in its file."""
    beat = heartbeat.Beat("a" * 56, pid, heartbeat.process_began(pid) or "", 7)
    beat = replace(beat, **other)  # type: ignore[arg-type]
    (folder / f"{beat.node[:12]}-{pid}").write_text(beat.text())
    return beat


def test_patience_ends_only_when_nothing_changes() -> None:
    clock = Clock()
    patience = Patience(10, clock)
    for sign in (1, 1, 2, 2, 2):
        clock.now += 4
        assert not patience.over(sign)
    clock.now += 4
    assert patience.over(2)
    assert not patience.over(3)


def test_patience_does_not_count_the_time_that_this_process_slept() -> None:
    clock = Clock()
    patience = Patience(10, clock)
    patience.over(1)
    clock.now += 3600
    assert not patience.over(1)
    clock.now += 4
    assert not patience.over(1)
    clock.now += 4
    assert patience.over(1)


def test_a_worker_that_falls_silent_is_ended_once_and_one_that_beats_is_not(tmp_path: Path) -> None:
    ended: list[heartbeat.Beat] = []
    beats = Heartbeats(tmp_path, ended.append, silent=0.2)
    silent = written(tmp_path, os.getpid())
    for count in range(8):
        written(tmp_path, os.getppid(), count=count)
        beats.look()
        time.sleep(0.05)
    assert ended == [silent]
    assert [path.name for path in tmp_path.iterdir()] == [f"{'a' * 12}-{os.getppid()}"]
    beats.clear()
    assert not tmp_path.exists()


def test_a_half_written_heartbeat_ends_nobody(tmp_path: Path) -> None:
    ended: list[heartbeat.Beat] = []
    beats = Heartbeats(tmp_path, ended.append, silent=0.01)
    (tmp_path / "a-1").write_text('{"node": "a", "pid"')
    for _ in range(3):
        beats.look()
        time.sleep(0.02)
    assert ended == []


def test_a_stopped_process_is_seen_and_ended(process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert not heartbeat.is_stopped(process.pid)
    process.send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + 10
    while not heartbeat.is_stopped(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert heartbeat.is_stopped(process.pid)
    assert heartbeat.end(written(tmp_path, process.pid))
    assert process.wait(10) == -signal.SIGKILL


def test_a_later_process_of_the_same_number_is_left_alone(process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert not heartbeat.end(written(tmp_path, process.pid, began="1"))
    assert process.poll() is None
    gone = written(tmp_path, process.pid)
    process.kill()
    process.wait()
    assert not heartbeat.end(gone)
    assert not heartbeat.is_stopped(process.pid)


def test_a_heartbeat_changes_and_never_grows_until_its_file_is_removed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(heartbeat, "EVERY", 0.02)
    heartbeat.beat(tmp_path, "n" * 56)
    [path] = tmp_path.iterdir()
    size, seen = path.stat().st_size, set()
    deadline = time.monotonic() + 20
    while len(seen) < 3 and time.monotonic() < deadline:
        seen.add(heartbeat.read(path))
        time.sleep(0.02)
    assert len(seen - {None}) >= 2
    assert path.stat().st_size == size
    path.unlink()
    while any(thread.name == "heartbeat" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate())
    assert not path.exists()


def test_a_run_that_was_given_up_takes_no_late_reports(tmp_path: Path) -> None:
    """What Tune's thread still brings, once the run was left."""
    spec = Recipe.parse(
        {
            "name": "r",
            "task": {"dataset": "digits"},
            "space": {"name": "resnet"},
            "stages": [{"name": "only", "trial": "distill", "epochs": 4}],
        }
    ).stages[0]
    book = Book(spec, Ledger(tmp_path / "ledger.jsonl"), schedulers.make("none", {}, 4, 0), "sum")
    book.propose(Proposal({"width": 1}, "0", {"params": 1.0}, until=4))
    scheduler = BookScheduler(book, lambda numbers: None)
    before = (tmp_path / "ledger.jsonl").read_bytes()
    scheduler.give_up()
    with pytest.raises(ValueError, match="closed"):
        book.report(0, 1, {"objective": 0.5}, seconds=0.1, worker="w:1")
    with pytest.raises(ValueError, match="closed"):
        book.lose(0, "its worker was killed", alone=True)
    assert (tmp_path / "ledger.jsonl").read_bytes() == before
    assert book.failure is None


def test_without_the_folder_there_is_no_heartbeat(tmp_path: Path) -> None:
    heartbeat.start(tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


TWICE = """
import os, signal, sys, time
from orchestrator.signals import at_the_command_line
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has it ignored in what runs in the background
with at_the_command_line():
    try:
        print("up", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("tidying up", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_the_first_signal_interrupts_and_the_second_ends_at_once(first: signal.Signals, second: signal.Signals) -> None:
    command = [sys.executable, "-c", TWICE]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(first)
        assert process.stdout.readline() == "tidying up\n"
        process.send_signal(second)
        assert process.wait(20) == 130
        assert process.stderr.read() == "dux: interrupted; once more ends it at once\n"


def test_sigterm_interrupts_what_has_no_handler_of_its_own_and_leaves_one_that_has() -> None:
    def mine(*_: object) -> None:
        pass

    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt), signals.terminated_like_interrupted():
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        signal.signal(signal.SIGTERM, mine)
        with signals.terminated_like_interrupted():
            assert signal.getsignal(signal.SIGTERM) is mine
        with signals.kept():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home without a token, and an environment that names none."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_the_token_is_made_for_its_owner_alone_and_only_once(home: Path) -> None:
    cluster.keep_token_private()
    path = home / ".ray" / "auth_token"
    token = path.read_text()
    assert len(token) >= 32
    assert mode(path) == 0o600
    cluster.keep_token_private()
    assert path.read_text() == token
    assert [path.name for path in path.parent.iterdir()] == ["auth_token"]


@pytest.mark.parametrize(("given", "kept"), [(0o644, 0o600), (0o600, 0o600), (0o400, 0o400)], ids=oct)
def test_a_token_that_is_there_is_never_opened_further(home: Path, given: int, kept: int) -> None:
    path = home / ".ray" / "auth_token"
    path.parent.mkdir()
    path.write_text("mine")
    path.chmod(given)
    cluster.keep_token_private()
    assert path.read_text() == "mine"
    assert mode(path) == kept


@pytest.mark.parametrize(
    ("name", "value"),
    [("RAY_AUTH_TOKEN", "x" * 32), ("RAY_AUTH_TOKEN_PATH", "/nowhere/token"), ("RAY_AUTH_MODE", "disabled")],
)
def test_what_the_user_says_of_the_token_stands(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    cluster.keep_token_private()
    assert not (home / ".ray" / "auth_token").exists()
