"""The curriculum: what an epoch looks like depends on seed and epoch alone, and every image is what the draws say."""

import hashlib
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainables.contracts import Split
from trainables.curriculum import Augment, Batch, Curriculum

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
AUGMENTS = {
    "none": Augment(),
    "crop": Augment(crop=1),
    "flip": Augment(flip=True),
    "cutout": Augment(cutout=3),
    "mixup": Augment(mixup=0.4),
    "all": Augment(crop=2, flip=True, cutout=3, mixup=0.4),
}


def split_of(n: int = 23, channels: int = 1, size: int = 8) -> Split:
    """Random images without black pixels, each of a class of its own, so that a label says which image it was."""
    rng = np.random.default_rng(0)
    return Split(rng.integers(1, 256, (n, channels, size, size), dtype=np.uint8), np.arange(n))


def curriculum_of(
    split: Split | None = None, seed: int = 0, batch_size: int = 5, augment: Augment = AUGMENTS["none"]
) -> Curriculum:
    split = split or split_of()
    return Curriculum(split, len(split), seed, batch_size, augment, CPU)


def digest(batches: Iterator[Batch]) -> str:
    found = hashlib.sha256()
    for batch in batches:
        found.update(batch.images.numpy().tobytes())
        found.update(batch.labels.numpy().tobytes())
    return found.hexdigest()


# A pure function of seed and epoch


@pytest.mark.parametrize("name", AUGMENTS)
def test_an_epoch_is_the_same_whatever_was_asked_or_drawn_before(name: str) -> None:
    curriculum = curriculum_of(augment=AUGMENTS[name])
    first = digest(curriculum.batches(3))
    list(curriculum.batches(1))
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 (the global generator is what must not matter)
    assert digest(curriculum.batches(3)) == first
    assert digest(curriculum_of(augment=AUGMENTS[name]).batches(3)) == first


@pytest.mark.parametrize("name", AUGMENTS)
def test_another_epoch_and_another_seed_differ(name: str) -> None:
    curriculum, other = (curriculum_of(seed=seed, augment=AUGMENTS[name]) for seed in (0, 1))
    found = [digest(curriculum.batches(epoch)) for epoch in (1, 2, 3)] + [digest(other.batches(1))]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("name", AUGMENTS)
def test_no_generator_of_others_is_used(name: str) -> None:
    before = torch.get_rng_state()
    list(curriculum_of(augment=AUGMENTS[name]).batches(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_epoch_is_the_same_in_a_fresh_process() -> None:
    script = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]\n"
        "from test_curriculum import AUGMENTS, curriculum_of, digest\n"
        "print(*[digest(curriculum_of(augment=augment).batches(3)) for augment in AUGMENTS.values()])"
    )
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert child.stdout.split() == [digest(curriculum_of(augment=a).batches(3)) for a in AUGMENTS.values()]


def test_the_key_names_all_that_an_epoch_depends_on() -> None:
    keys = {curriculum_of(augment=augment).key() for augment in AUGMENTS.values()}
    keys |= {curriculum_of(seed=1).key(), curriculum_of(batch_size=4).key()}
    assert len(keys) == len(AUGMENTS) + 2
    assert curriculum_of().key() == curriculum_of().key()


# Which images


