"""A trial's checkpoint: what it goes on from, as long as it is whole and its own."""

import io
import zipfile
from collections.abc import Mapping
from pickle import UnpicklingError
from typing import Any

import torch

from spaces.seeding import stable_hash

Json = dict[str, Any]


def checkpoint_name(number: int) -> str:
    """The checkpoint of a stage's trial, within the stage's folder."""
    return f"checkpoints/{number:05d}.pt"


def identity(config: Mapping[str, Any]) -> str:
    """What a trial's epochs follow from, as a hash: not its number, which another may have had before it.

    (A ledger that was cut off goes on with other proposals, whose numbers are those of files that are still there.)
    """
    names = ("arch", "seed", "control", "settings")
    parent = config["parent"]
    return stable_hash([*(config[name] for name in names), None if parent is None else identity(parent)])


def packed(state: Mapping[str, Any], config: Mapping[str, Any]) -> memoryview:
    """A trial's state as the contents of a file."""
    # Through memory: torch's own writer says of a full disk only that it failed.
    buffer = io.BytesIO()
    torch.save({**state, "of": identity(config)}, buffer)
    return buffer.getbuffer()


def unpacked(data: bytes | None, config: Mapping[str, Any] | None, device: str | torch.device) -> Json | None:
    """What was packed; None if it is missing, damaged or another trial's, since all of it can be computed again.

    Args:
        config: the trial's; None takes any trial's.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data or b"")) as archive:
            if any(entry.compress_type for entry in archive.infolist()):  # torch writes them as they are
                return None
            if archive.testzip() is not None:  # torch writes checksums, but does not look at them
                return None
        state: Json = torch.load(io.BytesIO(data or b""), map_location=device, weights_only=True)
        mine = config is None or state["of"] == identity(config)
    except torch.OutOfMemoryError:  # no fault of the file
        raise
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, UnpicklingError):
        return None
    return state if mine else None
