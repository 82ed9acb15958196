"""What holds for every space: each test runs over the whole table, so that a new space is tested by being listed."""

import itertools
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray import tune
from torch import Tensor, nn

import spaces
from spaces import SPACES, BadInput, Space, Task, domains
from spaces.seeding import derive_seed
from spaces.space import everything

TASK = Task(channels=3, image_size=16, classes=5)
ROOT = Path(__file__).parents[2]
LISTABLE = 20_000  # architectures; larger spaces are not listed here
FITTED = (Task(1, 8, 3), Task(4, 13, 2))

# What is built here is small: choices and options that replace those of the space, by its name.
SMALL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "resnet-s1": ({"width": [4, 8]}, {}),
    "nasbench101": ({}, {"channels": 6, "cells": 1}),
    "nasbench201": ({}, {"channels": 4, "cells": 2}),
    "wrn": ({"depth": [10, 16], "widen": [0.25, 0.5, 1]}, {}),
    "zen": ({f"{name}{i}": [4, 6] for name in ("width", "inner") for i in range(1, 5)}, {}),
}

FRESH = """
import json, numpy as np
from spaces import SPACES
from spaces.seeding import derive_seed, generator
told = {}
for name, space in SPACES.items():
    archs = [space.sample(np.random.default_rng(i)) for i in range(5)]
    told[name] = [[a, space.hash(a), space.canonical(a)] for a in archs] + [space.fingerprint()]
told["seeds"] = [derive_seed(7, "curriculum", 3), int(generator(7, "x").integers(10**9))]
print(json.dumps(told))
"""


@pytest.fixture(params=SPACES)
def space(request: pytest.FixtureRequest) -> Space:
    return SPACES[request.param]


@pytest.fixture(scope="module")
def fresh() -> dict[str, Any]:
    """What a process of its own, with its own seed of Python's hashes, says of every space."""
    env = {"PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "12345", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", FRESH], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def small(space: Space) -> Space:
    choices, options = SMALL.get(space.name, ({}, {}))
    return space.restrict(choices, **options)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def samples(space: Space, number: int) -> list[dict[str, Any]]:
    generator = rng()
    return [space.sample(generator) for _ in range(number)]


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if a[name] != b[name]]


def extreme(space: Space, position: float) -> dict[str, Any]:
    """Every choice at this end of its domain, as far as the space allows it."""
    arch = space.sample(rng())
    for name, domain in space.param_space.items():
        other = {**arch, name: domains.from_unit(domain, position)}
        arch = other if space.allows(other) else arch
    return arch


def smallest(space: Space) -> dict[str, Any]:
    return extreme(space, 0.0)


def run(net: nn.Module, task: Task = TASK, batch: int = 4) -> Tensor:
    images = torch.randn(batch, task.channels, task.image_size, task.image_size, generator=torch.manual_seed(1))
    return net(images)


def keep(kept: dict[str, Tensor], name: str, module: nn.Module, args: object, output: Tensor) -> None:
    kept[name] = output


