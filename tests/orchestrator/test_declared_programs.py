"""What is made of a recipe's declared programs before anything runs: checks, room for outputs, the plan."""

from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator import kept_outputs
from orchestrator.plan import _over_plain
from orchestrator.prepared import Search
from orchestrator.recipe import Recipe
from spaces import BadInput
from trainables.context import StageContext

ARCH = {"depth1": 1, "depth2": 1, "depth3": 1, "width": 2}
TEACHER = {"space": "resnet", "arch": {**ARCH, "width": 3}, "random": True}
RAW: dict[str, Any] = {
    "name": "declared",
    "task": {"dataset": "digits", "subset": 40, "valid": 20, "test_subset": 20},
    "teacher": TEACHER,
    "space": {"name": "resnet", "choices": {"width": [2, 3, 4]}},
    "student": ARCH,
}
IMAGES, LOGITS = 40, 4 * 10  # an image's logits in bytes


def prepared(recipe: dict[str, Any] | None = None, **stage: Any) -> Search:
    whole = {"name": "only", "trial": "distill", "epochs": 4, "trials": 3, "batch_size": 20, **stage}
    return Search.prepare(Recipe.parse({**RAW, **(recipe or {}), "stages": [whole]}))


@pytest.mark.parametrize("seed", [0, 3])
def test_the_program_that_is_checked_is_that_of_the_trials(seed: int) -> None:
    search = prepared({"seed": seed})
    _, program = search.program(search.recipe.stages[0])
    context = StageContext(search.data, search.space, {}, seed, Path(), gpu=False)
    wanted = context.student(ARCH, 0).state_dict()
    found = program.members["student"].state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_teachers_that_nobody_reads_are_refused() -> None:
    more = {"more_teachers": [{**TEACHER, "seed": 1}]}
    with pytest.raises(BadInput, match="more_teachers are read by no stage; regimes that read them: several_teachers"):
        prepared(more)
    assert len(prepared(more, regime="several_teachers").teachers) == 2
    prepared(more, regime={"choice": ["offline", "several_teachers"]}, losses={"cross_entropy": 1, "kd": 1})


def room(**stage: Any) -> tuple[float, list[str]]:
    """In bytes, and of what."""
    search = prepared(**stage)
    nets = {name: search.teacher_net(name) for name in search.teachers}
    gigabytes, views = kept_outputs.room(
        search.recipe.stages[0], search.declared(search.recipe.stages[0]), nets, search.data
    )
    return round(gigabytes * 1e9), views


MAP = 4 * (4 * 3) * 2 * 2  # the teacher's last map, four times its width, 2 x 2, in bytes
ROOMS: dict[str, tuple[dict[str, Any], float]] = {
    "every epoch": ({}, 4 * LOGITS),
    "no teacher": ({"regime": "plain"}, 0),
    "a teacher that teaches for some epochs": (
        {"regime": {"name": "teacher_assistants", "student_share": 0.75}, "losses": {"cross_entropy": 0.1, "kd": 0.9}},
        1 * LOGITS,
    ),
    "logits stand beside all else": (
        {"losses": {"cross_entropy": 1, "fitnets": {"pairs": [["layer3", "layer3"]]}}}, 4 * (LOGITS + MAP)
    ),
    "batch sizes": ({"batch_size": {"choice": [10, 20]}}, 2 * 4 * LOGITS),
    "more batch sizes than trials": ({"batch_size": {"randint": [10, 20]}}, 3 * 4 * LOGITS),
    "a loss that may be off": (
        {"losses": {"kd": 1, "fitnets": {"weight": {"choice": [0, 1]}, "pairs": [["layer3", "layer3"]]}}},
        4 * (LOGITS + LOGITS + MAP),
    ),
    "a setting that changes nothing of it": (
        {"losses": {"cross_entropy": 1, "kd": {"temperature": {"uniform": [1, 4]}}}}, 4 * LOGITS
    ),
}  # fmt: skip


@pytest.mark.parametrize(("stage", "bytes_"), ROOMS.values(), ids=ROOMS)
def test_the_room_for_the_teachers_outputs(stage: dict[str, Any], bytes_: float) -> None:
    found, views = room(**stage)
    assert found == IMAGES * bytes_
    assert ("logits" in views) == bool(bytes_)


def test_a_plan_counts_what_the_regime_costs() -> None:
    def over_plain(regime: Any) -> tuple[float, float]:
        search = prepared(regime=regime)
        return _over_plain(search, search.recipe.stages[0])

    assert over_plain("offline") == (1, 1)
    assert over_plain({"name": "dml", "peers": 3}) == (3, 1)
    taught, alone = over_plain("cheap_convolutions")
    assert taught == alone > 1  # its full network learns beside it, without a frozen teacher too
