"""The same students by a hand-written loop, by Ray Tune, by Optuna and by dux: how long until all are distilled.

    python benchmarks/against.py [--quick] [--data FOLDER] [--rounds 1] [--images 1536] [--only 56] [--lend-layout]

24 residual networks on CIFAR-10, at most 9 epochs each, ASHA's rungs at 1, 3 and 9; two processes of one thread. Their
teacher is the published ResNet-56; then all again with the published ResNet-20, a third of the work. `--data` has
`cifar10/` and `teachers/`; the default is $DUX_TEST_DATA, or `shared/data` beside the checkout. Without such a folder,
and with `--quick`, digits are taught by a network that is trained here beforehand; there, starting is all of the work.

- `loop`: two processes share a list of students. A teacher in each sees every batch of every student.
- `optuna`: Hyperband's pruner, a journal, two processes with a teacher each.
- `ray_tune`: a function with ASHAScheduler, all else at its default. Each trial loads the teacher.
- `dux`: `orchestrator.run` of a recipe with `students`.

In each round dux goes first. ASHA decides by who arrives when, so the others are told dux's decisions: their
schedulers and pruners are asked, and overruled. So all train the same epochs of the same students, from the same
initialisations, with the same batches (dux's curriculum is lent to all), losses, optimiser and learning rates, and end
at the same accuracy on validation images but for rounding. The others keep torch's default layout of memory, as one
does who does not think of it; with `--lend-layout` they have dux's, which makes their teacher a quarter quicker. What
is timed is a process from its start to its end, with whatever it starts. The others measure accuracy alone; dux also
measures likeness to the teacher, tests its finalists, saves every epoch, and writes its tables and report.

Last line: seconds of each over dux's (medians over the rounds), with the seconds, those of the processors (which other
work on the machine disturbs less), epochs, mean accuracies and the largest difference of a student's accuracy from
dux's (percent); the same for the small teacher as `small_teacher`.
"""

import argparse
import json
import operator
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import cycle, permutations
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before this folder, which has an analysis.py of its own

import psutil
from rivals import LAYOUT, PROCESSES, REDUCTION, TEMPERATURE, WEIGHTS, Ends, loop, optuna, ray_tune

ROOT = Path(__file__).resolve().parents[1]
OTHERS = ("loop", "ray_tune", "optuna")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what the published teachers expect
FILES = {9: "resnet56-4bfd9763.th", 3: "resnet20-12fca82f.th"}  # by residual blocks a stage
CHOICES = {
    "cifar": {**dict.fromkeys(("depth1", "depth2", "depth3"), (1, 2, 3)), "width": (4, 6, 8, 10, 12)},
    "digits": {**dict.fromkeys(("depth1", "depth2", "depth3"), (1, 2)), "width": (2, 3, 4, 5)},
}
LARGEST = 8_000_000  # multiply-adds of a student, as in recipe cifar10-resnet56


def dux(recipe: dict[str, Any], decided: list[int], folder: Path) -> Ends:
    """A recipe, run; it decides for itself."""
    import orchestrator
    from orchestrator.recipe import Recipe

    results = orchestrator.run(Recipe.parse(recipe), storage=folder, name="run", progress=False)
    last = results.epochs.sort_values("epoch").groupby("number").last()
    ends = {}
    for number, row in results.trials.set_index("number").iterrows():
        arch = {name: int(row[f"arch.{name}"]) for name in recipe["students"][0]}
        ends[recipe["students"].index(arch)] = [int(last.loc[number, "epoch"]), last.loc[number, "valid_accuracy"]]
    return ends


SIDES = {"dux": dux, "loop": loop, "ray_tune": ray_tune, "optuna": optuna}


def watched(child: subprocess.Popen[bytes]) -> float:
    """Wait for a process; processor seconds of it and all that it started, looked at twice a second."""
    spent: dict[tuple[int, float], float] = {}
    root = psutil.Process(child.pid)
    while child.poll() is None:
        with suppress(psutil.Error):
            for process in [root, *root.children(recursive=True)]:
                with suppress(psutil.Error):
                    spent[process.pid, process.create_time()] = sum(process.cpu_times()[:2])
        time.sleep(0.5)
    return sum(spent.values())


