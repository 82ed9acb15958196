"""The rules of the house: who may import whom, where Tune is touched, and what stays light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "spaces": set(),
    "trainables": {"spaces"},
    "analysis": set(),
    "orchestrator": {"spaces", "trainables", "analysis"},
}
FILES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))
LONGEST = 400  # lines


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> Iterator[str]:
    """Every module or name that a file imports, with its full dotted name; those inside functions too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)} imports by relative path"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def attributes(path: Path) -> set[str]:
    """Every name and dotted name that a file uses, as it is written."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Name | ast.Attribute):
            found.add(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_arrows_point_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    ours = {name.split(".")[0] for name in imports(path)} & set(MAY_IMPORT)
    assert ours <= MAY_IMPORT[package] | {package}


@pytest.mark.parametrize("path", [path for path in FILES if path.is_relative_to(ROOT / "analysis")], ids=name_of)
def test_analysis_needs_neither_torch_nor_ray(path):
    heavy = {"torch", "torchvision", "timm", "ray", "optuna", "pickle", "cloudpickle", "joblib", "safetensors"}
    assert not {name.split(".")[0] for name in imports(path)} & heavy


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_is_unpickled(path):
    allowed = {"pickle.UnpicklingError"}  # what torch raises for a file that is no weights file
    picklers = {name for name in imports(path) if name.split(".")[0] in ("pickle", "cloudpickle", "dill", "joblib")}
    assert picklers <= allowed
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "load_from_checkpoint"):
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert keywords.get("weights_only") == "True", f"{name_of(path)}:{node.lineno}"


def users(names: set[str]) -> set[str]:
    """The files that import or write one of these names."""
    last = {name.rpartition(".")[2] for name in names}
    return {name_of(path) for path in FILES if set(imports(path)) & names or attributes(path) & (names | last)}


def test_tunes_trainables_are_in_one_file():
    names = {"tune.Trainable", "ray.tune.Trainable", "ray.tune.trainable.Trainable"}
    assert users(names) == {"trainables/worker.py"}


def test_only_the_experiment_builds_a_tuner():
    assert users({"tune.Tuner", "ray.tune.Tuner", "ray.tune.tuner.Tuner"}) == {"orchestrator/experiment.py"}
    assert not any({"tune.run", "ray.tune.run"} & (set(imports(path)) | attributes(path)) for path in FILES)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_is_too_long_to_be_read_at_once(path):
    assert len(path.read_text().splitlines()) <= LONGEST


def test_light_imports_stay_light():
    code = """
import sys
import analysis, orchestrator, orchestrator.cli
heavy = sorted({"torch", "ray", "optuna", "torchvision"} & set(sys.modules))
assert not heavy, heavy
sys.argv = ["dux", "--help"]
try:
    orchestrator.cli.main()
except SystemExit as end:
    assert not end.code, end.code
heavy = sorted({"torch", "ray", "optuna", "torchvision"} & set(sys.modules))
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "resume" in done.stdout


@pytest.mark.parametrize("command", ["rank", "status --profile"])
def test_what_came_out_is_told_without_torch_and_ray(command):
    code = f"""
import sys
import orchestrator.cli
sys.argv = ["dux", *{command.split()}, "tests/data/digits"]
try:
    orchestrator.cli.main()
except SystemExit as end:
    assert not end.code, end.code
heavy = sorted({{"torch", "ray", "optuna", "torchvision"}} & set(sys.modules))
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ("of what follows start-up" if "profile" in command else "students of resnet") in done.stdout


def test_a_networks_size_is_checked_without_torchs_compiler():
    code = """
import sys
import spaces
from spaces.bounds import check_size
task = spaces.Task(1, 8, 10)
check_size(lambda: spaces.get("resnet").build({"depth1": 1, "depth2": 1, "depth3": 1, "width": 4}, task))
assert not {"sympy", "torch._dynamo"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
