"""Whether a search that is killed again and again, and resumed, ends as if nothing had happened.

    python benchmarks/kill_and_resume.py [--quick] [--kills 50] [--seed 0] [--only tpe-asha] [--record rows.jsonl]

Every sampler with every scheduler, population based training, and a pipeline of scores, short and full distillation:
each search runs once uninterrupted, and once more with SIGKILLs at moments that the seed draws, until it has ended.
Kinds of kill: the `driver`; a `worker` in mid-trial; the `raylet`; the `head` of the cluster; `twice` in a row, the
second time before the resumed run has written anything; while `writing` the ledger or another file; `early`, when the
run's directory has just appeared; `everything` at once. With one worker, the trials and the epochs of both runs are to
be equal, bit for bit and in order; with two, results arrive in another order, and what does not depend on it is.

lost      trials (and students, with one worker) of the uninterrupted run that the killed one has not brought to an end
doubled   trials that stand twice in the ledger, and epochs that began although their checkpoint had been saved
differing trials whose curve or end differs
repeated  epochs that began again, as the workers noted (by a file of the space, not by the ledger): work that was lost
beyond    those of them that are more than one for each worker and kill
wrong     proposals, stops and survivors other than those that follow from the ledger's events before them
hung      drivers that did not end within 60 s after a kill of the raylet or the head, or at all
left      processes that outlived their run
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before this folder, which has an analysis.py of its own

import numpy as np
import psutil

import analysis
from orchestrator.prepared import Search
from orchestrator.proposers import BLIND
from orchestrator.recipe import Recipe
from orchestrator.samplers import SAMPLERS
from orchestrator.schedulers import SCHEDULERS
from orchestrator.stage import survivors
from spaces.seeding import generator, stable_hash

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("driver", "worker", "raylet", "head", "twice", "writing", "early", "everything")
COUNTS = ("lost", "doubled", "differing", "epochs_repeated", "beyond", "wrong", "hung", "left")
PATIENCE = 60.0  # seconds in which a driver has to notice that its raylet or head is dead
AT_MOST = 300.0  # seconds in which a run has to end
TIMINGS = ("teacher_passes", "latency_ms")  # and whatever ends in _seconds: the only metrics that may differ
MARK = "DUX_SOAK"  # an environment variable by which a run's processes are found, wherever they have gone

# The students' space is a user's own file, so that the workers, which execute it, can be asked what they train.
SPACE = '''"""Residual networks; and a note of every epoch that a worker begins, and of every one that it has saved."""

import os
import sys

import ray
import trainables.trial
from ray._private.worker import global_worker
from spaces.resnet import PARAM_SPACE, SPACE, build
from trainables.fit import Fit
from trainables.store import Store

TAPS, HEAD = SPACE.taps, SPACE.head
run_epoch, write = Fit.run_epoch, Store.write


def note(trial, epoch, what):
    try:
        file = os.open(f"{trial.context.folder.parents[1]}.epochs", os.O_WRONLY | os.O_APPEND)
    except FileNotFoundError:
        return
    os.write(file, f"{trial.context.folder.name} {trial.spec['number']} {epoch} {what}\\n".encode())
    os.close(file)


def noted_epoch(self, epoch):
    note(sys._getframe(1).f_locals["self"], epoch, "began")  # Ray has copied the trial's own methods by now
    return run_epoch(self, epoch)


def noted_write(self, name, data):
    write(self, name, data)
    caller = sys._getframe(1)
    if caller.f_code.co_name == "_save_if_due":
        trial = caller.f_locals["self"]
        note(trial, len(trial.history), "saved")


if global_worker.mode == ray.WORKER_MODE:
    Fit.run_epoch, Store.write = noted_epoch, noted_write
    trainables.trial.SAVED_EVERY = 0.0  # as if each epoch took its time: every one is saved
'''
CHOICES = {"depth1": [1, 2], "depth2": [1, 2], "depth3": [1, 2], "width": [2, 3, 4]}
RATE = {"learning_rate": {"loguniform": [0.01, 0.5]}}
STOPPING = {"asha": {"reduction_factor": 2}, "hyperband": {"reduction_factor": 2}}
DISTILL = {
    "trial": "distill",
    "epochs": 4,
    "losses": {"cross_entropy": 0.1, "kd": {"weight": 0.9, "temperature": {"choice": [2, 4, 8]}}},
    "augment": {"crop": 1},
    "objective": {"valid_accuracy": 1.0, "teacher_similarity": 0.25},
}


def stages_of(name: str, trials: int) -> list[dict[str, Any]]:
    """The stages of a combination."""
    if name == "pbt":
        population = {"name": "pbt", "population": max(4, trials // 5), "interval": 2}
        return [{"name": "population", **DISTILL, "epochs": 10, "scheduler": population, "optimizer": RATE}]
    if name == "pipeline":
        score = {"name": "score", "trial": "score", "scores": ["diswot", "snip", "params"], "trials": trials // 2}
        score |= {"sampler": {"name": "evolution", "population": 6, "sample_size": 3}, "keep": trials // 4}
        short = {"name": "short", **DISTILL, "sampler": "tpe", "keep": 2, "trials": trials // 2}
        short |= {"scheduler": {"name": "asha", **STOPPING["asha"]}}
        return [score, short, {"name": "final", "trial": "distill", "epochs": 3, "seeds": 2, "control": True}]
    sampler, scheduler = name.split("-")
    rule = {"name": scheduler, **STOPPING.get(scheduler, {})}
    return [{"name": "search", **DISTILL, "sampler": sampler, "scheduler": rule, "trials": trials}]


def names() -> list[str]:
    """All combinations."""
    rules = [name for name, scheduler in SCHEDULERS.items() if not scheduler.population]
    return [*(f"{sampler}-{rule}" for sampler in SAMPLERS for rule in rules), "pbt", "pipeline"]


def recipe_of(name: str, trials: int, workers: int, folder: Path) -> Path:
    """The file of a combination's recipe, with that of its space beside it."""
    (folder / "counted.py").write_text(SPACE)
    recipe = {
        "name": "soak",
        "task": {"dataset": "digits", "subset": 300, "test_subset": 100},
        "teacher": {"space": "resnet", "arch": {"depth1": 1, "depth2": 1, "depth3": 1, "width": 8}, "train_epochs": 2},
        "space": {"file": str(folder / "counted.py"), "choices": CHOICES},
        "workers": workers,
        "stages": stages_of(name, trials),
    }
    if name == "pbt":
        recipe["student"] = {"depth1": 1, "depth2": 1, "depth3": 1, "width": 4}
    (folder / "recipe.yaml").write_text(Recipe.parse(recipe).to_yaml())
    return folder / "recipe.yaml"


