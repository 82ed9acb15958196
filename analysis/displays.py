"""Tables as a person reads them, in a notebook or a terminal: units, percent, what belongs together in one cell.

The HTML sets no colour of its own, so that it can be read on light and on dark pages, and escapes every text.
"""

import html
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
from pandas.api import types

from analysis.deployed import as_deployed
from analysis.naming import known_number, setting_names, short_number, student_name
from analysis.ranking import rank
from analysis.results import STATUSES, Results
from analysis.schema import SIZES, column_of, is_setting, only_scores, score_columns

_MISSING = "-"
_EACH = "<th style='text-align: {side}' title='{title}'>{text}</th>"
_CELL = "<td style='text-align: {side}; white-space: nowrap'>{text}</td>"


@dataclass(frozen=True)
class Part:
    """A column of a table that is shown.

    Args:
        cells: a text a row.
        meaning: what it is, shown where the pointer rests on its heading.
        words: text, which stands at the left; numbers stand at the right.
    """

    heading: str
    cells: tuple[str, ...]
    meaning: str = ""
    words: bool = False


@dataclass(frozen=True, eq=False)
class Shown:
    """A table made for reading; its numbers are in the frame that it was made of.

    Args:
        parts: its columns.
        note: a line below it.
    """

    parts: tuple[Part, ...]
    note: str = ""

    def __repr__(self) -> str:
        table = pd.DataFrame({number: part.cells for number, part in enumerate(self.parts)}, dtype=object)
        text = table.to_string(index=False, header=[part.heading for part in self.parts]) if len(table) else "no rows"
        return f"{text}\n{self.note}".rstrip()

    def _repr_html_(self) -> str:
        head = "".join(
            _EACH.format(side=_side(part), title=html.escape(part.meaning), text=html.escape(part.heading))
            for part in self.parts
        )
        rows = "".join(
            "<tr>" + "".join(map(_cell, self.parts, row)) + "</tr>"
            for row in zip(*(part.cells for part in self.parts), strict=True)
        )
        style = "color: inherit; font-variant-numeric: tabular-nums"
        table = f"<table style='{style}'><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        note = f"<div style='margin-bottom: 1em'>{html.escape(self.note)}</div>" if self.note else ""
        return f"<div style='overflow-x: auto'>{table}{note}</div>"


def _side(part: Part) -> str:
    return "left" if part.words else "right"


def _cell(part: Part, text: str) -> str:
    return _CELL.format(side=_side(part), text=html.escape(text))


def show(table: pd.DataFrame, top: int = 20) -> Shown:
    """A table of this package, made for reading; the frame itself stays what it is.

    Of students (`rank`, `pareto` of a ranking, `Confidence.ranks`, trials): who they are in a few characters, costs,
    accuracies in percent with their spread over seeds, and what the teacher is worth. Of others (`agreement`,
    `effects`, ...): an interval stands beside its value, and columns without a value are left out.

    Args:
        top: rows at most.
    """
    part, deployed = table.head(top), False
    if set(SIZES) <= set(part.columns):
        part, deployed = as_deployed(part)
    parts = tuple(_students(part) if {"arch", "hash"} <= set(part.columns) else _plain(part))
    cut = f"the first {len(part)} of {len(table):,} rows" if len(part) < len(table) else ""
    said = [f"{name} {_short(value)}" for name, value in table.attrs.items() if not _is_nan(value)]
    several = "seeds" in part and any("±" in cell for one in parts for cell in one.cells)
    spread = f"± is the standard deviation over {part['seeds'].max():.0f} seeds" if several else ""
    other = "params and FLOPs are those of what is deployed" if deployed else ""
    return Shown(parts, "; ".join(filter(None, [", ".join(said), spread, other, cut])))


