"""Pictures of a search: results in, a matplotlib figure out. Only this package imports matplotlib, and not pyplot."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from analysis.plots.architecture import architecture, draw
from analysis.plots.cost import cost
from analysis.plots.foretelling import epoch_agreement, scores
from analysis.plots.importance import importance
from analysis.plots.learning import learning
from analysis.plots.progress import progress
from analysis.plots.similarity import similarity
from analysis.plots.theme import THEMES, Picture
from analysis.plots.timeline import timeline


@dataclass(frozen=True)
class Plot:
    """One picture.

    Args:
        draw: called as `draw(results, stage=None, theme="light")`; raises `BadInput` where the input does not do.
        shows: what it shows, in one sentence.
        takes: `results` of a run or several, or the table that `analysis.importance` makes of them.
    """

    draw: Callable[..., Picture]
    shows: str
    takes: Literal["results", "importance"] = "results"


PLOTS: dict[str, Plot] = {
    "cost": Plot(cost, "How accurate students are for what they cost, the Pareto front and the teacher."),
    "learning": Plot(learning, "How trials learned epoch by epoch, and where they were stopped."),
    "epoch_agreement": Plot(epoch_agreement, "How well the order of students after each epoch foretells their last."),
    "scores": Plot(scores, "How well scores without training foretell the final accuracy."),
    "importance": Plot(importance, "Which choices mattered most, with intervals.", takes="importance"),
    "similarity": Plot(similarity, "Whether students that are more like the teacher are more accurate."),
    "timeline": Plot(timeline, "Which trial ran where and when, and when workers were idle."),
    "progress": Plot(progress, "The best accuracy found so far against the device time spent."),
    "architecture": Plot(architecture, "The best student, drawn from its choices."),
}

__all__ = ["PLOTS", "THEMES", "Picture", "Plot", "draw"]
