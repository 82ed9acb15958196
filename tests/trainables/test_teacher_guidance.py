"""The metric `teacher_guidance` of a distillation: where it is asked for, once for the teacher, whatever interrupts."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.stats import pearsonr

import spaces
from trainables import teachers, trial
from trainables.checkpoints import checkpoint_name
from trainables.context import StageContext, TeacherContext
from trainables.contracts import Data, Member
from trainables.data import DataConfig, load
from trainables.trial import DistillTrial, Json

ARCH = {"depth1": 1, "depth2": 1, "depth3": 1, "width": 4}
EPOCHS = 3
OBJECTIVE = {"valid_accuracy": 1.0, "teacher_guidance": 0.5}


@pytest.fixture(scope="module")
def data() -> Data:
    return load(DataConfig(subset=64, valid=40, test_subset=40))


@pytest.fixture
def context(data: Data, tmp_path: Path) -> StageContext:
    config = teachers.TeacherConfig(space="resnet", arch={**ARCH, "width": 6}, random=True)
    return a_context(data, tmp_path, config)


def a_context(data: Data, folder: Path, config: teachers.TeacherConfig) -> StageContext:
    member = teachers.build(config, data)
    weights = {name: tensor.numpy() for name, tensor in member.net.state_dict().items()}
    teacher = TeacherContext(config, lambda: weights, teachers.weights_hash(member), folder / "teacher-outputs")
    space = spaces.get("resnet")
    return StageContext(
        data, space, {"teacher": teacher}, 0, folder / "stage", gpu=False, epochs=EPOCHS, objective=OBJECTIVE
    )


def config_of(number: int = 0, seed: int = 0, reported: int = 0, control: bool = False) -> Json:
    settings: Mapping[str, Any] = {
        "regime": {"name": "offline"},
        "losses": {"cross_entropy": 0.1, "diswot_semantic": 10, "diswot_relation": 10},
        "optimizer": {"learning_rate": 0.05},
        "batch_size": 32,
        "augment": {"crop": 1},
        "precision": "float32",
    }
    base = {"number": number, "seed": seed, "arch": ARCH, "control": control, "settings": settings}
    return {**base, "until": EPOCHS, "reported": reported, "parent": None}


def started(context: StageContext, config: Json) -> DistillTrial:
    found = DistillTrial(context)
    found.begin(config)
    return found


def reports(one: DistillTrial, count: int = EPOCHS) -> list[Json]:
    return [json.loads(json.dumps(one.step()["reports"][0])) for _ in range(count)]


def guided(found: list[Json]) -> list[float]:
    return [report["metrics"]["teacher_guidance"] for report in found]


def without_times(found: list[Json]) -> list[Json]:
    return [{k: v for k, v in r["metrics"].items() if not k.endswith(("seconds", "passes"))} for r in found]


def dissimilarities(member: Member, images: np.ndarray) -> list[np.ndarray]:
    """Of each tap, without dux's own code for it."""
    pixels = torch.tensor(images, dtype=torch.float32) / 255
    with torch.no_grad():
        features = member.eval().outputs(pixels, member.taps).features
    return [pdist(features[tap].flatten(1).double().numpy(), "correlation") for tap in member.taps]


def test_it_is_the_guidance_on_validation_images(context, data, monkeypatch) -> None:
    monkeypatch.setattr(trial, "GUIDANCE_IMAGES", 1000)  # more than there are: all
    found = reports(started(context, config_of()))
    student = context.student(ARCH, 0)
    state = torch.load((context.folder / checkpoint_name(0)), weights_only=True)["fit"]["deployed"]
    student.net.load_state_dict(state)
    own, other = (dissimilarities(one, data.valid.images) for one in (student, context.teacher_member()))
    expected = np.mean([max(pearsonr(x, y)[0] for x in own) for y in other])
    assert guided(found)[-1] == pytest.approx(expected, abs=1e-6)
    assert len(set(guided(found))) == EPOCHS
    for report in found:
        metrics = report["metrics"]
        assert metrics["objective"] == metrics["valid_accuracy"] + 0.5 * metrics["teacher_guidance"]


def test_it_is_computed_where_the_objective_names_it(context) -> None:
    plain = reports(started(replace(context, objective=None), config_of()))
    assert all("teacher_guidance" not in report["metrics"] for report in plain)
    beside = replace(context, folder=context.folder / "other", objective={**OBJECTIVE, "teacher_guidance": 0.0})
    seen = reports(started(beside, config_of()))
    for one, other in zip(without_times(plain), without_times(seen), strict=True):
        assert {name: value for name, value in other.items() if name != "teacher_guidance"} == one


def test_it_sees_so_many_images_drawn_by_the_seed(context, monkeypatch) -> None:
    monkeypatch.setattr(trial, "GUIDANCE_IMAGES", 25)
    one = started(context, config_of())
    reports(one, 1)
    assert one._guide[0].shape == (25, 1, 8, 8)
    other = started(replace(context, seed=1), config_of())
    reports(other, 1)
    assert not torch.equal(one._guide[0], other._guide[0])


def test_a_resumed_trial_has_the_guidance_of_an_uninterrupted_one(context) -> None:
    whole = reports(started(context, config_of()))
    other = replace(context, folder=context.folder / "other")
    before = reports(started(other, config_of()), 1)
    after = reports(started(other, config_of(reported=1)), EPOCHS - 1)
    assert without_times(before + after) == without_times(whole)


def test_the_teacher_looks_at_the_images_once_for_all_trials_of_a_worker(context, monkeypatch) -> None:
    monkeypatch.setattr(trial, "GUIDANCE_IMAGES", 25)
    one = started(context, config_of())
    looks: list[int] = []
    one._teacher().register_forward_hook(lambda module, args, output: looks.append(len(args[0])))
    first = reports(one)
    one.begin(config_of(number=1, seed=1, control=True))
    second = reports(one)
    assert looks.count(25) == 1
    assert guided(first) != guided(second)
    fresh = started(replace(context, folder=context.folder / "other"), config_of(number=1, seed=1, control=True))
    assert guided(reports(fresh)) == guided(second)


def test_a_teacher_without_maps_is_a_failure_that_says_so(context, data) -> None:
    class Flat(torch.nn.Module):
        """Of the whole image at once."""

        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.flatten(1))

    one = started(context, config_of(control=True))
    one._teachers["teacher"] = Member(Flat(), (), "fc", data.mean, data.std).eval()
    [report] = reports(one, 1)
    assert report["failed"] == "teacher_guidance compares feature maps, and the teacher has none"
