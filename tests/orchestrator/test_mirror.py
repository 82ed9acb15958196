"""A run in an object store: what is brought there, when it is taken up, and what is refused. Without Ray."""

import os
import shutil
import socket
import threading
import time
from pathlib import Path

import pytest
from mirrored_runs import begun, elsewhere, enter, made, note, notes, prefix_of, refused, there

import analysis
from analysis.remote import exists, opened, place
from orchestrator import mirror as mirrors
from orchestrator.addresses import address_of, to_resume, working_directory
from orchestrator.existing import check_run
from orchestrator.mirror import Mirror, mirrored
from orchestrator.run_directory import Run, check_new


def test_a_run_is_brought_over_and_let_go(s3, where, quickstart):
    folder = begun(where, quickstart)
    assert there(s3, where) == {"recipe.yaml", "environment.json", "ledger/000000000000.jsonl"}
    assert s3.get(f"{prefix_of(where)}/ledger/000000000000.jsonl") == (folder / "ledger.jsonl").read_bytes()
    assert address_of(folder) == where
    assert mirrors.lease(where) is None
    assert "exists" in refused(lambda: check_new(where, "a"))
    check_run(where)


def test_what_is_new_goes_over_as_the_run_goes(s3, where, quickstart, monkeypatch):
    monkeypatch.setattr(mirrors, "EVERY", 0.05)
    folder = begun(where, quickstart)
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


def test_the_ledger_goes_in_parts(s3, where, quickstart, monkeypatch, tmp_path):
    monkeypatch.setattr(mirrors, "PART", 500)
    folder = begun(where, quickstart)
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


def test_a_line_that_is_being_written_stays_behind(s3, where, quickstart):
    folder = begun(where, quickstart)
    with mirrored(where) as (_, mirror):
        with open(folder / "ledger.jsonl", "ab") as file:
            file.write(b'{"event": "no')
        mirror.sync()
        assert s3.get(f"{prefix_of(where)}/ledger/000000000000.jsonl").endswith(b"}\n")


def test_a_run_goes_on_elsewhere_with_all_its_files(s3, where, quickstart, monkeypatch, tmp_path):
    folder = begun(where, quickstart)
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


def test_the_directory_that_is_ahead_of_the_store_is_right(s3, where, quickstart):
    folder = begun(where, quickstart)
    note(folder, "not brought over: killed before")
    (folder / "recipe.yaml").write_text(quickstart.to_yaml() + "# mended\n...\n")
    assert notes(where) == []
    enter(where)
    assert notes(where) == notes(folder) == ["not brought over: killed before"]
    assert b"# mended" in s3.get(f"{prefix_of(where)}/recipe.yaml")


def test_the_store_that_is_ahead_of_the_directory_is_right(where, quickstart, monkeypatch, tmp_path):
    folder = begun(where, quickstart)
    elsewhere(monkeypatch, tmp_path)
    with mirrored(where) as (path, _):
        note(path, "elsewhere")
        (path / "teacher.safetensors").write_bytes(b"elsewhere")
    elsewhere(monkeypatch, tmp_path, "cache")
    enter(where)
    assert notes(folder) == ["elsewhere"]
    assert (folder / "teacher.safetensors").read_bytes() == b"elsewhere"


def test_a_ledger_that_is_cut_by_hand_is_cut_in_the_store(s3, where, quickstart, monkeypatch, tmp_path):
    monkeypatch.setattr(mirrors, "PART", 500)
    folder = begun(where, quickstart)
    with mirrored(where) as (_, mirror):
        for number in range(30):
            note(folder, str(number))
            mirror.sync()
    ledger = folder / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    # In the middle of a part, between two parts, and within the first one.
    sizes = [int(name[7:19]) for name in there(s3, where) if name.startswith("ledger/") and int(name[7:19])]
    between = next(count for count in range(20, 1, -1) if len(b"".join(lines[:count])) in sizes)
    for kept in (25, between, 2):
        ledger.write_bytes(b"".join(lines[:kept]))
        enter(where)
        assert ledger.read_bytes() == b"".join(lines[:kept])
        assert notes(where) == notes(folder)
    with mirrored(where):
        note(folder, "after the cut")
    stored = {name for name in there(s3, where) if name.startswith("ledger/")}
    assert len(stored) == 1 + (len(b"".join(lines[:2])) >= 500)
    elsewhere(monkeypatch, tmp_path)
    with mirrored(where) as (path, _):
        assert (path / "ledger.jsonl").read_bytes() == ledger.read_bytes()


def test_a_directory_that_lags_behind_another_machine_is_not_taken_for_cut(where, quickstart, monkeypatch, tmp_path):
    folder = begun(where, quickstart)
    with mirrored(where):
        note(folder, "1", "2")
    elsewhere(monkeypatch, tmp_path)
    with mirrored(where) as (path, _):
        note(path, "3")
    elsewhere(monkeypatch, tmp_path, "cache")
    note(folder)
    ledger = folder / "ledger.jsonl"
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:-1]))
    enter(where)
    assert notes(folder) == ["1", "2", "3"]


def test_a_broken_ledger_says_how_to_go_on_where_it_lies(where, quickstart, monkeypatch, tmp_path):
    folder = begun(where, quickstart)
    with mirrored(where), (folder / "ledger.jsonl").open("ab") as file:
        file.write(b"broken\n")
    assert f"computed again: dux resume {where} brings it here and says what to type" in refused(lambda: notes(where))
    enter(where)
    assert f"sed -i '2,$d' {folder}/ledger.jsonl; dux resume {folder}" in refused(lambda: notes(folder))


