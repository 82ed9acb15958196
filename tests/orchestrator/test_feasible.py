"""Candidates within limits, against looking at every candidate."""

import numpy as np
import pytest

import spaces
from orchestrator.feasible import Feasible
from spaces import BadInput, Space, Task
from spaces.domains import values
from spaces.seeding import generator

DIGITS = Task(1, 8, 10)
SMALL = spaces.get("resnet").restrict({"depth1": [1, 2], "depth2": [1, 2], "depth3": [1], "width": [2, 3, 4]})


def params(space: Space, arch: dict, task: Task) -> int:
    return sum(parameter.numel() for parameter in space.build(arch, task).parameters())


@pytest.fixture(scope="module")
def counted() -> list[tuple[dict, int]]:
    return [(arch, params(SMALL, arch, DIGITS)) for arch in SMALL.all()]


def test_listed_are_all_within_the_limits(counted):
    limit = sorted(n for _, n in counted)[5]
    listed = list(Feasible(SMALL, DIGITS, {"params": limit}).listed())
    assert listed == [arch for arch, n in counted if n <= limit]
    assert len(listed) == 6


def test_without_limits_all_are_within_them(counted):
    feasible = Feasible(SMALL, DIGITS, {})
    assert list(feasible.listed()) == [arch for arch, _ in counted]
    assert feasible.share() == 1.0
    feasible.check()


def test_what_is_drawn_is_within_the_limits_and_covers_them(counted):
    limit = sorted(n for _, n in counted)[5]
    feasible, rng = Feasible(SMALL, DIGITS, {"params": limit}), np.random.default_rng(0)
    drawn = [feasible.draw(rng) for _ in range(150)]
    assert {SMALL.hash(arch) for arch in drawn} == {SMALL.hash(arch) for arch, n in counted if n <= limit}
    again = np.random.default_rng(0)
    assert drawn[:5] == [feasible.draw(again) for _ in range(5)]


def test_a_needle_is_found():
    """One candidate of 1,000 is within the limit: going downhill finds it."""
    depths = [1, 2, 3]
    choices = {"depth1": depths, "depth2": depths, "depth3": depths, "width": list(range(2, 40))}
    space = spaces.get("resnet").restrict(choices)
    smallest = {"depth1": 1, "depth2": 1, "depth3": 1, "width": 2}
    limit = params(space, smallest, DIGITS)
    assert Feasible(space, DIGITS, {"params": limit}).draw(np.random.default_rng(0)) == smallest
    with pytest.raises(BadInput, match=f"params {limit:,}: depth1=1, depth2=1, depth3=1, width=2"):
        Feasible(space, DIGITS, {"params": limit - 1}).check()


def test_share_estimates_what_is_within_the_limits(counted):
    limit = sorted(n for _, n in counted)[5]
    feasible = Feasible(SMALL, DIGITS, {"params": limit})
    assert feasible.share(2000) == pytest.approx(6 / 12, abs=0.05)
    assert feasible.share(50) == feasible.share(50)


def test_every_limit_counts(counted):
    feasible = Feasible(SMALL, DIGITS, {})
    costs = [feasible.cost(arch) for arch, _ in counted]
    assert [cost["params"] for cost in costs] == [n for _, n in counted]
    limits = {name: float(np.median([cost[name] for cost in costs])) for name in ("params", "flops", "bytes")}
    both = Feasible(SMALL, DIGITS, limits)
    wanted = [arch for (arch, _), cost in zip(counted, costs, strict=True)
              if all(cost[name] <= limit for name, limit in limits.items())]  # fmt: skip
    assert list(both.listed()) == wanted
    assert 0 < len(wanted) < 12


@pytest.mark.parametrize("name", spaces.SPACES)
def test_a_limit_that_nothing_meets_names_the_smallest_candidate(name):
    space = spaces.get(name)
    listed = {choice: values(domain) for choice, domain in space.param_space.items()}
    if any(found is None for found in listed.values()):
        pytest.skip("a choice is continuous")
    arch = space.sample(generator("few"))  # around one that the space allows
    values_of = {choice: list(dict.fromkeys([arch[choice], *found])) for choice, found in listed.items()}
    few = {choice: found[: 2 if i < 3 else 1] for i, (choice, found) in enumerate(values_of.items())}
    space = space.restrict(few)
    feasible = Feasible(space, Task(3, 32, 10), {})
    for limit in ("params", "flops", "bytes"):
        least = min(feasible.cost(arch)[limit] for arch in space.all())
        feasible.limits = {limit: least * 0.99}
        with pytest.raises(BadInput) as caught:
            feasible.check()
        assert f"the smallest found has {limit} {least:,.6g}: " in str(caught.value)
        assert f"no candidate of space {name!r} is within {limit} <= {least * 0.99:,g}" in str(caught.value)
        assert "\n" not in str(caught.value)
        feasible.limits = {limit: least}
        feasible.check()
