"""Runs as jobs of a Ray cluster: sent with dux's own code, found again by the run's name, their log streamed.

Nothing of this machine's environment goes along: the cluster has its own keys, threads and paths.
"""

import asyncio
import os
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from orchestrator.addresses import place
from orchestrator.errors import RunFailed
from orchestrator.recipe import Recipe
from orchestrator.run_directory import check_name, write_recipe
from orchestrator.same import settings_of
from spaces import BadInput
from spaces.seeding import stable_hash

PACKAGES = ("orchestrator", "trainables", "spaces", "analysis")
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
COMES_UP = 60.0  # seconds that a cluster whose dashboard answers has to take a job
DETACHED = 130  # exit code after Ctrl-C: the job goes on


def submit(recipe: Recipe | None, name: str | None, storage: str, address: str) -> int:
    """Send a run to a cluster, or find it there again; stream its log; the job's exit code.

    The job of this name that runs, or has ended well, is attached to. One that failed or was stopped is sent again:
    it goes on with the run where that stopped. Ctrl-C lets go of the job, which goes on.

    Args:
        recipe: None attaches to the job of this name as it is.
        name: of the run; default: the recipe's.
        storage: where the run lies, as the cluster sees it: a whole path that all nodes share, or an object store.
        address: of the cluster's dashboard.

    Raises:
        BadInput: a mistake in what was given; a job of this name does something else.
        RunFailed: the cluster does not answer, or the job could not be started.
    """
    storage = str(place(storage))  # which refuses credentials in it: a job's description is no place for them
    if name is None and recipe is None:
        raise BadInput("dux submit takes a RECIPE, or the --name of a run that was sent")
    name = name or (recipe.name if recipe else "")
    check_name(name)
    if recipe is not None and "://" not in storage and not PurePosixPath(storage).is_absolute():
        raise BadInput(
            f"--storage {storage}: give a whole path that all nodes of the cluster share, or an s3:// address"
        )
    with _refusals(address):
        client = _client(address)
        job = _latest(client, name)
        if recipe is not None:
            about = {"dux_run": name, "dux_storage": storage, "dux_recipe": stable_hash(settings_of(recipe))}
            if job is None or job.status in ("FAILED", "STOPPED"):
                identity = _send(client, recipe, about, after=job)
            else:
                identity = _checked(job, about)
        elif job is not None:
            identity = job.submission_id
        else:
            raise BadInput(f"the cluster at {address} has no job of a run named {name!r}; give its RECIPE to send it")
        again = shlex.join(["dux", "submit", "--name", name, "--address", address])
        stop = shlex.join(["ray", "job", "stop", identity, "--address", address])
        print(f"job {identity}; its log again: {again}; stop it: {stop}", file=sys.stderr)
        try:
            return _followed(client, identity)
        except KeyboardInterrupt:
            print(f"\ndux: the job goes on; attach to it again: {again}; stop it: {stop}", file=sys.stderr)
            return DETACHED


@contextmanager
def _refusals(address: str) -> Iterator[None]:
    """One line for what the cluster's side refuses."""
    try:
        yield
    except _faults() as error:
        # A response's body may follow; that of a wrong token goes on about where Ray looks for tokens.
        said = next(iter(str(error).splitlines()), "")[:300]
        raise RunFailed(f"{address}: {said or type(error).__name__}; a job that was sent goes on") from error


def _faults() -> tuple[type[Exception], ...]:
    """What Ray's job client raises. Not imported before: where it is missing, `_client` says what to install."""
    with suppress(ImportError):
        from aiohttp import ClientError
        from ray.exceptions import AuthenticationError

        return OSError, RuntimeError, ClientError, AuthenticationError
    return OSError, RuntimeError


