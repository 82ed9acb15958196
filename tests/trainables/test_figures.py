"""The figures of a classifier against scikit-learn and hand values, and their curves against the figures."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from sklearn.exceptions import UndefinedMetricWarning
from torch import Tensor

from trainables import curves as module
from trainables.curves import POINTS, TOLERANCE, curves_file, curves_of, precision_recall, roc, thinned
from trainables.figures import (
    BINS,
    FIGURES,
    classification,
    confusion_matrix,
    detector,
    detectors,
    ece,
    precision_recall_f1,
    reliability,
    softmax,
)

FEW = settings(max_examples=40, deadline=None)


def drawn(classes: int, images: int, labels: Sequence[int] | None = None, step: float = 0.0, seed: int = 0):
    """Logits that lean to the label, which is one of `labels`; multiples of `step`, so that many are tied."""
    draws = np.random.default_rng(seed)
    truth = draws.choice(np.arange(classes) if labels is None else labels, images)
    logits = draws.normal(size=(images, classes)) + 1.5 * (np.arange(classes) == truth[:, None])
    return torch.tensor(np.round(logits / step) * step if step else logits), truth


def one_hot(predicted: Sequence[int], classes: int, height: float = 20.0) -> Tensor:
    return height * torch.eye(classes)[list(predicted)]


CASES = {
    "random": drawn(10, 300),
    "float32": (drawn(10, 300)[0].float(), drawn(10, 300)[1]),
    "two classes": drawn(2, 100),
    "ties": drawn(4, 300, step=1.0),
    "all tied": (torch.zeros(30, 3), np.arange(30) % 3),
    "absent classes": drawn(6, 100, labels=[1, 2, 5]),
    "absent and never predicted": (drawn(6, 50, labels=[0, 1])[0] - 1e3 * torch.tensor([0, 0, 0, 0, 1, 1]),
                                   drawn(6, 50, labels=[0, 1])[1]),
    "one class only": drawn(3, 40, labels=[1]),
    "one image": drawn(3, 1),
    "perfect": (one_hot([0, 1, 2, 1], 3), np.array([0, 1, 2, 1])),
    "all wrong": (one_hot([1, 2, 0, 2], 3), np.array([0, 1, 2, 1])),
    "one image a class": drawn(8, 8, labels=range(8)),
    "saturated": (40 * drawn(5, 200, step=1.0)[0], drawn(5, 200, step=1.0)[1]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_figure_is_scikit_learns(case: str) -> None:
    logits, labels = CASES[case]
    found = classification(logits, labels)
    assert tuple(found) == FIGURES
    assert found == pytest.approx(classification(logits, torch.tensor(labels)), nan_ok=True)
    predicted, probabilities = logits.argmax(1).numpy(), softmax(logits)
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        labels, predicted, average="macro", zero_division=0
    )
    assert found["accuracy"] == metrics.accuracy_score(labels, predicted)
    assert [found["precision"], found["recall"], found["f1"]] == pytest.approx([precision, recall, f1])
    judged = [k for k in range(logits.shape[1]) if 0 < np.sum(labels == k) < len(labels)]
    for name, score in (("roc_auc", metrics.roc_auc_score), ("pr_auc", metrics.average_precision_score)):
        expected = np.mean([score(labels == k, probabilities[:, k]) for k in judged]) if judged else math.nan
        assert found[name] == pytest.approx(expected, nan_ok=True, rel=1e-12)


def test_where_all_classes_occur_the_macro_is_scikit_learns_own() -> None:
    logits, labels = CASES["random"]
    probabilities = softmax(logits)
    found = classification(logits, labels)
    assert found["roc_auc"] == pytest.approx(metrics.roc_auc_score(labels, probabilities, multi_class="ovr"))
    assert found["pr_auc"] == pytest.approx(metrics.average_precision_score(np.eye(10)[labels], probabilities))


def test_what_needs_two_outcomes_is_nan_without_them() -> None:
    found = classification(*CASES["one class only"])
    assert [name for name in FIGURES if math.isnan(found[name])] == ["roc_auc", "pr_auc"]
    with pytest.warns(UndefinedMetricWarning):
        assert math.isnan(metrics.roc_auc_score(np.ones(40), np.arange(40.0)))  # as scikit-learn has it


def test_by_hand() -> None:
    confusion = confusion_matrix(one_hot([0, 0, 1, 1, 1], 4), np.array([0, 1, 1, 1, 2]))
    assert confusion.tolist() == [[1, 0, 0, 0], [1, 2, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    # Class 3 occurs nowhere and is left out; class 2 was never predicted.
    expected = [(1 / 2 + 2 / 3 + 0) / 3, (1 + 2 / 3 + 0) / 3, (2 / 3 + 4 / 6 + 0) / 3]
    assert precision_recall_f1(confusion) == pytest.approx(expected)
    # 0.9 beats all three others; 0.7 loses to 0.8, ties with 0.7 and beats 0.1: 3 + 1.5 of 6 pairs.
    found = detector(np.array([0.9, 0.8, 0.7, 0.7, 0.1]), np.array([True, False, True, False, False]))
    assert found.roc_auc == pytest.approx(4.5 / 6)
    assert found.pr_auc == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 4)


def test_calibration_by_hand() -> None:
    # Confidences 0.6, 0.65 (bin 10: above 9/15, up to 10/15), 0.61 and 0.9; right: yes, no, yes, yes.
    probabilities = np.array([[0.65, 0.35], [0.35, 0.65], [0.61, 0.39], [0.1, 0.9]])
    confidence, accuracy, counts = reliability(probabilities, np.array([0, 0, 0, 1]))
    assert counts.tolist() == [3, 1]
    assert confidence == pytest.approx([(0.65 + 0.65 + 0.61) / 3, 0.9])
    assert accuracy == pytest.approx([2 / 3, 1])
    expected = (3 * abs(2 / 3 - 1.91 / 3) + 1 * 0.1) / 4
    assert ece(probabilities, np.array([0, 0, 0, 1])) == pytest.approx(expected)


@pytest.mark.parametrize(("confidence", "bin_"), [(8 / 15, 8), (8 / 15 + 1e-9, 9), (1.0, 15), (0.5, 8)])
def test_a_bin_holds_its_upper_edge(confidence: float, bin_: int) -> None:
    """It shares its bin with the bin's middle, and not with the middle of the bin above."""
    for middle, filled in (((bin_ - 0.5) / BINS, 1), (min(bin_ + 0.5, 14.5 - (bin_ == 15)) / BINS, 2)):
        probabilities = np.array([[confidence, 1 - confidence], [middle, 1 - middle]])
        assert len(reliability(probabilities, np.array([0, 0]))[2]) == filled


