"""Tables for the terminal: the ranking with its teacher and what it cost, a run's status, a recipe before it runs."""

import json
import math
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

import analysis
from analysis.deployed import as_deployed
from analysis.naming import setting_names, student_name
from analysis.profile import shown
from analysis.schema import score_columns
from orchestrator.addresses import to_resume
from orchestrator.disk import disk_line
from orchestrator.plain_values import printable


def ranking(results: analysis.Results | None, table: pd.DataFrame, notes: Iterable[str] = ()) -> RenderableType:
    """The ranked students, with the teacher and the cost below; students that are only scored, with their scores.

    Args:
        results: the run's; None for a table of scores that lies by itself.
        notes: lines that stand below.
    """
    if table.empty:
        return Text("no student has finished, or none is within --where")
    table, changed = as_deployed(table)
    noted = [_DEPLOYED] if changed else []
    known = {str(name) for name in table.columns if table[name].notna().any()}
    settings = any(name.startswith("set.") for name in known)
    columns = [column for column in _COLUMNS if column[1][0] in known or (column[0] == "with" and settings)]
    if "valid_accuracy" not in known:
        columns += [(name, (name, f"{name}_std"), "") for name in score_columns(table)]
    if "test_accuracy_alone" in known:  # of the comparison with the control, what nothing was chosen by
        columns = [column for column in columns if column[0] not in ("alone: valid %", "delta: valid %")]
    if "rival" not in set(table.get("origin", ())):
        columns = [column for column in columns if column[0] != "from"]
    of = f" of {results.teacher.get('name') or 'no teacher'}" if results else ""
    shown = Table(title=printable(f"students{of}"), title_justify="left")
    for title, _, style in columns:
        shown.add_column(_text(title), justify="left" if title in ("student", "from", "with") else "right", style=style)
    for _, row in table.iterrows():
        shown.add_row(*[_text(_cell(title, names, row)) for title, names, _ in columns])
    lines = [*_teacher_lines(results), *_cost_lines(results, table)] if results else []
    return Group(shown, *map(_text, (*lines, *noted, *notes)))


def _text(text: str) -> Text:
    """What comes from a run, which others may have made: neither the terminal nor rich acts on anything in it."""
    return Text(printable(text))


def scores(results: analysis.Results, table: pd.DataFrame, top: int = 10) -> RenderableType:
    """The best of a run that only scored, why values are missing, how many there are, and what they cost."""
    line = f"the best {min(top, len(table))} of {len(table):,} students by {_objective(results)}"
    if table["score"].isna().all():
        line = f"none of {len(table):,} students has a value of the {_objective(results)}"
    return ranking(results, table.head(top), [*lacking(results), line])


def lacking(source: analysis.Results | Path | str) -> list[str]:
    """A line for each score that some candidate has no value of, with the commonest reason."""
    try:
        table = analysis.missing(source)
    except analysis.BadInput:  # nothing was scored
        return []
    return [
        f"{row['score']}: no value for {row['missing']:,} of {row['candidates']:,}: {row['reason']}"
        for row in table.to_dict("records")
        if row["missing"]
    ]


def _objective(results: analysis.Results) -> str:
    """The last stage's objective in words."""
    weights = json.loads(results.stages["objective"].iloc[-1])
    terms = [name if weight == 1 else f"{weight:g} {name}" for name, weight in weights.items()]
    return "mean normalised rank: " + ", ".join(terms)


_DEPLOYED = "params and FLOPs are those of what is deployed, which is not the architecture as it is"
# Title, columns of the frame (a value and maybe its spread over seeds), style.
_COLUMNS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("#", ("rank",), ""),
    ("student", ("arch",), "bold"),
    ("from", ("origin",), ""),
    ("with", ("set",), ""),
    ("params", ("params",), ""),
    ("FLOPs", ("flops",), ""),
    ("score", ("score",), "dim"),
    ("valid %", ("valid_accuracy", "valid_accuracy_std"), ""),
    ("test %", ("test_accuracy", "test_accuracy_std"), "green"),
    ("likeness", ("teacher_similarity", "teacher_similarity_std"), ""),
    ("alone: valid %", ("valid_accuracy_alone", "valid_accuracy_alone_std"), ""),
    ("delta: valid %", ("valid_accuracy_delta", "valid_accuracy_delta_std"), ""),
    ("alone: test %", ("test_accuracy_alone", "test_accuracy_alone_std"), ""),
    ("delta: test %", ("test_accuracy_delta", "test_accuracy_delta_std"), ""),
)


