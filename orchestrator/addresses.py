"""Where a run is: in a directory, or in an object store with a working directory on this machine."""

import hashlib
import os
import shlex
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from analysis import remote
from analysis.remote import Address, place
from spaces.errors import BadInput
from trainables.images import cache_dir

FILE = "address"  # in a working directory: which run it works for

__all__ = ["Address", "address_of", "is_there", "place", "to_resume", "working_directory"]


def working_directory(address: Address) -> Path:
    """Where a run of an object store works on this machine: in the cache folder, apart from those of other stores."""
    parts = urlsplit(address)
    asked = dict(parse_qsl(parts.query)).get("endpoint_override")
    endpoint = asked or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    folder = parts.path.rstrip("/").rpartition("/")[0]
    store = f"{endpoint.rpartition('://')[2]} {parts.scheme}://{parts.netloc}{folder}"
    return cache_dir() / "runs" / hashlib.sha256(store.encode()).hexdigest()[:16] / address.name


def address_of(folder: Path) -> Address | None:
    """The address of the run that works in this directory; None of one that is only there.

    Raises:
        BadInput: a copy of a working directory, or one that was reached by another way into the store.
    """
    try:
        found = place((folder / FILE).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not isinstance(found, Address) or working_directory(found).resolve() != folder.resolve():
        raise BadInput(f"{folder} is the working directory of {found}, or a copy of one; name the run by its address")
    return found


def to_resume(run: Path | Address) -> str:
    """What to type to go on with a run."""
    named: Path | Address = run
    if isinstance(run, Path):
        with suppress(BadInput):  # a copy of a working directory
            named = address_of(run) or run
    return f"dux resume {shlex.quote(str(named))}"


def is_there(run: Path | Address) -> bool:
    """Whether there is a run of this name, or anything else in its place. Raises `BadInput` as `remote.exists` does."""
    if isinstance(run, Address):
        return remote.exists(run, "recipe.yaml") or working_directory(run).exists()
    return run.exists()
