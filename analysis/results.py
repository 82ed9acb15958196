"""The results of a run, loaded from its directory: no pickle is read, neither Ray nor torch is needed."""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.errors import BadInput
from analysis.event_table import event_table
from analysis.files import replacing
from analysis.ledger import Ledger, broken, events, frames, ledger_file
from analysis.remote import Address, fetched, place
from analysis.schema import LAYOUT, LEDGER

STATUSES = ("completed", "stopped", "failed", "running", "waiting")
_TABLES = ("trials.parquet", "epochs.parquet")


def _no_events() -> pd.DataFrame:
    return pd.DataFrame({column.name: pd.Series(dtype=column.dtype) for column in LEDGER})


@dataclass(frozen=True, eq=False, repr=False)
class Results:
    """What came out of one run, or of several side by side.

    Args:
        paths: the runs' directories, or addresses in an object store.
        name: of the run; of several, their names with commas.
        trials: a row a trial; `analysis.describe_columns` says what the columns of this table and the others mean.
        epochs: a row a report; read from its file when it is first asked for.
        stages: a row a stage: its objective, sampler, scheduler, budget, who was kept, wall seconds.
        teachers: name, source, params, flops, seconds of training, metrics; and the run each belongs to.
        seconds: wall time, without the pauses before resumptions; up to the last event where the run has not ended.
        finished: whether the run (each of them) came to its end.
        version: of the dux that ran it.
        recipe: its name.
        sessions: of each run, by name, the unix times at which it began (and went on) and at which it stopped.
        ledger: a row an event, with what it took: the device-seconds of a run's ledger add up to `device_seconds`,
            but for epochs that were repeated after a resumption. Read when it is first asked for, as it is then.
        replayed: whether results came from a table of recorded ones: nothing was trained, and times are virtual.
    """

    paths: tuple[Path | Address, ...]
    name: str
    trials: pd.DataFrame
    epochs: pd.DataFrame
    stages: pd.DataFrame
    teachers: tuple[Mapping[str, Any], ...]
    seconds: float
    finished: bool
    version: str
    recipe: str
    sessions: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    ledger: pd.DataFrame = field(default_factory=_no_events)
    replayed: bool = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "epochs": self.epochs, "ledger": self.ledger}

    def __repr__(self) -> str:
        return self.summary()

    @property
    def path(self) -> Path | Address:
        """The run's directory or address; of several, the first."""
        return self.paths[0]

    @property
    def teacher(self) -> Mapping[str, Any]:
        """The teacher; of several, the first; empty where none was."""
        return self.teachers[0] if self.teachers else {}

    @property
    def device_seconds(self) -> float:
        """Device time of all trials and of training the teachers."""
        return float(self.trials["seconds"].sum()) + sum(teacher.get("seconds") or 0.0 for teacher in self.teachers)

    def stage_summary(self) -> pd.DataFrame:
        """A row a stage: trials by status, different students, best objective and accuracy, seconds."""
        keys = ["run", "stage"]
        taught = self.trials[~self.trials["control"]]
        alive = taught[taught["status"] != "failed"].groupby(keys)
        counts = self.trials.groupby([*keys, "status"]).size().unstack(fill_value=0)
        shown = self.stages[[*keys, "trial", "sampler", "scheduler"]].set_index(keys)
        shown["trials"] = self.trials.groupby(keys).size()
        shown[list(STATUSES)] = counts.reindex(columns=list(STATUSES), fill_value=0)
        shown["students"] = taught.groupby(keys)["hash"].nunique()
        numbers = ["trials", *STATUSES, "students"]
        shown[numbers] = shown[numbers].fillna(0).astype("int64")
        shown["objective"] = alive["objective"].max()
        shown["valid_accuracy"] = alive["valid_accuracy"].max()
        shown["device_seconds"] = self.trials.groupby(keys)["seconds"].sum()
        return shown.reset_index()

    def summary(self) -> str:
        """A few lines: the run, its best student, its teacher, what it cost and what failed; a row a stage."""
        return "\n".join([*_displays().facts(self), *self._stage_text()])

    def _stage_text(self) -> list[str]:
        return repr(_displays().stages(self)).splitlines() if len(self.stages) else []

    def _repr_html_(self) -> str:
        return _displays().of_results(self)


def _displays() -> ModuleType:
    """How results are shown. Imported late: it ranks them, so it imports this file."""
    from analysis import displays

    return displays


Later = Callable[[], pd.DataFrame]


