"""Tables of scores: means over seeds, values that are missing, and what is no such table."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

import analysis
from analysis import BadInput


@pytest.fixture
def scored(new_run: Callable[..., Any]) -> Any:
    """Three candidates under two seeds; of one, nothing but `snip` under the second seed is known; one trial failed."""
    run = new_run()
    run.stage("score", 1, "score", seeds=2, epochs=None)
    broken = {"snip": "no gradient", "d.x": "no classes in common", "d.y": "no map"}
    for number, (width, seed) in enumerate([(4, 0), (4, 1), (8, 0), (8, 1), (2, 0), (2, 1)]):
        run.trial("score", number, width, proposal=number // 2, seed=seed)
        if width > 2:
            run.score("score", number, snip=width + 2.0 * seed, d__x=-1.0 / width, d__y=-2.0 - seed, empty=None)
        elif seed:
            run.score("score", number, {**broken, "empty": "never"}, snip=1.0, d__x=None, d__y=None, empty=None)
        else:
            run.score("score", number, broken, snip=None, d__x=None, d__y=None, empty=None)
        run.end("score", number)
    run.trial("score", 6, 16, proposal=3)
    run.end("score", 6, "failed", "out of memory")
    return run


def _sources(run: Any) -> list[Any]:
    results = analysis.load(run.path)
    analysis.write_tables(run.path)
    return [results, run.path, str(run.path), run.path / "trials.parquet", results.trials]


def test_means_over_seeds(scored: Any) -> None:
    for source in _sources(scored):
        table = analysis.load_scores(source)
        assert table["arch.width"].tolist() == [4, 8, 2]
        assert table["hash"].tolist() == [f"{width:016x}" for width in (4, 8, 2)]
        assert table["seeds"].tolist() == [2, 2, 2]
        assert table["params"].tolist() == [400, 800, 200]
        assert table["snip"].tolist() == [5.0, 9.0, 1.0]
        assert table["snip_std"].tolist()[:2] == pytest.approx([math.sqrt(2)] * 2)
        assert table["d.y"].tolist()[:2] == [-2.5, -2.5]
        assert table[["d.x", "d.y"]].isna().all(axis=1).tolist() == [False, False, True]
        assert "no map" in table["reasons"].iloc[2]
        assert "empty" not in table
        assert "valid_accuracy" not in table
        assert_frame_equal(analysis.load_scores(table), table)


def test_of_several_stages_the_last(run: Any) -> None:
    assert analysis.load_scores(run.path)["arch.width"].tolist() == [2, 4, 8, 16]
    run.stage("more", 4, "score")
    run.trial("more", 0, 32)
    run.score("more", 0, snip=1.0)
    run.end("more", 0)
    assert analysis.load_scores(run.path)["arch.width"].tolist() == [32]
    assert len(analysis.load_scores(run.path, stage="score")) == 4
    with pytest.raises(BadInput, match=r"unknown stage of scores 'short'.*known: score, more"):
        analysis.load_scores(run.path, stage="short")


def test_a_frame_of_ones_own() -> None:
    frame = pd.DataFrame({"hash": ["a", "a", "b"], "seed": [0, 1, 0], "snip": [1.0, 3.0, 5.0]})
    table = analysis.load_scores(frame)
    assert table[["hash", "seeds", "snip"]].values.tolist() == [["a", 2, 2.0], ["b", 1, 5.0]]
    assert analysis.rank_scores(frame)["hash"].tolist() == ["b", "a"]


def test_tables_of_scores_are_ranked(scored: Any) -> None:
    expected = analysis.rank_scores(analysis.load(scored.path), by="snip")
    for source in _sources(scored):
        assert_frame_equal(analysis.rank_scores(source, by="snip"), expected)
    assert expected["arch.width"].tolist() == [8, 4, 2]
    table = analysis.load_scores(scored.path)
    for function in (analysis.rank, analysis.rank_scores):
        found = function(table, by={"snip": 1.0, "d": 1.0}, where="params >= 400")
        assert found["arch.width"].tolist() == [8, 4]
        assert found["snip_std"].notna().all()
        assert_frame_equal(function(found, by={"snip": 1.0, "d": 1.0}), found)
    # Without weights each score counts alike, its terms sharing one weight.
    ranked = analysis.rank_scores(table).set_index("arch.width")["score"]
    assert_frame_equal(
        ranked.to_frame(), analysis.rank_scores(table, by={"snip": 1.0, "d": 1.0}).set_index("arch.width")[["score"]]
    )
    assert ranked.to_dict() == pytest.approx({4: (0.5 + (0.5 + 0.75) / 2) / 2, 8: (1 + (1 + 0.75) / 2) / 2, 2: 0.0})


def test_what_is_missing_and_why(scored: Any) -> None:
    for source in _sources(scored):
        table = analysis.missing(source)
        assert table["score"].tolist() == ["snip", "d.x", "d.y", "empty"]
        assert table["stage"].unique().tolist() == ["score"]
        assert table["candidates"].tolist() == [4, 4, 4, 4]
        # A value under one seed is a value: snip lacks only on the failed trial.
        assert table["missing"].tolist() == [1, 2, 2, 4]
        assert table["reason"].tolist() == ["out of memory", "no classes in common", "no map", "never"]


def test_the_commonest_reason_is_named(new_run: Callable[..., Any]) -> None:
    run = new_run()
    run.stage("score", 1, "score")
    for number, reason in enumerate(["shape", "memory", "memory", None]):
        run.trial("score", number, number + 1)
        run.score("score", number, {"snip": reason} if reason else {}, snip=None if reason else 1.0, nwot=1.0)
        run.end("score", number)
    table = analysis.missing(run.path).set_index("score")
    assert table.loc["snip", ["missing", "reason"]].tolist() == [3, "memory"]
    assert table.loc["nwot", "missing"] == 0
    assert pd.isna(table.loc["nwot", "reason"])


@pytest.mark.parametrize("function", [analysis.load_scores, analysis.missing, analysis.rank, analysis.rank_scores])
def test_what_is_no_table_of_scores(function: Any, tmp_path: Path) -> None:
    text, table = tmp_path / "scores.csv", tmp_path / "table.parquet"
    text.write_text("hash,snip\na,1\n")
    pd.DataFrame({"arch": ["{}"], "snip": [1.0]}).to_parquet(table)
    with pytest.raises(BadInput, match=r"scores\.csv is no Parquet file"):
        function(text)
    with pytest.raises(BadInput, match=r"table\.parquet .* lacks the column 'hash'"):
        function(table)
    with pytest.raises(BadInput, match="is not a run"):
        function(tmp_path / "nothing")
    with pytest.raises(BadInput, match=r"the table .* lacks the column 'hash'"):
        function(pd.DataFrame({"snip": [1.0]}))


@pytest.mark.parametrize("function", [analysis.load_scores, analysis.missing])
def test_no_scores(function: Any, new_run: Callable[..., Any]) -> None:
    run = new_run()
    with pytest.raises(BadInput, match="holds no score"):
        function(run.path)
    run.stage("short", 1)
    run.distil("short", 0, [0.5])
    results = analysis.load(run.path)
    with pytest.raises(BadInput, match=r"run.* holds no score"):
        function(results)
    for table in (results.trials, analysis.rank(results)):
        with pytest.raises(BadInput, match="the table holds no score"):
            function(table)


def _scored(new_run: Callable[..., Any], objective: dict[str, float], **scores: list[float | None]) -> Any:
    """A run of scores; what is None could not be computed."""
    run = new_run()
    run.stage("score", 1, "score", objective=objective, combine="rank", epochs=None)
    for number, values in enumerate(zip(*scores.values(), strict=True)):
        known = dict(zip(scores, values, strict=True))
        run.trial("score", number, number + 1)
        reasons = {name.replace("__", "."): "takes any" for name, value in known.items() if value is None}
        run.score("score", number, reasons, **known)
        run.end("score", number)
    return run


@pytest.mark.parametrize("function", [analysis.rank, analysis.rank_scores])
def test_a_score_that_nobody_has_leaves_the_ranking_to_the_others(function: Any, new_run: Callable[..., Any]) -> None:
    nobody: list[float | None] = [None] * 3
    run = _scored(new_run, {"d": 1.0, "nwot": 1.0}, d__x=nobody, d__y=nobody, nwot=[1.0, 3.0, 2.0])
    table = function(analysis.load(run.path))
    assert table["arch.width"].tolist() == [2, 3, 1]
    assert table["score"].tolist() == [0.5, 0.25, 0.0]
    assert function(run.path, by="d")["score"].isna().all()
    missing = analysis.missing(run.path).set_index("score")
    assert missing.loc["d.x", ["missing", "reason"]].tolist() == [3, "takes any"]


def test_where_no_score_has_a_value_nobody_is_ranked(new_run: Callable[..., Any]) -> None:
    run = _scored(new_run, {"nwot": 1.0}, nwot=[None, None])
    table = analysis.rank(analysis.load(run.path))
    assert (table["rank"].tolist(), table["score"].isna().tolist()) == ([1, 1], [True, True])
    analysis.write_tables(run.path)
    for source in (run.path, run.path / "trials.parquet"):
        with pytest.raises(BadInput, match="holds no value of any score; nwot: takes any"):
            analysis.load_scores(source)


def test_a_candidate_without_a_value_is_last_and_has_no_score(new_run: Callable[..., Any]) -> None:
    run = _scored(new_run, {"nwot": 1.0}, nwot=[1.0, None, 0.5], snip=[1.0, 9.0, 1.0])
    table = analysis.rank_scores(run.path)
    assert table["arch.width"].tolist() == [1, 3, 2]
    assert table["score"].isna().tolist() == [False, False, True]


def test_what_can_be_ranked_by_are_scores_and_sizes(new_run: Callable[..., Any]) -> None:
    run = _scored(new_run, {"nwot": 1.0}, nwot=[1.0, 2.0], snip=[1.0, 9.0])
    analysis.write_tables(run.path)
    for source in (run.path, run.path / "trials.parquet", analysis.load_scores(run.path)):
        with pytest.raises(BadInput, match=r"did you mean 'nwot'\? known: nwot, snip, params, flops$"):
            analysis.rank(source, by="nwto")
