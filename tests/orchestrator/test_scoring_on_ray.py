"""On a real, local Ray: students of one's own space, scored by themselves, and distilled beside rivals."""

import json
import shutil
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import save_file

import analysis
import orchestrator
import spaces
from orchestrator import cli, launch
from orchestrator.errors import RunFailed
from orchestrator.prepared import Search
from orchestrator.recipe import Recipe
from orchestrator.run_directory import Run
from spaces import Task

pytestmark = [pytest.mark.ray, pytest.mark.timeout(480)]

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
FAULTY = OWN.replace('["relu", "gelu"]', '["gelu"]').replace(
    "    act =", '    if arch == {"width": 3, "act": "gelu", "last": 4} and "DUX_TEST_FAULT" in os.environ:\n'
    '        raise ValueError("no such kernel")\n    act ='
).replace("from ray", "import os\n\nfrom ray", 1)  # fmt: skip
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
        {
            "name": "plain",
            "trial": "distill",
            "epochs": 2,
            "rivals": {"count": 2, "within": 0.5},
            "pareto": ["teacher_guidance", "params"],
        },
    ],
}
GIVEN = [{"width": w, "act": act, "last": last} for w, act, last in product([4, 3, 2], ["gelu", "relu"], [5, 4])]
CURVE = ["stage", "number", "epoch", "objective", "train_loss"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("own")
    (made / "own.py").write_text(OWN)
    (made / "own.json").write_text(json.dumps(RECIPE))
    (made / "faulty.py").write_text(FAULTY)
    (made / "faulty.json").write_text(json.dumps({**RECIPE, "space": {"file": "faulty.py"}}))
    return made


@pytest.fixture(scope="module")
def scored(ray_local: None, folder: Path) -> analysis.Results:
    """Every student, scored from two initialisations."""
    where = {"storage": folder / "runs", "name": "scored", "output": folder / "table.parquet"}
    return orchestrator.score(folder / "own.json", every=True, progress=False, **where)


@pytest.fixture(scope="module")
def searched(ray_local: None, folder: Path) -> analysis.Results:
    """A search among the same students, which its recipe lists."""
    recipe = Recipe.load(folder / "own.json", {"students": GIVEN})
    return orchestrator.run(recipe, storage=folder / "runs", name="searched", progress=False)


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


def test_a_search_among_given_students_takes_just_these(searched) -> None:
    first = searched.trials[searched.trials.stage == "score"]
    assert [json.loads(arch) for arch in first["arch"]] == [arch for arch in GIVEN for _ in range(2)]
    assert (searched.trials["status"] == "completed").all()


def test_a_metric_of_a_trade_off_is_measured_though_the_objective_does_not_name_it(searched) -> None:
    final = searched.trials[searched.trials.stage == "plain"]
    assert final["teacher_guidance"].notna().all()
    assert (final["objective"] == final["valid_accuracy"]).all()


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
    """Edited; the run was killed in the middle of its distillations."""
    whole = (searched.path / "ledger.jsonl").read_text().splitlines(keepends=True)
    assert {path.name for path in (searched.path / "best").iterdir()} >= {"own.py", "student.json"}
    first = next(i for i, line in enumerate(whole) if '"stage":"plain"' in line and '"report"' in line)
    run = tmp_path / "cut"
    shutil.copytree(searched.path, run)
    shutil.rmtree(run / "best")
    (run / "ledger.jsonl").write_text("".join(whole[: first + 1]))
    (folder / "own.py").write_text("raise SystemExit")
    try:
        again = orchestrator.resume(run, progress=False)
    finally:
        (folder / "own.py").write_text(OWN)
    pd.testing.assert_frame_equal(again.epochs[CURVE], searched.epochs[CURVE], check_exact=True)
    pd.testing.assert_series_equal(again.trials["origin"], searched.trials["origin"])
    assert (run / "best" / "own.py").read_text() == OWN


def test_a_student_that_cannot_be_built_is_told_and_the_others_are_scored(
    ray_local, folder, capsys, monkeypatch
) -> None:
    """None of these has a ReLU, so that in the end their one score has no value."""
    monkeypatch.setenv("DUX_TEST_FAULT", "1")
    where = {"storage": folder / "runs", "name": "faulty", "output": folder / "nwot.parquet"}
    results = orchestrator.score(folder / "faulty.json", every=True, scores=["nwot"], seeds=1, progress=False, **where)
    failed = results.trials[results.trials["status"] == "failed"]
    [reason] = failed["reason"]
    assert "build fails for width=3, act=gelu, last=4: ValueError: no such kernel" in reason
    run = folder / "runs" / "faulty"
    for arguments, code in ((["resume", run], 0), (["rank", run], 0), (["rank", run / "scores.parquet"], 2)):
        monkeypatch.setattr("sys.argv", ["dux", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert (ended.value.code or 0) == code
        if code:
            assert "holds no value of any score; nwot: NotComputable: " in said.err
            assert said.err.count("\n") == 1
        else:
            assert "nwot: no value for 6 of 6: NotComputable: " in said.out
    assert len(pd.read_parquet(run / "scores.parquet")) == 6  # one of them with its reason


def test_a_teacher_that_vanishes_before_it_is_loaded_is_one_line(ray_local, tmp_path) -> None:
    arch = RECIPE["teacher"]["arch"]
    weights = tmp_path / "teacher.safetensors"
    save_file(spaces.get("resnet").build(arch, Task(1, 8, 10)).state_dict(), weights)
    teacher = {"space": "resnet", "arch": arch, "weights": str(weights)}
    space = {"name": "resnet", "choices": {"width": [2]}}
    recipe = Recipe.parse({**RECIPE, "teacher": teacher, "space": space})
    search = Search.prepare(recipe)
    weights.unlink()
    with Run.create(recipe, tmp_path, "a") as run, pytest.raises(RunFailed) as caught:
        launch._execute(run, search, False)
    assert "teacher.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)
