"""Students taken out of runs: which one, what is written beside it, and what is refused with nothing left behind."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from object_store import ObjectStore

import analysis
import orchestrator
from analysis.remote import Address
from orchestrator import cli, exporting, outcome, pipeline, teaching
from orchestrator.book import Book, Trial
from orchestrator.errors import RunFailed
from orchestrator.exporting import Exported
from orchestrator.prepared import Search
from orchestrator.pruning import Pruner
from orchestrator.recipe import Recipe, resolved
from orchestrator.run_directory import Run
from orchestrator.stage import stage_folder, survivors
from spaces import BadInput
from trainables import teachers
from trainables.checkpoints import checkpoint_name
from trainables.context import StageContext, TeacherContext
from trainables.export import FORMATS
from trainables.store import Store
from trainables.trial import DistillTrial

ARCH = {"depth1": 1, "depth2": 1, "depth3": 1, "width": 3}
FOLDER = "stages/01-final"
SPACE = """
from ray import tune
from torch import nn

PARAM_SPACE = {"width": tune.choice([3])}


def build(arch, task):
    layers = nn.Conv2d(task.channels, arch["width"], 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(arch["width"], task.classes))
"""


def recipe(stage: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    """Two residual networks, each trained for an epoch with a random teacher."""
    raw = {
        "name": "tiny",
        "task": {"dataset": "digits", "subset": 64, "valid": 40, "test_subset": 40},
        "teacher": {"space": "resnet", "arch": {**ARCH, "width": 4}, "random": True},
        "space": {"name": "resnet", "choices": {"depth1": [1], "depth2": [1], "depth3": [1], "width": [2, 3]}},
        "stages": [{"name": "final", "trial": "distill", "epochs": 1, "sampler": "grid", **(stage or {})}],
    }
    return Recipe.parse({**raw, **changes})


def trained(what: Recipe, storage: Path, name: str = "tiny") -> Path:
    """A finished run of the recipe, whose only stage distils; without Ray."""
    [stage] = what.stages
    with Run.create(what, storage, name) as run:
        search = Search.prepare(run.recipe)
        taught_by = {which: teacher(run, search, which) for which in search.teachers}
        taught_by = dict(teaching.of_stage(stage, taught_by, run, search))
        pipeline._announce(run.ledger, 0, stage, search, taught_by)
        book, proposer = search.book(stage, run.ledger), search.proposer(stage, None)
        context = pipeline._context(run, search, 0, stage, taught_by)
        while (proposal := proposer.propose(book)) is not None:
            book.propose(proposal)
        for trial in book.unfinished():
            train(book, trial, context)
        book.keep(survivors(book, last=True))
        book.close(seconds=1.0, slots=1)
        Pruner(book, run.store.within(stage_folder(0, stage)), last=True)()
        outcome.keep(run, search)
        run.ledger.append("run_end", seconds=1.0)
        run.write_tables()
    return storage / name


def teacher(run: Run, search: Search, which: str) -> TeacherContext:
    config = search.teachers[which]
    member = teachers.build(config, search.data)
    found = teachers.weights_hash(member)
    told = {"name": "resnet | `4`", "source": "random", "seconds": 0.0, "metrics": {"test_accuracy": 0.5}}
    run.ledger.append("teacher", which=which, sha256=found, **told)
    weights = {name: tensor.numpy() for name, tensor in member.net.state_dict().items()}
    return TeacherContext(config, lambda: weights, found, None)


def train(book: Book, trial: Trial, context: StageContext) -> None:
    proposal = book.proposals[trial.proposal]
    settings = resolved(book.stage.settings(), proposal.params)
    fixed = {"number": trial.number, "seed": trial.seed, "control": trial.control, "parent": None}
    config = {**fixed, "arch": dict(proposal.arch), "settings": settings, "until": proposal.until, "reported": 0}
    worker = DistillTrial(context)
    worker.begin(config)
    for _ in range(proposal.until):
        [report] = worker.step()["reports"]
        book.report(trial.number, report["epoch"], report["metrics"], report["seconds"], worker="w:1")
    book.end(trial.number, "completed")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds with the teacher and without; all students are survivors."""
    return trained(recipe({"seeds": 2, "control": True}), tmp_path_factory.mktemp("runs"))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def told(exported: Exported) -> dict[str, Any]:
    return json.loads((exported.path / "student.json").read_text())


