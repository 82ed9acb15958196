"""EPE-NAS (Lopes et al. 2021, arXiv:2102.08099): correlation of the Jacobians of images of one class."""

import torch
from torch import Tensor

from trainables.contracts import NotComputable, Probe
from trainables.scores.jacob_cov import K, correlation
from trainables.scores.passes import student_pass

MANY = 100
"""Classes above which the paper compares classes with each other instead of adding them up."""


def score(probe: Probe) -> float:
    """Sum over classes of |e|, e the sum of log(|c| + 1e-5) over the correlations c between the class's Jacobians.

    Of over 100 classes: e is divided by its number of correlated images, and the score is the sum of |e - e'| over
    all pairs of classes, divided by the number of classes. A class of a single image has nothing to correlate.

    Raises:
        NotComputable: fewer than two classes in the batch, no class with two images, or what `jacob_cov` refuses.
    """
    classes = probe.labels.unique()
    if len(classes) < 2:
        raise NotComputable(f"compares classes, and all {len(probe.labels)} images of the batch are of one")
    jacobian_BD = student_pass(probe, "jacobian").jacobian
    parts = [jacobian_BD[probe.labels == label] for label in classes]
    if not any(len(part) > 1 for part in parts):
        raise NotComputable("no class has two images in the batch")
    by_class = torch.stack([_evaluate(part, probe.task.classes) for part in parts if len(part) > 1])
    if probe.task.classes <= MANY:
        return float(by_class.abs().sum())
    return float((by_class[:, None] - by_class).abs().sum() / len(by_class))


def _evaluate(jacobian_ND: Tensor, classes: int) -> Tensor:
    logarithms_NN = torch.log(correlation(jacobian_ND).abs() + K)
    return logarithms_NN.sum() / (len(jacobian_ND) if classes > MANY else 1)
