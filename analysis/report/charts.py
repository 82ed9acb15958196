"""The report's interactive pictures: what they show is computed here, and plotly's script draws it."""

from contextlib import suppress

import numpy as np
import pandas as pd

from analysis.comparing import best_so_far
from analysis.errors import BadInput
from analysis.pareto import pareto
from analysis.ranking import FINISHED
from analysis.report import foretelling, marks
from analysis.report.marks import Chart, Json, axis, numbers
from analysis.results import Results
from analysis.timeline import row_names, work

CURVES = 300  # trials whose learning curves are drawn: more could not be told apart
PAUSE = 1.0  # seconds between two reports of a trial that are still drawn as one line
ACCURACY = "validation accuracy (%)"
COSTS = {
    "params": ("cost", "Accuracy against size", "parameters", "with fewer parameters"),
    "flops": ("flops", "Accuracy against computation", "multiply-adds of an image", "with less computation"),
    "latency_ms": ("latency", "Accuracy against latency", "latency of one image (ms)", "in less time"),
}


def of(results: Results) -> list[Chart]:
    """The pictures that the run has something to show in."""
    taught = results.trials[~results.trials["control"]]
    distilled = taught[taught["valid_accuracy"].notna() & taught["status"].isin(FINISHED)]
    found = []
    if len(distilled):
        found += [_against_cost(distilled, results, column) for column in COSTS]
    if results.epochs["valid_accuracy"].notna().any():
        found.append(_curves(results))
    found += foretelling.of(results, distilled)
    with suppress(BadInput):  # no trial whose reports say when it ended
        found.append(_best_so_far(results))
    found.append(_timeline(results))
    return [chart for chart in found if chart is not None]


def _against_cost(distilled: pd.DataFrame, results: Results, column: str) -> Chart | None:
    known = distilled[distilled[column].notna()]
    if known.empty:
        return None
    name, title, label, cheaper = COSTS[column]
    best = known.sort_values("valid_accuracy", kind="stable").groupby(["stage", "hash"]).tail(1)
    traces, places = [], marks.of_stages(results)
    for _, part in best.groupby("stage_index"):
        stage = str(part["stage"].iloc[0])
        cost, accuracy = part[column], 100 * part["valid_accuracy"]
        traces.append(marks.points(cost, accuracy, stage, places[stage], marks.said(part)))
    front = pareto(best, {"valid_accuracy": "max", column: "min"}).sort_values(column)
    x, y = numbers(front[column]), numbers(100 * front["valid_accuracy"])
    look = {"shape": "hv", "color": marks.MUTED, "dash": "solid"}
    traces.append({**marks.line(x, y, "Pareto front", 0, line=look, hoverinfo="skip"), "mode": "lines"})
    scale = "log" if (known[column] > 0).all() else "linear"
    shapes, notes = marks.teacher_level(results)
    caption = f"Each student's best trial by stage. Nobody beats those on the front {cheaper}."
    return Chart(name, title, caption, traces, axis(label, type=scale), axis(ACCURACY), shapes, notes)


def _curves(results: Results) -> Chart | None:
    epochs = results.epochs[results.epochs["valid_accuracy"].notna() & ~results.epochs["control"]]
    keys = ["run", "stage", "number"]
    trials = results.trials.set_index(keys)
    ends = epochs.groupby(keys, sort=False)["valid_accuracy"].last().sort_values(ascending=False)
    if ends.empty:
        return None
    half = np.arange(CURVES // 2)
    apart = np.linspace(0, len(ends) - 1, CURVES // 2).astype(int)
    shown = ends.index if len(ends) <= CURVES else ends.index[np.union1d(half, apart)]
    traces = []
    drawn = epochs.set_index(keys)
    drawn = drawn[drawn.index.isin(shown)]
    status = trials["status"].reindex(drawn.index)
    for place, name in enumerate(("completed", "stopped", "running", "failed")):
        part = drawn[(status == name).to_numpy()]
        if len(part):
            traces.append(_lines(part, name, place))
    caption = "Validation accuracy after each epoch; those that were stopped early end where they were stopped."
    if len(shown) < len(ends):
        caption += f" {len(shown)} of {len(ends):,} trials are drawn: the best, and others at equal distances."
    shapes, notes = marks.teacher_level(results)
    return Chart("curves", "Learning curves", caption, traces, axis("epoch"), axis(ACCURACY), shapes, notes)


def _lines(part: pd.DataFrame, name: str, place: int) -> Json:
    """One trace of many lines: a gap after each."""
    x: list[float | None] = []
    y: list[float | None] = []
    text: list[str] = []
    for key, curve in part.groupby(level=[0, 1, 2], sort=False):
        curve = curve.sort_values("epoch")
        x += [*numbers(curve["epoch"]), None]
        y += [*numbers(100 * curve["valid_accuracy"]), None]
        text += [f"{key[1]} trial {key[2]}"] * (len(curve) + 1)
    template = "%{text}<br>epoch %{x}: %{y:.2f} %<extra></extra>"
    return marks.line(x, y, name, place, line={"width": 1}, opacity=0.7, text=text, hovertemplate=template)


def _best_so_far(results: Results) -> Chart:
    table = best_so_far(results, "valid_accuracy")
    steps = table[(table["best"] != table["best"].shift()) | (table.index == table.index[-1])]
    x, y = numbers(steps["device_seconds"]), numbers(100 * steps["best"])
    shapes, notes = marks.teacher_level(results)
    return Chart(
        "best",
        "Best so far",
        "The best validation accuracy against the device time that was spent until then, all trials counted.",
        [marks.line(x, y, "best so far", 0, line={"shape": "hv"})],
        axis("device time (s)"),
        axis("best validation accuracy (%)"),
        shapes,
        notes,
    )


def _timeline(results: Results) -> Chart | None:
    """A line for each trial in its worker's row: reports that follow each other at once are one line."""
    steps = work(results.epochs)
    if steps.empty:
        return None
    names = row_names(steps)
    steps = steps.sort_values(["row", "start"], kind="stable")
    keys = steps[["trial", "row"]].astype({"trial": "object"})
    new = (keys != keys.shift()).any(axis=1)
    group = (new | (steps["start"] - steps["end"].shift() > PAUSE)).cumsum()
    spans = steps.groupby(group).agg(
        {"row": "first", "stage": "first", "number": "first", "start": "min", "end": "max"}
    )
    traces = []
    for stage, place in marks.of_stages(results).items():
        part = spans[spans["stage"] == stage]
        if part.empty:
            continue
        x = [at for ends in zip(numbers(part["start"]), numbers(part["end"]), strict=True) for at in (*ends, None)]
        y = [at for row in part["row"] for at in (names[row], names[row], None)]
        text = [f"{stage} trial {number}" for number in part["number"] for _ in range(3)]
        template = "%{text}<br>%{y}, %{x:.1f} s<extra></extra>"
        look = {"width": 9, "dash": "solid"}
        traces.append({**marks.line(x, y, stage, place, line=look, text=text, hovertemplate=template), "mode": "lines"})
    busy = (steps["end"] - steps["start"]).sum() / (steps["end"].max() * len(names))
    return Chart(
        "timeline",
        "What ran where",
        f"When each worker worked on which trial; where there is no line, it waited, started or stood idle. They were "
        f"busy {100 * busy:.0f} % of the time.",
        traces,
        axis("wall time (s)"),
        axis("", type="category", categoryorder="array", categoryarray=names[::-1]),
        height=min(130 + 40 * len(names), 900),
    )
