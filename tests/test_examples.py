"""Every example runs as it stands."""

import re
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient

import analysis
import orchestrator
from orchestrator.recipe import Recipe

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def block(language: str) -> str:
    """The README's one block of code in a language."""
    [found] = re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return str(found)


def test_the_recipe_in_the_readme_is_the_quickstart() -> None:
    assert Recipe.parse(yaml.safe_load(block("yaml"))) == Recipe.load("quickstart")


def test_the_python_in_the_readme_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its search is shortened here; the notebook below runs a whole one."""
    asked = {}

    def noted(recipe: str, overrides: dict[str, object]) -> str:
        asked["recipe"] = Recipe.load(recipe, overrides)
        return "results"

    monkeypatch.setattr(orchestrator, "run", noted)
    monkeypatch.setattr(analysis, "rank", lambda results: asked.update(ranked=results))
    monkeypatch.setattr(analysis, "agreement", lambda results: asked.update(agreed=results))
    exec(compile(block("python"), "README.md", "exec"), {})
    assert asked["recipe"].limits.params == 10_000
    assert asked["ranked"] == asked["agreed"] == "results"


@pytest.mark.ray
@pytest.mark.timeout(280)
# The kernel's client leaves its own sockets to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=250, kernel_name="python3").execute()
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    assert all(outputs[name] for name in outputs)
    ranked = next(o.data["text/html"] for o in outputs["cell-5"] if "data" in o and "text/html" in o.data)
    assert "test_accuracy_alone" in ranked
    assert ranked.count("<tr") == 1 + 2  # the header and the two finalists
