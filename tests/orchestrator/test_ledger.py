"""The ledger: what is in it is whole, whatever happens to the process or the disk."""

import json
import math
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from orchestrator.ledger import Ledger


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: what fits is written, as on a disk that runs full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_events_are_appended_and_read_back(tmp_path):
    file = tmp_path / "ledger.jsonl"
    before = time.time()
    with Ledger(file) as ledger:
        first = ledger.append("run", name="a", value=0.1)
    with Ledger(file) as ledger:
        second = ledger.append("report", nested={"deep": [1, None, "ä\n"]})
    assert read(file) == [first, second]
    assert first["event"] == "run"
    assert before <= first["time"] <= time.time()
    assert second["nested"] == {"deep": [1, None, "ä\n"]}


def test_what_is_returned_is_what_can_be_read(tmp_path):
    """Whoever decides from a returned event decides as one who reads the file."""
    with Ledger(tmp_path / "l") as ledger:
        event = ledger.append(
            "x", tuple=(1, 2), keys={1: "a"}, path=Path("a/b"), third=1 / 3, bad=[math.nan, -math.inf]
        )
    assert read(tmp_path / "l") == [event]
    assert (event["tuple"], event["keys"], event["path"], event["third"]) == ([1, 2], {"1": "a"}, "a/b", 1 / 3)
    assert event["bad"] == [None, None]


def test_events_of_two_threads_do_not_mix(tmp_path):
    """A teacher that has come is noted while a stage begins, on a disk that takes a line in pieces."""

    class InPieces:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            time.sleep(0.0005)
            return self.file.write(data[:16])

        def __getattr__(self, name):
            return getattr(self.file, name)

    with Ledger(tmp_path / "l") as ledger:
        ledger._file = InPieces(ledger._file)
        threads = [Thread(target=lambda who=who: [ledger.append("x", who=who, n=n) for n in range(20)]) for who in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    events = read(tmp_path / "l")
    for who in "ab":
        assert [event["n"] for event in events if event["who"] == who] == list(range(20))


def test_numpy_scalars_become_numbers(tmp_path):
    with Ledger(tmp_path / "l") as ledger:
        event = ledger.append("x", a=np.float32(0.5), b=np.int64(3), c=np.bool_(True), d={"e": np.float64("nan")})
    assert (event["a"], event["b"], event["c"], event["d"]) == (0.5, 3, True, {"e": None})


def test_what_has_no_json_is_refused_and_not_written(tmp_path):
    with Ledger(tmp_path / "l") as ledger:
        with pytest.raises(TypeError, match="object is not JSON-able"):
            ledger.append("x", value=object())
        ledger.append("y")
    assert [event["event"] for event in read(tmp_path / "l")] == ["y"]


@pytest.mark.parametrize("torn", [b"{", b'{"event":"x","time":1.0}', b'{"event":"\xc3'])
def test_a_torn_last_line_is_cut_off(tmp_path, torn):
    file = tmp_path / "l"
    with Ledger(file) as ledger:
        whole = ledger.append("whole")
    with file.open("ab") as out:
        out.write(torn)
    with Ledger(file) as ledger:
        after = ledger.append("after")
    assert read(file) == [whole, after]


def test_a_file_of_nothing_but_a_torn_line_is_emptied(tmp_path):
    (tmp_path / "l").write_bytes(b'{"event"')
    with Ledger(tmp_path / "l"):
        assert (tmp_path / "l").read_bytes() == b""


@pytest.mark.parametrize("room", [0, 1, 30])
def test_a_full_disk_leaves_nothing_of_an_event(tmp_path, room):
    file = tmp_path / "l"
    with Ledger(file) as ledger:
        whole = ledger.append("whole", text="x" * 50)
        with disk_of(file.stat().st_size + room):
            for _ in range(3):  # a second failure must not forget what the first one cut off
                with pytest.raises(OSError, match="File too large"):
                    ledger.append("lost", text="y" * 100)
                assert read(file) == [whole]
        after = ledger.append("after")
    assert read(file) == [whole, after]


def test_a_killed_process_leaves_whole_events(tmp_path):
    file = tmp_path / "l"
    code = f"""
from pathlib import Path
from orchestrator.ledger import Ledger
ledger = Ledger(Path({str(file)!r}))
number = 0
while True:
    ledger.append("report", number=number, text="x" * (number % 977))
    number += 1
"""
    root = Path(__file__).parents[2]
    child = subprocess.Popen([sys.executable, "-c", code], cwd=root)
    deadline = time.monotonic() + 60
    while not (file.exists() and file.read_bytes().count(b"\n") >= 40):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    with Ledger(file) as ledger:
        ledger.append("after")
    events = read(file)
    assert [event["number"] for event in events[:-1]] == list(range(len(events) - 1))
    assert len(events) > 40
