"""What a run's directory takes on disk, what killed processes have left in it, and what lies there that must not."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from spaces.errors import BadInput
from trainables.files import LEFT_BEHIND

OUTPUTS = "teacher-outputs"
TUNE = "tune"  # what Tune keeps for itself, which nobody reads
_FILES = re.compile(r".+\.(yaml|json|jsonl|parquet|safetensors|pt|lock|py|html)")


def disk_use(run: Path) -> dict[str, int]:
    """Bytes by what they are for, the most first; of what this user may look at."""
    use: dict[str, int] = {}
    for file in _files(str(run)):
        kind = _kind(Path(file.path).relative_to(run).parts)
        try:
            use[kind] = use.get(kind, 0) + file.stat(follow_symlinks=False).st_size
        except (FileNotFoundError, PermissionError):  # a running search replaces its files
            continue
    return dict(sorted(use.items(), key=lambda item: -item[1]))


def disk_line(run: Path) -> str:
    """In words: `disk: 12.3 MB: checkpoints 8.1, teacher outputs 3.0, ledger 1.2`."""
    use = disk_use(run)
    parts = [f"{kind} {size / 1e6:.1f}" for kind, size in use.items() if size >= 50_000]
    return ": ".join(["disk", f"{sum(use.values()) / 1e6:.1f} MB", *([", ".join(parts)] if parts else [])])


def _files(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _files(entry.path)
                else:
                    yield entry
    except (FileNotFoundError, PermissionError):  # a running search removes what it needs no more
        return


def _kind(parts: tuple[str, ...]) -> str:
    if parts[0] == "stages" and len(parts) > 3:
        return parts[2]  # checkpoints, curves
    if len(parts) > 1:
        return {"best": "best student", OUTPUTS: "teacher outputs", TUNE: "Tune's own"}.get(parts[0], "other")
    if parts[0].startswith("teacher"):
        return "teacher"
    return {".jsonl": "ledger", ".parquet": "tables"}.get(Path(parts[0]).suffix, "other")


def check_files(run: Path) -> None:
    """Raises `BadInput` if a folder has the name of a file: what should be written there could not be."""
    for parent, folders, _ in os.walk(run):
        if Path(parent) == run and TUNE in folders:
            folders.remove(TUNE)
        for name in folders:
            if _FILES.fullmatch(name):
                raise BadInput(f"{Path(parent, name)} is a folder, and should be a file; remove it and try again")


def sweep(run: Path) -> None:
    """Remove what killed processes have left: half-written files, halves of this run, and what Tune keeps for itself.

    Only while the run is held.
    """
    for parent, _, files in os.walk(run):
        for name in files:
            if LEFT_BEHIND.fullmatch(name):
                Path(parent, name).unlink(missing_ok=True)
    whole = run.resolve()
    for other in whole.parent.iterdir():  # `Run.create` makes a run in such a folder
        if re.fullmatch(rf"\.{re.escape(whole.name)}\.[a-z0-9_]{{8}}", other.name):
            shutil.rmtree(other, ignore_errors=True)
    shutil.rmtree(run / TUNE, ignore_errors=True)


def leftovers(run: Path) -> list[Path]:
    """What a finished run needs no more: the teacher's outputs can be computed again, Tune's state is read by nobody.

    Removed only once the end is in the ledger.
    """
    return [folder for folder in (run / OUTPUTS, run / TUNE) if folder.exists()]


def clear(run: Path) -> None:
    """Remove the leftovers of a finished run."""
    for folder in leftovers(run):
        shutil.rmtree(folder, ignore_errors=True)
