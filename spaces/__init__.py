"""What a student can be: Tune search spaces of architectures, each with its builder."""

from spaces import nasbench201, resnet
from spaces.errors import BadInput, unknown
from spaces.space import Arch, Space
from spaces.task import Task

SPACES: dict[str, Space] = {
    "resnet": resnet.SPACE,
    "resnet-s1": resnet.S1,
    "nasbench201": nasbench201.SPACE,
}


def get(name: str) -> Space:
    """The space of that name. Raises `BadInput` with the nearest known name."""
    if name not in SPACES:
        raise unknown("space", name, SPACES)
    return SPACES[name]


__all__ = ["SPACES", "Arch", "BadInput", "Space", "Task", "get", "unknown"]
