"""The second derivative of a loss along the weights, for about half of what a generic second backward pass takes.

Wanted is W^T H g, one number: H the matrix of second derivatives of the loss L with respect to the weights W of all
convolutions and linear layers, g its gradient. Put s * W in the place of W, in all layers at once. With c a copy of g
that is held fixed,

    W^T H g = d/ds [c . dL/dW](s W)  at s = 1,

so that the second backward pass needs a derivative with respect to s alone, not to each weight. Where a layer's output
is s * W(x), that derivative is an inner product of tensors that are there already, and the two most expensive steps
for a layer fall away: 4 products like its forward pass remain, of the 6 that generic differentiation takes, one of
which is a convolution with the whole map as its kernel. Batch norm, whose generic second derivative is a long chain of
passes over its maps, has it here in closed form. All other operations are left to torch.

The layers' own functions are replaced while the network runs, so networks need not be written for this.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

aten = torch.ops.aten


class TwiceDifferentiable:
    """Records a network's forward pass so that `along_weights` can differentiate it twice.

    Gradients through what was recorded reach the weights and the network's input, not biases nor norms' parameters.

    Args:
        weights: W, leaves of the network.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._weights = list(weights)
        self._phase = _Phase()
        self._scale = torch.ones((), requires_grad=True)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """The network's forward pass runs within it."""
        self._scale = self._weights[0].detach().new_ones(()).requires_grad_() if self._weights else self._scale
        # Fused attention has no second derivative.
        with sdpa_kernel(SDPBackend.MATH), _Replacing(self._weights, self._scale, self._phase):
            yield

    @contextmanager
    def only_inputs(self) -> Iterator[None]:
        """Within it, a backward pass goes to the inputs of layers and spares the work for their weights."""
        with self._phase.of("inputs"):
            yield

    def along_weights(self, gradients: Sequence[Tensor]) -> float:
        """W^T H g from the gradients g, for each weight in order, made with `create_graph`.

        A weight that the network also uses in other ways (standardised, say) is differentiated there as usual.
        """
        known = [gradient for gradient in gradients if gradient.requires_grad]
        if not known:
            return 0.0
        with self._phase.of("scale"):
            along, *rest = torch.autograd.grad(
                known, [self._scale, *self._weights], [g.detach() for g in known], retain_graph=True, allow_unused=True
            )
        parts = [] if along is None else [along]
        parts += [(w.detach() * h).sum() for w, h in zip(self._weights, rest, strict=True) if h is not None]
        return float(torch.stack([part.double() for part in parts]).sum()) if parts else 0.0


@dataclass
class _Phase:
    """What a backward pass is for: gradients that can be differentiated again, a derivative by scale, or by inputs."""

    now: Literal["gradients", "scale", "inputs"] = "gradients"

    @contextmanager
    def of(self, phase: Literal["scale", "inputs"]) -> Iterator[None]:
        before, self.now = self.now, phase
        try:
            yield
        finally:
            self.now = before


