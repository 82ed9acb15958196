"""Residual super-blocks of free shape, as Zen-NAS searches them for small images (Lin et al. 2021, arXiv:2102.01063).

A network is a stem, four super-blocks and a last 1 x 1 convolution. A super-block repeats one residual block; its kind,
kernel, width, inner width and number of blocks are searched by small steps. Every convolution is followed by batch
norm, whose statistics the zen score reads.
"""

from collections.abc import Callable, Sequence

from ray import tune
from torch import Tensor, nn

from spaces.domains import Domain
from spaces.errors import BadInput, unknown
from spaces.initialise import he_normal
from spaces.space import Arch, Moves, Space
from spaces.task import Task

STRIDES = (1, 2, 2, 2)  # of the super-blocks
WIDTHS = (8, 16, 24, 32, 40, 48, 64, 80, 96, 128)
FACTORS = (1 / 2.5, 1 / 2, 1 / 1.5, 1 / 1.25, 1.25, 1.5, 2, 2.5)  # by which a mutation changes a width
STEPS = (-2, -1, 1, 2)  # by which a mutation changes a number of blocks


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """A convolution without bias, and batch norm."""
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]


def basic(inputs: int, inner: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    """k x k to the inner width, k x k to the outer."""
    first = conv_bn(inputs, inner, kernel, stride)
    return nn.Sequential(*first, nn.ReLU(inplace=True), *conv_bn(inner, outputs, kernel))


def bottleneck(inputs: int, inner: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    """1 x 1 to the inner width, k x k within it, 1 x 1 to the outer."""
    first, second = conv_bn(inputs, inner, 1), conv_bn(inner, inner, kernel, stride)
    return nn.Sequential(
        *first, nn.ReLU(inplace=True), *second, nn.ReLU(inplace=True), *conv_bn(inner, outputs, 1)
    )  # fmt: skip


BLOCKS: dict[str, Callable[[int, int, int, int, int], nn.Sequential]] = {"basic": basic, "bottleneck": bottleneck}
"""The kinds of residual block: `(inputs, inner, outputs, kernel, stride)` to the layers beside the shortcut."""


def _super_block(stage: int) -> dict[str, Domain]:
    return {
        f"block{stage}": tune.choice(list(BLOCKS)),
        f"kernel{stage}": tune.choice([3, 5, 7]),
        f"width{stage}": tune.choice(list(WIDTHS)),
        f"inner{stage}": tune.choice(list(WIDTHS)),  # channels between the convolutions of a block
        f"depth{stage}": tune.choice([1, 2, 3, 4, 5]),  # blocks
    }


CHOICES = ("block", "kernel", "width", "inner", "depth")  # of a super-block
STAGES = range(1, len(STRIDES) + 1)
PARAM_SPACE: dict[str, Domain] = {
    "stem": tune.choice(list(WIDTHS)),
    **{name: domain for stage in STAGES for name, domain in _super_block(stage).items()},
    "last": tune.choice(list(WIDTHS)),
}


def scaled(width: int) -> Sequence[float]:
    """The widths to which a mutation may go, before they are rounded to those of the space."""
    return [width * factor for factor in FACTORS]


def stepped(depth: int) -> Sequence[int]:
    """The numbers of blocks to which a mutation may go, before they are held within those of the space."""
    return [depth + step for step in STEPS]


MOVES: Moves = {
    name: stepped if name.startswith("depth") else scaled
    for name in PARAM_SPACE
    if not name.startswith(("block", "kernel"))
}


def build(arch: Arch, task: Task) -> nn.Module:
    """Network from images [B, C, H, W] to logits [B, K]. Raises `BadInput` for an unknown block or an even kernel."""
    for stage in STAGES:
        if arch[f"block{stage}"] not in BLOCKS:
            raise unknown("block of space 'zen'", arch[f"block{stage}"], BLOCKS)
        if arch[f"kernel{stage}"] % 2 == 0:
            raise BadInput(f"zen: kernel{stage} must be odd, not {arch[f'kernel{stage}']!r}")
    return ZenNet(arch, task)


class ResidualBlock(nn.Module):
    """Convolutions and a shortcut around them, added and activated.

    Args:
        projected: whether the shortcut is a 1 x 1 convolution and batch norm, as in the first block of a super-block.
    """

    def __init__(self, layers: nn.Sequential, inputs: int, outputs: int, stride: int, projected: bool) -> None:
        super().__init__()
        self.layers = layers
        self.shortcut = nn.Sequential(*(conv_bn(inputs, outputs, 1, stride) if projected else []))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.layers(x) + self.shortcut(x))


class ZenNet(nn.Module):
    """Stem, four super-blocks (all but the first halve the image), 1 x 1 convolution, pooling, classifier."""

    def __init__(self, arch: Arch, task: Task) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(task.channels, arch["stem"], 3), nn.ReLU(inplace=True))
        widths = [arch["stem"], *(arch[f"width{stage}"] for stage in STAGES)]
        for stage in STAGES:
            self.add_module(f"super{stage}", _repeated(arch, stage, widths[stage - 1]))
        self.last = nn.Sequential(*conv_bn(widths[-1], arch["last"], 1), nn.ReLU(inplace=True))
        self.fc = nn.Linear(arch["last"], task.classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in STAGES:
            x = self.get_submodule(f"super{stage}")(x)
        return self.fc(self.last(x).mean((2, 3)))


def _repeated(arch: Arch, stage: int, inputs: int) -> nn.Sequential:
    """A super-block; its first block changes size and width."""
    kind, kernel, width, inner, depth = (arch[f"{name}{stage}"] for name in CHOICES)
    blocks = []
    for i in range(depth):
        ins, stride = (inputs, STRIDES[stage - 1]) if i == 0 else (width, 1)
        layers = BLOCKS[kind](ins, inner, width, kernel, stride)
        blocks.append(ResidualBlock(layers, ins, width, stride, projected=i == 0))
    return nn.Sequential(*blocks)


SPACE = Space(
    name="zen",
    param_space=PARAM_SPACE,
    builder=build,
    taps=("super1", "super2", "super3", "last"),
    head="fc",
    moves=MOVES,
)
