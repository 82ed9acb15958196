"""The teacher's outputs: those that it would give, computed once, whoever asks and whatever happens to the file."""

import hashlib
import math
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainables import losses, teacher_outputs, teachers
from trainables.contracts import REDUCTIONS, Data, Member, Outputs
from trainables.curriculum import Augment, Curriculum
from trainables.data import DataConfig, load
from trainables.evaluate import predict
from trainables.teacher_outputs import TeacherOutputs, bytes_per_image

CPU = torch.device("cpu")
ARCH = {"depth1": 1, "depth2": 1, "depth3": 1, "width": 4}
REDUCED = [("layer3", "gram"), ("layer3", "attention"), ("layer3", "unit_gram"), ("cam", "class_gram")]
VIEWS = ("logits", "layer2", *(f"{tap}:{reduction}" for tap, reduction in REDUCED))


@pytest.fixture(scope="module")
def data() -> Data:
    return load(DataConfig(subset=70, valid=20, test_subset=20))


@pytest.fixture(scope="module")
def teacher(data: Data) -> Member:
    config = teachers.TeacherConfig(space="resnet", arch=ARCH, random=True)
    return teachers.build(config, data).eval().requires_grad_(False)


def curriculum_of(data: Data, seed: int = 0, batch_size: int = 16, **augment: Any) -> Curriculum:
    return Curriculum(data.train, len(data.classes), seed, batch_size, Augment(**({"crop": 1} | augment)), CPU)


def outputs_of(
    data: Data, teacher: Callable[[], Member], folder: Path | None, views: tuple[str, ...] = VIEWS, hash_: str = "t"
) -> TeacherOutputs:
    return TeacherOutputs(teacher, hash_, data.fingerprint, curriculum_of(data), views, folder)


def absent() -> Member:
    raise AssertionError("the teacher was asked for")


def flat(outputs: list[Outputs]) -> list[Tensor]:
    """All tensors, in one order."""
    return [tensor for batch in outputs for tensor in (batch.logits, *(batch.features[v] for v in VIEWS[1:]))]


def assert_same(found: list[Outputs], wanted: list[Outputs]) -> None:
    tensors = flat(found), flat(wanted)
    assert len(tensors[0]) == len(tensors[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*tensors, strict=True))


# What they are


@pytest.mark.parametrize("kept", [True, False])
def test_they_are_what_the_teacher_says_of_the_same_batches(data, teacher, tmp_path, kept) -> None:
    outputs = outputs_of(data, lambda: teacher, tmp_path if kept else None)
    for epoch in (1, 2):
        found = list(outputs.epoch(epoch))
        batches = list(curriculum_of(data).batches(epoch))
        assert len(found) == len(batches) == 4
        for output, batch in zip(found, batches, strict=True):
            live = teacher.outputs(batch.images, ["layer2", "layer3", "cam"])
            assert torch.equal(output.logits, live.logits)
            assert output.features.keys() == set(VIEWS[1:])
            assert torch.equal(output.features["layer2"], live.features["layer2"])
            for tap, name in REDUCED:
                reduced = REDUCTIONS[name](live.features[tap])
                assert torch.equal(output.features[f"{tap}:{name}"], reduced)
                assert torch.equal(output.reduced(tap, name), reduced)
            assert not output.logits.requires_grad


@pytest.mark.parametrize("kept", [True, False])
def test_who_takes_them_can_still_learn(data, teacher, tmp_path, kept) -> None:
    """Between two batches the teacher's lack of gradients must not be the student's."""
    for _ in outputs_of(data, lambda: teacher, tmp_path if kept else None).epoch(1):
        assert torch.is_grad_enabled()


def test_they_are_as_large_as_foretold(data, teacher, tmp_path) -> None:
    outputs = outputs_of(data, lambda: teacher, tmp_path)
    batches = list(outputs.epoch(1))
    maps = losses.shapes_of(teacher, data.task).maps
    held = sum(tensor.nbytes for tensor in flat(batches))
    assert held == 4 * 16 * bytes_per_image(VIEWS, 10, dict(maps), 16)


