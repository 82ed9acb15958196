"""Stages that take turns in one Tune experiment, without Tune: who is asked, who waits, and how it ends."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.search import Searcher

from orchestrator.experiment import MOST, Turn, TurnScheduler, TurnSearcher

SOON = 10.0  # seconds; what takes longer never comes


class Asked:
    """A stage's searcher that gives these answers, one after the other."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.completed = list(answers), []

    def suggest(self, trial_id: str) -> Any:
        return self.answers.pop(0)

    def on_trial_complete(self, trial_id: str, result: Any, error: bool) -> None:
        self.completed.append((trial_id, result, error))


def turn_of(*answers: Any) -> Turn:
    return Turn(Asked(*answers), SimpleNamespace())  # type: ignore[arg-type]


@pytest.fixture
def searcher() -> TurnSearcher:
    return TurnSearcher()


class Waiting:
    """What a call returns that another thread makes, as Tune's does."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.found: list[Any] = []
        self._thread = threading.Thread(target=lambda: self.found.append(call()), daemon=True)
        self._thread.start()

    def still(self) -> bool:
        self._thread.join(0.2)
        return self._thread.is_alive()

    def result(self) -> Any:
        self._thread.join(SOON)
        [found] = self.found
        return found


def test_tune_waits_for_the_next_stage_once_all_trials_of_the_last_have_ended(searcher: TurnSearcher) -> None:
    first, second = turn_of({"x": 1}, Searcher.FINISHED), turn_of({"x": 2})
    searcher.turns.put(first)
    assert searcher.suggest("a") == {"x": 1}
    assert not first.over.done()
    searcher.on_trial_complete("a", {"r": 1})
    assert first.searcher.completed == [("a", {"r": 1}, False)]  # type: ignore[attr-defined]
    asking = Waiting(lambda: searcher.suggest("b"))
    assert asking.still()
    assert first.over.done()
    searcher.turns.put(second)
    assert asking.result() == {"x": 2}
    assert not second.over.done()


def test_tune_is_not_kept_waiting_while_a_trial_of_the_last_stage_is_put_away(searcher: TurnSearcher) -> None:
    first = turn_of({"x": 1}, Searcher.FINISHED)
    searcher.turns.put(first)
    searcher.suggest("a")
    assert searcher.suggest("b") is None
    assert first.over.done()
    searcher.on_trial_complete("a", error=True)
    assert first.searcher.completed == [("a", None, True)]  # type: ignore[attr-defined]


def test_a_stage_that_waits_for_results_is_asked_again(searcher: TurnSearcher) -> None:
    first = turn_of({"x": 1}, None, {"x": 2})
    searcher.turns.put(first)
    assert [searcher.suggest(name) for name in "abc"] == [{"x": 1}, None, {"x": 2}]
    assert not first.over.done()


def test_the_end_is_told_to_tune_however_often_it_asks(searcher: TurnSearcher) -> None:
    asking = Waiting(lambda: [searcher.suggest("a"), searcher.suggest("b")])
    assert asking.still()
    searcher.turns.put(None)
    assert asking.result() == [Searcher.FINISHED, Searcher.FINISHED]


def test_workers_are_kept_once_for_all_trials() -> None:
    """Tune keeps as many idle actors as it is told are wanted, by what they take."""
    raised: list[tuple[Any, int]] = []
    controller: Any = SimpleNamespace(_actor_cache=SimpleNamespace(increase_max=lambda *given: raised.append(given)))
    trial: Any = SimpleNamespace(placement_group_factory="1 CPU")
    scheduler = TurnScheduler()
    for _ in range(3):
        scheduler.on_trial_add(controller, trial)
    assert raised == [("1 CPU", MOST)]


def test_a_scheduler_speaks_for_the_stage_whose_turn_it_is() -> None:
    heard: list[Any] = []

    def stage(name: str) -> Any:
        return SimpleNamespace(
            choose_trial_to_run=lambda controller: name,
            on_trial_error=lambda *given: heard.append((name, "error")),
            on_trial_result=lambda *given: f"decided by {name}",
            on_trial_complete=lambda *given: heard.append((name, "complete")),
        )

    scheduler, nobody = TurnScheduler(), SimpleNamespace()
    assert scheduler.choose_trial_to_run(nobody) is None  # type: ignore[arg-type]
    for name in ("score", "short"):
        scheduler.now = stage(name)
        assert scheduler.choose_trial_to_run(nobody) == name  # type: ignore[arg-type, comparison-overlap]
        assert scheduler.on_trial_result(nobody, nobody, {}) == f"decided by {name}"  # type: ignore[arg-type]
        scheduler.on_trial_error(nobody, nobody)  # type: ignore[arg-type]
        scheduler.on_trial_complete(nobody, nobody, {})  # type: ignore[arg-type]
    assert heard == [(name, what) for name in ("score", "short") for what in ("error", "complete")]
