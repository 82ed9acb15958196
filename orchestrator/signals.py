"""Ctrl-C and SIGTERM: the first ends what goes on in order, the second ends the process."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDED = 130  # the exit status by custom


@contextmanager
def at_the_command_line() -> Iterator[None]:
    """The first Ctrl-C or SIGTERM says so and interrupts the block; another one ends the process at once.

    Nothing is lost by that: what the ledger has taken in is on the disk. A signal that is ignored stays so (`nohup`).
    """
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}

    def first(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, lambda *_: os._exit(ENDED))
        os.write(2, b"dux: interrupted; once more ends it at once\n")
        raise KeyboardInterrupt

    for each, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(each, first)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM (Slurm, Kubernetes, `timeout`) interrupt the block as Ctrl-C does, where it has no handler but Ray's.

    Does nothing outside the main thread, where signals never arrive.
    """
    before = signal.getsignal(signal.SIGTERM)
    free = before is signal.SIG_DFL or str(getattr(before, "__module__", "")).startswith("ray.")
    if not free or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def kept() -> Iterator[None]:
    """Take back SIGTERM after the block, in which Ray puts a handler of its own in place."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
