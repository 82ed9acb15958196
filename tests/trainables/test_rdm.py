"""TGSA's guidance by a teacher against SciPy, and as a score: what it must see, and what not."""

import math
from collections import OrderedDict
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist, squareform
from scipy.stats import ortho_group, pearsonr, spearmanr
from torch import Tensor, nn

import spaces
from spaces import Task
from trainables.contracts import Member, NotComputable, Probe, Split
from trainables.rdm import CORRELATIONS, drawn_images, guidance, layer_rdms, rdm, similarity, spearman
from trainables.scores import diswot
from trainables.scores.rdm import score

TASK = Task(3, 8, 5)
SCIPY = {"pearson": pearsonr, "spearman": spearmanr}


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The mathematics


def test_dissimilarities_are_scipys() -> None:
    maps = normals(7, 3, 2, 2).float()
    expected = squareform(pdist(maps.double().flatten(1).numpy(), "correlation"))
    assert rdm(maps).numpy() == pytest.approx(expected, abs=1e-12)


def test_an_image_without_variance_is_dissimilar_to_nobody() -> None:
    x = normals(5, 4)
    x[1] = 0.1
    defined = rdm(x).isfinite()
    assert defined.sum() == 16
    assert not defined[1].any()
    assert not defined[:, 1].any()


@pytest.mark.parametrize("name", CORRELATIONS)
def test_similarities_are_scipys(name: str) -> None:
    x, y = normals(20, 6), normals(20, 9, seed=1)
    y[:, :6] += x
    flat = [pdist(z.numpy(), "correlation") for z in (x, y)]
    expected = SCIPY[name](*flat)[0]
    assert expected > 0.1
    assert similarity(rdm(x), rdm(y), CORRELATIONS[name]) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=3, max_size=30), st.integers(0, 10_000))
def test_equal_values_share_a_rank(values: list[int], seed: int) -> None:
    x = torch.tensor([*values, 5], dtype=torch.float64)
    y = normals(len(x), seed=seed)
    assert spearman(x, y) == pytest.approx(spearmanr(x.numpy(), y.numpy())[0], abs=1e-12)


def test_each_layer_of_the_teacher_takes_its_best_match() -> None:
    a, b, c = (rdm(normals(12, 5, seed=seed)) for seed in range(3))
    ca, cb = similarity(c, a), similarity(c, b)
    assert guidance([a, b], [a, c]) == pytest.approx((1 + max(ca, cb)) / 2)
    assert guidance([a], [a, c]) == pytest.approx((1 + ca) / 2)
    assert guidance([b, a], [c]) == pytest.approx(max(ca, cb))


@pytest.mark.parametrize("name", CORRELATIONS)
def test_a_network_matches_itself(name: str) -> None:
    layers = [rdm(normals(12, width, seed=width)) for width in (3, 8, 5)]
    assert guidance(layers, layers, CORRELATIONS[name]) == pytest.approx(1)
    assert guidance(layers[::-1] + layers[:1], layers, CORRELATIONS[name]) == pytest.approx(1)


def rotation_about_ones(d: int, seed: int) -> Tensor:
    """An orthogonal matrix that keeps (1, ..., 1): a rotation of the space orthogonal to it."""
    basis, _ = np.linalg.qr(np.column_stack([np.ones(d), np.eye(d)[:, : d - 1]]))
    inner = np.eye(d)
    inner[1:, 1:] = ortho_group.rvs(d - 1, random_state=seed)
    return torch.from_numpy(basis @ inner @ basis.T)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(sorted(CORRELATIONS)), st.floats(0.1, 10), st.floats(-5, 5), st.integers(0, 10_000))
def test_it_is_blind_to_rotation_scale_and_shift(name: str, scale: float, shift: float, seed: int) -> None:
    student, teacher = ([normals(10, d, seed=seed + d + at) for d in (4, 7)] for at in (0, 100))
    before, after = (
        guidance([rdm(x) for x in layers], [rdm(y) for y in teacher], CORRELATIONS[name])
        for layers in (student, [scale * (x @ rotation_about_ones(x.shape[1], seed)) + shift for x in student])
    )
    assert after == pytest.approx(before, abs=1e-9)
    assert -1 <= before < 0.999


@pytest.mark.parametrize("name", CORRELATIONS)
def test_images_shuffled_in_one_network_match_nothing(name: str) -> None:
    x = normals(250, 8)
    shuffled = x[torch.randperm(250, generator=torch.Generator().manual_seed(0))]
    assert abs(guidance([rdm(shuffled)], [rdm(x)], CORRELATIONS[name])) < 0.05


def test_a_layer_that_does_not_vary_is_nobodys_match() -> None:
    layer, same = rdm(normals(12, 5)), rdm(torch.zeros(12, 4))
    alike = rdm(normals(1, 5).expand(12, 5))
    for flat in (same, alike):
        assert guidance([flat, layer], [layer]) == pytest.approx(1)
        assert math.isnan(guidance([layer], [layer, flat]))
    assert math.isnan(guidance([], [layer]))
    assert math.isnan(guidance([layer], []))


# As a score


def resnet(width: int = 4, seed: int = 0, depth: int = 1) -> Member:
    torch.manual_seed(seed)
    space = spaces.get("resnet")
    net = space.build({"depth1": depth, "depth2": 1, "depth3": 1, "width": width}, TASK)
    return Member(net, space.taps, space.head, [0.5] * 3, [0.25] * 3)


