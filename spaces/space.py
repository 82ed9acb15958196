"""A space of students: a dict of Tune domains and one builder; everything else is written once, here."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
from torch import nn

from spaces import domains
from spaces.domains import ParamSpace
from spaces.errors import BadInput, unknown
from spaces.seeding import stable_hash

Arch = Mapping[str, Any]
"""An architecture: one value for each name of the param_space."""


@dataclass(frozen=True)
class Task:
    """What a network is for: the shape of its input and the number of classes."""

    channels: int
    image_size: int  # pixels; images are square
    classes: int


def as_is(arch: Arch) -> Any:
    """The canonical form of spaces in which different choices are always different networks."""
    return dict(arch)


@dataclass(frozen=True)
class Space:
    """A Tune search space of architectures and the builder that turns one of them into a network.

    Args:
        name: as in recipes and in `spaces.SPACES`.
        param_space: a Tune domain for each choice; itself a valid `param_space` of a `tune.Tuner`.
        builder: `builder(arch, task, **options)` gives a network from images [B, C, H, W] to logits [B, K].
        taps: names of the submodules whose outputs are feature maps, shallow to deep; the last one is the map
            before global pooling.
        head: name of the final linear layer; its input [B, D] is the embedding.
        canonical_form: a JSON-able value that is equal exactly for architectures that are the same network.
        options: constants of the builder (such as a cell network's number of cells).
    """

    name: str
    param_space: ParamSpace
    builder: Callable[..., nn.Module]
    taps: tuple[str, ...]
    head: str
    canonical_form: Callable[[Arch], Any] = as_is
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, domain in self.param_space.items():
            domains.check_domain(f"space {self.name!r}, {name}", domain)

    def build(self, arch: Arch, task: Task) -> nn.Module:
        """The network of an architecture, initialised by torch's global generator."""
        return self.builder(arch, task, **self.options)

    def restrict(self, choices: Mapping[str, Any], **options: Any) -> "Space":
        """The same space with the domains of some names replaced, and builder options set.

        Raises:
            BadInput: a name or an option that the space does not have.
        """
        for name in choices:
            if name not in self.param_space:
                raise unknown(f"choice of space {self.name!r}", name, self.param_space)
        for name in options:
            if name not in self.options:
                raise unknown(f"option of space {self.name!r}", name, self.options)
        changed = {name: domains.from_config(value) for name, value in choices.items()}
        return replace(self, param_space={**self.param_space, **changed}, options={**self.options, **options})

    def check(self, arch: Arch) -> None:
        """Raises `BadInput` unless `arch` gives each name of the space one of its values."""
        for name in arch:
            if name not in self.param_space:
                raise unknown(f"choice of space {self.name!r}", name, self.param_space)
        for name, domain in self.param_space.items():
            if name not in arch:
                raise BadInput(f"space {self.name!r}: the architecture lacks {name!r}")
            if not domains.contains(domain, arch[name]):
                raise BadInput(f"space {self.name!r}: {name}={arch[name]!r} is not in {domains.to_config(domain)}")

    def sample(self, rng: np.random.Generator) -> dict[str, Any]:
        """One architecture, each choice drawn on its own."""
        return sample(self.param_space, rng)

    def mutate(self, arch: Arch, rng: np.random.Generator) -> dict[str, Any]:
        """A copy with exactly one choice changed."""
        return mutate(self.param_space, arch, rng)

    def crossover(self, mother: Arch, father: Arch, rng: np.random.Generator) -> dict[str, Any]:
        """A child that takes each choice from either parent with equal chance."""
        return crossover(mother, father, rng)

    def neighbours(self, arch: Arch) -> Iterator[dict[str, Any]]:
        """Every architecture one step away in one choice."""
        for name, domain in self.param_space.items():
            for value in domains.adjacent(domain, arch[name]):
                yield {**arch, name: value}

    def size(self) -> float:
        """Number of architectures (before isomorphic ones are merged); infinite if a choice is continuous."""
        return size(self.param_space)

    def all(self) -> Iterator[dict[str, Any]]:
        """Every architecture of a finite space, in a fixed order."""
        listed = [domains.values(domain) for domain in self.param_space.values()]
        if any(values is None for values in listed):
            raise BadInput(
                f"space {self.name!r} cannot be listed: a choice is continuous or has over {domains.LISTED:,} values"
            )
        for chosen in product(*(values for values in listed if values is not None)):
            yield dict(zip(self.param_space, chosen, strict=True))

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


def mutate(param_space: ParamSpace, params: Arch, rng: np.random.Generator) -> dict[str, Any]:
    """A copy of `params` with one value changed; unchanged where no name has a second value."""
    movable = [name for name, domain in param_space.items() if (domains.values(domain) or [0, 1])[1:]]
    if not movable:
        return dict(params)
    name = movable[int(rng.integers(len(movable)))]
    return {**params, name: domains.perturb(param_space[name], params[name], rng)}


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
