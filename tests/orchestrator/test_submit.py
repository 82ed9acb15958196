"""What `dux submit` ships and refuses, without a cluster; and `--or-resume`."""

import importlib.metadata
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import aiohttp
import pytest
from ray.exceptions import AuthenticationError

import analysis
from orchestrator.errors import RunFailed
from orchestrator.launch import launch
from orchestrator.recipe import Recipe
from orchestrator.run_directory import Run
from orchestrator.same import check_same
from orchestrator.submit import PACKAGES, pack, submit
from spaces import BadInput

SPACE = """
from ray import tune
from torch import nn

PARAM_SPACE = {"bias": tune.choice([True, False])}


def build(arch, task):
    return nn.Sequential(nn.Flatten(), nn.Linear(task.channels * task.image_size**2, task.classes, bias=arch["bias"]))
"""


def tiny(folder: Path, **changes: object) -> Recipe:
    (folder / "linear.py").write_text(SPACE)
    stage = {"name": "only", "trial": "distill", "epochs": 2, "trials": 2, **changes}
    space = {"file": str(folder / "linear.py")}
    return Recipe.parse({"name": "tiny", "task": {"dataset": "digits"}, "space": space, "stages": [stage]})


def test_what_is_packed_runs_by_itself(tmp_path: Path) -> None:
    """With nothing of this checkout on the path: code, recipes that come with dux, its version, the space's file."""
    (tmp_path / "job").mkdir()
    pack(tiny(tmp_path), tmp_path / "job")
    (tmp_path / "linear.py").unlink()
    assert not list((tmp_path / "job").rglob("__pycache__"))
    code = """
import importlib.metadata, os, orchestrator, spaces
from orchestrator.reading import recipe_names
from orchestrator.recipe import Recipe
assert orchestrator.__file__.startswith(os.getcwd()), orchestrator.__file__
assert "quickstart" in recipe_names()
assert Recipe.load("recipe/recipe.yaml").space.file == os.path.realpath("recipe/linear.py")
print(importlib.metadata.version("dux-search"), importlib.metadata.distribution("dux-search").locate_file("."))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "job", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    version, where = done.stdout.split()
    assert version == importlib.metadata.version("dux-search")
    assert (tmp_path / "job" / where).resolve() == tmp_path / "job"
    packed = sum(path.stat().st_size for path in (tmp_path / "job").rglob("*") if path.is_file())
    assert packed < 5e6
    assert {path.name for path in (tmp_path / "job").iterdir()} >= {*PACKAGES, "recipe"}


@pytest.mark.parametrize("storage", ["runs", "../runs"])
def test_a_storage_that_only_this_machine_knows_is_refused(tmp_path: Path, storage: str) -> None:
    with pytest.raises(BadInput, match="give a whole path that all nodes of the cluster share, or an s3:// address"):
        submit(tiny(tmp_path), "a", storage, "http://127.0.0.1:9")


def test_without_a_recipe_the_name_is_needed() -> None:
    with pytest.raises(BadInput, match="takes a RECIPE, or the --name"):
        submit(None, None, "/runs", "http://127.0.0.1:9")


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://127.0.0.1:10001", "http://", "http://localhost:x"])
def test_an_address_that_is_no_dashboards_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(BadInput, match="--address "):
        submit(tiny(tmp_path), "a", "/runs", address)


def test_no_dashboard_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"no dashboard of a Ray cluster answers at http://127.0.0.1:9: Connection ref"):
        submit(tiny(tmp_path), "a", "/runs", "http://127.0.0.1:9")


def test_without_rays_job_client_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(BadInput, match=r"pip install 'dux-search\[cluster\]'"):
        submit(tiny(tmp_path), "a", "/runs", "http://127.0.0.1:9")


def test_or_resume_takes_the_same_recipe_alone(tmp_path: Path) -> None:
    recipe = tiny(tmp_path)
    with Run.create(recipe, tmp_path / "runs", "a"):
        pass
    check_same(recipe, tmp_path / "runs" / "a")
    check_same(Recipe.load(tmp_path / "runs" / "a"), tmp_path / "runs" / "a")
    with pytest.raises(BadInput, match=r"another recipe: stages.only.epochs is 2 there and 3 here; choose another --n"):
        launch(tiny(tmp_path, epochs=3), {}, tmp_path / "runs", "a", None, False, or_resume=True)
    with pytest.raises(BadInput, match=r"stages.only.keep is not set there and 1 here"):
        check_same(tiny(tmp_path, keep=1), tmp_path / "runs" / "a")
    (tmp_path / "linear.py").write_text(SPACE + "# changed\n")
    with pytest.raises(BadInput, match=r"space.file is 'linear.py \(\w{8}\)' there and 'linear.py \(\w{8}\)' here"):
        check_same(recipe, tmp_path / "runs" / "a")


def test_or_resume_needs_a_name_and_a_run(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--or-resume goes on with the run of a --name, which is missing"):
        launch(tiny(tmp_path), {}, tmp_path / "runs", None, None, False, or_resume=True)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    with pytest.raises(BadInput, match=r"is no run's directory"):
        launch(tiny(tmp_path), {}, tmp_path / "runs", "a", None, False, or_resume=True)


@pytest.mark.parametrize("storage", ["s3://AKIAKEY:SECRETWORD@bucket/runs", "gs://bucket/runs?access_token=SECRETWORD"])
def test_credentials_in_the_storages_address_are_not_sent(
    tmp_path: Path, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.submit._client", lambda address: pytest.fail("asked the cluster"))
    with pytest.raises((BadInput, analysis.BadInput)) as caught:
        submit(tiny(tmp_path), "a", storage, "http://127.0.0.1:9")
    assert "SECRETWORD" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (aiohttp.ServerDisconnectedError(), "Server disconnected"),
        (aiohttp.ClientPayloadError("cut off"), "cut off"),
        (
            AuthenticationError("Authentication failed: Forbidden\n\nwhere Ray looks for tokens"),
            "Authentication failed",
        ),
        (RuntimeError("Request failed with status code 500: no\nmore"), "status code 500"),
    ],
)
def test_what_the_cluster_refuses_is_one_line(
    tmp_path: Path, error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def client(address: str) -> None:
        raise error

    monkeypatch.setattr("orchestrator.submit._client", client)
    with pytest.raises(RunFailed, match=said) as caught:
        submit(tiny(tmp_path), "a", "/runs", "http://127.0.0.1:9")
    assert "\n" not in str(caught.value)
    assert "tokens" not in str(caught.value)


def test_a_wrong_token_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ray's own client takes a dashboard's 403."""

    class Guarded(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(403)
            self.end_headers()
            self.wfile.write(b"Forbidden: the token is not valid")

        def log_message(self, *about: object) -> None:
            pass

    token = "f" * 64
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    with HTTPServer(("127.0.0.1", 0), Guarded) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with pytest.raises(RunFailed, match="Authentication failed: Forbidden") as caught:
                submit(tiny(tmp_path), "a", "/runs", f"http://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()
            thread.join()
    assert "\n" not in str(caught.value)
    assert token not in str(caught.value)
