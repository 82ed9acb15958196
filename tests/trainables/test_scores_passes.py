"""The shared pass of the student and the scores that read it, each against its formula done another way."""

import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import spaces
from spaces import Task
from trainables.contracts import Member, NotComputable, Probe
from trainables.scores import SCORES, compute
from trainables.scores.jacob_cov import correlation
from trainables.scores.passes import StudentPass, normal_weights, not_in_place, one_pass, student_pass, weights

TASK = Task(3, 8, 5)


class Odd(nn.Module):
    """All that a pass may meet: names for padding, groups, biases, norms with and without weights, attention, weights
    used in two ways, a layer called twice, activations in place, and a layer that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding="same")
        self.norm1 = nn.BatchNorm2d(8, affine=False)
        self.conv2 = nn.Conv2d(8, 8, 3, (2, 1), 1, groups=2)
        self.norm2 = nn.BatchNorm2d(8)
        self.layer_norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)
        self.act = nn.SiLU(inplace=True)
        self.unused = nn.Linear(8, 8)
        self.fc = nn.Linear(8, 5)
        nn.init.normal_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(self.conv1(x)))
        x = self.act(self.conv2(x))  # overwrites the output of a convolution
        x = torch.relu(self.norm2(x))
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + F.gelu(self.linear(self.linear(self.layer_norm(tokens))))
        heads = tokens.unflatten(2, (2, 4)).transpose(1, 2)
        tokens = tokens + F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)
        tokens = tokens + F.linear(tokens, self.linear.weight.tanh())
        return self.fc(tokens.mean(1))


def cells(channels: int = 4) -> nn.Module:
    space = spaces.get("nasbench201").restrict({}, channels=channels, cells=1)
    return space.build(space.sample(np.random.default_rng(1)), TASK)


def residual(width: int = 4) -> nn.Module:
    return spaces.get("resnet").build({"depth1": 1, "depth2": 1, "depth3": 1, "width": width}, TASK)


NETS: dict[str, Callable[[], nn.Module]] = {"odd": Odd, "cells": cells, "residual": residual}


def a_probe(net: nn.Module, images: int = 6, classes: int = 5) -> Probe:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(images, 3, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.arange(images) % classes
    return Probe(Member(net, [], "fc", [0.5] * 3, [0.25] * 3).double().train(), None, pixels, labels, TASK)


@pytest.fixture(params=NETS)
def probe(request: pytest.FixtureRequest) -> Probe:
    torch.manual_seed(0)
    return a_probe(NETS[request.param]())


def loss_of(probe: Probe) -> Tensor:
    return F.cross_entropy(probe.student(probe.images), probe.labels)


EVERYTHING: frozenset[Any] = frozenset({"gradients", "saliency", "curvature", "jacobian", "relus"})


# --- the pass ---


def test_the_curvature_is_what_two_generic_backward_passes_give(probe: Probe) -> None:
    found = weights(probe.student)
    with sdpa_kernel(SDPBackend.MATH), not_in_place(probe.student):
        gradients = torch.autograd.grad(
            loss_of(probe), found, create_graph=True, allow_unused=True, materialize_grads=True
        )
        along = sum((g.detach() * g).sum() for g in gradients)
        products = torch.autograd.grad(along, found, allow_unused=True, materialize_grads=True)
    expected = sum(float((w * h).sum().detach()) for w, h in zip(found, products, strict=True))
    assert StudentPass(probe, frozenset({"curvature"})).curvature == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert SCORES["grasp"].function(probe) == pytest.approx(-expected, rel=1e-9, abs=1e-12)


def test_the_curvature_is_the_slope_of_the_gradient_as_all_weights_grow(probe: Probe) -> None:
    found, step = weights(probe.student), 1e-5

    def half_square(scale: float) -> float:
        with torch.no_grad():
            for weight in found:
                weight.mul_(scale)
        gradients = torch.autograd.grad(loss_of(probe), found, allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            for weight in found:
                weight.div_(scale)
        return float(sum(g.square().sum() for g in gradients)) / 2

    expected = (half_square(1 + step) - half_square(1 - step)) / (2 * step)  # d/ds |g(sW)|^2 / 2 = W^T H g
    assert StudentPass(probe, frozenset({"curvature"})).curvature == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("needs", [EVERYTHING, EVERYTHING - {"curvature"}], ids=["twice", "once"])
def test_the_parts_of_a_pass_are_what_plain_autograd_gives(probe: Probe, needs: frozenset[Any]) -> None:
    found, images = weights(probe.student), probe.images.clone().requires_grad_()
    gradients = torch.autograd.grad(loss_of(probe), found, allow_unused=True, materialize_grads=True)
    [jacobian] = torch.autograd.grad(probe.student(images).sum(), images)
    made = StudentPass(probe, needs)
    # In any order: each part leaves the others' graph whole.
    torch.testing.assert_close(made.jacobian, jacobian.flatten(1), rtol=1e-9, atol=1e-12)
    if "curvature" in needs:
        assert made.curvature == StudentPass(probe, frozenset({"curvature"})).curvature
    for (weight, own), parameter, expected in zip(made.gradients, found, gradients, strict=True):
        assert torch.equal(weight, parameter)
        torch.testing.assert_close(own, expected, rtol=1e-9, atol=1e-12)
    assert not made.gradients[0][1].requires_grad


def test_a_pass_is_freed_once_nothing_refers_to_it(probe: Probe) -> None:
    made = StudentPass(probe, EVERYTHING)
    assert made.gradients
    assert math.isfinite(made.curvature)
    assert len(made.jacobian) == 6
    # A hook that refers to the pass would hold its graph, and the graph the hook, where no collector sees it.
    gone = weakref.ref(made)
    del made
    gc.collect()
    assert gone() is None


def test_scores_that_share_a_pass_run_the_student_once(probe: Probe) -> None:
    names = [name for name, entry in SCORES.items() if entry.needs is not None]
    assert {SCORES[name].needs for name in names} == EVERYTHING
    alone = {}
    for name in names:
        alone |= compute([name], probe)[0]
    runs: list[int] = []
    hook = probe.student.register_forward_hook(lambda *_: runs.append(1))
    together, _ = compute(names, probe)
    hook.remove()
    assert len(runs) == 1
    assert together == pytest.approx(alone, rel=1e-9, abs=1e-12, nan_ok=True)


def test_a_pass_is_shared_within_its_context_alone() -> None:
    probe = a_probe(residual())
    with one_pass(frozenset({"gradients"})):
        first = student_pass(probe, "gradients")
        assert student_pass(probe, "gradients") is first
        with pytest.raises(AssertionError, match="jacobian was not announced"):
            student_pass(probe, "jacobian")
    assert student_pass(probe, "gradients") is not first


def test_normal_weights_are_drawn_by_the_given_ones_and_put_back() -> None:
    member = a_probe(Odd()).student
    before = {name: p.detach().clone() for name, p in member.named_parameters()}
    with normal_weights(member):
        first = member.net.linear.weight.detach().clone()
        assert not member.net.linear.bias.any()
        assert abs(float(torch.cat([w.detach().flatten() for w in weights(member)]).std()) - 1) < 0.1
        assert member.net.norm2.weight.eq(1).all()
    with normal_weights(member):
        assert torch.equal(first, member.net.linear.weight)
    assert all(torch.equal(p, before[name]) for name, p in member.named_parameters())
    with torch.no_grad():
        member.net.conv1.weight.mul_(2)  # as another seed would
    with normal_weights(member):
        assert not torch.equal(first, member.net.linear.weight)


# --- each score against its formula ---


def by_hand() -> tuple[Probe, np.ndarray, np.ndarray, np.ndarray]:
    """A linear network of two images, with its weight, pixels, and the error p - y of each image."""
    linear = nn.Linear(4, 2, bias=False)
    weight, pixels = np.array([[1.0, 0, -1, 2], [0, 1, 0, -1]]), np.array([[1.0, 0, 2, 0], [0, 3, 0, 1]])
    linear.weight.data.copy_(torch.from_numpy(weight))
    images = torch.from_numpy(pixels).view(2, 1, 2, 2)
    student = Member(nn.Sequential(nn.Flatten(), linear), [], "1", [0.0], [1.0]).double()
    logits = pixels @ weight.T
    error = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - np.eye(2)
    return Probe(student, None, images, torch.tensor([0, 1]), Task(1, 2, 2)), weight, pixels, error


def test_plain_fisher_and_grasp_of_a_linear_network_by_hand() -> None:
    probe, weight, pixels, error = by_hand()
    gradient = error.T @ pixels / 2
    values, reasons = compute(["plain", "fisher", "grasp", "l2_norm"], probe)
    assert reasons == {}
    assert values["plain"] == pytest.approx((weight * gradient).sum())
    # dL/da = error / 2 for each image, a the logits.
    assert values["fisher"] == pytest.approx(0.5 * ((pixels @ weight.T * error / 2) ** 2).mean(0).sum())
    # W^T H g: the loss's second derivative along W and g, mean over images of da_W^T (diag p - p p^T) da_g.
    p = error + np.eye(2)
    along_weight, along_gradient = pixels @ weight.T, pixels @ gradient.T
    curvature = np.mean(
        [u @ (np.diag(q) - np.outer(q, q)) @ v for u, v, q in zip(along_weight, along_gradient, p, strict=True)]
    )
    assert values["grasp"] == pytest.approx(-curvature)
    assert values["l2_norm"] == pytest.approx(np.sqrt((weight**2).sum()))


def test_plain_adds_up_to_the_classifiers_part_where_batch_norms_follow_all_else() -> None:
    probe = a_probe(residual())
    pairs = StudentPass(probe, frozenset({"gradients"})).gradients
    head = float((pairs[-1][0] * pairs[-1][1]).sum())
    assert SCORES["plain"].function(probe) == pytest.approx(head, abs=1e-3)


def test_fisher_reads_each_convolutions_output_per_channel() -> None:
    probe = a_probe(residual())
    kept: list[Tensor] = []
    layers = [m for m in probe.student.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [m.register_forward_hook(lambda m, a, output: kept.append(output)) for m in layers]
    with not_in_place(probe.student):
        loss = loss_of(probe)
    for hook in hooks:
        hook.remove()
    gradients = torch.autograd.grad(loss, kept)
    expected = 0.0
    for a, g in zip(kept, gradients, strict=True):
        per_image = (a * g).flatten(2).sum(2) if a.dim() == 4 else a * g
        expected += float(per_image.square().mean(0).sum().detach()) / 2
    assert len(kept) == 1 + 6 + 2 + 1
    assert SCORES["fisher"].function(probe) == pytest.approx(expected, rel=1e-9)


def test_jacob_cov_is_the_published_function_of_the_correlations_eigenvalues() -> None:
    probe = a_probe(residual())
    images = probe.images.clone().requires_grad_()
    [jacobian] = torch.autograd.grad(probe.student(images).sum(), images)
    eigenvalues = np.linalg.eigvalsh(np.corrcoef(jacobian.flatten(1).numpy()))
    expected = -(np.log(eigenvalues + 1e-5) + 1 / (eigenvalues + 1e-5)).sum()
    assert SCORES["jacob_cov"].function(probe) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["jacob_cov", "epe_nas"])
def test_scores_of_jacobians_do_not_see_the_scale_of_the_output(name: str) -> None:
    probe = a_probe(residual())
    before = SCORES[name].function(probe)
    with torch.no_grad():
        probe.student.net.fc.weight.mul_(16)
    assert SCORES[name].function(probe) == pytest.approx(before, rel=1e-6)


def test_jacob_cov_is_lowest_where_all_images_have_one_jacobian() -> None:
    probe, *_ = by_hand()
    # A linear network: the same Jacobian everywhere, eigenvalues 2 and 0.
    k = 1e-5
    expected = -(math.log(2 + k) + 1 / (2 + k) + math.log(k) + 1 / k)
    assert SCORES["jacob_cov"].function(probe) == pytest.approx(expected, rel=1e-6)


def test_a_constant_jacobian_is_a_reason() -> None:
    with pytest.raises(NotComputable, match="do not depend on image 1"):
        correlation(torch.tensor([[1.0, 2], [0, 0]]))


def epe_by_hand(jacobian: np.ndarray, labels: np.ndarray, classes: int) -> float:
    by_class = []
    for label in sorted(set(labels)):
        rows = jacobian[labels == label]
        if len(rows) > 1:
            logarithms = np.log(np.abs(np.corrcoef(rows)) + 1e-5)
            by_class.append(logarithms.sum() / (len(rows) if classes > 100 else 1))
    if classes <= 100:
        return float(sum(map(abs, by_class)))
    return float(sum(abs(a - b) for a in by_class for b in by_class) / len(by_class))


@pytest.mark.parametrize("classes", [5, 101])
def test_epe_nas_correlates_within_classes(classes: int) -> None:
    probe = a_probe(residual(), images=9)
    labels = torch.tensor([0, 0, 0, 3, 3, 1, 1, 1, 2])  # class 2 has nothing to correlate
    probe = Probe(probe.student, None, probe.images, labels, Task(3, 8, classes))
    images = probe.images.clone().requires_grad_()
    [jacobian] = torch.autograd.grad(probe.student(images).sum(), images)
    expected = epe_by_hand(jacobian.flatten(1).numpy(), labels.numpy(), classes)
    assert expected > 0
    assert SCORES["epe_nas"].function(probe) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("labels", "reason"), [([2, 2, 2, 2], "all 4 images of the batch are of one"), ([0, 1, 2, 3], "no class has two")]
)
def test_epe_nas_of_a_batch_that_has_nothing_to_compare_says_so(labels: list[int], reason: str) -> None:
    probe = a_probe(residual(), images=4)
    values, reasons = compute(["epe_nas"], Probe(probe.student, None, probe.images, torch.tensor(labels), TASK))
    assert math.isnan(values["epe_nas"])
    assert reason in reasons["epe_nas"]


class Smooth(nn.Module):
    """A network whose answer to a disturbance is known: a linear map between two batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, TASK.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).mean((2, 3)))


