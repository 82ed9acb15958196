"""Recipes: read, resolved, written, read again; and one clear line for each mistake."""

import copy
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.prepared import Search
from orchestrator.reading import recipe_names
from orchestrator.recipe import Recipe, domains_in, resolved
from orchestrator.specs import DEFAULTS
from spaces.domains import contains, to_config
from spaces.errors import BadInput
from spaces.space import sample

TEACHER = {"space": "resnet", "arch": {"depth1": 1, "depth2": 1, "depth3": 1, "width": 8}, "random": True}
RAW: dict[str, Any] = {
    "name": "small",
    "task": {"dataset": "digits", "subset": 60},
    "teacher": TEACHER,
    "space": {"name": "resnet", "choices": {"width": [2, 4]}},
    "limits": {"params": 20_000},
    "stages": [
        {"name": "score", "trial": "score", "scores": ["params", {"snip": {}}], "trials": 4, "keep": 2},
        {"name": "short", "trial": "distill", "epochs": 3, "losses": {"cross_entropy": 0.1, "kd": 0.9}, "keep": 1},
        {"name": "final", "trial": "distill", "epochs": 6},
    ],
}


def raw(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(RAW), **changes}


def one_stage(**stage: Any) -> dict[str, Any]:
    return raw(stages=[{"name": "only", "trial": "distill", "epochs": 3, **stage}])


def reread(recipe: Recipe, tmp_path) -> Recipe:
    file = tmp_path / "again.yaml"
    file.write_text(recipe.to_yaml())
    return Recipe.load(file)


def mistake(raw_: Any) -> str:
    with pytest.raises(BadInput) as caught:
        Recipe.parse(raw_)
    text = str(caught.value)
    assert "\n" not in text
    return text


# Every recipe that comes with dux


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_survives_being_written(name, tmp_path):
    recipe = Recipe.load(name)
    assert recipe.name == name
    again = reread(recipe, tmp_path)
    assert again == recipe
    assert again.to_yaml() == recipe.to_yaml()


@pytest.mark.parametrize("name", [name for name in recipe_names() if Recipe.load(name).task.dataset == "digits"])
def test_a_recipe_whose_data_is_embedded_is_accepted(name):
    search = Search.prepare(Recipe.load(name))
    assert search.data.task.classes == 10
    assert search.teachers


# What is resolved


def test_stages_inherit_what_they_omit():
    own = {"losses": {"cross_entropy": 1.0}, "optimizer": {"learning_rate": 0.01}}
    stages = [
        {"name": "a", "trial": "distill", "epochs": 1, "keep": 2, **own},
        {"name": "b", "trial": "score", "scores": ["params"], "keep": 2},
        {"name": "c", "trial": "distill", "epochs": 1, "keep": 2, "batch_size": 16},
        {"name": "d", "trial": "distill", "epochs": 1, "optimizer": {"name": "adamw"}},
    ]
    a, b, c, d = Recipe.parse(raw(stages=stages)).stages
    assert (a.losses, a.optimizer, a.batch_size, a.augment) == (own["losses"], own["optimizer"], 64, {})
    assert b.losses is None
    assert (c.losses, c.optimizer, c.batch_size) == (own["losses"], own["optimizer"], 16)
    assert (d.losses, d.optimizer, d.batch_size) == (own["losses"], {"name": "adamw"}, 16)


def test_the_default_losses_depend_on_there_being_a_teacher():
    assert Recipe.parse(one_stage()).stages[0].losses == DEFAULTS["losses"]
    alone = one_stage()
    del alone["teacher"]
    assert Recipe.parse(alone).stages[0].losses == {"cross_entropy": 1.0}


def test_methods_and_scores_may_be_given_by_bare_name():
    stage = Recipe.parse(one_stage(sampler="tpe", scheduler={"name": "asha", "min_epochs": 1})).stages[0]
    assert (stage.sampler.name, stage.sampler.settings) == ("tpe", {})
    assert (stage.scheduler.name, stage.scheduler.settings) == ("asha", {"min_epochs": 1})
    assert Recipe.parse(raw()).stages[0].scores == {"params": {}, "snip": {}}


