"""A student of each space in each format: what was written says what the student says."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import spaces
from spaces import BadInput, Space, Task, own
from spaces.seeding import generator
from trainables import export
from trainables.contracts import Member
from trainables.export import FORMATS, TOLERANCE, Student, difference

TASK = Task(channels=2, image_size=8, classes=5)
ROOT = Path(__file__).parents[2]
# As small as each space's networks can be made; what is not named is drawn at random.
SMALL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "resnet": ({"depth1": [1], "depth2": [1], "depth3": [1], "width": [4]}, {}),
    "resnet-s1": ({"depth1": [1], "depth2": [1], "depth3": [1], "width": [4]}, {}),
    "nasbench101": ({}, {"cells": 1, "channels": 16}),
    "nasbench201": ({"edge_0_3": ["nor_conv_3x3"]}, {"cells": 1}),
    "wrn": ({"depth": [10], "widen": [1]}, {}),
    "zen": ({f"depth{stage}": [1] for stage in range(1, 5)} | {f"kernel{stage}": [3] for stage in range(1, 5)}, {}),
    "vit": ({"depth": [1]}, {}),
    "vit-autoformer-tiny": ({"depth": [1]}, {"patch": 4}),
    "timm": ({"model": ["resnet10t"]}, {}),
    "torchvision": ({"model": ["resnet18"]}, {}),
    "own": ({"depth": [1]}, {}),
}
IMAGES = generator("images to export").integers(0, 256, (103, 2, 8, 8), dtype=np.uint8)  # more than a batch


def space_of(name: str) -> Space:
    choices, options = SMALL[name]
    found = own.load(ROOT / "examples" / "own_space.py") if name == "own" else spaces.get(name)
    return found.restrict(choices, **options)


@cache
def student(name: str) -> Student:
    """A random student, which has seen a batch so that its statistics are not those of a fresh one."""
    space = space_of(name)
    arch = space.sample(generator("student", name))
    torch.manual_seed(0)
    net = space.build(arch, TASK)
    member = Member(net, *space.look(net, TASK), mean=(0.4, 0.5), std=(0.2, 0.3))
    with torch.no_grad():
        member.train()(torch.from_numpy(IMAGES[:64]).float() / 255)
    return Student(member.eval().requires_grad_(False), space, arch, TASK)


class Together(nn.Module):
    """The students of all spaces in one network, their logits side by side: one program holds them all, which takes
    half the time of as many programs."""

    def __init__(self) -> None:
        super().__init__()
        self.students = nn.ModuleDict({name: student(name).member for name in SMALL})

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([one(images) for one in self.students.values()], dim=1)


@pytest.fixture(scope="module")
def together() -> Iterator[Student]:
    """All of them; the program, which two formats hold, is made once."""
    members: Any = Together().eval()
    what = Student(members, space_of("wrn"), {}, TASK)
    with pytest.MonkeyPatch.context() as patch:
        program_of = export.program_of
        made = cache(lambda: program_of(what))
        patch.setattr(export, "program_of", lambda asked: made() if asked is what else program_of(asked))
        yield what


@pytest.fixture(scope="module")
def programs(together: Student, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from a format to the file that holds all of them."""

    @cache
    def written(format: str) -> Path:
        folder = tmp_path_factory.mktemp(format)
        FORMATS[format].write(together, folder / FORMATS[format].file)
        assert [path.name for path in folder.iterdir()] == [FORMATS[format].file]
        return folder / FORMATS[format].file

    return written


def test_every_space_is_exported() -> None:
    assert set(spaces.SPACES) == set(SMALL) - {"own"}


@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_a_program_says_what_the_student_says(format: str, together: Student, programs: Callable[[str], Path]) -> None:
    file = programs(format)
    read = FORMATS[format].read(together, file)
    apart, most = difference(together.member, read, IMAGES)
    assert apart <= most
    pixels = torch.from_numpy(IMAGES[:100]).float() / 255
    expected, darker = (dict(zip(SMALL, read(x).split(TASK.classes, 1), strict=True)) for x in (pixels, pixels / 2))
    with torch.no_grad():
        found = {name: (student(name).member(pixels) - logits).abs().max() for name, logits in expected.items()}
    assert {name: most for name, most in found.items() if not most <= TOLERANCE} == {}
    # It looks at the images, and at how bright they are.
    brighter = {name: (expected[name] - darker[name]).abs().max() for name in SMALL}
    assert {name: most for name, most in brighter.items() if not most > 100 * TOLERANCE} == {}
    assert_for_any_number(read, len(SMALL) * TASK.classes)
    assert str(ROOT).encode() not in file.read_bytes()  # nothing tells of this machine


