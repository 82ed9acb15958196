"""The cells of NAS-Bench-101 (Ying et al. 2019, arXiv:1902.09635): up to 7 vertices, 9 edges and 3 operations.

A cell is a directed graph from its input (vertex 0) to its output (the last vertex); each vertex between them adds up
what reaches it and applies its operation. Vertices that are on no path from input to output do nothing and are left
out; what then remains has at most 9 edges. The same cell is repeated throughout the network. There are 423,624 of them
up to isomorphism.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import permutations
from operator import add

import torch
from ray import tune
from torch import Tensor, nn

from spaces.errors import BadInput, unknown
from spaces.space import Arch, Space
from spaces.task import Task

VERTICES = 7  # with the input, 0, and the output, 6
MOST_EDGES = 9
Edge = tuple[int, int]
EDGES: dict[str, Edge] = {f"edge_{i}_{j}": (i, j) for j in range(1, VERTICES) for i in range(j)}
"""What may connect two vertices, by name, as (source, target)."""


def conv_bn_relu(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """The benchmark's convolution: same size, no bias, then batch norm and ReLU.

    Batch norm keeps torch's momentum. The benchmark's (0.003) is for its 108 epochs: after a few short ones its
    averages would still be mostly what they began with.
    """
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


OPERATIONS: dict[str, Callable[[int], nn.Module]] = {
    "conv3x3-bn-relu": lambda channels: conv_bn_relu(channels, channels, 3),
    "conv1x1-bn-relu": lambda channels: conv_bn_relu(channels, channels, 1),
    "maxpool3x3": lambda channels: nn.MaxPool2d(3, stride=1, padding=1),
}
"""What an inner vertex may do: from the benchmark's name to the module for a number of channels."""

PARAM_SPACE = {name: tune.choice([0, 1]) for name in EDGES} | {
    f"op{vertex}": tune.choice(list(OPERATIONS)) for vertex in range(1, VERTICES - 1)
}


@dataclass(frozen=True)
class Graph:
    """A cell without the vertices that do nothing; the others are numbered anew, the output comes last.

    Args:
        operations: of the inner vertices 1, 2, ... in turn.
        edges: (source, target), ascending.
    """

    operations: tuple[str, ...]
    edges: tuple[Edge, ...]

    @property
    def output(self) -> int:
        """Number of the last vertex."""
        return len(self.operations) + 1

    def inner_sources(self, target: int) -> list[int]:
        """The inner vertices with an edge to `target`."""
        return [i for i, j in self.edges if j == target and i > 0]

    def widths(self, channels: int) -> dict[int, int]:
        """Channels of the inner vertices and of the output.

        Those that lead to the output share its channels, the first ones taking one more where they do not divide; the
        others have as many as the widest vertex that they lead to.
        """
        last = self.inner_sources(self.output)
        share, rest = divmod(channels, max(1, len(last)))
        widths = {self.output: channels, **{vertex: share + (rank < rest) for rank, vertex in enumerate(last)}}
        for vertex in reversed(range(1, self.output)):
            if vertex not in widths:
                widths[vertex] = max(widths[j] for i, j in self.edges if i == vertex)
        return widths


def pruned(arch: Arch) -> Graph | None:
    """The graph of a cell; None if no path leads from its input to its output."""
    edges = sorted(edge for name, edge in EDGES.items() if arch[name])
    # Sources ascend, so everything into a vertex has been seen when its own edges come; and the other way round.
    reached, leading = {0}, {VERTICES - 1}
    for i, j in edges:
        if i in reached:
            reached.add(j)
    for i, j in reversed(edges):
        if j in leading:
            leading.add(i)
    place = {vertex: rank for rank, vertex in enumerate(sorted(reached & leading))}
    if not place:
        return None
    return Graph(
        tuple(arch[f"op{vertex}"] for vertex in list(place)[1:-1]),
        tuple((place[i], place[j]) for i, j in edges if i in place and j in place),
    )


def allows(arch: Arch) -> bool:
    """Whether a path leads from input to output, and at most 9 edges are on such paths."""
    graph = pruned(arch)
    return graph is not None and len(graph.edges) <= MOST_EDGES


def canonical_form(arch: Arch) -> list[list[str] | list[list[int]]]:
    """The least [operations, edges] over all orders of the inner vertices: equal exactly for isomorphic cells.

    Where five or three vertices share the output's channels, isomorphic networks may differ by a channel: the first
    vertices take the remainder. The benchmark counts them as one too. All cells without a path are one, without edges.
    """
    graph = pruned(arch) or Graph((), ())
    return min(_reordered(graph, order) for order in permutations(range(1, graph.output)))


def _reordered(graph: Graph, order: tuple[int, ...]) -> list[list[str] | list[list[int]]]:
    place = [0] * (graph.output + 1)
    for rank, vertex in enumerate((*order, graph.output), start=1):
        place[vertex] = rank
    return [[graph.operations[vertex - 1] for vertex in order], sorted([place[i], place[j]] for i, j in graph.edges)]


def to_matrix(arch: Arch) -> tuple[list[list[int]], list[str]]:
    """The cell as the benchmark's table has it: adjacency matrix and operations, without vertices that do nothing.

    Raises:
        BadInput: not an architecture of this space.
    """
    SPACE.check(arch)
    graph = pruned(arch)
    assert graph is not None
    vertices = range(graph.output + 1)
    matrix = [[int((i, j) in graph.edges) for j in vertices] for i in vertices]
    return matrix, ["input", *graph.operations, "output"]