class _WhenAsked:
    """A field that is a table: given as one, or as a function that is called when the table is first asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, results: Results, owner: type) -> pd.DataFrame:
        known: pd.DataFrame | Later = results.__dict__[self._name]
        if not isinstance(known, pd.DataFrame):
            known = results.__dict__[self._name] = known()
        return known

    def __set__(self, results: Results, value: pd.DataFrame | Later) -> None:
        results.__dict__[self._name] = value


# After the class, so that `dataclass` does not take them for defaults.
Results.epochs = _WhenAsked("epochs")  # type: ignore[assignment]
Results.ledger = _WhenAsked("ledger")  # type: ignore[assignment]


def write(run_dir: str | Path, trials: pd.DataFrame, epochs: pd.DataFrame, ledger_bytes: int) -> None:
    """Write `trials.parquet` and `epochs.parquet`, each at once or not at all.

    Args:
        ledger_bytes: size of the ledger that the tables were made from; once it has grown they are stale.
    """
    for name, table in zip(_TABLES, (trials, epochs), strict=True):
        arrow = pa.Table.from_pandas(table, preserve_index=False)
        mark = {b"dux.ledger_bytes": str(ledger_bytes).encode(), b"dux.layout": str(LAYOUT).encode()}
        arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), **mark})
        arrow = arrow.replace_schema_metadata({**arrow.schema.metadata, _CHECK: _checksum(arrow.schema)})
        with replacing(Path(run_dir) / name) as beside:
            pq.write_table(arrow, beside, write_page_checksum=True)


def write_tables(run_dir: str | Path) -> None:
    """Write both tables anew from the run's ledger. Raises `BadInput` as `load` does."""
    file = ledger_file(run_dir)
    # Taken before reading: should the ledger grow meanwhile, the tables count as stale.
    size = file.stat().st_size
    write(file.parent, *frames(events(file)), ledger_bytes=size)


_CHECK = b"dux.check"


def _checksum(schema: pa.Schema) -> bytes:
    """Of what a Parquet file says of itself; its pages have checksums of their own."""
    said = sorted((name, value) for name, value in (schema.metadata or {}).items() if name != _CHECK)
    return b"%08x" % zlib.crc32(repr((schema.names, [str(kind) for kind in schema.types], said)).encode())


def are_current(run: str | Path) -> bool:
    """Whether both tables of a run are there, whole, and made from all of its ledger."""
    file = ledger_file(run)
    stored = _stored(file.parent, file.stat().st_size)
    return stored is not None and all(_table(one) is not None for one in stored)


def _stored(run_dir: Path, ledger_bytes: int) -> list[pq.ParquetFile] | None:
    """The tables that were written from a ledger of this size, if both were; opened, their pages not yet read."""
    files = []
    for name in _TABLES:
        try:
            file = pq.ParquetFile(run_dir / name, page_checksum_verification=True)
            mark = file.schema_arrow.metadata or {}
        except (OSError, ValueError, pa.ArrowException):  # not there, cut off or damaged: the ledger has it all
            return None
        if mark.get(b"dux.ledger_bytes") != str(ledger_bytes).encode():
            return None
        if mark.get(b"dux.layout") != str(LAYOUT).encode():
            return None
        files.append(file)
    return files


def _table(file: pq.ParquetFile) -> pd.DataFrame | None:
    """What a Parquet file holds; nothing if it is damaged."""
    try:
        table = file.read()
    except (OSError, ValueError, pa.ArrowException):
        return None
    if (table.schema.metadata or {}).get(_CHECK) != _checksum(table.schema):
        return None
    # Column by column, each freed once it is copied: otherwise a large table is held twice.
    return table.to_pandas(split_blocks=True, self_destruct=True)


def _times(file: pq.ParquetFile) -> pd.Series | None:
    """When the reports of a Parquet file were made; nothing if they are damaged."""
    try:
        return file.read(["time"]).column("time").to_pandas()
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return None


def load(run: str | Path) -> Results:
    """The results of the run in this directory or object store (`s3://...`), finished or not; nothing is written.

    Raises:
        BadInput: not a run, a broken ledger, one of a newer dux, or a store that does not answer.
    """
    where = place(run)
    if isinstance(where, Address):
        with fetched(where) as folder:
            return _load(folder, where)
    return _load(where, where)


def _load(run: Path, origin: Path | Address) -> Results:
    """Of the run in this directory, which may be a copy, soon removed, of the origin."""
    file = ledger_file(run)
    stored = _stored(file.parent, file.stat().st_size)
    trials, reported = (_table(stored[0]), _times(stored[1])) if stored else (None, None)
    epochs: Any
    if stored is not None and trials is not None and reported is not None:
        ledger = Ledger.of(events(file, header_only=True))
        epochs = partial(_epochs, stored[1], origin)
    else:
        ledger = Ledger.of(events(file))
        trials, epochs = ledger.tables()
        reported = epochs["time"]
    if not ledger.run:
        raise broken(file, 1, "not the beginning of a run")
    sessions = _sessions(ledger, reported)
    return Results(
        paths=(origin if isinstance(origin, Address) else file.parent,),
        name=ledger.name,
        trials=trials,
        epochs=epochs,
        stages=ledger.stage_table(),
        teachers=tuple({**event, "run": ledger.name} for event in ledger.teachers.values()),
        seconds=_wall_seconds(ledger, sessions),
        finished=ledger.finished,
        version=str(ledger.run.get("dux", "")),
        recipe=str(ledger.run.get("recipe", "")),
        sessions={ledger.name: sessions},
        ledger=partial(_ledger, origin),  # type: ignore[arg-type]
        replayed=bool((ledger.run.get("resolved") or {}).get("replay")),
    )


