"""How well each score without training foretells accuracy on NAS-Bench-201, and whether it is what others computed.

    python benchmarks/nasbench201_agreement.py [--quick] [--data FOLDER] [--cells 250] [--seeds 2] [--run FOLDER]

Cells drawn from the 725 for which a table of training-free scores is published are scored on CIFAR-10 images by
`orchestrator.score`, with the published ResNet-56 as teacher, and compared with the benchmark's test accuracy after 200
epochs of training without a teacher. Columns: Kendall's tau with its 95 % bootstrap interval over cells and its spread
over seeds, Spearman, the published Spearman over all 15,625 cells (Abdelfattah et al. 2021, arXiv:2101.08134; its
absolute value is what they give), and Spearman with the published scores of the same cells (NASLib's table, made with
batches of 32). `over size` is how far tau is above that of the better of `params` and `flops` on the same cells.

The folder holds `cifar10/{train,test}.parquet`, `teachers/resnet56-*.th` and `tables/nasbench201*.parquet`; default:
DUX_TEST_DATA, or `shared/data` beside the checkout. With `--run` the run stays there, and one that was interrupted goes
on. `--quick`: 24 cells, one seed, 4 channels and a cell a stage; its agreements are those of other networks.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before this folder, which has an analysis.py of its own

import pandas as pd

import analysis
import orchestrator
import spaces
from spaces.nasbench201 import from_string
from trainables.scores import SCORES

PUBLISHED = {"grad_norm": 0.594, "snip": 0.596, "grasp": 0.514, "fisher": 0.36, "synflow": 0.737, "jacob_cov": 0.731}
IN_TABLE = {"jacob_cov": "jacov"}  # names that differ
TARGET = "test_acc_200ep"


def cells_of(tables: Path, number: int) -> pd.DataFrame:
    """Different cells with accuracy and published scores: a random `number` of them, by arch string and hash."""
    scores = pd.read_parquet(tables / "nasbench201_zero_cost_725.parquet").rename(columns={"arch_str": "cell"})
    accuracy = pd.read_parquet(tables / "nasbench201.parquet").rename(columns={"arch": "cell"})
    accuracy = accuracy.loc[accuracy["dataset"] == "cifar10", ["cell", TARGET]]
    both = scores[scores["dataset"] == "cifar10"].merge(accuracy, on="cell")
    space = spaces.get("nasbench201")
    both["hash"] = [space.hash(from_string(cell)) for cell in both["cell"]]
    return both.drop_duplicates("hash").sample(min(number, both["hash"].nunique()), random_state=0)


def recipe(data: Path, cells: pd.DataFrame, quick: bool) -> orchestrator.Recipe:
    """The recipe that scores these cells with everything."""
    [weights] = data.glob("teachers/resnet56-*.th")
    teacher = {
        "space": "resnet",
        "arch": {"depth1": 9, "depth2": 9, "depth3": 9, "width": 16},
        "options": {"shortcut": "pad"},
        "weights": str(weights),
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    return orchestrator.Recipe.parse(
        {
            "name": "nasbench201-agreement",
            "task": {
                "dataset": "parquet",
                "path": str(data / "cifar10"),
                "subset": 2000,
                "valid": 100,
                "test_subset": 100,
            },
            "teacher": teacher,
            "space": {"name": "nasbench201", "options": {"channels": 4, "cells": 1} if quick else {}},
            "students": [from_string(cell) for cell in cells["cell"]],
            "stages": [{"name": "score", "trial": "score", "score_batch": 32, "scores": list(SCORES)}],
        }
    )


def compared(results: analysis.Results, cells: pd.DataFrame) -> pd.DataFrame:
    """A row per predictor: its agreement with accuracy, and with the published scores of the same cells."""
    named = {cell: from_string(cell) for cell in cells["cell"]}
    archs = pd.DataFrame([named[cell] for cell in cells["cell"]], index=cells.index).add_prefix("arch.")
    found = analysis.agreement_with(results, pd.concat([archs, cells[[TARGET]]], axis=1), TARGET)
    own = analysis.load_scores(results)
    keys = list(archs.columns)
    joined = own.merge(
        pd.concat([archs, cells.drop(columns=["hash", "params", "flops"])], axis=1), on=keys, suffixes=("", "_table")
    )
    with_table = {}
    for name in own.columns:
        other = IN_TABLE.get(name, f"{name}_table")
        if other in joined:
            with_table[name] = joined[name].corr(joined[other], method="spearman")
    return found.assign(with_table=found["predictor"].map(with_table), published=found["predictor"].map(PUBLISHED))


def line_of(row: Any) -> str:
    """A predictor's row of the Markdown table."""
    spread = f" ± {row.tau_std:.2f}" if pd.notna(row.tau_std) else ""
    over = (
        f"{row.over_size:+.2f} ({row.over_size_low:+.2f} to {row.over_size_high:+.2f})"
        if pd.notna(row.over_size)
        else ""
    )
    cells = [
        row.predictor,
        f"{row.tau:.2f} ({row.tau_low:.2f} to {row.tau_high:.2f}){spread}",
        over,
        f"{row.spearman:.2f}",
        *(f"{value:.2f}" if pd.notna(value) else "" for value in (row.published, row.with_table)),
        str(row.n),
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--cells", type=int, default=250)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--run", type=Path, help="folder of the run, kept")
    arguments = parser.parse_args()
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    data = (arguments.data or Path(os.environ.get("DUX_TEST_DATA", beside))).resolve()
    if not (data / "tables" / "nasbench201.parquet").is_file():
        raise SystemExit(f"{data} holds no tables/nasbench201.parquet; say where the data lies: --data FOLDER")
    number, seeds = (24, 1) if arguments.quick else (arguments.cells, arguments.seeds)
    cells = cells_of(data / "tables", number)
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = arguments.run or Path(temporary) / "run"
        if folder.exists():
            results = orchestrator.resume(folder)
        else:
            results = orchestrator.score(
                recipe(data, cells, arguments.quick), seeds=seeds, storage=folder.parent, name=folder.name
            )
        table = compared(results, cells)
        gaps = analysis.missing(results)
    print("| score | tau (95 %) ± seeds | over size | Spearman | published | with table | n |")
    print("|---|---|---|---|---|---|---|")
    for row in table.sort_values("tau", ascending=False).itertuples():
        print(line_of(row))
    for gap in gaps[gaps["missing"] > 0].itertuples():
        print(f"{gap.score}: {gap.missing} of {gap.candidates} cells have no value: {gap.reason}")
    figures = ("tau", "spearman", "with_table")
    rows = {
        r["predictor"]: {f: None if pd.isna(r[f]) else round(float(r[f]), 3) for f in figures}
        for r in table.to_dict("records")
    }
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
