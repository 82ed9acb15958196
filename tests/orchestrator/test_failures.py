"""What becomes of trials that fail: which are begun again and how often, when a stage gives up, and what is said."""

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import analysis
import spaces
from orchestrator import schedulers
from orchestrator.book import Book, Proposal
from orchestrator.errors import CannotGoOn
from orchestrator.failures import begin_again, commonest, said_of
from orchestrator.feasible import Feasible
from orchestrator.ledger import Ledger
from orchestrator.proposers import PopulationProposer, SearchProposer
from orchestrator.recipe import Recipe
from orchestrator.search import BookScheduler, BookSearcher
from orchestrator.specs import StageSpec
from orchestrator.stage import TrialsFailed, check_failures, survivors
from spaces import BadInput, Space, Task
from trainables.failures import WorkerSpoilt, reason, spoils, timed
from trainables.fit import NonFiniteLoss

RECIPE = {"name": "r", "task": {"dataset": "digits"}, "space": {"name": "resnet"}}
SCORE = {"name": "only", "trial": "score", "scores": ["params"]}
OPEN: list[Ledger] = []
DISTILL = {"name": "only", "trial": "distill", "epochs": 4}


class Stage:
    """A stage's book in a ledger, and the searcher that Tune would ask."""

    def __init__(self, folder: Path, spec: dict[str, Any] = DISTILL, waits: bool = False, **keys: Any) -> None:
        self.recipe = Recipe.parse({**RECIPE, "stages": [spec], **keys})
        self.spec: StageSpec = self.recipe.stages[0]
        self.path = folder / "ledger.jsonl"
        self.ledger = Ledger(self.path)
        OPEN.append(self.ledger)
        if not self.path.stat().st_size:
            self.ledger.append("run", schema=1, name="r", recipe="r", dux="0")
            about = {"objective": {}, "combine": "sum", "sampler": "random", "scheduler": "none"}
            about |= {"epochs": 4, "seeds": 1, "control": False, "keep": None}
            self.ledger.append("stage", stage="only", index=1, trial=self.spec.trial, **about)
        rule = schedulers.make("none", {}, 4, 0)
        combine = "rank" if self.spec.trial == "score" else "sum"
        self.book = Book(self.spec, self.ledger, rule, combine, self.recipe.max_failures, self.recipe.max_failure_rate)
        for event in analysis.events(folder):
            if event.get("stage") == "only":
                self.book.apply(event)
        self.book.mend()
        self.why: dict[str, str] = {}

    def searcher(self, proposer: Any, chunk: int = 1) -> BookSearcher:
        def numbers(trials: list[Any]) -> dict[str, Any]:
            return {"numbers": [trial.number for trial in trials]}

        return BookSearcher(self.book, proposer, numbers, self.path.parent, chunk, self.why)

    def state(self) -> Any:
        trials = [(t.number, t.status, t.reason, t.ended, t.epoch, len(t.lost)) for t in self.book.trials.values()]
        return trials, self.book.proposals, self.book.hopeless, [t.number for t in self.book.unfinished()]


class Listed:
    """Proposes so many students, whatever is known of them."""

    waits = learns = False

    def __init__(self, total: int) -> None:
        self.total, self.asked, self.first = float(total), 0, ()

    def propose(self, book: Book) -> Proposal | None:
        self.asked += 1
        number = len(book.proposals)
        return Proposal({"width": number}, f"{number:016x}", {}, until=4) if number < self.total else None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def report(book: Book, number: int, epoch: int = 4, objective: float = 0.5) -> None:
    book.report(number, epoch, {"objective": objective}, seconds=0.1, worker="w:1")


def finish(book: Book, number: int) -> None:
    report(book, number)
    book.end(number, "completed")


# A lost worker


@pytest.mark.parametrize("max_failures", [0, 2])
def test_a_lost_trial_is_begun_again_as_often_as_the_recipe_says(folder: Path, max_failures: int) -> None:
    stage = Stage(folder, max_failures=max_failures)
    searcher = stage.searcher(Listed(1))
    for attempt in range(max_failures + 1):
        assert searcher.suggest(f"t{attempt}") == {"numbers": [0]}
        assert searcher.suggest("more") is None  # it may come back
        stage.why[f"t{attempt}"] = "its worker was killed" if attempt else "out of memory"
        searcher.on_trial_complete(f"t{attempt}", error=True)
    assert searcher.suggest("last") == "FINISHED"
    trial = stage.book.trials[0]
    often = "failed 3 times, the last time: its worker was killed"
    assert (trial.status, trial.reason) == ("failed", often if max_failures else "out of memory")


