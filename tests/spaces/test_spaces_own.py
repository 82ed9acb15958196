"""A space of the user's own file: what it gives, that it travels without the file, and every mistake in one line."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ray import cloudpickle

from spaces import BadInput, Space, Task, check_space, own
from trainables import cost

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "own_space.py"
TASK = Task(1, 8, 3)

MINE = '''"""A space."""
from dataclasses import dataclass

from ray import tune
from torch import nn

PARAM_SPACE = {"width": tune.choice([2, 4, 6]), "act": tune.choice(["relu", "gelu"])}
OPTIONS = {"kernel": 3}


@dataclass
class Part:
    width: int


class Net(nn.Module):
    def __init__(self, part: Part, act: str, task, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(task.channels, part.width, kernel, padding=kernel // 2)
        self.act = {"relu": nn.ReLU, "gelu": nn.GELU}[act]()
        self.fc = nn.Linear(part.width, task.classes)

    def forward(self, x):
        return self.fc(self.act(self.conv(x)).mean((2, 3)))


def build(arch, task, kernel):
    return Net(Part(arch["width"]), arch["act"], task, kernel)
'''
RULES = (
    MINE
    + """
def canonical_form(arch):
    return arch["width"]


def allows(arch):
    return arch["width"] < 6


moves = {"width": lambda width: [width - 2, width + 2]}
"""
)

FRESH = """
import pickle, sys, torch
import spaces
space = pickle.load(open(sys.argv[1], "rb"))
torch.manual_seed(0)
arch = {"width": 4, "act": "gelu"}
net = space.build(arch, spaces.Task(1, 8, 3))
print(space.hash(arch), space.fingerprint(), float(net(torch.ones(1, 1, 8, 8)).sum().detach()))
print(space.canonical(arch), space.allows({"width": 6, "act": "relu"}), list(space.moves["width"](4)))
try:
    space.build({"width": 4, "act": "tanh"}, spaces.Task(1, 8, 3))
except spaces.BadInput as error:
    print(error)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "my_space.py"


def mine(path: Path, text: str = MINE) -> Space:
    path.write_text(text)
    return own.load(path)


def test_the_file_is_a_space(path: Path) -> None:
    space = mine(path)
    check_space(space, TASK)
    assert space.name.startswith("my_space-")
    assert (space.size(), space.options) == (6, {"kernel": 3})
    arch = space.sample(np.random.default_rng(0))
    net = space.build(arch, TASK)
    assert space.look(net, TASK) == (("act",), "fc")
    assert space.restrict({"width": [2]}, kernel=1).build({"width": 2, "act": "relu"}, TASK).conv.kernel_size == (1, 1)
    assert cost.measure(space, {"width": 2, "act": "relu"}, TASK)["params"] == 9 * 2 + 2 + 2 * 3 + 3
    assert own.load(str(path)) == space


def test_what_it_says_of_architectures_holds(path: Path) -> None:
    space = mine(path, RULES)
    check_space(space, TASK)
    archs = list(space.all())
    assert len(archs) == 4
    assert len({space.hash(arch) for arch in archs}) == 2
    assert list(space.moves["width"](4)) == [2, 6]
    rng = np.random.default_rng(0)
    assert all(space.mutate(arch, rng)["width"] < 6 for arch in archs for _ in range(10))


def test_an_edit_makes_another_space(path: Path) -> None:
    arch = {"width": 2, "act": "relu"}
    before, after = mine(path), mine(path, MINE.replace("kernel // 2", "0"))
    assert before.fingerprint() != after.fingerprint()
    assert before.hash(arch) != after.hash(arch)
    maps = [space.build(arch, TASK).conv(torch.zeros(1, 1, 8, 8)).shape[2] for space in (before, after)]
    assert maps == [8, 6]  # each still builds its own networks
    again = mine(path)
    assert (again.name, again.fingerprint(), again.hash(arch)) == (before.name, before.fingerprint(), before.hash(arch))


def test_it_works_where_its_file_is_not(path: Path, tmp_path: Path) -> None:
    space = mine(path, RULES)
    (tmp_path / "space.pickle").write_bytes(cloudpickle.dumps(space))
    path.unlink()
    command = [sys.executable, "-c", FRESH, str(tmp_path / "space.pickle")]
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, cwd="/", capture_output=True, text=True, check=True)
    told, rules, error = done.stdout.splitlines()[-3:]
    arch = {"width": 4, "act": "gelu"}
    torch.manual_seed(0)
    total = float(space.build(arch, TASK)(torch.ones(1, 1, 8, 8)).sum().detach())
    assert told == f"{space.hash(arch)} {space.fingerprint()} {total}"
    assert rules == "4 False [2, 6]"
    assert error == f"{path}: build fails for width=4, act=tanh: KeyError: 'tanh' (my_space.py:20)"


