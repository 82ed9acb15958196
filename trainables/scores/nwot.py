"""NASWOT (Mellor et al. 2021, arXiv:2006.04647): how differently the ReLUs of a network answer to different images."""

import torch
from torch import Tensor

from trainables.contracts import NotComputable, Probe
from trainables.scores.passes import student_pass


def score(probe: Probe) -> float:
    """Logarithm of the determinant of the sum over ReLUs of `agreement`.

    Raises:
        NotComputable: the student has no `nn.ReLU` module that it calls on a batch, or the matrix is singular: two
            images switch the same units on, as duplicates do, and all images where no path leads from the input.
    """
    kernels = student_pass(probe, "relus").agreements
    if not kernels:
        raise NotComputable("the student has no nn.ReLU module")
    return log_determinant(torch.stack(kernels).sum(0))


def log_determinant(kernel_BB: Tensor) -> float:
    """Of a matrix of `agreement`.

    Raises:
        NotComputable: two images agree on every unit (seen exactly, where elimination in floats may leave a small
            pivot), or the matrix is singular otherwise.
    """
    same = (kernel_BB == kernel_BB.diagonal()).triu(1).nonzero()
    if len(same):
        one, other = same[0].tolist()
        raise NotComputable(
            f"the value is -inf: images {one} and {other} switch the same ReLUs on (duplicated images?)"
        )
    sign, logarithm = torch.linalg.slogdet(kernel_BB)
    if float(sign) <= 0:
        raise NotComputable("the value is -inf: the images' ReLU patterns depend on each other linearly")
    return float(logarithm)
