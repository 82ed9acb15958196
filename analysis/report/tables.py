"""The report's tables: the students, best first; what was spent; and all trials, for the page's own script."""

import html
import json
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.naming import setting_names, student_name
from analysis.profile import shown
from analysis.report.marks import chosen, missing
from analysis.results import STATUSES, Results
from analysis.schema import is_metric, is_setting, number_columns

SHOWN = 20  # students
# Column, heading, factor, digits.
_STUDENTS = (
    ("params", "params", 1, 0),
    ("flops", "FLOPs", 1, 0),
    ("valid_accuracy", "valid %", 100, 2),
    ("test_accuracy", "test %", 100, 2),
    ("teacher_similarity", "likeness", 1, 3),
    ("test_accuracy_alone", "alone: test %", 100, 2),
    ("test_accuracy_delta", "delta: test %", 100, 2),
)
_FRONT = ("stage", "number", "status", "reason", "student", "seed", "control", "epochs", "seconds")


def students(ranked: pd.DataFrame) -> str:
    """The best students as a table."""
    if ranked.empty:
        return "<p>No student has been trained to an end yet.</p>"
    columns = [entry for entry in _STUDENTS if entry[0] in ranked and ranked[entry[0]].notna().any()]
    head = "".join(f"<th>{html.escape(title)}</th>" for title in ("#", "student", *(c[1] for c in columns), "seeds"))
    rows = []
    for record in ranked.head(SHOWN).to_dict("records"):
        row = {str(name): value for name, value in record.items()}
        cells = [str(row["rank"]), html.escape(student_name(row["arch"]) + settings(row))]
        for name, _, factor, digits in columns:
            sign = "+" if name.endswith("_delta") else ""
            cells.append(number(row[name], row.get(f"{name}_std"), factor, digits, sign))
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in (*cells, str(row["seeds"]))) + "</tr>")
    more = f"<p>{len(ranked) - SHOWN:,} more in the table of trials.</p>" if len(ranked) > SHOWN else ""
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>{more}'


def settings(row: Mapping[str, Any]) -> str:
    """How a student was trained, where that was searched."""
    found = dict(chosen(row))
    shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in found.items()}
    return "".join(f", {name} {shown[column]}" for column, name in setting_names(found).items())


def number(value: Any, spread: Any = None, factor: float = 1, digits: int = 2, sign: str = "") -> str:
    """A value with its spread over seeds; a dash where there is none.

    Args:
        sign: `+` writes it before what is not negative.
    """
    if missing(value):
        return "-"
    text = f"{factor * float(value):{sign},.{digits}f}"
    return text if missing(spread) else f"{text} ± {factor * float(spread):,.{digits}f}"


def cost(results: Results) -> str:
    """What each stage has taken."""
    rows = [(f"teacher {one.get('name')}", "", number(one.get("seconds"), digits=1)) for one in results.teachers]
    for row in results.stage_summary().to_dict("records"):
        told = ", ".join(f"{row[status]:,} {status}" for status in STATUSES if row[status])
        rows.append((f"stage {row['stage']}", told, number(row["device_seconds"], digits=1)))
    wall = f"{number(results.seconds, digits=1)} s of wall time"
    rows.append(("all", wall, number(results.device_seconds, digits=1)))
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    head = "<th></th><th>trials</th><th>device-seconds</th>"
    spent = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    return spent + _profile(results)


def _profile(results: Results) -> str:
    """Where the device-time went."""
    headings, parts, line = shown(results)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in headings)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in parts)
    table = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    return f"<h3>Where the device-time went</h3>{table}<p>{html.escape(line)}</p>"


def text(name: str, content: str) -> str:
    """A file of the run, folded."""
    return f"<details><summary>{html.escape(name)}</summary><pre>{html.escape(content)}</pre></details>"


def trials(results: Results) -> dict[str, Any]:
    """All trials: columns that say something, and a row of plain values for each."""
    table = results.trials.assign(student=[student_name(arch) for arch in results.trials["arch"]])
    metrics = [name for name in number_columns(table) if is_metric(name) and name not in _FRONT]
    chosen = [str(name) for name in table if is_setting(str(name))]
    shown = [*_FRONT, "params", "flops", *chosen, *metrics]
    shown = [name for name in dict.fromkeys(shown) if name in table and table[name].notna().any()]
    columns = {name: [_plain(value) for value in table[name]] for name in shown}
    return {"columns": shown, "rows": [list(row) for row in zip(*columns.values(), strict=True)]}


def _plain(value: Any) -> Any:
    """A value as JSON has it, to six digits."""
    if missing(value):
        return None
    if isinstance(value, bool | str):
        return value
    if isinstance(value, list | dict):
        return json.dumps(value)
    found = float(value)
    if not math.isfinite(found):
        return None
    return int(found) if found.is_integer() and abs(found) < 1e15 else float(f"{found:.6g}")
