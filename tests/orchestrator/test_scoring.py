"""Scoring by itself: how a recipe is reduced to it, which students it takes, and what it refuses."""

import sys
from pathlib import Path

import pytest

from orchestrator import cli, launch
from orchestrator.errors import RunFailed
from orchestrator.recipe import Recipe, applicable
from orchestrator.scoring import reduced
from spaces import BadInput
from trainables.scores import SCORES

ARCH = {"depth1": 1, "depth2": 3, "depth3": 1, "width": 4}


@pytest.fixture(scope="module")
def quickstart() -> Recipe:
    return Recipe.load("quickstart")


def test_a_recipe_is_reduced_to_its_first_score_stage(quickstart):
    made = reduced(quickstart)
    [stage] = made.stages
    first = quickstart.stages[0]
    assert stage == first.model_copy(update={"keep": None})
    assert (made.task, made.space, made.limits, made.seed) == (
        quickstart.task,
        quickstart.space,
        quickstart.limits,
        quickstart.seed,
    )
    assert made.teacher == quickstart.teacher  # diswot reads it
    assert Recipe.parse(made.plain()) == made


def test_every_student_is_a_grid_without_an_end(quickstart):
    [stage] = reduced(quickstart, every=True, seeds=3).stages
    assert (stage.sampler.name, stage.trials, stage.seeds) == ("grid", None, 3)


def test_students_that_are_given_are_the_candidates(quickstart):
    made = reduced(quickstart, archs=[ARCH])
    assert made.given == [ARCH]
    assert made.stages[0].trials is None


def test_other_scores_take_the_objective_along_where_it_fits(quickstart):
    [stage] = reduced(quickstart, scores=["nwot", "diswot", "params"]).stages
    assert stage.objective == quickstart.stages[0].objective
    [stage] = reduced(quickstart, scores=["snip", "synflow"]).stages
    assert stage.objective is None
    assert list(stage.scores) == ["snip", "synflow"]


def test_all_scores_keep_the_settings_and_the_objective_of_the_recipe():
    variant = SCORES["diswot"].settings["variant"][-1]
    given = {"diswot": {"variant": variant}, "nwot": {}, "params": {}}
    recipe = Recipe.load("quickstart", {"stages.score.scores": given})
    [stage] = reduced(recipe, scores=["all"]).stages
    assert list(stage.scores) == list(SCORES)
    assert stage.scores["diswot"] == {"variant": variant}
    assert stage.objective == recipe.stages[0].objective
    assert set(reduced(Recipe.load("tgsa"), every=True, scores=["all"]).stages[0].scores) == set(SCORES)


def test_a_trade_off_with_a_cost_stays():
    recipe = Recipe.load("quickstart", {"stages.score.pareto": ["nwot", "bytes"]})
    assert reduced(recipe, scores=["nwot"]).stages[0].pareto == ["nwot", "bytes"]
    assert reduced(recipe, scores=["snip"]).stages[0].pareto == []


def test_a_teacher_that_no_score_reads_is_left_out(quickstart):
    assert reduced(quickstart, scores=["snip"]).teacher is None


def test_a_teacher_that_is_read_as_initialised_is_not_trained():
    recipe = Recipe.load("diswot")
    made = reduced(recipe)
    assert recipe.teacher.train_epochs == 20
    assert (made.teacher.random, made.teacher.train_epochs) == (True, 0)
    assert made.teacher.arch == recipe.teacher.arch


@pytest.mark.parametrize("scores", [["diswot"], ["snip"]])
def test_teachers_that_no_score_reads_are_left_out(quickstart, scores):
    recipe = Recipe.parse({**quickstart.plain(), "more_teachers": [quickstart.plain()["teacher"]]})
    assert len(recipe.teachers) == 2
    assert list(reduced(recipe, scores=scores).teachers) == (["teacher"] if scores == ["diswot"] else [])


def test_a_recipe_without_scores_takes_every_score_that_applies():
    [stage] = reduced(Recipe.load("pbt-digits"), trials=5).stages
    assert set(stage.scores) == set(SCORES)
    untaught = [name for name, entry in SCORES.items() if not entry.needs_teacher]
    assert applicable(False) == untaught != applicable(True) == list(SCORES)
    raw = {"name": "r", "task": {"dataset": "digits"}, "space": {"name": "resnet"}}
    score = {"name": "score", "trial": "score", "scores": "all", "trials": 2}
    assert list(Recipe.parse({**raw, "stages": [score]}).stages[0].scores) == untaught


MISTAKES = [
    ("--all --arch width=4", "--all scores every student, --arch those that are given: take one of them"),
    (
        "--all --set space.choices.width={uniform:[1,2]}",
        "--all scores at most 1,000,000 students, and the space has inf",
    ),
    ("--arch depth1=1,depth2=3,depth3=1,width=400", "width=400 is not in"),
    ("--arch depth1=1", "the architecture lacks 'depth2'"),
    ("--arch widht=4", "unknown choice of space 'resnet' 'widht'; did you mean 'width'?"),
    ("--arch width", "--arch takes NAME=VALUE, not 'width'"),
    ("--arch depth1=4,depth2=4,depth3=4,width=8", "is over the limits: params"),
    ("--scores snp", "unknown score 'snp'; did you mean 'snip'?"),
    ("--scores diswot --set teacher=null", "score 'diswot' needs a teacher; the recipe has none"),
    ("--output nowhere/scores.parquet", "nowhere/scores.parquet can be no file"),
    ("--output .", "can be no file"),
    ("--output /proc/scores.parquet", "/proc/scores.parquet can be no file: give a name in a folder"),
    ("--scores=", "--scores takes names of scores, as in snip,nwot, or all; none is given"),
    ("--scores snip,nwot,snip", "score 'snip' stands twice"),
    ("--arch width=3,width=4", "--arch width=3,width=4: 'width' stands twice"),
    ("--all --trials 7", "--trials 7 does not go with --all"),
    ("--arch width=3 --trials 1", "--trials 1 does not go with --arch"),
    ("--set stages.score.ensemble=[grad_norm]", "unknown score of the ensemble 'grad_norm'"),
    ("--set stages.score.objective={ensemble.votes:1}", "did you mean 'ensemble.vote'?"),
]


@pytest.mark.parametrize(("line", "says"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_one_line_and_leaves_nothing(monkeypatch, capsys, tmp_path, line, says):
    monkeypatch.chdir(tmp_path)
    arguments = [part.replace(":", ": ") for part in line.split()]  # YAML wants a space there
    monkeypatch.setattr(sys, "argv", ["dux", "score", "quickstart", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out) == (2, "")
    assert printed.err.startswith("dux: ")
    assert printed.err.count("\n") == 1
    assert says in printed.err
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_cannot_be_copied_in_the_end_is_named(tmp_path):
    (tmp_path / "scores.parquet").write_bytes(b"table")
    with pytest.raises(RunFailed, match=f"has ended well, and its table is {tmp_path}/scores.parquet"):
        launch._copy(tmp_path / "scores.parquet", Path("/proc/scores.parquet"))


def test_a_recipe_without_a_score_stage_must_be_told_which_students():
    with pytest.raises(BadInput, match="no score stage: say which students, by --all, --arch or --trials"):
        reduced(Recipe.load("tgsa"))
