"""Wide residual networks (Zagoruyko and Komodakis 2016, arXiv:1605.07146, table 1)."""

from ray import tune
from torch import Tensor, nn

from spaces.errors import BadInput
from spaces.initialise import he_normal
from spaces.space import Arch, Space
from spaces.task import Task

STEM = 16  # channels

PARAM_SPACE = {
    "depth": tune.choice([10, 16, 22, 28, 34, 40]),  # 6 n + 4 convolutions, for n blocks in each of the three groups
    "widen": tune.choice([1, 2, 4, 6, 8, 10]),  # channels are this many times 16, 32, 64
}


def build(arch: Arch, task: Task, dropout: float = 0.0) -> nn.Module:
    """Network from images [B, C, H, W] to logits [B, K].

    Args:
        arch: `depth`, 6 n + 4; `widen`, which may be a fraction (0.25 for 4, 8, 16 channels).
        task: shape of the input and number of classes.
        dropout: share of values dropped between the two convolutions of a block.

    Raises:
        BadInput: a depth or a factor that gives no whole number of blocks or channels, or dropout outside [0, 1).
    """
    depth, widen = arch["depth"], arch["widen"]
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        raise BadInput(f"wrn: depth must be 6 n + 4 (10, 16, 22, ...), not {depth!r}")
    width = int(STEM * widen)
    if width != STEM * widen or width < 1:
        raise BadInput(f"wrn: widen must be a multiple of 1/{STEM}, not {widen!r}")
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise BadInput(f"wrn: dropout must be at least 0 and below 1, not {dropout!r}")
    return WideResNet(int(blocks), width, task, dropout)


class Block(nn.Module):
    """Batch norm and ReLU before each of two 3 x 3 convolutions, dropout between them, and a shortcut around them.

    Where the shape changes, the shortcut is a 1 x 1 convolution of the first ReLU's output.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        # Modules of their own, one per use: scores look at the input of every ReLU.
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        out = self.conv2(self.dropout(self.relu2(self.bn2(self.conv1(active)))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """Stem, three groups (the second and third halve the image and double the channels), norm, pooling, classifier."""

    def __init__(self, blocks: int, width: int, task: Task, dropout: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(task.channels, STEM, 3, 1, 1, bias=False)
        self.group1 = _group(STEM, width, blocks, 1, dropout)
        self.group2 = _group(width, 2 * width, blocks, 2, dropout)
        self.group3 = _group(2 * width, 4 * width, blocks, 2, dropout)
        self.last = nn.Sequential(nn.BatchNorm2d(4 * width), nn.ReLU(inplace=True))
        self.fc = nn.Linear(4 * width, task.classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.group3(self.group2(self.group1(self.stem(x))))
        return self.fc(self.last(x).mean((2, 3)))


def _group(inputs: int, outputs: int, blocks: int, stride: int, dropout: float) -> nn.Sequential:
    first = Block(inputs, outputs, stride, dropout)
    return nn.Sequential(first, *(Block(outputs, outputs, 1, dropout) for _ in range(blocks - 1)))


SPACE = Space(
    name="wrn",
    param_space=PARAM_SPACE,
    builder=build,
    taps=("group1", "group2", "last"),
    head="fc",
    options={"dropout": 0.0},
)
