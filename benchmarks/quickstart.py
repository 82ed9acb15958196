"""How long `dux run quickstart` takes from nothing, how much memory, and what share of it is work for a result.

    python benchmarks/quickstart.py [--quick]

The run is a child process with an empty cache, so that it trains its teacher, and in a temporary folder. Memory is the
sum over all processes of the run, sampled up to twice a second; a page that several of them share is counted once (by
shares) where the system tells, else in each. `useful_share` is the share of the device-time after start-up that went
into students' steps, the teacher and scores, of the whole run as `dux status --profile` tells it; the table is printed.
`--quick` makes the search smaller: fewer candidates and epochs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before this folder, which has an analysis.py of its own

import analysis
from analysis.profile import useful_percent
from orchestrator import show

ROOT = Path(__file__).resolve().parents[1]
SMALLER = ("teacher.train_epochs=5", "stages.score.trials=40", "stages.short.epochs=3", "stages.final.epochs=6")


def memory_bytes(process: psutil.Process) -> int:
    """Memory of a process: shared pages by its share of them, or whole where only the resident size is known."""
    try:
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass  # not Linux, or the process has just ended
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


def watch(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Run a command; seconds, and the peak memory of its process tree in MB."""
    started, peak = time.perf_counter(), 0
    child = subprocess.Popen(command, env=environment, cwd=ROOT)
    tree = psutil.Process(child.pid)
    while child.poll() is None:
        try:
            processes = [tree, *tree.children(recursive=True)]
        except psutil.NoSuchProcess:
            break
        sampled = time.perf_counter()
        peak = max(peak, sum(memory_bytes(process) for process in processes))
        # Counting pages takes the kernel a while; the run must not pay for being watched.
        time.sleep(max(0.5, 20 * (time.perf_counter() - sampled)))
    if child.wait():
        raise SystemExit(f"the run has failed with exit code {child.returncode}")
    return time.perf_counter() - started, peak / 2**20


def main() -> None:
    """Measure, and print the figures as JSON in the last line; the table above it is the run's own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller search")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "orchestrator.cli", "run", "quickstart", "--storage", folder, "--name", "run"]
        for change in SMALLER if arguments.quick else ():
            command += ["--set", change]
        environment = {**os.environ, "DUX_CACHE": f"{folder}/cache"}
        seconds, peak_mb = watch(command, environment)
        results = analysis.load(Path(folder) / "run")
    share = useful_percent(analysis.profile(results)) / 100
    show.console().print(show.profile(results), highlight=False)
    print(f"\n{os.cpu_count()} CPUs; memory counts shared pages once where /proc tells")
    print(json.dumps({"seconds": round(seconds, 1), "peak_mb": round(peak_mb), "useful_share": round(share, 3)}))


if __name__ == "__main__":
    main()
