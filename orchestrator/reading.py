"""Reading a recipe's YAML: by name or from a file, with what it extends, and with values set by dotted path."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator import paths, plain_values
from spaces.domains import is_domain_config
from spaces.errors import BadInput, unknown

RECIPES = Path(__file__).parent / "recipes"
METHODS = ("regime", "sampler", "scheduler")  # what may be a bare name, or a name with settings


def recipe_names() -> list[str]:
    """The recipes that come with dux."""
    return sorted(path.stem for path in RECIPES.rglob("*.yaml"))


def read(source: str | Path, extended: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The keys of a recipe, and of those that it extends.

    `extends: NAME` (of a recipe that comes with dux, or of a file beside this one) takes over all keys of that recipe;
    those that stand here win. Mappings are merged key by key, stages by their names; every other value is replaced,
    a domain and a mapping of another `name` too.

    Args:
        source: a name (see `dux list recipes`), a file, or a run's directory.
        extended: the files that lead here.

    Raises:
        BadInput: no such recipe, no YAML, no mapping, or recipes that extend each other.
    """
    path = _find(source, extended[-1].parent if extended else Path())
    if path in extended:
        raise BadInput(f"{path}: extends itself: {' -> '.join(one.name for one in (*extended, path))}")
    raw = paths.from_beside(plain_values.read(path), path.parent)
    base = raw.pop("extends", None)
    if base is None:
        return raw
    if not isinstance(base, str):
        raise BadInput(f"{path}: extends must name a recipe or a file, not {base!r}")
    paths.check_inward("extends", base)
    return _merged(read(base, (*extended, path)), raw)


def _find(source: str | Path, beside: Path) -> Path:
    named = sorted(RECIPES.rglob(f"{source}.yaml")) if re.fullmatch(r"[\w.-]{1,100}", str(source)) else []
    places = [*named, beside / source, Path(source)]
    found = next((at for place in places for at in (place, place / "recipe.yaml") if _is_file(at)), None)
    if found is None:
        raise unknown("recipe", source, recipe_names())
    return found.resolve()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file system takes
        return False


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in own.items():
        before = _with_settings(key, base.get(key))
        if isinstance(before, Mapping) and isinstance(value, Mapping) and not _replaces(value, before):
            merged[key] = _merged(before, value)
        elif key == "stages" and isinstance(before, list) and isinstance(value, list):
            merged[key] = _merged_stages(before, value)
        else:
            merged[key] = value
    return merged


def _replaces(own: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    """Whether nothing of the one mapping belongs into the other: one is a domain, or they are of different methods."""
    named = "name" in own and "name" in base and own["name"] != base["name"]
    return named or is_domain_config(own) or is_domain_config(base)


def _with_settings(key: str, value: Any) -> Any:
    """A method's bare name as a mapping, which settings can stand in."""
    return {"name": value} if key in METHODS and isinstance(value, str) else value


def _merged_stages(base: list[Any], own: list[Any]) -> list[Any]:
    """The stages of `base`, each with what the stage of its name in `own` says; others of `own` come after them."""
    stages = {_name_of(stage, number): stage for number, stage in enumerate(base)}
    for number, stage in enumerate(own):
        name = _name_of(stage, len(base) + number)
        before = stages.get(name)
        stages[name] = _merged(before, stage) if isinstance(before, Mapping) and isinstance(stage, Mapping) else stage
    return list(stages.values())


def _name_of(stage: Any, number: int) -> Any:
    return stage.get("name", number) if isinstance(stage, Mapping) else number


def override(raw: dict[str, Any], dotted: str, value: Any) -> None:
    """Set `a.b.c` in nested mappings; a stage is addressed by its name or number."""
    *parents, last = dotted.split(".")
    at: Any = raw
    for key in parents:
        if isinstance(at, list):
            named = {stage.get("name"): stage for stage in at if isinstance(stage, dict)}
            numbered = {str(i): stage for i, stage in enumerate(at)}
            if key not in named and key not in numbered:
                raise unknown("stage", key, [str(name) for name in named])
            at = named.get(key, numbered.get(key))
        elif isinstance(at, dict):
            inner = at[key] = _with_settings(key, at.get(key, {}))
            if not isinstance(inner, dict | list):
                # A bare weight (`kd: 0.9`) becomes a mapping once one of its settings is set.
                inner = at[key] = {"weight": inner} if isinstance(inner, int | float) else {}
            at = inner
    if not isinstance(at, dict):
        raise BadInput(f"--set {dotted}: there is nothing to set at this path")
    at[last] = value
