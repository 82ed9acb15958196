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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from analysis import remote
from orchestrator.addresses import FILE, Address, address_of, working_directory
from orchestrator.run_directory import Run
from spaces.errors import BadInput
from trainables.files import replacing
from trainables.store import PATIENCE, Store, StoreAway

EVERY = 5.0  # seconds between two rounds
RENEW = 15.0  # seconds after which the lease is written anew
# Seconds after which a lease that was not written anew is anybody's. What was begun under a lease must be over by then,
# however often the store was asked.
EXPIRES = PATIENCE + 60.0
PART = 1 << 17  # bytes after which the ledger's next part begins
HASTE = 10.0  # seconds of patience where a run ends because something else has failed
LEASE = "lock.json"
TOKEN = "lease"  # in the working directory: what its leases are known by
SENT = "sent"  # there, too: how long the ledger is in the store
FOLDERS = ("best", "origin", "tracking")  # besides what lies in the directory itself; `reuse` keeps the latter
NOT_SENT = ("ledger.jsonl", "lock", LEASE, TOKEN, SENT, FILE)


@contextmanager
def mirrored(run: Path | Address, new: bool = False) -> Iterator[tuple[Path, "Mirror | None"]]:
    """A run's directory on this machine; one of an object store is brought here first, and there as long as this lasts.

    Args:
        new: the directory has just been made; where the store takes nothing, it goes again.

    Raises:
        BadInput: another process holds the run, the store does not answer, or has gone on by itself.
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
        mirror.keep()
        mirror.meet()
        mirror.first()
    except BaseException as error:  # also Ctrl-C: no thread is to hold the run any longer
        if new:
            mirror.remove()
        mirror.close()
        if new and mirror.locked:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise BadInput(f"{address}: {remote.meaning(error)}") from error
        raise
    return mirror


def lease(address: Address) -> dict[str, Any] | None:
    """Who holds the run, as `{host, pid, time, token}`; None where nobody has been heard of for three minutes.

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
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):  # nobody's, or none of dux's
        return None


