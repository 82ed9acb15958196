"""What the losses share that compare an image's pooled map, the vector that a head sees."""

from collections.abc import Iterator

import torch
from torch import Tensor

from trainables.contracts import Outputs
from trainables.losses.shapes import Pairs


def embeddings(student: Outputs, teacher: Outputs, pairs: Pairs) -> Iterator[tuple[Tensor, Tensor]]:
    """For each pair of taps the student's vectors [B, C] and the teacher's [B, C'], these without gradient."""
    for own, other in pairs:
        own_BC = student.reduced(own, "pooled")
        yield own_BC, teacher.reduced(other, "pooled").detach().to(own_BC.dtype)


def unit(x: Tensor) -> Tensor:
    """The vectors along the last dimension, scaled to length 1; zeros stay zeros, with a gradient of ordinary size."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(length > 0, length, 1)
