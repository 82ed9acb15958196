"""Students that a recipe gives, rivals of survivors, and spaces that a recipe takes from a file."""

import json
from pathlib import Path

import pytest

import spaces
from orchestrator.book import Proposal
from orchestrator.feasible import Feasible
from orchestrator.prepared import Search
from orchestrator.proposers import rivals_of
from orchestrator.recipe import Recipe
from orchestrator.run_directory import Run
from orchestrator.specs import Rivals
from spaces import BadInput, Task
from spaces.seeding import generator

SPACE = spaces.get("resnet").restrict({"depth3": [1], "width": [2, 3, 4]})
FEASIBLE = Feasible(SPACE, Task(1, 8, 10), {})
CELL = dict.fromkeys(["edge_0_1", "edge_0_2", "edge_1_2", "edge_0_3", "edge_1_3", "edge_2_3"], "none")
SMALL = {
    "name": "small",
    "task": {"dataset": "digits", "subset": 50},
    "space": {"name": "nasbench201", "options": {"channels": 2, "cells": 1}},
}
SCORE = {"name": "score", "trial": "score", "scores": ["params"]}
DISTILL = {"name": "final", "trial": "distill", "epochs": 1}


# Students that are given


def test_each_network_that_is_given_is_proposed_once():
    """Cells that differ only on edges that lead nowhere are one network."""
    archs = [CELL | {"edge_0_3": "skip_connect"}, CELL | {"edge_0_3": "skip_connect", "edge_0_1": "skip_connect"}]
    search = Search.prepare(Recipe.parse({**SMALL, "students": [archs[0], CELL, archs[1]], "stages": [SCORE]}))
    assert [student.arch for student in search.students] == [archs[0], CELL]
    proposer = search.proposer(search.recipe.stages[0], None)
    assert (proposer.total, proposer.learns) == (2, False)


def test_one_student_is_a_list_of_one():
    one = Recipe.parse({**SMALL, "student": CELL, "stages": [DISTILL]})
    assert one.given == Recipe.parse({**SMALL, "students": [CELL], "stages": [DISTILL]}).given == [CELL]


@pytest.mark.parametrize(("changes", "says"), [
    ({"student": CELL, "students": [CELL]}, "give either student or students"),
    ({"students": []}, "students"),
    ({"students": [CELL, {**CELL, "edge_0_1": "conv"}]}, "edge_0_1='conv' is not in"),
    ({"students": [CELL], "limits": {"params": 10}}, "is over the limits: params"),
    ({"stages": [DISTILL | {"trials": 1, "rivals": {"count": 2}}]}, "rivals stand beside the survivors"),
    ({"stages": [{**SCORE, "trials": 3, "keep": 1}, DISTILL | {"rivals": {"count": 2}, "trials": 1}]}, "no trials"),
    ({"stages": [{**SCORE, "rivals": {"count": 2}}]}, "a score stage takes no rivals"),
    ({"stages": [{**SCORE, "trials": 3, "keep": 1}, DISTILL | {"rivals": {"count": 2, "wihin": 1}}]}, "mean 'within'?"),
    ({"stages": [DISTILL | {"trials": 1, "teacher": "random"}]}, "a distill stage takes no teacher"),
    ({"stages": [{**SCORE, "trials": 1, "teacher": "random"}]}, "teacher: random needs a teacher"),
    ({"space": {"name": "resnet", "file": "space.py"}}, "either a name or a file"),
    ({"space": {}}, "either a name or a file"),
])  # fmt: skip
def test_what_contradicts_itself_is_refused(changes, says):
    with pytest.raises(BadInput) as caught:
        Search.prepare(Recipe.parse({**SMALL, "stages": [{**SCORE, "trials": 3}], **changes}))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


# Rivals


def survivor(arch: dict, feasible: Feasible = FEASIBLE) -> Proposal:
    return Proposal(arch, feasible.space.hash(arch), feasible.cost(arch))


