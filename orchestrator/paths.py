"""The paths in a recipe: where they lead from, and what a run's own recipe and directory may name."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spaces.errors import BadInput


def from_beside(raw: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A recipe's keys with whole paths for what lies in the recipe's folder; others lead from the working directory.

    Raises:
        BadInput: the space's file is in neither, or is named with `..`.
    """

    def beside(path: str) -> str:
        return whole(folder / path) if _there(folder / path) else path

    found = _with_paths(raw, beside)
    space = found.get("space")
    if not isinstance(space, dict) or not isinstance(file := space.get("file"), str):
        return found
    check_inward("space.file", file)
    for place in (folder / file, Path(file)):
        if _there(place):
            return {**found, "space": {**space, "file": str(place.resolve())}}
    raise BadInput(f"recipe: space.file: {file!r} is neither beside the recipe nor in the working directory")


def from_here(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's keys with whole paths, so that a run goes on from any working directory."""
    return _with_paths(raw, whole)


def whole(path: str | Path) -> str:
    """A path from the root, without `..`. A link as its last part stays: what it is called may say what it is."""
    found = Path(os.path.expanduser(path))
    return str(found.resolve() if ".." in found.parts else found.absolute())


def check_inward(key: str, path: str) -> None:
    """Raises `BadInput` if a path goes up by `..`."""
    if ".." in Path(path).parts:
        raise BadInput(f"recipe: {key}: {path!r} leads out of its folder by '..'; give the whole path")


def check_own(raw: Mapping[str, Any], folder: Path) -> None:
    """Raises `BadInput` if the recipe in a run's directory names code elsewhere, or goes up by `..`.

    It may have been edited, or made by somebody else: only what lies in the directory is executed.
    """
    if "extends" in raw:
        raise BadInput(f"{folder}: a run's own recipe is whole and extends nothing")
    _with_paths(raw, lambda path: check_inward("its data or weights", path) or path)  # type: ignore[func-returns-value]
    space = raw.get("space")
    file = space.get("file") if isinstance(space, dict) else None
    if isinstance(file, str) and (file != Path(file).name or file == ".." or not _there(folder / file)):
        raise BadInput(f"{folder}: space.file must be the plain name of a file in the run's directory, not {file!r}")


def check_links(folder: Path) -> None:
    """Raises `BadInput` if a link in a run's directory leads out of it or to itself: dux would write where it leads."""
    root = folder.resolve()
    for parent, folders, files in os.walk(root):
        for path in (Path(parent, name) for name in (*folders, *files)):
            if path.is_symlink() and not _leads_into(root, path):
                raise BadInput(f"{path} is a link that leads out of the run's directory; put a copy in its place")


def _leads_into(root: Path, link: Path) -> bool:
    try:
        return link.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # a link to itself
        return False


def _with_paths(raw: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """The keys with each path to data and weights changed."""

    def changed(part: Any, key: str) -> Any:
        if isinstance(part, dict) and isinstance(part.get(key), str) and part[key]:
            return {**part, key: change(part[key])}
        return part

    found = dict(raw)
    for name, key in (("task", "path"), ("teacher", "weights"), ("replay", "table")):
        if name in found:
            found[name] = changed(found[name], key)
    if isinstance(found.get("more_teachers"), list):
        found["more_teachers"] = [changed(teacher, "weights") for teacher in found["more_teachers"]]
    return found


def _there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file system takes
        return False
