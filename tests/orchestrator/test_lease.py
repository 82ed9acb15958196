"""Who holds a run in an object store: one machine at a time, and for how long. Without Ray."""

import json
import os
import shutil
import time

import pytest
from mirrored_runs import begun, elsewhere, enter, held_since, made, note, notes, prefix_of, refused

from orchestrator import mirror as mirrors
from orchestrator.addresses import working_directory
from orchestrator.mirror import LEASE, Mirror, mirrored
from orchestrator.run_directory import Run
from trainables.store import PATIENCE


def test_a_run_is_held_by_one_machine(s3, where, quickstart, monkeypatch, tmp_path):
    begun(where, quickstart)
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


def test_a_lease_that_has_expired_is_taken_over(s3, where, quickstart):
    begun(where, quickstart)
    held_since(s3, where, 20)
    assert "held by process 7 on far" in refused(lambda: enter(where))
    assert "try again in 160 s" in refused(lambda: enter(where))
    held_since(s3, where, 181)
    assert mirrors.held(where) is None
    enter(where)


def test_a_killed_process_of_this_directory_need_not_be_waited_for(where, quickstart):
    folder = begun(where, quickstart)
    mirror = Mirror(folder, where)
    mirror.hold()
    mirror._own.close()  # which is all that the system does for a process that is killed
    assert mirrors.lease(where) is not None
    enter(where)
    assert mirrors.lease(where) is None


def test_a_run_that_was_taken_over_ends(s3, where, quickstart, monkeypatch):
    monkeypatch.setattr(mirrors, "EVERY", 0.05)
    monkeypatch.setattr(mirrors, "RENEW", 0.05)
    folder = begun(where, quickstart)
    with mirrored(where) as (path, mirror), Run(path) as run:
        mirror.serve(run)
        until = time.monotonic() + 20
        while run.ledger.failure is None:
            held_since(s3, where, 0)  # again and again: it may come between this one's looking and writing
            assert time.monotonic() < until
            time.sleep(0.02)
        with pytest.raises(OSError, match="has taken the run over"):  # process 7 on far, or seen while half replaced
            run.ledger.append("note", stage="score", text="too late")
    assert notes(folder) == []
    assert json.loads(s3.get(f"{prefix_of(where)}/{LEASE}"))["token"] == "another"  # it is theirs now


def test_a_lease_outlasts_the_patience_with_a_store():
    assert mirrors.EXPIRES > PATIENCE + mirrors.RENEW


def test_a_refused_new_run_leaves_anothers_lease_and_files(s3, where, quickstart, monkeypatch, tmp_path):
    first = made(where, quickstart)
    with mirrored(where, new=True):
        s3.client.delete_object(Bucket="bucket", Key=f"{prefix_of(where)}/recipe.yaml")  # still being brought over
        elsewhere(monkeypatch, tmp_path)
        second = made(where, quickstart)
        assert "is held by process" in refused(lambda: enter(where, new=True))
        assert mirrors.lease(where)["pid"] == os.getpid()
        assert notes(where) == []
        assert not second.exists()
        elsewhere(monkeypatch, tmp_path, "cache")
        assert "another process of this machine" in refused(lambda: enter(where, new=True))
        assert mirrors.lease(where)["pid"] == os.getpid()
    assert first.exists()


def woken(s3, where, mirror) -> None:
    """As after a sleep of 200 s, during which only the wall clock went on."""
    held = json.loads(s3.get(f"{prefix_of(where)}/{LEASE}"))
    s3.put(f"{prefix_of(where)}/{LEASE}", json.dumps({**held, "time": held["time"] - 200}).encode())
    mirror._renewed -= 200


def test_a_machine_that_slept_sees_that_another_has_gone_on(s3, where, quickstart, monkeypatch, tmp_path):
    begun(where, quickstart)
    for ends in (False, True):
        elsewhere(monkeypatch, tmp_path, f"first-{ends}")
        with mirrored(where) as (here, mirror):
            (here / "teacher.safetensors").write_bytes(b"of the sleeper")
            woken(s3, where, mirror)
            elsewhere(monkeypatch, tmp_path, f"second-{ends}")
            with mirrored(where) as (path, other):
                note(path, f"of the second {ends}")
                (path / "teacher.safetensors").write_bytes(b"of the second")
                other.sync()
                if ends:
                    other.close()
                note(here, "of the sleeper")
                with pytest.raises(OSError, match="taken the run over"):
                    mirror.sync()
                assert notes(where)[-1] == f"of the second {ends}"
        assert notes(where)[-1] == f"of the second {ends}"
        assert s3.get(f"{prefix_of(where)}/teacher.safetensors") == b"of the second"


def test_the_lease_is_looked_at_right_before_the_ledger_is_written(s3, where, quickstart):
    folder = begun(where, quickstart)
    with mirrored(where) as (_, mirror):
        note(folder, "too late")
        held_since(s3, where, 0)
        with pytest.raises(OSError, match="process 7 on far has taken the run over"):
            mirror.sync()
    assert notes(where) == []


class Slow:
    """A store that takes its time over a file, until the lease has been written three times meanwhile."""

    def __init__(self, name: str) -> None:
        self.name, self.renewed, self.begun = name, 0, False

    def __call__(self, environ) -> None:
        if environ["PATH_INFO"].endswith(self.name):
            self.begun, until = True, time.monotonic() + 10
            while self.renewed < 3 and time.monotonic() < until:
                time.sleep(0.005)
        elif self.begun and environ["REQUEST_METHOD"] == "PUT" and environ["PATH_INFO"].endswith(LEASE):
            self.renewed += 1


def test_the_lease_is_renewed_while_a_file_takes_long(s3, where, quickstart, monkeypatch):
    monkeypatch.setattr(mirrors, "EVERY", 0.02)
    monkeypatch.setattr(mirrors, "RENEW", 0.05)
    begun(where, quickstart)
    slow = Slow("large")
    with mirrored(where) as (path, _):
        s3.fails = slow
        (path / "large").write_bytes(b"large")
        until = time.monotonic() + 10
        while slow.renewed < 3:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_the_lease_is_renewed_while_the_run_is_fetched(s3, where, quickstart, monkeypatch, tmp_path):
    monkeypatch.setattr(mirrors, "RENEW", 0.05)
    folder = begun(where, quickstart)
    with mirrored(where):
        (folder / "large").write_bytes(b"large")
    s3.fails = slow = Slow("large")
    elsewhere(monkeypatch, tmp_path)
    enter(where)
    assert slow.renewed >= 3


def test_a_run_that_was_interrupted_while_it_was_fetched_is_let_go(where, quickstart, monkeypatch):
    begun(where, quickstart)
    with monkeypatch.context() as patched:
        patched.setattr(Mirror, "meet", lambda mirror: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            enter(where)
    assert mirrors.lease(where) is None
    enter(where)


def test_a_lease_that_cannot_be_is_nobodys(s3, where, quickstart):
    begun(where, quickstart)
    for text in ('{"token": "x", "time": 1' + "0" * 400 + "}", "[" * 100_000, '{"token": "x", "time": "noon"}', "7"):
        s3.put(f"{prefix_of(where)}/{LEASE}", text.encode())
        assert mirrors.held(where) is None


def test_a_folder_named_lease_is_one_line(where, quickstart):
    folder = begun(where, quickstart)
    shutil.rmtree(folder)
    (working_directory(where) / "lease").mkdir(parents=True)
    assert "Is a directory" in refused(lambda: enter(where))
