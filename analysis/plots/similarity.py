"""Likeness to the teacher against accuracy."""

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, LogNorm
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from analysis.correlation import kendall_tau
from analysis.errors import BadInput
from analysis.plots import words
from analysis.plots.students import comparable, distilled, enough, place
from analysis.plots.theme import Picture, canvas, look, name_axes, points
from analysis.results import Results

_COLUMNS = ["teacher_similarity", "valid_accuracy"]
_NAMED = 3


def similarity(results: Results, *, stage: str | None = None, theme: str = "light") -> Picture:
    """Validation accuracy against likeness to the teacher, coloured by size, with Kendall's tau of the two.

    Args:
        stage: default: the last stage of distillation with at least 5 students, or 3 of several seeds each.

    Raises:
        BadInput: an unknown stage or theme, or no student whose likeness was measured.
    """
    style = look(theme)
    tables = distilled(results, stage)
    measured = {name: table.dropna(subset=_COLUMNS) for name, table in tables.items() if set(_COLUMNS) <= {*table}}
    measured = {name: table for name, table in measured.items() if len(table)}
    if not measured:
        raise BadInput(f"{place(results, stage)} has no likeness to the teacher: teacher_similarity is missing")
    chosen = enough(measured)
    table = comparable(measured[chosen])
    x, y = table[_COLUMNS[0]].astype("float64"), words.shown(table[_COLUMNS[1]], _COLUMNS[1])
    tau = kendall_tau(x.to_numpy(), y.to_numpy(), np.ones((1, len(x)), dtype=np.int64))[0]
    figure, (axes,) = canvas(style)
    looks = points(style, style.colours[0], "o", len(table))
    if table["params"].notna().all() and table["params"].min() < table["params"].max():
        del looks["color"]
        ramp = LinearSegmentedColormap.from_list("size", style.ordered(8))
        size = table["params"].astype("float64")
        drawn = axes.scatter(x, y, c=size, cmap=ramp, norm=LogNorm(), **looks, gid="students")
        bar = figure.colorbar(drawn, ax=axes, format=EngFormatter(sep=" "), pad=0.02, aspect=30)
        steps = (1, 1.5, 2, 3, 4, 5, 6, 8) if size.max() < 5 * size.min() else (1, 2, 5)
        bar.ax.yaxis.set_major_locator(LogLocator(subs=steps))
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
        bar.set_label(words.axis("params"), color=style.ink, fontsize=9)
        bar.ax.tick_params(which="both", colors=style.muted, labelsize=7)
        bar.set_alpha(1)
        bar.outline.set_visible(False)
    else:
        axes.scatter(x, y, **looks, gid="students")
    kind = "finished student" if (table["status"] == "completed").all() else "student"
    least, most = table["seeds"].min(), table["seeds"].max()
    seeds = "" if most < 2 else f" of {least} seeds" if least == most else f" of {least} to {most} seeds"
    agree = f", Kendall's τ = {words.signed(tau)}" if np.isfinite(tau) else ""
    title = f"stage {chosen}: {words.count(len(table), kind)}{seeds}{agree}"
    name_axes(axes, style, words.axis(_COLUMNS[0]), words.axis(_COLUMNS[1]), title)
    best = table.sort_values("valid_accuracy", ascending=False, kind="stable").head(_NAMED)
    named = [(float(r[_COLUMNS[0]]), 100 * float(r[_COLUMNS[1]]), words.student(r)) for _, r in best.iterrows()]
    figure.draw_without_rendering()
    words.name_points(axes, style, named, np.column_stack([x, y]))
    return figure
