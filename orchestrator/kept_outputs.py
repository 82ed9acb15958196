"""How much room the teachers' outputs over a stage's curricula would take."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.checks import corners
from orchestrator.recipe import domains_in, resolved
from orchestrator.specs import StageSpec
from spaces.domains import Domain, count
from trainables import losses
from trainables.contracts import Data, Member
from trainables.declare import Program
from trainables.teacher_outputs import bytes_per_image


def room(
    stage: StageSpec, declare: Callable[[Mapping[str, Any]], Program], teachers: Mapping[str, Member], data: Data
) -> tuple[float, list[str]]:
    """Gigabytes of all epochs' outputs, and what they are.

    Each epoch counts as often as students can differ in what their phase reads of a teacher: at every corner of a
    domain of the losses and the regime, while the others stand at their last ones. All of it counts once for each batch
    size that a domain can give, but not more often than the stage has trials.

    Args:
        declare: gives the program of settings without domains.
        teachers: for their sizes.
    """
    settings = stage.settings()
    hyper = domains_in(settings)
    usual = {path: corners(domain)[-1] for path, domain in hyper.items()}
    batch_sizes = corners(hyper["batch_size"]) if "batch_size" in hyper else [settings["batch_size"]]
    shapes = {name: losses.shapes_of(net, data.task) for name, net in teachers.items()}
    kept: dict[tuple[str, int, tuple[str, ...]], float] = {}  # bytes an image, by teacher, epoch and views
    for point in [usual, *_elsewhere(usual, hyper)]:
        program = declare(resolved(settings, point))
        for name, found in shapes.items():
            for epoch in range(1, program.epochs + 1):
                if views := program.views_of(name, epoch):
                    views = sorted({"logits", *views})
                    size = bytes_per_image(views, found.classes, dict(found.maps), max(batch_sizes))
                    kept[name, epoch, tuple(views)] = size
    curricula = min(count(hyper["batch_size"]) if "batch_size" in hyper else 1, stage.trials or math.inf)
    gigabytes = sum(kept.values()) * curricula * len(data.train) / 1e9
    return gigabytes, sorted({view for _, _, views in kept for view in views})


def _elsewhere(usual: Mapping[str, Any], hyper: Mapping[str, Domain]) -> list[dict[str, Any]]:
    """The points at which one domain of the losses or the regime stands at another corner."""
    shaping = {path: domain for path, domain in hyper.items() if path.startswith(("losses.", "regime."))}
    return [{**usual, path: value} for path, domain in shaping.items() for value in corners(domain)[:-1]]
