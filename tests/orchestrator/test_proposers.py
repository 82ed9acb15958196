"""Proposals are a function of (seed, book): within the limits, never twice, and the same after any interruption."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import spaces
from orchestrator import schedulers
from orchestrator.book import Book, Proposal, Proposer
from orchestrator.feasible import Feasible
from orchestrator.ledger import Ledger
from orchestrator.proposers import PopulationProposer, SearchProposer
from orchestrator.recipe import Recipe, domains_in
from orchestrator.samplers import SAMPLERS
from orchestrator.specs import StageSpec
from spaces import Task
from spaces.domains import contains
from spaces.seeding import generator

SPACE = spaces.get("resnet").restrict({"depth1": [1, 2], "depth2": [1, 2], "depth3": [1], "width": [2, 3, 4]})
LIMIT = {"params": 6_000}
# Few enough random points at first that the models have their say.
EARLY = {"tpe": {"n_startup_trials": 3}, "gp": {"n_startup_trials": 3}, "nsga2": {"population_size": 3}}
EARLY["evolution"] = {"population": 3, "sample_size": 2}
TEMPERATURES = {"kd": {"weight": 0.9, "temperature": {"choice": [2, 4, 8]}}}
RATES = {"learning_rate": {"loguniform": [0.01, 0.5]}}


def stage(sampler: str | dict[str, Any] = "random", **changes: Any) -> StageSpec:
    method = {"name": sampler, **EARLY.get(sampler, {})} if isinstance(sampler, str) else sampler
    spec = {"name": "only", "trial": "distill", "epochs": 4, "losses": TEMPERATURES, "sampler": method, **changes}
    if spec["trial"] == "score":
        del spec["epochs"], spec["losses"]
    raw = {"name": "r", "task": {"dataset": "digits"}, "space": {"name": "resnet"}, "stages": [spec]}
    return Recipe.parse(raw).stages[0]


def searched(sampler: str, **changes: Any) -> StageSpec:
    """A search of the space, of a temperature and, but for grids, of a learning rate, under ASHA."""
    asha = {"name": "asha", "min_epochs": 1, "reduction_factor": 2}
    more = {} if sampler == "grid" else {"optimizer": RATES}
    return stage(sampler, **{"scheduler": asha, "trials": 7, **more, **changes})


@cache
def feasible() -> Feasible:
    return Feasible(SPACE, Task(1, 8, 10), LIMIT)


def survivors(*params: dict[str, Any]) -> list[Proposal]:
    archs = list(feasible().listed())
    return [
        Proposal(archs[i], SPACE.hash(archs[i]), feasible().cost(archs[i]), found) for i, found in enumerate(params)
    ]


def book_of(spec: StageSpec, ledger: Ledger | None, events: Sequence[dict] = ()) -> Book:
    rule = schedulers.make(spec.scheduler.name, spec.scheduler.settings, spec.epochs or 0, 0)
    book = Book(spec, ledger, rule, "rank" if spec.trial == "score" else "sum")
    for event in events:
        book.apply(event)
    return book


def proposer_of(spec: StageSpec, candidates: list[Proposal] | None = None, seed: int = 0) -> Proposer:
    return SearchProposer(spec, SPACE, feasible(), seed, candidates)


def step(book: Book, proposer: Proposer, at_once: int = 2) -> bool:
    """What a stage does next, as a function of its book: propose, report or end; False if nothing is left."""
    running = book.unfinished()
    if len(running) < at_once and (proposal := proposer.propose(book)) is not None:
        book.propose(proposal)
        return True
    if not running:
        return False
    trial = running[0]
    proposal = book.proposals[trial.proposal]
    rng = generator(proposal.key, trial.epoch)
    if proposal.hash[0] == "0":
        book.end(trial.number, "failed", "as a test wants it")
    elif trial.epoch == proposal.until:
        book.end(trial.number, "completed")
    else:
        value = float(rng.random()) + 0.01 * proposal.arch["width"]
        epoch = 0 if book.stage.trial == "score" else (trial.epoch or proposal.start_epoch) + 1
        metrics = {"snip": value} if book.stage.trial == "score" else {"objective": value, "valid_accuracy": value}
        book.report(trial.number, epoch, metrics, seconds=0.0, worker="w:1")
    return True


def finish(book: Book, proposer: Proposer) -> list[dict]:
    """Go on to the end of the stage; the events of its ledger without the time."""
    book.mend()
    while step(book, proposer):
        pass
    return events_of(book)


def events_of(book: Book) -> list[dict]:
    lines = book._ledger.path.read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "time"} for line in lines]


@cache
def history(sampler: str) -> list[dict]:
    """The events of a whole stage."""
    spec = searched(sampler)
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "l") as ledger:
        return finish(book_of(spec, ledger), proposer_of(spec))


def point(proposal: Proposal | dict | None) -> Any:
    if proposal is None:
        return None
    if isinstance(proposal, Proposal):
        return [dict(proposal.arch), dict(proposal.params), proposal.parent, proposal.start_epoch]
    return [proposal[name] for name in ("arch", "params", "parent", "start_epoch")]


def replayed(sampler: str, events: list[dict], last: int) -> list[Any]:
    """What a search proposes that is taken up anew before each of its last proposals; run in a fresh process too."""
    spec = searched(sampler)
    cuts = [i for i, event in enumerate(events) if event["event"] == "trial"][-last:]
    return [point(proposer_of(spec).propose(book_of(spec, None, events[:cut]))) for cut in cuts]


def made(sampler: str) -> list[Any]:
    return [point(event) for event in history(sampler) if event["event"] == "trial"]


# Every sampler


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_proposals_are_new_and_within_the_limits(sampler):
    proposals = book_of(searched(sampler), None, history(sampler)).proposals
    assert len(proposals) == 7
    assert len({proposal.key for proposal in proposals}) == 7
    hyper = domains_in(searched(sampler).settings())
    assert hyper
    for proposal in proposals:
        SPACE.check(proposal.arch)
        assert proposal.cost["params"] <= LIMIT["params"]
        assert proposal.hash == SPACE.hash(proposal.arch)
        assert proposal.until == 4
        assert set(proposal.params) == set(hyper)
        assert all(contains(domain, proposal.params[name]) for name, domain in hyper.items())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_search_taken_up_before_any_proposal_makes_that_proposal(sampler):
    assert replayed(sampler, history(sampler), last=7) == made(sampler)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_interrupted_search_ends_like_one_that_was_not(sampler, tmp_path):
    events = history(sampler)
    statuses = {event["status"] for event in events if event["event"] == "end"}
    assert {"completed", "stopped"} <= statuses
    stops = [i for i, event in enumerate(events) if event.get("status") == "stopped"]
    for cut in (7, stops[0]):  # anywhere, and between a report and the stop that follows from it
        with Ledger(tmp_path / f"{cut}") as ledger:
            rest = finish(book_of(searched(sampler), ledger, events[:cut]), proposer_of(searched(sampler)))
        assert rest == events[cut:]


def test_a_fresh_process_proposes_the_same():
    code = f"""
