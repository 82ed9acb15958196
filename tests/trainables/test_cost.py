"""Costs against values counted by hand, torch's own counter, and serialised files."""

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import spaces
from spaces import BadInput, Space, Task
from trainables import cost

SMALL = {"depth1": 1, "depth2": 1, "depth3": 1, "width": 4}
TASK = Task(3, 8, 10)
RESNET = spaces.get("resnet").restrict({"width": [2, 4, 16]})


def test_a_resnet_20_has_as_many_parameters_as_counted_elsewhere() -> None:
    arch = {"depth1": 3, "depth2": 3, "depth3": 3, "width": 16}
    found = cost.measure(RESNET, arch, Task(3, 32, 100))
    assert found["params"] == 278_324
    # Stem and convolutions of three stages, two 1 x 1 shortcuts, classifier; each stage but for its first layer costs
    # the same: half the pixels on a side, twice the channels.
    layer = 32 * 32 * 16 * 16 * 9
    by_hand = 32 * 32 * 16 * 27 + 6 * layer + 2 * (layer // 2 + 5 * layer) + 2 * (16 * 16 * 32 * 16) + 64 * 100
    assert found["flops"] == by_hand


@pytest.mark.parametrize(
    ("layer", "shape", "by_hand"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (3, 8), 8 * 8 * 8 * 3 * 9),
        (nn.Conv2d(8, 4, 3, stride=2, padding=1, groups=4), (8, 8), 4 * 4 * 4 * 2 * 9),
        (nn.Conv2d(8, 8, 5, padding=4, dilation=2, groups=8, bias=False), (8, 8), 8 * 8 * 8 * 25),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (4, 8), 8 * 8 * 4 * 6 * 4),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 2), 12 * 5),
        (nn.Linear(8, 5), (2, 8), 2 * 8 * 8 * 5),  # at each of 16 positions
        (nn.BatchNorm2d(3), (3, 8), 0),
    ],
)
def test_flops_of_one_layer_are_those_counted_by_hand(layer: nn.Module, shape: tuple[int, int], by_hand: int) -> None:
    assert cost.flops(layer, Task(*shape, classes=5)) == by_hand


def test_a_layer_called_twice_costs_twice() -> None:
    layer = nn.Conv2d(4, 4, 3, padding=1)
    task = Task(4, 8, 4)
    assert cost.flops(nn.Sequential(layer, layer), task) == 2 * cost.flops(layer, task)


@pytest.mark.parametrize("depth", [1, 3])
def test_flops_are_half_of_what_torch_counts(depth: int) -> None:
    net = RESNET.build({**SMALL, "depth2": depth}, TASK).eval()
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, 8, 8))
    assert 2 * cost.flops(net, TASK) == counter.get_total_flops()


@pytest.mark.parametrize("name", spaces.SPACES)
def test_costs_on_the_meta_device_are_those_of_the_real_network(name: str) -> None:
    space, task = spaces.get(name), Task(3, 32, 10)
    arch = space.sample(np.random.default_rng(0))
    net = space.build(arch, task)
    expected = {"bytes": cost.size_bytes(net), "flops": cost.flops(net, task), "params": cost.params(net)}
    assert cost.measure(space, arch, task, want=["bytes", "flops", "params"]) == expected
    assert all(value > 0 for value in expected.values())


def test_frozen_parameters_are_not_counted() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    assert cost.params(net) == 4 * 2 + 2


def test_bytes_are_those_of_the_serialised_state() -> None:
    net = RESNET.build(SMALL, TASK)
    file = save(net.state_dict())
    header = 8 + int.from_bytes(file[:8], "little")
    assert cost.size_bytes(net) == len(file) - header
    assert cost.size_bytes(net.half()) < len(file) - header


def test_shared_weights_are_counted_once() -> None:
    one = nn.Linear(3, 3)
    assert cost.size_bytes(nn.Sequential(one, one)) == 4 * 12


def test_counting_leaves_the_network_as_it_was() -> None:
    net = RESNET.build(SMALL, TASK).train()
    net.get_submodule("layer2").eval()
    modes = [module.training for module in net.modules()]
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    cost.flops(net, TASK)
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert not any(module._forward_hooks or "forward" in vars(module) for module in net.modules())
    assert not torch.equal(net(torch.rand(2, 3, 8, 8)), net(torch.rand(2, 3, 8, 8)))  # it works as before
    assert not torch.equal(net.get_buffer("bn1.running_mean"), state["bn1.running_mean"])


