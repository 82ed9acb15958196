"""NASWOT (Mellor et al. 2021, arXiv:2006.04647): how differently the ReLUs of a network answer to different images."""

import torch
from torch import Tensor, nn

from trainables.contracts import NotComputable, Probe
from trainables.scores.passes import untouched


def score(probe: Probe) -> float:
    """Logarithm of the determinant of the sum over ReLUs of `agreement`.

    Raises:
        NotComputable: the student has no `nn.ReLU` module that it calls on a batch, or the matrix is singular: two
            images switch the same units on, as duplicates do, and all images where no path leads from the input.
    """
    kernels: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        # Before the module runs: a ReLU in place overwrites its input.
        if len(args[0]) == len(probe.images):
            kernels.append(agreement(args[0]))

    hooks = [m.register_forward_pre_hook(keep) for m in probe.student.modules() if isinstance(m, nn.ReLU | nn.ReLU6)]
    try:
        with untouched(probe.student), torch.no_grad():
            probe.student(probe.images)
    finally:
        for hook in hooks:
            hook.remove()
    if not kernels:
        raise NotComputable("the student has no nn.ReLU module")
    return log_determinant(torch.stack(kernels).sum(0))


def agreement(inputs: Tensor) -> Tensor:
    """Number of units on which two images agree, x x^T + (1-x) (1-x)^T with x = (inputs > 0): [B, ...] to [B, B]."""
    on_BD = (inputs > 0).flatten(1).float()
    # One product for both: (1-x) (1-y)^T = D - |x| - |y| + x y^T. Counts are exact in float32 up to 16.7 million units.
    both_BB = (on_BD @ on_BD.T).double()
    on_B = both_BB.diagonal()
    return on_BD.shape[1] - on_B[:, None] - on_B + 2 * both_BB


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
