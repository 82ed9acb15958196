"""Runs in MLflow: one for the search, and within it one for each entry.

They are found again by their tags `dux.run` and `dux.entry`, and what is there of an entry by the history of one
metric, which is sent after all others of a step.
"""

import json
import logging
import os
import re
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

from orchestrator.specs import MLflowSpec
from orchestrator.tracking.entries import Entry, Point, RunFacts

PARAMS, METRICS = 100, 1000  # of one request at most, as MLflow's servers have it
LONGEST = 500  # characters of a value, which every version takes


class MLflow:
    """Speaks to a tracking server, or a database; which one says the recipe, or else MLflow's own environment."""

    def __init__(self, spec: MLflowSpec) -> None:
        self.spec = spec
        self._client: Any = None
        self._experiment = self._search = ""
        self._facts = RunFacts("", "", "", 0.0)
        self._known: dict[str, Any] = {}  # MLflow's runs of this search by entry
        self._ids: dict[str, str] = {}  # of those that this session has begun

    @property
    def to(self) -> str:
        """The store and the experiment."""
        where = self.spec.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"the default in {Path.cwd()}"
        return f"{where} {self.spec.experiment}"

    def connect(self, run: RunFacts) -> None:
        """Find the experiment, and what it has of this search."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("DO_NOT_TRACK", "true")
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._facts = run
        self._client = MlflowClient(tracking_uri=self.spec.uri)
        found = self._client.get_experiment_by_name(self.spec.experiment)
        try:
            self._experiment = found.experiment_id if found else self._client.create_experiment(self.spec.experiment)
        except MlflowException:  # another search has created it just now
            self._experiment = self._client.get_experiment_by_name(self.spec.experiment).experiment_id
        self._known = {one.data.tags.get("dux.entry", ""): one for one in self._runs()}
        self._search = self._run("", run.name, run.began, {"dux.recipe": run.recipe})

    def _runs(self) -> Iterator[Any]:
        token = None
        while True:
            some = self._client.search_runs(
                [self._experiment], f"tags.`dux.run` = '{self._facts.id}'", max_results=1000, page_token=token
            )
            yield from some
            token = some.token
            if not token:
                return

    def _run(self, key: str, name: str, began: float, tags: dict[str, str]) -> str:
        """The id of an entry's run, which is on from here."""
        known = self._known.get(key)
        if known is not None:
            if known.info.status != "RUNNING":
                self._client.update_run(known.info.run_id, status="RUNNING")
            return str(known.info.run_id)
        tags = {"dux.run": self._facts.id, "dux.entry": key, **tags}
        made = self._client.create_run(self._experiment, int(began * 1000), tags=tags, run_name=name)
        return str(made.info.run_id)

    def begin(self, entry: Entry) -> Container[int]:
        """Begin its run, or take it up again."""
        from mlflow.entities import Param

        tags = {"mlflow.parentRunId": self._search, "dux.stage": entry.stage}
        began = entry.points[0].time - entry.points[0].metrics.get("seconds", 0.0) if entry.points else entry.created
        run = self._ids[entry.key] = self._run(entry.key, entry.name, began, tags)
        params = [Param(_key(name), str(value)[:LONGEST]) for name, value in entry.config.items()]
        for some in _batches(params, PARAMS):
            self._client.log_batch(run, params=some)
        if entry.key not in self._known:
            return ()
        return {int(metric.value) for metric in self._client.get_metric_history(run, entry.step)}

    def send(self, entry: Entry, points: list[Point]) -> None:
        """All in few requests."""
        from mlflow.entities import Metric

        metrics = []
        for point in points:
            values = {**point.metrics, entry.step: point.step}  # the step itself last: then it is whole
            metrics += [Metric(_key(name), value, int(point.time * 1000), point.step) for name, value in values.items()]
        for some in _batches(metrics, METRICS):
            self._client.log_batch(self._ids[entry.key], metrics=some)

    def end(self, entry: Entry) -> None:
        """Its status and reason as tags; of scores, their table as an artifact."""
        run = self._ids.pop(entry.key)
        if entry.rows is not None:
            self._client.log_dict(run, table(list(entry.rows.values())), "students.json")
            listed = [{"path": "students.json", "type": "table"}]
            self._client.set_tag(run, "mlflow.loggedArtifacts", json.dumps(listed))
        self._client.set_tag(run, "dux.status", entry.status)
        if entry.reason:
            self._client.set_tag(run, "dux.reason", entry.reason[:LONGEST])
        status = "FAILED" if entry.status == "failed" else "FINISHED"
        self._client.set_terminated(run, status, int((entry.ended or 0) * 1000))

    def flush(self) -> None:
        """It is there already."""

    def finish(self) -> None:
        """The search's own run ends, too."""
        self._client.set_terminated(self._search, "FINISHED")

    def close(self) -> None:
        """Runs that have not ended stay as they are: on."""


def table(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Rows as `{columns, data}`; what a row lacks is null."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return {"columns": columns, "data": [[row.get(name) for name in columns] for row in rows]}


def _key(name: str) -> str:
    """A name of the characters that MLflow takes."""
    return re.sub(r"[^\w.:/ -]", "_", name)[:250]


def _batches(values: Sequence[Any], most: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), most):
        yield values[start : start + most]
