"""Every example runs as it stands."""

import re
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
import yaml
from nbclient import NotebookClient

import analysis
import orchestrator
from orchestrator.prepared import Search
from orchestrator.reading import RECIPES
from orchestrator.recipe import Recipe
from spaces import SPACES, Task, check_space, own
from trainables.data import DataConfig, load
from trainables.declare import Of, Phase, Program
from trainables.regimes import REGIMES, Kit

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def block(language: str, containing: str = "") -> str:
    """The README's one block of code in a language with these words in it."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    [found] = [text for text in blocks if containing in text]
    return str(found)


def test_the_recipe_in_the_readme_is_the_quickstart() -> None:
    assert Recipe.parse(yaml.safe_load(block("yaml", "name: quickstart"))) == Recipe.load("quickstart")


def test_the_python_in_the_readme_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its search is shortened here; the notebook below runs a whole one."""
    asked = {}

    def noted(recipe: str, overrides: dict[str, object]) -> str:
        asked["recipe"] = Recipe.load(recipe, overrides)
        return "results"

    monkeypatch.setattr(orchestrator, "run", noted)
    monkeypatch.setattr(analysis, "rank", lambda results: asked.update(ranked=results))
    monkeypatch.setattr(analysis, "agreement", lambda results: asked.update(agreed=results))
    exec(compile(block("python", "orchestrator.run"), "README.md", "exec"), {})
    assert asked["recipe"].limits.params == 10_000
    assert asked["ranked"] == asked["agreed"] == "results"


def test_the_space_in_the_readme_is_one(tmp_path: Path) -> None:
    file = tmp_path / "my_space.py"
    file.write_text(block("python", "PARAM_SPACE"))
    space, task = own.load(file), Task(3, 16, 5)
    check_space(space, task)
    assert space.size() == 9
    arch = {"depth": 2, "width": 8}
    net = space.build(arch, task)
    assert net(torch.zeros(2, 3, 16, 16)).shape == (2, 5)
    taps, head = space.look(net, task)
    assert (len(taps), net.get_submodule(head).out_features) == (3, 5)  # a map for each resolution


def test_the_example_of_a_space_is_one() -> None:
    space, task = own.load(EXAMPLES / "own_space.py"), Task(1, 8, 10)
    check_space(space, task)
    net = space.build(space.sample(np.random.default_rng(0)), task)
    assert space.look(net, task) == (("stage1", "stage2", "stage3"), "head")


def test_the_recipes_that_the_readme_names_are_those_that_there_are() -> None:
    [text] = re.findall(r"Recipes that come with dux: (.*?)\n\n", (ROOT / "README.md").read_text(), re.DOTALL)
    assert set(re.findall(r"`([\w-]+)`", text)) == {path.stem for path in RECIPES.glob("*.yaml")}


def test_the_table_of_regimes_has_a_row_for_every_recipe_and_a_recipe_for_every_regime() -> None:
    names = {path.stem for path in (RECIPES / "regimes").glob("*.yaml")}
    text = (ROOT / "trainables/regimes/README.md").read_text()
    rows = {line.split("|")[1].strip(" `"): line for line in text.splitlines() if line.startswith("| `")}
    assert set(rows) == names
    regimes = {(Recipe.load(name).stages[-1].regime or {})["name"] for name in names}
    assert regimes == set(REGIMES) - {"plain"}  # which stands beside each of them


@pytest.mark.parametrize("file", ["README.md", "trainables/regimes/README.md"])
def test_what_the_documents_say_of_a_stage_is_a_stage(file: str) -> None:
    base = Recipe.load("digits-student").plain()
    found = re.findall(r"```yaml\n((?:regime|stages):.*?)```", (ROOT / file).read_text(), re.DOTALL)
    assert found
    for text in found:
        given = yaml.safe_load(text)
        stage = given["stages"][0] if "stages" in given else {**base["stages"][0], **given}
        Search.prepare(Recipe.parse({**base, "stages": [stage]}))


def test_mutual_learning_in_the_readme_is_that_of_the_table() -> None:
    found: dict[str, Any] = {"Of": Of, "Phase": Phase, "Program": Program}
    exec(block("python", "def dml"), found)
    arch, losses = {"depth1": 1, "depth2": 1, "depth3": 1, "width": 4}, REGIMES["dml"].losses
    data = load(DataConfig(subset=32, valid=20, test_subset=20))
    told, known = (
        made(Kit(data, SPACES["resnet"], arch, losses, 3), peers=3) for made in (found["dml"], REGIMES["dml"].declare)
    )
    assert [(t.name, t.weight, t.source, t.target) for t in told.phases[0].terms] == [
        (t.name, t.weight, t.source, t.target) for t in known.phases[0].terms
    ]
    assert (told.epochs, set(told.members)) == (known.epochs, set(known.members))


@pytest.mark.ray
@pytest.mark.timeout(280)
# The kernel's client leaves its own sockets to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::DeprecationWarning")
def test_the_first_search_runs_from_top_to_bottom() -> None:
    notebook = nbformat.read(EXAMPLES / "first_search.ipynb", as_version=4)
    NotebookClient(notebook, timeout=250, kernel_name="python3").execute()
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    assert all(outputs[name] for name in outputs)
    ranked = next(o.data["text/html"] for o in outputs["cell-5"] if "data" in o and "text/html" in o.data)
    assert "test_accuracy_alone" in ranked
    assert ranked.count("<tr") == 1 + 2  # the header and the two finalists


@pytest.mark.timeout(100)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::DeprecationWarning")
def test_a_finished_run_is_analysed_without_torch_and_ray() -> None:
    notebook = nbformat.read(EXAMPLES / "analyze_search.ipynb", as_version=4)
    said = [cell.id for cell in notebook.cells if cell.cell_type == "code"]
    names = "{'torch', 'ray', 'optuna', 'orchestrator', 'trainables', 'spaces'}"
    last = nbformat.v4.new_code_cell(f"import sys; assert not (found := {names} & set(sys.modules)), found")
    notebook.cells.append(last)
    NotebookClient(notebook, timeout=90, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    assert all(outputs[name] for name in said)
    assert not [one for name in said for one in outputs[name] if one.get("name") == "stderr"]
    kinds = [kind for name in said for one in outputs[name] for kind in one.get("data", ())]
    assert kinds.count("image/png") >= 6
    assert kinds.count("text/html") >= 6
    decided = "".join(one.text for one in outputs["decision"] if one.output_type == "stream")
    [(where, place)] = re.findall(r"dux export \S*digits --where '(.+)' --rank (\d+) --format onnx", decided)
    ranked = analysis.rank(ROOT / "tests/data/digits", where=where)
    assert f"the smallest has {ranked.iloc[int(place) - 1]['params']:,} parameters" in decided
