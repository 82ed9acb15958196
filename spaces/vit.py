"""Vision transformers (AutoFormer, Chen et al. 2021, arXiv:2107.00651, section 3), for small images too.

Depth and embedding belong to the network; heads and MLP ratio are chosen block by block. As in the paper a head's
dimension is fixed, so that the queries, keys and values of a block are as wide as it has heads. Positions are learned
and absolute, without the paper's relative ones; there is neither dropout nor stochastic depth.

Shapes: B images, D embedding, h x w patches, N = h * w tokens, K classes.
"""

import math

import torch
from ray import tune
from torch import Tensor, nn
from torch.nn import functional as F

from spaces.domains import Domain
from spaces.errors import BadInput
from spaces.space import Arch, Space
from spaces.task import Task

STAGES = ("stage1", "stage2", "stage3")


def param_space(
    depths: list[int], embeddings: list[int], heads: list[int], ratios: list[int] | list[float]
) -> dict[str, Domain]:
    """Choices of a network, and for each of its blocks; those of blocks beyond the depth say nothing."""
    blocks = range(1, max(depths) + 1)
    return {
        "depth": tune.choice(depths),  # blocks
        "embedding": tune.choice(embeddings),  # channels of a token
        **{f"heads{i}": tune.choice(heads) for i in blocks},
        **{f"ratio{i}": tune.choice(ratios) for i in blocks},  # width of the MLP over the embedding
    }


def build(arch: Arch, task: Task, patch: int = 4, head_dim: int = 16) -> nn.Module:
    """Network from images [B, C, H, W] to logits [B, K].

    Args:
        arch: see `param_space`.
        task: shape of the input and number of classes.
        patch: pixels of a patch's side. Images that it does not divide get zeros at the right and the bottom.
        head_dim: channels of an attention head.

    Raises:
        BadInput: `patch` or `head_dim` is not a whole number from 1.
    """
    for name, value in {"patch": patch, "head_dim": head_dim}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise BadInput(f"{name} must be a whole number from 1, not {value!r}")
    return ViT(arch, task, patch, head_dim)


class Attention(nn.Module):
    """Multi-head self-attention over tokens [B, N, D]."""

    def __init__(self, embedding: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(embedding, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, embedding)

    def forward(self, x_BND: Tensor) -> Tensor:
        qkv = self.qkv(x_BND).unflatten(2, (3, self.heads, -1))  # [B, N, 3, heads, head_dim]
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4).unbind()
        mixed = F.scaled_dot_product_attention(queries, keys, values)  # [B, heads, N, head_dim]
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and an MLP, each on normalised tokens [B, N, D] and with a shortcut around it."""

    def __init__(self, embedding: int, heads: int, head_dim: int, ratio: float) -> None:
        super().__init__()
        hidden = max(1, int(ratio * embedding))
        self.norm1 = nn.LayerNorm(embedding, eps=1e-6)
        self.attention = Attention(embedding, heads, head_dim)
        self.norm2 = nn.LayerNorm(embedding, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(embedding, hidden), nn.GELU(), nn.Linear(hidden, embedding))

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BND = x_BND + self.attention(self.norm1(x_BND))
        return x_BND + self.mlp(self.norm2(x_BND))


class OnTokens(nn.Sequential):
    """Modules that work on tokens [B, N, D], applied to a map [B, D, h, w]: what losses look at are maps."""

    def forward(self, map_BDhw: Tensor) -> Tensor:
        tokens_BND = super().forward(map_BDhw.flatten(2).transpose(1, 2))
        return tokens_BND.transpose(1, 2).unflatten(2, map_BDhw.shape[2:])


class Patches(nn.Module):
    """From images [B, C, H, W] to a map [B, D, h, w] of embedded patches, each with its position."""

    def __init__(self, task: Task, embedding: int, patch: int) -> None:
        super().__init__()
        side = math.ceil(task.image_size / patch)
        self.patch = patch
        self.proj = nn.Conv2d(task.channels, embedding, patch, patch)
        self.positions = nn.Parameter(torch.zeros(1, embedding, side, side))

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        map_BDhw = self.proj(F.pad(images, (0, -width % self.patch, 0, -height % self.patch)))
        positions: Tensor = self.positions
        if positions.shape[2:] != map_BDhw.shape[2:]:  # images of another size than the task's
            positions = F.interpolate(positions, map_BDhw.shape[2:], mode="bilinear")
        return map_BDhw + positions


class ViT(nn.Module):
    """Patches, the blocks in three stages, a norm, and the classifier of the mean token.

    The mean takes the place of a class token, so that the last map, averaged, is what the classifier sees.
    """

    def __init__(self, arch: Arch, task: Task, patch: int, head_dim: int) -> None:
        super().__init__()
        embedding, depth = arch["embedding"], arch["depth"]
        blocks = [Block(embedding, arch[f"heads{i}"], head_dim, arch[f"ratio{i}"]) for i in range(1, depth + 1)]
        self.patches = Patches(task, embedding, patch)
        # As equal thirds as can be; where there are too few blocks, the first stages have none.
        for i, name in enumerate(STAGES):
            self.add_module(name, OnTokens(*blocks[i * depth // 3 : (i + 1) * depth // 3]))
        self.norm = OnTokens(nn.LayerNorm(embedding, eps=1e-6))
        self.head = nn.Linear(embedding, task.classes)
        nn.init.trunc_normal_(self.patches.positions, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                # Scaled to the width: with the usual deviation of 0.02 an embedding of 24 reaches 68 % on digits after
                # 10 epochs, so 85 % (AdamW, n = 2 seeds).
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        for name in STAGES:
            x = self.get_submodule(name)(x)
        return self.head(self.norm(x).mean((2, 3)))


def canonical_form(arch: Arch) -> list[object]:
    """Depth, embedding, and heads and ratio of each block that there is."""
    blocks = [[arch[f"heads{i}"], arch[f"ratio{i}"]] for i in range(1, arch["depth"] + 1)]
    return [arch["depth"], arch["embedding"], blocks]


SPACE = Space(
    name="vit",
    param_space=param_space(depths=[2, 3, 4, 5, 6], embeddings=[32, 48, 64], heads=[2, 3, 4], ratios=[1, 2, 4]),
    builder=build,
    taps=("stage1", "stage2", "norm"),
    head="head",
    canonical_form=canonical_form,
    options={"patch": 4, "head_dim": 16},
)

# The paper's Supernet-tiny (its table 2), for images of 224 pixels.
AUTOFORMER_TINY = Space(
    name="vit-autoformer-tiny",
    param_space=param_space(depths=[12, 13, 14], embeddings=[192, 216, 240], heads=[3, 4], ratios=[3.5, 4.0]),
    builder=build,
    taps=SPACE.taps,
    head=SPACE.head,
    canonical_form=canonical_form,
    options={"patch": 16, "head_dim": 64},
)
