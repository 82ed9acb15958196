"""What scores compute of the teacher: once for all candidates that are scored against the same teacher and batch."""

import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from trainables.contracts import Member, NotComputable, Probe
from trainables.scores.passes import untouched

T = TypeVar("T")


@dataclass
class _Kept:
    """What was computed of the last teacher and batch, and the state in which they were."""

    teacher: "weakref.ref[Member]"
    images: "weakref.ref[Tensor]"
    labels: "weakref.ref[Tensor]"
    state: object
    values: dict[Hashable, Any] = field(default_factory=dict)


_last: list[_Kept] = []


def of_teacher(probe: Probe, what: Hashable, compute: Callable[[Member], T]) -> T:
    """What `compute` makes of the probe's teacher, without gradients; the teacher is left as it was.

    Args:
        probe: its teacher and batch are what `compute` may look at.
        what: names the computation.
        compute: called only where neither teacher nor batch are those of its last call.

    Raises:
        NotComputable: there is no teacher.
    """
    teacher = probe.teacher
    if teacher is None:
        raise NotComputable("it compares with a teacher, and there is none")
    kept = _kept(teacher, probe)
    if what not in kept.values:
        with untouched(teacher), torch.no_grad():
            kept.values[what] = compute(teacher)
        kept.state = _state(teacher, probe)  # putting buffers back counts as writing to them
    value: T = kept.values[what]
    return value


def _kept(teacher: Member, probe: Probe) -> _Kept:
    for kept in _last:
        same = kept.teacher() is teacher and kept.images() is probe.images and kept.labels() is probe.labels
        if same and kept.state == _state(teacher, probe):
            return kept
    references = weakref.ref(teacher), weakref.ref(probe.images), weakref.ref(probe.labels)
    _last[:] = [_Kept(*references, _state(teacher, probe))]
    return _last[0]


def _state(teacher: Member, probe: Probe) -> object:
    """Equal as long as nothing was written to what the values depend on: torch counts writes to a tensor."""
    tensors = [probe.images, probe.labels, *teacher.parameters(), *teacher.buffers()]
    return [module.training for module in teacher.modules()], [(id(tensor), tensor._version) for tensor in tensors]
