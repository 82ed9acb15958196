"""What scores have in common: leaving a network as it was, and one forward and backward pass of the student."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.contracts import Member, NotComputable, Probe
from trainables.cost import WEIGHTED

Gradients = list[tuple[Tensor, Tensor]]
"""The weight and the loss's gradient with respect to it, for each layer."""

_shared: ContextVar[list[Gradients] | None] = ContextVar("_shared", default=None)


@contextmanager
def untouched(*members: Member) -> Iterator[None]:
    """Within it, networks may run in any mode; afterwards buffers, modes and torch's random state are as before.

    Random layers (dropout) draw from generators seeded with 0, so that a score is a function of its probe alone.
    """
    modes = [(module, module.training) for member in members for module in member.modules()]
    buffers = [(buffer, buffer.clone()) for member in members for buffer in member.buffers()]
    cuda = sorted({buffer.device.index for buffer, _ in buffers if buffer.is_cuda})
    with torch.random.fork_rng(devices=cuda):
        torch.random.default_generator.manual_seed(0)
        for index in cuda:
            torch.cuda.default_generators[index].manual_seed(0)
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


@contextmanager
def one_pass() -> Iterator[None]:
    """Within it, all scores share one `weight_gradients`. One probe only: nothing else may be scored inside."""
    token = _shared.set([])
    try:
        yield
    finally:
        _shared.reset(token)


def weights(net: nn.Module) -> list[nn.Parameter]:
    """The weights of convolutions and linear layers, in the order of the modules; tied ones once, frozen ones not."""
    found = {id(m.weight): m.weight for m in net.modules() if isinstance(m, WEIGHTED)}
    return [weight for weight in found.values() if isinstance(weight, nn.Parameter) and weight.requires_grad]


def weight_gradients(probe: Probe) -> Gradients:
    """Weights of the student's convolutions and linear layers, each with its gradient of the batch's cross-entropy.

    The gradient is zero where no path leads from a weight to the loss. `.grad` is neither read nor written.

    Raises:
        NotComputable: no weight has a path to the loss.
    """
    shared = _shared.get()
    if shared:
        return shared[0]
    found = weights(probe.student)
    with untouched(probe.student), torch.enable_grad():
        loss = F.cross_entropy(probe.student(probe.images), probe.labels)
        if not found or not loss.requires_grad:
            raise NotComputable("no weight has a path to the loss")
        gradients = torch.autograd.grad(loss, found, allow_unused=True, materialize_grads=True)
    pairs = [(weight.detach(), gradient) for weight, gradient in zip(found, gradients, strict=True)]
    if shared is not None:
        shared.append(pairs)
    return pairs


def total(parts: list[Tensor]) -> float:
    """Sum of scalars, in float64 and with one transfer from the device."""
    return float(torch.stack([part.double() for part in parts]).sum())
