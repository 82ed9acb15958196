"""Covariance of Jacobians (Mellor et al. 2020, arXiv:2006.04647v1; Abdelfattah et al. 2021, arXiv:2101.08134)."""

import torch
from torch import Tensor

from trainables.contracts import NotComputable, Probe
from trainables.scores.passes import student_pass

K = 1e-5


def score(probe: Probe) -> float:
    """-sum(log(l + k) + 1 / (l + k)) over the eigenvalues l of the correlation of the images' Jacobians, k = 1e-5.

    The Jacobian of an image is the gradient of the sum of its logits with respect to its pixels.

    Raises:
        NotComputable: an image whose Jacobian is constant, or no path from the pixels to the logits.
    """
    # Rounding can leave an eigenvalue of a correlation matrix just below 0.
    eigenvalues = torch.linalg.eigvalsh(correlation(student_pass(probe, "jacobian").jacobian)).clamp(min=0)
    return -float((torch.log(eigenvalues + K) + 1 / (eigenvalues + K)).sum())


def correlation(rows_BD: Tensor) -> Tensor:
    """Pearson's correlation between rows, in float64: [B, B].

    Raises:
        NotComputable: a row that is constant, as where nothing of an image reaches the logits.
    """
    centred_BD = rows_BD.double() - rows_BD.double().mean(1, keepdim=True)
    constant = (rows_BD == rows_BD[:, :1]).all(1).nonzero()
    if len(constant):
        raise NotComputable(f"the logits do not depend on image {int(constant[0])}, or on all of its pixels alike")
    unit_BD = centred_BD / centred_BD.norm(dim=1, keepdim=True)
    return (unit_BD @ unit_BD.T).clamp(-1, 1)
