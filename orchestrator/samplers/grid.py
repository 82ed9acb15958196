"""Every point of a finite param_space once, in a shuffled order, so that a grid cut short is a fair sample of it."""

from functools import lru_cache
from typing import Any, final

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial

from orchestrator.samplers.proposer import Proposer
from spaces import domains
from spaces.domains import ParamSpace
from spaces.errors import BadInput
from spaces.space import size

LARGEST = 1_000_000  # points; the order is an array of that length


class Exhausted(Exception):
    """The grid has no further point: the search is complete."""


@final
class Grid(Proposer):
    """The point at place `number` of an order that depends on `order_seed` alone.

    Args:
        number: which point, from 0; the trial's own number if None.
        order_seed: of the shuffle; the same for every ask of a search.
    """

    def __init__(self, param_space: ParamSpace, seed: int, number: int | None, order_seed: int) -> None:
        super().__init__(param_space, seed)
        self.number = number
        self.order_seed = order_seed
        for name, domain in param_space.items():
            if domains.values(domain) is None:
                raise BadInput(
                    f"sampler 'grid' needs lists of values, and {name} is {domains.to_config(domain)}; "
                    "use choice, randint, quniform or another sampler"
                )
        if size(param_space) > LARGEST:
            raise BadInput(
                f"sampler 'grid' takes at most {LARGEST:,} points, not {size(param_space):,.0f}; use 'random'"
            )

    def propose(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        """The point of this number. Raises `Exhausted` after the last one."""
        number = trial.number if self.number is None else self.number
        points = order(int(size(self.param_space)), self.order_seed)
        if number >= len(points):
            raise Exhausted(f"all {len(points)} points of the grid have been proposed")
        return point(self.param_space, int(points[number]))


def point(param_space: ParamSpace, index: int) -> dict[str, Any]:
    """The point at an index from 0 to size - 1, the last name counting fastest."""
    params: dict[str, Any] = {}
    for name, domain in reversed(list(param_space.items())):
        listed = domains.values(domain)
        assert listed is not None
        index, at = divmod(index, len(listed))
        params[name] = listed[at]
    return {name: params[name] for name in param_space}


@lru_cache(maxsize=4)
def order(points: int, seed: int) -> np.ndarray:
    """The indices of a grid's points, shuffled."""
    return np.random.default_rng(seed).permutation(points)
