"""DisWOT (Dong et al. 2023, arXiv:2303.15678): how alike student and teacher are before any training.

Two terms, each minus a distance: `semantic` compares what the classes look at, `relation` how the images of the batch
relate. They differ by orders of magnitude, so they are reported apart: rank or standardise each over the candidates
before adding. Both compare what the last tap and the head make of the batch, as one `Signature` for each network.

The variants differ as the paper and its published README do:

- `paper`: class activation maps; works for any widths.
- `readme`: gradients of the head; needs heads of equal width.

Shape suffixes: B images, C channels of the last map, H and W its pixels, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.contracts import Member, NotComputable, Probe, class_gram, class_maps, gram, unit_gram
from trainables.losses.diswot import norm_of_difference
from trainables.scores.passes import normal_weights, untouched
from trainables.scores.teacher_side import of_teacher


class Signature(NamedTuple):
    """What is compared of a network on a batch, in float64."""

    semantic: Tensor
    relation: Tensor


@dataclass(frozen=True)
class View:
    """What a network makes of a batch, in float64."""

    map_BCHW: Tensor  # at the last tap, before global pooling
    weight_KC: Tensor  # of the head
    embedding_BC: Tensor
    logits_BK: Tensor
    labels_B: Tensor


@dataclass(frozen=True)
class Variant:
    """One reading of DisWOT: a network's signature and the two distances between signatures."""

    signature: Callable[[View], Signature]
    semantic: Callable[[Tensor, Tensor], Tensor]
    relation: Callable[[Tensor, Tensor], Tensor]


def score(probe: Probe, *, variant: str = "paper") -> dict[str, float]:
    """Minus the distances between student and teacher, `diswot.semantic` and `diswot.relation`; 0 for the same network.

    The student's convolutions and linear layers are drawn from N(0, 1) with zero biases, as the paper initialises
    them, and restored. The draw is seeded by the student's given weights: the same candidate gives the same value, and
    another seed of its initialisation another. The teacher, random or trained, is taken as it is.

    Raises:
        NotComputable: no teacher, a network without a map or a linear head, a map that is zero or not finite, or
            (`readme`) heads of different widths.
    """
    how = VARIANTS[variant]

    def signature(member: Member) -> Signature:
        return how.signature(look(member, probe.images, probe.labels))

    with untouched(probe.student), normal_weights(probe.student), torch.no_grad():
        teacher_is = of_teacher(probe, ("diswot", variant), signature)
        student_is = signature(probe.student)
    return {
        "diswot.semantic": -float(how.semantic(student_is.semantic, teacher_is.semantic)),
        "diswot.relation": -float(how.relation(student_is.relation, teacher_is.relation)),
    }


def look(member: Member, images_BCHW: Tensor, labels_B: Tensor) -> View:
    """The batch as a network sees it in the mode that it is in.

    Raises:
        NotComputable: the last tap gives no map, or the head is not linear.
    """
    head = member.net.get_submodule(member.head)
    outputs = member.outputs(images_BCHW, member.taps[-1:], embedding=True)
    last, embedding = outputs.features[member.taps[-1]], outputs.embedding
    if last.dim() != 4 or not isinstance(head, nn.Linear) or embedding is None:
        raise NotComputable(f"needs a map [B, C, H, W] and a linear head, not {list(last.shape)} and {head}")
    return View(last.double(), head.weight.double(), embedding.double(), outputs.logits.double(), labels_B)


def paper_signature(view: View) -> Signature:
    """Inner products between the classes' activation maps [K, K], and between the images' maps [B, B], each of norm 1.

    The map of class n is G_n = sum_c w_nc A_c at every pixel of every image.
    """
    if view.weight_KC.shape[1] != view.map_BCHW.shape[1]:
        raise NotComputable(f"the head takes {view.weight_KC.shape[1]} channels, the map has {view.map_BCHW.shape[1]}")
    cams_BKHW = class_maps(view.map_BCHW, view.weight_KC)
    return Signature(_of_norm_1(class_gram(cams_BKHW)), _of_norm_1(unit_gram(view.map_BCHW)))


def readme_signature(view: View) -> Signature:
    """Gradient of the cross-entropy with respect to the head's weight [K, C], and row-normalised Gram matrix [B, B]."""
    # The gradient of a linear layer, written out: no backward pass, and frozen teachers have it too.
    error_BK = view.logits_BK.softmax(1) - F.one_hot(view.labels_B, view.logits_BK.shape[1])
    return Signature(error_BK.T @ view.embedding_BC / len(error_BK), gram(view.map_BCHW))


def mean_square(one_BB: Tensor, other_BB: Tensor) -> Tensor:
    """Sum of the squared differences, divided by B^2."""
    return (one_BB - other_BB).square().mean()


def outer_product_distance(one_KC: Tensor, other_KC: Tensor) -> Tensor:
    """For each class the outer product g g^T [C, C] with rows of length 1: squared differences, summed, over C * K.

    Row i of g g^T is g_i g, of length 1 sign(g_i) g/|g|, so that nothing of size C * C is needed:
    |s_i u - t_i v|^2 = s_i^2 + t_i^2 - 2 s_i t_i (u . v) with signs s, t, and u . v = 1 - |u - v|^2 / 2 for unit
    vectors u, v (exactly 1 for equal ones). A row of zeros stays one.

    Raises:
        NotComputable: gradients of different widths.
    """
    if one_KC.shape != other_KC.shape:
        raise NotComputable(
            f"variant 'readme' compares heads of equal width, not {one_KC.shape[1]} and {other_KC.shape[1]} channels; "
            "variant 'paper' takes any"
        )
    unit_one_KC, unit_other_KC = F.normalize(one_KC, eps=1e-300), F.normalize(other_KC, eps=1e-300)
    cosine_K = 1 - (unit_one_KC - unit_other_KC).square().sum(1) / 2
    s_KC, t_KC = one_KC.sign(), other_KC.sign()
    squares_K = s_KC.square().sum(1) + t_KC.square().sum(1) - 2 * (s_KC * t_KC).sum(1) * cosine_K
    return squares_K.sum() / one_KC.numel()


VARIANTS = {
    "paper": Variant(paper_signature, norm_of_difference, norm_of_difference),
    "readme": Variant(readme_signature, outer_product_distance, mean_square),
}


def _of_norm_1(matrix: Tensor) -> Tensor:
    """The matrix; one that could not be scaled to norm 1 comes from a map that is zero or not finite."""
    norm = float(matrix.norm())
    if not norm > 0.5:
        raise NotComputable(f"the last map has the norm {norm}")
    return matrix
