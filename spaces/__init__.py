"""What a student can be: Tune search spaces of architectures, each with its builder.

`import spaces` is light: torch and Ray come with the spaces themselves.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spaces.errors import BadInput, unknown

if TYPE_CHECKING:
    from spaces import own
    from spaces.others import check_space
    from spaces.space import Arch, Space
    from spaces.table import SPACES, get
    from spaces.task import Task

_LATER = {
    **dict.fromkeys(("SPACES", "get"), "spaces.table"),
    **dict.fromkeys(("Arch", "Space"), "spaces.space"),
    "Task": "spaces.task",
    "check_space": "spaces.others",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    if name == "own":
        return import_module("spaces.own")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["SPACES", "Arch", "BadInput", "Space", "Task", "check_space", "get", "own", "unknown"]
