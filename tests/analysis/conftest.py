"""Runs written event by event, as a search writes them."""

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest


class Run:
    """A run's directory whose ledger grows by one event a call."""

    def __init__(self, path: Path, name: str = "quickstart") -> None:
        self.path = path
        path.mkdir(parents=True)
        self.file = path / "ledger.jsonl"
        self._clock = count(1_700_000_000)
        self.add("run", schema=1, name=name, recipe="quickstart", dux="0.1.0")
        self.add("teacher", name="resnet", source="trained", params=70_000, flops=9_000_000, seconds=20.0,
                 sha256="ab" * 32, metrics={"valid_accuracy": 0.97, "test_accuracy": 0.96})  # fmt: skip

    def add(self, event: str, **values: Any) -> None:
        with self.file.open("a") as lines:
            lines.write(json.dumps({"event": event, "time": float(next(self._clock)), **values}) + "\n")

    def stage(self, name: str, index: int, trial: str = "distill", **values: Any) -> None:
        settings = {"sampler": "tpe", "scheduler": "none", "epochs": 3, "seeds": 1, "control": False, "combine": "sum"}
        self.add("stage", stage=name, index=index, trial=trial,
                 **{"objective": {"valid_accuracy": 1.0}, **settings, **values})  # fmt: skip

    def trial(self, stage: str, number: int, width: int = 8, **values: Any) -> None:
        usual = {"proposal": number, "seed": 0, "control": False, "parent": None, "start_epoch": 0}
        usual |= {"arch": {"width": width}, "hash": f"{width:016x}", "params": {}}
        usual |= {"cost": {"params": 100 * width, "flops": 1000 * width, "bytes": 400 * width}}
        self.add("trial", stage=stage, number=number, **{**usual, **values})

    def report(self, stage: str, number: int, epoch: int, accuracy: float, **metrics: Any) -> None:
        values = {"objective": accuracy, "valid_accuracy": accuracy, "train_loss": 1 - accuracy, "teacher_passes": 1}
        self.add("report", stage=stage, number=number, epoch=epoch, seconds=0.5, worker="w0",
                 metrics={**values, **metrics})  # fmt: skip

    def score(self, stage: str, number: int, reasons: dict[str, str] | None = None, **scores: float | None) -> None:
        names = {name.replace("__", "."): value for name, value in scores.items()}
        self.add("report", stage=stage, number=number, epoch=0, seconds=0.1, worker="w0", metrics=names,
                 reasons=reasons or {})  # fmt: skip

    def end(self, stage: str, number: int, status: str = "completed", reason: str | None = None) -> None:
        self.add("end", stage=stage, number=number, status=status, reason=reason)

    def distil(self, stage: str, number: int, curve: list[float], status: str = "completed", **values: Any) -> None:
        """A whole trial; its curve is the accuracy of each epoch."""
        last = values.pop("last", {})
        self.trial(stage, number, **values)
        for epoch, accuracy in enumerate(curve, 1):
            self.report(stage, number, epoch, accuracy, **(last if epoch == len(curve) else {}))
        self.end(stage, number, status)


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[..., Run]:
    """A function from directory and run names to a fresh run."""

    def new(directory: str = "run", name: str = "quickstart") -> Run:
        return Run(tmp_path / directory, name)

    return new


@pytest.fixture
def run(new_run: Callable[..., Run]) -> Run:
    """A search of three stages: scores of four students, a short distillation of three, a final one of two."""
    run = new_run()
    run.stage("score", 1, "score", objective={"diswot": 1.0, "snip": 1.0}, combine="rank", epochs=None)
    for number, width in enumerate((2, 4, 8, 16)):
        run.trial("score", number, width)
        if width == 2:
            run.score("score", number, {"diswot.semantic": "no classes in common"}, snip=0.5,
                      diswot__semantic=None, diswot__relation=-3.0)  # fmt: skip
        else:
            run.score("score", number, snip=float(width), diswot__semantic=-1.0 / width, diswot__relation=-2.0)
        run.end("score", number)
    run.add("keep", stage="score", proposals=[3, 2, 1])
    run.add("stage_end", stage="score", seconds=2.0, slots=2)
    run.stage("short", 2, scheduler="asha")
    run.distil("short", 0, [0.5, 0.6, 0.7], width=4, params={"losses.kd.temperature": 4, "lr": 0.1})
    run.distil("short", 1, [0.6, 0.7, 0.9], width=8, params={"losses.kd.temperature": 2, "lr": 0.05})
    run.distil("short", 2, [0.4], "stopped", width=16, params={"losses.kd.temperature": 8, "lr": 0.2})
    run.trial("short", 3, 2)
    run.report("short", 3, 1, 0.99)
    run.end("short", 3, "failed", "loss is not finite")
    run.add("keep", stage="short", proposals=[1, 0])
    run.add("stage_end", stage="short", seconds=9.0, slots=2)
    run.stage("final", 3, seeds=2, control=True)
    finals = [(8, 0, False, 0.90, 0.88), (8, 1, False, 0.94, 0.90), (8, 0, True, 0.80, 0.78), (8, 1, True, 0.84, 0.82),
              (4, 0, False, 0.80, 0.95), (4, 1, False, 0.82, 0.97)]  # fmt: skip
    for number, (width, seed, control, valid, test) in enumerate(finals):
        run.distil("final", number, [0.5, 0.6, valid], width=width, proposal=0 if width == 8 else 1, seed=seed,
                   control=control, last={"test_accuracy": test, "teacher_similarity": valid / 2})  # fmt: skip
    run.add("stage_end", stage="final", seconds=12.0, slots=2)
    run.add("run_end", seconds=60.0)
    return run
