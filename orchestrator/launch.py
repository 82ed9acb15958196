"""Starting and resuming runs: everything that is checked before, and tidied after."""

import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ray.exceptions import RayTaskError

import analysis
from analysis import remote, report
from orchestrator import cluster, mending, paths, tracking
from orchestrator.addresses import Address, address_of, is_there, to_resume, working_directory
from orchestrator.errors import Interrupted, RunFailed
from orchestrator.existing import check_run
from orchestrator.failures import begin_again
from orchestrator.mirror import Mirror, mirrored
from orchestrator.pipeline import execute
from orchestrator.prepared import Search
from orchestrator.progress import Progress
from orchestrator.recipe import Recipe
from orchestrator.replay import Replay
from orchestrator.reuse import Origin
from orchestrator.run_directory import SCORES, Run, check_new, default_name, own_recipe
from orchestrator.same import check_same
from orchestrator.scoring import reduced
from orchestrator.signals import terminated_like_interrupted
from orchestrator.watch import ClusterLost
from spaces import BadInput
from trainables.failures import reason
from trainables.files import replacing


def launch(
    recipe: Recipe | str | Path,
    overrides: Mapping[str, Any],
    storage: Path | Address,
    name: str | None,
    address: str | None,
    progress: bool | None,
    origin: Path | Address | None = None,
    or_resume: bool = False,
) -> analysis.Results:
    """See `orchestrator.run`; `origin` is its `start_from`."""
    loaded = recipe if isinstance(recipe, Recipe) and not overrides else _with(recipe, overrides)
    if or_resume and name is None:
        raise BadInput("--or-resume goes on with the run of a --name, which is missing")
    if or_resume and name is not None and is_there(storage / name):
        with mirrored(storage / name) as (path, _):
            check_run(path)
            check_same(loaded, path)
        return take_up(storage / name, address, progress)
    if name is not None:
        check_new(storage / name, name)
    tracking.check(loaded)
    search = _prepared(loaded)
    copied = None
    if origin is not None:
        if isinstance(search, Replay):
            raise BadInput("--from keeps what was trained, and a replay trains nothing; leave one of them out")
        _start_from(origin, search)  # what is wrong with it is told before anything begins
        copied = partial(_start_from, origin, search)
    if isinstance(storage, Address):
        where = storage / (name or default_name(loaded))
        folder = working_directory(where)
        with _workers(search, address) as let_go:
            Run.create(loaded, folder.parent, folder.name, copied).close()
            with mirrored(where, new=True) as (path, mirror), Run(path) as run:
                return _execute(run, search, progress, let_go, mirror)
    with _workers(search, address) as let_go, Run.create(loaded, storage, name, copied) as run:
        return _execute(run, search, progress, let_go)


def _prepared(recipe: Recipe, kept: Path | None = None) -> Search | Replay:
    return Replay.prepare(recipe) if recipe.replay else Search.prepare(recipe, kept)


def _workers(search: Search | Replay, address: str | None) -> AbstractContextManager[Callable[[], None]]:
    """Ray while the block runs, or until it calls what it is given; a replay's workers are simulated."""
    return nullcontext(lambda: None) if isinstance(search, Replay) else cluster.connected(address)


def _start_from(origin: Path | Address, search: Search, folder: Path | None = None) -> None:
    """Look whether a run can start from an earlier one, and copy what it may need into its directory, if that is given.

    Raises:
        BadInput: it cannot.
    """
    check_run(origin)
    with mirrored(origin) as (path, _):
        paths.check_links(path)  # the file of its space is executed
        known = Origin.of(path, search)
        if folder is not None:
            known.copy_to(search, folder)


def launch_scores(
    recipe: Recipe | str | Path,
    overrides: Mapping[str, Any],
    how: Mapping[str, Any],
    output: Path | None,
    storage: Path | Address,
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


def _copy(table: Path | Address, output: Path) -> None:
    try:
        with remote.local(table) as file, replacing(output) as temporary:
            shutil.copyfile(file, temporary)
    except OSError as error:
        raise RunFailed(f"{output}: {error.strerror}; the run has ended well, and its table is {table}") from error


def take_up(
    where: Path | Address, address: str | None, progress: bool | None, retry_failed: bool = False
) -> analysis.Results:
    """See `orchestrator.resume`."""
    check_run(where)
    with mirrored(where) as (path, mirror):
        check_run(path)
        # All that can be refused is refused before anything is written.
        paths.check_links(path)
        if analysis.load(path).finished:
            mending.restore(path)
            tracking.catch_up(path)
            return _results(path)
        recipe = own_recipe(path)
        tracking.check(recipe)
        search = _prepared(recipe, kept=path)
        mending.check_ledger(path, search.recipe)
        with Run.open(path) as run:
            if retry_failed:
                _begin_again(run, search)
            with _workers(search, address) as let_go:
                return _execute(run, search, progress, let_go, mirror)


def _results(path: Path) -> analysis.Results:
    """What has come out, and the run's address where it has one."""
    return replace(analysis.load(path), paths=(address_of(path) or path,))


def _begin_again(run: Run, search: Search | Replay) -> None:
    """Note that the failed trials of the stage that has not ended are begun again."""
    for stage in run.recipe.stages:
        book = search.book(stage, run.ledger)
        for event in run.events():
            if event.get("stage") == stage.name:
                book.apply(event)
        if not book.ended:
            book.mend()  # a kill may have cut off that a trial has failed
            begin_again(book, search.feasible)


def _with(recipe: Recipe | str | Path, overrides: Mapping[str, Any]) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe.overridden(overrides)
    return Recipe.load(recipe, overrides)


def _execute(
    run: Run,
    search: Search | Replay,
    progress: bool | None,
    let_go: Callable[[], None] = lambda: None,
    mirror: Mirror | None = None,
) -> analysis.Results:
    if mirror is not None:
        mirror.serve(run)
    try:
        with terminated_like_interrupted(), tracking.Tracking(run, search.space), Progress(run, progress) as shown:
            if isinstance(search, Replay):
                search.execute(run, shown)
            else:
                execute(run, search, shown)
            let_go()
            _report(run)
            run.sync()
    except (Interrupted, KeyboardInterrupt):
        _last_tables(run)
        raise RunFailed(f"interrupted; go on with it: {to_resume(run.path)}") from None
    except ClusterLost as error:
        _last_tables(run)
        cluster.shut_down()  # one that was up before, too: in a minute Ray would end this process
        raise RunFailed(f"{error}; go on with it: {to_resume(run.path)}") from error
    except OSError as error:
        if error.errno is None:
            raise
        where = error.filename or run.path
        raise RunFailed(f"{where}: {error.strerror}; go on once that is mended: {to_resume(run.path)}") from error
    except BadInput as error:  # only now: a builder that fails for some architectures, a teacher that is not there
        said = error.cause if isinstance(error, RayTaskError) else error
        raise RunFailed(f"{said}; mend it in {run.path} and go on: {to_resume(run.path)}") from error
    return _results(run.path)


def _last_tables(run: Run) -> None:
    """The tables and the report as far as the run came; they can be made from the ledger at any time."""
    with suppress(OSError):
        run.write_tables()
    _report(run)


def _report(run: Run) -> None:
    """Write the run's report. It is no part of a search, which does not fail of it."""
    try:
        report.write(run.path)
    except Exception as error:
        print(f"dux: no report: {reason(error)}; to try again: dux report {run.path}", file=sys.stderr)
