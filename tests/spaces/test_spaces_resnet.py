"""The residual networks against published counts and published weights."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from spaces import SPACES, BadInput, Task, resnet

DATA = Path(os.environ.get("DUX_TEST_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def build(depths: tuple[int, int, int], width: int, classes: int, shortcut: str) -> nn.Module:
    arch = {"depth1": depths[0], "depth2": depths[1], "depth3": depths[2], "width": width}
    space = SPACES["resnet"].restrict({name: [value] for name, value in arch.items()}, shortcut=shortcut)
    return space.build(arch, Task(3, 32, classes))


@pytest.mark.parametrize(
    ("depth", "width", "classes", "shortcut", "params"),
    [
        (3, 16, 10, "pad", 269_722),  # ResNet-20; these four as published for the paper's CIFAR-10 networks
        (5, 16, 10, "pad", 464_154),
        (9, 16, 10, "pad", 853_018),
        (18, 16, 10, "pad", 1_727_962),
        (3, 16, 100, "conv", 278_324),
    ],
)
def test_parameters_are_those_published(depth: int, width: int, classes: int, shortcut: str, params: int) -> None:
    with torch.device("meta"):
        net = build((depth, depth, depth), width, classes, shortcut)
    assert sum(p.numel() for p in net.parameters()) == params


def test_s1_is_the_paper_s_space() -> None:
    assert SPACES["resnet-s1"].size() == 64 * 3
    assert SPACES["resnet"].size() == 64 * 3


def test_an_unknown_shortcut_is_refused() -> None:
    with pytest.raises(BadInput, match=r"^unknown shortcut 'pads'; did you mean 'pad'\? known: conv, pad$"):
        build((1, 1, 1), 4, 2, "pads")


def test_padding_keeps_every_second_pixel_between_zero_channels() -> None:
    x = torch.arange(2 * 2 * 4 * 4, dtype=torch.float32).reshape(2, 2, 4, 4)
    out = resnet.PadShortcut(channels=2, stride=2)(x)
    assert out.shape == (2, 4, 2, 2)
    assert torch.equal(out[:, 1:3], x[:, :, ::2, ::2])
    assert not out[:, [0, 3]].any()


@pytest.mark.skipif(not (DATA / "teachers").is_dir(), reason="no trained networks here")
def test_published_weights_of_resnet20_recognise_real_images() -> None:
    from PIL import Image
    from pyarrow import parquet

    [path] = (DATA / "teachers").glob("resnet20-*.th")
    saved = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    net = build((3, 3, 3), 16, 10, "pad").eval()
    net.load_state_dict({k.removeprefix("module.").replace("linear.", "fc."): v for k, v in saved.items()})
    rows = next(parquet.ParquetFile(DATA / "cifar10" / "test.parquet").iter_batches(batch_size=200)).to_pylist()
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))) for row in rows])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        logits = net((images - mean[:, None, None]) / std[:, None, None])
    accuracy = (logits.argmax(1) == torch.tensor([row["label"] for row in rows])).float().mean().item()
    assert accuracy > 0.87  # 91.7 % of all 10,000; standard error of 200: 2 %
