"""Norm of the gradient at initialisation (Abdelfattah et al. 2021, arXiv:2101.08134)."""

from trainables.contracts import Probe
from trainables.scores.passes import student_pass, total


def score(probe: Probe) -> float:
    """Sum over layers of the L2 norm of dL/dW."""
    return total([gradient.norm() for _, gradient in student_pass(probe, "gradients").gradients])
