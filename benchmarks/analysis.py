"""How long analysis takes on a large run, and how much memory.

A run of 10,000 trials is written as a search writes it: scores of 9,000 students, and 1,000 students distilled for ten
epochs with ASHA's rungs. Fresh processes then load it from its ledger and from its tables, rank it, and compute front
and agreement. Last line: seconds (median of all steps together), peak_mb of such a process, trials.

With `--epochs E` every trial is a student distilled for E epochs (`--trials 100000 --epochs 10`: a million reports).
A fresh process then imports, loads and ranks from the tables, another from the ledger. Last line: seconds of the first
(median); epochs_seconds, what reading all epochs takes there besides, once somebody asks for them; peak_mb, epochs read
as well; ledger_seconds and ledger_peak_mb of the second; trials, epochs.

With `--report` (5,000 trials of 10 epochs, unless said otherwise) a fresh process writes the run's report from its
tables, and Chromium, where it and Playwright are present, opens it. Last line: write_seconds (median), mb of the file,
answer_seconds until the answer and the table of trials stand, drawn_seconds until the first picture is drawn (medians,
each time in a fresh browser), trials, epochs.
"""

import argparse
import importlib
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
# A script's own folder leads its path, and there this file has the name of the package: leave the folder out.
sys.path[:] = [str(HERE.parent), *[entry for entry in sys.path if Path(entry).resolve() != HERE]]
if __name__ == "analysis":  # a script beside this one asked for the package
    del sys.modules["analysis"]
    importlib.import_module("analysis")


