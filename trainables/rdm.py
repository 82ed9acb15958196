"""How alike two networks order pairs of images, whatever their layers and widths: TGSA's guidance by a teacher.

TGSA (Bashivan et al. 2019, arXiv:1808.01405). A layer is described by the dissimilarities between the images
of a batch, so that layers of any size can be compared; two layers are alike if they find the same pairs dissimilar.

Shape suffixes: B images, D units of a layer, P pairs of images.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from spaces.seeding import generator
from trainables.contracts import Member, Split

FLAT = 1e-12
"""Dissimilarities that differ by less do not vary: far above the rounding of float64, far below any difference between
float32 activations."""


def rdm(activations: Tensor) -> Tensor:
    """Representational dissimilarity: one minus Pearson's correlation between the activations of two images.

    [B, ...] to [B, B], in float64. It does not change when the activations of an image are scaled or shifted by one
    number, nor under rotations that keep the direction (1, ..., 1). Rows and columns of images whose activations are
    constant, which correlate with nothing, are NaN.
    """
    rows_BD = activations.flatten(1).double()
    constant_B1 = (rows_BD == rows_BD[:, :1]).all(1, keepdim=True)
    unit_BD = F.normalize(rows_BD - rows_BD.mean(1, keepdim=True), dim=1, eps=0).where(~constant_B1, torch.nan)
    return 1 - unit_BD @ unit_BD.T


def layer_rdms(member: Member, images_BCHW: Tensor) -> list[Tensor]:
    """The dissimilarities of each tap, shallow to deep, from one pass in the mode that the network is in."""
    with torch.no_grad():
        features = member.outputs(images_BCHW, member.taps).features
        return [rdm(features[tap]) for tap in member.taps]


def pearson(x_P: Tensor, y_P: Tensor) -> float:
    """Pearson's correlation of two vectors that vary."""
    x_P, y_P = x_P - x_P.mean(), y_P - y_P.mean()
    return (x_P @ y_P / (torch.linalg.norm(x_P) * torch.linalg.norm(y_P))).item()


def spearman(x_P: Tensor, y_P: Tensor) -> float:
    """Spearman's correlation of two vectors that vary: Pearson's correlation of their ranks."""
    return pearson(_ranks(x_P), _ranks(y_P))


Correlation = Callable[[Tensor, Tensor], float]
CORRELATIONS: dict[str, Correlation] = {"pearson": pearson, "spearman": spearman}


def similarity(one_BB: Tensor, other_BB: Tensor, correlation: Correlation = pearson) -> float:
    """Correlation between the upper triangles of two matrices of dissimilarities of the same images, -1 to 1.

    Pairs for which one of them is NaN are left out. NaN where the pairs that are left do not vary.
    """
    if correlation is pearson and len(one_BB) > 2 and not (one_BB.sum() + other_BB.sum()).isnan():
        return _pearson_of_pairs(one_BB, other_BB)
    rows, columns = torch.triu_indices(len(one_BB), len(one_BB), 1, device=one_BB.device)
    x_P, y_P = one_BB[rows, columns], other_BB[rows, columns]
    defined_P = ~(x_P.isnan() | y_P.isnan())
    x_P, y_P = x_P[defined_P], y_P[defined_P]
    if len(x_P) < 2 or any((z.max() - z.min()).item() < FLAT for z in (x_P, y_P)):
        return float("nan")
    return correlation(x_P, y_P)


def _pearson_of_pairs(one_BB: Tensor, other_BB: Tensor) -> float:
    """The same of whole symmetric matrices: to pick the pairs out takes most of the time (20 of 26 ms at B = 1000)."""
    x_BB, y_BB = _centred(one_BB), _centred(other_BB)
    for z_BB in (x_BB, y_BB):
        least, most = z_BB.aminmax()
        if (most - least).item() < FLAT:
            return float("nan")
    x_P, y_P = x_BB.flatten(), y_BB.flatten()
    return (x_P @ y_P / (torch.linalg.norm(x_P) * torch.linalg.norm(y_P))).item()


def _centred(matrix_BB: Tensor) -> Tensor:
    """Less the mean of what is off the diagonal, where it is 0."""
    size = len(matrix_BB)
    mean = (matrix_BB.sum() - matrix_BB.trace()) / (size * (size - 1))
    return (matrix_BB - mean).fill_diagonal_(0)


def guidance(student: Sequence[Tensor], teacher: Sequence[Tensor], correlation: Correlation = pearson) -> float:
    """Teacher guidance: each teacher's layer takes its most similar layer of the student; the mean over them.

    Any number of layers on both sides. NaN without layers, and where a layer of the teacher can be compared with none
    of the student's.
    """
    similarities = [[similarity(own, layer, correlation) for own in student] for layer in teacher]
    # fmax ignores NaN: a layer of the student that does not vary is nobody's best.
    best = [float(np.fmax.reduce(row, initial=np.nan)) for row in similarities]
    return float(np.mean(best)) if best else float("nan")


def drawn_images(split: Split, count: int, seed: int) -> Tensor:
    """Images [B, C, H, W] in [0, 1], not augmented: so many of the split, the same for the same seed; all if fewer."""
    chosen = generator("guidance", seed).permutation(len(split))[:count]
    return torch.from_numpy(split.images[np.sort(chosen)]).float() / 255


def _ranks(x_P: Tensor) -> Tensor:
    """Position of each value in their order; equal values share the mean of their positions."""
    _, place_P, counts = x_P.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2).double()[place_P]
