"""Runs whose files are damaged, lost, moved or cannot be written: brought back, or refused in one line with nothing
changed; and what a resumed one gives is what it would have been."""

import hashlib
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest

import analysis
import orchestrator
from orchestrator import cluster, launch, outcome, show
from orchestrator.errors import RunFailed
from orchestrator.prepared import Search
from orchestrator.recipe import Recipe
from orchestrator.run_directory import Run
from spaces.errors import BadInput

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(480)]

RECIPE = {
    "name": "tiny",
    "task": {"dataset": "digits", "subset": 100},
    "teacher": {"space": "resnet", "arch": {"depth1": 1, "depth2": 1, "depth3": 1, "width": 8}, "train_epochs": 2},
    "space": {"name": "resnet", "choices": {"depth1": [1], "depth2": [1], "depth3": [1], "width": [2, 3, 4]}},
    "workers": 1,
    "stages": [
        {"name": "short", "trial": "distill", "epochs": 2, "sampler": "grid", "keep": 2},
        {"name": "final", "trial": "distill", "epochs": 3, "keep": 1},
    ],
}
REFUSED = (BadInput, analysis.BadInput, RunFailed)
RESULT = ["stage", "number", "hash", "seed", "status", "objective", "test_accuracy", "epochs"]
CURVE = ["stage", "number", "epoch", "objective", "train_loss", "kl"]


@pytest.fixture(scope="module")
def runs(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, `whole`, and as a kill in its last stage would have left it, `cut`."""
    folder = tmp_path_factory.mktemp("runs")
    keep = outcome.keep

    def copied(run: Run, search: object) -> None:
        shutil.copytree(run.path, folder / "cut")
        keep(run, search)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outcome, "keep", copied)
        orchestrator.run(Recipe.parse(RECIPE), storage=folder, name="whole", progress=False)
    ledger = folder / "cut" / "ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    reports = [number for number, line in enumerate(lines) if '"report"' in line and '"final"' in line]
    ledger.write_text("".join(lines[: reports[4] + 1]))  # in the second of two students
    analysis.write_tables(folder / "cut")
    return folder


@pytest.fixture
def cut(runs: Path, tmp_path: Path) -> Path:
    return shutil.copytree(runs / "cut", tmp_path / "cut")


@pytest.fixture
def whole(runs: Path, tmp_path: Path) -> Path:
    return shutil.copytree(runs / "whole", tmp_path / "whole")


@pytest.fixture(scope="module")
def search() -> Search:
    return Search.prepare(Recipe.parse(RECIPE))


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch, search: Search) -> list[Path]:
    """`resume` as far as a run is taken up; the list has those that were."""
    taken: list[Path] = []
    monkeypatch.setattr(launch, "_execute", lambda run, *rest: taken.append(run.path))
    monkeypatch.setattr(cluster, "connected", lambda address: nullcontext())
    monkeypatch.setattr(launch.Search, "prepare", lambda recipe, kept: search)
    return taken


def assert_same_results(found: analysis.Results, wanted: analysis.Results) -> None:
    assert found.finished
    pd.testing.assert_frame_equal(found.trials[RESULT], wanted.trials[RESULT], check_exact=True)
    pd.testing.assert_frame_equal(found.epochs[CURVE], wanted.epochs[CURVE], check_exact=True)


def files_of(run: Path) -> dict[str, str]:
    """Digests of all files but the lock, which every command takes."""
    found = (path for path in sorted(run.rglob("*")) if path.is_file() and path.name != "lock")
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def half(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def noise(file: Path) -> None:
    file.write_bytes(hashlib.shake_256(b"noise").digest(file.stat().st_size))


def folder(file: Path) -> None:
    file.unlink()
    (file / "inside").mkdir(parents=True)


def flip(file: Path) -> None:
    """One bit of a file's middle."""
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "half": half,
    "noise": noise,
    "empty": lambda file: os.truncate(file, 0),
    "gone": Path.unlink,
    "folder": folder,
}
# The names of a run's files, as patterns, and what of the damages refuses the run: the others are mended or do no harm.
FILES: dict[str, set[str]] = {
    "recipe.yaml": {"half", "noise", "empty", "folder"},
    "ledger.jsonl": {"noise", "empty", "gone", "folder"},
    "environment.json": {"folder"},
    "lock": {"folder"},
    "trials.parquet": {"folder"},
    "epochs.parquet": {"folder"},
    "teacher.safetensors": {"folder"},
    "teacher-outputs/*.safetensors": {"folder"},
    "teacher-outputs/*.lock": {"folder"},
    "stages/02-final/checkpoints/*.pt": {"folder"},
    "stages/02-final/curves/*.parquet": {"folder"},
}


