"""How good a student is, and how like its teacher.

Shape suffixes: N images, K classes, D and E lengths of two embeddings.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.contracts import Member, Split
from trainables.cost import evaluating
from trainables.figures import classification
from trainables.rdm import rdm, similarity

RDM_IMAGES = 1000
"""`rdm_correlation` looks at this many images at most: half a million pairs, and no more memory for more images."""


@dataclass(frozen=True)
class Predictions:
    """What a network says of every image of a split, in its order, on the CPU.

    Args:
        logits: [N, K].
        embedding: the head's input [N, D].
    """

    logits: Tensor
    embedding: Tensor

    @cached_property
    def rdm(self) -> Tensor:
        """Dissimilarities of the embeddings of the first `RDM_IMAGES` images: a teacher is compared with again."""
        return _first_rdm(self.embedding)


def predict(member: Member, split: Split, device: torch.device | str, batch_size: int = 1000) -> Predictions:
    """Logits and embedding of every image, not augmented; the network, which is on the device, stays as it was."""
    logits, embeddings = [], []
    with evaluating(member), torch.inference_mode():
        for start in range(0, len(split), batch_size):
            # A copy of the batch: shared images are read-only, which torch does not know.
            pixels = torch.tensor(split.images[start : start + batch_size]).to(device)
            outputs = member.outputs(pixels.to(member.mean.dtype) / 255, embedding=True)
            assert outputs.embedding is not None
            logits.append(outputs.logits.cpu())
            embeddings.append(outputs.embedding.cpu())
    return Predictions(torch.cat(logits), torch.cat(embeddings))


def evaluate(student: Predictions, teacher: Predictions | None, labels: Tensor | np.ndarray) -> dict[str, float]:
    """The student's figures on a split.

    Those of `trainables.figures.classification`; with a teacher also `agreement`, `kl` (nats), `cka` and `rdm` of the
    embeddings, and `teacher_similarity`, the mean of agreement, cka and max(rdm, 0): each is 1 for a copy of the
    teacher and about 0 for what has nothing to do with it (agreement: 1 / K). A figure that is not defined is NaN, and
    so is a mean of it.
    """
    figures = classification(student.logits, labels)
    if teacher is None:
        return figures
    agreed = agreement(student.logits, teacher.logits)
    cka = linear_cka(student.embedding, teacher.embedding)
    likeness = similarity(student.rdm, teacher.rdm)
    # max(0, nan) would be 0: the order of the arguments matters.
    alike = (agreed + cka + max(likeness, 0.0)) / 3
    kl = kl_to_teacher(student.logits, teacher.logits)
    return figures | {"agreement": agreed, "kl": kl, "cka": cka, "rdm": likeness, "teacher_similarity": alike}


def accuracy(logits_NK: Tensor, labels_N: Tensor | np.ndarray) -> float:
    """Share of the images whose highest logit is the label's."""
    return float(np.mean(logits_NK.argmax(1).cpu().numpy() == np.asarray(labels_N)))


def agreement(student_NK: Tensor, teacher_NK: Tensor) -> float:
    """Share of the images for which student and teacher name the same class; NaN if their classes differ."""
    if student_NK.shape[1] != teacher_NK.shape[1]:
        return math.nan
    return (student_NK.argmax(1) == teacher_NK.argmax(1)).double().mean().item()


def kl_to_teacher(student_NK: Tensor, teacher_NK: Tensor) -> float:
    """KL(teacher || student) of the class probabilities in nats, averaged over the images; NaN if classes differ."""
    if student_NK.shape[1] != teacher_NK.shape[1]:
        return math.nan
    log_student_NK, log_teacher_NK = (logits.double().log_softmax(1) for logits in (student_NK, teacher_NK))
    return F.kl_div(log_student_NK, log_teacher_NK, reduction="batchmean", log_target=True).item()


def linear_cka(x_ND: Tensor, y_NE: Tensor) -> float:
    """Linear centred kernel alignment of two embeddings of the same images, 0 to 1.

    Kornblith et al. 2019 (arXiv:1905.00414), section 3. It does not change when an embedding is rotated, shifted or
    scaled. NaN where one of them is the same for all images.
    """
    if _same_rows(x_ND) or _same_rows(y_NE):
        return math.nan
    x_ND, y_NE = (z.double() - z.double().mean(0) for z in (x_ND, y_NE))
    n, d, e = len(x_ND), x_ND.shape[1], y_NE.shape[1]
    # ||Y'X||^2 = <XX', YY'>: products between features or between images, whichever are fewer.
    if d * e + d * d + e * e <= n * (d + e):
        shared = (y_NE.T @ x_ND).square().sum()
        own = torch.linalg.norm(x_ND.T @ x_ND) * torch.linalg.norm(y_NE.T @ y_NE)
    else:
        gram_x_NN, gram_y_NN = x_ND @ x_ND.T, y_NE @ y_NE.T
        shared = (gram_x_NN * gram_y_NN).sum()
        own = torch.linalg.norm(gram_x_NN) * torch.linalg.norm(gram_y_NN)
    return (shared / own).item()


def rdm_correlation(x_ND: Tensor, y_NE: Tensor) -> float:
    """How alike two embeddings of the same images order all pairs of images by dissimilarity, -1 to 1.

    See `trainables.rdm`. Of more than `RDM_IMAGES` images it takes the first ones, so they should be in no order.
    Pairs with an image whose embedding is constant are left out. NaN where the dissimilarities of one embedding do not
    vary, or fewer than two pairs are left.
    """
    return similarity(_first_rdm(x_ND), _first_rdm(y_NE))


def _first_rdm(x_ND: Tensor) -> Tensor:
    return rdm(x_ND[:RDM_IMAGES])


def _same_rows(x_ND: Tensor) -> bool:
    return bool((x_ND == x_ND[:1]).all())
