"""A student drawn from its choices."""

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path

from analysis.errors import BadInput
from analysis.naming import student_name
from analysis.plots import words
from analysis.plots.students import check_stage, distilled
from analysis.plots.theme import Picture, Theme, canvas, look, plain
from analysis.results import Results

_RADIUS = 0.34  # of a node
_BY = "\N{MULTIPLICATION SIGN}"
_EDGES = [(source, target) for target in range(1, 4) for source in range(target)]
# Of each operation of a NAS-Bench-201 cell: its name in the picture, colour, dashes and width of its line.
_OPERATIONS: dict[str, tuple[str, int, str | tuple[float, tuple[float, ...]], float]] = {
    "nor_conv_3x3": (f"conv 3{_BY}3", 0, "-", 2.6),
    "nor_conv_1x1": (f"conv 1{_BY}1", 1, "-", 1.6),
    "avg_pool_3x3": (f"average pool 3{_BY}3", 3, (0, (4, 2)), 1.6),
    "skip_connect": ("skip", 2, (0, (1, 1.5)), 1.6),
}
_NARROWEST = 1.3  # units that a stage takes, for its caption
_MOST = 5  # blocks of a stage that are drawn each


def architecture(results: Results, *, stage: str | None = None, theme: str = "light") -> Picture:
    """The best student of a run, drawn from its choices alone: a residual network or a cell of NAS-Bench-201.

    Args:
        stage: whose best; default: the last stage of distillation.

    Raises:
        BadInput: an unknown stage or theme, no finished student, or one of another kind.
    """
    look(theme)
    check_stage(results, stage)
    best = list(distilled(results, stage).values())[-1].iloc[0]
    size = "" if best.isna()["params"] else f", {best['params']:,} parameters"
    title = f"{words.student(best)}{size}, {100 * best['valid_accuracy']:.1f} % (validation)"
    return draw(best["arch"], theme=theme, title=title)


def draw(arch: str | Mapping[str, Any], *, theme: str = "light", title: str | None = None) -> Picture:
    """An architecture from its choices: `depth1`, `depth2`, ... and `width` (or WRN's `depth` and `widen`), or a cell
    of NAS-Bench-201, by its edges (`edge_0_1`, ...) or as the benchmark writes it (`|nor_conv_3x3~0|+|...`).

    Raises:
        BadInput: other choices than those, or an unknown theme.
    """
    style = look(theme)
    if isinstance(arch, str) and arch.startswith("|"):
        choices: dict[str, Any] = _parsed(arch)
    else:
        choices = _loaded(arch) if isinstance(arch, str) else dict(arch)
    if set(choices) >= {f"edge_{source}_{target}" for source, target in _EDGES}:
        return _cell(choices, style, title or "a cell of NAS-Bench-201")
    if stages := _stages(choices):
        return _resnet(stages, style, title or student_name(choices))
    raise BadInput(f"only residual networks (depth1, depth2, ..., width) and cells of NAS-Bench-201 (edge_0_1, ...) "
                   f"can be drawn; this student's choices are {', '.join(choices) or 'none'}")  # fmt: skip


def _loaded(text: str) -> dict[str, Any]:
    """Choices from the JSON that tables hold."""
    try:
        choices = json.loads(text)
    except ValueError:
        choices = None
    if not isinstance(choices, dict):
        raise BadInput(f"an architecture is a JSON object of its choices, or a NAS-Bench-201 cell, not {text[:80]!r}")
    return choices


def _parsed(text: str) -> dict[str, str]:
    """The operations of a cell that is written as the benchmark does, `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`."""
    found = {
        f"edge_{source}_{target}": operation
        for target, node in enumerate(text.split("+"), 1)
        for operation, source in re.findall(r"\|(\w+)~(\d)(?=\|)", node)
    }
    if set(found) != {f"edge_{source}_{target}" for source, target in _EDGES}:
        raise BadInput(f"a cell is written |op~0|+|op~0|op~1|+|op~0|op~1|op~2|, not {text[:80]}")
    return found


