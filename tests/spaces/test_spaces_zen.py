"""Zen-NAS's super-blocks: their steps, their layers, their sizes."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from spaces import SPACES, BadInput, Task
from spaces.zen import BLOCKS, FACTORS, MOVES, STAGES, ResidualBlock

SPACE = SPACES["zen"]
# The network from which the paper's search on CIFAR starts, but for its stem and last width.
SEED: dict[str, Any] = {
    "stem": 8,
    **{f"block{i}": "basic" for i in STAGES},
    **{f"kernel{i}": 3 for i in STAGES},
    **{f"depth{i}": 1 for i in STAGES},
    **{f"width{i}": width for i, width in zip(STAGES, (16, 32, 64, 64), strict=True)},
    **{f"inner{i}": width for i, width in zip(STAGES, (8, 16, 32, 32), strict=True)},
    "last": 128,
}


def reached(name: str, value: Any, space: Any = SPACE) -> set[Any]:
    """The values that mutations give to a name that had this value."""
    others = {other: [SEED[other]] for other in SEED if other != name}
    alone, rng = space.restrict(others), np.random.default_rng(0)
    return {alone.mutate({**SEED, name: value}, rng)[name] for _ in range(120)}


def test_mutations_are_the_paper_s_steps() -> None:
    assert sorted(FACTORS) == pytest.approx([0.4, 0.5, 1 / 1.5, 0.8, 1.25, 1.5, 2, 2.5])
    for name in ("stem", "width2", "inner3", "last"):
        # 32 times the factors: 12.8, 16, 21.3, 25.6, 40, 48, 64, 80, each rounded to the widths that there are.
        assert reached(name, 32) == {16, 24, 40, 48, 64, 80}
        assert reached(name, 8) == {16}
        assert reached(name, 128) == {48, 64, 80, 96}  # 51.2, 64, 85.3, 102.4; the others are beyond the end
    assert reached("depth1", 3) == {1, 2, 4, 5}
    assert reached("depth1", 1) == {2, 3}
    assert reached("kernel2", 5) == {3, 7}
    assert reached("block4", "basic") == {"bottleneck"}
    assert set(MOVES) | {f"{name}{i}" for name in ("block", "kernel") for i in STAGES} == set(SPACE.param_space)


def test_steps_are_rounded_to_the_widths_that_a_recipe_gives() -> None:
    own = SPACE.restrict({"width1": [4, 6, 11]})
    assert reached("width1", 4, own) == {6, 11}  # 1.6, 2, 2.7, 3.2, 5, 6, 8, 10
    far = SPACE.restrict({"width1": [10, 1000]})
    assert reached("width1", 10, far) == {1000}  # no step leads there: any other value


def test_every_convolution_is_followed_by_batch_norm() -> None:
    rng = np.random.default_rng(0)
    small = {f"{name}{i}": [4, 6] for name in ("width", "inner") for i in STAGES}
    for arch in [SPACE.restrict(small).sample(rng) for _ in range(5)]:
        layers = [m for m in SPACE.build(arch, Task(3, 8, 2)).modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
        assert len(layers) % 2 == 0
        for conv, norm in zip(layers[::2], layers[1::2], strict=True):
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            assert conv.bias is None
            assert conv.out_channels == norm.num_features


def test_super_blocks_halve_the_image_but_for_the_first() -> None:
    net = SPACE.build({**SEED, "depth2": 2}, Task(3, 32, 10)).eval()
    shapes: dict[str, tuple[int, ...]] = {}
    for i in STAGES:

        def note(module: nn.Module, args: object, output: Tensor, i: int = i) -> None:
            shapes[f"super{i}"] = tuple(output.shape[1:])

        net.get_submodule(f"super{i}").register_forward_hook(note)
    with torch.no_grad():
        net(torch.zeros(1, 3, 32, 32))
    assert shapes == {"super1": (16, 32, 32), "super2": (32, 16, 16), "super3": (64, 8, 8), "super4": (64, 4, 4)}
    assert [len(net.get_submodule(f"super{i}")) for i in STAGES] == [1, 2, 1, 1]
    assert [len(block.shortcut) for block in net.get_submodule("super2")] == [2, 0]  # projected once, then as it is


@pytest.mark.parametrize(
    ("kind", "shapes"),
    [
        ("basic", [(6, 4, 5, 5), (8, 6, 5, 5)]),
        ("bottleneck", [(6, 4, 1, 1), (6, 6, 5, 5), (8, 6, 1, 1)]),
    ],
)
def test_a_block_is_of_its_kind(kind: str, shapes: list[tuple[int, ...]]) -> None:
    layers = BLOCKS[kind](4, 6, 8, 5, 2)
    assert [tuple(m.weight.shape) for m in layers if isinstance(m, nn.Conv2d)] == shapes
    assert layers(torch.zeros(2, 4, 8, 8)).shape == (2, 8, 4, 4)
    assert not isinstance(layers[-1], nn.ReLU)  # the sum with the shortcut is activated


def test_a_block_adds_its_input_and_activates_the_sum() -> None:
    layers = BLOCKS["basic"](3, 5, 3, 3, 1)
    block = ResidualBlock(layers, 3, 3, 1, projected=False).eval()
    nn.init.zeros_(layers[-1].weight)  # of the last batch norm
    x = torch.randn(2, 3, 4, 4, generator=torch.manual_seed(0))
    assert torch.equal(block(x), x.clamp(min=0))


def test_what_no_block_can_be_is_refused() -> None:
    with pytest.raises(BadInput, match=r"^unknown block of space 'zen' 'basics'; did you mean 'basic'\?"):
        SPACE.build({**SEED, "block2": "basics"}, Task(3, 8, 2))
    with pytest.raises(BadInput, match=r"^zen: kernel3 must be odd, not 4$"):
        SPACE.build({**SEED, "kernel3": 4}, Task(3, 8, 2))
