"""Pictures: what every one of them owes its reader, and that each shows the numbers of the tables."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PathCollection, PolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from pandas.testing import assert_frame_equal

import analysis
from analysis import BadInput, Results
from analysis.plots import PLOTS, THEMES
from analysis.plots.students import distilled
from analysis.plots.theme import contrast
from analysis.timeline import work

WITHOUT_UNITS = {"timeline", "importance"}  # their vertical axes have names, of workers and of choices
IMPORTANCE = pd.DataFrame(
    {"choice": ["arch.width", "arch.depth1", "set.lr"], "importance": [0.3, 0.9, -0.02],
     "low": [0.2, 0.7, -0.05], "high": [0.4, 1.2, 0.01]}
)  # fmt: skip


def search(folder: Path, students: int, name: str = "run", finalists: int = 3) -> Results:
    """A run: scores of all students, a short stage of all with early stopping, a final one of the best, two workers."""
    generator = np.random.default_rng(students)
    clock = {"w:1": 1000.0, "w:2": 1000.0}
    lines: list[dict[str, Any]] = [
        {"event": "run", "time": 990.0, "schema": 1, "name": name, "recipe": "r", "dux": "0.1.0"},
        {"event": "teacher", "time": 995.0, "name": "resnet", "source": "trained", "params": 70_000, "seconds": 5.0,
         "metrics": {"valid_accuracy": 0.97}},
    ]  # fmt: skip

    def stage(name: str, index: int, trial: str, scheduler: str = "none") -> None:
        lines.append({"event": "stage", "time": max(clock.values()), "stage": name, "index": index, "trial": trial,
                      "objective": {"valid_accuracy": 1.0}, "combine": "sum", "scheduler": scheduler})  # fmt: skip

    def trial(
        stage: str, number: int, student: int, curve: list[dict[str, float]], status: str, first: int = 1
    ) -> None:
        worker = min(clock, key=lambda one: clock[one])
        arch = {"depth1": 1 + student % 3, "depth2": 1 + student // 3 % 3, "depth3": 2, "width": 2 + student}
        size = 50 * (student + 2) ** 2
        cost = {"params": size, "flops": 12 * size, "bytes": 4 * size, "latency_ms": 0.5 + 0.01 * student}
        key = {"stage": stage, "number": number}
        lines.append({"event": "trial", "time": clock[worker], **key, "proposal": student, "seed": 0, "control": False,
                      "arch": arch, "hash": f"{student:016x}", "params": {}, "cost": cost})  # fmt: skip
        for epoch, metrics in enumerate(curve, first):
            clock[worker] += 2.0
            lines.append({"event": "report", "time": clock[worker], **key, "epoch": epoch, "seconds": 1.5,
                          "worker": worker, "metrics": metrics})  # fmt: skip
        lines.append({"event": "end", "time": clock[worker], **key, "status": status, "reason": None})

    def curve(student: int, epochs: int) -> list[dict[str, float]]:
        end = 0.5 + 0.4 * student / students + generator.normal(0, 0.03)
        values = [end * (1 - 0.5**epoch) + generator.normal(0, 0.01) for epoch in range(1, epochs + 1)]
        return [{"objective": v, "valid_accuracy": v, "teacher_similarity": 0.4 + 0.5 * v} for v in values]

    stage("score", 1, "score")
    for student in range(students):
        trial(
            "score", student, student, [{"snip": generator.normal(student, 3), "nwot": 2.0 * student}], "completed", 0
        )
    stage("short", 2, "distill", "asha")
    for student in range(students):
        epochs = 4 if student >= students // 2 else 1 + student % 2
        trial("short", student, student, curve(student, epochs), "completed" if epochs == 4 else "stopped")
    stage("final", 3, "distill")
    for number in range(min(finalists, students)):
        trial("final", number, students - 1 - number, curve(students - 1 - number, 6), "completed")
    folder.mkdir(parents=True)
    (folder / "ledger.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return analysis.load(folder)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return search(tmp_path_factory.mktemp("plots") / "run", 20)


Draw = Callable[..., Figure]


@pytest.fixture(scope="module")
def picture(results: Results) -> Draw:
    """A function from a picture's name, theme and stage to the picture, which is drawn and laid out once; neither
    tables nor matplotlib's settings are changed by that."""
    done: dict[tuple[str, ...], Figure] = {}

    def get(name: str, theme: str = "light", **options: str) -> Figure:
        key = (name, theme, *options.values())
        if key not in done:
            tables = (results.trials, results.epochs, results.stages, IMPORTANCE)
            before, settings = [table.copy() for table in tables], dict(mpl.rcParams)
            done[key] = PLOTS[name].draw(given(name, results), theme=theme, **options)
            if theme == "light":
                done[key].draw_without_rendering()
            assert dict(mpl.rcParams) == settings
            for now, then in zip(tables, before, strict=True):
                assert_frame_equal(now, then)
        return done[key]

    return get


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return search(tmp_path_factory.mktemp("plots") / "run", 1)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return search(tmp_path_factory.mktemp("plots") / "run", 1100)