class Mirror:
    """Brings a working directory to its object store, and holds the run there against other machines.

    The lease is a file with the time, written anew every 15 seconds. Stores offer no lock: two machines that begin in
    the same instant can both believe that they hold the run, until one of them sees the other's lease and ends; and
    clocks must agree to less than a minute. On one machine the working directory's lock rules that out. Times are those
    of the wall clock, which goes on while a machine sleeps.

    Args:
        folder: the working directory, whose lock this process holds.
        address: of the run in the store.
    """

    def __init__(self, folder: Path, address: Address) -> None:
        self.folder, self.address = folder, address
        self._store = Store(str(address))
        self._known: dict[str, tuple[int, int]] = {}  # size and time of each file, as the store has it
        self._written: set[str] = set()  # what this mirror has put there
        self._begin = self._size = 0  # of the ledger's last part
        self._renewed = float("-inf")
        self._token = ""
        self._one, self._leasing = threading.Lock(), threading.Lock()
        self._end = threading.Event()
        self._threads: list[threading.Thread] = []
        self._discarded: list[str] = []
        self._own: Any = None
        self.locked = False  # the working directory is this process's
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
        self.locked = True
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
        self._write_lease(self._hastily())
        self._holds = True

    def meet(self) -> None:
        """Bring directory and store together: whichever has the longer ledger is right.

        But where the store has just what was sent from here, a shorter one here was cut by hand: there it is cut, too.

        Raises:
            BadInput: neither ledger is the beginning of the other.
        """
        parts = remote.ledger_parts(self.address)
        there, here = b"".join(data for _, data in parts), self._ledger()
        if here and there.startswith(here) and len(here) < len(there) == self._noted():
            parts, there = self._cut(parts, len(here)), here
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
        self._note()
        self._met = True

    def start(self) -> None:
        """Bring over what is new every few seconds, in a thread. If the store stays away, the run can note no more."""
        self._begin_thread(self.sync, EVERY)

    def keep(self) -> None:
        """Keep the lease, in a thread of its own: files may take longer than it lasts."""
        self._begin_thread(lambda: self._renew(self._store), RENEW)

    def _begin_thread(self, step: Callable[[], None], every: float) -> None:
        thread = threading.Thread(target=self._repeat, args=(step, every), name="mirror", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _repeat(self, step: Callable[[], None], every: float) -> None:
        while not self._end.wait(every):
            try:
                step()
            except Exception as error:  # also a mistake of our own: the run must not go on without its mirror
                said = f"the mirror failed: {type(error).__name__}: {error}"
                known = error if isinstance(error, OSError) and error.errno else OSError(errno.EIO, said)
                self.failure = self.failure or known
                self._end.set()
                if self._run is not None:
                    self._run.ledger.failure = self.failure
                return

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
        for thread in self._threads:
            thread.join(HASTE)
        waits = any(thread.is_alive() for thread in self._threads)  # for the store
        try:
            if self._holds and not waits:
                with suppress(OSError):
                    if self._met:
                        self._sync(self._hastily())
                    self._hastily().remove(LEASE)
        finally:
            if self._own is not None:
                self._own.close()

    def discard(self, folder: str, name: str) -> None:
        """Remove a file of the store, once the lines of the ledger that make it needless have arrived there."""
        self._discarded.append(f"{folder}/{name}")

    def remove(self) -> None:
        """Take back what this mirror has put there; nothing if others hold the run."""
        if not self._holds:
            return
        self._holds = False
        for name in (*self._written, LEASE):
            with suppress(StoreAway):
                Store(str(self.address), patience=0).remove(name)

    def _hastily(self) -> Store:
        return Store(str(self.address), patience=HASTE)

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
        # `walk` passes over folders that vanish meanwhile.
        folders = chain(islice(os.walk(self.folder), 1), *(os.walk(self.folder / name) for name in FOLDERS))
        for file in [Path(folder, name) for folder, _, names in folders for name in sorted(names)]:
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
                self._known[name] = _stamp(file)

    def _sync(self, store: Store) -> None:
        self._renew(store)
        discarded, lines = len(self._discarded), self._ledger(self._begin)  # before the files: they know no less
        for name, file in self._files():
            with suppress(FileNotFoundError):  # replaced just now; it is there the next time
                stamp = _stamp(file)
                if self._known.get(name) != stamp:
                    store.write(name, file.read_bytes())
                    self._known[name] = stamp
                    self._written.add(name)
        if len(lines) != self._size:
            self._renew(store, look=True)
            store.write(_part(self._begin), lines)
            self._written.add(_part(self._begin))
            self._size = len(lines)
            self._note()
        if self._size >= PART:
            self._begin, self._size = self._begin + self._size, 0
        for name in self._discarded[:discarded]:
            store.remove(name)
        del self._discarded[:discarded]

    def _renew(self, store: Store, look: bool = False) -> None:
        """Write the lease anew where that is due, or only `look`: it must be ours still."""
        with self._leasing:
            age = time.time() - self._renewed
            due = not 0 <= age < RENEW
            if not due and not look:
                return
            held = _lease_in(store.read(LEASE))
            if held is None or held["token"] != self._token:
                self._holds = False
                who = f"process {held.get('pid')} on {held.get('host')}" if held else "another machine"
                raise StoreAway(errno.EBUSY, f"{who} has taken the run over")
            if due:  # not asked again for longer than the last one holds: the next one might be another's
                left = EXPIRES - 2 * RENEW - (time.time() - self._renewed)
                self._write_lease(replace(store, patience=min(store.patience, max(0.0, left))))

    def _write_lease(self, store: Store) -> None:
        now = time.time()
        held = {"host": platform.node(), "pid": os.getpid(), "time": int(now), "token": self._token}
        store.write(LEASE, json.dumps(held).encode())
        self._renewed = now

    def _noted(self) -> int:
        """How long the ledger was in the store when it was last written from here."""
        try:
            return int((self.folder / SENT).read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def _note(self) -> None:
        (self.folder / SENT).write_text(str(self._begin + self._size))

    def _cut(self, parts: list[tuple[int, bytes]], end: int) -> list[tuple[int, bytes]]:
        """Cut the store's ledger; what is left of its parts."""
        store = self._hastily()
        for begin, data in parts:
            if begin >= end:
                store.remove(_part(begin))
            elif begin + len(data) > end:
                store.write(_part(begin), data[: end - begin])
        return [(begin, data[: end - begin]) for begin, data in parts if begin < end]


def _part(begin: int) -> str:
    return f"ledger/{begin:012d}.jsonl"


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns
