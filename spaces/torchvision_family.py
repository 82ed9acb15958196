"""Students of torchvision: the names of its models and their keyword arguments are the space.

A recipe replaces the names, and may add any keyword argument of their functions as a choice or as an option:
`choices: {model: [mobilenet_v2], width_mult: [0.25, 0.5, 1.0]}`. Every model of the space is made with all of them.
Students begin without pretrained weights.
"""

from copy import copy
from typing import Any

from ray import tune
from torch import nn

from spaces.packages import torchvision_model
from spaces.space import Arch, Space
from spaces.task import Task

# Small and quick ones that take images of any size from 8 pixels.
PARAM_SPACE = {
    "model": tune.choice(["shufflenet_v2_x0_5", "mnasnet0_5", "mobilenet_v3_small", "mobilenet_v2", "resnet18"]),
}
COLOURS = 3  # channels of the images that torchvision's models are made for


def build(arch: Arch, task: Task, **options: Any) -> nn.Module:
    """Network from images [B, C, H, W] to logits [B, K]. Raises `BadInput` where torchvision makes none.

    For other than colour images the first convolution is replaced by one of as many channels, with its weights.
    """
    given = {**options, **arch}
    net = torchvision_model(str(given.pop("model")), task, given)
    if task.channels != COLOURS:
        name, first = next((n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d))
        net.set_submodule(name, _with_channels(first, task.channels))
    return net


def _with_channels(conv: nn.Conv2d, channels: int) -> nn.Conv2d:
    """The same convolution for images of so many channels, which take its channels' initial weights in turn."""
    taken = [channel % conv.in_channels for channel in range(channels)]
    changed = copy(conv)
    changed._parameters = {**conv._parameters, "weight": nn.Parameter(conv.weight.detach()[:, taken])}
    changed.in_channels = channels
    return changed


SPACE = Space(name="torchvision", param_space=PARAM_SPACE, builder=build, open=True)
