"""Tables of trials, wherever they are: in results, in a frame, in a run's directory or in a Parquet file."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.errors import BadInput
from analysis.remote import Address, local, place
from analysis.results import Results, load
from analysis.schema import TRIALS

_SUMMARY = ("run", "stage", "proposal", "arch")  # what a table of candidates has besides `hash` and `seeds`
Source = Results | pd.DataFrame | str | Path


def trials_of(source: Source) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Trials and, of a run, stages. What a table lacks of the columns of trials is filled in; one that has a row per
    candidate already (column `seeds`) is left as it is.

    Raises:
        BadInput: no such file, no Parquet, no column `hash`, or a directory that is no run.
    """
    if isinstance(source, pd.DataFrame):
        return _checked(source, "the table"), None
    if not isinstance(source, Results):
        path = place(source)
        if isinstance(path, Address) and path.suffix == ".parquet":
            with local(path) as copy:
                return _checked(_read(copy), str(path)), None
        if isinstance(path, Path) and path.is_file() and path.suffix != ".jsonl":
            return _checked(_read(path), str(path)), None
        source = load(path)
    return source.trials, source.stages


def is_summary(table: pd.DataFrame) -> bool:
    """Whether a table has a row per candidate, averaged over seeds, and not a row per trial."""
    return "seeds" in table.columns


def completed(table: pd.DataFrame) -> pd.DataFrame:
    """The table with every column of trials. What it does not say: one finished trial per row, of one stage."""
    numbers = {"number": np.arange(len(table)), "proposal": pd.factorize(table["hash"])[0]}
    plain = {"run": "", "stage": "score", "status": "completed", "control": False}
    added = {}
    for column in TRIALS:
        if column.name not in table.columns:
            usual = plain.get(column.name, 0 if column.dtype == "int64" else None)
            added[column.name] = pd.Series(numbers.get(column.name, usual), index=table.index, dtype=column.dtype)
    return pd.concat([table, pd.DataFrame(added, index=table.index)], axis=1) if added else table


def _checked(table: pd.DataFrame, what: str) -> pd.DataFrame:
    if "hash" not in table.columns:
        raise BadInput(f"{what} holds no trials or scores: it lacks the column 'hash', the candidates' names")
    if is_summary(table) and (lacking := [name for name in _SUMMARY if name not in table.columns]):
        raise BadInput(f"{what} has a row per candidate, and lacks the columns {', '.join(lacking)}")
    listed = {column.name: column.dtype for column in TRIALS if column.name in table.columns}
    table = table.assign(**{name: _typed(table[name], dtype, what) for name, dtype in listed.items()})
    return table if is_summary(table) else completed(table)


def _typed(column: pd.Series, dtype: Any, what: str) -> pd.Series:
    """A column of a listed type; names of trials are never missing, and sizes may be in millions."""
    if dtype == "Int64" and pd.api.types.is_float_dtype(column):
        return column
    nullable: Any = {"bool": "boolean", "int64": "Int64"}.get(dtype, dtype)
    try:
        found = column.astype(nullable).astype(dtype)
    except (TypeError, ValueError, OverflowError, pa.ArrowException) as error:
        raise BadInput(f"{what}: the column {column.name!r} does not hold {dtype}") from error
    if column.name in ("run", "stage", "hash") and found.isna().any():
        raise BadInput(f"{what}: the column {column.name!r} has rows without a value")
    return found


def _read(path: Path) -> pd.DataFrame:
    try:
        return pq.ParquetFile(path).read().to_pandas()
    except Exception:  # pyarrow and pandas raise whatever they stumble on in a damaged file
        raise BadInput(f"{path} is no Parquet file; a table of scores is one, with a row per candidate") from None
