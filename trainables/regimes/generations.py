"""A network that is taught by what it was before: by snapshots of itself, or by its own earlier generations."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from spaces import BadInput
from trainables.contracts import Member
from trainables.declare import TEACHER, Action, Of, Phase, Program, Source
from trainables.fit import Fit
from trainables.regimes import actions
from trainables.regimes.common import numbered, pixels_of
from trainables.regimes.kit import Kit


def snapshot(kit: Kit, cycles: int) -> Program:
    """Snapshot distillation: each cycle is taught by the network that the cycle before ended with (arXiv:1812.00123).

    Yang, Xie, Su, Yuille 2018. The learning rate has its warm-up and decay within each cycle, so that teacher and
    student differ enough; the first cycle learns from labels alone, with weight 1. A weight that is scheduled runs anew
    in each cycle. The loss's temperature smooths the teacher's signal; the losses' weights by default are ours, not the
    paper's.

    Args:
        cycles: of equal length.

    Raises:
        BadInput: fewer epochs than cycles, or losses that do not look at labels.
    """
    members = {name: kit.network(name) for name in ("student", "snapshot")}
    first, *others = kit.shares(*[1.0] * cycles)
    phases = [Phase("cycle 1", first, tuple(kit.alone(epochs=first)))]
    for number, epochs in enumerate(others, 2):
        terms = kit.terms(targets=[Of("snapshot", stop=True)], epochs=epochs)
        keep = actions.copy("student", to="snapshot")
        phases.append(Phase(f"cycle {number}", epochs, tuple(terms), begin=(keep,)))
    return Program(members, tuple(phases))


def born_again(kit: Kit, generations: int, taught_first: bool | None, ensemble: bool) -> Program:
    """Born-again networks: generations of one architecture, each taught by the one before alone (arXiv:1805.04770).

    Furlanello et al. 2018: each generation starts from a new initialisation and minimises CE with the labels and
    with the probabilities of the generation before, at temperature 1. A weight that is scheduled runs anew in each
    generation. The student is always the youngest.

    Args:
        generations: of equal length.
        taught_first: whether the first learns from the recipe's teacher, as it does by default where there is one. The
            paper's first learns from labels alone, here with weight 1.
        ensemble: evaluate and export the mean of all generations' probabilities, which costs as many times
            what the student costs, and not the student.

    Raises:
        BadInput: fewer epochs than generations, no teacher for `taught_first`, or nothing that the first learns from.
    """
    taught = bool(kit.teachers) if taught_first is None else taught_first
    if taught and not kit.teachers:
        raise BadInput("regime 'born_again': taught_first needs a teacher, and the recipe has none")
    if not taught:
        kit.needs_labels("born_again")
    elders = numbered("generation", generations - 1)
    members: dict[str, Member] = {name: kit.network(name) for name in ("student", *elders)}
    teachers: list[Source | None] = [TEACHER if taught else None, *(Of(name, stop=True) for name in elders)]
    phases = []
    for number, epochs in enumerate(kit.shares(*[1.0] * generations)):
        teacher = teachers[number]
        terms = kit.terms(targets=[teacher], epochs=epochs) if teacher else kit.alone(epochs=epochs)
        begin = [swap("student", elders[number - 1])] if number else []
        begin += [count(number - 1)] if number and ensemble else []
        phases.append(Phase(f"generation {number + 1}", epochs, tuple(terms), begin=tuple(begin)))
    if ensemble:
        members["ensemble"] = _together([members[name] for name in (*elders, "student")])
    return Program(members, tuple(phases), deploys="ensemble" if ensemble else "student")


def swap(one: str, other: str) -> Action:
    """Give two members of one architecture each other's weights and buffers."""

    def action(fit: Fit) -> None:
        first, second = fit.members[one], fit.members[other]
        kept = {name: tensor.clone() for name, tensor in first.state_dict().items()}
        first.load_state_dict(second.state_dict())
        second.load_state_dict(kept)

    return action


def count(elder: int) -> Action:
    """From now on a generation counts in the ensemble."""

    def action(fit: Fit) -> None:
        mean = fit.student.net
        assert isinstance(mean, Mean)
        mean.counts[elder] = 1

    return action


@final
class Mean(nn.Module):
    """The mean of networks' class probabilities, as logits [B, K]: of the last, and of those that count yet."""

    counts: Tensor

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)
        self.register_buffer("counts", torch.tensor([0.0] * (len(nets) - 1) + [1.0]))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Log-probabilities [B, K] of normalised images."""
        log_GBK = torch.stack([net(images_BCHW).log_softmax(1) for net in self.nets])
        return (log_GBK + self.counts.log()[:, None, None]).logsumexp(0) - self.counts.sum().log()


def _together(members: Sequence[Member]) -> Member:
    """Networks as one, whose taps and head are those of the last."""
    last = members[-1]
    prefix = f"nets.{len(members) - 1}"
    taps = [f"{prefix}.{tap}" for tap in last.taps]
    return Member(Mean([member.net for member in members]), taps, f"{prefix}.{last.head}", *pixels_of(last))
