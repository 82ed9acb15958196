"""What a search holds on disk: checkpoints go as soon as nothing can start from them, and so do leftovers."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.book import Book, Proposal
from orchestrator.disk import clear, disk_line, disk_use, leftovers, sweep
from orchestrator.ledger import Ledger
from orchestrator.prepared import book_of
from orchestrator.pruning import Pruner
from orchestrator.recipe import Recipe
from trainables.checkpoints import checkpoint_name
from trainables.files import LEFT_BEHIND, replacing
from trainables.store import Store

PBT = {"name": "pbt", "population": 2, "interval": 1}
ASHA = {"name": "asha", "min_epochs": 1, "reduction_factor": 2}


class Stage:
    """A stage's book, with the checkpoints that its trials would have written."""

    def __init__(self, folder: Path, last: bool, **changes: Any) -> None:
        spec = {"name": "only", "trial": "distill", "epochs": 4, **changes}
        if changes.get("scheduler") == PBT:
            spec["optimizer"] = {"learning_rate": {"loguniform": [1e-3, 1.0]}}
        raw = {"name": "r", "task": {"dataset": "digits"}, "space": {"name": "resnet"}, "stages": [spec]}
        if changes.get("scheduler") == PBT:
            raw["student"] = {"depth1": 1, "depth2": 1, "depth3": 1, "width": 4}
        self.recipe, self.store, self.last = Recipe.parse(raw), Store(str(folder)), last
        self.ledger = Ledger(folder / "ledger.jsonl")
        self.book = self.replayed()
        self.prune = Pruner(self.book, self.store, last)

    def replayed(self) -> Book:
        """An empty book; the ledger is applied by its owner."""
        return book_of(self.recipe, self.recipe.stages[0], self.ledger)

    def trial(self, until: int = 4, **more: Any) -> int:
        number = len(self.book.trials)
        self.book.propose(Proposal({"width": number}, f"{number:016x}", {"params": 100}, until=until, **more))
        return number

    def report(self, number: int, epoch: int, objective: float = 0.5) -> None:
        self.store.write(checkpoint_name(number), b"whole")
        self.book.report(number, epoch, {"objective": objective}, seconds=0.1, worker="w:1")
        if epoch >= self.book.proposals[self.book.trials[number].proposal].until:
            self.book.end(number, "completed")
        self.prune([number])

    def end(self, kept: list[int]) -> None:
        self.book.keep(kept)
        self.book.close(seconds=1.0, slots=1)
        self.prune()

    @property
    def there(self) -> list[int]:
        return sorted(int(path.stem) for path in (Path(self.store.root) / "checkpoints").glob("*.pt"))


@pytest.fixture
def make(tmp_path):
    made = []

    def stage(last: bool, **changes: Any) -> Stage:
        made.append(Stage(tmp_path, last, **changes))
        return made[-1]

    yield stage
    for one in made:
        one.ledger.close()


def test_before_the_last_stage_only_what_runs_has_checkpoints(make):
    stage = make(last=False)
    for number in (stage.trial(), stage.trial()):
        stage.report(number, 1)
    assert stage.there == [0, 1]
    stage.report(0, 4)
    assert stage.there == [1]
    stage.report(1, 4)
    stage.end([1])
    assert stage.there == []


@pytest.mark.parametrize(("keep", "left"), [(1, [2]), (None, [0, 1, 2])], ids=["keep", "all"])
def test_the_last_stage_keeps_its_best_or_all_finalists(make, keep, left):
    stage = make(last=True, **({"keep": keep} if keep else {}))
    for _ in range(3):
        stage.report(stage.trial(), 4)
    assert stage.there == [0, 1, 2]  # nobody knows yet who is the best
    stage.end([2] if keep else [2, 1, 0])
    assert stage.there == left


def test_a_stopped_trial_needs_none(make):
    stage = make(last=True, scheduler=ASHA)
    for number, objective in enumerate((0.9, 0.1)):
        stage.trial()
        stage.report(number, 1, objective)
    assert stage.book.trials[1].status == "stopped"
    assert stage.there == [0]


def test_a_failed_trial_may_be_begun_again_until_the_stage_has_ended(make):
    stage = make(last=False)
    stage.report(stage.trial(), 1)
    stage.book.end(0, "failed", "it did")
    stage.report(stage.trial(), 4)
    stage.prune()
    assert stage.there == [0]
    stage.end([1])
    assert stage.there == []