# Killing


def processes(place: Path) -> Iterator[psutil.Process]:
    """All processes of a run, or of the runs within a folder."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if Path(process.environ().get(MARK, "/")).is_relative_to(place):
                yield process


def end(place: Path) -> int:
    """Kill them; how many there were."""
    found = list(processes(place))
    for process in found:
        with suppress(psutil.Error):
            process.kill()
    return len(found)


@dataclass
class Victim:
    """A run in processes of its own: begun, killed, resumed until it has ended."""

    recipe: Path
    run: Path
    rng: np.random.Generator
    process: subprocess.Popen[bytes] | None = None
    kills: Counter[str] = field(default_factory=Counter)
    hung: int = 0

    @property
    def log(self) -> Path:
        """What the drivers say."""
        return Path(f"{self.run}.log")

    def go_on(self) -> None:
        """Begin the run, or resume it, unless its driver is at work."""
        if self.process is not None and self.process.poll() is None:
            return
        new = ["run", str(self.recipe), "--storage", str(self.run.parent), "--name", self.run.name]
        command = ["resume", str(self.run)] if self.run.exists() else new
        Path(f"{self.run}.epochs").touch()
        environment = {**os.environ, MARK: str(self.run)}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator.cli", *command],
                cwd=ROOT, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def wait_for(self, event: Callable[[], bool], seconds: float = AT_MOST) -> bool:
        """Whether something happens within the time, before the driver ends."""
        assert self.process is not None
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            if event():
                return True
            time.sleep(0.003)
        return False

    def size(self) -> int:
        """Of the ledger in bytes; 0 while there is none."""
        try:
            return (self.run / "ledger.jsonl").stat().st_size
        except FileNotFoundError:
            return 0

    def writes(self) -> bool:
        """Whether a file is just being written beside the one that it is to replace."""
        folders = [self.run, *self.run.glob("stages/*/checkpoints")]
        return any(name.startswith(".") for folder in folders for name in os.listdir(folder))

    def strike(self, kind: str, at: float) -> None:
        """Kill in one of the ways, when the ledger has grown to `at` bytes; nothing if the run ends before that."""
        self.go_on()
        assert self.process is not None
        if not self.wait_for(lambda: self.size() > (0 if kind == "early" else at)):
            return
        if kind != "early":
            time.sleep(self.rng.uniform(0, 0.2))
        if kind == "writing":
            before, file = self.size(), self.rng.random() < 0.5
            if not self.wait_for(self.writes if file else lambda: self.size() > before):
                return
        if self.process.poll() is not None:
            return
        killed = {"worker": self._worker, "raylet": self._child, "head": self._child}.get(kind, self._driver)(kind)
        self.kills[kind] += killed
        if kind == "twice":
            self.go_on()
            before, resumed = self.size(), b'"event":"resume"'
            self.wait_for(
                lambda: self.size() > before and resumed not in self._last_line(), seconds=self.rng.uniform(1, 9)
            )
            if self.process.poll() is None:
                self.kills[kind] += self._driver(kind)

    def _last_line(self) -> bytes:
        return (self.run / "ledger.jsonl").read_bytes().rstrip(b"\n").rpartition(b"\n")[2]

    def _driver(self, kind: str) -> int:
        """Kill the driver alone, or with all of its processes."""
        assert self.process is not None
        if kind in ("everything", "writing"):
            self.end()
        else:
            self.process.kill()
            self.process.wait()
        return 1

    def _worker(self, kind: str) -> int:
        """Kill the worker that has reported last; the run is to go on."""
        events = [json.loads(line) for line in (self.run / "ledger.jsonl").read_bytes().split(b"\n")[:-1]]
        pids = [int(event["worker"].split(":")[1]) for event in events if event["event"] == "report"]
        for process in processes(self.run):
            if pids and process.pid == pids[-1]:
                process.kill()
                return 1
        return 0

    def _child(self, kind: str) -> int:
        """Kill one of Ray's own processes; the driver is to end by itself."""
        name = {"raylet": "raylet", "head": "gcs_server"}[kind]
        assert self.process is not None
        for process in processes(self.run):
            with suppress(psutil.Error):
                if process.name() == name:
                    process.kill()
                    self._awaited(PATIENCE)
                    return 1
        return 0

    def _awaited(self, seconds: float) -> int | None:
        """The driver's exit code; None if it had to be killed."""
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.hung += 1
            self.end()
            return None

    def finish(self) -> None:
        """Resume the run until it has ended."""
        for _ in range(5):
            self.go_on()
            if self._awaited(AT_MOST) == 0:
                return
        raise RuntimeError(f"{self.run.name} does not end: {self.log.read_text()[-500:]}")

    def end(self) -> int:
        """Kill every process of the run; how many there were."""
        found = end(self.run)
        if self.process is not None:
            self.process.wait()
        return found