def test_domains_are_found_by_dotted_path_and_filled_in():
    kd = {"weight": {"uniform": [0.1, 0.9]}, "temperature": {"choice": [2, 4]}}
    stage = Recipe.parse(one_stage(losses={"kd": kd}, optimizer={"learning_rate": 0.1}, batch_size={"choice": [8, 16]}))
    settings_ = stage.stages[0].settings()
    found = domains_in(settings_)
    assert {path: to_config(domain) for path, domain in found.items()} == {
        "losses.kd.weight": {"uniform": [0.1, 0.9]},
        "losses.kd.temperature": {"choice": [2, 4]},
        "batch_size": {"choice": [8, 16]},
    }
    filled = resolved(settings_, {"losses.kd.weight": 0.5, "losses.kd.temperature": 2, "batch_size": 8})
    assert filled["losses"] == {"kd": {"weight": 0.5, "temperature": 2}}
    assert (filled["batch_size"], filled["optimizer"]) == (8, {"learning_rate": 0.1})
    assert settings_["losses"]["kd"] == kd  # left as it was


number = st.floats(0.001, 100, allow_nan=False)
value = number | st.integers(1, 99) | st.builds(lambda low, more: {"uniform": [low, low + more]}, number, number)
value |= st.lists(st.integers(1, 64), min_size=1, max_size=3, unique=True).map(lambda listed: {"choice": listed})
loss = st.dictionaries(st.sampled_from(["weight", "temperature", "power"]), value, min_size=1)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.sampled_from(["kd", "cross_entropy", "at"]), loss, min_size=1), st.integers(0, 2**31))
def test_any_losses_survive_being_written_and_filled_in(losses, seed):
    recipe = Recipe.parse(one_stage(losses=losses))
    assert Recipe.parse(yaml.safe_load(recipe.to_yaml())) == recipe
    stage = recipe.stages[0]
    domains = domains_in(stage.settings())
    params = sample(domains, np.random.default_rng(seed))
    assert all(contains(domain, params[path]) for path, domain in domains.items())
    assert domains_in(resolved(stage.settings(), params)) == {}


# --set


def test_values_are_set_by_dotted_path():
    given_ = {
        "stages.short.epochs": 5,
        "stages.2.epochs": 7,
        "stages.short.optimizer.learning_rate": 0.01,  # a new nested key
        "stages.short.losses.kd.temperature": 2,  # kd was a bare weight
        "teacher.seed": 3,
        "limits.flops": 1e6,
        "resources.cpu": 2,
    }
    recipe = Recipe.parse(raw()).overridden(given_)
    assert (recipe.stages[1].epochs, recipe.stages[2].epochs) == (5, 7)
    assert recipe.stages[1].optimizer == {"learning_rate": 0.01}
    assert recipe.stages[1].losses == {"cross_entropy": 0.1, "kd": {"weight": 0.9, "temperature": 2}}
    assert recipe.teacher is not None
    assert (recipe.teacher.seed, recipe.limits.given()) == (3, {"params": 20_000, "flops": 1e6})
    assert recipe.resources.cpu == 2


def test_what_is_set_reaches_the_stages_that_inherit_it():
    recipe = Recipe.load("quickstart", {"stages.short.batch_size": 32})
    assert [stage.batch_size for stage in recipe.stages] == [None, 32, 32]


@pytest.mark.parametrize(("path", "says"), [
    ("stages.shrt.epochs", "unknown stage 'shrt'; did you mean 'short'?"),
    ("stages.9.epochs", "unknown stage '9'"),
    ("stages.short.epocs", "did you mean 'epochs'?"),
    ("stages.short", "nothing to set at this path"),
    ("teecher.seed", "did you mean 'teacher'?"),
])  # fmt: skip
def test_a_path_that_leads_nowhere_is_refused(path, says):
    with pytest.raises(BadInput) as caught:
        Recipe.parse(raw()).overridden({path: 3})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


