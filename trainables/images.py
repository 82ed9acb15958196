"""Encoded images to square uint8 arrays, which are kept and mapped from where they were decoded once."""

import hashlib
import io
import json
import os
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spaces.errors import BadInput
from spaces.redact import redacted
from spaces.seeding import stable_hash
from trainables.files import replacing

BATCH = 1024  # images decoded or copied at a time


@dataclass(frozen=True)
class Labelled:
    """What a source gives: images uint8 [N, C, S, S], labels int64 [N], and the classes' names."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]


def cache_dir() -> Path:
    """Where images, downloads and trained teachers are kept: $DUX_CACHE, $XDG_CACHE_HOME/dux or ~/.cache/dux."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("DUX_CACHE") or f"{base}/dux").expanduser()


def one_line(error: Exception) -> str:
    return " ".join(redacted(error).split())[:200] or type(error).__name__


def decoded(sources: Iterable[tuple[str, bytes | Path | None]], size: int | None) -> Iterator[tuple[str, np.ndarray]]:
    """Encoded images, each with its place, as `square` gives them; decoded in threads, some at a time."""
    left = iter(sources)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        while batch := list(islice(left, BATCH)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what is odd in a file that can be read all the same
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                ready = list(threads.map(lambda item: _decode(item[0], item[1], size), batch))
            yield from ready


def _decode(where: str, source: bytes | Path | None, size: int | None) -> tuple[str, np.ndarray]:
    try:
        if source is None:
            raise BadInput("no bytes of an image")
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return where, square(image, size)
    except Exception as error:  # decoders of damaged files raise whatever they stumble on
        raise BadInput(f"{where}: no image that can be read: {one_line(error)}") from error


def square(image: Image.Image, size: int | None) -> np.ndarray:
    """uint8 [C, S, S]: short side resized, centre cropped; one channel for mode L, else RGB."""
    if image.mode[0] in "IF":
        raise BadInput(f"mode {image.mode} has more than 8 bits a channel")
    image = image if image.mode in ("L", "RGB") else image.convert("RGB")
    short = min(image.size)
    if size is not None and short != size:
        kind = Image.Resampling.BOX if size < short else Image.Resampling.BILINEAR
        width, height = (max(size, round(side * size / short)) for side in image.size)
        image, short = image.resize((width, height), kind), size
    left, top = ((side - short) // 2 for side in image.size)
    array = np.asarray(image.crop((left, top, left + short, top + short)))
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def stack(pixels: Iterable[tuple[str, np.ndarray]], count: int) -> np.ndarray:
    """uint8 [N, C, S, S] of `count` images [C, S, S] with their places; RGB unless all are grey.

    Raises:
        BadInput: there are more or fewer, they differ in size, or the memory does not hold them.
    """
    images, row, where = np.empty((0, 1, 1, 1), np.uint8), -1, "none"
    for row, (where, image) in enumerate(pixels):
        if row == count:
            raise BadInput(f"{where}: there are more images than the {count:,} that are told of")
        if row == 0:
            _check_room(count, image, where)
            images = np.empty((count, *image.shape), np.uint8)
        if image.shape[1:] != images.shape[2:]:
            raise BadInput(f"{where}: {image.shape[1]} pixels wide, others {images.shape[2]}; set image_size")
        if len(image) > images.shape[1]:
            images = np.repeat(images, 3, axis=1)
        images[row] = image
    if row + 1 < count:
        raise BadInput(f"there are {row + 1:,} images, not the {count:,} that are told of; the last is {where}")
    return images


def _check_room(count: int, image: np.ndarray, where: str) -> None:
    """Raises `BadInput` if so many images like this one, in colour, are more than this machine's memory."""
    size, memory = 3 * count * image[0].size, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        rule = f"{count:,} images of {image.shape[1]} pixels take {size / 1e9:,.0f} GB, the memory has"
        raise BadInput(f"{where}: {rule} {memory / 1e9:,.0f} GB; set a smaller image_size")


def stamp(file: Path) -> list[Any]:
    """What changes when a file does. Raises `BadInput` for what is none: to read a pipe would take for ever."""
    try:
        status = file.stat()
    except OSError as error:
        raise BadInput(f"{file}: cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise BadInput(f"{file}: is no file")
    return [str(file.resolve()), status.st_size, status.st_mtime_ns]


def cached(key: object, make: Callable[[], Labelled]) -> Labelled:
    """What `make` gives, mapped from the cache folder; made anew where it is missing or damaged there."""
    base = cache_dir() / "images" / stable_hash(key)[:32]
    kept = _kept(base)
    if kept is not None:
        return kept
    made = make()
    about = {"digest": digest(made.images, made.labels), "classes": made.classes, "labels": made.labels.tolist()}
    try:
        with replacing(base.with_suffix(".npy")) as path, path.open("wb") as file:
            np.save(file, made.images, allow_pickle=False)
        with replacing(base.with_suffix(".json")) as path:
            path.write_text(json.dumps(about))
    except OSError as error:
        raise BadInput(f"cannot write to the cache folder {cache_dir()}, set DUX_CACHE: {one_line(error)}") from error
    return _kept(base) or made


def _kept(base: Path) -> Labelled | None:
    try:
        about = json.loads(base.with_suffix(".json").read_bytes())
        # A plain array over the map: pickling passes its memory on without a copy, which it does not for np.memmap.
        images = np.asarray(np.load(base.with_suffix(".npy"), mmap_mode="r", allow_pickle=False))
        labels = np.array(about["labels"], np.int64)
        whole = digest(images, labels) == about["digest"]
        return Labelled(images, labels, tuple(about["classes"])) if whole else None
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def digest(*arrays: np.ndarray) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype.str}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def pick(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """A contiguous copy of some images, made in pieces: no second copy of all of them in between."""
    picked = np.empty((len(rows), *images.shape[1:]), images.dtype)
    for start in range(0, len(rows), BATCH):
        picked[start : start + BATCH] = images[rows[start : start + BATCH]]
    return picked
