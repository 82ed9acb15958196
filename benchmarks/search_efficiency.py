"""What each way to search costs until it has found one of the best students, on tables of recorded trainings.

    python benchmarks/search_efficiency.py [--quick] [--data FOLDER] [--zen FILE] [--seeds 50] [--methods asha ...]

Tables: NAS-Bench-201 (NATS-Bench's results of 12 and of 200 epochs, CIFAR-10 and CIFAR-100) and NAS-Bench-Macro
(CIFAR-10, one training each). The folder holds `tables/nasbench201.parquet` and `tables/nasbench_macro.parquet`;
default: DUX_TEST_DATA, or `shared/data` beside the checkout.

Each method is a recipe that `orchestrator.replay` runs in virtual time. A run ends with its budget; it has found a
student once one that was trained to the end is within the tolerance of the best in the table, and has cost the epochs
of all its students until then. Runs are repeated with other seeds until one has found it, so what is expected is all
epochs spent, over the number of runs that found one; the interval is the bootstrap's over seeds (95 %). One full
training is 200 epochs, and nothing can cost less. Scores are columns that need no training: `params` is counted, and
costs nothing beside an epoch. Of NAS-Bench-201 the same is told in hours of the GPU that trained its cells: 1,000 cells
have their seconds, from which those of the others follow by a linear fit on what stands on each edge (R2 .995 on cells
left out). Where scores choose large cells, an hour holds fewer epochs.

NAS-Bench-201's 12 epochs are a training of their own, with a learning rate that was lowered over 12 epochs. Stages of
12 epochs use them as such. Methods that stop early use them as the first 12 of 200, which flatters these methods.

Validation accuracy is used to choose wherever the table has it (after 12 epochs); the last epoch has test accuracy
alone, and is only used to say whether the student was found.

Last line: `random_asha_over_dux`, the epochs of ASHA on random students over those of dux's default, by table and
tolerance; `dux` and `dux_hours`, what the default takes.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ray import tune

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before this folder, which has an analysis.py of its own

import repeats

import orchestrator
import spaces
from orchestrator.recipe import Recipe
from orchestrator.replay import Table, simulate
from spaces.nasbench201 import from_string
from spaces.space import Space

FULL, SHORT = 200, 12
SCORING = 2 * 32 / (3 * 50_000)  # epochs that a Zen score takes
TOLERANCES = (0.005, 0.002, 0.001)
UNITS = ("epochs", "hours")
TRIALS = {None: 250, "asha": 1000, "hyperband": 1000}  # of a run, by who stops early


@dataclass(frozen=True)
class Bench:
    """A table, as stages of 12 epochs and as one training that is stopped early read it."""

    name: str
    staged: Table
    curves: Table
    space: dict[str, Any]
    short: bool  # whether it records a short training, and seconds

    @cached_property
    def best(self) -> float:
        """The highest test accuracy after a full training."""
        students = self.staged.students.values()
        return max(curve[-1][1]["test_accuracy"] for student in students for curve in student.curves[FULL])


def zen_of(cells: pd.DataFrame, data: Path, file: Path) -> pd.DataFrame:
    """The Zen score of the different cells with the most parameters, a tenth of all: by `arch.NAME`, from the file."""
    if not file.exists():
        largest = cells.sort_values("params", ascending=False, kind="stable").drop_duplicates("hash")
        archs = [from_string(cell) for cell in largest["arch"][: len(largest) // 10]]
        task = {"dataset": "parquet", "path": str(data / "cifar10"), "subset": 200, "valid": 20, "test_subset": 20}
        stage = {"name": "score", "trial": "score", "scores": ["zen"], "score_batch": 32}
        raw = {"name": "zen", "task": task, "space": {"name": "nasbench201"}, "students": archs, "stages": [stage]}
        with tempfile.TemporaryDirectory() as folder:
            orchestrator.score(Recipe.parse(raw), output=file, storage=folder)
    scores = pd.read_parquet(file)
    return scores[[name for name in scores if name.startswith("arch.") or name == "zen"]]


def seconds_of(cells: pd.DataFrame, data: Path) -> pd.Series:
    """Seconds of an epoch of each cell (`arch.NAME` its edges), fitted to those of the cells that have them."""
    times = pd.read_parquet(data / "tables" / "nasbench201_times_1000.parquet")
    times = times[(times["dataset"] == "cifar10") & (times["epochs"] == FULL)]
    edges = pd.concat([pd.DataFrame(list(map(from_string, times["arch"]))).add_prefix("arch."), cells])
    which = pd.get_dummies(edges).to_numpy(float)  # the last value of each edge follows from the others: least norm
    known, *_ = np.linalg.lstsq(which[: len(times)], times["train_time"].to_numpy() / FULL, rcond=None)
    return pd.Series(which[len(times) :] @ known, cells.index)


def nasbench201(data: Path, dataset: str, zen: Path) -> Bench:
    """NAS-Bench-201, 15,625 cells of which 6,466 differ."""
    tables = data / "tables"
    rows = pd.read_parquet(tables / "nasbench201.parquet")
    rows = rows[rows["dataset"] == dataset].sort_values("arch_index")
    archs = pd.DataFrame([from_string(cell) for cell in rows["arch"]], index=rows.index).add_prefix("arch.")
    seconds = seconds_of(archs, data)
    known = archs.assign(params=rows["params"], flops=rows["macs"])
    short = known.assign(epoch=SHORT, valid_accuracy=rows["val_acc_12ep"] / 100, seconds=SHORT * seconds)
    last = rows["test_acc_200ep"] / 100
    full = known.assign(epoch=FULL, valid_accuracy=last, test_accuracy=last, seconds=FULL * seconds)
    later = full.assign(seconds=(FULL - SHORT) * seconds)  # since the report after 12
    space = spaces.get("nasbench201")
    hashes = [space.hash(arch) for arch in archs.rename(columns=lambda name: name[5:]).to_dict("records")]
    scores = zen_of(rows.assign(hash=hashes), data, zen)
    scored = known.assign(seconds=SCORING * seconds).merge(scores, on=list(archs)).assign(epoch=0, epochs=0)
    staged = pd.concat([scored, short.assign(epochs=SHORT), full.assign(epochs=FULL)])
    return Bench(
        f"nasbench201 {dataset}",
        Table(staged, space, dataset),
        Table(pd.concat([short, later]), space, dataset),
        {"name": "nasbench201"},
        True,
    )


def macro(data: Path) -> Bench:
    """NAS-Bench-Macro: eight layers of three kinds each; one full training counts as 200 epochs here, too."""
    rows = pd.read_parquet(data / "tables" / "nasbench_macro.parquet", dtype_backend="numpy_nullable")
    layers = pd.DataFrame([list(map(int, arch)) for arch in rows["arch"]], index=rows.index)
    layers.columns = [f"arch.layer{number}" for number in range(layers.shape[1])]
    accuracy = rows["mean_acc"].astype(float) / 100
    frame = layers.assign(params=rows["params"].astype(int), flops=rows["flops"].astype(int), epoch=FULL)
    frame = frame.assign(valid_accuracy=accuracy, test_accuracy=accuracy)
    domains = {name.removeprefix("arch."): tune.choice([0, 1, 2]) for name in layers.columns}
    table = Table(frame, Space("nasbench_macro", domains, _no_network), "nasbench_macro")
    return Bench("nasbench-macro cifar10", table, table, {"name": "nasbench201"}, False)  # the table's space counts


def _no_network(*arguments: Any) -> Any:
    raise NotImplementedError("a replayed student is never built")


# Ways to search

Stages = list[dict[str, Any]]


def largest_tenth(bench: Bench) -> dict[str, Any]:
    """A scores stage: of all students, the tenth with the most parameters goes on."""
    stage = {"name": "score", "trial": "score", "scores": ["params"], "sampler": "grid"}
    return {**stage, "trials": len(bench.staged), "keep": len(bench.staged) // 10}


def trained(sampler: str, scheduler: str | None = None, candidates: bool = False) -> dict[str, Any]:
    """The one training stage of a method; of given candidates, or of what the sampler proposes."""
    stage: dict[str, Any] = {"name": "train", "trial": "distill", "epochs": FULL, "sampler": sampler}
    if scheduler:
        # One rung alone has a result before the end; it lets through one in 16, which costs as much as it saves.
        stage["scheduler"] = {"name": scheduler, "min_epochs": SHORT, "reduction_factor": 16}
    return stage if candidates else {**stage, "trials": TRIALS[scheduler]}


def default(bench: Bench) -> Stages:
    """dux's default recipe; of a table without early epochs and scores, what is left of it."""
    stages: Stages = []
    for stage in Recipe.load("default").stages:
        made: dict[str, Any] = {"name": stage.name, "trial": stage.trial, "keep": stage.keep}
        if stage.trial == "score":
            made |= {"scores": stage.scores, "sampler": stage.sampler.name, "trials": stage.trials}
        else:
            made["epochs"] = FULL if stage.keep is None else SHORT
        if bench.short or stage.keep is None or "params" in (stage.scores or {}):
            stages.append(made)
    return stages


