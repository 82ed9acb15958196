"""What came out of a run: tables, rankings, fronts and agreements. Needs neither torch nor Ray."""

from analysis.agreement import agreement, agreement_with, weight_sweep
from analysis.combine import combine_ranks, ensemble
from analysis.curves import curves
from analysis.errors import BadInput
from analysis.pareto import hypervolume, pareto
from analysis.ranking import rank, rank_scores
from analysis.results import Results, are_current, events, frames, load, load_many, write_tables
from analysis.schema import describe_columns
from analysis.scores import load_scores, missing

__all__ = [
    "BadInput",
    "Results",
    "agreement",
    "agreement_with",
    "are_current",
    "combine_ranks",
    "curves",
    "describe_columns",
    "ensemble",
    "events",
    "frames",
    "hypervolume",
    "load",
    "load_many",
    "load_scores",
    "missing",
    "pareto",
    "rank",
    "rank_scores",
    "weight_sweep",
    "write_tables",
]
