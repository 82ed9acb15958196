"""What the driver spends on a trial, at 1,000 and at 10,000 of them on 1,000 simulated workers, and how much memory.

    python benchmarks/scale.py [--quick] [--trials 10000] [--workers 1000]

Students of a made-up table of results are searched by replay: proposals, the rungs of ASHA, the book and the ledger on
disk are those of any run; only the workers are simulated. Each search runs in a process of its own, small and large
ones in turn. Columns: seconds the search took, ms a trial, the process's memory at the end (the table of results
included, and by how much it has grown since that was read), and what `analysis.load` with
`rank`, the report, and a resumption of the run cut off at its middle take afterwards.

Last line: `per_trial_10000_over_1000`, the ratio of the driver's time a trial for the sampler of which it is largest
(`--quick`: of 2,000 over 500 trials), and `driver_mb`, the largest of these memories.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

HERE = Path(__file__).resolve().parent
# A script's own folder leads its path, and has an analysis.py of its own: the packages come first.
sys.path[:] = [str(HERE.parent), *[entry for entry in sys.path if Path(entry).resolve() != HERE]]

EPOCHS = 9
CHOICES = {"depth1": 10, "depth2": 10, "depth3": 10, "width": 20}
SAMPLERS = ("random", "evolution", "tpe")


def table(seed: int = 0) -> pd.DataFrame:
    """Curves of all 20,000 students: saturating, with noise, better for larger ones."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(1, count + 1) for count in CHOICES.values())), -1).reshape(-1, len(CHOICES))
    size = np.log(grid).sum(1)
    end = 0.5 + 0.4 * (size - size.min()) / np.ptp(size) + 0.03 * rng.normal(size=len(grid))
    epochs = np.tile(np.arange(1, EPOCHS + 1), len(grid))
    whole = np.repeat(end, EPOCHS) * (1 - 0.6**epochs) + 0.01 * rng.normal(size=len(epochs))
    archs = pd.DataFrame(np.repeat(grid, EPOCHS, axis=0), columns=[f"arch.{name}" for name in CHOICES])
    seconds = np.repeat(rng.uniform(5, 15, len(grid)), EPOCHS)
    return archs.assign(
        params=np.repeat(np.rint(1000 * np.exp(size)).astype(int), EPOCHS),
        epoch=epochs,
        seconds=seconds,
        valid_accuracy=whole,
    )


def recipe(trials: int, workers: int, sampler: str, file: Path) -> dict[str, Any]:
    """A search of these students by ASHA."""
    choices = {name: {"choice": list(range(1, count + 1))} for name, count in CHOICES.items()}
    return {
        "name": "scale",
        "task": {"dataset": "digits"},
        "space": {"name": "resnet", "choices": choices},
        "workers": workers,
        "replay": {"table": str(file)},
        "stages": [
            {
                "name": "search",
                "trial": "distill",
                "epochs": EPOCHS,
                "sampler": sampler,
                "trials": trials,
                "scheduler": {"name": "asha", "min_epochs": 1, "reduction_factor": 3},
            }
        ],
    }


def resident_mb() -> float:
    """Memory of this process now."""
    return psutil.Process().memory_info().rss / 2**20


def measure(work: dict[str, Any]) -> dict[str, float]:
    """Run one search in this process; its figures."""
    import analysis
    import orchestrator
    from analysis import report
    from orchestrator.recipe import Recipe
    from orchestrator.replay import Replay
    from orchestrator.replay.simulation import Clock
    from orchestrator.run_directory import Run

    figures: dict[str, float] = {}

    def timed(name: str, step: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        found = step()
        figures[name] = time.perf_counter() - begin
        return found

    made = Recipe.parse(work["recipe"])
    replay = Replay.prepare(made)  # reading the table is no part of a search's own cost
    before = resident_mb()
    with Run.create(made, Path(work["storage"]), "run") as run:
        clock = Clock(time.time())
        run.ledger.clock = clock
        timed("search", lambda: list(replay.stages(run.ledger, clock)))
    figures["mb"] = resident_mb()
    figures["grown_mb"] = figures["mb"] - before
    if work["after"]:
        path = Path(work["storage"]) / "run"
        results = timed("load and rank", lambda: analysis.rank(analysis.load(path)))
        assert len(results)
        timed("report", lambda: report.write(path))
        half = Path(work["storage"]) / "half"
        half.mkdir()
        (half / "recipe.yaml").write_text((path / "recipe.yaml").read_text())
        lines = (path / "ledger.jsonl").read_text().splitlines(keepends=True)
        (half / "ledger.jsonl").write_text("".join(lines[: len(lines) // 2]))
        timed("resume the half", lambda: orchestrator.resume(half, progress=False))
    return figures


def fresh(made: dict[str, Any], after: bool) -> dict[str, float]:
    """The figures of one search, in a process of its own."""
    with tempfile.TemporaryDirectory() as storage:
        work = json.dumps({"recipe": made, "storage": storage, "after": after})
        command = [sys.executable, __file__, "--measure", work]
        return json.loads(
            subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
        )


def main() -> None:
    """Print the table and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="500 and 2,000 trials, once")
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--samplers", nargs="+", default=SAMPLERS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(json.loads(arguments.measure))))
        return
    many, repeats = (2000, 1) if arguments.quick else (arguments.trials, arguments.repeats)
    few = many // 4 if arguments.quick else many // 10
    workers = min(arguments.workers, few)
    samplers = arguments.samplers[:1] if arguments.quick else arguments.samplers
    ratios, sizes = {}, []
    print(f"{'sampler':<10}{'trials':>8}{'search s':>10}{'ms a trial':>12}{'MB':>9}{'grown MB':>10}", end="")
    print(f"{'rank s':>8}{'report s':>10}{'resume half s':>15}")
    with tempfile.TemporaryDirectory() as folder:
        table().to_parquet(file := Path(folder) / "table.parquet")
        for sampler in samplers:
            each: dict[int, float] = {}
            found: dict[int, list[dict[str, float]]] = {few: [], many: []}
            for repeat in range(repeats):
                for trials in (few, many):
                    found[trials].append(fresh(recipe(trials, workers, sampler, file), after=repeat == 0))
            for trials, all_figures in found.items():
                seconds = statistics.median(one["search"] for one in all_figures)
                each[trials] = 1000 * seconds / trials
                one = all_figures[0]
                sizes.append(max(figures["mb"] for figures in all_figures))
                print(f"{sampler:<10}{trials:>8,}{seconds:>10.2f}{each[trials]:>12.2f}{sizes[-1]:>9.0f}", end="")
                print(f"{one['grown_mb']:>10.0f}{one['load and rank']:>8.2f}{one['report']:>10.2f}", end="")
                print(f"{one['resume the half']:>15.2f}", flush=True)
            ratios[sampler] = round(each[many] / each[few], 3)
    by_sampler = {f"{sampler}_over": ratio for sampler, ratio in ratios.items()}
    worst = {"per_trial_10000_over_1000": max(ratios.values()), "driver_mb": round(max(sizes))}
    print(json.dumps({**worst, **by_sampler, "trials": many, "workers": workers}))


if __name__ == "__main__":
    main()
