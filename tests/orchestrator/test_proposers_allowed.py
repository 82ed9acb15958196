"""No proposer hands out an architecture that its space does not allow, and evolution steps as the space says."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spaces
from orchestrator import schedulers
from orchestrator.book import Book, Proposal
from orchestrator.feasible import Feasible
from orchestrator.ledger import Ledger
from orchestrator.proposers import SearchProposer
from orchestrator.recipe import Recipe
from orchestrator.samplers import SAMPLERS
from orchestrator.specs import StageSpec
from spaces import Space, Task
from spaces.domains import to_unit

DIGITS = Task(1, 8, 10)
QUICK: dict[str, dict[str, Any]] = {
    "tpe": {"n_startup_trials": 3},
    "gp": {"n_startup_trials": 3},
    "nsga2": {"population_size": 3},
    "evolution": {"population": 3, "sample_size": 2, "crossover": 0.5},
}


def rising(arch: Mapping[str, Any]) -> bool:
    return arch["depth1"] <= arch["depth2"] <= arch["depth3"]


# A fifth of all combinations: 10 of 27 depths, at one width each or at two.
RISING = replace(
    spaces.get("resnet").restrict({**{f"depth{i}": [1, 2, 3] for i in (1, 2, 3)}, "width": [2, 3]}), allows=rising
)


def stage_of(sampler: str, trials: int) -> StageSpec:
    stage = {"name": "only", "trial": "score", "scores": ["params"], "trials": trials}
    stage |= {"sampler": {"name": sampler, **QUICK.get(sampler, {})}}
    raw = {"name": "r", "task": {"dataset": "digits"}, "space": {"name": "resnet"}, "stages": [stage]}
    return Recipe.parse(raw).stages[0]


def proposals(space: Space, sampler: str, trials: int, folder: Path) -> list[Proposal]:
    """What a stage proposes one after the other, each scored by how large its values are."""
    spec = stage_of(sampler, trials)
    proposer = SearchProposer(spec, space, Feasible(space, DIGITS, {}), 0)
    with Ledger(folder / "ledger") as ledger:
        book = Book(spec, ledger, schedulers.make(spec.scheduler.name, spec.scheduler.settings, 0, 0), "sum")
        while (found := proposer.propose(book)) is not None:
            book.propose(found)
            trial = book.unfinished()[0]
            value = sum(to_unit(domain, found.arch[name]) for name, domain in space.param_space.items())
            book.report(trial.number, 0, {"params": value, "objective": value}, seconds=0.0, worker="w:1")
            book.end(trial.number, "completed")
    return list(book.proposals)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_only_what_the_space_allows_is_proposed(sampler: str, tmp_path: Path) -> None:
    wide = replace(RISING.restrict({"width": list(range(2, 10))}), allows=rising)
    trials = 8 if sampler == "gp" else 20
    found = proposals(wide, sampler, trials, tmp_path)
    assert len(found) == len({proposal.hash for proposal in found}) == trials
    assert all(rising(proposal.arch) for proposal in found)


def test_what_is_not_allowed_is_moved_by_one_choice() -> None:
    proposer = SearchProposer(stage_of("random", 3), RISING, Feasible(RISING, DIGITS, {}), 0)
    forbidden = {"depth1": 2, "depth2": 1, "depth3": 3, "width": 2}
    for seed in range(20):
        moved = proposer._allowed(forbidden, seed)
        assert rising(moved)
        assert sum(moved[name] != forbidden[name] for name in forbidden) == 1
    fine = {**forbidden, "depth2": 2}
    assert proposer._allowed(fine, 0) == fine


@pytest.mark.parametrize("sampler", ["grid", "random"])
def test_all_that_the_space_allows_is_proposed_and_then_the_search_ends(sampler: str, tmp_path: Path) -> None:
    found = proposals(RISING, sampler, 60, tmp_path)
    assert {proposal.hash for proposal in found} == {RISING.hash(arch) for arch in RISING.all()}
    assert len(found) == 10 * 2


def test_cells_without_a_path_are_never_proposed(tmp_path: Path) -> None:
    space = spaces.get("nasbench101").restrict({}, channels=5, cells=1)
    found = proposals(space, "evolution", 12, tmp_path)
    assert len({proposal.hash for proposal in found}) == 12
    for proposal in found:
        space.check(proposal.arch)


def test_evolution_takes_the_steps_of_the_space(tmp_path: Path) -> None:
    space = spaces.get("resnet").restrict({"width": list(range(2, 30)), "depth1": [1], "depth2": [1], "depth3": [1]})
    stepping = replace(space, moves={"width": lambda width: [width - 1, width + 1]})
    widths = [proposal.arch["width"] for proposal in proposals(stepping, "evolution", 12, tmp_path)]
    for i in range(3, 12):  # one step from one of the population, which are the three before
        assert min(abs(widths[i] - parent) for parent in widths[i - 3 : i]) == 1, widths


def test_a_descent_stays_within_what_is_allowed() -> None:
    """The smallest is forbidden: a search for what is within the limit finds the smallest that is allowed."""
    space = replace(RISING, allows=lambda arch: rising(arch) and arch["depth3"] > 1)
    costs = {space.hash(arch): Feasible(space, DIGITS, {}).cost(arch)["params"] for arch in space.all()}
    needle = Feasible(space, DIGITS, {"params": min(costs.values())})
    drawn = needle.draw(np.random.default_rng(0))
    assert drawn == {"depth1": 1, "depth2": 1, "depth3": 2, "width": 2}
    assert list(needle.listed()) == [drawn]
    with pytest.raises(spaces.BadInput, match=r"has params .*: depth1=1, depth2=1, depth3=2, width=2$"):
        Feasible(space, DIGITS, {"params": min(costs.values()) - 1}).check()
