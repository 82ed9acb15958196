"""A worker's heartbeat: a small file that changes every two seconds while the worker's process can run.

The driver reads these files where it and the workers share a disk, and ends a worker that has fallen silent: Ray itself
waits for a process that is stopped or wedged for ever.
"""

import json
import os
import signal
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import ray

EVERY = 2.0  # seconds
FOLDER = "alive"  # within a stage's


@dataclass(frozen=True)
class Beat:
    """One heartbeat. A process is known by its node, its number and when it began, since numbers are used again."""

    node: str
    pid: int
    began: str  # in the system's own reckoning
    count: int

    def text(self) -> str:
        """As it is written, always of the same length: to overwrite it takes no room, be the disk full."""
        return json.dumps({**asdict(self), "count": f"{self.count:012d}"})


def read(path: Path) -> Beat | None:
    """The heartbeat in a file; None where there is none, or one that is being written."""
    try:
        given = json.loads(path.read_text())
        return Beat(str(given["node"]), int(given["pid"]), str(given["began"]), int(given["count"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def start(folder: Path) -> None:
    """Give this Ray worker a heartbeat. Without the folder (another machine's disk) there is none, nor is it missed."""
    if folder.is_dir():
        beat(folder, ray.get_runtime_context().get_node_id())


def beat(folder: Path, node: str) -> None:
    """Beat in a thread until the file is removed or cannot be written; not at all where there is no /proc."""
    began = process_began(os.getpid())
    if began is None:
        return
    path = folder / f"{node[:12]}-{os.getpid()}"
    first = Beat(node, os.getpid(), began, 0)
    with suppress(OSError):
        path.write_text(first.text())
        threading.Thread(target=_go_on, args=(path, first), name="heartbeat", daemon=True).start()


def _go_on(path: Path, beat: Beat) -> None:
    pause = threading.Event()
    try:
        while not pause.wait(EVERY):
            beat = Beat(beat.node, beat.pid, beat.began, beat.count + 1)
            with open(path, "r+") as file:
                file.write(beat.text())
    except OSError:
        # Cleared away by the driver, or a disk in trouble: silence must not look like a worker that hangs.
        with suppress(OSError):
            path.unlink(missing_ok=True)


def end(beat: Beat) -> bool:
    """Kill the process of a heartbeat, on its node; whether it was still there."""
    if process_began(beat.pid) != beat.began:
        return False
    with suppress(ProcessLookupError):
        os.kill(beat.pid, signal.SIGKILL)
        return True
    return False


def process_began(pid: int) -> str | None:
    """When a process began, which tells it from a later one of the same number; None where that is not known."""
    fields = _stat(pid)
    return fields[19] if fields else None


def is_stopped(pid: int) -> bool:
    """Whether a process has been stopped (SIGSTOP), as far as the system says."""
    fields = _stat(pid)
    return bool(fields) and fields[0] in "Tt"


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; none where there are none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
