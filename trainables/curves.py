"""A student's curves on a split as one small Parquet file: ROC, precision and recall, reliability, confusion.

`analysis.curves` reads them; its docstring says what `x`, `y` and `n` are in each of them.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from trainables.figures import Detector, as_labels, confusion_matrix, detectors, reliability, softmax

POINTS = 200  # of a curve, at most: more than a plot can show
TOLERANCE = 1e-3  # what thinning may change of the area under a ROC curve


@dataclass(frozen=True)
class Curve:
    """One curve: of one class, or of all together (`index` None); `x`, `y` and `n` of one length."""

    name: str
    index: int | None
    x: np.ndarray
    y: np.ndarray
    n: np.ndarray


def curves_name(number: int) -> str:
    """The file of a stage's trial, within the stage's folder."""
    return f"curves/{number:05d}.parquet"


def curves_file(logits_NK: Tensor, labels_N: Tensor | np.ndarray, classes: Sequence[str]) -> memoryview:
    """The curves of logits on labelled images, as the contents of a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(_table(list(curves_of(logits_NK, as_labels(labels_N))), classes), buffer)
    return buffer.getbuffer()


def _table(curves: list[Curve], classes: Sequence[str]) -> pa.Table:
    lengths = [len(curve.x) for curve in curves]
    index = [place for curve in curves for place in [curve.index] * len(curve.x)]
    return pa.table(
        {
            "curve": pa.array(np.repeat([curve.name for curve in curves], lengths), pa.string()),
            "class": pa.array(index, pa.int64()),
            "label": pa.array([None if place is None else classes[place] for place in index], pa.string()),
            "x": np.concatenate([curve.x for curve in curves]).astype(np.float64),
            "y": np.concatenate([curve.y for curve in curves]),
            "n": np.concatenate([curve.n for curve in curves]),
        }
    )


def curves_of(logits_NK: Tensor, labels_N: np.ndarray) -> Iterator[Curve]:
    """ROC and precision-recall of each class that has both outcomes, the confusion of each class, the reliability.

    Of logits that are not finite, the confusion only.
    """
    probabilities = softmax(logits_NK)
    for index, found in detectors(probabilities, labels_N):
        yield roc(index, found)
        yield precision_recall(index, found)
    confusion = confusion_matrix(logits_NK, labels_N)
    for index, row in enumerate(confusion):
        # The diagonal always, so that every class has a row that gives its label.
        predicted = np.flatnonzero((row > 0) | (np.arange(len(row)) == index))
        images = row.sum() or np.nan
        yield Curve("confusion", index, predicted, row[predicted] / images, row[predicted])
    if np.isfinite(probabilities).all():
        yield Curve("reliability", None, *reliability(probabilities, labels_N))


def roc(index: int, found: Detector) -> Curve:
    """The share of a class that is found (y) over the share of the others that is (x), from (0, 0) to (1, 1).

    Each threshold is a corner; of more than `POINTS` corners some, which keeps the area (trapezoids) to `TOLERANCE`.
    """
    total = len(found.hits)
    hits = np.r_[0, np.stack([found.hits_above, found.hits], 1).ravel(), total]
    alarms = np.r_[0, np.stack([found.alarms_above, found.alarms], 1).ravel(), found.others]
    # Both only grow, so that equal sums are equal points.
    corners = np.unique(hits + alarms, return_index=True)[1]
    x, y = alarms[corners] / found.others, hits[corners] / total
    kept = thinned(x, y)
    return Curve("roc", index, x[kept], y[kept], (hits + alarms)[corners][kept])


def thinned(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Places of at most `POINTS` points of a curve that rises from (0, 0) to (1, 1), about evenly along its way.

    The points on both sides of each of the even steps, so that both ends of a jump are kept. Where that changes the
    area by more than `TOLERANCE` (a staircase in step with it), other steps; where all do, every point.
    """
    everything = np.arange(len(x))
    if len(x) <= POINTS:
        return everything
    area = np.trapezoid(y, x)
    for steps in range(POINTS // 2, POINTS // 4, -1):
        after = np.searchsorted(x + y, np.linspace(0, 2, steps))
        kept = np.unique(np.clip([after - 1, after], 0, len(x) - 1))
        if abs(np.trapezoid(y[kept], x[kept]) - area) <= TOLERANCE:
            return kept
    return everything


def precision_recall(index: int, found: Detector) -> Curve:
    """Precision (y) over recall (x), a step for each threshold; the steps' area is the average precision.

    More than `POINTS` steps are joined: y is then the mean precision between the recall before and x, so that the
    area stays what it is.
    """
    last = np.unique(found.hits, return_index=True)[1]  # one of the images that share a score
    hits, precision = found.hits[last], found.precision[last]
    widths = np.diff(hits, prepend=0)
    count = min(len(hits), POINTS)
    starts = np.arange(count) * len(hits) // count
    ends = np.r_[starts[1:], len(hits)] - 1
    mean = np.add.reduceat(widths * precision, starts) / np.add.reduceat(widths, starts)
    return Curve("pr", index, hits[ends] / hits[-1], mean, (hits + found.alarms[last])[ends])
