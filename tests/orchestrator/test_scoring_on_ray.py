"""On a real, local Ray: students of one's own space, scored by themselves, and distilled beside rivals."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

import analysis
import orchestrator
from orchestrator import cli
from orchestrator.recipe import Recipe

pytestmark = [pytest.mark.ray, pytest.mark.timeout(280)]

OWN = """
from ray import tune
from torch import nn

PARAM_SPACE = {"width": tune.choice([2, 3, 4]), "act": tune.choice(["relu", "gelu"]), "last": tune.choice([4, 5])}


def build(arch, task):
    act = nn.ReLU if arch["act"] == "relu" else nn.GELU
    maps = [nn.Conv2d(task.channels, arch["width"], 3, padding=1), nn.BatchNorm2d(arch["width"]), act()]
    maps += [nn.Conv2d(arch["width"], arch["last"], 3, padding=1), nn.BatchNorm2d(arch["last"]), act()]
    head = nn.Linear(arch["last"], task.classes)
    return nn.Sequential(nn.Sequential(*maps), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
"""
RECIPE = {
    "name": "own",
    "task": {"dataset": "digits", "subset": 60},
    "teacher": {"space": "resnet", "arch": {"depth1": 1, "depth2": 1, "depth3": 1, "width": 4}, "random": True},
    "space": {"file": "own.py"},
    "workers": 1,
    "stages": [
        {
            "name": "score",
            "trial": "score",
            "scores": ["snip", "nwot", "params"],
            "objective": {"ensemble.vote": 1, "ensemble.rank": 1, "params": 1},
            "teacher": "random",
            "sampler": "grid",
            "seeds": 2,
            "keep": 1,
        },
        {"name": "plain", "trial": "distill", "epochs": 2, "rivals": {"count": 2, "within": 0.5}},
    ],
}
CURVE = ["stage", "number", "epoch", "objective", "train_loss"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("own")
    (made / "own.py").write_text(OWN)
    (made / "own.json").write_text(json.dumps(RECIPE))
    return made


@pytest.fixture(scope="module")
def scored(ray_local: None, folder: Path) -> analysis.Results:
    """Every student, scored from two initialisations."""
    where = {"storage": folder / "runs", "name": "scored", "output": folder / "table.parquet"}
    return orchestrator.score(folder / "own.json", every=True, progress=False, **where)


@pytest.fixture(scope="module")
def searched(ray_local: None, folder: Path) -> analysis.Results:
    """A search in the same space."""
    return orchestrator.run(folder / "own.json", storage=folder / "runs", name="searched", progress=False)


def test_every_student_has_a_row_for_each_seed(scored: analysis.Results, folder: Path) -> None:
    table = pd.read_parquet(scored.path / "scores.parquet")
    assert len(table) == 3 * 2 * 2 * 2
    assert set(table.groupby("hash")["seed"].apply(sorted).map(tuple)) == {(0, 1)}
    assert (table["status"] == "completed").all()
    pd.testing.assert_frame_equal(table, scored.trials)
    assert (folder / "table.parquet").read_bytes() == (scored.path / "scores.parquet").read_bytes()
    assert scored.teacher == {}  # no score reads it


def test_all_students_see_one_batch_and_the_seeds_of_one_list(scored: analysis.Results) -> None:
    """Values depend on architecture and seed alone: in the search, proposed in another order, they are the same."""
    wide = scored.trials.groupby("hash")["snip"].agg(["mean", "std"])
    assert (wide["std"] > 0).all()
    assert wide["mean"].nunique() == 12


def test_a_score_that_cannot_be_computed_is_missing_with_its_reason(scored: analysis.Results) -> None:
    table = pd.read_parquet(scored.path / "scores.parquet")
    gelu = table["arch.act"] == "gelu"
    assert table.loc[gelu, "nwot"].isna().all()
    assert table.loc[~gelu, "nwot"].notna().all()
    assert all("ReLU" in json.loads(reasons)["nwot"] for reasons in table.loc[gelu, "reasons"])
    assert table["snip"].notna().all()


def test_means_over_seeds_are_what_the_search_goes_by(scored: analysis.Results, searched: analysis.Results) -> None:
    """The run's own choice, its ranked table and the ensemble of the means agree."""
    means = scored.trials.groupby("hash")[["snip", "nwot", "params"]].mean().astype(float)
    means = means.join(analysis.ensemble(means))
    value = analysis.combine_ranks(means, RECIPE["stages"][0]["objective"])
    ranked = analysis.rank_scores(scored).set_index("hash")
    assert ranked["score"].to_dict() == pytest.approx(value.to_dict())
    assert {"snip_std", "nwot_std"} <= set(ranked)
    survivor = searched.trials[(searched.trials.stage == "plain") & (searched.trials.origin == "search")]
    assert list(survivor["hash"]) == [value.idxmax()]


def test_the_table_is_ranked_and_shown(scored, folder, capsys, monkeypatch) -> None:
    for arguments in (["rank", folder / "table.parquet", "--by", "snip=1,nwot=1", "--top", "3"], ["rank", scored.path]):
        monkeypatch.setattr("sys.argv", ["dux", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code in (0, None)
        out = capsys.readouterr().out
        assert "snip" in out
        assert "±" in out
    cli._present(scored)
    out = capsys.readouterr().out
    assert "no value for" in out
    assert "scores.parquet" in out
    assert "the best 10 of 12 students" in out


def test_rivals_are_distilled_beside_the_survivor_and_told_from_it(searched, capsys) -> None:
    final = searched.trials[searched.trials.stage == "plain"]
    assert sorted(final["origin"]) == ["rival", "rival", "search"]
    assert final["hash"].nunique() == 3
    best = float(final.loc[final["origin"] == "search", "params"].iloc[0])
    assert (abs(final["params"] / best - 1) <= 0.5).all()
    table = analysis.rank(searched)
    assert sorted(table["origin"]) == ["rival", "rival", "search"]
    cli._present(searched)
    out = capsys.readouterr().out
    assert "from" in out
    assert out.count("rival") == 2


def test_a_run_goes_on_without_the_file_of_its_space(searched, folder, tmp_path) -> None:
    """Edited and deleted; the run was killed in the middle of each of its stages."""
    whole = (searched.path / "ledger.jsonl").read_text().splitlines(keepends=True)
    assert {path.name for path in (searched.path / "best").iterdir()} >= {"own.py", "student.json"}
    first = next(i for i, line in enumerate(whole) if '"stage":"plain"' in line and '"report"' in line)
    (folder / "own.py").write_text("raise SystemExit")
    try:
        for name, cut in {"scoring": 20, "distilling": first + 1}.items():
            run = tmp_path / name
            shutil.copytree(searched.path, run)
            shutil.rmtree(run / "best")
            (run / "ledger.jsonl").write_text("".join(whole[:cut]))
            again = orchestrator.resume(run, progress=False)
            pd.testing.assert_frame_equal(again.epochs[CURVE], searched.epochs[CURVE], check_exact=True)
            pd.testing.assert_series_equal(again.trials["origin"], searched.trials["origin"])
            assert (run / "best" / "own.py").read_text() == OWN
    finally:
        (folder / "own.py").write_text(OWN)


def test_a_search_by_its_own_students_distils_just_these(ray_local: None, folder: Path) -> None:
    given = [{"width": 2, "act": "relu", "last": 4}, {"width": 4, "act": "gelu", "last": 5}]
    stage = {"name": "only", "trial": "distill", "epochs": 1}
    recipe = Recipe.load(folder / "own.json", {"students": given, "stages": [stage]})
    results = orchestrator.run(recipe, storage=folder / "runs", name="given", progress=False)
    assert [json.loads(arch) for arch in results.trials["arch"]] == given
    assert (results.trials["status"] == "completed").all()
