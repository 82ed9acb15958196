"""Large runs: what is read late, and what is passed over, comes out the same."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

import analysis


def unread(results: analysis.Results) -> bool:
    """Whether the table of reports was not needed yet."""
    return not isinstance(results.__dict__["epochs"], pd.DataFrame)


def test_reports_are_read_when_they_are_asked_for(run: Any) -> None:
    fresh = analysis.load(run.path)
    analysis.write_tables(run.path)
    results = analysis.load(run.path)
    assert_frame_equal(analysis.rank(results), analysis.rank(fresh))
    assert (results.seconds, results.sessions) == (fresh.seconds, fresh.sessions)
    assert results.summary() == fresh.summary()
    assert unread(results)
    assert_frame_equal(results.epochs, fresh.epochs)
    assert not unread(results)
    assert results.epochs is results.epochs


def test_they_are_those_of_the_load_whatever_happens_to_the_file(run: Any) -> None:
    analysis.write_tables(run.path)
    before, results, other = analysis.load(run.path).epochs, analysis.load(run.path), analysis.load(run.path)
    run.distil("final", 6, [0.1], width=4)
    analysis.write_tables(run.path)
    assert len(analysis.load(run.path).epochs) == len(before) + 1
    assert_frame_equal(results.epochs, before)
    (run.path / "epochs.parquet").unlink()
    assert_frame_equal(other.epochs, before)


@pytest.mark.parametrize("name", ["epochs.parquet", "trials.parquet"])
def test_a_damaged_page_is_made_good_from_the_ledger(run: Any, name: str) -> None:
    fresh = analysis.load(run.path)
    analysis.write_tables(run.path)
    file = run.path / name
    whole = file.read_bytes()
    assert analysis.are_current(run.path)
    for place in range(8, len(whole), 211):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        results = analysis.load(run.path)
        assert_frame_equal(results.trials, fresh.trials)
        assert_frame_equal(results.epochs, fresh.epochs)
    file.write_bytes(whole[:100] + bytes(8) + whole[108:])
    assert not analysis.are_current(run.path)


def test_unread_results_can_be_copied_and_joined(run: Any) -> None:
    analysis.write_tables(run.path)
    whole = analysis.load(run.path).epochs
    assert_frame_equal(copy.deepcopy(analysis.load(run.path)).epochs, whole)
    joined = analysis.load_many([run.path, run.path])
    assert len(joined.epochs) == 2 * len(whole)
    assert set(joined.sessions) == {"run (1)", "run (2)"}


JSON = st.dictionaries(st.sampled_from(["stage", "number", "event "]), st.text(max_size=5), max_size=2)
KINDS = st.sampled_from(["trial", "report", "lost", "end", "retry", "note", "odd", "trials", ""])


@given(st.lists(st.tuples(KINDS, JSON, st.booleans(), st.booleans()), max_size=12), st.booleans())
@settings(max_examples=60, deadline=None)
def test_events_of_trials_are_passed_over_however_they_are_written(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, dict[str, str], bool, bool]], torn: bool
) -> None:
    """Events of trials are told by how a line begins; all others, and only they, are read."""
    texts = ['{"event":"run","schema":1,"name":"r"}']
    for kind, values, dense, blank in lines:
        kind = "odd" if kind == "note" else kind  # a known event would need its values
        texts += [json.dumps({"event": kind, **values}, separators=(",", ":") if dense else None)]
        texts += [" "] if blank else []
    file = Path(tmp_path_factory.mktemp("run"), "ledger.jsonl")
    file.write_text("\n".join(texts) + ("" if torn else "\n"))
    expected = [json.loads(text) for text in (texts[:-1] if torn else texts) if text.strip()]
    bulky = ("trial", "report", "lost", "end", "retry")
    found = list(analysis.events(file, header_only=True))
    assert found == [event for event in expected if event["event"] not in bulky]


def test_a_large_table_ranks_as_its_parts_do() -> None:
    """20,000 trials of two seeds: each student's place is that of its mean."""
    rng = np.random.default_rng(0)
    values = rng.random((10_000, 2))
    hashes = pd.array([f"{i:016x}" for i in range(10_000)], dtype="string")
    table = pd.DataFrame({"hash": np.repeat(hashes, 2), "proposal": np.repeat(np.arange(10_000), 2),
                          "seed": np.tile([0, 1], 10_000), "valid_accuracy": values.ravel()})  # fmt: skip
    ranked = analysis.rank(table, by="valid_accuracy")
    assert ranked["hash"].tolist() == hashes[np.argsort(-values.mean(1), kind="stable")].tolist()
