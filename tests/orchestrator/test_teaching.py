"""The teachers of a run: where their outputs lie, and what happens where Ray has died."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import kept_outputs, teaching
from trainables.context import TeacherContext
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
