"""How a search went on, and two side by side."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau

import analysis
from analysis import BadInput


def short(new_run: Callable[..., Any], directory: str, accuracies: dict[int, float], name: str = "quickstart") -> Any:
    """A run of one stage: of each width, what it reached."""
    run = new_run(directory, name)
    run.stage("short", 1)
    for number, (width, accuracy) in enumerate(accuracies.items()):
        run.distil("short", number, [accuracy - 0.1, accuracy], width=width)
    run.add("run_end", seconds=60.0)
    return run


def test_the_best_so_far_by_hand(new_run: Callable[..., Any]) -> None:
    run = new_run()  # events a second apart: the run at 0, its teacher (20 s) at 1
    run.stage("short", 1)
    run.distil("short", 0, [0.5, 0.6], width=4)  # trial 3, reports 4 and 5, end 6
    run.distil("short", 1, [0.9], "failed", width=8)  # 7, 8, 9
    run.distil("short", 2, [0.95], width=8, control=True)  # 10, 11, 12
    run.distil("short", 3, [0.55], width=16)  # 13, 14, 15
    run.distil("short", 4, [0.7], "stopped", width=2)  # 16, 17, 18
    results = analysis.load(run.path)
    found = analysis.best_so_far(results)
    assert found["number"].tolist() == [0, 3, 4]
    assert found["value"].tolist() == [0.6, 0.55, 0.7]
    assert found["best"].tolist() == [0.6, 0.6, 0.7]
    assert found["device_seconds"].tolist() == [21.0, 22.5, 23.0]  # half a second a report, of whatever trial
    assert found["wall_seconds"].tolist() == [5.0, 14.0, 17.0]
    assert found["device_seconds"].iloc[-1] == results.device_seconds
    down = analysis.best_so_far(run.path, metric="train_loss")
    assert down["best"].tolist() == pytest.approx([0.4, 0.4, 0.3])
    assert down.attrs == {"metric": "train_loss", "stage": None}
    assert analysis.best_so_far(results, "params")["best"].tolist() == [400, 400, 200]


def test_pauses_and_other_stages_count_as_they_should(run: Any) -> None:
    run.stage("more", 4)
    run.distil("more", 0, [0.99], width=4)
    before = analysis.best_so_far(run.path)
    run._clock = iter(range(1_800_000_000, 1_800_000_100))
    run.add("resume")
    run.distil("more", 1, [0.5], width=8)
    found = analysis.best_so_far(run.path)
    pd.testing.assert_frame_equal(found.head(len(before)), before)
    # The session before it lasted to its last report; then a resumption, a trial and its report, a second apart.
    assert found["wall_seconds"].iloc[-1] == before["wall_seconds"].iloc[-1] + 2
    only = analysis.best_so_far(run.path, stage="more")
    assert only["value"].tolist() == [0.99, 0.5]
    assert only["device_seconds"].tolist() == found["device_seconds"].tolist()[-2:]
    analysis.write_tables(run.path)
    pd.testing.assert_frame_equal(analysis.best_so_far(run.path), found)


def test_each_of_several_runs_has_its_own_best(new_run: Callable[..., Any]) -> None:
    paths = [short(new_run, name, {4: value, 8: value - 0.1}, name).path for name, value in (("a", 0.5), ("b", 0.9))]
    found = analysis.best_so_far(analysis.load_many(paths))
    assert found[["run", "best"]].values.tolist() == [["a", 0.5], ["a", 0.5], ["b", 0.9], ["b", 0.9]]
    assert found["device_seconds"].tolist() == [21.0, 22.0, 21.0, 22.0]


def test_mistakes(run: Any) -> None:
    with pytest.raises(BadInput, match="unknown metric 'accuracy'; did you mean"):
        analysis.best_so_far(run.path, "accuracy")
    with pytest.raises(BadInput, match=r"unknown metric 'arch\.width'"):
        analysis.best_so_far(run.path, "arch.width")
    with pytest.raises(BadInput, match="unknown stage 'shrt'"):
        analysis.best_so_far(run.path, stage="shrt")
    with pytest.raises(BadInput, match="no finished trial of quickstart has a valid_accuracy"):
        analysis.best_so_far(run.path, "valid_accuracy", "score")
    with pytest.raises(BadInput, match="each k must be at least 1, not 0"):
        analysis.compare(run.path, run.path, ks=[0])
    with pytest.raises(BadInput, match="one run on each side"):
        analysis.compare(analysis.load_many([run.path]), analysis.load_many([run.path, run.path]))
    with pytest.raises(BadInput, match="unknown metric"):
        analysis.compare(run.path, run.path, metric="nothing")


ONE = {2: 0.70, 4: 0.75, 8: 0.80, 16: 0.85, 32: 0.60, 64: 0.65}
OTHER = {2: 0.50, 4: 0.58, 8: 0.56, 16: 0.62, 32: 0.54, 128: 0.90}


def test_two_runs_by_hand(new_run: Callable[..., Any]) -> None:
    one, other = short(new_run, "a", ONE, "quick"), short(new_run, "b", OTHER, "quick")
    found = analysis.compare(one.path, other.path, ks=(1, 2, 3, 10))
    assert found.overview["run"].tolist() == ["a", "b"]
    assert found.overview["best"].tolist() == ["width=16", "width=128"]
    assert found.overview["device_seconds"].tolist() == [26.0, 26.0]
    assert found.censored == "drop"
    shared = found.shared.set_index("arch.width")
    assert set(shared.index) == {2, 4, 8, 16, 32}
    assert shared.loc[8, ["value_one", "value_other", "rank_one", "rank_other"]].tolist() == [0.80, 0.56, 2, 4]
    assert shared.loc[8, "difference"] == pytest.approx(-0.24)
    assert shared.index[0] == 16
    tau = kendalltau([ONE[w] for w in shared.index], [OTHER[w] for w in shared.index]).statistic
    assert found.agreement["tau"].tolist() == pytest.approx([tau])
    assert found.agreement["n"].tolist() == [5]
    assert found.agreement["tau_low"].iloc[0] <= tau <= found.agreement["tau_high"].iloc[0]
    # The best in common are 16; 16 and 8 against 16 and 4; 16, 8 and 4 in both.
    assert found.overlap["k"].tolist() == [1, 2, 3]
    assert found.overlap["overlap"].tolist() == pytest.approx([1, 0.5, 1])
    assert found.overlap["chance"].tolist() == pytest.approx([0.2, 0.4, 0.6])


def test_seconds_to_reach_each_value(new_run: Callable[..., Any]) -> None:
    one, other = short(new_run, "a", ONE), short(new_run, "b", OTHER)
    found = analysis.compare(one.path, other.path).seconds.set_index("valid_accuracy")
    # A second a trial, after the teacher's 20; the best so far rose to these values.
    assert found.index.tolist() == [0.5, 0.58, 0.62, 0.7, 0.75, 0.8, 0.85, 0.9]
    assert found["seconds_one"].tolist()[:-1] == [21, 21, 21, 21, 22, 23, 24]
    assert math.isnan(found["seconds_one"].iloc[-1])
    assert found["seconds_other"].tolist() == [21, 22, 24, 26, 26, 26, 26, 26]
    assert found["ratio"].iloc[0] == 1
    # Of a metric of which less is better, from the worst to the best as well.
    losses = analysis.compare(one.path, other.path, metric="train_loss").seconds
    assert losses["train_loss"].tolist() == pytest.approx([1 - value for value in found.index])
    np.testing.assert_array_equal(losses["seconds_one"], found["seconds_one"])


def test_a_run_agrees_with_itself_and_less_is_better_too(new_run: Callable[..., Any]) -> None:
    run = short(new_run, "a", ONE)
    for metric in ("valid_accuracy", "train_loss"):
        found = analysis.compare(run.path, run.path, metric=metric)
        assert found.agreement["tau"].tolist() == [1.0]
        assert (found.overlap["overlap"] == 1).all()
        assert (found.seconds["ratio"] == 1).all()
        assert found.shared["rank_one"].tolist() == [1, 2, 3, 4, 5, 6]


def test_the_stage_is_that_of_the_best_and_of_what_he_reaches(new_run: Callable[..., Any]) -> None:
    one, other = short(new_run, "a", ONE), short(new_run, "b", OTHER)
    one.stage("final", 2)
    one.distil("final", 0, [0.99], width=8)  # too few to compare by: its numbers are not those of `short`
    overview = analysis.compare(one.path, other.path).overview.set_index("run").loc["a"]
    assert overview[["stage", "students", "best", "valid_accuracy"]].tolist() == ["short", 6, "width=16", 0.85]
    few = analysis.compare(one.path, one.path, stage="final").overview.iloc[0]
    assert few[["stage", "students", "best", "valid_accuracy"]].tolist() == ["final", 1, "width=8", 0.99]


def halved(new_run: Callable[..., Any], directory: str, stopped: set[int]) -> Any:
    """A run of eight students, some of which were stopped after one epoch of two."""
    run = new_run(directory)
    run.stage("short", 1, scheduler="asha")
    for width in range(1, 9):
        curve = [width / 20] if width in stopped else [width / 20, width / 10]
        run.distil("short", width, curve, "stopped" if width in stopped else "completed", width=width)
    return run


def test_students_that_were_stopped_count_where_too_few_others_are_shared(new_run: Callable[..., Any]) -> None:
    one, other = halved(new_run, "a", {1, 2, 3}), halved(new_run, "b", {2, 3, 4})
    found = analysis.compare(one.path, other.path)  # 5 to 8 were stopped in neither
    assert (found.censored, len(found.shared)) == ("last", 8)
    by_width = found.shared.set_index("arch.width")
    assert by_width.loc[4, ["value_one", "value_other", "epochs_one", "epochs_other"]].tolist() == [0.4, 0.2, 2, 1]
    assert "8 students in common, those that were stopped early at their last report: Kendall's tau" in found.summary()
    assert "epochs one" in found.summary()
    dropped = analysis.compare(one.path, other.path, censored="drop")
    assert (dropped.censored, dropped.agreement["n"].tolist()) == ("drop", [4])
    assert dropped.agreement[["tau_low", "tau_high"]].isna().all(axis=None)
    assert dropped.overlap[["overlap_low", "overlap_high"]].isna().all(axis=None)
    assert "4 students in common: Kendall's tau 1.00 (n = 4: no interval)" in dropped.summary()
    enough = analysis.compare(one.path, halved(new_run, "c", {1, 2}).path)
    assert (enough.censored, len(enough.shared)) == ("drop", 5)
    assert len(analysis.compare(one.path, other.path, censored="last").shared) == 8
    with pytest.raises(BadInput, match="censored is 'drop' or 'last', not True"):
        analysis.compare(one.path, other.path, censored=True)  # type: ignore[arg-type]


def test_nothing_in_common(new_run: Callable[..., Any]) -> None:
    one, other = short(new_run, "a", {2: 0.5, 4: 0.6}), short(new_run, "b", {8: 0.5, 16: 0.6})
    found = analysis.compare(one.path, other.path)
    assert found.shared.empty
    assert found.overlap.empty
    assert found.agreement["n"].tolist() == [0]
    assert "0 students in common" in found.summary()
    assert len(found.seconds) == 2


def test_it_prints_well_and_escapes_names(new_run: Callable[..., Any]) -> None:
    one, other = short(new_run, "a", ONE, "<b>one</b>"), short(new_run, "b", OTHER, "other")
    found = analysis.compare(one.path, other.path)
    text = found.summary()
    assert repr(found) == text
    assert "5 students in common: Kendall's tau" in text
    assert ", 95 %)" in text
    assert "device-seconds until the best valid_accuracy so far" in text
    assert ["width=16", "1,600", "85.00", "62.00"] in [line.split()[:4] for line in text.splitlines()]
    assert "arch." not in text + found._repr_html_()
    assert "arch.width" in found.shared  # the frames stay what they are
    assert max(map(len, text.splitlines())) < 160
    assert "<b>one" not in found._repr_html_()
    assert "&lt;b&gt;one" in found._repr_html_()
