"""Which trial ran where and when: a row for each place of a worker."""

import re

import pandas as pd


def work(epochs: pd.DataFrame) -> pd.DataFrame:
    """A row a report with `start` and `end`, seconds since the first began, its `row` of the picture, `trial`,
    and `turn`, 0 and 1 by turns for the trials of a row."""
    known = epochs.dropna(subset=["worker", "seconds", "time"])
    known = known[known["seconds"] > 0]
    start = known["time"] - known["seconds"]
    trial = known["run"] + "/" + known["stage"] + "/" + known["number"].astype("string")
    steps = known[["run", "stage", "stage_index", "number", "worker"]].assign(
        start=start - start.min(), end=known["time"] - start.min(), trial=trial,
        machine=known["worker"].str.rsplit(":", n=1).str[0],
    )  # fmt: skip
    steps = steps.sort_values(["start", "end"], kind="stable")
    steps = steps.assign(row=steps["worker"].map(_rows(steps)).astype("int64"))
    trials = steps.drop_duplicates(["row", "trial"])[["row", "trial"]]
    return steps.merge(trials.assign(turn=trials.groupby("row").cumcount() % 2), on=["row", "trial"])


def _rows(steps: pd.DataFrame) -> dict[str, int]:
    """The row of each worker: the first of its machine's that is free as long as the worker lives."""
    lives = steps.groupby(["machine", "worker"], sort=False).agg(start=("start", "min"), end=("end", "max"))
    lives = lives.reset_index().sort_values(["start", "worker"], kind="stable")
    lives = lives.sort_values("machine", key=lambda names: names.map(_natural), kind="stable")
    rows: dict[str, int] = {}
    first = 0
    for _, part in lives.groupby("machine", sort=False):
        free: list[float] = []
        for worker, start, end in zip(part["worker"], part["start"], part["end"], strict=True):
            row = next((row for row, until in enumerate(free) if until <= start), len(free))
            free[row : row + 1] = [end]
            rows[worker] = first + row
        first += len(free)
    return rows


def _natural(name: str) -> str:
    """So that node2 comes before node10."""
    return re.sub(r"\d+", lambda digits: digits[0].zfill(20), name)


def row_names(steps: pd.DataFrame) -> list[str]:
    """The worker of each row; where there were several, the machine and a number."""
    first = steps.groupby("machine")["row"].min().to_dict()
    rows = steps.groupby("row").agg(machine=("machine", "first"), worker=("worker", "first"), n=("worker", "nunique"))
    return [
        str(worker) if n == 1 else f"{machine} ({row - first[machine] + 1})"
        for row, machine, worker, n in rows.reset_index().itertuples(index=False)
    ]