def from_matrix(matrix: Sequence[Sequence[int]], operations: Sequence[str]) -> dict[str, int | str]:
    """The cell with this adjacency matrix [V, V] and these V operations, from `input` to `output`.

    Vertices that the cell does not have do nothing.

    Raises:
        BadInput: not a cell that the benchmark can have.
    """
    rows, names = [[int(there) for there in row] for row in matrix], [str(name) for name in operations]
    _check_matrix(rows, names)
    output = len(rows) - 1
    arch: dict[str, int | str] = dict.fromkeys(EDGES, 0)
    arch |= {f"op{vertex}": next(iter(OPERATIONS)) for vertex in range(1, VERTICES - 1)}
    arch |= {f"op{vertex}": names[vertex] for vertex in range(1, output)}
    for i, row in enumerate(rows):
        for j, there in enumerate(row):
            if there:
                arch[f"edge_{i}_{j if j < output else VERTICES - 1}"] = 1
    if not allows(arch):
        raise BadInput(f"a NAS-Bench-101 cell has a path from input to output and at most {MOST_EDGES} edges on paths")
    return arch


def _check_matrix(rows: list[list[int]], names: list[str]) -> None:
    size = len(rows)
    if not 2 <= size <= VERTICES or any(len(row) != size for row in rows):
        raise BadInput(
            f"a NAS-Bench-101 matrix is square, of 2 to {VERTICES} vertices; not rows of {[len(row) for row in rows]}"
        )
    if any(there not in (0, 1) or (there and i >= j) for i, row in enumerate(rows) for j, there in enumerate(row)):
        raise BadInput(f"a NAS-Bench-101 matrix has zeros, and ones above the diagonal; not {rows}")
    if len(names) != size or names[0] != "input" or names[-1] != "output":
        raise BadInput(f"{size} vertices need {size} operations, 'input' first and 'output' last; not {names}")
    for name in names[1:-1]:
        if name not in OPERATIONS:
            raise unknown("operation of NAS-Bench-101", name, OPERATIONS)


def build(arch: Arch, task: Task, channels: int = 128, cells: int = 3) -> nn.Module:
    """Network from images [B, C, H, W] to logits [B, K].

    Args:
        arch: 0 or 1 for each of `EDGES`, an operation for each inner vertex.
        task: shape of the input and number of classes.
        channels: of the first stack; doubled at each of the two others.
        cells: in each of the three stacks.

    Raises:
        BadInput: no path from input to output, `channels` is not a whole number of at least 5 (as many vertices may
            have to share them), or `cells` none of at least 1.
    """
    for name, value, least in (("channels", channels, VERTICES - 2), ("cells", cells, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise BadInput(f"nasbench101: {name} must be a whole number of at least {least}, not {value!r}")
    graph = pruned(arch)
    if graph is None:
        raise BadInput("nasbench101: no path leads from the cell's input to its output")
    return CellNetwork(graph, task, channels, cells)


class Cell(nn.Module):
    """The vertices of a cell; from [B, inputs, H, W] to [B, outputs, H, W].

    Every edge from the cell's input has a 1 x 1 projection of its own. Inner values are added, truncated to the
    target's channels; what reaches the output is concatenated, and the projected input added to that.
    """

    def __init__(self, graph: Graph, inputs: int, outputs: int) -> None:
        super().__init__()
        self.output = graph.output
        self.widths = graph.widths(outputs)
        self.sources = {vertex: graph.inner_sources(vertex) for vertex in self.widths}
        self.projections = nn.ModuleDict(
            {str(j): conv_bn_relu(inputs, self.widths[j], 1) for i, j in graph.edges if i == 0}
        )
        self.vertices = nn.ModuleList(
            OPERATIONS[operation](self.widths[vertex]) for vertex, operation in enumerate(graph.operations, start=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        terms = {vertex: [] for vertex in self.widths} | {int(j): [p(x)] for j, p in self.projections.items()}
        values: dict[int, Tensor] = {}
        for vertex, operation in enumerate(self.vertices, start=1):
            terms[vertex] += [values[i][:, : self.widths[vertex]] for i in self.sources[vertex]]
            values[vertex] = operation(reduce(add, terms[vertex]))
        if self.sources[self.output]:
            terms[self.output].append(torch.cat([values[i] for i in self.sources[self.output]], dim=1))
        return reduce(add, terms[self.output])


class CellNetwork(nn.Module):
    """Stem, three stacks of cells (half the image and twice the channels in each next one), pooling, classifier."""

    def __init__(self, graph: Graph, task: Task, channels: int, cells: int) -> None:
        super().__init__()
        self.stem = conv_bn_relu(task.channels, channels, 3)
        self.stack1 = _stack(graph, channels, channels, cells)
        # ceil_mode: an odd number of pixels is rounded up, as by the benchmark's "same" padding.
        self.pool1 = nn.MaxPool2d(2, ceil_mode=True)
        self.stack2 = _stack(graph, channels, 2 * channels, cells)
        self.pool2 = nn.MaxPool2d(2, ceil_mode=True)
        self.stack3 = _stack(graph, 2 * channels, 4 * channels, cells)
        self.fc = nn.Linear(4 * channels, task.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")  # variance 1 / fan-in, the benchmark's

    def forward(self, x: Tensor) -> Tensor:
        x = self.stack1(self.stem(x))
        x = self.stack2(self.pool1(x))
        x = self.stack3(self.pool2(x))
        return self.fc(x.mean((2, 3)))


def _stack(graph: Graph, inputs: int, outputs: int, cells: int) -> nn.Sequential:
    return nn.Sequential(*(Cell(graph, inputs if i == 0 else outputs, outputs) for i in range(cells)))


SPACE = Space(
    name="nasbench101",
    param_space=PARAM_SPACE,
    builder=build,
    taps=("stack1", "stack2", "stack3"),
    head="fc",
    canonical_form=canonical_form,
    options={"channels": 128, "cells": 3},
    allows=allows,
)