def test_what_lies_beside_the_file_is_not_there_for_it(path: Path) -> None:
    """A run keeps the file alone: what it imports from beside it would be missing when the run is resumed."""
    (path.parent / "beside_my_space.py").write_text("WIDTHS = [2, 8]\n")
    with pytest.raises(BadInput, match="ModuleNotFoundError: No module named 'beside_my_space'"):
        mine(path, MINE.replace("from ray", "from beside_my_space import WIDTHS\nfrom ray", 1))


def test_the_example_works(tmp_path: Path) -> None:
    space = own.load(EXAMPLE)
    check_space(space, Task(3, 16, 10))
    assert space.size() == 24
    net = space.build({"depth": 2, "width": 8, "kernel": 5}, Task(3, 32, 10))
    assert space.look(net, Task(3, 32, 10)) == (("stage1", "stage2", "stage3"), "head")
    depthwise = sum(27 * channels for channels in (8, 8, 8, 16, 16, 32))  # 25 weights and 2 of batch norm a channel
    across = sum(i * o + 2 * o for i, o in ((8, 8), (8, 8), (8, 16), (16, 16), (16, 32), (32, 32)))
    assert sum(p.numel() for p in net.parameters()) == 3 * 9 * 8 + 2 * 8 + depthwise + across + 33 * 10


# Mistakes: changes of the file, and what is said

LOADING: dict[str, tuple[str, str, str]] = {
    "no Python": (
        "PARAM_SPACE = {",
        "PARAM_SPACE = {{",
        r"cannot be executed: SyntaxError: .*\(my_space.py, line 7\)$",
    ),
    "an error": ("OPTIONS =", "1 / 0\nOPTIONS =", r"cannot be executed: ZeroDivisionError: .* \(my_space.py:8\)$"),
    "an exit": ("OPTIONS =", "raise SystemExit('end')\nOPTIONS =", r"executed: SystemExit: end \(my_space.py:8\)$"),
    "an unknown import": ("from torch", "import nothing_of_that_name\nfrom torch", "ModuleNotFoundError: No module"),
    "no PARAM_SPACE": ("PARAM_SPACE", "CHOICES", "PARAM_SPACE must be a dict from names to Tune domains, not missing"),
    "a list": ('{"width": tune.choice([2, 4, 6]), "act": tune.choice(["relu", "gelu"])}', "[1]", "not list"),
    "a plain list": (
        "tune.choice([2, 4, 6])",
        "[2, 4, 6]",
        r"PARAM_SPACE\['width'\] is no Tune domain; write tune.choice\(\[2, 4, 6\]\)$",
    ),
    "a plain value": ("tune.choice([2, 4, 6])", "8", r"PARAM_SPACE\['width'\] .* write tune.choice\(\[8\]\)$"),
    "an unbounded domain": ("tune.choice([2, 4, 6])", "tune.randn()", r"width: bounds must be finite and in order"),
    "a choice of lists": ("[2, 4, 6]", "[[2], [4]]", r"width: a choice must be a number, .* not \[2\]"),
    "a name that is none": ('"width": tune', "1: tune", "the name 1, which is no string"),
    "no build": ("def build", "def make", r"lacks build\(arch, task\)"),
    "build without the option": (
        "task, kernel):\n    return",
        "task):\n    return",
        r"build\(arch, task, kernel\) can",
    ),
    "build with more": ("task, kernel):\n    return", "task, kernel, more):\n    return", "argument: 'more'"),
    "options of a list": ('OPTIONS = {"kernel": 3}', "OPTIONS = [3]", "OPTIONS must be a dict from names .* not list"),
    "options of objects": ('{"kernel": 3}', '{"kernel": nn}', "OPTIONS holds other than"),
    "one tap as a string": ("OPTIONS =", "TAPS = 'conv'\nOPTIONS =", "TAPS must be a tuple of names .* not 'conv'"),
    "a head that is none": ("OPTIONS =", "HEAD = 3\nOPTIONS =", "HEAD must be the name of a submodule, not 3"),
    "no function": ("OPTIONS =", "allows = True\nOPTIONS =", "allows must be a function of an architecture, not bool"),
    "moves of a list": ("OPTIONS =", "moves = [1]\nOPTIONS =", "moves must be a dict"),
    "moves of another": (
        "OPTIONS =",
        "moves = {'wide': list}\nOPTIONS =",
        "name in moves 'wide'; did you mean 'width'",
    ),
}


@pytest.mark.parametrize("name", LOADING)
def test_a_file_that_is_no_space_is_one_line(name: str, path: Path) -> None:
    old, new, message = LOADING[name]
    assert old in MINE
    modules = {module for module in sys.modules if module.startswith("dux_space_my_space")}
    refused(lambda: mine(path, MINE.replace(old, new)), path, message)
    refused(lambda: mine(path, MINE.replace(old, new)), path, message)  # the second time too
    assert {m for m in sys.modules if m.startswith("dux_space_my_space")} - modules <= {loaded(path)}


