"""A run's directory: recipe, ledger, stages, results; held by one process at a time."""

import fcntl
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import analysis
from orchestrator.ledger import Event, Ledger
from orchestrator.recipe import Recipe
from spaces.errors import BadInput
from trainables.files import replacing
from trainables.store import Store

SCHEMA = 1  # of the ledger's events
SCORES = "scores.parquet"
PACKAGES = ("dux-search", "ray", "torch", "torchvision", "optuna", "pandas", "pyarrow", "numpy")


class Run:
    """A run on disk. `create` makes one, `open` takes up one that exists; both hold its lock until `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = _take_lock(path)
        self.recipe = Recipe.load(path / "recipe.yaml")
        self.ledger = Ledger(path / "ledger.jsonl")

    @property
    def store(self) -> Store:
        """The run's files, as its workers read and write them."""
        return Store(str(self.path.resolve()))

    @classmethod
    def create(cls, recipe: Recipe, storage: Path, name: str | None = None) -> "Run":
        """A new run. Its directory appears whole or not at all.

        Raises:
            BadInput: the name is no plain name, or the directory exists.
        """
        name = name or f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        path = storage / name
        check_new(path, name)
        try:
            storage.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=storage, prefix=f".{name}.") as made:
                half = Path(made) / "run"
                half.mkdir()
                (half / "recipe.yaml").write_text(_with_its_space(recipe, half).to_yaml())
                (half / "environment.json").write_text(json.dumps(environment(), indent=1) + "\n")
                with Ledger(half / "ledger.jsonl") as ledger:
                    ledger.append("run", schema=SCHEMA, name=name, recipe=recipe.name, dux=version("dux-search"))
                half.rename(path)
        except OSError as error:
            raise BadInput(f"{path}: cannot be created: {error.strerror}") from error
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Take up a run that exists.

        Raises:
            BadInput: no run, or one that another process holds.
        """
        check_run(path)
        run = cls(path)
        run.ledger.append("resume")
        return run

    def events(self) -> list[Event]:
        """What has been recorded so far."""
        return list(analysis.events(self.path))

    def note(self, stage: str, text: str) -> None:
        """Note something of a stage in the ledger, once."""
        if (stage, text) not in {
            (event["stage"], event["text"]) for event in self.events() if event["event"] == "note"
        }:
            self.ledger.append("note", stage=stage, text=text)

    def write_tables(self) -> None:
        """Bring trials.parquet and epochs.parquet up to date."""
        analysis.write_tables(self.path)

    def write_scores(self, stage: str) -> None:
        """Write `scores.parquet`: the trials of a score stage, a row for each candidate and seed."""
        trials = analysis.load(self.path).trials
        with replacing(self.path / SCORES) as temporary:
            trials[trials["stage"] == stage].to_parquet(temporary, index=False)

    def close(self) -> None:
        """Give the run back."""
        self.ledger.close()
        self._lock.close()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _with_its_space(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with the file of its space copied beside it: a run needs nothing that lies elsewhere.

    The copy keeps the file's name, which is the space's name too.
    """
    if recipe.space.file is None:
        return recipe
    source = Path(recipe.space.file)
    shutil.copyfile(source, folder / source.name)
    return recipe.overridden({"space.file": source.name})


def check_new(path: Path, name: str) -> None:
    """Raises `BadInput` unless a run of this name can be made at `path`."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise BadInput(f"a run's name is made of letters, digits, '.', '_' and '-', not {name!r}")
    if path.exists():
        raise BadInput(f"{path} exists; choose another --name, or go on with it: dux resume {path}")


def check_run(path: Path) -> None:
    """Raises `BadInput` unless `path` is a run's directory."""
    for name in ("recipe.yaml", "ledger.jsonl"):
        if not (path / name).is_file():
            raise BadInput(f"{path} is no run's directory: it has no {name}")


def holder(path: Path) -> int | None:
    """The process that holds the run, or None."""
    if not (path / "lock").is_file():
        return None
    with open(path / "lock") as file:  # for reading: a run may lie where this user cannot write
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return int(file.read() or 0)
    return None


def _take_lock(path: Path) -> Any:
    """The lock file, held until it is closed or the process ends, however it ends."""
    try:
        file = open(path / "lock", "a+")  # noqa: SIM115 (held for the life of the run)
    except OSError as error:
        raise BadInput(f"{path}: cannot be written to: {error.strerror}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        by = file.read().strip()
        file.close()
        raise BadInput(f"{path} is held by another process ({by}); dux status {path} shows how far it is") from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def environment() -> dict[str, Any]:
    """Versions and hardware, for whoever compares runs."""
    cpu = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    git = shutil.which("git")
    commit = None
    if git:
        here = Path(__file__).parent
        found = subprocess.run([git, "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        commit = found.stdout.strip() or None
    return {
        "versions": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": cpu[0] if cpu else platform.processor(),
        "cpus": os.cpu_count(),
        "gpus": _gpus(),
        "commit": commit,
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


class RunFailed(Exception):
    """The run cannot go on; the message is one line that says why."""