def refused(action: Callable[[], Any], error: type[Exception] = BadInput) -> str:
    with pytest.raises(error) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def student_of_the_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    """What the lines of Python in a card give, typed in its folder."""
    code = (folder / "MODEL_CARD.md").read_text().split("```python")[1].split("```")[0]
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(compile(code, "MODEL_CARD.md", "exec"), names)
    return names["student"]


def test_the_rank_says_which_student_and_of_its_seeds_the_best(whole: Path, here: Path) -> None:
    ranked = analysis.rank(whole)
    trials = analysis.load(whole).trials
    for rank, row in enumerate(ranked.itertuples(), 1):
        found = orchestrator.export(whole, rank)
        assert found.path == Path(f"tiny-rank{rank}-safetensors")
        assert told(found)["arch"] == json.loads(row.arch)
        own = trials[(trials["proposal"] == row.proposal) & ~trials["control"]]
        best = own.sort_values("objective", kind="stable").iloc[-1]
        assert told(found)["metrics"]["objective"] == best["objective"] == own["objective"].max()
        assert told(found)["ranking"]["valid_accuracy"] == pytest.approx(own["valid_accuracy"].mean())
    assert "rank must be 1 to 2, the number of ranked students, not 3" in refused(lambda: orchestrator.export(whole, 3))
    assert "not 0" in refused(lambda: orchestrator.export(whole, 0))
    assert len(list(here.iterdir())) == 2


