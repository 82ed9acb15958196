"""What a user or a download supplies never runs, never leads out of its folder, and no secret is told or kept."""

import contextlib
import io
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import analysis
import spaces
from analysis.errors import BadInput as AnalysisBadInput
from orchestrator import cli, launch, show
from orchestrator.recipe import Recipe
from orchestrator.run_directory import Run, environment
from spaces import Task, bounds, own
from spaces.bounds import bounded, check_size
from spaces.errors import BadInput
from trainables import data, export, teachers
from trainables.images import cached

SECRET = "sesame-open-12345"
ARCH = {"depth1": 1, "depth2": 1, "depth3": 1, "width": 2}
RAW: dict[str, Any] = {
    "name": "small",
    "task": {"dataset": "digits", "subset": 40, "valid": 20, "test_subset": 20},
    "teacher": {"space": "resnet", "arch": ARCH, "random": True},
    "space": {"name": "resnet", "choices": {"width": [2, 3]}},
    "stages": [{"name": "final", "trial": "distill", "epochs": 1, "trials": 2}],
}
SPACE = """from ray import tune
from torch import nn
PARAM_SPACE = {"width": tune.choice([2, 4])}
def build(arch, task):
    width = arch["width"]
    return nn.Sequential(nn.Conv2d(task.channels, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(width, task.classes))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(done: Callable[[], Any]) -> str:
    with pytest.raises((BadInput, AnalysisBadInput)) as caught:
        done()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def written(raw: dict[str, Any], file: Path = Path("recipe.yaml")) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(raw, explicit_end=True))
    return file


def dux(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, output, complaints."""
    monkeypatch.setattr(sys, "argv", ["dux", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capfd.readouterr()
    return int(ended.value.code or 0), said.out, said.err


# Nothing is unpickled


class Payload:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("canary",)


def malice(kind: str) -> bytes:
    out = io.BytesIO()
    match kind:
        case "pickle":
            pickle.dump(Payload(), out)
        case "torch":
            torch.save({"weight": Payload()}, out)
        case "old torch":
            torch.save({"weight": Payload()}, out, _use_new_zipfile_serialization=False)
        case "parquet":
            table = pa.table({"hash": ["a"], "snip": [1.0]})
            kept = {b"pandas": pickle.dumps(Payload()), b"ARROW:schema": pickle.dumps(Payload())}
            pq.write_table(table.replace_schema_metadata(kept), out)
        case "numpy":
            import numpy as np

            np.save(out, np.array([Payload()], dtype=object), allow_pickle=True)
    return out.getvalue()


MALICE = ["pickle", "torch", "old torch", "parquet", "numpy"]


def test_the_malice_of_these_tests_is_real(folder: Path) -> None:
    pickle.loads(malice("pickle"))
    assert Path("canary").exists()


@pytest.mark.parametrize("kind", MALICE)
@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.safetensors", "a.bin", "a"])
def test_no_teacher_is_unpickled(folder: Path, kind: str, name: str) -> None:
    Path(name).write_bytes(malice(kind))
    images = data.load(data.DataConfig(subset=20, valid=10, test_subset=10))
    member = teachers.build(teachers.TeacherConfig(space="resnet", arch=ARCH, random=True), images)
    assert name in refusal(lambda: teachers.load_weights(member, name))
    assert not Path("canary").exists()


@pytest.mark.parametrize("kind", MALICE)
def test_no_checkpoint_is_unpickled(folder: Path, kind: str) -> None:
    with pytest.raises(Exception, match=r"."):  # whatever says so: the run's files are dux's own
        export.save_student(malice(kind), folder / "best", {})
    assert not Path("canary").exists()


@pytest.mark.parametrize("kind", MALICE)
def test_no_table_and_no_data_is_unpickled(folder: Path, kind: str) -> None:
    for name in ("trials.parquet", "epochs.parquet", "train.parquet", "scores.parquet"):
        Path(name).write_bytes(malice(kind))
    run = {"event": "run", "name": "a", "schema": 1}
    Path("ledger.jsonl").write_text(json.dumps(run) + "\n")
    assert len(analysis.load(folder).trials) == 0  # tables that do not belong to the ledger are made anew
    refusal(lambda: data.load(data.DataConfig("parquet", path=".")))
    refusal(lambda: analysis.load_scores("scores.parquet"))
    assert not Path("canary").exists()


@pytest.mark.parametrize("kind", MALICE)
def test_no_kept_image_is_unpickled(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUX_CACHE", str(folder / "cache"))
    made = data.load(data.DataConfig(subset=20, valid=10, test_subset=10)).train
    labelled = data.Labelled(made.images, made.labels, ("a",))
    cached("key", lambda: labelled)
    for file in (folder / "cache").rglob("*.npy"):
        file.write_bytes(malice(kind))
    assert (cached("key", lambda: labelled).images == made.images).all()
    assert not Path("canary").exists()


@pytest.mark.parametrize("text", ["!!python/object/apply:os.mkdir [canary]", "!!python/name:os.mkdir ''"])
def test_no_recipe_names_code(folder: Path, text: str) -> None:
    Path("recipe.yaml").write_text(f"name: {text}")
    refusal(lambda: Recipe.load("recipe.yaml"))
    refusal(lambda: dict([cli._assignment(f"name={text}")]))
    assert not Path("canary").exists()


# Paths


def test_paths_beside_the_recipe_become_whole(folder: Path) -> None:
    for name in ("there/images", "there/more"):
        Path(name).mkdir(parents=True)
    Path("there/teacher.safetensors").touch()
    task = {"dataset": "folder", "path": "images/../images"}
    teacher = {"space": "resnet", "arch": ARCH, "weights": "teacher.safetensors"}
    raw = {**RAW, "task": task, "teacher": teacher, "more_teachers": [{**teacher, "weights": "elsewhere.pt"}]}
    recipe = Recipe.load(written(raw, Path("there/recipe.yaml")))
    assert recipe.task.path == str(folder / "there/images")
    assert recipe.teacher is not None
    assert recipe.teacher.weights == str(folder / "there/teacher.safetensors")
    assert recipe.more_teachers[0].weights == "elsewhere.pt"
    with Run.create(recipe, Path("runs"), "a") as run:
        assert run.recipe.more_teachers[0].weights == str(folder / "elsewhere.pt")
        assert "../" not in (run.path / "recipe.yaml").read_text()


def test_a_link_to_weights_keeps_its_name(folder: Path) -> None:
    Path("blob").touch()
    Path("model.safetensors").symlink_to("blob")  # as caches of downloads lay them out
    raw = {**RAW, "teacher": {"space": "resnet", "arch": ARCH, "weights": "model.safetensors"}}
    recipe = Recipe.load(written(raw))
    assert recipe.teacher is not None
    assert recipe.teacher.weights == str(folder / "model.safetensors")


@pytest.mark.parametrize("key", ["space.file=../mine.py", "space={file: ../mine.py}", "space={file: a/../../mine.py}"])
def test_no_recipe_leads_out_of_its_folder(folder: Path, key: str) -> None:
    Path("inner").mkdir()
    Path("mine.py").write_text(SPACE)
    path, value = cli._assignment(key)
    raw = {**RAW, "space": {"file": value} if path == "space.file" else value}
    assert "'..'" in refusal(lambda: Recipe.load(written(raw, Path("inner/recipe.yaml"))))
    assert "'..'" in refusal(lambda: Recipe.load(written({"extends": "../recipe.yaml"}, Path("inner/recipe.yaml"))))


@pytest.fixture
def made(folder: Path) -> Path:
    """A run with a space of its own."""
    Path("mine.py").write_text(SPACE)
    recipe = Recipe.load(written({**RAW, "space": {"file": "mine.py"}}))
    with Run.create(recipe, Path("runs"), "a") as run:
        assert run.recipe.space.file == str(run.path.resolve() / "mine.py")
    assert "file: mine.py" in Path("runs/a/recipe.yaml").read_text()
    Path("evil.py").write_text("open('canary', 'w')")
    return Path("runs/a")


@pytest.mark.parametrize("file", ["../../evil.py", "{folder}/evil.py", "evil.py", "./mine.py", "..", "/", "~/evil.py"])
def test_a_run_executes_only_what_lies_in_it(made: Path, folder: Path, file: str) -> None:
    raw = yaml.safe_load((made / "recipe.yaml").read_text())
    written({**raw, "space": {"file": file.format(folder=folder)}}, made / "recipe.yaml")
    assert "plain name" in refusal(lambda: Run.open(made))
    assert not Path("canary").exists()


@pytest.mark.parametrize("changes", [
    {"extends": "quickstart"}, {"task": {"dataset": "folder", "path": "../../images"}},
    {"teacher": {"space": "resnet", "arch": ARCH, "weights": "a/../../../w.pt"}},
], ids=["extends", "data", "weights"])  # fmt: skip
def test_a_run_names_nothing_outside(made: Path, changes: dict[str, Any]) -> None:
    raw = yaml.safe_load((made / "recipe.yaml").read_text())
    written({**raw, **changes}, made / "recipe.yaml")
    assert str(made) in refusal(lambda: Run.open(made)) or changes


@pytest.mark.parametrize("name", ["lock", "ledger.jsonl", "recipe.yaml", "mine.py", "stages", "best"])
def test_a_link_out_of_a_run_is_refused_and_nothing_is_written_there(made: Path, folder: Path, name: str) -> None:
    target = folder / "target"
    if (made / name).exists():
        shutil.copy(made / name, target)
        (made / name).unlink()
    else:
        target.write_text("precious")
    before = target.read_bytes()
    (made / name).symlink_to(target)
    for finished in (False, True):
        assert "leads out of the run's directory" in refusal(lambda: Run.open(made))
        assert "leads out of the run's directory" in refusal(lambda: launch.take_up(made, None, False))
        assert target.read_bytes() == before
        if not finished:  # a finished run is not run again, but what it has lost is written
            with target.open("a") if name == "ledger.jsonl" else (made / "ledger.jsonl").open("a") as ledger:
                ledger.write('{"event": "run_end", "time": 1.0, "seconds": 1.0}\n')
            before = target.read_bytes()


def test_a_run_is_not_started_from_where_links_lead_out(made: Path, folder: Path) -> None:
    (made / "mine.py").unlink()
    (made / "mine.py").symlink_to(folder / "evil.py")
    recipe = Recipe.load("recipe.yaml")
    assert "leads out of the run's directory" in refusal(
        lambda: launch.launch(recipe, {}, Path("runs"), "b", None, False, origin=made)
    )
    assert not Path("canary").exists()


def test_a_link_to_itself_is_refused(made: Path) -> None:
    (made / "one").symlink_to("two")
    (made / "two").symlink_to("one")
    assert "leads out of the run's directory" in refusal(lambda: launch.take_up(made, None, False))


def test_a_link_within_a_run_and_a_link_to_it_are_fine(made: Path) -> None:
    (made / "also.yaml").symlink_to("recipe.yaml")
    Path("link").symlink_to(made)
    Run.open(Path("link")).close()


@pytest.mark.parametrize("key", ["name", "stages.0.name", "task.dataset", "space.name"])
@pytest.mark.parametrize("value", ["../out", "/out", "a/b", "..", ".", "a" * 300, "out\n", "C:\\out", "%2e%2e"])
def test_no_name_makes_a_file_elsewhere(folder: Path, key: str, value: str) -> None:
    from orchestrator.prepared import Search

    recipe = written(RAW, Path("given/recipe.yaml"))
    refusal(lambda: Search.prepare(Recipe.load(recipe, {key: value})))
    assert [path.name for path in folder.iterdir()] == ["given"]


# Secrets


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SOME_ACCESS_TOKEN", SECRET)
    return SECRET


def held(folder: Path, secret: str) -> list[str]:
    """The files in which it stands."""
    return [str(file) for file in folder.rglob("*") if file.is_file() and secret.encode() in file.read_bytes()]


@pytest.mark.parametrize("text", [f"https://host/{SECRET}/w.pt", "https://me:pass@host/w.pt", "h://host?token=abc"])
def test_a_recipe_with_a_secret_is_refused_without_telling_it(
    folder: Path, secret: str, text: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = f"teacher={{space: resnet, arch: {ARCH}, weights: '{text}'}}".replace("'depth", "depth")
    arguments = ("--storage", "runs", "--set", weights)
    for more in ((), ("--dry-run",)):
        code, out, complaint = dux(monkeypatch, capfd, "run", written(RAW), *arguments, *more)
        assert (code, out) == (2, "")
        assert "teacher.weights holds a secret" in complaint
        assert complaint.count("\n") == 1
        assert text not in complaint
        assert SECRET not in complaint
    assert [path.name for path in folder.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize("where", ["at import", "in build"])
def test_an_error_in_a_users_file_tells_no_secret(
    folder: Path, secret: str, where: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    failing = "import os\nraise RuntimeError('x' * 190 + os.environ['SOME_ACCESS_TOKEN'])\n"
    inside = failing.replace("\n", "\n    ").rstrip()
    text = failing if where == "at import" else SPACE.replace("    width =", f"    {inside}\n    width =")
    Path("mine.py").write_text(text)
    code, _, complaint = dux(monkeypatch, capfd, "run", written({**RAW, "space": {"file": "mine.py"}}), "--dry-run")
    assert code == 2
    assert "RuntimeError" in complaint
    assert SECRET[:8] not in complaint  # nor a part of it, where a long message is cut
    assert complaint.count("\n") == 1


def test_a_run_keeps_no_secret(folder: Path, secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Run.create(Recipe.parse(RAW), Path("runs"), "a") as run:
        run.note("final", f"could not read https://me:{SECRET}@host/a")
        run.note("final", f"could not read https://me:{SECRET}@host/a")
        assert [event["text"] for event in run.events() if event["event"] == "note"] == [
            "could not read https://***@host/a"
        ]
    assert held(folder, SECRET) == []
    assert held(Path("runs"), "could not read")


def test_the_environment_that_is_kept_holds_no_variable() -> None:
    values = {value for value in os.environ.values() if len(value) > 12 and "/" not in value}
    kept = json.dumps(environment())
    assert [value for value in values if value in kept] == []


# What is shown


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "\u202e", "a" * 5000, "", "\udc80", "../a"])
@pytest.mark.parametrize("command", ["run", "status", "rank", "resume"])
def test_a_complaint_is_one_line_that_a_terminal_can_show(
    folder: Path, name: str, command: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, complaint = dux(monkeypatch, capfd, command, name)
    assert (code, out) == (2, "")
    assert complaint.startswith("dux: ")
    assert complaint.endswith("\n")
    assert complaint[:-1].isprintable()
    assert len(complaint) < 2_100


ESCAPE = "\x1b]0;x\x07\u202e"


def test_a_ledger_tells_a_terminal_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    about = {"stage": f"[/x]:smile:{ESCAPE}", "number": 0, "proposal": 0, "seed": 0, "control": False}
    with Run.create(Recipe.parse(RAW), Path("[old]"), "a") as run:
        run.ledger.append("teacher", name=f"[/y]{ESCAPE}", metrics={"valid_accuracy": ESCAPE}, flops=ESCAPE)
        run.ledger.append("stage", index=1, trial="distill", **about)
        run.ledger.append("trial", arch={f"[/z]{ESCAPE}": ESCAPE}, hash="a", **about)
        run.ledger.append("report", epoch=1, seconds=None, metrics={"objective": 1.0, f"[/w]{ESCAPE}": 1.0}, **about)
        run.ledger.append("end", status="failed", reason=f"[/v]{ESCAPE}", **about)
    for command in ("status", "rank"):
        code, out, complaint = dux(monkeypatch, capfd, command, "[old]/a")
        assert (code, complaint) == (0, "")
        assert [line for line in out.splitlines() if not line.isprintable()] == []
    code, out, _ = dux(monkeypatch, capfd, "status", "[old]/a")
    for text in ("[old]/a", "[/x]:smile:\\x1b", "teacher [/y]", "[/v]\\x1b"):
        assert text in out
    cli._present(analysis.load("[old]/a"))
    assert "the run lies in [old]/a;" in capfd.readouterr().out


def test_progress_tells_a_runs_address_as_it_is(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from orchestrator.progress import Progress

    with Run.create(Recipe.parse(RAW), Path("[old]\x1b"), "a") as run, Progress(run, live=False):
        pass
    assert "run [old]\\x1b/a\n" in capfd.readouterr().err


# Lines that no run writes; each follows the beginning of a run.
CRAFTED: dict[str, list[dict[str, Any]]] = {
    "kept nothing": [{"event": "kept"}, {"event": "run_end", "seconds": 1.0}],
    "kept a text": [{"event": "kept", "files": "best"}, {"event": "run_end", "seconds": 1.0}],
    "an end without stages": [{"event": "run_end", "seconds": 1.0}],
    "a note of nothing": [{"event": "note"}],
    "a note of a list": [{"event": "note", "stage": "final", "text": []}],
    "taken from nothing": [{"event": "taken", "stage": "final", "trials": 0}],
    "a huge number": [{"event": "stage", "stage": "final", "index": 10**30, "trial": "distill"}],
    "a huge setting": [
        {"event": "stage", "stage": "final", "index": 1, "trial": "distill"},
        {"event": "trial", "stage": "final", "number": 0, "proposal": 0, "seed": 0, "control": False, "arch": {},
         "hash": "a", "params": {"x": 10**30}},
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_ledger_is_refused_or_shown(folder: Path, name: str) -> None:
    with Run.create(Recipe.parse(RAW), Path("runs"), "a") as run:
        for event in CRAFTED[name]:
            run.ledger.append(**event)
    with contextlib.suppress(BadInput, AnalysisBadInput):
        show.console().print(show.status(analysis.load("runs/a"), None))
    assert "ledger" in refusal(lambda: launch.take_up(Path("runs/a"), None, False))


def test_a_finished_run_without_stages_is_shown(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Run.create(Recipe.parse(RAW), Path("runs"), "a") as run:
        run.ledger.append("kept", files={})
        run.ledger.append("run_end", seconds=1.0)
    cli._present(launch.take_up(Path("runs/a"), None, False))
    assert "no student has finished" in capfd.readouterr().out


def test_a_recipe_in_the_ledger_that_is_none_is_refused(made: Path) -> None:
    ledger = made / "ledger.jsonl"
    event = json.loads(ledger.read_text())
    ledger.write_text(json.dumps({**event, "resolved": "a text"}) + "\n")
    (made / "recipe.yaml").unlink()
    assert "has 'resolved' of type str" in refusal(lambda: launch.take_up(made, None, False))


ABSURD = [
    "stages.final.trials=1000000000000", "stages.final.epochs=1000000000", "task.subset=1000000000000000",
    "task.image_size=1000000", "space.choices.width=[1000000000]", "space.choices.depth1=[1000000000]",
    "space.choices.width={randint: [1, 1000000000000]}", "teacher.arch.width=1000000000",
    "teacher.arch.depth2=1000000000", "stages.final.batch_size=1000000000000", "seed=1e999", "seed=" + "9" * 5000,
    "stages.final.scheduler={name: asha, reduction_factor: 1.000000001}", "stages.final.seeds=1000000000000",
    "stages.final.sampler={name: evolution, population: 1000000000000}",
]  # fmt: skip


@pytest.mark.parametrize("change", ABSURD, ids=[text.partition("=")[0] + f"-{i}" for i, text in enumerate(ABSURD)])
@pytest.mark.timeout(100)
def test_absurd_sizes_take_neither_memory_nor_time(folder: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    from orchestrator.prepared import Search

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr(bounds, "MODULES", 2_000)  # so that this test takes no time either
    with contextlib.suppress(BadInput):
        Search.prepare(Recipe.load(written(RAW), dict([cli._assignment(change)])))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


def test_a_network_that_is_too_large_is_refused_before_it_takes_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "SHARE", 1e-9)
    task, space = Task(1, 8, 10), spaces.get("resnet")
    assert "too large" in refusal(lambda: space.build(ARCH, task))
    assert "too large" in refusal(lambda: check_size(lambda: torch.nn.Linear(10**5, 10**5)))
    monkeypatch.undo()
    assert space.build(ARCH, task) is not None
    monkeypatch.setattr(bounds, "MODULES", 10)
    assert "over 10 modules" in refusal(lambda: space.build(ARCH, task))
    monkeypatch.undo()
    with bounded():
        pass
    torch.nn.Linear(2, 2)  # outside nothing is counted


def test_a_space_of_many_megabytes_is_not_read(folder: Path) -> None:
    Path("mine.py").write_text(SPACE + "#" * 3_000_000)
    assert "too large" in refusal(lambda: own.load("mine.py"))


def test_a_table_of_trials_stays_as_it_is(folder: Path) -> None:
    table = pd.DataFrame({"hash": ["a", "b"], "snip": [1.0, 2.0], "params": [3, 4]})
    table.to_parquet("scores.parquet")
    assert list(analysis.load_scores("scores.parquet")["params"]) == [3, 4]
