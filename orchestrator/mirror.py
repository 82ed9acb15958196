"""A run in an object store: it works in a local directory, which a mirror brings to the store as it goes.

The ledger goes in parts, since nothing can be appended to there: the last part is written anew until it is full. Files
go before the lines of the ledger that speak of them, so that whatever has arrived is a run that can be gone on with.
"""

import errno
import fcntl
import json
import os
import platform
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from analysis import remote
from orchestrator.addresses import FILE, Address, address_of, working_directory
from orchestrator.run_directory import Run, RunFailed
from spaces.errors import BadInput
from trainables.files import replacing
from trainables.store import Store, StoreAway

EVERY = 5.0  # seconds between two rounds
RENEW = 15.0  # seconds after which the lease is written anew
EXPIRES = 60.0  # seconds after which a lease that was not written anew is anybody's
PART = 1 << 17  # bytes after which the ledger's next part begins
HASTE = 10.0  # seconds of patience where a run ends because something else has failed
LEASE = "lock.json"
TOKEN = "lease"  # in the working directory: what its leases are known by
FOLDERS = ("best", "origin")  # besides what lies in the directory itself; `reuse` keeps the latter
NOT_SENT = ("ledger.jsonl", "lock", LEASE, TOKEN, FILE)


@contextmanager
def mirrored(run: Path | Address, new: bool = False) -> Iterator[tuple[Path, "Mirror | None"]]:
    """A run's directory on this machine; one of an object store is brought here first, and there as long as this lasts.

    Args:
        new: the directory has just been made; where the store takes nothing, it goes again.

    Raises:
        BadInput: another process holds the run, the store does not answer, or has gone on by itself.
        RunFailed: what the block raises, with the run's address in what is to be typed.
    """
    address = run if isinstance(run, Address) else address_of(run)
    if address is None:
        assert isinstance(run, Path)
        yield run, None
        return
    folder = working_directory(address)
    mirror = _begun(folder, address, new)
    try:
        mirror.start()
        yield folder, mirror
    except RunFailed as error:
        raise RunFailed(str(error).replace(f"dux resume {folder}", f"dux resume {address}")) from error
    finally:
        mirror.close()


def _begun(folder: Path, address: Address, new: bool) -> "Mirror":
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_text(address)
        mirror = Mirror(folder, address)
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written to, set DUX_CACHE: {error.strerror}") from error
    try:
        mirror.hold()
        mirror.meet()
        mirror.first()
    except (OSError, ValueError) as error:
        if new:
            mirror.remove()
        mirror.close()
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise BadInput(f"{address}: {remote.meaning(error)}") from error
        raise
    return mirror


def lease(address: Address) -> dict[str, Any] | None:
    """Who holds the run, as `{host, pid, time, token}`; None where nobody does, or has not been heard of for a minute.

    Raises:
        BadInput: the store gives no answer.
    """
    found = _lease_in(remote.read(address / LEASE))
    return found if found and time.time() - found["time"] < EXPIRES else None


def held(address: Address) -> str | None:
    """Who holds the run, in words; None where nobody does, so far as can be seen. Raises `BadInput` as `lease` does."""
    found = lease(address)
    if found is None:
        return None
    return f"{found.get('pid')} on {found.get('host')}, last seen {max(0.0, time.time() - found['time']):.0f} s ago"


def _lease_in(data: bytes | None) -> dict[str, Any] | None:
    try:
        found = json.loads(data or b"null")
        return {**found, "time": float(found["time"]), "token": str(found["token"])}
    except (ValueError, TypeError, KeyError):  # nobody's, or no lease that dux has written
        return None


