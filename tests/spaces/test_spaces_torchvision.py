"""Students of torchvision: the counts of its documentation, its keyword arguments, and what it does not take."""

from typing import Any

import pytest
import torch
from torchvision import models

from spaces import SPACES, BadInput, Task, check_space

TASK = Task(3, 16, 5)
PUBLISHED = {
    "resnet18": models.ResNet18_Weights,
    "mobilenet_v2": models.MobileNet_V2_Weights,
    "mnasnet0_5": models.MNASNet0_5_Weights,
    "shufflenet_v2_x0_5": models.ShuffleNet_V2_X0_5_Weights,
    "mobilenet_v3_small": models.MobileNet_V3_Small_Weights,
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_parameters_are_those_published(model: str) -> None:
    with torch.device("meta"):
        net = SPACES["torchvision"].build({"model": model}, Task(3, 224, 1000))
    published = PUBLISHED[model].DEFAULT.meta["num_params"]
    assert sum(p.numel() for p in net.parameters()) == published
    assert model != "resnet18" or published == 11_689_512


def test_its_own_models_run_on_small_images_with_taps_and_head() -> None:
    space = SPACES["torchvision"]
    for task in (TASK, Task(1, 8, 3)):
        check_space(space, task)
    net = space.build({"model": "resnet18"}, TASK)
    assert space.look(net, TASK) == (("relu", "layer1", "layer2", "layer3", "layer4"), "fc")


@pytest.mark.parametrize("model", ["resnet18", "shufflenet_v2_x0_5", "vgg11", "densenet121", "swin_t", "convnext_tiny"])
def test_grey_images_change_the_first_convolution_alone(model: str) -> None:
    with torch.device("meta"):
        grey, colour = (SPACES["torchvision"].build({"model": model}, Task(c, 64, 5)) for c in (1, 3))
    shapes = {name: tensor.shape for name, tensor in colour.state_dict().items()}
    changed = {name: (t.shape, shapes.pop(name)) for name, t in grey.state_dict().items() if t.shape != shapes[name]}
    [(ours, theirs)] = changed.values()
    assert (ours[0], ours[1], ours[2:]) == (theirs[0], 1, theirs[2:])
    assert theirs[1] == 3
    assert grey.state_dict().keys() == colour.state_dict().keys()


def test_keyword_arguments_are_choices() -> None:
    space = SPACES["torchvision"].restrict({"model": ["mobilenet_v2"], "width_mult": [0.25, 0.35, 1.0]})
    check_space(space, TASK)
    arch = {"model": "mobilenet_v2", "width_mult": 0.35}
    space.check(arch)
    with torch.device("meta"):
        net = space.build(arch, Task(3, 224, 1000))
    assert sum(p.numel() for p in net.parameters()) == 1_677_128  # as its authors publish: 1.68 million
    wide = SPACES["torchvision"].restrict({"model": ["resnet50"], "width_per_group": [16, 64]})
    with torch.device("meta"):
        counts = [sum(p.numel() for p in wide.build(arch, TASK).parameters()) for arch in wide.all()]
    assert counts == sorted(set(counts))


def test_a_model_that_needs_numbers_to_be_built_is_checked_too() -> None:
    check_space(SPACES["torchvision"].restrict({"model": ["regnet_y_400mf"]}), TASK)


WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "one unknown model among many": (
        {"model": ["resnet18", "resnet19"]},
        {},
        r"^torchvision has no model 'resnet19'; nearest: .*resnet18",
    ),
    "an argument that it does not take": (
        {"model": ["mobilenet_v2"], "width": [1, 2]},
        {},
        r"^torchvision's mobilenet_v2 cannot be made: TypeError: .*'width'",
    ),
    "a value that it does not take": (
        {"model": ["resnet18"], "width_per_group": [32]},
        {},
        r"^torchvision's resnet18 cannot be made: ValueError: BasicBlock only supports",
    ),
    "weights": ({"model": ["resnet18"]}, {"weights": "DEFAULT"}, "^'weights' cannot be an option of a model"),
    "images that are too small": (
        {"model": ["densenet121"]},
        {},
        r"^space 'torchvision', model=densenet121: the network does not take images \[3, 16, 16\]: RuntimeError: Given",
    ),
    "other than logits while training": (
        {"model": ["googlenet"]},
        {"init_weights": False},
        r"gives GoogLeNetOutputs for 2 images, not logits \[2, 5\]",
    ),
    "no linear layer at its end": (
        {"model": ["squeezenet1_1"]},
        {},
        r"^space 'torchvision', model=squeezenet1_1: no linear layer gives",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_torchvision_does_not_take_is_one_line(name: str) -> None:
    choices, options, message = WRONG[name]
    size = 64 if name in ("no linear layer at its end", "other than logits while training") else 16
    with pytest.raises(BadInput, match=message) as caught:
        check_space(SPACES["torchvision"].restrict(choices, **options), Task(3, size, 5))
    assert "\n" not in str(caught.value)
