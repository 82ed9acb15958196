"""A study of trials that are known already: what a sampler is asked on, without copying a history for each ask."""

import copy
from collections.abc import Container, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState, create_trial

_ONLY = 0  # the number of the one study
_WAITING = (TrialState.WAITING,)


class Known(BaseStorage):
    """One study in memory. `trials` are given, by number, and changed by whoever gave them.

    A trial that is asked for comes after them, and is there until `forget`.
    """

    def __init__(self, directions: Sequence[StudyDirection]) -> None:
        self.directions = list(directions)
        self.trials: list[FrozenTrial] = []
        self._known = 0
        self._notes: dict[str, Any] = {}

    def know(self, number: int, trial: FrozenTrial) -> None:
        """Set the trial of a number, which is one that is known or the next one."""
        self.forget()
        trial.number = trial._trial_id = number
        self.trials[number : number + 1] = [trial]
        self._known = len(self.trials)

    def forget(self) -> None:
        """Forget the trials that were asked for, and what samplers have noted of the study."""
        del self.trials[self._known :]
        self._notes.clear()

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        number = len(self.trials)
        trial = copy.deepcopy(template_trial) or create_trial(state=TrialState.RUNNING)
        trial.number = trial._trial_id = number
        self.trials.append(trial)
        return number

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        if states == _WAITING:  # asked before each ask; none ever is
            return []
        found = self.trials if states is None else [trial for trial in self.trials if trial.state in states]
        return copy.deepcopy(found) if deepcopy else list(found)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self.trials[trial_id]

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        trial = self.trials[trial_id]
        trial.params = {**trial.params, param_name: distribution.to_external_repr(param_value_internal)}
        trial.distributions = {**trial.distributions, param_name: distribution}

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        self.trials[trial_id].state = state
        if values is not None:
            self.trials[trial_id].values = list(values)
        return True

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        self.trials[trial_id].intermediate_values[step] = intermediate_value

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self.trials[trial_id].user_attrs[key] = value

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self.trials[trial_id].system_attrs[key] = value

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return self.directions

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        return self._notes

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        self._notes[key] = value

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        return {}

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        raise NotImplementedError  # what users note is in the run's ledger

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        return _ONLY

    def delete_study(self, study_id: int) -> None:
        raise NotImplementedError

    def get_study_id_from_name(self, study_name: str) -> int:
        return _ONLY

    def get_study_name_from_id(self, study_id: int) -> str:
        return "known"

    def get_all_studies(self) -> list[FrozenStudy]:
        raise NotImplementedError


def study_of(storage: Known) -> optuna.Study:
    """The study of a storage."""
    return optuna.Study(study_name="known", storage=storage)
