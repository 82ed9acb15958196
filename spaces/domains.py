"""What can be done with one Tune domain: draw from it, list it, move within it, turn it into numbers and back.

A *param_space* is a flat dict from names to Tune domains (`tune.choice`, `tune.randint`, `tune.uniform`,
`tune.loguniform` and their quantised forms). Sampling, mutation and encoding of student architectures and of
distillation hyperparameters are both built on these functions.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray import tune
from ray.tune.search.sample import Categorical, Float, Integer, LogUniform, Quantized, Uniform

from spaces.errors import BadInput

Domain = Categorical | Integer | Float
ParamSpace = Mapping[str, Domain]
Value = bool | int | float | str | None

# The spelling of domains in a recipe: {choice: [1, 2]}, {uniform: [0, 1]}, ...
KINDS: dict[str, Callable[..., Domain]] = {
    "choice": tune.choice,
    "uniform": tune.uniform,
    "quniform": tune.quniform,
    "loguniform": tune.loguniform,
    "qloguniform": tune.qloguniform,
    "randint": tune.randint,
    "qrandint": tune.qrandint,
    "lograndint": tune.lograndint,
    "qlograndint": tune.qlograndint,
}

ARGUMENTS = {False: ("lower", "upper"), True: ("lower", "upper", "step")}  # of a numeric kind, quantised or not

LISTED = 10_000
"""The longest list of values that is written out; larger integer domains are treated as ranges."""


def is_domain_config(value: object) -> bool:
    """Whether a value of a recipe spells a domain: a mapping with the one key `choice`, `uniform`, ..."""
    return isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in KINDS


def from_config(value: Any) -> Domain:
    """The domain that a recipe spells as `{choice: [...]}`, `{uniform: [low, high]}`, ...; a bare list is a choice.

    Raises:
        BadInput: not a list, not a known kind, or bounds that the kind does not take.
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = {"choice": value}
    if not is_domain_config(value):
        raise BadInput(
            f"{value!r} is no domain; write a list of choices or one of {', '.join(KINDS)} with its arguments"
        )
    [(kind, arguments)] = value.items()
    if not isinstance(arguments, Sequence) or isinstance(arguments, str) or not arguments:
        raise BadInput(f"{kind} takes a list, not {arguments!r}")
    wanted = ARGUMENTS[kind[0] == "q"]
    if kind != "choice" and len(arguments) != len(wanted):
        raise BadInput(f"{kind} takes [{', '.join(wanted)}], not {list(arguments)!r}")
    for argument in arguments:
        if kind != "choice" and (isinstance(argument, bool) or not isinstance(argument, int | float)):
            # The usual cause: YAML reads 1e-4 as text.
            hint = "; write 1.0e-4, with a point" if isinstance(argument, str) and "e" in argument else ""
            raise BadInput(f"{kind} takes numbers, not {argument!r}{hint}")
    try:
        domain = tune.choice(list(arguments)) if kind == "choice" else KINDS[kind](*arguments)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise BadInput(f"{kind} does not take {list(arguments)!r}: {error}") from error
    check_domain(kind, domain)
    return domain


def to_config(domain: Domain) -> dict[str, list[Value]]:
    """The recipe's spelling of a domain; `from_config` reads it back."""
    if isinstance(domain, Categorical):
        return {"choice": list(domain.categories)}
    step = _step(domain)
    kind = ("" if step is None else "q") + ("log" if _is_log(domain) else "")
    kind += "randint" if isinstance(domain, Integer) else "uniform"
    return {kind: [domain.lower, domain.upper] + ([] if step is None else [step])}


def check_domain(name: str, domain: object) -> None:
    """Refuse what is not a domain that can be searched.

    Raises:
        BadInput: not a choice, integer or float domain, unbounded or empty, or a choice of other than plain values.
    """
    if isinstance(domain, Categorical):
        _check_choices(name, domain.categories)
    elif isinstance(domain, Integer | Float):
        _check_range(name, domain)
    else:
        raise BadInput(
            f"{name}: {domain!r} is not a searchable Tune domain; use {', '.join('tune.' + k for k in KINDS)}"
        )