def given(name: str, results: Results) -> Any:
    return IMPORTANCE if PLOTS[name].takes == "importance" else results


def drawn(figure: Figure, gid: str, kind: type = object) -> list[Any]:
    return figure.findobj(lambda artist: isinstance(artist, kind) and artist.get_gid() == gid)


def texts(figure: Figure) -> Iterator[Text]:
    return (text for text in figure.findobj(Text) if text.get_text() and text.get_visible())


# What every picture owes its reader.


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", PLOTS)
def test_a_picture_is_drawn_in_either_theme_with_units_and_readable_words(name: str, theme: str, picture: Draw) -> None:
    figure = picture(name, theme)
    look = THEMES[theme]
    assert isinstance(figure, Figure)
    assert to_hex(figure.get_facecolor()) == look.paper
    shown = [axes for axes in figure.axes if axes.axison and axes.get_label() != "<colorbar>"]
    for number, axes in enumerate(shown):
        assert re.search(r"\(.+\)$", axes.get_xlabel()), axes.get_xlabel()
        assert number or name in WITHOUT_UNITS or re.search(r"\(.+\)$", axes.get_ylabel())
    assert shown or name == "architecture"
    bars = {to_hex(part.get_facecolor()[0]) for part in figure.findobj(PolyCollection) if len(part.get_facecolor())}
    for text in texts(figure):
        behind = [look.paper, *bars] if name == "timeline" else [look.paper]
        assert max(contrast(to_hex(text.get_color()), paper) for paper in behind) >= 4.5, text.get_text()


@pytest.mark.parametrize("name", PLOTS)
def test_words_stay_within_the_picture_and_names_apart(name: str, picture: Draw) -> None:
    figure = picture(name)
    page = figure.bbox.padded(2)
    labels = [part for axes in figure.axes for part in (axes.xaxis.label, axes.yaxis.label, *axes.texts)]
    labels += [axes._left_title for axes in figure.axes]  # type: ignore[attr-defined]
    labels += [text for legend in figure.legends for text in legend.get_texts()]
    for text in (text for text in labels if text.get_text()):
        (x0, y0), (x1, y1) = text.get_window_extent().get_points()
        assert page.x0 <= x0 <= x1 <= page.x1, text.get_text()
        assert page.y0 <= y0 <= y1 <= page.y1, text.get_text()
    for one, other in combinations([text.get_window_extent() for text in drawn(figure, "name", Text)], 2):
        assert not one.overlaps(other)


@pytest.mark.parametrize("name", PLOTS)
def test_bad_input_is_one_line_and_nothing_else(name: str, results: Results, tmp_path: Path) -> None:
    plot = PLOTS[name]
    with pytest.raises(BadInput, match=r"unknown theme 'lihgt'; did you mean 'light'\?"):
        plot.draw(given(name, results), theme="lihgt")
    with pytest.raises(BadInput, match="unknown stage 'shrot'"):
        plot.draw(given(name, results), stage="shrot")
    empty = [
        replace(results, **{part: getattr(results, part).head(0) for part in ("trials", "epochs")}),
        replace(results, **{part: getattr(results, part).head(0) for part in ("trials", "epochs", "stages")}),
    ]
    for none in [IMPORTANCE.head(0), IMPORTANCE[["choice"]]] if plot.takes == "importance" else empty:
        with pytest.raises(BadInput) as caught:
            plot.draw(none)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name, plot in PLOTS.items() if plot.takes == "results"])
