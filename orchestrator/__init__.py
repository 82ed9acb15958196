"""What runs when, and where: recipes, stages, resume. `import orchestrator` is light; torch and Ray come with `run`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis import Results
    from orchestrator.recipe import Recipe

STORAGE = Path("runs")


def run(
    recipe: "Recipe | str | Path",
    *,
    overrides: Mapping[str, Any] | None = None,
    storage: str | Path = STORAGE,
    name: str | None = None,
    address: str | None = None,
    progress: bool | None = None,
) -> "Results":
    """Run a search to its end and return its results; they lie in `storage`/`name`.

    Args:
        recipe: a recipe, the name of one that comes with dux, or a YAML file.
        overrides: values by dotted path, such as `{"stages.short.epochs": 3}`.
        address: of a Ray cluster; None starts Ray on this machine alone.
        progress: show a live display; None shows one in a terminal and in a notebook.

    Raises:
        BadInput: a mistake in what was given; nothing was created.
        RunFailed: the run cannot go on; what it has done is kept.
    """
    from orchestrator.launch import launch

    return launch(recipe, overrides or {}, Path(storage), name, address, progress)


def resume(path: str | Path, *, address: str | None = None, progress: bool | None = None) -> "Results":
    """Go on with an interrupted run: nothing that has finished runs again.

    Raises:
        BadInput: no run, or one that another process holds.
    """
    from orchestrator.launch import take_up

    return take_up(Path(path), address, progress)


def __getattr__(name: str) -> Any:
    if name == "Recipe":
        from orchestrator.recipe import Recipe

        return Recipe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["Recipe", "resume", "run"]
