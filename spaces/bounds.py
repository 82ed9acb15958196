"""Networks that are too large for this machine are refused while they are built, before they take its memory."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode

from spaces.errors import BadInput

MODULES = 20_000  # four times those of a ResNet-1202; a mistake in a depth has more
SHARE = 0.1  # of the memory, that a network's numbers may take: training it takes several times as much


class TooLarge(BadInput):
    """A network that this machine cannot train."""


@contextmanager
def bounded() -> Iterator[None]:
    """Within it, building a network raises `TooLarge` once it has too many modules, or numbers for the memory.

    A layer registers its weights before it fills them, so that nothing of the layer that is too large has been touched.
    """
    most = SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    modules, size = 0, 0.0

    def count_module(owner: nn.Module, name: str, module: nn.Module | None) -> None:
        nonlocal modules
        modules += 1
        if modules > MODULES:
            raise TooLarge(f"a network of over {MODULES:,} modules is too large to be trained here")

    def count_tensor(owner: nn.Module, name: str, tensor: Any) -> None:
        nonlocal size
        size += tensor.numel() * tensor.element_size() if isinstance(tensor, Tensor) else 0
        if size > most:
            raise TooLarge(f"a network of over {size / 1e9:,.0f} GB is too large for this machine's memory")

    with ExitStack() as stack:
        stack.enter_context(_held(hooks.register_module_module_registration_hook(count_module)))
        stack.enter_context(_held(hooks.register_module_parameter_registration_hook(count_tensor)))
        stack.enter_context(_held(hooks.register_module_buffer_registration_hook(count_tensor)))
        yield


def check_size(build: Callable[[], object]) -> None:
    """Raises `TooLarge` for a network that is too large, in no time: it is built without numbers.

    A builder that cannot be run so is left alone; `bounded` stops it when it is run in earnest.
    """
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), NoFill(), bounded():
            build()
    except TooLarge:
        raise
    except Exception:  # whatever else is wrong with it shows again
        return


class NoFill(TorchFunctionMode):
    """Skips what initialisers do to tensors without storage (`trunc_normal_` is four such steps).

    On the meta device torch's random fills are Python decompositions: they were two thirds of building a ResNet, and
    the first one of a process imports sympy and torch's compiler, for two seconds.
    """

    FILLS = frozenset(
        getattr(Tensor, name)
        for name in ("normal_", "uniform_", "fill_", "zero_", "bernoulli_", "clamp_", "mul_", "add_", "erfinv_")
    )

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Some of torch.nn.init's functions arrive here whole, with their tensor as a keyword.
        tensor = args[0] if args else kwargs.get("tensor")
        fills = func in self.FILLS or getattr(func, "__module__", None) == nn.init.__name__
        if fills and isinstance(tensor, Tensor) and tensor.is_meta:
            return tensor
        return func(*args, **kwargs)


@contextmanager
def _held(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
