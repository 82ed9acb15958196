"""The book: a function of its events, and what it says of trials and proposals."""

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import analysis
from orchestrator import schedulers
from orchestrator.book import Book, Proposal
from orchestrator.errors import CannotGoOn
from orchestrator.ledger import Ledger
from orchestrator.recipe import Recipe
from orchestrator.specs import StageSpec
from orchestrator.stage import survivors

ASHA = {"name": "asha", "min_epochs": 1, "reduction_factor": 2}


def stage(**changes: Any) -> StageSpec:
    spec = {"name": "only", "trial": "distill", "epochs": 4, **changes}
    if spec["trial"] == "score":
        del spec["epochs"]
    return Recipe.parse(
        {"name": "r", "task": {"dataset": "digits"}, "space": {"name": "resnet"}, "stages": [spec]}
    ).stages[0]


def book_of(spec: StageSpec, ledger: Ledger | None) -> Book:
    rule = schedulers.make(spec.scheduler.name, spec.scheduler.settings, spec.epochs or 0, 0)
    return Book(spec, ledger, rule, "rank" if spec.trial == "score" else "sum")


@pytest.fixture
def make_book(tmp_path):
    opened = []

    def make(**changes: Any) -> Book:
        opened.append(Ledger(tmp_path / f"{len(opened)}.jsonl"))
        return book_of(stage(**changes), opened[-1])

    yield make
    for ledger in opened:
        ledger.close()


def proposal(width: int, until: int = 4, **more: Any) -> Proposal:
    return Proposal({"width": width}, f"{width:016x}", {"params": 100 * width}, until=until, **more)


def report(book: Book, number: int, epoch: int, objective: float | None = None, **metrics: Any) -> None:
    own = {} if objective is None else {"objective": objective}
    book.report(number, epoch, {**own, **metrics}, seconds=0.1, worker="w:1")


def finish(book: Book, number: int, objective: float | None = None, epoch: int = 4, **metrics: Any) -> None:
    report(book, number, epoch, objective, **metrics)
    book.end(number, "completed")


def events_of(book: Book) -> list[dict]:
    return [json.loads(line) for line in book._ledger.path.read_text().splitlines()]


def rebuilt(spec: StageSpec, events: list[dict], ledger: Ledger | None = None) -> Book:
    book = book_of(spec, ledger)
    for event in events:
        book.apply(event)
    return book


def state(book: Book) -> Any:
    trials = [(t.number, t.proposal, t.seed, t.control, t.status, t.epoch, t.metrics, t.reason, t.ended)
              for t in book.trials.values()]  # fmt: skip
    values = [(book.status(p), book.value(p)) for p in range(len(book.proposals))]
    return trials, book.proposals, book.keys, values, book.best(), book.kept, book.ended


def act(book: Book, rng: np.random.Generator) -> None:
    """Something that may happen in a stage."""
    running = book.unfinished()
    if not running or rng.random() < 0.2:
        book.propose(proposal(int(rng.integers(1, 10**6))))
        return
    trial = running[int(rng.integers(len(running)))]
    if rng.random() < 0.05:
        book.end(trial.number, "failed", "non-finite loss")
        return
    epoch = (trial.epoch or 0) + 1
    report(book, trial.number, epoch, float(rng.random()))
    if epoch == 4:
        book.end(trial.number, "completed")


# A function of its events


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 50), st.sampled_from([1, 2]))
def test_a_book_rebuilt_from_its_events_goes_on_alike(seed, cut, seeds):
    spec = stage(scheduler=ASHA, seeds=seeds, control=seeds == 2)
    with (
        tempfile.TemporaryDirectory() as folder,
        Ledger(Path(folder) / "a") as ledger,
        Ledger(Path(folder) / "b") as other,
    ):
        book, rng = book_of(spec, ledger), np.random.default_rng(seed)
        for _ in range(cut):
            act(book, rng)
        again = rebuilt(spec, events_of(book), other)
        assert state(again) == state(book)
        first, second = np.random.default_rng(seed + 1), np.random.default_rng(seed + 1)
        for _ in range(30):
            act(book, first)
            act(again, second)
        assert state(again) == state(book)  # and the rule has stopped the same trials
        assert book.count("stopped") + book.count("completed") + book.count("failed") > 0


