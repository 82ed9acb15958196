"""What Tune is told to run next."""

from types import SimpleNamespace
from typing import Any

from ray.tune.experiment import Trial as TuneTrial

from orchestrator.search import BookScheduler


def tune_trials(*states: str) -> list[TuneTrial]:
    trials = [TuneTrial("trial", stub=True) for _ in states]
    for trial, state in zip(trials, states, strict=True):
        trial.set_status(state)
    return trials


def chosen(trials: list[TuneTrial]) -> TuneTrial | None:
    scheduler: Any = BookScheduler(SimpleNamespace(failure=None), lambda numbers: None)  # type: ignore[arg-type]
    found: TuneTrial | None = scheduler.choose_trial_to_run(SimpleNamespace(get_trials=lambda: trials))
    return found


def test_an_actor_that_is_free_takes_the_newest_trial() -> None:
    """The actor of the oldest that waits may be starting, and would be called off."""
    trials = tune_trials("TERMINATED", "PENDING", "RUNNING", "PENDING", "ERROR")
    assert chosen(trials) is trials[3]


def test_nothing_is_chosen_where_nothing_waits() -> None:
    assert chosen(tune_trials("TERMINATED", "RUNNING")) is None
    assert chosen([]) is None
