"""What can be done with one Tune domain: draw from it, list it, move within it, turn it into numbers and back.

A *param_space* is a flat dict from names to Tune domains (`tune.choice`, `tune.randint`, `tune.uniform`,
`tune.loguniform` and their quantised forms). Sampling, mutation and encoding of student architectures and of
distillation hyperparameters are both built on these functions.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ray import tune
from ray.tune.search.sample import Categorical, Domain, Float, Integer, LogUniform, Quantized, Uniform

from spaces.errors import BadInput

ParamSpace = Mapping[str, Domain]
Value = bool | int | float | str | None

# The spelling of domains in a recipe: {choice: [1, 2]}, {uniform: [0, 1]}, ...
KINDS = {
    "choice": tune.choice,
    "uniform": tune.uniform,
    "quniform": tune.quniform,
    "loguniform": tune.loguniform,
    "qloguniform": tune.qloguniform,
    "randint": tune.randint,
    "qrandint": tune.qrandint,
    "lograndint": tune.lograndint,
}


def is_domain_config(value: object) -> bool:
    """Whether a value of a recipe spells a domain: a mapping with the one key `choice`, `uniform`, ..."""
    return isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in KINDS


def from_config(value: Any) -> Domain:
    """The domain that a recipe spells as `{choice: [...]}`, `{uniform: [low, high]}`, ..., or as a bare list (a choice).

    Raises:
        BadInput: not a list, not a known kind, or bounds that the kind does not take.
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = {"choice": value}
    if not is_domain_config(value):
        raise BadInput(f"{value!r} is no domain; write a list of choices or one of {', '.join(KINDS)} with its arguments")
    [(kind, arguments)] = value.items()
    if not isinstance(arguments, Sequence) or isinstance(arguments, str) or not arguments:
        raise BadInput(f"{kind} takes a list, not {arguments!r}")
    try:
        domain = tune.choice(list(arguments)) if kind == "choice" else KINDS[kind](*arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise BadInput(f"{kind} does not take {list(arguments)!r}: {error}") from error
    check_domain(kind, domain)
    return domain


def to_config(domain: Domain) -> dict[str, list[Value]]:
    """The recipe's spelling of a domain; `from_config` reads it back."""
    if isinstance(domain, Categorical):
        return {"choice": list(domain.categories)}
    log, step = _is_log(domain), _step(domain)
    whole = isinstance(domain, Integer)
    kind = {(True, True): "lograndint", (True, False): "randint", (False, True): "loguniform", (False, False): "uniform"}[
        (whole, log)
    ]
    if step is None:
        return {kind: [domain.lower, domain.upper]}
    return {f"q{kind}": [domain.lower, domain.upper, step]}


def check_domain(name: str, domain: object) -> None:
    """Refuse what is not a domain that can be searched.

    Raises:
        BadInput: not a choice, integer or float domain, unbounded, or a choice of other than plain values.
    """
    if not isinstance(domain, Categorical | Integer | Float):
        raise BadInput(f"{name}: {domain!r} is not a searchable Tune domain; use {', '.join('tune.' + k for k in KINDS)}")
    if isinstance(domain, Categorical):
        for value in domain.categories:
            if not isinstance(value, bool | int | float | str | None):
                raise BadInput(f"{name}: a choice must be a number, a string, a boolean or null, not {value!r}")
        if len(set(map(repr, domain.categories))) < len(domain.categories):
            raise BadInput(f"{name}: a choice stands twice in {domain.categories!r}")
    elif not (math.isfinite(domain.lower) and math.isfinite(domain.upper) and domain.lower < domain.upper):
        raise BadInput(f"{name}: bounds must be finite and in order, not [{domain.lower}, {domain.upper}]")


def values(domain: Domain) -> list[Any] | None:
    """Every value of the domain in its order, or None where it is continuous or has over 10,000."""
    if isinstance(domain, Categorical):
        return list(domain.categories)
    step = _step(domain)
    if isinstance(domain, Integer):
        step = int(step or 1)
        # randint excludes its upper bound; the quantised form includes it.
        last = domain.upper if _step(domain) else domain.upper - 1
        found = list(range(math.ceil(domain.lower / step) * step, last + 1, step))
        return found if len(found) <= 10_000 else None
    if step is None:
        return None
    first, last = math.ceil(domain.lower / step - 1e-9), math.floor(domain.upper / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)] if last - first < 10_000 else None


