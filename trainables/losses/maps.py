"""Bringing maps of different height, width or channels together."""

from torch import Tensor, nn
from torch.nn import functional as F


def resized(map_BCHW: Tensor, like: Tensor) -> Tensor:
    """Averaged over places down (or repeated up) to the height and width of another map; contiguous.

    Contiguous since a connector may be narrower than any layer of the student: see `trainables.fit.memory_format`.
    """
    return F.adaptive_avg_pool2d(map_BCHW.contiguous(), (like.shape[2], like.shape[3]))


def of_one_size(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps averaged over places down to the smaller height and the smaller width."""
    size = (min(one.shape[2], other.shape[2]), min(one.shape[3], other.shape[3]))
    return F.adaptive_avg_pool2d(one, size), F.adaptive_avg_pool2d(other, size)


def connector(own: int, wanted: int) -> nn.Module:
    """A 1 x 1 convolution without bias from a student's channels to as many as wanted; none where they are equal."""
    return nn.Identity() if own == wanted else nn.Conv2d(own, wanted, 1, bias=False)


def normalised(own: int, wanted: int, kernel: int = 1) -> nn.Module:
    """A convolution that keeps height and width, and batch normalisation."""
    conv = nn.Conv2d(own, wanted, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(wanted))
