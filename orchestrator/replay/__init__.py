"""Searches replayed from recorded results: a table takes the place of the trainings, and time is virtual.

A recipe with the key `replay` runs through the same samplers, stop rules, book and ledger as any other; only what a
worker would compute is looked up, and the clock jumps to when it would have been ready. So ways to search are compared
in seconds, on thousands of students and on as many workers as one likes.
"""

from orchestrator.replay.search import Replay, simulate
from orchestrator.replay.table import Table

__all__ = ["Replay", "Table", "simulate"]