def keep_input(kept: list[Tensor], module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
    kept.append(args[0])


# Choosing


def test_its_name_is_its_key() -> None:
    assert {name: space.name for name, space in SPACES.items()} == {name: name for name in SPACES}
    assert all(spaces.get(name) is SPACES[name] for name in SPACES)


def test_samples_are_of_the_space_and_follow_the_seed(space: Space) -> None:
    drawn = samples(space, 30)
    for arch in drawn:
        space.check(arch)
    assert drawn == samples(space, 30)
    assert drawn != [space.sample(rng(1)) for _ in range(30)]
    for name in space.param_space:
        assert len({repr(arch[name]) for arch in drawn}) > 1, f"{name} never changes"


def test_a_mutation_changes_exactly_one_choice(space: Space) -> None:
    generator = rng()
    changed = set()
    for arch in samples(space, 25 * len(space.param_space)):
        before = dict(arch)
        child = space.mutate(arch, generator)
        space.check(child)
        [name] = differing(arch, child)
        changed.add(name)
        assert arch == before
    assert changed == set(space.param_space)


def test_a_fixed_choice_is_never_mutated(space: Space) -> None:
    first, *others = space.param_space
    arch = smallest(space)
    fixed = space.restrict({first: [arch[first]]})
    for i in range(20 if others else 0):
        assert differing(arch, fixed.mutate(arch, rng(i)))[0] in others
    point = space.restrict({name: [value] for name, value in arch.items()})
    assert point.mutate(arch, rng()) == arch
    assert point.size() == 1


def test_a_child_takes_each_choice_from_a_parent(space: Space) -> None:
    generator = rng()
    mother, father = smallest(space), extreme(space, 1.0)
    children = [space.crossover(mother, father, generator) for _ in range(40)]
    for child in children:
        space.check(child)
        assert all(child[name] in (mother[name], father[name]) for name in mother)
    # The choices are taken independently. A choice that the space allows to none of these children is the mother's.
    apart = differing(mother, father)
    taken = {name for child in children for name in differing(mother, child)}
    assert taken == set(apart) if space.allows is everything else len(taken) > len(apart) / 2
    assert len({repr(child) for child in children}) > 2 or len(apart) == 1


def test_neighbours_are_one_choice_away_and_mutual(space: Space) -> None:
    for arch in samples(space, 3):
        around = list(space.neighbours(arch))
        assert around
        assert len({repr(other) for other in around}) == len(around)
        for other in around:
            space.check(other)
            assert len(differing(arch, other)) == 1
            assert arch in list(space.neighbours(other))


def test_size_counts_all(space: Space) -> None:
    if space.size() > LISTABLE:
        pytest.skip("too large to list")
    listed = list(space.all())
    assert len(listed) == space.size() == len({json.dumps(arch) for arch in listed})
    assert listed[:50] == list(itertools.islice(space.all(), 50))
    for arch in listed[:: len(listed) // 20 + 1]:
        space.check(arch)


def test_encoding_is_undone_by_decoding(space: Space) -> None:
    drawn = samples(space, 40)
    vectors = [space.encode(arch) for arch in drawn]
    assert {vector.shape for vector in vectors} == {vectors[0].shape}
    assert all(vector.min() >= 0 and vector.max() <= 1 for vector in vectors)
    assert [space.decode(vector) for vector in vectors] == drawn
    assert len({v.tobytes() for v in vectors}) == len({json.dumps(arch) for arch in drawn})
    nudged = [np.clip(v + rng(i).uniform(-0.02, 0.02, v.shape), 0, 1) for i, v in enumerate(vectors)]
    if space.size() < float("inf"):
        assert [space.decode(vector) for vector in nudged] == drawn


# Naming


def test_names_are_json_and_the_same_in_a_fresh_process(space: Space, fresh: dict[str, Any]) -> None:
    *told, fingerprint = fresh[space.name]
    for i, (arch, hashed, canonical) in enumerate(told):
        assert arch == space.sample(rng(i))
        assert hashed == space.hash(arch)
        assert len(hashed) == 16
        assert int(hashed, 16) >= 0
        assert canonical == json.loads(json.dumps(space.canonical(arch)))
    assert fingerprint == space.fingerprint()


def test_hashes_differ_exactly_where_canonical_forms_do(space: Space) -> None:
    drawn = samples(space, 60)
    assert all(space.canonical(arch) == json.loads(json.dumps(space.canonical(arch))) for arch in drawn)
    pairs = {(space.hash(arch), json.dumps(space.canonical(arch), sort_keys=True)) for arch in drawn}
    assert len(pairs) == len({hashed for hashed, _ in pairs}) == len({form for _, form in pairs}) > 1
    for arch in drawn:  # the order of its names says nothing about an architecture
        assert space.hash(dict(reversed(arch.items()))) == space.hash(arch)


def test_an_option_makes_other_networks_and_a_restriction_does_not(space: Space) -> None:
    arch = smallest(space)
    name = next(iter(arch))
    narrower = space.restrict({name: [arch[name]]})
    assert narrower.hash(arch) == space.hash(arch)
    assert narrower.fingerprint() != space.fingerprint()
    for option in space.options:
        other = space.restrict({}, **{option: "another"})
        assert other.hash(arch) != space.hash(arch)
        assert other.fingerprint() != space.fingerprint()


def test_no_two_spaces_share_a_fingerprint() -> None:
    assert len({space.fingerprint() for space in SPACES.values()}) == len(SPACES)


def test_seeds_are_the_same_in_a_fresh_process(fresh: dict[str, Any]) -> None:
    assert fresh["seeds"][0] == derive_seed(7, "curriculum", 3)


# Building


def test_a_network_computes_and_learns(small: Space) -> None:
    for arch in [smallest(small), *samples(small, 2)]:
        torch.manual_seed(0)
        net = small.build(arch, TASK)
        logits = run(net)
        assert logits.shape == (4, TASK.classes)
        assert logits.isfinite().all()
        nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, f"{name} has no gradient"
            assert parameter.grad.isfinite().all(), name


def test_torchs_seed_decides_the_initialisation(small: Space) -> None:
    arch = smallest(small)
    torch.manual_seed(3)
    first, second = small.build(arch, TASK).state_dict(), small.build(arch, TASK).state_dict()
    torch.manual_seed(3)
    again = small.build(arch, TASK).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], second[key]) for key in first)


def test_a_network_fits_the_task(small: Space) -> None:
    for task in FITTED:
        assert run(small.build(smallest(small), task), task).shape == (4, task.classes)


