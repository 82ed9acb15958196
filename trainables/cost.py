"""What a network costs: parameters, multiply-adds, bytes, and measured latency.

The first three need no numbers, only shapes: `measure` builds the network on the meta device, where tensors have no
storage, and skips the initialisers. A sampler asks for the cost of every candidate that it proposes.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.overrides import TorchFunctionMode

from spaces import Arch, Space, Task
from spaces.bounds import NoFill
from spaces.errors import BadInput, unknown

WEIGHTED = (_ConvNd, nn.Linear)
"""The layers whose weights and multiply-adds count: convolutions (grouped and transposed too) and linear layers."""


SHAPE_KEEPING = (_BatchNorm, nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid)
"""Modules that neither change a shape nor count as multiply-adds."""


def params(net: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def flops(net: nn.Module, task: Task) -> int:
    """Multiply-adds of one image through the convolutions and linear layers.

    A multiplication with its addition counts once (twice in tools that count operations). Biases, norms, activations,
    pooling and the products inside attention are left out. Runs on the device that the network is on, without
    gradients, in evaluation mode; the network is left as it was.
    """
    counted: list[int] = []

    def count(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        # Each weight is used once at each position: of the output, or of the input where the convolution is transposed.
        positions = args[0] if isinstance(module, _ConvTransposeNd) else output
        channels = positions.shape[1] if isinstance(module, _ConvNd) else positions.shape[-1]
        assert isinstance(module.weight, Tensor)
        counted.append(positions.numel() // channels * module.weight.numel())

    hooks = [module.register_forward_hook(count) for module in net.modules() if isinstance(module, WEIGHTED)]
    try:
        # On the meta device these are Python decompositions that take nine tenths of the pass; they change no shape.
        with evaluating(net), passing_on(net, SHAPE_KEEPING), torch.no_grad(), ShapesAlone():
            net(_image(task, _device_of(net)))
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counted)


def size_bytes(net: nn.Module) -> int:
    """Bytes of the serialised state: parameters and persistent buffers, shared ones once."""
    tensors = {id(tensor): tensor for tensor in net.state_dict(keep_vars=True).values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def latency_ms(net: nn.Module, task: Task, device: str | torch.device = "cpu", repeats: int = 20) -> float:
    """Median milliseconds of a forward pass of one image, after one pass to warm up.

    The network is moved to the device and left there. On a CPU it runs with the threads that the process has.

    Raises:
        BadInput: less than one repeat.
    """
    if repeats < 1:
        raise BadInput(f"latency needs at least 1 repeat, not {repeats}")
    device = torch.device(device)
    net.to(device)
    image = _image(task, device)
    with evaluating(net), torch.no_grad():
        times_ms = [_timed_ms(net, image) for _ in range(repeats + 1)]
    return median(times_ms[1:])


COSTS: dict[str, Callable[[nn.Module, Task], float]] = {
    "params": lambda net, task: params(net),
    "flops": flops,
    "bytes": lambda net, task: size_bytes(net),
}
"""What follows from an architecture's shapes alone; `latency_ms` is measured besides."""


def measure(
    space: Space,
    arch: Arch,
    task: Task,
    want: Iterable[str] = ("params", "flops", "bytes"),
    device: str | torch.device = "cpu",
    repeats: int = 20,
) -> dict[str, float]:
    """Costs of an architecture by name: any of params, flops, bytes and `latency_ms` (on `device`).

    Draws nothing from torch's global generators.

    Raises:
        BadInput: a cost that there is not.
    """
    want = list(want)
    for name in want:
        if name not in (*COSTS, "latency_ms"):
            raise unknown("cost", name, (*COSTS, "latency_ms"))
    found: dict[str, float] = {}
    if any(name in COSTS for name in want):
        net = build_without_values(space, arch, task)
        found = {name: COSTS[name](net, task) for name in want if name in COSTS}
    if "latency_ms" in want:
        with torch.random.fork_rng(devices=[]):
            net = space.build(arch, task)
        found["latency_ms"] = latency_ms(net, task, device, repeats)
    return {name: found[name] for name in want}


def build_without_values(space: Space, arch: Arch, task: Task) -> nn.Module:
    """The network on the meta device: shapes and types, no numbers. Milliseconds, whatever its size.

    A builder that computes with tensors (torchvision's RegNets) fails there: then it is built as usual and moved there.
    """
    try:
        with torch.device("meta"), NoFill():
            return space.build(arch, task)
    except Exception:  # whatever else is wrong with the builder shows again
        with torch.random.fork_rng(devices=[]):
            return space.build(arch, task).to("meta")


class ShapesAlone(TorchFunctionMode):
    """On the meta device, answers the commonest operations by their shapes: sums, convolutions, products, means.

    torch's own answers are Python decompositions of a tenth to half of a millisecond, and the first of a process
    imports sympy and the compiler, for two seconds.
    """

    SUMS = frozenset((torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__))
    MEANS = frozenset((torch.mean, Tensor.mean))

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if args and isinstance(args[0], Tensor) and args[0].is_meta and not kwargs:
            found = None
            if func in self.SUMS and len(args) == 2:
                found = _sum_of(*args)
            elif func is torch.conv2d:
                found = _convolved(*args)
            elif func is functional.linear:
                found = _multiplied(*args)
            elif func in self.MEANS and args[1:] == ((2, 3),) and args[0].dim() == 4:
                found = args[0].new_empty(args[0].shape[:2])
            if found is not None:
                return found
        return func(*args, **(kwargs or {}))  # and whatever is wrong is told as usual


def _sum_of(first: Tensor, other: object) -> Tensor | None:
    same = isinstance(other, Tensor) and other.shape == first.shape and other.dtype == first.dtype
    return first if same else None


def _multiplied(inputs: Tensor, weight: Tensor, bias: object = None) -> Tensor | None:
    fits = inputs.shape[-1] == weight.shape[-1] and weight.dim() == 2
    return inputs.new_empty(*inputs.shape[:-1], len(weight)) if fits else None


def _convolved(image: Tensor, weight: Tensor, bias: object = None, *how: Any) -> Tensor | None:
    """The output of torch.conv2d, if its arguments are those that nn.Conv2d gives it."""
    if len(how) != 4 or image.dim() != 4 or not all(isinstance(pair, tuple) for pair in how[:3]):
        return None
    stride, padding, dilation, groups = how
    if image.shape[1] != weight.shape[1] * groups:
        return None
    around = zip(image.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    sizes = [(size + 2 * p - d * (kernel - 1) - 1) // s + 1 for size, kernel, s, p, d in around]
    return image.new_empty(len(image), len(weight), *sizes) if min(sizes) > 0 else None


@contextmanager
def passing_on(net: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[None]:
    """Within it, every module of these kinds passes its input on."""
    changed = [module for module in net.modules() if isinstance(module, kinds)]
    for module in changed:
        # A copy, since what follows may work in place and the input may be needed again.
        module.forward = torch.clone
    try:
        yield
    finally:
        for module in changed:
            del module.forward


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Within it, the network is in evaluation mode; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _timed_ms(net: nn.Module, image: Tensor) -> float:
    start = time.perf_counter()
    net(image)
    if image.is_cuda:
        torch.cuda.synchronize(image.device)
    return 1e3 * (time.perf_counter() - start)


def _image(task: Task, device: torch.device) -> Tensor:
    """One grey image [1, C, H, W]."""
    return torch.full((1, task.channels, task.image_size, task.image_size), 0.5, device=device)


def _device_of(net: nn.Module) -> torch.device:
    return next((p.device for p in net.parameters()), torch.device("cpu"))