@pytest.mark.parametrize("last", [True, False])
def test_a_population_holds_two_generations(make, last):
    stage = make(last=last, scheduler=PBT)
    for generation in range(4):
        parents = [2 * generation - 2, 2 * generation - 1] if generation else [None, None]
        numbers = [stage.trial(generation + 1, parent=parent, start_epoch=generation) for parent in parents]
        for number in numbers:
            stage.report(number, generation + 1)
            assert set(parents) - {None} <= set(stage.there)  # the other one still starts from them
        assert len(stage.there) <= 4
    stage.end(list(reversed(range(8))))
    assert stage.there == ([6, 7] if last else [])


def test_what_a_kill_left_goes_with_the_next_session(make):
    """The ledger has the end, the file is still there."""
    stage = make(last=False)
    stage.report(stage.trial(), 4)
    stage.report(stage.trial(), 1)
    stage.store.write(checkpoint_name(0), b"whole")
    Pruner(stage.book, stage.store, last=False)()
    assert stage.there == [1]


# Leftovers


def test_half_written_files_are_known_by_their_names(tmp_path):
    with replacing(tmp_path / "student.json") as temporary:
        assert LEFT_BEHIND.fullmatch(temporary.name)
    assert LEFT_BEHIND.fullmatch(".trials.parquet.4711.tmp")
    for name in ("ledger.jsonl", "00001.pt", ".hidden", ".config.yaml", "weights.safetensors"):
        assert not LEFT_BEHIND.fullmatch(name), name


def write(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)


def test_leftovers_are_swept_and_nothing_else(tmp_path):
    run = tmp_path / "a"
    kept = ["ledger.jsonl", "stages/01-short/checkpoints/00001.pt", "notes.txt", ".mine"]
    swept = [
        "stages/01-short/checkpoints/.00001.pt.k3_abcde",
        ".epochs.parquet.77.tmp",
        "tune/trials/x/y.json",
    ]
    for name in (*kept, *swept):
        write(run / name, 9)
    for name in (".a.abcdefgh", ".b.abcdefgh", ".a.b.abcdefgh", ".a"):  # of this run, and of others
        write(tmp_path / name / "run" / "recipe.yaml", 9)
    sweep(run)
    assert sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()) == sorted(kept)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a", ".a.b.abcdefgh", ".b.abcdefgh", "a"]


def test_a_finished_run_needs_no_teacher_outputs(tmp_path):
    write(tmp_path / "teacher-outputs" / "1.safetensors", 9)
    write(tmp_path / "teacher.safetensors", 9)
    assert leftovers(tmp_path) == [tmp_path / "teacher-outputs"]
    clear(tmp_path)
    assert leftovers(tmp_path) == []
    assert (tmp_path / "teacher.safetensors").exists()


# Disk use


def test_disk_use_says_what_takes_how_much(tmp_path):
    sizes = {
        "stages/01-short/checkpoints/00001.pt": 8_000_000,
        "stages/01-short/checkpoints/00002.pt": 100_000,
        "teacher-outputs/1.safetensors": 3_000_000,
        "ledger.jsonl": 1_200_000,
        "trials.parquet": 40_000,
        "recipe.yaml": 100,
    }
    for name, size in sizes.items():
        write(tmp_path / name, size)
    use = disk_use(tmp_path)
    assert use == {
        "checkpoints": 8_100_000,
        "teacher outputs": 3_000_000,
        "ledger": 1_200_000,
        "tables": 40_000,
        "other": 100,
    }
    assert disk_line(tmp_path) == "disk: 12.3 MB: checkpoints 8.1, teacher outputs 3.0, ledger 1.2"
    assert disk_line(tmp_path / "missing") == "disk: 0.0 MB"


def test_disk_use_of_many_files_is_quick(tmp_path):
    folder = tmp_path / "stages" / "01-short" / "checkpoints"
    folder.mkdir(parents=True)
    for number in range(10_000):
        os.close(os.open(folder / f"{number:05d}.pt", os.O_CREAT | os.O_WRONLY))
    started = time.process_time()
    assert disk_use(tmp_path) == {"checkpoints": 0}
    assert time.process_time() - started < 2
