"""What the report's pictures are made of: plotly's traces as plain data. Colours are named, and the page fills them in
from the palette of the paper that it is on."""

import html
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from analysis.naming import known_number, student_name
from analysis.palette import PALETTES
from analysis.results import Results
from analysis.schema import is_setting

PLAIN = 2000  # points that a page draws as vectors; beyond, as pixels
COLOURS = tuple(f"@{place}" for place in range(len(PALETTES["light"].colours)))
MUTED = "@muted"
# One beside each colour.
SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
Json = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """One picture: what it shows in a sentence, plotly's traces, and the titles of its axes with their units."""

    name: str
    title: str
    caption: str
    traces: list[Json]
    x: Json
    y: Json
    shapes: tuple[Json, ...] = ()
    notes: tuple[Json, ...] = ()
    height: int = 420  # pixels

    def plain(self) -> Json:
        """For the page's script."""
        axes = {"xaxis": self.x, "yaxis": _as_text(self.y, ("categoryarray",))}
        layout = {**axes, "height": self.height, "shapes": list(self.shapes), "annotations": list(self.notes)}
        traces = [_as_text(trace, ("name", "text", "x", "y")) for trace in self.traces]
        return {"name": self.name, "title": self.title, "caption": self.caption, "data": traces, "layout": layout}


def _as_text(part: Json, names: Iterable[str]) -> Json:
    """What a run says, such as its workers' names, so that plotly, which reads tags and links, shows it as it is."""
    return {**part, **{name: _escaped(part[name]) for name in names if name in part}}


def _escaped(value: Any) -> Any:
    if isinstance(value, list):
        return [_escaped(one) for one in value]
    return html.escape(value, quote=False) if isinstance(value, str) else value


def palettes() -> dict[str, dict[str, str]]:
    """What each name of a colour stands for, by the paper."""
    return {
        name: {
            **dict(zip(COLOURS, palette.colours, strict=True)),
            **{f"@{part}": value for part, value in asdict(palette).items() if part != "colours"},
        }
        for name, palette in PALETTES.items()
    }


def of_stages(results: Results) -> dict[str, int]:
    """The place of each stage's colour, the same in all pictures."""
    return {str(stage): place for place, stage in enumerate(dict.fromkeys(results.stages["stage"]))}


def axis(title: str, **more: Any) -> Json:
    """An axis with its title."""
    return {"title": {"text": title}, **more}


def points(x: pd.Series, y: pd.Series, name: str, place: int, text: list[str]) -> Json:
    """A trace of points in the colour and shape of this place."""
    marker = {"color": COLOURS[place % 6], "symbol": SYMBOLS[place % 6], "size": 8, "opacity": 0.75}
    return {"type": "scatter" if len(x) <= PLAIN else "scattergl", "mode": "markers", "name": name, "x": numbers(x),
            "y": numbers(y), "text": text, "marker": marker,
            "hovertemplate": "%{text}<br>%{x:.4g}: %{y:.2f}<extra></extra>"}  # fmt: skip


def line(x: Iterable[Any], y: Iterable[Any], name: str, place: int, **more: Any) -> Json:
    """A trace of one line, or of several with gaps, in the colour and dash of this place."""
    return {"type": "scatter", "mode": "lines+markers", "name": name, "x": list(x), "y": list(y),
            "line": {"width": 2, "color": COLOURS[place % 6], "dash": DASHES[place % 6], **more.pop("line", {})},
            "marker": {"size": 5, "color": COLOURS[place % 6], "symbol": SYMBOLS[place % 6]}, **more}  # fmt: skip


def level(value: float, text: str) -> tuple[Json, Json]:
    """A dashed line across the picture at this height, and what it is."""
    shape = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value,
             "line": {"dash": "dash", "width": 1.5, "color": MUTED}}  # fmt: skip
    note = {"xref": "paper", "x": 1, "xanchor": "right", "y": value, "yanchor": "bottom", "text": text,
            "showarrow": False, "font": {"color": MUTED, "size": 12}}  # fmt: skip
    return shape, note


def teacher_level(results: Results) -> tuple[tuple[Json, ...], tuple[Json, ...]]:
    """The teacher's validation accuracy as such a line; none where it is not known."""
    accuracy = known_number((results.teacher.get("metrics") or {}).get("valid_accuracy"))
    if accuracy is None:
        return (), ()
    shape, note = level(100 * accuracy, f"teacher {100 * accuracy:.1f} %")
    return (shape,), (note,)


def said(table: pd.DataFrame) -> list[str]:
    """Which trial a point is."""
    names = [student_name(arch) for arch in table["arch"]]
    return [f"{name} (trial {number})" for name, number in zip(names, table["number"], strict=True)]


def chosen(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The hyperparameters of a row that has any."""
    for name, value in row.items():
        if is_setting(name) and name.startswith("set.") and not missing(value):
            yield name, value


def missing(value: Any) -> bool:
    """Whether a cell of a table has no value."""
    return bool(pd.isna(value)) if not isinstance(value, list | dict) else False


def numbers(values: pd.Series) -> list[float | None]:
    """Numbers as JSON has them, to six digits."""
    return [None if not math.isfinite(value) else float(f"{value:.6g}") for value in values.astype("float64")]
