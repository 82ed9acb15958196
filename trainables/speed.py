"""How networks compute while a student learns: in which numbers, and whether compiled."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from trainables.contracts import Member, Outputs

Precision = Literal["float32", "bf16"]
Compile = Literal["none", "default", "cuda-graphs"]
_MODES = {"default": "default", "cuda-graphs": "reduce-overhead"}  # as torch calls them


class Passes:
    """Forward passes through members, in a precision, compiled or not. What comes out is float32.

    Losses, connectors, norms' statistics, weights and optimisers stay in float32: with bf16, convolutions and products
    of matrices round their inputs to 8 bits (torch.autocast), whose range needs no scaling of the loss.

    Args:
        compiled: compile each network by `torch.compile`, where no taps are read of it. `cuda-graphs` also records
            what it launches on a GPU, which pays where batches are small.
    """

    def __init__(self, precision: Precision = "float32", compiled: Compile = "none") -> None:
        self.precision, self.compiled = precision, compiled
        self._fast: dict[int, Callable[[Tensor], Tensor]] = {}

    def begin_step(self) -> None:
        """What came out of the last step's passes is not needed any more."""
        if self.compiled == "cuda-graphs":
            torch.compiler.cudagraph_mark_step_begin()

    def __call__(self, member: Member, images: Tensor, taps: tuple[str, ...] = (), embedding: bool = False) -> Outputs:
        """As `Member.outputs`."""
        if self.precision == "float32":
            return self._outputs(member, images, taps, embedding)
        with torch.autocast(images.device.type, torch.bfloat16):
            return _in_float32(self._outputs(member, images, taps, embedding))

    def _outputs(self, member: Member, images: Tensor, taps: tuple[str, ...], embedding: bool) -> Outputs:
        if self.compiled != "none" and type(member) is Member and not taps and not embedding:
            return Outputs(self._compiled(member)(images))
        return member.outputs(images, taps, embedding)

    def _compiled(self, member: Member) -> Callable[[Tensor], Tensor]:
        if id(member) not in self._fast:
            self._fast[id(member)] = torch.compile(member, mode=_MODES[self.compiled], dynamic=False)
        return self._fast[id(member)]


def _in_float32(outputs: Outputs) -> Outputs:
    features = {name: tensor.float() for name, tensor in outputs.features.items()}
    embedding = None if outputs.embedding is None else outputs.embedding.float()
    return replace(outputs, logits=outputs.logits.float(), features=features, embedding=embedding)