def test_one_student_is_drawn_or_refused_in_one_line(name: str, one: Results) -> None:
    if name in ("epoch_agreement", "scores"):
        with pytest.raises(BadInput, match="takes at least 3"):
            PLOTS[name].draw(one)
    else:
        PLOTS[name].draw(one).draw_without_rendering()


def test_thousands_of_trials_are_pixels_in_vectors(many: Results) -> None:
    lines = PLOTS["learning"].draw(many, stage="short").findobj(LineCollection)
    assert sum(len(part.get_segments()) for part in lines) == 1100
    assert all(part.get_rasterized() for part in lines)
    bars = [part for part in PLOTS["timeline"].draw(many).findobj(PolyCollection) if len(part.get_paths()) > 1000]
    assert bars
    assert all(part.get_rasterized() for part in bars)


def test_each_picture_says_in_one_sentence_what_it_shows() -> None:
    for plot in PLOTS.values():
        assert plot.shows.endswith(".")
        assert plot.shows.count(".") == 1


def test_pictures_need_no_pyplot_and_nothing_heavy() -> None:
    packages = ("torch", "ray", "optuna", "sklearn", "plotly", "matplotlib.pyplot", "spaces", "trainables")
    code = f"import sys, analysis.plots; print([name for name in {packages} if name in sys.modules])"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_notebook_shows_a_picture_by_itself() -> None:
    picture = PLOTS["importance"].draw(IMPORTANCE)
    assert picture._repr_png_().startswith(b"\x89PNG")


# Each picture has the numbers of the tables.


def test_cost_has_the_ranking_its_front_and_the_teacher(results: Results, picture: Draw) -> None:
    figure = picture("cost", stage="short")
    table = analysis.rank(results, stage="short")
    assert [axes.get_xlabel().split(" (")[0] for axes in figure.axes] == ["size", "computation", "latency of one image"]
    for axes, column in zip(figure.axes, ["params", "flops", "latency_ms"], strict=True):
        points = {part.get_gid(): part.get_offsets() for part in axes.collections if part.get_gid()}
        for gid, status in (("students", "completed"), ("stopped", "stopped")):
            part = table[table["status"] == status]
            expected = np.column_stack([part[column].astype(float), 100 * part["valid_accuracy"]])
            np.testing.assert_allclose(np.asarray(points[gid]), expected)
        (front,) = (line for line in axes.lines if line.get_gid() == "front")
        best = analysis.pareto(table, {"valid_accuracy": "max", column: "min"}).sort_values(column)
        np.testing.assert_allclose(front.get_ydata(), 100 * best["valid_accuracy"])
        np.testing.assert_allclose(front.get_xdata(), best[column].astype(float))
        (teacher,) = (line for line in axes.lines if line.get_gid() == "teacher")
        assert set(teacher.get_ydata()) == {97.0}


def test_cost_has_earlier_stages_behind_and_every_run_a_marker(results: Results, picture: Draw, tmp_path: Path) -> None:
    figure = picture("cost")
    behind = distilled(results, "short")["short"].query("status == 'completed'")
    assert len(drawn(figure, "stage short")[0].get_offsets()) == len(behind) == 10
    names = [text.get_text() for text in drawn(figure, "name", Text)]
    assert names
    assert all("width" in name for name in names)
    other = search(tmp_path / "other", 8, "other")
    both = PLOTS["cost"].draw(analysis.load_many([results.path, other.path]))
    labels = [text.get_text() for text in both.legends[0].get_texts()]
    assert {"run run, stage final: finished (3)", "run other, stage final: finished (3)"} <= set(labels)


