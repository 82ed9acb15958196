"""What a student can be: Tune search spaces of architectures, each with its builder."""

from spaces import nasbench101, nasbench201, own, resnet, timm_family, torchvision_family, vit, wrn, zen
from spaces.errors import BadInput, unknown
from spaces.others import check_space
from spaces.space import Arch, Space
from spaces.task import Task

SPACES: dict[str, Space] = {
    "resnet": resnet.SPACE,
    "resnet-s1": resnet.S1,
    "nasbench101": nasbench101.SPACE,
    "nasbench201": nasbench201.SPACE,
    "wrn": wrn.SPACE,
    "zen": zen.SPACE,
    "vit": vit.SPACE,
    "vit-autoformer-tiny": vit.AUTOFORMER_TINY,
    "timm": timm_family.SPACE,
    "torchvision": torchvision_family.SPACE,
}


def get(name: str) -> Space:
    """The space of that name. Raises `BadInput` with the nearest known name."""
    if name not in SPACES:
        raise unknown("space", name, SPACES)
    return SPACES[name]


__all__ = ["SPACES", "Arch", "BadInput", "Space", "Task", "check_space", "get", "own", "unknown"]
