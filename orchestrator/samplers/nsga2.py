"""NSGA-II (Deb et al. 2002, doi:10.1109/4235.996017): Optuna's, with generations read from the history alone."""

from typing import final

from optuna.samplers import NSGAIISampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from spaces.seeding import derive_seed


@final
class NSGA2(NSGAIISampler):
    """Generation g is the g-th `population_size` of the trials that ended with values, by number.

    Optuna writes each trial's generation and each generation's parents into the study as it goes. A study rebuilt
    from a log has none of that, and would evolve differently. Otherwise the suggestions are Optuna's own.
    """

    def __init__(self, *, population_size: int, crossover_prob: float, seed: int) -> None:
        super().__init__(population_size=population_size, crossover_prob=crossover_prob, seed=seed)
        self._size = population_size
        # Optuna draws mutants from a generator with the same seed as the one that chooses parents. That of one
        # ask would then repeat the numbers that chose its parents.
        self._random_sampler = RandomSampler(seed=derive_seed(seed, "mutants"))

    def get_trial_generation(self, study: Study, trial: FrozenTrial) -> int:
        """How many generations are complete when this trial is asked for."""
        return len(_finished(study)) // self._size

    def get_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        """The trials of one generation."""
        return _finished(study)[generation * self._size : (generation + 1) * self._size]

    def get_parent_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        """The best of all generations before this one, carried forward one generation at a time."""
        parents: list[FrozenTrial] = []
        for before in range(generation):
            elite = self._elite_population_selection_strategy(study, self.get_population(study, before) + parents)
            parents = sorted(elite, key=lambda trial: trial.number)
        return parents


def _finished(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
