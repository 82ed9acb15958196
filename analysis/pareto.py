"""Students that no other one beats in every respect."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from analysis.errors import BadInput, unknown
from analysis.schema import direction, number_columns

Goals = Mapping[str, Literal["max", "min"]] | Sequence[str]


def pareto(frame: pd.DataFrame, columns: Goals) -> pd.DataFrame:
    """The rows that no other row dominates (as good in every column, better in one), best in the first column first.

    Equal rows do not dominate each other; rows with a missing value are left out.

    Args:
        columns: which way each goes, `max` or `min`; of bare names, the schema says which.

    Raises:
        BadInput: no column, an unknown one, one without numbers or without a direction.
    """
    points_ND = _points(frame, goals(frame, columns))
    complete = np.flatnonzero(~np.isnan(points_ND).any(1))
    # Whoever dominates a point is larger in the first column where they differ, so comes before it in this order.
    order = complete[np.lexsort(-points_ND[complete].T[::-1])]
    front: list[int] = []
    front_FD = np.empty((len(order), points_ND.shape[1]))
    for row in order:
        against = front_FD[: len(front)]
        at_least, better = (against >= points_ND[row]).all(1), (against > points_ND[row]).any(1)
        if not (at_least & better).any():
            front_FD[len(front)] = points_ND[row]
            front.append(int(row))
    return frame.iloc[front]


def hypervolume(frame: pd.DataFrame, columns: Goals, reference: Mapping[str, float] | None = None) -> float:
    """The area that the rows dominate, down to a reference point, in the units of the two columns.

    Args:
        columns: exactly two, as for `pareto`.
        reference: a value by column; rows worse than it add nothing. Default: the worst value of each column, so that
            areas of different tables compare only under the same reference.

    Raises:
        BadInput: other than two columns, or a reference that lacks one.
    """
    ways = goals(frame, columns)
    if len(ways) != 2:
        raise BadInput(f"a hypervolume takes 2 columns, not {len(ways)}: {', '.join(ways)}")
    points_N2 = _points(pareto(frame, ways), ways)
    if reference is None:
        every = _points(frame, ways)
        every = every[~np.isnan(every).any(1)]
        worst = every.min(0) if len(every) else np.zeros(2)
    elif set(reference) != set(ways):
        raise BadInput(f"the reference must name exactly {', '.join(ways)}, not {', '.join(reference)}")
    else:
        worst = np.array([reference[name] if way == "max" else -reference[name] for name, way in ways.items()])
    gains_N2 = np.clip(points_N2 - worst, 0, None)
    # The front falls in the first column as it rises in the second: strips side by side.
    below = np.concatenate([[0.0], np.maximum.accumulate(gains_N2[:, 1])[:-1]]) if len(gains_N2) else np.zeros(0)
    return float((gains_N2[:, 0] * np.clip(gains_N2[:, 1] - below, 0, None)).sum())


def goals(frame: pd.DataFrame, columns: Goals) -> dict[str, Literal["max", "min"]]:
    """Each column with the way it goes. Raises `BadInput` as `pareto` says."""
    if isinstance(columns, str) or not columns:
        raise BadInput(f"name the columns in a list or with their ways, as in {{'params': 'min'}}, not {columns!r}")
    numbers = number_columns(frame)
    ways: dict[str, Literal["max", "min"]] = {}
    for name in columns:
        if name not in numbers:
            raise unknown("column of numbers", name, numbers)
        if isinstance(columns, Mapping):
            if columns[name] not in ("max", "min"):
                raise BadInput(f"column {name!r} goes 'max' or 'min', not {columns[name]!r}")
            ways[name] = columns[name]
        elif direction(name) == "none":
            raise BadInput(f"column {name!r} has no better direction; write {{{name!r}: 'max'}} or 'min'")
        else:
            ways[name] = "max" if direction(name) == "higher" else "min"
    return ways


def _points(frame: pd.DataFrame, ways: Mapping[str, Literal["max", "min"]]) -> np.ndarray:
    """[N, D], higher is better in each column."""
    table = frame[list(ways)].astype("float64").to_numpy()
    return table * np.array([1.0 if way == "max" else -1.0 for way in ways.values()])
