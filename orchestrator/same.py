"""Whether a recipe is the one that a run was made from: then the run can be gone on with instead of begun anew."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from orchestrator.recipe import Recipe
from orchestrator.run_directory import own_recipe, write_recipe
from spaces import BadInput
from spaces.seeding import stable_hash


def check_same(recipe: Recipe, run: Path) -> None:
    """Raises `BadInput` unless a run made from the recipe now would have the recipe of this run."""
    there = settings(run)
    here = settings_of(recipe)
    for key in dict.fromkeys((*there, *here)):
        if there.get(key) != here.get(key):
            raise BadInput(
                f"{run} is a run of another recipe: {key} is {_said(there, key)} there and {_said(here, key)} here; "
                "choose another --name"
            )


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """The values of a recipe as a run that is made from it has them; see `settings`."""
    with TemporaryDirectory() as folder:
        write_recipe(recipe, Path(folder))
        return settings(Path(folder))


def settings(folder: Path) -> dict[str, Any]:
    """The values of the recipe in a run's directory, by dotted path, with the contents of its space's file."""
    raw = own_recipe(folder).plain()
    if file := raw["space"].get("file"):
        raw["space"]["file"] = f"{Path(file).name} ({stable_hash(Path(file).read_text())[:8]})"
    return dict(_leaves(raw))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The values that are no mappings or lists; what has a name in a list (a stage) goes by it."""
    if isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value):
        value = {part.get("name", number): part for number, part in enumerate(value)}
    if not isinstance(value, Mapping):
        yield path, value
        return
    for key, inner in value.items():
        yield from _leaves(inner, f"{path}.{key}" if path else str(key))


def _said(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "not set"
