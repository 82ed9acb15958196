"""Agreement: planted truths, published tables, seeds, sizes and weights."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import analysis
from analysis import BadInput


def _planted(run: Any, candidates: int = 40, stopped: int = 0) -> None:
    """Students whose final accuracy the score `oracle` orders perfectly, `inverse` in reverse, `random` not at all."""
    rng = np.random.default_rng(3)
    truth, size = rng.permutation(candidates) / candidates, rng.permutation(candidates) + 1
    weights = {"oracle": 1.0, "inverse": -1.0}
    run.stage("score", 1, "score", objective=weights, combine="rank")
    run.stage("short", 2)
    for i in range(candidates):
        run.trial("score", i, int(size[i]))
        run.score("score", i, oracle=float(np.exp(5 * truth[i])), inverse=-float(truth[i]), random=float(rng.normal()),
                  sparse=float(truth[i]) if i < 10 else None, constant=1.0, score_seconds=float(truth[i]))  # fmt: skip
        run.end("score", i)
        status = "stopped" if i < stopped else "completed"
        run.distil("short", i, [0.5 * truth[i] + 0.01, 0.7 * truth[i], truth[i]], status, width=int(size[i]))


def test_planted_scores(new_run: Callable[..., Any]) -> None:
    run = new_run()
    _planted(run)
    table = analysis.agreement(analysis.load(run.path), resamples=200)
    scores = table[table["epoch"].isna()].set_index("predictor")
    singles = ["params", "flops", "oracle", "inverse", "random", "sparse", "constant"]
    assert scores.index.tolist() == [*singles, "ensemble.rank", "ensemble.vote", "combined"]
    for name in ("tau", "spearman"):
        low, high = f"{name}_low", f"{name}_high"
        assert scores.loc["oracle", [name, low, high]].tolist() == pytest.approx([1, 1, 1])
        assert scores.loc["inverse", [name, low, high]].tolist() == pytest.approx([-1, -1, -1])
        assert scores.loc["combined", name] == pytest.approx(1)
        assert scores.loc["random", low] < 0 < scores.loc["random", high]
        assert scores.loc["params", low] < 0 < scores.loc["params", high]
        assert scores.loc["constant", [name, low, high]].isna().all()
    assert scores.loc["oracle", "recall"] == 1
    assert scores.loc["inverse", "recall"] == 0
    assert scores["n"].to_dict() == {name: 10 if name == "sparse" else 40 for name in scores.index}
    assert scores.loc["oracle", "k"] == 4
    early = table[table["epoch"].notna()]
    assert early[["predictor", "stage", "epoch"]].values.tolist() == [
        ["valid_accuracy", "short", 1], ["objective", "short", 1],
        ["valid_accuracy", "short", 2], ["objective", "short", 2]]  # fmt: skip
    assert early["tau"].tolist() == pytest.approx([1, 1, 1, 1])
    assert scores["beats_size"].to_dict() == {
        **dict.fromkeys(scores.index, scores.loc["random", "tau"] > scores.loc[["params", "flops"], "tau"].max()),
        **dict.fromkeys(["params", "flops", "inverse", "constant"], False),
        **dict.fromkeys(["oracle", "sparse", "ensemble.rank", "ensemble.vote", "combined"], True),
    }  # fmt: skip
    assert early["beats_size"].all()
    assert table.attrs == {"target": "valid_accuracy", "stage": "short", "censored": "drop"}


def test_a_target_of_which_less_is_better_is_turned(new_run: Callable[..., Any]) -> None:
    run = new_run()
    _planted(run, 12)
    table = analysis.agreement(analysis.load(run.path), "train_loss", resamples=20).set_index("predictor")
    assert table.loc["oracle", "tau"] == pytest.approx(1)


def test_the_same_seed_gives_the_same_table(new_run: Callable[..., Any]) -> None:
    run = new_run()
    _planted(run, 12)
    results = analysis.load(run.path)
    first, again, other = (analysis.agreement(results, resamples=50, seed=seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(other)


@pytest.mark.parametrize(
    ("stopped", "censored", "said", "n"),
    [(3, None, "drop", 9), (8, None, "last", 12), (3, "last", "last", 12), (8, "drop", "drop", 4)],
)
def test_candidates_that_were_stopped_early(
    new_run: Callable[..., Any], stopped: int, censored: Any, said: str, n: int
) -> None:
    run = new_run()
    _planted(run, 12, stopped)
    table = analysis.agreement(analysis.load(run.path), censored=censored, resamples=10)
    assert table.attrs["censored"] == said
    assert table.set_index("predictor").loc["oracle", "n"] == n


def test_a_final_of_few_leaves_the_target_to_the_stage_before(new_run: Callable[..., Any], run: Any) -> None:
    other = new_run("other")
    _planted(other, 12)
    other.stage("final", 3)
    for i in range(3):
        other.distil("final", i, [0.5, 0.6, 0.7 + i / 10], width=i + 1)
    results = analysis.load(other.path)
    assert analysis.agreement(results, resamples=5).attrs["stage"] == "short"
    final = analysis.agreement(results, stage="final", resamples=5)
    assert final["n"].max() == 3
    assert ("valid_accuracy", "short", 3) in set(
        final[["predictor", "stage", "epoch"]].itertuples(index=False, name=None)
    )
    # Where no stage has enough: the one with most, seeds averaged, controls and failures left out.
    few = analysis.agreement(analysis.load(run.path), resamples=5)
    assert few.attrs["stage"] == "short"
    assert few.set_index("predictor").loc["snip", "n"] == 3


def test_controls_have_no_say(new_run: Callable[..., Any]) -> None:
    tables = []
    for controls in (False, True):
        run = new_run(f"controls-{controls}")
        _planted(run, 12)
        for i in range(12 if controls else 0):
            # In the reverse order, and by far: one that counted would turn every mean around.
            run.distil("short", 100 + i, [-9.0 * i, 9.0 * i, -90.0 * i], control=True, proposal=i,
                       width=int(1 + np.random.default_rng(i).integers(12)))  # fmt: skip
        tables.append(analysis.agreement(analysis.load(run.path), resamples=10))
    pd.testing.assert_frame_equal(*tables)


def test_a_handful_has_no_interval(run: Any) -> None:
    """Of three students in order nearly every resample is in order: an interval would say 1.00 to 1.00."""
    table = analysis.agreement(analysis.load(run.path), resamples=50)
    assert table["n"].max() == 3
    assert table["tau"].notna().any()
    assert table.filter(regex="_(low|high)$").isna().all(axis=None)
    assert "nan" not in repr(analysis.show(table))


def test_seeds_are_averaged(run: Any) -> None:
    table = analysis.agreement(analysis.load(run.path), stage="final", resamples=5)
    params = table.set_index("predictor").loc["params"]
    assert (params["n"], params["tau"]) == (2, 1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "valid_acc"}, "did you mean 'valid_accuracy'"),
        ({"stage": "sort"}, "did you mean 'short'"),
        ({"k": 0}, "k must be at least 1"),
        ({"resamples": 0}, "resamples must be at least 1"),
        ({"censored": "first"}, "'drop' or 'last'"),
    ],
)
def test_bad_arguments(run: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        analysis.agreement(analysis.load(run.path), **arguments)


def test_several_runs_are_refused(new_run: Callable[..., Any], run: Any) -> None:
    other = new_run("other", "second")
    other.stage("short", 1)
    other.distil("short", 0, [0.5])
    with pytest.raises(BadInput, match="agreement is of one run"):
        analysis.agreement(analysis.load_many([run.path, other.path]))


def _scores(run: Any, stage: str, table: dict[int, dict[str, Any]], seed: int = 0) -> None:
    """Trials of scores by width."""
    for number, (width, scores) in enumerate(table.items()):
        run.trial(stage, number + 100 * seed, width, seed=seed, proposal=number)
        run.score(stage, number + 100 * seed, **scores)
        run.end(stage, number + 100 * seed)


def test_spread_over_seeds(new_run: Callable[..., Any]) -> None:
    run = new_run()
    run.stage("score", 1, "score", seeds=2, combine="rank")
    _scores(run, "score", {1: {"a": 1.0}, 2: {"a": 2.0}, 4: {"a": 3.0}}, 0)
    _scores(run, "score", {1: {"a": 1.0}, 2: {"a": 8.0}, 4: {"a": 3.0}}, 1)
    run.stage("short", 2)
    for number, width in enumerate((1, 2, 4)):
        run.distil("short", number, [width / 10], width=width)
    row = analysis.agreement(analysis.load(run.path), resamples=5).set_index("predictor").loc["a"]
    # Means 1, 5, 3 of truth 1, 2, 4: two pairs of three agree. The first seed's order is perfect, the second's is not.
    assert (row["seeds"], row["tau"]) == (2, pytest.approx(1 / 3))
    assert row["tau_mean"] == pytest.approx((1 + 1 / 3) / 2)
    assert row["tau_std"] == pytest.approx((1 - 1 / 3) / np.sqrt(2))
    single = analysis.agreement(analysis.load(run.path), resamples=5).set_index("predictor").loc["params"]
    assert single["seeds"] == 1
    assert pd.isna(single["tau_std"])


def test_a_score_of_several_terms_has_a_row_of_its_own(run: Any) -> None:
    table = analysis.agreement(analysis.load(run.path), resamples=5).set_index("predictor")
    names = ["snip", "diswot.semantic", "diswot.relation", "diswot", "ensemble.rank", "ensemble.vote", "combined"]
    assert table.index[table["stage"] == "score"].tolist() == names
    # Truth of widths 4, 8, 16: .7, .9, .4. Semantic orders them 4 < 8 < 16, relation not at all.
    assert table.loc["diswot", "tau"] == table.loc["diswot.semantic", "tau"] == pytest.approx(-1 / 3)
    assert pd.isna(table.loc["diswot.relation", "tau"])


def test_who_beats_the_size(new_run: Callable[..., Any]) -> None:
    run = new_run()
    run.stage("score", 1, "score")
    run.stage("short", 2)
    truth = {1: 0.1, 2: 0.2, 4: 0.4, 8: 0.3, 16: 0.5}
    better = {1: 1.0, 2: 2.0, 4: 4.0, 8: 3.0, 16: 5.0}
    _scores(run, "score", {w: {"better": better[w], "same": w**2.0, "few": float(w) if w < 8 else None}
                           for w in truth})  # fmt: skip
    for number, (width, accuracy) in enumerate(truth.items()):
        run.distil("short", number, [accuracy], width=width)
    table = analysis.agreement(analysis.load(run.path), resamples=300).set_index("predictor")
    # One pair of ten is the other way round by size.
    assert table.loc[["params", "flops", "same", "better"], "tau"].tolist() == pytest.approx([0.8, 0.8, 0.8, 1.0])
    assert table.loc[["params", "flops", "same", "few", "better"], "beats_size"].tolist() == [*[False] * 4, True]
    assert table.loc["better", "over_size"] == pytest.approx(0.2)
    assert table.loc["better", "over_size_low"] == pytest.approx(0, abs=1e-12)
    assert table.loc["better", "over_size_high"] > 0.2
    # Paired: what orders as the size does is level with it in every resample.
    assert table.loc["same", ["over_size", "over_size_low", "over_size_high"]].tolist() == [0, 0, 0]
    # Of its own three candidates the size too has tau 1.
    assert table.loc["few", ["n", "tau", "over_size"]].tolist() == [3, 1, 0]


def test_scores_from_elsewhere(new_run: Callable[..., Any]) -> None:
    run, more = new_run(), new_run("more", "second")
    _planted(run, 12)
    more.stage("score", 1, "score")
    truth = analysis.load(run.path).trials.query("stage == 'short'").set_index("params")["valid_accuracy"]
    _scores(more, "score", {w: {"inverse": truth[100 * w], "fresh": -truth[100 * w]} for w in range(1, 13)})
    more.stage("second", 2, "score")
    _scores(more, "second", {w: {"oracle": -truth[100 * w]} for w in range(1, 13)})
    alone = analysis.agreement(analysis.load(run.path), resamples=5)
    analysis.write_tables(more.path)
    for source in (more.path / "trials.parquet", analysis.load(more.path)):
        table = analysis.agreement(analysis.load(run.path), resamples=5, scores=source).set_index(
            ["stage", "predictor"]
        )
        taus = table["tau"].to_dict()
        # In the stage of the same name one score is replaced, one added, the others stay; another stage is added.
        assert taus[("score", "oracle")] == 1
        assert taus[("score", "inverse")] == 1
        assert taus[("score", "fresh")] == -1
        assert taus[("second", "oracle")] == -1
        assert len(table) == len(alone) + 2
    with pytest.raises(BadInput, match="holds no score"):
        analysis.agreement(analysis.load(run.path), scores=analysis.load(run.path).trials.query("stage == 'short'"))


def test_agreement_with_published_results() -> None:
    rng = np.random.default_rng(0)
    n = 30
    scores = pd.DataFrame({"hash": [f"{i:x}" for i in range(n)], "arch.depth": np.arange(n) // 6,
                           "arch.kind": [f"k{i % 6}" for i in range(n)], "params": rng.permutation(n),
                           "snip": rng.normal(size=n), "nwot": rng.normal(size=n)})  # fmt: skip
    truth = pd.DataFrame({"arch.kind": scores["arch.kind"], "arch.depth": scores["arch.depth"],
                          "test_error": -scores["snip"] + rng.normal(size=n), "macs": 1.0})  # fmt: skip
    truth = truth.sample(frac=1, random_state=1)
    by_choices = analysis.agreement_with(scores, truth, "test_error", resamples=50)
    assert by_choices["predictor"].tolist() == ["params", "flops", "snip", "nwot", "ensemble.rank", "ensemble.vote"]
    rows = by_choices.set_index("predictor")
    accuracy = -truth["test_error"].sort_index()
    for name in ("params", "snip", "nwot"):
        assert rows.loc[name, "tau"] == pytest.approx(stats.kendalltau(scores[name], accuracy).statistic)
    assert rows.loc["flops", "n"] == 0
    assert not rows.loc["flops", "beats_size"]
    assert rows.loc["snip", "beats_size"]
    assert by_choices.attrs == {"target": "test_error", "stage": None, "censored": None}
    # The same by hash, twice with opposite noise, from a series, and with the sizes that only the results know.
    named = truth.assign(hash=scores["hash"])
    twice = pd.concat([named.assign(test_error=named["test_error"] + d) for d in (-0.5, 0.5)])
    series = named.set_index("hash")["test_error"]
    for table in (twice, series):
        pd.testing.assert_frame_equal(analysis.agreement_with(scores, table, "test_error", resamples=50), by_choices)
    bare = analysis.agreement_with(scores.drop(columns="params"), named.assign(params=scores["params"]), "test_error",
                                   resamples=50)  # fmt: skip
    pd.testing.assert_frame_equal(bare, by_choices)
    pd.testing.assert_frame_equal(analysis.agreement_with(scores.sample(frac=1, random_state=2), named, "test_error",
                                                          resamples=50), by_choices)  # fmt: skip


@pytest.mark.parametrize(
    ("truth", "target", "message"),
    [
        (pd.DataFrame({"hash": ["a"], "acc": [1.0]}), None, "name the target.*: acc"),
        (pd.DataFrame({"hash": ["a"], "acc": [1.0]}), "accc", "did you mean 'acc'"),
        (pd.DataFrame({"hash": ["z"], "acc": [1.0]}), "acc", "no candidate in common"),
        (pd.DataFrame({"acc": [1.0]}), "acc", r"lacking: arch\.width"),
        (pd.Series([1.0], index=["z"]), None, "no candidate in common"),
    ],
)
def test_published_results_that_do_not_fit(truth: Any, target: str | None, message: str) -> None:
    scores = pd.DataFrame({"hash": ["a", "b"], "arch.width": [1, 2], "snip": [1.0, 2.0]})
    with pytest.raises(BadInput, match=message):
        analysis.agreement_with(scores, truth, target)


def _guided(run: Any) -> None:
    """Of 12 students accuracy at epoch 1 is half the truth, the teacher's guidance the other half."""
    run.stage("short", 1)
    rng = np.random.default_rng(5)
    for i, truth in enumerate(rng.permutation(12) / 12):
        known = float(rng.uniform(0, truth))
        run.trial("short", i, i + 1)
        run.report("short", i, 1, known, teacher_guidance=float(truth - known))
        run.report("short", i, 2, float(truth), teacher_guidance=0.5)
        run.report("short", i, 3, float(truth))
        run.end("short", i)


