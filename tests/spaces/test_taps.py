"""Feature maps and heads of classifiers that dux did not build."""

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import spaces
from spaces import BadInput, Task
from spaces.taps import find_taps

TASK = Task(3, 32, 5)
SMALL = {"depth1": 1, "depth2": 2, "depth3": 1, "width": 2}


class Plain(nn.Module):
    """Two convolutions, dropout and a head, pooled by a function; its first block is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 3, 3, 1, 1), nn.BatchNorm2d(3), nn.ReLU())
        self.second = nn.Conv2d(3, 4, 3, 2, 1)
        self.dropout = nn.Dropout(0.5)
        self.hidden = nn.Linear(4, 5)
        self.head = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.second(self.first(self.first(x))))
        return self.head(F.relu(self.hidden(x.mean((2, 3)))))


def models() -> dict[str, tuple[nn.Module, tuple[str, ...], str]]:
    """Networks, with the taps and the head that a reader of their code would name."""
    torchvisions, classes = torchvision.models, {"num_classes": TASK.classes}
    return {
        "plain": (Plain(), ("first", "second"), "head"),
        "torchvision resnet18": (torchvisions.resnet18(**classes), ("relu", *stages("layer", 4)), "fc"),
        "torchvision mobilenet_v3_small": (
            torchvisions.mobilenet_v3_small(**classes),
            ("features.0", "features.1", "features.3", "features.8", "features"),
            "classifier.3",
        ),
        "timm resnet10t": (timm.create_model("resnet10t", **classes), ("act1", *stages("layer", 4)), "fc"),
        "timm vit": (
            timm.create_model("vit_tiny_patch16_224", depth=2, img_size=32, patch_size=8, **classes),
            ("patch_embed.proj",),
            "head",
        ),
        "timm swin": (
            timm.create_model(
                "swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1), embed_dim=24, img_size=32, **classes
            ),
            ("patch_embed.proj",),
            "head.fc",
        ),
    }


def stages(name: str, count: int) -> tuple[str, ...]:
    return tuple(f"{name}{i + 1}" for i in range(count))


@pytest.fixture(scope="module")
def known() -> dict[str, tuple[nn.Module, tuple[str, ...], str]]:
    return models()


NAMES = [
    "plain",
    "torchvision resnet18",
    "torchvision mobilenet_v3_small",
    "timm resnet10t",
    "timm vit",
    "timm swin",
]


@pytest.mark.parametrize("name", NAMES)
def test_the_stages_and_the_head_are_found(name: str, known: dict[str, tuple[nn.Module, tuple[str, ...], str]]) -> None:
    assert set(known) == set(NAMES)
    net, taps, head = known[name]
    assert find_taps(net, TASK) == (taps, head)


@pytest.mark.parametrize("name", NAMES)
def test_the_network_is_left_as_it_was(name: str, known: dict[str, tuple[nn.Module, tuple[str, ...], str]]) -> None:
    net = known[name][0].train()
    frozen = next(module for module in net.modules() if isinstance(module, nn.Conv2d)).eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.get_rng_state()
    find_taps(net, TASK)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert [module for module in net.modules() if not module.training] == [frozen]
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("name", [name for name, space in spaces.SPACES.items() if space.taps is not None])
def test_a_space_of_ours_is_found_as_it_says(name: str) -> None:
    space = spaces.get(name)
    task = Task(3, 16, 5)
    arch = next(space.all())
    taps, head = find_taps(space.build(arch, task), task)
    assert head == space.head
    assert taps[-1] == space.taps[-1]


@pytest.mark.parametrize("size", [8, 32, 80])
def test_the_taps_do_not_depend_on_the_image_size(size: int) -> None:
    space = spaces.get("resnet")
    task = Task(1, size, 5)
    assert find_taps(space.build(SMALL, task), task) == (space.taps, space.head)
    net = torchvision.models.mobilenet_v3_small(num_classes=5)
    assert find_taps(net, Task(3, size, 5)) == find_taps(net, Task(3, 224, 5))


def test_the_last_tap_is_the_map_before_global_pooling() -> None:
    space, task = spaces.get("resnet"), Task(3, 8, 5)
    net = space.build(SMALL, task).eval()
    taps, head = find_taps(net, task)
    maps, inputs = [], []
    net.get_submodule(taps[-1]).register_forward_hook(lambda module, args, output: maps.append(output))
    net.get_submodule(head).register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    net(torch.rand(2, 3, 8, 8))
    torch.testing.assert_close(maps[0].mean((2, 3)), inputs[0])


def test_a_network_for_one_image_size_is_looked_at_in_that_size() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1), nn.Flatten(), nn.Linear(2 * 4 * 4, 5))
    assert find_taps(net, Task(1, 8, 5)) == (("0",), "2")


def test_a_network_without_maps_has_no_taps() -> None:
    assert find_taps(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), Task(1, 8, 5)) == ((), "1")


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 7)), r"no linear layer gives logits of 5 classes.*'1 \(7\)'"),
        (nn.Sequential(nn.Conv2d(3, 5, 8), nn.Flatten()), "linear layers: none"),
        (nn.Sequential(nn.Linear(8, 5)), "no linear layer gives logits"),  # of a map, not of an image
        (nn.Sequential(nn.Conv2d(1, 5, 8)), r"does not take images \[3, 8, 8\]: "),
        (nn.Sequential(nn.Flatten(), nn.Linear(100, 5)), "does not take images"),
    ],
)
def test_a_network_that_does_not_fit_is_one_line(net: nn.Module, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        find_taps(net, Task(3, 8, 5))
    assert "\n" not in str(caught.value)
    assert not any(module._forward_hooks for module in net.modules())
