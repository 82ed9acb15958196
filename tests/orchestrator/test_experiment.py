"""Turns that are taken in one Tune experiment, without Tune: who is asked, who waits, who goes first, how it ends."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.search import Searcher

from orchestrator import experiment
from orchestrator.errors import CannotGoOn, Interrupted
from orchestrator.experiment import MOST, Turn, TurnScheduler, TurnSearcher

SOON = 10.0  # seconds; what takes longer never comes


class Asked:
    """A turn's searcher that gives these answers, one after the other."""

    def __init__(self, *answers: Any) -> None:
        self.answers, self.completed = list(answers), []

    def suggest(self, trial_id: str) -> Any:
        return self.answers.pop(0)

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        self.completed.append((trial_id, result, error))


class Heard:
    """A turn's scheduler that remembers what it was told."""

    def __init__(self, name: str = "") -> None:
        self.name, self.heard = name, []
        self.failure: Exception | None = None

    def give_up(self) -> None:
        self.heard.append("given up")

    def on_trial_error(self, controller: Any, trial: Any) -> None:
        self.heard.append("error")

    def on_trial_result(self, controller: Any, trial: Any, result: Any) -> str:
        return f"decided by {self.name}"

    def on_trial_complete(self, controller: Any, trial: Any, result: Any) -> None:
        self.heard.append("complete")


def turn_of(*answers: Any, name: str = "", first: bool = False) -> Turn:
    return Turn(Asked(*answers), Heard(name), first)


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


def test_tune_waits_for_the_next_turn_once_all_trials_of_the_last_have_ended(searcher: TurnSearcher) -> None:
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


def test_tune_is_not_kept_waiting_while_a_trial_of_the_last_turn_is_put_away(searcher: TurnSearcher) -> None:
    first = turn_of({"x": 1}, Searcher.FINISHED)
    searcher.turns.put(first)
    searcher.suggest("a")
    assert searcher.suggest("b") is None
    assert first.over.done()
    searcher.on_trial_complete("a", error=True)
    assert first.searcher.completed == [("a", None, True)]  # type: ignore[attr-defined]


def test_a_turn_that_waits_for_results_is_asked_again(searcher: TurnSearcher) -> None:
    first = turn_of({"x": 1}, None, {"x": 2})
    searcher.turns.put(first)
    assert [searcher.suggest(name) for name in "abc"] == [{"x": 1}, None, {"x": 2}]
    assert not first.over.done()


def test_turns_go_on_beside_each_other_and_hear_of_their_own_trials(searcher: TurnSearcher) -> None:
    """A stage that begins, and ends, while a teacher is obtained."""
    teacher = turn_of({"t": 0}, None, None, None, Searcher.FINISHED)
    stage, later = turn_of({"s": 0}, {"s": 1}, Searcher.FINISHED), turn_of({"l": 0}, None)
    searcher.turns.put(teacher)
    assert searcher.suggest("a") == {"t": 0}
    searcher.turns.put(stage)
    assert [searcher.suggest(name) for name in "bc"] == [{"s": 0}, {"s": 1}]
    for name in "bc":
        searcher.on_trial_complete(name, {"of": name})
    assert searcher.suggest("d") is None
    assert (stage.over.done(), teacher.over.done()) == (True, False)
    searcher.on_trial_complete("a", {"of": "a"})
    searcher.turns.put(later)
    assert searcher.suggest("e") == {"l": 0}
    assert teacher.over.done()
    assert [of[0] for of in teacher.searcher.completed] == ["a"]  # type: ignore[attr-defined]
    assert [of[0] for of in stage.searcher.completed] == ["b", "c"]  # type: ignore[attr-defined]
    assert searcher.suggest("f") is None


def test_a_worker_that_has_become_free_gets_what_waits_before_more_is_proposed(searcher: TurnSearcher) -> None:
    """Proposing can take as long as a worker takes for what it was given."""
    searcher.turns.put(turn_of({"x": 1}, {"x": 2}, {"x": 3}, {"x": 4}))
    for name in "ab":
        assert searcher.suggest(name)
    trials = tune_trials("RUNNING", "PENDING")
    scheduler = TurnScheduler(searcher)
    assert chosen(trials, scheduler) is trials[1]
    searcher.on_trial_complete("a")
    assert searcher.suggest("c") is None
    assert searcher.suggest("c") == {"x": 3}  # once is enough
    trials[1].set_status("RUNNING")
    assert chosen(trials, scheduler) is None
    searcher.on_trial_complete("b")
    assert searcher.suggest("d") == {"x": 4}  # nothing waits