def test_weight_sweep(new_run: Callable[..., Any]) -> None:
    run = new_run()
    _guided(run)
    results = analysis.load(run.path)
    table = analysis.weight_sweep(results, weights=(0, 0.5, 1), resamples=50)
    assert table[["epoch", "weight"]].values.tolist() == [[1, 0], [1, 0.5], [1, 1], [2, 0], [2, 0.5], [2, 1]]
    assert table["tau"].tolist()[2:] == pytest.approx([1, 1, 1, 1])
    assert table["tau"][0] < 1
    assert (table["tau_low"] <= table["tau"]).all()
    early = analysis.agreement(results, resamples=50)
    rows = early[early["epoch"] == 1].set_index("predictor")
    assert rows.index.tolist() == ["valid_accuracy", "objective", "teacher_guidance"]
    shared = ["n", "k", "tau", "tau_low", "tau_high", "spearman", "recall"]
    assert table.loc[0, shared].tolist() == rows.loc["valid_accuracy", shared].tolist()
    # A very large weight leaves the other alone to decide.
    heavy = analysis.weight_sweep(results, weights=(1e9,), resamples=50)
    assert heavy["tau"][0] == pytest.approx(rows.loc["teacher_guidance", "tau"])
    # Less loss is better, so it counts negatively: here it is one minus the accuracy.
    loss = analysis.weight_sweep(results, other="train_loss", weights=(3,), resamples=50)
    assert loss["tau"][0] == pytest.approx(rows.loc["valid_accuracy", "tau"])
    for arguments, message in [
        ({"other": "guidance"}, "unknown metric 'guidance'"),
        ({"weights": ()}, "at least one"),
        ({"weights": (1, float("nan"))}, "finite"),
        ({"other": "cka"}, "no epoch before the target's reports both 'valid_accuracy' and 'cka'"),
        ({"other": "cka", "target": "valid_acc"}, "did you mean 'valid_accuracy'"),
    ]:
        with pytest.raises(BadInput, match=message):
            analysis.weight_sweep(results, **arguments)