def test_a_failing_network_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(5, 2, 3))
    with pytest.raises(RuntimeError, match="channels"):
        cost.flops(net, TASK)
    assert net.training
    assert not any(module._forward_hooks or "forward" in vars(module) for module in net.modules())


def test_measuring_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    found = cost.measure(RESNET, SMALL, TASK, want=("latency_ms", "params"), repeats=2)
    assert list(found) == ["latency_ms", "params"]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_without_values_has_no_storage_and_still_all_shapes() -> None:
    class Truncated(nn.Linear):
        def reset_parameters(self) -> None:
            nn.init.trunc_normal_(self.weight, std=0.02)
            nn.init.constant_(self.bias, 1.0)

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    called: list[str] = []
    space = Space("own", RESNET.param_space, lambda arch, task: Truncated(arch["width"], task.classes), (), "")
    with Operations():
        net = cost.build_without_values(space, SMALL, TASK)
    assert set(called) <= {"empty", "detach"}  # nothing is filled, which would take most of the time
    assert all(tensor.is_meta for tensor in net.state_dict().values())
    assert [tuple(p.shape) for p in net.parameters()] == [(10, 4), (10,)]


def test_latency_is_a_positive_time_and_grows_with_the_network() -> None:
    small = cost.latency_ms(RESNET.build(SMALL, TASK), TASK, repeats=5)
    deep = RESNET.build({"depth1": 7, "depth2": 7, "depth3": 7, "width": 4}, TASK)
    assert 0 < small < cost.latency_ms(deep, TASK, repeats=5) < math.inf


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_latency_on_a_gpu() -> None:
    assert cost.measure(RESNET, SMALL, TASK, want=("latency_ms",), device="cuda", repeats=3)["latency_ms"] > 0


def test_mistakes_are_named() -> None:
    with pytest.raises(BadInput, match=r"unknown cost 'flop'; did you mean 'flops'\? known: bytes, flops, lat"):
        cost.measure(RESNET, SMALL, TASK, want=("flop",))
    with pytest.raises(BadInput, match="at least 1 repeat, not 0"):
        cost.latency_ms(nn.Linear(1, 1), TASK, repeats=0)


class Unusual(nn.Module):
    """Operations whose shapes are not those of the usual ones, or that are called in other ways."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv2d(3, 4, 3, padding="same")
        self.strided = nn.Conv2d(4, 8, (3, 5), (2, 1), (1, 2), (1, 2), groups=2)
        self.circular = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
        self.kernel = nn.Parameter(torch.ones(8, 8, 1, 1))
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.head = nn.Linear(8, 10)
        self.wide = nn.Linear(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.strided(self.same(x))
        x = self.circular(x) + self.scale  # broadcast
        x = torch.add(x, x, alpha=2) + 1.0
        x = functional.conv2d(x, self.kernel) + functional.conv2d(x, self.kernel, None, 1, 0, 1, 1)
        x = self.wide(x.permute(0, 1, 3, 2)[..., :6]).mean((-2, -1), keepdim=True)
        return self.head(x.flatten(1)) + self.head(x.squeeze().expand(len(x), 8)).mean(1, True)


def test_shapes_alone_count_what_running_the_network_counts() -> None:
    task = Task(3, 16, 10)
    real = Unusual()
    with torch.device("meta"):
        shapes = Unusual()
    assert cost.flops(shapes, task) == cost.flops(real, task)


def test_what_is_wrong_is_said_without_numbers_too() -> None:
    with torch.device("meta"):
        wrong = [nn.Conv2d(4, 4, 3), nn.Conv2d(3, 4, 20), nn.Sequential(nn.Flatten(), nn.Linear(7, 2))]
    for net in wrong:
        with pytest.raises(RuntimeError):
            cost.flops(net, Task(3, 16, 10))


NO_COMPILER = """
import sys, spaces
from trainables import cost
space, task = spaces.get("resnet"), spaces.Task(3, 32, 10)
cost.measure(space, {"depth1": 1, "depth2": 2, "depth3": 1, "width": 8}, task)
print("sympy" in sys.modules, "torch._dynamo" in sys.modules)
"""


def test_counting_a_residual_network_does_not_wait_for_the_compiler() -> None:
    command = [sys.executable, "-c", NO_COMPILER]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "False False\n"
