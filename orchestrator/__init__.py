"""What runs when, and where: recipes, stages, resume. `import orchestrator` is light; torch and Ray come with `run`."""

from collections.abc import Mapping, Sequence
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


def score(
    recipe: "Recipe | str | Path",
    *,
    every: bool = False,
    archs: Sequence[Mapping[str, Any]] = (),
    scores: Sequence[str] | None = None,
    seeds: int | None = None,
    trials: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    storage: str | Path = STORAGE,
    name: str | None = None,
    address: str | None = None,
    progress: bool | None = None,
) -> "Results":
    """Score students without training any: a run of one stage, whose table also lies in its `scores.parquet`.

    Args:
        every: score each architecture of the space that is within the limits, once.
        archs: score these. With neither, the candidates are those of the recipe's first score stage.
        scores, seeds, trials: instead of that stage's; without such a stage, every score that applies.
        output: a Parquet file for the table, too.

    The other arguments, and what is raised, are those of `run`.
    """
    from orchestrator.launch import launch_scores

    how = {"every": every, "archs": archs, "scores": scores, "seeds": seeds, "trials": trials}
    file = Path(output) if output is not None else None
    return launch_scores(recipe, overrides or {}, how, file, Path(storage), name, address, progress)


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


__all__ = ["Recipe", "resume", "run", "score"]
