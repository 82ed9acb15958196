"""Distillation of representations up to rotation and size."""

import torch
from torch import Tensor

from trainables.contracts import Outputs
from trainables.losses.embeddings import embeddings, unit
from trainables.losses.shapes import Pairs


def cka(student: Outputs, teacher: Outputs, labels: Tensor, *, pairs: Pairs) -> Tensor:
    """Make the images of a batch lie to each other as for the teacher, the directions of large variance first.

    One minus linear centred kernel alignment (Kornblith et al. 2019, arXiv:1905.00414, section 3; as a loss Zhou et
    al. 2024, arXiv:2401.11824): the cosine between the two matrices of products between images, each image minus the
    mean of the batch. Pooled maps [B, C]; returns a scalar, 0 to 1 for each pair of taps, summed over the pairs.
    `labels` is unused.

    It is the biased estimate, which is too near 1 where channels outnumber images.
    """
    distances = [
        1 - (_unit_products(own_BC) * _unit_products(other_BC)).sum()
        for own_BC, other_BC in embeddings(student, teacher, pairs)
    ]
    return torch.stack(distances).sum()


def _unit_products(x_BC: Tensor) -> Tensor:
    """Products between the centred images, flattened to one vector of length 1 [B * B]."""
    centred_BC = x_BC - x_BC.mean(0)
    return unit((centred_BC @ centred_BC.T).flatten())
