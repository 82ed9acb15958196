"""Saliency with its sign (Mozer and Smolensky 1988), summed over the network (Abdelfattah et al., arXiv:2101.08134)."""

from trainables.contracts import Probe
from trainables.scores.passes import student_pass, total


def score(probe: Probe) -> float:
    """Sum over all weights of W * dL/dW.

    Where batch norm follows a layer, the loss does not depend on the layer's scale, and the layer's sum is 0 but for
    batch norm's epsilon and rounding: only what no batch norm follows, such as the classifier, speaks.
    """
    return total([(weight * gradient).sum() for weight, gradient in student_pass(probe, "gradients").gradients])
