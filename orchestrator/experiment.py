"""A run's one Tune experiment, whose workers stay from its teachers to its end: all that builds a `tune.Tuner`.

Tune knows of no stages. Its searcher and its scheduler hand on to those whose turn it is: of a stage, and beside it of
teachers that are still to be had. Where there is nothing to do the searcher keeps Tune waiting, while its workers wait
with all that they have imported.
"""

import logging
import shutil
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future
from concurrent.futures import wait as wait_for
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Protocol

import ray
from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from orchestrator import cluster
from orchestrator.disk import TUNE
from orchestrator.errors import CannotGoOn, Interrupted
from orchestrator.nodes import AsManyAsFit, trials_held
from orchestrator.search import Config
from orchestrator.specs import Resources
from orchestrator.watch import LEAVE, TICK, ClusterLost, Watch, watched
from trainables import heartbeat
from trainables.contracts import Data
from trainables.worker import Worker

MOST = 10**6  # workers
LONG = 0.1  # seconds to propose a trial in; Tune waits for as long, where nothing happens, before it asks again


class Proposes(Protocol):
    """What a turn has of a Tune searcher."""

    def suggest(self, trial_id: str) -> Config | str | None:
        """A Tune trial's config, None to wait for what is running, or `Searcher.FINISHED`: the turn is over."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A Tune trial of the turn has ended."""


