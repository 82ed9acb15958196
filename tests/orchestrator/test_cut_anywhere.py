"""A stage that is cut after any of its events and taken up again writes the events that an uninterrupted one writes.

A driver without Tune: the real searcher, scheduler, book, proposer and rule, and trials whose objective is a function
of what they train. One worker, and three of which a seeded draw says who reports next. `benchmarks/kill_and_resume.py`
does the same to real processes.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

import spaces
from orchestrator import schedulers
from orchestrator.book import Book, Proposal, Proposer, Trial
from orchestrator.feasible import Feasible
from orchestrator.ledger import Ledger
from orchestrator.proposers import PopulationProposer, SearchProposer
from orchestrator.recipe import Recipe
from orchestrator.samplers import SAMPLERS
from orchestrator.search import BookScheduler, BookSearcher
from orchestrator.specs import StageSpec
from spaces import BadInput, Task
from spaces.seeding import generator

SPACE = spaces.get("resnet").restrict({"depth1": [1, 2], "depth2": [1, 2], "depth3": [1, 2], "width": [2, 3, 4]})
EARLY = {"tpe": {"n_startup_trials": 3}, "gp": {"n_startup_trials": 6}, "nsga2": {"population_size": 3}}
EARLY["evolution"] = {"population": 3, "sample_size": 2}
STOPPING = {
    "none": {},
    "asha": {"reduction_factor": 2},
    "hyperband": {"reduction_factor": 2},
    "median": {"min_samples": 2},
}
TEMPERATURE = {"kd": {"weight": 0.9, "temperature": {"choice": [2, 4, 8]}}}
TRIALS = 7
CHUNK = 4  # candidates that are scored in one go
AHEAD = 8  # events that a stage is followed for after each cut: the next proposal or two are among them


@cache
def feasible() -> Feasible:
    return Feasible(SPACE, Task(1, 8, 10), {})


def stage(**changes: Any) -> StageSpec:
    spec = {"name": "only", "trial": "distill", "epochs": 4, "losses": TEMPERATURE, **changes}
    raw = {"name": "r", "task": {"dataset": "digits"}, "space": {"name": "resnet"}, "stages": [spec]}
    return Recipe.parse(raw).stages[0]


def searching(sampler: str, scheduler: str) -> tuple[StageSpec, Callable[[], Proposer]]:
    """Under a rule that stops nobody, each candidate has two trials: one with the teacher, one without."""
    more = {"control": True, "epochs": 2} if scheduler == "none" else {}
    rule, method = {"name": scheduler, **STOPPING[scheduler]}, {"name": sampler, **EARLY.get(sampler, {})}
    spec = stage(sampler=method, scheduler=rule, trials=TRIALS, **more)
    return spec, lambda: SearchProposer(spec, SPACE, feasible(), 0)


def scoring(sampler: str, trials: int = 2 * CHUNK) -> tuple[StageSpec, Callable[[], Proposer]]:
    method = {"name": sampler, **EARLY.get(sampler, {})}
    raw = {"name": "only", "trial": "score", "scores": ["snip", "params"], "sampler": method, "trials": trials}
    recipe = {"name": "r", "task": {"dataset": "digits"}, "space": {"name": "resnet"}, "stages": [raw]}
    spec = Recipe.parse(recipe).stages[0]
    return spec, lambda: SearchProposer(spec, SPACE, feasible(), 0)


class SomeCannotBeBuilt(Feasible):
    """Three of ten candidates are at fault."""

    def cost(self, arch: Mapping[str, Any]) -> Mapping[str, float]:
        if generator(self.space.hash(arch), "faulty").random() < 0.3:
            raise BadInput("cannot be built")
        return feasible().cost(arch)


def scoring_what_cannot_be_built(seed: int) -> tuple[StageSpec, Callable[[], Proposer]]:
    spec, _ = scoring("evolution", 5 * CHUNK)
    return spec, lambda: SearchProposer(spec, SPACE, SomeCannotBeBuilt(SPACE, Task(1, 8, 10), {}), seed)


def population() -> tuple[StageSpec, Callable[[], Proposer]]:
    rates = {"learning_rate": {"loguniform": [0.01, 0.5]}}
    spec = stage(scheduler={"name": "pbt", "population": 4, "interval": 2}, epochs=5, optimizer=rates)
    arch = next(iter(feasible().listed()))
    student = Proposal(arch, SPACE.hash(arch), feasible().cost(arch))
    return spec, lambda: PopulationProposer(spec, student, 3)


STAGES: dict[str, Callable[[], tuple[StageSpec, Callable[[], Proposer]]]] = {
    **{f"{m}-{r}": (lambda m=m, r=r: searching(m, r)) for m in SAMPLERS for r in STOPPING},
    **{f"{m}-scores": (lambda m=m: scoring(m)) for m in SAMPLERS},
    **{f"evolution-faults-{seed}": (lambda seed=seed: scoring_what_cannot_be_built(seed)) for seed in range(3)},
    "pbt": population,
}


@dataclass(frozen=True)
class Running:
    """What Tune holds of a trial, as far as the scheduler looks at it."""

    config: dict[str, Any]


def config_of(trials: list[Trial]) -> dict[str, Any]:
    return {"trials": [{"number": trial.number} for trial in trials]}


def lines(book: Book) -> list[str]:
    return [line for line in book._ledger.path.read_text().splitlines() if line]


def epochs(book: Book, trial: Trial) -> Iterator[dict[str, Any]]:
    """What a worker reports of a trial, from the epoch on that the book knows; some fail."""
    proposal, control = book.proposals[trial.proposal], 0.3 * trial.control
    if generator(proposal.key, "fails").random() < 0.1:
        yield {"number": trial.number, "failed": "as a test wants it", "done": True}
    elif book.stage.trial == "score":
        value = float(generator(proposal.key).random())
        yield {"number": trial.number, "epoch": 0, "metrics": {"snip": value, "params": value**2}, "done": True}
    else:
        for epoch in range((trial.epoch or proposal.start_epoch) + 1, proposal.until + 1):
            value = float(generator(proposal.key, trial.seed, epoch).random()) + 0.1 * epoch - control
            metrics = {"objective": value, "valid_accuracy": value}
            yield {"number": trial.number, "epoch": epoch, "metrics": metrics, "done": epoch == proposal.until}


def drive(book: Book, proposer: Proposer, workers: int) -> Iterator[None]:
    """A stage to its end, one report at a time; who reports next follows from how many events there are."""
    book.mend()
    chunk = CHUNK if book.stage.trial == "score" else 1
    scheduler = BookScheduler(book, lambda numbers: None)
    searcher = BookSearcher(book, proposer, config_of, Path(), chunk, scheduler.why)
    running: list[tuple[Running, Iterator[dict[str, Any]]]] = []
    while True:
        while len(running) < workers and isinstance(config := searcher.suggest(f"t{len(lines(book))}"), dict):
            trials = [book.trials[entry["number"]] for entry in config["trials"]]
            running.append((Running(config), iter([r for trial in trials for r in epochs(book, trial)])))
        if not running:
            return
        running.sort(key=lambda entry: entry[0].config["trials"][0]["number"])
        at = int(generator("order", len(lines(book))).integers(len(running)))
        tune_trial, reports = running[at]
        report = {"seconds": 0.0, "worker": "w:1", **next(reports)}
        if scheduler.on_trial_result(None, tune_trial, {"reports": [report]}) == TrialScheduler.STOP:
            del running[at]
        assert book.failure is None
        yield


def taken_up(
    spec: StageSpec, proposer: Proposer, ledger: Ledger, events: Sequence[dict], workers: int, ahead: int
) -> list[dict]:
    """What a stage that is taken up after these events writes next, without times: `ahead` events at least."""
    rule = schedulers.make(spec.scheduler.name, spec.scheduler.settings, spec.epochs or 0, 0)
    book = Book(spec, ledger, rule, "rank" if spec.trial == "score" else "sum")
    # At once, and not event by event as `Ledger.append` would: each waits for the disk.
    ledger.path.write_text("".join(json.dumps(event) + "\n" for event in events))
    for event in events:
        book.apply(event)
    for _ in drive(book, proposer, workers):
        if len(lines(book)) >= len(events) + ahead:
            break
    written = lines(book)[len(events) :]
    return [{name: value for name, value in json.loads(line).items() if name != "time"} for line in written]


# With several workers, what a sampler makes of results is no other: one that learns and one that does not will do.
CASES = [(name, 1) for name in STAGES] + [(name, 3) for name in STAGES if name.startswith(("random", "tpe", "pbt"))]


@pytest.mark.parametrize(("name", "workers"), CASES)
def test_cut_after_any_event_it_goes_on_as_if_nothing_had_happened(name: str, workers: int, tmp_path: Path) -> None:
    spec, proposer = STAGES[name]()
    with Ledger(tmp_path / "whole") as ledger:
        whole = taken_up(spec, proposer(), ledger, [], workers, ahead=10**6)
    ends = [event["status"] for event in whole if event["event"] == "end"]
    assert len(ends) == sum(event["event"] == "trial" for event in whole) >= TRIALS
    assert ("stopped" in ends) == (spec.scheduler.name in ("asha", "hyperband", "median"))
    for cut in range(1, len(whole)):
        with Ledger(tmp_path / str(cut)) as ledger:
            rest = taken_up(spec, proposer(), ledger, whole[:cut], workers, ahead=AHEAD)
        assert len(rest) >= min(AHEAD, len(whole) - cut)
        assert rest == whole[cut : cut + len(rest)], f"cut after event {cut}"


def test_what_is_left_of_a_chunk_of_scores_proposes_nothing_early(tmp_path: Path) -> None:
    """Evolution must not choose parents before all of the chunk that a kill has cut off are known."""
    spec, proposer = STAGES["evolution-scores"]()
    with Ledger(tmp_path / "whole") as ledger:
        whole = taken_up(spec, proposer(), ledger, [], 1, ahead=10**6)
    kinds = [event["event"] for event in whole]
    first_report = kinds.index("report")
    assert first_report == CHUNK
    with Ledger(tmp_path / "cut") as ledger:
        rest = taken_up(spec, proposer(), ledger, whole[: first_report + 2], 1, ahead=2 * CHUNK)
    assert [event["event"] for event in rest[: 2 * (CHUNK - 1) + 1]] == ["report", "end"] * (CHUNK - 1) + ["trial"]
