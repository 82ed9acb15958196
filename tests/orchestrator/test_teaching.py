"""The teachers of a run: who waits for them, what is kept of them, and where their outputs lie."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from orchestrator import kept_outputs, teaching
from orchestrator.errors import CannotGoOn, RunFailed
from orchestrator.experiment import Turn
from orchestrator.prepared import Search
from orchestrator.recipe import Recipe
from orchestrator.run_directory import Run
from orchestrator.teaching import Teachers
from spaces import BadInput
from trainables import teacher_training, teachers
from trainables.context import StageContext, TeacherContext
from trainables.teacher_training import TeacherTrial
from trainables.teachers import TeacherConfig


@pytest.mark.parametrize("linked", [False, True])
def test_outputs_of_a_run_in_a_store_lie_in_each_nodes_cache(
    linked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_outputs, "room", lambda *_: (0.0, []))
    runs = tmp_path / "cache" / "runs"
    runs.parent.mkdir()
    (tmp_path / "disk").mkdir()
    runs.symlink_to(tmp_path / "disk") if linked else runs.mkdir()
    run: Any = SimpleNamespace(
        path=runs / "store" / "a", store=SimpleNamespace(remote=True), recipe=SimpleNamespace(teacher_cache_gb=1.0)
    )
    search: Any = SimpleNamespace(teacher_net=lambda _: None, declared=lambda _: None, data=None, teachers=["teacher"])
    teacher = TeacherContext(TeacherConfig(timm="resnet10t", random=True), dict, "a", None)
    stage: Any = SimpleNamespace(trial="distill")
    found = teaching.of_stage(stage, {"teacher": teacher}, run, search)
    assert found["teacher"].outputs == Path("runs/store/a/teacher-outputs")


# Obtaining them, without Ray

RECIPE = {
    "name": "tiny",
    "task": {"dataset": "digits", "subset": 64, "valid": 40, "test_subset": 40},
    "teacher": {"space": "resnet", "arch": {"depth1": 1, "depth2": 1, "depth3": 1, "width": 2}, "train_epochs": 1},
    "space": {"name": "resnet", "choices": {"depth1": [1], "depth2": [1], "depth3": [1], "width": [2, 3]}},
    "stages": [
        {"name": "size", "trial": "score", "scores": ["params"], "sampler": "grid", "trials": 2, "keep": 2},
        {"name": "unlike", "trial": "score", "scores": ["rdm"], "teacher": "random", "keep": 2},
        {"name": "like", "trial": "score", "scores": ["rdm"], "keep": 2},
        {"name": "final", "trial": "distill", "epochs": 1},
    ],
}


class Workers:
    """An experiment whose one worker works when it is told to."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []

    def slots(self) -> int:
        return 4

    def begin(self, turn: Turn) -> None:
        self.turns.append(turn)

    def finish(self, turn: Turn) -> None:
        """Whoever waits has the worker work."""
        while isinstance(config := turn.searcher.suggest("a"), dict):
            work = config["shared"](self.data)
            if isinstance(work, TeacherTrial):
                reports = [{"worker": "w:1", **report} for report in work.step()["reports"]]
                turn.searcher.on_trial_complete("a", {"reports": reports})
        if turn.scheduler.failure is not None:
            raise turn.scheduler.failure

    def halt(self) -> None:
        raise AssertionError


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A run whose object store is this process; nobody watches Ray."""
    monkeypatch.setenv("DUX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray, "get", lambda reference: reference)
    monkeypatch.setattr(teaching, "put", lambda value: value)
    monkeypatch.setattr(teaching, "watched", lambda work, give_up=None: work())
    with Run.create(Recipe.parse(RECIPE), tmp_path, "a") as made:
        yield made


def obtaining(run: Run) -> tuple[Search, Workers, Teachers]:
    search, workers = Search.prepare(run.recipe), Workers()
    workers.data = search.data
    return search, workers, Teachers(run, search, workers)  # type: ignore[arg-type]


def told(run: Run) -> list[dict[str, Any]]:
    return [event for event in run.events() if event["event"] == "teacher"]


def test_only_what_reads_a_teacher_s_weights_waits_for_them(run: Run) -> None:
    search, workers, lacking = obtaining(run)
    size, unlike, like, final = run.recipe.stages
    [turn] = workers.turns
    assert turn.first
    assert lacking.of_stage(size, 2) == {}
    untrained = lacking.of_stage(unlike, 2)["teacher"]
    assert (untrained.config.random, untrained.config.train_epochs) == (True, 0)
    assert told(run) == []  # none of them has waited
    trained = lacking.of_stage(like, 2)["teacher"]
    [event] = told(run)
    assert (event["sha256"], event["source"], event["worker"]) == (trained.hash, "trained", "w:1")
    assert trained.hash != untrained.hash
    assert (run.path / "teacher.safetensors").is_file()
    at_the_end = lacking.of_stage(final, 2)["teacher"]
    assert (trained.outputs, at_the_end.outputs) == (None, run.path.resolve() / "teacher-outputs")
    assert at_the_end.hash == trained.hash
    member = StageContext(search.data, search.space, {"teacher": trained}, 0, run.path, gpu=False).teacher_member()
    assert teachers.weights_hash(member) == trained.hash


def test_a_resumed_run_has_its_teacher_and_one_that_is_gone_comes_out_the_same(run: Run) -> None:
    first = obtaining(run)[2].all()["teacher"]
    _, workers, again = obtaining(run)
    assert workers.turns == []
    assert again.all()["teacher"].hash == first.hash
    (run.path / "teacher.safetensors").unlink()
    _, workers, anew = obtaining(run)
    assert len(workers.turns) == 1
    assert anew.all()["teacher"].hash == first.hash
    assert [event["source"] for event in told(run)] == ["trained", "kept"]


def test_another_teacher_than_the_run_began_with_is_refused_and_not_kept(run: Run) -> None:
    run.ledger.append("teacher", which="teacher", name="resnet", source="trained", seconds=1.0, sha256="another")
    with pytest.raises(RunFailed, match="is not the teacher that this run began with"):
        obtaining(run)[2].all()
    assert not (run.path / "teacher.safetensors").exists()
    assert len(told(run)) == 1


def test_why_a_teacher_cannot_be_had_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any, **__: Any) -> None:
        raise BadInput("teacher.weights: w.pt is not there")

    monkeypatch.setattr(teacher_training, "obtain", gone)
    with pytest.raises(CannotGoOn, match=r"^teacher: teacher.weights: w.pt is not there$"):
        obtaining(run)[2].all()


def test_workers_start_for_the_trials_that_wait_and_no_more(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(teaching.Obtaining, "wait", lambda self, workers: asked.append(workers))
    lacking = obtaining(run)[2]
    size, *_, final = run.recipe.stages
    lacking.of_stage(size, 2)
    lacking.of_stage(final, 3)
    lacking.of_stage(final, 3)  # it is there now
    obtaining(run)[2].all()
    assert asked == [3]