def test_a_cost_that_nobody_knows_has_no_panel(results: Results) -> None:
    blind = replace(results, trials=results.trials.assign(latency_ms=np.nan))
    assert len(PLOTS["cost"].draw(blind).axes) == 2
    none = blind.trials.assign(params=pd.array([pd.NA] * len(blind.trials), dtype="Int64"), flops=pd.NA)
    with pytest.raises(BadInput, match="no cost of its students"):
        PLOTS["cost"].draw(replace(results, trials=none.astype({"flops": "Int64"})))


def test_learning_has_a_line_a_trial_in_the_colour_of_its_rung(results: Results) -> None:
    figure = PLOTS["learning"].draw(results, stage="short")
    epochs = results.epochs[results.epochs["stage"] == "short"]
    found = {gid: drawn(figure, gid, LineCollection)[0] for gid in ("stopped 1", "stopped 2", "completed 0")}
    assert [len(lines.get_segments()) for lines in found.values()] == [5, 5, 10]
    assert len({to_hex(lines.get_color()[0]) for lines in found.values()}) == 3
    numbers = results.trials.query("stage == 'short' and status == 'completed'")["number"]
    for number, segment in zip(numbers, found["completed 0"].get_segments(), strict=True):
        curve = epochs[epochs["number"] == number]
        np.testing.assert_allclose(segment, np.column_stack([curve["epoch"], 100 * curve["valid_accuracy"]]))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["stopped at epoch 1 (5)", "stopped at epoch 2 (5)", "finished (10)", "teacher: 97.0 %"]


def test_a_member_of_a_population_begins_where_its_parent_ended(results: Results) -> None:
    trials = results.trials.copy()
    trials.loc[(trials["stage"] == "final") & (trials["number"] == 1), "parent"] = 0
    figure = PLOTS["learning"].draw(replace(results, trials=trials), stage="final")
    segments = drawn(figure, "completed 0", LineCollection)[0].get_segments()
    np.testing.assert_allclose(segments[1][0], segments[0][-1])


def test_epoch_agreement_has_the_taus_of_agreement(results: Results, picture: Draw) -> None:
    (line,) = drawn(picture("epoch_agreement"), "tau validation accuracy")
    table = analysis.agreement(results, stage="short")
    expected = table[(table["predictor"] == "valid_accuracy") & (table["stage"] == "short")]
    np.testing.assert_allclose(line.get_xdata(), expected["epoch"].astype(float))
    np.testing.assert_allclose(line.get_ydata(), expected["tau"])
    size = float(table.set_index("predictor").loc["params", "tau"])
    assert drawn(picture("epoch_agreement"), "params")[0].get_ydata()[0] == pytest.approx(size)


def test_scores_have_the_values_and_taus_of_agreement(results: Results, picture: Draw) -> None:
    figure = picture("scores")
    table = analysis.agreement(results, stage="short").set_index("predictor")
    trials = results.trials[results.trials["stage"] == "score"].set_index("hash")
    final = results.trials.query("stage == 'short' and status == 'completed'").set_index("hash")["valid_accuracy"]
    points = np.asarray(drawn(figure, "score snip")[0].get_offsets())
    expected = np.column_stack([trials["snip"].loc[final.index], 100 * final])
    np.testing.assert_allclose(np.sort(points, axis=0), np.sort(expected, axis=0))
    title = next(axes.get_title(loc="left") for axes in figure.axes if axes.get_xlabel().startswith("snip"))
    assert title.startswith(f"snip: τ = {table.loc['snip', 'tau']:.2f} (".replace("-", "\N{MINUS SIGN}"))
    taus = [float(axes.get_title(loc="left").split("= ")[1].split(" ")[0].replace("\N{MINUS SIGN}", "-"))
            for axes in figure.axes]  # fmt: skip
    assert taus == sorted(taus, reverse=True)


def test_a_run_without_scores_is_told_so(results: Results) -> None:
    trained = replace(results, stages=results.stages[results.stages["trial"] != "score"])
    with pytest.raises(BadInput, match="no score without training of its students: add a stage"):
        PLOTS["scores"].draw(trained)