def ledger(trials: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """The events of a run in which a student's size, and its score, say something of its accuracy."""
    rng = np.random.default_rng(seed)
    scored, distilled = trials - trials // 10, trials // 10
    yield {"event": "run", "schema": 1, "name": "large", "recipe": "large", "dux": "0"}
    yield _stage("score", 1, "score", {"snip": 1.0, "diswot": 1.0}, "rank")
    for number in range(scored):
        yield _trial("score", number)
        metrics = {name: rng.normal() + number / scored for name in ("snip", "diswot.semantic", "diswot.relation")}
        yield {"event": "report", "stage": "score", "number": number, "epoch": 0, "seconds": 0.1, "metrics": metrics}
        yield {"event": "end", "stage": "score", "number": number, "status": "completed"}
    yield _stage("short", 2, "distill", {"valid_accuracy": 1.0}, "sum")
    for number in range(distilled):
        yield _trial("short", number)
        last = int(rng.choice([1, 3, 10], p=[0.6, 0.2, 0.2]))
        names = ("objective", "valid_accuracy", "teacher_similarity", "agreement", "kl", "cka", "rdm", "train_loss")
        for epoch in range(1, last + 1):
            value = (number / distilled + 0.1 * rng.normal()) * (1 - 0.5**epoch)
            yield {"event": "report", "stage": "short", "number": number, "epoch": epoch, "time": float(number),
                   "seconds": 1.0, "worker": "w0", "metrics": dict.fromkeys(names, value)}  # fmt: skip
        status = "completed" if last == 10 else "stopped"
        yield {"event": "end", "stage": "short", "number": number, "status": status}
    yield {"event": "run_end", "seconds": 1000.0}


def distilled(trials: int, epochs: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """The events of a run of one stage in which every student was distilled for so many epochs, two seeds each."""
    rng = np.random.default_rng(seed)
    names = ("objective", "valid_accuracy", "teacher_similarity", "agreement", "kl", "cka", "rdm", "train_loss")
    yield {"event": "run", "schema": 1, "name": "large", "recipe": "large", "dux": "0", "time": 0.0}
    yield _stage("short", 1, "distill", {"valid_accuracy": 1.0}, "sum")
    for number in range(trials):
        yield {**_trial("short", number), **_trial("short", number // 2), "number": number, "seed": number % 2}
        for epoch in range(1, epochs + 1):
            values = (number / trials + 0.1 * rng.normal(size=len(names))) * (1 - 0.5**epoch)
            yield {"event": "report", "stage": "short", "number": number, "epoch": epoch, "time": float(number),
                   "seconds": 1.0, "worker": f"w{number % 8}",
                   "metrics": dict(zip(names, values.tolist(), strict=True))}  # fmt: skip
        yield {"event": "end", "stage": "short", "number": number, "status": "completed", "time": float(number)}
    yield {"event": "run_end", "seconds": 1000.0, "time": float(trials)}


def _stage(name: str, index: int, trial: str, objective: dict[str, float], combine: str) -> dict[str, Any]:
    return {"event": "stage", "stage": name, "index": index, "trial": trial, "objective": objective, "combine": combine}


def _trial(stage: str, number: int) -> dict[str, Any]:
    arch = {"depth": number % 7, "width": 1 + number // 7, "kernel": 3}
    cost = {"params": 1000 + number, "flops": 50_000 + 7 * number, "bytes": 4000 + 4 * number}
    return {"event": "trial", "stage": stage, "number": number, "proposal": number, "seed": 0, "control": False,
            "arch": arch, "hash": f"{number:016x}", "params": {"lr": 0.1}, "cost": cost}  # fmt: skip


class Clock:
    """Seconds of each step, in this process."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, step: Callable[[], Any]) -> Any:
        """Do it, and note what it took."""
        begin = time.perf_counter()
        result = step()
        self.seconds[name] = time.perf_counter() - begin
        return result

    def figures(self) -> dict[str, float]:
        """The seconds, and `peak_mb` of this process."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {**self.seconds, "peak_mb": peak / (2**20 if sys.platform == "darwin" else 2**10)}


def measure(path: Path) -> dict[str, float]:
    """Seconds of each step, in this process, and `peak_mb`."""
    timed = Clock()
    dux = timed("import", lambda: importlib.import_module("analysis"))
    timed("load from the ledger", lambda: dux.load(path))
    timed("write the tables", lambda: dux.write_tables(path))
    results = timed("load from the tables", lambda: dux.load(path))
    ranked = timed("rank", lambda: dux.rank(results, where="params < 100000"))
    timed("rank the scores", lambda: dux.rank_scores(results))
    timed("front", lambda: dux.pareto(ranked, ["valid_accuracy", "params"]))
    timed("agreement", lambda: dux.agreement(results))
    return timed.figures()


def load_and_rank(path: Path) -> dict[str, float]:
    """Seconds of loading, ranking and then reading the epochs, in this process, and `peak_mb` of all."""
    timed = Clock()
    dux = timed("import", lambda: importlib.import_module("analysis"))
    results = timed("load", lambda: dux.load(path))
    timed("rank", lambda: dux.rank(results))
    timed("epochs", lambda: results.epochs)
    return timed.figures()


def write_tables(path: Path) -> dict[str, float]:
    """Seconds of writing a run's tables, in this process, and `peak_mb`."""
    timed = Clock()
    dux = timed("import", lambda: importlib.import_module("analysis"))
    timed("write", lambda: dux.write_tables(path))
    return timed.figures()


def write_report(path: Path) -> dict[str, float]:
    """Seconds of writing a run's report, in this process, its size in MB, and `peak_mb`."""
    timed = Clock()
    report = timed("import", lambda: importlib.import_module("analysis.report"))
    file = timed("write", lambda: report.write(path))
    return {**timed.figures(), "mb": file.stat().st_size / 2**20}


WORK = {"all": measure, "load": load_and_rank, "write": write_tables, "report": write_report}


def fresh(work: str, path: Path | str) -> dict[str, float]:
    """The figures of one of `WORK`, measured in a process of its own."""
    command = [sys.executable, __file__, "--work", work, "--measure", str(path)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def write_ledger(path: Path, events: Iterator[dict[str, Any]]) -> None:
    """A run's directory with these events."""
    path.mkdir(exist_ok=True)
    with (path / "ledger.jsonl").open("w") as lines:
        lines.writelines(json.dumps(event) + "\n" for event in events)


def of_many_epochs(trials: int, epochs: int, repeats: int) -> None:
    """Print what loading and ranking takes from the tables (median) and from the ledger (once)."""
    with tempfile.TemporaryDirectory() as folder:
        write_ledger(Path(folder), distilled(trials, epochs))
        from_ledger = fresh("load", folder)
        fresh("write", folder)
        found = [fresh("load", folder) for _ in range(repeats)]
    medians = {name: statistics.median(one[name] for one in found) for name in found[0]}
    print(f"{'':<12}{'tables':>10}{'ledger':>10}")
    for name in medians:
        print(f"{name:<12}{medians[name]:10.2f}{from_ledger[name]:10.2f}{'' if name == 'peak_mb' else ' s'}")
    total = statistics.median(_seconds(one) - one["epochs"] for one in found)
    figures = {"seconds": total, "epochs_seconds": medians["epochs"], "peak_mb": medians["peak_mb"],
               "ledger_seconds": _seconds(from_ledger), "ledger_peak_mb": from_ledger["peak_mb"]}  # fmt: skip
    print(json.dumps({**{k: round(v, 2) for k, v in figures.items()}, "trials": trials, "epochs": epochs}))


def of_report(trials: int, epochs: int, repeats: int) -> None:
    """Print what writing and opening the report takes (medians)."""
    with tempfile.TemporaryDirectory() as folder:
        write_ledger(Path(folder), distilled(trials, epochs))
        fresh("write", folder)
        found = [fresh("report", folder) for _ in range(repeats)]
        opened = [_opened(Path(folder) / "report.html") for _ in range(repeats)]
    figures = {"write_seconds": statistics.median(one["import"] + one["write"] for one in found), "mb": found[0]["mb"]}
    for name in opened[0]:
        figures[name] = statistics.median(one[name] for one in opened)
    for name, value in figures.items():
        print(f"{name:<16}{value:10.2f}")
    print(json.dumps({**{k: round(v, 2) for k, v in figures.items()}, "trials": trials, "epochs": epochs}))


def _opened(file: Path) -> dict[str, float]:
    """Seconds until a page stands, and until its first picture is drawn; nothing without a browser."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        browser = None
    if browser is None:
        print("neither Chromium nor Playwright: the report is not opened")
        return {}
    with sync_playwright() as playing:
        window = playing.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = window.new_page()
        begin = time.perf_counter()
        page.goto(file.resolve().as_uri())
        page.locator("#trials tbody tr").first.wait_for()
        stands = time.perf_counter() - begin
        page.locator("#charts figure").first.scroll_into_view_if_needed()  # pictures are drawn as they come into view
        page.locator("#charts .main-svg").first.wait_for(state="attached")
        drawn = time.perf_counter() - begin
        window.close()
    return {"answer_seconds": stands, "drawn_seconds": drawn}


def _seconds(figures: dict[str, float]) -> float:
    return sum(value for name, value in figures.items() if name != "peak_mb")


def main() -> None:
    """Print the table and the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one repetition instead of five")
    parser.add_argument("--report", action="store_true", help="write the report of a large run, and open it")
    parser.add_argument("--trials", type=int, help="default: 10,000; with --report 5,000")
    parser.add_argument("--epochs", type=int, help="every trial a student distilled for so many epochs")
    parser.add_argument("--work", choices=WORK, default="all", help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(WORK[arguments.work](arguments.measure)))
        return
    repeats = 1 if arguments.quick else 5
    trials = arguments.trials or (5_000 if arguments.report else 10_000)
    if arguments.report:
        of_report(trials, arguments.epochs or 10, repeats)
        return
    if arguments.epochs is not None:
        of_many_epochs(trials, arguments.epochs, repeats)
        return
    found = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            write_ledger(Path(folder), ledger(trials))
            found.append(fresh("all", folder))
    medians = {name: statistics.median(one[name] for one in found) for name in found[0]}
    for name, value in medians.items():
        print(f"{name:<22}{value:10.3f}{'' if name == 'peak_mb' else ' s'}")
    total = statistics.median(map(_seconds, found))
    print(json.dumps({"seconds": round(total, 3), "peak_mb": round(medians["peak_mb"], 1), "trials": trials}))


if __name__ == "__main__":
    main()
