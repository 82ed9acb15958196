"""A space of students of one's own: depthwise-separable networks for small images (MobileNet, arXiv:1704.04861).

In a recipe: `space: {file: examples/own_space.py}`.
"""

from ray import tune
from torch import Tensor, nn

from spaces import Arch, Task

# What the search chooses: a Tune domain for each name.
PARAM_SPACE = {
    "depth": tune.choice([1, 2, 3]),  # blocks in each of the three stages
    "width": tune.choice([8, 12, 16, 24]),  # channels of the first stage; doubled at each stage
    "kernel": tune.choice([3, 5]),  # of the depthwise convolutions
}

# What a recipe may set with `options`.
OPTIONS = {"dropout": 0.0}

# Where losses look: feature maps, shallow to deep, and the last linear layer. Without these two lines dux looks itself.
TAPS = ("stage1", "stage2", "stage3")
HEAD = "head"


def build(arch: Arch, task: Task, dropout: float) -> nn.Module:
    """Network from images [B, C, H, W] to logits [B, K]; `task` has channels, image_size and classes."""
    return Separable(arch["depth"], arch["width"], arch["kernel"], task.channels, task.classes, dropout)


class Separable(nn.Module):
    def __init__(self, depth: int, width: int, kernel: int, channels: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.stage1 = stage(width, width, depth, kernel, stride=1)
        self.stage2 = stage(width, 2 * width, depth, kernel, stride=2)
        self.stage3 = stage(2 * width, 4 * width, depth, kernel, stride=2)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.stage3(self.stage2(self.stage1(self.stem(images))))
        return self.head(self.dropout(maps.mean((2, 3))))


def stage(inputs: int, outputs: int, depth: int, kernel: int, stride: int) -> nn.Sequential:
    """`depth` blocks, of which the first changes the channels and the image's size."""
    first = block(inputs, outputs, kernel, stride)
    return nn.Sequential(first, *(block(outputs, outputs, kernel, stride=1) for _ in range(depth - 1)))


def block(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    """A convolution of each channel on its own, then one across channels."""
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, kernel, stride, kernel // 2, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )
