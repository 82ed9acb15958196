"""The recipe of a search: what is fixed, what is searched, and the stages in order; from YAML or made in Python."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from orchestrator import plain_values, reading
from orchestrator.specs import (
    DEFAULTS,
    Limits,
    MLflowSpec,
    Model,
    ReplaySpec,
    Resources,
    Rivals,
    SpaceSpec,
    StageSpec,
    TaskSpec,
    TeacherSpec,
    TrackingSpec,
    WandbSpec,
)
from spaces.domains import Domain, from_config, is_domain_config
from spaces.errors import BadInput, unknown
from spaces.space import sample
from trainables.regimes import REGIMES
from trainables.scores import SCORES

TUNABLE = ("losses", "optimizer", "batch_size", "regime")  # what may hold domains


class Recipe(Model):
    """A whole search. `Recipe.load` reads one; unknown keys are refused.

    `max_failures` is about what a fresh worker may not meet again. What would come again, such as a loss that is not
    finite or an error in a builder, fails a trial at once; `max_failure_rate` ends a search of which most fails.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    task: TaskSpec
    teacher: TeacherSpec | None = None
    more_teachers: list[TeacherSpec] = Field([])  # besides `teacher`, which likeness is measured to
    space: SpaceSpec
    student: dict[str, Any] | None = None  # a fixed student: only its distillation is searched
    students: list[dict[str, Any]] | None = Field(None, min_length=1)  # the first stage's candidates, where given
    limits: Limits = Field(default_factory=Limits)
    seed: int = 0
    resources: Resources = Field(default_factory=Resources)
    workers: int | None = Field(None, ge=1)  # trials at once; default: as many as the resources allow
    # How often a trial is taken up again after its worker was lost (killed, its node gone) or ran out of memory.
    max_failures: int = Field(2, ge=0)
    # Once 10 trials of a stage have ended, or all of fewer, a larger share of failed ones ends the run.
    max_failure_rate: float = Field(0.8, gt=0, le=1)
    teacher_cache_gb: float = Field(2.0, ge=0)
    tracking: TrackingSpec = Field(default_factory=TrackingSpec)
    replay: ReplaySpec | None = None  # results from a table, in virtual time; nothing is trained
    stages: list[StageSpec] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, raw: Any) -> Any:
        """Give each distillation stage the settings that it omits, and each score stage of all scores their names."""
        if not isinstance(raw, dict) or not isinstance(raw.get("stages"), list):
            return raw
        taught = bool(raw.get("teacher"))
        inherited = {**DEFAULTS, "losses": REGIMES["offline"].default_losses(taught)}
        stages: list[Any] = []
        for stage in raw["stages"]:
            if isinstance(stage, dict) and stage.get("trial") == "distill":
                own = _with_losses({key: value for key, value in stage.items() if value is not None}, taught)
                stage = {**stage, **{key: own.get(key, value) for key, value in inherited.items()}}
                inherited = {key: stage[key] for key in DEFAULTS}
            elif isinstance(stage, dict) and stage.get("scores") == "all":
                stage = {**stage, "scores": applicable(taught)}
            stages.append(stage)
        return {**raw, "stages": stages}

    @model_validator(mode="after")
    def _whole(self) -> "Recipe":
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"two stages have one name: {', '.join(names)}")
        for stage in self.stages[:-1]:
            if stage.keep is None:
                raise ValueError(f"stage {stage.name!r}: keep says how many go on to the next stage; it is missing")
        for before, stage in zip([None, *self.stages], self.stages, strict=False):
            if stage.rivals and (before is None or before.trial != "score" or stage.scheduler.name == "pbt"):
                raise ValueError(f"stage {stage.name!r}: rivals stand beside the survivors of a score stage before it")
            if stage.rivals and stage.trials is not None:
                raise ValueError(f"stage {stage.name!r}: rivals and survivors are all distilled: give no trials")
        if self.more_teachers and self.teacher is None:
            raise ValueError("more_teachers stand beside `teacher`, which is missing")
        if self.student is not None and self.students is not None:
            raise ValueError("give either student or students")
        return self

    @property
    def teachers(self) -> dict[str, TeacherSpec]:
        """All teachers by name: `teacher`, `teacher1`, ..."""
        listed = [*([self.teacher] if self.teacher else []), *self.more_teachers]
        return {f"teacher{number or ''}": spec for number, spec in enumerate(listed)}

    @property
    def given(self) -> list[dict[str, Any]]:
        """The architectures that the recipe gives, instead of having them searched."""
        return [self.student] if self.student is not None else self.students or []

    @classmethod
    def load(cls, source: str | Path, overrides: Mapping[str, Any] | None = None) -> "Recipe":
        """A recipe by name (see `dux list recipes`) or from a YAML file, with `overrides` by dotted path.

        Raises:
            BadInput: no such recipe, no YAML, an unknown key, or a value that does not fit.
        """
        raw = reading.read(source)
        for dotted, value in (overrides or {}).items():
            reading.override(raw, dotted, value)
        return cls.parse(raw)

    def overridden(self, overrides: Mapping[str, Any]) -> "Recipe":
        """The same recipe with values set by dotted path."""
        raw = self.plain()
        for dotted, value in overrides.items():
            reading.override(raw, dotted, value)
        return self.parse(raw)

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "Recipe":
        """A recipe from plain values. Raises `BadInput` with the place, the rule and the value of the first mistake."""
        plain_values.check(raw)
        try:
            return cls.model_validate(dict(raw))
        except ValidationError as error:
            raise BadInput(_first_mistake(error)) from error

    def to_yaml(self) -> str:
        """The resolved recipe; `Recipe.load` reads it back."""
        return yaml.safe_dump(self.plain(), sort_keys=False, allow_unicode=True)

    def plain(self) -> dict[str, Any]:
        """The resolved recipe as plain values, without what is unset."""
        return self.model_dump(mode="json", exclude_defaults=True)


