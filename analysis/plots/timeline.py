"""What the cluster did, and when."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.patches import Patch

from analysis.errors import BadInput
from analysis.plots import words
from analysis.plots.students import check_stage, place
from analysis.plots.theme import MANY, Picture, Theme, canvas, legend, look, name_axes, plain
from analysis.results import Results
from analysis.timeline import row_names, work

_TOLD_APART = 200  # trials, at most, whose neighbours are shaded in turn
_TICKS = 24
_WIDE = 380  # points that the axes take, about


def timeline(results: Results, *, stage: str | None = None, theme: str = "light") -> Picture:
    """Which trial ran where and when: a row for each place of a worker, coloured by stage; what is left is idle.

    A worker that took over from another on the same machine stands in its row. Numbers of trials are written where
    there is room; the share of time that a row was busy stands at its end.

    Raises:
        BadInput: an unknown stage or theme, or no report with a worker, its seconds and time.
    """
    style = look(theme)
    check_stage(results, stage)
    steps = work(results.epochs if stage is None else results.epochs[results.epochs["stage"].eq(stage)])
    if steps.empty:
        raise BadInput(f"{place(results, stage)} has no report that says worker, seconds and time")
    names = row_names(steps)
    figure, (axes,) = canvas(style, size=(7.0, min(max(0.3 * len(names) + 1.2, 2.0), 9.0)))
    end = float(steps["end"].max())
    unit, unit_name = words.time_unit(end)
    bars = steps.assign(start=steps["start"] / unit, end=steps["end"] / unit)
    shares = _idle(axes, style, bars, end / unit)
    handles = _bars(axes, style, bars)
    _numbers(axes, style, bars, end / unit)
    every = max(1, -(-len(names) // _TICKS))
    axes.set_yticks(range(0, len(names), every), list(map(plain, names[::every])))
    axes.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, end / unit))
    axes.grid(False, axis="y")
    for row in range(0, len(names), every):
        text = f"{100 * shares[row]:.0f} %"
        axes.annotate(text, (1.01, row), xycoords=("axes fraction", "data"), va="center", fontsize=7, color=style.muted)
    busy = (steps["end"] - steps["start"]).sum() / (end * len(names))
    title = f"{words.count(steps['trial'].nunique(), 'trial')}, {100 * busy:.0f} % busy (at the right: by row)"
    name_axes(axes, style, f"time since the first trial began ({unit_name})", "worker", title)
    legend(figure, style, [*handles, Patch(facecolor=style.grid, label="idle")], columns=5)
    return figure


def _idle(axes: Axes, style: Theme, bars: pd.DataFrame, end: float) -> list[float]:
    """Rows in the colour of idle time, under what is drawn on them; the share that each is busy."""
    busy = (bars["end"] - bars["start"]).groupby(bars["row"]).sum()
    axes.barh(busy.index, end, height=0.7, color=style.grid, gid="idle")
    return [float(value) / end for value in busy]


def _bars(axes: Axes, style: Theme, bars: pd.DataFrame) -> list[Any]:
    handles = []
    for stage, colour in _colours(style, bars).items():
        handles.append(Patch(facecolor=colour, label=f"stage {stage}"))
        for odd in (0, 1):
            part = bars[(bars["stage"] == stage) & (bars["turn"] == odd)]
            corners = ((0, 0), (0, 1), (1, 1), (1, 0))
            boxes = list(np.stack([_corner(part, right, down) for right, down in corners], axis=1))
            shade = _shade(style, bars, colour, odd)
            bar = PolyCollection(boxes, facecolors=shade, linewidths=0, antialiaseds=False, gid=f"stage {stage}")
            bar.set_rasterized(len(part) > MANY)
            axes.add_collection(bar)
    return handles


def _colours(style: Theme, bars: pd.DataFrame) -> dict[str, str]:
    """A colour for each stage, in their order."""
    stages = bars.sort_values("stage_index", kind="stable")["stage"].drop_duplicates()
    return {str(stage): style.colours[place % len(style.colours)] for place, stage in enumerate(stages)}


def _shade(style: Theme, bars: pd.DataFrame, colour: str, turn: int) -> str:
    """Every other trial of a row is paler, where trials are few enough to be told apart."""
    return style.faded(colour, 0.35) if turn and bars["trial"].nunique() <= _TOLD_APART else colour


def _corner(bars: pd.DataFrame, right: int, down: int) -> np.ndarray:
    """One corner of every bar, [N, 2]."""
    return np.column_stack([bars["end"] if right else bars["start"], bars["row"] + (0.35 if down else -0.35)])


def _numbers(axes: Axes, style: Theme, bars: pd.DataFrame, end: float) -> None:
    """The number of each trial on its work in a row, where that is wide enough."""
    if bars["trial"].nunique() > _TOLD_APART:
        return
    colours = _colours(style, bars)
    for (stage, _, _), part in bars.groupby(["stage", "row", "trial"], sort=False):
        number, row = int(part["number"].iloc[0]), float(part["row"].iloc[0])
        start, stop = part["start"].min(), part["end"].max()
        if (stop - start) / end * _WIDE > 4.5 * len(str(number)) + 2:
            text = style.on(_shade(style, bars, colours[str(stage)], int(part["turn"].iloc[0])))
            axes.text((start + stop) / 2, row, str(number), ha="center", va="center", fontsize=6.5, color=text)
