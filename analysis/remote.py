"""Runs in an object store: their addresses, and what is read of them through pyarrow.

Credentials come from the environment as pyarrow reads them (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_ENDPOINT_URL, ...), never from an address.
"""

import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qsl, unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from analysis.errors import BadInput, unknown

# After a `?`. pyarrow takes keys there too; dux does not, since addresses are printed and stored.
OPTIONS = {
    "s3": ("endpoint_override", "region", "scheme", "tls_ca_file_path"),
    "gs": ("endpoint_override", "scheme"),
    "abfs": ("dfs_storage_authority", "blob_storage_authority", "enable_tls"),
}
SCHEMES = tuple(OPTIONS)
SECONDS = 5.0  # without an answer, asked twice
TABLES = ("trials.parquet", "epochs.parquet")
READERS = 8  # requests at a time
_MEANING = {
    r"NO_SUCH_BUCKET": "the bucket does not exist",
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|UNRECOGNIZED_CLIENT|INVALID_CLIENT_TOKEN|OAuth2|credential": (
        "the object store refuses access: set its credentials in the environment, as in AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY"
    ),
    r"NETWORK_CONNECTION|REQUEST_TIMEOUT|curlCode": "no object store answers there (AWS_ENDPOINT_URL names another)",
}


class Address(str):
    """A folder or a file in an object store, such as `s3://bucket/runs/a`; `/` joins names, as of a path.

    What follows a `?` is for pyarrow, as in `s3://bucket/runs?endpoint_override=localhost:9000&scheme=http`.
    """

    __slots__ = ()

    def __truediv__(self, name: str) -> "Address":
        folder, mark, options = self.partition("?")
        return Address(f"{folder.rstrip('/')}/{name}{mark}{options}")

    @property
    def name(self) -> str:
        """The last part."""
        return PurePosixPath(self.partition("?")[0]).name

    @property
    def suffix(self) -> str:
        """The ending of the name, such as `.parquet`."""
        return PurePosixPath(self.name).suffix


def place(text: str | Path) -> Path | Address:
    """What the user means: a path, or an address in an object store.

    Raises:
        BadInput: an address of an unknown kind, without a bucket, or with credentials in it (which are not repeated).
    """
    if isinstance(text, Path):
        if re.match(rf"({'|'.join(SCHEMES)}):/[^/]", str(text)):
            raise BadInput(f"{text}: an address is given as text; a Path loses one of its slashes")
        return text
    if "://" not in text:
        return Path(text)
    scheme = text.partition("://")[0]
    if scheme not in SCHEMES:
        raise unknown("kind of address", f"{scheme}://", [f"{name}://" for name in SCHEMES])
    parts = urlsplit(text)
    if parts.password is not None or (scheme == "s3" and "@" in parts.netloc) or "@" in unquote(parts.query):
        raise BadInput(f"a {scheme}:// address holds no credentials: set them in the environment")
    if not parts.netloc or ".." in parts.path.split("/"):
        raise BadInput(f"{text} names no folder in a bucket, as {scheme}://bucket/runs does")
    for name, _ in parse_qsl(parts.query, keep_blank_values=True):
        if name not in OPTIONS[scheme]:
            raise unknown(f"option of {scheme}:// addresses", name, OPTIONS[scheme])
    return Address(text)


def opened(address: Address) -> tuple[fs.FileSystem, str]:
    """The store's file system, which gives up in time, and the path in it."""
    parts = urlsplit(address)
    if parts.scheme != "s3":
        limit = "retry_limit_seconds=5" if parts.scheme == "gs" else ""
        return fs.FileSystem.from_uri(f"{address}{'&' if parts.query else '?'}{limit}" if limit else str(address))
    environment = tuple(item for item in sorted(os.environ.items()) if item[0].startswith("AWS_"))
    return _s3(parts.netloc, parts.query, SECONDS, environment), f"{parts.netloc}{unquote(parts.path)}".rstrip("/")


@lru_cache(8)
def _s3(bucket: str, query: str, seconds: float, environment: tuple[tuple[str, str], ...]) -> fs.FileSystem:
    """Made once, since it may ask AWS for the region and keeps connections; anew when the environment has changed.

    Not by `from_uri`, which asks a store that is silent for 100 seconds.
    """
    options = dict(parse_qsl(query))
    options.setdefault("endpoint_override", _variable("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"))
    options.setdefault("region", _variable("AWS_REGION", "AWS_DEFAULT_REGION"))
    if not options["endpoint_override"] and not options["region"]:
        options["region"] = fs.resolve_s3_region(bucket)
    retry = fs.AwsStandardS3RetryStrategy(max_attempts=2)
    given = {name: value for name, value in options.items() if value}
    return fs.S3FileSystem(request_timeout=seconds, connect_timeout=seconds, retry_strategy=retry, **given)


