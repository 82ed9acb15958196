"""Students of timm: the names of its models and their keyword arguments are the space.

A recipe replaces the names, and may add any keyword argument of `timm.create_model` as a choice or as an option:
`choices: {model: [vit_tiny_patch16_224], depth: [2, 4]}, options: {img_size: 32, patch_size: 4}`. Every model of the
space is made with all of them. Students begin without pretrained weights.
"""

from typing import Any

from ray import tune
from torch import nn

from spaces.packages import timm_model
from spaces.space import Arch, Space
from spaces.task import Task

# Small and quick ones that take images of any size from 8 pixels.
PARAM_SPACE = {
    "model": tune.choice(["lcnet_050", "mobilenetv3_small_050", "mobilenetv2_035", "tinynet_e", "resnet10t"]),
}


def build(arch: Arch, task: Task, **options: Any) -> nn.Module:
    """Network from images [B, C, H, W] to logits [B, K]. Raises `BadInput` where timm makes none."""
    given = {**options, **arch}
    return timm_model(str(given.pop("model")), task, given)


SPACE = Space(name="timm", param_space=PARAM_SPACE, builder=build, open=True)
