"""Taking a trained student out of a run: its weights, or a whole network that runs without dux.

Shape suffixes: B and N images, C channels, H and W pixels, K classes.
"""

import copy
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from spaces import Arch, BadInput, Space, Task
from spaces.others import blaming
from trainables.contracts import Member
from trainables.cost import build_without_values
from trainables.files import replacing
from trainables.regimes.common import pixels_of

WEIGHTS = "weights.safetensors"
INPUT, OUTPUT = "images", "logits"
TOLERANCE = 1e-5
"""How far logits of what was written may be from the student's; times the largest logit, where that is above 1."""
BATCH = 100  # images that are compared at a time

Network = Callable[[Tensor], Tensor]
"""From images [B, C, H, W] in [0, 1] to logits [B, K]."""


@dataclass(frozen=True)
class Student:
    """A trained student as it is deployed.

    Args:
        member: with the weights that are deployed, in evaluation mode.
        space, arch: what the network was built from; a regime may have changed it since.
    """

    member: Member
    space: Space
    arch: Arch
    task: Task


@dataclass(frozen=True)
class Format:
    """How a student is written to a folder, and run from there.

    Args:
        file: what it is called.
        write: writes it. Raises `BadInput` for a student that cannot be written so.
        read: the network, from nothing but the file (and for weights the space).
        normalises: whether the network normalises its images itself.
        needs: packages that dux is installed without.
    """

    file: str
    write: Callable[[Student, Path], None]
    read: Callable[[Student, Path], Network]
    normalises: bool = True
    needs: tuple[str, ...] = ()

    def check_installed(self) -> None:
        """Raises `BadInput` if a package is missing, with what to type."""
        missing = [name for name in self.needs if find_spec(name) is None]
        if missing:
            raise BadInput(f"this format needs {', '.join(missing)}: pip install 'dux-search[onnx]'")


def save_student(checkpoint: Mapping[str, Any], folder: Path, description: Mapping[str, Any]) -> None:
    """Write a checkpoint's weights (`weights.safetensors`) and what they belong to (`student.json`) to `folder`."""
    save_weights(checkpoint["fit"]["deployed"], folder / WEIGHTS)
    with replacing(folder / "student.json") as temporary:
        temporary.write_text(json.dumps(description, indent=1) + "\n")


def save_weights(weights: Mapping[str, Tensor], file: Path) -> None:
    """Write weights as safetensors."""
    whole = {name: tensor.contiguous() for name, tensor in weights.items()}
    with replacing(file) as temporary:
        temporary.write_bytes(save(whole))  # not by `save_file`, which says of a full disk only that it failed


def deployed(member: Member, weights: Mapping[str, Tensor]) -> Member:
    """A member's network with the weights that are deployed, which need nothing of the member to be what they are."""
    net = copy.deepcopy(member.net)
    net.load_state_dict(dict(weights))
    return Member(net, member.taps, member.head, *pixels_of(member)).eval().requires_grad_(False)


def difference(student: Network, written: Network, images: np.ndarray) -> tuple[float, float]:
    """The largest distance between two networks' logits, and how large it may be: `TOLERANCE`. NaN where one is NaN.

    Args:
        images: uint8 [N, C, H, W]. They go in batches, the first one by itself too.
    """
    apart, largest = [], []
    with torch.no_grad():
        for part in (images[:1], *np.split(images, range(BATCH, len(images), BATCH))):
            pixels = torch.tensor(part).float() / 255
            expected, found = student(pixels), written(pixels)
            assert expected.shape == found.shape
            apart.append((expected - found).abs().max())
            largest.append(expected.abs().max())
    return torch.stack(apart).max().item(), TOLERANCE * max(1.0, torch.stack(largest).max().item())


def program_of(student: Student) -> ExportedProgram:
    """The network as a program of torch's own operations, for any number of images.

    Raises:
        BadInput: torch cannot see through the network.
    """
    task = student.task
    # Not a single image: torch would take the 1 for a constant.
    images = torch.zeros(2, task.channels, task.image_size, task.image_size)
    shapes = ({0: Dim("batch", min=1)},)
    with blaming("torch.export does not take this network (--format safetensors does)"), torch.no_grad():
        program = torch.export.export(student.member, (images,), dynamic_shapes=shapes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # lines of source with their paths on this machine
    return program


def _write_weights(student: Student, file: Path) -> None:
    own = build_without_values(student.space, student.arch, student.task)
    if _shapes(own) != _shapes(student.member.net):
        raise BadInput(
            "the regime has changed the network that the space builds, so weights alone would not tell what it is: "
            "--format torch or onnx holds it whole"
        )
    save_weights(student.member.net.state_dict(), file)


def _read_weights(student: Student, file: Path) -> Network:
    with torch.random.fork_rng(devices=[]):
        net = student.space.build(student.arch, student.task)
    net.load_state_dict(load_file(file))
    return Member(net, (), "", *pixels_of(student.member)).eval()


def _shapes(net: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in net.state_dict().items()}


def _write_program(student: Student, file: Path) -> None:
    buffer = io.BytesIO()  # torch's own writer says of a full disk only that it failed
    torch.export.save(program_of(student), buffer)
    file.write_bytes(buffer.getbuffer())


def _read_program(student: Student, file: Path) -> Network:
    found: Network = torch.export.load(file).module()
    return found


def _write_onnx(student: Student, file: Path) -> None:
    program = program_of(student)
    with blaming("torch.onnx does not take this network (--format torch or safetensors does)"):
        made = torch.onnx.export(
            program,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: "batch"},),
            dynamo=True,
            verbose=False,
        )
    assert made is not None
    file.write_bytes(made.model_proto.SerializeToString())


def _read_onnx(student: Student, file: Path) -> Network:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


FORMATS: dict[str, Format] = {
    "safetensors": Format(WEIGHTS, _write_weights, _read_weights, normalises=False),
    "torch": Format("student.pt2", _write_program, _read_program),
    "onnx": Format("student.onnx", _write_onnx, _read_onnx, needs=("onnx", "onnxscript", "onnxruntime")),
}
