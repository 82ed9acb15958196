"""A run's one Tune experiment, whose workers stay from stage to stage: the only place that builds a `tune.Tuner`.

Tune knows of no stages. Its searcher and its scheduler hand on to those of the stage that runs; between two stages the
searcher keeps Tune waiting, while its workers wait with all that they have imported.
"""

import shutil
import threading
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_for
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from orchestrator import cluster
from orchestrator.disk import TUNE
from orchestrator.nodes import AsManyAsFit, trials_held
from orchestrator.search import BookScheduler, BookSearcher, Config, NotTunesToKeep
from orchestrator.specs import Resources
from orchestrator.watch import LEAVE, TICK, ClusterLost, Watch
from trainables import heartbeat
from trainables.context import StageContext
from trainables.trial import StudentTrial

MOST = 10**6  # workers


@dataclass(frozen=True)
class Turn:
    """A stage's turn: who speaks for it, and whether it is over."""

    searcher: BookSearcher
    scheduler: BookScheduler
    over: "Future[None]" = field(default_factory=Future)


class Experiment:
    """Tune in a thread of its own, from the first stage that is run to the end of the block.

    Args:
        folder: the run's.
        contexts: of its stages, by name.
        workers: trials that run at once, at most.
    """

    def __init__(
        self, folder: Path, contexts: Mapping[str, StageContext], resources: Resources, workers: int | None
    ) -> None:
        self._folder = folder.resolve() / TUNE
        self.contexts, self.resources, self.workers = contexts, resources, workers
        self._searcher, self._scheduler = TurnSearcher(), TurnScheduler()
        self._ended: Future[None] = Future()
        self._thread: threading.Thread | None = None
        self._watched = ExitStack()

    def __enter__(self) -> "Experiment":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let Tune see its workers off, for seconds at most. After an error `halt` has been called."""
        self._searcher.turns.put(None)
        if self._thread is not None:
            self._thread.join(TICK if isinstance(error, ClusterLost) else LEAVE)
            if self._thread.is_alive():
                cluster.left_behind.append(self._thread)
        self._watched.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, searcher: BookSearcher, scheduler: BookScheduler) -> None:
        """Wait until the searcher has nothing left, or the experiment has ended.

        Raises:
            Exception: what Tune has ended of, also since the last stage.
        """
        turn = Turn(searcher, scheduler)
        self._scheduler.now = scheduler
        self._searcher.turns.put(turn)
        if self._thread is None:
            self._start()
        wait_for([turn.over, self._ended], return_when=FIRST_COMPLETED)
        if not turn.over.done():
            self._ended.result()

    def halt(self) -> None:
        """End it in the middle, from any thread: nothing more is written."""
        if self._scheduler.now is not None:
            self._scheduler.now.halt()
        self._searcher.turns.put(None)

    def _start(self) -> None:
        alive = self._folder / heartbeat.FOLDER
        self._watched.enter_context(Watch(alive))
        context = copy_context()  # a notebook's output finds its cell by it
        self._thread = threading.Thread(target=context.run, args=(self._fit, alive), name="tune", daemon=True)
        self._thread.start()

    def _fit(self, alive: Path) -> None:
        try:
            self._tuner(alive).fit()
            self._ended.set_result(None)
        except BaseException as error:  # Ray ends a thread that waits for a head which is gone by SystemExit
            self._ended.set_exception(error)

    def _tuner(self, alive: Path) -> Tuner:
        shipped = tune.with_parameters(StudentTrial, contexts=self.contexts, alive=alive)
        resources = {"cpu": self.resources.cpu, "gpu": self.resources.gpu}
        return Tuner(
            tune.with_resources(shipped, resources),
            tune_config=TuneConfig(
                search_alg=AsManyAsFit(self._searcher, self._at_once),
                scheduler=self._scheduler,
                num_samples=-1,
                reuse_actors=True,
            ),
            run_config=RunConfig(
                name="trials",
                storage_path=str(self._folder),
                checkpoint_config=CheckpointConfig(checkpoint_at_end=False, checkpoint_frequency=0),
                failure_config=FailureConfig(max_failures=0),  # the searcher hands out again what was lost
                verbose=0,
            ),
        )

    def _at_once(self) -> int:
        """How many trials Tune may start now.

        One more than fit: with fewer, a reused actor can keep the others from ever starting. On a cluster that grows
        by demand, the one that waits brings the next node.
        """
        most = max(1, trials_held(self.resources)) + 1
        return min(most, self.workers) if self.workers else most


class TurnSearcher(NotTunesToKeep, Searcher):
    """The searcher of whichever stage's turn it is; None among the turns is the end."""

    def __init__(self) -> None:
        super().__init__(metric="objective", mode="max")
        self.turns: SimpleQueue[Turn | None] = SimpleQueue()
        self._now: Turn | None = None
        self._running: dict[str, BookSearcher] = {}  # by Tune's name of the trial

    def suggest(self, trial_id: str) -> Config | str | None:  # type: ignore[override]
        """What the stage suggests. Waits for the next one where nothing runs: Tune itself would ask once a second."""
        while True:
            if self._now is None:
                if self._running:
                    return None
                self._now = self.turns.get()
                if self._now is None:
                    self.turns.put(None)  # Tune may ask again
                    return Searcher.FINISHED
            found = self._now.searcher.suggest(trial_id)
            if found != Searcher.FINISHED:
                if found is not None:
                    self._running[trial_id] = self._now.searcher
                return found
            self._now.over.set_result(None)
            self._now = None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._running.pop(trial_id).on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the truth, and a resumed run is a new experiment made from it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore; see `save`."""


class TurnScheduler(NotTunesToKeep, FIFOScheduler):
    """The scheduler of whichever stage's turn it is; all trials of one have ended when the next begins."""

    def __init__(self) -> None:
        super().__init__()
        self.now: BookScheduler | None = None
        self._all_kept = False

    def on_trial_add(self, tune_controller: TuneController, trial: TuneTrial) -> None:
        """Have every worker kept that has nothing to do for a while. Tune by itself ends all but one of them."""
        if not self._all_kept:
            tune_controller._actor_cache.increase_max(trial.placement_group_factory, MOST)
            self._all_kept = True

    def choose_trial_to_run(self, tune_controller: TuneController) -> TuneTrial | None:
        return self.now.choose_trial_to_run(tune_controller) if self.now is not None else None

    def on_trial_error(self, tune_controller: TuneController, trial: TuneTrial) -> None:
        assert self.now is not None
        self.now.on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: TuneController, trial: TuneTrial, result: dict[str, Any]) -> str:
        assert self.now is not None
        return self.now.on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: TuneController, trial: TuneTrial, result: dict[str, Any]) -> None:
        assert self.now is not None
        self.now.on_trial_complete(tune_controller, trial, result)
