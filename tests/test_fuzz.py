"""Broken recipes, data, teachers, spaces and runs: each is refused in one line, or read; nothing else ever happens.

The default run tries a few of each. `DUX_FUZZ=50 pytest tests/test_fuzz.py` tries 50 times as many, at random.
"""

import copy
import datetime
import io
import json
import math
import os
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

import analysis
import spaces
from analysis.errors import BadInput as AnalysisBadInput
from orchestrator import samplers, schedulers, show
from orchestrator.prepared import Search
from orchestrator.reading import recipe_names
from orchestrator.recipe import Recipe
from spaces import Task, own
from spaces.errors import BadInput
from trainables import data, teachers
from trainables.losses import LOSSES
from trainables.regimes import REGIMES
from trainables.scores import SCORES

TIMES = int(os.environ.get("DUX_FUZZ", "1"))
SLOWEST = 60.0  # seconds that a check may take, on a machine that has other work too
pytestmark = pytest.mark.timeout(300 * TIMES)


def tried(examples: int) -> settings:
    return settings(
        max_examples=examples * TIMES,
        derandomize=TIMES == 1,
        deadline=None,
        database=None,
        suppress_health_check=[*HealthCheck],
        print_blob=True,
    )


def refused_or(done: Callable[[], Any]) -> Any:
    """What comes out, or None where it was refused; in time, and in one line that can be printed."""
    found, started = None, time.monotonic()
    try:
        found = done()
    except (BadInput, AnalysisBadInput) as error:
        said = str(error)
    else:
        said = None
    assert time.monotonic() - started < SLOWEST
    assert said is None or (said.strip() and "\n" not in said), said
    return found


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


# Recipes


NAMES = sorted({*spaces.SPACES, *LOSSES, *REGIMES, *SCORES, *samplers.SAMPLERS, *schedulers.SCHEDULERS, *data.SOURCES,
                *Recipe.model_fields, "distill", "random", "uniform", "choice", "weight", "name", "file"})  # fmt: skip
NUMBERS = [0, 1, 2, 3, 7, -1, 0.5, 1e-9, 1e9, 100, 5_000, 10**6, 10**9, 10**12, 10**15, 2**62, 1e300]
DEEP: Any = 1
for _ in range(60):
    DEEP = [DEEP]
HOSTILE: list[Any] = [
    None, True, False, 0, 1, 2, 3, -1, 0.5, -0.0, 1e308, 5e-324, math.nan, math.inf, -math.inf, 10**9, 10**12, 10**15,
    2**63 - 1, 2**63, -(2**70), 10**400, "", " ", "a", "1e-4", "a" * 300, "b" * 100_000, "..", "../..", "../x.py", "/",
    "/etc/passwd", "~", "~nobody-of-this-name/x", "\0", "a\nb", "\x1b[2J", "\ud800", "\u202e", "null", "s3://a:b@c/d",
    [], {}, [[]], [None], [1, 2], ["a", "a"], [math.nan], [10**12], {"": 1}, {"a": 1}, {1: 2}, {None: None}, {True: 1},
    {"choice": []}, {"choice": [1, 1]}, {"choice": [[1]]}, {"choice": ["a", 1, None]}, {"choice": {"a": 1}},
    {"choice": [10**9]}, {"uniform": [0, 1]}, {"uniform": [1, 0]}, {"uniform": [0, "a"]}, {"loguniform": [0, 1]},
    {"loguniform": [1e-300, 1e300]}, {"randint": [0, 10**12]}, {"randint": [0.5, 2]}, {"qrandint": [0, 10, 0]},
    {"quniform": [0, 1, 1e-300]}, {"qloguniform": [1, 2, 5]}, {"lograndint": [0, 5]}, {"name": "tpe", "a": []},
    {"from": 1, "to": 0}, {"from": 1, "to": 0, "end": 10**12}, {"weight": -1}, {"weight": {"choice": [0, 1]}},
    datetime.date(2020, 1, 1), b"bytes", DEEP,
]  # fmt: skip


def without_network(recipe: Recipe) -> Recipe:
    """The recipe with images and weights that are there; downloads are no matter of this test."""
    raw = recipe.plain()
    raw["task"]["download"] = False
    for teacher in (raw.get("teacher") or {}, *raw.get("more_teachers", [])):
        if teacher.pop("pretrained", None):
            teacher["random"] = not teacher.get("train_epochs")
    return Recipe.parse(raw)


