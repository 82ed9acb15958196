"""Distillation of softened class probabilities."""

from torch import Tensor
from torch.nn import functional as F

from trainables.contracts import Outputs


def kd(student: Outputs, teacher: Outputs, labels: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Learn the teacher's class probabilities at a temperature T above 1, which shows how classes resemble each other.

    Hinton et al. 2015 (arXiv:1503.02531), section 2. Logits [B, K]; returns a scalar: T^2 KL(teacher || student) in
    nats, summed over the classes and averaged over the images. T^2 keeps the gradient's size comparable across
    temperatures: its gradient by the student's logits is T (p_student - p_teacher) / B. `labels` is unused.

    A published weight for a KL that was averaged over all B K elements is K times the weight here.
    """
    target = teacher.logits.detach().to(student.logits.dtype)
    log_student_BK, log_teacher_BK = ((logits / temperature).log_softmax(1) for logits in (student.logits, target))
    return temperature**2 * F.kl_div(log_student_BK, log_teacher_BK, reduction="batchmean", log_target=True)
