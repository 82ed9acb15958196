"""Which students and trials a picture shows."""

import pandas as pd

from analysis.errors import BadInput, unknown
from analysis.naming import known_number
from analysis.ranking import FINISHED, rank
from analysis.results import Results
from analysis.target import ENOUGH

_OF_SEVERAL_SEEDS = 3


def distilled(results: Results, stage: str | None) -> dict[str, pd.DataFrame]:
    """The students of each stage of distillation, best first, by the stage's name in the order of the recipe.

    Raises:
        BadInput: an unknown stage, or none whose trials have finished with an accuracy.
    """
    check_stage(results, stage)
    trials = results.trials
    done = trials[trials["status"].isin(FINISHED) & ~trials["control"] & trials["valid_accuracy"].notna()]
    names = done.sort_values("stage_index")["stage"].drop_duplicates()
    wanted = [str(name) for name in names if stage in (None, name)]
    tables = {name: rank(results, stage=name) for name in wanted}
    tables = {name: table[table["valid_accuracy"].notna()] for name, table in tables.items()}
    if not tables:
        raise BadInput(f"{place(results, stage)} has no accuracy: no distillation has finished")
    return tables


def comparable(table: pd.DataFrame) -> pd.DataFrame:
    """The students that were not stopped early, where they are enough for an order of them; else all."""
    finished = table[table["status"] == "completed"]
    return finished if finished["hash"].nunique() >= ENOUGH else table


def enough(tables: dict[str, pd.DataFrame]) -> str:
    """The last stage with enough students for an order of them to say anything, or else the one with most."""
    fit = [name for name, table in tables.items() if table["hash"].nunique() >= _least(table)]
    return fit[-1] if fit else max(tables, key=lambda name: len(tables[name]))


def _least(table: pd.DataFrame) -> int:
    """Students that are enough: fewer where each is the mean of several seeds, such as finalists."""
    return _OF_SEVERAL_SEEDS if table["seeds"].min() > 1 else ENOUGH


def teacher_accuracy(results: Results, column: str = "valid_accuracy") -> float | None:
    """The teacher's, between 0 and 1; None where it is not known, or runs have several teachers."""
    known = {known_number((teacher.get("metrics") or {}).get(column)) for teacher in results.teachers}
    return known.pop() if len(known) == 1 else None


def check_stage(results: Results, stage: str | None) -> None:
    """Raises `BadInput` for a stage that the run does not have."""
    if stage is not None and stage not in set(results.stages["stage"]):
        raise unknown("stage", stage, dict.fromkeys(results.stages["stage"]))


def place(results: Results, stage: str | None) -> str:
    """A run, and a stage of it, in a message."""
    return f"run {results.name!r}" + (f", stage {stage!r}," if stage is not None else "")