def timed(side: str, recipe: dict[str, Any], decided: list[int]) -> tuple[float, float, Ends]:
    """Seconds of a side from its start to its end, those of the processors, and what came of its students."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "job.json").write_text(json.dumps([recipe, decided]))
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "DUX_CACHE": f"{name}/cache",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}",
        }
        with (folder / "log").open("w") as log:
            started = time.perf_counter()
            command = [sys.executable, __file__, "--side", side, name]
            child = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            spent = watched(child)
            seconds = time.perf_counter() - started
        if child.returncode:
            raise SystemExit(f"{side} has failed with code {child.returncode}:\n{(folder / 'log').read_text()[-4000:]}")
        ends = json.loads((folder / "ends.json").read_text())
    return seconds, spent, {int(student): end for student, end in ends.items()}


def serve(side: str, folder: Path) -> None:
    """Be one of the sides."""
    recipe, decided = json.loads((folder / "job.json").read_text())
    (folder / "ends.json").write_text(json.dumps(SIDES[side](recipe, decided, folder)))


def students(images: str, count: int) -> list[dict[str, int]]:
    """Different architectures within the limit, drawn by a fixed seed."""
    import numpy as np

    import spaces
    from spaces import Task
    from spaces.seeding import generator
    from trainables import cost

    rng: np.random.Generator = generator("against")
    space, task = spaces.get("resnet"), Task(3, 32, 10)
    drawn: list[dict[str, int]] = []
    while len(drawn) < count:
        arch = {name: int(rng.choice(values)) for name, values in CHOICES[images].items()}
        if arch not in drawn and (images == "digits" or cost.flops(space.build(arch, task), task) <= LARGEST):
            drawn.append(arch)
    return drawn


def recipe_of(images: str, teacher: dict[str, Any], task: dict[str, Any], count: int, epochs: int) -> dict[str, Any]:
    """The recipe that dux runs, and from which the others are made."""
    stage = {
        "name": "short",
        "trial": "distill",
        "epochs": epochs,
        "batch_size": 64 if images == "cifar" else 32,
        "losses": {**WEIGHTS, "kd": {"weight": WEIGHTS["kd"], "temperature": TEMPERATURE}},
        "augment": {"crop": 4, "flip": True} if images == "cifar" else {"crop": 1},
        "scheduler": {"name": "asha", "min_epochs": 1, "reduction_factor": REDUCTION},
    }
    space = {"name": "resnet", "choices": {name: list(values) for name, values in CHOICES[images].items()}}
    return {"name": "against", "task": task, "teacher": teacher, "space": space, "workers": PROCESSES,
            "students": students(images, count), "stages": [stage]}  # fmt: skip


def cifar(data: Path, folder: Path, images: int, blocks: int) -> dict[str, Any]:
    """A recipe over so many training images, with a published teacher."""
    import pyarrow.parquet as pq

    held = 500  # images to validate on, and to test on
    for split, rows in (("train", images + held), ("test", held)):
        pq.write_table(pq.read_table(data / "cifar10" / f"{split}.parquet").slice(0, rows), folder / f"{split}.parquet")
    arch = {**dict.fromkeys(("depth1", "depth2", "depth3"), blocks), "width": 16}
    weights = str((data / "teachers" / FILES[blocks]).resolve())
    teacher = {"space": "resnet", "arch": arch, "options": {"shortcut": "pad"}, "weights": weights,
               "mean": list(MEAN), "std": list(STD)}  # fmt: skip
    task = {"dataset": "parquet", "path": str(folder), "valid": held}
    return recipe_of("cifar", teacher, task, 24, 9)


def digits(folder: Path, count: int, epochs: int, taught: int) -> dict[str, Any]:
    """A recipe on digits, with a teacher that is trained here first."""
    import torch

    from trainables import data, teacher_training, teachers
    from trainables.curriculum import Augment

    torch.set_num_threads(1)
    images = data.load(data.DataConfig())
    net = {"space": "resnet", "arch": {"depth1": 2, "depth2": 2, "depth3": 2, "width": 32}}
    member = teachers.build(teachers.TeacherConfig(**net, train_epochs=taught), images)
    teacher_training.train(member, images, taught, 0, Augment(crop=1), torch.device("cpu"))
    teachers.save_weights(member, folder / "teacher.safetensors")
    teacher = {**net, "weights": str(folder / "teacher.safetensors")}
    return recipe_of("digits", teacher, {"dataset": "digits"}, count, epochs)


def compare(recipe: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Run all sides so many times, print a table, and give the figures."""
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    processor: dict[str, list[float]] = {side: [] for side in SIDES}
    ends: list[dict[str, Ends]] = []
    orders = cycle(permutations(OTHERS))
    for _ in range(rounds):
        found: dict[str, Ends] = {}
        for side in ("dux", *next(orders)):
            decided = [int(found["dux"][student][0]) for student in sorted(found["dux"])] if found else []
            taken, spent, found[side] = timed(side, recipe, decided)
            seconds[side].append(taken)
            processor[side].append(spent)
            told = f"{taken:.1f} s, {spent:.1f} s of processors, {_epochs(found[side])} epochs"
            print(f"  {side}: {told}", file=sys.stderr, flush=True)
        ends.append(found)
    ratios = {side: statistics.median(map(operator.truediv, seconds[side], seconds["dux"])) for side in SIDES}
    medians, work = (
        {side: round(statistics.median(every[side]), 1) for side in SIDES} for every in (seconds, processor)
    )
    accuracies = {side: round(statistics.mean(_accuracies(found[side]).mean() for found in ends), 2) for side in SIDES}
    apart = {
        side: round(max(abs(_accuracies(found[side]) - _accuracies(found["dux"])).max() for found in ends), 2)
        for side in SIDES
    }
    epochs = {side: statistics.median(_epochs(found[side]) for found in ends) for side in SIDES}
    heads = f"{'':<10}{'seconds':>9}{'over dux':>10}{'processor s':>13}{'over dux':>10}{'epochs':>8}"
    print(f"{heads}{'mean accuracy':>15}{'furthest from dux':>19}")
    for side in SIDES:
        line = f"{side:<10}{medians[side]:9.1f}{ratios[side]:10.2f}"
        line += f"{work[side]:13.1f}{work[side] / work['dux']:10.2f}{epochs[side]:8.0f}"
        print(f"{line}{accuracies[side]:13.2f} %{apart[side]:17.2f} %")
    over = {f"{side}_over_dux": round(ratios[side], 2) for side in OTHERS}
    return {**over, "seconds": medians, "processor_seconds": work, "epochs": epochs, "accuracy": accuracies,
            "furthest": apart}  # fmt: skip