def _client(address: str) -> Any:
    """A client of the cluster's dashboard; the one that was named, whatever RAY_ADDRESS says."""
    try:
        import aiohttp  # noqa: F401
        import requests  # noqa: F401
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise BadInput("dux submit needs Ray's job client: pip install 'dux-search[cluster]'") from error
    url = urlsplit(address)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise BadInput(f"--address {address}: give that of the cluster's dashboard, such as http://127.0.0.1:8265")
    try:
        port = url.port or {"http": 80, "https": 443}[url.scheme]
        socket.create_connection((url.hostname, port), timeout=10).close()  # Ray itself would wait for minutes
    except ValueError as error:
        raise BadInput(f"--address {address}: {error}") from error
    except OSError as error:
        raise RunFailed(f"no dashboard of a Ray cluster answers at {address}: {error.strerror or error}") from error
    kept = {key: os.environ.pop(key) for key in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS") if key in os.environ}
    try:
        return JobSubmissionClient(address)
    finally:
        os.environ.update(kept)


def _latest(client: Any, name: str) -> Any:
    """The last job that was sent for a run; None if there is none."""
    jobs = [job for job in client.list_jobs() if (job.metadata or {}).get("dux_run") == name]
    return max(jobs, key=lambda job: job.start_time or 0, default=None)


def _checked(job: Any, about: dict[str, str]) -> str:
    """The job's identity. Raises `BadInput` if it does something else than is asked for."""
    for key, what in (("dux_storage", "in another storage"), ("dux_recipe", "of another recipe")):
        if job.metadata.get(key) != about[key]:
            said = job.status.lower()
            raise BadInput(f"job {job.submission_id} ({said}) is a run {what}; choose another --name")
    return str(job.submission_id)


def _send(client: Any, recipe: Recipe, about: dict[str, str], after: Any) -> str:
    """Send the job; `after` is the job of this run that has failed. Ray takes an identity once only."""
    name, storage = about["dux_run"], about["dux_storage"]
    tries = int((after.metadata or {}).get("dux_try", 1)) + 1 if after is not None else 1
    command = ["python", "-m", "orchestrator.cli", "run", "recipe/recipe.yaml", "--name", name]
    command += ["--storage", storage, "--address", "auto", "--or-resume"]
    with TemporaryDirectory() as folder:
        pack(recipe, Path(folder))
        job = {
            "entrypoint": shlex.join(command),
            "submission_id": f"dux-{name}" if tries == 1 else f"dux-{name}~{tries}",
            "runtime_env": {"working_dir": folder},
            "metadata": {**about, "dux_try": str(tries)},
        }
        until = time.monotonic() + COMES_UP
        while True:
            try:
                return str(client.submit_job(**job))
            except RuntimeError as error:  # a cluster that has just been started takes no jobs yet
                if "No available agent" not in str(error) or time.monotonic() > until:
                    raise
            time.sleep(1)


def pack(recipe: Recipe, folder: Path) -> None:
    """What a job needs: dux's packages as they are installed here, and the recipe with the file of its space."""
    home = Path(__file__).parents[1]
    for package in PACKAGES:
        shutil.copytree(home / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    about = folder / f"dux_search-{version('dux-search')}.dist-info"  # runs record dux's version
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: dux-search\nVersion: {version('dux-search')}\n")
    (folder / "recipe").mkdir()  # apart, since the space's file may be named like any module
    write_recipe(recipe, folder / "recipe")


def _followed(client: Any, identity: str) -> int:
    """Show a job's log to its end; its exit code."""
    shown = 0
    while (info := client.get_job_info(identity)).status not in ENDED:
        shown = asyncio.run(_tail(client, identity, shown))
        time.sleep(0.5)
    asyncio.run(_tail(client, identity, shown))
    if info.status == "STOPPED":
        raise RunFailed(f"job {identity} was stopped; the same dux submit with its RECIPE goes on with the run")
    if info.status == "FAILED" and info.driver_exit_code is None:
        said = next(iter((info.message or "").splitlines()), "no reason was given")
        raise RunFailed(f"job {identity} failed: {said[:300]}; the same dux submit with its RECIPE goes on with it")
    return int(info.driver_exit_code or 0)


async def _tail(client: Any, identity: str, shown: int) -> int:
    """Print what a job's log holds beyond `shown` characters, until it ends or the connection does; the new count."""
    seen = 0
    async for text in client.tail_job_logs(identity):
        fresh = text[max(0, shown - seen) :]
        seen += len(text)
        if fresh:
            print(fresh, end="", flush=True)
            shown += len(fresh)
    return shown
