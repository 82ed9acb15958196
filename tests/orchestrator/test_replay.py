"""Replays: recorded results in place of trainings, in virtual time. Expected times are worked out by hand."""

import json
import sys

import pandas as pd
import pytest
import ray

import analysis
import orchestrator
import spaces
from orchestrator import cli
from orchestrator.errors import RunFailed
from orchestrator.recipe import Recipe
from orchestrator.replay import Replay, Table, simulate
from spaces import BadInput

CHOICES = {"depth1": [1, 2], "depth2": [1], "depth3": [1], "width": [2, 3, 4]}
SPACE = spaces.get("resnet").restrict({name: {"choice": values} for name, values in CHOICES.items()})
EPOCHS = 9


def rows(depth, width, seed=0, curve=None, **more):
    """A student's training of nine epochs, 2 x width seconds each, which ends the higher the larger the student is."""
    arch = {"arch.depth1": depth, "arch.depth2": 1, "arch.depth3": 1, "arch.width": width}
    size = 100 * depth + width
    end = size / 1000
    metrics = curve or (lambda epoch: end * (1 - 0.5**epoch))
    known = {**arch, "params": size, "seed": seed, **more}
    scored = {**known, "epoch": 0, "seconds": 0.5, "synflow": float(-size)}
    trained = [
        {**known, "epoch": e, "seconds": 2.0 * width, "valid_accuracy": metrics(e), "test_accuracy": metrics(e) - 0.01}
        for e in range(1, EPOCHS + 1)
    ]
    return [scored, *trained]


def frame(**more):
    return pd.DataFrame([row for depth in (1, 2) for width in (2, 3, 4) for row in rows(depth, width, **more)])


def recipe(*stages, **more):
    return Recipe.parse(
        {"name": "replayed", "task": {"dataset": "digits"}, "space": {"name": "resnet", "choices": CHOICES}, **more}
        | {"stages": list(stages)}
    )


FULL = {"name": "full", "trial": "distill", "epochs": EPOCHS, "sampler": "grid"}


def reports(events, stage="full"):
    return [event for event in events if event["event"] == "report" and event["stage"] == stage]


# The table


def test_a_row_is_a_report_of_one_students_training():
    table = Table(frame(), SPACE)
    arch = {"depth1": 2, "depth2": 1, "depth3": 1, "width": 3}
    curve = table.curve(SPACE.hash(arch), EPOCHS, seed=0)
    assert len(table) == 6
    assert [step[0] for step in curve] == list(range(1, 10))
    assert {step[2] for step in curve} == {6.0}
    assert curve[0][1] == {"valid_accuracy": pytest.approx(0.1015), "test_accuracy": pytest.approx(0.0915)}
    assert table.scored(SPACE.hash(arch), 0) == (0, {"params": 203.0, "synflow": -203.0}, 0.5)


def test_without_seconds_an_epoch_takes_one_and_a_gap_as_many_as_it_spans():
    some = frame()[lambda f: f["epoch"].isin([0, 3, 9])].drop(columns="seconds")
    table = Table(some, SPACE)
    curve = table.curve(next(iter(table.students)), EPOCHS, 0)
    assert [(epoch, seconds) for epoch, _, seconds in curve] == [(3, 3.0), (9, 6.0)]
    assert table.scored(next(iter(table.students)), 0)[2] == 0.0


def test_a_stage_reads_the_training_of_its_own_length_or_the_beginning_of_a_longer_one():
    short = frame()[lambda f: f["epoch"].between(1, 3)].assign(epochs=3, valid_accuracy=0.5)
    table = Table(pd.concat([frame().assign(epochs=9), short]), SPACE)
    student = next(iter(table.students))
    assert [step[1]["valid_accuracy"] for step in table.curve(student, 3, 0)] == [0.5, 0.5, 0.5]
    assert [step[0] for step in table.curve(student, 4, 0)] == [1, 2, 3, 4]  # of the training of nine
    assert table.curve(student, 4, 0)[0][1]["valid_accuracy"] != 0.5
    assert [step[0] for step in table.curve(student, 20, 0)] == list(range(1, 10))


