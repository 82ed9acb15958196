"""Networks that a package has by name: timm's and torchvision's."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from spaces.errors import BadInput
from spaces.others import blaming
from spaces.task import Task


def timm_model(name: str, task: Task, options: Mapping[str, Any], pretrained: bool = False) -> nn.Module:
    """A model of timm; `options` are keyword arguments of `timm.create_model`.

    Raises:
        BadInput: no such model (with the nearest), or one that does not take an option.
    """
    import timm  # here, for importing it takes seconds that others need not pay

    if not timm.is_model(name):
        raise _unknown_model("timm", name, timm.list_models())
    given = {"num_classes": task.classes, "in_chans": task.channels, **options}
    with blaming(f"timm's {name} cannot be made"):
        return timm.create_model(name, pretrained=pretrained, **given)


def torchvision_model(name: str, task: Task, options: Mapping[str, Any]) -> nn.Module:
    """A model of torchvision for colour images, without its weights; `options` are arguments of its function.

    Raises:
        BadInput: no such model (with the nearest), or one that does not take an option.
    """
    from torchvision import models  # here, for importing it takes seconds that others need not pay

    known = models.list_models(module=models)
    if name not in known:
        raise _unknown_model("torchvision", name, known)
    with blaming(f"torchvision's {name} cannot be made"):
        return models.get_model(name, num_classes=task.classes, **options)


def _unknown_model(package: str, name: str, known: Sequence[str]) -> BadInput:
    """The error for a model that a package of over a thousand does not have: it names the nearest."""
    near = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.3))
    return BadInput(f"{package} has no model {name!r}; nearest: {near or 'none'}")
