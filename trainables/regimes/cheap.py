"""Learning with cheap convolutions from the same network with full ones."""

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spaces import BadInput
from spaces.initialise import he_normal
from trainables.contracts import Member
from trainables.declare import STUDENT, Of, Phase, Program
from trainables.regimes.kit import Kit

KINDS = ("group", "depthwise", "shift")


def cheap_convolutions(kit: Kit, kind: str, groups: int) -> Program:
    """The student's convolutions made cheap; the same network with full ones learns beside it and teaches it.

    Xie et al. 2019 (arXiv:1909.13063), with the student of Moonshine (Crowley et al. 2018, arXiv:1711.02613): the
    teacher's architecture, whose k x k convolutions become a cheap one over places and a 1 x 1 one over channels. The
    teacher is not trained beforehand: it minimises the losses of labels (weight 1) and is a constant for the student,
    which minimises the recipe's losses. The architecture that the recipe gives is the full one.

    The paper's official code differs: its teacher is a layer over the last maps of four cheap students, of which the
    best is kept; gradients of the divergence reach the teacher; the divergence is averaged over all B K elements, so
    its weight of T^2 is T^2 / K of a divergence that is summed over classes as here.

    Args:
        kind: what the k x k convolution becomes, before the 1 x 1 one: `group`, one in groups; `depthwise`, one for
            each channel; `shift`, channels that are moved, without weights (arXiv:1711.08141).
        groups: of `group`.

    Raises:
        BadInput: no convolution can be made cheap, `groups` does not divide one's channels, or no loss of the recipe
            trains the teacher.
    """
    teacher, plain = kit.network("full"), kit.network()
    kit.seeded("cheap convolutions")
    cheapen(plain.net, kind, groups)
    student = kit.add("student", Member.of(kit.space, plain.net, kit.data))
    terms = (*kit.terms(STUDENT, [Of("full", stop=True)]), *kit.alone(Of("full"), "full"))
    phase = Phase("together", kit.epochs, terms, trains=("student", "full"))
    return Program({"student": student, "full": teacher}, (phase,))


def cheapen(net: nn.Module, kind: str, groups: int) -> nn.Module:
    """Replace every k x k convolution but the first layer by a cheap one, at a new initialisation; all shapes stay.

    Convolutions in groups are cheap already and stay. It is the network itself that is changed and returned.

    Raises:
        BadInput: there is nothing to replace, or `groups` does not divide a convolution's input channels.
    """
    layers = [(name, module) for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    replaced = [(name, conv) for name, conv in layers[1:] if max(conv.kernel_size) > 1 and conv.groups == 1]
    if not replaced:
        raise BadInput("regime 'cheap_convolutions': the student has no k x k convolution besides its first layer")
    for name, conv in replaced:
        if kind == "group" and conv.in_channels % groups:
            rule = f"groups must divide the channels of every convolution, {conv.in_channels} at {name!r}"
            raise BadInput(f"regime 'cheap_convolutions': {rule}, not {groups}")
        net.set_submodule(name, _cheap(conv, kind, groups))
    return net


def _cheap(conv: nn.Conv2d, kind: str, groups: int) -> nn.Module:
    """From the shapes of a convolution: a cheap one over places, then 1 x 1 over channels."""
    channels = conv.in_channels
    over_places: nn.Module = Shift(conv)
    if kind != "shift":
        window: Any = {name: getattr(conv, name) for name in ("kernel_size", "stride", "padding", "dilation")}
        parts = channels if kind == "depthwise" else groups
        over_places = nn.Conv2d(channels, channels, groups=parts, bias=False, **window)
    over_channels = nn.Conv2d(channels, conv.out_channels, 1, bias=conv.bias is not None)
    cheap = nn.Sequential(over_places, over_channels)
    he_normal(cheap)
    return cheap


@final
class Shift(nn.Module):
    """Each channel moved by one of the places of a k x k window; those that are left over stay where they are.

    Wu et al. 2017 (arXiv:1711.08141), section 3: as many channels for each place, zeros from beyond the edge. Where
    there are fewer channels than places, the paper moves none; here they take places evenly spread over the window.

    Args:
        like: the convolution whose window, stride, padding and dilation it has.
    """

    kernel: Tensor

    def __init__(self, like: nn.Conv2d) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation = like.stride, like.padding, like.dilation
        height, width = like.kernel_size
        places, channels = height * width, like.in_channels
        place_C = torch.arange(channels) // max(1, channels // places)
        place_C[place_C >= places] = places // 2
        if channels < places:
            place_C = torch.linspace(0, places - 1, channels).round().long()
        kernel = F.one_hot(place_C, places).float().view(channels, 1, height, width)
        # It follows from the shapes alone, so it is no part of the weights.
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W], with the convolution's stride."""
        channels = len(self.kernel)
        return F.conv2d(x, self.kernel, None, self.stride, self.padding, self.dilation, channels)