def test_calibration_of_the_certain_and_of_the_clueless() -> None:
    assert classification(*CASES["perfect"])["ece"] == pytest.approx(0, abs=1e-8)
    assert classification(*CASES["all wrong"])["ece"] == pytest.approx(1, abs=1e-8)
    assert classification(*CASES["all tied"])["ece"] == pytest.approx(0)  # says 1/3, and is right in 1 of 3


# Laws

NETS = st.integers(0, 10**6).map(lambda seed: drawn(2 + seed % 5, 3 + seed % 40, step=0.5 * (seed % 2), seed=seed))


@FEW
@given(NETS, st.integers(0, 100))
def test_the_order_of_the_images_does_not_matter(case: tuple[Tensor, np.ndarray], seed: int) -> None:
    logits, labels = case
    order = np.random.default_rng(seed).permutation(len(labels))
    expected = classification(logits, labels)
    assert classification(logits[order], labels[order]) == pytest.approx(expected, nan_ok=True)


@FEW
@given(NETS)
def test_areas_look_at_the_order_of_the_scores_alone(case: tuple[Tensor, np.ndarray]) -> None:
    logits, labels = case
    scores = np.round(logits.numpy(), 3)
    for found, after in zip(detectors(scores, labels), detectors(np.exp(3 * scores) - 2, labels), strict=True):
        assert found[0] == after[0]
        assert (found[1].roc_auc, found[1].pr_auc) == (after[1].roc_auc, after[1].pr_auc)
    for found, after in zip(detectors(scores, labels), detectors(-scores, labels), strict=True):
        assert after[1].roc_auc == pytest.approx(1 - found[1].roc_auc)


@FEW
@given(NETS)
def test_every_figure_is_a_share(case: tuple[Tensor, np.ndarray]) -> None:
    assert all(math.isnan(value) or 0 <= value <= 1 + 1e-12 for value in classification(*case).values())


# Curves


