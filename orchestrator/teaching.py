"""The teachers of a run: obtained once, kept in its directory, and given to each stage as it needs them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from orchestrator import kept_outputs
from orchestrator.addresses import to_resume
from orchestrator.disk import OUTPUTS
from orchestrator.errors import CannotGoOn, RunFailed
from orchestrator.experiment import Experiment, Turn, put
from orchestrator.obtaining import Obtaining
from orchestrator.prepared import Search, reads_teacher
from orchestrator.reuse import teachers_augment
from orchestrator.run_directory import Run
from orchestrator.search import Config
from orchestrator.specs import StageSpec
from orchestrator.watch import watched
from spaces import BadInput
from trainables import cost, teachers
from trainables.context import TeacherContext
from trainables.contracts import Member
from trainables.images import cache_dir
from trainables.teacher_training import TeacherTrial, Trained
from trainables.worker import Idle


class Teachers:
    """The teachers of a run: those that its directory has, and the others once a worker has obtained them, beside
    whatever else there is to do.
    """

    def __init__(self, run: Run, search: Search, experiment: Experiment) -> None:
        self._run, self._search, self._experiment = run, search, experiment
        self._known: dict[str, TeacherContext] = {}
        self._began_with = {name: _began_with(run, name) for name in search.teachers}
        for name, hash_ in self._began_with.items():
            if hash_ is not None and (kept := _kept(search, name, run.path / f"{name}.safetensors", hash_)) is not None:
                self._known[name] = kept
        configs = {name: self._config(name) for name in search.teachers if name not in self._known}
        idle = {"shared": put(Idle)} if configs else {}
        self._obtaining = Obtaining(configs, self._take, run.recipe.max_failures, idle)
        self._turn = Turn(self._obtaining, self._obtaining.scheduler, first=True)
        if configs:
            watched(experiment.slots)  # or nobody would ever obtain them
            experiment.begin(self._turn)

    def all(self, trials: int = 0) -> Mapping[str, TeacherContext]:
        """Waits until they are there.

        Args:
            trials: that will begin then, for which workers may as well start.

        Raises:
            CannotGoOn, RunFailed: one of them cannot be had.
        """
        if len(self._known) < len(self._search.teachers):
            self._obtaining.wait(min(trials, watched(self._experiment.slots)))
            watched(lambda: self._experiment.finish(self._turn), give_up=self._experiment.halt)
        return {name: self._known[name] for name in self._search.teachers}

    def of_stage(self, stage: StageSpec, candidates: int) -> Mapping[str, TeacherContext]:
        """As a stage needs them: as they are, for which it waits, with a place for their outputs; or as initialised.

        Args:
            candidates: that the stage begins with, where it does not say how many it tries.
        """
        if not reads_teacher(stage):
            return {}
        if stage.trial == "score" and stage.teacher != "given":
            return {name: _untrained(self._search, name) for name in self._search.teachers}
        return of_stage(stage, self.all(stage.trials or candidates), self._run, self._search)

    def _config(self, name: str) -> Config:
        recipe = self._run.recipe
        how = (self._search.teachers[name], teachers_augment(recipe), recipe.resources.gpu > 0, self._began_with[name])
        return {"shared": put(partial(TeacherTrial, *how))}

    def _take(self, name: str, report: Mapping[str, Any]) -> None:
        """Keep a teacher that was obtained, in the run's directory and its ledger.

        Raises:
            CannotGoOn: it was not.
            RunFailed: it is not the one that the run began with.
            OSError: of a full disk.
            RayError: its worker is gone, and with it what it has reported.
        """
        run, search, path = self._run, self._search, self._run.path / f"{name}.safetensors"
        if "disk" in report:
            raise OSError(*report["disk"])
        if "failed" in report:
            raise CannotGoOn(f"{name}: {report['failed']}")
        trained: Trained = ray.get(report["trained"].pop())  # out of the list, which Tune keeps to the end
        if self._began_with[name] not in (None, trained.hash):
            raise RunFailed(
                f"{path} is not the teacher that this run began with, and it does not come out the same again; put "
                f"that file back and go on: {to_resume(run.path)}"
            )
        config = search.teachers[name]
        member = teachers.build(config, search.data)
        member.net.load_state_dict({n: torch.from_numpy(np.array(array)) for n, array in trained.weights.items()})
        teachers.save_weights(member, path)
        run.ledger.append(
            "teacher",
            which=name,
            name=teachers.describe(config),
            source="kept" if trained.kept else _source(config),
            seconds=trained.seconds,
            worker=report["worker"],
            sha256=trained.hash,
            metrics=trained.metrics,
            params=cost.params(member.net),
            flops=cost.flops(member.net, search.data.task),
        )
        self._known[name] = TeacherContext(config, in_store(trained.weights), trained.hash, None)


def in_store(weights: Mapping[str, np.ndarray]) -> Callable[[], Mapping[str, np.ndarray]]:
    """Weights in the cluster's object store, from where workers map them. It is the driver that keeps them there."""
    return partial(_fetched, put(dict(weights)))


