"""Distillation of feature maps through a learned regressor."""

from typing import final

import torch
from torch import Tensor, nn

from trainables.contracts import Outputs
from trainables.losses.maps import resized
from trainables.losses.shapes import Maps, Pairs


@final
class FitNets(nn.Module):
    """Make a teacher's map a linear function of the student's.

    FitNets (Romero et al. 2014, arXiv:1412.6550), eq. 3. One connector for each pair, a 1 x 1 convolution from the
    student's channels to the teacher's after averaging over places down (or repeating them up) to the teacher's size;
    it is trained with the student and dropped afterwards. It is linear, where the paper's regressor ends in the
    teacher's non-linearity: a rectified one gets no gradient where it is off. Its initial weights come from torch's
    global generator.

    The loss is the squared difference averaged over images, channels and places, summed over the pairs. A published
    weight for such an average (often 100) is the same here; the paper's half of the sum over a map is C H W / 2
    times this.

    Args:
        student: the student's maps, tap to (C, H, W).
        teacher: the teacher's maps.
        pairs: student tap and teacher tap.
    """

    def __init__(self, student: Maps, teacher: Maps, pairs: Pairs) -> None:
        super().__init__()
        self.pairs = pairs
        self.connectors = nn.ModuleList(nn.Conv2d(student[own][0], teacher[other][0], 1) for own, other in pairs)

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """A scalar; `labels` is unused."""
        distances = []
        for connector, (own, other) in zip(self.connectors, self.pairs, strict=True):
            target_BCHW = teacher.features[other].detach()
            distances.append((connector(resized(student.features[own], target_BCHW)) - target_BCHW).square().mean())
        return torch.stack(distances).sum()