def on_digits(name: str) -> dict[str, Any]:
    raw = Recipe.load(name).plain()
    raw["task"] = {"dataset": "digits", "subset": 60, "valid": 40, "test_subset": 40}
    for place in (raw.get("teacher") or {}, *raw.get("more_teachers", [])):
        if place.pop("pretrained", None) or place.pop("weights", None):
            place["random"] = True
    return raw


@pytest.fixture(scope="module")
def recipes() -> list[dict[str, Any]]:
    """Every recipe that comes with dux, on digits."""
    return [on_digits(name) for name in recipe_names()]


Place = tuple[Any, Any]


def places(value: Any) -> Iterator[Place]:
    """Every container within a value, with each of its keys."""
    if isinstance(value, dict | list):
        for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
            yield value, key
            yield from places(inner)


@st.composite
def mutations(draw: st.DrawFn) -> list[tuple[str, float, float, Any]]:
    kinds = st.sampled_from(
        ["drop", "replace", "replace", "name", "number", "number", "rename", "nest", "double", "swap"]
    )
    at = st.floats(0, 1, exclude_max=True)
    return draw(st.lists(st.tuples(kinds, at, at, st.integers(0, 10**6)), min_size=1, max_size=3))


def mutated(raw: dict[str, Any], changes: list[tuple[str, float, float, int]]) -> dict[str, Any]:
    raw = copy.deepcopy(raw)
    for kind, at, other, number in changes:
        known = list(places(raw))
        if not known:
            break
        inside, key = known[int(at * len(known))]
        match kind:
            case "drop":
                del inside[key]
            case "replace":
                inside[key] = copy.deepcopy(HOSTILE[number % len(HOSTILE)])
            case "number":
                numeric = [(holder, place) for holder, place in known if isinstance(holder[place], int | float)]
                holder, place = numeric[int(at * len(numeric))] if numeric else (inside, key)
                holder[place] = NUMBERS[number % len(NUMBERS)]
            case "name":
                inside[key] = NAMES[number % len(NAMES)]
            case "rename" if isinstance(inside, dict):
                inside[NAMES[number % len(NAMES)]] = inside.pop(key)
            case "nest":
                inside[key] = {NAMES[number % len(NAMES)]: inside[key]} if number % 2 else [inside[key]]
            case "double" if isinstance(inside, list):
                inside.append(copy.deepcopy(inside[key]))
            case "swap":
                holder, place = known[int(other * len(known))]
                inside[key] = copy.deepcopy(holder[place])
    return raw


def written(raw: Any, folder: Path) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    return file


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@tried(120)
@given(which=st.integers(0, 10**6), changes=mutations())
def test_a_broken_recipe_is_refused_or_read(
    recipes: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory, which: int, changes: Any
) -> None:
    file = written(mutated(recipes[which % len(recipes)], changes), tmp_path_factory.getbasetemp())
    loaded = refused_or(lambda: Recipe.load(file))
    if loaded is not None:
        assert Recipe.parse(yaml.safe_load(loaded.to_yaml())) == loaded


@tried(8)
@given(which=st.integers(0, 10**6), changes=mutations())
def test_what_can_be_read_is_refused_or_prepared(
    recipes: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory, which: int, changes: Any
) -> None:
    file = written(mutated(recipes[which % len(recipes)], changes), tmp_path_factory.getbasetemp())
    loaded = refused_or(lambda: Recipe.load(file))
    if loaded is not None:
        before = sorted(Path().iterdir())
        refused_or(lambda: Search.prepare(without_network(loaded)))
        assert sorted(Path().iterdir()) == before


