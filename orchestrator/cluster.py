"""Ray on this machine, or on a cluster at an address. Itself without torch: see `start_early`."""

import logging
import os
import secrets
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from subprocess import Popen
from typing import Any

import ray
from ray._private import ray_constants, worker
from ray._private.services import canonicalize_bootstrap_address_or_die

from orchestrator import signals
from orchestrator.errors import RunFailed
from spaces.errors import BadInput
from trainables.heartbeat import is_stopped

# Ray's coming default, which it else warns of: a worker that asks for no GPU keeps its CUDA_VISIBLE_DEVICES.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

_print_to_stdstream = worker.print_to_stdstream
_early = False  # whether `start_early` has started a Ray that nobody has taken over
left_behind: list[threading.Thread] = []  # threads that wait for a Ray that is gone
# Imported by each worker of a Ray that is started here, before it has work.
PRELOADED = ["trainables.worker", "trainables.trial"]
SHUTDOWN = 15.0  # seconds; a driver that is left by a dead head takes 7
# So that a raylet that hangs is dead to the head of a Ray that is started here after 44 s, and not after 65.
HEALTH = {"health_check_period_ms": 3000, "health_check_timeout_ms": 8000, "health_check_failure_threshold": 4}


@contextmanager
def connected(address: str | None) -> Iterator[Callable[[], None]]:
    """Ray while the block runs: of this machine alone, bound to localhost, unless an address is given.

    A Ray that is up already in this process (a notebook's, a test's) is used and, unless it dies, left as it is. All
    ports of a Ray that is started here are bound to 127.0.0.1, and guarded by the token in ~/.ray/auth_token too,
    which nobody else can read; RAY_AUTH_MODE, RAY_AUTH_TOKEN and RAY_AUTH_TOKEN_PATH mean what they mean to Ray.

    Yields:
        To be called once the block needs Ray no longer: its end, of which three seconds are waiting, begins then.

    Raises:
        RunFailed: nothing answers at the address.
    """
    global _early
    mine, _early = _early, False
    if ray.is_initialized() and not mine:
        yield lambda: None
        return
    ending = threading.Thread(target=shut_down, name="ending", daemon=True)
    try:
        if not mine:
            with signals.kept():
                _join(address) if address else _start()
        hush()
        yield ending.start
    finally:
        if ending.ident is not None:
            ending.join()
        elif not hangs():
            shut_down()


def start_early() -> None:
    """Start Ray on this machine while a thread imports what a search needs; `connected` takes it over.

    Both take five seconds, Ray's of waiting for its servers, whose workers import the same in the meantime. Does
    nothing in a process that has Ray, or has no wait for torch to fill.
    """
    global _early
    if ray.is_initialized() or "torch" in sys.modules:
        return
    importing = threading.Thread(target=import_module, args=("orchestrator.launch",), name="import", daemon=True)
    importing.start()
    # Here and not in a thread: its servers end with the thread that has started them.
    with signals.kept():
        _start()
    _early = True
    importing.join()


def _start() -> None:
    keep_token_private()
    try:
        with _on_localhost():
            # "local" and not None: the file of a cluster that was killed must not decide where this one is.
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=True,
                _system_config={**HEALTH, "preload_python_modules": PRELOADED},
            )
    except Exception as error:  # Ray has no narrower one for servers that do not come up
        raise RunFailed(f"Ray does not start on this machine: {_in_short(error)}; once it can, try again") from error


def check_address(address: str) -> None:
    """Raises unless something listens at the address of a cluster; Ray itself would try for over a minute.

    Raises:
        BadInput: an address of the wrong kind. Through Ray Client (`ray://`) the search would run in a copy of this
            process, where the run's ledger cannot follow.
        RunFailed: nobody listens there.
    """
    if "://" in address:
        raise BadInput(
            f"--address {address}: a search joins a cluster from one of its machines, at auto or HOST:PORT; "
            "from elsewhere send it there: dux submit RECIPE --address http://HOST:8265"
        )
    try:
        host, _, port = canonicalize_bootstrap_address_or_die(address).rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except ValueError as error:
        raise BadInput(f"--address {address}: a cluster's address is auto or HOST:PORT") from error
    except OSError as error:
        said = error.strerror or str(error).partition(".")[0]
        raise RunFailed(f"no Ray cluster answers at {address}: {said}") from error


def _join(address: str) -> None:
    check_address(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RunFailed(f"no Ray cluster answers at {address}: {_in_short(error)}") from error


def _in_short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


@contextmanager
def _on_localhost() -> Iterator[None]:
    """Have all of Ray's servers bind to 127.0.0.1.

    They bind to all interfaces unless the node's own address is that one, and Ray replaces that one wherever it is
    given, unless this switch, meant for systems without clusters, is off.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def keep_token_private() -> None:
    """Make the token that guards a local Ray before Ray does, which lets everybody read it; mend one that is there."""
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        return
    path = Path.home() / ".ray" / "auth_token"
    with suppress(OSError):  # a home that cannot be written to: Ray says so itself where it matters
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() and os.environ.get("RAY_AUTH_MODE", "token").lower() == "token":
            _create(path, secrets.token_hex(32))
        path.chmod(path.stat().st_mode & 0o700)


def _create(path: Path, text: str) -> None:
    """A file that only its owner can read, whole from the start; one that is there already stays."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".auth_token.") as file:  # made with mode 0600
        file.write(text)
        file.flush()
        with suppress(FileExistsError):
            os.link(file.name, path)


def servers() -> dict[str, "Popen[bytes]"]:
    """The processes that a Ray started by this process cannot do without; none where it has joined a cluster."""
    node = worker._global_node
    started: dict[str, list[Any]] = node.all_processes if node is not None else {}
    return {name: started[name][0].process for name in ("gcs_server", "raylet") if started.get(name)}


def hush() -> None:
    """Keep from the user what Ray's servers say of their end, pages of it: dux tells what has happened in one line."""
    worker.print_to_stdstream = lambda *_, **__: None


def shut_down() -> None:
    """End Ray, or what is left of it, within limits: its own shutdown waits for servers that do not answer."""
    mine = servers()
    for server in mine.values():
        if server.poll() is None and is_stopped(server.pid):
            server.kill()  # whoever waits for it sees that it is gone
    ending = threading.Thread(target=ray.shutdown, name="shutdown", daemon=True)
    ending.start()
    ending.join(SHUTDOWN)
    if ending.is_alive():
        left_behind.append(ending)
        for server in mine.values():
            server.kill()
    worker.print_to_stdstream = _print_to_stdstream


def hangs() -> bool:
    """Whether something in this process still waits for a Ray that is gone."""
    return any(thread.is_alive() for thread in left_behind)
