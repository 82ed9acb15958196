"""Scores without training, by themselves: a recipe reduced to one score stage, which then runs like any other."""

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.schema import ENSEMBLES
from orchestrator.checks import COSTS
from orchestrator.prepared import space_of
from orchestrator.recipe import Recipe, applicable
from orchestrator.samplers.grid import LARGEST
from orchestrator.specs import StageSpec
from spaces import BadInput
from trainables import scores as score_table

RANDOM = {"random": True, "weights": None, "train_epochs": 0, "pretrained": False}  # a teacher before any training


def reduced(
    recipe: Recipe,
    every: bool = False,
    archs: Sequence[Mapping[str, Any]] = (),
    scores: Sequence[str] | None = None,
    seeds: int | None = None,
    trials: int | None = None,
) -> Recipe:
    """The recipe as a score stage alone: its first one; without one, a stage of `scores`, or of all that apply.

    Args:
        every: score each architecture of the space that is within the limits, once.
        archs: score these. With neither, the stage proposes its candidates as it would in a search.
        scores: instead of the stage's, with the settings that it has for them; `["all"]`: all that apply. An
            objective that names others gives way to the mean rank over these.
        seeds, trials: instead of the stage's.

    Raises:
        BadInput: two ways to say which candidates, or none; no score; or what `Recipe.parse` refuses.
    """
    if every and archs:
        raise BadInput("--all scores every student, --arch those that are given: take one of them")
    if trials and (every or archs):
        raise BadInput(f"--trials {trials} does not go with --{'all' if every else 'arch'}, which says which students")
    if scores is not None and not any(scores):
        raise BadInput("--scores takes names of scores, as in snip,nwot, or all; none is given")
    names = applicable(recipe.teacher is not None) if scores is not None and list(scores) == ["all"] else scores
    found = next((stage for stage in recipe.stages if stage.trial == "score"), None)
    if found is None and not (every or archs or trials or recipe.given):
        raise BadInput(f"recipe {recipe.name!r} has no score stage: say which students, by --all, --arch or --trials")
    stage = _stage(found, names)
    if every:
        stage |= {"sampler": "grid", "trials": None}
    if archs:
        stage["trials"] = None
    given = {"seeds": seeds, "trials": trials}
    stage |= {name: value for name, value in given.items() if value is not None}
    raw = {**recipe.plain(), "name": f"{recipe.name}-scores", "stages": [stage]}
    if every or archs:
        raw |= {"student": None, "students": [dict(arch) for arch in archs] or None}
    made = _with_less_teacher(Recipe.parse(raw))
    if every and (size := space_of(made.space).size()) > LARGEST:
        raise BadInput(f"--all scores at most {LARGEST:,} students, and the space has {size:,.0f}: take --trials")
    return made


def _stage(found: StageSpec | None, scores: Sequence[str] | None) -> dict[str, Any]:
    if found is None:
        return {"name": "score", "trial": "score", "scores": list(scores) if scores else "all"}
    stage = found.model_dump(mode="json", exclude_defaults=True) | {"trial": "score", "keep": None}
    if scores is None:
        return stage
    settings = found.scores or {}
    # A list: where a name stands twice the recipe says so.
    stage["scores"] = [{name: settings.get(name, {})} for name in scores]
    terms = {term for name in scores if name in score_table.SCORES for term in score_table.SCORES[name].terms}
    known = {*scores, *terms}
    for key, names in {"objective": known | {*ENSEMBLES}, "pareto": known | {*COSTS}, "ensemble": {*scores}}.items():
        if not set(stage.get(key) or ()) <= names:
            del stage[key]
    return stage


def _with_less_teacher(recipe: Recipe) -> Recipe:
    """Without a teacher that no score reads, and without training one that is read as it was initialised.

    Scores read the first teacher alone.
    """
    [stage] = recipe.stages
    if recipe.teacher is None:
        return recipe
    read = any(score_table.SCORES[name].needs_teacher for name in stage.scores or () if name in score_table.SCORES)
    if read and stage.teacher == "given":
        return recipe.model_copy(update={"more_teachers": []})
    changed = stage.model_copy(update={"teacher": "given"})
    teacher = recipe.teacher.model_copy(update=RANDOM) if read else None
    return recipe.model_copy(update={"teacher": teacher, "more_teachers": [], "stages": [changed]})