def test_losses_are_counted_over_resumes(folder: Path) -> None:
    for session in range(3):
        stage = Stage(folder, max_failures=2)
        searcher = stage.searcher(Listed(1))
        assert searcher.suggest("t") == {"numbers": [0]}, session
        stage.why["t"] = "its worker was killed"
        searcher.on_trial_complete("t", error=True)
    assert stage.book.trials[0].status == "failed"
    assert Stage(folder).state() == stage.state()
    table = analysis.load(folder).trials
    assert table[["status", "lost"]].to_dict("records") == [{"status": "failed", "lost": 3}]


def test_an_end_that_a_kill_cut_off_is_written_by_the_next_session(folder: Path) -> None:
    stage = Stage(folder, max_failures=0)
    stage.searcher(Listed(1)).suggest("t")
    stage.book.lose(0, "its worker was killed", alone=True)
    lines = stage.path.read_text().splitlines(keepends=True)
    assert [json.loads(line)["event"] for line in lines[-2:]] == ["lost", "end"]
    stage.path.write_text("".join(lines[:-1]))
    again = Stage(folder, max_failures=0)
    assert again.state() == stage.state()


def test_of_a_lost_chunk_nobody_is_blamed_and_each_goes_alone(folder: Path) -> None:
    """Eight candidates in one worker, the third of which kills it: the others are scored, and it alone fails."""
    stage = Stage(folder, SCORE, max_failures=1)
    searcher = stage.searcher(Listed(8), chunk=8)
    assert searcher.suggest("all") == {"numbers": list(range(8))}
    finish(stage.book, 0)
    finish(stage.book, 1)
    stage.why["all"] = "its worker was killed"
    searcher.on_trial_complete("all", error=True)
    handed: list[int] = []
    while isinstance(config := searcher.suggest(name := f"t{len(handed)}"), dict):
        [number] = config["numbers"]
        handed.append(number)
        stage.why[name] = "its worker was killed"
        if number == 2:
            searcher.on_trial_complete(name, error=True)
        else:
            finish(stage.book, number)
    assert handed == [2, 2, 3, 4, 5, 6, 7]
    assert [t.status for t in stage.book.trials.values()] == ["completed"] * 2 + ["failed"] + ["completed"] * 5
    assert stage.book.trials[2].reason == "failed 2 times, the last time: its worker was killed"


def test_the_only_one_that_a_lost_chunk_had_left_is_blamed(folder: Path) -> None:
    stage = Stage(folder, SCORE, max_failures=0)
    searcher = stage.searcher(Listed(2), chunk=2)
    assert searcher.suggest("all") == {"numbers": [0, 1]}
    finish(stage.book, 0)
    stage.why["all"] = "its worker was killed"
    searcher.on_trial_complete("all", error=True)
    assert [trial.status for trial in stage.book.trials.values()] == ["completed", "failed"]


class LastReport:
    """A trial of Tune's whose last report has come."""

    config: ClassVar = {"number": 0}


def test_a_disk_in_trouble_is_no_trial_s_fault_even_in_its_last_report(folder: Path) -> None:
    """Tune prints what its scheduler raises of a last report, and has the trial fail of it."""
    stage = Stage(folder, max_failures=0)
    searcher = stage.searcher(Listed(2))
    searcher.suggest("t")
    scheduler = BookScheduler(stage.book, lambda numbers: None)
    report = {"number": 0, "seconds": 0.1, "disk": [errno.EDQUOT, "Disk quota exceeded"], "done": True}
    scheduler.on_trial_complete(None, LastReport(), {"reports": [report]})  # type: ignore[arg-type]
    searcher.on_trial_complete("t", error=True)
    assert str(stage.book.failure) == f"[Errno {errno.EDQUOT}] Disk quota exceeded"
    assert (stage.book.trials[0].status, stage.book.trials[0].lost) == ("waiting", [])
    assert searcher.suggest("more") == "FINISHED"  # Tune would ask for ten minutes where nothing runs
    assert scheduler.failure is stage.book.failure  # for which the experiment is ended