import json, runpy, sys
replayed = runpy.run_path({__file__!r})["replayed"]
print(json.dumps({{sampler: replayed(sampler, events, last=1) for sampler, events in json.load(sys.stdin).items()}}))
"""
    given = json.dumps({sampler: history(sampler) for sampler in SAMPLERS})
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, input=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {sampler: made(sampler)[-1:] for sampler in SAMPLERS}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_another_seed_searches_elsewhere(sampler):
    book = book_of(searched(sampler), None)
    assert len({str(point(proposer_of(searched(sampler), seed=seed).propose(book))) for seed in range(5)}) > 1


@pytest.mark.parametrize("trial", ["score", "distill"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_exhausted_space_ends_after_each_candidate_once(sampler, trial, tmp_path):
    few = SPACE.restrict({"depth2": [1], "width": [2, 3]})
    largest = max(Feasible(few, Task(1, 8, 10), {}).cost(arch)["params"] for arch in few.all())
    within = Feasible(few, Task(1, 8, 10), {"params": largest - 1})
    wanted = [few.hash(arch) for arch in within.listed()]
    assert len(wanted) == few.size() - 1
    scores = {"scores": ["snip"]} if trial == "score" else {}
    # With the default settings: there are fewer candidates than random points at first.
    spec = stage({"name": sampler}, trial=trial, trials=100, **scores)
    with Ledger(tmp_path / "l") as ledger:
        book = book_of(spec, ledger)
        finish(book, SearchProposer(spec, few, within, 0))
    temperatures = [{}] if trial == "score" else [{"losses.kd.temperature": t} for t in (2, 4, 8)]
    found = sorted((proposal.hash, str(dict(proposal.params))) for proposal in book.proposals)
    assert found == sorted((hash_, str(params)) for hash_ in wanted for params in temperatures)


def test_the_last_of_many_hyperparameters_is_found(tmp_path):
    """Random points hardly ever hit the last of 1,000: the rest is listed."""
    spec = stage(losses={"kd": {"weight": 1.0, "temperature": {"randint": [1, 1001]}}}, trials=2000)
    one = survivors({})
    event = {"event": "trial", "seed": 0, "control": False, "parent": None, "start_epoch": 0, "until": 4}
    event |= {"arch": one[0].arch, "hash": one[0].hash, "cost": one[0].cost}
    tried = enumerate(t for t in range(1, 1001) if t != 777)
    known = [{**event, "number": n, "proposal": n, "params": {"losses.kd.temperature": t}} for n, t in tried]
    found = proposer_of(spec, one).propose(book_of(spec, None, known))
    assert found is not None
    assert found.params == {"losses.kd.temperature": 777}


# Survivors of the stage before


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_survivors_are_taken_in_turn_with_what_is_not_yet_found(sampler, tmp_path):
    before = survivors({"losses.kd.temperature": 8}, {"losses.kd.temperature": 2}, {"losses.kd.temperature": 4})
    spec = searched(sampler, optimizer={"learning_rate": {"choice": [0.01, 0.1]}}, trials=6)
    with Ledger(tmp_path / "l") as ledger:
        book = book_of(spec, ledger)
        finish(book, proposer_of(spec, before))
    assert [dict(p.arch) for p in book.proposals] == [dict(before[i % 3].arch) for i in range(6)]
    assert [p.params["losses.kd.temperature"] for p in book.proposals] == [8, 2, 4] * 2
    assert all(p.params["optimizer.learning_rate"] in (0.01, 0.1) for p in book.proposals)
    assert len({p.key for p in book.proposals}) == 6  # which are all


def test_survivors_keep_what_was_found_and_run_once(tmp_path):
    before = survivors({"losses.kd.temperature": 8}, {"losses.kd.temperature": 2})
    spec = stage(seeds=2)
    with Ledger(tmp_path / "l") as ledger:
        book = book_of(spec, ledger)
        finish(book, proposer_of(spec, before))
    assert [point(p)[:2] for p in book.proposals] == [[dict(b.arch), dict(b.params)] for b in before]
    assert len(book.trials) == 4


def test_survivors_that_have_become_equal_run_once_and_hide_no_other(tmp_path):
    """Two of one architecture at two temperatures, before a stage whose temperature is fixed."""
    first, second = survivors({"losses.kd.temperature": 8}, {"losses.kd.temperature": 4})
    spec = stage(losses={"kd": 1.0})
    with Ledger(tmp_path / "l") as ledger:
        book = book_of(spec, ledger)
        finish(book, proposer_of(spec, [first, replace(first, params={"losses.kd.temperature": 2}), second]))
    assert [(p.hash, dict(p.params)) for p in book.proposals] == [(first.hash, {}), (second.hash, {})]


class SlowerToday(Feasible):
    """Measures latencies that are over the limit."""

    def __init__(self) -> None:
        super().__init__(SPACE, Task(1, 8, 10), {"latency_ms": 5.0})

    def cost(self, arch):
        self.know(self.space.hash(arch), {"params": 1.0, "latency_ms": 5.2})
        return super().cost(arch)


def test_a_latency_is_what_was_measured_first(tmp_path):
    before = survivors({}, {})
    spec, feasible = stage(losses={"kd": 1.0}), SlowerToday()
    with Ledger(tmp_path / "l") as ledger:
        assert SearchProposer(spec, SPACE, feasible, 0, before).propose(book_of(spec, ledger)) is None
    feasible = SlowerToday()
    for one in before:
        feasible.know(one.hash, {"params": 1.0, "latency_ms": 4.9})
    with Ledger(tmp_path / "m") as ledger:
        book = book_of(spec, ledger)
        finish(book, SearchProposer(spec, SPACE, feasible, 0, before))
        assert len(book.proposals) == 2


def test_a_student_to_begin_with_that_is_known_by_then_ends_nothing(tmp_path):
    arch = dict(survivors({})[0].arch)
    for seed in range(6):
        spec = stage(trials=9)
        proposer = proposer_of(spec, seed=seed)
        proposer.first = [arch, *({**arch, "losses.kd.temperature": value} for value in (2, 4, 8))]
        with Ledger(tmp_path / str(seed)) as ledger:
            book = book_of(spec, ledger)
            finish(book, proposer)
        assert len(book.proposals) == 9


# Population based training

PBT = {"name": "pbt", "population": 4, "interval": 2, "quantile": 0.25}


def population(**changes: Any) -> tuple[StageSpec, PopulationProposer]:
    spec = stage(scheduler=PBT, epochs=5, optimizer=RATES, **changes)
    return spec, PopulationProposer(spec, survivors({})[0], 3)


def generation(book: Book, proposer: PopulationProposer, objectives: list[float | None]) -> None:
    """Propose and end one segment of every member."""
    for _ in objectives:
        proposal = proposer.propose(book)
        assert proposal is not None
        book.propose(proposal)
    for trial, objective in zip(book.unfinished(), objectives, strict=True):
        if objective is None:
            book.end(trial.number, "failed", "non-finite loss")
        else:
            until = book.proposals[trial.proposal].until
            book.report(trial.number, until, {"objective": objective}, seconds=0.0, worker="w:1")
            book.end(trial.number, "completed")


def test_a_population_goes_on_generation_by_generation(tmp_path):
    spec, proposer = population()
    hyper = domains_in(spec.settings())
    with Ledger(tmp_path / "l") as ledger:
        book = book_of(spec, ledger)
        assert proposer.total == 12
        for _ in range(4):
            book.propose(proposer.propose(book))
        for number in range(4):
            assert proposer.propose(book) is None  # waits until the last member has ended
            assert proposer.waits
            book.report(number, 2, {"objective": 0.1 * number}, seconds=0.0, worker="w:1")
            book.end(number, "completed")
        generation(book, proposer, [0.9, 0.8, 0.7, 0.6])
        generation(book, proposer, [0.1, 0.2, 0.3, 0.4])
        assert proposer.propose(book) is None
    proposals = book.proposals
    assert [(p.start_epoch, p.until) for p in proposals] == [(0, 2)] * 4 + [(2, 4)] * 4 + [(4, 5)] * 4
    # The worst of the first generation copies its best, member 3; of the second, member 3 copies member 0.
    assert [p.parent for p in proposals] == [None] * 4 + [3, 1, 2, 3] + [4, 5, 6, 4]
    assert proposals[5].params == proposals[1].params
    assert proposals[4].params != proposals[3].params
    for proposal in proposals:
        assert all(contains(domain, proposal.params[name]) for name, domain in hyper.items())
    assert book.unfinished() == []


@pytest.mark.parametrize(("objectives", "parents"), [
    ([None, 0.5, 0.6, 0.7], [3, 1, 2, 3]),
    ([None, None, None, 0.1], [3, 3, 3, 3]),  # more have failed than the quantile would move
    ([0.0, -0.5, -0.2, None], [0, 1, 2, 0]),  # 0 is a value, here the best one
])  # fmt: skip
def test_who_failed_copies_one_who_did_not(tmp_path, objectives, parents):
    spec, proposer = population()
    with Ledger(tmp_path / "l") as ledger:
        book = book_of(spec, ledger)
        generation(book, proposer, objectives)
        generation(book, proposer, [0.1] * 4)
    assert [p.parent for p in book.proposals[4:]] == parents


def test_a_population_of_which_all_failed_ends(tmp_path):
    spec, proposer = population()
    with Ledger(tmp_path / "l") as ledger:
        book = book_of(spec, ledger)
        generation(book, proposer, [None] * 4)
        assert proposer.propose(book) is None
        assert book.unfinished() == []


def test_a_population_taken_up_at_any_time_goes_on_alike(tmp_path):
    spec, proposer = population()
    with Ledger(tmp_path / "whole") as ledger:
        events = finish(book_of(spec, ledger), proposer)
    assert sum(event["event"] == "trial" for event in events) == 12
    for cut in range(0, len(events), 5):
        with Ledger(tmp_path / f"{cut}") as ledger:
            assert finish(book_of(spec, ledger, events[:cut]), population()[1]) == events[cut:]
