"""Wide residual networks against published sizes and the paper's block."""

import pytest
import torch
from torch import nn

from spaces import SPACES, BadInput, Task
from spaces.wrn import Block, build

CIFAR = Task(3, 32, 10)


@pytest.mark.parametrize(
    ("depth", "widen", "classes", "params", "millions"),
    [
        (28, 10, 10, 36_479_194, 36.5),  # in millions: table 4 of the paper
        (40, 4, 10, 8_949_210, 8.9),
        (16, 8, 10, 10_961_370, 11.0),
        (28, 10, 100, 36_536_884, 36.5),
        (16, 1, 10, 175_066, 0.2),
    ],
)
def test_parameters_are_those_published(depth: int, widen: int, classes: int, params: int, millions: float) -> None:
    with torch.device("meta"):
        net = SPACES["wrn"].build({"depth": depth, "widen": widen}, Task(3, 32, classes))
    count = sum(p.numel() for p in net.parameters())
    assert count == params
    assert abs(count / 1e6 - millions) < 0.06
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) == depth - 3  # the paper also counts the three shortcuts that change the width


def test_a_block_normalises_first_and_adds_its_input_untouched() -> None:
    x = torch.randn(2, 4, 5, 5, generator=torch.manual_seed(0))
    same, changing = Block(4, 4, 1, 0.0).eval(), Block(4, 6, 2, 0.0).eval()
    for block in (same, changing):
        nn.init.zeros_(block.conv2.weight)
    kept = x.clone()
    assert torch.equal(same(x), kept)
    assert torch.equal(x, kept)
    assert changing.shortcut is not None
    active = changing.bn1(x).clamp(min=0)
    torch.testing.assert_close(changing(x), changing.shortcut(active))
    assert changing(x).shape == (2, 6, 3, 3)


def test_dropout_is_between_the_convolutions_and_only_in_training() -> None:
    x = torch.randn(2, 4, 5, 5, generator=torch.manual_seed(0))
    block = Block(4, 4, 1, 0.5)
    assert not torch.equal(block(x), block(x))
    assert torch.equal(block.eval()(x), block(x))
    space = SPACES["wrn"].restrict({}, dropout=0.3)
    net = space.build({"depth": 10, "widen": 1}, CIFAR)
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.3] * 3


def test_a_fraction_narrows_the_network() -> None:
    narrow = SPACES["wrn"].restrict({"widen": [0.25]}).build({"depth": 10, "widen": 0.25}, CIFAR)
    assert narrow.fc.in_features == 16


@pytest.mark.parametrize(
    ("depth", "widen", "dropout", "message"),
    [
        (11, 1, 0.0, r"^wrn: depth must be 6 n \+ 4 \(10, 16, 22, ...\), not 11$"),
        (4, 1, 0.0, r"^wrn: depth must be 6 n \+ 4 \(10, 16, 22, ...\), not 4$"),
        (10, 0.3, 0.0, r"^wrn: widen must be a multiple of 1/16, not 0.3$"),
        (10, 0, 0.0, r"^wrn: widen must be a multiple of 1/16, not 0$"),
        (10, 1, 1.0, r"^wrn: dropout must be at least 0 and below 1, not 1.0$"),
        (10, 1, "some", r"^wrn: dropout must be at least 0 and below 1, not 'some'$"),
    ],
)
def test_what_is_no_wide_residual_network_is_refused(depth: int, widen: float, dropout: object, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        build({"depth": depth, "widen": widen}, CIFAR, dropout=dropout)  # type: ignore[arg-type]
