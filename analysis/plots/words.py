"""Words and numbers in pictures: axes with their units, short names of students, labels that do not overlap."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from analysis.naming import student_name
from analysis.plots.theme import Theme, plain
from analysis.schema import EPOCHS, TRIALS

_AXES = {
    "valid_accuracy": "validation accuracy (%)",
    "test_accuracy": "test accuracy (%)",
    "params": "size (parameters)",
    "flops": "computation (multiply-adds an image)",
    "latency_ms": "latency of one image (ms)",
    "teacher_similarity": "likeness to the teacher (share)",
}
_UNITS = {column.name: column.unit for column in (*EPOCHS, *TRIALS)}
_LONGEST = 26  # letters of a student's name in a picture
_SIDES = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)]
_REACHES = (6, 14, 26, 40)  # points from what is named
_PLACES = [reach * np.array(side) for reach in _REACHES for side in _SIDES]


def axis(column: str) -> str:
    """A column as the label of an axis, with its unit."""
    return _AXES.get(column, f"{column.replace('_', ' ')} ({_UNITS.get(column) or 'no unit'})")


def shown(values: pd.Series, column: str) -> pd.Series:
    """A column's values as its axis has them: accuracies in percent."""
    return values.astype("float64") * (100 if column.endswith("accuracy") else 1)


def student(row: pd.Series) -> str:
    """A student's name, or the beginning of its hash where that would be long."""
    name = student_name(row["arch"])
    return name if len(name) <= _LONGEST else f"#{row['hash'][:6]}"


def time_unit(seconds: float) -> tuple[float, str]:
    """What to divide seconds by, and the unit's name, for times up to so many."""
    return (1.0, "s") if seconds < 300 else (60.0, "min") if seconds < 3 * 3600 else (3600.0, "h")


def signed(value: float) -> str:
    """Two digits, with a minus as wide as a plus."""
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def count(number: int, noun: str) -> str:
    """`1 student`, `1,200 students`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def cost_axis(axes: Axes, column: str, values: pd.Series) -> None:
    """10 k instead of 10,000; logarithmic where values span more than a factor of 10."""
    low, high = float(values.min()), float(values.max())
    if low > 0 and high > 10 * low:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        if high < 100 * low:
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    else:
        axes.locator_params(axis="x", nbins=5)
    has_unit = column == "latency_ms"  # a prefix before it would be read as one of the unit
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g") if has_unit else EngFormatter(sep=" "))


def epoch_axis(axes: Axes) -> None:
    """Whole epochs."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def name_points(axes: Axes, theme: Theme, named: Sequence[tuple[float, float, str]], others: np.ndarray) -> None:
    """Write names beside points, each where it covers the fewest others and no other name. Of points that are closer
    to each other than their names are wide and high, the first alone is named: nobody could tell whose name is whose.

    The figure is laid out before (`figure.draw_without_rendering()`), so that places in pixels are known.

    Args:
        named: x, y and text, the most important first; what fits nowhere is left out.
        others: points [N, 2] that are not to be covered.
    """
    point = axes.get_figure(root=True).dpi / 72  # type: ignore[union-attr]  # in pixels
    pixels_N2 = axes.transData.transform(others) if len(others) else np.empty((0, 2))
    taken: list[Bbox] = []
    done: list[np.ndarray] = []
    for x, y, text in named:
        label = axes.annotate(
            plain(text), (x, y), (0, 0), textcoords="offset points", fontsize=7, color=theme.ink, gid="name",
            ha="center", va="center",
        )  # fmt: skip
        label.set_in_layout(False)
        size = label.get_window_extent()
        half = np.array([size.width, size.height]) / 2
        at_2 = axes.transData.transform((x, y))
        if any((np.abs(at_2 - other_2) < 2 * half).all() for other_2 in done):
            label.remove()
            continue
        boxes = [size.translated(*(point * at + np.sign(at) * half)).padded(1.5 * point) for at in _PLACES]
        costs = [_covered(box, pixels_N2, taken, axes.get_window_extent()) for box in boxes]
        best = int(np.argmin([cost + 0.06 * np.hypot(*at) for cost, at in zip(costs, _PLACES, strict=True)]))
        if not np.isfinite(costs[best]):
            label.remove()
            continue
        taken.append(boxes[best])
        done.append(at_2)
        label.set_position(_PLACES[best] + np.sign(_PLACES[best]) * half / point)
        if np.abs(_PLACES[best]).max() > _REACHES[0]:
            _lead(axes, theme, (x, y), (float(_PLACES[best][0]), float(_PLACES[best][1])))


def _covered(box: Bbox, pixels_N2: np.ndarray, taken: Sequence[Bbox], room: Bbox) -> float:
    """How many points a name would cover; infinite where it would leave the axes or stand on another name."""
    outside = box.x0 < room.x0 or box.x1 > room.x1 or box.y0 < room.y0 or box.y1 > room.y1
    if outside or any(box.overlaps(one) for one in taken):
        return math.inf
    inside = (pixels_N2 >= [box.x0, box.y0]) & (pixels_N2 <= [box.x1, box.y1])
    return float(inside.all(axis=1).sum())


def _lead(axes: Axes, theme: Theme, point: tuple[float, float], to: tuple[float, float]) -> None:
    """A line from a point to its name."""
    line = {"arrowstyle": "-", "color": theme.muted, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 2}
    axes.annotate("", point, to, textcoords="offset points", arrowprops=line).set_in_layout(False)