def test_equal_networks_written_differently_are_trainings_of_one_student():
    cells = spaces.get("nasbench201")
    one = dict.fromkeys(cells.param_space, "none") | {"edge_0_3": "nor_conv_3x3"}
    other = dict.fromkeys(cells.param_space, "none") | {"edge_0_3": "nor_conv_3x3", "edge_0_1": "nor_conv_1x1"}
    assert cells.hash(one) == cells.hash(other)
    listed = [
        {**{f"arch.{name}": value for name, value in arch.items()}, "params": 7, "epoch": 1, "valid_accuracy": value}
        for arch, value in ((one, 0.1), (other, 0.2))
    ]
    table = Table(pd.DataFrame(listed), cells)
    student = cells.hash(one)
    assert [table.curve(student, 1, seed)[0][1]["valid_accuracy"] for seed in (0, 1, 2)] == [0.1, 0.2, 0.1]


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda f: f.drop(columns="arch.width"), "no column 'arch.width'; it has: arch.depth1"),
        (lambda f: f.drop(columns="epoch"), "no column 'epoch'"),
        (lambda f: f.drop(columns="params"), "no column of costs; known: params, flops"),
        (lambda f: f.assign(params=1.5), "params must be whole numbers in each row"),
        (lambda f: f.assign(params=float("nan")), "params must be whole numbers in each row"),
        (lambda f: f.assign(epoch=-1), "at least 0"),
        (lambda f: f.assign(epoch="first"), "must be numbers in each row"),
        (lambda f: f.assign(seconds=-2.0), "at least 0"),
        (lambda f: f.assign(**{"arch.width": 64}), "table: .*width"),
    ],
)
def test_a_table_that_is_none_is_refused_in_one_line(spoil, line):
    with pytest.raises(BadInput, match=line) as caught:
        Table(spoil(frame()), SPACE)
    assert "\n" not in str(caught.value)


def test_of_a_file_only_the_rows_count_that_are_asked_for(tmp_path):
    both = pd.concat([frame().assign(data="a"), frame().assign(data="b", valid_accuracy=0.25)])
    both.to_parquet(tmp_path / "table.parquet")
    table = Table.load(tmp_path / "table.parquet", {"data": "b"}, SPACE)
    assert table.curve(next(iter(table.students)), EPOCHS, 0)[0][1]["valid_accuracy"] == 0.25
    with pytest.raises(BadInput, match=r"no row of .* has data 'c'"):
        Table.load(tmp_path / "table.parquet", {"data": "c"}, SPACE)
    with pytest.raises(BadInput, match=r"unknown column of replay.where 'date'; did you mean 'data'\?"):
        Table.load(tmp_path / "table.parquet", {"date": "b"}, SPACE)
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(BadInput, match=r"text.parquet cannot be read as Parquet"):
        Table.load(tmp_path / "text.parquet", {}, SPACE)
    with pytest.raises(BadInput, match=r"gone.parquet cannot be read as Parquet"):
        Table.load(tmp_path / "gone.parquet", {}, SPACE)


# Virtual time


def test_one_worker_trains_one_student_after_the_other():
    events = simulate(recipe(FULL), Table(frame(), SPACE))
    found = reports(events)
    assert len(found) == 6 * EPOCHS
    # Nine epochs of 2 x width seconds for each of the two depths: 2 x 9 x 2 x (2 + 3 + 4).
    assert found[-1]["time"] == 324.0
    assert events[-1] | {"time": 324.0, "seconds": 324.0, "slots": 1} == events[-1]
    assert [event["seconds"] for event in found[:EPOCHS]] == [found[0]["seconds"]] * EPOCHS


def test_workers_take_the_next_student_as_soon_as_they_are_free():
    archs = [{"depth1": 1, "depth2": 1, "depth3": 1, "width": width} for width in (4, 2, 3)]
    found = reports(simulate(recipe(FULL, students=archs, workers=2), Table(frame(), SPACE)))
    ends = {event["number"]: (event["time"], event["worker"]) for event in found}
    # The first takes 9 x 8 = 72 s; the second 9 x 4 = 36 s, and then the third on the same worker 9 x 6 = 54 s.
    assert {number: time for number, (time, _) in ends.items()} == {0: 72.0, 1: 36.0, 2: 90.0}
    assert ends[1][1] == ends[2][1] != ends[0][1]


def test_results_do_not_depend_on_how_many_workers_there_are():
    found = []
    for workers in (1, 3, 50):
        events = reports(simulate(recipe(FULL, workers=workers), Table(frame(), SPACE)))
        found.append(sorted((e["number"], e["epoch"], e["metrics"]["valid_accuracy"], e["seconds"]) for e in events))
    assert found[0] == found[1] == found[2]


def test_asha_stops_in_virtual_time_what_it_would_stop():
    scheduler = {"name": "asha", "min_epochs": 3, "reduction_factor": 3}
    archs = [{"depth1": depth, "depth2": 1, "depth3": 1, "width": 2} for depth in (2, 1)]
    events = simulate(recipe({**FULL, "scheduler": scheduler}, students=archs), Table(frame(), SPACE))
    # The larger student comes first and goes on; the smaller one is below it at epoch 3.
    assert [event["epoch"] for event in reports(events) if event["number"] == 1] == [1, 2, 3]
    assert [e["status"] for e in events if e["event"] == "end"] == ["completed", "stopped"]
    assert events[-1]["seconds"] == 9 * 4 + 3 * 4