@pytest.mark.parametrize("kept", [True, False])
def test_a_split_is_predicted_as_it_is(data, teacher, tmp_path, kept) -> None:
    folder = tmp_path if kept else None
    found = [outputs_of(data, lambda: teacher, folder).on("valid", data.valid)]
    if kept:
        found.append(outputs_of(data, absent, folder).on("valid", data.valid))
    wanted = predict(teacher, data.valid, CPU)
    for predictions in found:
        assert torch.equal(predictions.logits, wanted.logits)
        assert torch.equal(predictions.embedding, wanted.embedding)


# Once


def test_what_is_kept_is_not_computed_again(data, teacher, tmp_path) -> None:
    first = outputs_of(data, lambda: teacher, tmp_path)
    wanted = list(first.epoch(1))
    assert first.passes == 1
    assert_same(list(first.epoch(1)), wanted)
    assert first.passes == 1
    second = outputs_of(data, absent, tmp_path)
    assert_same(list(second.epoch(1)), wanted)
    assert second.passes == 0
    with pytest.raises(AssertionError, match="was asked for"):
        next(second.epoch(2))


def test_without_a_folder_each_use_is_a_pass(data, teacher) -> None:
    outputs = outputs_of(data, lambda: teacher, None)
    assert_same(list(outputs.epoch(1)), list(outputs.epoch(1)))
    assert outputs.passes == 2


def digest_of(outputs: TeacherOutputs) -> str:
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in flat(list(outputs.epoch(1))))).hexdigest()


def test_two_processes_at_once_compute_once(data, teacher, tmp_path) -> None:
    context = multiprocessing.get_context("fork")
    ready, said = context.Barrier(2), context.Queue()

    def slow() -> Member:
        time.sleep(0.1)
        return teacher

    def ask() -> None:
        outputs = outputs_of(data, slow, tmp_path)
        ready.wait(60)
        said.put((digest_of(outputs), outputs.passes))

    children = [context.Process(target=ask) for _ in range(2)]
    for child in children:
        child.start()
    found = [said.get(timeout=60) for _ in children]
    for child in children:
        child.join()
    assert sorted(passes for _, passes in found) == [0, 1]
    assert {digest for digest, _ in found} == {digest_of(outputs_of(data, lambda: teacher, None))}


def test_processes_that_need_an_epoch_at_once_share_it(data, teacher, tmp_path) -> None:
    """Each file of four batches is computed once, and nobody waits while there are more."""
    context = multiprocessing.get_context("fork")
    ready, said = context.Barrier(2), context.Queue()

    def outputs(teacher: Callable[[], Member], folder: Path | None) -> TeacherOutputs:
        curriculum = curriculum_of(data, batch_size=4)
        return TeacherOutputs(teacher, "t", data.fingerprint, curriculum, VIEWS, folder)

    def ask() -> None:
        batches = 0

        def slow() -> Member:
            nonlocal batches
            batches += 1
            time.sleep(0.05)
            return teacher

        mine = outputs(slow, tmp_path)
        ready.wait(60)
        said.put((digest_of(mine), batches, mine.passes))

    children = [context.Process(target=ask) for _ in range(2)]
    for child in children:
        child.start()
    digests, batches, passes = zip(*(said.get(timeout=60) for _ in children), strict=True)
    for child in children:
        child.join()
    assert set(digests) == {digest_of(outputs(lambda: teacher, None))}
    whole = len(curriculum_of(data, batch_size=4))
    assert sum(batches) == whole
    assert min(batches) >= 4
    assert sorted(passes) == [0, 1]
    assert len(kept_files(tmp_path)) == math.ceil(whole / 4)


# By epoch


def test_an_epoch_has_its_own_views_and_a_file_for_them(data, teacher, tmp_path) -> None:
    """Nothing of an epoch's file is for another phase; files of one phase are those of a program of that phase."""
    views: dict[int, tuple[str, ...]] = {1: ("layer2",), 2: ("logits",)}
    outputs = TeacherOutputs(lambda: teacher, "t", data.fingerprint, curriculum_of(data), views.__getitem__, tmp_path)
    live = TeacherOutputs(lambda: teacher, "t", data.fingerprint, curriculum_of(data), views.__getitem__, None)
    for epoch, names in {1: {"layer2"}, 2: set()}.items():
        for found, wanted in zip(outputs.epoch(epoch), live.epoch(epoch), strict=True):
            assert torch.equal(found.logits, wanted.logits)
            assert found.features.keys() == wanted.features.keys() == names
    sizes = [path.stat().st_size for path in kept_files(tmp_path)]
    assert sizes[0] > 10 * sizes[1]
    same = outputs_of(data, absent, tmp_path, ("logits",))
    list(same.epoch(2))
    assert same.passes == 0


