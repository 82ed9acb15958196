"""From events to tables and back."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

import analysis
from analysis import BadInput, schema
from analysis.schema import LAYOUT

PACKAGES = ("torch", "ray", "optuna", "sklearn", "matplotlib", "spaces", "trainables", "orchestrator")


def test_import_needs_no_heavy_package() -> None:
    code = f"import sys, analysis; print([name for name in {PACKAGES} if name in sys.modules])"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_trials_and_epochs(run: Any) -> None:
    results = analysis.load(run.path)
    trials, epochs = results.trials, results.epochs
    assert len(trials) == 4 + 4 + 6
    assert len(epochs) == 4 + (3 + 3 + 1 + 1) + 6 * 3
    assert set(trials["run"]) == {"quickstart"}
    row = trials[(trials["stage"] == "final") & (trials["number"] == 1)].iloc[0]
    assert (row["stage_index"], row["proposal"], row["seed"], row["control"]) == (3, 0, 1, False)
    assert (row["epochs"], row["seconds"], row["worker"], row["status"]) == (3, 1.5, "w0", "completed")
    assert (row["valid_accuracy"], row["test_accuracy"], row["objective"]) == (0.94, 0.90, 0.94)
    assert (row["params"], row["flops"], row["bytes"]) == (800, 8000, 3200)
    assert json.loads(row["arch"]) == {"width": 8}
    assert trials["arch.width"].dtype == "Int64"
    short = trials[trials["stage"] == "short"]
    assert short["set.losses.kd.temperature"].tolist()[:3] == [4, 2, 8]
    assert short["set.lr"].tolist()[:3] == [0.1, 0.05, 0.2]
    curve = epochs[(epochs["stage"] == "short") & (epochs["number"] == 1)]
    assert curve["epoch"].tolist() == [1, 2, 3]
    assert curve["valid_accuracy"].tolist() == [0.6, 0.7, 0.9]


def test_a_score_that_has_no_value_keeps_its_reason(run: Any) -> None:
    trials = analysis.load(run.path).trials
    scores = trials[trials["stage"] == "score"]
    assert scores["diswot.semantic"].isna().tolist() == [True, False, False, False]
    assert json.loads(scores["reasons"].iloc[0]) == {"diswot.semantic": "no classes in common"}
    assert scores["reasons"].iloc[1:].isna().all()
    assert scores["snip"].tolist() == [0.5, 4, 8, 16]


def test_a_failed_trial_keeps_its_reason(run: Any) -> None:
    trials = analysis.load(run.path).trials
    failed = trials[trials["status"] == "failed"]
    assert failed["reason"].tolist() == ["loss is not finite"]
    assert failed["valid_accuracy"].tolist() == [0.99]


def test_the_parameter_count_as_a_score_does_not_replace_the_cost(new_run: Callable[..., Any]) -> None:
    run = new_run()
    run.stage("score", 1, "score")
    run.trial("score", 0, 4)
    run.score("score", 0, params=7.0)
    run.trial("score", 1, 4, cost={"params": None})
    run.score("score", 1, params=7.0)
    assert analysis.load(run.path).trials["params"].tolist() == [400, 7]


def test_unfinished_trials(new_run: Callable[..., Any]) -> None:
    run = new_run()
    run.stage("short", 1)
    run.trial("short", 0)
    run.trial("short", 1)
    run.report("short", 1, 1, 0.5)
    results = analysis.load(run.path)
    assert results.trials["status"].tolist() == ["waiting", "running"]
    assert results.trials["epochs"].tolist() == [0, 1]
    assert not results.finished
    assert results.seconds == 5.0  # a second an event, six of them


def test_the_first_report_of_an_epoch_counts(new_run: Callable[..., Any]) -> None:
    run = new_run()
    run.stage("short", 1)
    run.trial("short", 0)
    run.report("short", 0, 1, 0.5)
    run.report("short", 0, 2, 0.6)
    run.add("resume")
    run.report("short", 0, 2, 0.1)
    run.report("short", 0, 3, 0.7)
    results = analysis.load(run.path)
    assert results.epochs["valid_accuracy"].tolist() == [0.5, 0.6, 0.7]
    assert results.trials["seconds"].tolist() == [1.5]


def test_the_report_of_the_last_epoch_speaks_for_the_trial(new_run: Callable[..., Any]) -> None:
    run = new_run()
    run.stage("short", 1)
    run.trial("short", 0)
    for epoch in (1, 3, 2):
        run.report("short", 0, epoch, epoch / 10)
    trials = analysis.load(run.path).trials
    assert trials[["epochs", "valid_accuracy", "seconds"]].values.tolist() == [[3, 0.3, 1.5]]


def test_a_run_that_was_taken_up_again_is_not_finished(run: Any) -> None:
    assert analysis.load(run.path).finished
    run.add("resume")
    assert not analysis.load(run.path).finished


def test_pause_before_a_resumption_is_no_run_time(new_run: Callable[..., Any]) -> None:
    run = new_run()  # 2 events: 1 second
    run.stage("short", 1)  # 2 s
    run.trial("short", 0)
    run.report("short", 0, 1, 0.5)  # 4 s
    run.add("resume", time=1_700_009_000.0)
    run.add("remark", time=1_700_009_007.0, text="unknown events are ignored")
    assert analysis.load(run.path).seconds == 4 + 7
    run.add("run_end", time=1_700_009_008.0, seconds=8.5)
    assert analysis.load(run.path).seconds == 4 + 8.5
    analysis.write_tables(run.path)
    assert analysis.load(run.path).seconds == 4 + 8.5


def test_population_based_training_keeps_parents(new_run: Callable[..., Any]) -> None:
    run = new_run()
    run.stage("tune", 1, scheduler="pbt")
    run.distil("tune", 0, [0.5, 0.6], params={"lr": 0.1})
    run.trial("tune", 1, parent=0, start_epoch=2, params={"lr": 0.12})
    run.report("tune", 1, 3, 0.7)
    run.report("tune", 1, 4, 0.8)
    run.end("tune", 1)
    run.trial("tune", 2, parent=1, start_epoch=4)
    trials = analysis.load(run.path).trials
    assert trials["parent"].tolist() == [pd.NA, 0, 1]
    assert trials["start_epoch"].tolist() == [0, 2, 4]
    assert trials["epochs"].tolist() == [2, 4, 4]
    assert trials["seconds"].tolist() == [1.0, 1.0, 0.0]
    # One student: at its latest, best setting; or a row a proposal.
    assert analysis.rank(trials)["proposal"].tolist() == [1]
    assert analysis.rank(trials, each="proposal")["proposal"].tolist() == [1, 0]


def test_a_torn_last_line_is_left_out(run: Any) -> None:
    before = analysis.load(run.path).trials
    with run.file.open("a") as lines:
        lines.write('{"event": "trial", "stage": "final", "numb')
    assert_frame_equal(analysis.load(run.path).trials, before)
    # Whole JSON without its newline was still being written.
    run.file.write_text(run.file.read_text().rsplit("\n", 1)[0] + '\n{"event": "resume", "time": 1.0}')
    assert analysis.load(run.path).finished


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"event": "tri\n', "line 3: not a JSON object"),
        ("[1, 2]\n", "line 3: not a JSON object"),
        ('{"time": 1.0}\n', "line 3: not a JSON object"),
        ('{"event": "end", "stage": "short", "number": 1}\n', "line 3: the event 'end' lacks 'status'"),
    ],
)
def test_a_broken_line_is_named(new_run: Callable[..., Any], line: str, message: str) -> None:
    run = new_run()
    with run.file.open("a") as lines:
        lines.write(line + '{"event": "resume", "time": 2.0}\n')
    with pytest.raises(BadInput, match=message) as caught:
        list(analysis.events(run.path))
    assert str(run.file) in str(caught.value)


def test_events_of_what_never_began(new_run: Callable[..., Any]) -> None:
    run = new_run()
    run.add("keep", stage="short", proposals=[1])
    with pytest.raises(BadInput, match="'keep' of stage 'short', which never began"):
        analysis.load(run.path)
    run = new_run("other")
    run.stage("short", 1)
    run.report("short", 4, 1, 0.5)
    with pytest.raises(BadInput, match="'report' of trial short/4, which never began"):
        analysis.load(run.path)


def test_a_value_of_another_type_is_refused(new_run: Callable[..., Any]) -> None:
    run = new_run()
    run.stage("short", 1)
    run.trial("short", 0, seed="zero")
    with pytest.raises(BadInput, match="the event 'trial' has 'seed' of type str"):
        analysis.load(run.path)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"event": "kept"}, "the event 'kept' lacks 'files'"),
        ({"event": "kept", "files": ["a"]}, "the event 'kept' has 'files' of type list"),
        ({"event": "note", "stage": "short"}, "the event 'note' lacks 'text'"),
        ({"event": "taken", "stage": "short", "first": 1}, "the event 'taken' has 'first' of type int"),
        ({"event": "teacher", "name": "a", "sha256": 1}, "the event 'teacher' has 'sha256' of type int"),
        ({"event": "stage", "stage": "a", "index": 10**30, "trial": "score"}, "has 'index' beyond 64 bits"),
    ],
)
def test_an_event_that_no_run_writes(new_run: Callable[..., Any], event: dict[str, Any], message: str) -> None:
    run = new_run()
    run.add(**event)
    with pytest.raises(BadInput, match=message):
        analysis.load(run.path)


def test_numbers_beyond_a_column_are_refused(new_run: Callable[..., Any]) -> None:
    run = new_run()
    run.stage("short", 1)
    run.trial("short", 0, params={"batch_size": 10**30})
    with pytest.raises(BadInput, match=r"the ledger's set\.batch_size does not fit Int64"):
        analysis.load(run.path)


def test_what_is_no_run(tmp_path: Path, new_run: Callable[..., Any]) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BadInput, match="is not a run"):
            analysis.load(path)
    run = new_run()
    run.add("run", schema=99, name="later")
    with pytest.raises(BadInput, match="newer dux: schema 99"):
        analysis.load(run.path)


def test_an_empty_ledger_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").touch()
    with pytest.raises(BadInput, match="line 1: not the beginning of a run"):
        analysis.load(tmp_path)


def test_a_run_that_has_just_begun_has_the_columns(tmp_path: Path, new_run: Callable[..., Any]) -> None:
    tmp_path = new_run().path
    file = tmp_path / "ledger.jsonl"
    file.write_text(file.read_text().partition("\n")[0] + "\n")
    results = analysis.load(tmp_path)
    for table, columns in ((results.trials, schema.TRIALS), (results.epochs, schema.EPOCHS)):
        assert len(table) == 0
        assert {name: str(table[name].dtype) for name in table} == {c.name: c.dtype for c in columns}
    assert analysis.rank(results).empty
    assert analysis.agreement(results).empty
    assert (results.seconds, results.teacher, len(results.stages)) == (0.0, {}, 0)
    assert "quickstart" in results.summary()
    analysis.write_tables(tmp_path)
    assert_frame_equal(analysis.load(tmp_path).trials, results.trials)


def test_every_listed_column_is_described_and_kept(run: Any) -> None:
    described = analysis.describe_columns()
    assert not described.duplicated(["table", "name"]).any()
    assert described["meaning"].str.len().min() > 5
    assert set(described["direction"]) == {"higher", "lower", "none"}
    results = analysis.load(run.path)
    for table, columns in ((results.trials, schema.TRIALS), (results.epochs, schema.EPOCHS)):
        assert {c.name: str(table[c.name].dtype) for c in columns} == {c.name: c.dtype for c in columns}


@pytest.mark.parametrize(
    ("name", "expected"),
    [("params", "lower"), ("kl", "lower"), ("valid_accuracy", "higher"), ("snip", "higher"),
     ("diswot.relation", "higher"), ("kd_loss", "lower"), ("test_f1", "higher"), ("valid_ece", "lower"),
     ("arch.width", "none"), ("seed", "none")],
)  # fmt: skip
def test_direction(name: str, expected: str) -> None:
    assert schema.direction(name) == expected


def test_values_of_mixed_types(new_run: Callable[..., Any]) -> None:
    run = new_run()
    run.stage("short", 1)
    values = {"depth": [1, 2, None], "rate": [0.5, 1, None], "norm": [True, False, None], "cell": ["a", "b", None],
              "any": [1, "b", None], "sizes": [[1, 2], None, [3]]}  # fmt: skip
    for number in range(3):
        run.trial("short", number, arch={name: given[number] for name, given in values.items()})
        run.report("short", number, 1, 0.5, odd={"a": number}, flag=number == 0)
    results = analysis.load(run.path)
    dtypes = {name: str(results.trials[f"arch.{name}"].dtype) for name in values}
    assert dtypes == {"depth": "Int64", "rate": "float64", "norm": "boolean", "cell": "string", "any": "string",
                      "sizes": "string"}  # fmt: skip
    assert results.trials["arch.any"].tolist()[:2] == ["1", '"b"']
    assert results.trials["arch.sizes"].tolist() == ["[1,2]", pd.NA, "[3]"]
    assert results.trials["odd"].tolist() == ['{"a":0}', '{"a":1}', '{"a":2}']
    assert results.epochs["flag"].tolist() == [1.0, 0.0, 0.0]
    analysis.write_tables(run.path)
    assert_frame_equal(analysis.load(run.path).trials, results.trials)


def test_tables_are_the_same_from_parquet(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = analysis.load(run.path)
    assert not list(run.path.glob("*.parquet"))  # loading writes nothing
    analysis.write_tables(run.path)
    assert {file.name for file in run.path.iterdir()} == {"ledger.jsonl", "trials.parquet", "epochs.parquet"}
    # Were the trials read from the ledger, this would break.
    monkeypatch.setattr("analysis.ledger.Ledger.tables", None)
    stored = analysis.load(run.path)
    for name in ("trials", "epochs", "stages"):
        assert_frame_equal(getattr(stored, name), getattr(fresh, name))
    for name in ("paths", "name", "teachers", "seconds", "finished", "version", "recipe"):
        assert getattr(stored, name) == getattr(fresh, name), name


def test_stale_broken_or_half_written_tables_are_not_used(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trials, epochs = (analysis.load(run.path).trials, analysis.load(run.path).epochs)
    analysis.results.write(run.path, trials.head(1), epochs.head(1), run.file.stat().st_size - 1)
    assert len(analysis.load(run.path).trials) == len(trials)
    analysis.results.write(run.path, trials.head(1), epochs.head(1), run.file.stat().st_size)
    assert len(analysis.load(run.path).trials) == 1  # believed, as their mark says so
    with monkeypatch.context() as patch:
        patch.setattr("analysis.results.LAYOUT", LAYOUT + 1)
        assert len(analysis.load(run.path).trials) == len(trials)
    run.add("resume")
    assert len(analysis.load(run.path).trials) == len(trials)
    analysis.write_tables(run.path)
    (run.path / "epochs.parquet").write_bytes(b"PAR1 cut off")
    assert_frame_equal(analysis.load(run.path).epochs, epochs)
    (run.path / "epochs.parquet").unlink()
    assert_frame_equal(analysis.load(run.path).epochs, epochs)


def test_a_failed_write_leaves_the_old_tables(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    analysis.write_tables(run.path)
    before = (run.path / "trials.parquet").read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space left"):
        analysis.write_tables(run.path)
    assert (run.path / "trials.parquet").read_bytes() == before
    assert not list(run.path.glob(".*.tmp"))


def test_stages_and_summary(run: Any) -> None:
    results = analysis.load(run.path)
    assert results.stages["stage"].tolist() == ["score", "short", "final"]
    assert json.loads(results.stages["kept"].iloc[0]) == [3, 2, 1]
    assert results.stages["seconds"].tolist() == [2.0, 9.0, 12.0]
    table = results.stage_summary().set_index("stage")
    assert table.loc["short", ["trials", "completed", "stopped", "failed"]].tolist() == [4, 2, 1, 1]
    assert table.loc["short", "valid_accuracy"] == 0.9  # not the failed trial's 0.99
    assert table.loc["final", "students"] == 2
    assert table["device_seconds"].tolist() == pytest.approx([0.4, 4.0, 9.0])
    assert results.device_seconds == pytest.approx(13.4 + 20)
    assert results.finished
    assert results.seconds == 60.0
    text = results.summary()
    assert "quickstart: finished, 60 s, 14 trials" in text
    assert "teacher resnet (trained, 70,000 parameters, test accuracy 0.9600)" in text
    assert "asha" in text


def test_a_summary_escapes_names(new_run: Callable[..., Any]) -> None:
    run = new_run(name="<script>alert(1)</script>")
    run.stage("<b>bold</b>", 1)
    shown = analysis.load(run.path)._repr_html_()
    assert "<script>" not in shown
    assert "<b>" not in shown
    assert "&lt;script&gt;" in shown


def test_several_runs(new_run: Callable[..., Any], run: Any) -> None:
    other = new_run("other", "second")
    other.stage("short", 1)
    other.distil("short", 0, [0.3], width=4, arch={"width": 4, "depth": 2})
    empty = new_run("empty", "third")
    both = analysis.load_many([run.path, other.path, empty.path])
    assert both.name == "quickstart, second, third"
    assert both.trials.groupby("run").size().to_dict() == {"quickstart": 14, "second": 1}
    assert both.trials["params"].dtype == "Int64"
    assert [teacher["run"] for teacher in both.teachers] == ["quickstart", "second", "third"]
    assert not both.finished
    ranked = analysis.rank(both)
    assert ranked[["run", "stage"]].drop_duplicates().values.tolist() == [["quickstart", "final"], ["second", "short"]]
    with pytest.raises(BadInput, match="at least one run"):
        analysis.load_many([])


def test_runs_of_one_name_are_told_apart(new_run: Callable[..., Any]) -> None:
    runs = [new_run("a"), new_run("b")]
    both = analysis.load_many([run.path for run in runs])
    assert both.stages.empty
    assert both.name == "a, b"
    assert analysis.load_many([runs[0].path, runs[0].path]).name == "a (1), a (2)"
