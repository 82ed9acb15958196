"""Where a run's device-time went: parts that add up, of generated and of recorded ledgers."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import analysis
from analysis import report
from analysis.profile import ALL, OUTSIDE, PARTS, USEFUL, useful_percent
from analysis.report import tables

RECORDED = Path(__file__).parents[1] / "data"
TOLD = ("student_seconds", "teacher_seconds", "evaluate_seconds", "checkpoint_seconds", "setup_seconds")
TRIAL = {"proposal": 0, "seed": 0, "control": False, "arch": {"width": 8}, "hash": "a"}


class Written:
    """A ledger with a clock of its own."""

    def __init__(self, taught: float = 0.0) -> None:
        self.now = 1_700_000_000.0
        self.events: list[dict[str, Any]] = []
        self.add("run", schema=1, name="a", recipe="quickstart", dux="0.1.0")
        self.taught = taught

    def add(self, event: str, **values: Any) -> None:
        self.events.append({"event": event, "time": self.now, **values})

    def begin(self, stage: str, trial: str = "distill") -> None:
        index = sum(event["event"] == "stage" for event in self.events) + 1
        self.add("stage", stage=stage, index=index, trial=trial)
        self.add("trial", stage=stage, number=0, **TRIAL)
        self.epoch = 0

    def report(self, stage: str, after: float, seconds: float | None, worker: str | None, **metrics: float) -> None:
        self.now += after
        self.epoch += 1
        self.add("report", stage=stage, number=0, epoch=self.epoch, seconds=seconds, worker=worker, metrics=metrics)

    def end(self, stage: str, after: float, slots: int | None) -> None:
        self.now += after
        self.add("stage_end", stage=stage, seconds=0.0, slots=slots)

    def results(self, folder: Path) -> analysis.Results:
        folder.mkdir(exist_ok=True)
        (folder / "ledger.jsonl").write_text("".join(json.dumps(event) + "\n" for event in self.events))
        return analysis.load(folder)


def seconds(table: pd.DataFrame, stage: str) -> dict[str, float]:
    """The parts of a stage that are not nothing."""
    own = table[table["stage"] == stage]
    return {part: spent for part, spent in zip(own["part"], own["seconds"], strict=True) if spent}


def test_each_second_of_two_slots_is_somewhere(tmp_path: Path) -> None:
    run = Written()
    run.now += 3
    run.add("teacher", name="resnet", seconds=2.0)
    run.now += 1
    run.begin("short")
    told = {"student_seconds": 1.0, "teacher_seconds": 0.5, "evaluate_seconds": 0.25, "checkpoint_seconds": 0.125}
    run.report("short", 5.0, 3.0, "n:1", **told, setup_seconds=1.0)
    run.report("short", 1.0, 2.0, "n:2", student_seconds=2.0)
    run.report("short", 1.0, 1.0, "n:2", student_seconds=1.0)
    run.end("short", 2.0, slots=2)
    run.now += 2
    run.add("run_end", seconds=15.0)
    table = analysis.profile(run.results(tmp_path / "run"))
    assert list(table.columns) == ["run", "stage", "part", "seconds", "percent"]
    # Slot 1 begins after 2 s, slot 2 after 4 s; 1 s of the first report is building the student.
    found = {"student": 4.0, "teacher": 0.5, "evaluation": 0.25, "checkpoint": 0.125, "start-up": 7.0, "other": 0.125}
    assert seconds(table, "short") == pytest.approx({**found, "waiting": 18 - sum(found.values())})
    assert seconds(table, OUTSIDE) == pytest.approx({"teacher": 2.0, "start-up": 4.0, "waiting": 6.0})
    assert seconds(table, ALL)["student"] == pytest.approx(4.0)
    assert table.groupby("stage")["percent"].sum().tolist() == pytest.approx([100.0] * 3)
    useful = sum(seconds(table, ALL)[part] for part in USEFUL if part != "scoring")
    assert useful_percent(table) == pytest.approx(100 * useful / (30 - 11.0))


def test_a_teacher_that_is_trained_beside_a_stage_is_work_of_that_stage_s_slot(tmp_path: Path) -> None:
    """From 2 s on, for 6 s; 5 of them while others are scored, 1 between the stages."""
    run = Written()
    run.begin("score", "score")
    run.report("score", 4.0, 2.0, "n:2", snip=1.0)
    run.report("score", 2.0, 2.0, "n:2", snip=1.0)
    run.end("score", 1.0, slots=2)
    run.now += 1
    run.add("teacher", name="resnet", seconds=6.0, worker="n:1")
    run.begin("short")
    run.report("short", 1.0, 1.0, "n:1", student_seconds=1.0)
    run.end("short", 0.0, slots=2)
    table = analysis.profile(run.results(tmp_path / "run"))
    assert seconds(table, "score") == pytest.approx({"teacher": 5.0, "scoring": 4.0, "start-up": 4.0, "waiting": 1.0})
    assert seconds(table, OUTSIDE) == pytest.approx({"teacher": 1.0, "waiting": 1.0})
    assert seconds(table, "short") == pytest.approx({"student": 1.0, "waiting": 1.0})


def test_two_teachers_are_trained_at_once_before_the_first_stage(tmp_path: Path) -> None:
    run = Written()
    run.now += 5
    run.add("teacher", which="teacher", name="resnet", seconds=3.0, worker="n:1")
    run.now += 1
    run.add("teacher", which="teacher1", name="resnet", seconds=3.0, worker="n:2")
    run.begin("short")
    run.report("short", 1.0, 1.0, "n:1", student_seconds=1.0)
    run.end("short", 0.0, slots=2)
    table = analysis.profile(run.results(tmp_path / "run"))
    assert seconds(table, OUTSIDE) == pytest.approx({"teacher": 6.0, "waiting": 2.0, "start-up": 4.0})


def test_scores_told_at_once_were_worked_on_one_after_the_other(tmp_path: Path) -> None:
    run = Written()
    run.begin("score", "score")
    for after in (6.0, 0.0, 0.0):
        run.report("score", after, 1.0, "n:1", snip=1.0)
    run.end("score", 0.0, slots=1)
    table = analysis.profile(run.results(tmp_path / "run"))
    assert seconds(table, "score") == {"scoring": 3.0, "start-up": 3.0}


def test_a_pause_before_a_resumption_is_nobodys(tmp_path: Path) -> None:
    run = Written()
    run.begin("short")
    run.report("short", 3.0, 1.0, "n:1", student_seconds=1.0)
    run.now += 1000
    run.add("resume")
    run.report("short", 4.0, 1.0, "n:2", student_seconds=5.0)  # kept by the checkpoint: told, but not done again
    run.end("short", 0.0, slots=1)
    table = analysis.profile(run.results(tmp_path / "run"))
    assert seconds(table, "short") == {"student": 2.0, "start-up": 5.0}
    assert seconds(table, OUTSIDE) == {}


def test_a_run_that_has_only_begun_has_a_profile(tmp_path: Path) -> None:
    table = analysis.profile(Written().results(tmp_path / "run"))
    assert table["stage"].drop_duplicates().tolist() == [OUTSIDE, ALL]
    assert table["seconds"].sum() == 0
    assert "Where the device-time went" in tables.cost(analysis.load(tmp_path / "run"))


PERIOD = st.floats(0, 5)


@st.composite
def sessions(draw: st.DrawFn, slots: int, first: str) -> list[tuple[float, float | None, str]]:
    """What the workers of one session of a stage report, in order: seconds since it began, seconds of work, worker."""
    found: list[tuple[float, float | None, str]] = []
    for slot in range(slots):
        now, worker = 0.0, f"{first}:{slot}0"
        for step in range(draw(st.integers(0, 4))):
            now += draw(PERIOD)
            if draw(st.booleans()):  # lost; another takes over
                worker = f"{first}:{slot}{step + 1}"
            work = draw(st.none() | PERIOD)
            now += work or 0.0
            more = draw(st.lists(PERIOD, max_size=2))  # told at the same time
            now += sum(more)
            found += [(now, each, worker) for each in (work, *more)]
    return sorted(found, key=lambda report: report[0])


@st.composite
def ledgers(draw: st.DrawFn) -> tuple[Written, dict[str, float]]:
    """Any ledger of a search, interrupted and resumed, by old and new releases, with workers that are lost and epochs
    that were computed before; and the slots x wall time of each stage."""
    run, wholes = Written(), {}
    run.now += draw(PERIOD)
    if draw(st.booleans()):
        run.add("teacher", name="resnet", seconds=draw(st.none() | PERIOD))
    beside = draw(st.none() | st.integers(0, 2))
    for number in range(draw(st.integers(0, 3))):
        name, slots, scoring = f"s{number}", draw(st.integers(1, 3)), draw(st.booleans())
        run.now += draw(PERIOD)
        run.begin(name, "score" if scoring else "distill")
        slots += beside == number  # one of them trains a teacher
        wholes[name] = 0.0
        for session in range(draw(st.integers(1, 3))):
            if session:
                run.now += 100
                run.add("resume")
            began = run.now
            for time, work, worker in draw(sessions(slots - (beside == number), f"{number}{session}")):
                told = () if scoring else draw(st.sets(st.sampled_from(TOLD)))
                metrics = {metric: draw(PERIOD) for metric in sorted(told)}
                run.report(name, began + time - run.now, work, worker, **metrics)
            wholes[name] += slots * (run.now - began)
        if beside == number:
            taught = draw(st.floats(0, run.now - began))
            run.add("teacher", which="teacher1", name="resnet", seconds=taught, worker="another:0")
        rest = draw(PERIOD)
        run.end(name, rest, slots)
        wholes[name] += slots * rest
    return run, wholes


@given(ledgers())
@settings(max_examples=60, deadline=None)
def test_the_parts_add_up_to_slots_times_wall_time(case: tuple[Written, dict[str, float]]) -> None:
    run, wholes = case
    with tempfile.TemporaryDirectory() as folder:
        table = analysis.profile(run.results(Path(folder)))
    assert (table["seconds"] >= 0).all()
    assert table["part"].tolist() == list(PARTS) * (len(wholes) + 2)
    sums = table.groupby("stage")["seconds"].sum()
    assert {name: sums[name] for name in wholes} == pytest.approx(wholes, abs=1e-3)
    assert sums[ALL] == pytest.approx(sums.drop(ALL).sum())
    percents = table.groupby("stage")["percent"].sum()
    assert percents[sums > 0].tolist() == pytest.approx([100.0] * int((sums > 0).sum()))


@example([(1.0, 5e-324, "a:1")])
@given(st.lists(st.tuples(PERIOD, st.none() | PERIOD, st.sampled_from((None, "a:1", "b:1"))), max_size=8))
@settings(max_examples=50, deadline=None)
def test_workers_that_disagree_about_the_time_take_no_more_than_there_is(reports: list[Any]) -> None:
    run = Written()
    run.begin("short")
    for after, spent, worker in reports:
        run.report("short", after, spent, worker, student_seconds=1.0)
    with tempfile.TemporaryDirectory() as folder:
        table = analysis.profile(run.results(Path(folder)))  # it has not ended: nobody says how many slots there are
    workers = {worker for _, _, worker in reports}
    wall = run.now - run.events[0]["time"]
    sums = table.groupby("stage")["seconds"].sum()
    assert (table["seconds"] >= 0).all()
    if wall > 0:
        slots = sums["short"] / wall
        assert slots == pytest.approx(round(slots), abs=1e-3)
        assert 1 <= round(slots) <= max(1, len(workers))


@pytest.mark.parametrize("name", ["digits", "digits-small-teacher"])
def test_recorded_runs_add_up(name: str) -> None:
    results = analysis.load(RECORDED / name)
    table = analysis.profile(results)
    sums = table.groupby("stage")["seconds"].sum()
    for stage in results.stages.to_dict("records"):
        own = results.epochs[results.epochs["stage"] == stage["stage"]]
        assert sums[stage["stage"]] == pytest.approx(stage["slots"] * (stage["ended"] - stage["began"]))
        spent = seconds(table, stage["stage"])
        worked = own["setup_seconds"].sum() + sum(spent.get(part, 0.0) for part in PARTS[:5]) + spent.get("other", 0.0)
        assert worked == pytest.approx(own["seconds"].sum(), rel=1e-3)
        if stage["trial"] == "distill":
            assert spent["student"] == pytest.approx(own["student_seconds"].sum(), rel=1e-3)
            assert spent["other"] > 0  # recorded before checkpoints and set-up were told
    [(start, end)] = results.sessions[results.name]
    assert sums[ALL] == pytest.approx(2 * (end - start))
    assert 60 < useful_percent(table) < 80


def test_the_report_shows_the_profile() -> None:
    page = report.page(analysis.load(RECORDED / "digits"))
    assert "Where the device-time went" in page
    assert f"<th>{OUTSIDE}</th>" in page
    assert "of what follows start-up" in page
