"""The report's interactive pictures, as plain data for plotly's script: what they show is computed here."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.agreement import agreement
from analysis.comparing import best_so_far
from analysis.errors import BadInput
from analysis.naming import student_name
from analysis.pareto import pareto
from analysis.ranking import FINISHED, candidates
from analysis.results import Results
from analysis.schema import score_columns

CURVES = 300  # trials whose learning curves are drawn: more could not be told apart
PLAIN = 2000  # points that a page draws as vectors; beyond, as pixels
# Okabe and Ito's palette, which the colour-blind can tell apart; each status has a sign of its own, too.
BLUE, ORANGE, GREEN, RED, SKY, PURPLE, YELLOW = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442",
)  # fmt: skip
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED, YELLOW)
Json = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """One picture: what it shows in a sentence, plotly's traces, and the titles of its axes with their units."""

    name: str
    title: str
    caption: str
    traces: list[Json]
    x: Json
    y: Json
    shapes: tuple[Json, ...] = ()

    def plain(self) -> Json:
        """For the page's script."""
        layout = {"xaxis": self.x, "yaxis": self.y, "shapes": list(self.shapes)}
        return {"name": self.name, "title": self.title, "caption": self.caption, "data": self.traces, "layout": layout}


def of(results: Results) -> list[Chart]:
    """The pictures that the run has something to show in."""
    taught = results.trials[~results.trials["control"]]
    distilled = taught[taught["valid_accuracy"].notna() & taught["status"].isin(FINISHED)]
    last = distilled[distilled["stage_index"] == distilled["stage_index"].max()]
    means = candidates(results.trials[results.trials["stage_index"] == distilled["stage_index"].max()])
    return [
        chart
        for chart in (
            _against_cost(distilled, results) if len(distilled) else None,
            _curves(results) if len(distilled) else None,
            _likeness(last) if len(last) and last["teacher_similarity"].notna().any() else None,
            _scores(results, means) if len(means) else None,
            _foretold(results),
            _best_so_far(results) if len(distilled) else None,
            _timeline(results) if len(results.epochs) else None,
        )
        if chart is not None
    ]


def _against_cost(distilled: pd.DataFrame, results: Results) -> Chart | None:
    known = distilled[distilled["params"].notna()]
    if known.empty:
        return None
    traces = []
    for at, (stage, part) in enumerate(known.groupby("stage", sort=False)):
        best = part.sort_values("valid_accuracy").groupby("hash").tail(1)
        traces.append(_points(best["params"], 100 * best["valid_accuracy"], str(stage), COLOURS[at % 7], _said(best)))
    front = pareto(known, {"valid_accuracy": "max", "params": "min"}).sort_values("params")
    traces.append({
        "type": "scatter", "mode": "lines", "name": "Pareto front", "x": _list(front["params"]),
        "y": _list(100 * front["valid_accuracy"]), "line": {"shape": "hv", "width": 2, "color": RED},
        "hoverinfo": "skip",
    })  # fmt: skip
    return Chart(
        "cost",
        "Accuracy against size",
        "Each student's best trial by stage. Nobody beats those on the front with fewer parameters; the dashed line is "
        "the teacher.",
        traces,
        {"title": {"text": "parameters"}, "type": "log"},
        {"title": {"text": "validation accuracy (%)"}},
        tuple(_teacher_line(results)),
    )


def _teacher_line(results: Results) -> Iterator[Json]:
    accuracy = (results.teacher.get("metrics") or {}).get("valid_accuracy")
    if isinstance(accuracy, int | float) and math.isfinite(accuracy):
        yield {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 100 * accuracy, "y1": 100 * accuracy,
               "line": {"dash": "dash", "width": 1.5, "color": "#888888"}}  # fmt: skip


