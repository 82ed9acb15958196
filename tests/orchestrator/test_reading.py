"""Recipes that extend others: what is taken over, what wins, what is refused; and those of the regimes."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.prepared import Search
from orchestrator.reading import RECIPES, _merged, override, read, recipe_names
from orchestrator.recipe import Recipe
from spaces.errors import BadInput
from trainables.regimes import REGIMES

OF_REGIMES = sorted(path.stem for path in (RECIPES / "regimes").glob("*.yaml"))
BASE: dict[str, Any] = {
    "name": "base",
    "task": {"dataset": "digits", "subset": 60},
    "space": {"name": "resnet", "choices": {"width": [2, 4]}},
    "limits": {"params": 20_000},
    "stages": [
        {"name": "score", "trial": "score", "scores": ["params", "snip"], "trials": 4, "keep": 2},
        {"name": "final", "trial": "distill", "epochs": 3, "losses": {"cross_entropy": 1.0}},
    ],
}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """Write recipes, each to a file of its name; the path of the last one."""

    def written(**recipes: Any) -> Path:
        for name, raw in recipes.items():
            text = raw if isinstance(raw, str) else yaml.safe_dump(raw)
            (tmp_path / f"{name}.yaml").write_text(text)
        return tmp_path / f"{[*recipes][-1]}.yaml"

    return written


def extending(**keys: Any) -> dict[str, Any]:
    return {"extends": "base.yaml", **keys}


def refusal(source: Path) -> str:
    with pytest.raises(BadInput) as caught:
        read(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What is taken over


def test_a_recipe_that_says_nothing_more_is_the_other(write: Any) -> None:
    assert read(write(base=BASE, own=extending())) == BASE


def test_own_keys_win_and_mappings_are_merged(write: Any) -> None:
    found = read(write(base=BASE, own=extending(name="own", seed=3, task={"subset": 30, "valid": 20})))
    assert found == {**BASE, "name": "own", "seed": 3, "task": {"dataset": "digits", "subset": 30, "valid": 20}}


UNIFORM, LOG = {"uniform": [0, 1]}, {"loguniform": [0.1, 1]}


@pytest.mark.parametrize(("key", "before", "own", "found"), [
    ("optimizer", {"learning_rate": UNIFORM, "momentum": 0.5}, {"learning_rate": LOG},
     {"learning_rate": LOG, "momentum": 0.5}),
    ("batch_size", {"choice": [16, 32]}, {"randint": [8, 64]}, {"randint": [8, 64]}),
    ("losses", {"kd": {"weight": 0.5, "temperature": 2}}, {"kd": UNIFORM}, {"kd": UNIFORM}),
    ("losses", {"kd": UNIFORM}, {"kd": {"temperature": 2}}, {"kd": {"temperature": 2}}),
    ("regime", {"choice": ["dml", "offline"]}, {"name": "dml"}, {"name": "dml"}),
    ("regime", {"name": "dml", "peers": 3}, {"name": "snapshot"}, {"name": "snapshot"}),
    ("regime", {"name": "dml", "peers": 3}, {"name": "dml", "peers": 2}, {"name": "dml", "peers": 2}),
    ("regime", {"name": "kdcl", "peers": 3}, {"distort": False}, {"name": "kdcl", "peers": 3, "distort": False}),
    ("regime", "dml", {"peers": 3}, {"name": "dml", "peers": 3}),
    ("scheduler", {"name": "asha", "min_epochs": 2}, "none", "none"),
])  # fmt: skip
def test_neither_domains_nor_methods_are_mixed(key: str, before: Any, own: Any, found: Any, write: Any) -> None:
    stage = {"name": "d", "trial": "distill", "epochs": 3}
    path = write(base={**BASE, "stages": [{**stage, key: before}]}, own=extending(stages=[{"name": "d", key: own}]))
    assert read(path)["stages"] == [{**stage, key: found}]


def test_lists_are_replaced_and_so_is_what_is_set_to_nothing(write: Any) -> None:
    own = extending(space={"choices": {"width": [8]}}, limits=None, stages=[{"name": "score", "scores": ["nwot"]}])
    found = read(write(base=BASE, own=own))
    assert found["space"] == {"name": "resnet", "choices": {"width": [8]}}
    assert found["limits"] is None
    assert found["stages"][0] == {**BASE["stages"][0], "scores": ["nwot"]}


def test_stages_are_merged_by_name_and_keep_their_order(write: Any) -> None:
    own = extending(
        stages=[
            {"name": "last", "trial": "distill", "epochs": 9},
            {"name": "final", "epochs": 5, "losses": {"kd": 0.9}, "keep": 1},
        ]
    )
    found = read(write(base=BASE, own=own))["stages"]
    assert [stage["name"] for stage in found] == ["score", "final", "last"]
    assert found[0] == BASE["stages"][0]
    assert found[1] == {**BASE["stages"][1], "epochs": 5, "losses": {"cross_entropy": 1.0, "kd": 0.9}, "keep": 1}


def test_stages_without_a_name_stand_beside_the_others(write: Any) -> None:
    """They are refused when the recipe is parsed, which says so; reading loses none of them."""
    found = read(write(base=BASE, own=extending(stages=[{"epochs": 5}, "text"])))["stages"]
    assert found == [*BASE["stages"], {"epochs": 5}, "text"]
    assert read(write(base={**BASE, "stages": "none"}, own=extending(stages=[{"name": "a"}])))["stages"] == [
        {"name": "a"}
    ]


def test_a_chain_is_read_to_its_end_and_the_nearest_wins(write: Any) -> None:
    path = write(base=BASE, middle=extending(seed=1, name="middle"), own={"extends": "middle.yaml", "seed": 2})
    found = read(path)
    assert (found["name"], found["seed"], found["task"]) == ("middle", 2, BASE["task"])
    assert "extends" not in found


def test_a_recipe_of_dux_is_extended_by_name(write: Any) -> None:
    found = Recipe.load(write(own={"name": "own", "extends": "quickstart", "stages": [{"name": "short", "epochs": 4}]}))
    quick = Recipe.load("quickstart")
    assert (found.name, found.stages[1].epochs) == ("own", 4)
    assert [stage.name for stage in found.stages] == [stage.name for stage in quick.stages]
    assert (found.teacher, found.stages[0]) == (quick.teacher, quick.stages[0])


def test_a_file_is_looked_for_beside_the_recipe_then_in_the_working_directory(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "own.yaml").write_text("extends: base.yaml")
    write(base=BASE)
    assert "unknown recipe 'base.yaml'" in refusal(tmp_path / "beside" / "own.yaml")
    monkeypatch.chdir(tmp_path)
    assert read("beside/own.yaml") == BASE
    (tmp_path / "beside" / "base.yaml").write_text("name: nearer")
    assert read("beside/own.yaml") == {"name": "nearer"}


def test_the_space_of_a_base_is_found_beside_the_base(write: Any, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "space.py").write_text("")
    (tmp_path / "there" / "base.yaml").write_text(yaml.safe_dump({"space": {"file": "space.py"}}))
    found = read(write(own={"extends": "there/base.yaml", "space": {"choices": {"width": [2]}}}))
    assert found["space"] == {"file": str(tmp_path / "there" / "space.py"), "choices": {"width": [2]}}


keys = st.sampled_from(["a", "b", "c", "stages"])
plain = st.integers() | st.text(max_size=3) | st.none() | st.lists(st.integers(), max_size=2)
mappings = st.dictionaries(keys, plain | st.dictionaries(keys, plain, max_size=3), max_size=4)


@settings(max_examples=60, deadline=None)
@given(mappings, mappings)
def test_merging_changes_neither_and_takes_from_both(base: dict[str, Any], own: dict[str, Any]) -> None:
    before = copy.deepcopy((base, own))
    merged = _merged(base, own)
    assert (base, own) == before
    assert merged.keys() == base.keys() | own.keys()
    assert _merged({}, own) == own
    assert _merged(base, {}) == base
    for key, value in own.items():
        if not isinstance(value, dict | list):
            assert merged[key] == value
    if "stages" not in repr((base, own)):  # stages without a name stand beside each other
        assert _merged(merged, own) == merged  # saying it twice changes nothing


# --set on top


def test_what_is_set_wins_over_what_is_extended(write: Any) -> None:
    path = write(base=BASE, own=extending(name="own", stages=[{"name": "final", "epochs": 5}]))
    found = Recipe.load(path, {"stages.final.epochs": 7, "limits.flops": 1e6, "stages.0.trials": 9})
    assert (found.stages[1].epochs, found.stages[0].trials) == (7, 9)
    assert found.limits.given() == {"params": 20_000, "flops": 1e6}


@pytest.mark.parametrize(("dotted", "value", "at", "found"), [
    ("seed", 3, "seed", 3),
    ("task.valid", 20, "task", {"dataset": "digits", "subset": 60, "valid": 20}),
    ("teacher.arch.width", 8, "teacher", {"arch": {"width": 8}}),  # nothing was there
    ("name.first", 8, "name", {"first": 8}),  # text gives way
])  # fmt: skip
def test_a_path_is_set_through_mappings(dotted: str, value: Any, at: str, found: Any) -> None:
    raw = copy.deepcopy(BASE)
    override(raw, dotted, value)
    assert raw[at] == found


def test_a_weight_becomes_a_mapping_where_a_setting_of_its_loss_is_set() -> None:
    raw = copy.deepcopy(BASE)
    override(raw, "stages.final.losses.cross_entropy.label_smoothing", 0.1)
    assert raw["stages"][1]["losses"] == {"cross_entropy": {"weight": 1.0, "label_smoothing": 0.1}}


@pytest.mark.parametrize("key", ["regime", "sampler", "scheduler"])
def test_a_method_by_its_bare_name_keeps_it_where_a_setting_is_set(key: str) -> None:
    raw = {"stages": [{"name": "d", key: "some"}]}
    override(raw, "stages.d." + key + ".peers", 3)
    assert raw == {"stages": [{"name": "d", key: {"name": "some", "peers": 3}}]}
    override(raw, "stages.d." + key + ".name", "other")
    assert raw["stages"][0][key] == {"name": "other", "peers": 3}


# What is refused


def test_recipes_that_extend_each_other_are_named_in_order(write: Any) -> None:
    path = write(base=extending(), own=extending(name="own"))
    assert "extends itself: own.yaml -> base.yaml -> base.yaml" in refusal(path)
    path = write(a={"extends": "c.yaml"}, b={"extends": "a.yaml"}, c={"extends": "b.yaml"})
    assert "extends itself: c.yaml -> b.yaml -> a.yaml -> c.yaml" in refusal(path)


@pytest.mark.parametrize(("own", "says"), [
    ({"extends": "bese.yaml"}, "unknown recipe 'bese.yaml'"),
    ({"extends": "quickstat"}, "did you mean 'quickstart'"),
    ({"extends": ""}, "unknown recipe ''"),
    ({"extends": ["quickstart"]}, "extends must name a recipe or a file, not ['quickstart']"),
    ({"extends": 3}, "extends must name a recipe or a file, not 3"),
    ({"extends": "broken.yaml"}, "broken.yaml: cannot be read as YAML"),
    ({"extends": "listed.yaml"}, "listed.yaml: a recipe is a mapping"),
    ({"extends": "."}, "unknown recipe '.'"),
    ({"space": {"file": "nowhere.py"}}, "'nowhere.py' is neither beside the recipe nor in the working directory"),
])  # fmt: skip
def test_a_base_that_cannot_be_is_refused(own: dict[str, Any], says: str, write: Any) -> None:
    assert says in refusal(write(broken="name: [", listed="- a", own=own))


def test_a_file_that_is_not_there_is_answered_with_the_known_recipes() -> None:
    with pytest.raises(BadInput) as caught:
        read("nowhere/recipe.yaml")
    assert all(name in str(caught.value) for name in recipe_names())


def test_a_mistake_in_a_base_is_found_by_whoever_extends_it(write: Any) -> None:
    path = write(base={**BASE, "sead": 1}, own=extending(name="own"))
    with pytest.raises(BadInput, match="unknown key 'sead'; did you mean 'seed'"):
        Recipe.load(path)


# The recipes of the regimes


def test_names_of_recipes_are_unique() -> None:
    """A recipe is found by its bare name, in whatever folder it lies."""
    assert len(set(recipe_names())) == len(recipe_names())


def test_every_regime_has_its_recipe() -> None:
    # `digits-student`, which they extend, is `offline` with `plain` as its control.
    assert {name.replace("_", "-") for name in REGIMES if name not in ("plain", "offline")} <= {*OF_REGIMES}


@pytest.mark.parametrize("name", OF_REGIMES)
def test_a_recipe_of_a_regime_prepares(name: str) -> None:
    recipe = Recipe.load(name)
    assert recipe.name == name
    stage = recipe.stages[-1]
    assert stage.regime is not None
    # The others are variants of a regime.
    own = name.replace("-", "_")
    assert stage.regime["name"] == own if own in REGIMES else stage.regime["name"] in REGIMES
    _, program = Search.prepare(recipe).program(stage)
    assert program.epochs == stage.epochs
    assert (RECIPES / "regimes" / f"{name}.yaml").read_text().startswith("# ")  # what `dux list recipes` shows