def test_two_that_went_on_apart_are_refused_and_left_as_they_are(s3, where, quickstart, monkeypatch, tmp_path):
    folder = begun(where, quickstart)
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


def test_a_store_that_stays_away_ends_the_run_and_nothing_is_lost(s3, where, quickstart, monkeypatch):
    monkeypatch.setattr(mirrors, "EVERY", 0.05)
    folder = begun(where, quickstart)
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


def test_files_that_vanish_while_they_are_listed_are_no_failure(where, quickstart):
    folder = made(where, quickstart)
    mirror = Mirror(folder, where)
    for _ in range(10):
        for number in range(12):
            inner = folder / "origin" / str(number)
            inner.mkdir(parents=True)
            for file in range(10):
                (inner / str(file)).touch()
        removal = threading.Thread(target=shutil.rmtree, args=(folder / "origin",))
        removal.start()
        while removal.is_alive():
            list(mirror._files())
        removal.join()
    assert [name for name, _ in mirror._files()] == ["environment.json", "recipe.yaml"]


def test_a_mistake_of_our_own_in_the_mirror_ends_the_run(where, quickstart, monkeypatch):
    monkeypatch.setattr(mirrors, "EVERY", 0.05)
    begun(where, quickstart)
    with mirrored(where) as (path, mirror), Run(path) as run, monkeypatch.context() as patched:
        patched.setattr(mirror, "_files", lambda: {}["missing"])
        mirror.serve(run)
        until = time.monotonic() + 10
        while run.ledger.failure is None:
            assert time.monotonic() < until
            time.sleep(0.01)
        with pytest.raises(OSError, match="the mirror failed: KeyError: 'missing'"):
            run.ledger.append("note", stage="score", text="too late")


def test_what_the_ledger_still_needs_is_removed_later(s3, where, quickstart, monkeypatch):
    folder = begun(where, quickstart)
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


def test_where_nothing_can_be_written_nothing_is_half_made(s3, where, quickstart):
    folder = made(where, quickstart)
    s3.fails = lambda environ: "403 AccessDenied" if environ["REQUEST_METHOD"] == "PUT" else None
    text = refused(lambda: enter(where, new=True))
    assert "refuses access" in text
    assert not folder.exists()
    assert there(s3, where) == set()
    made(where, quickstart)
    s3.fails = lambda environ: "403 AccessDenied" if "/ledger/" in environ["PATH_INFO"] else None
    refused(lambda: enter(where, new=True))
    assert not folder.exists()
    s3.fails = lambda environ: None
    assert there(s3, where) == set()


def test_what_others_have_put_there_is_not_taken_back(s3, where, quickstart):
    made(where, quickstart)
    s3.put(f"{prefix_of(where)}/notes.txt", b"ours")
    s3.fails = lambda environ: "403 AccessDenied" if "/ledger/" in environ["PATH_INFO"] else None
    refused(lambda: enter(where, new=True))
    s3.fails = lambda environ: None
    assert there(s3, where) == {"notes.txt"}


def test_what_is_to_be_typed_names_the_address(where, quickstart, s3, tmp_path):
    assert to_resume(begun(where, quickstart)) == to_resume(where) == f"dux resume {where}"
    options = f"endpoint_override={s3.endpoint.partition('://')[2]}&scheme=http"
    assert to_resume(begun(place(f"{where}2?{options}"), quickstart)) == f"dux resume '{where}2?{options}'"
    assert to_resume(tmp_path / "my run") == f"dux resume '{tmp_path / 'my run'}'"


def test_a_copy_of_a_working_directory_is_no_run(where, quickstart, tmp_path):
    folder = begun(where, quickstart)
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
        ("abfs://c@a.dfs.core.windows.net/runs?client_secret=x", "unknown option of abfs:// addresses 'client_secret'"),
        ("gs://bucket/runs?access_token=x", "unknown option of gs:// addresses 'access_token'"),
        ("gs://bucket/runs?access_token", "unknown option of gs:// addresses 'access_token'"),
        ("s3://nowhere-at-all/runs", "s3://nowhere-at-all/runs/a: the bucket does not exist"),
    ],
)
def test_an_address_that_cannot_be_is_one_line(s3, text, said):
    assert said in refused(lambda: check_run(place(text) / "a"))


def test_an_address_with_credentials_is_refused_and_not_repeated():
    for text in (
        "s3://AKIAKEY:SECRETWORD@bucket/runs",
        "s3://AKIAKEY@bucket/runs",
        "gs://me:SECRETWORD@bucket/runs",
        "s3://bucket/runs?endpoint_override=https://AKIAKEY:SECRETWORD@host",
    ):
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


def test_keys_that_may_not_look_at_the_bucket_begin_a_run(s3, where, quickstart):
    bucket = f"/{where.partition('://')[2].partition('/')[0]}"
    s3.fails = lambda environ: (
        "403 AccessDenied"
        if environ["REQUEST_METHOD"] == "HEAD" and environ["PATH_INFO"].rstrip("/") == bucket
        else None
    )
    assert not exists(where, "recipe.yaml")
    begun(where, quickstart)
    assert exists(where, "recipe.yaml")


def test_a_store_is_opened_once_and_anew_where_the_environment_has_changed(s3, where, monkeypatch):
    first, path = opened(where / "b")
    assert path.endswith("/runs/a/b")
    assert opened(where)[0] is first
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    assert opened(where)[0] is not first
