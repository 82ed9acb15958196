"""The curves of trials on test images, as data for plots."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.errors import BadInput, unknown
from analysis.ranking import FINISHED
from analysis.remote import Address, local, names
from analysis.results import Results, load

Name = Literal["roc", "pr", "reliability", "confusion"]
CURVES: dict[Name, str] = {
    "roc": "share found of a class (y) over share of the others that is (x)",
    "pr": "precision (y) over recall (x) of a class",
    "reliability": "accuracy (y) over confidence (x) of all classes together",
    "confusion": "share of a class (y) that is taken for another (x)",
}
_TRIAL = ["run", "stage", "number", "hash", "arch", "seed", "control"]


def curves(results: Results | str | Path, curve: Name | None = None, stage: str | None = None) -> pd.DataFrame:
    """A row per point: the trial (`run`, `stage`, `number`, `hash` and `arch` of the student, `seed`, `control`),
    `curve`, `class` (its place, missing where all are meant), its `label`, and `x`, `y`, `n`.

    Distillation trials write them after the last epoch of a run's last stage, on the test images; a class that has no
    images, or all of them, has neither `roc` nor `pr`.

    - `roc`: x is the share of the other classes' images that is found, y that of the class's; n images at or above
      the threshold. From (0, 0) to (1, 1); its area (trapezoids) is the class's ROC AUC, within 0.001.
    - `pr`: x is the recall, y the precision between the last x (at first 0) and this one; n as above. The sum of the
      steps' areas is the class's average precision.
    - `reliability`: x is a bin's mean confidence, y its accuracy, n its images. Bins without images are left out.
    - `confusion`: x is the place of the predicted class, y its share of the class's images, n their number. What did
      not occur is left out, but for a class's right predictions.

    Args:
        results: of one or several runs, or a run's directory.
        curve: only this one.
        stage: only this one.

    Raises:
        BadInput: an unknown curve or stage, a file that cannot be read, or no curves.
    """
    if curve is not None and curve not in CURVES:
        raise unknown("curve", curve, CURVES)
    results = results if isinstance(results, Results) else load(results)
    if stage is not None and stage not in set(results.stages["stage"]):
        raise unknown("stage", stage, dict.fromkeys(results.stages["stage"]))
    tables = [_read(file, trial, curve) for trial, file in _files(results) if stage in (None, trial["stage"])]
    if not tables:
        where = f"run {results.name!r}" + (f", stage {stage!r}," if stage is not None else "")
        raise BadInput(f"{where} has no curves: they are written when a distillation of the last stage has finished")
    return pd.concat(tables, ignore_index=True)


def _files(results: Results) -> Iterator[tuple[pd.Series, Path | Address]]:
    """The finished trials that have a file of curves, with it, in the order of the table."""
    finished = results.trials[results.trials["status"].isin(FINISHED)]
    runs = _folders(results)
    known: dict[tuple[str, str], set[str]] = {}
    for _, trial in finished.iterrows():
        stage, name = f"{trial['stage_index']:02d}-{trial['stage']}", f"{trial['number']:05d}.parquet"
        folder = runs[trial["run"]] / "stages" / stage / "curves"
        if (place := (trial["run"], stage)) not in known:
            known[place] = _names(folder)
        if name in known[place]:
            yield trial, folder / name


def _names(folder: Path | Address) -> set[str]:
    if isinstance(folder, Address):
        return set(names(folder))
    return {file.name for file in folder.iterdir() if file.is_file()} if folder.is_dir() else set()


def _folders(results: Results) -> dict[str, Path | Address]:
    """Each run's directory or address by its name."""
    paths = results.paths
    if len(paths) > 1:  # their order is the tables', where a run without stages has no row
        paths = tuple(path for path in paths if len(load(path).stages))
    return dict(zip(dict.fromkeys(results.stages["run"]), paths, strict=True))


def _read(file: Path | Address, trial: pd.Series, curve: Name | None) -> pd.DataFrame:
    try:
        with local(file) as here:
            table = pq.ParquetFile(here).read()
    except (pa.ArrowInvalid, OSError):
        raise BadInput(f"{file} is no Parquet file; without it, trial {trial['number']} has no curves") from None
    frame = table.to_pandas().astype({"curve": "string", "class": "Int64", "label": "string"})
    frame = frame if curve is None else frame[frame["curve"] == curve].reset_index(drop=True)
    identity = pd.DataFrame([trial[_TRIAL]] * len(frame), columns=_TRIAL).reset_index(drop=True)
    return pd.concat([identity, frame], axis=1)
