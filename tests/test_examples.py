"""Every example runs as it stands."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"


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
