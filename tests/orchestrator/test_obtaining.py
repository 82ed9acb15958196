"""Teachers that workers obtain: each handed out once, again where a worker is lost, and what ends the run."""

import errno
from typing import Any

import pytest
from ray.exceptions import ObjectLostError
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from orchestrator.errors import CannotGoOn
from orchestrator.obtaining import Obtaining

IDLE = {"shared": "idle"}
REPORT = {"reports": [{"trained": ["weights"], "worker": "w:1"}], "done": True}


class Taken:
    """Takes in what is reported; raises what it is told to, once each."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.found = list(errors), []

    def __call__(self, name: str, report: Any) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.found.append((name, report["trained"]))


def obtaining(take: Taken, *names: str, max_failures: int = 1) -> Obtaining:
    return Obtaining({name: {"shared": f"of {name}"} for name in names}, take, max_failures, IDLE)


def lose(handed: Obtaining, trial_id: str, why: str = "its worker was killed") -> None:
    handed.scheduler.why[trial_id] = why
    handed.on_trial_complete(trial_id, error=True)


def test_each_teacher_goes_to_one_worker_and_all_of_them_at_once() -> None:
    take = Taken()
    handed = obtaining(take, "teacher", "teacher1")
    assert [handed.suggest(name) for name in "abc"] == [{"shared": "of teacher"}, {"shared": "of teacher1"}, None]
    handed.on_trial_complete("b", REPORT)
    assert handed.suggest("d") is None
    handed.on_trial_complete("a", REPORT)
    assert handed.suggest("e") == Searcher.FINISHED
    assert take.found == [("teacher1", ["weights"]), ("teacher", ["weights"])]
    assert handed.scheduler.failure is None


def test_while_all_wait_for_a_teacher_other_workers_start_and_stay_ready_until_it_is_there() -> None:
    handed = obtaining(Taken(), "teacher")
    handed.suggest("a")
    assert handed.suggest("b") is None  # there may be other work for a worker
    handed.wait(3)  # one of them has the teacher
    assert [handed.suggest(name) for name in "bcd"] == [IDLE, IDLE, None]
    decide: Any = handed.scheduler.on_trial_result
    assert decide(None, None, {"reports": []}) == TrialScheduler.CONTINUE
    handed.on_trial_complete("b", error=True)  # no harm done
    handed.on_trial_complete("a", REPORT)
    assert decide(None, None, {"reports": []}) == TrialScheduler.STOP
    handed.on_trial_complete("c", {"reports": []})
    assert (handed.suggest("e"), handed.scheduler.failure) == (Searcher.FINISHED, None)


def test_one_whose_worker_is_lost_is_handed_out_again_and_not_for_ever() -> None:
    handed = obtaining(take := Taken(), "teacher", max_failures=1)
    handed.suggest("a")
    lose(handed, "a")
    assert handed.scheduler.failure is None
    assert handed.suggest("b") == {"shared": "of teacher"}
    lose(handed, "b", "its worker was killed, since its machine ran out of memory")
    assert isinstance(handed.scheduler.failure, CannotGoOn)
    assert str(handed.scheduler.failure) == (
        "teacher: its worker was killed, since its machine ran out of memory (2 times)"
    )
    assert handed.suggest("c") == Searcher.FINISHED
    assert take.found == []


def test_one_that_is_lost_with_its_worker_after_it_was_reported_is_obtained_again() -> None:
    handed = obtaining(take := Taken(ObjectLostError("00" * 28, None, "")), "teacher")
    handed.suggest("a")
    handed.on_trial_complete("a", REPORT)
    assert handed.suggest("b") == {"shared": "of teacher"}
    handed.on_trial_complete("b", REPORT)
    assert handed.suggest("c") == Searcher.FINISHED
    assert (handed.scheduler.failure, take.found) == (None, [("teacher", ["weights"])])


@pytest.mark.parametrize("error", [CannotGoOn("teacher: no such file"), OSError(errno.ENOSPC, "No space left")])
def test_what_cannot_be_taken_in_ends_the_experiment(error: Exception) -> None:
    handed = obtaining(Taken(error), "teacher", "teacher1")
    handed.suggest("a")
    handed.on_trial_complete("a", REPORT)
    assert handed.scheduler.failure is error
    assert handed.suggest("b") == Searcher.FINISHED


def test_a_run_that_was_given_up_takes_in_no_late_teacher() -> None:
    handed = obtaining(take := Taken(), "teacher")
    handed.suggest("a")
    handed.scheduler.give_up()
    handed.on_trial_complete("a", REPORT)
    assert (take.found, handed.scheduler.failure) == ([], None)
