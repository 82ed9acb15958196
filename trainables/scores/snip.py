"""SNIP (Lee et al. 2019, arXiv:1810.02340), summed over the network (Abdelfattah et al. 2021, arXiv:2101.08134)."""

from trainables.contracts import Probe
from trainables.scores.passes import student_pass, total


def score(probe: Probe) -> float:
    """Sum over all weights of |W * dL/dW|: how much the loss would move if connections were cut, to first order."""
    return total([(weight * gradient).abs().sum() for weight, gradient in student_pass(probe, "gradients").gradients])