def _epochs(file: pq.ParquetFile, origin: Path | Address) -> pd.DataFrame:
    """The table of reports, from its opened file; where that is damaged, from the ledger."""
    found = _table(file)
    return frames(events(origin))[1] if found is None else found


def _ledger(origin: Path | Address) -> pd.DataFrame:
    return event_table(events(origin))


def _sessions(ledger: Ledger, reported: pd.Series) -> tuple[tuple[float, float], ...]:
    """From the start, and from each resumption, to the last event before the next one."""
    times = np.sort(np.concatenate([ledger.times, reported.dropna()]))
    starts = np.array(ledger.sessions)
    if not len(starts):
        return ()
    # The last event before each start; after the last start, the last of all.
    ends = times[[*np.searchsorted(times, starts[1:]) - 1, len(times) - 1]]
    return tuple(zip(starts.tolist(), ends.tolist(), strict=True))


def _wall_seconds(ledger: Ledger, sessions: Sequence[tuple[float, float]]) -> float:
    """Of all sessions; of the last one as the run itself says, if it has ended."""
    spans = [end - start for start, end in sessions]
    if ledger.finished and ledger.seconds is not None and spans:
        spans[-1] = float(ledger.seconds)
    return sum(spans)


def load_many(runs: Iterable[str | Path]) -> Results:
    """Several runs as one: tables below each other, told apart by the column `run`.

    Runs of one name are given the names of their directories.

    Raises:
        BadInput: no run, or one that `load` refuses.
    """
    loaded = [load(run) for run in runs]
    if not loaded:
        raise BadInput("load_many takes at least one run")
    loaded = [renamed(part, name) for part, name in zip(loaded, distinct_names(loaded), strict=True)]
    return Results(
        paths=tuple(path for part in loaded for path in part.paths),
        name=", ".join(part.name for part in loaded),
        trials=_stacked([part.trials for part in loaded]),
        epochs=partial(_stacked_later, "epochs", loaded),  # type: ignore[arg-type]
        stages=_stacked([part.stages for part in loaded]),
        teachers=tuple(teacher for part in loaded for teacher in part.teachers),
        seconds=sum(part.seconds for part in loaded),
        finished=all(part.finished for part in loaded),
        version=", ".join(dict.fromkeys(part.version for part in loaded)),
        recipe=", ".join(dict.fromkeys(part.recipe for part in loaded)),
        sessions={name: spans for part in loaded for name, spans in part.sessions.items()},
        ledger=partial(_stacked_later, "ledger", loaded),  # type: ignore[arg-type]
        replayed=any(part.replayed for part in loaded),
    )


def distinct_names(loaded: Sequence[Results]) -> list[str]:
    """Names that tell runs apart: their own, or else those of their directories."""
    for names in ([part.name for part in loaded], [_folder_name(part.path) for part in loaded]):
        if len(set(names)) == len(names) and all(names):
            return names
    return [f"{_folder_name(part.path)} ({place})" for place, part in enumerate(loaded, 1)]


def _folder_name(run: Path | Address) -> str:
    return run.resolve().name if isinstance(run, Path) else run.name


def renamed(part: Results, name: str) -> Results:
    """The results of one run under another name."""
    now: dict[str, Any] = {table: _under(name, table, part) for table in ("trials", "stages")}
    later: dict[str, Any] = {table: partial(_under, name, table, part) for table in ("epochs", "ledger")}
    teachers = tuple({**one, "run": name} for one in part.teachers)
    return replace(part, name=name, teachers=teachers, sessions={name: part.sessions[part.name]}, **now, **later)


def _under(name: str, table: str, part: Results) -> pd.DataFrame:
    """A table of a run under another name."""
    frame: pd.DataFrame = getattr(part, table)
    return frame.assign(run=pd.Series([name] * len(frame), dtype="string"))


def _stacked_later(table: str, parts: Sequence[Results]) -> pd.DataFrame:
    return _stacked([getattr(part, table) for part in parts])


def _stacked(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Tables below each other. An empty one would turn the others' dtypes, so it only lends its columns."""
    filled = [table for table in tables if len(table)] or tables[:1]
    return pd.concat(filled, ignore_index=True)


__all__ = ["Results", "events", "frames", "load", "load_many", "write", "write_tables"]