def test_scores_take_their_time_and_hand_on_the_best():
    score = {"name": "score", "trial": "score", "scores": ["params"], "sampler": "grid", "keep": 2}
    events = simulate(recipe(score, {**FULL, "sampler": "random"}), Table(frame(), SPACE))
    assert next(e for e in events if e["event"] == "stage_end")["seconds"] == 6 * 0.5
    trained = [e["arch"] for e in events if e["event"] == "trial" and e["stage"] == "full"]
    assert [(arch["depth1"], arch["width"]) for arch in trained] == [(2, 4), (2, 3)]


def test_a_score_of_the_table_can_be_the_objective():
    score = {"name": "score", "trial": "score", "scores": ["synflow"], "sampler": "grid", "keep": 1}
    events = simulate(recipe(score, {**FULL, "sampler": "random"}), Table(frame(), SPACE))
    [trained] = [e["arch"] for e in events if e["event"] == "trial" and e["stage"] == "full"]
    assert (trained["depth1"], trained["width"]) == (1, 2)  # the table's synflow is minus the size


def test_an_ensemble_votes_among_the_tables_scores():
    scores = ["synflow", "params", "snip"]  # the table has no snip, and nothing reads it
    how = {"objective": {"ensemble.rank": 1.0}, "ensemble": ["synflow", "params"], "sampler": "grid", "keep": 6}
    events = simulate(recipe({"name": "score", "trial": "score", "scores": scores, **how}), Table(frame(), SPACE))
    told = [event["metrics"] for event in events if event["event"] == "report"]
    assert all(set(metrics) == {"synflow", "params"} for metrics in told)
    [kept] = [event["proposals"] for event in events if event["event"] == "keep"]
    assert sorted(kept) == list(range(6))  # the two scores contradict each other: all are equal


def test_seeds_are_the_tables_trainings():
    two = pd.concat([frame(), frame(seed=1, curve=lambda epoch: 0.7)])
    events = reports(simulate(recipe({**FULL, "seeds": 2}), Table(two, SPACE)))
    ends = [e["metrics"]["valid_accuracy"] for e in events if e["epoch"] == EPOCHS]
    assert len(ends) == 12
    assert sum(value == 0.7 for value in ends) == 6


def test_test_images_are_seen_once():
    short = {**FULL, "name": "short", "keep": 2}
    events = simulate(recipe(short, {**FULL, "sampler": "random"}), Table(frame(), SPACE))
    told = {(e["stage"], e["epoch"]) for e in events if e["event"] == "report" and "test_accuracy" in e["metrics"]}
    assert told == {("full", EPOCHS)}


def test_a_student_without_results_to_the_end_has_failed_with_the_reason():
    broken = frame()[lambda f: (f["arch.width"] != 4) | (f["epoch"] <= 5)]
    events = simulate(recipe({**FULL, "epochs": 9}), Table(broken.assign(epochs=9), SPACE))
    failed = [e for e in events if e["event"] == "end" and e["status"] == "failed"]
    assert {e["reason"] for e in failed} == {"the table has nothing of it after epoch 5"}
    assert len(failed) == 2


def test_a_student_that_lacks_the_metric_has_failed_with_the_reason():
    holes = frame()
    holes.loc[(holes["arch.width"] == 3) & (holes["epoch"] == 4), "valid_accuracy"] = float("nan")
    events = simulate(recipe(FULL), Table(holes, SPACE))
    failed = [e["reason"] for e in events if e["event"] == "end" and e["status"] == "failed"]
    assert failed == ["the table has no valid_accuracy of it after epoch 4"] * 2


@pytest.mark.parametrize("sampler", ["random", "tpe", "evolution"])
def test_only_students_of_the_table_within_the_limits_are_proposed(sampler):
    half = frame()[lambda f: f["arch.depth1"] == 1]
    stage = {**FULL, "sampler": sampler, "trials": 20}
    events = simulate(recipe(stage, limits={"params": 103}), Table(half, SPACE))
    proposed = {e["arch"]["width"] for e in events if e["event"] == "trial"}
    assert proposed == {2, 3}
    assert all(e["arch"]["depth1"] == 1 for e in events if e["event"] == "trial")


# Mistakes