def test_any_start_of_the_events_is_a_book(make_book):
    book, rng = make_book(scheduler=ASHA, seeds=2), np.random.default_rng(3)
    for _ in range(60):
        act(book, rng)
    events = events_of(book)
    states = [state(rebuilt(book.stage, events[:n])) for n in range(len(events) + 1)]
    assert states[-1] == state(book)
    assert [len(trials) for trials, *_ in states] == sorted(len(trials) for trials, *_ in states)


def test_a_stop_whose_end_was_lost_is_ended_once(make_book):
    """Killed between a report and the end that follows from it: a resumed stage writes that end."""
    book = make_book(scheduler=ASHA)
    for width, objective in ((1, 0.9), (2, 0.1)):
        book.propose(proposal(width))
        report(book, len(book.trials) - 1, 1, objective)
    assert book.trials[1].status == "stopped"
    events = events_of(book)
    assert events[-1]["event"] == "end"
    with Ledger(book._ledger.path.with_name("cut")) as ledger:
        again = rebuilt(book.stage, events[:-1], ledger)
        assert [trial.number for trial in again.unfinished()] == [0]
        for _ in range(2):
            again.mend()
        assert [(e["number"], e["status"]) for e in events_of(again)] == [(1, "stopped")]
    assert state(again) == state(book)


def test_the_ledger_of_a_book_is_what_analysis_reads(tmp_path):
    spec = stage(scheduler=ASHA)
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        ledger.append("run", schema=1, name="r", recipe="r", dux="0")
        about = {"objective": {"valid_accuracy": 1.0}, "combine": "sum", "sampler": "random", "scheduler": "asha"}
        ledger.append(
            "stage", stage="only", index=1, trial="distill", epochs=4, seeds=1, control=False, keep=None, **about
        )
        book, rng = book_of(spec, ledger), np.random.default_rng(0)
        for _ in range(60):
            act(book, rng)
        ledger.append("unheard-of", stage="only")
    again = rebuilt(spec, list(analysis.events(tmp_path)))
    assert state(again) == state(book)
    table = analysis.load(tmp_path).trials
    assert list(table["status"]) == [trial.status for trial in book.trials.values()]


# Trials of a proposal


def test_a_proposal_has_a_trial_for_each_seed_and_control(make_book):
    book = make_book(seeds=3, control=True)
    book.propose(proposal(1))
    book.propose(proposal(2))
    made = [(t.proposal, t.seed, t.control) for t in book.trials.values()]
    assert made == list(itertools.product(range(2), range(3), (False, True)))
    assert list(book.trials) == list(range(12))
    assert [t.number for t in book.taught(1)] == [6, 8, 10]
    assert len(book.proposals) == 2


def test_an_epoch_that_is_known_changes_nothing(make_book):
    book = make_book()
    book.propose(proposal(1))
    report(book, 0, 1, 0.5)
    report(book, 0, 2, 0.6)
    before = events_of(book)
    for epoch in (1, 2):
        report(book, 0, epoch, 0.9)
    assert events_of(book) == before
    finish(book, 0, 0.7)
    before = events_of(book)
    report(book, 0, 5, 0.9)
    book.end(0, "failed", "late")
    assert events_of(book) == before
    assert (book.trials[0].status, book.value(0)) == ("completed", 0.7)


def test_a_value_is_the_mean_over_seeds_without_controls(make_book):
    book = make_book(seeds=2, control=True)
    book.propose(proposal(1))
    finish(book, 0, 0.4)
    assert (book.value(0), book.status(0)) == (None, "waiting")
    report(book, 2, 4, 0.8)
    assert (book.value(0), book.status(0)) == (None, "running")
    book.end(2, "completed")
    assert book.value(0) == pytest.approx(0.6)
    finish(book, 1, 0.0)
    finish(book, 3, 0.0)
    assert (book.value(0), book.status(0)) == (pytest.approx(0.6), "completed")
    assert book.unfinished() == []


def test_a_failed_seed_leaves_no_value_and_keeps_its_reason(make_book):
    book = make_book(seeds=2)
    book.propose(proposal(1))
    finish(book, 0, 0.4)
    book.end(1, "failed", "non-finite loss in epoch 2")
    assert (book.status(0), book.value(0), book.best()) == ("failed", None, [])
    assert book.trials[1].reason == "non-finite loss in epoch 2"
    assert book.count("failed") == 1


