"""The spaces that come with dux, by name."""

from spaces import nasbench101, nasbench201, resnet, timm_family, torchvision_family, vit, wrn, zen
from spaces.errors import unknown
from spaces.space import Space

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
