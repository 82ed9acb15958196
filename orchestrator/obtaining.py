"""The turn of teachers that are still to be had, in the run's experiment: each is one trial of one worker."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from ray.exceptions import RayError
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from orchestrator.errors import CannotGoOn
from orchestrator.failures import why_lost
from orchestrator.search import Config


class Obtaining:
    """The searcher of teachers: hands each to a worker, and to another one where that is lost.

    Args:
        configs: what a worker is told, by the teacher's name.
        take: takes in a worker's report of a teacher.
        max_failures: how often a teacher may lose its worker.
        idle: what a worker is told that starts while there is nothing else to do.
    """

    def __init__(
        self,
        configs: Mapping[str, Config],
        take: Callable[[str, Mapping[str, Any]], None],
        max_failures: int,
        idle: Config,
    ) -> None:
        self._configs, self._take, self._max_failures, self._idle = configs, take, max_failures, idle
        self._left = list(configs)
        self._out: dict[str, str] = {}  # teachers that are worked on, by Tune's name of the trial
        self._lost: Counter[str] = Counter()
        self._spare = 0
        self.scheduler = TeachersScheduler(lambda: bool(self._left or self._out))

    def wait(self, workers: int) -> None:
        """From now on nothing else is done until all teachers are there: that many workers may as well start."""
        self._spare = max(0, workers - len(self._configs))

    def suggest(self, trial_id: str) -> Config | str | None:
        """The next teacher; None while others are worked on."""
        if self.scheduler.failure is not None or not (self._left or self._out):
            return Searcher.FINISHED
        if self._left:
            self._out[trial_id] = self._left.pop(0)
            return dict(self._configs[self._out[trial_id]])
        if self._spare:
            self._spare -= 1
            return dict(self._idle)
        return None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take in a teacher, or hand it out again."""
        name = self._out.pop(trial_id, None)
        if name is None or self.scheduler.given_up:
            return
        try:
            if error or result is None:
                self._lose(name, self.scheduler.why[trial_id])
            else:
                [report] = result["reports"]
                self._take(name, report)
        except RayError:  # the worker is gone, and with it what it has reported
            self._lose(name, "its worker was lost")
        except Exception as failure:
            self.scheduler.failure = failure

    def _lose(self, name: str, why: str) -> None:
        self._lost[name] += 1
        if self._lost[name] > self._max_failures:
            self.scheduler.failure = CannotGoOn(f"{name}: {why} ({self._lost[name]} times)")
        self._left.append(name)


class TeachersScheduler:
    """The scheduler of teachers, of which none is stopped early; but those are that only wait.

    Args:
        lacking: whether any teacher is still to be had.
    """

    def __init__(self, lacking: Callable[[], bool]) -> None:
        self._lacking = lacking
        self.failure: Exception | None = None
        self.given_up = False
        self.why: dict[str, str] = {}  # why workers were lost, by Tune's names of the trials

    def give_up(self) -> None:
        """Take in nothing more."""
        self.given_up = True

    def on_trial_error(self, tune_controller: TuneController, trial: TuneTrial) -> None:
        """Note why."""
        self.why[trial.trial_id] = why_lost(trial)

    def on_trial_result(self, tune_controller: TuneController, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Only of those that wait: a teacher's one result is its last."""
        return TrialScheduler.CONTINUE if self._lacking() else TrialScheduler.STOP

    def on_trial_complete(self, tune_controller: TuneController, trial: TuneTrial, result: dict[str, Any]) -> None:
        """The searcher hears of it, too."""
