"""What a notebook shows of results, and what every column of a recorded run means."""

import json
import pickle
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import schema

DATA = Path(__file__).parents[1] / "data"
RUNS = ("digits", "digits-small-teacher")
TABLES = tuple(schema.TABLES)


@pytest.fixture(scope="module")
def recorded() -> analysis.Results:
    return analysis.load(DATA / "digits")


class Page(HTMLParser):
    """The tags and texts of a display; fails where tags are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def cells(shown: analysis.Shown) -> list[tuple[str, ...]]:
    """The rows of a table that is shown, under its headings."""
    return [tuple(part.heading for part in shown.parts), *zip(*(part.cells for part in shown.parts), strict=True)]


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("table", TABLES)
def test_every_column_of_a_recorded_run_is_described(name: str, table: str) -> None:
    results = analysis.load(DATA / name)
    described = analysis.describe_columns(results)
    described = described[described["table"] == table].set_index("name")
    frame = getattr(results, table)
    assert described.index.tolist() == list(frame.columns)
    assert described["dtype"].tolist() == [str(dtype) for dtype in frame.dtypes]
    assert described["meaning"].str.len().min() > 5
    assert set(described["direction"]) <= {"higher", "lower", "none"}
    shares = frame[[c for c in described.index[described["unit"] == "share"] if frame[c].notna().any()]]
    assert ((shares.min() >= 0) & (shares.max() <= 1)).all()


def test_what_a_ranking_adds_is_described(recorded: analysis.Results) -> None:
    described = analysis.describe_columns(recorded).groupby("table")["name"].agg(set)
    for name in analysis.rank(recorded).columns:
        base = name
        for end in ("_std", "_alone", "_delta"):
            base = base.removesuffix(end)
        assert base in described["trials"] | described["ranking"], name
        assert schema.column_of(name).meaning
    assert schema.column_of("test_accuracy_alone_std").meaning == (
        "share classified correctly; test images; trained without the teacher; standard deviation over seeds"
    )


@pytest.mark.parametrize(
    ("name", "unit", "better", "says"),
    [("arch.width", "", "none", "width"), ("set.losses.kd.temperature", "", "none", "losses.kd.temperature"),
     ("kd_loss", "", "lower", "'kd'"), ("diswot.relation", "", "higher", "'relation'"), ("nwot", "", "higher", "nwot"),
     ("ensemble.vote", "", "higher", "majority"), ("peer_accuracy", "share", "higher", "peer"),
     ("valid_ece_std", "share", "none", "calibration"), ("valid_ece_alone", "share", "lower", "without the teacher"),
     ("kl_delta", "nats", "higher", "minus"), ("test_cka", "share", "higher", "embeddings")],
)  # fmt: skip
def test_columns_that_are_not_listed_are_described_by_their_names(name: str, unit: str, better: str, says: str) -> None:
    column = schema.column_of(name)
    assert (column.name, column.unit, column.direction) == (name, unit, better)
    assert says in column.meaning


def test_the_likeness_on_test_images_is_no_score_without_training(recorded: analysis.Results) -> None:
    assert not [c for c in schema.score_columns(recorded.trials) if c.startswith("test_")]
    assert recorded.trials["test_cka"].notna().any()


def test_the_ledger_is_a_row_an_event(recorded: analysis.Results) -> None:
    table = recorded.ledger
    lines = [json.loads(line) for line in (DATA / "digits/ledger.jsonl").read_text().splitlines()]
    assert table["event"].tolist() == [line["event"] for line in lines]
    assert table["time"].is_monotonic_increasing
    assert table["device_seconds"].sum() == pytest.approx(recorded.device_seconds)
    by_stage = table[table["event"] == "report"].groupby("stage")["device_seconds"].sum()
    assert by_stage.to_dict() == pytest.approx(recorded.trials.groupby("stage")["seconds"].sum().to_dict())
    ends = table[table["event"] == "stage_end"].set_index("stage")["wall_seconds"]
    assert ends.to_dict() == recorded.stages.set_index("stage")["seconds"].to_dict()
    assert set(table["text"][table["event"] == "end"]) == {"completed", "stopped"}
    assert {name: str(table[name].dtype) for name in table} == {c.name: c.dtype for c in schema.LEDGER}
    assert not table["repeated"].any()


def test_what_a_resumption_repeats_is_told_and_not_counted(run: Any) -> None:
    before = analysis.load(run.path).device_seconds
    run.add("resume")
    run.add("teacher", name="resnet", source="kept", seconds=0.0)
    run.add("report", stage="short", number=1, epoch=3, seconds=0.5, worker="w1", metrics={"valid_accuracy": 0.9})
    run.add("something", later=1)  # of a newer dux
    run.add("end", stage="short", number=3, status="failed", reason="loss is not finite")
    results = analysis.load(run.path)
    table = results.ledger
    assert table["event"].tolist()[-4:] == ["resume", "teacher", "report", "end"]
    assert table["repeated"].tolist()[-4:] == [False, True, True, False]
    assert table["text"].tolist()[-3:] == ["resnet: kept", pd.NA, "failed: loss is not finite"]
    assert results.device_seconds == before == pytest.approx(table.loc[~table["repeated"], "device_seconds"].sum())
    analysis.write_tables(run.path)
    pd.testing.assert_frame_equal(analysis.load(run.path).ledger, table)


def test_the_ledger_is_read_when_it_is_asked_for(run: Any) -> None:
    results = analysis.load(run.path)
    text = run.file.read_text()
    run.file.unlink()
    with pytest.raises(analysis.BadInput, match="is not a run"):
        _ = results.ledger
    run.file.write_text(text)
    assert results.ledger is results.ledger
    again = pickle.loads(pickle.dumps(results))
    run.file.unlink()
    pd.testing.assert_frame_equal(again.ledger, results.ledger)


@pytest.mark.parametrize("table", TABLES)
def test_several_runs_stand_below_each_other(table: str) -> None:
    parts = [getattr(analysis.load(DATA / name), table) for name in RUNS]
    both = analysis.load_many(DATA / name for name in RUNS)
    found = getattr(both, table)
    assert found["run"].tolist() == [name for name, part in zip(RUNS, parts, strict=True) for _ in range(len(part))]
    for name, part in zip(RUNS, parts, strict=True):
        own = found[found["run"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(own[part.columns], part, check_dtype=False)
    assert set(analysis.describe_columns(both).query(f"table == {table!r}")["name"]) == set(found.columns)
    same = {c.name: c.dtype for c in schema.TABLES[table] if c.dtype != "inferred"}
    assert {name: str(found[name].dtype) for name in same} == same


def test_runs_of_one_name_have_their_folders_names_in_every_table() -> None:
    both = analysis.load_many([DATA / "digits", DATA / "digits"])
    for table in TABLES:
        assert set(getattr(both, table)["run"]) == {"digits (1)", "digits (2)"}


def test_a_run_is_shown_in_a_few_lines(recorded: analysis.Results) -> None:
    page = Page(recorded._repr_html_())
    text = "\n".join(page.texts)
    best = analysis.rank(recorded).iloc[0]
    assert "digits: finished" in text
    assert f"{best['params']:,} params" in text
    assert f"{100 * best['test_accuracy']:.2f} ± {100 * best['test_accuracy_std']:.2f} % test" in text
    assert "teacher resnet 2-2-2 width 32 (trained, 696,042 parameters" in text
    assert f"{recorded.device_seconds:.4g} device-seconds" in text
    assert "failed" not in text  # nothing has
    assert [tag for tag, _ in page.tags].count("tr") == 1 + 3
    assert repr(recorded) == recorded.summary()
    assert len(repr(recorded).splitlines()) < 12


def test_a_teacher_whose_numbers_are_none_is_shown_without_them(new_run: Callable[..., Any]) -> None:
    run = new_run()
    run.add("teacher", name="odd", source="file", params=None, seconds=0.0, metrics={"test_accuracy": "0.9"})
    results = analysis.load(run.path)
    assert "teacher odd (file)" in results.summary()
    Page(results._repr_html_())


def test_what_failed_is_shown_with_its_reason(run: Any) -> None:
    results = analysis.load(run.path)
    assert "1 of 14 trials failed; commonest reason: loss is not finite" in results.summary()
    assert "failed; commonest reason: loss is not finite" in results._repr_html_()


def test_a_run_that_has_just_begun_is_shown(new_run: Callable[..., Any]) -> None:
    results = analysis.load(new_run().path)
    assert "not finished" in repr(results)
    assert "best student" not in repr(results)
    Page(results._repr_html_())


def test_several_runs_are_shown_with_the_best_of_each() -> None:
    text = analysis.load_many(DATA / name for name in RUNS).summary()
    assert "best student of digits: " in text
    assert "best student of digits-small-teacher: " in text


def test_a_ranking_is_shown_with_units_and_spread(recorded: analysis.Results) -> None:
    ranked = analysis.rank(recorded)
    before = ranked.copy()
    shown = analysis.show(ranked, top=2)
    pd.testing.assert_frame_equal(ranked, before)
    head, first, _ = cells(shown)
    assert head[:4] == ("#", "student", "with", "params")
    row, told = ranked.iloc[0], dict(zip(head, first, strict=True))
    assert told["params"] == f"{row['params']:,}"
    assert told["valid %"] == f"{100 * row['valid_accuracy']:.2f} ± {100 * row['valid_accuracy_std']:.2f}"
    delta = f"{100 * row['test_accuracy_delta']:+.2f} ± {100 * row['test_accuracy_delta_std']:.2f}"
    assert told["delta: test %"] == delta
    assert told["with"].startswith("temperature ")
    assert shown.note == f"± is the standard deviation over 3 seeds; the first 2 of {len(ranked)} rows"
    page = Page(shown._repr_html_())
    titles = [values.get("title") or "" for tag, values in page.tags if tag == "th"]
    assert "share classified correctly; test images" in titles
    assert repr(shown).splitlines()[0].split()[:2] == ["#", "student"]


def test_scores_are_shown_where_nothing_was_trained(recorded: analysis.Results) -> None:
    head = cells(analysis.show(analysis.rank_scores(recorded)))[0]
    assert {"student", "score", "nwot", "diswot.relation"} <= set(head)
    assert "valid %" not in head


def test_confidence_is_shown_by_the_students_names(recorded: analysis.Results) -> None:
    head, first, *_ = cells(analysis.show(analysis.confidence(recorded, resamples=50).ranks))
    assert head[-2:] == ("place (95 %)", "best in %")
    assert " to " in first[-2]
    assert "rank_mean" not in head


def test_intervals_stand_beside_their_values(recorded: analysis.Results) -> None:
    found = analysis.agreement(recorded, resamples=50)
    head, first, *_ = cells(analysis.show(found))
    assert not [name for name in head if name.endswith((" low", " high"))]
    row = found.iloc[0]
    assert dict(zip(head, first, strict=True))["tau"] == (
        f"{row['tau']:.2f} ({row['tau_low']:.2f} to {row['tau_high']:.2f})"
    )
    assert f"stage {found.attrs['stage']}" in analysis.show(found).note
    head = cells(analysis.show(analysis.effects(recorded)))[0]
    assert head == ("setting", "value", "n", "mean")


@pytest.mark.parametrize("table", TABLES)
def test_any_table_is_shown(recorded: analysis.Results, table: str) -> None:
    for frame in (getattr(recorded, table), getattr(recorded, table).head(0)):
        shown = analysis.show(frame)
        Page(shown._repr_html_())
        assert repr(shown)


def test_odd_values_are_shown() -> None:
    table = pd.DataFrame({"large": [1e9, 2.5, np.nan], "endless": [np.inf, 1.0, -np.inf], "yes": [True, False, True],
                          "empty": [None] * 3, "list": [[1], [2], [3]], "whole": [1000, 2, 3],
                          "time": [0.0, 1.5e9, np.nan]})  # fmt: skip
    head, *rows = cells(analysis.show(table))
    assert head == ("large", "endless", "yes", "list", "whole", "time")
    assert rows[0] == ("1,000,000,000", "inf", "yes", "[1]", "1,000", "1970-01-01 00:00:00 UTC")
    assert rows[2][0] == rows[2][-1] == "-"


EVIL = "<img src=x onerror=alert(1)>'\"&"


def test_what_users_name_is_escaped(new_run: Callable[..., Any]) -> None:
    run = new_run(name=EVIL)
    run.stage(EVIL, 1)
    for number in range(2):
        run.distil(EVIL, number, [0.5], arch={EVIL: EVIL, "width": number}, hash=f"{EVIL}{number}",
                   params={f"losses.{EVIL}": EVIL})  # fmt: skip
    run.trial(EVIL, 2)
    run.end(EVIL, 2, "failed", EVIL)
    results = analysis.load(run.path)
    ranked = analysis.rank(results)
    ranked.attrs[EVIL] = EVIL
    tables = (ranked, results.trials, results.stages, results.ledger, analysis.describe_columns(results))
    pages = [results._repr_html_(), *(analysis.show(table)._repr_html_() for table in tables)]
    for text in pages:
        page = Page(text)
        assert {tag for tag, _ in page.tags} <= {"div", "strong", "table", "thead", "tbody", "tr", "th", "td"}
        assert {name for _, values in page.tags for name in values} <= {"style", "title"}
    assert EVIL in "".join(Page(pages[0]).texts)


def test_displays_set_no_colour_but_that_of_the_page(recorded: analysis.Results) -> None:
    text = recorded._repr_html_() + analysis.show(analysis.rank(recorded))._repr_html_()
    styles = [str(values["style"]) for _, values in Page(text).tags if "style" in values]
    assert not [style for style in styles if "color" in style.replace("color: inherit", "")]


def test_recorded_runs_are_small_and_say_nothing_of_a_machine() -> None:
    files = [file for file in DATA.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 300_000
    for file in files:
        text = file.read_text()
        assert not [word for word in ("/home/", "/root/", "/tmp/", "/work/") if word in text], file
    workers = {str(name).split(":")[0] for name in analysis.load(DATA / "digits").ledger["worker"].dropna()}
    assert workers == {"node"}
