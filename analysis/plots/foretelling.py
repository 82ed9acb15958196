"""How well early signs foretell the end: epochs by epoch, and scores without training."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis import target as targets
from analysis.early import LEAST, judged
from analysis.errors import BadInput
from analysis.plots import words
from analysis.plots.students import place
from analysis.plots.theme import MARKERS, Picture, Theme, canvas, legend, look, name_axes, plain, points
from analysis.predictors import Predictor, of_epochs, of_scores, of_size
from analysis.results import Results

_PANELS = 6
_NAMES = {"valid_accuracy": "validation accuracy", "teacher_guidance": "teacher's guidance (TGSA)"}


def epoch_agreement(results: Results, *, stage: str | None = None, theme: str = "light") -> Picture:
    """Kendall's tau between the order of students after epoch k and their order at the end, with its 95 % interval.

    The line to beat is the tau of `params`, known before any training. The candidates are those that `agreement`
    takes: early-stopped ones are left out where enough others are.

    Args:
        stage: default: the last stage of distillation with at least 5 different candidates.

    Raises:
        BadInput: several runs, an unknown stage or theme, too few candidates, or no epoch before the last.
    """
    style = look(theme)
    truth = _truth(results, stage)
    early = [one for one in of_epochs(results, truth.stage) if one.stage == truth.stage]
    found = judged(truth, early)
    found = found[found["tau"].notna() & (found["n"] >= LEAST)]
    if found.empty:
        raise BadInput(f"{place(results, truth.stage)} has no epoch before its last that orders the students")
    figure, (axes,) = canvas(style, size=(5.4, 3.5))
    handles: list[Any] = []
    for number, (name, part) in enumerate(_different(found)):
        handles += _tau_line(axes, style, part, _NAMES.get(str(name), str(name)), number)
    size = judged(truth, of_size(results.trials)).set_index("predictor")["tau"]
    for name, dash in (("params", (4, 2)), ("flops", (1, 2))):
        if np.isfinite(size[name]):
            label = f"{name}, without training"
            handles.append(axes.axhline(size[name], color=style.muted, dashes=dash, lw=1.2, label=label, gid=name))
    low = min(-0.05, float(found[["tau", "tau_low"]].min().min()), float(np.nanmin([*size, 0.0])))
    axes.set_ylim(max(-1.05, low - 0.05), 1.05)
    words.epoch_axis(axes)
    _numbers(axes, style, found.groupby("epoch")["n"].max())
    if (found["n"] < targets.ENOUGH).any():
        label = f"fewer than {targets.ENOUGH} students"
        handles.append(Line2D([], [], color=style.muted, ls="none", marker="o", mfc="none", ms=5, label=label))
    also = ", early-stopped ones too" if truth.censored == "last" else ""
    title = f"stage {truth.stage}: {words.count(int(found['n'].max()), 'student')}{also}"
    name_axes(axes, style, "after training for (epochs)", "agreement with the end (Kendall's τ, 95 %)", title)
    legend(figure, style, handles, columns=3)
    return figure


def scores(results: Results, *, stage: str | None = None, theme: str = "light") -> Picture:
    """Final validation accuracy against scores without training and size, the six of greatest tau, a panel each.

    Args:
        stage: of the accuracy; default: the last stage of distillation with at least 5 different candidates.

    Raises:
        BadInput: several runs, an unknown stage or theme, too few candidates, or none of them with a score.
    """
    style = look(theme)
    truth = _truth(results, stage)
    known = [one for one in of_scores(results) if one.values.index.isin(truth.values.index).any()]
    if not known:
        raise BadInput(f"{place(results, truth.stage)} has no score without training of its students: add a stage "
                       f"with trial: score before it")  # fmt: skip
    known += of_size(results.trials)
    found = judged(truth, known)
    order = found[found["tau"].notna()].sort_values("tau", ascending=False, kind="stable").index
    if order.empty:
        raise BadInput(f"{place(results, truth.stage)} has no score that differs between its students")
    best = order[:_PANELS]
    columns = min(len(best), 3)
    figure, every = canvas(style, columns, -(-len(best) // columns), share_y=True)
    for number, axes in enumerate(every):
        if number < len(best):
            _score_panel(axes, style, known[best[number]], truth.values, found.loc[best[number]])
        else:
            axes.remove()
        if number % columns:
            axes.set_ylabel("")
    note = f"stage {truth.stage}: {words.count(len(truth.values), 'student')}; {len(best)} of {len(order)} scores"
    title = plain(f"{note}, by Kendall's τ with the final accuracy")
    figure.suptitle(title, fontsize=9, color=style.ink, x=0.01, ha="left")
    return figure


def _truth(results: Results, stage: str | None) -> targets.Target:
    if results.trials.empty:
        raise BadInput(f"{place(results, stage)} has no trials yet")
    truth = targets.final(results, "valid_accuracy", stage, None)
    if len(truth.values) < LEAST:
        raise BadInput(f"{place(results, stage or truth.stage)} has {words.count(len(truth.values), 'student')} with a "
                       f"final accuracy; an order of them takes at least {LEAST}")  # fmt: skip
    return truth


def _different(found: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Each predictor's rows, without the objective where it orders students as the accuracy does."""
    parts = {str(name): part for name, part in found.groupby("predictor", sort=False)}
    same = [parts[name].set_index("epoch")["tau"] for name in ("valid_accuracy", "objective") if name in parts]
    if len(same) == 2 and same[0].equals(same[1]):
        del parts["objective"]
    return list(parts.items())


