"""What Syne Tune's searches cost on the table of `search_efficiency.py`, counted in the same way.

    python -m venv /tmp/syne
    /tmp/syne/bin/pip install pandas pyarrow scikit-learn dill sortedcontainers statsmodels tqdm psutil
    /tmp/syne/bin/pip install --no-deps syne-tune
    /tmp/syne/bin/python benchmarks/rival_syne_tune.py [--data FOLDER] [--seeds 50]

By itself, in an environment of its own: nothing of dux is imported. NAS-Bench-201, CIFAR-10 and CIFAR-100: six edges of
five operations each. One worker asks Syne Tune's scheduler for a cell, tells it the validation accuracy after 12 epochs
of 200 and does what it says, then tells it the accuracy at the end. A search is over after 250 full trainings (REA,
random) or 1,000 begun ones (ASHA, BOHB). As in `search_efficiency.py`, a search that has not found a cell within the
tolerance is repeated with another seed: all epochs spent, over the number of searches that found one, with the
bootstrap's 95 % interval over seeds.

Last line: `epochs`, by table, method and tolerance; `seeds`; `syne_tune`, its version.
"""

import argparse
import json
import logging
import os
import warnings
from collections.abc import Callable
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import repeats
from syne_tune.backend.trial_status import Trial
from syne_tune.config_space import choice
from syne_tune.optimizer.baselines import ASHA, BOHB, REA, RandomSearch
from syne_tune.optimizer.scheduler import SchedulerDecision

FULL, SHORT = 200, 12
TOLERANCES = (0.005, 0.002, 0.001)
OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
SPACE = {f"edge{number}": choice(list(OPERATIONS)) for number in range(6)}
EARLY = {"time_attr": "epoch", "max_t": FULL, "grace_period": SHORT, "reduction_factor": 16}  # as dux's own

Accuracies = dict[tuple[str, ...], tuple[float, float]]  # after 12 epochs (validation) and after 200 (test), by cell
METHODS: dict[str, tuple[Callable[..., Any], int, dict[str, Any]]] = {
    "random": (RandomSearch, 250, {}),
    "ASHA": (ASHA, 1000, EARLY),
    "BOHB": (BOHB, 1000, EARLY),
    "regularised evolution": (REA, 250, {}),
    "regularised evolution, population 20": (REA, 250, {"population_size": 20, "sample_size": 5}),
}


def table_of(data: Path, dataset: str) -> Accuracies:
    """Every cell's accuracies."""
    rows = pd.read_parquet(data / "tables" / "nasbench201.parquet")
    rows = rows[rows["dataset"] == dataset]
    cells = [
        tuple(edge.split("~")[0] for edge in cell.replace("+", "").split("|") if edge.strip()) for cell in rows["arch"]
    ]
    assert {operation for cell in cells for operation in cell} == set(OPERATIONS)
    assert len(set(cells)) == len(OPERATIONS) ** len(SPACE)
    return dict(zip(cells, zip(rows["val_acc_12ep"] / 100, rows["test_acc_200ep"] / 100, strict=True), strict=True))


def spent(table: Accuracies, method: str, seed: int) -> tuple[int, dict[float, int]]:
    """Epochs of a whole search; and until a cell within each tolerance was trained, where one was."""
    make, trials, settings = METHODS[method]
    metric = {"metrics": ["accuracy"]} if make is RandomSearch else {"metric": "accuracy"}
    np.random.seed(seed)  # noqa: NPY002 (REA draws its first population from here)
    scheduler = make(SPACE, **metric, do_minimize=False, random_seed=seed, **settings)
    best = max(last for _, last in table.values())
    total, found = 0, dict[float, int]()
    for number in range(trials):
        suggestion = scheduler.suggest()
        if suggestion is None:  # all are known
            break
        trial = Trial(number, suggestion.config, datetime.now())
        early, last = table[tuple(suggestion.config[name] for name in SPACE)]
        scheduler.on_trial_add(trial)
        if settings is EARLY:
            decision = scheduler.on_trial_result(trial, {"epoch": SHORT, "accuracy": early})
            if decision == SchedulerDecision.STOP:
                total += SHORT
                scheduler.on_trial_remove(trial)
                continue
        total += FULL
        scheduler.on_trial_complete(trial, {"epoch": FULL, "accuracy": last})
        for tolerance in TOLERANCES:
            if best - last <= tolerance + 1e-9:
                found.setdefault(tolerance, total)
    return total, found


def expected(runs: list[tuple[int, dict[float, int]]], tolerance: float) -> tuple[float, float, float]:
    """Epochs until one is found, with their 95 % interval."""
    costs = np.array([found.get(tolerance, total) for total, found in runs])
    return repeats.expected(costs, np.array([tolerance in found for _, found in runs]))


def main() -> None:
    """Print a table for each data set, and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("DUX_TEST_DATA", beside)))
    parser.add_argument("--seeds", type=int, default=50)
    arguments = parser.parse_args()
    logging.getLogger("syne_tune").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # of statsmodels, by the thousand
    figures: dict[str, dict[str, list[float]]] = {}
    for dataset in ("cifar10", "cifar100"):
        table = table_of(arguments.data, dataset)
        print(f"\nnasbench201 {dataset}: {arguments.seeds} seeds, epochs")
        print("| method |" + "".join(f" within {tolerance:.1%} |" for tolerance in TOLERANCES))
        print(f"|{'---|' * (len(TOLERANCES) + 1)}")
        figures[dataset] = {}
        for method in METHODS:
            runs = [spent(table, method, seed) for seed in range(arguments.seeds)]
            found = [expected(runs, tolerance) for tolerance in TOLERANCES]
            figures[dataset][method] = [round(mean) for mean, _, _ in found if np.isfinite(mean)]
            print(f"| {method} |" + "".join(f" {mean:,.0f} ({low:,.0f} to {high:,.0f}) |" for mean, low, high in found))
    print(json.dumps({"epochs": figures, "seeds": arguments.seeds, "syne_tune": version("syne-tune")}))


if __name__ == "__main__":
    main()
