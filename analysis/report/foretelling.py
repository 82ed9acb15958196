"""Pictures of what goes with accuracy: likeness to the teacher, scores, early epochs, and choices of the space."""

from contextlib import suppress

import numpy as np
import pandas as pd

from analysis import target as targets
from analysis.correlation import kendall_tau
from analysis.early import LEAST, judged
from analysis.errors import BadInput
from analysis.importance import importance
from analysis.naming import setting_names, student_name
from analysis.predictors import Predictor, of_epochs, of_scores, of_size
from analysis.report import marks
from analysis.report.marks import Chart, axis, numbers
from analysis.results import Results

SCORES = 6  # that are shown
CHOICES = 15


def of(results: Results, distilled: pd.DataFrame) -> list[Chart | None]:
    """The pictures, those that the run has something to show in.

    Args:
        distilled: finished trials with an accuracy, no controls.
    """
    found: list[Chart | None] = [_importance(results)]
    with suppress(BadInput):
        truth = targets.final(results, "valid_accuracy", None, None)
        found.append(_likeness(distilled[distilled["stage"] == truth.stage], truth.stage))
        if len(truth.values) >= LEAST:
            found += [_scores(results, truth), _foretold(results, truth)]
    return found


def _likeness(trials: pd.DataFrame, stage: str | None) -> Chart | None:
    known = trials[trials["teacher_similarity"].notna()]
    if known.empty:
        return None
    x, y = known["teacher_similarity"].to_numpy(dtype="float64"), known["valid_accuracy"].to_numpy(dtype="float64")
    tau = kendall_tau(x, y, np.ones((1, len(known)), dtype=np.int64))[0] if len(known) >= LEAST else np.nan
    agree = f" Kendall's tau of the two is {tau:.2f} (n = {len(known):,} trials)." if np.isfinite(tau) else ""
    return Chart(
        "likeness",
        "Likeness to the teacher",
        "The mean of agreement, CKA and RDM correlation with the teacher on validation images, against accuracy; stage "
        f"{stage}.{agree}",
        [marks.points(known["teacher_similarity"], 100 * known["valid_accuracy"], "trials", 0, marks.said(known))],
        axis("likeness to the teacher (share)"),
        axis("validation accuracy (%)"),
    )


def _scores(results: Results, truth: targets.Target) -> Chart | None:
    """Each score without training against the final accuracy; one is shown at first, the others by the legend."""
    known = [one for one in of_scores(results) if one.values.index.isin(truth.values.index).any()]
    if not known:
        return None
    known += of_size(results.trials)
    found = judged(truth, known)
    found = found[found["tau"].notna() & (found["n"] >= LEAST)].sort_values("tau", ascending=False, kind="stable")
    if found.empty:
        return None
    archs = results.trials.drop_duplicates("hash").set_index("hash")["arch"]
    traces = []
    for place, (number, row) in enumerate(found.head(SCORES).iterrows()):
        trace = _against(known[int(str(number))], truth, archs, place)
        low, high = row["tau_low"], row["tau_high"]
        interval = f"{low:.2f} to {high:.2f}" if np.isfinite(low) else f"n = {row['n']}"
        name = f"{row['predictor']}: tau {row['tau']:.2f} ({interval})"
        traces.append({**trace, "name": name, "visible": True if not place else "legendonly"})
    return Chart(
        "scores",
        "Scores without training against the outcome",
        f"Where each student of stage {truth.stage} stood by a score among the others, and what it reached; with "
        f"Kendall's tau and its 95 % interval (n = {len(truth.values):,} students). A click on the legend shows "
        f"another of the {min(SCORES, len(found))} best scores of {len(found)}.",
        traces,
        axis("rank by the score (share; 1 is best)"),
        axis("validation accuracy (%)"),
    )


def _against(one: Predictor, truth: targets.Target, archs: pd.Series, place: int) -> marks.Json:
    both = pd.concat([one.values.rename("x"), truth.values.rename("y")], axis=1, join="inner").dropna()
    text = [f"{student_name(archs[name])}: {value:.4g}" for name, value in zip(both.index, both["x"], strict=True)]
    return marks.points(both["x"].rank(pct=True), 100 * both["y"], one.name, place, text)


def _foretold(results: Results, truth: targets.Target) -> Chart | None:
    early = [one for one in of_epochs(results, truth.stage) if one.name == "valid_accuracy"]
    found = judged(truth, early)
    found = found[found["tau"].notna() & (found["n"] >= LEAST)]
    if len(found) < 2:
        return None
    traces, places = [], marks.of_stages(results)
    for stage, part in found.groupby("stage", sort=False):
        error = {"type": "data", "symmetric": False, "array": numbers(part["tau_high"] - part["tau"]),
                 "arrayminus": numbers(part["tau"] - part["tau_low"]), "thickness": 1}  # fmt: skip
        text = [f"{stage}, epoch {epoch}, n = {n}" for epoch, n in zip(part["epoch"], part["n"], strict=True)]
        template = "%{text}: %{y:.2f}<extra></extra>"
        x, y = numbers(part["epoch"]), numbers(part["tau"])
        more = {"error_y": error, "text": text, "hovertemplate": template}
        traces.append(marks.line(x, y, f"stage {stage}", places[str(stage)], **more))
    size = judged(truth, of_size(results.trials)).set_index("predictor")["tau"]
    lines = [marks.level(size["params"], "size alone")] if np.isfinite(size["params"]) else []
    return Chart(
        "foretold",
        "How early the outcome shows",
        f"Kendall's tau between accuracy after an epoch and at the end of stage {truth.stage}, with 95 % bootstrap "
        "intervals; the dashed line is what the number of parameters foretells without any training.",
        traces,
        axis("epoch"),
        axis("Kendall's tau with the final accuracy"),
        tuple(shape for shape, _ in lines),
        tuple(note for _, note in lines),
    )


def _importance(results: Results) -> Chart | None:
    """What a forest foretells the outcome by; nothing where it foretells nothing."""
    try:
        table = importance(results, resamples=300)
    except BadInput:  # too few candidates, or nothing that varies
        return None
    share = table.attrs["r2"]
    if not share > 0:
        return None
    best = table.head(CHOICES).iloc[::-1]
    what = "objective" if table.attrs["metric"] == "score" else table.attrs["metric"]
    hyper = setting_names(name for name in best["setting"] if name.startswith("set."))
    names = [hyper.get(name, name.removeprefix("arch.")) for name in best["setting"]]
    error = {"type": "data", "symmetric": False, "array": numbers(best["high"] - best["importance"]),
             "arrayminus": numbers(best["importance"] - best["low"]), "color": "@ink", "thickness": 1}  # fmt: skip
    bars = {"type": "bar", "orientation": "h", "name": "importance", "x": numbers(best["importance"]), "y": names,
            "error_x": error, "marker": {"color": marks.COLOURS[0]},
            "hovertemplate": "%{y}: %{x:.3f}<extra></extra>"}  # fmt: skip
    return Chart(
        "importance",
        "Which choices mattered",
        f"How much worse a forest foretells the {what} of unseen candidates of stage "
        f"{table.attrs['stage']} once a choice is shuffled among them, with 95 % intervals. It foretells "
        f"{100 * share:.0f} % of their variance (n = {int(table['n'].iloc[0]):,}): the less, the less this says.",
        [bars],
        axis("rise of the squared error (share of the variance)"),
        axis("", type="category"),
    )