def test_a_population_that_does_not_come_to_its_end_has_no_survivors(folder: Path) -> None:
    """Its last generation can be begun again; what it would start from stays."""
    spec = {**DISTILL, "scheduler": {"name": "pbt", "population": 2, "interval": 2}}
    spec |= {"optimizer": {"learning_rate": {"choice": [0.1, 0.2]}}}
    arch = {"depth1": 1, "depth2": 1, "depth3": 1, "width": 4}
    stage = Stage(folder, spec, student=arch)
    book, proposer = stage.book, PopulationProposer(stage.spec, Proposal(arch, "student", {}), 0)
    for fails in (False, True):
        for _ in range(2):
            proposal = proposer.propose(book)
            assert proposal is not None
            book.propose(proposal)
        for trial in book.unfinished():
            if fails:
                book.end(trial.number, "failed", "ValueError: bad")
            else:
                report(book, trial.number, 2)
                book.end(trial.number, "completed")
    assert proposer.propose(book) is None
    with pytest.raises(TrialsFailed, match="2 of 4 trials failed; ValueError: bad"):
        survivors(book, last=True)


def test_the_reason_is_that_of_a_trial_that_failed(folder: Path) -> None:
    stage = Stage(folder, SCORE, max_failure_rate=0.2)
    searcher = stage.searcher(Listed(3))
    for number in range(3):
        searcher.suggest(f"t{number}")
    for number in range(2):
        stage.book.report(number, 0, {"params": 1.0}, seconds=0.1, worker="w:1", reasons={"snip": "not defined"})
        stage.book.end(number, "completed")
    stage.book.end(2, "failed", "MemoryError: too large")
    with pytest.raises(TrialsFailed, match="MemoryError: too large"):
        check_failures(stage.book, at_end=True)


def test_a_proposer_that_has_no_more_is_not_asked_again(folder: Path) -> None:
    stage, proposer = Stage(folder), Listed(1)
    searcher = stage.searcher(proposer)
    searcher.suggest("t")
    for _ in range(3):
        assert searcher.suggest("u") is None
    assert proposer.asked == 2


# Too many failures


@pytest.mark.parametrize(
    ("failed", "finished", "rate", "stops"),
    [(9, 0, 0.8, False), (10, 0, 0.8, True), (8, 2, 0.8, False), (9, 2, 0.8, True), (40, 0, 1.0, False),
     (3, 7, 0.2, True)],
)  # fmt: skip
def test_a_stage_gives_up_once_too_many_have_failed(
    folder: Path, failed: int, finished: int, rate: float, stops: bool
) -> None:
    stage = Stage(folder, max_failure_rate=rate)
    searcher = stage.searcher(Listed(failed + finished + 1))
    for number in range(failed + finished + 1):
        searcher.suggest(f"t{number}")
        if number < finished:
            finish(stage.book, number)
        elif number < failed + finished:
            stage.book.end(number, "failed", "non-finite loss in epoch 1")
    assert stage.book.hopeless == Stage(folder, max_failure_rate=rate).book.hopeless == stops
    if stops:
        assert searcher.suggest("more") == "FINISHED"
        with pytest.raises(TrialsFailed, match=r"trials failed.*; non-finite loss in epoch 1$"):
            check_failures(stage.book)
    else:
        check_failures(stage.book)


def test_a_stage_stays_given_up_whatever_was_still_reported(folder: Path) -> None:
    stage = Stage(folder, max_failure_rate=0.8)
    searcher = stage.searcher(Listed(20))
    for number in range(20):
        searcher.suggest(f"t{number}")
    for number in range(10):
        stage.book.end(number, "failed", "x")
    for number in range(10, 15):
        finish(stage.book, number)
    assert Stage(folder).book.hopeless
    assert stage.book.hopeless


def test_a_short_stage_is_judged_at_its_end(folder: Path) -> None:
    stage = Stage(folder, max_failure_rate=0.5)
    searcher = stage.searcher(Listed(3))
    for number in range(3):
        searcher.suggest(f"t{number}")
    finish(stage.book, 0)
    for number in (1, 2):
        stage.book.end(number, "failed", "x")
    check_failures(stage.book)
    with pytest.raises(CannotGoOn, match=r"2 of 3 trials failed \(max_failure_rate 0.5\); x"):
        survivors(stage.book, last=True)


# Begun again


def test_failed_trials_are_begun_again_with_what_they_have_reported(folder: Path) -> None:
    stage = Stage(folder)
    searcher = stage.searcher(Listed(3))
    for number in range(3):
        searcher.suggest(f"t{number}")
    report(stage.book, 0, epoch=2)
    for number in (0, 1):
        stage.book.end(number, "failed", "ValueError: x (own.py:3)")
    finish(stage.book, 2)
    begin_again(stage.book, Feasible(spaces.get("resnet"), Task(1, 8, 10), {}))
    assert [t.status for t in stage.book.trials.values()] == ["running", "waiting", "completed"]
    table = analysis.load(folder).trials
    assert list(table["status"]) == ["running", "waiting", "completed"]
    assert table["reason"].isna().all()
    again = Stage(folder)
    assert again.state() == stage.state()
    after = again.searcher(Listed(3))
    assert [after.suggest(name) for name in ("a", "b")] == [{"numbers": [0]}, {"numbers": [1]}]
    report(again.book, 0, epoch=4, objective=0.9)
    again.book.end(0, "completed")
    assert again.book.value(0) == 0.9
    assert analysis.load(folder).trials["status"][0] == "completed"


