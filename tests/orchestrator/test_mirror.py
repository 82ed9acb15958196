"""A run in an object store: what is brought there, when it is taken up, by whom, and what is refused. Without Ray."""

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_store import BUCKET, ObjectStore, serving

import analysis
from analysis.remote import Address, exists, place
from orchestrator import mirror as mirrors
from orchestrator.addresses import address_of, working_directory
from orchestrator.mirror import LEASE, Mirror, mirrored
from orchestrator.recipe import Recipe
from orchestrator.run_directory import Run, RunFailed, check_new, check_run
from spaces.errors import BadInput


@pytest.fixture(scope="module")
def s3() -> Iterator[ObjectStore]:
    with serving() as server:
        yield server


@pytest.fixture
def where(s3, tmp_path, monkeypatch) -> Iterator[Address]:
    """The address of a run that is not there, for a machine with an empty cache."""
    monkeypatch.setenv("DUX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(mirrors, "HASTE", 0.6)
    yield place(f"s3://{BUCKET}/{tmp_path.name}/runs") / "a"
    s3.fails = lambda environ: None


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return Recipe.load("quickstart", {"stages.short.epochs": 2})


def begun(where: Address, recipe: Recipe) -> Path:
    """A run that has been begun, brought over and let go."""
    folder = working_directory(where)
    Run.create(recipe, folder.parent, folder.name).close()
    with mirrored(where, new=True):
        pass
    return folder


def elsewhere(monkeypatch, tmp_path, name="other") -> None:
    """From here on this is another machine: its cache is empty."""
    monkeypatch.setenv("DUX_CACHE", str(tmp_path / name))


def note(folder: Path, *texts: str) -> None:
    with Run(folder) as run:
        for text in texts:
            run.ledger.append("note", stage="score", text=text)


def notes(folder: Path | Address) -> list[str]:
    return [event["text"] for event in analysis.events(folder) if event["event"] == "note"]


def refused(action) -> str:
    with pytest.raises((BadInput, analysis.BadInput)) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def enter(where, **how) -> None:
    with mirrored(where, **how):
        pass


def there(s3: ObjectStore, where: Address) -> set[str]:
    prefix = f"{where.partition('://')[2].partition('/')[2]}/"
    return {key.removeprefix(prefix) for key in s3.keys(prefix) if not key.endswith("/")}


def prefix_of(where: Address) -> str:
    return where.partition("://")[2].partition("/")[2]


def test_a_run_is_brought_over_and_let_go(s3, where, recipe):
    folder = begun(where, recipe)
    assert there(s3, where) == {"recipe.yaml", "environment.json", "ledger/000000000000.jsonl"}
    assert s3.get(f"{prefix_of(where)}/ledger/000000000000.jsonl") == (folder / "ledger.jsonl").read_bytes()
    assert address_of(folder) == where
    assert mirrors.lease(where) is None
    assert "exists" in refused(lambda: check_new(where, "a"))
    check_run(where)


def test_what_is_new_goes_over_as_the_run_goes(s3, where, recipe, monkeypatch):
    monkeypatch.setattr(mirrors, "EVERY", 0.05)
    folder = begun(where, recipe)
    with mirrored(where) as (path, mirror), Run(path) as run:
        mirror.serve(run)
        run.ledger.append("note", stage="score", text="new")
        (folder / "best").mkdir()
        (folder / "best" / "weights.safetensors").write_bytes(b"weights")
        (folder / ".half-written.x").write_bytes(b"no")
        (folder / "stages" / "01-score" / "alive").mkdir(parents=True)
        (folder / "stages" / "01-score" / "alive" / "1").write_bytes(b"no")
        until = time.monotonic() + 10
        while notes(where) != ["new"]:
            assert time.monotonic() < until
        assert mirrors.lease(where)["pid"] == os.getpid()
        assert f"{os.getpid()} on " in mirrors.held(where)
    kept = {"recipe.yaml", "environment.json", "best/weights.safetensors", "ledger/000000000000.jsonl"}
    assert there(s3, where) == kept
    s3.requests.clear()
    with mirrored(where) as (_, mirror):
        before = len(s3.requests)
        mirror.sync()
        mirror.sync()
        assert len(s3.requests) == before  # nothing is new


def test_the_ledger_goes_in_parts(s3, where, recipe, monkeypatch, tmp_path):
    monkeypatch.setattr(mirrors, "PART", 500)
    folder = begun(where, recipe)
    sent = 0
    with mirrored(where) as (_, mirror):
        for number in range(30):
            note(folder, f"{number} " + "x" * 60)
            s3.received = 0
            mirror.sync()
            sent = max(sent, s3.received)
    whole = (folder / "ledger.jsonl").read_bytes()
    parts = sorted(name for name in there(s3, where) if name.startswith("ledger/"))
    assert len(parts) > 4
    assert sent < 1500  # never the ledger again: a part, and its last lines
    assert b"".join(s3.get(f"{prefix_of(where)}/{part}") for part in parts) == whole
    assert notes(where) == notes(folder)
    elsewhere(monkeypatch, tmp_path)
    with mirrored(where) as (path, _):
        assert (path / "ledger.jsonl").read_bytes() == whole
        note(path, "further")
    assert notes(where) == [*notes(folder), "further"]


def test_a_line_that_is_being_written_stays_behind(s3, where, recipe):
    folder = begun(where, recipe)
    with mirrored(where) as (_, mirror):
        with open(folder / "ledger.jsonl", "ab") as file:
            file.write(b'{"event": "no')
        mirror.sync()
        assert s3.get(f"{prefix_of(where)}/ledger/000000000000.jsonl").endswith(b"}\n")


def test_a_run_goes_on_elsewhere_with_all_its_files(s3, where, recipe, monkeypatch, tmp_path):
    folder = begun(where, recipe)
    with mirrored(where):
        note(folder, "here")
        (folder / "teacher.safetensors").write_bytes(b"weights")
        (folder / "best").mkdir()
        (folder / "best" / "student.json").write_text("{}")
    elsewhere(monkeypatch, tmp_path)
    with mirrored(where) as (path, _):
        assert path != folder
        assert notes(path) == ["here"]
        assert (path / "teacher.safetensors").read_bytes() == b"weights"
        assert (path / "best" / "student.json").read_text() == "{}"
        with Run.open(path) as run:
            assert run.address == where
            assert run.store.root == where


def test_the_directory_that_is_ahead_of_the_store_is_right(s3, where, recipe):
    folder = begun(where, recipe)
    note(folder, "not brought over: killed before")
    (folder / "recipe.yaml").write_text(recipe.to_yaml() + "# mended\n...\n")
    assert notes(where) == []
    enter(where)
    assert notes(where) == notes(folder) == ["not brought over: killed before"]
    assert b"# mended" in s3.get(f"{prefix_of(where)}/recipe.yaml")


def test_the_store_that_is_ahead_of_the_directory_is_right(where, recipe, monkeypatch, tmp_path):
    folder = begun(where, recipe)
    elsewhere(monkeypatch, tmp_path)
    with mirrored(where) as (path, _):
        note(path, "elsewhere")
        (path / "teacher.safetensors").write_bytes(b"elsewhere")
    elsewhere(monkeypatch, tmp_path, "cache")
    enter(where)
    assert notes(folder) == ["elsewhere"]
    assert (folder / "teacher.safetensors").read_bytes() == b"elsewhere"


def test_two_that_went_on_apart_are_refused_and_left_as_they_are(s3, where, recipe, monkeypatch, tmp_path):
    folder = begun(where, recipe)
    note(folder, "here")
    elsewhere(monkeypatch, tmp_path)
    with mirrored(where) as (path, _):
        note(path, "there")
    elsewhere(monkeypatch, tmp_path, "cache")
    objects = {name: s3.get(f"{prefix_of(where)}/{name}") for name in there(s3, where)}
    text = refused(lambda: enter(where))
    assert "has gone on elsewhere" in text
    assert str(folder) in text
    assert notes(folder) == ["here"]
    assert {name: s3.get(f"{prefix_of(where)}/{name}") for name in there(s3, where)} == objects
    shutil.rmtree(folder)
    enter(where)
    assert notes(folder) == ["there"]


def test_a_run_is_held_by_one_machine(s3, where, recipe, monkeypatch, tmp_path):
    begun(where, recipe)
    with mirrored(where) as (path, _):
        elsewhere(monkeypatch, tmp_path)
        text = refused(lambda: enter(where))
        assert f"held by process {os.getpid()} on " in text
        assert not (working_directory(where) / "ledger.jsonl").exists()
        elsewhere(monkeypatch, tmp_path, "cache")
        assert "held by another process of this machine" in refused(lambda: enter(where))
        assert mirrors.lease(where) is not None  # the refused have not taken it away
        assert notes(path) == []
    enter(where)


def held_since(s3: ObjectStore, where: Address, seconds: float) -> None:
    """A lease that a killed process of another machine has left."""
    text = json.dumps({"host": "far", "pid": 7, "time": time.time() - seconds, "token": "another"})
    s3.put(f"{prefix_of(where)}/{LEASE}", text.encode())


def test_a_lease_that_has_expired_is_taken_over(s3, where, recipe):
    begun(where, recipe)
    held_since(s3, where, 20)
    assert "held by process 7 on far" in refused(lambda: enter(where))
    assert "try again in 40 s" in refused(lambda: enter(where))
    held_since(s3, where, 61)
    assert mirrors.held(where) is None
    enter(where)


def test_a_killed_process_of_this_directory_need_not_be_waited_for(where, recipe):
    folder = begun(where, recipe)
    mirror = Mirror(folder, where)
    mirror.hold()
    mirror._own.close()  # which is all that the system does for a process that is killed
    assert mirrors.lease(where) is not None
    enter(where)
    assert mirrors.lease(where) is None


def test_a_run_that_was_taken_over_ends(s3, where, recipe, monkeypatch):
    monkeypatch.setattr(mirrors, "EVERY", 0.05)
    monkeypatch.setattr(mirrors, "RENEW", 0.0)
    folder = begun(where, recipe)
    with mirrored(where) as (path, mirror), Run(path) as run:
        mirror.serve(run)
        until = time.monotonic() + 20
        while run.ledger.failure is None:
            held_since(s3, where, 0)  # again and again: it may come between this one's looking and writing
            assert time.monotonic() < until
            time.sleep(0.02)
        with pytest.raises(OSError, match="process 7 on far has taken the run over"):
            run.ledger.append("note", stage="score", text="too late")
    assert notes(folder) == []
    assert json.loads(s3.get(f"{prefix_of(where)}/{LEASE}"))["token"] == "another"  # it is theirs now


def test_a_store_that_stays_away_ends_the_run_and_nothing_is_lost(s3, where, recipe, monkeypatch):
    monkeypatch.setattr(mirrors, "EVERY", 0.05)
    folder = begun(where, recipe)
    with mirrored(where) as (path, mirror), Run(path) as run:
        mirror._store = mirror._hastily()
        mirror.serve(run)
        s3.fails = lambda environ: "400 InvalidRequest"
        run.ledger.append("note", stage="score", text="kept here")
        until = time.monotonic() + 20
        while run.ledger.failure is None:
            assert time.monotonic() < until
            time.sleep(0.01)
    s3.fails = lambda environ: None
    assert notes(folder) == ["kept here"]
    assert notes(where) == []
    enter(where)
    assert notes(where) == ["kept here"]


def test_what_the_ledger_still_needs_is_removed_later(s3, where, recipe, monkeypatch):
    folder = begun(where, recipe)
    prefix = prefix_of(where)
    s3.put(f"{prefix}/stages/01-score/checkpoints/00001.pt", b"checkpoint")
    with mirrored(where) as (_, mirror):
        note(folder, "it has ended")
        mirror.discard("stages/01-score", "checkpoints/00001.pt")
        s3.fails = lambda environ: "403 AccessDenied" if "/ledger/" in environ["PATH_INFO"] else None
        with pytest.raises(OSError, match="ACCESS_DENIED"):
            mirror.sync()
        assert "stages/01-score/checkpoints/00001.pt" in there(s3, where)
        s3.fails = lambda environ: None
        mirror.sync()
        assert "stages/01-score/checkpoints/00001.pt" not in there(s3, where)


def test_where_nothing_can_be_written_nothing_is_half_made(s3, where, recipe):
    folder = working_directory(where)
    Run.create(recipe, folder.parent, folder.name).close()
    s3.fails = lambda environ: "403 AccessDenied" if environ["REQUEST_METHOD"] == "PUT" else None
    text = refused(lambda: enter(where, new=True))
    assert "refuses access" in text
    assert not folder.exists()
    assert there(s3, where) == set()
    Run.create(recipe, folder.parent, folder.name).close()
    s3.fails = lambda environ: "403 AccessDenied" if "/ledger/" in environ["PATH_INFO"] else None
    refused(lambda: enter(where, new=True))
    assert not folder.exists()
    s3.fails = lambda environ: None
    assert there(s3, where) == set()


def test_what_is_to_be_typed_names_the_address(where, recipe):
    folder = begun(where, recipe)
    with pytest.raises(RunFailed) as caught, mirrored(folder):
        raise RunFailed(f"interrupted; go on with it: dux resume {folder}")
    assert str(caught.value) == f"interrupted; go on with it: dux resume {where}"


def test_a_copy_of_a_working_directory_is_no_run(where, recipe, tmp_path):
    folder = begun(where, recipe)
    shutil.copytree(folder, tmp_path / "copy")
    assert f"the working directory of {where}" in refused(lambda: enter(tmp_path / "copy"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("s5://bucket/runs", "unknown kind of address 's5://'; did you mean 's3://'? known: s3://, gs://, abfs://"),
        ("file:///tmp/runs", "unknown kind of address 'file://'"),
        ("s3://", "names no folder in a bucket"),
        ("s3://bucket/../other", "names no folder in a bucket"),
        ("s3://bucket/runs?endpoint=x", "did you mean 'endpoint_override'?"),
        ("s3://nowhere-at-all/runs", "s3://nowhere-at-all/runs/a: the bucket does not exist"),
    ],
)
def test_an_address_that_cannot_be_is_one_line(s3, text, said):
    assert said in refused(lambda: check_run(place(text) / "a"))


def test_an_address_with_credentials_is_refused_and_not_repeated():
    for text in ("s3://AKIAKEY:SECRETWORD@bucket/runs", "s3://AKIAKEY@bucket/runs", "gs://me:SECRETWORD@bucket/runs"):
        said = refused(lambda text=text: place(text))
        assert "holds no credentials" in said
        assert "SECRETWORD" not in said
        assert "AKIAKEY" not in said


def test_an_address_is_no_path():
    assert "given as text" in refused(lambda: place(Path("s3://bucket/runs")))
    assert place("runs/a") == Path("runs/a")
    found = place("s3://bucket/runs/?scheme=http") / "a" / "scores.parquet"
    assert found == "s3://bucket/runs/a/scores.parquet?scheme=http"
    assert (found.name, found.suffix) == ("scores.parquet", ".parquet")


def test_a_run_that_is_not_there_is_one_line(s3, where):
    for action in (check_run, analysis.load, lambda run: list(analysis.events(run))):
        assert str(where) in refused(lambda action=action: action(where))
    assert there(s3, where) == set()
    assert not working_directory(where).exists()


def test_a_store_that_is_silent_or_not_there_is_one_line_in_time(where, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr("analysis.remote.SECONDS", 1.0)
        started = time.monotonic()
        assert "no object store answers there" in refused(lambda: exists(where, "recipe.yaml"))
        assert time.monotonic() - started < 4.0
    assert "no object store answers there" in refused(lambda: check_run(where))  # nobody listens by now
    assert not working_directory(where).exists()


def test_wrong_credentials_are_one_line(s3, where):
    s3.fails = lambda environ: "403 InvalidAccessKeyId"
    assert "set its credentials in the environment" in refused(lambda: check_run(where))
    assert "set its credentials in the environment" in refused(lambda: analysis.load(where))
