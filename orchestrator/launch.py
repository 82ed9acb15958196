"""Starting and resuming runs: everything that is checked before, and tidied after."""

import logging
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from ray.exceptions import RayTaskError

import analysis
from orchestrator import cluster
from orchestrator.pipeline import execute
from orchestrator.prepared import Search
from orchestrator.progress import Progress
from orchestrator.recipe import Recipe
from orchestrator.run_directory import SCORES, Run, RunFailed, check_new, check_run
from orchestrator.scoring import reduced
from orchestrator.stage import Interrupted
from spaces import BadInput
from trainables.files import replacing


def launch(
    recipe: Recipe | str | Path,
    overrides: Mapping[str, Any],
    storage: Path,
    name: str | None,
    address: str | None,
    progress: bool | None,
) -> analysis.Results:
    """See `orchestrator.run`."""
    loaded = recipe if isinstance(recipe, Recipe) and not overrides else _with(recipe, overrides)
    if name is not None:
        check_new(storage / name, name)
    search = Search.prepare(loaded)
    with cluster.connected(address), Run.create(loaded, storage, name) as run:
        return _execute(run, search, progress)


def launch_scores(
    recipe: Recipe | str | Path,
    overrides: Mapping[str, Any],
    how: Mapping[str, Any],
    output: Path | None,
    storage: Path,
    name: str | None,
    address: str | None,
    progress: bool | None,
) -> analysis.Results:
    """See `orchestrator.score`; `how` is what `scoring.reduced` takes."""
    if output is not None:
        _check_writable(output)
    loaded = recipe if isinstance(recipe, Recipe) and not overrides else _with(recipe, overrides)
    try:
        results = launch(reduced(loaded, **how), {}, storage, name, address, progress)
    except RunFailed as error:
        if output is None:
            raise
        raise RunFailed(f"{error}; then copy its {SCORES} to {output}") from error
    if output is not None:
        _copy(results.path / SCORES, output)
    return results


def _check_writable(output: Path) -> None:
    try:
        if output.is_dir():
            raise IsADirectoryError
        with tempfile.NamedTemporaryFile(dir=output.resolve().parent):
            pass
    except OSError as error:
        raise BadInput(f"--output {output} can be no file: give a name in a folder that can be written to") from error


def _copy(table: Path, output: Path) -> None:
    try:
        with replacing(output) as temporary:
            shutil.copyfile(table, temporary)
    except OSError as error:
        raise RunFailed(f"{output}: {error.strerror}; the run has ended well, and its table is {table}") from error


def take_up(path: Path, address: str | None, progress: bool | None) -> analysis.Results:
    """See `orchestrator.resume`."""
    check_run(path)
    if analysis.load(path).finished:
        return analysis.load(path)
    with Run.open(path) as run:
        search = Search.prepare(run.recipe)
        with cluster.connected(address):
            return _execute(run, search, progress)


def _with(recipe: Recipe | str | Path, overrides: Mapping[str, Any]) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe.overridden(overrides)
    return Recipe.load(recipe, overrides)


def _execute(run: Run, search: Search, progress: bool | None) -> analysis.Results:
    try:
        with _terminated_like_interrupted(), Progress(run, progress) as shown:
            execute(run, search, shown)
    except (Interrupted, KeyboardInterrupt):
        raise RunFailed(f"interrupted; go on with it: dux resume {run.path}") from None
    except OSError as error:
        if error.errno is None:
            raise
        raise RunFailed(f"{run.path}: {error.strerror}; go on once that is mended: dux resume {run.path}") from error
    except BadInput as error:  # only now: a builder that fails for some architectures, a teacher that is not there
        said = error.cause if isinstance(error, RayTaskError) else error
        raise RunFailed(f"{said}; mend it in {run.path} and go on: dux resume {run.path}") from error
    return analysis.load(run.path)


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM (Slurm, Kubernetes, `timeout`) end a run as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
