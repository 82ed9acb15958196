"""How long one waits for dux: for its help, for the ranking of a finished run, and for a search's first step.

    python benchmarks/startup.py [--quick]

Each figure is the median of five commands, each in a process of its own: `dux --help`; `dux rank` of the recorded run
in tests/data/digits, tables written; and from `dux run quickstart` to the moment at which its first candidate is worked
on in a worker, as the run's ledger tells, with a teacher that needs no training. Such a run is ended there. `--quick`
takes three of the first two and one of the last.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before this folder, which has an analysis.py of its own

import analysis

ROOT = Path(__file__).resolve().parents[1]
DUX = (sys.executable, "-m", "orchestrator.cli")
UNTRAINED = ("--set", "teacher.train_epochs=0", "--set", "teacher.random=true")
GOALS = {"help_seconds": 0.5, "rank_seconds": 2.0, "first_step_seconds": 15.0}
PATIENCE = 300.0  # seconds


def seconds_of(*arguments: object) -> float:
    """Wall time of a command, which must end well."""
    started = time.perf_counter()
    subprocess.run([*DUX, *map(str, arguments)], cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def until_first_step(run: Path, environment: dict[str, str]) -> float:
    """Seconds from the command to a worker's first work; the run is ended then.

    A report comes when its work is done: several that come at once were worked on one after the other.
    """
    command = [*DUX, "run", "quickstart", "--storage", str(run.parent), "--name", run.name, *UNTRAINED]
    started = time.time()
    child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (run / "ledger.jsonl").is_file() or analysis.load(run).epochs.empty:
            if child.poll() is not None or time.time() - started > PATIENCE:
                raise SystemExit(f"{' '.join(command)}: no report after {time.time() - started:.0f} s")
            time.sleep(0.2)
        time.sleep(0.5)  # for the others of that moment
        epochs = analysis.load(run).epochs
    finally:
        child.send_signal(signal.SIGINT)
        child.wait()
    begun = epochs["time"] - epochs.groupby("worker")["seconds"].cumsum()
    return float(begun.min()) - started


def main() -> None:
    """Measure, print a table, and the figures as JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    short, long = (3, 1) if parser.parse_args().quick else (5, 5)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recorded = shutil.copytree(ROOT / "tests" / "data" / "digits", folder / "recorded")
        analysis.write_tables(recorded)
        environment = {**os.environ, "DUX_CACHE": f"{folder}/cache"}
        found = {
            "help_seconds": [seconds_of("--help") for _ in range(short)],
            "rank_seconds": [seconds_of("rank", recorded) for _ in range(short)],
            "first_step_seconds": [until_first_step(folder / f"run{i}", environment) for i in range(long)],
        }
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} CPUs, load {load:.1f}; seconds, median (least, most), goal")
    for name, values in found.items():
        median = statistics.median(values)
        print(f"{name:20} {median:6.2f} ({min(values):.2f}, {max(values):.2f})  < {GOALS[name]:g}")
    print(json.dumps({name: round(statistics.median(values), 2) for name, values in found.items()}))


if __name__ == "__main__":
    main()
