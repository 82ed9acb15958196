"""Runs of Weights & Biases: one for each entry, grouped by search.

They have ids of their own (of search and entry), by which they are taken up again. What lies in files (`mode: offline`)
is written anew where it was cut off; `wandb sync` brings it over. Those files are where Weights & Biases has them
(`WANDB_DIR`, or the working directory), not with the run: its process puts links there that lead to the user's cache.
"""

import os
import shutil
from collections.abc import Container
from pathlib import Path
from typing import Any

from orchestrator.specs import WandbSpec
from orchestrator.tracking.entries import Entry, Point, RunFacts
from orchestrator.tracking.to_mlflow import table
from spaces import BadInput
from spaces.seeding import stable_hash


def check_credentials(spec: WandbSpec) -> None:
    """Raises `BadInput` if runs are to be sent and nobody has logged in: a thread cannot ask for a key."""
    if _mode(spec) != "online":
        return
    import wandb

    if not wandb.login(prompt=False):
        raise BadInput("tracking: wandb has no key: set WANDB_API_KEY, type `wandb login`, or give mode: offline")


def _mode(spec: WandbSpec) -> str:
    return spec.mode or os.environ.get("WANDB_MODE") or "online"


class Wandb:
    """Sends to a project, or writes files that can be sent."""

    def __init__(self, spec: WandbSpec) -> None:
        self.spec, self.folder = spec, Path(os.environ.get("WANDB_DIR") or Path.cwd()).absolute()
        self._runs: dict[str, Any] = {}
        self._facts = RunFacts("", "", "", 0.0)

    @property
    def to(self) -> str:
        """Project and mode; of files, their folder."""
        where = "" if _mode(self.spec) == "online" else f" {self.folder}"
        return f"{_mode(self.spec)} {self.spec.entity or ''}/{self.spec.project}{where}"

    def connect(self, run: RunFacts) -> None:
        """Each run connects itself."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self._facts = run

    def begin(self, entry: Entry) -> Container[int]:
        """Begin its run, or take it up again."""
        import wandb

        name = stable_hash([self._facts.id, entry.key])[:16]
        for file in self.folder.glob(f"*wandb/offline-run-*-{name}"):
            shutil.rmtree(file)
        self.folder.mkdir(parents=True, exist_ok=True)
        off = ("silent", "disable_git", "disable_code", "x_disable_stats", "x_disable_meta", "x_disable_machine_info")
        quiet = {"console": "off", "x_save_requirements": False, **dict.fromkeys(off, True)}
        run = self._runs[entry.key] = wandb.init(
            project=self.spec.project,
            entity=self.spec.entity,
            mode=self.spec.mode,
            dir=str(self.folder),
            id=name,
            resume="allow",
            reinit="create_new",
            name=entry.name,
            group=self._facts.name,
            job_type=entry.stage,
            config=entry.config,
            settings=wandb.Settings(**quiet),
        )
        run.define_metric(entry.step, hidden=True)
        run.define_metric("*", step_metric=entry.step)
        # A step of theirs is a report, in the ledger's order: scores of several workers do not come by number.
        return {point.step for point in entry.points[: run.starting_step]}

    def send(self, entry: Entry, points: list[Point]) -> None:
        """A row of its history for each point."""
        for point in points:
            self._runs[entry.key].log({**point.metrics, entry.step: point.step})

    def end(self, entry: Entry) -> None:
        """Its status and reason as a summary; of scores, their table."""
        run = self._runs.pop(entry.key)
        if entry.rows is not None:
            import wandb

            rows = [{name: _plain(value) for name, value in row.items()} for row in entry.rows.values()]
            columns, data = table(rows).values()
            run.log({"students": wandb.Table(columns=columns, data=data)})
        run.summary.update({"status": entry.status, **({"reason": entry.reason} if entry.reason else {})})
        run.finish(exit_code=1 if entry.status == "failed" else 0)

    def flush(self) -> None:
        """Its own process sees to that."""

    def finish(self) -> None:
        """Nothing more."""

    def close(self) -> None:
        """Their processes end; the runs can be taken up again."""
        while self._runs:
            self._runs.popitem()[1].finish()


def _plain(value: Any) -> Any:
    """Columns of a table are of one type each: what is no number is text."""
    return value if value is None or isinstance(value, bool | int | float) else str(value)