def test_begun_again_they_may_fail_too_often_again(folder: Path) -> None:
    stage = Stage(folder)
    searcher = stage.searcher(Listed(10))
    for _ in range(2):
        for number in range(10):
            searcher.suggest(f"t{number}")
            stage.book.end(number, "failed", "x")
        assert stage.book.hopeless
        begin_again(stage.book, Feasible(spaces.get("resnet"), Task(1, 8, 10), {}))
        assert not stage.book.hopeless
        stage = Stage(folder)
        searcher = stage.searcher(Listed(10))
    assert len(stage.book.unfinished()) == 10


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["lose", "fail", "report", "finish", "retry"]), st.integers(0, 11)),
                max_size=60))  # fmt: skip
def test_a_ledger_of_failures_replays_to_the_same_book(tmp_path_factory: Any, acts: list[tuple[str, int]]) -> None:
    folder = tmp_path_factory.mktemp("replayed")
    stage = Stage(folder, max_failures=1)
    searcher = stage.searcher(Listed(12))
    for number in range(12):
        searcher.suggest(f"t{number}")
    for act, number in acts:
        trial = stage.book.trials[number]
        if act == "retry" and trial.status == "failed":
            stage.book.retry(number)
        elif not trial.done:
            match act:
                case "lose":
                    stage.book.lose(number, "its worker was killed", alone=number % 2 == 0)
                case "fail":
                    stage.book.end(number, "failed", "x")
                case "report":
                    report(stage.book, number, epoch=min(3, (trial.epoch or 0) + 1))
                case "finish":
                    finish(stage.book, number)
    assert Stage(folder, max_failures=1).state() == stage.state()
    assert list(analysis.load(folder).trials["status"]) == [t.status for t in stage.book.trials.values()]


# Builders that fail for some architectures

OWN = """
from ray import tune
from torch import nn
PARAM_SPACE = {"width": tune.choice([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])}
def build(arch, task):
    if FAILS:
        raise ValueError(f"no such width {arch['width']}")
    return nn.Sequential(nn.Flatten(), nn.Linear(task.image_size**2, arch["width"]), nn.Linear(arch["width"], 10))
"""


def own_space(folder: Path, fails: str) -> Space:
    (folder / "own.py").write_text(OWN.replace("FAILS", fails))
    return spaces.own.load(folder / "own.py")


def proposing(stage: Stage, space: Space) -> SearchProposer:
    return SearchProposer(stage.spec, space, Feasible(space, Task(1, 8, 10), {"params": 10_000}), 0)


def test_what_cannot_be_built_is_a_failed_candidate(folder: Path) -> None:
    stage = Stage(folder, {**DISTILL, "trials": 12, "sampler": "grid"})
    searcher = stage.searcher(proposing(stage, own_space(folder, "arch['width'] % 3 == 0")))
    built = []
    while isinstance(config := searcher.suggest("t"), dict):
        built += config["numbers"]
        finish(stage.book, built[-1])
    reasons = [t.reason for t in stage.book.trials.values() if t.status == "failed"]
    assert len(built) == 8
    assert {str(r).partition("build fails")[2] for r in reasons} == {
        f" for width={width}: ValueError: no such width {width} (own.py:7)" for width in (3, 6, 9, 12)
    }
    assert analysis.load(folder).trials["params"].notna().sum() == 8
    assert Stage(folder, {**DISTILL, "trials": 12, "sampler": "grid"}).state() == stage.state()


def test_where_nothing_can_be_built_the_search_stops_early_and_goes_on_once_mended(folder: Path) -> None:
    spec = {**DISTILL, "trials": 12, "sampler": "grid", "seeds": 2}
    stage = Stage(folder, spec)
    broken = own_space(folder, "True")
    assert stage.searcher(proposing(stage, broken)).suggest("t") == "FINISHED"
    assert len(stage.book.proposals) == 5  # of two trials each
    with pytest.raises(TrialsFailed, match=r"all 10 trials failed; .*own.py: build fails for width=\d+: ValueError"):
        check_failures(stage.book)
    begin_again(stage.book, Feasible(broken, Task(1, 8, 10), {}))
    assert stage.book.hopeless  # nothing could be begun again
    mended = own_space(folder, "False")
    begin_again(stage.book, Feasible(mended, Task(1, 8, 10), {}))
    again = Stage(folder, spec)
    assert again.state() == stage.state()
    assert not again.book.hopeless
    assert [p.fault for p in again.book.proposals] == [None] * 5
    assert analysis.load(folder).trials["params"].notna().all()


