"""Domains survive the way into Optuna and back, with their order and scale."""

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.samplers import RandomSampler
from ray import tune

from orchestrator.samplers import decode, distributions, encode
from spaces import BadInput, domains

DOMAINS = {
    "ordered choice": tune.choice([1, 2.5, 8]),
    "unordered choice": tune.choice(["b", "a", None, True, 3]),
    "switch": tune.choice([True, False]),
    "single choice": tune.choice(["only"]),
    "randint": tune.randint(-3, 12),
    "randint of many": tune.randint(0, 10**6),
    "qrandint": tune.qrandint(4, 64, 4),
    "lograndint": tune.lograndint(1, 2000),
    "lograndint of many": tune.lograndint(1, 10**7),
    "qlograndint": tune.qlograndint(8, 512, 8),
    "uniform": tune.uniform(-2.5, 3),
    "quniform": tune.quniform(-0.3, 1.1, 0.1),
    "quniform of many": tune.quniform(0, 1, 1e-5),
    "loguniform": tune.loguniform(1e-5, 0.3),
    "qloguniform": tune.qloguniform(1e-4, 1e-1, 5e-5),
}


def test_every_kind_of_domain_is_tried():
    assert {next(iter(domains.to_config(domain))) for domain in DOMAINS.values()} == set(domains.KINDS)


@pytest.mark.parametrize("kind", DOMAINS)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_values_survive_the_way_into_optuna_and_back(kind, seed):
    space = {"x": DOMAINS[kind]}
    value = domains.draw(DOMAINS[kind], np.random.default_rng(seed))
    stored = encode(space, {"x": value})
    assert distributions(space)["x"]._contains(distributions(space)["x"].to_internal_repr(stored["x"]))
    back = decode(space, stored)["x"]
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("kind", DOMAINS)
def test_all_listed_values_survive_the_way_into_optuna_and_back(kind):
    for value in domains.values(DOMAINS[kind]) or []:
        back = decode({"x": DOMAINS[kind]}, encode({"x": DOMAINS[kind]}, {"x": value}))["x"]
        assert back == value
        assert type(back) is type(value)


@pytest.mark.parametrize("kind", DOMAINS)
def test_whatever_optuna_draws_is_of_the_domain(kind):
    space = {"x": DOMAINS[kind]}
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    for _ in range(20):
        point = decode(space, study.ask(distributions(space)).params)
        assert domains.contains(DOMAINS[kind], point["x"])
        assert decode(space, encode(space, point)) == point


def test_searchers_see_order_and_scale_where_there_is_one():
    found = {kind: distributions({"x": domain})["x"] for kind, domain in DOMAINS.items()}
    ints, cats = optuna.distributions.IntDistribution, optuna.distributions.CategoricalDistribution
    assert found["ordered choice"] == ints(0, 2)
    assert found["unordered choice"] == cats(range(5))
    assert found["randint"] == ints(-3, 11)
    assert found["qlograndint"] == ints(1, 64, log=True)
    assert found["uniform"] == optuna.distributions.FloatDistribution(-2.5, 3)
    assert all(getattr(found[kind], "log", False) == ("log" in kind) for kind in DOMAINS)


def test_log_integers_are_drawn_log_uniformly():
    """Of 1 to 1999 half of the draws are below about 31: the geometric mean of 0.5 and 1999.5."""
    space = {"x": DOMAINS["lograndint"]}
    study = optuna.create_study(sampler=RandomSampler(seed=0))
    drawn = [decode(space, study.ask(distributions(space)).params)["x"] for _ in range(300)]
    assert 0.4 < np.mean(np.array(drawn) <= 31) < 0.6


def test_a_point_outside_the_space_is_refused():
    space = {"depth": tune.choice([1, 3]), "op": tune.choice(["conv", "skip"])}
    with pytest.raises(BadInput, match=r"depth=2 is not in \{'choice'"):
        encode(space, {"depth": 2, "op": "conv"})
    with pytest.raises(BadInput, match="lacks 'op'"):
        encode(space, {"depth": 1})