def _cell(title: str, names: tuple[str, ...], row: pd.Series) -> str:
    if title == "student":
        return student_name(row["arch"])
    if title == "with":
        settings = {name: row[name] for name in row.index if name.startswith("set.") and not pd.isna(row[name])}
        names_of = setting_names(settings)
        return " ".join(f"{names_of[name]} {_short(value)}" for name, value in settings.items())
    value = row[names[0]]
    if pd.isna(value):
        return "-"
    if title == "FLOPs":
        return _metric(value)
    if title in ("#", "params"):
        return f"{int(value):,}"
    if title == "from":
        return str(value)
    spread = row.get(names[-1], math.nan)
    if "%" in title:
        sign = "+" if title.startswith("delta") else ""
        return f"{100 * value:{sign}.2f}" + ("" if pd.isna(spread) else f" ± {100 * spread:.2f}")
    if title == names[0] and title != "score":  # a score without training: of any magnitude
        return f"{value:.4g}" + ("" if pd.isna(spread) else f" ± {spread:.2g}")
    return f"{value:.3f}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _metric(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def _teacher_lines(results: analysis.Results) -> list[str]:
    return [_teacher_line(teacher) for teacher in results.teachers]


def _teacher_line(teacher: Mapping[str, Any]) -> str:
    metrics = teacher.get("metrics") or {}
    parts = [f"{teacher['params']:,} params"] if _is_number(teacher.get("params")) else []
    parts += [f"{_metric(teacher['flops'])} FLOPs"] if _is_number(teacher.get("flops")) else []
    parts += [f"{split} {100 * metrics[f'{split}_accuracy']:.2f} %" for split in ("valid", "test")
              if _is_number(metrics.get(f"{split}_accuracy"))]  # fmt: skip
    return f"teacher {teacher['name']}: {', '.join(parts)}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _cost_lines(results: analysis.Results, table: pd.DataFrame) -> list[str]:
    stages = results.stage_summary()
    if stages.empty:
        return []
    taught = sum(teacher.get("seconds") or 0.0 for teacher in results.teachers)
    parts = [f"{'teacher' if len(results.teachers) == 1 else 'teachers'} {taught:.1f}"] if taught else []
    parts += [f"{row.stage} {row.device_seconds:.1f} ({row.trials} trials)" for row in stages.itertuples()]
    passes = results.epochs["teacher_passes"].sum() if "teacher_passes" in results.epochs else 0
    state = "" if results.finished else " so far"
    spent = f"{results.device_seconds:,.1f} device-seconds ({', '.join(parts)})"
    lines = [f"cost{state}: {spent}; {results.seconds:,.1f} s in all"]
    if passes:
        lines.append(f"the teacher saw {int(passes)} epochs, its students {len(results.epochs.query('epoch > 0'))}")
    if "seeds" in table and len(table) and table["seeds"].max() > 1:
        chosen = "; chosen on validation, test seen once" if table["valid_accuracy"].notna().any() else ""
        lines.append(f"± is the standard deviation over {int(table['seeds'].max())} seeds{chosen}")
    return lines


def profile(results: analysis.Results) -> RenderableType:
    """Where the device-time of a run went."""
    headings, rows, line = shown(results)
    table = Table(title="where the device-time went", title_justify="left")
    for name in headings:
        table.add_column(name, justify="right" if name else "left")
    for row in rows:
        table.add_row(*map(_text, row))
    return Group(table, _text(line))


def status(results: analysis.Results, held_by: int | str | None) -> RenderableType:
    """How far a run is."""
    table = Table(title=printable(str(results.path)), title_justify="left")
    frame = results.stage_summary()
    names = [
        "stage",
        "trials",
        "completed",
        "stopped",
        "failed",
        "running",
        "waiting",
        "valid_accuracy",
        "device_seconds",
    ]
    for name in names:
        table.add_column(name.replace("_", " "), justify="left" if name == "stage" else "right")
    for _, row in frame.iterrows():
        table.add_row(*[_text(_plain(name, row[name])) for name in names])
    state = "finished" if results.finished else "interrupted" if held_by is None else f"running (process {held_by})"
    lines = [f"{state}; {results.device_seconds:,.1f} device-seconds"]
    lines += _teacher_lines(results)
    lines += [disk_line(results.path)] if isinstance(results.path, Path) else []
    failed = results.trials[results.trials["status"] == "failed"]
    lines += [f"failed: {row.stage} trial {row.number}: {row.reason}" for row in failed.head(5).itertuples()]
    lost = results.trials[(results.trials["lost"] > 0) & (results.trials["status"] != "failed")]
    lines += [
        f"taken up again: {row.stage} trial {row.number}, whose worker was lost {row.lost} times"
        for row in lost.head(5).itertuples()
    ]
    if not results.finished and held_by is None:
        lines.append(f"go on with it: {to_resume(results.path)}")
    return Group(table, *map(_text, lines))


def _plain(name: str, value: Any) -> str:
    if pd.isna(value):
        return "-"
    if name == "valid_accuracy":
        return f"{100 * value:.2f} %"
    return f"{value:,.1f}" if isinstance(value, float) else str(value)


def table_of(rows: Mapping[str, str], title: str) -> Table:
    """A table of names and what they are."""
    table = Table(title=title, title_justify="left", show_header=False)
    for name, text in rows.items():
        table.add_row(Text(name, style="bold"), text)
    return table


def console() -> Console:
    """Where results go: wide enough for the table also where the output is a file."""
    made = partial(Console, markup=False, emoji=False)  # a folder may be called [old] or :old:
    plain = made()
    return plain if plain.is_terminal or plain.is_jupyter else made(width=160)
