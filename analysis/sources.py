"""Tables of trials, wherever they are: in results, in a frame, in a run's directory or in a Parquet file."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.errors import BadInput
from analysis.results import Results, load
from analysis.schema import TRIALS

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
        path = Path(source)
        if path.is_file() and path.suffix != ".jsonl":
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
    return table if is_summary(table) else completed(table)


def _read(path: Path) -> pd.DataFrame:
    try:
        return pq.ParquetFile(path).read().to_pandas()
    except (pa.ArrowInvalid, OSError):
        raise BadInput(f"{path} is no Parquet file; a table of scores is one, with a row per candidate") from None
