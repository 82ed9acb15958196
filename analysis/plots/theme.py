"""How pictures look: two themes, and axes that are dressed in one. No state of matplotlib is read or changed.

Nothing is drawn in the colour of the paper, so `savefig(transparent=True)` loses nothing but the paper.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from analysis.errors import unknown
from analysis.palette import PALETTES

MANY = 1000
"""Points from which a picture holds them as pixels, so that an SVG or PDF stays small."""


@dataclass(frozen=True)
class Theme:
    """One look.

    Args:
        paper, ink, muted, grid, colours: as of `analysis.palette.Palette`.
        ramp: the part of the colour map viridis that can be seen on this paper, for what has an order.
    """

    paper: str
    ink: str
    muted: str
    grid: str
    colours: tuple[str, ...]
    ramp: tuple[float, float]

    def ordered(self, count: int) -> list[str]:
        """So many colours from dark to bright, for things in an order."""
        if count == 1:
            return [self.colours[0]]
        low, high = self.ramp
        steps = [low + (high - low) * place / (count - 1) for place in range(count)]
        return [to_hex(mpl.colormaps["viridis"](step)) for step in steps]

    def on(self, colour: str) -> str:
        """Black or white, whichever is easier to read on a colour: one of them has at least 4.5:1."""
        return max("#000000", "#ffffff", key=lambda text: contrast(text, colour))

    def faded(self, colour: str, share: float = 0.4) -> str:
        """A colour mixed with the paper, of which it takes this share."""
        red, green, blue = (
            (1 - share) * a + share * b for a, b in zip(to_rgb(colour), to_rgb(self.paper), strict=True)
        )
        return to_hex((red, green, blue))


_RAMPS = {"light": (0.0, 0.59), "dark": (0.38, 1.0)}
THEMES = {name: Theme(**vars(palette), ramp=_RAMPS[name]) for name, palette in PALETTES.items()}
MARKERS = ("o", "s", "^", "D", "v", "P")
"""One beside each colour."""


class Picture(Figure):
    """A figure that a notebook shows by itself, without pyplot."""

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        self.savefig(out, format="png")
        return out.getvalue()


def look(name: str) -> Theme:
    """The theme of this name; raises `BadInput` for an unknown one."""
    if name not in THEMES:
        raise unknown("theme", name, THEMES)
    return THEMES[name]


def canvas(
    theme: Theme, columns: int = 1, rows: int = 1, size: tuple[float, float] | None = None, share_y: bool = False
) -> tuple[Picture, list[Axes]]:
    """An empty picture of this many axes, row by row; `size` in inches, by default wide enough for the columns."""
    width, height = size or (min(3.4 + 2.9 * (columns - 1), 9.6) + (1.6 if columns == 1 else 0.6), 2.5 * rows + 1.0)
    figure = Picture(figsize=(width, height), dpi=150, layout="constrained", facecolor=theme.paper)
    every = figure.subplots(rows, columns, squeeze=False, sharey="row" if share_y else False)
    axes = [one for row in every for one in row]
    for one in axes:
        _dress(one, theme)
    return figure, axes


def _dress(axes: Axes, theme: Theme) -> None:
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.muted)
        spine.set_linewidth(0.8)
    axes.tick_params(which="both", colors=theme.muted, labelsize=8, width=0.8)
    axes.tick_params(which="minor", length=2)
    axes.grid(True, which="major", color=theme.grid, linewidth=0.6)
    axes.set_axisbelow(True)


def plain(text: str) -> str:
    """What a run says, such as its name, as text: a `$` is no formula to matplotlib, and a control character a mark."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text).replace("$", r"\$")


def name_axes(axes: Axes, theme: Theme, x: str, y: str = "", title: str = "") -> None:
    """Labels of both axes (empty: none, where a neighbour has the same) and what the picture is of."""
    axes.set_xlabel(plain(x), color=theme.ink, fontsize=9)
    axes.set_ylabel(y, color=theme.ink, fontsize=9)
    if title:
        axes.set_title(plain(title), color=theme.ink, fontsize=9, loc="left")


def legend(figure: Figure, theme: Theme, handles: Sequence[Any], columns: int = 4) -> None:
    """One legend above all axes, where it hides nothing; the handles carry their labels."""
    if handles:
        labels = [plain(str(one.get_label())) for one in handles]
        figure.legend(
            handles=list(handles), labels=labels, loc="outside upper left", ncols=min(columns, len(handles)),
            frameon=False, labelcolor=theme.ink, fontsize=8, handlelength=1.8, columnspacing=1.4, borderaxespad=0.2,
        )  # fmt: skip


def points(theme: Theme, colour: str, marker: str, count: int) -> dict[str, Any]:
    """Arguments of `scatter` for so many points: many are smaller and fainter."""
    crowd = min(max((count - 30) / MANY, 0.0), 1.0)
    return {
        "color": colour, "marker": marker, "s": 26 - 18 * crowd, "alpha": 0.9 - 0.5 * crowd, "linewidths": 0,
        "rasterized": count > MANY,
    }  # fmt: skip


def contrast(one: str, other: str) -> float:
    """Contrast of two colours, 1 to 21 (WCAG 2.1, success criterion 1.4.3)."""
    dark, bright = sorted((_luminance(one), _luminance(other)))
    return (bright + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