# Judging


@dataclass(frozen=True)
class Told:
    """What a ledger tells of its trials: by what makes them one and the same, their curves, and how they ended."""

    keys: list[str]
    curves: dict[str, list[Any]]
    ends: dict[str, Any]
    order: list[Any]  # everything of trials, in order

    @classmethod
    def of(cls, run: Path) -> "Told":
        """What the ledger of a run tells."""
        told, numbered = cls([], {}, {}, []), {}
        for event in analysis.events(run):
            place = (event.get("stage"), event.get("number"))
            if event["event"] == "trial":
                names = ("stage", "arch", "params", "seed", "control", "parent", "start_epoch", "until")
                numbered[place] = key = stable_hash([event[name] for name in names])
                told.keys.append(key)
                told.curves.setdefault(key, [])
            elif event["event"] == "report":
                key, metrics = numbered[place], event["metrics"].items()
                same = {k: v for k, v in metrics if not k.endswith("_seconds") and k not in TIMINGS}
                told.curves[key].append([event["epoch"], same])
            elif event["event"] == "end":
                key = numbered[place]
                told.ends[key] = [event["status"], event["reason"]]
            elif event["event"] == "keep":
                key = str(event["proposals"])
            else:
                continue
            told.order.append([event["event"], *place, event.get("epoch"), key])
        return told


