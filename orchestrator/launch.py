"""Starting and resuming runs: everything that is checked before, and tidied after."""

import logging
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import analysis
from orchestrator import cluster
from orchestrator.pipeline import Search, execute
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
    if output is not None and (output.is_dir() or not output.resolve().parent.is_dir()):
        raise BadInput(f"--output {output} can be no file: give a name in a folder that exists")
    loaded = recipe if isinstance(recipe, Recipe) and not overrides else _with(recipe, overrides)
    results = launch(reduced(loaded, **how), {}, storage, name, address, progress)
    if output is not None:
        with replacing(output) as temporary:
            shutil.copyfile(results.path / SCORES, temporary)
    return results


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
