"""Learning with weights of few levels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from spaces import BadInput
from trainables.contracts import Member, class_maps
from trainables.cost import WEIGHTED
from trainables.declare import Program, program
from trainables.regimes.common import pixels_of
from trainables.regimes.kit import Kit


def quantised(kit: Kit, bits: int, bucket: int, first_last: bool, norms: bool) -> Program:
    """A student of few bits a weight, taught while it is quantised (Polino et al. 2018, arXiv:1802.05668, algorithm 1).

    Every pass, forwards and backwards, is made with quantised weights (see `Grid`); the gradient by them is applied to
    the full-precision weights, which are quantised anew for the next step. Only quantised weights are deployed. The
    losses are those of the recipe; without a teacher, those of labels with weight 1.

    Args:
        bits: 1 to 8; the paper has 2, 4 and 8.
        bucket: weights that share a scale, in the order in which they lie; the paper has 256.
        first_last: whether the first layer and the head are quantised too. Where the official code spares them it
            spares the first and the last *parameter*, so the head's bias and not its weight.
        norms: whether biases and normalisations are quantised too, as in the official code. A bucket of a dozen values
            with two scales saves little and costs accuracy, so not by default.

    Raises:
        BadInput: nothing is left to be quantised.
    """
    plain = kit.network()
    names = chosen(plain, first_last, norms)
    if not names:
        raise BadInput("regime 'quantised': the student has no weights to quantise but in its first layer and head")
    student = kit.add("student", Quantised(plain, Grid(bits, bucket), names))
    terms = kit.terms() if kit.teachers else kit.alone()
    return program(student, terms, kit.epochs)


def chosen(member: Member, first_last: bool, norms: bool) -> list[str]:
    """Names of the network's parameters that are quantised."""
    layers = [name for name, module in member.net.named_modules() if isinstance(module, WEIGHTED)]
    spared = () if first_last else (layers[0], member.head)
    return [
        name
        for name, parameter in member.net.named_parameters()
        if (norms or parameter.ndim > 1) and name.rpartition(".")[0] not in spared
    ]


@final
@dataclass(frozen=True)
class Grid:
    """Uniform levels between the least and the greatest value of each bucket (section 2.1, linear scaling).

    A bucket is so many values in a row, the last one maybe fewer. N values, G buckets.

    Args:
        bits: there are 2 ** bits levels, both ends included.
        bucket: values in a bucket.
    """

    bits: int
    bucket: int

    def __call__(self, values: Tensor) -> Tensor:
        """Each value at its nearest level; the same shape."""
        return self.decode(*self.encode(values), values.shape)

    def encode(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Each value's level, uint8 [N], and each bucket's least value and extent [G, 2]."""
        flat_N = values.detach().flatten()
        missing = -len(flat_N) % self.bucket
        values_GV = torch.cat((flat_N, flat_N[-1:].expand(missing))).view(-1, self.bucket)
        low_G1 = values_GV.amin(1, keepdim=True)
        extent_G1 = values_GV.amax(1, keepdim=True) - low_G1
        share_GV = (values_GV - low_G1) / torch.where(extent_G1 > 0, extent_G1, 1)
        levels_GV = (share_GV * (2**self.bits - 1)).round().to(torch.uint8)
        return levels_GV.flatten()[: len(flat_N)], torch.cat((low_G1, extent_G1), 1)

    def decode(self, levels_N: Tensor, scales_G2: Tensor, shape: Sequence[int]) -> Tensor:
        """The values of these levels."""
        low_N, extent_N = scales_G2.repeat_interleave(self.bucket, 0)[: len(levels_N)].unbind(1)
        return (low_N + extent_N * (levels_N / (2**self.bits - 1))).view(shape)

    def pack(self, levels_N: Tensor) -> Tensor:
        """Levels as a row of bits, lowest first: uint8 [ceil(N bits / 8)]."""
        places = torch.arange(self.bits, device=levels_N.device)
        bits = ((levels_N[:, None] >> places) & 1).flatten()
        bytes_B8 = torch.cat((bits, bits.new_zeros(-len(bits) % 8))).view(-1, 8)
        return (bytes_B8 << torch.arange(8, device=levels_N.device)).sum(1).to(torch.uint8)

    def unpack(self, packed: Tensor, count: int) -> Tensor:
        """The levels that were packed, uint8 [N]; the inverse of `pack`."""
        bits = ((packed[:, None] >> torch.arange(8, device=packed.device)) & 1).flatten()[: count * self.bits]
        return (bits.view(-1, self.bits) << torch.arange(self.bits, device=packed.device)).sum(1).to(torch.uint8)


class _StraightThrough(torch.autograd.Function):
    """Quantised forwards; backwards the gradient passes as if nothing had happened."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, grid: Grid) -> Tensor:
        return grid(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


@final
class Quantised(Member):
    """A network that is run with quantised weights, while its own stay as they are and are trained.

    Args:
        member: the network; its weights become those of this one.
        grid: the levels.
        names: which of the network's parameters are quantised.
    """

    def __init__(self, member: Member, grid: Grid, names: Sequence[str]) -> None:
        super().__init__(member.net, member.taps, member.head, *pixels_of(member))
        self.grid, self.names = grid, tuple(names)

    def weights(self) -> dict[str, Tensor]:
        """The quantised weights by name; a gradient by them reaches the full-precision ones unchanged."""
        return {name: _StraightThrough.apply(self.net.get_parameter(name), self.grid) for name in self.names}

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Logits [B, K]."""
        logits: Tensor = functional_call(self.net, self.weights(), ((images_BCHW - self.mean) / self.std,))
        return logits

    def class_maps(self, features: Mapping[str, Tensor]) -> Tensor:
        """As of any member, with the head's weight as it is used."""
        maps = super().class_maps(features)
        weight = f"{self.head}.weight"
        return class_maps(features[self.taps[-1]], self.weights()[weight]) if weight in self.names else maps

    def deployed(self) -> dict[str, Tensor]:
        """The weights that are exported: at most 2 ** bits values in a bucket."""
        return self.net.state_dict() | {name: weight.detach() for name, weight in self.weights().items()}

    def packed(self) -> dict[str, Tensor]:
        """The deployed tensors as they are stored: `NAME:levels` and `NAME:scales`, all others as they are."""
        stored = {name: tensor for name, tensor in self.net.state_dict().items() if name not in self.names}
        for name in self.names:
            levels_N, stored[f"{name}:scales"] = self.grid.encode(self.net.get_parameter(name))
            stored[f"{name}:levels"] = self.grid.pack(levels_N)
        return stored

    def deployed_bytes(self) -> int:
        """Bytes of the packed tensors."""
        return sum(tensor.nbytes for tensor in self.packed().values())


def unpacked(stored: Mapping[str, Tensor], net: nn.Module, grid: Grid) -> dict[str, Tensor]:
    """The deployed tensors, bit for bit, of what `Quantised.packed` gave; `net` is one of the same shapes."""
    found = {}
    for name, own in net.state_dict().items():
        if name in stored:
            found[name] = stored[name]
        else:
            levels_N = grid.unpack(stored[f"{name}:levels"], own.numel())
            found[name] = grid.decode(levels_N, stored[f"{name}:scales"], own.shape)
    return found