def staircase(period: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of one class and the rest that take turns: the hardest curve to thin evenly."""
    return -np.arange(2.0 * period * steps), np.arange(2 * period * steps) // period % 2 == 1


SCORES = {
    "few": (drawn(2, 60)[0][:, 1].numpy(), drawn(2, 60)[1] == 1),
    "tied": (drawn(2, 400, step=0.5)[0][:, 1].numpy(), drawn(2, 400, step=0.5)[1] == 1),
    "many": (drawn(2, 5000)[0][:, 1].numpy(), drawn(2, 5000)[1] == 1),
    "rare": (drawn(2, 5000)[0][:, 1].numpy(), (drawn(2, 5000)[1] == 1) & (np.arange(5000) % 20 == 0)),
    "perfect": (np.arange(3000.0), np.arange(3000) >= 1000),
    "all wrong": (-np.arange(3000.0), np.arange(3000) >= 1000),
    **{f"taking turns, {period} x {steps}": staircase(period, steps)
       for period, steps in ((1, 99), (1, 100), (1, 200), (1, 400), (5, 100), (5, 200), (10, 50), (20, 25), (40, 99))},
}  # fmt: skip


@pytest.mark.parametrize("case", SCORES)
def test_curves_have_the_area_of_the_figures_and_few_points(case: str) -> None:
    scores, is_class = SCORES[case]
    found = detector(scores, is_class)
    ranked, steps = roc(3, found), precision_recall(3, found)
    assert max(len(ranked.x), len(steps.x)) <= POINTS
    assert abs(np.trapezoid(ranked.y, ranked.x) - metrics.roc_auc_score(is_class, scores)) <= TOLERANCE
    expected = metrics.average_precision_score(is_class, scores)
    assert np.sum(np.diff(steps.x, prepend=0) * steps.y) == pytest.approx(expected, rel=1e-12)
    assert (ranked.x[0], ranked.y[0], ranked.n[0]) == (0, 0, 0)
    assert (ranked.x[-1], ranked.y[-1], ranked.n[-1]) == (1, 1, len(scores))
    assert steps.x[-1] == 1
    # Every point of the ROC curve is one of scikit-learn's, or on a line between two of them.
    false, true, _ = metrics.roc_curve(is_class, scores, drop_intermediate=False)
    known = {(round(x, 9), round(y, 9)) for x, y in zip(false, true, strict=True)}
    assert {(round(x, 9), round(y, 9)) for x, y in zip(ranked.x, ranked.y, strict=True)} <= known
    assert np.all(np.diff(ranked.x + ranked.y) > 0)
    others = np.sum(~is_class)
    assert ranked.n == pytest.approx(ranked.x * others + ranked.y * np.sum(is_class))


def test_a_short_curve_is_whole() -> None:
    scores, is_class = SCORES["few"]
    found = precision_recall(0, detector(scores, is_class))
    precision, recall, _ = metrics.precision_recall_curve(is_class, scores, drop_intermediate=False)
    known = set(zip(recall.round(9), precision.round(9), strict=True))
    assert set(zip(found.x.round(9), found.y.round(9), strict=True)) <= known
    assert len(found.x) == is_class.sum()
    assert found.n == pytest.approx(found.x * is_class.sum() / found.y)


def test_a_curve_that_cannot_be_thinned_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    found = detector(*SCORES["many"])
    assert len(roc(0, found).x) <= POINTS
    monkeypatch.setattr(module, "TOLERANCE", -1.0)
    whole = roc(0, found)
    assert len(whole.x) > POINTS
    assert np.trapezoid(whole.y, whole.x) == pytest.approx(found.roc_auc, rel=1e-12)
    assert thinned(whole.x, whole.y).tolist() == list(range(len(whole.x)))


def test_the_file_holds_every_curve(tmp_path: Path) -> None:
    logits, labels = CASES["absent classes"]
    file = tmp_path / "00003.parquet"
    names = ["zero", "one", "two", "three", "four", "five"]
    file.write_bytes(curves_file(logits, labels, names))
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    table = pq.ParquetFile(file).read().to_pandas()
    assert table.columns.tolist() == ["curve", "class", "label", "x", "y", "n"]
    of_class = table[table["class"].notna()]
    assert (of_class["label"] == [names[int(place)] for place in of_class["class"]]).all()
    parts = dict(list(table.groupby("curve")))
    assert set(parts) == {"roc", "pr", "reliability", "confusion"}
    figures = classification(logits, labels)
    areas = [np.trapezoid(part["y"], part["x"]) for _, part in parts["roc"].groupby("class")]
    assert parts["roc"]["class"].unique().tolist() == [1, 2, 5]
    assert np.mean(areas) == pytest.approx(figures["roc_auc"], abs=TOLERANCE)
    confusion = np.zeros((6, 6), np.int64)
    cells = parts["confusion"]
    confusion[cells["class"].astype(int), cells["x"].astype(int)] = cells["n"]
    assert (confusion == metrics.confusion_matrix(labels, logits.argmax(1).numpy(), labels=range(6))).all()
    assert cells.groupby("class")["y"].sum(min_count=1).dropna().tolist() == pytest.approx([1, 1, 1])
    assert cells["label"].nunique() == 6  # absent classes too have their name
    bins = parts["reliability"]
    assert bins["n"].sum() == len(labels)
    assert np.average((bins["y"] - bins["x"]).abs(), weights=bins["n"]) == pytest.approx(figures["ece"])


def test_logits_that_are_not_finite_have_a_confusion_and_no_curve() -> None:
    logits, labels = drawn(3, 20)
    logits[0, 0] = math.nan
    assert {curve.name for curve in curves_of(logits, labels)} == {"confusion"}
