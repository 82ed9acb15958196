"""DisWOT's two terms against their formulas done another way, and what each of them must not see."""

import copy
import math
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import spaces
from spaces import Task
from trainables.contracts import Member, Probe
from trainables.scores import compute, diswot, terms_of
from trainables.scores.passes import normal_weights, weights

TASK = Task(3, 8, 5)


def resnet(width: int = 4, seed: int = 0) -> Member:
    torch.manual_seed(seed)
    space = spaces.get("resnet")
    net = space.build({"depth1": 1, "depth2": 1, "depth3": 1, "width": width}, TASK)
    return Member(net, space.taps, space.head, [0.5] * 3, [0.25] * 3)


def batch(size: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(size, TASK.channels, TASK.image_size, TASK.image_size, generator=generator)
    return images, torch.randint(TASK.classes, (size,), generator=generator)


def a_probe(student: Member, teacher: Member) -> Probe:
    return Probe(student.train(), teacher.eval(), *batch(), TASK)


@pytest.mark.parametrize("variant", diswot.VARIANTS)
def test_a_teacher_that_is_the_student_is_at_distance_zero(variant: str) -> None:
    member = resnet().train()
    values = diswot.score(Probe(member, member, *batch(), TASK), variant=variant)
    assert values == {"diswot.semantic": 0, "diswot.relation": 0}
    assert all(value < 0 for value in diswot.score(a_probe(resnet(), resnet(seed=1)), variant=variant).values())


def a_view(member: Member, images: Tensor, labels: Tensor) -> diswot.View:
    with torch.no_grad():
        return diswot.look(member, images, labels)


@pytest.mark.parametrize("variant", diswot.VARIANTS)
def test_the_relation_does_not_see_the_order_of_channels(variant: str) -> None:
    how = diswot.VARIANTS[variant]
    one, other = a_view(resnet(), *batch()), a_view(resnet(seed=1), *batch())
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    shuffled = replace(
        one,
        map_BCHW=one.map_BCHW[:, order],
        weight_KC=one.weight_KC[:, order],
        embedding_BC=one.embedding_BC[:, order],
    )
    target = how.signature(other)
    before, after = how.signature(one), how.signature(shuffled)
    assert float(how.relation(after.relation, target.relation)) == pytest.approx(
        float(how.relation(before.relation, target.relation)), rel=1e-12
    )
    if variant == "paper":  # the readme's matrices are indexed by channels
        assert torch.allclose(after.semantic, before.semantic, rtol=1e-12)


@pytest.mark.parametrize("variant", diswot.VARIANTS)
def test_the_relation_sees_the_order_of_images_in_one_network_and_not_in_both(variant: str) -> None:
    how, student, teacher = diswot.VARIANTS[variant], resnet(), resnet(seed=1)
    images, labels = batch()
    order = torch.tensor([3, 0, 5, 1, 2, 4])

    def relation(of_student: Any, of_teacher: Any) -> float:
        views = a_view(student, images[of_student], labels[of_student]), a_view(teacher, images[of_teacher], labels)
        one, other = (how.signature(view).relation for view in views)
        return float(how.relation(one, other))

    everything = slice(None)
    assert relation(order, order) == pytest.approx(relation(everything, everything), rel=1e-5)
    assert relation(order, everything) != pytest.approx(relation(everything, everything), rel=1e-2)


def test_the_papers_terms_by_hand() -> None:
    # One pixel, two channels, two images with maps (1, 0) and (0, 1); two classes. Their Gram matrix is the identity.
    maps = torch.eye(2, dtype=torch.float64).view(2, 2, 1, 1)
    view = diswot.View(
        maps, torch.tensor([[3.0, 0], [0, 3.0]]).double(), maps[:, :, 0, 0], torch.eye(2), torch.arange(2)
    )
    same = replace(view, map_BCHW=torch.ones_like(maps))
    one, other = diswot.paper_signature(view), diswot.paper_signature(same)
    root = 1 / math.sqrt(2)
    for matrix, ones in ((one.semantic, other.semantic), (one.relation, other.relation)):
        assert matrix.tolist() == pytest.approx(np.array([[root, 0], [0, root]]))
        assert ones.tolist() == pytest.approx(np.full((2, 2), 0.5))
        expected = math.sqrt(2 * (root - 0.5) ** 2 + 2 * 0.25)
        assert float(diswot.norm_of_difference(matrix, ones)) == pytest.approx(expected)


def test_the_readmes_relation_by_hand() -> None:
    # Rows of length 1: the identity against 1/sqrt(2) everywhere, over B^2 = 4.
    maps = torch.eye(2, dtype=torch.float64).view(2, 2, 1, 1)
    view = diswot.View(maps, torch.eye(2), maps[:, :, 0, 0], torch.zeros(2, 2).double(), torch.arange(2))
    how, root = diswot.VARIANTS["readme"], 1 / math.sqrt(2)
    one, other = how.signature(view), how.signature(replace(view, map_BCHW=torch.ones_like(maps)))
    expected = (2 * (1 - root) ** 2 + 2 * root**2) / 4
    assert float(how.relation(one.relation, other.relation)) == pytest.approx(expected, rel=1e-12)


def test_the_readmes_gradient_is_autograds() -> None:
    probe = a_probe(resnet(), resnet(seed=1))
    head = probe.student.net.get_parameter("fc.weight")
    loss = F.cross_entropy(probe.student(probe.images), probe.labels)
    (expected,) = torch.autograd.grad(loss, head)
    signature = diswot.readme_signature(a_view(probe.student, probe.images, probe.labels))
    assert torch.allclose(signature.semantic, expected.double(), atol=1e-7)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 6), st.booleans())