@pytest.fixture(scope="module")
def cells() -> pd.DataFrame:
    """Published scores of 725 NAS-Bench-201 cells and their accuracies (NASLib)."""
    here = Path(__file__).parents[2].parent / "shared" / "data"
    file = Path(os.environ.get("DUX_TEST_DATA", here)) / "tables" / "nasbench201_zero_cost_725.parquet"
    if not file.exists():
        pytest.skip("the benchmark table is not here")
    return pd.read_parquet(file)


def test_published_scores(cells: pd.DataFrame) -> None:
    """Taus are scipy's; of five scores one is clearly above the size, and two are clearly below it."""
    cells = cells[cells["dataset"] == "cifar10"].rename(columns={"arch_str": "hash"})
    names = ["snip", "jacov", "synflow", "nwot", "grad_norm"]
    scores = cells[["hash", "params", "flops", *names]].drop_duplicates("hash")
    table = analysis.agreement_with(scores, cells[["hash", "val_accuracy"]], "val_accuracy", resamples=100)
    table = table.set_index("predictor")
    truth = cells.groupby("hash")["val_accuracy"].mean()
    for name in ["params", "flops", *names]:
        values = scores.set_index("hash")[name].reindex(truth.index)
        assert table.loc[name, "tau"] == pytest.approx(stats.kendalltau(values, truth, nan_policy="omit").statistic)
    best = table.loc[["params", "flops"], "tau"].max()
    assert table["beats_size"].to_dict() == (table["tau"] > best).to_dict()
    clearly = table["over_size_low"] > 0, table["over_size_high"] < 0
    assert clearly[0][names].to_dict() == {name: name == "nwot" for name in names}
    assert set(table.index[clearly[1]]) == {"flops", "snip", "grad_norm"}
    assert clearly[0][["ensemble.rank", "ensemble.vote"]].all()