def test_zen_adds_the_answer_to_a_disturbance_and_the_norms_deviations() -> None:
    torch.manual_seed(0)
    images = torch.rand(64, 3, 8, 8, dtype=torch.float64)
    member = Member(Smooth(), ["norm"], "fc", [0.5] * 3, [0.25] * 3).double().train()
    value = SCORES["zen"].function(Probe(member, None, images, torch.zeros(64, dtype=torch.long), TASK))
    with normal_weights(member):
        variance_C = member.net.conv.weight.detach().square().sum((1, 2, 3))  # of the map, for input from N(0, 1)
    # The norm divides by sqrt(v_c), so the disturbance of each channel is 0.01 N(0, 1), mean |.| 0.01 sqrt(2 / pi).
    expected = math.log(4 * 64 * 0.01 * math.sqrt(2 / math.pi)) + math.log(float(variance_C.mean())) / 2
    assert value == pytest.approx(expected, abs=0.02)


def test_zen_does_not_see_labels_and_needs_a_map() -> None:
    net = residual()
    images = torch.rand(8, 3, 8, 8)
    member = Member(net, ["layer3"], "fc", [0.5] * 3, [0.25] * 3).train()
    one, other = (
        SCORES["zen"].function(Probe(member, None, images, labels, TASK))
        for labels in (torch.zeros(8, dtype=torch.long), torch.arange(8) % 5)
    )
    assert one == other
    bare = Member(net, [], "fc", [0.5] * 3, [0.25] * 3)
    with pytest.raises(NotComputable, match="no map"):
        SCORES["zen"].function(Probe(bare, None, images, torch.arange(8) % 5, TASK))