def compared(whole: Told, cut: Told, exact: bool, in_order: bool) -> dict[str, int]:
    """What was lost, doubled or differs.

    Args:
        exact: both runs have the same trials, whatever the order in which results arrived.
        in_order: and the same events in the same order.
    """
    both = [key for key in whole.curves if key in cut.curves]
    if exact:
        lost = [key for key in whole.ends if key not in cut.ends]
        kept = [key for key in both if key not in lost]
        differing = [k for k in kept if (whole.curves[k], whole.ends.get(k)) != (cut.curves[k], cut.ends.get(k))]
    else:
        lost = [key for key in cut.keys if key not in cut.ends]
        pairs = {key: list(zip(whole.curves[key], cut.curves[key], strict=False)) for key in both}
        differing = [key for key in both if any(one != other for one, other in pairs[key])]
    alike = len(whole.keys) - len(set(whole.keys))  # members of a population may be, from the start
    doubled = max(0, len(cut.keys) - len(set(cut.keys)) - alike)
    disordered = in_order and not (lost or doubled or differing) and whole.order != cut.order
    return {"lost": len(lost), "doubled": doubled, "differing": len(differing) + disordered}


def trained(run: Path) -> dict[str, int]:
    """Epochs that the workers began again, and that they began although they had saved them."""
    began: Counter[str] = Counter()
    saved, again = set(), 0
    for line in Path(f"{run}.epochs").read_text().splitlines():
        epoch, what = line.rsplit(" ", 1)
        if what == "began":
            began[epoch] += 1
            again += epoch in saved
        else:
            saved.add(epoch)
    if not began or not saved:
        raise RuntimeError("the workers have noted no epochs")
    return {"epochs_repeated": began.total() - len(began), "again": again}


def not_implied(run: Path) -> list[str]:
    """Decisions that do not follow from the events before them: proposals, stops, who was kept."""
    recipe, wrong = Recipe.load(run / "recipe.yaml"), []
    search, before = Search.prepare(recipe), None
    for stage in recipe.stages:
        book, proposer, last = search.book(stage, None), search.proposer(stage, before), stage is recipe.stages[-1]
        for event in analysis.events(run):
            if event.get("stage") != stage.name:
                continue
            if event["event"] == "trial" and event["proposal"] == len(book.proposals):
                made = proposer.propose(book)
                expected = None if made is None else stable_hash([made.arch, dict(made.params), made.parent])
                if expected != stable_hash([event["arch"], event["params"], event["parent"]]):
                    wrong.append(f"{stage.name}: proposal {event['proposal']}")
            elif event["event"] == "end":
                trial = book.trials[event["number"]]
                if (trial.status == "stopped") != (event["status"] == "stopped"):
                    wrong.append(f"{stage.name}: end of trial {trial.number}")
            elif event["event"] == "report" and book.trials[event["number"]].done:
                wrong.append(f"{stage.name}: trial {event['number']} went on")
            elif event["event"] == "keep" and event["proposals"] != survivors(book, last):
                wrong.append(f"{stage.name}: who was kept")
            book.apply(event)
        if not book.ended:
            wrong.append(f"{stage.name}: not ended")
            break
        before = [book.proposals[p] for p in book.kept or []]
    return wrong


def soaked(name: str, kinds: Sequence[str], recipe: Path, whole: Path, cut: Path, seed: int) -> dict[str, Any]:
    """Kill a run in these ways, let it end, and compare it with the uninterrupted one."""
    workers, started = Recipe.load(recipe).workers or 1, time.monotonic()
    victim, total = Victim(recipe, cut, generator(seed, name)), (whole / "ledger.jsonl").stat().st_size
    try:
        for at, kind in enumerate(kinds):
            share = (at + victim.rng.uniform(0.1, 0.9)) / len(kinds)
            victim.strike(kind, share * total)
        victim.finish()
        time.sleep(1)
    finally:
        left = victim.end()
    blind = name.split("-")[0] in BLIND and name.endswith("-none")
    found = compared(Told.of(whole), Told.of(cut), workers == 1 or blind or name == "pbt", workers == 1)
    again = trained(cut)
    found["doubled"] += again.pop("again")
    kills = victim.kills.total()
    beyond = max(0, again["epochs_repeated"] - kills * workers)
    wrong = not_implied(cut)
    row = {"name": name, "workers": workers, "kills": kills, "kinds": dict(victim.kills), **found, **again}
    row |= {"beyond": beyond, "wrong": len(wrong), "hung": victim.hung, "left": left}
    return row | {"seconds": round(time.monotonic() - started, 1), "said": wrong[:5]}


