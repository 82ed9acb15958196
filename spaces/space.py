"""A space of students: a dict of Tune domains and one builder; everything else is written once, here."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
from torch import nn

from spaces import domains
from spaces.bounds import bounded
from spaces.domains import ParamSpace
from spaces.errors import BadInput, unknown
from spaces.seeding import stable_hash
from spaces.taps import find_taps
from spaces.task import Task

Arch = Mapping[str, Any]
"""An architecture: one value for each name of the param_space."""


Moves = Mapping[str, Callable[[Any], Sequence[Any]]]
"""By name, the values to which a mutation may change a value: numbers are rounded to those of an ordered domain. A name
that is not there, or has nowhere to step to, may take every other value."""

DRAWS = 10_000  # before a space is said to allow nothing
TRIES = 100  # before a mutation or a crossover is given up


def as_is(arch: Arch) -> Any:
    """The canonical form of spaces in which different choices are always different networks."""
    return dict(arch)


def chosen(arch: Arch) -> str:
    """An architecture as messages name it."""
    return ", ".join(f"{name}={value}" for name, value in arch.items())


def everything(arch: Arch) -> bool:
    """Allows every combination of choices."""
    return True


@dataclass(frozen=True)
class Space:
    """A Tune search space of architectures and the builder that turns one of them into a network.

    Args:
        name: as in recipes and in `spaces.SPACES`.
        param_space: a Tune domain for each choice; itself a valid `param_space` of a `tune.Tuner`.
        builder: `builder(arch, task, **options)` gives a network from images [B, C, H, W] to logits [B, K].
        taps: names of the submodules whose outputs are feature maps, shallow to deep; the last one is the map
            before global pooling. None: found in each network by running it (`find_taps`).
        head: name of the final linear layer; its input [B, D] is the embedding. None: found likewise.
        canonical_form: a JSON-able value that is equal exactly for architectures that are the same network.
        options: constants of the builder (such as a cell network's number of cells).
        allows: whether a combination of choices is an architecture. What is not allowed is never sampled.
        moves: where a mutation is a step rather than a jump, the values that it may step to, by name.
        open: whether a recipe may add choices and options of names that are not there yet (keyword arguments).
    """

    name: str
    param_space: ParamSpace
    builder: Callable[..., nn.Module]
    taps: tuple[str, ...] | None = None
    head: str | None = None
    canonical_form: Callable[[Arch], Any] = as_is
    options: Mapping[str, Any] = field(default_factory=dict)
    allows: Callable[[Arch], bool] = everything
    moves: Moves = field(default_factory=dict)
    open: bool = False

    def __post_init__(self) -> None:
        for name, domain in self.param_space.items():
            domains.check_domain(f"space {self.name!r}, {name}", domain)

    def build(self, arch: Arch, task: Task) -> nn.Module:
        """The network of an architecture, initialised by torch's global generator. `BadInput` for one too large."""
        with bounded():
            return self.builder(arch, task, **self.options)

    def look(self, net: nn.Module, task: Task) -> tuple[tuple[str, ...], str]:
        """Names of a network's taps and of its head.

        Raises:
            BadInput: they have to be found, and the network does not run on the task's images or has no head.
        """
        if self.taps is not None and self.head is not None:
            return self.taps, self.head
        taps, head = find_taps(net, task)
        return self.taps if self.taps is not None else taps, self.head or head

    def restrict(self, choices: Mapping[str, Any], **options: Any) -> "Space":
        """The same space with the domains of some names replaced, and builder options set.

        Raises:
            BadInput: a name or an option that the space does not have, unless it is open.
        """
        for name in choices:
            if name not in self.param_space and not self.open:
                raise unknown(f"choice of space {self.name!r}", name, self.param_space)
        for name in options:
            if name not in self.options and not self.open:
                raise unknown(f"option of space {self.name!r}", name, self.options)
        changed = {name: domains.from_config(value) for name, value in choices.items()}
        return replace(self, param_space={**self.param_space, **changed}, options={**self.options, **options})

    def check(self, arch: Arch) -> None:
        """Raises `BadInput` unless `arch` gives each name of the space one of its values, and the space allows it."""
        for name in arch:
            if name not in self.param_space:
                raise unknown(f"choice of space {self.name!r}", name, self.param_space)
        for name, domain in self.param_space.items():
            if name not in arch:
                raise BadInput(f"space {self.name!r}: the architecture lacks {name!r}")
            if not domains.contains(domain, arch[name]):
                raise BadInput(f"space {self.name!r}: {name}={arch[name]!r} is not in {domains.to_config(domain)}")
        if not self.allows(arch):
            raise BadInput(f"space {self.name!r} does not allow {chosen(arch)}")

    def sample(self, rng: np.random.Generator) -> dict[str, Any]:
        """One architecture: each choice drawn on its own, until the space allows what was drawn.

        Raises:
            BadInput: the space allows none of 10,000 draws.
        """
        for _ in range(DRAWS):
            arch = sample(self.param_space, rng)
            if self.allows(arch):
                return arch
        raise BadInput(f"space {self.name!r} allows none of {DRAWS:,} draws")

    def mutate(self, arch: Arch, rng: np.random.Generator) -> dict[str, Any]:
        """A copy with exactly one choice changed; unchanged where the space allows no change that was tried."""
        children = (mutate(self.param_space, arch, rng, self.moves) for _ in range(TRIES))
        return next(filter(self.allows, children), dict(arch))

    def crossover(self, mother: Arch, father: Arch, rng: np.random.Generator) -> dict[str, Any]:
        """A child that takes each choice from either parent with equal chance; else a copy of the mother."""
        children = (crossover(mother, father, rng) for _ in range(TRIES))
        return next(filter(self.allows, children), dict(mother))

    def neighbours(self, arch: Arch) -> Iterator[dict[str, Any]]:
        """Every architecture one step away in one choice."""
        for name, domain in self.param_space.items():
            for value in domains.adjacent(domain, arch[name]):
                if self.allows(other := {**arch, name: value}):
                    yield other

    def size(self) -> float:
        """Number of combinations of choices (also of those that are the same network or not allowed)."""
        return size(self.param_space)

    def all(self) -> Iterator[dict[str, Any]]:
        """Every architecture of a finite space, in a fixed order."""
        listed = [domains.values(domain) for domain in self.param_space.values()]
        if any(values is None for values in listed):
            raise BadInput(
                f"space {self.name!r} cannot be listed: a choice is continuous or has over {domains.LISTED:,} values"
            )
        for chosen in product(*(values for values in listed if values is not None)):
            if self.allows(arch := dict(zip(self.param_space, chosen, strict=True))):
                yield arch

    def canonical(self, arch: Arch) -> Any:
        """A JSON-able value, equal exactly for architectures that are the same network."""
        return self.canonical_form(arch)

    def hash(self, arch: Arch) -> str:
        """16 hexadecimal digits that name the architecture, the same in every process."""
        return stable_hash([self.name, dict(self.options), self.canonical(arch)])[:16]

    def fingerprint(self) -> str:
        """16 hexadecimal digits that name the space: its domains and options."""
        listed = {name: domains.to_config(domain) for name, domain in self.param_space.items()}
        return stable_hash([self.name, dict(self.options), listed])[:16]

    def encode(self, arch: Arch) -> np.ndarray:
        """Vector of an architecture: ordered choices as one number in [0, 1], others one-hot."""
        return encode(self.param_space, arch)

    def decode(self, vector: np.ndarray) -> dict[str, Any]:
        """The architecture nearest to a vector; the inverse of `encode`."""
        return decode(self.param_space, vector)


def sample(param_space: ParamSpace, rng: np.random.Generator) -> dict[str, Any]:
    """One value for each name, each drawn on its own."""
    return {name: domains.draw(domain, rng) for name, domain in param_space.items()}


def mutate(
    param_space: ParamSpace, params: Arch, rng: np.random.Generator, moves: Moves | None = None
) -> dict[str, Any]:
    """A copy of `params` with one value changed; unchanged where no name has a second value."""
    movable = [name for name, domain in param_space.items() if (domains.values(domain) or [0, 1])[1:]]
    if not movable:
        return dict(params)
    name = movable[int(rng.integers(len(movable)))]
    domain, value = param_space[name], params[name]
    steps = moves[name](value) if moves and name in moves else ()
    # A value that several steps are rounded to is as likely as any other.
    rounded = dict.fromkeys(_nearest(domain, step) for step in steps)
    near = [step for step in rounded if step != value and domains.contains(domain, step)]
    return {**params, name: near[int(rng.integers(len(near)))] if near else domains.perturb(domain, value, rng)}


def _nearest(domain: domains.Domain, value: Any) -> Any:
    """The nearest of the listed numbers of a domain; the value itself where none are listed, or it is no number."""
    listed = domains.values(domain) if domains.is_ordered(domain) else None
    if listed is None or not isinstance(value, int | float):
        return value
    return min(listed, key=lambda known: abs(known - value))


def crossover(mother: Arch, father: Arch, rng: np.random.Generator) -> dict[str, Any]:
    """Each value from either parent with equal chance."""
    return {name: (mother if rng.random() < 0.5 else father)[name] for name in mother}


def size(param_space: ParamSpace) -> float:
    """Number of points; infinite if a domain is continuous."""
    return math.prod(domains.count(domain) for domain in param_space.values())


def encode(param_space: ParamSpace, params: Arch) -> np.ndarray:
    """Vector [D] of `params`: ordered and continuous domains as one number in [0, 1], others one-hot."""
    parts: list[float] = []
    for name, domain in param_space.items():
        if domains.is_ordered(domain):
            parts.append(domains.to_unit(domain, params[name]))
        else:
            parts.extend(float(value == params[name]) for value in domains.values(domain) or [])
    return np.array(parts)


def decode(param_space: ParamSpace, vector: np.ndarray) -> dict[str, Any]:
    """The point nearest to a vector of `encode`."""
    params: dict[str, Any] = {}
    at = 0
    for name, domain in param_space.items():
        if domains.is_ordered(domain):
            params[name] = domains.from_unit(domain, float(np.clip(vector[at], 0, 1)))
            at += 1
        else:
            listed = domains.values(domain) or []
            params[name] = listed[int(np.argmax(vector[at : at + len(listed)]))]
            at += len(listed)
    return params
