"""DisWOT's losses against their formulas done another way, what they must not see, and networks they do not fit."""

import math
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import spaces
from spaces import BadInput, Task
from trainables.contracts import CAM, Member, Outputs, class_gram, class_maps, unit_gram
from trainables.losses import Shapes, make_terms, shapes_of
from trainables.losses.diswot import norm_of_difference, relation, semantic
from trainables.scores import diswot as scored

TASK = Task(3, 8, 5)
LABELS = torch.zeros(1)
PAIRS = (("map", "map"),)


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seen(map_BCHW: Tensor, weight_KC: Tensor) -> Outputs:
    """What a network with this last map and head shows."""
    cams = class_maps(map_BCHW, weight_KC)
    return Outputs(cams.mean((2, 3)), {"map": map_BCHW, CAM: cams})


def random_outputs(classes: int = 4, channels: int = 3, size: int = 2, seed: int = 0) -> Outputs:
    return seen(normals(6, channels, size, size, seed=seed), normals(classes, channels, seed=seed + 1))


def both(student: Outputs, teacher: Outputs) -> list[float]:
    return [float(semantic(student, teacher, LABELS)), float(relation(student, teacher, LABELS, pairs=PAIRS))]


# Their formulas


def test_both_by_hand() -> None:
    # One pixel, two channels, two images with maps (1, 0) and (0, 1), two classes: each Gram matrix is the identity.
    maps, weight = torch.eye(2).view(2, 2, 1, 1).double(), 3 * torch.eye(2).double()
    # All four entries equal: 1/2 each.
    root = math.sqrt(0.5)
    distance = math.sqrt(2 * (root - 0.5) ** 2 + 2 * 0.25)
    assert both(seen(maps, weight), seen(torch.ones_like(maps), weight)) == pytest.approx([distance / 4] * 2)


def test_both_are_their_sums_written_out() -> None:
    shapes: list[dict[str, Any]] = [{"channels": 3, "size": 2, "seed": 0}, {"channels": 5, "size": 4, "seed": 7}]
    grams = []
    for shape in shapes:
        maps = normals(6, shape["channels"], shape["size"], shape["size"], seed=shape["seed"]).numpy()
        weight = normals(4, shape["channels"], seed=shape["seed"] + 1).numpy()
        cams = [sum(weight[n, c] * maps[:, c] for c in range(shape["channels"])).ravel() for n in range(4)]
        images = [image.ravel() for image in maps]
        found = [np.array([[a @ b for b in rows] for a in rows]) for rows in (cams, images)]
        grams.append([matrix / np.sqrt((matrix**2).sum()) for matrix in found])
    expected = [np.sqrt(((one - other) ** 2).sum()) / one.size for one, other in zip(*grams, strict=True)]
    assert both(*(random_outputs(**shape) for shape in shapes)) == pytest.approx(expected, rel=1e-9)


def test_they_are_the_terms_of_the_score_over_k2_and_b2() -> None:
    student, teacher = resnet(seed=0).double().eval(), resnet(width=6, seed=1).double().eval()
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        one, other = (
            scored.paper_signature(scored.look(net, images, torch.arange(6) % 5)) for net in (student, teacher)
        )
        outputs = [net.outputs(images, ["layer3", CAM]) for net in (student, teacher)]
    found = semantic(*outputs, LABELS), relation(*outputs, LABELS, pairs=(("layer3", "layer3"),))
    wanted = (
        norm_of_difference(one.semantic, other.semantic) / 25,
        norm_of_difference(one.relation, other.relation) / 36,
    )
    assert [float(value) for value in found] == pytest.approx([float(value) for value in wanted], rel=1e-9)


def test_the_relation_is_summed_over_the_pairs() -> None:
    student, teacher = random_outputs(), random_outputs(seed=5)
    twice = relation(student, teacher, LABELS, pairs=PAIRS * 2)
    assert float(twice) == pytest.approx(2 * both(student, teacher)[1])


# What they must not see


def test_scaled_maps_of_the_teacher_are_the_same_maps() -> None:
    student, maps, weight = random_outputs(), normals(6, 3, 2, 2, seed=5), normals(4, 3, seed=6)
    values = both(student, seen(maps, weight))
    assert min(values) > 1e-3
    for scale in (1e-6, 1e6):
        assert both(student, seen(scale * maps, weight)) == pytest.approx(values, rel=1e-9)
    assert both(student, seen(maps, 7 * weight)) == pytest.approx(values, rel=1e-9)


def test_the_order_of_channels_is_not_seen_and_that_of_classes_and_images_is() -> None:
    maps, weight, teacher = normals(6, 3, 2, 2, seed=5), normals(4, 3, seed=6), random_outputs()
    values, order = both(seen(maps, weight), teacher), [2, 0, 1]
    assert both(seen(maps[:, order], weight[:, order]), teacher) == pytest.approx(values, rel=1e-9)
    assert both(seen(maps, weight[:, order]), teacher)[0] != pytest.approx(values[0], rel=1e-3)
    assert both(seen(maps, weight[[1, 2, 3, 0]]), teacher)[0] != pytest.approx(values[0], rel=1e-3)
    assert both(seen(maps[[1, 0, 2, 3, 4, 5]], weight), teacher)[1] != pytest.approx(values[1], rel=1e-3)


# Their gradients


def test_gradients_by_map_and_head_are_those_of_finite_differences() -> None:
    teacher = random_outputs(channels=5, size=3, seed=9)
    leaves = normals(6, 3, 2, 2).requires_grad_(), normals(4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda *given: semantic(seen(*given), teacher, LABELS), leaves)
    assert torch.autograd.gradcheck(
        lambda *given: relation(seen(*given), teacher, LABELS, pairs=PAIRS), (leaves[0], leaves[1].detach())
    )


