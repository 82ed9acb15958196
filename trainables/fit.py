"""The one training loop: a student, a curriculum, weighted terms, and maybe a teacher's outputs."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spaces.errors import BadInput, unknown
from spaces.seeding import derive_seed
from trainables.contracts import Member, Outputs
from trainables.curriculum import Curriculum
from trainables.losses import Term
from trainables.teacher_outputs import TeacherOutputs


class NonFiniteLoss(Exception):
    """The loss of an epoch was NaN or infinite; the trial has failed."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Stochastic gradient descent or AdamW, with a linear warm-up and a cosine decay to zero over all epochs.

    Args:
        name: `sgd` (Nesterov momentum) or `adamw`.
        learning_rate: at its peak.
        momentum: of SGD.
        weight_decay: of convolution and linear weights; biases and batch norm have none.
        warmup_epochs: epochs over which the rate rises from zero; may be a fraction.
    """

    name: str = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in ("sgd", "adamw"):
            raise unknown("optimizer", self.name, ("sgd", "adamw"))
        if not self.learning_rate > 0:
            raise BadInput(f"optimizer: learning_rate must be above 0, not {self.learning_rate}")


@dataclass(frozen=True)
class EpochReport:
    """What an epoch of training was: mean loss by term and seconds by purpose."""

    losses: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    teacher_seconds: float = 0.0
    teacher_passes: int = 0


def memory_format(net: nn.Module, device: torch.device) -> torch.memory_format:
    """channels_last where it is faster and safe.

    On a CPU, torch corrupts its heap when networks with convolutions of 4 to 6 channels are trained in channels_last
    (seen in 2.13 and 2.15): there, every convolution but the stem's input must have at least 8 channels.
    """
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    narrowest = min(
        [conv.out_channels for conv in convolutions] + [conv.in_channels for conv in convolutions[1:]], default=0
    )
    return torch.channels_last if device.type != "cpu" or narrowest >= 8 else torch.contiguous_format


class Fit:
    """Trains one student epoch by epoch; can be saved after each and goes on bit for bit the same (on a CPU).

    Args:
        student: on the device.
        curriculum: the images.
        terms: what is minimised, by weight.
        teacher: its outputs over the same curriculum; None where no term needs it.
        epochs: the length of the schedule.
        seed: of what is random within a network (dropout, stochastic depth).
    """

    def __init__(
        self,
        student: Member,
        curriculum: Curriculum,
        terms: Sequence[Term],
        teacher: TeacherOutputs | None,
        optimizer: OptimizerConfig,
        epochs: int,
        seed: int,
    ) -> None:
        self.curriculum, self.teacher, self.config = curriculum, teacher, optimizer
        self.epochs, self.seed = epochs, seed
        self.format = memory_format(student.net, curriculum.device)
        self.student = student.to(curriculum.device).to(memory_format=self.format)
        # A term of weight 0 costs nothing and changes nothing.
        self.terms = [term for term in terms if term.weight != 0]
        modules = [term.loss for term in self.terms if isinstance(term.loss, nn.Module)]
        self.connectors = nn.ModuleList(modules).to(curriculum.device)
        self.taps = sorted({tap for term in self.terms for tap in term.student_taps})
        self.optimizer = _optimizer([self.student, self.connectors], optimizer)

    def run_epoch(self, epoch: int) -> EpochReport:
        """Train on one epoch (counted from 1).

        Raises:
            NonFiniteLoss: the mean loss of the epoch is NaN or infinite.
        """
        # All randomness of an epoch follows from its number, so no generator's state needs saving.
        torch.manual_seed(derive_seed(self.seed, "epoch", epoch))
        started = time.perf_counter()
        passes = self.teacher.passes if self.teacher else 0
        self.student.train()
        totals = torch.zeros(len(self.terms), device=self.curriculum.device)
        targets = self.teacher.epoch(epoch) if self.teacher else None
        teacher_seconds = 0.0
        for step, batch in enumerate(self.curriculum.batches(epoch)):
            target = None
            if targets is not None:
                asked = time.perf_counter()
                target = next(targets)
                teacher_seconds += time.perf_counter() - asked
            self._set_learning_rate((epoch - 1) + step / len(self.curriculum))
            images = batch.images.contiguous(memory_format=self.format)
            totals += self._step(images, batch.labels, target)
        means = (totals / len(self.curriculum)).tolist()
        losses = {term.name: mean for term, mean in zip(self.terms, means, strict=True)}
        if not all(map(math.isfinite, means)):
            raise NonFiniteLoss(f"non-finite loss in epoch {epoch}: {losses}")
        passes = self.teacher.passes - passes if self.teacher else 0
        return EpochReport(losses, time.perf_counter() - started, teacher_seconds, passes)

    def state_dict(self) -> dict[str, Any]:
        """Weights, buffers, connectors and optimiser; with the epoch's number that is all there is."""
        return {
            "student": self.student.state_dict(),
            "connectors": self.connectors.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; the optimiser's own settings win over the saved ones."""
        self.student.load_state_dict(state["student"])
        self.connectors.load_state_dict(state["connectors"])
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)

    def _step(self, images: Tensor, labels: Tensor, target: Outputs | None) -> Tensor:
        """One update; the value of each term, still on the device."""
        outputs = self.student.outputs(images, self.taps)
        # Terms that need no teacher are handed the student: they do not look at it.
        values = [term.loss(outputs, target or outputs, labels) for term in self.terms]
        loss = sum((term.weight * value for term, value in zip(self.terms, values, strict=True)), torch.zeros(()))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return torch.stack([value.detach() for value in values])

    def _set_learning_rate(self, progress: float) -> None:
        """`progress` in epochs, from 0."""
        warmup = self.config.warmup_epochs
        scale = 0.5 * (1 + math.cos(math.pi * min(1.0, progress / self.epochs)))
        if progress < warmup:
            # The first step already moves: half a step into the ramp.
            scale *= (progress + 0.5 / len(self.curriculum)) / warmup
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * scale


def _optimizer(modules: Sequence[nn.Module], config: OptimizerConfig) -> torch.optim.Optimizer:
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    return torch.optim.SGD(
        groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.momentum > 0, fused=True
    )