def _numbers(axes: Axes, style: Theme, counts: pd.Series) -> None:
    """How many students each epoch was judged on, above the axis, where that varies."""
    if counts.nunique() == 1:
        return
    for epoch, number in counts.iloc[:: -(-len(counts) // 12)].items():
        axes.annotate(
            f"n={number}", (float(str(epoch)), 0), (0, 3), xycoords=("data", "axes fraction"), fontsize=6.5,
            textcoords="offset points", ha="center", color=style.muted, gid="n",
        )  # fmt: skip


def _tau_line(axes: Axes, style: Theme, part: pd.DataFrame, name: str, number: int) -> list[Any]:
    colour, marker = style.colours[number], MARKERS[number]
    x = part["epoch"].to_numpy(dtype="float64")
    axes.fill_between(x, part["tau_low"], part["tau_high"], color=colour, alpha=0.15, linewidth=0)
    if len(x) == 1:
        low, high = part["tau_low"].iloc[0], part["tau_high"].iloc[0]
        axes.vlines(x, low, high, color=colour, linewidth=1.2)
    few = part["n"].to_numpy() < targets.ENOUGH
    axes.scatter(x[~few], part["tau"].to_numpy()[~few], color=colour, marker=marker, s=22, zorder=3)
    return list(
        axes.plot(x, part["tau"], color=colour, marker=marker, ms=5, mfc="none", lw=1.5, label=name, gid=f"tau {name}")
    )


def _score_panel(axes: Axes, style: Theme, one: Predictor, truth: pd.Series, row: pd.Series) -> None:
    both = pd.concat([one.values.rename("x"), truth.rename("y")], axis=1, join="inner").dropna()
    size = one.name in ("params", "flops")
    colour, marker = (style.colours[5], "s") if size else (style.colours[0], "o")
    axes.scatter(both["x"], 100 * both["y"], **points(style, colour, marker, len(both)), gid=f"score {one.name}")
    if size:
        words.cost_axis(axes, one.name, both["x"])
    elif both["x"].min() > 0 and both["x"].max() > 100 * both["x"].min():
        axes.set_xscale("log")
    else:
        axes.ticklabel_format(axis="x", style="sci", scilimits=(-3, 4))
        axes.xaxis.get_offset_text().set(color=style.muted, fontsize=7)
        axes.locator_params(axis="x", nbins=5)
    tau, low, high = (words.signed(row[name]) for name in ("tau", "tau_low", "tau_high"))
    sure = f"{low} to {high}" if np.isfinite(row["tau_low"]) else f"n = {len(both)}"
    label = words.axis(one.name) if size else f"{one.name} (score)"
    name_axes(axes, style, label, words.axis("valid_accuracy"), f"{one.name}: τ = {tau} ({sure})")
