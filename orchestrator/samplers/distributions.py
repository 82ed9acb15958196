"""Tune domains as Optuna distributions, and points of a param_space as what an Optuna study stores of them.

| domain | stored | as |
|---|---|---|
| choices | index of the value | `IntDistribution` where they are ordered, so that searchers see it; else categorical |
| integers, quantised numbers | how many steps | `IntDistribution`, logarithmic where the domain is |
| floats | the value | `FloatDistribution`, logarithmic where the domain is |
"""

import math
from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from ray.tune.search.sample import Categorical, Float, Integer

from spaces import domains
from spaces.domains import Domain, ParamSpace
from spaces.errors import BadInput


def distributions(param_space: ParamSpace) -> dict[str, BaseDistribution]:
    """The Optuna distribution of each name; what `study.ask` takes."""
    return {name: distribution(domain) for name, domain in param_space.items()}


def encode(param_space: ParamSpace, params: Mapping[str, Any]) -> dict[str, Any]:
    """What Optuna stores of a point of the param_space; `decode` gives the same point back.

    Raises:
        BadInput: a name is missing, or its value is not in its domain.
    """
    for name, domain in param_space.items():
        if name not in params:
            raise BadInput(f"the point lacks {name!r}; it needs {', '.join(param_space)}")
        if not domains.contains(domain, params[name]):
            raise BadInput(f"{name}={params[name]!r} is not in {domains.to_config(domain)}")
    return {name: _stored(domain, params[name]) for name, domain in param_space.items()}


def decode(param_space: ParamSpace, stored: Mapping[str, Any]) -> dict[str, Any]:
    """The point of the param_space that Optuna stores in this form."""
    return {name: _value(domain, stored[name]) for name, domain in param_space.items()}


def distribution(domain: Domain) -> BaseDistribution:
    """The Optuna distribution of one domain."""
    if isinstance(domain, Categorical):
        last = len(domain.categories) - 1
        return IntDistribution(0, last) if domains.is_ordered(domain) else CategoricalDistribution(range(last + 1))
    [kind] = domains.to_config(domain)
    step = _step(domain)
    if step is None:
        return FloatDistribution(domain.lower, domain.upper, log="log" in kind)
    first, last = (round(domains.from_unit(domain, end) / step) for end in (0.0, 1.0))
    return IntDistribution(first, last, log="log" in kind)


def _stored(domain: Domain, value: Any) -> Any:
    if isinstance(domain, Categorical):
        return domain.categories.index(value)
    step = _step(domain)
    return float(value) if step is None else round(value / step)


def _value(domain: Domain, stored: Any) -> Any:
    if isinstance(domain, Categorical):
        return domain.categories[stored]
    step = _step(domain)
    if step is None:
        return float(stored)
    # Through the domain, which rounds: 3 steps of 0.1 are 0.3, not 0.30000000000000004.
    return domains.from_unit(domain, domains.to_unit(domain, stored * step))


def _step(domain: Integer | Float) -> float | None:
    """Between neighbouring values; None for a continuous domain."""
    if math.isinf(domains.count(domain)):
        return None
    [arguments] = domains.to_config(domain).values()
    step = arguments[2] if len(arguments) == 3 else 1
    assert isinstance(step, int | float)
    return step