@pytest.mark.parametrize(
    ("stage", "more", "line"),
    [
        ({**FULL, "objective": {"valid_f1": 1.0}}, {}, "unknown column of table that stage 'full' reads 'valid_f1'"),
        ({**FULL, "control": True}, {}, "control trains without the teacher"),
        ({**FULL, "scheduler": "pbt"}, {}, "pbt"),
        (
            {**FULL, "batch_size": {"choice": [32, 64]}},
            {},
            "batch_size is searched, and a table records students alone",
        ),
        (FULL, {"limits": {"flops": 10}}, "unknown column of costs for the limit 'flops'; known: params"),
        (FULL, {"limits": {"params": 10}}, "no student of table is within params <= 10"),
        (
            {"name": "full", "trial": "score", "scores": ["snip"], "sampler": "grid"},
            {},
            "unknown column of table that stage 'full' reads 'snip'",
        ),
    ],
)
def test_what_a_table_cannot_answer_is_refused_in_one_line(stage, more, line):
    with pytest.raises(BadInput, match=line) as caught:
        Replay.prepare(recipe(stage, **more), Table(frame(), SPACE))
    assert "\n" not in str(caught.value)


# Runs on disk


@pytest.fixture
def on_disk(tmp_path):
    frame().to_parquet(tmp_path / "table.parquet")
    score = {"name": "score", "trial": "score", "scores": ["params"], "sampler": "grid", "keep": 4}
    short = {"name": "short", "trial": "distill", "epochs": 3, "keep": 2}
    last = {"name": "full", "trial": "distill", "epochs": 9}
    return recipe(score, short, last, workers=2, replay={"table": str(tmp_path / "table.parquet")})


def test_a_replay_is_a_run_like_any_other_and_starts_no_ray(on_disk, tmp_path):
    before = ray.is_initialized()
    results = orchestrator.run(on_disk, storage=tmp_path / "runs", name="one", progress=False)
    assert ray.is_initialized() == before
    assert results.finished
    ranked = analysis.rank(results)
    assert ranked[["arch.depth1", "arch.width"]].to_numpy().tolist() == [[2, 4], [2, 3]]
    page = (tmp_path / "runs" / "one" / "report.html").read_text()
    assert results.replayed
    assert "nothing was trained that could be exported" in page
    assert "dux export" not in page
    in_memory = reports(simulate(on_disk, Table(frame(), SPACE)))
    told = reports(analysis.events(results.path))
    start = min(event["time"] for event in analysis.events(results.path))
    assert [(e["number"], e["epoch"], e["metrics"]) for e in told] == [
        (e["number"], e["epoch"], e["metrics"]) for e in in_memory
    ]
    assert [e["time"] - start for e in told] == pytest.approx([e["time"] for e in in_memory], abs=1e-3)


def test_a_replay_that_was_cut_anywhere_goes_on_to_the_same_results(on_disk, tmp_path):
    whole = orchestrator.run(on_disk, storage=tmp_path / "runs", name="whole", progress=False)
    lines = (whole.path / "ledger.jsonl").read_text().splitlines(keepends=True)
    kept = [number for number, line in enumerate(lines, 1) if json.loads(line)["event"] in ("stage", "report", "keep")]
    for cut in kept[:: len(kept) // 3]:
        half = tmp_path / "runs" / f"cut{cut}"
        half.mkdir()
        (half / "recipe.yaml").write_text((whole.path / "recipe.yaml").read_text())
        (half / "ledger.jsonl").write_text("".join(lines[:cut]))
        again = orchestrator.resume(half, progress=False)
        columns = ["arch.depth1", "arch.width", "valid_accuracy", "test_accuracy"]
        pd.testing.assert_frame_equal(analysis.rank(again)[columns], analysis.rank(whole)[columns])
        times = [event["time"] for event in analysis.events(half) if event["event"] == "report"]
        assert times == sorted(times)


def test_a_replay_whose_students_all_fail_ends_with_the_reason(tmp_path):
    frame().assign(epochs=9)[lambda f: f["epoch"] <= 5].to_parquet(tmp_path / "table.parquet")
    with pytest.raises(RunFailed, match=r"all 6 trials failed; .*nothing of it after epoch 5"):
        orchestrator.run(
            recipe(FULL, replay={"table": str(tmp_path / "table.parquet")}),
            storage=tmp_path / "runs",
            name="one",
            progress=False,
        )


def test_the_command_line_says_what_a_replay_cannot_do(on_disk, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(on_disk.to_yaml())

    def dux(*words):
        monkeypatch.setattr(sys, "argv", ["dux", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, capfd.readouterr()

    code, said = dux("run", "recipe.yaml", "--dry-run")
    assert (code, said.err) == (0, "")
    assert "replays 6 recorded students" in said.out
    assert not (tmp_path / "runs").exists()
    code, said = dux("run", "recipe.yaml", "--set", "replay.table=gone.parquet")
    assert (code, said.err.count("\n")) == (2, 1)
    assert "gone.parquet cannot be read" in said.err
    orchestrator.run(on_disk, storage=tmp_path / "runs", name="one", progress=False)
    capfd.readouterr()
    code, said = dux("export", "runs/one")
    assert (code, said.err.count("\n")) == (2, 1)
    assert "it trained nothing that could be exported" in said.err