@given(n=st.integers(1, 40), batch_size=st.integers(1, 50), epoch=st.integers(1, 1000))
@settings(max_examples=30, deadline=None)
def test_batches_are_full_and_no_image_comes_twice(n: int, batch_size: int, epoch: int) -> None:
    split = split_of(n, size=2)
    curriculum = curriculum_of(split, batch_size=batch_size)
    batches = list(curriculum.batches(epoch))
    assert len(batches) == len(curriculum) == max(1, n // batch_size)
    assert {len(batch.images) for batch in batches} == {min(n, batch_size)}
    shown = torch.cat([batch.labels for batch in batches])
    assert len(set(shown.tolist())) == len(shown)
    # Images and labels belong together, and pixels lie in [0, 1].
    expected = torch.from_numpy(split.images).float()[shown] / 255
    assert torch.equal(torch.cat([batch.images for batch in batches]), expected)


def test_the_images_left_out_change_with_the_epoch_and_the_order_is_shuffled() -> None:
    curriculum = curriculum_of()  # 23 images in batches of 5: three are left out
    shown = [torch.cat([batch.labels for batch in curriculum.batches(epoch)]).tolist() for epoch in range(1, 9)]
    assert all(len(labels) == 20 for labels in shown)
    assert len({frozenset(labels) for labels in shown}) > 1
    assert set().union(*shown) == set(range(23))
    assert all(labels != sorted(labels) for labels in shown)


# How they are changed


@pytest.mark.parametrize("augment", [Augment(crop=1), Augment(flip=True), Augment(crop=2, flip=True)])
def test_crop_and_flip_give_a_shifted_or_mirrored_image(augment: Augment) -> None:
    """Each image is found among all shifts and mirrorings, cut out of a padded image by NumPy; each of those occurs."""
    split, crop = split_of(60, channels=3), augment.crop
    padded = np.pad(split.images, ((0, 0), (0, 0), (crop, crop), (crop, crop)))
    moves = [(y, x, m) for y in range(2 * crop + 1) for x in range(2 * crop + 1) for m in range(1 + augment.flip)]
    seen = set()
    for epoch in range(1, 9):
        for batch in curriculum_of(split, augment=augment).batches(epoch):
            for image, label in zip(batch.images.numpy(), batch.labels.tolist(), strict=True):
                found = []
                for y, x, mirrored in moves:
                    cut = padded[label, :, y : y + 8, x : x + 8]
                    cut = cut[:, :, ::-1] if mirrored else cut
                    if np.array_equal(image, cut.astype(np.float32) / 255):
                        found.append((y, x, mirrored))
                assert len(found) == 1, f"image {label} of epoch {epoch}: {found}"
                seen.add(found[0])
    assert seen == set(moves)


@pytest.mark.parametrize("side", [1, 3, 4])
def test_cutout_blackens_one_square_which_may_be_cut_by_the_edge(side: int) -> None:
    split = split_of(120, channels=2)
    wanted = {tuple(range(max(0, c - side // 2), min(8, c - side // 2 + side))) for c in range(8)}
    seen: set[tuple[int, ...]] = set()
    for batch in curriculum_of(split, augment=Augment(cutout=side)).batches(1):
        original = torch.from_numpy(split.images).float()[batch.labels] / 255
        for image, before in zip(batch.images, original, strict=True):
            black = image == 0
            rows, columns = (tuple(torch.nonzero(black[0].any(axis)).flatten().tolist()) for axis in (1, 0))
            expected = before.clone()
            expected[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = 0
            assert {rows, columns} <= wanted
            assert torch.equal(image, expected)
            seen |= {rows, columns}
    assert seen == wanted


def test_mixup_mixes_two_images_and_their_labels_by_one_share() -> None:
    split = split_of(40)
    images = torch.from_numpy(split.images).float() / 255
    shares = []
    for batch in curriculum_of(split, batch_size=8, augment=Augment(mixup=1.0)).batches(1):
        assert batch.labels.shape == (8, 40)
        torch.testing.assert_close(batch.labels.sum(1), torch.ones(8))
        assert ((batch.labels > 0).sum(1) == 2).all()
        # Each class is one image: the labels' shares are the images'.
        torch.testing.assert_close(batch.images, torch.einsum("bk,kchw->bchw", batch.labels, images))
        shares.append(batch.labels.max().item())
        assert torch.isclose(batch.labels.max(1).values, torch.tensor(shares[-1])).all()
    assert len(set(shares)) == len(shares)


def test_mixup_of_images_of_one_class_keeps_its_probability_1() -> None:
    split = replace(split_of(16), labels=np.zeros(16, np.int64))
    for batch in Curriculum(split, 3, 0, 8, Augment(mixup=0.4), CPU).batches(1):
        torch.testing.assert_close(batch.labels, torch.tensor([[1.0, 0.0, 0.0]]).expand(8, 3))


# How they lie in memory


@pytest.mark.parametrize("name", AUGMENTS)
@pytest.mark.parametrize("channels", [1, 3])
def test_rows_lie_last_whatever_the_augmentation(name: str, channels: int) -> None:
    """Kernels on a CPU take a network's layout from its input's strides, even where there is one channel only."""
    for batch in curriculum_of(split_of(20, channels), augment=AUGMENTS[name]).batches(1):
        assert batch.images.stride() == torch.empty(batch.images.shape).stride()


@pytest.mark.parametrize("name", AUGMENTS)
@pytest.mark.parametrize("together", [1, 2 * 5 * 64 * 4, 3 * 5 * 64 * 4 + 100])
def test_batches_are_the_same_however_many_are_augmented_at_once(
    name: str, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All four batches of an epoch at once, each alone, two and two, and three and one."""
    own = curriculum_of(augment=AUGMENTS[name])
    at_once = list(own.batches(1))
    monkeypatch.setattr("trainables.curriculum.TOGETHER", together)
    for batch, same in zip(at_once, own.batches(1), strict=True):
        assert torch.equal(batch.images, same.images)
        assert batch.images.stride() == same.images.stride()
        assert torch.equal(batch.labels, same.labels)
        assert torch.equal(batch.index, same.index)


@pytest.mark.parametrize("name", AUGMENTS)
@pytest.mark.parametrize("together", [1, 2 * 3 * 64 * 4, 2**20])
def test_some_of_an_epoch_s_batches_are_those_of_the_whole(
    name: str, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainables.curriculum.TOGETHER", together)
    one = curriculum_of(batch_size=3, augment=AUGMENTS[name])
    whole = list(one.batches(2))
    for within in (range(2), range(2, 5), range(5, 7), range(3, 3)):
        some = list(one.batches(2, within))
        assert len(some) == len(within)
        for batch, wanted in zip(some, whole[within.start : within.stop], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(vars(batch).values(), vars(wanted).values(), strict=True))


@pytest.mark.parametrize("name", AUGMENTS)
def test_read_only_arrays_are_used_where_they_lie_without_a_warning_and_stay_as_they_are(name: str) -> None:
    split = split_of()
    before = split.images.copy()
    split.images.flags.writeable = split.labels.flags.writeable = False
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # torch says this once a process, and another test may have heard it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            curriculum = curriculum_of(split, augment=AUGMENTS[name])
    finally:
        torch.set_warn_always(always)
    assert curriculum.images.data_ptr() == split.images.ctypes.data
    assert curriculum.labels.data_ptr() == split.labels.ctypes.data
    for batch in curriculum.batches(1):
        batch.images.zero_()  # a batch is the student's own
    assert np.array_equal(split.images, before)