YAMLS = {
    "billion laughs": "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "merge keys": "a0: &a0 {k: 1}\n" + "\n".join(
        f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}" for i in range(1, 12)),
    "one merge key": "a: &a {name: x}\n<<: *a",
    "a number of many sixtieths": "seed: 1" + ":00" * 200_000,
    "an alias of itself": "a: &a {b: *a}",
    "deep": "a: " + "[" * 5000 + "]" * 5000,
    "deep mappings": "\n".join(" " * i + "a:" for i in range(500)),
    "a key twice": "name: a\nseed: 1\nname: b",
    "a key twice within": "name: a\ntask: {dataset: digits, dataset: parquet}",
    "a list as a key": "? [a]\n: 1",
    "a mapping as a key": "? {a: 1}\n: 1",
    "a number as a key": "1: 2",
    "a number of many digits": "seed: " + "9" * 10_000,
    "a hexadecimal number of many digits": "seed: 0x" + "f" * 10_000,
    "no date": "name: 2020-99-99",
    "a tag of Python": "name: !!python/object/apply:os.system ['true']",
    "a tag that does not fit": "name: !!int ''",
    "another": "name: !!bool perhaps",
    "a third": "name: !!timestamp x",
    "a set": "!!set {a, b}",
    "binary": "name: !!binary aGVsbG8=",
    "a list": "- 1",
    "empty": "",
    "two documents": "a: 1\n---\nb: 2",
    "null byte": "name: a\0b",
    "escape": 'name: "a\\0b"',
    "surrogate": 'name: "\\ud800"',
    "control": "name: \x1b[2J",
    "unfinished": "name: 'a",
    "tabs": "a:\n\t- b",
    "long": f"name: {'a' * 1_000_000}",
    "very long": f"name: {'a' * 3_000_000}",
    "extends itself": "extends: recipe.yaml",
    "extends what is above": "extends: ../recipe.yaml",
    "extends a folder": "extends: /",
    "extends a long name": f"extends: {'a' * 5000}",
}  # fmt: skip


@pytest.mark.parametrize("name", YAMLS)
def test_yaml_that_is_no_recipe_is_refused(folder: Path, name: str) -> None:
    (folder / "recipe.yaml").write_text(YAMLS[name])
    assert refused_or(lambda: Recipe.load(folder / "recipe.yaml")) is None


@tried(100)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_noise_is_no_recipe(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "noise.yaml"
    file.write_bytes(noise)
    assert refused_or(lambda: Recipe.load(file)) is None


# Images


def image(number: int, size: int = 6) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), number % 256, np.uint8)).save(out, "PNG")
    return out.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is this large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" * 1000)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def parquet(images: Any, labels: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"image": images, "label": labels}), out, **options)
    return out.getvalue()


COUNT = 40
GOOD_IMAGES, GOOD_LABELS = [image(i) for i in range(COUNT)], [i % 4 for i in range(COUNT)]
GOOD = parquet(GOOD_IMAGES, GOOD_LABELS)


def flipped(whole: bytes, flips: list[tuple[float, int]], end: float) -> bytes:
    """Bytes with some changed, and cut off."""
    broken = bytearray(whole)
    for at, value in flips:
        broken[int(at * len(broken))] ^= value
    return bytes(broken[: round(end * len(broken))])


def damage() -> Any:
    """Where bytes change and how, and what share of the file stays."""
    at = st.floats(0, 1, exclude_max=True) | st.floats(0.9, 1, exclude_max=True)
    flips = st.lists(st.tuples(at, st.integers(1, 255)), max_size=4)
    return st.builds(lambda flips, end: (flips, end), flips, st.just(1.0) | st.floats(0, 1))


def loaded(folder: Path, dataset: str = "parquet", **config: Any) -> Any:
    return refused_or(lambda: data.load(data.DataConfig(dataset, path=str(folder), valid=8, **config)))


@tried(60)
@given(broken=damage())
def test_damaged_parquet_is_refused_or_read(tmp_path_factory: pytest.TempPathFactory, broken: Any) -> None:
    folder = tmp_path_factory.mktemp("parquet")
    (folder / "train.parquet").write_bytes(flipped(GOOD, *broken))
    loaded(folder)


