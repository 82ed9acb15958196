"""Distillation of the teacher's ranking instead of its exact probabilities."""

from torch import Tensor
from torch.nn import functional as F

from trainables.contracts import Outputs


def dist(student: Outputs, teacher: Outputs, labels: Tensor, *, temperature: float = 4.0, beta: float = 1.0) -> Tensor:
    """Keep the teacher's ranking of classes per image, and of images per class.

    DIST (Huang et al. 2022, arXiv:2205.10536). Logits [B, K]; returns a scalar, T^2 (inter + beta intra):
    `inter` is one minus Pearson's correlation between the probabilities of an image, averaged over the images, `intra`
    the same for a class over the images, averaged over the classes. `labels` is unused: the loss adds to
    cross-entropy. The paper weighs both parts by 2 (here: weight 2, beta 1), at temperature 4 for CIFAR-100 and 1
    for ImageNet.
    """
    target = teacher.logits.detach().to(student.logits.dtype)
    student_BK, teacher_BK = ((logits / temperature).softmax(1) for logits in (student.logits, target))
    inter = pearson_distance(student_BK, teacher_BK)
    intra = pearson_distance(student_BK.T, teacher_BK.T)
    return temperature**2 * (inter + beta * intra)


def pearson_distance(x_MN: Tensor, y_MN: Tensor) -> Tensor:
    """One minus Pearson's correlation of each row, averaged over the rows; 0 to 2.

    A row without variance correlates with nothing: its distance is 1, its gradient 0.
    """
    centred_x_MN, centred_y_MN = (z - z.mean(1, keepdim=True) for z in (x_MN, y_MN))
    return 1 - F.cosine_similarity(centred_x_MN, centred_y_MN, dim=1, eps=1e-8).mean()