def test_every_file_of_a_run_is_looked_at(runs: Path) -> None:
    for run in ("cut", "whole"):
        for name in files_of(runs / run):
            assert name == "report.html" or name.startswith("best/") or any(map(Path(name).match, FILES)), name


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused_in_one_line_or_does_no_harm(cut, runs, without_ray, name, damage) -> None:
    [file, *_] = sorted(cut.glob(name))
    DAMAGES[damage](file)
    before = files_of(cut)
    if damage in FILES[name]:
        with pytest.raises(REFUSED) as caught:
            launch.take_up(cut, None, False)
        assert "\n" not in str(caught.value)
        assert file.name in str(caught.value)
        assert files_of(cut) == before
        assert without_ray == []
    else:
        launch.take_up(cut, None, False)
        assert without_ray == [cut]
        assert (cut / "recipe.yaml").read_text() == (runs / "cut" / "recipe.yaml").read_text()


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_status_and_rank_read_what_is_there(cut, runs, name, damage) -> None:
    [file, *_] = sorted(cut.glob(name))
    DAMAGES[damage](file)

    def shown() -> pd.DataFrame:
        show.status(analysis.load(cut), None)
        return analysis.rank(analysis.load(cut))

    if name == "ledger.jsonl" and damage != "half":
        with pytest.raises(REFUSED, match=r"ledger\.jsonl"):
            shown()
    elif name != "ledger.jsonl":
        assert shown()["hash"].tolist() == analysis.rank(analysis.load(runs / "cut"))["hash"].tolist()


def test_all_at_once_moved_and_resumed_is_as_if_nothing_had_happened(runs, tmp_path, monkeypatch) -> None:
    """What can be brought back is: recipe, environment, teacher, its outputs, checkpoints, tables."""
    old, new = shutil.copytree(runs / "cut", tmp_path / "old"), tmp_path / "far" / "away" / "cut"
    shutil.copytree(old, new)
    (new / "recipe.yaml").unlink()
    noise(new / "environment.json")
    half(new / "teacher.safetensors")
    for cached in Path(os.environ["DUX_CACHE"]).rglob("teachers/*.safetensors"):
        half(cached)
    for kept in new.glob("teacher-outputs/*.safetensors"):
        flip(kept)
    for checkpoint in new.glob("stages/*/checkpoints/*.pt"):
        flip(checkpoint)
    flip(new / "trials.parquet")
    left = [new / "stages/02-final/checkpoints/.00001.pt.abc_d3f9", new / ".trials.parquet.123.tmp"]
    for file in left:
        file.write_bytes(b"half a file")
    (new.parent / ".cut.abc_d3f9" / "run").mkdir(parents=True)
    before = files_of(old)
    (tmp_path / "link").symlink_to(new)
    monkeypatch.chdir(tmp_path)
    resumed = orchestrator.resume("link", progress=False)
    assert_same_results(resumed, analysis.load(runs / "whole"))
    assert files_of(old) == before
    assert [path.name for path in new.parent.iterdir()] == ["cut"]
    same, wanted = files_of(new), files_of(runs / "whole")
    for name in ("recipe.yaml", "environment.json", "teacher.safetensors", "best/weights.safetensors"):
        assert same[name] == wanted[name], name
    assert same.keys() == wanted.keys()


def test_a_ledger_broken_in_its_middle_says_how_to_go_on_and_that_works(cut, runs) -> None:
    ledger = cut / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if b'"report"' in line and b'"final"' in line)
    lines[at] = b"\x00" * (len(lines[at]) - 1) + b"\n"
    ledger.write_bytes(b"".join(lines))
    (cut / "trials.parquet").unlink()
    before = files_of(cut)
    with pytest.raises(analysis.BadInput, match=f"line {at + 1}: not a JSON object") as caught:
        orchestrator.resume(cut, progress=False)
    assert files_of(cut) == before
    command = str(caught.value).split("computed again: ")[1].split("; dux resume")[0]
    subprocess.run(command, shell=True, check=True)
    assert_same_results(orchestrator.resume(cut, progress=False), analysis.load(runs / "whole"))


