"""Classifiers at several depths of one network; the shallow ones are taught by the deepest, which is the student."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import final

import torch
from torch import Tensor, nn

from spaces import BadInput
from spaces.initialise import he_normal
from trainables.contracts import Loss, Outputs, pooled
from trainables.declare import STUDENT, Made, Of, Phase, Program, Term
from trainables.losses import LOSSES
from trainables.losses.settings import read
from trainables.losses.shapes import Shapes
from trainables.regimes.common import student_maps
from trainables.regimes.kit import Kit

DEEPEST = Of("student", stop=True)


def be_your_own_teacher(kit: Kit, hint: float) -> Program:
    """Exits at the shallow taps are taught by the deepest, through logits and features (arXiv:1905.08094).

    Zhang et al. 2019, section 3: each shallow exit minimises (1 - alpha) CE + alpha KL + lambda ||F - F_deepest||^2,
    the deepest CE alone. What the exits learn reaches the student through the layers that they share with it, and they
    are dropped in the end. alpha is in the recipe's losses; the deepest minimises those of labels with weight 1.

    The settings are those of the authors' later code (alpha 0.3, lambda 0.03, temperature 3), which takes KL without
    T^2: its 0.3 is the 0.3 / 9 here. It takes a norm over the whole batch, not its square; features are pooled first
    there too.

    Args:
        hint: lambda, of the squared distance between pooled last maps, summed over channels, averaged over images.

    Raises:
        BadInput: a student with fewer than two taps, losses that do not look at labels, or at other maps than the last.
    """
    exits = _exits(kit, "be_your_own_teacher")
    last = list(kit.shapes("student").maps)[-1]
    terms = kit.alone()
    for name, shallow in exits.items():
        own = shallow.source
        terms += _seen("be_your_own_teacher", kit.terms(own, [DEEPEST], name), last)
        terms.append(Term(f"{name}.hint", hint, partial(distance, tap=last), (last,), (last,), own, DEEPEST))
    members = {"student": kit.network(), **exits}
    return Program(members, (Phase("exits", kit.epochs, tuple(terms), trains=tuple(members)),))


def multi_exit(kit: Kit, growth: float, confidence: float) -> Program:
    """Exits at the shallow taps are taught by the last, at a temperature that grows as it becomes sure (ICCV 2019).

    Phuong, Lampert 2019, "Distillation-based training for multi-exit architectures", section 3: all exits minimise the
    losses of labels, and all but the last those against the last one's logits. Its probabilities are softened just so
    much that they stay informative: `Warmed`. A loss's temperature is what it starts with.

    Labels and teacher have equal weights by default, as in the official code, which halves both and multiplies
    everything by 10 / (number of exits); the last exit, which nobody teaches, has weight 1. That code keeps the
    temperature in an attribute that no snapshot of it has, so that its resumed runs start again at 1.

    Args:
        growth: what the temperature is multiplied by after a batch for which the last exit was sure.
        confidence: it is sure where its highest probability at that temperature is above this, in the batch's mean.

    Raises:
        BadInput: a student with fewer than two taps, losses that do not look at labels, or at more than logits, or for
            which a temperature means nothing.
    """
    kit.only_logits("multi_exit")
    starts = _temperatures(kit)
    exits = _exits(kit, "multi_exit")
    terms = kit.alone()
    for name, shallow in exits.items():
        for term in kit.terms(shallow.source, [DEEPEST], name):
            if term.needs_teacher:
                # One for each exit and loss: all exits see the same last one, so those of a loss stay equal.
                start = starts[term.name.removeprefix(f"{name}.")]
                term = replace(term, loss=Warmed(term.loss, start, growth, confidence))
            terms.append(term)
    members = {"student": kit.network(), **exits}
    return Program(members, (Phase("exits", kit.epochs, tuple(terms), trains=tuple(members)),))


@final
class Exit(nn.Module):
    """A bottleneck and a classifier at a shallow tap: the function of a `Made` of the network's outputs.

    The bottleneck (1 x 1, 3 x 3 and 1 x 1 convolutions through a quarter of the channels) gives a map of the last tap's
    size, so that both can be compared; the classifier is a linear layer over its mean.

    Args:
        tap: where it is.
        shapes: of the network.
    """

    def __init__(self, tap: str, shapes: Shapes) -> None:
        super().__init__()
        self.tap, self.last = tap, list(shapes.maps)[-1]
        channels, height, width = shapes.maps[self.last]
        narrow = max(1, channels // 4)
        self.bottleneck = nn.Sequential(
            _layer(shapes.maps[tap][0], narrow, 1), nn.AdaptiveAvgPool2d((height, width)), _layer(narrow, narrow, 3),
            _layer(narrow, channels, 1),
        )  # fmt: skip
        self.fc = nn.Linear(channels, shapes.classes)
        he_normal(self)

    @property
    def source(self) -> Made:
        """What it makes of the student."""
        return Made(self, (STUDENT,), taps=(self.tap,))

    def forward(self, labels: Tensor, trunk: Outputs) -> Outputs:
        """Logits [B, K], and its map under the name of the network's last tap; the labels are unused."""
        map_BCHW = self.bottleneck(trunk.features[self.tap])
        return Outputs(self.fc(pooled(map_BCHW)), {self.last: map_BCHW}, index=trunk.index)