def plain(seed: int = 0) -> Member:
    """Two taps, of other widths and sizes than a ResNet's; the second is no map."""
    torch.manual_seed(seed)
    body = {"one": nn.Conv2d(3, 6, 3), "act": nn.ReLU(), "flat": nn.Flatten(), "two": nn.Linear(6 * 36, 7)}
    net = nn.Sequential(OrderedDict(**body, fc=nn.Linear(7, TASK.classes)))
    return Member(net, ["one", "two"], "fc", [0.5] * 3, [0.25] * 3)


def images(seed: int = 0, size: int = 12) -> Tensor:
    shape = (size, TASK.channels, TASK.image_size, TASK.image_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def a_probe(student: Member, teacher: Member | None, seed: int = 0) -> Probe:
    return Probe(student.train(), teacher and teacher.eval(), images(seed), torch.arange(12) % 5, TASK)


def test_the_score_of_a_copy_is_one() -> None:
    member = resnet()
    assert score(a_probe(member, member)) == pytest.approx({"rdm.pearson": 1, "rdm.spearman": 1})


def test_the_score_is_what_scipy_makes_of_the_taps() -> None:
    student, teacher = resnet(), plain(seed=1)
    found = score(a_probe(student, teacher))
    own, other = ((images() - 0.5) / 0.25 for _ in range(2))
    with torch.no_grad():
        own = student.net.relu(student.net.bn1(student.net.conv1(own)))
        stages = [own := stage(own) for stage in (student.net.layer1, student.net.layer2, student.net.layer3)]
        one = teacher.net.one(other)
        layers = [one, teacher.net.two(torch.relu(one).flatten(1))]
    rdms = [[pdist(x.flatten(1).double().numpy(), "correlation") for x in taps] for taps in (stages, layers)]
    for name, correlation in SCIPY.items():
        best = [max(correlation(x, y)[0] for x in rdms[0]) for y in rdms[1]]
        assert found[f"rdm.{name}"] == pytest.approx(np.mean(best), abs=1e-5)


@pytest.mark.parametrize("student", [resnet(), resnet(width=6, depth=2), plain()], ids=["same", "wider", "two taps"])
def test_the_score_sees_the_teacher_and_the_batch(student: Member) -> None:
    base = a_probe(student, resnet(seed=1))
    probes = base, a_probe(student, resnet(seed=2)), a_probe(student, plain(seed=1)), a_probe(student, base.teacher, 1)
    values = [score(probe) for probe in probes]
    for name in CORRELATIONS:
        found = sorted(value[f"rdm.{name}"] for value in values)
        assert all(-1 <= one < other < 1 for one, other in pairwise(found))


def test_the_score_looks_at_the_student_in_its_mode_and_leaves_it() -> None:
    probe = a_probe(resnet(), resnet(seed=1))
    assert probe.teacher is not None
    before = [
        {name: tensor.clone() for name, tensor in one.state_dict().items()} for one in (probe.student, probe.teacher)
    ]
    training = score(probe)
    assert probe.student.training
    assert not probe.teacher.training
    for one, state in zip((probe.student, probe.teacher), before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in one.state_dict().items())
    assert score(replace(probe, student=probe.student.eval())) != training


def test_a_score_without_a_value_says_why() -> None:
    bare = Member(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), [], "1", [0.5] * 3, [0.25] * 3)
    for probe, why in (
        (a_probe(resnet(), None), "there is none"),
        (a_probe(bare, resnet()), "the student has none"),
        (a_probe(resnet(), bare), "the teacher has none"),
        (replace(a_probe(resnet(), resnet(seed=1)), images=torch.full((12, 3, 8, 8), 0.7)), "do not vary"),
    ):
        with pytest.raises(NotComputable, match=why):
            score(probe)


def test_scores_of_one_teacher_look_at_a_batch_once_each() -> None:
    teacher = resnet(seed=1).eval()
    looks: list[int] = []
    teacher.register_forward_hook(lambda *_: looks.append(1))
    base = a_probe(resnet(), teacher)
    probes = [replace(base, student=resnet(seed=seed).train()) for seed in range(3)]
    first = [(score(probe), diswot.score(probe)) for probe in probes]
    assert len(looks) == 2
    assert [(score(probe), diswot.score(probe)) for probe in probes] == first
    assert len(looks) == 2
    nn.init.ones_(teacher.net.get_parameter("conv1.weight"))
    assert score(base) != first[0][0]
    assert len(looks) == 3


def test_rdms_come_one_for_each_tap() -> None:
    assert [layer.shape for layer in layer_rdms(resnet().eval(), images())] == [(12, 12)] * 3
    assert layer_rdms(Member(nn.Linear(1, 1), [], "", [0.5], [0.5]).eval(), torch.rand(2, 1, 1, 1)) == []


def test_images_are_drawn_by_the_seed_alone() -> None:
    split = Split(np.arange(50 * 12, dtype=np.uint16).astype(np.uint8).reshape(50, 3, 2, 2), np.zeros(50, np.int64))
    drawn = drawn_images(split, 20, 3)
    assert drawn.shape == (20, 3, 2, 2)
    assert torch.equal(drawn, drawn_images(split, 20, 3))
    assert not torch.equal(drawn, drawn_images(split, 20, 4))
    assert torch.equal(drawn_images(split, 99, 3), torch.from_numpy(split.images) / 255)
