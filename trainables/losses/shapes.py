"""What a loss must know of two networks before they run, and which of their taps it compares by default."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from spaces import BadInput, Task
from trainables.contracts import Member, Outputs
from trainables.evaluate import evaluating

Maps = Mapping[str, tuple[int, int, int]]
"""Size of the feature map at each tap: channels, height, width; shallow to deep."""

Pairs = tuple[tuple[str, str], ...]
"""Which taps are compared: student's, teacher's."""


@dataclass(frozen=True)
class Shapes:
    """The sizes of a network's outputs.

    Args:
        classes: length of its logits.
        maps: tap to (C, H, W), shallow to deep.
        no_cam: why it has no class activation maps; empty where it has.
    """

    classes: int
    maps: Maps
    no_cam: str = ""


def shapes_of(member: Member, task: Task) -> Shapes:
    """The sizes of what a network puts out for images of this task, from one pass of two black images.

    The network stays as it was: buffers, modes, no gradients. A tap whose output is not a map [B, C, H, W] is left out.
    """
    images_BCHW = member.mean.new_zeros(2, task.channels, task.image_size, task.image_size)
    with evaluating(member), torch.no_grad():
        outputs = member.outputs(images_BCHW, member.taps)
        no_cam = _why_no_class_maps(member, outputs)
    sizes = {tap: outputs.features[tap].shape[1:] for tap in member.taps}
    maps = {tap: (size[0], size[1], size[2]) for tap, size in sizes.items() if len(size) == 3}
    return Shapes(outputs.logits.shape[1], maps, no_cam)


def _why_no_class_maps(member: Member, outputs: Outputs) -> str:
    """Empty where each logit is the mean of its class's activation map, up to the head's bias."""
    try:
        cams_BKHW = member.class_maps(outputs.features)
    except BadInput as error:
        return str(error)
    bias = member.net.get_submodule(member.head).bias
    logits_BK = cams_BKHW.mean((2, 3)) + (bias if isinstance(bias, Tensor) else 0)
    if not torch.allclose(logits_BK, outputs.logits, rtol=0, atol=1e-3 * float(outputs.logits.abs().max())):
        return "class activation maps need a head that is linear in the last tap's map averaged over its places"
    return ""


def from_the_deep_end(student: Maps, teacher: Maps) -> Pairs:
    """Deepest with deepest, last but one with last but one, and so on, as far as both go; shallow to deep."""
    return tuple(reversed(list(zip(reversed(list(student)), reversed(list(teacher)), strict=False))))


def deepest(student: Maps, teacher: Maps) -> Pairs:
    """The last map of each."""
    return ((list(student)[-1], list(teacher)[-1]),)


def middle(student: Maps, teacher: Maps) -> Pairs:
    """The middle map of each; of an even number, the shallower of the two."""
    own, other = ((list(maps)[(len(maps) - 1) // 2]) for maps in (student, teacher))
    return ((own, other),)
