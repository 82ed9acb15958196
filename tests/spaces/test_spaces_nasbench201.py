"""The cells of NAS-Bench-201 against hand-derived values, an interpreter of cells, and the benchmark's own table."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spaces import SPACES, BadInput, Task, nasbench201
from spaces.nasbench201 import EDGES, OPERATIONS, Cell, canonical_form, from_string, to_string

DATA = Path(os.environ.get("DUX_TEST_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
TABLE = DATA / "tables" / "nasbench201.parquet"
with_table = pytest.mark.skipif(not TABLE.is_file(), reason="the benchmark's table is not here")

SPACE = SPACES["nasbench201"]
CIFAR = Task(3, 32, 10)


def everywhere(operation: str) -> dict[str, str]:
    return dict.fromkeys(EDGES, operation)


def only(**edges: str) -> dict[str, str]:
    return {**everywhere("none"), **edges}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    frame = pd.read_parquet(TABLE)
    return frame[frame.dataset == "cifar10"]


def counts(arch: dict[str, str], task: Task) -> tuple[int, int]:
    """Parameters, and multiply-adds of convolutions and linear layers, measured on one image."""
    net = SPACE.build(arch, task).eval()  # on the CPU: torch's meta device takes ten times as long for small networks
    image = torch.zeros(1, task.channels, task.image_size, task.image_size)
    macs = 0

    def count(module: nn.Module, args: object, output: Tensor) -> None:
        nonlocal macs
        assert isinstance(module, nn.Conv2d | nn.Linear)
        macs += module.weight[0].numel() * output.numel()

    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        net(image)
    return sum(p.numel() for p in net.parameters()), macs


# Size and cost


def test_five_operations_on_six_edges() -> None:
    assert SPACE.size() == 5**6 == 15_625
    assert list(EDGES.values()) == [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]


def test_costs_by_hand() -> None:
    # Stem 3*16*9; reductions w -> 2w: 3x3 of w*2w and 2w*2w, 1x1 of w*2w; classifier 64*10. Two numbers per channel
    # of each batch norm: 16, 2 * 32, 2 * 64, 64; the classifier has 10 biases.
    stem, first, second, head = 432, 9 * 512 + 9 * 1024 + 512, 9 * 2048 + 9 * 4096 + 2048, 640
    params = stem + first + second + head + 2 * (16 + 2 * 32 + 2 * 64 + 64) + 10
    macs = stem * 32**2 + first * 16**2 + second * 8**2 + head
    for operation in ("none", "skip_connect", "avg_pool_3x3"):
        assert counts(everywhere(operation), CIFAR) == (params, macs) == (73_306, 7_783_040)
    # 3 stages of 5 cells of 6 convolutions, each with its batch norm.
    for operation, area in (("nor_conv_1x1", 1), ("nor_conv_3x3", 9)):
        cells = 5 * 6 * sum(area * w * w + 2 * w for w in (16, 32, 64))
        cell_macs = 5 * 6 * sum(area * w * w * pixels**2 for w, pixels in ((16, 32), (32, 16), (64, 8)))
        assert counts(everywhere(operation), CIFAR) == (params + cells, macs + cell_macs)


@with_table
@pytest.mark.parametrize(("dataset", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_costs_are_those_of_the_table(dataset: str, classes: int) -> None:
    frame = pd.read_parquet(TABLE)
    for row in frame[frame.dataset == dataset].sample(100, random_state=0).itertuples():
        assert counts(from_string(row.arch), Task(3, 32, classes)) == (row.params, row.macs)


def test_options_set_width_and_number_of_cells() -> None:
    small = SPACE.restrict({}, channels=4, cells=2)
    net = small.build(everywhere("nor_conv_1x1"), Task(1, 8, 3))
    assert net.fc.in_features == 16
    assert [len(net.get_submodule(f"stage{i}")) for i in (1, 2, 3)] == [2, 2, 2]
    for name in ("channels", "cells"):
        for value in (0, -1, 1.5, "16", True):
            with pytest.raises(BadInput) as error:
                SPACE.restrict({}, **{name: value}).build(everywhere("none"), CIFAR)
            assert str(error.value) == f"nasbench201: {name} must be a whole number of at least 1, not {value!r}"


# What a cell computes


@pytest.mark.parametrize(
    ("arch", "times"),
    [
        (everywhere("skip_connect"), 4),  # nodes: x, x, 2x, then x + x + 2x
        (only(edge_0_3="skip_connect"), 1),
        (only(edge_0_1="skip_connect", edge_1_2="skip_connect", edge_2_3="skip_connect"), 1),
        (only(edge_0_1="skip_connect", edge_1_2="skip_connect"), 0),  # node 2 goes nowhere
        (only(edge_1_3="skip_connect"), 0),  # node 1 has nothing
        (everywhere("none"), 0),
    ],
)
def test_a_cell_adds_up_its_edges(arch: dict[str, str], times: int) -> None:
    x = torch.randn(2, 3, 5, 5, generator=torch.manual_seed(0))
    assert torch.equal(Cell(arch, 3)(x), times * x)


def test_pooling_leaves_out_what_is_beyond_the_border() -> None:
    ones = torch.ones(1, 2, 4, 4)
    torch.testing.assert_close(Cell(everywhere("avg_pool_3x3"), 2)(ones), 4 * ones)


def test_a_convolution_comes_after_a_relu_and_leaves_its_input() -> None:
    cell = Cell(only(edge_0_1="nor_conv_1x1", edge_1_3="skip_connect", edge_0_3="skip_connect"), 2).eval()
    relu, conv, norm = cell.get_submodule("edge_0_1").children()
    assert isinstance(relu, nn.ReLU)
    assert isinstance(norm, nn.BatchNorm2d)
    conv.weight.data = torch.eye(2)[:, :, None, None]
    x = torch.randn(2, 2, 3, 3, generator=torch.manual_seed(0))
    kept = x.clone()
    expected = kept + kept.clamp(min=0) / math.sqrt(1 + norm.eps)
    torch.testing.assert_close(cell(x), expected)
    assert torch.equal(x, kept)


def test_a_disconnected_cell_gives_every_image_the_same_logits() -> None:
    net = SPACE.restrict({}, channels=4, cells=1).build(everywhere("none"), CIFAR).eval()
    with torch.no_grad():
        logits = net(torch.randn(3, 3, 32, 32))
    assert torch.equal(logits[0], logits[1])
    connected = SPACE.restrict({}, channels=4, cells=1).build(everywhere("skip_connect"), CIFAR).eval()
    with torch.no_grad():
        logits = connected(torch.randn(3, 3, 32, 32))
    assert not torch.equal(logits[0], logits[1])


# Strings


def test_strings_of_all_cells_are_read_back() -> None:
    archs = list(SPACE.all())
    texts = [to_string(arch) for arch in archs[::7]]
    assert [from_string(text) for text in texts] == archs[::7]
    arch = dict(
        zip(EDGES, ["nor_conv_3x3", "none", "skip_connect", "avg_pool_3x3", "nor_conv_1x1", "none"], strict=True)
    )
    text = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|"
    assert to_string(arch) == text
    assert from_string(text) == arch


@with_table
def test_strings_are_those_of_the_table(table: pd.DataFrame) -> None:
    assert {to_string(from_string(text)) for text in table.arch} == set(table.arch)
    assert len(table) == SPACE.size()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "none",
        "|none~0|+|none~0|none~1|",  # a node too few
        "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|+",
        "|none~0|+|none~1|none~0|+|none~0|none~1|none~2|",  # sources out of order
        "|none~0|+|none~0|none~0|+|none~0|none~1|none~2|",
        "|none~0||none~0|none~1|+|none~0|none~1|none~2|",
        " |none~0|+|none~0|none~1|+|none~0|none~1|none~2|",
        "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|\n",
        "|none|+|none|none|+|none|none|none|",
    ],
)
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(BadInput) as error:
        from_string(text)
    form = "|op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
    assert str(error.value) == f"a NAS-Bench-201 cell is written {form}, not {text!r}"


def test_an_unknown_operation_is_refused() -> None:
    with pytest.raises(
        BadInput, match=r"^unknown operation of NAS-Bench-201 'skip'; known: avg_pool_3x3, none, nor_conv_1x1"
    ):
        from_string("|none~0|+|none~0|none~1|+|none~0|none~1|skip~2|")
    with pytest.raises(BadInput, match=r"^unknown operation of NAS-Bench-201 '';"):
        from_string("|~0|+|none~0|none~1|+|none~0|none~1|none~2|")
    with pytest.raises(BadInput, match=r"^space 'nasbench201': edge_0_1='skip' is not in "):
        to_string({**everywhere("none"), "edge_0_1": "skip"})
    with pytest.raises(BadInput, match=r"^space 'nasbench201': the architecture lacks 'edge_0_2'$"):
        to_string({"edge_0_1": "none"})


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(alphabet="|~+012none", max_size=60))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        from_string(text)


# Isomorphism


def interpret(arch: dict[str, str]) -> float:
    """The cell as arithmetic: each operation a curve of its own through 0, so that equal cells give equal numbers."""
    bend = {"nor_conv_1x1": 0.7, "nor_conv_3x3": 1.3, "avg_pool_3x3": 1.9}
    nodes = [0.611]
    for target in range(1, 4):
        edges = ((arch[f"edge_{source}_{target}"], nodes[source]) for source in range(target))
        nodes.append(
            sum(0.0 if op == "none" else x if op == "skip_connect" else math.sin(bend[op] * x) for op, x in edges)
        )
    return round(nodes[-1], 10)


@pytest.fixture(scope="module")
def forms() -> Iterator[list[tuple[dict[str, str], str]]]:
    return [(arch, canonical_form(arch)) for arch in SPACE.all()]


def test_there_are_6466_cells(forms: list[tuple[dict[str, str], str]]) -> None:
    assert len({form for _, form in forms}) == 6466
    assert len({SPACE.hash(arch) for arch, _ in forms}) == 6466


@with_table
def test_the_table_knows_the_same_cells_as_one(table: pd.DataFrame) -> None:
    assert [canonical_form(from_string(text)) for text in table.arch] == list(table.unique_cell)


def test_cells_of_one_form_compute_the_same(forms: list[tuple[dict[str, str], str]]) -> None:
    computed: dict[str, set[float]] = {}
    for arch, form in forms:
        computed.setdefault(form, set()).add(interpret(arch))
    assert all(len(numbers) == 1 for numbers in computed.values())
    # The benchmark's rule keeps apart sums that differ only in how they are ordered: 4,930 cells differ in truth.
    assert len({number for numbers in computed.values() for number in numbers}) == 4930


def test_forms_by_hand() -> None:
    assert canonical_form(everywhere("none")) == "#+#+#"
    assert canonical_form(only(edge_0_3="skip_connect")) == "#+#+0"
    one = only(edge_0_1="nor_conv_3x3", edge_1_3="skip_connect")
    other = only(edge_0_2="nor_conv_3x3", edge_2_3="skip_connect")
    assert SPACE.hash(one) != SPACE.hash(only(edge_0_1="nor_conv_1x1", edge_1_3="skip_connect"))
    assert canonical_form(one) == "#+#+(0)@nor_conv_3x3"
    assert canonical_form(other) == "#+#+#+(0)@nor_conv_3x3"


def test_every_operation_builds_for_any_width() -> None:
    for name, make in OPERATIONS.items():
        x = torch.randn(2, 3, 5, 5, generator=torch.manual_seed(0))
        assert make(3)(x).shape == x.shape, name
    assert set(nasbench201.PARAM_SPACE) == set(EDGES)
