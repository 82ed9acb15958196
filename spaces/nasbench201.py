"""The cells of NAS-Bench-201 (Dong and Yang 2020, arXiv:2001.00326, section 2): 6 edges, one of 5 operations each.

A cell has four nodes. Node 0 is its input; each later node adds up what the edges from all earlier nodes bring; node 3
is its output. The same cell is repeated throughout the network.

What the benchmark's table counts, and what therefore equals counts on these networks: `params` are all parameters
(also those of operations that cannot reach the output); `macs` are the multiply-adds of convolutions and of the final
linear layer, with nothing for batch norm, pooling, activations, additions and biases.
"""

import re
from collections.abc import Callable
from functools import lru_cache

from ray import tune
from torch import Tensor, nn

from spaces.errors import BadInput, unknown
from spaces.space import Arch, Space
from spaces.task import Task

NODES = 4
EDGES = {f"edge_{source}_{target}": (source, target) for target in range(1, NODES) for source in range(target)}
"""The edges by name, as (source node, target node), in the order in which the benchmark writes them."""


class Zero(nn.Module):
    """Zeros that still hang on the input, so that every parameter gets a gradient (of zero)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 0


def relu_conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """The benchmark's order of operations. The input is used by other edges too, so the ReLU is not in place."""
    return nn.Sequential(
        nn.ReLU(inplace=False),
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


OPERATIONS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: Zero(),
    "skip_connect": lambda channels: nn.Identity(),
    "nor_conv_1x1": lambda channels: relu_conv_bn(channels, channels, 1),
    "nor_conv_3x3": lambda channels: relu_conv_bn(channels, channels, 3),
    "avg_pool_3x3": lambda channels: nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
}
"""What an edge may do: from a name to the module for a number of channels."""

PARAM_SPACE = {name: tune.choice(list(OPERATIONS)) for name in EDGES}


def build(arch: Arch, task: Task, channels: int = 16, cells: int = 5) -> nn.Module:
    """Network from images [B, C, H, W] to logits [B, K].

    Args:
        arch: an operation for each of `EDGES`.
        task: shape of the input and number of classes.
        channels: of the first stage; doubled at each of the two reductions.
        cells: in each of the three stages.

    Raises:
        BadInput: `channels` or `cells` is not a whole number of at least 1.
    """
    for name, value in (("channels", channels), ("cells", cells)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise BadInput(f"nasbench201: {name} must be a whole number of at least 1, not {value!r}")
    return CellNetwork(arch, task, channels, cells)


class Cell(nn.Module):
    """Four nodes and the operations on the six edges between them; shapes stay as they are."""

    def __init__(self, arch: Arch, channels: int) -> None:
        super().__init__()
        for name in EDGES:
            self.add_module(name, OPERATIONS[arch[name]](channels))

    def forward(self, x: Tensor) -> Tensor:
        nodes = [x]
        for target in range(1, NODES):
            node = self.get_submodule(f"edge_0_{target}")(nodes[0])
            for source in range(1, target):
                node = node + self.get_submodule(f"edge_{source}_{target}")(nodes[source])
            nodes.append(node)
        return nodes[-1]


class Reduction(nn.Module):
    """The residual block between stages: half the image, `outputs` channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv_a = relu_conv_bn(inputs, outputs, 3, stride=2)
        self.conv_b = relu_conv_bn(outputs, outputs, 3)
        # ceil_mode: an odd number of pixels comes out as the strided convolution leaves it.
        pool = nn.AvgPool2d(2, stride=2, ceil_mode=True)
        self.shortcut = nn.Sequential(pool, nn.Conv2d(inputs, outputs, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.conv_b(self.conv_a(x))


class CellNetwork(nn.Module):
    """Stem, three stages of cells with a reduction between them, batch norm and ReLU, pooling, classifier."""

    def __init__(self, arch: Arch, task: Task, channels: int, cells: int) -> None:
        super().__init__()
        widths = (channels, 2 * channels, 4 * channels)
        self.stem = nn.Sequential(
            nn.Conv2d(task.channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )
        self.stage1, self.stage2, self.stage3 = (
            nn.Sequential(*(Cell(arch, width) for _ in range(cells))) for width in widths
        )
        self.reduction1 = Reduction(widths[0], widths[1])
        self.reduction2 = Reduction(widths[1], widths[2])
        self.last = nn.Sequential(nn.BatchNorm2d(widths[2]), nn.ReLU(inplace=True))
        self.fc = nn.Linear(widths[2], task.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage1(self.stem(x))
        x = self.stage2(self.reduction1(x))
        x = self.stage3(self.reduction2(x))
        return self.fc(self.last(x).mean((2, 3)))


def to_string(arch: Arch) -> str:
    """The cell as the benchmark writes it: `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`, one group a node.

    Raises:
        BadInput: not one of the operations on each of the edges.
    """
    SPACE.check(arch)
    return "+".join(
        "|" + "".join(f"{arch[f'edge_{source}_{target}']}~{source}|" for source in range(target))
        for target in range(1, NODES)
    )


_CELL = re.compile(r"\+".join(r"\|" + "".join(rf"([^|~+]*)~{i}\|" for i in range(n)) for n in range(1, NODES)))


def from_string(text: str) -> dict[str, str]:
    """The cell that the benchmark writes so; the inverse of `to_string`.

    Raises:
        BadInput: another form, or an operation that the benchmark does not have.
    """
    found = _CELL.fullmatch(text)
    if found is None:
        raise BadInput(f"a NAS-Bench-201 cell is written |op~0|+|op~0|op~1|+|op~0|op~1|op~2|, not {text!r}")
    for operation in found.groups():
        if operation not in OPERATIONS:
            raise unknown("operation of NAS-Bench-201", operation, OPERATIONS)
    return dict(zip(EDGES, found.groups(), strict=True))


def canonical_form(arch: Arch) -> str:
    """The expression that the cell computes: one for all cells that the benchmark counts as isomorphic (6,466 of them).

    The input is `0`, nothing is `#`, an operation on an expression `(...)@op`, and a node the sorted sum of its edges.
    A `none`, and whatever is done to nothing, is nothing; a `skip_connect` is the expression that it copies. This is
    the benchmark's own rule. It takes for nothing a convolution of nothing (of which training makes a constant, by
    batch norm's bias), and it keeps apart some sums that differ in nothing but their order.
    """
    return _node(NODES - 1, tuple(arch[name] for name in EDGES))


# Sized to hold every cell's first two nodes, 5 + 5^3 of them; the last node is different for each cell.
@lru_cache(maxsize=256)
def _inner_node(target: int, operations: tuple[str, ...]) -> str:
    return _node(target, operations)


def _node(target: int, operations: tuple[str, ...]) -> str:
    """The expression of a node, from the operations of all edges up to its own."""
    start = target * (target - 1) // 2  # number of edges into the nodes before it
    terms = []
    for source, operation in enumerate(operations[start : start + target]):
        known = _inner_node(source, operations[: source * (source + 1) // 2]) if source else "0"
        if operation == "none" or known == "#":
            terms.append("#")
        else:
            terms.append(known if operation == "skip_connect" else f"({known})@{operation}")
    return "+".join(sorted(terms))


SPACE = Space(
    name="nasbench201",
    param_space=PARAM_SPACE,
    builder=build,
    taps=("stage1", "stage2", "last"),
    head="fc",
    canonical_form=canonical_form,
    options={"channels": 16, "cells": 5},
)