def test_the_words_of_rank_say_which_student(
    whole: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    smallest, best = "params=1", analysis.rank(whole).iloc[0]
    other = analysis.rank(whole).iloc[1]
    where = f"arch.width == {json.loads(other.arch)['width']}"
    found = orchestrator.export(whole, where=where, output=here / "python")
    assert told(found)["arch"] == json.loads(other.arch)
    assert dux(monkeypatch, "export", whole, "--where", where, "--output", "typed") == 0
    capsys.readouterr()
    for file in found.path.iterdir():
        assert (here / "typed" / file.name).read_bytes() == file.read_bytes()
    command = told(found)["provenance"]["command"]
    assert command == f"dux export tiny --rank 1 --where '{where}' --format safetensors"
    card = (found.path / "MODEL_CARD.md").read_text()
    assert command in card
    assert f"Rank 1 among those with `{where}` of stage" in card
    for place, row in enumerate(analysis.rank(whole, by={"params": 1.0}).itertuples(), 1):
        by_size = orchestrator.export(whole, place, by={"params": 1}, output=here / f"small{place}")
        assert told(by_size)["arch"] == json.loads(row.arch)
        assert told(by_size)["ranking"]["by"] == "params=1.0"
    assert dux(monkeypatch, "rank", whole, "--by", smallest, "--where", where, "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)["hash"] == other.hash != best.hash
    mistakes = {
        "no ranked student meets --where params < 0": ("--where", "params < 0"),
        "cannot read 'width'": ("--where", "width"),
        "unknown column 'width'": ("--where", "width == 3"),
        "--by takes METRIC or METRIC=WEIGHT": ("--by", "params=x"),
        "would fit the choice to the test data": ("--by", "test_accuracy"),
        "rank must be 1 to 1": ("--where", where, "--rank", 2),
    }
    for text, options in mistakes.items():
        assert dux(monkeypatch, "export", whole, *options, "--output", "not") == 2, text
        printed = capsys.readouterr()
        assert text in printed.err
        assert printed.err.count("\n") == 1
    assert not (here / "not").exists()


@pytest.mark.parametrize("format", FORMATS)
def test_a_folder_tells_all_of_its_student(
    format: str, whole: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file: file.read_bytes() for file in whole.rglob("*") if file.is_file()}
    found = orchestrator.export(whole, format=format, output=here / "deep" / "out")
    assert {file: file.read_bytes() for file in whole.rglob("*") if file.is_file()} == before  # nothing is written
    assert [path.name for path in (here / "deep").iterdir()] == ["out"]
    names = {"student.json", "MODEL_CARD.md", "recipe.yaml", FORMATS[format].file}
    assert {path.name for path in found.path.iterdir()} == names
    kept, search = told(found), Search.prepare(Recipe.load(whole))
    event = next(event for event in analysis.events(whole) if event["event"] == "teacher")
    assert kept["classes"] == [str(digit) for digit in range(10)]
    assert kept["input"]["shape"] == ["B", 1, 8, 8]
    assert (kept["input"]["mean"], kept["input"]["std"]) == (list(search.data.mean), list(search.data.std))
    assert kept["input"]["normalised_by_the_network"] == (format != "safetensors")
    source = kept["provenance"]
    assert source["data"] == {
        "name": "digits",
        "fingerprint": search.data.fingerprint,
        "train": 64,
        "valid": 40,
        "test": 40,
    }
    assert source["teachers"][0]["sha256"] == event["sha256"]
    assert (source["run"], source["recipe"]["name"], source["dux"]["searched"]) == ("tiny", "tiny", "0.1.0")
    assert Recipe.load(found.path / "recipe.yaml") == Recipe.load(whole)

    card = (found.path / "MODEL_CARD.md").read_text()
    for text in (
        "n = 2",
        "| without |",
        "resnet / '4'",
        event["sha256"],
        search.data.fingerprint,
        f"--format {format}",
    ):
        assert text in card
    assert str(whole) not in card + json.dumps(kept)  # it tells of no folders

    pixels = search.data.test.images[:5].astype(np.float32) / 255
    student = student_of_the_card(found.path, monkeypatch)
    with torch.no_grad():
        logits = student(pixels if format == "onnx" else torch.from_numpy(pixels))
    assert found.difference <= 1e-5
    assert found.images == 40
    reference = exporting._trained(search, *chosen(whole))(torch.from_numpy(pixels))
    assert (reference - torch.as_tensor(logits)).abs().max() <= 1e-5


def chosen(run: Path) -> tuple[Any, Any]:
    return exporting._chosen(analysis.load(run), Recipe.load(run), 1, Store(str(run)))


def test_a_space_of_ones_own_comes_along(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "small.py").write_text(SPACE)
    run = trained(recipe(space={"file": str(here / "small.py")}), here)
    (here / "small.py").unlink()
    found = orchestrator.export(run, output=here / "out")
    assert (found.path / "small.py").read_text() == SPACE
    student = student_of_the_card(found.path, monkeypatch)
    assert student(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    card = (found.path / "MODEL_CARD.md").read_text()
    assert "was not trained without the teacher" in card
    assert "n = 1 " in card


@pytest.mark.parametrize(
    "regime",
    [
        {"name": "quantised", "bits": 2},
        {"name": "residual", "assistant": [ARCH]},
        {"name": "cheap_convolutions", "kind": "depthwise"},
    ],
    ids=lambda regime: regime["name"],
)
def test_what_a_regime_deploys_is_exported(regime: dict[str, Any], here: Path) -> None:
    """Quantised weights are those of best/; a network that is no longer the space's goes whole or not at all."""
    run = trained(recipe({"regime": regime}, student=ARCH), here)
    if regime["name"] == "quantised":
        found = orchestrator.export(run, output=here / "out")
        weights = (found.path / "weights.safetensors").read_bytes()
        assert weights == (run / "best" / "weights.safetensors").read_bytes()
        assert "few levels" in (found.path / "MODEL_CARD.md").read_text()
    else:
        assert "--format torch or onnx" in refused(lambda: orchestrator.export(run))
        found = orchestrator.export(run, format="torch", output=here / "out")
    assert found.difference <= 1e-5
    assert {path.name for path in here.iterdir()} == {"tiny", "out"}


def test_weights_that_are_gone_are_said_with_those_that_are_there(whole: Path, here: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    choice, _ = chosen(run)
    file = run / FOLDER / checkpoint_name(choice.trial.number)
    file.write_bytes(file.read_bytes()[:1000])
    assert refused(lambda: orchestrator.export(run)).endswith("ranks that can be exported: 2")
    shutil.rmtree(run / FOLDER / "checkpoints")
    assert refused(lambda: orchestrator.export(run, 2)).endswith("ranks that can be exported: none")
    assert not any(here.iterdir())


def test_what_says_something_else_is_not_kept(whole: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "difference", lambda *what: (float("nan"), 1e-5))
    line = refused(lambda: orchestrator.export(whole, output=here / "out"), RunFailed)
    assert "on 40 test images its logits differ by up to nan, and may by 1e-05" in line
    assert not any(here.iterdir())


def test_other_images_than_the_runs_are_refused(whole: Path, here: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("subset: 64", "subset: 65", 1))
    assert "data 'digits' is not what the student was trained on" in refused(lambda: orchestrator.export(run))
    assert not any(here.iterdir())


def test_a_run_of_scores_has_nothing_to_export(here: Path) -> None:
    what = recipe(stages=[{"name": "score", "trial": "score", "scores": ["params"], "sampler": "grid"}], teacher=None)
    with Run.create(what, here, "scored") as run:
        search = Search.prepare(run.recipe)
        [stage] = run.recipe.stages
        pipeline._announce(run.ledger, 0, stage, search, {})
    assert "no student has been trained" in refused(lambda: orchestrator.export(here / "scored"))


def dux(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["dux", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_command_says_what_it_did(
    whole: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dux(monkeypatch, "export", whole, "--rank", 2, "--output", "out") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("rank 2: ")
    assert out[1] == "on 40 test images its logits are those of the student, within 0.0e+00"
    assert out[2].startswith("written to out (bytes: MODEL_CARD.md ")
    mistakes = {
        "exists": ("export", whole, "--output", "out"),
        "unknown format 'onx'; did you mean 'onnx'?": ("export", whole, "--format", "onx"),
        "is no run's directory": ("export", here),
        "can be no folder": ("export", whole, "--output", "x" * 300),
    }
    for text, arguments in mistakes.items():
        assert dux(monkeypatch, *arguments) == 2, text
        printed = capsys.readouterr()
        assert text in printed.err
        assert printed.err.count("\n") == 1
        assert printed.out == ""
    assert [path.name for path in here.iterdir()] == ["out"]


def test_a_run_in_an_object_store_is_only_read(s3: ObjectStore, where: Address, whole: Path, here: Path) -> None:
    store, local = Store(str(where)), orchestrator.export(whole, 2)
    for file in (path for path in whole.rglob("*") if path.is_file() and path.name != "lock"):
        name = file.relative_to(whole).as_posix()
        store.write("ledger/000000000000.jsonl" if name == "ledger.jsonl" else name, file.read_bytes())
    s3.requests.clear()
    found = orchestrator.export(str(where), 2, output=here / "out")
    assert {method for method, _ in s3.requests} <= {"GET", "HEAD"}
    for file in local.path.iterdir():
        assert (found.path / file.name).read_bytes() == file.read_bytes(), file.name
    for trial in analysis.load(whole).trials["number"]:
        if trial != chosen(whole)[0].trial.number:
            store.remove(f"{FOLDER}/{checkpoint_name(trial)}")
    gone = refused(lambda: orchestrator.export(str(where), 2, output=here / "gone"))
    assert gone.endswith("ranks that can be exported: 1")


def test_numbers_that_are_missing_are_left_out() -> None:
    row = {"seeds": 1, "score": float("nan"), "valid_accuracy": 0.5, "valid_accuracy_std": pd.NA}
    assert exporting._ranking(row, {"rank": 1}, 3) == {
        "rank": 1,
        "trials": 3,
        "seeds": 1,
        "score": None,
        "valid_accuracy": 0.5,
    }