CONTENTS: dict[str, tuple[Any, Any]] = {
    "text": (["a"] * COUNT, GOOD_LABELS),
    "no images": ([b"a"] * COUNT, GOOD_LABELS),
    "empty images": ([b""] * COUNT, GOOD_LABELS),
    "missing images": ([None, *GOOD_IMAGES[1:]], GOOD_LABELS),
    "missing labels": (GOOD_IMAGES, [None, *GOOD_LABELS[1:]]),
    "labels of text": (GOOD_IMAGES, ["a"] * COUNT),
    "labels below 0": (GOOD_IMAGES, [-1, *GOOD_LABELS[1:]]),
    "a huge label": (GOOD_IMAGES, [2**62, *GOOD_LABELS[1:]]),
    "a label beyond int64": (GOOD_IMAGES, pa.array([2**64 - 1, *GOOD_LABELS[1:]], pa.uint64())),
    "no rows": (pa.array([], pa.binary()), pa.array([], pa.int64())),
    "one class": (GOOD_IMAGES, [0] * COUNT),
    "images of several sizes": ([image(1, 9), *GOOD_IMAGES[1:]], GOOD_LABELS),
    "a bomb": ([bomb(50_000, 50_000), *GOOD_IMAGES[1:]], GOOD_LABELS),
    "a bomb that is only warned of": ([bomb(10_000, 10_000), *GOOD_IMAGES[1:]], GOOD_LABELS),
    "a wide bomb": ([bomb(2**31 - 1, 1), *GOOD_IMAGES[1:]], GOOD_LABELS),
    "an image without pixels": ([bomb(0, 0), *GOOD_IMAGES[1:]], GOOD_LABELS),
    "nested": ([[b"a"]] * COUNT, GOOD_LABELS),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_data_set_of_something_else_is_refused(folder: Path, name: str) -> None:
    (folder / "train.parquet").write_bytes(parquet(*CONTENTS[name]))
    assert loaded(folder) is None


@tried(30)
@given(broken=damage(), suffix=st.sampled_from(data.SUFFIXES))
def test_damaged_images_in_folders_are_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, broken: Any, suffix: str
) -> None:
    folder = tmp_path_factory.mktemp("images")
    for label in range(2):
        (folder / "train" / str(label)).mkdir(parents=True)
        for number in range(12):
            (folder / "train" / str(label) / f"{number}.png").write_bytes(GOOD_IMAGES[number])
    out = io.BytesIO()
    Image.new("RGB", (6, 6)).save(out, Image.registered_extensions()[suffix])
    (folder / "train" / "1" / f"broken{suffix}").write_bytes(flipped(out.getvalue(), *broken))
    loaded(folder, "folder")


# Teachers


ARCH = {"depth1": 1, "depth2": 1, "depth3": 1, "width": 2}
TASK = Task(1, 8, 10)
CONFIG = teachers.TeacherConfig(space="resnet", arch=ARCH, random=True)


@pytest.fixture(scope="module")
def digits() -> Any:
    return data.load(data.DataConfig(subset=40, valid=20, test_subset=20))


@pytest.fixture(scope="module")
def weights() -> dict[str, bytes]:
    """A whole file of each kind."""
    state = spaces.get("resnet").build(ARCH, TASK).state_dict()
    new, old = io.BytesIO(), io.BytesIO()
    torch.save(state, new)
    torch.save(state, old, _use_new_zipfile_serialization=False)
    return {"a.safetensors": save(state), "new.pt": new.getvalue(), "old.pt": old.getvalue()}


def read_weights(file: Path, digits: Any) -> Any:
    member = teachers.build(CONFIG, digits)
    return refused_or(lambda: teachers.load_weights(member, file) or member)


@tried(60)
@given(broken=damage(), which=st.sampled_from(["a.safetensors", "new.pt", "old.pt"]))
def test_damaged_weights_are_refused_or_read(
    weights: Any, digits: Any, tmp_path_factory: pytest.TempPathFactory, broken: Any, which: str
) -> None:
    file = tmp_path_factory.getbasetemp() / which
    file.write_bytes(flipped(weights[which], *broken))
    read_weights(file, digits)


def header(content: Any, size: int | None = None) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text


def tensor(shape: list[int], end: int, kind: str = "F32") -> dict[str, Any]:
    return {"a": {"dtype": kind, "shape": shape, "data_offsets": [0, end]}}


