"""What the search had found by when."""

from matplotlib.axes import Axes

from analysis.comparing import best_so_far
from analysis.plots import words
from analysis.plots.cost import teacher_lines
from analysis.plots.students import check_stage
from analysis.plots.theme import MARKERS, Picture, Theme, canvas, legend, look, name_axes, plain
from analysis.results import Results

_DASHES: tuple[str | tuple[int, tuple[float, ...]], ...] = (
    "-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)), (0, (8, 2)), (0, (3, 1, 1, 1)),
)  # fmt: skip


def progress(results: Results, *, stage: str | None = None, theme: str = "light") -> Picture:
    """The best validation accuracy of finished trials against device time spent, a line a run; where stages began is
    marked, and each improvement.

    Args:
        stage: only students of this one; the time of the others counts all the same.

    Raises:
        BadInput: an unknown stage or theme, or no finished trial with an accuracy.
    """
    style = look(theme)
    check_stage(results, stage)
    found = best_so_far(results, "valid_accuracy", stage)
    figure, (axes,) = canvas(style, size=(5.4, 3.5))
    unit, unit_name = words.time_unit(float(found["device_seconds"].max()))
    runs = list(found.groupby("run", sort=False))
    handles = []
    for number, (run, part) in enumerate(runs):
        colour = style.colours[number % len(style.colours)]
        handles += axes.plot(
            part["device_seconds"] / unit, 100 * part["best"], drawstyle="steps-post", color=colour, lw=1.5, ms=4,
            ls=_DASHES[number % len(_DASHES)], marker=MARKERS[number % len(MARKERS)],
            markevery=(~part["best"].duplicated()).to_numpy().nonzero()[0].tolist(),
            label=f"run {run}" if len(runs) > 1 else "best student so far", gid=f"best {run}",
        )  # fmt: skip
    handles += teacher_lines([axes], style, results)
    axes.set_xlim(left=0)
    if len(runs) == 1:
        _stage_starts(axes, style, results, unit)
    name_axes(axes, style, f"device time of all trials and the teacher ({unit_name})", words.axis("valid_accuracy"))
    legend(figure, style, handles)
    return figure


def _stage_starts(axes: Axes, style: Theme, results: Results, unit: float) -> None:
    """A faint line where each stage began, its name above it unless it would stand on another one's."""
    reports = results.epochs.sort_values("time", kind="stable")
    taught = sum(teacher.get("seconds") or 0.0 for teacher in results.teachers)
    before = taught + reports["seconds"].fillna(0.0).cumsum().shift(fill_value=0.0)
    width = axes.get_xlim()[1]
    free = 0.0
    for stage, start in (before.groupby(reports["stage"]).min().sort_values() / unit).items():
        axes.axvline(start, color=style.muted, lw=0.7, ls=":", gid=f"stage {stage}")
        if start >= free:
            axes.annotate(
                plain(str(stage)), (start, 1), (0, 3), xycoords=("data", "axes fraction"), textcoords="offset points",
                fontsize=7, color=style.muted,
            )  # fmt: skip
            free = start + width * (0.02 + 0.016 * len(str(stage)))
