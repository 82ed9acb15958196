"""Whether Ray still lives while the driver waits for it.

Ray can leave its driver waiting for ever: when the raylet has died, or when a server neither answers nor ends. So what
waits for Ray does so in a thread of its own, while the caller's thread waits for that, for a signal, or for bad news.
"""

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray._private import auto_init_hook
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator import cluster
from trainables import heartbeat

T = TypeVar("T")
TICK = 0.2  # seconds between two looks
STOPPED = 10.0  # seconds that a server may be stopped
SILENT = 30.0  # seconds without an answer from the head, or a heartbeat from a worker
ASK_EVERY = 2.0
LEAVE = 6.0  # seconds that given-up work has to end; Tune takes 5 to see its actors off


class ClusterLost(Exception):
    """Ray has died or hangs; what has been recorded until then is whole."""


class Patience:
    """How long something has shown no sign of life, by a clock that stands while this process stands (Ctrl-Z, sleep).

    Args:
        seconds: that are too long.
        clock: seconds that go by.
    """

    STEP = 5.0  # more than this between two looks, and it was this process that slept

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self._clock = seconds, clock
        self._sign: Hashable = object()
        self._last, self._waited = clock(), 0.0

    def over(self, sign: Hashable) -> bool:
        """Whether `sign` has been the same for too long."""
        now = self._clock()
        self._waited = self._waited + min(now - self._last, self.STEP) if sign == self._sign else 0.0
        self._sign, self._last = sign, now
        return self._waited > self.seconds


class Heartbeats:
    """The workers' heartbeats in a folder; one that falls silent has its worker ended by `end`."""

    def __init__(self, folder: Path, end: Callable[[heartbeat.Beat], Any], silent: float) -> None:
        self.folder, self.end, self.silent = folder, end, silent
        self._patience: dict[Path, Patience] = {}

    def look(self) -> None:
        """Read them all. A worker that has ended of itself leaves a file behind, which is removed the same way."""
        for path in sorted(self.folder.glob("*")):
            beat = heartbeat.read(path)
            if self._patience.setdefault(path, Patience(self.silent)).over(beat) and beat is not None:
                del self._patience[path]
                path.unlink(missing_ok=True)
                self.end(beat)

    def clear(self) -> None:
        """Remove them all, and the folder, without which nobody begins to beat."""
        with suppress(OSError):
            for path in self.folder.glob("*"):
                path.unlink(missing_ok=True)
            self.folder.rmdir()


class Watch:
    """Looks at Ray while its block runs; `trouble` says what is wrong with it, without ever waiting.

    The servers that this process has started are looked at themselves; the head of any Ray is asked by a thread, which
    may be kept waiting; another thread listens to the workers.
    """

    def __init__(self, alive: Path | None = None) -> None:
        self._node = ray.get_runtime_context().get_node_id()
        self._servers = cluster.servers()
        self._stopped = {name: Patience(STOPPED) for name in self._servers}
        self._answered = Patience(SILENT)
        self._answers, self._dead = 0, False
        self._beats = Heartbeats(alive, self._end, SILENT) if alive is not None else None
        self._over = threading.Event()

    def __enter__(self) -> "Watch":
        if self._beats is not None:
            self._beats.clear()
            with suppress(OSError):
                self._beats.folder.mkdir(parents=True, exist_ok=True)
        looks = [self._ask, *([self._listen] if self._beats else [])]
        for look in looks:
            threading.Thread(target=self._repeat, args=(look,), name="watch", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        if self._beats is not None:
            self._beats.clear()

    def trouble(self) -> str | None:
        """What has happened to Ray, if it can no longer be worked with."""
        for name, server in self._servers.items():
            if server.poll() is not None:
                return f"Ray's {name} has died"
            if self._stopped[name].over("stopped" if heartbeat.is_stopped(server.pid) else object()):
                return f"Ray's {name} has been stopped, and has not gone on for {STOPPED:g} s"
        if self._dead:
            return "Ray's raylet on this machine has died, or no longer answers its head"
        if self._answered.over(self._answers):
            return f"Ray's head has not answered for {SILENT:g} s"
        return None

    def _repeat(self, look: Callable[[], None]) -> None:
        while not self._over.wait(ASK_EVERY):
            # No answer is what this is about: `trouble` misses it in time. A disk's hiccup is over the next time.
            with suppress(RayError, RuntimeError, ConnectionError, OSError):
                look()

    def _ask(self) -> None:
        nodes = {node["NodeID"]: node["Alive"] for node in ray.nodes()}
        self._dead = not nodes.get(self._node, True)
        self._answers += 1

    def _listen(self) -> None:
        assert self._beats is not None
        self._beats.look()

    def _end(self, beat: heartbeat.Beat) -> None:
        """End a worker where it runs. Where that cannot be done its node is gone, and Ray knows."""
        if beat.node == self._node:
            heartbeat.end(beat)
            return
        there = NodeAffinitySchedulingStrategy(beat.node, soft=False)
        end = ray.remote(num_cpus=0, max_retries=0)(heartbeat.end).options(scheduling_strategy=there)
        with suppress(RayError, GetTimeoutError):
            ray.get(end.remote(beat), timeout=SILENT)


def watched(work: Callable[[], T], alive: Path | None = None, give_up: Callable[[], None] = lambda: None) -> T:
    """What `work` returns, as long as Ray lives.

    Args:
        work: what waits for Ray; done in another thread.
        alive: the folder of its workers' heartbeats.
        give_up: called before anything is raised while `work` still goes on, which is left behind where it does not
            end in seconds.

    Raises:
        ClusterLost: Ray has died or hangs.
        KeyboardInterrupt: by a signal, where this is the main thread.
    """
    future: Future[T] = Future()
    context = copy_context()  # a notebook's output finds its cell by it
    thread = threading.Thread(target=context.run, args=(_into, future, work), name="watched", daemon=True)
    with Watch(alive) as watch:
        try:
            thread.start()
            while not wait_for([future], TICK).done:
                if trouble := watch.trouble():
                    raise ClusterLost(trouble)
        except BaseException as error:
            give_up()
            lost = isinstance(error, ClusterLost)
            if lost:
                cluster.hush()
            thread.join(TICK if lost else LEAVE)  # what waits for a dead Ray goes on waiting
            if thread.is_alive():
                cluster.left_behind.append(thread)
                auto_init_hook.enable_auto_connect = False  # it must not start a Ray of its own once this one is gone
            raise
        if (failure := future.exception()) is not None and (trouble := watch.trouble() or _ended(failure)):
            give_up()
            cluster.hush()
            raise ClusterLost(trouble) from failure
    return future.result()


def _into(future: "Future[T]", work: Callable[[], T]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)


def _ended(error: BaseException) -> str | None:
    """Ray's own client ends a thread that waits for a cluster which is gone as it would end a program."""
    return "Ray has ended its connection to the cluster" if isinstance(error, SystemExit) else None
