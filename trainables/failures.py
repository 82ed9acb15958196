"""Why a trial failed, in one line; and which errors a fresh worker may not meet again."""

import errno
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from spaces import BadInput
from spaces.redact import redacted
from trainables.fit import NonFiniteLoss

# Errors of the disk, or of an object store that stays away: they are no trial's fault.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EREMOTEIO)
# Torch says of memory in many ways that there is too little. After any error of CUDA its process is of no more use.
_SPOILT = ("out of memory", "can't allocate memory", "ALLOC_FAILED", "CUDA error", "CUDA failure")


class WorkerSpoilt(Exception):
    """What a trial was doing ran out of memory, or broke the device's state: a fresh worker may fare better."""


def timed(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A report with the seconds that it took; an error that would come again is a report of failure, with its reason.

    Raises:
        WorkerSpoilt: out of memory, or a broken device.
    """
    started = time.perf_counter()
    try:
        report = work()
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            return {"disk": [error.errno, error.strerror], "done": True}
        if spoils(error):
            raise WorkerSpoilt(reason(error)) from None
        report = {"failed": reason(error), "done": True}
    return {"seconds": time.perf_counter() - started, **report}


def reason(error: BaseException) -> str:
    """Why a trial failed, in one line: what dux itself refuses as it is, any other error with its place."""
    if isinstance(error, NonFiniteLoss | BadInput):
        return redacted(str(error))
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    return redacted(f"{type(error).__name__}: {text} ({Path(place.filename).name}:{place.lineno})")


def spoils(error: BaseException) -> bool:
    """Whether the worker should be given up, and its trial taken up again by a fresh one."""
    return any(_spoils(cause) for cause in _with_causes(error))


def _spoils(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    known = isinstance(error, RuntimeError) and any(text in str(error) for text in _SPOILT)
    return known or isinstance(error, MemoryError)


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it was made from: what a user's builder raises arrives as a `BadInput`."""
    while error is not None:
        yield error
        error = error.__cause__
