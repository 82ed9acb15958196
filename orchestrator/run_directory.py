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
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import analysis
from orchestrator import disk, paths, plain_values
from orchestrator.addresses import Address, address_of, is_there, to_resume
from orchestrator.existing import beginning, check_run
from orchestrator.ledger import Event, Ledger
from orchestrator.recipe import Recipe
from spaces.errors import BadInput
from spaces.redact import redacted
from trainables.files import replacing
from trainables.store import Store

if TYPE_CHECKING:
    from orchestrator.mirror import Mirror

SCHEMA = 1  # of the ledger's events
SCORES = "scores.parquet"
RECIPE_END = "..."  # YAML's own mark; a recipe without it has been cut off
PACKAGES = ("dux-search", "ray", "torch", "torchvision", "optuna", "pandas", "pyarrow", "numpy")


class Run:
    """A run on disk. `create` makes one, `open` takes up one that exists; both hold its lock until `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = _take_lock(path)
        try:
            self.recipe = own_recipe(path)
            self._bring_back()
            self.ledger = Ledger(path / "ledger.jsonl")
        except BaseException:
            self._lock.close()  # somebody may mend it in this process, and go on
            raise
        self.mirror: Mirror | None = None  # of a run in an object store

    @property
    def address(self) -> Path | Address:
        """What the user calls it by: its directory, or its address in an object store."""
        return address_of(self.path) or self.path

    @property
    def store(self) -> Store:
        """The run's files, as its workers read and write them."""
        return Store(str(address_of(self.path) or self.path.resolve()))

    def sync(self) -> None:
        """Bring a run of an object store there, as far as it is."""
        if self.mirror is not None:
            self.mirror.sync()

    @classmethod
    def create(
        cls, recipe: Recipe, storage: Path, name: str | None = None, add: Callable[[Path], None] | None = None
    ) -> "Run":
        """A new run. Its directory appears whole or not at all; `add` puts more into it before.

        Raises:
            BadInput: the name is no plain name, or the directory exists.
        """
        name = name or default_name(recipe)
        path = storage / name
        check_new(path, name)
        try:
            storage.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=storage, prefix=f".{name}.") as made:
                half = Path(made) / "run"
                half.mkdir()
                write_recipe(recipe, half)
                _write_environment(half)
                with Ledger(half / "ledger.jsonl") as ledger:
                    known = {"name": name, "recipe": recipe.name, "dux": version("dux-search")}
                    ledger.append("run", schema=SCHEMA, **known, resolved=plain_values.read(half / "recipe.yaml"))
                if add is not None:
                    add(half)
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
        paths.check_links(path)  # before the lock, which would be written to where a link leads
        disk.check_files(path)
        beginning(path)
        run = cls(path)
        disk.sweep(path)
        run.ledger.append("resume")
        return run

    def _bring_back(self) -> None:
        """Write again what others of the run's files tell."""
        if not (self.path / "recipe.yaml").exists():
            _write_keys(Recipe.parse(beginning(self.path)["resolved"]), self.path)
        if not is_json(self.path / "environment.json"):
            _write_environment(self.path)

    def events(self) -> list[Event]:
        """What has been recorded so far."""
        return list(analysis.events(self.path))

    def note(self, stage: str, text: str) -> None:
        """Note something of a stage in the ledger, once."""
        text = redacted(text)
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


def write_recipe(recipe: Recipe, folder: Path) -> None:
    """Write `recipe.yaml`, and the file of its space beside it."""
    _write_keys(_with_its_space(recipe, folder), folder)


def _with_its_space(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with the file of its space copied beside it: a run needs nothing that lies elsewhere.

    The copy keeps the file's name, which is the space's name too. Other paths are made whole: they lead to the same
    data and weights from every working directory.
    """
    recipe = Recipe.parse(paths.from_here(recipe.plain()))
    if recipe.space.file is None:
        return recipe
    source = Path(recipe.space.file)
    shutil.copyfile(source, folder / source.name)
    return recipe.overridden({"space.file": source.name})


def own_recipe(folder: Path) -> Recipe:
    """The recipe in a run's directory. Raises `BadInput` if it, or a link, would lead out of the directory."""
    raw = _own_keys(folder)
    paths.check_own(raw, folder)
    return Recipe.parse(paths.from_beside(raw, folder))


def _own_keys(folder: Path) -> dict[str, Any]:
    """What `recipe.yaml` says; where that is gone, what it said when the run began."""
    file = folder / "recipe.yaml"
    known = beginning(folder).get("resolved") if (folder / "ledger.jsonl").is_file() else None
    if known is None:
        return plain_values.read(file)
    if not file.exists():
        return dict(known)
    how = f"put it back, or remove it: {to_resume(folder)} writes it again as the run began"
    try:
        raw = plain_values.read(file)
    except BadInput as error:
        raise BadInput(f"{error}; {how}") from error
    # A half can be a recipe, too: one of fewer stages.
    if not file.read_text(encoding="utf-8").rstrip().endswith("\n" + RECIPE_END):
        raise BadInput(f"{file} is cut off: its last line is not {RECIPE_END!r}; {how}")
    return raw


def is_json(file: Path) -> bool:
    """Whether a file is there and is JSON."""
    try:
        json.loads(file.read_text())
    except (OSError, ValueError):
        return False
    return True


def _write_keys(recipe: Recipe, folder: Path) -> None:
    with replacing(folder / "recipe.yaml") as temporary:
        temporary.write_text(f"{recipe.to_yaml()}{RECIPE_END}\n", encoding="utf-8")


def _write_environment(folder: Path) -> None:
    with replacing(folder / "environment.json") as temporary:
        temporary.write_text(json.dumps(environment(), indent=1) + "\n")


def check_new(path: Path | Address, name: str) -> None:
    """Raises `BadInput` unless a run of this name can be made at `path`."""
    check_name(name)
    if is_there(path):
        raise BadInput(f"{path} exists; choose another --name, or go on with it: {to_resume(path)}")


def check_name(name: str) -> None:
    """Raises `BadInput` unless a run can have this name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", name):
        raise BadInput(f"a run's name is made of letters, digits, '.', '_' and '-', not {name!r}")


def default_name(recipe: Recipe) -> str:
    """A run's name where none is given: the recipe's and the time."""
    return f"{recipe.name}-{time.strftime('%Y%m%d-%H%M%S')}"


def _take_lock(path: Path) -> Any:
    """The lock file, held until it is closed or the process ends, however it ends."""
    try:
        file = open(path / "lock", "a+", errors="replace")  # noqa: SIM115 (held for the life of the run)
    except OSError as error:
        raise BadInput(f"{path / 'lock'}: cannot be written to: {error.strerror}") from error
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