class Decides(Protocol):
    """What a turn has of a Tune scheduler."""

    @property
    def failure(self) -> Exception | None:
        """Why the whole experiment is to end, if it is."""

    def give_up(self) -> None:
        """Write nothing more, whatever still comes."""

    def on_trial_error(self, tune_controller: TuneController, trial: TuneTrial) -> None:
        """A Tune trial's worker was lost."""

    def on_trial_result(self, tune_controller: TuneController, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Whether a Tune trial goes on."""

    def on_trial_complete(self, tune_controller: TuneController, trial: TuneTrial, result: dict[str, Any]) -> None:
        """A Tune trial's last result."""


@dataclass(frozen=True)
class Turn:
    """Who speaks for a stage, or for teachers; whether its trials go first; and whether it is over."""

    searcher: Proposes
    scheduler: Decides
    first: bool = False
    over: "Future[None]" = field(default_factory=Future)


class Experiment:
    """Tune in a thread of its own, from the first turn to the end of the block.

    Args:
        folder: the run's.
        data: its images, which all workers have.
        workers: trials that run at once, at most.
    """

    def __init__(self, folder: Path, data: Data, resources: Resources, workers: int | None) -> None:
        self._folder = folder.resolve() / TUNE
        self.data, self.resources, self.workers = data, resources, workers
        self._searcher = TurnSearcher()
        self._scheduler = TurnScheduler(self._searcher)
        self._ended: Future[None] = Future()
        self._thread: threading.Thread | None = None
        self._watched = ExitStack()

    def __enter__(self) -> "Experiment":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let Tune see its workers off, for seconds at most."""
        if error is not None and self._thread is not None and not self._ended.done():
            self.halt()
        self._searcher.turns.put(None)
        if self._thread is not None:
            self._thread.join(TICK if isinstance(error, ClusterLost) else LEAVE)
            if self._thread.is_alive():
                cluster.left_behind.append(self._thread)
        self._watched.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def slots(self) -> int:
        """How many trials can run at once. Raises `CannotGoOn` for none."""
        fits = trials_held(self.resources)
        if fits < 1:
            wanted = ", ".join(f"{kind} {amount:g}" for kind, amount in self.resources if amount)
            raise CannotGoOn(f"no node holds a trial: the recipe's resources ask for {wanted}")
        return min(fits, self.workers) if self.workers else fits

    def begin(self, turn: Turn) -> None:
        """Give a turn to Tune, beside any that is not over."""
        self._scheduler.turns.append(turn)
        self._searcher.turns.put(turn)
        if self._thread is None:
            self._start()

    def finish(self, turn: Turn) -> None:
        """Wait until a turn is over, or the experiment has ended.

        Raises:
            Exception: why a turn had the experiment ended, this or another; what Tune has ended of, also before this.
        """
        wait_for([turn.over, self._ended], return_when=FIRST_COMPLETED)
        if (failure := self._scheduler.failure) is not None:
            raise failure
        if not turn.over.done():
            self._ended.result()

    def halt(self) -> None:
        """End it in the middle, from any thread: nothing more is written."""
        self._scheduler.halt()
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
        shipped = tune.with_parameters(Worker, data=self.data, alive=alive)
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


def put(value: Any) -> ray.ObjectRef:
    """Something put into the cluster's object store, for as long as this process refers to it.

    What makes a kind of work from the run's images is the `shared` of a worker's config.
    """
    reference: ray.ObjectRef = watched(lambda: ray.put(value))
    return reference


class NotTunesToKeep:
    """Tune pickles searcher and scheduler into a state of its own, which dux never reads: the ledger is the truth."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class TurnSearcher(NotTunesToKeep, Searcher):
    """The searcher of whoever's turn it is, in the order in which they began; None among the turns is the end."""

    def __init__(self) -> None:
        super().__init__(metric="objective", mode="max")
        self.turns: SimpleQueue[Turn | None] = SimpleQueue()
        self.turn_of: dict[str, Turn] = {}  # by Tune's name of the trial
        self.one_waits = False  # a Tune trial, for a worker
        self._open: list[Turn] = []
        self._running = 0
        self._worker_is_free = self._to_be_given = self._ended = False

    def suggest(self, trial_id: str) -> Config | str | None:  # type: ignore[override]
        """What one of them suggests. Waits for the next turn where nothing runs: Tune would ask once a second.

        Tune asks for all that may run before it gives any of it to a worker, which would wait for what takes long to
        propose. So nothing is suggested right after that, after a trial that goes first, or when a worker becomes free
        for one that waits.
        """
        if self._to_be_given or (self._worker_is_free and self.one_waits):
            self._to_be_given = self._worker_is_free = False
            return None
        began = time.monotonic()
        while not self._ended:
            while not self.turns.empty():
                self._take()
            for turn in list(self._open):
                found = turn.searcher.suggest(trial_id)
                if found == Searcher.FINISHED:
                    self._open.remove(turn)
                    turn.over.set_result(None)
                elif found is not None:
                    self.turn_of[trial_id] = turn
                    self._running += 1
                    self._to_be_given = turn.first or time.monotonic() - began > LONG
                    return found
            if self._open or self._running:
                return None
            self._take()
            began = time.monotonic()
        return Searcher.FINISHED

    def _take(self) -> None:
        turn = self.turns.get()
        if turn is None:
            self._ended = True
        else:
            self._open.append(turn)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._running -= 1
        self._worker_is_free = True
        self.turn_of[trial_id].searcher.on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is the truth, and a resumed run is a new experiment made from it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore; see `save`."""


class TurnScheduler(NotTunesToKeep, FIFOScheduler):
    """The scheduler of the turn that a trial belongs to.

    It also ends an experiment in the middle, and not a callback of Tune's: Tune counts those that it is given, for
    which it imports the trackers that are installed, for two seconds.
    """

    def __init__(self, searcher: TurnSearcher) -> None:
        super().__init__()
        self.turns: list[Turn] = []
        self._searcher = searcher
        self._halted = False
        self._all_kept = False

    @property
    def failure(self) -> Exception | None:
        """Why a turn has the experiment ended."""
        return next((turn.scheduler.failure for turn in self.turns if turn.scheduler.failure is not None), None)

    def halt(self) -> None:
        """Have the experiment ended by its own thread, from any other: nothing more is written.

        Each trial has a checkpoint of its last epoch, or of two seconds ago, so there is nothing to wait for.
        """
        for name in ("ray", "ray.tune"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # it would complain of what is done to it
        for turn in self.turns:
            if not turn.over.done():
                turn.scheduler.give_up()
        self._halted = True

    def on_trial_add(self, tune_controller: TuneController, trial: TuneTrial) -> None:
        """Have every worker kept that has nothing to do for a while. Tune by itself ends all but one of them."""
        if not self._all_kept:
            tune_controller._actor_cache.increase_max(trial.placement_group_factory, MOST)
            self._all_kept = True

    def choose_trial_to_run(self, tune_controller: TuneController) -> TuneTrial | None:
        """The newest that waits for an actor, or one that goes first.

        It gets one that has become free, and its own is called off. That of the oldest may be starting: where trials
        take less time than an actor's start, all but one slot would never come to work.

        Raises:
            Interrupted: the experiment is to end; its actors have been killed. Tune asks at each step.
        """
        if self._halted or self.failure is not None:
            for actor in filter(None, (trial.temporary_state.ray_actor for trial in tune_controller.get_trials())):
                ray.kill(actor)
            raise Interrupted
        waiting = (trial for trial in reversed(tune_controller.get_trials()) if trial.status == TuneTrial.PENDING)
        if any(turn.first and not turn.over.done() for turn in self.turns):
            chosen = max(waiting, key=lambda trial: self._turn(trial).first, default=None)
        else:
            chosen = next(waiting, None)
        self._searcher.one_waits = chosen is not None
        return chosen

    def on_trial_error(self, tune_controller: TuneController, trial: TuneTrial) -> None:
        self._turn(trial).scheduler.on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: TuneController, trial: TuneTrial, result: dict[str, Any]) -> str:
        return self._turn(trial).scheduler.on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: TuneController, trial: TuneTrial, result: dict[str, Any]) -> None:
        self._turn(trial).scheduler.on_trial_complete(tune_controller, trial, result)

    def _turn(self, trial: TuneTrial) -> Turn:
        return self._searcher.turn_of[trial.trial_id]