def combination(name: str, kinds: Sequence[str], folder: Path, trials: int, workers: int, seed: int) -> dict[str, Any]:
    """The row of one combination: run it whole, then soak it."""
    folder.mkdir(parents=True)
    recipe = recipe_of(name, trials, workers, folder)
    whole = Victim(recipe, folder / "whole", generator(seed))
    try:
        whole.finish()
    finally:
        whole.end()
    return soaked(name, kinds, recipe, whole.run, folder / "cut", seed)


def dealt(chosen: Sequence[str], kills: int, kinds: Sequence[str], seed: int) -> dict[str, list[str]]:
    """Which combination is killed in which ways: every kind equally often, `twice` counting as two."""
    rng, deck = generator(seed, "deck"), []
    while len(deck) + deck.count("twice") < kills:
        left = kills - len(deck) - deck.count("twice")
        fresh = [kind for kind in rng.permutation(kinds).tolist() if kind != "twice" or left > 1]
        deck += fresh[: max(1, left - fresh[:left].count("twice"))]
    order = rng.permutation(list(chosen)).tolist()
    hands: dict[str, list[str]] = {name: [] for name in order}
    for at, kind in enumerate(deck):
        hand = hands[order[at % len(order)]]
        hand.append("driver" if kind == "early" and kind in hand else kind)
    return {name: sorted(hand, key=lambda kind: kind != "early") for name, hand in hands.items()}


def main() -> None:
    """Soak, print a row for each combination, and the totals as JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two small searches, kills of drivers and workers")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--lanes", type=int, default=2, help="combinations at a time")
    parser.add_argument("--only", action="append", choices=names(), help="default: all combinations")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, help="default: all")
    parser.add_argument("--record", type=Path, help="a file of rows; what is in it already is not run again")
    arguments = parser.parse_args()
    chosen, kinds = arguments.only or names(), arguments.kinds or KINDS
    kills, trials = arguments.kills, arguments.trials
    if arguments.quick:
        chosen, kills, kinds, trials = ["tpe-asha", "random-none"], 4, ("driver", "worker"), 12
    recorded = arguments.record.read_text() if arguments.record and arguments.record.exists() else ""
    rows = [json.loads(line) for line in recorded.splitlines()]
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    os.environ["DUX_CACHE"] = str(folder / "cache")

    def stopped(number: int, frame: object) -> None:
        """Leave no process behind."""
        end(folder)
        os._exit(128 + number)

    signal.signal(signal.SIGTERM, stopped)
    signal.signal(signal.SIGINT, stopped)

    def one(name: str, hand: list[str]) -> None:
        """A combination, whose failure is a row too."""
        workers = 2 if not arguments.quick and names().index(name) % 3 == 2 else 1
        try:
            row = combination(name, hand, folder / name, trials, workers, arguments.seed)
        except Exception as error:
            row = {"name": name, "workers": workers, "kills": 0, "error": f"{type(error).__name__}: {error}"}
        rows.append(row)
        print(json.dumps(row), flush=True)
        if arguments.record:
            with arguments.record.open("a") as file:
                file.write(json.dumps(row) + "\n")
        if not any(row.get(count) for count in (*COUNTS[:3], *COUNTS[4:], "error")):
            shutil.rmtree(folder / name)

    known = {row["name"] for row in rows}
    hands = dealt(chosen, kills, kinds, arguments.seed)
    with ThreadPoolExecutor(arguments.lanes) as lanes:
        list(lanes.map(one, *zip(*((n, hand) for n, hand in hands.items() if n not in known), strict=True)))
    print(f"\nnot clean, and kept: {', '.join(sorted(p.name for p in folder.iterdir() if p.name != 'cache')) or 'none'}"
          f" ({folder})")  # fmt: skip
    by_kind = sum((Counter(row.get("kinds", {})) for row in rows), Counter())
    totals = {count: sum(row.get(count, 0) for row in rows) for count in ("kills", *COUNTS)}
    errors = sum("error" in row for row in rows)
    print(json.dumps({**totals, "errors": errors, "combinations": len(rows), "by_kind": dict(by_kind)}))


if __name__ == "__main__":
    main()
