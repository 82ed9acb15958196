"""What scores have in common: leaving a network as it was, and one forward pass of the student with what follows it.

Scores that are computed together share the pass: `compute` says what all of them need, and each part of it is computed
at most once. Shape suffixes: B images, C channels, D pixels of an image, or whatever one image has at a layer.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cached_property, partial
from hashlib import sha256
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase

from trainables.contracts import Member, NotComputable, Probe
from trainables.cost import WEIGHTED
from trainables.scores.twice import TwiceDifferentiable

Need = Literal["gradients", "saliency", "curvature", "jacobian", "relus"]
Gradients = list[tuple[Tensor, Tensor]]
"""The weight and the loss's gradient with respect to it, for each layer."""

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)
BACKWARD: frozenset[Need] = frozenset({"gradients", "saliency", "curvature", "jacobian"})


class StudentPass:
    """One forward pass of the student over the probe's batch, in the mode that it is in, and what follows from it.

    Args:
        needs: what will be asked for.
    """

    def __init__(self, probe: Probe, needs: frozenset[Need]) -> None:
        self.weights = weights(probe.student)
        self.agreements: list[Tensor] = []  # [B, B] of each ReLU; see `agreement`
        self._saliencies = _Saliencies()
        self._images = probe.images.detach().clone().requires_grad_("jacobian" in needs)
        self._twice = TwiceDifferentiable(self.weights) if "curvature" in needs else None
        self._labels = probe.labels
        with ExitStack() as within:
            within.enter_context(untouched(probe.student))
            within.enter_context(torch.set_grad_enabled(bool(needs & BACKWARD)))
            if "relus" in needs:
                self._hook(within, probe.student, (nn.ReLU, nn.ReLU6), self._keep_agreement, before=True)
            if "saliency" in needs:
                self._hook(within, probe.student, WEIGHTED, self._saliencies.watch, before=False)
            if needs & {"saliency", "curvature"}:
                within.enter_context(not_in_place(probe.student))
            within.enter_context(self._twice.recording() if self._twice else nullcontext())
            self._logits = probe.student(self._images)

    @cached_property
    def gradients(self) -> Gradients:
        """Weights of convolutions and linear layers, each with its gradient of the batch's cross-entropy.

        The gradient is zero where no path leads from a weight to the loss. `.grad` is neither read nor written.

        Raises:
            NotComputable: no weight has a path to the loss.
        """
        pairs = zip(self.weights, self._first_backward, strict=True)
        return [(weight.detach(), gradient.detach()) for weight, gradient in pairs]

    @property
    def saliencies(self) -> list[Tensor]:
        """For each call of a convolution or linear layer, the sum over pixels of a * dL/da at its output: [B, C].

        Raises:
            NotComputable: as `gradients`.
        """
        assert self._first_backward  # which fills the list
        return self._saliencies.found

    @cached_property
    def curvature(self) -> float:
        """W^T H g over all weights: g the gradient of the loss L, H its matrix of second derivatives.

        Raises:
            NotComputable: as `gradients`.
        """
        assert self._twice is not None
        return self._twice.along_weights(self._first_backward)

    @cached_property
    def jacobian(self) -> Tensor:
        """Gradient of the sum of each image's logits with respect to its pixels: [B, D].

        Raises:
            NotComputable: no path leads from the images to the logits.
        """
        if not self._logits.requires_grad:
            raise NotComputable("no path leads from the images to the logits")
        with self._twice.only_inputs() if self._twice else nullcontext():
            [gradient] = torch.autograd.grad(
                self._logits.sum(), self._images, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        return gradient.flatten(1)

    @cached_property
    def _first_backward(self) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            loss = F.cross_entropy(self._logits, self._labels)
        if not self.weights or not self._logits.requires_grad:
            raise NotComputable("no weight has a path to the loss")
        with self._saliencies.watching():
            return torch.autograd.grad(
                loss,
                self.weights,
                retain_graph=True,
                create_graph=self._twice is not None,
                allow_unused=True,
                materialize_grads=True,
            )

    @staticmethod
    def _hook(within: ExitStack, member: Member, kinds: tuple[type, ...], hook: object, before: bool) -> None:
        for module in member.modules():
            if isinstance(module, kinds):
                register = module.register_forward_pre_hook if before else module.register_forward_hook
                within.callback(register(hook).remove)  # type: ignore[arg-type]

    def _keep_agreement(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        # Before the module runs: a ReLU in place overwrites its input.
        if len(args[0]) == len(self._images):
            self.agreements.append(agreement(args[0].detach()))


class _Saliencies:
    """Collects a * dL/da at the outputs of layers while the loss is differentiated.

    Apart from `StudentPass`, since the graph refers to it: what refers to the graph as well would never be freed.
    """

    def __init__(self) -> None:
        self.found: list[Tensor] = []
        self._watching = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        self._watching = True
        try:
            yield
        finally:
            self._watching = False

    def watch(self, module: nn.Module, args: object, output: Tensor) -> None:
        """A forward hook of a layer."""
        if output.requires_grad:
            channel = 1 if isinstance(module, WEIGHTED[0]) else -1
            output.register_hook(partial(self._keep, output.detach(), output._version, channel))

    def _keep(self, activation: Tensor, version: int, channel: int, gradient: Tensor) -> None:
        if not self._watching:
            return
        if activation._version != version:
            raise NotComputable("an activation that is needed is overwritten in place")
        product = (activation * gradient.detach()).movedim(channel, 1)
        self.found.append(product.flatten(2).sum(2) if product.dim() > 2 else product)


_shared: ContextVar["_Shared | None"] = ContextVar("_shared", default=None)


class _Shared:
    def __init__(self, needs: frozenset[Need]) -> None:
        self.needs = needs
        self.made: StudentPass | None = None


@contextmanager
def one_pass(needs: frozenset[Need]) -> Iterator[None]:
    """Within it, all scores share one pass of the student. One probe only: nothing else may be scored inside."""
    token = _shared.set(_Shared(needs))
    try:
        yield
    finally:
        _shared.reset(token)


def student_pass(probe: Probe, need: Need) -> StudentPass:
    """The pass that scores share, or one of its own for a score that is computed alone."""
    shared = _shared.get()
    if shared is None:
        return StudentPass(probe, frozenset({need}))
    assert need in shared.needs, f"{need} was not announced"
    if shared.made is None:
        shared.made = StudentPass(probe, shared.needs)
    return shared.made


@contextmanager
def untouched(*members: Member) -> Iterator[None]:
    """Within it, networks may run in any mode; afterwards buffers, modes and torch's random state are as before.

    Random layers (dropout) draw from generators seeded with 0, so that a score is a function of its probe alone.
    """
    modules = [module for member in members for module in member.modules()]
    modes = [(module, module.training) for module in modules]
    buffers = [(module, name, buffer) for module in modules for name, buffer in module._buffers.items()]
    # The network writes to copies. Writing back what was there would spoil a graph that is still to be differentiated.
    copies = {id(buffer): buffer.clone() for _, _, buffer in buffers if buffer is not None}
    cuda = sorted({copy.device.index for copy in copies.values() if copy.is_cuda})
    with torch.random.fork_rng(devices=cuda):
        torch.random.default_generator.manual_seed(0)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(0)
        for module, name, buffer in buffers:
            module._buffers[name] = None if buffer is None else copies[id(buffer)]
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for module, name, buffer in buffers:
                module._buffers[name] = buffer


@contextmanager
def not_in_place(member: Member) -> Iterator[None]:
    """Within it, modules that work in place (`nn.ReLU(inplace=True)`) do not: what they overwrite is still needed."""
    changed: list[Any] = [module for module in member.modules() if getattr(module, "inplace", False) is True]
    for module in changed:
        module.inplace = False
    try:
        yield
    finally:
        for module in changed:
            module.inplace = True


@contextmanager
def normal_weights(member: Member) -> Iterator[None]:
    """Within it, weights of convolutions and linear layers are from N(0, 1), of norms 1, biases 0; then as before.

    The draw is seeded by the network's given weights: the same candidate gets the same one, and another seed of its
    initialisation another.
    """
    layers = [module for module in member.modules() if isinstance(module, WEIGHTED)]
    norms = [module for module in member.modules() if isinstance(module, NORMS)]
    changed = [parameter for layer in (*layers, *norms) for parameter in layer.parameters(recurse=False)]
    given = [(parameter, parameter.detach().clone()) for parameter in changed]
    generator = torch.Generator().manual_seed(_seed(given[0][0] if given else torch.zeros(0)))
    try:
        with torch.no_grad():
            for layer in layers:
                # Drawn on the CPU, so that every device sees the same weights.
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
                if layer.bias is not None:
                    layer.bias.zero_()
            for norm in norms:  # some networks begin with weights of 0, so that a block adds nothing
                for name, parameter in norm.named_parameters(recurse=False):
                    parameter.fill_(float(name == "weight"))
        yield
    finally:
        with torch.no_grad():
            for parameter, before in given:
                parameter.copy_(before)


def weights(net: nn.Module) -> list[nn.Parameter]:
    """The weights of convolutions and linear layers, in the order of the modules; tied ones once, frozen ones not."""
    found = {id(m.weight): m.weight for m in net.modules() if isinstance(m, WEIGHTED)}
    return [weight for weight in found.values() if isinstance(weight, nn.Parameter) and weight.requires_grad]


def agreement(inputs: Tensor) -> Tensor:
    """Number of units on which two images agree, x x^T + (1-x) (1-x)^T with x = (inputs > 0): [B, ...] to [B, B]."""
    on_BD = (inputs > 0).flatten(1).float()
    # One product for both: (1-x) (1-y)^T = D - |x| - |y| + x y^T. Counts are exact in float32 up to 16.7 million units.
    both_BB = (on_BD @ on_BD.T).double()
    on_B = both_BB.diagonal()
    return on_BD.shape[1] - on_B[:, None] - on_B + 2 * both_BB


def total(parts: list[Tensor]) -> float:
    """Sum of scalars, in float64 and with one transfer from the device."""
    return float(torch.stack([part.double() for part in parts]).sum())


def _seed(weight: Tensor) -> int:
    """A seed from the bits of the first layer's weight, which differ by the seed that initialised it."""
    return int.from_bytes(sha256(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).digest()[:7])
