"""The nodes of a running cluster: whether all can take part in a run, and what they hold."""

import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any
from uuid import uuid4

import ray
from ray.exceptions import RayError
from ray.tune.search import ConcurrencyLimiter, Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.addresses import to_resume
from orchestrator.errors import RunFailed
from orchestrator.run_directory import Run
from orchestrator.specs import Resources
from trainables.store import Store

ANSWERS_WITHIN = 60.0  # seconds, in which a node starts a worker and that looks for the run's files
SECONDS_BETWEEN_COUNTS = 5.0


@dataclass(frozen=True)
class Answer:
    """What a node says: why it cannot take part, if so, and the versions of what it would run."""

    problem: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


def versions() -> dict[str, str]:
    """What must be the same on all nodes. Builds of torch for different hardware (`2.9.0+cu128`) are one version."""
    found = {name: version(name).partition("+")[0] for name in ("dux-search", "ray", "torch")}
    return {**found, "Python": ".".join(platform.python_version_tuple()[:2])}


def check_nodes(run: Run) -> None:
    """Raises `RunFailed` unless every node that is there now reads and writes the run's files, with our versions.

    A node that joins later is not asked: what it cannot do shows in the reasons of its failed trials. One node alone
    is that of this process, and costs nothing.
    """
    names = {node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})" for node in _alive()}
    if len(names) == 1:
        return
    token = uuid4().hex[:8]
    run.store.write(_question(token), b"a driver asks its nodes whether they see this file\n")
    try:
        answers = _asked(run.store, token, list(names))
    finally:
        for name in (_question(token), *(_reply(token, node) for node in names)):
            run.store.remove(name)
    wrong = complaints({f"{names[node]} [{node[:6]}]": answer for node, answer in answers.items()}, versions())
    if wrong:
        raise RunFailed(
            f"not every node can take part: {'; '.join(wrong)}; put the run on storage that all nodes share, with one "
            f"installation on all of them, and go on: {to_resume(run.path)}"
        )


def _question(token: str) -> str:
    """The file that all nodes are to see. Named, as their replies, so that what a kill leaves is swept away."""
    return f".nodes.{token}"


def _reply(token: str, node: str) -> str:
    return f".nodes-{node}.{token}"


def complaints(answers: Mapping[str, Answer], here: Mapping[str, str]) -> list[str]:
    """What is wrong, a phrase for each node that cannot take part."""
    found = []
    for name, answer in answers.items():
        other = [f"{what} {has} (here {here[what]})" for what, has in answer.versions.items() if has != here[what]]
        if answer.problem or other:
            found.append(f"node {name} {answer.problem or 'has ' + ', '.join(other)}")
    return found


def _asked(store: Store, token: str, nodes: list[str]) -> dict[str, Answer]:
    """The answer of each node that is still there."""
    ask = ray.remote(num_cpus=0, max_retries=0)(_look)
    refs = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        refs[node] = ask.options(scheduling_strategy=there).remote(store, token, node)
    done, _ = ray.wait(list(refs.values()), num_returns=len(refs), timeout=ANSWERS_WITHIN)
    answers = {node: _answer(ref, ref in done) for node, ref in refs.items()}
    there_still = {node["NodeID"] for node in _alive()}
    return {node: answer for node, answer in answers.items() if node in there_still}


def _answer(ref: Any, done: bool) -> Answer:
    if not done:
        return Answer(f"does not answer within {ANSWERS_WITHIN:g} s")
    try:
        answer: Answer = ray.get(ref)
        return answer
    except RayError as error:  # dux cannot be imported there, most likely
        last = [line for line in str(error).splitlines() if line.strip()][-1:]
        return Answer(f"cannot run dux: {' '.join(last)[:200]}")


def _look(store: Store, token: str, node: str) -> Answer:
    """On a node: whether the run's files can be read and written from here."""
    try:
        if store.read(_question(token)) is None:
            return Answer(f"does not see {store.root}")
        store.write(_reply(token, node), b"")
    except OSError as error:
        return Answer(f"cannot use {store.root}: {error.strerror or error}")
    return Answer(versions=versions())


def trials_held(resources: Resources) -> int:
    """How many trials the nodes that are there now hold. A trial lies on one node, and a share of a GPU on one GPU."""
    return sum(held(node["Resources"], resources) for node in _alive())


def held(node: Mapping[str, float], resources: Resources) -> int:
    """How many trials one node holds."""
    fits = int(node.get("CPU", 0) / resources.cpu + 1e-9)
    if resources.gpu >= 1:
        fits = min(fits, int(node.get("GPU", 0) / resources.gpu))
    elif resources.gpu:
        fits = min(fits, int(node.get("GPU", 0)) * int(1 / resources.gpu + 1e-9))
    return fits


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


class AsManyAsFit(ConcurrencyLimiter):
    """Lets as many trials run as the cluster has room for now: nodes that join in the middle of a stage get work."""

    def __init__(self, searcher: Searcher, at_once: Callable[[], int]) -> None:
        super().__init__(searcher, at_once())
        self._at_once = at_once
        self._counted = time.monotonic()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """What the searcher suggests; None while there is no room."""
        if time.monotonic() - self._counted > SECONDS_BETWEEN_COUNTS:
            with suppress(RayError):  # a head that is being restarted: the last count will do
                self.max_concurrent = self._at_once()
            self._counted = time.monotonic()
        return super().suggest(trial_id)

    def get_state(self) -> dict[str, Any]:
        """Nothing for Tune to keep: the ledger is the truth."""
        return {}

    __getstate__ = get_state
