"""The searchers. Each is an Optuna sampler that is made anew for every ask and works from what the study holds.

A suggestion is thus a pure function of (seed, number, history), and a resumed search goes on as if it had never
stopped. `derive_seed(seed, stage, number, attempt)` is a fit seed for one ask.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.samplers import BaseSampler, GPSampler

from orchestrator.samplers.distributions import decode, distributions, encode
from orchestrator.samplers.evolution import AgingEvolution
from orchestrator.samplers.grid import Exhausted, Grid
from orchestrator.samplers.nsga2 import NSGA2
from orchestrator.samplers.random_search import RandomSearch
from orchestrator.samplers.tpe import TPE
from spaces.domains import ParamSpace
from spaces.errors import BadInput, unknown
from spaces.settings import Flag, Number, Setting, resolve
from spaces.space import Moves


@dataclass(frozen=True)
class Method:
    """One way to search.

    Args:
        build: `build(param_space, seed, number, **settings)` gives the sampler of one ask.
        settings: what a recipe may set.
        several: whether it searches for several objectives at once.
        mutates: whether it takes `moves`, the steps of a mutation.
    """

    build: Callable[..., BaseSampler]
    settings: Mapping[str, Setting]
    several: bool = True
    mutates: bool = False


def grid(param_space: ParamSpace, seed: int, number: int | None, *, order_seed: int) -> BaseSampler:
    """Every point once; raises `Exhausted` after the last one."""
    return Grid(param_space, seed, number, order_seed)


def random(param_space: ParamSpace, seed: int, number: int | None) -> BaseSampler:
    """Each value drawn on its own."""
    return RandomSearch(param_space, seed)


def tpe(param_space: ParamSpace, seed: int, number: int | None, **settings: Any) -> BaseSampler:
    """Tree-structured Parzen estimators (Bergstra et al. 2011; Watanabe 2023, arXiv:2304.11127)."""
    return TPE(param_space, seed=seed, **settings)


def nsga2(param_space: ParamSpace, seed: int, number: int | None, **settings: Any) -> BaseSampler:
    """Evolve a front of trade-offs (Deb et al. 2002)."""
    return NSGA2(seed=seed, **settings)


def gp(param_space: ParamSpace, seed: int, number: int | None, **settings: Any) -> BaseSampler:
    """A Gaussian process and the expected (hypervolume) improvement (Jones et al. 1998; arXiv:2310.20708)."""
    return GPSampler(seed=seed, **settings)


def evolution(param_space: ParamSpace, seed: int, number: int | None, **settings: Any) -> BaseSampler:
    """Aging evolution (Real et al. 2019, arXiv:1802.01548)."""
    return AgingEvolution(param_space, seed, **settings)


STARTUP = Number(10, low=1, whole=True)  # random trials before the model begins

SAMPLERS: dict[str, Method] = {
    "grid": Method(grid, {"order_seed": Number(0, low=0, whole=True)}),
    "random": Method(random, {}),
    # None: over all names together for one objective, each name on its own for several (Optuna's choice).
    "tpe": Method(tpe, {"n_startup_trials": STARTUP, "multivariate": Flag(None), "constant_liar": Flag(True)}),
    "nsga2": Method(nsga2, {"population_size": Number(20, low=2, whole=True), "crossover_prob": Number(0.9, 0, 1)}),
    "gp": Method(gp, {"n_startup_trials": STARTUP}),
    "evolution": Method(
        evolution,
        # The paper's 100 and 25 are for 20,000 trials; these leave 80 of 100 trials to evolve.
        {
            "population": Number(20, low=1, whole=True),
            "sample_size": Number(5, low=1, whole=True),
            "crossover": Number(0.0, 0, 1),
        },
        several=False,
        mutates=True,
    ),
}


def make(
    name: str,
    param_space: ParamSpace,
    seed: int,
    settings: Mapping[str, Any],
    number: int | None = None,
    moves: Moves | None = None,
) -> BaseSampler:
    """The sampler of one ask.

    Args:
        name: in `SAMPLERS`.
        seed: of this ask; another for each ask and each attempt.
        settings: as `check_settings` accepts them; besides, the search may give each sampler an `order_seed`, which
            those without an order of their own pass over.
        number: which proposal of the search this is, from 0; the trial's own number if None. Only grids look at it.
        moves: the steps of the space's mutations. Only samplers that mutate look at them.

    Raises:
        BadInput: an unknown sampler or setting, a value out of range, or a param_space that the sampler cannot search.
    """
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    method = SAMPLERS[name]
    own = {key: value for key, value in settings.items() if key != "order_seed" or key in method.settings}
    resolved = resolve(f"sampler {name!r}", own, method.settings)
    return method.build(param_space, seed, number, **resolved, **({"moves": moves} if method.mutates else {}))


def check_settings(name: str, settings: Mapping[str, Any], param_space: ParamSpace, objectives: int) -> None:
    """Raises `BadInput` unless the sampler can search this param_space for so many objectives with these settings."""
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    resolve(f"sampler {name!r}", settings, SAMPLERS[name].settings)
    make(name, param_space, 0, settings)  # what is built has checked the rest
    if objectives > 1 and not SAMPLERS[name].several:
        several = ", ".join(known for known, method in SAMPLERS.items() if method.several)
        raise BadInput(f"sampler {name!r} takes one objective, not {objectives}; for several use {several}")


__all__ = ["SAMPLERS", "Exhausted", "Method", "check_settings", "decode", "distributions", "encode", "make"]
