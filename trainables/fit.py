"""The one training loop: it runs what `trainables.declare` declares."""

import math
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spaces.seeding import derive_seed
from spaces.settings import Choice, Number, Setting, resolve
from trainables.contracts import EMBEDDING, Member, Outputs
from trainables.curriculum import Batch, Curriculum
from trainables.declare import SHARED, Made, Of, Phase, Program, Rows, Source, Term
from trainables.evaluate import Predictions, predict
from trainables.speed import Passes
from trainables.teacher_outputs import TeacherOutputs


class NonFiniteLoss(Exception):
    """The loss of an epoch was NaN or infinite; the trial has failed."""


SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda share: 0.5 * (1 + math.cos(math.pi * share)),
    "linear": lambda share: 1 - share,
    "constant": lambda share: 1.0,
}
"""The learning rate's decay: what its peak is multiplied by after a share of the epochs."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Stochastic gradient descent or AdamW, with a linear warm-up and a decay over all epochs.

    Args:
        name: `sgd` (Nesterov momentum) or `adamw`.
        learning_rate: at its peak.
        momentum: of SGD.
        weight_decay: of convolution and linear weights; biases and batch norm have none.
        warmup_epochs: epochs over which the rate rises from zero; may be a fraction.
        schedule: `cosine` or `linear` decay to zero, or `constant`.

    Raises:
        BadInput: a value that one of `SETTINGS` refuses.
    """

    SETTINGS: ClassVar[dict[str, Setting]] = {
        "name": Choice("sgd", ("sgd", "adamw")),
        "learning_rate": Number(0.1, low=0, above=True),
        "momentum": Number(0.9, low=0, high=0.999),
        "weight_decay": Number(5e-4, low=0),
        "warmup_epochs": Number(1.0, low=0),
        "schedule": Choice("cosine", tuple(SCHEDULES)),
    }

    name: str = SETTINGS["name"].default
    learning_rate: float = SETTINGS["learning_rate"].default
    momentum: float = SETTINGS["momentum"].default
    weight_decay: float = SETTINGS["weight_decay"].default
    warmup_epochs: float = SETTINGS["warmup_epochs"].default
    schedule: str = SETTINGS["schedule"].default

    def __post_init__(self) -> None:
        resolve("optimizer", vars(self), self.SETTINGS)


