"""DisWOT's two distances as losses (Dong et al. 2023, arXiv:2303.15678): the training of its dagger variant.

That variant adds both with weight 1 to cross-entropy and KL. They are small beside those: at most 2 / K^2 and 2 / B^2.
"""

import torch
from torch import Tensor

from trainables.contracts import CAM, Outputs
from trainables.losses.shapes import Pairs


def semantic(student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
    """Make classes that look at the same places for the teacher do so for the student.

    Frobenius norm of the difference between the inner products of the classes' activation maps [K, K], each matrix of
    norm 1; over K^2. The maps may differ in channels, height and width. A scalar; `labels` is unused.
    """
    own_KK = student.reduced(CAM, "class_gram")
    return norm_of_difference(own_KK, teacher.reduced(CAM, "class_gram").detach()) / own_KK.numel()


def relation(student: Outputs, teacher: Outputs, labels: Tensor, *, pairs: Pairs) -> Tensor:
    """Make the images of a batch relate to each other as they do for the teacher.

    Frobenius norm of the difference between the inner products of the images' maps [B, B], each matrix of norm 1; over
    B^2 and summed over the pairs. A scalar; `labels` is unused.
    """
    distances = []
    for own, other in pairs:
        own_BB = student.reduced(own, "unit_gram")
        distances.append(norm_of_difference(own_BB, teacher.reduced(other, "unit_gram").detach()) / own_BB.numel())
    return torch.stack(distances).sum()


def norm_of_difference(one: Tensor, other: Tensor) -> Tensor:
    """Frobenius norm of the difference of two matrices; its gradient where they are equal is 0 (torch's choice)."""
    return torch.linalg.vector_norm(one - other)