def test_an_activation_overwritten_by_a_function_is_a_reason_and_no_wrong_number() -> None:
    class Overwritten(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, TASK.classes)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu_(self.conv(x)).mean((2, 3)))

    values, reasons = compute(["fisher", "snip"], a_probe(Overwritten()))
    assert math.isnan(values["fisher"])
    assert "overwritten in place" in reasons["fisher"]
    assert values["snip"] > 0 or "snip" in reasons


def test_normal_weights_set_norms_that_begin_at_zero_to_one() -> None:
    net = residual()
    nn.init.zeros_(net.layer1[0].bn2.weight)
    member = Member(net, [], "fc", [0.5] * 3, [0.25] * 3)
    with normal_weights(member):
        assert net.layer1[0].bn2.weight.eq(1).all()
        assert net.layer1[0].bn2.bias.eq(0).all()
    assert net.layer1[0].bn2.weight.eq(0).all()


def test_synflow_passes_over_a_batch_norm_but_not_over_the_activation_within_it() -> None:
    class NormAndFloor(nn.BatchNorm2d):  # as timm's BatchNormAct2d, with an activation that shows
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 3

    net = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), NormAndFloor(2), nn.Flatten(), nn.Linear(2 * 64, 5, bias=False))
    images = torch.rand(2, 3, 8, 8)
    probe = Probe(Member(net, [], "3", [0.5] * 3, [0.25] * 3), None, images, torch.tensor([0, 1]), TASK)
    conv, linear = net[0].weight.detach().double().abs(), net[3].weight.detach().double().abs()
    paths = 3 * float((conv.sum((1, 2, 3))[:, None] * linear.view(5, 2, 64).sum((0, 2))[:, None]).sum())
    assert SCORES["synflow"].function(probe) == pytest.approx(math.log(2 * paths), rel=1e-9)
