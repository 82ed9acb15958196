"""A real S3 server on this machine, whose requests are counted and can be made to fail."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "bucket"
KEYS = {
    "AWS_ACCESS_KEY_ID": "test-key",
    "AWS_SECRET_ACCESS_KEY": "test-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class _Silent(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


@dataclass
class ObjectStore:
    """The server, `client` (boto3's) and what it was asked for: `(method, path with query)`.

    `fails` says of a request (WSGI's environment) with which HTTP status it is to fail, if any.
    """

    requests: list[tuple[str, str]] = field(default_factory=list)
    received: int = 0  # bytes
    fails: Callable[[dict[str, Any]], str | None] = lambda environ: None
    endpoint: str = ""
    client: Any = None

    def __post_init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        query = environ.get("QUERY_STRING", "")
        self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"] + (f"?{query}" if query else "")))
        self.received += int(environ.get("CONTENT_LENGTH") or environ.get("HTTP_X_AMZ_DECODED_CONTENT_LENGTH") or 0)
        status = self.fails(environ)
        if status is not None:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start(status, [("Content-Type", "text/xml"), ("Connection", "close")])
            return [f"<Error><Code>{status.partition(' ')[2]}</Code></Error>".encode()]
        return self._app(environ, start)

    def address(self, name: str = "") -> str:
        """Of the runs in the bucket, or of one; it says all, since Ray's workers may be older than this server."""
        endpoint = self.endpoint.removeprefix("http://")
        return f"s3://{BUCKET}/runs{name and '/'}{name}?endpoint_override={endpoint}&scheme=http&region=us-east-1"

    def keys(self, prefix: str = "") -> dict[str, int]:
        """Objects below a prefix, with their sizes."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return {entry["Key"]: entry["Size"] for page in pages for entry in page.get("Contents", ())}

    def get(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read())

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=data)


@contextmanager
def serving() -> Iterator[ObjectStore]:
    """A server with one empty bucket; the environment leads there."""
    store = ObjectStore()
    server = make_server("127.0.0.1", 0, store, threaded=True, request_handler=_Silent)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    store.endpoint = f"http://127.0.0.1:{server.server_port}"
    store.client = boto3.client(
        "s3",
        endpoint_url=store.endpoint,
        region_name="us-east-1",
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    )
    with patch.dict(os.environ, {**KEYS, "AWS_ENDPOINT_URL": store.endpoint}):
        os.environ.pop("AWS_ENDPOINT_URL_S3", None)
        store.client.create_bucket(Bucket=BUCKET)
        yield store
    server.shutdown()
    thread.join()
    server.server_close()
    store.client.close()
