"""Branches on a shared trunk that are taught by what they say together."""

from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn

from trainables.contracts import Outputs, pooled
from trainables.declare import STUDENT, Made, Phase, Program, Source
from trainables.regimes.common import numbered, student_maps
from trainables.regimes.cut import Tail
from trainables.regimes.kit import Kit


def one(kit: Kit, branches: int, own: int) -> Program:
    """On-the-fly native ensemble: branches on one trunk learn from their gated sum (arXiv:1806.04606).

    Lan, Zhu, Gong 2018, section 3. The student is the first branch; the others are tails of their own initialisation
    on its trunk. Each branch minimises the losses of labels and those against the ensemble's logits, which are constant
    for it; the ensemble minimises those of labels (weight 1), which is what the gate learns from. The other branches
    and the gate are dropped in the end.

    The official code takes KL per image at temperature 3, as the losses here do, and raises its weight over 80 epochs,
    which the paper does not say; a schedule of `kd.weight` does the same. The gate has batch norm over images, so that
    a batch must have two at least.

    Args:
        branches: with the student; the paper has 3.
        own: how many of the network's stages (feature maps) each branch has for itself; the paper takes the last.

    Raises:
        BadInput: losses that look at more than logits or not at labels, a network with too few stages or one that
            cannot be cut there.
    """
    kit.only_logits("one")
    student, maps = kit.network(), student_maps(kit, f"regime 'one' with own: {own}", own + 1)
    tap = list(maps)[-1 - own]
    tails = {name: Branch(Tail(kit.network(name), tap, kit.task), tap) for name in numbered("branch", branches - 1)}
    kit.seeded("gate")
    gate = Gate(tap, maps[tap][0], branches)
    sources: dict[str, Source] = {"": STUDENT}
    sources |= {name: Made(tail, (STUDENT,), taps=(tap,)) for name, tail in tails.items()}
    ensemble = Made(gate, tuple(sources.values()), taps=(tap,))
    terms = kit.alone(ensemble, "ensemble")
    for name, source in sources.items():
        terms += kit.terms(source, [replace(ensemble, stop=True)], name)
    members = {"student": student, **tails, "gate": gate}
    return Program(members, (Phase("branches", kit.epochs, tuple(terms), trains=tuple(members)),))


@final
class Branch(nn.Module):
    """A network's tail on the trunk of another: the function of a `Made` of that other's outputs.

    Args:
        tail: from the map [B, C, H, W] at `tap` to logits [B, K].
        tap: where the trunk ends.
    """

    def __init__(self, tail: Tail, tap: str) -> None:
        super().__init__()
        self.tail, self.tap = tail, tap

    def forward(self, labels: Tensor, trunk: Outputs) -> Outputs:
        """Logits alone; the labels are unused."""
        return Outputs(self.tail(trunk.features[self.tap]), index=trunk.index)


@final
class Gate(nn.Module):
    """How much each branch counts for each image, seen from where the trunk ends (arXiv:1806.04606).

    Args:
        tap: where the trunk ends.
        channels: of the map there.
        branches: how many.
    """

    def __init__(self, tap: str, channels: int, branches: int) -> None:
        super().__init__()
        self.tap = tap
        self.score = nn.Sequential(nn.Linear(channels, branches), nn.BatchNorm1d(branches), nn.ReLU())

    def shares(self, map_BCHW: Tensor) -> Tensor:
        """[B, M] for M branches; each row sums to 1."""
        shares_BM: Tensor = self.score(pooled(map_BCHW)).softmax(1)
        return shares_BM

    def forward(self, labels: Tensor, trunk: Outputs, *others: Outputs) -> Outputs:
        """The gated sum of the branches' logits, of which the trunk's own network is the first."""
        logits_BMK = torch.stack([branch.logits for branch in (trunk, *others)], 1)
        shares_BM = self.shares(trunk.features[self.tap])
        return Outputs(torch.einsum("bm,bmk->bk", shares_BM, logits_BMK), index=trunk.index)