def test_a_line_that_is_missing_in_the_ledger_is_refused_with_its_place(cut, without_ray) -> None:
    ledger = cut / "ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if '"event":"trial"' in line and '"final"' in line)
    ledger.write_text("".join(lines[:at] + lines[at + 1 :]))
    with pytest.raises(REFUSED, match=r"never began|does not follow"):
        launch.take_up(cut, None, False)
    assert without_ray == []


def test_a_recipe_may_be_edited_by_hand(cut, without_ray) -> None:
    file = cut / "recipe.yaml"
    file.write_text(file.read_text().replace("workers: 1", "workers: 2"))
    launch.take_up(cut, None, False)
    assert without_ray == [cut]


# Finished runs


@pytest.mark.parametrize("damage", ["half", "noise", "empty", "gone", "flip"])
def test_what_a_finished_run_left_behind_is_brought_back(whole, damage) -> None:
    wanted = files_of(whole)
    for name in ("best/weights.safetensors", "best/student.json", "trials.parquet", "epochs.parquet"):
        {**DAMAGES, "flip": flip}[damage](whole / name)
    assert orchestrator.resume(whole, progress=False).finished
    assert files_of(whole) == wanted


def test_a_best_student_whose_checkpoint_is_gone_too_says_how_to_train_it_again(whole, runs) -> None:
    shutil.rmtree(whole / "best")
    [checkpoint] = (whole / "stages" / "02-final" / "checkpoints").iterdir()
    flip(checkpoint)
    with pytest.raises(RunFailed, match=f"{checkpoint.name} is gone or damaged") as caught:
        orchestrator.resume(whole, progress=False)
    command = str(caught.value).split("trained again: ")[1].split("; dux resume")[0]
    subprocess.run(command, shell=True, check=True)
    assert_same_results(orchestrator.resume(whole, progress=False), analysis.load(runs / "whole"))
    assert files_of(whole)["best/weights.safetensors"] == files_of(runs / "whole")["best/weights.safetensors"]


def test_a_finished_run_holds_only_what_somebody_may_want(whole) -> None:
    assert not (whole / "teacher-outputs").exists()
    assert not list(whole.rglob("tune"))
    assert list(whole.glob("stages/01-short/checkpoints/*")) == []
    assert len(list(whole.glob("stages/02-final/checkpoints/*.pt"))) == 1  # of two students, it keeps one


# Disks that cannot be written to


@pytest.fixture
def smallest_files() -> Iterator[Callable[[int], None]]:
    """Limits the size of every file that this process writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["best/weights.safetensors", "trials.parquet"])
def test_a_full_disk_while_something_is_brought_back_is_one_line(whole, smallest_files, name) -> None:
    (whole / name).unlink()
    before = files_of(whole)
    smallest_files(4096)
    with pytest.raises(RunFailed, match=r"File too large.* dux resume"):
        orchestrator.resume(whole, progress=False)
    smallest_files(resource.RLIM_INFINITY)
    assert files_of(whole) == before
    orchestrator.resume(whole, progress=False)
    assert (whole / name).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_a_run_that_can_only_be_read_is_shown_but_not_resumed(cut, runs) -> None:
    mounts = [["mount", "--bind", str(cut), str(cut)], ["mount", "-o", "remount,bind,ro", str(cut)]]
    if any(subprocess.run(command, check=False, capture_output=True).returncode for command in mounts):
        subprocess.run(["umount", "-l", str(cut)], check=False, capture_output=True)
        pytest.skip("no file system can be mounted here")
    try:
        with pytest.raises(BadInput, match="cannot be written to: Read-only file system"):
            orchestrator.resume(cut, progress=False)
        assert len(analysis.rank(analysis.load(cut))) == len(analysis.rank(analysis.load(runs / "cut")))
    finally:
        subprocess.run(["umount", "-l", str(cut)], check=True)
