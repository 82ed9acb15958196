"""The teacher's outputs over the curriculum, computed once and shared by all students of a search.

An epoch's outputs are some safetensors files in a folder that all trials of a node see. The first trial that needs the
epoch computes them; others that need it meanwhile compute those that it has not come to. They are mapped, and still
there after a resume. A file's name is derived from all that its contents depend on, and its header holds their
checksum: a process looks at it the first time that it reads the file.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from spaces.seeding import stable_hash
from trainables.contracts import CAM, Member, Outputs, Split
from trainables.curriculum import Curriculum
from trainables.evaluate import Predictions, predict
from trainables.files import locked, replacing
from trainables.speed import Passes, Precision

Tensors = dict[str, Tensor]
PART, PARTS = 4, 8  # batches in a file at least, and files of an epoch at most


def bytes_per_image(
    views: Sequence[str], classes: int, maps: dict[str, tuple[int, int, int]], batch_size: int
) -> float:
    """What one image's outputs take in float32, for deciding whether to keep them; its share of what a batch has."""
    sizes: dict[str, float] = {"logits": classes, f"{CAM}:class_gram": classes**2 / batch_size}
    for tap, (channels, height, width) in maps.items():
        sizes |= {tap: channels * height * width, f"{tap}:attention": height * width, f"{tap}:pooled": channels}
        sizes |= {f"{tap}:gram": batch_size, f"{tap}:unit_gram": batch_size}
    return 4 * sum(sizes[view] for view in views)


