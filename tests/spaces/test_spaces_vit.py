"""Vision transformers against another implementation with the same weights, and against a published count."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

from spaces import SPACES, BadInput, Task, vit


def uniform(depth: int, embedding: int, heads: int, ratio: float) -> dict[str, Any]:
    """An architecture whose blocks are all alike."""
    blocks = range(1, depth + 1)
    return {
        "depth": depth,
        "embedding": embedding,
        **{f"heads{i}": heads for i in blocks},
        **{f"ratio{i}": ratio for i in blocks},
    }


def test_parameters_are_those_published() -> None:
    # DeiT-Ti (arXiv:2012.12877) has 5,717,416; without its class token and that token's position: 2 * 192 fewer.
    with torch.device("meta"):
        net = SPACES["vit-autoformer-tiny"].build(uniform(12, 192, 3, 4.0), Task(3, 224, 1000))
    assert sum(p.numel() for p in net.parameters()) == 5_717_416 - 2 * 192


def test_the_preset_is_the_papers_space() -> None:
    space = SPACES["vit-autoformer-tiny"]
    assert space.size() == 3 * 3 * (2 * 2) ** 14
    arch = {**uniform(14, 240, 4, 3.5), "ratio2": 4.0}
    space.check(arch)
    assert isinstance(space.build(arch, Task(3, 32, 5)), vit.ViT)


def weights_of(theirs: nn.Module, depth: int) -> dict[str, torch.Tensor]:
    """The weights of timm's transformer, under our names."""
    state = theirs.state_dict()
    positions = state.pop("pos_embed")
    side = int(positions.shape[1] ** 0.5)
    ours = {"patches.positions": positions.transpose(1, 2).unflatten(2, (side, side))}
    first = [stage * depth // 3 for stage in range(4)]
    stages = {i: (stage, i - first[stage]) for stage in range(3) for i in range(first[stage], first[stage + 1])}
    for name, tensor in state.items():
        if name.startswith("blocks."):
            _, index, rest = name.split(".", 2)
            stage, place = stages[int(index)]
            rest = rest.replace("attn.", "attention.").replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.2")
            ours[f"stage{stage + 1}.{place}.{rest}"] = tensor
        else:
            ours[name.replace("patch_embed.", "patches.").replace("norm.", "norm.0.")] = tensor
    return ours


def test_logits_are_those_of_another_implementation() -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=24, depth=4, num_heads=3, num_classes=5,
        class_token=False, global_pool="avg", fc_norm=False,
    ).eval()  # fmt: skip
    for parameter in theirs.parameters():  # at its initialisation its biases are zero and its norms are one
        nn.init.normal_(parameter, std=0.3)
    space = SPACES["vit"].restrict({}, head_dim=8)
    ours = space.build(uniform(4, 24, 3, 4), Task(3, 16, 5)).eval()
    ours.load_state_dict(weights_of(theirs, 4))
    images = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


def test_heads_and_ratios_beyond_the_depth_say_nothing() -> None:
    space, arch = SPACES["vit"], uniform(6, 48, 3, 2) | {"depth": 4}
    for beyond in ({"heads5": 2}, {"ratio6": 4}):
        assert space.hash({**arch, **beyond}) == space.hash(arch)
    for within in ({"heads4": 2}, {"ratio1": 4}, {"depth": 5}, {"embedding": 32}):
        assert space.hash({**arch, **within}) != space.hash(arch)


@pytest.mark.parametrize(("size", "patch", "side"), [(8, 2, 4), (13, 4, 4), (13, 2, 7), (32, 4, 8), (8, 16, 1)])
def test_patches_cover_the_image(size: int, patch: int, side: int) -> None:
    net = SPACES["vit"].restrict({}, patch=patch).build(uniform(2, 32, 2, 1), Task(1, size, 3))
    images = torch.rand(2, 1, size, size, requires_grad=True)
    assert net.patches(images).shape == (2, 32, side, side)
    [gradient] = torch.autograd.grad(net(images).sum(), images)
    assert gradient.ne(0).all()  # no pixel is left out


def test_an_image_does_not_depend_on_its_batch_and_other_sizes_are_taken() -> None:
    net = SPACES["vit"].build(uniform(3, 32, 2, 2), Task(3, 16, 4))
    images = torch.rand(4, 3, 16, 16)
    torch.testing.assert_close(net(images)[:1], net(images[:1]))
    assert net(torch.rand(2, 3, 64, 64)).shape == (2, 4)


def test_blocks_are_dealt_to_three_stages() -> None:
    for depth, expected in {1: [0, 0, 1], 2: [0, 1, 1], 4: [1, 1, 2], 6: [2, 2, 2], 14: [4, 5, 5]}.items():
        net = vit.build(uniform(depth, 8, 1, 1), Task(1, 8, 2), head_dim=4)
        assert [len(net.get_submodule(name)) for name in vit.STAGES] == expected


@pytest.mark.parametrize("options", [{"patch": 0}, {"patch": 2.5}, {"head_dim": "8"}, {"head_dim": True}])
def test_a_wrong_option_is_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=r"^(patch|head_dim) must be a whole number from 1, not "):
        SPACES["vit"].restrict({}, **options).build(uniform(2, 32, 2, 1), Task(1, 8, 3))