def seeded(results: Results) -> Results:
    """The results as if each finalist had been trained twice."""
    again = results.trials[results.trials["stage"] == "final"]
    again = again.assign(seed=1, number=again["number"] + 100)
    return replace(results, trials=pd.concat([results.trials, again], ignore_index=True))


def test_similarity_is_of_the_finalists_where_each_has_several_seeds(results: Results) -> None:
    title = PLOTS["similarity"].draw(seeded(results)).axes[0].get_title(loc="left")
    assert title.startswith("stage final: 3 finished students of 2 seeds, Kendall's τ")


def test_similarity_has_the_students_that_were_not_stopped(results: Results, picture: Draw) -> None:
    figure = picture("similarity")
    table = analysis.rank(results, stage="short").query("status == 'completed'")
    (students,) = drawn(figure, "students", PathCollection)
    expected = np.column_stack([table["teacher_similarity"], 100 * table["valid_accuracy"]])
    np.testing.assert_allclose(np.asarray(students.get_offsets()), expected)
    np.testing.assert_allclose(students.get_array(), table["params"].astype(float))
    assert "10 finished students, Kendall's τ = 1.00" in figure.axes[0].get_title(loc="left")


def test_a_run_without_likeness_is_told_so(results: Results) -> None:
    with pytest.raises(BadInput, match="teacher_similarity is missing"):
        PLOTS["similarity"].draw(replace(results, trials=results.trials.assign(teacher_similarity=np.nan)))


def test_timeline_has_every_report_and_idle_time(results: Results, picture: Draw) -> None:
    figure = picture("timeline")
    steps = work(results.epochs)
    boxes = [path.get_extents() for part in figure.findobj(PolyCollection) for path in part.get_paths()]
    assert len(boxes) == len(results.epochs) == len(steps)
    assert sum(box.width for box in boxes) == pytest.approx(results.epochs["seconds"].sum())
    assert max(box.x1 for box in boxes) == pytest.approx(results.epochs["time"].max() - 1000.5)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["w:1", "w:2"]
    share = results.epochs["seconds"].sum() / (2 * steps["end"].max())
    assert f"{100 * share:.0f} % busy" in figure.axes[0].get_title(loc="left")


def test_a_worker_that_takes_over_stands_in_the_row_of_the_one_before(results: Results) -> None:
    epochs = results.epochs.copy()
    later = epochs["stage"] == "final"
    epochs.loc[later, "worker"] = epochs.loc[later, "worker"].str.replace("w:", "w:1")
    epochs = epochs[~later | (epochs["time"] > epochs.loc[~later, "time"].max() + 2)]
    steps = work(epochs)
    assert steps["worker"].nunique() == 4
    assert steps["row"].nunique() == 2
    assert not any(
        (part["start"].iloc[1:].to_numpy() < part["end"].iloc[:-1].to_numpy()).any()
        for _, part in steps.sort_values("start").groupby("row")
    )
    labels = PLOTS["timeline"].draw(replace(results, epochs=epochs)).axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == ["w (1)", "w (2)"]


def test_progress_only_rises_and_counts_all_device_time(results: Results, picture: Draw) -> None:
    figure = picture("progress")
    (line,) = drawn(figure, "best run")
    x, y = (np.asarray(values, dtype=float) for values in line.get_data())
    assert (np.diff(y) >= 0).all()
    assert (np.diff(x) > 0).all()
    assert x[-1] == pytest.approx(results.device_seconds)
    assert y[-1] == pytest.approx(100 * results.trials["valid_accuracy"].max())
    starts = {
        line.get_gid(): line.get_xdata()[0] for line in figure.axes[0].lines if line.get_gid().startswith("stage")
    }
    assert starts == {"stage score": 5.0, "stage short": pytest.approx(5 + 20 * 1.5), "stage final": pytest.approx(
        5 + 1.5 * (results.epochs["stage"] != "final").sum())}  # fmt: skip