@dataclass(frozen=True)
class EpochReport:
    """What an epoch of training was: mean loss by term, their weighted sum (of the main optimiser), and seconds."""

    losses: Mapping[str, float] = field(default_factory=dict)
    objective: float = 0.0
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
    """Runs a program epoch by epoch; can be saved after each and goes on bit for bit the same (on a CPU).

    Args:
        program: members, phases, terms; see `trainables.declare`. Members are moved to the curriculum's device.
        curriculum: the images.
        teachers: the outputs of `teacher`, `teacher1`, ... over the same curriculum, where the program reads them.
        optimizer: of every phase.
        seed: of what is random within an epoch (dropout, views, noise).
        passes: how members compute.
    """

    def __init__(
        self,
        program: Program,
        curriculum: Curriculum,
        teachers: Mapping[str, TeacherOutputs],
        optimizer: OptimizerConfig,
        seed: int,
        passes: Passes | None = None,
    ) -> None:
        # A term of weight 0 costs nothing and changes nothing.
        live = (replace(phase, terms=tuple(t for t in phase.terms if t.weight != 0)) for phase in program.phases)
        self.program, self.curriculum, self.teachers = replace(program, phases=tuple(live)), curriculum, teachers
        self.config, self.seed, self.passes = optimizer, seed, passes or Passes()
        convolutional = (m for m in program.members.values() if any(isinstance(one, nn.Conv2d) for one in m.modules()))
        formats = {memory_format(member, curriculum.device) for member in convolutional}
        self.format = torch.channels_last if formats == {torch.channels_last} else torch.contiguous_format
        self.members = nn.ModuleDict(dict(program.members)).to(curriculum.device).to(memory_format=self.format)
        modules = [
            term.loss for phase in self.program.phases for term in phase.terms if isinstance(term.loss, nn.Module)
        ]
        self.losses = nn.ModuleList(dict.fromkeys(modules)).to(curriculum.device)
        self.tables: dict[str, Tensor] = {}
        self.epoch = 0  # the last one that was run
        self._run: PhaseRun | None = None

    @property
    def student(self) -> Member:
        """The network that the program is for."""
        member = self.members[self.program.deploys]
        assert isinstance(member, Member)
        return member

    @property
    def terms(self) -> tuple[Term, ...]:
        """Those of the current phase."""
        return self._run.phase.terms if self._run else self.program.phases[0].terms

    @property
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Those of the current phase; `main` is the last."""
        return (self._run or self._enter(self.program.phase_of(max(1, self.epoch))[0])).optimizers

    def run_epoch(self, epoch: int) -> EpochReport:
        """Train on one epoch (counted from 1).

        Raises:
            NonFiniteLoss: the mean loss of the epoch is NaN or infinite.
        """
        # All randomness of an epoch follows from its number, so no generator's state needs saving.
        torch.manual_seed(derive_seed(self.seed, "epoch", epoch))
        started = time.perf_counter()
        passes = sum(teacher.passes for teacher in self.teachers.values())
        phase, before = self.program.phase_of(epoch)
        if epoch == before + 1:
            self._begin(phase)
        run = self._enter(phase)
        for action in phase.each_epoch:
            action(self)
        run.set_modes()
        totals = torch.zeros(len(phase.terms) + 1, device=self.curriculum.device)
        targets = {name: self.teachers[name].epoch(epoch) for name in run.kept}
        teacher_seconds = 0.0
        for number, batch in enumerate(self.curriculum.batches(epoch)):
            asked = time.perf_counter()
            kept = {name: next(outputs) for name, outputs in targets.items()}
            teacher_seconds += time.perf_counter() - asked
            progress = (epoch - 1 - before) + number / len(self.curriculum)
            self._set_learning_rate(progress, run)
            images = batch.images.contiguous(memory_format=self.format)
            totals += run.step(Step(run, replace(batch, images=images), kept), progress)
        *means, objective = (totals / len(self.curriculum)).tolist()
        losses = {term.name: mean for term, mean in zip(phase.terms, means, strict=True)}
        if not all(map(math.isfinite, (*means, objective))):
            raise NonFiniteLoss(f"non-finite loss in epoch {epoch}: {losses}")
        self.epoch = epoch
        passes = sum(teacher.passes for teacher in self.teachers.values()) - passes
        return EpochReport(losses, objective, time.perf_counter() - started, teacher_seconds, passes)

    def predicted(self, member: str) -> Predictions:
        """What a member or a teacher says of the training images as they are, in the order of the split."""
        split = self.curriculum.split
        if member in self.teachers:
            return self.teachers[member].on("train", split)
        network = self.members[member]
        assert isinstance(network, Member)
        return predict(network, split, self.curriculum.device)

    def state_dict(self) -> dict[str, Any]:
        """Members, connectors, memories, tables and optimisers; with the epoch's number that is all there is."""
        return {
            "epoch": self.epoch,
            "members": self.members.state_dict(),
            "losses": self.losses.state_dict(),
            "tables": dict(self.tables),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "deployed": self.student.deployed(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; the optimiser's own settings win over the saved ones."""
        self.epoch = state["epoch"]
        self.members.load_state_dict(state["members"])
        self.losses.load_state_dict(state["losses"])
        self.tables = {name: table.to(self.curriculum.device) for name, table in state["tables"].items()}
        phase, _ = self.program.phase_of(self.epoch)
        for name, optimizer in self._enter(phase).optimizers.items():
            settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
            optimizer.load_state_dict(state["optimizers"][name])
            for group, own in zip(optimizer.param_groups, settings, strict=True):
                group.update(own)

    def _begin(self, phase: Phase) -> None:
        self._run = None
        for action in phase.begin:
            action(self)

    def _enter(self, phase: Phase) -> "PhaseRun":
        if self._run is None or self._run.phase is not phase:
            self._run = PhaseRun(self, phase)
        return self._run

    def _set_learning_rate(self, progress: float, run: "PhaseRun") -> None:
        """`progress` in epochs of the phase, from 0."""
        phase, warmup = run.phase, self.config.warmup_epochs
        scale = phase.learning_rate * SCHEDULES[self.config.schedule](min(1.0, progress / phase.epochs))
        if progress < warmup:
            # The first step already moves: half a step into the ramp.
            scale *= (progress + 0.5 / len(self.curriculum)) / warmup
        for optimizer in run.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = self.config.learning_rate * scale


class PhaseRun:
    """A phase as it runs: who is trained, by which optimiser, and what must be computed of whom."""

    def __init__(self, fit: Fit, phase: Phase) -> None:
        # Weakly: the fit holds this. In a circle, both would keep their memory until Python's collector comes by.
        self.fit: Fit = weakref.proxy(fit)
        self.phase = phase
        self._trained = [fit.members[name] for name in phase.trains]
        self._trained += [term.loss for term in phase.terms if isinstance(term.loss, nn.Module)]
        fit.members.requires_grad_(False)
        for module in self._trained:
            module.requires_grad_(True)
        self.groups = (*phase.others, "main")
        self.optimizers = self._optimizers()
        self._read()

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """One for each group; a parameter belongs to the first group that names it."""
        claimed: set[nn.Parameter] = set()
        optimizers = {}
        for group in self.groups:
            names = self.phase.trains if group == "main" else self.phase.others[group]
            modules = [self.fit.members[name] for name in names]
            modules += [t.loss for t in self.phase.terms if t.group == group and isinstance(t.loss, nn.Module)]
            found = dict.fromkeys(p for module in modules for p in module.parameters() if p not in claimed)
            claimed |= set(found)
            optimizers[group] = _optimizer(list(found), self.fit.config)
        return optimizers

    def _read(self) -> None:
        """Gather what the terms read: taps by member and view, whose gradients are wanted, whose outputs are kept."""
        self.taps: dict[tuple[str, str], dict[str, None]] = {}
        self.learns: set[tuple[str, str]] = set()
        self.made_to_learn = {_anyhow(made) for term in self.phase.terms for made in _made(term) if not made.stop}
        for read, views in (pair for term in self.phase.terms for pair in term.reads()):
            taps = (view.partition(":")[0] for view in views if view != "logits")
            self.taps.setdefault((read.member, read.view), {}).update(dict.fromkeys(taps))
            if not read.stop:
                self.learns.add((read.member, read.view))
        self.kept = [name for name in self.fit.teachers if (name, SHARED) in self.taps]

    def set_modes(self) -> None:
        """Training mode for whom the phase trains, evaluation mode for all others."""
        self.fit.members.eval()
        for module in self._trained:
            module.train()

    def step(self, step: "Step", progress: float) -> Tensor:
        """One update by each optimiser in turn; the value of each term and the main sum, still on the device."""
        values: dict[str, Tensor] = {}
        for group in self.groups:
            weighted = [(t, t.weight_at(progress)) for t in self.phase.terms if t.group == group]
            loss = torch.zeros((), device=step.batch(SHARED).images.device)
            for term, weight in weighted:
                if weight:
                    values[term.name] = step.value(term)
                    loss = loss + weight * values[term.name]
            optimizer = self.optimizers[group]
            optimizer.zero_grad(set_to_none=True)
            if loss.requires_grad:
                last = group == self.groups[-1]
                own = None if len(self.groups) == 1 else [p for g in optimizer.param_groups for p in g["params"]]
                loss.backward(inputs=own, retain_graph=not last)
                optimizer.step()
        nothing = torch.zeros_like(loss)
        return torch.stack([*(values.get(term.name, nothing) for term in self.phase.terms), loss]).detach()


class Step:
    """One batch: what everybody puts out for it, each computed once and only if a term asks for it."""

    def __init__(self, run: PhaseRun, batch: Batch, kept: Mapping[str, Outputs]) -> None:
        self._run = run
        run.fit.passes.begin_step()
        self._batches = {SHARED: batch}
        self._made: dict[Made, Outputs] = {}
        self._outputs = {(name, SHARED): replace(outputs, index=batch.index) for name, outputs in kept.items()}

    def batch(self, view: str) -> Batch:
        """The batch as a view has it."""
        if view not in self._batches:
            fit = self._run.fit
            self._batches[view] = fit.program.views[view](self._batches[SHARED], fit.curriculum)
        return self._batches[view]

    def value(self, term: Term) -> Tensor:
        """The loss of one term."""
        source = self.outputs(term.source)
        # Terms that need no teacher are handed the student: they do not look at it.
        target = self.outputs(term.target) if term.needs_teacher else source
        return term.loss(source, target, self.batch(term.source.view).labels)

    def outputs(self, source: Source) -> Outputs:
        """What a source of a term is for this batch."""
        match source:
            case Of():
                outputs = self._of(source.member, source.view)
            case Made():
                outputs = self._made_of(_anyhow(source))
            case Rows():
                batch = self.batch(source.view)
                return Outputs(self._run.fit.tables[source.table][batch.index], index=batch.index)
        return outputs.detached() if source.stop and outputs.logits.requires_grad else outputs

    def _made_of(self, source: Made) -> Outputs:
        if source not in self._made:
            inputs = [self.outputs(own) for own in source.inputs]
            with torch.set_grad_enabled(source in self._run.made_to_learn):
                self._made[source] = source.function(self.batch(source.view).labels, *inputs)
        return self._made[source]

    def _of(self, member: str, view: str) -> Outputs:
        if (member, view) not in self._outputs:
            fit, batch = self._run.fit, self.batch(view)
            network = fit.teachers[member].live() if member in fit.teachers else fit.members[member]
            learns = (member, view) in self._run.learns
            taps = list(self._run.taps[member, view])
            assert isinstance(network, Member)
            with torch.set_grad_enabled(learns):
                maps = tuple(tap for tap in taps if tap != EMBEDDING)
                outputs = fit.passes(network, batch.images, maps, EMBEDDING in taps)
            self._outputs[member, view] = replace(outputs, index=batch.index)
        return self._outputs[member, view]


def _made(term: Term) -> list[Made]:
    """What a term makes itself of members' outputs, at any depth."""
    found, left = [], [term.source, *([term.target] if term.needs_teacher else [])]
    while left:
        source = left.pop()
        if isinstance(source, Made):
            found.append(source)
            # What is made for something that is stopped does not learn through it.
            left += [replace(own, stop=True) if source.stop and isinstance(own, Made) else own for own in source.inputs]
    return found


def _anyhow(made: Made) -> Made:
    """The same with its gradient: what is stopped for one term may learn for another, and is made once for both."""
    return replace(made, stop=False)


def _optimizer(parameters: Sequence[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    optimizer = torch.optim.SGD(
        groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.momentum > 0, fused=True
    )
    if config.momentum > 0:
        # Where a term's weight rises from 0, some weights have their first gradient after others. The fused step cannot
        # bear that some have a momentum and others none; from zeros it begins with the gradient all the same.
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
