"""A table of recorded results: what each student would reach, epoch by epoch, and how long that takes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from spaces import BadInput, Space, unknown

ARCH = "arch."
COSTS = ("params", "flops", "bytes", "latency_ms")
KEYS = ("epoch", "epochs", "seed", "seconds")
SECONDS = 1.0  # of an epoch, where the table does not say

Step = tuple[int, dict[str, float], float]
"""The epoch of a report, its metrics, and the seconds since the report before."""


@dataclass
class Recorded:
    """What a table holds of one student."""

    arch: Mapping[str, Any]
    cost: Mapping[str, float]
    scores: list[Step] = field(default_factory=list)  # by seed
    curves: dict[int, list[list[Step]]] = field(default_factory=dict)  # by the epochs of the training, by seed


class Table:
    """Recorded results of students of one space. A row is a report of one student's training.

    Columns:
        arch.NAME: the student's value of each of the space's choices, as in dux's own tables.
        epoch: after which it was measured; 0 for what is known without training, such as scores.
        epochs: of the whole training that the row belongs to, whose learning rate was lowered over so many; without
            this column the student's last epoch. A stage reads the training of its own length, or else the beginning
            of the shortest longer one.
        seed: which of several trainings of the student (default 0). Equal networks written in different ways are one
            student, and each writing's trainings further ones of it.
        seconds: since the training's row before; by default 1 an epoch, and nothing at epoch 0.
        params, flops, bytes, latency_ms: what the student costs, by its first row; the first three are whole numbers.
            At least one of them.
        all other numbers: metrics (shares, such as valid_accuracy) or, at epoch 0, scores. NaN is missing.

    Raises:
        BadInput: a column is missing or holds what it cannot, or a row's student is none of the space.
    """

    def __init__(self, frame: pd.DataFrame, space: Space, name: str = "table") -> None:
        self.space, self.name = space, name
        names = [ARCH + choice for choice in space.param_space]
        if missing := [column for column in (*names, "epoch") if column not in frame]:
            raise BadInput(f"{name} has no column {missing[0]!r}; it has: {', '.join(map(str, frame.columns))}")
        self.costs = tuple(column for column in COSTS if column in frame)
        if not self.costs:
            raise BadInput(f"{name} has no column of costs; known: {', '.join(COSTS)}")
        numbers = frame.select_dtypes("number").columns
        self.metrics = tuple(str(c) for c in numbers if c not in (*names, *KEYS, *COSTS))
        self.students: dict[str, Recorded] = {}
        self._fill(frame, names)

    @classmethod
    def load(cls, path: Path, where: Mapping[str, Any], space: Space) -> "Table":
        """The rows of a Parquet file whose columns have the values of `where`."""
        try:
            frame = pq.read_table(path).to_pandas()
        except (OSError, ValueError) as error:
            raise BadInput(f"replay: {path} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
        for column, value in where.items():
            if column not in frame:
                raise unknown("column of replay.where", column, map(str, frame.columns))
            frame = frame[frame[column] == value]
            if frame.empty:
                raise BadInput(f"replay: no row of {path} has {column} {value!r}")
        return cls(frame, space, str(path))

    def __len__(self) -> int:
        """Different students."""
        return len(self.students)

    def curve(self, student: str, epochs: int, seed: int) -> list[Step]:
        """The reports of a student, by its hash, in a stage of so many epochs; none beyond what was recorded."""
        curves = self.students[student].curves
        lengths = [length for length in sorted(curves) if length >= epochs] or sorted(curves)[-1:]
        trainings = curves[lengths[0]] if lengths else [[]]
        return [step for step in trainings[seed % len(trainings)] if step[0] <= epochs]

    def scored(self, student: str, seed: int) -> Step:
        """What is known of a student without training; costs are scores, too."""
        recorded = self.students[student]
        scores = recorded.scores[seed % len(recorded.scores)] if recorded.scores else (0, {}, 0.0)
        return 0, {**{name: recorded.cost[name] for name in self.costs}, **scores[1]}, scores[2]

    def _fill(self, frame: pd.DataFrame, names: list[str]) -> None:
        plain = frame.reset_index(drop=True)
        plain["seed"] = plain.get("seed", 0)
        writing = plain.groupby([*names, "seed"], sort=False).ngroup()
        if "epochs" not in plain:
            plain["epochs"] = plain.groupby(writing)["epoch"].transform("max")
        plain["seconds"] = plain.get("seconds", math.nan)
        try:
            plain = plain.astype({"epoch": "int64", "epochs": "int64", "seconds": "float64"})
        except (TypeError, ValueError) as error:
            raise BadInput(f"{self.name}: epoch, epochs and seconds must be numbers in each row: {error}") from error
        if (plain["epoch"] < 0).any() or (plain["seconds"] < 0).any():
            raise BadInput(f"{self.name}: epochs and seconds must be at least 0 in each row")
        counted = plain[[name for name in self.costs if name != "latency_ms"]]
        if not (counted == counted.round()).all(axis=None):
            raise BadInput(f"{self.name}: {', '.join(counted.columns)} must be whole numbers in each row")
        # Each training's rows together and in order, the trainings as they are listed; what is scored comes before.
        plain = plain.assign(writing=writing, scored=plain["epoch"] > 0)
        plain = plain.sort_values(["writing", "scored", "epochs", "epoch"], kind="stable")
        columns = (plain[name].tolist() for name in ("writing", "epochs", "epoch", "seconds"))
        archs, costs, metrics = (plain[list(part)].to_dict("records") for part in (names, self.costs, self.metrics))
        known, training = -1, (-1, -1)
        steps: list[Step] = []
        for written, length, epoch, seconds, arch, cost, values in zip(*columns, archs, costs, metrics, strict=True):
            if written != known:
                known, student = written, self._student(arch, cost)
            found = {str(name): float(value) for name, value in values.items() if not math.isnan(value)}
            if epoch == 0:
                student.scores.append((0, found, 0.0 if math.isnan(seconds) else seconds))
                continue
            if (written, length) != training:
                training, steps = (written, length), []
                student.curves.setdefault(length, []).append(steps)
            usual = SECONDS * (epoch - (steps[-1][0] if steps else 0))
            steps.append((epoch, found, usual if math.isnan(seconds) else seconds))

    def _student(self, named: Mapping[Any, Any], cost: Mapping[Any, float]) -> Recorded:
        """The student of a row, which may be known in another writing."""
        arch = {str(name).removeprefix(ARCH): _plain(value) for name, value in named.items()}
        try:
            self.space.check(arch)
        except BadInput as error:
            raise BadInput(f"{self.name}: {error}") from error
        plain = {str(name): value if name == "latency_ms" else int(value) for name, value in cost.items()}
        return self.students.setdefault(self.space.hash(arch), Recorded(arch, plain))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
