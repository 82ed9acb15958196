"""Accuracy against cost."""

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from analysis.errors import BadInput
from analysis.pareto import pareto
from analysis.plots import words
from analysis.plots.students import distilled, place, teacher_accuracy
from analysis.plots.theme import MANY, MARKERS, Picture, Theme, canvas, legend, look, name_axes, points
from analysis.results import Results

COSTS = ("params", "flops", "latency_ms")
_NAMED = 3  # students of a front
_WITH_SPREAD = 60  # students, at most, that are drawn with their spread over seeds


def cost(results: Results, *, stage: str | None = None, theme: str = "light") -> Picture:
    """Validation accuracy against each cost that is known; the front, and the teacher's accuracy as a line.

    Args:
        stage: default: the last stage of distillation, with the students of the earlier ones faint behind.

    Raises:
        BadInput: an unknown stage or theme, or no student with an accuracy and a cost.
    """
    style = look(theme)
    tables = distilled(results, stage)
    last = list(tables)[-1]
    tables = {name: t if name == last else t[t["status"] == "completed"] for name, t in tables.items()}
    costs = [name for name in COSTS if tables[last][name].notna().any()]
    if not costs:
        raise BadInput(f"{place(results, stage)} has no cost of its students: {', '.join(COSTS)} are missing")
    figure, every = canvas(style, len(costs), share_y=True)
    handles: list[Any] = []
    for panel, (axes, column) in enumerate(zip(every, costs, strict=True)):
        drawn = _behind(axes, style, {name: t for name, t in tables.items() if name != last}, column)
        drawn += _students(axes, style, tables[last], column, last)
        handles = handles or drawn
        words.cost_axis(axes, column, pd.concat([table[column] for table in tables.values()]))
        name_axes(axes, style, words.axis(column), words.axis("valid_accuracy") if panel == 0 else "")
    handles += teacher_lines(every, style, results)
    legend(figure, style, handles)
    figure.draw_without_rendering()
    for axes, column in zip(every, costs, strict=True):
        _name_best(axes, style, tables, column, teacher_accuracy(results))
    return figure


def teacher_lines(every: list[Axes], style: Theme, results: Results, column: str = "valid_accuracy") -> list[Any]:
    """The teacher's accuracy across all axes, and its entry of the legend; none where it is not known."""
    accuracy = teacher_accuracy(results, column)
    if accuracy is None:
        return []
    label = f"teacher: {100 * accuracy:.1f} %"
    lines = [
        axes.axhline(100 * accuracy, color=style.colours[3], dashes=(6, 2, 1.5, 2), lw=1.4, label=label, gid="teacher")
        for axes in every
    ]
    return lines[:1]


def _behind(axes: Axes, style: Theme, tables: dict[str, pd.DataFrame], column: str) -> list[Any]:
    """The students that finished earlier stages."""
    return [
        _hollow(axes, style.muted, table, column, MARKERS[1 + number % 5], f"stage {name}: finished", f"stage {name}")
        for number, (name, table) in enumerate(tables.items())
        if len(table)
    ]


def _hollow(axes: Axes, colour: str, table: pd.DataFrame, column: str, marker: str, label: str, gid: str) -> Any:
    many = len(table) > 100
    return axes.scatter(
        table[column].astype("float64"), words.shown(table["valid_accuracy"], "valid_accuracy"), s=7 if many else 14,
        facecolors="none", edgecolors=colour, marker=marker, linewidths=0.7, alpha=0.4 if many else 0.7,
        label=f"{label} ({len(table):,})", gid=gid, rasterized=len(table) > MANY,
    )  # fmt: skip


def _students(axes: Axes, style: Theme, table: pd.DataFrame, column: str, stage: str) -> list[Any]:
    """A stage's students, by run where there are several, and their common front. Early-stopped ones are hollow."""
    runs = list(table.groupby("run", sort=False))
    drawn: list[Any] = []
    for number, (run, every) in enumerate(runs):
        colour, marker = style.colours[(0, 2, 4, 5)[number % 4]], MARKERS[number % len(MARKERS)]
        of = f"run {run}, stage {stage}" if len(runs) > 1 else f"stage {stage}"
        stopped = every[every["status"] == "stopped"]
        if len(stopped):
            drawn.append(_hollow(axes, colour, stopped, column, marker, f"{of}: stopped early", "stopped"))
        part = every[every["status"] != "stopped"]
        x, y = part[column].astype("float64"), words.shown(part["valid_accuracy"], "valid_accuracy")
        if len(part) <= _WITH_SPREAD and (part["seeds"] > 1).any():
            spread = words.shown(part["valid_accuracy_std"], "valid_accuracy")
            axes.errorbar(x, y, yerr=spread, fmt="none", ecolor=style.faded(colour), elinewidth=1)
        looks = points(style, colour, marker, len(part))
        drawn.append(axes.scatter(x, y, **looks, label=f"{of}: finished ({len(part):,})", gid="students"))
    front = _front(table, column)
    drawn += axes.plot(
        front[column].astype("float64"), words.shown(front["valid_accuracy"], "valid_accuracy"),
        drawstyle="steps-post", color=style.colours[1], linewidth=1.4, marker="o", markersize=6.5,
        markerfacecolor="none", label="Pareto front", gid="front",
    )  # fmt: skip
    return drawn


def _front(table: pd.DataFrame, column: str) -> pd.DataFrame:
    return pareto(table, {"valid_accuracy": "max", column: "min"}).sort_values(column, kind="stable")


def _name_best(axes: Axes, style: Theme, tables: dict[str, pd.DataFrame], column: str, teacher: float | None) -> None:
    """Names of the best students of the last table's front, clear of all students and of both lines."""
    front = _front(list(tables.values())[-1], column)
    best = front.sort_values("valid_accuracy", ascending=False).head(_NAMED)
    named = [(float(row[column]), 100 * float(row["valid_accuracy"]), words.student(row)) for _, row in best.iterrows()]
    every = [table[[column, "valid_accuracy"]].astype("float64").dropna() for table in tables.values()]
    others = [_steps(front, column), *(part.to_numpy() * [1, 100] for part in every)]
    if teacher is not None:
        across = np.geomspace if axes.get_xscale() == "log" else np.linspace
        others.append(np.column_stack([across(*axes.get_xlim(), 200), np.full(200, 100 * teacher)]))
    words.name_points(axes, style, named, np.vstack(others))


def _steps(front: pd.DataFrame, column: str) -> np.ndarray:
    """Points along the steps of a front, [N, 2]."""
    corners = [np.array(corner) for corner in front[[column, "valid_accuracy"]].to_numpy(dtype="float64") * [1, 100]]
    path = [at for one, other in pairwise(corners) for at in (one, np.array([other[0], one[1]]))] + corners[-1:]
    shares = np.linspace(0, 1, 50)[:, None]
    return np.vstack([corners[0], *(one + (other - one) * shares for one, other in pairwise(path))])
