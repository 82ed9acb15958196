"""A filter that a user writes: comparisons joined by `and`, as in `params <= 20000 and arch.width == 8`.

It is parsed here and never evaluated as code.
"""

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from pandas.api import types

from analysis.errors import BadInput, unknown

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
_COMPARISON = re.compile(
    r"""\s*(?P<column>[A-Za-z_][\w.:-]*)\s*(?P<operator><=|>=|==|!=|<|>)\s*
        (?: (?P<number>[-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?) | (?P<truth>true|false)
          | "(?P<double>[^"]*)" | '(?P<single>[^']*)' )(?![\w.])\s*""",
    re.VERBOSE,
)
_AND = re.compile(r"and\b")


@dataclass(frozen=True)
class Comparison:
    """One comparison of a filter."""

    column: str
    operator: str
    value: float | str | bool


def parse(text: str) -> list[Comparison]:
    """The comparisons of a filter.

    Raises:
        BadInput: anything but comparisons joined by `and`.
    """
    found = []
    at = 0
    while True:
        match = _COMPARISON.match(text, at)
        if match is None:
            break
        part = match.groupdict()
        value: float | str | bool
        if part["number"] is not None:
            value = float(part["number"].replace("_", ""))
        elif part["truth"] is not None:
            value = part["truth"] == "true"
        else:
            value = part["double"] if part["double"] is not None else part["single"]
        found.append(Comparison(part["column"], part["operator"], value))
        if match.end() == len(text):
            return found
        joint = _AND.match(text, match.end())
        if joint is None:
            at = match.end()
            break
        at = joint.end()
    rule = "a filter is comparisons `column <=|>=|==|!=|<|> number|'text'|true|false` joined by `and`"
    raise BadInput(f"{rule}; cannot read {text[at:].strip()!r}")


def matches(frame: pd.DataFrame, comparisons: list[Comparison]) -> pd.Series:
    """Which rows meet every comparison, by the frame's index. A missing value meets none.

    Raises:
        BadInput: a column that the frame lacks, or a value of another kind than the column's.
    """
    kept = pd.Series(True, index=frame.index)
    for one in comparisons:
        if one.column not in frame.columns:
            raise unknown("column", one.column, map(str, frame.columns))
        column = frame[one.column]
        _check_kind(one, column)
        met = _OPERATORS[one.operator](column, one.value)
        kept &= met.fillna(False).astype(bool) & column.notna()
    return kept


def _check_kind(one: Comparison, column: pd.Series) -> None:
    if types.is_bool_dtype(column):
        kind, fits, example = "true or false", isinstance(one.value, bool), "true"
    elif types.is_numeric_dtype(column):
        kind, fits, example = "numbers", isinstance(one.value, float), "8"
    else:
        kind, fits, example = "text", isinstance(one.value, str), "'text'"
    if not fits:
        raise BadInput(f"column {one.column!r} holds {kind}: compare it with one, as in {one.column} == {example}")
    if kind != "numbers" and one.operator not in ("==", "!="):
        raise BadInput(f"column {one.column!r} holds {kind}: compare it by == or !=, not {one.operator}")
