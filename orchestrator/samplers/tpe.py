"""Tree-structured Parzen estimators: Optuna's, told the space that all trials of a study share."""

from typing import Any, final

from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from orchestrator.samplers.distributions import distributions
from spaces.domains import ParamSpace

_TELLING = (TrialState.COMPLETE, TrialState.PRUNED)


@final
class TPE(TPESampler):
    """Bergstra et al. 2011; Watanabe 2023, arXiv:2304.11127. The suggestions are Optuna's own.

    A sampler that is made anew for each ask would find out by comparing all trials in which names they agree, choice by
    choice: two thirds of what an ask takes after a hundred trials.
    """

    def __init__(self, param_space: ParamSpace, *, seed: int, **settings: Any) -> None:
        super().__init__(seed=seed, **settings)
        shared = sorted(distributions(param_space).items())
        self._shared = {name: domain for name, domain in shared if not domain.single()}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The names that are modelled together: all of them once a trial has ended, where names are modelled so."""
        ended = any(known.state in _TELLING for known in study.get_trials(deepcopy=False))
        return dict(self._shared) if ended and self._is_multivariate(study) else {}
