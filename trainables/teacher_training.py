"""Training a teacher from scratch, where a recipe asks for it; kept by what it depends on, so it happens once."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from safetensors import SafetensorError, safe_open

from spaces import BadInput
from spaces.seeding import derive_seed, stable_hash
from trainables import losses, teachers
from trainables.contracts import Data, Member, Split
from trainables.curriculum import Augment, Curriculum
from trainables.declare import program
from trainables.evaluate import accuracy, predict
from trainables.failures import timed
from trainables.files import locked
from trainables.fit import Fit, OptimizerConfig


@dataclass(frozen=True)
class Trained:
    """A teacher and how good it is."""

    weights: Mapping[str, np.ndarray]
    hash: str
    seconds: float
    metrics: Mapping[str, float]
    kept: bool  # taken from the cache


def obtain(
    config: teachers.TeacherConfig, data: Data, augment: Mapping[str, Any], gpu: bool, expected: str | None = None
) -> Trained:
    """The teacher of a recipe: from its file, from its package, or trained here unless that was done before.

    Args:
        expected: the hash of the weights that are wanted again; one in the cache that has another is not taken.
    """
    device = torch.device("cuda" if gpu and torch.cuda.is_available() else "cpu")
    member = teachers.build(config, data)
    if config.train_epochs:
        from torch import _dynamo  # noqa: F401 (2 s that the first optimiser would take, and count as training)
    started, kept = time.perf_counter(), False
    if config.weights:
        teachers.load_weights(member, Path(config.weights))
    elif config.train_epochs:
        recipe = stable_hash([config.train_epochs, config.seed, dict(augment)])[:16]
        path = teachers.kept_path(config, data, recipe)
        with locked(path.with_suffix(".lock")):
            kept = _is_kept(member, path, expected)
            if not kept:
                train(member, data, config.train_epochs, config.seed, Augment(**augment), device)
                teachers.save_weights(member, path)
    seconds = 0.0 if kept or not config.train_epochs else time.perf_counter() - started
    member = member.to(device).eval()
    metrics = {f"{name}_accuracy": _accuracy(member, split, device) for name, split in
               (("valid", data.valid), ("test", data.test))}  # fmt: skip
    weights = {name: tensor.cpu().numpy() for name, tensor in member.net.state_dict().items()}
    return Trained(weights, teachers.weights_hash(member), seconds, metrics, kept)


def _is_kept(member: Member, path: Path, expected: str | None) -> bool:
    """Whether the cache has the teacher, which is read then. One whose hash is not its file's is trained again."""
    if not path.exists():
        return False
    fresh = {name: tensor.clone() for name, tensor in member.net.state_dict().items()}
    try:
        with safe_open(path, "pt") as file:
            noted = (file.metadata() or {}).get("hash")
        teachers.load_weights(member, path)
    except (BadInput, OSError, SafetensorError):
        return False
    if teachers.weights_hash(member) == (expected or noted):
        return True
    member.net.load_state_dict(fresh)
    return False


def train(member: Member, data: Data, epochs: int, seed: int, augment: Augment, device: torch.device) -> None:
    """Plain training with cross-entropy, in place."""
    curriculum = Curriculum(data.train, len(data.classes), derive_seed(seed, "teacher"), 64, augment, device)
    terms = losses.make_terms({"cross_entropy": 1.0}, losses.shapes_of(member, data.task), None)
    fit = Fit(program(member, terms, epochs), curriculum, {}, OptimizerConfig(), seed)
    for epoch in range(1, epochs + 1):
        fit.run_epoch(epoch)


def _accuracy(member: Member, split: Split, device: torch.device) -> float:
    predictions = predict(member, split, device)
    return accuracy(predictions.logits, torch.from_numpy(np.array(split.labels)))


class TeacherTrial:
    """Obtains a teacher in a worker (see `obtain`); its config has no more to say.

    It reports `trained`, a list of one reference to a `Trained`, whose weights would burden Tune; or as other trials do
    why there is none.
    """

    def __init__(
        self, config: teachers.TeacherConfig, augment: Mapping[str, Any], gpu: bool, expected: str | None, data: Data
    ) -> None:
        self._obtain = partial(obtain, config, data, augment, gpu, expected)

    def begin(self, config: Mapping[str, Any]) -> None:
        """Nothing to prepare."""

    def step(self) -> dict[str, Any]:
        """All of it."""
        return {"reports": [timed(lambda: {"trained": [ray.put(self._obtain())]})], "done": True}

    def cleanup(self) -> None:
        """Nothing to let go of."""