@pytest.mark.parametrize("name", SMALL)
def test_weights_say_what_the_student_says(name: str, tmp_path: Path) -> None:
    how, what = FORMATS["safetensors"], student(name)
    file = tmp_path / how.file
    how.write(what, file)
    assert [path.name for path in tmp_path.iterdir()] == [how.file]
    read = how.read(what, file)
    apart, most = difference(what.member, read, IMAGES)
    assert apart <= most
    assert apart <= TOLERANCE
    darker, _ = difference(what.member, lambda images: read(images / 2), IMAGES)
    assert darker > 100 * TOLERANCE
    assert_for_any_number(read, TASK.classes)
    assert str(ROOT).encode() not in file.read_bytes()


def assert_for_any_number(read: Callable[[Tensor], Tensor], logits: int) -> None:
    """Of any number of images."""
    for count in (1, 7):
        found = read(torch.rand(count, 2, 8, 8))
        assert found.shape == (count, logits)
        assert found.dtype == torch.float32


def test_a_program_runs_where_there_is_no_dux(
    together: Student, programs: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "student.pt2").symlink_to(programs("torch"))
    images = torch.rand(3, 2, 8, 8)
    torch.save(images, tmp_path / "images.pt")
    code = """
import sys
import torch
student = torch.export.load("student.pt2").module()
torch.save(student(torch.load("images.pt", weights_only=True)), "logits.pt")
assert not {"spaces", "trainables", "orchestrator", "analysis", "ray"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True)
    found = torch.load(tmp_path / "logits.pt", weights_only=True)
    assert (found - together.member(images)).abs().max() <= TOLERANCE


def test_the_difference_is_the_largest_one_and_grows_with_the_logits() -> None:
    def network(images: Tensor) -> Tensor:
        return images.flatten(1)[:, :3]

    def other(images: Tensor) -> Tensor:
        return network(images) + (images.flatten(1)[:, :1] > 0.99) / 8

    assert difference(network, network, IMAGES) == (0.0, TOLERANCE)
    assert difference(network, other, IMAGES) == (0.125, TOLERANCE)
    assert difference(lambda x: 1000 * network(x), network, IMAGES)[1] == pytest.approx(1000 * TOLERANCE, rel=0.02)
    apart, most = difference(network, lambda images: network(images) / 0, IMAGES)
    assert not apart <= most


class Choosy(nn.Module):
    """Does what depends on the pixels' values, which no program of operations can."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.sum() > 0 else -x.mean((2, 3))


@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_a_network_that_torch_cannot_see_through_is_refused_in_a_line(format: str, tmp_path: Path) -> None:
    member = Member(Choosy(), (), "", (0.4, 0.5), (0.2, 0.3)).eval()
    what = Student(member, space_of("wrn"), {}, TASK)
    with pytest.raises(BadInput, match=r"torch\.export does not take this network .*--format safetensors") as caught:
        FORMATS[format].write(what, tmp_path / "x")
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_weights_of_another_network_than_the_spaces_are_refused(tmp_path: Path) -> None:
    what = student("wrn")
    changed = Member(nn.Sequential(what.member.net), (), "", (0.4, 0.5), (0.2, 0.3)).eval()
    with pytest.raises(BadInput, match="--format torch or onnx"):
        FORMATS["safetensors"].write(Student(changed, what.space, what.arch, TASK), tmp_path / "x")
    assert not any(tmp_path.iterdir())


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for how in FORMATS.values():
        how.check_installed()
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxruntime" else object())
    FORMATS["torch"].check_installed()
    with pytest.raises(BadInput, match=r"onnxruntime: pip install 'dux-search\[onnx\]'"):
        FORMATS["onnx"].check_installed()