def _students(table: pd.DataFrame) -> Iterable[Part]:
    """A row a student: the terminal's columns, as far as the table knows them."""
    known = {str(name) for name in table.columns if table[name].notna().any()}
    if "rank" in known:
        yield Part("#", _texts(table["rank"], "{:.0f}".format), "place, 1 is best")
    if len(set(table.get("run", ()))) > 1:
        yield Part("run", _texts(table["run"], str), "name of the run", words=True)
    yield Part("student", _texts(table["arch"], student_name), "its architecture", words=True)
    if any(name.startswith("set.") for name in known):
        yield Part("with", _settings(table), "how it was trained", words=True)
    for name in _OF_A_TRIAL if "seeds" not in table else ():
        if name in known:
            yield Part(name, _texts(table[name], _form(table[name], 3)), column_of(name).meaning, words=True)
    if "seeds" in table and "epochs" in known and table["epochs"].nunique() > 1:
        yield Part("epochs", _texts(table["epochs"], "{:.0f}".format), "who trained for longer stands first")
    for name, heading, form in _FIGURES:
        if name in known:
            yield Part(heading, _with_spread(table, name, form), column_of(name).meaning)
    if {"rank_low", "rank_high"} <= known:
        ends = (_texts(table[name], "{:g}".format) for name in ("rank_low", "rank_high"))
        cells = tuple(f"{low} to {high}" for low, high in zip(*ends, strict=True))
        yield Part("place (95 %)", cells, "bounds of its place over resamples of seeds")
    if "first" in known:
        yield Part("best in %", _texts(100 * table["first"], "{:.0f}".format), "resamples in which it is the best")
    for name in score_columns(table) if only_scores(table) and "first" not in table else ():
        yield Part(name, _with_spread(table, name, "{:.4g}".format), column_of(name).meaning)


def _percent(value: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.2f}"