def methods(bench: Bench) -> dict[str, Stages]:
    """Recipes' stages by the name of the method; of a table without early epochs those that stop nobody."""
    first = largest_tenth(bench)
    found: dict[str, Stages] = {"random": [trained("random")], "scores, random": [first, trained("random", None, True)]}
    if bench.short:
        found["asha"] = [trained("random", "asha")]
        found["hyperband"] = [trained("random", "hyperband")]
    for sampler in ("tpe", "nsga2", "evolution"):
        found[sampler] = [trained(sampler)]
        if bench.short:
            found[f"{sampler}, asha"] = [trained(sampler, "asha")]
    if bench.short:
        found["scores, asha"] = [first, trained("random", "asha", True)]
        found["scores, hyperband"] = [first, trained("random", "hyperband", True)]
        found["64 short, best full"] = [
            {"name": "short", "trial": "distill", "epochs": SHORT, "trials": 64, "keep": 1},
            {"name": "final", "trial": "distill", "epochs": FULL},
        ]
    return {**found, "default": default(bench)}


# What they cost


Cost = np.ndarray  # epochs and hours
Run = tuple[Cost, dict[float, Cost]]


def spent(bench: Bench, stages: Stages, seed: int) -> Run:
    """What a whole run costs; and until a student within each tolerance was trained, where one was."""
    table = bench.staged if len([s for s in stages if s["trial"] == "distill"]) > 1 else bench.curves
    raw = {"name": "efficiency", "task": {"dataset": "cifar10"}, "space": bench.space, "seed": seed, "stages": stages}
    total, found = np.zeros(2), dict[float, Cost]()
    at: dict[tuple[str, int], int] = {}
    for event in simulate(Recipe.parse(raw), table):
        if event["event"] != "report":
            continue
        trial = (event["stage"], event["number"])
        epochs = event["epoch"] - at.get(trial, 0) or SCORING * ("zen" in event["metrics"])
        total = total + np.array([epochs, event["seconds"] / 3600])
        at[trial] = event["epoch"]
        if event["epoch"] == FULL:
            short_of = bench.best - event["metrics"]["valid_accuracy"]
            for tolerance in TOLERANCES:
                if short_of <= tolerance + 1e-9:
                    found.setdefault(tolerance, total)
    return total, found


