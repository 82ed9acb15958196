"""Aging evolution (Real et al. 2019, arXiv:1802.01548, algorithm 1)."""

from typing import Any, final

from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from orchestrator.samplers.distributions import decode
from orchestrator.samplers.proposer import Proposer
from spaces.domains import ParamSpace
from spaces.errors import BadInput
from spaces.space import Moves, crossover, mutate, sample


@final
class AgingEvolution(Proposer):
    """Mutate the best of a few among the youngest; the old die whatever their merit.

    The population is the last `population` trials that ended with a value; those that run, failed or were stopped
    early do not belong to it. Until there are so many, points are random.

    Args:
        population: trials that live at a time.
        sample_size: of the living, drawn without replacement; the best of them is the parent.
        crossover: chance that the winner of a second tournament shares its values before the mutation (0 in the paper).
        moves: the steps of a mutation, by name; every other value of the names that are not there.
    """

    def __init__(
        self,
        param_space: ParamSpace,
        seed: int,
        *,
        population: int,
        sample_size: int,
        crossover: float,
        moves: Moves | None = None,
    ) -> None:
        super().__init__(param_space, seed)
        if sample_size > population:
            raise BadInput(f"sampler 'evolution': sample_size {sample_size} exceeds population {population}")
        self.population = population
        self.sample_size = sample_size
        self.crossover = crossover
        self.moves = moves

    def propose(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        """A child of the living, or a random point while they are too few."""
        living = self.youngest(study, self.population)
        if len(living) < self.population:
            return sample(self.param_space, self.rng)
        sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
        fitness = [sign * ended.values[0] for ended in living]
        points = [decode(self.param_space, ended.params) for ended in living]
        parent = points[self._winner(fitness)]
        if self.rng.random() < self.crossover:
            parent = crossover(parent, points[self._winner(fitness)], self.rng)
        return mutate(self.param_space, parent, self.rng, self.moves)

    def _winner(self, fitness: list[float]) -> int:
        drawn = self.rng.choice(len(fitness), self.sample_size, replace=False)
        return int(max(drawn, key=fitness.__getitem__))
