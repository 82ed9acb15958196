"""`report.html`: what came out of a run, in one file that needs neither a network nor anything installed."""

import html
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from analysis.errors import BadInput
from analysis.files import replacing
from analysis.remote import Address, place, read
from analysis.report import answer, charts, marks, tables
from analysis.results import Results, load

NAME = "report.html"
_BESIDE = ("recipe.yaml", "environment.json")


def write(run: str | Path, output: str | Path | None = None) -> Path:
    """Write the report of a run, finished or not, whole or not at all; where it is.

    Args:
        output: a file; default: `report.html` in the run's directory, or of a run in an object store in the working
            directory.

    Raises:
        BadInput: not a run, or a folder that cannot be written to.
    """
    where = place(run)
    if output is None:
        output = Path(f"{where.name}-{NAME}") if isinstance(where, Address) else Path(where) / NAME
    text = page(load(where), _beside(where))
    file = Path(output)
    try:
        with replacing(file) as beside:
            beside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{file}: cannot be written: {error.strerror}") from error
    return file


def page(results: Results, beside: Mapping[str, str] | None = None) -> str:
    """The report as text.

    Args:
        beside: texts of the run's other files by name, such as its recipe.
    """
    ranked = answer.ranked(results)
    parts = {
        "title": html.escape(f"{results.name}: students of {results.teacher.get('name') or 'no teacher'}"),
        "answer": answer.html_of(results, ranked),
        "students": tables.students(ranked),
        "cost": tables.cost(results),
        "beside": "".join(tables.text(name, text) for name, text in (beside or {}).items()),
        "palettes": _as_json(marks.palettes()),
        "charts": _as_json([chart.plain() for chart in charts.of(results)]),
        "trials": _as_json(tables.trials(results)),
        "plotly": _plotly(),
    }
    text = (files("analysis.report") / "page.html").read_text(encoding="utf-8")
    for name, part in parts.items():
        text = text.replace(f"<!--{name}-->", part)
    return text


def _beside(where: Path | Address) -> dict[str, str]:
    found = {}
    for name in _BESIDE:
        if isinstance(where, Address):
            data = read(where / name)
        else:
            data = (where / name).read_bytes() if (where / name).is_file() else None
        if data is not None:
            found[name] = data.decode(errors="replace")
    return found


def _as_json(value: Any) -> str:
    """JSON that can stand in a script of a page: nothing in it ends the script."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def _plotly() -> str:
    return (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")


__all__ = ["NAME", "page", "write"]
