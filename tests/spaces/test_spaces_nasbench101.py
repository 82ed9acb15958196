"""The cells of NAS-Bench-101 against published counts, values derived by hand, and an interpreter of cells."""

import itertools
import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spaces import SPACES, BadInput, Task
from spaces.nasbench101 import (
    EDGES,
    OPERATIONS,
    Cell,
    allows,
    canonical_form,
    from_matrix,
    pruned,
    to_matrix,
)

SPACE = SPACES["nasbench101"]
CONV3, CONV1, POOL = OPERATIONS
CIFAR = Task(3, 32, 10)


def cell(edges: str, *operations: str) -> dict[str, int | str]:
    """A cell from its edges, as in "01 12 16" (vertex 6 is the output), and operations of its first inner vertices."""
    wanted = {(int(i), int(j)) for i, j in edges.split()}
    chosen = [*operations, *[CONV3] * (5 - len(operations))]
    return {name: int(edge in wanted) for name, edge in EDGES.items()} | {
        f"op{i}": operation for i, operation in enumerate(chosen, start=1)
    }


def cells_up_to(vertices: int) -> Iterator[dict[str, int | str]]:
    """Every matrix of so many vertices, with every choice of operations."""
    pairs = list(itertools.combinations([*range(vertices - 1), 6], 2))
    for there in itertools.product((0, 1), repeat=len(pairs)):
        edges = " ".join(f"{i}{j}" for (i, j), one in zip(pairs, there, strict=True) if one)
        for operations in itertools.product(OPERATIONS, repeat=vertices - 2):
            yield cell(edges, *operations)


# Cells


@pytest.mark.parametrize(("vertices", "graphs"), [(3, 7), (4, 91), (5, 2_532)])
def test_there_are_as_many_graphs_as_published(vertices: int, graphs: int) -> None:
    forms = {json.dumps(canonical_form(arch)) for arch in cells_up_to(vertices) if allows(arch)}
    assert len(forms) == graphs


def test_what_is_on_no_path_does_not_count() -> None:
    base = cell("01 12 26", CONV1, POOL)
    assert pruned(base).operations == (CONV1, POOL)
    assert pruned(base).edges == ((0, 1), (1, 2), (2, 3))
    dead_end, unreached = cell("01 12 26 13 34", CONV1, POOL, CONV1), cell("01 12 26 36 45 56", CONV1, POOL)
    assert SPACE.hash(dead_end) == SPACE.hash(unreached) == SPACE.hash(base)
    assert SPACE.hash(cell("01 12 26", CONV1, CONV1)) != SPACE.hash(base)
    assert SPACE.hash(cell("01 12 26", POOL, CONV1)) != SPACE.hash(base)


def test_at_most_nine_edges_on_paths_are_allowed() -> None:
    nine = cell("01 02 12 13 23 34 45 56 46")
    assert allows(nine)
    assert not allows({**nine, "edge_0_6": 1})
    assert not allows(cell("01 12 23"))
    assert not allows(cell(""))
    assert allows(cell("06"))
    # Ten edges, three of them on paths; or all ten.
    assert allows(cell("06 05 56 01 02 03 04 12 13 14"))
    assert not allows(cell("06 05 56 01 02 03 04 12 13 14 45 25 35"))
    with pytest.raises(BadInput, match=r"^space 'nasbench101' does not allow edge_0_1=0, "):
        SPACE.check(cell(""))


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_forms_are_equal_exactly_for_isomorphic_cells(seed: int) -> None:
    rng = np.random.default_rng(seed)
    arch = SPACE.sample(rng)
    other = SPACE.mutate(arch, rng)
    assert (canonical_form(arch) == canonical_form(other)) == isomorphic(arch, other)
    again = relabelled(arch, rng)
    assert canonical_form(again) == canonical_form(arch)
    assert isomorphic(again, arch)


def relabelled(arch: dict[str, int | str], rng: np.random.Generator) -> dict[str, int | str]:
    """The same cell with its vertices in another order that its edges allow."""
    matrix, operations = map(np.array, to_matrix(arch))
    left, order = set(range(len(matrix))), []
    while left:
        free = sorted(v for v in left if not any(matrix[u, v] for u in left))
        free = [v for v in free if v < len(matrix) - 1 or len(left) == 1]
        order.append(int(rng.choice(free if 0 not in free else [0])))
        left.remove(order[-1])
    return from_matrix(matrix[np.ix_(order, order)].tolist(), list(operations[order]))


