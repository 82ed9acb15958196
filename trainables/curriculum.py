"""Which images, in which order, augmented how, at epoch e: a pure function of (seed, epoch).

Every candidate sees the same views in the same batches. So the teacher's outputs for an epoch serve all of them, and
candidates are compared under common random numbers.
"""

import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from spaces.seeding import generator, stable_hash
from spaces.settings import Flag, Number, Setting, resolve
from trainables.contracts import Split

TOGETHER = 2**20
"""Bytes of images that are augmented at once: several batches of small images, whose calls would cost more than the
work; one batch of larger ones, which are then still in the processor's cache when they are used."""


@dataclass(frozen=True)
class Augment:
    """How a training image is changed; drawn anew for each image and epoch.

    Args:
        crop: shift by up to this many pixels, black beyond the edge (pad and crop).
        flip: mirror left and right with probability 1/2.
        cutout: side in pixels of a square of zeros at a random place (arXiv:1708.04552).
        mixup: alpha of the Beta distribution that mixes images and labels of a batch (arXiv:1710.09412); 0 is off.

    Raises:
        BadInput: a value that one of `SETTINGS` refuses.
    """

    SETTINGS: ClassVar[dict[str, Setting]] = {
        "crop": Number(0, low=0, whole=True),
        "flip": Flag(False),
        "cutout": Number(0, low=0, whole=True),
        "mixup": Number(0.0, low=0),
    }

    crop: int = SETTINGS["crop"].default
    flip: bool = SETTINGS["flip"].default
    cutout: int = SETTINGS["cutout"].default
    mixup: float = SETTINGS["mixup"].default

    def __post_init__(self) -> None:
        resolve("augment", vars(self), self.SETTINGS)


@dataclass(frozen=True)
class Batch:
    """Images [B, C, H, W] in [0, 1]; labels int64 [B], or probabilities [B, K] where images were mixed.

    `index` [B] is each image's place in the split (of mixed images, the first one's).
    """

    images: Tensor
    labels: Tensor
    index: Tensor


class Curriculum:
    """The epochs of one training split on one device.

    The last, smaller batch of an epoch is left out, so that all batches have one size (other images are left out in
    each epoch); a split smaller than `batch_size` is one batch.
    """

    def __init__(
        self, split: Split, classes: int, seed: int, batch_size: int, augment: Augment, device: torch.device
    ) -> None:
        self.seed, self.augment, self.device, self.classes = seed, augment, device, classes
        self.split = split
        self.images = _tensor(split.images).to(device)
        self.labels = _tensor(split.labels).to(device)
        self.batch_size = min(batch_size, len(split))

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.labels) // self.batch_size

    def key(self) -> str:
        """Names what the epochs look like (not the images themselves)."""
        return stable_hash([self.seed, self.batch_size, asdict(self.augment)])[:16]

    def batches(self, epoch: int, within: range | None = None) -> Iterator[Batch]:
        """The batches of an epoch (counted from 1). All randomness is drawn on the CPU: every device sees the same.

        Args:
            within: only these, one after the other; None for all.
        """
        n, (height, width) = len(self.labels), self.images.shape[-2:]
        rng = generator(self.seed, "curriculum", epoch)
        order = rng.permutation(n)
        draws = {
            "shift": rng.integers(0, 2 * self.augment.crop + 1, (n, 2)),
            "flip": rng.random(n) < 0.5,
            "centre": rng.integers(0, (height, width), (n, 2)),
        }
        mix = rng.beta(self.augment.mixup, self.augment.mixup, len(self)) if self.augment.mixup else None
        on_device = {name: torch.from_numpy(draw).to(self.device) for name, draw in draws.items()}
        order_N = torch.from_numpy(order).to(self.device)
        together = self.batch_size * max(1, TOGETHER // (4 * self.images[: self.batch_size].numel()))
        views = None
        for i in range(len(self)) if within is None else within:
            first = i * self.batch_size
            if views is None or first % together == 0:
                chunk = slice(first - first % together, first - first % together + together)
                views = self._view(self.images[order_N[chunk]], {name: draw[chunk] for name, draw in on_device.items()})
            index_B = order_N[first : first + self.batch_size]
            images = views[first % together :][: self.batch_size]
            labels = self.labels[index_B]
            if mix is not None:
                # The order is random, so the neighbour in the batch is a random partner.
                share = float(mix[i])
                images = share * images + (1 - share) * images.roll(1, 0)
                one_hot = F.one_hot(labels, self.classes).float()
                labels = share * one_hot + (1 - share) * one_hot.roll(1, 0)
            yield Batch(images, labels, index_B)

    def augmented(self, index_B: Tensor) -> Tensor:
        """The images of these places, each augmented anew (not mixed); what is random comes from torch's generator."""
        height, width = self.images.shape[-2:]
        draws = {
            "shift": torch.randint(0, 2 * self.augment.crop + 1, (len(index_B), 2)),
            "flip": torch.rand(len(index_B)) < 0.5,
            "centre": (torch.rand(len(index_B), 2) * torch.tensor([height, width])).long(),
        }
        return self._view(self.images[index_B], {name: draw.to(self.device) for name, draw in draws.items()})

    def _view(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """Augmented images in [0, 1] of uint8 images [B, C, H, W]."""
        height, width = images.shape[-2:]
        crop = self.augment.crop
        if crop or self.augment.flip:
            padded = F.pad(images, (crop, crop, crop, crop))
            rows_BH = draws["shift"][:, :1] + torch.arange(height, device=self.device)
            columns_BW = draws["shift"][:, 1:] + torch.arange(width, device=self.device)
            if self.augment.flip:
                columns_BW = torch.where(draws["flip"][:, None], columns_BW.flip(1), columns_BW)
            batch = torch.arange(len(images), device=self.device)[:, None, None]
            images = padded[batch, :, rows_BH[:, :, None], columns_BW[:, None, :]].permute(0, 3, 1, 2)
        # Gathered channels lie last, and torch's CPU kernels would take a network's layout from that.
        pixels = images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        if self.augment.cutout:
            near = [
                (torch.arange(size, device=self.device) - draws["centre"][:, axis, None] + self.augment.cutout // 2)
                for axis, size in enumerate((height, width))
            ]
            inside = [(distance >= 0) & (distance < self.augment.cutout) for distance in near]
            pixels = pixels.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0.0)
        return pixels


def _tensor(array: np.ndarray) -> Tensor:
    """A tensor over the array's own memory, which may be read-only and shared between workers."""
    with warnings.catch_warnings():
        # torch warns that writing to it would be undefined; nobody writes to a split.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
