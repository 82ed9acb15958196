"""Spaces that forbid combinations, or mutate by steps."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from ray import tune
from torch import nn

from spaces import BadInput, Space


def rising(arch: dict) -> bool:
    return arch["a"] <= arch["b"]


SPACE = Space(
    "mine",
    {"a": tune.choice([1, 2, 3, 4]), "b": tune.choice([1, 2, 3, 4]), "c": tune.choice(["x", "y", "z"])},
    lambda arch, task: nn.Identity(),
    allows=rising,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_all_are_those_that_are_allowed() -> None:
    listed = list(SPACE.all())
    assert len(listed) == 10 * 3
    assert all(map(rising, listed))
    assert SPACE.size() == 48  # combinations, allowed or not


def test_nothing_that_is_forbidden_is_sampled_bred_or_next_to_something() -> None:
    generator = rng()
    drawn = [SPACE.sample(generator) for _ in range(300)]
    everything = [str(arch) for arch in SPACE.all()]
    assert {str(arch) for arch in drawn} == set(everything)  # and all of them are drawn
    mutants = [SPACE.mutate(arch, generator) for arch in drawn]
    children = [SPACE.crossover(a, b, generator) for a, b in pairwise(drawn)]
    around = [other for arch in drawn[:40] for other in SPACE.neighbours(arch)]
    assert all(map(rising, mutants + children + around))
    assert {str(arch) for arch in mutants} == set(everything)
    for arch, mutant in zip(drawn, mutants, strict=True):
        assert sum(arch[name] != mutant[name] for name in arch) == 1
    with pytest.raises(BadInput, match=r"^space 'mine' does not allow a=3, b=2, c=x$"):
        SPACE.check({"a": 3, "b": 2, "c": "x"})


def test_where_nothing_else_is_allowed_a_mutation_changes_nothing() -> None:
    arch = {"a": 1, "b": 1, "c": "x"}
    alone = replace(SPACE, allows=lambda other: other == arch)
    assert alone.mutate(arch, rng()) == arch
    assert list(alone.neighbours(arch)) == []
    # Of these parents every mixture is forbidden: the child is the mother or the father.
    other = {"a": 2, "b": 2, "c": "y"}
    both = replace(SPACE, allows=lambda child: child in (arch, other))
    assert {str(both.crossover(arch, other, rng(i))) for i in range(20)} == {str(arch), str(other)}
    with pytest.raises(BadInput, match=r"^space 'mine' allows none of 10,000 draws$"):
        replace(SPACE, allows=lambda child: False).sample(rng())


def test_mutations_step_where_there_are_moves() -> None:
    moves = {
        "b": lambda value: [value - 1, value + 1.2, "no number"],
        "c": lambda value: {"x": ["y"], "y": ["q"]}[value],
    }
    space = replace(SPACE, moves=moves, allows=lambda arch: True)

    def reached(name: str, value: object) -> set:
        arch = {"a": 1, "b": 1, "c": "x", name: value}
        generator = rng()
        return {space.mutate(arch, generator)[name] for _ in range(100)} - {value}

    assert reached("a", 2) == {1, 3, 4}  # has no moves
    assert reached("b", 2) == {1, 3}
    assert reached("b", 1) == {2}  # 0 is held at 1, which is where it was
    assert reached("c", "x") == {"y"}
    assert reached("c", "y") == {"x", "z"}  # nowhere to step to: any other