class Mirror:
    """Brings a working directory to its object store, and holds the run there against other machines.

    The lease is a file with the time, written anew every 15 seconds. Stores offer no lock: two machines that begin in
    the same instant can both believe that they hold the run, until one of them sees the other's lease and ends; and
    clocks must agree to less than a minute. On one machine the working directory's lock rules that out.

    Args:
        folder: the working directory, whose lock this process holds.
        address: of the run in the store.
    """

    def __init__(self, folder: Path, address: Address) -> None:
        self.folder, self.address = folder, address
        self._store = Store(str(address))
        self._sent: dict[str, tuple[int, int]] = {}  # size and time of each file, as it was sent
        self._begin = self._size = 0  # of the ledger's last part
        self._renewed = float("-inf")
        self._token = ""
        self._one = threading.Lock()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._discarded: list[str] = []
        self._holds = self._met = False
        self._run: Run | None = None
        self.failure: OSError | None = None

    def hold(self) -> None:
        """Take the lease: a free one, one that has expired, or this working directory's own.

        Raises:
            BadInput: somebody else holds the run, or the store gives no answer.
        """
        self._own = open(self.folder / TOKEN, "a+")  # noqa: SIM115 (held until `close`)
        try:
            fcntl.flock(self._own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BadInput(f"{self.address} is held by another process of this machine") from error
        self._own.seek(0)
        self._token = self._own.read() or secrets.token_hex(8)
        held = lease(self.address)
        if held and held["token"] != self._token:
            seen = time.time() - held["time"]
            raise BadInput(
                f"{self.address} is held by process {held.get('pid')} on {held.get('host')}, last seen {seen:.0f} s "
                f"ago; if it is gone, try again in {EXPIRES - seen:.0f} s"
            )
        self._own.truncate(0)
        self._own.write(self._token)
        self._own.flush()
        self._hastily().write(LEASE, self._lease())
        self._renewed, self._holds = time.monotonic(), True

    def meet(self) -> None:
        """Bring directory and store together: whichever has the longer ledger is right.

        Raises:
            BadInput: neither ledger is the beginning of the other.
        """
        parts = remote.ledger_parts(self.address)
        there, here = b"".join(data for _, data in parts), self._ledger()
        if here and here.startswith(there):
            self._bring(missing_only=True)
        elif there.startswith(here):
            self._bring(missing_only=False)
            with replacing(self.folder / "ledger.jsonl") as temporary:
                temporary.write_bytes(there)
        else:
            raise BadInput(
                f"{self.address} has gone on elsewhere since it worked in {self.folder}; remove that folder to go on "
                "with what the store holds"
            )
        if parts:
            self._begin, self._size = parts[-1][0], len(parts[-1][1])
        self._met = True

    def start(self) -> None:
        """Bring over what is new every few seconds, in a thread. If the store stays away, the run can note no more."""

        def work() -> None:
            while not self._end.wait(EVERY):
                try:
                    self.sync()
                except (StoreAway, OSError) as error:
                    self.failure = error
                    if self._run is not None:
                        self._run.ledger.failure = error
                    return

        self._thread = threading.Thread(target=work, name="mirror", daemon=True)
        self._thread.start()

    def serve(self, run: Run) -> None:
        """Work for a run: it is told of failures, and leaves to the mirror what is to be removed, or brought over."""
        self._run, run.mirror = run, self
        run.ledger.failure = self.failure

    def sync(self) -> None:
        """Bring over all that is new.

        Raises:
            StoreAway: the store stays away, or another machine has taken the run over.
        """
        with self._one:
            self._sync(self._store)

    def first(self) -> None:
        """Bring over all there is, without much patience."""
        self._sync(self._hastily())

    def close(self) -> None:
        """Bring over what can be, without much patience, and give the lease back."""
        self._end.set()
        if self._thread is not None:
            self._thread.join(HASTE)
        if self._holds and self._one.acquire(timeout=HASTE):  # else the thread still waits for the store
            try:
                with suppress(OSError):
                    if self._met:
                        self._sync(self._hastily())
                    self._hastily().remove(LEASE)
            finally:
                self._one.release()
        self._own.close()

    def discard(self, folder: str, name: str) -> None:
        """Remove a file of the store, once the lines of the ledger that make it needless have arrived there."""
        self._discarded.append(f"{folder}/{name}")

    def remove(self) -> None:
        """Take back what was brought, but for what others may have put there."""
        self._holds = False
        for name in [*self._sent, *([f"ledger/{0:012d}.jsonl"] if self._size else []), LEASE]:
            with suppress(StoreAway):
                Store(str(self.address), patience=0).remove(name)

    def _hastily(self) -> Store:
        return Store(str(self.address), patience=HASTE)

    def _lease(self) -> bytes:
        held = {"host": platform.node(), "pid": os.getpid(), "time": int(time.time()), "token": self._token}
        return json.dumps(held).encode()

    def _ledger(self, begin: int = 0) -> bytes:
        """The ledger's whole lines from a place on."""
        try:
            with open(self.folder / "ledger.jsonl", "rb") as file:
                file.seek(begin)
                data = file.read()
        except FileNotFoundError:
            return b""
        return data[: data.rfind(b"\n") + 1]

    def _files(self) -> Iterator[tuple[str, Path]]:
        """What is brought to the store besides the ledger; a stage's files are written there by its workers."""
        kept = [file for folder in FOLDERS for file in (self.folder / folder).rglob("*")]
        for file in sorted([*self.folder.iterdir(), *kept]):
            name = file.relative_to(self.folder).as_posix()
            if file.is_file() and name not in NOT_SENT and not file.name.startswith("."):
                yield name, file

    def _bring(self, missing_only: bool) -> None:
        """Fetch the run's files from the store."""
        kept = {folder: remote.names(self.address / folder, recursive=True) for folder in FOLDERS}
        inner = [f"{folder}/{name}" for folder, names in kept.items() for name in names]
        for name in [*remote.names(self.address), *inner]:
            file = self.folder / name
            if name in NOT_SENT or name.startswith(".") or (missing_only and file.exists()):
                continue
            data = remote.read(self.address / name)
            if data is not None:
                with replacing(file) as temporary:
                    temporary.write_bytes(data)
                self._sent[name] = _stamp(file)

    def _sync(self, store: Store) -> None:
        self._renew(store)
        discarded, lines = len(self._discarded), self._ledger(self._begin)  # before the files: they know no less
        for name, file in self._files():
            with suppress(FileNotFoundError):  # replaced just now; it is there the next time
                stamp = _stamp(file)
                if self._sent.get(name) != stamp:
                    store.write(name, file.read_bytes())
                    self._sent[name] = stamp
        if len(lines) != self._size:
            store.write(f"ledger/{self._begin:012d}.jsonl", lines)
            self._size = len(lines)
        if self._size >= PART:
            self._begin, self._size = self._begin + self._size, 0
        for name in self._discarded[:discarded]:
            store.remove(name)
        del self._discarded[:discarded]

    def _renew(self, store: Store) -> None:
        if time.monotonic() - self._renewed < RENEW:
            return
        held = _lease_in(store.read(LEASE))
        if held and held["token"] != self._token:
            self._holds = False
            raise StoreAway(errno.EBUSY, f"process {held.get('pid')} on {held.get('host')} has taken the run over")
        store.write(LEASE, self._lease())
        self._renewed = time.monotonic()


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns
