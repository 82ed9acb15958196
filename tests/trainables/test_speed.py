"""How networks compute while a student learns: in bf16, compiled, or as they are."""

from pathlib import Path
from typing import Any

import pytest
import torch
from bitwise import assert_same, through_a_file
from torch import Tensor

import spaces
from trainables import losses
from trainables.contracts import Data, Member, Outputs
from trainables.curriculum import Augment, Curriculum
from trainables.data import DataConfig, load
from trainables.declare import program
from trainables.fit import Fit, OptimizerConfig
from trainables.speed import Passes
from trainables.teacher_outputs import TeacherOutputs

CPU = torch.device("cpu")
RESNET = spaces.get("resnet")
BF16 = Passes("bf16")


@pytest.fixture(scope="module")
def data() -> Data:
    return load(DataConfig(subset=100, valid=20, test_subset=20))


def resnet(data: Data, width: int = 8, seed: int = 0) -> Member:
    torch.manual_seed(seed)
    arch = {"depth1": 1, "depth2": 1, "depth3": 1, "width": width}
    return Member.of(RESNET, RESNET.build(arch, data.task), data)


def fit_of(data: Data, passes: Passes, settings: dict[str, Any], device: torch.device = CPU) -> Fit:
    curriculum = Curriculum(data.train, len(data.classes), 0, 32, Augment(crop=1), device)
    student, teacher = resnet(data), resnet(data, 12, seed=1).eval().requires_grad_(False).to(device)
    torch.manual_seed(2)
    shapes = (losses.shapes_of(member, data.task) for member in (student, teacher))
    terms = losses.make_terms(settings, *shapes, images=len(data.train))
    views = [view for term in terms for view in term.teacher_views]
    outputs = TeacherOutputs(lambda: teacher, "t", data.fingerprint, curriculum, views, None, passes.precision)
    optimizer = OptimizerConfig(learning_rate=0.05)
    return Fit(program(student, terms, 3), curriculum, {"teacher": outputs}, optimizer, 7, passes)


def test_bf16_rounds_what_is_computed_and_not_what_comes_out(data) -> None:
    member, images = resnet(data).eval(), torch.rand(16, 1, 8, 8)
    exact, rounded = (passes(member, images, member.taps, True) for passes in (Passes(), BF16))

    def all_of(outputs: Outputs) -> list[Tensor]:
        assert outputs.embedding is not None
        return [outputs.logits, outputs.embedding, *outputs.features.values()]

    for one, other in zip(all_of(exact), all_of(rounded), strict=True):
        assert other.dtype == torch.float32
        # bf16 has 8 bits: a relative error of 2 ** -8 an operation, and some operations.
        assert 0 < (one - other).norm() / one.norm() < 0.03
    assert all(parameter.dtype == torch.float32 for parameter in member.parameters())


@pytest.mark.parametrize("settings", [{"cross_entropy": 0.1, "kd": 0.9}, {"fitnets": 1.0, "sp": 1.0}])
def test_a_student_learns_in_bf16_as_in_float32_but_for_the_rounding(data, settings) -> None:
    exact, rounded = (fit_of(data, passes, settings) for passes in (Passes(), BF16))
    for epoch in (1, 2, 3):
        one, other = exact.run_epoch(epoch), rounded.run_epoch(epoch)
        assert other.objective != one.objective
        assert other.objective == pytest.approx(one.objective, rel=0.05)
    assert all(parameter.dtype == torch.float32 for parameter in rounded.student.parameters())


def test_a_resumed_fit_in_bf16_equals_an_uninterrupted_one(data) -> None:
    settings = {"cross_entropy": 0.1, "kd": 0.9}
    whole, before, after = (fit_of(data, BF16, settings) for _ in range(3))
    reports = [whole.run_epoch(epoch).losses for epoch in (1, 2)]
    again = [before.run_epoch(1).losses]
    after.load_state_dict(through_a_file(before.state_dict()))
    assert [*again, after.run_epoch(2).losses] == reports
    assert_same(after.state_dict(), whole.state_dict())


def test_outputs_in_another_precision_are_kept_in_another_file(data, tmp_path: Path) -> None:
    teacher = resnet(data).eval()
    curriculum = Curriculum(data.train, len(data.classes), 0, 32, Augment(), CPU)

    def first(precision: Any) -> Tensor:
        outputs = TeacherOutputs(lambda: teacher, "t", data.fingerprint, curriculum, ["layer3"], tmp_path, precision)
        return next(outputs.epoch(1)).logits

    exact, rounded = first("float32"), first("bf16")
    assert not torch.equal(exact, rounded)
    assert torch.equal(first("float32"), exact)
    assert torch.equal(first("bf16"), rounded)


def compiled_like_plain(data: Data, passes: Passes, device: torch.device) -> None:
    settings = {"cross_entropy": 0.1, "kd": 0.9}
    plain, fast = fit_of(data, Passes(passes.precision), settings, device), fit_of(data, passes, settings, device)
    for epoch in (1, 2):
        assert fast.run_epoch(epoch).objective == pytest.approx(plain.run_epoch(epoch).objective, rel=0.02)
    assert plain.state_dict()["members"].keys() == fast.state_dict()["members"].keys()
    plain.load_state_dict(through_a_file(fast.state_dict()))
    assert_same(plain.state_dict(), fast.state_dict())


@pytest.mark.slow  # a minute of a C++ compiler
def test_a_compiled_student_learns_the_same_and_is_saved_the_same(data) -> None:
    compiled_like_plain(data, Passes("float32", "default"), CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compiled", ["default", "cuda-graphs"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_compiled_student_learns_the_same_on_a_gpu(data, precision, compiled) -> None:
    compiled_like_plain(data, Passes(precision, compiled), torch.device("cuda"))


def test_what_taps_are_read_of_is_not_compiled(data) -> None:
    """A hook in a compiled network would be compiled again each time."""
    member, images = resnet(data).eval(), torch.rand(2, 1, 8, 8)
    passes = Passes("float32", "default")
    assert torch.equal(passes(member, images, member.taps).logits, member(images))
    assert not passes._fast