@pytest.mark.parametrize("why", ["goes first", "took long"])
def test_a_trial_is_given_to_a_worker_before_the_next_is_proposed(
    why: str, searcher: TurnSearcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher, or the first worker of all, need not wait until the others have something to do."""
    now = [0.0]
    monkeypatch.setattr(experiment.time, "monotonic", lambda: now[0])
    turn = turn_of({"x": 1}, {"x": 2}, {"x": 3}, first=why == "goes first")
    if why == "took long":
        suggest, turn.searcher.suggest = turn.searcher.suggest, lambda name: now.append(now.pop() + 1) or suggest(name)  # type: ignore[method-assign, func-returns-value]
    searcher.turns.put(turn)
    assert [searcher.suggest(name) for name in "abbc"] == [{"x": 1}, None, {"x": 2}, None]


def test_the_end_is_told_to_tune_however_often_it_asks(searcher: TurnSearcher) -> None:
    asking = Waiting(lambda: [searcher.suggest("a"), searcher.suggest("b")])
    assert asking.still()
    searcher.turns.put(None)
    assert asking.result() == [Searcher.FINISHED, Searcher.FINISHED]


def test_workers_are_kept_once_for_all_trials(searcher: TurnSearcher) -> None:
    """Tune keeps as many idle actors as it is told are wanted, by what they take."""
    raised: list[tuple[Any, int]] = []
    controller: Any = SimpleNamespace(_actor_cache=SimpleNamespace(increase_max=lambda *given: raised.append(given)))
    trial: Any = SimpleNamespace(placement_group_factory="1 CPU")
    scheduler = TurnScheduler(searcher)
    for _ in range(3):
        scheduler.on_trial_add(controller, trial)
    assert raised == [("1 CPU", MOST)]


def test_a_trial_is_decided_on_by_the_turn_that_it_is_of(searcher: TurnSearcher) -> None:
    scheduler, nobody = TurnScheduler(searcher), SimpleNamespace()
    turns = {name: turn_of(name=name) for name in ("score", "short")}
    for name, turn in turns.items():
        searcher.turn_of[f"of {name}"] = turn
    for name in (*turns, *turns):
        trial: Any = SimpleNamespace(trial_id=f"of {name}")
        assert scheduler.on_trial_result(nobody, trial, {}) == f"decided by {name}"  # type: ignore[arg-type]
        scheduler.on_trial_error(nobody, trial)  # type: ignore[arg-type]
        scheduler.on_trial_complete(nobody, trial, {})  # type: ignore[arg-type]
    assert [turn.scheduler.heard for turn in turns.values()] == [["error", "complete"] * 2] * 2  # type: ignore[attr-defined]


# Who runs next, and the end in the middle


def tune_trials(*states: str) -> list[TuneTrial]:
    trials = [TuneTrial("trial", stub=True) for _ in states]
    for trial, state in zip(trials, states, strict=True):
        trial.set_status(state)
    return trials


def chosen(trials: list[TuneTrial], scheduler: TurnScheduler | None = None) -> TuneTrial | None:
    controller: Any = SimpleNamespace(get_trials=lambda: trials)
    return (scheduler or TurnScheduler(TurnSearcher())).choose_trial_to_run(controller)


def test_an_actor_that_is_free_takes_the_newest_trial() -> None:
    """The actor of the oldest that waits may be starting, and would be called off."""
    trials = tune_trials("TERMINATED", "PENDING", "RUNNING", "PENDING", "ERROR")
    assert chosen(trials) is trials[3]


def test_nothing_is_chosen_where_nothing_waits(searcher: TurnSearcher) -> None:
    assert chosen(tune_trials("TERMINATED", "RUNNING")) is None
    assert chosen([]) is None
    scheduler = TurnScheduler(searcher)
    scheduler.turns.append(turn_of(first=True))
    assert chosen(tune_trials("RUNNING"), scheduler) is None


def test_a_teacher_goes_first_however_many_newer_trials_wait(searcher: TurnSearcher) -> None:
    """Or it would wait until all are scored that it need not wait for."""
    trials = tune_trials("PENDING", "RUNNING", "PENDING", "PENDING")
    scheduler = TurnScheduler(searcher)
    teacher, stage = turn_of(first=True), turn_of()
    scheduler.turns += [teacher, stage]
    searcher.turn_of |= {trial.trial_id: stage for trial in trials} | {trials[0].trial_id: teacher}
    assert chosen(trials, scheduler) is trials[0]
    trials[0].set_status("RUNNING")
    assert chosen(trials, scheduler) is trials[3]
    trials[0].set_status("TERMINATED")
    teacher.over.set_result(None)
    assert chosen(trials, scheduler) is trials[3]


@pytest.mark.parametrize("how", ["failure", "halt"])
def test_an_end_in_the_middle_kills_all_workers(
    how: str, searcher: TurnSearcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[Any] = []
    monkeypatch.setattr(ray, "kill", killed.append)
    trials = tune_trials("RUNNING", "PENDING", "RUNNING")
    for trial, actor in zip(trials, ("one", None, "another"), strict=True):
        trial.temporary_state.ray_actor = actor
    scheduler = TurnScheduler(searcher)
    done, runs = turn_of(), turn_of()
    done.over.set_result(None)
    scheduler.turns += [done, runs]
    if how == "failure":
        runs.scheduler.failure = CannotGoOn("no such file")  # type: ignore[misc]
    else:
        scheduler.halt()
        assert (done.scheduler.heard, runs.scheduler.heard) == ([], ["given up"])  # type: ignore[attr-defined]
    assert scheduler.failure is runs.scheduler.failure
    with pytest.raises(Interrupted):
        chosen(trials, scheduler)
    assert killed == ["one", "another"]
