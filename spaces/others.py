"""What others wrote, networks and whole spaces: tried before a search rests on it, and its errors said in one line."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spaces import domains
from spaces.bounds import check_size
from spaces.domains import Domain
from spaces.errors import BadInput, unknown
from spaces.redact import redacted
from spaces.seeding import generator
from spaces.space import Arch, Space, chosen
from spaces.task import Task

FEW = 10  # values of an ordered choice of which every one is tried
USERS = "dux_space_"
"""How the names of the modules begin that users' files become."""


def one_line(error: BaseException) -> str:
    """Kind and text of an error, with its innermost line in a user's file if it comes from there."""
    frames = [(f, line) for f, line in traceback.walk_tb(error.__traceback__) if _is_users(f.f_globals)]
    place = [f" ({Path(frame.f_code.co_filename).name}:{line})" for frame, line in frames[-1:]]
    return f"{type(error).__name__}: {' '.join(redacted(error).split())[:200]}{''.join(place)}"


@contextmanager
def blaming(what: str) -> Iterator[None]:
    """Within it, whatever code of others raises becomes a `BadInput` of one line: `what`, and the error."""
    try:
        yield
    except BadInput:
        raise
    except (Exception, SystemExit) as error:
        raise BadInput(f"{what}: {one_line(error)}") from error


def check_space(space: Space, task: Task) -> None:
    """Build and run networks of a space, so that what is wrong with it shows before a search begins.

    They are few: together they show every value of each choice, or its smallest and its largest where they are numbers
    and more than 10. Torch's generator is left as it was.

    Raises:
        BadInput: a network cannot be built, does not turn the task's images into logits, or lacks the taps or the
            head of the space; or its canonical form is not JSON-able.
    """
    for arch in _examples(space):
        _check(space, arch, task)


def _examples(space: Space) -> Iterator[Arch]:
    rng = generator("examples", space.fingerprint())
    shown = {name: _shown(domain) for name, domain in space.param_space.items()}
    for i in range(max(map(len, shown.values()), default=1)):
        arch = {name: values[i % len(values)] for name, values in shown.items()}
        yield arch if space.allows(arch) else space.sample(rng)


def _shown(domain: Domain) -> list[Any]:
    """Every value of a domain, or the ends of one with an order and more than a few values."""
    if domains.is_ordered(domain) and domains.count(domain) > FEW:
        return list(dict.fromkeys(domains.from_unit(domain, end) for end in (0.0, 1.0)))
    return domains.values(domain) or []


def _check(space: Space, arch: Arch, task: Task) -> None:
    where = f"space {space.name!r}, {chosen(arch)}"
    with torch.random.fork_rng(devices=[]):
        with blaming(f"{where}: build fails"):
            check_size(lambda: space.build(arch, task))
            net = space.build(arch, task)
        try:
            _check_network(net, space, task)
        except BadInput as error:
            raise BadInput(f"{where}: {error}") from error
    with blaming(f"{where}: its canonical form has no hash"):
        space.hash(arch)
    for name, move in space.moves.items():
        with blaming(f"{where}: moves[{name!r}] gives no list of values"):
            list(move(arch[name]))


def _check_network(net: nn.Module, space: Space, task: Task) -> None:
    if not isinstance(net, nn.Module):
        raise BadInput(f"build returns {_described(net)}, not a torch.nn.Module")
    maps: dict[str, object] = {}
    for tap in space.taps or ():

        def keep(module: nn.Module, args: object, output: object, tap: str = tap) -> None:
            maps[tap] = output

        _submodule(net, "tap", tap).register_forward_hook(keep)
    shape = (task.channels, task.image_size, task.image_size)
    with blaming(f"the network does not take images {list(shape)}"):
        logits = net.train()(torch.zeros(2, *shape))  # training, for some give something else then
    if not isinstance(logits, Tensor) or logits.shape != (2, task.classes):
        raise BadInput(f"the network gives {_described(logits)} for 2 images, not logits [2, {task.classes}]")
    for tap in space.taps or ():
        found = maps.get(tap)
        if not isinstance(found, Tensor) or found.ndim != 4 or len(found) != 2:
            raise BadInput(f"tap {tap!r} gives {_described(found)} for 2 images, not maps [2, C, H, W]")
    if space.head is not None:
        head = _submodule(net, "head", space.head)
        if not isinstance(head, nn.Linear) or head.out_features != task.classes:
            raise BadInput(f"head {space.head!r} is {head}, not a linear layer with {task.classes} outputs")
    with blaming("its taps and head cannot be found"):
        space.look(net, task)


def _submodule(net: nn.Module, kind: str, name: str) -> nn.Module:
    named = dict(net.named_modules())
    if name not in named or not name:
        depth = name.count(".")  # of a deep network hundreds of submodules lie deeper
        raise unknown(f"{kind} of the network", name, [n for n in named if n and n.count(".") <= depth])
    return named[name]


def _described(value: object) -> str:
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"{type(value).__name__}"


def _is_users(names: dict[str, Any]) -> bool:
    return str(names.get("__name__")).startswith(USERS)
