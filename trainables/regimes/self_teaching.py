"""A student that teaches itself: what it was before, or a teacher that is written down instead of trained."""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.contracts import Outputs
from trainables.curriculum import Batch, Curriculum
from trainables.declare import Made, Of, Phase, Program, program
from trainables.regimes import actions
from trainables.regimes.kit import Kit


def tf_kd(kit: Kit, *, kind: str, right: float, tau: float) -> Program:
    """Teacher-free: the student's earlier self, or a written-down distribution, teaches (arXiv:1909.11723).

    Yuan et al. 2020. `kind: self` trains the student for half of the epochs on labels alone (weight 1), keeps it as it
    then is, and lets it teach a new initialisation. `kind: virtual` is a teacher that is always right
    (`virtual_teacher`), for logits only: `tau` is its own temperature, the loss's `temperature` tempers both sides.

    The official code averages its divergences over the B K elements and makes up for it with a multiplier that differs
    by network (100 for the virtual teacher of ResNet-18 on 100 classes: exactly B K to B; 50 for its self: half of it).
    Its virtual term leaves the student's logits as they are: `kd` with temperature 1, with its weights 0.9 and 0.1.

    Raises:
        BadInput: losses of maps beside a virtual teacher, no loss of labels for a self, or too few epochs.
    """
    student = kit.network()
    if kind == "virtual":
        kit.only_logits("tf_kd")
        virtual = Made(partial(virtual_teacher, right=right, tau=tau), (Of("student", stop=True),), stop=True)
        return program(student, kit.terms(targets=[virtual]), kit.epochs)
    members = {"student": student, "earlier": kit.network("earlier")}
    again = kit.network("again")
    first, second = kit.shares(1, 1)
    keep = (actions.copy("student", to="earlier"), actions.renew("student", lambda: again))
    terms = kit.terms(targets=[Of("earlier", stop=True)], epochs=second)
    alone = Phase("alone", first, tuple(kit.alone(epochs=first)))
    return Program(members, (alone, Phase("by itself", second, tuple(terms), begin=keep)))


def virtual_teacher(labels: Tensor, student: Outputs, *, right: float, tau: float) -> Outputs:
    """A teacher with probability `right` on the right class and equal ones on the others (arXiv:1909.11723).

    The temperature divides these *probabilities*, not their logarithms: what it says is softmax(p / tau), which for
    10 classes, 0.99 and 20 is 0.104 on the right class and 0.0995 on each other. Of a mixed label [B, K] it is the
    mixture, before the temperature.

    Args:
        labels: int64 [B] or probabilities [B, K].
        student: [B, K] logits, looked at for their shape.
    """
    classes = student.logits.shape[1]
    label_BK = labels if labels.is_floating_point() else F.one_hot(labels, classes)
    p_BK = right * label_BK + (1 - right) * (1 - label_BK) / (classes - 1)
    return Outputs(p_BK.to(student.logits.dtype) / tau, index=student.index)


def cs_kd(kit: Kit) -> Program:
    """What it says of another image of the same class teaches what it says of this one (arXiv:2003.13964).

    Yun et al. 2020: cross-entropy of the image, and T^2 KL from the partner's probabilities, which are
    constants. The partner is another training image of the class, drawn and augmented anew for each image and step.
    The network passes both in training mode, each with the batch statistics of its own pass, as in the official code,
    whose divergence is averaged over images, T = 4 and weight 1 (3 for fine-grained classes).

    Raises:
        BadInput: losses of maps, which a partner does not share.
    """
    kit.only_logits("cs_kd")
    student = kit.network()
    terms = kit.terms(targets=[Of("student", "partner", stop=True)])
    return program(student, terms, kit.epochs, views={"partner": partners}, unmixed=True)


def partners(batch: Batch, curriculum: Curriculum) -> Batch:
    """For each image another training image of its class, each equally likely; itself if it is the only one.

    Of mixed images, the first one's class counts.
    """
    labels_N, own_B = curriculum.labels, batch.index
    by_class = labels_N.argsort(stable=True)
    place_N = torch.empty_like(by_class)
    place_N[by_class] = torch.arange(len(by_class), device=by_class.device)
    counts = labels_N.bincount()
    starts = counts.cumsum(0) - counts
    start_B, others_B = starts[labels_N[own_B]], counts[labels_N[own_B]] - 1
    draw_B = torch.rand(len(own_B), dtype=torch.float64).to(own_B.device)
    # Steps around the ring of the class, fewer than bring one back to where one was.
    step_B = 1 + (draw_B * others_B).long()
    chosen_B = by_class[start_B + (place_N[own_B] - start_B + step_B) % (others_B + 1)]
    return Batch(curriculum.augmented(chosen_B), labels_N[chosen_B], chosen_B)