def isomorphic(a: dict[str, int | str], b: dict[str, int | str]) -> bool:
    """Whether some order of one cell's vertices gives the other's matrix and operations."""
    (first, names), (second, others) = to_matrix(a), to_matrix(b)
    if len(names) != len(others):
        return False
    first, second, last = np.array(first), np.array(second), len(names) - 1
    orders = ([0, *inner, last] for inner in itertools.permutations(range(1, last)))
    return any(
        (first[np.ix_(order, order)] == second).all() and [names[v] for v in order] == others for order in orders
    )


# The benchmark's form

PUBLISHED = [  # the example of the benchmark's documentation
    [0, 1, 1, 1, 0, 1, 0],
    [0, 0, 0, 0, 0, 0, 1],
    [0, 0, 0, 0, 0, 0, 1],
    [0, 0, 0, 0, 1, 0, 0],
    [0, 0, 0, 0, 0, 0, 1],
    [0, 0, 0, 0, 0, 0, 1],
    [0, 0, 0, 0, 0, 0, 0],
]
PUBLISHED_OPERATIONS = ["input", CONV1, CONV3, CONV3, CONV3, POOL, "output"]


def test_matrices_are_read_and_written() -> None:
    assert to_matrix(from_matrix(PUBLISHED, PUBLISHED_OPERATIONS)) == (PUBLISHED, PUBLISHED_OPERATIONS)
    assert from_matrix(np.array(PUBLISHED), np.array(PUBLISHED_OPERATIONS)) == from_matrix(
        PUBLISHED, PUBLISHED_OPERATIONS
    )
    assert to_matrix(from_matrix([[0, 1], [0, 0]], ["input", "output"])) == ([[0, 1], [0, 0]], ["input", "output"])
    rng = np.random.default_rng(0)
    for arch in [SPACE.sample(rng) for _ in range(50)]:
        matrix, operations = to_matrix(arch)
        again = from_matrix(matrix, operations)
        SPACE.check(again)
        assert SPACE.hash(again) == SPACE.hash(arch)
        assert to_matrix(again) == (matrix, operations)


CHAIN = [[0, 1, 0], [0, 0, 1], [0, 0, 0]]
ENDS = ["input", CONV1, "output"]