def test_taps_are_maps_and_the_head_gives_the_logits(small: Space) -> None:
    for arch in samples(small, 2):
        net = small.build(arch, TASK).eval()
        taps, name = small.look(net, TASK)
        maps: dict[str, Tensor] = {}
        embeddings: list[Tensor] = []
        for tap in taps:
            net.get_submodule(tap).register_forward_hook(partial(keep, maps, tap))
        head = net.get_submodule(name)
        head.register_forward_hook(partial(keep_input, embeddings))
        with torch.no_grad():
            logits = run(net)
        assert tuple(maps) == taps  # shallow to deep: in the order in which they are computed
        assert all(map_BCHW.dim() == 4 and len(map_BCHW) == 4 for map_BCHW in maps.values())
        sizes = [map_BCHW.shape[2] for map_BCHW in maps.values()]
        assert sizes == sorted(sizes, reverse=True)
        assert isinstance(head, nn.Linear)
        assert head.out_features == TASK.classes
        torch.testing.assert_close(logits, head(embeddings[0]))
        if small.taps is not None:  # we built it; others may do more between the last map and the head
            torch.testing.assert_close(embeddings[0], maps[taps[-1]].mean((2, 3)))


def test_every_relu_is_used_once(small: Space) -> None:
    if small.taps is None:
        pytest.skip("others may use one ReLU at many places")
    net = small.build(samples(small, 1)[0], TASK)
    calls: dict[str, int] = {name: 0 for name, module in net.named_modules() if isinstance(module, nn.ReLU)}
    for name in calls:

        def count(module: nn.Module, args: object, output: Tensor, name: str = name) -> None:
            calls[name] += 1

        net.get_submodule(name).register_forward_hook(count)
    run(net)
    assert set(calls.values()) == ({1} if calls else set())
    # Where there are none, it is because the network has other activations.
    assert calls or any(isinstance(module, nn.GELU) for module in net.modules())


# Restricting and bad input


def test_a_restriction_is_a_space_of_its_own(space: Space) -> None:
    name, domain = next(iter(space.param_space.items()))
    kept = [domains.from_unit(domain, 0.0), domains.from_unit(domain, 1.0)]
    narrower = space.restrict({name: kept})
    assert {repr(narrower.sample(rng(i))[name]) for i in range(20)} == {repr(value) for value in kept}
    assert narrower.size() == space.size() / domains.count(domain) * 2
    assert space.restrict({}) == space
    assert space.param_space[name] is domain


def test_what_is_no_architecture_is_refused(space: Space) -> None:
    arch = smallest(space)
    name = next(iter(arch))
    known = ", ".join(sorted(space.param_space))
    with pytest.raises(BadInput) as error:
        space.check({**arch, name + "s": 1})
    assert str(error.value) == f"unknown choice of space {space.name!r} {name + 's'!r}; did you mean {name!r}? " + (
        f"known: {known}"
    )
    with pytest.raises(BadInput) as error:
        space.check({n: value for n, value in arch.items() if n != name})
    assert str(error.value) == f"space {space.name!r}: the architecture lacks {name!r}"
    for wrong in ("no such value", None, float("nan"), True, [1]):
        with pytest.raises(BadInput) as error:
            space.check({**arch, name: wrong})
        allowed = domains.to_config(space.param_space[name])
        assert str(error.value) == f"space {space.name!r}: {name}={wrong!r} is not in {allowed}"


def test_what_cannot_be_restricted_is_refused(space: Space) -> None:
    name = next(iter(space.param_space))
    if space.open:
        wider = space.restrict({"colour": [1, 2]}, size=3)
        assert wider.size() == 2 * space.size()
        assert wider.options == {**space.options, "size": 3}
    else:
        with pytest.raises(BadInput, match=rf"^unknown choice of space '{space.name}' 'colour'; .*known: .*{name}"):
            space.restrict({"colour": [1]})
        with pytest.raises(BadInput, match=rf"^unknown option of space '{space.name}' 'colour';"):
            space.restrict({}, colour=1)
    with pytest.raises(BadInput, match=r"^8 is no domain; write a list of choices or one of choice, uniform"):
        space.restrict({name: 8})


def test_an_unknown_space_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(BadInput) as error:
        spaces.get("resnets")
    assert str(error.value) == f"unknown space 'resnets'; did you mean 'resnet'? known: {', '.join(sorted(SPACES))}"
    with pytest.raises(BadInput, match=r"^unknown space 'qqq'; known: "):
        spaces.get("qqq")


def test_a_space_refuses_what_is_no_domain() -> None:
    with pytest.raises(
        BadInput, match=r"^space 'mine', width: \[1, 2\] is not a searchable Tune domain; use tune.choice"
    ):
        Space("mine", {"width": [1, 2]}, lambda arch, task: nn.Identity(), (), "fc")  # type: ignore[dict-item]


def test_a_continuous_space_has_no_list() -> None:
    space = Space("mine", {"rate": tune.uniform(0, 1)}, lambda arch, task: nn.Identity(), (), "fc")
    assert space.size() == float("inf")
    with pytest.raises(BadInput, match=r"^space 'mine' cannot be listed: a choice is continuous or has over 10,000"):
        list(space.all())
    assert list(space.neighbours({"rate": 0.5})) == []