class _Product(Protocol):
    """A layer without its bias: linear in its input and in its weight."""

    def __call__(self, inputs: Tensor, weight: Tensor) -> Tensor: ...

    def to_inputs(self, gradient: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
        """Derivative of <gradient, output> with respect to the input."""
        ...

    def to_both(self, gradient: Tensor, inputs: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The same with respect to the input and to the weight."""
        ...


class _Linear:
    def __call__(self, inputs: Tensor, weight: Tensor) -> Tensor:
        return inputs @ weight.T

    def to_inputs(self, gradient: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
        return gradient @ weight

    def to_both(self, gradient: Tensor, inputs: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return gradient @ weight, gradient.reshape(-1, gradient.shape[-1]).T @ inputs.reshape(-1, inputs.shape[-1])


@dataclass(frozen=True)
class _Convolution:
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    def __call__(self, inputs: Tensor, weight: Tensor) -> Tensor:
        none = [0] * len(self.stride)
        return aten.convolution(
            inputs, weight, None, self.stride, self.padding, self.dilation, False, none, self.groups
        )

    def to_inputs(self, gradient: Tensor, inputs: Tensor, weight: Tensor) -> Tensor:
        return self._backward(gradient, inputs, weight, [True, False, False])[0]

    def to_both(self, gradient: Tensor, inputs: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        found = self._backward(gradient, inputs, weight, [True, True, False])
        return found[0], found[1]

    def _backward(self, gradient: Tensor, inputs: Tensor, weight: Tensor, mask: list[bool]) -> Sequence[Tensor]:
        none = [0] * len(self.stride)
        return aten.convolution_backward(
            gradient, inputs, weight, None, self.stride, self.padding, self.dilation, False, none, self.groups, mask
        )


class _Replacing(TorchFunctionMode):
    """Replaces linear layers and convolutions with these weights, and batch norms over a batch."""

    def __init__(self, weights: Sequence[Tensor], scale: Tensor, phase: _Phase) -> None:
        super().__init__()
        self._ids, self._scale, self._phase = {id(weight) for weight in weights}, scale, phase

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        replaced = REPLACED.get(func)
        result = None if replaced is None else replaced(self, *args, **kwargs)
        return func(*args, **kwargs) if result is None else result

    def linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
        return self._scaled(_Linear(), input, weight, bias)

    def convolution(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Tensor | None:
        if isinstance(padding, str) or input.dim() != weight.dim():
            return None
        dims = weight.dim() - 2
        product = _Convolution(_each(stride, dims), _each(padding, dims), _each(dilation, dims), groups)
        return self._scaled(product, input, weight, bias, channel=1)

    def batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor | None:
        if not training or input.numel() == input.shape[1]:  # torch's own error for one value a channel
            return None
        return _BatchNorm.apply(self._phase, input, weight, bias, running_mean, running_var, momentum, eps)

    def _scaled(
        self, product: _Product, inputs: Tensor, weight: Tensor, bias: Tensor | None, channel: int = -1
    ) -> Tensor | None:
        if id(weight) not in self._ids:
            return None
        output = _Scaled.apply(self._phase, product, inputs, weight, self._scale)
        if bias is None:
            return output
        return output + (bias if channel == -1 else bias.view(-1, *[1] * (inputs.dim() - 2)))


REPLACED: dict[Callable[..., Any], Callable[..., Tensor | None]] = {
    F.linear: _Replacing.linear,
    F.conv1d: _Replacing.convolution,
    F.conv2d: _Replacing.convolution,
    F.conv3d: _Replacing.convolution,
    F.batch_norm: _Replacing.batch_norm,
}


def _each(size: int | Sequence[int], dims: int) -> list[int]:
    return [size] * dims if isinstance(size, int) else list(size)


def _laid_out_as(other: Tensor, gradient: Tensor) -> Tensor:
    """The gradient, channels last in memory where the other tensor is: mixed layouts cost batch norm threefold."""
    last = other.dim() == 4 and other.is_contiguous(memory_format=torch.channels_last)
    return gradient.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _inner(one: Tensor, other: Tensor) -> Tensor:
    """Inner product; where both are laid out alike, without their product in memory."""
    if one.dim() == 4 and one.is_contiguous(memory_format=torch.channels_last):
        one, other = one.movedim(1, -1), other.movedim(1, -1)
    return torch.dot(one.reshape(-1), other.reshape(-1))


class _Scaled(torch.autograd.Function):
    """scale * product(inputs, weight), at scale 1."""

    @staticmethod
    def forward(ctx: Any, phase: _Phase, product: _Product, inputs: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        output = product(inputs, weight)
        ctx.phase, ctx.product = phase, product
        ctx.save_for_backward(inputs, weight, scale, output)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, scale, output = ctx.saved_tensors
        gradient = _laid_out_as(output, gradient)
        if ctx.phase.now == "gradients":
            to_inputs, to_weight = _ScaledBackward.apply(ctx.phase, ctx.product, gradient, inputs, weight, scale)
            return None, None, to_inputs, to_weight, None
        to_inputs = ctx.product.to_inputs(gradient, inputs, weight) if ctx.needs_input_grad[2] else None
        along = _inner(gradient, output) if ctx.phase.now == "scale" else None
        return None, None, to_inputs, None, along


class _ScaledBackward(torch.autograd.Function):
    """Gradients with respect to inputs and weight, as functions of gradient, inputs and scale."""

    @staticmethod
    def forward(
        ctx: Any, phase: _Phase, product: _Product, gradient: Tensor, inputs: Tensor, weight: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.product = product
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gradient, inputs, weight)
        return product.to_both(gradient, inputs, weight)

    @staticmethod
    def backward(ctx: Any, by_inputs: Tensor | None, by_weight: Tensor | None) -> tuple[Tensor | None, ...]:
        gradient, inputs, weight = ctx.saved_tensors
        product = ctx.product
        by_inputs = None if by_inputs is None else _laid_out_as(inputs, by_inputs)
        # The gradient with respect to the weight is that to s * W: it has no factor s, so that it adds nothing here.
        to_gradient = None if by_inputs is None else product(by_inputs, weight)
        along = None if to_gradient is None else _inner(gradient, to_gradient)
        to_inputs = None
        if by_weight is not None:
            second = product(inputs, by_weight)
            to_gradient = second if to_gradient is None else to_gradient.add_(second)
            to_inputs = product.to_inputs(gradient, inputs, by_weight) if ctx.needs_input_grad[3] else None
        return None, None, to_gradient, to_inputs, None, along


class _BatchNorm(torch.autograd.Function):
    """y = g r (x - m) + b with mean m and inverse deviation r of the batch."""

    @staticmethod
    def forward(
        ctx: Any,
        phase: _Phase,
        inputs: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        output, mean, inverse = aten.native_batch_norm(
            inputs, weight, bias, running_mean, running_var, True, momentum, eps
        )
        ctx.phase, ctx.eps = phase, eps
        ctx.save_for_backward(inputs, weight, mean, inverse)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, mean, inverse = ctx.saved_tensors
        gradient = _laid_out_as(inputs, gradient)
        if ctx.phase.now == "gradients":
            to_inputs = _BatchNormBackward.apply(gradient, inputs, weight, mean, inverse, ctx.eps)
        else:
            mask = [True, False, False]
            to_inputs = aten.native_batch_norm_backward(
                gradient, inputs, weight, None, None, mean, inverse, True, ctx.eps, mask
            )[0]
        return None, to_inputs, None, None, None, None, None, None


class _BatchNormBackward(torch.autograd.Function):
    """dx = g r P(dy), where P(u) = u - mean(u) - n mean(u n) and n = r (x - m), per channel.

    P is its own adjoint, and dn = r P(dx). So for a cotangent v of dx, with z = sum(v dx) and N values a channel:
    the derivative by dy is g r P(v); that by x is -(r z / N) n - r (mean(n dy) g r P(v) + mean(n v) dx).
    """

    @staticmethod
    def forward(
        ctx: Any, gradient: Tensor, inputs: Tensor, weight: Tensor | None, mean: Tensor, inverse: Tensor, eps: float
    ) -> Tensor:
        arguments = (None, None, mean, inverse, True, eps, [True, True, False])
        weight = torch.ones_like(mean) if weight is None else weight
        to_inputs, sum_C, _ = aten.native_batch_norm_backward(gradient, inputs, weight, *arguments)
        ctx.eps = eps
        ctx.save_for_backward(inputs, weight, mean, inverse, to_inputs, sum_C)
        return to_inputs

    @staticmethod
    def backward(ctx: Any, by_inputs: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, mean, inverse, dx, sum_dy_C = ctx.saved_tensors
        by_inputs = _laid_out_as(inputs, by_inputs)
        arguments = (None, None, mean, inverse, True, ctx.eps, [True, True, False])
        to_gradient, sum_v_C, _ = aten.native_batch_norm_backward(by_inputs, inputs, weight, *arguments)
        channels = [1, -1, *[1] * (inputs.dim() - 2)]
        others = [dim for dim in range(inputs.dim()) if dim != 1]
        count = inputs.numel() // inputs.shape[1]
        z_C = (by_inputs * dx).sum(others)
        by_n_C = -inverse.square() * z_C / count  # of x - m, so with r twice
        to_inputs = torch.addcmul((-by_n_C * mean).view(channels), inputs, by_n_C.view(channels))
        to_inputs.addcmul_(to_gradient, (-inverse * sum_dy_C / count).view(channels))
        to_inputs.addcmul_(dx, (-inverse * sum_v_C / count).view(channels))
        return to_gradient, to_inputs, None, None, None, None