def _epochs(ends: Ends) -> int:
    return int(sum(epochs for epochs, _ in ends.values()))


def _accuracies(ends: Ends) -> Any:
    import numpy as np

    return 100 * np.array([ends[student][1] for student in sorted(ends)])


def main() -> None:
    """Measure, print tables, and the figures as JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 students on digits: whether all of it works")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--images", type=int, default=1536, help="of CIFAR-10")
    parser.add_argument("--only", type=int, choices=[56, 20], help="one of the teachers")
    parser.add_argument("--lend-layout", action="store_true", help="dux's layout of memory for all")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        serve(arguments.side[0], Path(arguments.side[1]))
        return
    data = arguments.data or Path(os.environ.get("DUX_TEST_DATA", ROOT.parent / "shared" / "data"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.quick or not (data / "cifar10").is_dir():
            count, epochs, taught = (3, 2, 1) if arguments.quick else (24, 9, 8)
            recipes = {"digits": digits(folder, count, epochs, taught)}
        else:
            deep = {6 * blocks + 2: blocks for blocks in FILES}
            deep = {depth: deep[depth] for depth in deep if arguments.only in (None, depth)}
            recipes = {f"ResNet-{d}": cifar(data, folder, arguments.images, blocks) for d, blocks in deep.items()}
        if arguments.lend_layout:
            os.environ[LAYOUT] = "dux"
        figures = {}
        for title, recipe in recipes.items():
            count, epochs = len(recipe["students"]), recipe["stages"][0]["epochs"]
            print(f"\n{title}: {count} students, at most {epochs} epochs", flush=True)
            figures[title] = compare(recipe, arguments.rounds)
    first, *small = figures.values()
    last = {**first, "small_teacher": small[0]} if small else first
    print(f"\n{os.cpu_count()} CPUs, {PROCESSES} processes of one thread; wall time from start to end")
    print(json.dumps({**last, "students": count, "n": arguments.rounds}))


if __name__ == "__main__":
    main()
