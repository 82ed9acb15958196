"""Cross-entropy with the labels: what a network learns from without a teacher."""

from torch import Tensor
from torch.nn import functional as F

from trainables.contracts import Outputs


def cross_entropy(student: Outputs, teacher: Outputs, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Minus the log-probability of the label, averaged over the images; a scalar.

    Logits [B, K]; labels int64 [B], or probabilities [B, K] where images were mixed. `label_smoothing` is the share
    of a label's probability that is spread evenly over all classes (Szegedy et al. 2015, arXiv:1512.00567,
    section 7). The teacher is not looked at.
    """
    target = labels.to(student.logits.dtype) if labels.is_floating_point() else labels
    return F.cross_entropy(student.logits, target, reduction="mean", label_smoothing=label_smoothing)