@final
class Warmed(nn.Module):
    """A loss of logits at a temperature that starts where the loss has it and never falls (arXiv:1503.02531).

    After each batch of training for which the mean over images of the teacher's highest probability, at the temperature
    that the batch had, is above `confidence`, it is multiplied by `growth`. It is a buffer, and so in the checkpoint.

    Args:
        loss: divides logits by a temperature and multiplies by its square itself, where it does.
        start: that temperature.
        growth: above or equal to 1.
        confidence: a probability.
    """

    temperature: Tensor

    def __init__(self, loss: Loss, start: float, growth: float, confidence: float) -> None:
        super().__init__()
        self.loss, self.start, self.growth, self.confidence = loss, start, growth, confidence
        self.register_buffer("temperature", torch.tensor(float(start)))

    def forward(self, student: Outputs, teacher: Outputs, labels: Tensor) -> Tensor:
        """A scalar."""
        times = self.temperature / self.start  # what the loss does not divide by itself
        softer, target = (replace(own, logits=own.logits / times) for own in (student, teacher))
        if self.training:
            sure = (teacher.logits / self.temperature).softmax(1).amax(1).mean() > self.confidence
            self.temperature *= torch.where(sure, self.growth, 1.0)
        return times**2 * self.loss(softer, target, labels)


SCALE_FREE = ("logit_std",)
"""Losses of logits to which the logits' size, and so a temperature that they are divided by, is nothing."""


def _temperatures(kit: Kit) -> dict[str, float]:
    """By loss of logits the temperature that it starts with.

    Raises:
        BadInput: it is one of `SCALE_FREE`.
    """
    of_logits = [name for name, row in LOSSES.items() if row.compares == "logits"]
    given = {name: loss for name, loss in read(kit.losses, LOSSES).items() if name in of_logits and loss.counts}
    for name in given:
        if name in SCALE_FREE:
            fitting = ", ".join(other for other in of_logits if other not in SCALE_FREE)
            raise BadInput(f"regime 'multi_exit': the size of logits is nothing to loss {name!r}; others: {fitting}")
    return {name: loss.settings["temperature"] for name, loss in given.items()}


def distance(student: Outputs, teacher: Outputs, labels: Tensor, *, tap: str) -> Tensor:
    """Squared distance between pooled maps [B, C] of one size, averaged over images; a scalar. `labels` is unused."""
    own_BC, other_BC = (pooled(outputs.features[tap]) for outputs in (student, teacher))
    return (own_BC - other_BC.detach()).square().sum(1).mean()


def _exits(kit: Kit, regime: str) -> dict[str, Exit]:
    """One at each tap of the student but the last, shallow to deep."""
    taps, shapes = list(student_maps(kit, f"regime {regime!r}", 2)), kit.shapes("student")
    exits = {}
    for number, tap in enumerate(taps[:-1], 1):
        kit.seeded(f"exit{number}")
        exits[f"exit{number}"] = Exit(tap, shapes)
    return exits


def _layer(inputs: int, outputs: int, kernel: int) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def _seen(regime: str, terms: Iterable[Term], last: str) -> list[Term]:
    """The terms, none of which looks at another map of an exit than the one that it has."""
    found = list(terms)
    for term in found:
        if set(term.student_taps) - {last}:
            loss = term.name.rpartition(".")[2]
            advice = f", or give its pairs as [[{last}, {last}]]" if LOSSES[loss].pairing else ""
            raise BadInput(
                f"regime {regime!r}: an exit has a map at {last!r} alone, and loss {loss!r} looks at "
                f"{', '.join(term.student_taps)}; compare logits{advice}"
            )
    return found
