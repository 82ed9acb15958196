"""A run's directory: whole or absent, held by one process, and refused where it is none."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.disk import disk_use
from orchestrator.existing import check_run, holder
from orchestrator.recipe import Recipe
from orchestrator.run_directory import PACKAGES, Run
from spaces.errors import BadInput

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return Recipe.load("quickstart", {"stages.short.epochs": 2})


def refused(action) -> str:
    with pytest.raises(BadInput) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_run_is_made_whole(tmp_path, recipe):
    storage = tmp_path / "deep" / "runs"
    with Run.create(recipe, storage, "first") as run:
        assert [path.name for path in storage.iterdir()] == ["first"]
        assert {path.name for path in run.path.iterdir()} == {"recipe.yaml", "environment.json", "ledger.jsonl", "lock"}
        assert Recipe.load(run.path / "recipe.yaml") == run.recipe == recipe
        assert [(event["event"], event["name"]) for event in run.events()] == [("run", "first")]
    found = json.loads((storage / "first" / "environment.json").read_text())
    assert set(found["versions"]) == set(PACKAGES)
    assert found["cpus"] == os.cpu_count()


def test_a_run_is_named_after_its_recipe_and_the_time(tmp_path, recipe):
    with Run.create(recipe, tmp_path) as run:
        assert run.path.name.startswith("quickstart-2")


def test_a_run_that_exists_is_left_as_it_is(tmp_path, recipe):
    Run.create(recipe, tmp_path, "a").close()
    before = {path: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    text = refused(lambda: Run.create(recipe, tmp_path, "a"))
    assert "exists" in text
    assert f"dux resume {tmp_path / 'a'}" in text
    assert {path: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "-x", "a\nb"])
def test_a_name_that_is_no_plain_name_is_refused(tmp_path, recipe, name):
    if name:
        assert "a run's name is made of" in refused(lambda: Run.create(recipe, tmp_path, name))
        assert list(tmp_path.iterdir()) == []
    else:
        Run.create(recipe, tmp_path, name).close()  # no name is the default name


@pytest.mark.parametrize("room", [0, 100, 3000])
def test_a_full_disk_leaves_nothing_half_made(tmp_path, recipe, room):
    long = recipe.overridden({"task.path": "x" * 2500})  # the recipe fits into 3,000 bytes no more than into 100
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        text = refused(lambda: Run.create(long, tmp_path, "a"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert text == f"{tmp_path / 'a'}: cannot be created: File too large"
    assert list(tmp_path.iterdir()) == []


def test_storage_that_is_a_file_is_refused(tmp_path, recipe):
    (tmp_path / "file").write_text("mine")
    assert "cannot be created" in refused(lambda: Run.create(recipe, tmp_path / "file", "a"))
    assert "cannot be created" in refused(lambda: Run.create(recipe, tmp_path / "file" / "deeper", "a"))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path, recipe):
    tmp_path.chmod(0o500)
    assert "Permission denied" in refused(lambda: Run.create(recipe, tmp_path, "a"))
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_run_cannot_be_opened(tmp_path, recipe):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "recipe.yaml").write_text(recipe.to_yaml())
    for name, lacks in (("empty", "recipe.yaml"), ("missing", "recipe.yaml"), ("file", "recipe.yaml"),
                        ("half", "ledger.jsonl")):  # fmt: skip
        text = refused(lambda name=name: Run.open(tmp_path / name))
        assert text == f"{tmp_path / name} is no run's directory: it has no {lacks}"
        assert text == refused(lambda name=name: check_run(tmp_path / name))
    assert not (tmp_path / "missing").exists()
    assert list((tmp_path / "empty").iterdir()) == []


def test_taking_up_a_run_is_noted(tmp_path, recipe):
    Run.create(recipe, tmp_path, "a").close()
    with Run.open(tmp_path / "a") as run:
        assert [event["event"] for event in run.events()] == ["run", "resume"]
        assert run.recipe == recipe


def test_a_run_is_held_by_one_at_a_time(tmp_path, recipe):
    path = tmp_path / "a"
    with Run.create(recipe, tmp_path, "a"):
        assert f"{path} is held by another process ({os.getpid()})" in refused(lambda: Run.open(path))
        assert holder(path) == os.getpid()
        (path / "lock").write_bytes(b"abc\xff")
        assert holder(path) == 0  # held, by whom the lock does not tell
        assert "is held by another process" in refused(lambda: Run.open(path))
    assert holder(path) is None
    Run.open(path).close()


def test_a_run_that_cannot_be_locked_is_refused(tmp_path, recipe):
    Run.create(recipe, tmp_path, "a").close()
    (tmp_path / "a" / "lock").unlink()
    assert holder(tmp_path / "a") is None
    assert not (tmp_path / "a" / "lock").exists()  # asking leaves nothing
    (tmp_path / "a" / "lock").mkdir()
    assert "cannot be written to" in refused(lambda: Run.open(tmp_path / "a"))


def test_a_killed_process_lets_go_of_its_run(tmp_path, recipe):
    path = tmp_path / "a"
    Run.create(recipe, tmp_path, "a").close()
    code = f"""
from pathlib import Path
from orchestrator.run_directory import Run
run = Run.open(Path({str(path)!r}))
print("held", flush=True)
input()
"""
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        before = (path / "ledger.jsonl").read_bytes()
        text = refused(lambda: Run.open(path))
        assert f"held by another process ({child.pid})" in text
        assert f"dux status {path}" in text
        assert holder(path) == child.pid
        assert (path / "ledger.jsonl").read_bytes() == before
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert holder(path) is None
    with Run.open(path) as run:
        assert [event["event"] for event in run.events()] == ["run", "resume", "resume"]


def test_a_note_is_taken_once_of_each_stage(tmp_path):
    with Run.create(Recipe.load("quickstart"), tmp_path, "a") as run:
        for stage in (*run.recipe.stages[:2], *run.recipe.stages[:2]):
            run.note(stage.name, "the same")
        assert [event["stage"] for event in run.events() if event["event"] == "note"] == ["score", "short"]


def test_a_recipe_is_kept_in_utf8_whatever_the_locale(tmp_path):
    code = f"""
from pathlib import Path
from orchestrator.recipe import Recipe
from orchestrator.run_directory import Run
Run.create(Recipe.load("quickstart", {{"task.path": "/daten/\\u00e4\\u4e00"}}), Path({str(tmp_path)!r}), "a").close()
Run.open(Path({str(tmp_path)!r}) / "a").close()
"""
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=plain, check=True)
    assert "ä一" in (tmp_path / "a" / "recipe.yaml").read_text(encoding="utf-8")


def test_what_may_not_be_looked_at_is_not_counted(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text("x" * 10)
    (tmp_path / "hidden").mkdir()
    scan = os.scandir

    def refusing(folder):
        if folder.endswith("hidden"):
            raise PermissionError(13, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    assert disk_use(tmp_path) == {"ledger": 10}