def expected(runs: list[Run], tolerance: float, unit: int) -> tuple[float, float, float]:
    """Cost until one is found, where runs are repeated with other seeds until then; with its 95 % interval."""
    costs = np.array([found.get(tolerance, total)[unit] for total, found in runs])
    return repeats.expected(costs, np.array([tolerance in found for _, found in runs]))


def main() -> None:
    """Print a table for each benchmark, and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the default and ASHA, one table, 10 seeds")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--zen", type=Path, default=Path("nasbench201-zen.parquet"), help="file of Zen scores")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--methods", nargs="+")
    arguments = parser.parse_args()
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    data = (arguments.data or Path(os.environ.get("DUX_TEST_DATA", beside))).resolve()
    if not (data / "tables" / "nasbench201.parquet").is_file():
        raise SystemExit(f"{data} holds no tables/nasbench201.parquet; say where the data lies: --data FOLDER")
    seeds = 10 if arguments.quick else arguments.seeds
    wanted = ["default", "asha"] if arguments.quick else arguments.methods
    ratios: dict[str, dict[str, float]] = {}
    own: dict[str, dict[str, float]] = {}
    hours: dict[str, dict[str, float]] = {}
    for bench in benches(data, arguments.zen, arguments.quick):
        units = UNITS if bench.short else UNITS[:1]
        print(f"\n{bench.name}: {len(bench.staged):,} students, the best {bench.best:.2%}; {seeds} seeds")
        columns = [f" within {tolerance:.1%}, {unit} |" for unit in units for tolerance in TOLERANCES]
        print(f"| method |{''.join(columns)} computing |\n|{'---|' * (len(columns) + 2)}")
        means: dict[str, list[float]] = {}
        for name, stages in methods(bench).items():
            if wanted is not None and name not in wanted:
                continue
            began = time.perf_counter()
            runs = [spent(bench, stages, seed) for seed in range(seeds)]
            took = time.perf_counter() - began
            found = [expected(runs, tolerance, unit) for unit in range(len(units)) for tolerance in TOLERANCES]
            means[name] = [mean for mean, _, _ in found]
            cells = "".join(f" {_told(mean)} ({_told(low)} to {_told(high)}) |" for mean, low, high in found)
            print(f"| {name} |{cells} {1000 * took / seeds:,.0f} ms a run |", flush=True)
        if "default" in means:
            for first, figures in zip(range(0, len(columns), len(TOLERANCES)), (own, hours), strict=False):
                figures[bench.name] = _by_tolerance(means["default"][first:])
        if {"default", "asha"} <= set(means):
            ratios[bench.name] = _by_tolerance([a / b for a, b in zip(means["asha"], means["default"], strict=True)])
    print(json.dumps({"random_asha_over_dux": ratios, "dux": own, "dux_hours": hours, "seeds": seeds}))


def _told(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:,.2f}"


def _by_tolerance(numbers: list[float]) -> dict[str, float]:
    pairs = zip(TOLERANCES, numbers, strict=False)
    return {f"{tolerance:.1%}": round(number, 2) for tolerance, number in pairs if np.isfinite(number)}


def benches(data: Path, zen: Path, quick: bool) -> Iterator[Bench]:
    """The tables, each read when its turn comes."""
    yield nasbench201(data, "cifar10", zen)
    if not quick:
        yield nasbench201(data, "cifar100", zen)
        yield macro(data)


if __name__ == "__main__":
    main()