def is_ordered(domain: Domain) -> bool:
    """Whether the domain's values are numbers with an order that means something (depths, widths, temperatures)."""
    listed = values(domain)
    if listed is None:
        return True
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in listed) and listed == sorted(listed)


def contains(domain: Domain, value: object) -> bool:
    """Whether the domain can give this value."""
    listed = values(domain)
    if listed is not None:
        return any(type(v) is type(value) and v == value or _same_number(v, value) for v in listed)
    return isinstance(value, int | float) and not isinstance(value, bool) and domain.lower <= value <= domain.upper


def draw(domain: Domain, rng: np.random.Generator) -> Any:
    """One value at random: uniform over the listed values, or over the (log) interval."""
    listed = values(domain)
    if listed is not None and not _is_log(domain):
        return listed[int(rng.integers(len(listed)))]
    return from_unit(domain, float(rng.random()))


def perturb(domain: Domain, value: Any, rng: np.random.Generator) -> Any:
    """Another value of the domain: a different listed one at random, or a step of 20 % of a continuous range."""
    listed = values(domain)
    if listed is not None:
        others = [v for v in listed if v != value]
        return others[int(rng.integers(len(others)))] if others else value
    return from_unit(domain, float(np.clip(to_unit(domain, value) + rng.normal(0, 0.2), 0, 1)))


def adjacent(domain: Domain, value: Any) -> list[Any]:
    """The listed values one step away: next in order for ordered domains, every other one else; none if continuous."""
    listed = values(domain)
    if listed is None:
        return []
    if not is_ordered(domain):
        return [v for v in listed if v != value]
    at = listed.index(value)
    return [listed[i] for i in (at - 1, at + 1) if 0 <= i < len(listed)]


def to_unit(domain: Domain, value: Any) -> float:
    """Position of a value of a numeric domain in [0, 1] (on a log scale for log domains; by rank for ordered choices)."""
    if isinstance(domain, Categorical):
        listed = values(domain)
        assert listed is not None
        return listed.index(value) / max(1, len(listed) - 1)
    low, high = _bounds(domain)
    if _is_log(domain):
        return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
    return (value - low) / (high - low)


def from_unit(domain: Domain, position: float) -> Any:
    """The value at a position in [0, 1]; the inverse of `to_unit`, up to the domain's rounding."""
    listed = values(domain)
    if isinstance(domain, Categorical):
        assert listed is not None
        return listed[round(position * (len(listed) - 1))]
    low, high = _bounds(domain)
    if _is_log(domain):
        value = math.exp(math.log(low) + position * (math.log(high) - math.log(low)))
    else:
        value = low + position * (high - low)
    if listed is not None:
        return min(listed, key=lambda v: abs(v - value))
    return int(round(value)) if isinstance(domain, Integer) else float(min(max(value, low), high))


def _bounds(domain: Domain) -> tuple[float, float]:
    upper = domain.upper - 1 if isinstance(domain, Integer) and not _step(domain) else domain.upper
    return domain.lower, upper if upper > domain.lower else domain.lower + 1


def _base_sampler(domain: Domain) -> Any:
    sampler = domain.get_sampler()
    return sampler.get_sampler() if isinstance(sampler, Quantized) else sampler


def _is_log(domain: Domain) -> bool:
    if isinstance(domain, Categorical):
        return False
    base = _base_sampler(domain)
    if not isinstance(base, Uniform | LogUniform):
        raise BadInput(f"{domain!r} is unbounded; use uniform, loguniform or choice")
    return isinstance(base, LogUniform)


def _step(domain: Domain) -> float | None:
    sampler = domain.get_sampler()
    return sampler.q if isinstance(sampler, Quantized) else None


def _same_number(a: object, b: object) -> bool:
    numbers = isinstance(a, int | float) and isinstance(b, int | float)
    return numbers and not isinstance(a, bool) and not isinstance(b, bool) and a == b