# Mistakes


@pytest.mark.parametrize(("changed", "says"), [
    (raw(sead=1), "unknown key 'sead'; did you mean 'seed'?"),
    (raw(task={"dataset": "a", "subsett": 3}), "recipe: task.subsett: unknown key 'subsett'; did you mean 'subset'?"),
    (raw(limits={"param": 3}), "did you mean 'params'?"),
    (one_stage(epocs=3), "recipe: stages.0.epocs: unknown key 'epocs'; did you mean 'epochs'?"),
    (raw(task={}), "recipe: task.dataset is missing"),
    (raw(seed="today"), "recipe: seed: input should be a valid integer"),
    (raw(limits={"params": -1}), "recipe: limits.params: input should be greater than 0, not -1"),
    (raw(stages=[]), "recipe: stages:"),
    (raw(stages={"name": "a"}), "recipe: stages: input should be a valid list"),
    (raw(stages=["short"]), "recipe: stages.0:"),
    (raw(task="digits"), "recipe: task:"),
    (raw(name="a/b"), "recipe: name:"),
    (one_stage(trial="train"), "'score' or 'distill'"),
    (one_stage(scores=["snip"]), "a distill stage takes no scores"),
    (raw(stages=[{"name": "s", "trial": "score"}]), "a score stage needs scores"),
    (raw(stages=[{"name": "s", "trial": "score", "scores": ["snip"], "epochs": 3}]), "a score stage takes no epochs"),
    (raw(stages=[{"name": "s", "trial": "score", "scores": [["snip"]]}]), "a score is a name, or a name with its"),
    (raw(stages=[{"name": "s", "trial": "score", "scores": ["snip", "nwot", {"snip": {}}]}]), "'snip' stands twice"),
    (raw(stages=[{"name": "s", "trial": "distill"}]), "a distill stage needs epochs"),
    (raw(stages=RAW["stages"][1:] + RAW["stages"][2:]), "final"),
])  # fmt: skip
def test_a_mistake_is_one_line(changed, says):
    assert says in mistake(changed)


def test_two_stages_of_one_name_are_refused():
    stages = [{**stage, "name": "same", "keep": 1} for stage in copy.deepcopy(RAW["stages"])]
    assert "two stages have one name: same, same, same" in mistake(raw(stages=stages))


def test_keep_is_needed_before_another_stage():
    stages = copy.deepcopy(RAW["stages"])
    del stages[1]["keep"]
    assert "stage 'short': keep" in mistake(raw(stages=stages))


@pytest.mark.parametrize(("text", "says"), [
    ("name: [", "cannot be read as YAML"),
    ("name: !!python/object/apply:os.system ['true']\n", "cannot be read as YAML"),
    ("- a\n- b\n", "a recipe is a mapping"),
    ("", "a recipe is a mapping"),
    ("just words", "a recipe is a mapping"),
    ("{1: 2}", "recipe: "),
    (b"\xff\xfe\x00\x80", "cannot be read as YAML"),
])  # fmt: skip
def test_a_file_that_is_no_recipe_is_refused(text, says, tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInput) as caught:
        Recipe.load(file)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("source", "near"), [("quickstat", "quickstart"), ("pbt-digit", "pbt-digits")])
def test_an_unknown_recipe_is_named_with_the_nearest(source, near):
    with pytest.raises(BadInput, match=f"did you mean '{near}'"):
        Recipe.load(source)


@pytest.mark.parametrize("source", ["nowhere/recipe.yaml", "", ".", "/"])
def test_a_path_without_a_recipe_is_refused(source):
    with pytest.raises(BadInput, match="unknown recipe"):
        Recipe.load(source)
