"""The parameters of every space's networks, counted a second time: by formulas that look at no network."""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from spaces import SPACES, Task

Arch = Mapping[str, Any]


def conv(inputs: int, outputs: int, kernel: int = 3) -> int:
    """A convolution without bias, and the batch norm of its output: a scale and a shift a channel."""
    return inputs * outputs * kernel**2 + 2 * outputs


def classifier(inputs: int, task: Task) -> int:
    return (inputs + 1) * task.classes


def resnet(arch: Arch, task: Task) -> int:
    w = arch["width"]
    stem = conv(task.channels, w)
    blocks = sum((2 * arch[f"depth{i}"] - 1) * conv(v, v) for i, v in ((1, w), (2, 2 * w), (3, 4 * w)))
    # The first convolution of each stage changes the width, and a shortcut does so beside it where there is a change.
    entries = conv(w, w) + sum(conv(v // 2, v) + conv(v // 2, v, 1) for v in (2 * w, 4 * w))
    return stem + blocks + entries + classifier(4 * w, task)


def nasbench201(arch: Arch, task: Task, channels: int = 16, cells: int = 5) -> int:
    widths = [channels, 2 * channels, 4 * channels]
    kernels = [{"nor_conv_1x1": 1, "nor_conv_3x3": 3}.get(operation) for operation in arch.values()]
    inside = cells * sum(conv(w, w, kernel) for w in widths for kernel in kernels if kernel)
    reductions = sum(conv(w // 2, w) + conv(w, w) + w // 2 * w for w in widths[1:])
    return conv(task.channels, channels) + inside + reductions + 2 * widths[-1] + classifier(widths[-1], task)


def nasbench101(arch: Arch, task: Task, channels: int = 128, cells: int = 3) -> int:
    edges = np.array([[arch.get(f"edge_{i}_{j}", 0) for j in range(7)] for i in range(7)])
    paths = np.linalg.matrix_power(np.eye(7, dtype=int) + edges, 6) > 0  # [i, j]: j can be reached from i
    alive = paths[0] & paths[:, 6]
    edges = edges * np.outer(alive, alive)
    kernels = {"conv3x3-bn-relu": 3, "conv1x1-bn-relu": 1, "maxpool3x3": None}

    def width(vertex: int, outputs: int) -> int:
        if not edges[vertex, 6]:
            return max(width(j, outputs) for j in range(1, 6) if edges[vertex, j])
        sharing = np.flatnonzero(edges[1:6, 6]) + 1
        return len(np.array_split(np.arange(outputs), len(sharing))[list(sharing).index(vertex)])

    def cell(inputs: int, outputs: int) -> int:
        widths = {v: width(v, outputs) for v in range(1, 6) if alive[v]} | {6: outputs}
        projections = sum(conv(inputs, w, 1) for v, w in widths.items() if edges[0, v])
        found = [(kernels[arch[f"op{v}"]], w) for v, w in widths.items() if v < 6]
        return projections + sum(conv(w, w, kernel) for kernel, w in found if kernel)

    stacks = [cell(w // 2, w) + (cells - 1) * cell(w, w) for w in (2 * channels, 4 * channels)]
    first = cells * cell(channels, channels)
    return conv(task.channels, channels) + first + sum(stacks) + classifier(4 * channels, task)


def wrn(arch: Arch, task: Task) -> int:
    per_group, ends = (arch["depth"] - 4) // 6, [16, *(int(arch["widen"] * base) for base in (16, 32, 64))]
    total = 9 * task.channels * 16
    for u, v in pairwise(ends):
        changes = u != v or v > ends[1]  # the second and third group halve the image
        total += 9 * u * v + 9 * v * v + 2 * u + 2 * v + (u * v if changes else 0)
        total += (per_group - 1) * (18 * v * v + 4 * v)
    return total + 2 * ends[-1] + classifier(ends[-1], task)


def zen(arch: Arch, task: Task) -> int:
    total, u = conv(task.channels, arch["stem"]), arch["stem"]
    for i in range(1, 5):
        v, w, k = arch[f"width{i}"], arch[f"inner{i}"], arch[f"kernel{i}"]
        for inputs in [u] + [v] * (arch[f"depth{i}"] - 1):
            if arch[f"block{i}"] == "basic":
                total += conv(inputs, w, k) + conv(w, v, k)
            else:
                total += conv(inputs, w, 1) + conv(w, w, k) + conv(w, v, 1)
        total += conv(u, v, 1)
        u = v
    return total + conv(u, arch["last"], 1) + classifier(arch["last"], task)


def vit(arch: Arch, task: Task, patch: int = 4, head_dim: int = 16) -> int:
    d, patches = arch["embedding"], len(range(0, task.image_size, patch)) ** 2
    total = (task.channels * patch**2 + 1 + patches) * d + 2 * d + classifier(d, task)
    for i in range(1, arch["depth"] + 1):
        inner, hidden = arch[f"heads{i}"] * head_dim, int(arch[f"ratio{i}"] * d)
        total += 4 * d + (d + 1) * 3 * inner + (inner + 1) * d + (d + 1) * hidden + (hidden + 1) * d
    return total


def named(arch: Arch, task: Task) -> int:
    """The count for 3 channels and 1,000 classes, changed in the first convolution and the classifier alone."""
    count, stem, head = MODELS[arch["model"]]
    return count + (task.channels - 3) * stem + (task.classes - 1000) * (head + 1)


# Parameters as the packages' tables have them (timm's in millions: 1.88, 1.59, 1.68, 2.04, 5.44), weights of the first
# convolution for each channel of the image, and inputs of the classifier.
MODELS = {
    "lcnet_050": (1_880_856, 8 * 9, 1280),
    "mobilenetv3_small_050": (1_593_224, 16 * 9, 1024),
    "mobilenetv2_035": (1_677_128, 16 * 9, 1280),
    "tinynet_e": (2_042_972, 32 * 9, 1280),
    "resnet10t": (5_435_488, 24 * 9, 512),
    "shufflenet_v2_x0_5": (1_366_792, 24 * 9, 1024),
    "mnasnet0_5": (2_218_512, 16 * 9, 1280),
    "mobilenet_v3_small": (2_542_856, 16 * 9, 1024),
    "mobilenet_v2": (3_504_872, 32 * 9, 1280),
    "resnet18": (11_689_512, 64 * 49, 512),
}


# Every space has a line here.
COUNTS: dict[str, Callable[[Arch, Task], int]] = {
    "resnet": resnet,
    "resnet-s1": resnet,
    "nasbench101": nasbench101,
    "nasbench201": nasbench201,
    "wrn": wrn,
    "zen": zen,
    "vit": vit,
    "vit-autoformer-tiny": partial(vit, patch=16, head_dim=64),
    "timm": named,
    "torchvision": named,
}


def test_every_space_is_counted() -> None:
    assert COUNTS.keys() == SPACES.keys()


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_those_of_the_formula(name: str) -> None:
    space, rng = SPACES[name], np.random.default_rng(0)
    for task in (Task(3, 32, 10), Task(1, 16, 7)):
        for arch in [space.sample(rng) for _ in range(3)]:
            with torch.device("meta"):
                net = space.build(arch, task)
            assert sum(parameter.numel() for parameter in net.parameters()) == COUNTS[name](arch, task), arch


@pytest.mark.parametrize(("name", "count"), [("nasbench101", nasbench101), ("nasbench201", nasbench201)])
def test_the_options_of_cells_count(name: str, count: Callable[..., int]) -> None:
    options, task = {"channels": 7, "cells": 2}, Task(3, 8, 4)
    space, rng = SPACES[name].restrict({}, **options), np.random.default_rng(1)
    for arch in [space.sample(rng) for _ in range(20)]:
        net = space.build(arch, task)
        assert sum(parameter.numel() for parameter in net.parameters()) == count(arch, task, **options), arch