def _variable(*names: str) -> str:
    """The first of these environment variables that is set."""
    return next(filter(None, map(os.environ.get, names)), "")


@contextmanager
def plainly(address: Address) -> Iterator[None]:
    """Say in one line what a store refuses. What is not there stays a `FileNotFoundError`."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowInvalid) as error:
        raise BadInput(f"{address}: {meaning(error)}") from error


def meaning(error: Exception) -> str:
    """What a store's error means to the user, in one line."""
    text = " ".join(str(error).split())
    said = (meant for sign, meant in _MEANING.items() if re.search(sign, text))
    return next(said, text[:200])


def exists(address: Address, name: str) -> bool:
    """Whether a run has a file.

    Raises:
        BadInput: no bucket, no access, or no answer.
    """
    with plainly(address):
        system, path = opened(address / name)
        if system.get_file_info(path).type == fs.FileType.File:
            return True
        with suppress(OSError):  # keys that are limited to a folder may not look at the bucket
            if system.get_file_info(path.partition("/")[0]).type == fs.FileType.NotFound:
                raise BadInput(f"{address}: the bucket does not exist")
        return False


def read(address: Address) -> bytes | None:
    """A file's contents; None where there is none. Raises `BadInput` as `exists` does."""
    try:
        with plainly(address):
            system, path = opened(address)
            with system.open_input_file(path) as file:  # as a stream it would be a request for each 64 KiB
                return bytes(file.read())
    except FileNotFoundError:
        return None


def names(address: Address, recursive: bool = False) -> list[str]:
    """The files of a folder, as they are called within it, in order."""
    with plainly(address):
        system, path = opened(address)
        found = system.get_file_info(fs.FileSelector(path, recursive=recursive, allow_not_found=True))
    inner = [info.path.removeprefix(f"{path}/") for info in found if info.type == fs.FileType.File]
    return sorted(name for name in inner if ".." not in name.split("/"))


def ledger_parts(address: Address) -> list[tuple[int, bytes]]:
    """The parts of a run's ledger: where each begins in it, and its lines. Together they are its beginning."""
    folder = address / "ledger"
    found = [name for name in names(folder) if re.fullmatch(r"\d{12}\.jsonl", name)]
    with ThreadPoolExecutor(READERS) as threads:
        contents = threads.map(lambda name: read(folder / name), found)
        parts, end = [], 0
        for name, data in zip(found, contents, strict=True):
            if data is None or int(name[:12]) != end:
                continue  # of a longer ledger that was cut
            parts.append((end, data[: data.rfind(b"\n") + 1]))
            end += len(parts[-1][1])
    return parts


@contextmanager
def fetched(address: Address) -> Iterator[Path]:
    """A folder with copies of a run's ledger and tables, while the block runs.

    Raises:
        BadInput: there is none; no bucket, no access, or no answer.
    """
    with tempfile.TemporaryDirectory(prefix="dux-") as made:
        folder = Path(made)
        parts = ledger_parts(address)
        if not parts:
            exists(address, "recipe.yaml")  # says so where there is no bucket
            raise BadInput(f"{address} is not a run: it has no ledger")
        (folder / "ledger.jsonl").write_bytes(b"".join(data for _, data in parts))
        for name in TABLES:
            data = read(address / name)
            if data is not None:
                (folder / name).write_bytes(data)
        try:
            yield folder
        except BadInput as error:
            here = f"dux resume {shlex.quote(address)} brings it here and says what to type"
            text = re.sub(r"sed -i .*", lambda _: here, str(error))
            raise BadInput(text.replace(str(folder), address)) from error


@contextmanager
def local(source: Path | Address) -> Iterator[Path]:
    """A file on this machine: itself, or a copy of one in an object store while the block runs."""
    if isinstance(source, Path):
        yield source
        return
    data = read(source)
    if data is None:
        raise BadInput(f"{source} does not exist")
    with tempfile.TemporaryDirectory(prefix="dux-") as made:
        copy = Path(made, source.name)
        copy.write_bytes(data)
        yield copy