@pytest.mark.parametrize("shift", [0.0, 1e-12, 1e-3])
def test_gradients_are_finite_at_and_near_the_teacher(shift: float) -> None:
    maps, weight = normals(6, 3, 2, 2), normals(4, 3, seed=1)
    own = (maps + shift * normals(6, 3, 2, 2, seed=2)).requires_grad_()
    student, teacher = seen(own, weight), seen(maps, weight)
    loss = semantic(student, teacher, LABELS) + relation(student, teacher, LABELS, pairs=PAIRS)
    loss.backward()
    assert own.grad is not None
    assert own.grad.isfinite().all()
    assert own.grad.abs().max() < 1
    assert bool(own.grad.any()) == bool(shift)
    assert (loss.item() > 0) == bool(shift)


@pytest.mark.parametrize("reduction", [unit_gram, class_gram])
def test_a_dead_map_gives_zeros_and_no_gradient(reduction: Any) -> None:
    dead = torch.zeros(4, 4, 2, 2, requires_grad=True)
    value = norm_of_difference(reduction(dead), reduction(torch.rand(4, 4, 2, 2)))
    (1000 * value).backward()
    assert value.item() == pytest.approx(1)
    assert dead.grad is not None
    assert not dead.grad.any()


# Networks


def resnet(width: int = 4, seed: int = 0) -> Member:
    torch.manual_seed(seed)
    space = spaces.get("resnet")
    net = space.build({"depth1": 1, "depth2": 1, "depth3": 1, "width": width}, TASK)
    return Member(net, space.taps, space.head, [0.5] * 3, [0.25] * 3)


def test_class_maps_explain_the_logits_and_teach_map_and_head() -> None:
    member = resnet().eval()
    outputs = member.outputs(torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)), ["layer2", CAM])
    assert list(outputs.features) == ["layer2", CAM]
    assert outputs.features[CAM].shape == (3, 5, 2, 2)
    bias = member.net.get_parameter("fc.bias")
    torch.testing.assert_close(outputs.features[CAM].mean((2, 3)) + bias, outputs.logits)
    outputs.features[CAM].square().sum().backward()
    reached = {name for name, p in member.net.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"conv1.weight", "layer3.0.conv2.weight", "fc.weight"} <= reached
    assert "fc.bias" not in reached


def chain(**parts: nn.Module) -> Member:
    taps = [name for name in parts if name.startswith("tap")]
    return Member(nn.Sequential(OrderedDict(parts)), taps, "fc", [0.5] * 3, [0.25] * 3)


def unfit() -> dict[str, tuple[Member, str]]:
    torch.manual_seed(0)
    conv, flat = nn.Conv2d(3, 4, 3), nn.Flatten()
    hidden = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    average, largest = nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1)
    return {
        "no tap": (chain(flat=flat, fc=nn.Linear(192, 5)), r"not \[0\] and Linear\(in_features=192"),
        "no map": (chain(tap=flat, fc=nn.Linear(192, 5)), r"not \[2, 192\] and Linear\(in_features=192"),
        "all places": (chain(tap=conv, flat=flat, fc=nn.Linear(144, 5)), r"not \[2, 4, 6, 6\] and Linear\(in_features"),
        "hidden layer": (chain(tap=conv, pool=average, flat=flat, mlp=hidden, fc=nn.Linear(4, 5)), "averaged over its"),
        "largest": (chain(tap=conv, act=nn.Tanh(), pool=largest, flat=flat, fc=nn.Linear(4, 5)), "averaged over its"),
    }


@pytest.mark.parametrize("name", unfit())
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_network_whose_logits_are_no_mean_of_class_maps_is_refused(name: str, role: str) -> None:
    member, why = unfit()[name]
    shapes = {"student": shapes_of(resnet(), TASK), "teacher": shapes_of(resnet(), TASK)} | {
        role: shapes_of(member, TASK)
    }
    with pytest.raises(BadInput, match=f"loss 'diswot_semantic' does not fit the {role}: class activation.*{why}"):
        make_terms({"diswot_semantic": 1}, shapes["student"], shapes["teacher"])
    assert make_terms({"kd": 1}, shapes["student"], shapes["teacher"])


def test_class_maps_of_such_a_network_cannot_be_asked_for() -> None:
    member, why = unfit()["no map"]
    with pytest.raises(BadInput, match=why):
        member.outputs(torch.rand(2, 3, 8, 8), [CAM])


@pytest.mark.parametrize("bias", [True, False])
def test_networks_that_average_their_last_map_fit(bias: bool) -> None:
    torch.manual_seed(0)
    parts = {"tap": nn.Conv2d(3, 4, 3), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}
    assert shapes_of(chain(**parts, fc=nn.Linear(4, 5, bias=bias)), TASK).no_cam == ""
    cells = spaces.get("nasbench201").restrict({}, channels=4, cells=1)
    net = cells.build(dict.fromkeys(cells.param_space, "nor_conv_3x3"), TASK)
    assert shapes_of(Member(net, cells.taps, cells.head, [0.5] * 3, [0.25] * 3), TASK).no_cam == ""


def test_other_classes_are_refused_and_the_relation_does_not_mind_them() -> None:
    own, other = Shapes(5, {"a": (4, 2, 2)}), Shapes(7, {"b": (8, 4, 4)})
    with pytest.raises(BadInput, match="loss 'diswot_semantic' needs equal classes, but the student has 5 and the tea"):
        make_terms({"diswot_semantic": 1}, own, other)
    [term] = make_terms({"diswot_relation": 1}, own, other)
    assert (term.student_taps, term.teacher_views) == (("a",), ("b:unit_gram",))