def _curves(results: Results) -> Chart:
    epochs = results.epochs[results.epochs["valid_accuracy"].notna() & ~results.epochs["control"]]
    keys = ["run", "stage", "number"]
    trials = results.trials.set_index(keys)
    ends = epochs.groupby(keys, sort=False)["valid_accuracy"].last().sort_values(ascending=False)
    half = np.arange(CURVES // 2)
    apart = np.linspace(0, len(ends) - 1, CURVES // 2).astype(int)
    shown = ends.index if len(ends) <= CURVES else ends.index[np.union1d(half, apart)]
    traces = []
    drawn = epochs.set_index(keys)
    drawn = drawn[drawn.index.isin(shown)]
    status = trials["status"].reindex(drawn.index)
    for name, colour in (("completed", BLUE), ("stopped", ORANGE), ("running", GREEN), ("failed", RED)):
        part = drawn[(status == name).to_numpy()]
        if len(part):
            traces.append(_lines(part, name, colour))
    caption = "Validation accuracy after each epoch; those that were stopped early end where they were stopped."
    if len(shown) < len(ends):
        caption += f" {len(shown)} of {len(ends):,} trials are drawn: the best, and others at equal distances."
    return Chart(
        "curves", "Learning curves", caption, traces,
        {"title": {"text": "epoch"}}, {"title": {"text": "validation accuracy (%)"}},
    )  # fmt: skip


def _lines(part: pd.DataFrame, name: str, colour: str) -> Json:
    """One trace of many lines: a gap after each."""
    x: list[Any] = []
    y: list[Any] = []
    said: list[Any] = []
    for key, curve in part.groupby(level=[0, 1, 2], sort=False):
        curve = curve.sort_values("epoch")
        x += [*_list(curve["epoch"]), None]
        y += [*_list(100 * curve["valid_accuracy"]), None]
        said += [f"{key[1]} trial {key[2]}"] * (len(curve) + 1)
    return {"type": "scatter", "mode": "lines+markers", "name": name, "x": x, "y": y, "text": said,
            "line": {"width": 1, "color": colour}, "marker": {"size": 3, "color": colour}, "opacity": 0.7,
            "hovertemplate": "%{text}<br>epoch %{x}: %{y:.2f} %<extra></extra>"}  # fmt: skip


def _likeness(last: pd.DataFrame) -> Chart:
    known = last[last["teacher_similarity"].notna()]
    return Chart(
        "likeness",
        "Likeness to the teacher",
        "The mean of agreement, CKA and RDM correlation with the teacher on validation images, against accuracy.",
        [_points(known["teacher_similarity"], 100 * known["valid_accuracy"], "trials", BLUE, _said(known))],
        {"title": {"text": "likeness to the teacher (share)"}},
        {"title": {"text": "validation accuracy (%)"}},
    )


def _scores(results: Results, means: pd.DataFrame) -> Chart | None:
    """Each score without training against the final accuracy; one is shown at first, the others by the legend."""
    scored = results.trials[results.trials["valid_accuracy"].isna() & results.trials["status"].isin(FINISHED)]
    names = [name for name in score_columns(scored) if scored[name].notna().any()]
    found = scored.groupby("hash")[names].mean() if names else pd.DataFrame()
    joined = means.set_index("hash")[["valid_accuracy", "arch"]].join(found, how="inner")
    if len(joined) < 3:
        return None
    traces = []
    for at, name in enumerate(names):
        part = joined[joined[name].notna()]
        ranks = part[name].rank(pct=True)
        text = [f"{student_name(arch)}: {value:.4g}" for arch, value in zip(part["arch"], part[name], strict=True)]
        trace = _points(ranks, 100 * part["valid_accuracy"], name, COLOURS[at % 7], text)
        traces.append({**trace, "visible": True if not at else "legendonly"})
    return Chart(
        "scores",
        "Scores without training against the outcome",
        "Where each finalist stood by a score among the finalists; a click on the legend shows another score.",
        traces,
        {"title": {"text": "rank by the score (share; 1 is best)"}},
        {"title": {"text": "validation accuracy of the last stage (%)"}},
    )


def _foretold(results: Results) -> Chart | None:
    try:
        table = agreement(results, resamples=300)
    except BadInput:  # too few candidates
        return None
    early = table[table["epoch"].notna() & (table["predictor"] == "valid_accuracy") & table["tau"].notna()]
    if len(early) < 2:
        return None
    traces = []
    for at, (stage, part) in enumerate(early.groupby("stage", sort=False)):
        error = {"type": "data", "symmetric": False, "array": _list(part["tau_high"] - part["tau"]),
                 "arrayminus": _list(part["tau"] - part["tau_low"])}  # fmt: skip
        traces.append({"type": "scatter", "mode": "lines+markers", "name": str(stage), "x": _list(part["epoch"]),
                       "y": _list(part["tau"]), "error_y": error, "line": {"color": COLOURS[at % 7]}})  # fmt: skip
    return Chart(
        "foretold",
        "How early the outcome shows",
        "Kendall's tau between accuracy after an epoch and the final one, with 95 % bootstrap intervals.",
        traces,
        {"title": {"text": "epoch"}},
        {"title": {"text": "Kendall's tau with the final accuracy"}},
    )


def _best_so_far(results: Results) -> Chart:
    table = best_so_far(results)
    steps = table[(table["best"] != table["best"].shift()) | (table.index == table.index[-1])]
    trace = {"type": "scatter", "mode": "lines+markers", "name": "best so far", "x": _list(steps["device_seconds"]),
             "y": _list(100 * steps["best"]), "line": {"shape": "hv", "color": BLUE}}  # fmt: skip
    return Chart(
        "best",
        "Best so far",
        "The best validation accuracy against the device time that was spent until then, all trials counted.",
        [trace],
        {"title": {"text": "device time (s)"}},
        {"title": {"text": "best validation accuracy (%)"}},
        tuple(_teacher_line(results)),
    )


def _timeline(results: Results) -> Chart:
    """A line for each trial on its worker: reports that follow each other at once are one line."""
    epochs = results.epochs[results.epochs["worker"].notna()].sort_values(["worker", "time"], kind="stable")
    begin, end = epochs["time"] - epochs["seconds"], epochs["time"]
    keys = epochs["worker"] + " " + epochs["stage"] + " " + epochs["number"].astype(str)
    names, pause = keys.to_numpy(dtype=object), begin.to_numpy() - end.shift().to_numpy()
    group = np.cumsum(np.append(True, (names[1:] != names[:-1]) | (pause[1:] > 1.0)))
    first = float(begin.min()) if len(begin) else 0.0
    spans = pd.DataFrame({
        "worker": epochs["worker"].groupby(group).first(), "stage": epochs["stage"].groupby(group).first(),
        "number": epochs["number"].groupby(group).first(), "begin": begin.groupby(group).first() - first,
        "end": end.groupby(group).last() - first,
    })  # fmt: skip
    places = {worker: f"worker {at}" for at, worker in enumerate(spans["worker"].unique(), 1)}
    traces = []
    for at, (stage, part) in enumerate(spans.groupby("stage", sort=False)):
        x = [value for row in zip(part["begin"], part["end"], [None] * len(part), strict=True) for value in row]
        y = [place for worker in part["worker"] for place in (places[worker], places[worker], None)]
        text = [f"{stage} trial {number}" for number in part["number"] for _ in range(3)]
        traces.append({"type": "scatter", "mode": "lines", "name": str(stage), "x": x, "y": y, "text": text,
                       "line": {"width": 9, "color": COLOURS[at % 7]},
                       "hovertemplate": "%{text}<br>%{y}, %{x:.1f} s<extra></extra>"})  # fmt: skip
    return Chart(
        "timeline",
        "What ran where",
        "When each worker worked on which trial; where there is no line, it waited, started or stood idle.",
        traces,
        {"title": {"text": "wall time (s)"}},
        {"title": {"text": ""}, "type": "category"},
    )


def _points(x: pd.Series, y: pd.Series, name: str, colour: str, text: list[str]) -> Json:
    return {"type": "scatter" if len(x) <= PLAIN else "scattergl", "mode": "markers", "name": name, "x": _list(x),
            "y": _list(y), "text": text, "marker": {"color": colour, "size": 7, "opacity": 0.75},
            "hovertemplate": "%{text}<br>%{x:.4g}: %{y:.2f}<extra></extra>"}  # fmt: skip


def _said(table: pd.DataFrame) -> list[str]:
    names = [student_name(arch) for arch in table["arch"]]
    return [f"{name} (trial {number})" for name, number in zip(names, table["number"], strict=True)]


def _list(values: pd.Series) -> list[float | None]:
    """Numbers as JSON has them, to five digits."""
    return [None if not math.isfinite(value) else float(f"{value:.6g}") for value in values.astype("float64")]
