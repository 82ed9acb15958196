"""SynFlow (Tanaka et al. 2020, arXiv:2006.05467), summed over the network (Abdelfattah et al., arXiv:2101.08134)."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from trainables.contracts import NotComputable, Probe
from trainables.cost import evaluating
from trainables.scores.passes import total, weights


def score(probe: Probe) -> float:
    """Natural logarithm of the sum over all weights of |W * dR/dW|, R the sum of the logits of an all-ones image.

    Every parameter is replaced by its absolute value, batch norm and dropout pass their inputs on, and numbers are
    float64: the sum is the strength of all paths through the network and reaches 1e61, hence the logarithm. It looks
    at neither images nor labels, and writes to none of the student's own tensors: the pass runs on copies.

    Raises:
        NotComputable: no path leads from the image to the logits.
    """
    net = probe.student.net
    state = {name: p.detach().double().abs().requires_grad_() for name, p in net.named_parameters()}
    state |= {name: b.double() if b.is_floating_point() else b for name, b in net.named_buffers()}
    counted = {id(weight) for weight in weights(net)}
    names = [name for name, p in net.named_parameters() if id(p) in counted]
    size = probe.task.image_size
    ones = torch.ones(1, probe.task.channels, size, size, dtype=torch.float64, device=probe.images.device)
    with evaluating(net), _WithoutBatchNorm(), torch.enable_grad():
        flow = functional_call(net, state, ones).sum()
        if not names or not flow.requires_grad:
            raise NotComputable("no weight has a path to the logits")
        copies = [state[name] for name in names]
        gradients = torch.autograd.grad(flow, copies, allow_unused=True, materialize_grads=True)
    strength = total([(w.detach() * g).abs().sum() for w, g in zip(copies, gradients, strict=True)])
    if strength == 0:
        raise NotComputable("no path leads from the image to the logits, so the sum is 0 and has no logarithm")
    return math.log(strength)


class _WithoutBatchNorm(TorchFunctionMode):
    """Batch norm passes its input on. The function, not the module, which may also hold an activation (timm's does)."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.batch_norm:
            return args[0].clone()  # what follows may work in place
        return func(*args, **(kwargs or {}))
