"""Whole files in a folder and in an object store: one contract, and what is special of each."""

import errno
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_store import BUCKET, ObjectStore, serving

from trainables.store import Store, StoreAway

BIG = 11 << 20  # bytes: more than one part of an upload


@pytest.fixture(scope="module")
def s3() -> Iterator[ObjectStore]:
    with serving() as server:
        yield server


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path, s3: ObjectStore) -> Iterator[Store]:
    name = tmp_path.name
    roots = {
        "local": str(tmp_path),
        "s3": f"s3://{BUCKET}/{name}",
        "s3-options": f"s3://{BUCKET}/{name}/?endpoint_override={s3.endpoint.partition('//')[2]}&scheme=http",
    }
    yield Store(roots[request.param], patience=0.6)
    s3.fails = lambda environ: None


every = pytest.mark.parametrize("store", ["local", "s3", "s3-options"], indirect=True)
remote = pytest.mark.parametrize("store", ["s3"], indirect=True)


@every
def test_what_is_written_is_read(store):
    inner = store.within("stages/01-score").within("checkpoints")
    assert inner.read("1.pt") is None
    inner.write("1.pt", b"first")
    inner.write("1.pt", memoryview(b"second, longer"))
    assert inner.read("1.pt") == store.read("stages/01-score/checkpoints/1.pt") == b"second, longer"
    inner.write("1.pt", b"")
    assert inner.read("1.pt") == b""


@every
def test_a_large_file_is_whole(store):
    data = bytes(range(256)) * (BIG // 256)
    store.write("large", data)
    assert store.read("large") == data


@every
def test_removing_removes_once_and_again(store):
    store.write("folder/a", b"a")
    store.write("folder/b", b"b")
    store.remove("folder/a")
    store.remove("folder/a")
    store.remove("nowhere/a")
    assert store.read("folder/a") is None
    assert store.read("folder/b") == b"b"


@every
def test_only_names_travel_to_a_worker(store):
    store.write("a", b"a")
    data = pickle.dumps(store)
    assert len(data) < 500
    assert pickle.loads(data).read("a") == b"a"


@remote
def test_a_small_file_is_one_request(store, s3):
    store.write("warm", b"")
    s3.requests.clear()
    store.write("a", b"x" * 100_000)
    assert [method for method, _ in s3.requests] == ["PUT"]
    s3.requests.clear()
    assert len(store.read("a")) == 100_000
    assert [method for method, _ in s3.requests] == ["HEAD", "GET"]


@remote
def test_an_upload_that_fails_leaves_the_old_file(store, s3):
    store.write("a", b"old")
    s3.fails = lambda environ: "400 InvalidPart" if "partNumber=2" in environ.get("QUERY_STRING", "") else None
    with pytest.raises(StoreAway) as caught:
        store.write("a", b"n" * BIG)
    assert caught.value.errno == errno.EREMOTEIO
    assert "\n" not in caught.value.strerror
    assert store.read("a") == b"old"


@remote
def test_a_store_that_is_away_for_a_while_is_waited_for(store, s3):
    asked = []

    def fails(environ):
        asked.append(environ["REQUEST_METHOD"])
        return "400 InvalidRequest" if len(asked) < 3 else None

    s3.fails = fails
    Store(store.root, patience=5).write("a", b"a")
    assert len(asked) == 3
    assert store.read("a") == b"a"


@remote
def test_a_refusal_is_not_asked_again(store, s3):
    asked = []
    s3.fails = lambda environ: asked.append(environ["REQUEST_METHOD"]) or "403 AccessDenied"
    with pytest.raises(StoreAway, match="ACCESS_DENIED"):
        Store(store.root, patience=60).write("a", b"a")
    assert asked == ["PUT"]


def test_a_missing_bucket_is_no_missing_file_when_written(s3):
    with pytest.raises(StoreAway, match="NO_SUCH_BUCKET"):
        Store("s3://nowhere-at-all/runs", patience=60).write("a", b"a")
