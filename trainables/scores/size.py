"""Scores that are only the size of the student: what every other score has to beat."""

from trainables import cost
from trainables.contracts import Probe


def params(probe: Probe) -> float:
    """Number of trainable parameters of the student."""
    return float(cost.params(probe.student))


def flops(probe: Probe) -> float:
    """Multiply-adds of one image through the student's convolutions and linear layers (see `cost.flops`)."""
    return float(cost.flops(probe.student, probe.task))
