"""Fisher information of activations (Theis et al. 2018, arXiv:1801.05787; Turner et al. 2020, arXiv:1906.04113)."""

from trainables.contracts import Probe
from trainables.scores.passes import student_pass, total


def score(probe: Probe) -> float:
    """Sum over the channels of all layers of 1/2 mean_n (sum_hw a * dL/da)^2, a the layer's output for image n.

    Layers are convolutions and linear layers, before batch norm and activation.
    """
    return total(
        [saliency.double().square().mean(0).sum() / 2 for saliency in student_pass(probe, "saliency").saliencies]
    )
