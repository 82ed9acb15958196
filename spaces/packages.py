"""Networks that a package has by name: timm's and torchvision's."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from spaces.errors import BadInput
from spaces.others import blaming
from spaces.task import Task

# What reads or writes a file that a recipe names, or fetches one: weights come as the teacher's own keys say.
_FILES = (
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),  # timm's
    *("weights", "weights_backbone", "pretrained_backbone"),  # torchvision's
)


def timm_model(name: str, task: Task, options: Mapping[str, Any], pretrained: bool = False) -> nn.Module:
    """A model of timm; `options` are keyword arguments of `timm.create_model`.

    Raises:
        BadInput: no such model (with the nearest), one that does not take an option, or an option that names files.
    """
    _check_options(options)
    import timm  # here, for importing it takes seconds that others need not pay

    if not timm.is_model(name):
        raise _unknown_model("timm", name, timm.list_models())
    given = {"num_classes": task.classes, "in_chans": task.channels, **options}
    with blaming(f"timm's {name} cannot be made"):
        return timm.create_model(name, pretrained=pretrained, **given)


def torchvision_model(name: str, task: Task, options: Mapping[str, Any]) -> nn.Module:
    """A model of torchvision for colour images, without its weights; `options` are arguments of its function.

    Raises:
        BadInput: no such model (with the nearest), one that does not take an option, or an option that names files.
    """
    _check_options(options)
    from torchvision import models  # here, for importing it takes seconds that others need not pay

    known = models.list_models(module=models)
    if name not in known:
        raise _unknown_model("torchvision", name, known)
    with blaming(f"torchvision's {name} cannot be made"):
        return models.get_model(name, num_classes=task.classes, **options)


def _check_options(options: Mapping[str, Any]) -> None:
    for name in options:
        if name in _FILES:
            raise BadInput(f"{name!r} cannot be an option of a model: it names weights or files, which are not read so")


def _unknown_model(package: str, name: str, known: Sequence[str]) -> BadInput:
    """The error for a model that a package of over a thousand does not have: it names the nearest."""
    near = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.3))
    return BadInput(f"{package} has no model {name!r}; nearest: {near or 'none'}")
