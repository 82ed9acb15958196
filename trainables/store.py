"""A folder of whole files, on this machine's file system or in an object store."""

import errno
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from pyarrow import fs

from trainables.files import replacing

T = TypeVar("T")
PATIENCE = 120.0  # seconds for which an object store that fails is asked again
_WAITS = (0.5, 10.0)  # seconds before the second time, and at most before a later one
# What asking again does not mend.
_FINAL = re.compile("ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH|UNRECOGNIZED_CLIENT")
_SECONDS = 10.0  # without an answer


class StoreAway(OSError):
    """An object store did not answer for as long as patience lasts, or refuses; no fault of what was asked of it."""


@dataclass(frozen=True)
class Store:
    """Files by name, each either whole or absent. Only names travel when it is shipped to a worker.

    Args:
        root: a folder's path, or the address of one in an object store (`s3://bucket/runs/a`, and after a `?` what
            else pyarrow takes; its keys come from the environment, as pyarrow reads them).
        patience: seconds for which an object store that fails is asked again.

    Raises:
        StoreAway: by each method, of an object store.
    """

    root: str
    patience: float = PATIENCE

    @property
    def remote(self) -> bool:
        """Whether it is in an object store."""
        return "://" in self.root

    def within(self, name: str) -> "Store":
        """A folder of this one."""
        folder, mark, options = self.root.partition("?")
        return Store(f"{folder.rstrip('/')}/{name}{mark}{options}", self.patience)

    def read(self, name: str) -> bytes | None:
        """A file's contents; None where there is none."""
        try:
            return self._patiently(lambda: self._fetch(name)) if self.remote else Path(self.root, name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Put a file in place of the one of that name. An object store shows it once it is whole, too."""
        if self.remote:
            self._patiently(lambda: self._put(name, data))
            return
        with replacing(Path(self.root, name)) as temporary:
            temporary.write_bytes(data)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        if not self.remote:
            Path(self.root, name).unlink(missing_ok=True)
            return
        with suppress(FileNotFoundError):
            self._patiently(lambda: self._delete(name))

    def _fetch(self, name: str) -> bytes:
        system, path = _opened(self.root)
        with system.open_input_file(f"{path}/{name}") as file:  # as a stream it would be a request for each 64 KiB
            return bytes(file.read())

    def _put(self, name: str, data: bytes | memoryview) -> None:
        system, path = _opened(self.root)
        with system.open_output_stream(f"{path}/{name}") as stream:
            stream.write(data)

    def _delete(self, name: str) -> None:
        system, path = _opened(self.root)
        system.delete_file(f"{path}/{name}")

    def _patiently(self, ask: Callable[[], T]) -> T:
        until = time.monotonic() + self.patience
        wait, longest = _WAITS
        while True:
            try:
                return ask()
            except FileNotFoundError:
                raise
            except OSError as error:
                text = " ".join(str(error).split())[:200]
                if _FINAL.search(text) or time.monotonic() + wait > until:
                    raise StoreAway(errno.EREMOTEIO, f"the object store failed: {text}") from error
            time.sleep(wait)
            wait = min(2 * wait, longest)


@lru_cache
def _opened(root: str) -> tuple[fs.FileSystem, str]:
    """The file system, made once in a process (its connections are kept), and the folder's path in it.

    `analysis.remote` has its own copy: analysis stands alone.
    """
    parts = urlsplit(root)
    if parts.scheme != "s3":
        limit = "retry_limit_seconds=5" if parts.scheme == "gs" else ""
        return fs.FileSystem.from_uri(f"{root}{'&' if parts.query else '?'}{limit}" if limit else root)
    options = dict(parse_qsl(parts.query))
    options.setdefault("endpoint_override", _variable("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
    options.setdefault("region", _variable("AWS_REGION", "AWS_DEFAULT_REGION"))
    if not options["endpoint_override"] and not options["region"]:
        options["region"] = fs.resolve_s3_region(parts.netloc)
    system = fs.S3FileSystem(
        allow_delayed_open=True,  # a small file is one request instead of three
        request_timeout=_SECONDS,
        connect_timeout=_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=2),
        **{name: value for name, value in options.items() if value},
    )
    return system, f"{parts.netloc}{unquote(parts.path)}".rstrip("/")


def _variable(*names: str) -> str:
    """The first of these environment variables that is set."""
    return next(filter(None, map(os.environ.get, names)), "")
