"""Which candidates are within the limits, and what each costs."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from spaces import BadInput, Space, Task
from spaces.others import blaming
from spaces.seeding import generator
from spaces.space import chosen
from trainables import cost

LISTABLE = 20_000  # spaces up to this size are searched through where drawing at random finds nothing


class Feasible:
    """The candidates of a space that are within the limits.

    Args:
        limits: the most of each of `params`, `flops`, `bytes`, `latency_ms`.
    """

    def __init__(self, space: Space, task: Task, limits: Mapping[str, float], device: str = "cpu") -> None:
        self.space, self.task, self.limits, self.device = space, task, dict(limits), device
        # Latency is measured only where it is limited: everything else is counted without running a network.
        self.wanted = ("params", "flops", "bytes", *(["latency_ms"] if "latency_ms" in self.limits else []))
        self._costs: dict[str, Mapping[str, float]] = {}

    def cost(self, arch: Mapping[str, Any]) -> Mapping[str, float]:
        """What a candidate costs; measured once.

        Raises:
            BadInput: its network cannot be built or run.
        """
        name = self.space.hash(arch)
        if name not in self._costs:
            with blaming(f"{chosen(arch)} of space {self.space.name!r} cannot be measured"):
                self._costs[name] = cost.measure(self.space, arch, self.task, self.wanted, self.device)
        return self._costs[name]

    def know(self, name: str, cost: Mapping[str, float]) -> None:
        """Take a candidate's cost, by its hash, as it was measured before: a latency comes out otherwise each time."""
        self._costs.setdefault(name, cost)

    def meets(self, found: Mapping[str, float]) -> bool:
        """Whether a cost is within every limit."""
        return all(found[name] <= limit for name, limit in self.limits.items())

    def allows(self, arch: Mapping[str, Any]) -> bool:
        """Whether a candidate can be built, and is within every limit."""
        try:
            return self.meets(self.cost(arch))
        except BadInput:
            return False

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """A candidate within the limits, uniformly if such ones are not too rare.

        Raises:
            BadInput: none was found, with the smallest candidate that was; or none can be built.
        """
        drawn: list[dict[str, Any]] = []
        for _ in range(100):
            drawn.append(self.space.sample(rng))
            if self.allows(drawn[-1]):
                return drawn[-1]
        return self._descend(min(drawn, key=self._excess))

    def listed(self) -> Iterator[dict[str, Any]]:
        """All candidates within the limits, where the space is small enough to look through; else none."""
        if self.space.size() <= LISTABLE:
            yield from filter(self.allows, self.space.all())

    def check(self) -> None:
        """Raises `BadInput` if no candidate within the limits can be found."""
        self.draw(generator("feasible", self.space.fingerprint()))

    def check_one(self, arch: Mapping[str, Any]) -> None:
        """Raises `BadInput` unless this candidate is within the limits."""
        found = self.cost(arch)
        over = [f"{name} {found[name]:,g} > {limit:,g}" for name, limit in self.limits.items() if found[name] > limit]
        if over:
            raise BadInput(f"{chosen(arch)} of space {self.space.name!r} is over the limits: {', '.join(over)}")

    def share(self, samples: int = 100) -> float:
        """Estimated share of the space that is within the limits."""
        if not self.limits:
            return 1.0
        rng = generator("share", self.space.fingerprint())
        return sum(self.allows(self.space.sample(rng)) for _ in range(samples)) / samples

    def _excess(self, arch: Mapping[str, Any]) -> float:
        """The worst ratio of cost to limit; infinite where the network cannot be built."""
        try:
            found = self.cost(arch)
        except BadInput:
            return math.inf
        return max((found[name] / limit for name, limit in self.limits.items()), default=0.0)

    def _descend(self, start: dict[str, Any]) -> dict[str, Any]:
        """From a candidate to ever cheaper neighbours, until one is within the limits."""
        at = start
        self.cost(at)  # where not even the best of those that were drawn can be built, this says why
        while self._excess(at) > 1:
            cheapest = min(self.space.neighbours(at), key=self._excess, default=at)
            if self._excess(cheapest) >= self._excess(at):
                raise BadInput(self._nothing_meets(at))
            at = cheapest
        return at

    def _nothing_meets(self, smallest: Mapping[str, Any]) -> str:
        limits = ", ".join(f"{name} <= {limit:,g}" for name, limit in self.limits.items())
        cost = self.cost(smallest)
        least = ", ".join(f"{name} {cost[name]:,.6g}" for name in self.limits)
        none = f"no candidate of space {self.space.name!r} is within {limits}"
        return f"{none}; the smallest found has {least}: {chosen(smallest)}"
