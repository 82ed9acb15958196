"""What matters among choices and hyperparameters."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pandas.testing import assert_frame_equal
from scipy import stats

import analysis
from analysis import BadInput


def searched(
    new_run: Callable[..., Any], count: int, value: Callable[[dict[str, Any]], float], name: str = "run"
) -> Any:
    """Results of a search over depth, kind, width (of kind `a` only), a learning rate and something idle."""
    rng = np.random.default_rng(3)
    run = new_run(name)
    run.stage("short", 1)
    for number in range(count):
        arch = {"depth": int(rng.integers(0, 2)), "kind": str(rng.choice(["a", "b"])), "norm": bool(rng.integers(2))}
        arch |= {"width": int(rng.choice([8, 16]))} if arch["kind"] == "a" else {}
        params = {"lr": float(10 ** rng.uniform(-4, -1)), "idle": float(rng.random())}
        run.distil("short", number, [0.1, value({**arch, **params, "noise": rng.normal()})], arch=arch, params=params,
                   hash=f"{number:016x}")  # fmt: skip
    return analysis.load(run.path)


def test_all_hangs_on_one_choice(new_run: Callable[..., Any]) -> None:
    found = analysis.importance(searched(new_run, 60, lambda s: 0.5 + 0.1 * s["depth"]))
    assert found["setting"].iloc[0] == "arch.depth"
    assert set(found["setting"]) == {f"arch.{n}" for n in ("depth", "kind", "norm", "width")} | {"set.lr", "set.idle"}
    # Shuffled among those held out, a choice that decides all is off by the difference of two candidates: twice the
    # variance, but for the one in twelve that gets his own back.
    assert found["importance"].iloc[0] == pytest.approx(2 * 11 / 12, abs=0.2)
    assert found["importance"].iloc[1:].abs().max() < 0.01
    assert found["low"].iloc[0] > 1.5
    assert found[["values", "n"]].iloc[0].tolist() == [2, 60]
    assert found.attrs["r2"] > 0.99
    assert {name: found.attrs[name] for name in ("metric", "stage", "censored")} == {
        "metric": "score", "stage": "short", "censored": "drop"}  # fmt: skip


def test_where_all_is_noise_nothing_matters(new_run: Callable[..., Any]) -> None:
    found = analysis.importance(searched(new_run, 60, lambda s: 0.5 + 0.01 * s["noise"]))
    assert found.attrs["r2"] < 0.1
    assert (found["low"] < 0.02).all()


def test_conditional_and_logarithmic_settings_are_found(new_run: Callable[..., Any]) -> None:
    def value(setting: dict[str, Any]) -> float:
        return 0.5 + 0.02 * math.log10(setting["lr"]) + (0.03 if setting.get("width") == 16 else 0.0)

    results = searched(new_run, 80, value)
    found = analysis.importance(results).set_index("setting")
    assert (found.loc[["set.lr", "arch.width"], "low"] > 0.1).all()
    assert found.loc[["set.idle", "arch.norm"], "importance"].abs().max() < 0.1
    assert_frame_equal(analysis.importance(results).set_index("setting"), found)  # same seed, same result


def test_effects_by_hand(new_run: Callable[..., Any]) -> None:
    results = searched(new_run, 40, lambda s: 0.5 + 0.1 * s["depth"] + 0.01 * s["noise"])
    found = analysis.effects(results)
    ranked = analysis.rank(results, each="proposal")
    for _, row in found[found["setting"] == "arch.depth"].iterrows():
        values = ranked.loc[ranked["arch.depth"] == int(row["value"]), "score"]
        low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
        assert (row["n"], row["mean"]) == (len(values), pytest.approx(values.mean()))
        assert row[["low", "high"]].tolist() == pytest.approx([low, high])
    assert found[found["setting"] == "arch.width"]["value"].tolist() == ["8", "16", "-"]
    assert found[found["setting"] == "arch.kind"]["value"].tolist() == ["a", "b"]
    assert found[found["setting"] == "arch.norm"]["value"].tolist() == ["False", "True"]
    assert (found.groupby("setting")["n"].sum() == 40).all()
    # The learning rate was drawn on a logarithmic scale, what is idle was not.
    bins = [[float(end) for end in text.split(" to ")] for text in found[found["setting"] == "set.lr"]["value"]]
    assert np.allclose([high / low for low, high in bins], bins[0][1] / bins[0][0], rtol=1e-2)
    bins = [[float(end) for end in text.split(" to ")] for text in found[found["setting"] == "set.idle"]["value"]]
    assert np.allclose([high - low for low, high in bins], bins[0][1] - bins[0][0], rtol=1e-2)


def test_controls_and_seeds(new_run: Callable[..., Any]) -> None:
    run = new_run()
    run.stage("final", 1, seeds=2, control=True)
    number = 0
    for proposal in range(10):
        for seed, control in ((0, False), (1, False), (0, True)):
            value = 0.1 if control else 0.5 + 0.1 * (proposal % 2) + 0.02 * seed
            run.distil("final", number, [value], width=4 + 4 * (proposal % 2), proposal=proposal, seed=seed,
                       control=control, hash=f"{proposal:016x}")  # fmt: skip
            number += 1
    found = analysis.effects(analysis.load(run.path))
    assert found[["value", "n"]].values.tolist() == [["4", 5], ["8", 5]]
    assert found["mean"].tolist() == pytest.approx([0.51, 0.61])
    assert found["low"].tolist() == pytest.approx(found["high"].tolist())


def test_those_stopped_early_are_left_out_where_enough_remain(new_run: Callable[..., Any]) -> None:
    run = new_run()
    run.stage("short", 1)
    for number in range(14):
        status = "stopped" if number < 3 else "completed"
        arch = {"depth": number % 2}
        run.distil("short", number, [0.5 + 0.01 * number], status, hash=f"{number:016x}", arch=arch)
    results = analysis.load(run.path)
    assert analysis.effects(results)["n"].sum() == 11
    assert analysis.effects(results, censored="last")["n"].sum() == 14
    assert analysis.effects(results, metric="train_loss").attrs["metric"] == "train_loss"


def test_what_cannot_be_said(new_run: Callable[..., Any], run: Any) -> None:
    with pytest.raises(BadInput, match="at least 10 candidates with a score; stage 'score' has 4"):
        analysis.importance(analysis.load(run.path))
    with pytest.raises(BadInput, match="at least 10 candidates with a score; stage 'final' has 2"):
        analysis.effects(analysis.load(run.path), stage="final")
    results = searched(new_run, 12, lambda s: 0.5, "flat")
    with pytest.raises(BadInput, match="nothing to tell apart in stage 'short': score is the same for all"):
        analysis.importance(results)
    with pytest.raises(BadInput, match="unknown metric 'valid_acuracy'; did you mean 'valid_accuracy'"):
        analysis.importance(results, metric="valid_acuracy")
    with pytest.raises(BadInput, match="unknown stage"):
        analysis.importance(results, stage="shrt")
    with pytest.raises(BadInput, match="bins must be at least 1"):
        analysis.effects(results, bins=0)
    with pytest.raises(BadInput, match="resamples must be at least 1"):
        analysis.importance(results, resamples=0)
    with pytest.raises(BadInput, match="'drop' or 'last'"):
        analysis.importance(results, censored="keep")
    with pytest.raises(BadInput, match="of one run"):
        analysis.importance(analysis.load_many([run.path, results.path]))
    alike = new_run("alike")
    alike.stage("short", 1)
    for number in range(12):
        alike.distil("short", number, [0.01 * number], hash=f"{number:016x}")
    with pytest.raises(BadInput, match="no setting varies"):
        analysis.effects(analysis.load(alike.path))