def _check_choices(name: str, choices: Sequence[object]) -> None:
    if not choices:
        raise BadInput(f"{name}: a choice needs at least one value")
    for value in choices:
        if not isinstance(value, bool | int | float | str | None):
            raise BadInput(f"{name}: a choice must be a number, a string, a boolean or null, not {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise BadInput(f"{name}: a choice must be finite, not {value!r}")
    # Equal values of two types (1, 1.0, True) are one: nothing could tell them apart by comparing.
    if len(set(choices)) < len(choices):
        raise BadInput(f"{name}: a choice stands twice in {list(choices)!r}")


def _check_range(name: str, domain: Integer | Float) -> None:
    number = (int,) if isinstance(domain, Integer) else (int, float)
    step = _step(domain)
    given = [domain.lower, domain.upper] + ([] if step is None else [step])
    if any(isinstance(v, bool) or not isinstance(v, number) for v in given):
        raise BadInput(f"{name}: bounds and step must be {'whole ' if number == (int,) else ''}numbers, not {given}")
    if not (math.isfinite(domain.lower) and math.isfinite(domain.upper) and domain.lower < domain.upper):
        raise BadInput(f"{name}: bounds must be finite and in order, not [{domain.lower}, {domain.upper}]")
    if step is not None and not 0 < step < math.inf:
        raise BadInput(f"{name}: the step must be positive, not {step}")
    if count(domain) < 1:
        raise BadInput(f"{name}: no multiple of {step} lies in [{domain.lower}, {domain.upper}]")


def count(domain: Domain) -> float:
    """Number of values; infinite if the domain is continuous."""
    if isinstance(domain, Categorical):
        return len(domain.categories)
    grid = _grid(domain)
    return math.inf if grid is None else grid.last - grid.first + 1


def values(domain: Domain) -> list[Any] | None:
    """Every value of the domain in its order, or None where it is continuous or has over 10,000."""
    if isinstance(domain, Categorical):
        return list(domain.categories)
    grid = _grid(domain)
    if grid is None or count(domain) > LISTED:
        return None
    return [grid.value(index) for index in range(grid.first, grid.last + 1)]


def is_ordered(domain: Domain) -> bool:
    """Whether the domain's values are numbers with an order that means something (depths, widths, temperatures)."""
    if not isinstance(domain, Categorical):
        return True
    listed = list(domain.categories)
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in listed) and listed == sorted(listed)


def contains(domain: Domain, value: object) -> bool:
    """Whether the domain can give this value. Where it gives whole numbers, 8.0 is not 8: builders count with them."""
    if isinstance(domain, Categorical):
        return any(v == value and (type(v) is type(value) or _is_float_for(v, value)) for v in domain.categories)
    if isinstance(value, bool) or not isinstance(value, int if isinstance(domain, Integer) else int | float):
        return False
    grid = _grid(domain)
    if grid is None:
        return domain.lower <= value <= domain.upper
    if not math.isfinite(value):
        return False
    # Within rounding: three steps of 0.1 are written 0.3 or 0.30000000000000004.
    index = grid.index(value)
    return grid.first <= index <= grid.last and math.isclose(value, index * grid.step, rel_tol=1e-9, abs_tol=1e-12)


def draw(domain: Domain, rng: np.random.Generator) -> Any:
    """One value at random: uniform over the listed values, or over the (log) interval."""
    if isinstance(domain, Categorical):
        return domain.categories[int(rng.integers(len(domain.categories)))]
    grid = _grid(domain)
    if grid is None:
        return from_unit(domain, float(rng.random()))
    if not _is_log(domain):
        return grid.value(int(rng.integers(grid.first, grid.last + 1)))
    # Each value stands for the interval half a step to both sides, so that the first is not half as likely.
    index = math.exp(rng.uniform(math.log(grid.first - 0.5), math.log(grid.last + 0.5)))
    return grid.nearest(index * grid.step)


