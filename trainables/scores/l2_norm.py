"""Norm of the weights at initialisation, a control that sees neither images nor teacher (NAS-Bench-Suite-Zero,
arXiv:2210.03230)."""

from trainables.contracts import NotComputable, Probe
from trainables.scores.passes import total, weights


def score(probe: Probe) -> float:
    """Sum over layers of the L2 norm of W.

    Raises:
        NotComputable: the student has no convolution and no linear layer.
    """
    found = weights(probe.student)
    if not found:
        raise NotComputable("the student has no convolution and no linear layer")
    return total([weight.detach().norm() for weight in found])