def test_the_best_have_trained_longest_then_have_most_then_came_first(make_book):
    book = make_book()
    for width, (epoch, objective) in enumerate([(4, 0.5), (1, 0.99), (4, 0.7), (4, 0.5), (2, 0.1), (4, -1.0)]):
        book.propose(proposal(width))
        finish(book, width, objective, epoch)
    book.propose(proposal(9))
    book.end(6, "failed", "x")
    book.propose(proposal(10))
    assert book.best() == [2, 0, 3, 5, 4, 1]


def test_who_is_kept_and_that_it_ended_is_in_the_events(make_book):
    book = make_book()
    book.propose(proposal(1))
    finish(book, 0, 0.5)
    book.keep(book.best())
    book.close(seconds=1.0, slots=2)
    again = rebuilt(book.stage, events_of(book))
    assert (again.kept, again.ended) == ([0], True)


def test_proposals_that_give_the_same_result_have_one_key():
    one = proposal(1, params={"a": 1, "b": 2.0})
    assert one.key == proposal(1, until=2, params={"b": 2.0, "a": 1}).key
    others = [proposal(2, params=one.params), proposal(1, params={"a": 1, "b": 2.5}), proposal(1, parent=3),
              proposal(1, start_epoch=2)]  # fmt: skip
    assert len({p.key for p in [one, *others]}) == 5


# Ranks and fronts


def test_ranks_are_means_of_normalised_ranks(make_book):
    book = make_book(trial="score", scores=["snip", "params"], objective={"snip": 3.0, "params": -1.0})
    for width, (snip, params) in enumerate([(1e9, 30.0), (2e9, 10.0), (5.0, 20.0), (None, 0.0)]):
        book.propose(proposal(width, until=0))
        finish(book, width, epoch=0, snip=snip, params=params)
    # By hand. snip: the missing one 0, then 1/3, 2/3, 1; params, fewer being better: 0, 2/3, 1/3, 1.
    wanted = [3 / 4 * 2 / 3 + 0, 3 / 4 * 1 + 1 / 4 * 2 / 3, 3 / 4 * 1 / 3 + 1 / 4 * 1 / 3, 1 / 4 * 1]
    assert [book.value(p) for p in range(4)] == pytest.approx(wanted)
    assert book.best() == [1, 0, 2, 3]


def test_ranks_are_of_means_over_seeds_and_wait_for_all_of_them(make_book):
    book = make_book(trial="score", scores=["snip"], seeds=2)
    for width, pair in enumerate([(5.0, 1.0), (0.0, 4.0), (9.0, None)]):
        book.propose(proposal(width, until=0))
        for seed, snip in enumerate(pair):
            if snip is not None:
                finish(book, 2 * width + seed, epoch=0, snip=snip)
    assert [book.value(p) for p in range(3)] == [1.0, 0.0, None]  # means 3 and 2; the third is not done
    book.end(5, "failed", "x")
    assert book.value(2) is None
    assert book.best() == [0, 1]


def test_a_score_that_nobody_has_ranks_nobody(make_book):
    book = make_book(trial="score", scores=["snip", "params"])
    book.propose(proposal(1, until=0))
    finish(book, 0, epoch=0, snip=None, params=3.0)
    assert book.value(0) == 0.5


def test_who_has_no_value_of_any_term_does_not_go_on(make_book):
    book = make_book(trial="score", scores=["snip", "params"], objective={"snip": 1}, keep=2)
    for width, snip in enumerate([None, 2.0, None]):
        book.propose(proposal(width, until=0))
        finish(book, width, epoch=0, snip=snip, params=3.0)
    assert [book.value(p) for p in range(3)] == [None, 1.0, None]
    assert survivors(book, last=False) == survivors(book, last=True) == [1]


@pytest.mark.parametrize("objective", [{"snip": 1}, {"ensemble.vote": 1}])
def test_where_nobody_has_a_value_the_stage_fails_unless_it_is_the_last(make_book, objective):
    book = make_book(trial="score", scores=["snip"], objective=objective)
    for width, why in enumerate(["rare", "common", "common"]):
        book.propose(proposal(width, until=0))
        book.report(width, 0, {"snip": None}, seconds=0.1, worker="w:1", reasons={"snip": why})
        book.end(width, "completed")
    assert survivors(book, last=True) == []
    with pytest.raises(CannotGoOn, match=r"no candidate has a value of the objective .*; snip: common$"):
        survivors(book, last=False)