def _amount(value: float) -> str:
    """1.25 M for 1,250,000."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


_OF_A_TRIAL = ("stage", "number", "seed", "control", "status", "reason", "epochs")
# Of students: column, heading, how a value is written.
_FIGURES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("params", "params", "{:,.0f}".format),
    ("flops", "FLOPs", _amount),
    ("latency_ms", "latency (ms)", "{:.3g}".format),
    ("score", "score", "{:.3f}".format),
    ("valid_accuracy", "valid %", _percent),
    ("test_accuracy", "test %", _percent),
    ("teacher_similarity", "likeness", "{:.3f}".format),
    ("test_accuracy_alone", "alone: test %", _percent),
    ("test_accuracy_delta", "delta: test %", partial(_percent, sign="+")),
)


def heading_of(metric: str) -> tuple[str, float]:
    """What a metric is called above a column of numbers, and what they are multiplied by: accuracies are in percent."""
    if metric.endswith("_accuracy"):
        return f"{metric.removesuffix('_accuracy')} %", 100.0
    return metric.replace("_", " "), 1.0


def _with_spread(table: pd.DataFrame, name: str, form: Callable[[float], str]) -> tuple[str, ...]:
    """Values, each with its spread over seeds where that is known."""
    spread = table.get(f"{name}_std")
    values = _texts(table[name], form)
    if spread is None:
        return values
    plain = partial(_percent, sign="") if isinstance(form, partial) else form
    spreads = _texts(spread, plain)
    return tuple(one if other == _MISSING else f"{one} ± {other}" for one, other in zip(values, spreads, strict=True))


def _settings(table: pd.DataFrame) -> tuple[str, ...]:
    """`temperature 8`, of each row."""
    names = setting_names(str(name) for name in table.columns if str(name).startswith("set."))
    cells = [_texts(table[name], _short) for name in names]
    rows = zip(*cells, strict=True)
    shown = (zip(names.values(), row, strict=True) for row in rows)
    return tuple(", ".join(f"{name} {value}" for name, value in row if value != _MISSING) for row in shown)


def _plain(table: pd.DataFrame) -> Iterable[Part]:
    """Any table: bounds beside their values, nothing that is empty."""
    columns = [str(name) for name in table.columns]
    bounds = _bounds(columns)
    beside = {bound for pair in bounds.values() for bound in pair}
    for name in columns:
        if name in beside or table[name].isna().all() or (name == "run" and table[name].nunique() == 1):
            continue
        form = _form(table[name], 2 if name in bounds else 3)
        form = _moment if column_of(name).unit == "unix s" else form
        cells = _texts(table[name], form)
        if name in bounds:
            low, high = (_texts(table[bound], form) for bound in bounds[name])
            joined = zip(cells, low, high, strict=True)
            cells = tuple(one if _MISSING in (a, b) else f"{one} ({a} to {b})" for one, a, b in joined)
        heading = name.rpartition(".")[2] if is_setting(name) else name.replace("_", " ")
        yield Part(heading, cells, words=not _is_number(table[name]))


def _bounds(columns: list[str]) -> dict[str, tuple[str, str]]:
    """The columns that have an interval, with those of its ends."""
    pairs = {name: (f"{name}_low", f"{name}_high") for name in columns}
    for name in ("mean", "importance"):
        pairs |= {name: ("low", "high")} if name in columns else {}
    return {name: pair for name, pair in pairs.items() if set(pair) <= set(columns)}


def _is_number(column: pd.Series) -> bool:
    return types.is_numeric_dtype(column) and not types.is_bool_dtype(column)


def _form(column: pd.Series, most: int) -> Callable[[Any], str]:
    """How a column's values are written: whole numbers with commas, others to four digits of the largest, and at most
    so many behind the point."""
    if types.is_bool_dtype(column):
        return lambda value: "yes" if value else "no"
    if not _is_number(column):
        return str
    if types.is_integer_dtype(column):
        return "{:,.0f}".format
    largest = float(column.abs().max())
    digits = 3 - math.floor(math.log10(largest)) if 0 < largest < math.inf else 0
    return f"{{:,.{min(max(digits, 0), most)}f}}".format


def _moment(seconds: float) -> str:
    return f"{pd.Timestamp(seconds, unit='s'):%Y-%m-%d %H:%M:%S} UTC"


def _texts(column: pd.Series, form: Callable[[Any], str]) -> tuple[str, ...]:
    return tuple(_MISSING if _is_nan(value) else form(value) for value in column)


def _is_nan(value: Any) -> bool:
    return bool(pd.isna(value)) if pd.api.types.is_scalar(value) else False


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def facts(results: Results) -> list[str]:
    """What a run is, a line each: its state, its best student, its teachers, what it cost, and what failed."""
    state = "finished" if results.finished else "not finished"
    name = results.name or results.path.name
    lines = [f"{name}: {state}, {short_number(results.seconds)} s, {len(results.trials):,} trials"]
    lines += _best(results)
    lines += [_teacher(teacher) for teacher in results.teachers]
    taught = sum(teacher.get("seconds") or 0.0 for teacher in results.teachers)
    of_them = f", {short_number(taught)} of them to train the teacher" if taught else ""
    lines.append(f"cost: {short_number(results.device_seconds)} device-seconds{of_them}")
    return [*lines, *_failures(results.trials)]


def _best(results: Results) -> Iterable[str]:
    """A line for the best student of each run that has one."""
    for run, part in rank(results).groupby("run", sort=False):
        best, _ = as_deployed(part.head(1))
        of = f" of {run}" if len(results.paths) > 1 else ""
        said = _settings(best)[0] if any(str(name).startswith("set.") for name in best) else ""
        told = [f"{figure}{unit}" for name, form, unit in _TOLD
                if name in best and (figure := _with_spread(best, name, form)[0]) != _MISSING]  # fmt: skip
        who = student_name(best["arch"].iloc[0]) + (f", {said}" if said else "")
        yield f"best student{of}: {who} ({', '.join(told)})"


# Of the best student: column, how it is written, what stands behind it.
_TOLD: tuple[tuple[str, Callable[[float], str], str], ...] = (
    ("params", "{:,.0f}".format, " params"),
    ("flops", _amount, " FLOPs"),
    ("latency_ms", "{:.3g}".format, " ms"),
    ("valid_accuracy", _percent, " % valid"),
    ("test_accuracy", _percent, " % test"),
    ("test_accuracy_alone", _percent, " % test without the teacher"),
)


def _teacher(teacher: Mapping[str, Any]) -> str:
    accuracy = known_number((teacher.get("metrics") or {}).get("test_accuracy"))
    share = "" if accuracy is None else f", test accuracy {accuracy:.4f}"
    params = known_number(teacher.get("params"))
    size = "" if params is None else f", {params:,.0f} parameters"
    return f"teacher {teacher['name']} ({teacher.get('source', 'unknown')}{size}{share})"


def _failures(trials: pd.DataFrame) -> list[str]:
    """How many trials failed, and the commonest reason."""
    failed = trials[trials["status"] == "failed"]
    if failed.empty:
        return []
    reasons = failed["reason"].dropna()
    why = f"; commonest reason: {reasons.mode().iloc[0]}" if len(reasons) else ""
    return [f"{len(failed):,} of {len(trials):,} trials failed{why}"]


def stages(results: Results) -> Shown:
    """A row a stage: what it did, its trials by status, and its best."""
    table = results.stage_summary()
    quiet = [status for status in STATUSES if status != "completed" and not table[status].any()]
    table = table.drop(columns=quiet)
    headings = {"objective": "best objective", "valid_accuracy": "best valid %"}
    table["valid_accuracy"] = 100 * table["valid_accuracy"]
    return Shown(tuple(_plain(table.rename(columns=headings))))


def of_results(results: Results) -> str:
    """The HTML of a run: its facts and its stages."""
    first, *rest = (html.escape(line) for line in facts(results))
    lines = [f"<strong>{first}</strong>", *rest]
    return "".join(f"<div>{line}</div>" for line in lines) + stages(results)._repr_html_()
