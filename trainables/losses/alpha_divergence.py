"""Distillation of class probabilities that punishes too much and too little certainty alike."""

import math

import torch
from torch import Tensor

from trainables.contracts import Outputs


def alpha_divergence(
    student: Outputs,
    teacher: Outputs,
    labels: Tensor,
    *,
    alpha_min: float = -1.0,
    alpha_max: float = 1.0,
    clip: float = 5.0,
    temperature: float = 1.0,
) -> Tensor:
    """Follow, image by image, whichever of two divergences from the teacher is larger.

    AlphaNet (Wang et al. 2021, arXiv:2102.07954). With p the teacher's and q the student's probabilities,
    D_a = sum_k q [(p / q)^a - 1] / (a (a - 1)); its limits are KL(p || q) at a = 1 and KL(q || p) at a = 0. A negative
    alpha is large where the student gives weight to what the teacher rules out, a positive one where it misses what the
    teacher allows. Logits [B, K]; returns a scalar: T^2 times the larger D, summed over classes and averaged over
    images, as the authors do. `labels` is unused.

    (p / q)^a is at most `clip`, except at the limits, whose gradients are bounded anyway. The value is D, where the
    authors' code shows a surrogate, -sum_k q (p / q)^a / a log q. The gradient is the surrogate's by log q alone: D's
    own where nothing is clipped, and small where something is. All is done with logarithms: ratios of probabilities
    that underflow would be NaN. With the clip, D at alpha -1 is at most (clip - 1) / 2, so that among many classes a
    very sure teacher is followed by KL.
    """
    target = teacher.logits.detach().to(student.logits.dtype)
    log_q_BK, log_p_BK = ((logits / temperature).log_softmax(1) for logits in (student.logits, target))
    low_B, high_B = (_divergence(log_q_BK, log_p_BK, alpha, clip) for alpha in (alpha_min, alpha_max))
    return temperature**2 * torch.maximum(low_B, high_B).mean()


def _divergence(log_q_BK: Tensor, log_p_BK: Tensor, alpha: float, clip: float) -> Tensor:
    """D_alpha of each image [B], with the surrogate's gradient."""
    log_ratio_BK, q_BK = log_p_BK - log_q_BK.detach(), log_q_BK.detach().exp()
    if abs(alpha) < 1e-3:
        value_BK, slope_BK = -q_BK * log_ratio_BK, q_BK * log_ratio_BK
    elif abs(alpha - 1) < 1e-3:
        value_BK, slope_BK = log_p_BK.exp() * log_ratio_BK, log_p_BK.exp()
    else:
        power_BK = (alpha * log_ratio_BK).clamp(max=math.log(clip)).exp()
        value_BK, slope_BK = q_BK * (power_BK - 1) / (alpha * (alpha - 1)), q_BK * power_BK / alpha
    # The last term is 0 and carries the gradient.
    return (value_BK - slope_BK * (log_q_BK - log_q_BK.detach())).sum(1)