def loaded(path: Path) -> str:
    source = own.Source(str(path), path.read_text())
    return f"dux_space_{source.stem}_{source.digest}"


def refused(act, path: Path, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadInput, match=message) as caught:
        act()
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_one_line(path: Path) -> None:
    for wrong in (path, path.parent):
        refused(lambda wrong=wrong: own.load(wrong), wrong, "no such file of a space, or not readable")
    path.write_bytes(b"\xff\xfe\x00")
    refused(lambda: own.load(path), path, "no such file of a space, or not readable as text")


BUILDING: dict[str, tuple[str, str, str]] = {
    "an error": (
        "return Net(",
        "assert arch['width'] < 6, 'too wide'; return Net(",
        r"build fails for width=6, act=relu: AssertionError: too wide \(my_space.py:28\)$",
    ),
    "an error between the ends": ("return Net(", "assert arch['width'] != 4; return Net(", "build fails for width=4"),
    "moves to nowhere": (
        "OPTIONS =",
        "moves = {'width': lambda width: None}\nOPTIONS =",
        r"moves\['width'\] gives no list of values: TypeError",
    ),
    "an error within": ('"gelu": nn.GELU', '"geul": nn.GELU', r"act=gelu: KeyError: 'gelu' \(my_space.py:20\)$"),
    "no module": (
        "return Net(",
        "return lambda: (",
        "width=2, act=relu: build returns function, not a torch.nn.Module",
    ),
    "another image": ("task.channels", "5", r"not take images \[1, 8, 8\]: RuntimeError: .* \(my_space.py:24\)$"),
    "an error while it runs": (".mean(", ".means(", r"not take images .*AttributeError: .* \(my_space.py:24\)$"),
    "other classes": ("task.classes", "7", r"gives a tensor \[2, 7\] for 2 images, not logits \[2, 3\]"),
    "maps for logits": (".mean((2, 3))", "", r"not take images|gives a tensor"),
    "two outputs": ("return self.fc(", "return 1, self.fc(", r"gives tuple for 2 images, not logits \[2, 3\]"),
    "an unknown tap": (
        "OPTIONS =",
        "TAPS = ('conf',)\nOPTIONS =",
        "unknown tap of the network 'conf'; did you mean 'conv'",
    ),
    "a tap without a map": (
        "OPTIONS =",
        "TAPS = ('fc',)\nOPTIONS =",
        r"tap 'fc' gives a tensor \[2, 3\] for 2 images, not",
    ),
    "an unknown head": ("OPTIONS =", "HEAD = 'fcs'\nOPTIONS =", "unknown head of the network 'fcs'; did you mean 'fc'"),
    "a head that is a convolution": (
        "OPTIONS =",
        "HEAD = 'conv'\nOPTIONS =",
        "head 'conv' is Conv2d.* not a linear layer",
    ),
    "no head": (
        "nn.Linear(part.width, task.classes)",
        "nn.Sequential(nn.Unflatten(1, (-1, 1, 1)), nn.Conv2d(part.width, task.classes, 1), nn.Flatten())",
        "no linear layer gives logits of 3 classes",
    ),
    "a form of objects": ("OPTIONS =", "canonical_form = lambda arch: nn\nOPTIONS =", "its canonical form has no hash"),
    "rules that fail": (
        "OPTIONS =",
        "allows = lambda arch: arch['w']\nOPTIONS =",
        r"allows fails for width=2, .*: KeyError",
    ),
    "nothing allowed": ("OPTIONS =", "allows = lambda arch: False\nOPTIONS =", "allows none of 10,000 draws"),
}


@pytest.mark.parametrize("name", BUILDING)
def test_networks_that_do_not_fit_are_one_line(name: str, path: Path) -> None:
    old, new, message = BUILDING[name]
    assert old in MINE
    space = mine(path, MINE.replace(old, new))
    with pytest.raises(BadInput, match=message) as caught:
        check_space(space, TASK)
    assert "\n" not in str(caught.value)
    assert "my_space" in str(caught.value)


def test_a_check_leaves_torchs_generator_as_it_was(path: Path) -> None:
    state = torch.get_rng_state()
    check_space(mine(path, MINE.replace("conv(x)", "conv(nn.functional.dropout(x))")), TASK)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_search_rests_on_the_file_from_the_launch_on(path: Path) -> None:
    """What prepares a search names the mistake of an architecture that it would only meet later."""
    text = MINE.replace("return Net(", "assert arch['act'] != 'gelu'; return Net(")
    space = mine(path, text)
    assert space.build({"width": 2, "act": "relu"}, TASK)
    with pytest.raises(BadInput, match="act=gelu"):
        check_space(space, TASK)
    check_space(space.restrict({"act": ["relu"]}), TASK)