def _with_losses(stage: dict[str, Any], taught: bool) -> dict[str, Any]:
    """A stage that has a regime and no losses, with the losses of that regime; `taught` if there is a teacher."""
    regime = stage.get("regime")
    name = regime.get("name") if isinstance(regime, dict) else regime
    row = REGIMES.get(name) if isinstance(name, str) else None
    return {"losses": row.default_losses(taught), **stage} if row else stage


def applicable(taught: bool) -> list[str]:
    """The scores that can be computed with a teacher, or without one."""
    return [name for name, entry in SCORES.items() if taught or not entry.needs_teacher]


def domains_in(settings: Mapping[str, Any]) -> dict[str, Domain]:
    """The Tune domains in a stage's settings by dotted path, such as `losses.kd.temperature`.

    Raises:
        BadInput: what is spelt like a domain and is none, with its path.
    """
    return {path: _domain(path, value) for path, value in _leaves({key: settings[key] for key in TUNABLE})}


def _domain(path: str, value: Any) -> Domain:
    try:
        return from_config(value)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error


def resolved(settings: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with each domain replaced by its value in `params`."""

    def fill(value: Any, path: str) -> Any:
        if path in params:
            return params[path]
        if isinstance(value, Mapping | list):
            filled = {key: fill(inner, f"{path}.{key}" if path else key) for key, inner in _items(value)}
            return list(filled.values()) if isinstance(value, list) else filled
        return value

    filled: dict[str, Any] = fill(settings, "")
    return filled


def drawn(stage: StageSpec, rng: np.random.Generator) -> dict[str, Any]:
    """A stage's settings with a value for each domain."""
    return resolved(stage.settings(), sample(domains_in(stage.settings()), rng))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if is_domain_config(value):
        yield path, value
    elif isinstance(value, Mapping | list):
        for key, inner in _items(value):
            yield from _leaves(inner, f"{path}.{key}" if path else key)


def _items(value: Mapping[str, Any] | list[Any]) -> Iterable[tuple[Any, Any]]:
    """What is inside, by name, or by number in a list (such as `pairs`)."""
    return value.items() if isinstance(value, Mapping) else enumerate(value)


def _first_mistake(error: ValidationError) -> str:
    details = error.errors()[0]
    place = ".".join(str(part) for part in details["loc"])
    if details["type"] == "extra_forbidden":
        return f"recipe: {place}: {unknown('key', details['loc'][-1], _keys_beside(details['loc']))}"
    message = details["msg"].removeprefix("Value error, ")
    if details["type"] == "missing":
        return f"recipe: {place} is missing"
    if details["type"] == "value_error":
        return f"recipe: {place + ': ' if place else ''}{message}"
    return f"recipe: {place}: {message[0].lower()}{message[1:]}, not {details['input']!r}"


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Recipe
    models: dict[str, type[BaseModel]] = {
        "task": TaskSpec,
        "teacher": TeacherSpec,
        "more_teachers": TeacherSpec,
        "space": SpaceSpec,
        "limits": Limits,
        "resources": Resources,
        "stages": StageSpec,
        "rivals": Rivals,
        "replay": ReplaySpec,
        "tracking": TrackingSpec,
        "mlflow": MLflowSpec,
        "wandb": WandbSpec,
    }
    if len(location) > 1:
        model = models.get(str(location[-2])) or models.get(str(location[0]), Recipe)
    return list(model.model_fields)