class TeacherOutputs:
    """What one frozen teacher puts out, epoch by epoch.

    Args:
        teacher: gives the teacher on the device, in evaluation mode; called only when something must be computed.
        teacher_hash: names its weights.
        data_hash: names the images.
        curriculum: the epochs.
        views: "logits", taps, `CAM`, or `tap:reduction` of either; in all epochs, or by epoch. Logits come always.
        folder: where the outputs are kept; None computes them batch by batch for each student and keeps nothing.
        precision: in which the teacher computes the epochs; the images of a split (`on`) always in float32.
    """

    def __init__(
        self,
        teacher: Callable[[], Member],
        teacher_hash: str,
        data_hash: str,
        curriculum: Curriculum,
        views: Sequence[str] | Callable[[int], Sequence[str]],
        folder: Path | None,
        precision: Precision = "float32",
    ) -> None:
        self._teacher, self._curriculum, self._folder = teacher, curriculum, folder
        self._views = views
        self._identity = (teacher_hash, data_hash)
        self._pass = Passes(precision)
        self.passes = 0  # epochs that this process sent, or began to send, through the teacher

    def live(self) -> Member:
        """The teacher itself, for views that only one student sees."""
        return self._teacher()

    def epoch(self, epoch: int) -> Iterator[Outputs]:
        """The outputs for each batch of the epoch, on the curriculum's device."""
        views = self._wanted(epoch)
        if self._folder is None:
            self.passes += 1
            for batch in self._curriculum.batches(epoch):
                yield self._compute(batch.images, views)
            return
        stacked = [
            {view: tensor.to(self._curriculum.device) for view, tensor in kept.items()}
            for kept in self._all_kept(self._parts(epoch, views), views)
        ]
        size = self._batches_in_a_part()
        for i in range(len(self._curriculum)):
            part, at = stacked[i // size], i % size
            yield Outputs(part["logits"][at], {view: part[view][at] for view in views if view != "logits"})

    def on(self, name: str, split: Split) -> Predictions:
        """Logits and embedding for the images of a split as they are, on the CPU."""

        def compute() -> Tensors:
            found = predict(self._teacher(), split, self._curriculum.device)
            return {"logits": found.logits.cpu().contiguous(), "embedding": found.embedding.cpu().contiguous()}

        kept = compute() if self._folder is None else self._all_kept({name: compute}, ())[0]
        return Predictions(kept["logits"], kept["embedding"])

    def _wanted(self, epoch: int) -> tuple[str, ...]:
        views = self._views(epoch) if callable(self._views) else self._views
        return tuple(dict.fromkeys(("logits", *views)))

    def _batches_in_a_part(self) -> int:
        """So few that processes which need an epoch at once can share it, and not so few that files are many."""
        return max(PART, -(-len(self._curriculum) // PARTS))

    def _parts(self, epoch: int, views: Sequence[str]) -> dict[str, Callable[[], Tensors]]:
        """The files of an epoch, in order, and what computes each."""
        rounded = "" if self._pass.precision == "float32" else f"-{self._pass.precision}"
        whole, size = len(self._curriculum), self._batches_in_a_part()
        found: dict[str, Callable[[], Tensors]] = {}
        for first in range(0, whole, size):
            within = range(first, min(first + size, whole))
            which = "" if len(within) == whole else f"-{within.start}to{within.stop}"
            name = f"{self._curriculum.key()}-{epoch:05d}{which}{rounded}"
            found[name] = partial(self._part, epoch, views, within)
        return found

    def _part(self, epoch: int, views: Sequence[str], within: range) -> Tensors:
        self.passes += within.start == 0
        batches: list[Tensors] = []
        for batch in self._curriculum.batches(epoch, within):
            outputs = self._compute(batch.images, views)
            batches.append({"logits": outputs.logits, **outputs.features})
        return {view: torch.stack([batch[view] for batch in batches]).cpu() for view in views}

    @torch.no_grad()  # here, not around a `yield`, which would leave the student without gradients too
    def _compute(self, images: Tensor, views: Sequence[str]) -> Outputs:
        taps = {view.split(":")[0] for view in views if view != "logits"}
        raw = self._pass(self._teacher(), images, tuple(sorted(taps)))
        features = {}
        for view in views:
            if view != "logits":
                tap, _, reduction = view.partition(":")
                features[view] = raw.reduced(tap, reduction) if reduction else raw.features[tap].contiguous()
        return Outputs(raw.logits, features)

    def _all_kept(self, parts: Mapping[str, Callable[[], Tensors]], views: Sequence[str]) -> list[Tensors]:
        """What files of these names hold, once it is computed: here what nobody else computes, which is waited for."""
        at_once = {name: self._kept(name, views, compute, wait=False) for name, compute in parts.items()}
        found = [at_once[name] or self._kept(name, views, compute) for name, compute in parts.items()]
        return [kept for kept in found if kept is not None]

    def _kept(
        self, name: str, views: Sequence[str], compute: Callable[[], Tensors], wait: bool = True
    ) -> Tensors | None:
        """A file's tensors; None if another process is computing them, and is not to be waited for."""
        assert self._folder is not None
        key = stable_hash([*self._identity, views])[:16]
        path = self._folder / f"{name}-{key}.safetensors"
        found = _read(path)
        if found is None:
            with locked(path.with_suffix(".lock"), wait) as held:
                found = _read(path)  # another process may have been faster
                if found is None and held:
                    computed = compute()
                    with replacing(path) as temporary:
                        temporary.write_bytes(save(computed, {CHECKSUM: _checksum(computed)}))
                    found = load_file(path)
        return found


def _read(path: Path) -> Tensors | None:
    """The tensors of a file, mapped; None if it is missing or damaged, since all of it can be computed again."""
    try:
        tensors, is_whole = load_file(path), _stamp(path) in _whole
        if not is_whole:
            with safe_open(path, "pt") as file:
                is_whole = (file.metadata() or {}).get(CHECKSUM) == _checksum(tensors)
            if is_whole:
                _whole.add(_stamp(path))
    except (OSError, SafetensorError):
        return None
    return tensors if is_whole else None


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """A CRC of names, types, shapes and numbers: 0.09 s for 200 MB, of which sha256 takes 0.20 and blake2b 0.44."""
    crc = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        crc = zlib.crc32(f"{name}{tensor.dtype}{list(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def _stamp(path: Path) -> tuple[str, int, int, int]:
    """Changes when the file does."""
    found = path.stat()
    return str(path), found.st_ino, found.st_size, found.st_mtime_ns


_whole: set[tuple[str, int, int, int]] = set()  # files of which this process knows that they are what was written
CHECKSUM = "crc32"