@pytest.mark.parametrize(
    ("matrix", "operations", "message"),
    [
        ([[0, 1], [0, 0], [0, 0]], ENDS, r"^a NAS-Bench-101 matrix is square, of 2 to 7 vertices; not rows of \[2, 2"),
        (np.zeros((8, 8), int), ENDS, r"^a NAS-Bench-101 matrix is square, of 2 to 7 vertices; not rows of \[8, 8, "),
        ([], [], r"^a NAS-Bench-101 matrix is square"),
        ([[0, 2, 0], [0, 0, 1], [0, 0, 0]], ENDS, r"has zeros, and ones above the diagonal; not \[\[0, 2, 0\]"),
        ([[0, 1, 0], [1, 0, 1], [0, 0, 0]], ENDS, r"has zeros, and ones above the diagonal"),
        (CHAIN, ENDS[:2], r"^3 vertices need 3 operations, 'input' first and 'output' last; not \['input', "),
        (CHAIN, [CONV1, CONV1, "output"], r"^3 vertices need 3 operations"),
        (CHAIN, ["input", "conv3x3", "output"], r"^unknown operation of NAS-Bench-101 'conv3x3'; did you mean 'conv3"),
        ([[0, 1, 0], [0, 0, 0], [0, 0, 0]], ENDS, r"^a NAS-Bench-101 cell has a path from input to output"),
        (np.triu(np.ones((6, 6), int), 1), ["input", *[POOL] * 4, "output"], r"and at most 9 edges on paths$"),
    ],
)  # fmt: skip
def test_what_is_no_cell_of_the_benchmark_is_refused(matrix: object, operations: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        from_matrix(matrix, operations)  # type: ignore[arg-type]


# Networks


def test_parameters_are_those_published() -> None:
    net = SPACE.build(from_matrix(PUBLISHED, PUBLISHED_OPERATIONS), CIFAR)
    assert sum(p.numel() for p in net.parameters()) == 2_694_282


@pytest.mark.parametrize(
    ("edges", "channels", "widths"),
    [
        ("01 16", 128, [128]),
        ("01 02 03 04 05 16 26 36 46 56", 128, [26, 26, 26, 25, 25]),  # ten edges, yet the rule is the same
        ("01 02 03 16 26 36", 128, [43, 43, 42]),
        ("01 12 02 26", 128, [128, 128]),
        ("01 12 13 26 36", 5, [3, 3, 2]),  # vertex 1 leads to both and is as wide as the wider one
        ("06", 128, []),
    ],
)
def test_vertices_share_the_output_s_channels(edges: str, channels: int, widths: list[int]) -> None:
    found = pruned(cell(edges)).widths(channels)
    assert [found[vertex] for vertex in range(1, len(widths) + 1)] == widths
    assert found[len(widths) + 1] == channels


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_a_cell_computes_what_its_graph_says(seed: int) -> None:
    arch = SPACE.sample(np.random.default_rng(seed))
    torch.manual_seed(seed)
    module = Cell(pruned(arch), inputs=4, outputs=7).eval()
    x = torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        expected = interpret(module, to_matrix(arch)[0], x, channels=7)
        torch.testing.assert_close(module(x), expected)


def interpret(module: Cell, matrix: list[list[int]], x: Tensor, channels: int) -> Tensor:
    """The cell's output from the matrix, backwards: each vertex asks those before it."""
    last = len(matrix) - 1
    sharing = [u for u in range(1, last) if matrix[u][last]]
    shares = {
        u: len(part) for u, part in zip(sharing, np.array_split(range(channels), len(sharing) or 1), strict=False)
    }

    def width(vertex: int) -> int:
        return shares.get(vertex) or max(width(v) for v in range(1, last) if matrix[vertex][v])

    def projected(vertex: int) -> list[Tensor]:
        return [module.projections[str(vertex)](x)] if matrix[0][vertex] else []

    def value(vertex: int) -> Tensor:
        before = [value(u)[:, : width(vertex)] for u in range(1, vertex) if matrix[u][vertex]]
        return module.vertices[vertex - 1](torch.stack(before + projected(vertex)).sum(0))

    joined = torch.cat([value(u) for u in sharing], 1) if sharing else torch.zeros(1)
    return joined + sum(projected(last))


def test_each_edge_from_the_input_has_a_projection_of_its_own() -> None:
    module = Cell(pruned(cell("01 02 06 12 26", POOL, POOL)), 4, 6)
    assert set(module.projections) == {"1", "2", "3"}
    assert not any(isinstance(m, nn.Conv2d) for m in module.vertices.modules())


def test_stacks_halve_the_image_and_double_the_channels() -> None:
    net = SPACE.restrict({}, channels=5, cells=2).build(cell("01 16 06"), Task(1, 13, 3)).eval()
    shapes = []
    for name in SPACE.taps:
        net.get_submodule(name).register_forward_hook(lambda m, args, output: shapes.append(tuple(output.shape)))
    with torch.no_grad():
        net(torch.zeros(2, 1, 13, 13))
    assert shapes == [(2, 5, 13, 13), (2, 10, 7, 7), (2, 20, 4, 4)]
    assert [len(net.get_submodule(name)) for name in SPACE.taps] == [2, 2, 2]


def test_options_that_no_network_has_are_refused() -> None:
    for name, values, least in (("channels", (4, 6.0, "8", True), 5), ("cells", (0, 1.5, True), 1)):
        for value in values:
            with pytest.raises(BadInput) as error:
                SPACE.restrict({}, **{name: value}).build(cell("06"), CIFAR)
            assert str(error.value) == f"nasbench101: {name} must be a whole number of at least {least}, not {value!r}"
    with pytest.raises(BadInput, match=r"^nasbench101: no path leads from the cell's input to its output$"):
        SPACE.build(cell("01 23"), CIFAR)


def test_five_vertices_can_share_the_fewest_channels() -> None:
    arch = cell("01 12 23 35 16 26 36 56 34 46")
    assert not allows(arch)  # ten edges, but a teacher may have them
    net = SPACE.restrict({}, channels=5, cells=1).build(arch, Task(3, 8, 2))
    assert net(torch.zeros(2, 3, 8, 8)).shape == (2, 2)