HEADERS = {
    "empty": b"",
    "short": b"\0" * 4,
    "a huge header": header({}, 2**63),
    "a header beyond the end": header({}, 10**9),
    "no JSON": header(b"{"),
    "a list": header([]),
    "deep": header(b"[" * 100_000),
    "a huge tensor": header(tensor([2**40], 2**42)),
    "an overflowing tensor": header(tensor([2**40, 2**40], 16)),
    "a negative size": header(tensor([-1], 4)),
    "an unknown type": header(tensor([1], 4, "X")),
    "another's names": header(tensor([1], 4)) + b"\0" * 4,
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_broken_header_is_refused(folder: Path, digits: Any, name: str) -> None:
    (folder / "a.safetensors").write_bytes(HEADERS[name])
    assert read_weights(folder / "a.safetensors", digits) is None


def odd_tensors() -> dict[str, Any]:
    values = torch.zeros(3, 3)
    return {
        "meta": values.to("meta"),
        "sparse": values.to_sparse(),
        "complex": values.to(torch.complex64),
        "quantised": torch.quantize_per_tensor(values, 1.0, 0, torch.qint8),
        "expanded": torch.zeros(1).expand(2**40),
        "number": 3,
        "none": None,
    }


@pytest.mark.filterwarnings("ignore::UserWarning")  # of quantised tensors, which torch gives up
@pytest.mark.parametrize("name", ["meta", "sparse", "complex", "quantised", "expanded", "number", "none"])
def test_tensors_that_are_no_weights_are_refused(folder: Path, digits: Any, name: str) -> None:
    state = dict(teachers.build(CONFIG, digits).net.state_dict())
    torch.save({**state, "conv1.weight": odd_tensors()[name]}, folder / "a.pt")
    assert read_weights(folder / "a.pt", digits) is None


def test_an_archive_that_unpacks_to_more_than_it_is_is_refused(folder: Path, digits: Any, weights: Any) -> None:
    with zipfile.ZipFile(folder / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        with zipfile.ZipFile(io.BytesIO(weights["new.pt"])) as whole:
            for name in whole.namelist():
                archive.writestr(name, whole.read(name))
        archive.writestr("archive/data/99", bytes(10**7))
    assert read_weights(folder / "a.pt", digits) is None


# Spaces


BUILD = "from torch import nn\ndef build(arch, task): return nn.Linear(1, 2)\n"
SPACE = "from ray import tune\nPARAM_SPACE = {'width': tune.choice([2, 4])}\n" + BUILD
SOURCES = {
    "no Python": "def",
    "a null byte": "a = '\0'",
    "deep": "(" * 500 + ")" * 500,
    "exit": "exit(3)",
    "sys.exit": "import sys; sys.exit('a\\nb')",
    "an error": "1 / 0",
    "an error of several lines": "raise RuntimeError('a\\nb\\nc')",
    "an endless recursion": "def f(): f()\nf()",
    "no such package": "import no_such_package_of_this_name",
    "nothing": "",
    "no build": "PARAM_SPACE = {}",
    "a list": "PARAM_SPACE = []\n" + BUILD,
    "values without a domain": "PARAM_SPACE = {'width': [1, 2]}\n" + BUILD,
    "no text": "PARAM_SPACE = {1: None}\n" + BUILD,
    "a generator": SPACE + "OPTIONS = (i for i in range(3))",
    "options of objects": SPACE + "OPTIONS = {'a': object()}",
    "taps of numbers": SPACE + "TAPS = [1]",
    "a head of numbers": SPACE + "HEAD = 1",
    "moves of nothing": SPACE + "moves = {'depth': lambda value: []}",
    "a form that is none": SPACE + "canonical_form = 3",
    "an error that cannot be shown": "class E(Exception):\n def __str__(self): raise ValueError('x')\nraise E()",
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_file_that_defines_no_space_is_refused(folder: Path, name: str) -> None:
    (folder / "mine.py").write_text(SOURCES[name])
    assert refused_or(lambda: own.load("mine.py")) is None


@tried(60)
@given(broken=damage())
def test_a_damaged_file_of_a_space_is_refused_or_read(tmp_path_factory: pytest.TempPathFactory, broken: Any) -> None:
    file = tmp_path_factory.getbasetemp() / "broken.py"
    file.write_bytes(flipped(SPACE.encode(), *broken))
    refused_or(lambda: own.load(file))


# Runs and tables


EVENTS: list[dict[str, Any]] = [
    {"event": "run", "time": 1.0, "schema": 1, "name": "a", "recipe": "a", "dux": "1"},
    {"event": "teacher", "time": 2.0, "name": "resnet", "params": 10, "flops": 10, "seconds": 1.0, "metrics": {"a": 1}},
    {"event": "stage", "time": 3.0, "stage": "s", "index": 0, "trial": "distill", "objective": {"valid_accuracy": 1.0},
     "sampler": "random", "scheduler": "none", "epochs": 2, "seeds": 1, "control": False},
    *({"event": "trial", "time": 4.0, "stage": "s", "number": i, "proposal": i, "seed": 0, "control": False,
       "arch": {"width": i}, "hash": f"h{i}", "cost": {"params": i, "flops": i}, "params": {"losses.kd": 0.5}}
      for i in range(3)),
    *({"event": "report", "time": 5.0, "stage": "s", "number": i, "epoch": epoch, "seconds": 1.0, "worker": "w",
       "metrics": {"objective": 0.5, "valid_accuracy": 0.5}} for i in range(3) for epoch in (1, 2)),
    *({"event": "end", "time": 6.0, "stage": "s", "number": i, "status": "completed"} for i in range(3)),
    {"event": "keep", "time": 7.0, "stage": "s", "proposals": [1, 2]},
    {"event": "note", "time": 7.0, "stage": "s", "text": "a note"},
    {"event": "stage_end", "time": 8.0, "stage": "s", "seconds": 3.0, "slots": 2},
    {"event": "run_end", "time": 9.0, "seconds": 4.0},
]  # fmt: skip


def shown(folder: Path) -> None:
    """What `dux status` and `dux rank` do with a run."""
    results = analysis.load(folder)
    show.console().print(show.status(results, None))
    show.ranking(results, analysis.rank(results), show.lacking(results))


@tried(40)
@given(changes=mutations(), seed=st.integers(0, 3))
def test_a_mutated_ledger_is_refused_or_shown(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str], changes: Any, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    events = mutated({"events": EVENTS}, changes).get("events")  # type: ignore[arg-type]
    lines = events if isinstance(events, list) else [events]
    text = "\n".join(json.dumps(line, default=str, skipkeys=True) for line in lines)
    (folder / "ledger.jsonl").write_text(text + "\n" * (seed > 0))
    refused_or(lambda: shown(folder))
    capsys.readouterr()


@tried(20)
@given(broken=damage())
def test_a_damaged_ledger_is_refused_or_shown(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str], broken: Any
) -> None:
    folder = tmp_path_factory.mktemp("run")
    whole = "".join(json.dumps(event) + "\n" for event in EVENTS).encode()
    (folder / "ledger.jsonl").write_bytes(flipped(whole, *broken))
    refused_or(lambda: shown(folder))
    capsys.readouterr()


def table() -> pd.DataFrame:
    rows = {"hash": ["a", "b", "c"], "arch": ["{}"] * 3, "params": [1, 2, 3], "snip": [0.1, 0.2, 0.3]}
    return pd.DataFrame(rows)


def ranked(file: Path) -> None:
    analysis.rank(analysis.load_scores(file))


@tried(40)
@given(broken=damage())
def test_a_damaged_table_is_refused_or_ranked(tmp_path_factory: pytest.TempPathFactory, broken: Any) -> None:
    out = io.BytesIO()
    table().to_parquet(out)
    file = tmp_path_factory.getbasetemp() / "scores.parquet"
    file.write_bytes(flipped(out.getvalue(), *broken))
    refused_or(lambda: ranked(file))


COLUMNS: dict[str, Any] = {"numbers": [1, 2, 3], "text": ["a", "b", "c"], "nothing": [None] * 3, "nan": [math.nan] * 3,
                           "lists": [[1], [2], [3]], "bytes": [b"a"] * 3, "flags": [True, False, True],
                           "infinite": [math.inf, 1.0, 2.0], "dates": [datetime.date(2020, 1, 1)] * 3}  # fmt: skip


@pytest.mark.parametrize("values", COLUMNS)
@pytest.mark.parametrize("column", ["hash", "arch", "params", "snip", "seed", "stage", "status", "control", "seeds"])
def test_a_table_with_other_types_is_refused_or_ranked(folder: Path, column: str, values: str) -> None:
    table().assign(**{column: pd.Series(COLUMNS[values])}).to_parquet(folder / "scores.parquet")
    refused_or(lambda: ranked(folder / "scores.parquet"))