# Whatever happens to the file


def kept_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[:5],
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[:-1],
        lambda raw: b"x" * 99,
    ],
    ids=["empty", "header", "half", "byte", "other"],
)
def test_a_damaged_file_is_computed_again(data, teacher, tmp_path, damage) -> None:
    wanted = list(outputs_of(data, lambda: teacher, None).epoch(1))
    list(outputs_of(data, lambda: teacher, tmp_path).epoch(1))
    [path] = kept_files(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    again = outputs_of(data, lambda: teacher, tmp_path)
    assert_same(list(again.epoch(1)), wanted)
    assert again.passes == 1
    assert path.read_bytes() == whole
    assert_same(list(outputs_of(data, absent, tmp_path).epoch(1)), wanted)


def flipped(raw: bytes, at: int) -> bytes:
    """One bit turned over."""
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


@pytest.mark.parametrize("where", ["header", "middle", "last"])
def test_a_flipped_bit_is_noticed_by_the_next_process(data, teacher, tmp_path, monkeypatch, where) -> None:
    wanted = list(outputs_of(data, lambda: teacher, None).epoch(1))
    list(outputs_of(data, lambda: teacher, tmp_path).epoch(1))
    [path] = kept_files(tmp_path)
    whole = path.read_bytes()
    at = {"header": whole.index(b"layer2") + 5, "middle": len(whole) // 2, "last": len(whole) - 1}[where]
    path.write_bytes(flipped(whole, at))
    monkeypatch.setattr(teacher_outputs, "_whole", set())
    again = outputs_of(data, lambda: teacher, tmp_path)
    assert_same(list(again.epoch(1)), wanted)
    assert again.passes == 1
    assert path.read_bytes() == whole


def test_a_file_is_checked_once_by_each_process(data, teacher, tmp_path, monkeypatch) -> None:
    """Maps can take hundreds of megabytes, and every student of a worker reads them."""
    list(outputs_of(data, lambda: teacher, tmp_path).epoch(1))
    counted, checksum = [], teacher_outputs._checksum
    monkeypatch.setattr(teacher_outputs, "_checksum", lambda tensors: counted.append(1) or checksum(tensors))
    for _ in range(3):
        list(outputs_of(data, absent, tmp_path).epoch(1))
    assert len(counted) == 1


def test_an_error_while_computing_leaves_nothing_behind(data, teacher, tmp_path) -> None:
    calls = []

    def dying() -> Member:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return teacher

    with pytest.raises(RuntimeError, match="out of memory"):
        list(outputs_of(data, dying, tmp_path).epoch(1))
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    assert len(list(outputs_of(data, lambda: teacher, tmp_path).epoch(1))) == 4


CHANGES: dict[str, Callable[[Data, Member], tuple[Any, ...]]] = {
    "teacher": lambda data, teacher: ("u", data.fingerprint, curriculum_of(data), VIEWS),
    "images": lambda data, teacher: ("t", "other", curriculum_of(data), VIEWS),
    "seed": lambda data, teacher: ("t", data.fingerprint, curriculum_of(data, seed=1), VIEWS),
    "batch size": lambda data, teacher: ("t", data.fingerprint, curriculum_of(data, batch_size=8), VIEWS),
    "augmentation": lambda data, teacher: ("t", data.fingerprint, curriculum_of(data, flip=True), VIEWS),
    "views": lambda data, teacher: ("t", data.fingerprint, curriculum_of(data), VIEWS[:2]),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_they_depend_on_has_a_file_of_its_own(data, teacher, tmp_path, what) -> None:
    list(outputs_of(data, lambda: teacher, tmp_path).epoch(1))
    other = TeacherOutputs(lambda: teacher, *CHANGES[what](data, teacher), tmp_path)
    list(other.epoch(1))
    assert other.passes == 1
    assert len(kept_files(tmp_path)) == (3 if what == "batch size" else 2)  # of more batches, more files
