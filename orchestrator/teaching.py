"""The teachers of a run: obtained once, kept in its directory, and given to each stage as it needs them."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayError

from orchestrator import kept_outputs
from orchestrator.addresses import to_resume
from orchestrator.disk import OUTPUTS
from orchestrator.errors import RunFailed
from orchestrator.prepared import Search
from orchestrator.run_directory import Run
from orchestrator.specs import StageSpec
from orchestrator.watch import watched
from spaces import BadInput
from trainables import cost, heartbeat, teacher_training, teachers
from trainables.context import TeacherContext
from trainables.images import cache_dir


def obtained(run: Run, search: Search, which: str) -> TeacherContext:
    """A teacher, trained or loaded once and kept in the run's directory."""
    config, path = search.teachers[which], run.path / f"{which}.safetensors"
    told = (event for event in run.events() if event["event"] == "teacher")
    noted = next((event for event in told if event.get("which", "teacher") == which), None)
    began_with = None if noted is None else noted.get("sha256")
    if began_with is not None and (kept := _kept(config, search, path, began_with)) is not None:
        return kept
    resources = run.recipe.resources
    alive = run.path.resolve() / heartbeat.FOLDER
    obtain = ray.remote(num_cpus=resources.cpu, num_gpus=resources.gpu)(_obtained_alive)
    augment = next((stage.augment for stage in run.recipe.stages if stage.augment), {})
    task = obtain.remote(alive, config, search.data, augment, resources.gpu > 0, began_with)
    trained: teacher_training.Trained = watched(lambda: ray.get(task), alive, lambda: _cancel(task))
    if began_with not in (None, trained.hash):
        raise RunFailed(
            f"{path} is not the teacher that this run began with, and it does not come out the same again; put that "
            f"file back and go on: {to_resume(run.path)}"
        )
    member = teachers.build(config, search.data)
    member.net.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in trained.weights.items()})
    teachers.save_weights(member, path)
    source = "kept" if trained.kept else _source(config)
    counted = {"params": cost.params(member.net), "flops": cost.flops(member.net, search.data.task)}
    run.ledger.append(
        "teacher",
        which=which,
        name=teachers.describe(config),
        source=source,
        seconds=trained.seconds,
        sha256=trained.hash,
        metrics=trained.metrics,
        **counted,
    )
    return TeacherContext(config, trained.weights, trained.hash, None)


def _cancel(task: Any) -> None:
    with suppress(RayError, RuntimeError, ConnectionError):  # Ray may be what has died, and `watched` tells that
        ray.cancel(task, force=True)


def _obtained_alive(alive: Path, *how: Any) -> teacher_training.Trained:
    """In a worker: the teacher, while the driver can see that the worker lives. Ray begins a lost one again."""
    heartbeat.start(alive)
    return teacher_training.obtain(*how)


def _kept(config: teachers.TeacherConfig, search: Search, path: Path, began_with: str) -> TeacherContext | None:
    """The teacher from the run's directory; None if it is gone, damaged, or not the one that the run began with."""
    member = teachers.build(config, search.data)
    try:
        teachers.load_weights(member, path)
    except BadInput:
        return None
    if teachers.weights_hash(member) != began_with:
        return None
    return TeacherContext(config, _arrays(member.net.state_dict()), began_with, None)


def _source(config: teachers.TeacherConfig) -> str:
    if config.weights:
        return "file"
    if config.train_epochs:
        return "trained"
    return "random" if config.random else "timm" if config.timm else "torchvision"


def _arrays(state: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.cpu().numpy() for name, tensor in state.items()}


def of_stage(
    stage: StageSpec, taught_by: Mapping[str, TeacherContext], run: Run, search: Search
) -> Mapping[str, TeacherContext]:
    """The teachers as a stage needs them: as they are, as initialised, or with a place for their outputs."""
    if stage.trial == "distill":
        if not taught_by or too_large_to_keep(stage, run, search):
            return taught_by
        folder = run.path.resolve() / OUTPUTS
        if run.store.remote:  # then each node has a cache folder of its own, links in it or not
            folder = (run.path / OUTPUTS).relative_to(cache_dir())
        return {name: replace(teacher, outputs=folder) for name, teacher in taught_by.items()}
    if stage.teacher == "given":
        return taught_by
    return {name: _untrained(teacher, search) for name, teacher in taught_by.items()}


def _untrained(teacher: TeacherContext, search: Search) -> TeacherContext:
    config = replace(teacher.config, random=True, weights=None, train_epochs=0, pretrained=False)
    member = teachers.build(config, search.data)
    return TeacherContext(config, _arrays(member.net.state_dict()), teachers.weights_hash(member), None)


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