def test_a_published_table(new_run: Callable[..., Any], cells: pd.DataFrame) -> None:
    """Scores of 200 NAS-Bench-201 cells, through events and back, agree with their accuracies as scipy says."""
    names = ["snip", "synflow", "params", "flops"]
    cells = cells.dropna(subset=[*names, "val_accuracy"]).head(200)
    run = new_run()
    run.stage("score", 1, "score")
    run.stage("final", 2)
    for i, cell in enumerate(cells.itertuples()):
        cost = {"params": int(cell.params * 1e6), "flops": int(cell.flops * 1e6)}
        run.trial("score", i, i, cost=cost)
        run.score("score", i, snip=cell.snip, synflow=cell.synflow)
        run.end("score", i)
        run.distil("final", i, [cell.val_accuracy / 100], width=i, cost=cost)
    table = analysis.agreement(analysis.load(run.path), resamples=100).set_index("predictor")
    for name in names:
        assert table.loc[name, "tau"] == pytest.approx(stats.kendalltau(cells[name], cells.val_accuracy).statistic)
        assert table.loc[name, "spearman"] == pytest.approx(stats.spearmanr(cells[name], cells.val_accuracy).statistic)
        assert table.loc[name, "tau_low"] < table.loc[name, "tau"] < table.loc[name, "tau_high"]
