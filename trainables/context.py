"""What all trials of a stage share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spaces import Space
from trainables import regimes, teachers
from trainables.contracts import Data, Member
from trainables.fit import memory_format
from trainables.speed import Compile
from trainables.store import Store


@dataclass(frozen=True)
class TeacherContext:
    """A frozen teacher as it is shipped to the workers.

    Args:
        weights: gives them by name; on a cluster, from its object store, which has them once for all stages.
    """

    config: teachers.TeacherConfig
    weights: Callable[[], Mapping[str, np.ndarray]]
    hash: str
    outputs: Path | None  # where its outputs are kept, from the cache folder on; None computes them for each student


@dataclass(frozen=True)
class StageContext:
    """What all trials of a stage share; shipped once through the object store, and the images once for all stages.

    Args:
        teachers: `teacher`, and `teacher1`, ... where the recipe gives several; empty where it gives none.
        seed: of the run; initialisations and the curriculum follow from it.
        epochs: the length of the schedule of a distillation.
        objective: weights of the metrics that make up `objective`. `teacher_guidance` costs a pass of its own, and is
            only computed where it stands here, be it with weight 0.
        folder: where the stage's files lie: checkpoints, and curves of the test images.
        remote: the address of that folder in an object store, where it lies in one.
        test: evaluate on the test split after the last epoch.
        scores: for scoring, the settings of each score.
        score_batch: images in a score's batch.
        compiled: whether students are compiled.
    """

    data: Data
    space: Space
    teachers: Mapping[str, TeacherContext]
    seed: int
    folder: Path
    gpu: bool
    remote: str | None = None
    epochs: int = 0
    objective: Mapping[str, float] | None = None
    test: bool = False
    scores: Mapping[str, Mapping[str, Any]] | None = None
    score_batch: int = 64
    compiled: Compile = "none"

    def but_for_images(self) -> "Callable[[Data], StageContext]":
        """The context for workers that have the images: it is made whole again by a call with them."""
        return partial(StageContext, **{part.name: getattr(self, part.name) for part in fields(self)[1:]})

    @property
    def store(self) -> Store:
        """The stage's files."""
        return Store(self.remote or str(self.folder))

    @property
    def device(self) -> torch.device:
        """Where a trial's networks are."""
        return torch.device("cuda" if self.gpu and torch.cuda.is_available() else "cpu")

    def student(self, arch: Mapping[str, Any], seed: int) -> Member:
        """A student at its initialisation, which depends on the seed and the architecture alone."""
        return regimes.Kit(self.data, self.space, arch, {}, self.epochs, self.seed, seed).network()

    def kit(
        self, arch: Mapping[str, Any], given: Mapping[str, Any], init: int, teacher: Callable[[str], Member]
    ) -> regimes.Kit:
        """What a program is declared from; `teacher` gives the frozen teacher of a name."""
        known = {name: partial(teacher, name) for name in self.teachers}
        return regimes.Kit(self.data, self.space, arch, given, self.epochs, self.seed, init, known)

    def teacher_member(self, name: str = "teacher") -> Member:
        """A frozen teacher, on the device."""
        teacher = self.teachers[name]
        member = teachers.build(teacher.config, self.data)
        member.net.load_state_dict({name: torch.from_numpy(np.array(w)) for name, w in teacher.weights().items()})
        member = member.to(self.device).to(memory_format=memory_format(member.net, self.device))
        return member.eval().requires_grad_(False)