def perturb(domain: Domain, value: Any, rng: np.random.Generator) -> Any:
    """Another value of the domain: a different listed one at random, or a step of 20 % of a larger range."""
    listed = values(domain)
    if listed is not None:
        others = [v for v in listed if v != value]
        return others[int(rng.integers(len(others)))] if others else value
    moved = value
    while moved == value:  # a small step may round back to where it started
        position = abs(to_unit(domain, value) + rng.normal(0, 0.2))
        # Reflected at the ends: clipping would leave a value at a bound where it is, half of the time.
        moved = from_unit(domain, min(max(min(position, 2 - position), 0.0), 1.0))
    return moved


def adjacent(domain: Domain, value: Any) -> list[Any]:
    """The values one step away: next in order for ordered domains, every other one else; none if continuous."""
    if isinstance(domain, Categorical):
        listed = list(domain.categories)
        if not is_ordered(domain):
            return [v for v in listed if v != value]
        at = listed.index(value)
        return [listed[i] for i in (at - 1, at + 1) if 0 <= i < len(listed)]
    grid = _grid(domain)
    if grid is None:
        return []
    at = grid.index(value)
    return [grid.value(i) for i in (at - 1, at + 1) if grid.first <= i <= grid.last]


def to_unit(domain: Domain, value: Any) -> float:
    """Position of a value in [0, 1] (on a log scale for log domains; by rank for choices)."""
    if isinstance(domain, Categorical):
        return domain.categories.index(value) / max(1, len(domain.categories) - 1)
    low, high = _bounds(domain)
    if _is_log(domain):
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def from_unit(domain: Domain, position: float) -> Any:
    """The value at a position in [0, 1]; the inverse of `to_unit`, up to the domain's rounding."""
    if isinstance(domain, Categorical):
        return domain.categories[round(position * (len(domain.categories) - 1))]
    low, high = _bounds(domain)
    value = low * (high / low) ** position if _is_log(domain) else low + position * (high - low)
    grid = _grid(domain)
    return float(min(max(value, low), high)) if grid is None else grid.nearest(value)


@dataclass(frozen=True)
class _Grid:
    """The multiples `first * step` to `last * step` of an integer or quantised domain."""

    first: int
    last: int
    step: float
    whole: bool

    def value(self, index: int) -> float:
        # 12 digits: 0.3, not 0.30000000000000004.
        return int(index * self.step) if self.whole else float(f"{index * self.step:.12g}")

    def index(self, value: float) -> int:
        return round(value / self.step)

    def nearest(self, value: float) -> float:
        return self.value(min(max(self.index(value), self.first), self.last))


def _grid(domain: Integer | Float) -> _Grid | None:
    """The grid of a numeric domain; None if it is continuous."""
    step = _step(domain)
    if isinstance(domain, Integer):
        # Tune's integer domains exclude the upper bound, unless they are quantised to a step over 1.
        upper = domain.upper - 1 if step in (None, 1) else domain.upper
        step = int(step or 1)
        return _Grid(-(-domain.lower // step), upper // step, step, whole=True)
    if step is None:
        return None
    return _Grid(math.ceil(domain.lower / step - 1e-9), math.floor(domain.upper / step + 1e-9), step, whole=False)


def _bounds(domain: Integer | Float) -> tuple[float, float]:
    grid = _grid(domain)
    low, high = (domain.lower, domain.upper) if grid is None else (grid.first * grid.step, grid.last * grid.step)
    return low, high if high > low else low + 1


def _is_log(domain: Integer | Float) -> bool:
    sampler = domain.get_sampler()
    base = sampler.get_sampler() if isinstance(sampler, Quantized) else sampler
    if not isinstance(base, Uniform | LogUniform):
        raise BadInput(f"{domain!r} is unbounded; use uniform, loguniform or choice")
    return isinstance(base, LogUniform)


def _step(domain: Integer | Float) -> float | None:
    sampler = domain.get_sampler()
    return sampler.q if isinstance(sampler, Quantized) else None


def _is_float_for(listed: object, value: object) -> bool:
    """Whether a listed float was given as a whole number (2 for 2.0), as JSON and YAML do."""
    return isinstance(listed, float) and isinstance(value, int) and not isinstance(value, bool)
