"""What runs when, and where: recipes, stages, resume. `import orchestrator` is light; torch and Ray come with `run`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis import Results
    from orchestrator.exporting import Exported
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
    start_from: str | Path | None = None,
    or_resume: bool = False,
) -> "Results":
    """Run a search to its end and return its results; they lie in `storage`/`name`.

    Args:
        recipe: a recipe, the name of one that comes with dux, or a YAML file.
        overrides: values by dotted path, such as `{"stages.short.epochs": 3}`.
        storage: a folder, or an address in an object store (`s3://bucket/runs`), as text; its credentials come from
            the environment. A run of an object store works in the cache folder and is brought over as it goes.
        address: of a Ray cluster; None starts Ray on this machine alone.
        progress: show a live display; None shows one in a terminal and in a notebook.
        start_from: an earlier run of the same students. What it knows is not computed again: trials that would come
            out the same are taken over, and a stage of which nothing can be begins with its best students.
        or_resume: go on with the run of this name if there is one (it must be of the same recipe): so that one command
            can be repeated until it ends well. A finished one is read back.

    Raises:
        BadInput: a mistake in what was given; nothing was created.
        RunFailed: the run cannot go on; what it has done is kept.
    """
    from analysis.remote import place
    from orchestrator.launch import launch

    origin = place(start_from) if start_from is not None else None
    return launch(recipe, overrides or {}, place(storage), name, address, progress, origin, or_resume)


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
    from analysis.remote import place
    from orchestrator.launch import launch_scores

    how = {"every": every, "archs": archs, "scores": scores, "seeds": seeds, "trials": trials}
    file = Path(output) if output is not None else None
    return launch_scores(recipe, overrides or {}, how, file, place(storage), name, address, progress)


def resume(
    path: str | Path, *, address: str | None = None, progress: bool | None = None, retry_failed: bool = False
) -> "Results":
    """Go on with an interrupted run: nothing that has finished runs again.

    Args:
        retry_failed: begin the failed trials of the stage that has not ended again, once what they failed of is mended.

    Raises:
        BadInput: no run, or one that another process holds.
    """
    from analysis.remote import place
    from orchestrator.launch import take_up

    return take_up(place(path), address, progress, retry_failed)


def export(
    run: str | Path,
    rank: int = 1,
    format: str = "safetensors",
    output: str | Path | None = None,
    *,
    by: "Mapping[str, float] | str | None" = None,
    where: str | None = None,
) -> "Exported":
    """Write a student of a run to a new folder: its network, `student.json` (architecture, input, classes, metrics,
    where it comes from), MODEL_CARD.md in words, and the recipe. The run is only read.

    Images are float32 [B, C, H, W] in [0, 1], any number of them; what comes out are logits [B, K].

    Args:
        run: its directory, or its address in an object store, as text.
        rank: of the rows of `analysis.rank`, from 1; of several seeds it is the best by the objective.
        format: `safetensors`, the weights; `torch`, a program for `torch.export.load`; `onnx`. The latter two hold
            the whole network and normalise the images themselves.
        output: default: in the working directory, named by run, rank and format.
        by, where: as of `analysis.rank`, which with the same ones tells the ranks.

    Returns:
        The folder, and how far the logits of what was written are from the student's on images of the run's data.

    Raises:
        BadInput: a mistake in what was given, or a student that cannot be written so.
        RunFailed: what was written does not say what the student says; nothing is left of it.
    """
    from analysis.remote import place
    from orchestrator import exporting

    folder = Path(output) if output is not None else None
    return exporting.export(place(run), rank, format, folder, by, where)


def __getattr__(name: str) -> Any:
    if name == "Recipe":
        from orchestrator.recipe import Recipe

        return Recipe
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["Recipe", "export", "resume", "run", "score"]
