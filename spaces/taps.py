"""Where to look into a network that dux did not build: its feature maps and its classifier, found by running it."""

from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from spaces.errors import BadInput
from spaces.task import Task

# Networks shrink images up to 32 times. In an image of 64 pixels no stage is a single pixel; only pooled maps are.
LARGE = 64


@dataclass(frozen=True)
class _Call:
    """The last call of a submodule, and the pixels of its output: 0 where that is no square map [B, C, H, W]."""

    name: str
    module: nn.Module
    pixels: int

    @property
    def depth(self) -> int:
        return self.name.count(".")


def find_taps(net: nn.Module, task: Task) -> tuple[tuple[str, ...], str]:
    """Names of a classifier's feature maps, shallow to deep, and of its head.

    For each spatial resolution the tap is the last of its outermost modules, so a stage rather than a layer within
    it. Resolutions only fall: what is larger than a map before it is none. The last tap is the map before global
    pooling. Small images are enlarged to look at the network, if it takes other sizes, so that the taps are the same
    stages at every image size. The network runs on two zero images in evaluation mode and is left as it was; torch's
    generator too. A network without maps has no taps.

    Args:
        net: from images [B, C, H, W] to logits [B, K].
        task: the input that it takes, and K.

    Raises:
        BadInput: the network does not take such images, or no linear layer gives its K logits.
    """
    calls, output = _trace(net, task)
    heads = [c for c in calls if isinstance(c.module, nn.Linear) and c.module.out_features == task.classes]
    fits = isinstance(output, Tensor) and tuple(output.shape) == (2, task.classes)
    if not heads or not fits:
        linear = [f"{c.name} ({c.module.out_features})" for c in calls if isinstance(c.module, nn.Linear)]
        raise BadInput(f"no linear layer gives logits of {task.classes} classes; linear layers: {linear or 'none'}")
    if task.image_size < LARGE:
        with suppress(BadInput):  # of a network made for one image size; what was seen there has to do
            calls, _ = _trace(net, replace(task, image_size=LARGE))
    taps: dict[int, _Call] = {}
    for call in calls:
        # Attention weights pass through these two and look like maps.
        if call.pixels < 2 or isinstance(call.module, nn.Dropout | nn.Softmax):
            continue
        best = taps.get(call.pixels)
        if call.pixels <= min(taps, default=call.pixels) and (best is None or call.depth <= best.depth):
            taps[call.pixels] = call
    return tuple(call.name for call in sorted(taps.values(), key=calls.index)), heads[-1].name


def _trace(net: nn.Module, task: Task) -> tuple[list[_Call], object]:
    """The last call of each submodule in order of completion, and what the network puts out for two zero images."""
    calls: dict[str, _Call] = {}
    hooks = []
    for name, module in net.named_modules():

        def note(module: nn.Module, args: object, output: object, name: str = name) -> None:
            calls.pop(name, None)  # a module that is called again counts where it was called last
            calls[name] = _Call(name, module, _pixels(output))

        if name:
            hooks.append(module.register_forward_hook(note))
    modes = [(module, module.training) for module in net.modules()]
    weight = next(net.parameters(), torch.empty(0))
    images = torch.zeros(2, task.channels, task.image_size, task.image_size, dtype=weight.dtype, device=weight.device)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            output = net.eval()(images)
    except (RuntimeError, AssertionError, ValueError) as error:
        shape = f"[{task.channels}, {task.image_size}, {task.image_size}]"
        raise BadInput(f"the network does not take images {shape}: {' '.join(str(error).split())[:200]}") from error
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    return list(calls.values()), output


def _pixels(value: object) -> int:
    """Height of a square map of two images, else 0."""
    if not isinstance(value, Tensor) or value.ndim != 4 or len(value) != 2 or value.shape[2] != value.shape[3]:
        return 0
    return value.shape[2]
