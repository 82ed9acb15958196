"""Learning curves, coloured by how far trials got."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D

from analysis.errors import BadInput
from analysis.plots import words
from analysis.plots.cost import teacher_lines
from analysis.plots.students import check_stage, place
from analysis.plots.theme import MANY, MARKERS, Picture, Theme, canvas, legend, look, name_axes
from analysis.results import Results

Group = tuple[str, int, int]
"""Trials of one colour: their status, and the first and last epoch at which they got it."""

_PANELS = 3
_MEDIAN_FROM = 100  # trials of a colour, whose median is then drawn above them
_RUNGS = 5  # told apart; where trials stopped at more epochs than that, neighbouring ones share a colour


def learning(results: Results, *, stage: str | None = None, theme: str = "light") -> Picture:
    """Validation accuracy by epoch, a line a trial. Its colour and the marker at its end say where it was stopped.

    A trial that starts from another one's weights starts at that one's last point. Controls are left out.

    Args:
        stage: default: the last three stages of distillation, side by side.

    Raises:
        BadInput: an unknown stage or theme, or no accuracy at any epoch.
    """
    style = look(theme)
    check_stage(results, stage)
    every = results.epochs
    every = every[~every["control"] & every["valid_accuracy"].notna() & (every["epoch"] > 0)]
    every = every[every["stage"].eq(stage)] if stage is not None else every
    if every.empty:
        raise BadInput(f"{place(results, stage)} has no learning curves: no epoch reports an accuracy")
    stages = list(every.sort_values("stage_index", kind="stable")["stage"].drop_duplicates())[-_PANELS:]
    figure, panels = canvas(style, len(stages), share_y=True)
    ends = [_ends(results, every, str(name)) for name in stages]
    groups = _groups(pd.concat(ends))
    colours = dict(zip(groups, style.ordered(len(groups)), strict=True))
    for panel, (axes, name, end) in enumerate(zip(panels, stages, ends, strict=True)):
        curves = every[every["stage"].eq(name)]
        _draw(axes, style, curves, end, groups, colours)
        label = words.axis("valid_accuracy") if panel == 0 else ""
        title = f"stage {name}: {words.count(len(end), 'trial')}"
        name_axes(axes, style, "training (epochs)", label, title)
        words.epoch_axis(axes)
        axes.margins(x=0.04)
    handles = _legend(style, pd.concat(ends), groups, colours)
    legend(figure, style, [*handles, *teacher_lines(panels, style, results)])
    return figure


def _ends(results: Results, curves: pd.DataFrame, stage: str) -> pd.DataFrame:
    """How each trial of a stage ended: run, number, status, parent, and its last epoch and accuracy."""
    part = curves[curves["stage"].eq(stage)].sort_values("epoch", kind="stable")
    last = part.drop_duplicates(["run", "number"], keep="last")[["run", "number", "epoch", "valid_accuracy"]]
    trials = results.trials[results.trials["stage"].eq(stage)]
    return last.merge(trials[["run", "number", "status", "parent"]], on=["run", "number"])


def _groups(ends: pd.DataFrame) -> list[Group]:
    """What is told apart: a status and the epochs at which it was reached, those that got furthest last."""
    found: list[Group] = []
    stopped = np.unique(ends.loc[ends["status"] == "stopped", "epoch"].to_numpy(dtype=int))
    for part in np.array_split(stopped, min(_RUNGS, len(stopped)) or 1):
        found += [("stopped", int(part[0]), int(part[-1]))] if len(part) else []
    longest = int(ends["epoch"].max())
    return found + [(s, 0, longest) for s in ("running", "completed") if (ends["status"] == s).any()]


def _of(ends: pd.DataFrame, group: Group) -> pd.DataFrame:
    status, first, last = group
    return ends[(ends["status"] == status) & ends["epoch"].between(first, last)]


def _draw(
    axes: Axes, style: Theme, curves: pd.DataFrame, ends: pd.DataFrame, groups: list[Group], colours: dict[Group, str]
) -> None:
    lines = _lines(curves, ends)
    crowd = min(len(ends) / MANY, 1.0)
    looks: list[tuple[Group, str, str, Any]] = []
    for nth, group in enumerate(groups):
        looks.append((group, colours[group], MARKERS[nth % len(MARKERS)], "-"))
    looks.append((_failed(ends), style.colours[1], "x", (0, (2, 1))))
    for order, (group, colour, marker, dash) in enumerate(looks):
        part = _of(ends, group)
        if part.empty:
            continue
        paths = [lines[key] for key in zip(part["run"], part["number"], strict=True)]
        axes.add_collection(
            LineCollection(
                paths, colors=colour, linewidths=1.3 - 0.8 * crowd, alpha=0.85 - 0.6 * crowd, linestyles=[dash],
                rasterized=len(ends) > MANY, zorder=2 + 0.01 * order, gid=f"{group[0]} {group[1]}",
            ),
            autolim=True,
        )  # fmt: skip
        axes.scatter(
            part["epoch"], words.shown(part["valid_accuracy"], "valid_accuracy"), color=colour, marker=marker,
            s=22 - 14 * crowd, linewidths=1.2 if marker == "x" else 0, alpha=1 - 0.4 * crowd,
            rasterized=len(ends) > MANY, zorder=2.5 + 0.01 * order,
        )  # fmt: skip
        if len(part) > _MEDIAN_FROM:
            middle = 100 * curves.merge(part[["run", "number"]]).groupby("epoch")["valid_accuracy"].median()
            axes.plot(middle.index, middle, color=style.on(colour), lw=3.2, zorder=3)
            axes.plot(middle.index, middle, color=colour, lw=1.8, zorder=3 + 0.01 * order, gid=f"median {group[0]}")
    axes.autoscale_view()


def _failed(ends: pd.DataFrame) -> Group:
    return "failed", 0, int(ends["epoch"].max())


def _lines(curves: pd.DataFrame, ends: pd.DataFrame) -> dict[tuple[str, int], np.ndarray]:
    """Points (epoch, percent) of each trial, [E, 2], from its parent's end on."""
    keys = list(zip(ends["run"], ends["number"], strict=True))
    last = dict(zip(keys, ends[["epoch", "valid_accuracy"]].to_numpy(dtype="float64"), strict=True))
    parents = dict(zip(keys, ends["parent"].fillna(-1), strict=True))
    curves = curves.sort_values(["run", "number", "epoch"], kind="stable")
    firsts = curves.drop_duplicates(["run", "number"])
    starts = np.flatnonzero(~curves.duplicated(["run", "number"]).to_numpy())
    parts = np.split(curves[["epoch", "valid_accuracy"]].to_numpy(dtype="float64"), starts[1:])
    lines = {}
    for run, number, part in zip(firsts["run"], firsts["number"], parts, strict=True):
        before = [last[one] for one in [(run, parents[run, number])] if one in last]
        lines[run, number] = np.vstack([*before, part]) * [1, 100]
    return lines


def _legend(style: Theme, ends: pd.DataFrame, groups: list[Group], colours: dict[Group, str]) -> list[Any]:
    handles = []
    for nth, group in enumerate(groups):
        status, first, last = group
        where = f" at epoch {first}" if first == last else f" at epochs {first} to {last}"
        ending = {"stopped": f"stopped{where}", "completed": "finished", "running": "running"}[status]
        label = f"{ending} ({len(_of(ends, group)):,})"
        marker = MARKERS[nth % len(MARKERS)]
        handles.append(Line2D([], [], color=colours[group], marker=marker, markersize=4.5, lw=1.3, label=label))
    if failed := len(_of(ends, _failed(ends))):
        label = f"failed ({failed:,})"
        handles.append(Line2D([], [], color=style.colours[1], marker="x", ls=(0, (2, 1)), lw=1.3, label=label))
    return handles