def _stages(choices: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Blocks and channels of each stage; empty where the choices are no residual network's."""
    depths = [choices[name] for name in sorted(choices) if re.fullmatch(r"depth\d", name)]
    width = choices.get("width")
    if set(choices) == {"depth", "widen"} and all(isinstance(value, int | float) for value in choices.values()):
        depths, width = [int(choices["depth"] - 4) // 6] * 3, int(16 * choices["widen"])
    if not depths or not all(isinstance(value, int) and value > 0 for value in (*depths, width)):
        return []
    return [(depth, int(width or 0) * 2**place) for place, depth in enumerate(depths)]


def _empty(style: Theme, size: tuple[float, float], title: str) -> tuple[Picture, Axes]:
    figure, (axes,) = canvas(style, size=size)
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.set_title(plain(title), color=style.ink, fontsize=9, loc="left")
    return figure, axes


def _resnet(stages: list[tuple[int, int]], style: Theme, title: str) -> Picture:
    """From left to right: the stem, the blocks of each stage with their shortcuts, and the classifier."""
    drawn = sum(min(depth, _MOST) + (depth > _MOST) for depth, _ in stages) + len(stages)
    figure, axes = _empty(style, (min(max(0.55 * drawn + 1.8, 4.0), 9.0), 2.4), title)
    right = _layer(axes, style, 0.0, 2.0, style.muted, f"conv\n3{_BY}3\n{stages[0][1]}")
    for place, (depth, channels) in enumerate(stages):
        colour, height = style.colours[place % len(style.colours)], 2.0 * 0.75**place
        blocks = min(depth, _MOST)
        wide = 0.6 * blocks + 0.28 * (blocks - 1) + (0.6 if depth > _MOST else 0.0)
        middle = right + 0.45 + max(wide, _NARROWEST) / 2
        for block in range(blocks):
            _block(axes, style, middle - wide / 2 + 0.88 * block, height, colour)
        if depth > _MOST:
            axes.text(middle + wide / 2 - 0.3, 0.05, "…", ha="center", va="bottom", color=style.ink, fontsize=11)
        scale = "full size" if place == 0 else f"1/{2**place} size"
        text = f"{words.count(depth, 'block')}\n{channels} channels\n{scale}"
        axes.text(middle, -1.2, text, ha="center", va="top", fontsize=7, color=style.ink, gid="stage")
        right = middle + max(wide, _NARROWEST) / 2
    right = _layer(axes, style, right + 0.45, 2.0 * 0.75 ** len(stages), style.muted, "pool\n+\nlinear")
    axes.plot([-0.4, right + 0.4], [0, 0], color=style.muted, lw=1, zorder=0)
    axes.set(xlim=(-0.5, right + 0.5), ylim=(-2.1, 1.55))
    return figure


def _layer(axes: Axes, style: Theme, x: float, height: float, colour: str, text: str) -> float:
    _box(axes, style, x, 0.75, height, colour)
    axes.text(x + 0.375, 0, text, ha="center", va="center", fontsize=6.5, color=style.ink)
    return x + 0.75


def _block(axes: Axes, style: Theme, x: float, height: float, colour: str) -> None:
    """Two convolutions and the way around them."""
    _box(axes, style, x, 0.22, height, colour, gid="convolution")
    _box(axes, style, x + 0.26, 0.22, height, colour, gid="convolution")
    top = [(x - 0.12, 0.0), (x - 0.12, height / 2 + 0.22), (x + 0.6, height / 2 + 0.22), (x + 0.6, 0.0)]
    path = Path(top, [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO])
    axes.add_patch(
        FancyArrowPatch(path=path, arrowstyle="-|>", mutation_scale=5, lw=0.9, color=style.muted, gid="shortcut")
    )


def _box(axes: Axes, style: Theme, x: float, width: float, height: float, colour: str, gid: str = "layer") -> None:
    shape = "round,pad=0,rounding_size=0.06"
    axes.add_patch(
        FancyBboxPatch((x, -height / 2), width, height, boxstyle=shape, fc=style.faded(colour, 0.6), ec=colour, gid=gid)
    )


def _cell(choices: Mapping[str, Any], style: Theme, title: str) -> Picture:
    """Four nodes in a row; the edges between neighbours are straight, the others arcs that do not cross."""
    figure, axes = _empty(style, (5.6, 2.9), title)
    step = 2.4
    # How far an arc's control point lies above the row: neighbours straight, 0-2 and 0-3 above, 1-3 below.
    heights = {(0, 2): 1.7, (0, 3): 3.6, (1, 3): -1.7}
    for source, target in _EDGES:
        operation = str(choices[f"edge_{source}_{target}"])
        if operation == "none":
            continue
        name, colour, dashes, width = _OPERATIONS.get(operation, (operation, 5, "-", 1.6))
        ends, height = (step * source, step * target), heights.get((source, target), 0.0)
        axes.add_patch(
            FancyArrowPatch(
                path=Path(_arc(*ends, height)), arrowstyle="-|>", mutation_scale=10, lw=width, ls=dashes,
                color=style.colours[colour], capstyle="butt", joinstyle="miter", gid=f"edge_{source}_{target}",
            )
        )  # fmt: skip
        up = -0.12 if height < 0 else 0.12
        axes.text(sum(ends) / 2, height / 2 + up, plain(name), ha="center", va="top" if height < 0 else "bottom",
                  fontsize=7.5, color=style.ink, gid="operation")  # fmt: skip
    for node, name in enumerate(("in", "1", "2", "out")):
        axes.add_patch(Circle((step * node, 0), _RADIUS, fc=style.grid, ec=style.ink, lw=1, zorder=3))
        axes.text(step * node, 0, name, ha="center", va="center", fontsize=7.5, color=style.ink, zorder=4)
    axes.set(xlim=(-0.5, 3 * step + 0.5), ylim=(-1.5, 2.4))
    return figure


def _arc(start: float, end: float, height: float) -> np.ndarray:
    """Points of an arc between the rims of two nodes of the row, [P, 2]; it rises to half the height."""
    t_P1 = np.linspace(0, 1, 200)[:, None]
    top = np.array([(start + end) / 2, height])
    first, last = np.array([start, 0.0]), np.array([end, 0.0])
    points_P2 = (1 - t_P1) ** 2 * first + 2 * t_P1 * (1 - t_P1) * top + t_P1**2 * last
    free = np.minimum(*(np.hypot(*(points_P2 - node).T) for node in (first, last))) > _RADIUS + 0.03
    return points_P2[free]
