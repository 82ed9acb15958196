"""What came out of a run: tables, rankings, fronts and agreements. Needs neither torch nor Ray."""

from analysis.agreement import agreement, agreement_with, weight_sweep
from analysis.combine import combine_ranks, ensemble
from analysis.comparing import Comparison, best_so_far, compare
from analysis.confidence import Confidence, confidence
from analysis.curves import curves
from analysis.displays import Shown, show
from analysis.errors import BadInput
from analysis.importance import effects, importance
from analysis.pareto import hypervolume, pareto
from analysis.profile import profile
from analysis.ranking import rank, rank_scores
from analysis.results import Results, are_current, events, frames, load, load_many, write_tables
from analysis.schema import describe_columns
from analysis.scores import load_scores, missing

__all__ = [
    "BadInput",
    "Comparison",
    "Confidence",
    "Results",
    "Shown",
    "agreement",
    "agreement_with",
    "are_current",
    "best_so_far",
    "combine_ranks",
    "compare",
    "confidence",
    "curves",
    "describe_columns",
    "effects",
    "ensemble",
    "events",
    "frames",
    "hypervolume",
    "importance",
    "load",
    "load_many",
    "load_scores",
    "missing",
    "pareto",
    "profile",
    "rank",
    "rank_scores",
    "show",
    "weight_sweep",
    "write_tables",
]
