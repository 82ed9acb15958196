"""Students of timm: counts that its authors publish, its keyword arguments, and what it does not take."""

from typing import Any

import numpy as np
import pytest
import timm
import torch

from spaces import SPACES, BadInput, Task, check_space

TASK = Task(3, 16, 5)


@pytest.mark.parametrize(
    ("model", "params"), [("resnet18", 11_689_512), ("mnasnet_100", 4_383_312), ("vit_tiny_patch16_224", 5_717_416)]
)
def test_parameters_are_those_published(model: str, params: int) -> None:
    with torch.device("meta"):
        net = SPACES["timm"].build({"model": model}, Task(3, 224, 1000))
    assert sum(p.numel() for p in net.parameters()) == params


def test_its_own_models_run_on_small_images_with_taps_and_head() -> None:
    space = SPACES["timm"]
    for task in (TASK, Task(1, 8, 3)):
        check_space(space, task)
    net = space.build({"model": "resnet10t"}, TASK)
    assert space.look(net, TASK) == (("act1", "layer1", "layer2", "layer3", "layer4"), "fc")


def test_keyword_arguments_are_choices_and_options() -> None:
    space = SPACES["timm"].restrict(
        {"model": ["vit_tiny_patch16_224"], "depth": [1, 2]}, img_size=16, patch_size=4, embed_dim=24
    )
    check_space(space, TASK)
    one, two = (space.build({"model": "vit_tiny_patch16_224", "depth": depth}, TASK) for depth in (1, 2))
    assert (len(one.blocks), len(two.blocks)) == (1, 2)
    assert one.patch_embed.num_patches == 16
    assert space.size() == 2
    assert {space.sample(np.random.default_rng(i))["depth"] for i in range(9)} == {1, 2}


def test_weights_are_random_and_follow_torchs_seed() -> None:
    def first() -> torch.Tensor:
        torch.manual_seed(1)
        return next(SPACES["timm"].build({"model": "lcnet_050"}, TASK).parameters())

    ours = first()
    assert torch.equal(ours, first())
    torch.manual_seed(1)
    assert torch.equal(ours, next(timm.create_model("lcnet_050", num_classes=5).parameters()))


WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "one unknown model among many": (
        {"model": ["lcnet_050", "resnet10t", "resnet10"]},
        {},
        r"^timm has no model 'resnet10'; nearest: .*resnet10t",
    ),
    "no name": ({"model": ["lcnet_050", 3]}, {}, r"^timm has no model '3'"),
    "an argument that it does not take": (
        {"model": ["resnet10t"], "wide": [1, 2]},
        {},
        r"^timm's resnet10t cannot be made: TypeError: .*'wide'",
    ),
    "an option that only one takes": (
        {"model": ["test_vit", "resnet10t"]},
        {"img_size": 16},
        r"^timm's resnet10t cannot be made: TypeError: .*'img_size'",
    ),
    "images of another size": (
        {"model": ["vit_tiny_patch16_224"], "depth": [1]},
        {},
        r"^space 'timm', model=.*, depth=1: the network does not take images \[3, 16, 16\]: AssertionError: Input",
    ),
    "pretrained": ({"model": ["resnet10t"]}, {"pretrained": True}, "^'pretrained' cannot be an option"),
    "a file as an option": ({"model": ["resnet10t"]}, {"checkpoint_path": "a.pth"}, "^'checkpoint_path' cannot be an"),
    "a file as a choice": ({"model": ["resnet10t"], "cache_dir": ["a"]}, {}, "^'cache_dir' cannot be an option"),
    "other classes": (
        {"model": ["resnet10t"]},
        {"num_classes": 4},
        r"gives a tensor \[2, 4\] for 2 images, not logits \[2, 5\]",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_timm_does_not_take_is_one_line(name: str) -> None:
    choices, options, message = WRONG[name]
    with pytest.raises(BadInput, match=message) as caught:
        check_space(SPACES["timm"].restrict(choices, **options), TASK)
    assert "\n" not in str(caught.value)
