"""Labels that say how an image was turned, too."""

from collections.abc import Callable
from functools import partial
from itertools import permutations
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spaces import BadInput
from trainables.contracts import EMBEDDING, Outputs
from trainables.curriculum import Batch, Curriculum
from trainables.declare import STUDENT, Made, Of, Phase, Program
from trainables.regimes.kit import Kit

Transform = Callable[[Tensor], Tensor]


def _turn(images_BCHW: Tensor, quarters: int) -> Tensor:
    return images_BCHW.rot90(quarters, (2, 3))


def _recolour(images_BCHW: Tensor, order: tuple[int, ...]) -> Tensor:
    return images_BCHW[:, list(order)]


TRANSFORMS: dict[str, tuple[Transform, ...]] = {
    "rotations": tuple(partial(_turn, quarters=quarters) for quarters in range(4)),
    "half_turns": tuple(partial(_turn, quarters=quarters) for quarters in (0, 2)),
    "colors": tuple(partial(_recolour, order=order) for order in permutations(range(3))),
}
"""What is done to the images [B, C, H, W]; the first one leaves them as they are."""


def sla_sd(kit: Kit, *, transforms: str) -> Program:
    """Joint labels of class and rotation; their aggregate teaches the student's own head (arXiv:1910.05872).

    Lee, Hwang and Shin 2020: a second head over the same embedding tells class and transform, K M classes in all. The
    mean over the transforms of its logits of the classes, given the transform, is a constant that teaches the single
    head on the images as they are; the paper's beta is the weight of cross-entropy there. The joint head learns from
    labels with weight 1. Only the single head is deployed. By default all weights are 1 and the divergence, averaged
    over images, has temperature 1.

    The official code reads the single head off the pass of all M B images; here the single head has a pass of B images
    of its own, so that the running statistics of batch norm, which are deployed, are half of upright images.

    Raises:
        BadInput: losses of maps, none of labels, or permuted colors of images that do not have three.
    """
    kit.only_logits("sla_sd")
    if transforms == "colors" and kit.task.channels != 3:
        raise BadInput(f"regime 'sla_sd': transforms: colors needs images of 3 channels, not {kit.task.channels}")
    turns, classes = TRANSFORMS[transforms], kit.task.classes
    members = {"student": kit.network(), "joint": JointHead(kit, classes * len(turns))}
    joint = Made(members["joint"], (Of("student", "transformed"),), taps=(EMBEDDING,))
    whole = Made(partial(aggregate, classes=classes), (joint,), stop=True)
    terms = [*kit.terms(STUDENT, [whole]), *kit.alone(joint, "joint")]
    phase = Phase("train", kit.epochs, tuple(terms), trains=("student", "joint"))
    return Program(members, (phase,), views={"transformed": partial(transformed, transforms=turns)})


def transformed(batch: Batch, curriculum: Curriculum, *, transforms: tuple[Transform, ...]) -> Batch:
    """All images under the first transform, then all under the second, ...: [M B, C, H, W].

    Labels are joint: class y under transform j is y M + j of K M classes; of mixed labels [B, K], probabilities
    [M B, K M].
    """
    images = torch.cat([transform(batch.images) for transform in transforms]).contiguous()
    many, labels = len(transforms), batch.labels
    if labels.is_floating_point():
        parts = [F.pad(labels[:, :, None], (j, many - 1 - j)).flatten(1) for j in range(many)]
    else:
        parts = [labels * many + j for j in range(many)]
    return Batch(images, torch.cat(parts), batch.index.repeat(many))


def aggregate(labels: Tensor, joint: Outputs, *, classes: int) -> Outputs:
    """What a joint head says of the classes, given each image's transform, averaged over the transforms: [B, K].

    Args:
        labels: unused.
        joint: logits [M B, K M] for the view `transformed`.
    """
    many = joint.logits.shape[1] // classes
    told_MBKM = joint.logits.unflatten(0, (many, -1)).unflatten(2, (classes, many))
    told_MBK = torch.stack([told_MBKM[j, :, :, j] for j in range(many)])
    index = None if joint.index is None else joint.index[: told_MBK.shape[1]]
    return Outputs(told_MBK.mean(0), index=index)


@final
class JointHead(nn.Module):
    """A linear layer from the student's embedding to K M logits, as an input of terms."""

    def __init__(self, kit: Kit, classes: int) -> None:
        super().__init__()
        kit.seeded("joint")
        self.fc = nn.Linear(kit.embedding_width(), classes)

    def forward(self, labels: Tensor, student: Outputs) -> Outputs:
        """Logits [B, K M]."""
        assert student.embedding is not None
        return Outputs(self.fc(student.embedding), index=student.index)
