"""What came out of a run: tables, rankings, fronts and agreements. Needs neither torch nor Ray."""

from analysis.agreement import agreement
from analysis.errors import BadInput
from analysis.pareto import hypervolume, pareto
from analysis.ranking import combine_ranks, rank, rank_scores
from analysis.results import Results, events, frames, load, load_many, write_tables
from analysis.schema import describe_columns

__all__ = [
    "BadInput",
    "Results",
    "agreement",
    "combine_ranks",
    "describe_columns",
    "events",
    "frames",
    "hypervolume",
    "load",
    "load_many",
    "pareto",
    "rank",
    "rank_scores",
    "write_tables",
]