def test_draws_pass_over_what_cannot_be_built(folder: Path) -> None:
    space = own_space(folder, "arch['width'] > 2")
    feasible = Feasible(space, Task(1, 8, 10), {})
    feasible.check()
    assert {arch["width"] for arch in feasible.listed()} == {1, 2}
    assert feasible.share() == 1.0  # without limits nothing is measured
    with pytest.raises(BadInput, match="build fails for width"):
        Feasible(own_space(folder, "True"), Task(1, 8, 10), {}).check()


# What is said, and what spoils a worker


def failing(error: Exception) -> dict[str, Any]:
    def work() -> dict[str, Any]:
        raise error

    return timed(work)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=["torch", "python", "cpu", "assert", "cudnn", "system"],
)
def test_what_a_fresh_worker_may_not_meet_again_gives_the_worker_up(error: Exception) -> None:
    with pytest.raises(WorkerSpoilt, match=type(error).__name__):
        failing(error)
    built = BadInput("own.py: build fails")
    built.__cause__ = error
    assert spoils(built)


@pytest.mark.parametrize("error", [NonFiniteLoss("loss"), ValueError("memory"), RuntimeError("shapes"), BadInput("x")])
def test_what_would_come_again_is_a_report_of_failure(error: Exception) -> None:
    found = failing(error)
    assert str(error) in found["failed"]
    assert found["done"]


def test_a_reason_holds_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_TOKEN", "hunter2-hunter2")
    assert "hunter2" not in failing(ValueError("refused: hunter2-hunter2"))["failed"]
    assert "hunter2" not in reason(BadInput("https://me:hunter2-hunter2@host/x"))
    assert "hunter2" not in said_of("Failure # 1 (occurred at x)\nValueError: hunter2-hunter2\n")


KILLED = """Failure # 1 (occurred at 2026-01-01_00-00-00)
The actor died unexpectedly before finishing this task.
\tclass_name: bundle_reservation_check_func
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker \
unexpectedly exits with a connection error code 2. End of file. There are some potential root causes. (1) The process \
is killed by SIGKILL by OOM killer due to high memory usage. (2) ray stop --force is called. (3) The worker is crashed.
"""
NODE = "Failure # 1 (x)\nThe actor died unexpectedly before finishing.\nThe actor is dead because its node has died."
MEMORY = "Failure # 1 (x)\nTask was killed due to the node running low on memory.\nMemory was 30.2GB / 31.8GB (0.95)"
SPOILT = "Failure # 1 (x)\nray::DistillTrial.train() (pid=1)\n  File 'a.py', line 1\n\
trainables.failures.WorkerSpoilt: MemoryError:  (own.py:3)\n"
OTHER = "Failure # 1 (x)\nray::DistillTrial.train() (pid=1)\n  File 'a.py', line 1\nImportError: no module x\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (KILLED, "its worker was killed"),
        (NODE, "its worker was lost with its machine"),
        (MEMORY, "its worker was killed, since its machine ran out of memory"),
        (SPOILT, "MemoryError:  (own.py:3)"),
        (OTHER, "its worker failed: ImportError: no module x"),
        (MEMORY + "\n" + KILLED, "its worker was killed"),  # a file tells of every failure; the last one counts
        ("", "its worker was lost"),
    ],
    ids=["killed", "node", "memory", "spoilt", "other", "last", "nothing"],
)
def test_why_a_worker_was_lost_is_one_line(text: str, said: str) -> None:
    assert said_of(text) == said


def test_the_commonest_reason_is_that_of_most_candidates_whatever_they_are_called() -> None:
    alike = [f"own.py: build fails for width {w}: ValueError: no such width {w} (own.py:7)" for w in (3, 6, 9)]
    assert commonest(["non-finite loss in epoch 2", "non-finite loss in epoch 1", *alike]) == alike[0]
    assert commonest(["", "a"]) == "a"
    assert commonest([]) == "no reason was given"


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_failures", -1), ("max_failures", 1.5), ("max_failure_rate", 0), ("max_failure_rate", 1.1)],
)
def test_keys_out_of_range_are_refused(key: str, value: float) -> None:
    with pytest.raises(BadInput, match=f"recipe: {key}: .*{value}"):
        Recipe.parse({**RECIPE, "stages": [DISTILL], key: value})
