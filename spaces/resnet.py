"""Residual networks for small images (He et al. 2016, arXiv:1512.03385, section 4.2)."""

from typing import Literal, get_args

from ray import tune
from torch import Tensor, nn
from torch.nn import functional as F

from spaces.errors import unknown
from spaces.initialise import he_normal
from spaces.space import Arch, Space
from spaces.task import Task

PARAM_SPACE = {
    "depth1": tune.choice([1, 3, 5, 7]),  # residual blocks in each of the three stages
    "depth2": tune.choice([1, 3, 5, 7]),
    "depth3": tune.choice([1, 3, 5, 7]),
    "width": tune.choice([8, 16, 32]),  # channels of the first stage; doubled at each stage
}

Shortcut = Literal["conv", "pad"]
"""How a block's input reaches its output where the shape changes: by a 1 x 1 convolution and batch norm (option B
of the paper), or without parameters by subsampling and zero channels (option A)."""


def build(arch: Arch, task: Task, shortcut: Shortcut = "conv") -> nn.Module:
    """Network from images [B, C, H, W] to logits [B, K]. Raises `BadInput` for another `shortcut`."""
    if shortcut not in get_args(Shortcut):
        raise unknown("shortcut", shortcut, get_args(Shortcut))
    depths = (arch["depth1"], arch["depth2"], arch["depth3"])
    return ResNet(depths, arch["width"], task, shortcut)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            if shortcut == "conv":
                self.shortcut = nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
                )
            else:
                self.shortcut = PadShortcut(outputs - inputs, stride)
        # Modules of their own, one per use: scores look at the input of every ReLU.
        self.relu1 = nn.ReLU(inplace=True)
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(out)) + self.shortcut(x))


class PadShortcut(nn.Module):
    """Every `stride`-th pixel, with zero channels on both sides (option A)."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.before, self.after = channels // 2, channels - channels // 2
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class ResNet(nn.Module):
    """Stem, three stages (the second and third halve the image and double the channels), pooling, classifier."""

    def __init__(self, depths: tuple[int, int, int], width: int, task: Task, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(task.channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(width, width, depths[0], 1, shortcut)
        self.layer2 = _stage(width, 2 * width, depths[1], 2, shortcut)
        self.layer3 = _stage(2 * width, 4 * width, depths[2], 2, shortcut)
        self.fc = nn.Linear(4 * width, task.classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


def _stage(inputs: int, outputs: int, depth: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
    blocks = [
        BasicBlock(inputs if i == 0 else outputs, outputs, stride if i == 0 else 1, shortcut) for i in range(depth)
    ]
    return nn.Sequential(*blocks)


SPACE = Space(
    name="resnet",
    param_space=PARAM_SPACE,
    builder=build,
    taps=("layer1", "layer2", "layer3"),
    head="fc",
    options={"shortcut": "conv"},
)

# DisWOT's search space S1 (arXiv:2303.15678, section 4): 64 depths at three widths.
S1 = Space(
    name="resnet-s1",
    param_space={**PARAM_SPACE, "width": tune.choice([16, 32, 64])},
    builder=build,
    taps=SPACE.taps,
    head=SPACE.head,
    options=SPACE.options,
)
