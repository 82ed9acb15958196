"""The training loop: it can be paused anywhere, leaves the teacher alone, and lies in memory as torch can bear it."""

import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bitwise import assert_same, through_a_file
from torch import Tensor, nn

import spaces
from spaces import BadInput, Task
from trainables import losses
from trainables.contracts import Data, Member, Outputs, Split
from trainables.curriculum import Augment, Curriculum
from trainables.data import DataConfig, load
from trainables.declare import program
from trainables.fit import Fit, NonFiniteLoss, OptimizerConfig, memory_format
from trainables.losses import LOSSES, Term
from trainables.teacher_outputs import TeacherOutputs

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
STEPS = 3  # an epoch: 100 images in batches of 32
RESNET = spaces.get("resnet")
CE: dict[str, Any] = {"cross_entropy": 1.0}
KD: dict[str, Any] = {"cross_entropy": 0.1, "kd": 0.9}


class Dropping(nn.Module):
    """A network whose forward pass draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        self.fc = nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stage(x).mean((2, 3)))


@pytest.fixture(scope="module")
def data() -> Data:
    return load(DataConfig(subset=100, valid=20, test_subset=20))


def resnet(data: Data, width: int = 4, seed: int = 0) -> Member:
    torch.manual_seed(seed)
    arch = {"depth1": 1, "depth2": 1, "depth3": 1, "width": width}
    return Member.of(RESNET, RESNET.build(arch, data.task), data)


def dropping(data: Data) -> Member:
    torch.manual_seed(0)
    return Member(Dropping(), ("stage",), "fc", data.mean, data.std)


def teacher_of(data: Data, width: int = 6) -> Member:
    return resnet(data, width, seed=1).eval().requires_grad_(False)


def curriculum_of(data: Data, augment: Augment = Augment(crop=1)) -> Curriculum:  # noqa: B008 (frozen)
    return Curriculum(data.train, len(data.classes), 0, 32, augment, CPU)


def fit_of(
    data: Data,
    settings: dict[str, Any] = KD,
    student: Member | None = None,
    teacher: Member | None = None,
    terms: list[Term] | None = None,
    **optimizer: Any,
) -> Fit:
    """A fit of four epochs; the same arguments give the same fit."""
    student, curriculum = student or resnet(data), curriculum_of(data)
    teacher = teacher or teacher_of(data)
    if terms is None:
        shapes = (losses.shapes_of(member, data.task) for member in (student, teacher))
        torch.manual_seed(2)
        terms = losses.make_terms(settings, *shapes, images=len(data.train))
    views = [view for term in terms for view in term.teacher_views]
    outputs = TeacherOutputs(lambda: teacher, "t", data.fingerprint, curriculum, views, None)
    return Fit(program(student, terms, 4), curriculum, {"teacher": outputs}, OptimizerConfig(**optimizer), 7)


def spy(seen: list[float], holder: list[Fit]) -> Term:
    """A term without a gradient that notes the learning rate of each step."""

    def loss(student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        seen.append(holder[0].optimizers["main"].param_groups[0]["lr"])
        return (0 * student.logits).sum()

    return Term("spy", 1.0, loss, (), ())


# Pausing


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("make", [resnet, lambda data: resnet(data, 8), dropping], ids=["narrow", "wide", "dropout"])
def test_a_resumed_fit_equals_an_uninterrupted_one(data, make, optimizer) -> None:
    settings = {"cross_entropy": 0.1, "kd": 0.9, "fitnets": {"weight": 1.0}}

    def new() -> Fit:
        return fit_of(data, settings, make(data), name=optimizer, learning_rate=0.01)

    whole, before, after = new(), new(), new()
    reports = [whole.run_epoch(epoch).losses for epoch in (1, 2, 3, 4)]
    again = [before.run_epoch(epoch).losses for epoch in (1, 2)]
    torch.manual_seed(12345)  # what others draw in between does not matter
    after.load_state_dict(through_a_file(before.state_dict()))
    again += [after.run_epoch(epoch).losses for epoch in (3, 4)]
    assert again == reports
    assert_same(after.state_dict(), whole.state_dict())


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_can_be_paused_and_is_reported_as_the_mean_over_the_steps(data, name) -> None:
    def new() -> Fit:
        return fit_of(data, {name: 1.0}, teacher=teacher_of(data, 4), learning_rate=0.01)

    whole, after = new(), new()
    values: list[float] = []
    [term] = whole.terms

    def noted(*outputs: Any) -> Tensor:
        value = inner(*outputs)
        values.append(value.item())
        return value

    inner = term.loss.forward if isinstance(term.loss, nn.Module) else term.loss
    if isinstance(term.loss, nn.Module):
        term.loss.forward = noted  # its connectors stay parameters of the loss
    else:
        whole = fit_of(data, teacher=teacher_of(data, 4), terms=[replace(term, loss=noted)], learning_rate=0.01)
    first = whole.run_epoch(1)
    assert first.losses[name] == pytest.approx(sum(values) / STEPS, rel=1e-5)
    assert len(values) == STEPS
    assert first.teacher_passes == bool(term.needs_teacher)
    assert 0 <= first.teacher_seconds <= first.seconds
    after.load_state_dict(through_a_file(whole.state_dict()))
    assert after.run_epoch(2).losses == whole.run_epoch(2).losses
    assert_same(after.state_dict(), whole.state_dict())


def test_connectors_are_trained_and_saved(data) -> None:
    fit = fit_of(data, {"fitnets": 1.0})
    before = {name: tensor.clone() for name, tensor in fit.state_dict()["losses"].items()}
    fit.run_epoch(1)
    assert before
    for name, tensor in fit.state_dict()["losses"].items():
        assert not torch.equal(tensor, before[name])


def test_new_settings_of_the_optimizer_survive_the_loading_of_a_state(data) -> None:
    old = fit_of(data, learning_rate=0.1, momentum=0.9, weight_decay=5e-4)
    old.run_epoch(1)
    seen: list[float] = []
    holder: list[Fit] = []
    new = fit_of(data, terms=[spy(seen, holder)], learning_rate=0.02, momentum=0.5, weight_decay=1e-3)
    holder.append(new)
    new.load_state_dict(through_a_file(old.state_dict()))
    assert [group["momentum"] for group in new.optimizers["main"].param_groups] == [0.5, 0.5]
    assert [group["weight_decay"] for group in new.optimizers["main"].param_groups] == [1e-3, 0.0]
    assert_same(new.optimizers["main"].state_dict()["state"], old.optimizers["main"].state_dict()["state"])
    new.run_epoch(3)
    assert seen[0] == pytest.approx(0.02 * 0.5)  # half of the epochs are over


# What is learned from


@pytest.mark.parametrize("how", ["setting", "term"])
def test_distillation_of_weight_0_is_plain_training(data, how) -> None:
    plain = fit_of(data, CE)
    without = fit_of(data, {"cross_entropy": 1.0, "kd": 0.0 if how == "setting" else 0.5})
    if how == "term":
        terms = [replace(term, weight=1.0 if term.name == "cross_entropy" else 0.0) for term in without.terms]
        without = fit_of(data, terms=terms)
    with_teacher = fit_of(data)
    for fit in (plain, without, with_teacher):
        fit.run_epoch(1)
    assert_same(without.state_dict(), plain.state_dict())
    states = [fit.student.state_dict() for fit in (plain, with_teacher)]
    assert not torch.equal(*(state["net.fc.weight"] for state in states))


@pytest.mark.parametrize("name", LOSSES)
def test_the_teacher_stays_as_it_was(data, name) -> None:
    teacher = teacher_of(data, 4)
    before = {key: tensor.clone() for key, tensor in teacher.state_dict().items()}
    fit_of(data, {"cross_entropy": 0.1, name: 0.9}, teacher=teacher).run_epoch(1)
    assert_same(dict(teacher.state_dict()), before)
    assert not any(module.training for module in teacher.modules())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_student_that_learns_gets_better(data) -> None:
    fit = fit_of(data, CE, resnet(data, 8))
    found = [fit.run_epoch(epoch).losses["cross_entropy"] for epoch in (1, 2, 3, 4)]
    assert found[-1] < found[0] - 0.1


def test_an_absurd_learning_rate_is_an_error_that_names_the_epoch(data) -> None:
    fit = fit_of(data, learning_rate=1e30, warmup_epochs=0)
    with pytest.raises(NonFiniteLoss, match="epoch 1"):
        fit.run_epoch(1)


# The optimiser


@pytest.mark.parametrize(
    ("warmup", "expected"),
    [
        # Four epochs of three steps. cos(0, 15, 30, 45, 90, 165 degrees); ramp at 1/6, 3/6, 5/6 of the first epoch.
        (1, {0: 1 / 6, 1: 0.982963 / 2, 2: 0.933013 * 5 / 6, 3: 0.853553, 6: 0.5, 11: 0.017037}),
        (0, {0: 1.0, 1: 0.982963, 3: 0.853553, 6: 0.5, 11: 0.017037}),
        (0.5, {0: 1 / 3, 1: 0.982963, 2: 0.933013}),
    ],
)
def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine(data, warmup, expected) -> None:
    seen: list[float] = []
    holder: list[Fit] = []
    holder.append(fit_of(data, terms=[spy(seen, holder)], learning_rate=0.2, warmup_epochs=warmup))
    for epoch in (1, 2, 3, 4):
        holder[0].run_epoch(epoch)
    if warmup == 0.5:
        expected = expected | {1: 0.982963 * (1 / 3 + 1 / 6) / 0.5}  # still within the ramp, which it ends
    assert len(seen) == 4 * STEPS
    for step, share in expected.items():
        assert seen[step] == pytest.approx(0.2 * share, rel=1e-5), step


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weights_decay_but_neither_biases_nor_batch_norm(data, name) -> None:
    student = resnet(data)
    before = {key: parameter.detach().clone() for key, parameter in student.named_parameters()}
    holder: list[Fit] = []
    term = spy([], holder)
    optimizer = {"learning_rate": 0.1, "weight_decay": 0.5, "momentum": 0.0, "warmup_epochs": 0}
    holder.append(fit_of(data, student=student, terms=[term], name=name, **optimizer))
    holder[0].run_epoch(1)  # without a gradient, decay is all that happens
    rates = [0.1 * 0.5 * (1 + math.cos(math.pi * step / (4 * STEPS))) for step in range(STEPS)]
    kept = math.prod(1 - 0.5 * rate for rate in rates)
    for key, parameter in student.named_parameters():
        if "bn" in key or key.endswith(("bias", "shortcut.1.weight")):
            assert torch.equal(parameter, before[key]), key
        else:
            torch.testing.assert_close(parameter.detach(), before[key] * kept, rtol=1e-5, atol=1e-7)


def test_an_optimizer_that_cannot_be_is_refused() -> None:
    with pytest.raises(BadInput, match="name must be one of sgd, adamw, not 'sdg'"):
        OptimizerConfig(name="sdg")
    for rate in (0.0, -1.0, math.nan):
        with pytest.raises(BadInput, match="learning_rate must be a number above 0"):
            OptimizerConfig(learning_rate=rate)


# Layout in memory


@pytest.mark.parametrize(
    ("width", "device", "wanted"),
    [
        (4, "cpu", torch.contiguous_format),
        (7, "cpu", torch.contiguous_format),
        (8, "cpu", torch.channels_last),
        (16, "cpu", torch.channels_last),
        (4, "cuda", torch.channels_last),
    ],
)
def test_only_networks_that_torch_can_bear_are_channels_last(width, device, wanted) -> None:
    net = RESNET.build({"depth1": 1, "depth2": 1, "depth3": 1, "width": width}, Task(3, 8, 10))
    assert memory_format(net, torch.device(device)) == wanted


def test_one_narrow_layer_is_enough() -> None:
    wide = [nn.Conv2d(1, 8, 3), nn.Conv2d(8, 16, 3)]
    assert memory_format(nn.Sequential(*wide), CPU) == torch.channels_last
    assert memory_format(nn.Sequential(*wide, nn.Conv2d(16, 5, 1)), CPU) == torch.contiguous_format


@pytest.mark.parametrize("width", [4, 8])
def test_every_convolution_sees_the_layout_that_was_chosen(data, width) -> None:
    student = resnet(data, width)
    strides: list[tuple[Any, ...]] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        chosen = torch.channels_last if width == 8 else torch.contiguous_format
        strides.append((output.stride(), torch.empty(output.shape, memory_format=chosen).stride()))

    fit = fit_of(data, student=student)
    for module in student.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    fit.run_epoch(1)
    assert len(strides) > 8
    assert all(found == wanted for found, wanted in strides)


def train_widths() -> Iterator[int]:
    """Train every width from 1 to 9 for 60 steps of 64 images of 8 x 8 pixels; yields what has survived."""
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (60 * 64, 1, 8, 8), dtype=np.uint8), rng.integers(0, 10, 60 * 64))
    data = Data("noise", split, split, split, tuple("0123456789"), (0.5,), (0.3,), "")
    curriculum = Curriculum(split, 10, 0, 64, Augment(crop=1), CPU)
    for width in range(1, 10):
        student = resnet(data, width)
        terms = losses.make_terms(CE, losses.shapes_of(student, data.task), None)
        Fit(program(student, terms, 1), curriculum, {}, OptimizerConfig(), 0).run_epoch(1)
        yield width


def test_a_process_that_trains_narrow_networks_lives() -> None:
    """In a child: what torch does to narrow channels_last networks on a CPU ends the process."""
    folders = [str(ROOT), str(Path(__file__).parent), str(ROOT / "tests" / "helpers")]
    script = (
        f"import sys; sys.path[:0] = {folders!r}\n"
        "import torch; torch.set_num_threads(1)\n"
        "from test_fit import train_widths\n"
        "print(*train_widths())"
    )
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    assert child.stdout.split() == [str(width) for width in range(1, 10)]
