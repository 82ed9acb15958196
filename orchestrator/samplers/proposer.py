"""What our own samplers share: a whole point of the param_space, proposed from the study's history alone."""

from abc import ABC, abstractmethod
from itertools import islice
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from orchestrator.samplers.distributions import distributions, encode
from spaces.domains import ParamSpace


class Proposer(BaseSampler, ABC):
    """An Optuna sampler made anew for every ask: a function of (seed, number, history) in the shape of an object."""

    def __init__(self, param_space: ParamSpace, seed: int) -> None:
        self.param_space = param_space
        self.rng = np.random.default_rng(seed)

    @abstractmethod
    def propose(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        """The point to try next, given every trial that the study holds."""

    def youngest(self, study: Study, count: int) -> list[FrozenTrial]:
        """The last trials, at most so many, that ended with a value and have one for every name, by number."""
        newest_first = reversed(study.get_trials(deepcopy=False))
        ended = (trial for trial in newest_first if trial.state == TrialState.COMPLETE)
        whole = (trial for trial in ended if self.param_space.keys() <= trial.params.keys())
        return list(islice(whole, count))[::-1]

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All of the param_space: points are proposed as a whole."""
        return distributions(self.param_space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The proposed point, as Optuna stores it; of a search in which some names are fixed, the other names."""
        stored = encode(self.param_space, self.propose(study, trial))
        return {name: stored[name] for name in search_space}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Never needed: a study asks for the names of the param_space, and those are proposed together."""
        raise AssertionError(f"{param_name!r} is not in the param_space: {', '.join(self.param_space)}")