def test_the_readmes_distance_is_that_of_the_outer_products(seed: int, classes: int, channels: int, dead: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randn(2, classes, channels, dtype=torch.float64, generator=generator)
    if dead:
        one[0], other[:, 0] = 0, 0
    rows = [F.normalize(g[:, :, None] * g[:, None, :], dim=2) for g in (one, other)]
    expected = (rows[0] - rows[1]).square().sum() / (classes * channels)
    found = float(diswot.outer_product_distance(one, other))
    assert found == pytest.approx(float(expected), rel=1e-9, abs=1e-12)
    assert float(diswot.outer_product_distance(10 * one, other)) == pytest.approx(found, rel=1e-9, abs=1e-12)
    assert float(diswot.outer_product_distance(one, one)) == 0


def test_the_readme_needs_heads_of_equal_width_and_names_the_variant_that_does_not() -> None:
    probe = a_probe(resnet(width=4), resnet(width=6))
    values, reasons = compute({"diswot": {"variant": "readme"}}, probe)
    assert all(math.isnan(value) for value in values.values())
    assert "16 and 24 channels" in reasons["diswot.semantic"]
    assert "variant 'paper'" in reasons["diswot.relation"]
    assert compute(["diswot"], probe)[1] == {}


def test_settings_come_with_the_scores() -> None:
    probe = a_probe(resnet(), resnet(seed=1))
    paper, readme = (compute({"diswot": {"variant": variant}}, probe) for variant in ("paper", "readme"))
    assert compute(["diswot"], probe) == paper != readme
    assert terms_of(["snip", "diswot"]) == ("snip", "diswot.semantic", "diswot.relation")


def test_diswot_of_networks_it_cannot_compare_says_why() -> None:
    flat = nn.Sequential(OrderedDict(flat=nn.Flatten(), fc=nn.Linear(3 * 64, TASK.classes)))
    probe = a_probe(Member(flat, ["flat"], "fc", [0.5] * 3, [0.25] * 3), resnet())
    assert "needs a map [B, C, H, W]" in compute(["diswot"], probe)[1]["diswot.relation"]
    dead = replace(a_probe(resnet(), resnet()), images=torch.full((6, 3, 8, 8), 0.5))
    assert "the last map has the norm 0.0" in compute(["diswot"], dead)[1]["diswot.relation"]


def test_weights_are_normal_while_diswot_looks() -> None:
    member = resnet(width=16)
    before = copy.deepcopy(member.state_dict())
    with normal_weights(member):
        weight = torch.cat([w.detach().flatten() for w in weights(member)])
        assert float(weight.mean()) == pytest.approx(0, abs=0.02)
        assert float(weight.std()) == pytest.approx(1, abs=0.02)
        assert not member.net.get_parameter("fc.bias").any()
    assert all(torch.equal(tensor, before[name]) for name, tensor in member.state_dict().items())


def test_the_teacher_looks_at_a_batch_once() -> None:
    teacher, (images, labels) = resnet(seed=1).eval(), batch()
    looks: list[int] = []
    teacher.register_forward_hook(lambda *_: looks.append(1))
    probes = [Probe(resnet(seed=seed).train(), teacher, images, labels, TASK) for seed in range(3)]
    first = [diswot.score(probe) for probe in probes]
    assert len(looks) == 1
    assert len({value["diswot.relation"] for value in first}) == 3
    nn.init.ones_(teacher.net.get_parameter("conv1.weight"))
    changed = diswot.score(probes[0])
    assert len(looks) == 2
    assert changed != first[0]
    teacher.net.get_buffer("bn1.running_mean").add_(1)
    recalibrated = diswot.score(probes[0])
    assert recalibrated != changed
    assert recalibrated == diswot.score(replace(probes[0], teacher=copy.deepcopy(teacher)))
