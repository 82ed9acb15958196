"""What a recipe would do: for `dux run --dry-run`."""

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Group, RenderableType
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from orchestrator import tracking
from orchestrator.prepared import Search
from orchestrator.recipe import Recipe
from orchestrator.replay import Replay
from orchestrator.schedulers import rungs
from orchestrator.specs import StageSpec
from spaces.seeding import generator
from trainables.context import StageContext
from trainables.contracts import Member, Split
from trainables.curriculum import Augment, Curriculum
from trainables.declare import Program
from trainables.fit import OptimizerConfig
from trainables.program_cost import operations
from trainables.regimes import REGIMES

SAMPLE = 100  # candidates from which shares and means are estimated
EACH, BATCH = 8, 32  # images of each class, and in a batch, by which a distillation's operations are counted
SCORE_COST = 3.0  # forward-backward passes of one batch, for a score; measured, see benchmarks/


def plan(recipe: Recipe) -> RenderableType:
    """The resolved recipe, the size of the space and how much of it is within the limits, and what it would cost."""
    tracking.check(recipe)
    if recipe.replay:
        return _replayed(recipe)
    search = Search.prepare(recipe)
    size, share = search.space.size(), search.feasible.share(SAMPLE)
    limits = ", ".join(f"{name} <= {limit:,g}" for name, limit in recipe.limits.given().items()) or "no limits"
    splits = (("training", search.data.train), ("validation", search.data.valid), ("test", search.data.test))
    images = ", ".join(f"{len(split):,} {name}" for name, split in splits)
    pixels, classes = search.data.task.image_size, len(search.data.classes)
    lines = [
        f"data {recipe.task.dataset}: {images} images of {pixels} pixels, {classes} classes",
        f"space {search.space.name}: {size:,.0f} candidates; "
        f"within {limits}: about {share * size:,.0f} ({share:.0%} of {SAMPLE} drawn)",
    ]
    rate, flops = _speed(search)
    table = Table("stage", "trials", "epochs at most", "an epoch in plain ones", "estimated device-seconds")
    total = 0.0
    carried = len(search.students) or None
    for stage in recipe.stages:
        taught = _proposals(stage, carried, share * size) * stage.seeds
        trials = taught * (2 if stage.control else 1)
        times, alone = _over_plain(search, stage)
        learned = _images(search, stage, taught) * times + _images(search, stage, trials - taught) * alone
        seconds = learned * 3 * flops / rate
        total += seconds
        epochs, cost = (str(stage.epochs), f"{times:.2f}") if stage.trial == "distill" else ("-", "-")
        table.add_row(stage.name, f"{trials:,}", epochs, cost, f"{seconds:,.0f}")
        carried = stage.keep
    lines.append(f"a mean candidate has {flops:,.0f} FLOPs and trains here at {rate / 1e9:.2f} GFLOPs a second")
    note = (
        f"about {total:,.0f} device-seconds, besides the teacher's training, its outputs and start-up; nothing was run"
    )
    return Group(Syntax(recipe.to_yaml(), "yaml"), *map(Text, lines), table, Text(note))


def _replayed(recipe: Recipe) -> RenderableType:
    replay = Replay.prepare(recipe)
    within = f"{len(replay.feasible.within):,} of them within the limits"
    line = f"replays {len(replay.table):,} recorded students, {within}, in virtual time; nothing is trained"
    return Group(Syntax(recipe.to_yaml(), "yaml"), Text(line))


def _proposals(stage: StageSpec, carried: int | None, candidates: float) -> int:
    if stage.scheduler.name == "pbt":
        settings = {"population": 8, "interval": 2, **stage.scheduler.settings}
        return int(settings["population"] * math.ceil((stage.epochs or 0) / settings["interval"]))
    beside = stage.rivals.count if stage.rivals else 0
    return stage.trials or (carried + beside if carried else int(candidates))


def _images(search: Search, stage: StageSpec, trials: int) -> float:
    """Images that a stage's students learn from, or are scored on."""
    if stage.trial == "score":
        return trials * SCORE_COST * stage.score_batch * len(stage.scores or ()) / 3
    epochs: float = stage.epochs or 0
    if stage.scheduler.name == "pbt":
        epochs = stage.scheduler.settings.get("interval", 2)
    if stage.scheduler.name == "asha":
        factor = stage.scheduler.settings.get("reduction_factor", 3)
        reached = [*rungs(stage.scheduler.settings.get("min_epochs", 1), factor, int(epochs)), epochs]
        steps = [b - a for a, b in zip([0.0, *reached], reached, strict=False)]
        epochs = sum(step / factor**k for k, step in enumerate(steps))
    return trials * epochs * len(search.data.train)


def _over_plain(search: Search, stage: StageSpec) -> tuple[float, float]:
    """What a student of the stage costs, and its control, in plain trainings of it: 1 for a student that is scored.

    The operations of the stage's declared program are counted over a few images of each class, in two epochs a phase;
    frozen teachers' outputs are left out. The program is that of one student, with a value drawn for each domain.
    """
    if stage.trial == "score":
        return 1.0, 1.0
    train = search.data.train
    first = np.concatenate([np.flatnonzero(train.labels == label)[:EACH] for label in np.unique(train.labels)])
    small = replace(search, data=replace(search.data, train=Split(train.images[first], train.labels[first])))
    plain = stage.model_copy(update={"regime": {"name": "plain"}, "losses": {"cross_entropy": 1.0}})
    settings, program = small.program(stage)
    times = _operations(small, settings, program) / _operations(small, *small.program(plain))
    return times, times if REGIMES[settings["regime"]["name"]].alone else 1.0


def _operations(search: Search, settings: Mapping[str, Any], program: Program) -> float:
    split, augment = search.data.train, Augment(**settings["augment"])
    batch_size = min(BATCH, settings["batch_size"])
    curriculum = Curriculum(split, len(search.data.classes), 0, batch_size, augment, torch.device("cpu"))
    frozen = {name: partial(_frozen, search, name) for name in search.teachers}
    return operations(program, curriculum, frozen, OptimizerConfig(learning_rate=1e-6), sampled=True)


def _frozen(search: Search, teacher: str) -> Member:
    return search.teacher_net(teacher).eval().requires_grad_(False)


def _speed(search: Search) -> tuple[float, float]:
    """FLOPs a second in training one candidate here (a few steps are timed), and the FLOPs of a mean candidate."""
    rng = generator("plan", search.recipe.seed)
    archs = search.recipe.given or [search.feasible.draw(rng) for _ in range(SAMPLE // 4)]
    mean = sum(search.feasible.cost(arch)["flops"] for arch in archs) / len(archs)
    context = StageContext(search.data, search.space, {}, 0, Path(), gpu=search.recipe.resources.gpu > 0)
    student = context.student(archs[0], 0).to(context.device)
    task = search.data.task
    batch = torch.rand(min(64, len(search.data.train)), task.channels, task.image_size, task.image_size)
    batch = batch.to(context.device)
    took = math.inf
    for _ in range(4):
        started = time.perf_counter()
        student(batch).sum().backward()
        took = min(took, time.perf_counter() - started)
    return 3 * search.feasible.cost(archs[0])["flops"] * len(batch) / took, mean