def test_where_all_failed_nobody_goes_on(make_book):
    for kind in ({"trial": "score", "scores": ["snip"]}, {}):
        book = make_book(**kind)
        book.propose(proposal(1))
        book.end(0, "failed", "out of memory")
        with pytest.raises(CannotGoOn, match="all 1 trials failed; out of memory"):
            survivors(book, last=True)


def dominates(a: tuple, b: tuple) -> bool:
    return all(x >= y for x, y in zip(a, b, strict=True)) and a != b


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5), st.integers(0, 4)), min_size=1, max_size=12))
def test_fronts_agree_with_comparing_all_pairs(found):
    """Accuracy up, parameters and divergence down; in a front by objective."""
    spec = stage(pareto=["valid_accuracy", "params", "kl"])
    book = rebuilt(spec, [])
    for number, (accuracy, width, kl) in enumerate(found):
        cost = {"params": 100 * width}
        values = {"objective": float(accuracy), "valid_accuracy": float(accuracy), "kl": float(kl)}
        book.apply({"event": "trial", "number": number, "proposal": number, "seed": 0, "control": False,
                    "arch": {"width": width, "n": number}, "hash": str(number), "cost": cost, "params": {},
                    "parent": None, "start_epoch": 0, "until": 1})  # fmt: skip
        book.apply({"event": "report", "number": number, "epoch": 1, "metrics": values})
        book.apply({"event": "end", "number": number, "status": "completed", "reason": None})
    points = {p: (accuracy, -width, -kl) for p, (accuracy, width, kl) in enumerate(found)}
    wanted = []
    while points:
        front = [p for p in points if not any(dominates(other, points[p]) for other in points.values())]
        wanted += sorted(front, key=lambda p: (-found[p][0], p))
        points = {p: point for p, point in points.items() if p not in front}
    assert book.best() == wanted


def test_a_trade_off_with_a_missing_value_comes_last(make_book):
    book = make_book(trial="score", scores=["snip", "params"], objective={"params": 1.0}, pareto=["snip", "params"])
    for width, snip in enumerate([None, 3.0, 2.0]):
        book.propose(proposal(width, until=0))
        finish(book, width, epoch=0, snip=snip, params=9.0 - width)
    assert book.best() == [1, 2, 0]


# Ensembles and origins


def scored_book(make_book: Any, table: list[dict[str, float]], **changes: Any) -> Book:
    book = make_book(trial="score", scores=["snip", "nwot", "synflow", "params"], **changes)
    for number, metrics in enumerate(table):
        book.propose(proposal(number + 1, until=0))
        finish(book, number, epoch=0, **metrics)
    return book


# By snip A > B > C, by nwot C > A > B, by synflow A > B > C; by params, which no ensemble counts, C > B > A.
VOTES = [{"snip": 3, "nwot": 2, "synflow": 3, "params": 1}, {"snip": 2, "nwot": 1, "synflow": 2, "params": 2},
         {"snip": 1, "nwot": 3, "synflow": 1, "params": 3}]  # fmt: skip


@pytest.mark.parametrize(("changes", "values"), [
    # A beats both, B beats C by two to one.
    ({"objective": {"ensemble.vote": 1}}, [1, 0.5, 0]),
    # A has mean rank (1 + 0.5 + 1) / 3, B (0.5 + 0 + 0.5) / 3, C (0 + 1 + 0) / 3: B and C are equal.
    ({"objective": {"ensemble.rank": 1}}, [1, 0.25, 0.25]),
    # nwot alone: C > A > B.
    ({"objective": {"ensemble.vote": 1}, "ensemble": ["nwot"]}, [0.5, 0, 1]),
])  # fmt: skip
def test_an_objective_may_be_an_ensemble_of_the_stages_scores(make_book, changes, values):
    book = scored_book(make_book, VOTES, **changes)
    assert [book.value(p) for p in range(3)] == pytest.approx(values)


def test_a_proposal_of_an_older_ledger_comes_from_the_search(make_book):
    book = make_book()
    book.propose(proposal(1, origin="rival"))
    book.propose(proposal(2))
    events = events_of(book)
    assert [p.origin for p in rebuilt(book.stage, events).proposals] == ["rival", "search"]
    older = [{name: value for name, value in event.items() if name != "origin"} for event in events]
    assert [p.origin for p in rebuilt(book.stage, older).proposals] == ["search", "search"]