def _fetched(reference: ray.ObjectRef) -> Mapping[str, np.ndarray]:
    weights: Mapping[str, np.ndarray] = ray.get(reference)
    return weights


def _began_with(run: Run, name: str) -> str | None:
    """The hash of a teacher that the run's ledger tells of."""
    told = (event for event in run.events() if event["event"] == "teacher")
    return next((event.get("sha256") for event in told if event.get("which", "teacher") == name), None)


def _kept(search: Search, name: str, path: Path, began_with: str) -> TeacherContext | None:
    """The teacher from the run's directory; None if it is gone, damaged, or not the one that the run began with."""
    config = search.teachers[name]
    member = teachers.build(config, search.data)
    try:
        teachers.load_weights(member, path)
    except BadInput:
        return None
    if teachers.weights_hash(member) != began_with:
        return None
    return TeacherContext(config, in_store(_arrays(member)), began_with, None)


def _source(config: teachers.TeacherConfig) -> str:
    if config.weights:
        return "file"
    if config.train_epochs:
        return "trained"
    return "random" if config.random else "timm" if config.timm else "torchvision"


def _arrays(member: Member) -> dict[str, np.ndarray]:
    return {name: tensor.cpu().numpy() for name, tensor in member.net.state_dict().items()}


def of_stage(
    stage: StageSpec, taught_by: Mapping[str, TeacherContext], run: Run, search: Search
) -> Mapping[str, TeacherContext]:
    """Teachers that are there; for a distillation with a place for their outputs, where they are to be kept."""
    if stage.trial == "score" or not taught_by or too_large_to_keep(stage, run, search):
        return taught_by
    folder = run.path.resolve() / OUTPUTS
    if run.store.remote:  # then each node has a cache folder of its own, links in it or not
        folder = (run.path / OUTPUTS).relative_to(cache_dir())
    return {name: replace(teacher, outputs=folder) for name, teacher in taught_by.items()}


def _untrained(search: Search, name: str) -> TeacherContext:
    given = search.teachers[name]
    config = replace(given, random=True, weights=None, train_epochs=0, pretrained=False)
    member = teachers.build(config, search.data)
    return TeacherContext(config, in_store(_arrays(member)), teachers.weights_hash(member), None)


def too_large_to_keep(stage: StageSpec, run: Run, search: Search) -> str | None:
    """Why the teachers' outputs over a distillation are computed for each student; None if they are kept."""
    nets = {name: search.teacher_net(name) for name in search.teachers}
    gigabytes, views = kept_outputs.room(stage, search.declared(stage), nets, search.data)
    if gigabytes <= run.recipe.teacher_cache_gb:
        return None
    return (
        f"the teacher's outputs ({', '.join(views)}) would take {gigabytes:.1f} GB, more than teacher_cache_gb "
        f"{run.recipe.teacher_cache_gb:g}: they are computed for each student"
    )
