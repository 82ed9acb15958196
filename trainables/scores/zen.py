"""Zen-score (Lin et al. 2021, arXiv:2102.01063, algorithm 1): how strongly a network answers to a small disturbance."""

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainables.contracts import NotComputable, Probe
from trainables.scores.passes import normal_weights, untouched

STEP = 0.01


def score(probe: Probe) -> float:
    """log mean sum |f(x) - f(x + 0.01 e)| + sum over batch norms of log sqrt(mean variance), x and e from N(0, 1).

    f is the map before global pooling (the last tap), with all weights drawn from N(0, 1) and restored; the sum is over
    the map, the mean over as many random images as the batch has, and a batch norm's variances are those of its input,
    averaged over channels. It looks at neither images nor labels. The paper takes shortcuts out of residual blocks
    for this; here the network stays as it is.

    Raises:
        NotComputable: no taps, a map that does not answer, or a batch norm whose input does not vary.
    """
    student = probe.student
    if not student.taps:
        raise NotComputable("the student has no map to look at")
    deviations: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        others = [dim for dim in range(args[0].dim()) if dim != 1]
        deviations.append(args[0].var(others).mean().double().sqrt())

    with untouched(student), normal_weights(student), torch.no_grad():
        # As the student sees them: it normalises what it is given.
        x, e = (torch.randn(probe.images.shape).to(probe.images) * student.std for _ in range(2))
        hooks = [m.register_forward_pre_hook(note) for m in student.modules() if isinstance(m, _BatchNorm)]
        try:
            there = _map(probe, x + student.mean)
        finally:
            for hook in hooks:
                hook.remove()
        difference = (there - _map(probe, x + STEP * e + student.mean)).abs().flatten(1).sum(1).mean()
    if not 0 < float(difference) < math.inf:
        raise NotComputable(f"the map moves by {float(difference)} when the image does")
    if not all(deviations):
        raise NotComputable("what a batch norm is given does not vary: nothing of the image reaches it")
    return math.log(difference) + sum(math.log(deviation) for deviation in deviations)


def _map(probe: Probe, images: Tensor) -> Tensor:
    tap = probe.student.taps[-1]
    return probe.student.outputs(images, [tap]).features[tap].double()
