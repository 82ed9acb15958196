"""GraSP (Wang et al. 2020, arXiv:2002.07376), summed over the network (Abdelfattah et al., arXiv:2101.08134)."""

from trainables.contracts import Probe
from trainables.scores.passes import student_pass


def score(probe: Probe) -> float:
    """Sum over all weights of -W * (H g), g the gradient of the loss and H its matrix of second derivatives.

    One batch, logits at temperature 1.
    """
    return -student_pass(probe, "curvature").curvature
