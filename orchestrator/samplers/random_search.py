"""Random search (Bergstra & Bengio 2012, JMLR 13): the base line that every other sampler must beat."""

from typing import Any, final

from optuna.study import Study
from optuna.trial import FrozenTrial

from orchestrator.samplers.proposer import Proposer
from spaces.space import sample


@final
class RandomSearch(Proposer):
    """Every value drawn on its own, by its domain."""

    def propose(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        """A point that owes nothing to the history."""
        return sample(self.param_space, self.rng)