@pytest.mark.parametrize("within", [0.05, 0.3])
def test_rivals_are_of_the_best_survivors_size_and_no_survivors(within):
    survivors = [survivor(arch) for arch in list(SPACE.all())[10:13]]
    for seed in range(5):
        found = rivals_of(survivors, FEASIBLE, Rivals(count=4, within=within), generator(seed))
        names = [rival.hash for rival in found]
        assert 1 <= len(set(names)) == len(names) <= 4
        assert not set(names) & {one.hash for one in survivors}
        for rival in found:
            assert rival.origin == "rival"
            assert abs(rival.cost["params"] / survivors[0].cost["params"] - 1) <= within


def test_rivals_depend_on_the_seed_alone():
    survivors = [survivor(next(SPACE.all()))]
    drawn = [[r.hash for r in rivals_of(survivors, FEASIBLE, Rivals(count=3, within=0.5), generator(seed))]
             for seed in (0, 0, 1)]  # fmt: skip
    assert drawn[0] == drawn[1] != drawn[2]


def test_all_rivals_there_are_are_found_and_none_is_said():
    few = Feasible(SPACE.restrict({"depth1": [1, 2], "depth2": [1], "width": [2, 4]}), Task(1, 8, 10), {})
    archs = list(few.space.all())
    best = survivor(archs[0], few)
    close = [few.space.hash(a) for a in archs[1:] if abs(few.cost(a)["params"] / best.cost["params"] - 1) <= 0.5]
    assert len(close) == 1
    found = rivals_of([best], few, Rivals(count=4, within=0.5), generator(0))
    assert [rival.hash for rival in found] == close
    with pytest.raises(BadInput, match=r"no other student within the limits has .* the nearest is \d+\.\d% off"):
        rivals_of([best], few, Rivals(count=4, within=0.001), generator(0))


def test_who_is_a_rival_changes_nothing_but_the_name():
    one = survivor(next(SPACE.all()))
    assert Proposal(one.arch, one.hash, one.cost, origin="rival").key == one.key


# A space of one's own

OWN = """
from ray import tune
from torch import nn

PARAM_SPACE = {"width": tune.choice([2, 3])}


def build(arch, task):
    maps = nn.Sequential(nn.Conv2d(task.channels, arch["width"], 3, padding=1), nn.ReLU())
    return nn.Sequential(maps, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(arch["width"], task.classes))
"""
MINE = {**SMALL, "space": {"file": "mine.py"}, "stages": [{**SCORE, "trials": 2}]}


def test_a_space_lies_beside_its_recipe_or_else_where_one_works(tmp_path, monkeypatch):
    """A recipe in JSON is a recipe in YAML."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "mine.json").write_text(json.dumps(MINE))
    with pytest.raises(BadInput, match=r"'mine.py' is neither beside the recipe nor in the working directory"):
        Recipe.load(tmp_path / "mine.json")
    Path("mine.py").write_text(OWN)
    assert Recipe.load(tmp_path / "mine.json").space.file == str(tmp_path / "here" / "mine.py")
    (tmp_path / "mine.py").write_text(OWN)
    assert Recipe.load(tmp_path / "mine.json").space.file == str(tmp_path / "mine.py")


def test_a_run_has_a_copy_of_its_space(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(OWN)
    search = Search.prepare(Recipe.parse(MINE))
    Run.create(search.recipe, tmp_path / "runs", "a").close()
    Path("mine.py").unlink()
    (tmp_path / "runs").rename(tmp_path / "moved")
    again = Search.prepare(Recipe.load(tmp_path / "moved" / "a" / "recipe.yaml"))
    assert again.space.fingerprint() == search.space.fingerprint()
    assert again.space.hash({"width": 2}) == search.space.hash({"width": 2})


@pytest.mark.parametrize(("text", "says"), [
    ("PARAM_SPACE = {", "mine.py"),
    (OWN.replace("return nn", "raise nn"), "build fails"),
    (OWN.replace("tune.choice([2, 3])", "[2, 3]"), "write tune.choice([2, 3])"),
])  # fmt: skip
def test_a_space_that_does_not_work_is_refused_before_anything_is_made(tmp_path, monkeypatch, text, says):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(text)
    with pytest.raises(BadInput) as caught:
        Search.prepare(Recipe.parse(MINE))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
