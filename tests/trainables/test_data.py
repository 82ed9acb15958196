"""Data sets: splits that are disjoint, balanced and the same everywhere; sources read pixel by pixel; damage named."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from spaces import BadInput, Task
from trainables import data
from trainables import images as image_files
from trainables.contracts import Data, Split
from trainables.data import DataConfig, load
from trainables.files import LEFT_BEHIND, replacing

ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get("DUX_TEST_DATA", ROOT.parent / "shared" / "data")) / "cifar10"
CLASSES = ("ant", "bee", "cow")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DUX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pictures(count: int, size: int = 8, channels: int = 3) -> np.ndarray:
    """Distinct random images [N, C, S, S]."""
    return np.random.default_rng(count).integers(0, 256, (count, channels, size, size), np.uint8)


def png(image: np.ndarray) -> bytes:
    """An image [C, H, W] as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(file, "png")
    return file.getvalue()


def write_parquet(file: Path, images: np.ndarray, labels: np.ndarray, metadata: dict[str, str] | None = None) -> None:
    cells = [{"bytes": png(image), "path": f"{row}.png"} for row, image in enumerate(images)]
    table = pa.table({"image": cells, "label": labels})
    pq.write_table(table.replace_schema_metadata(metadata), file, row_group_size=20)


def write_folder(root: Path, images: np.ndarray, labels: np.ndarray) -> None:
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = root / CLASSES[label]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{row:04}.png").write_bytes(png(image))


def write_mnist(root: Path, images: np.ndarray, labels: np.ndarray, prefix: str) -> None:
    """The `idx` files of MNIST, as http://yann.lecun.com/exdb/mnist describes them."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">iiii", 0x803, len(images), *images.shape[2:])
    (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
    (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(
        struct.pack(">ii", 0x801, len(labels)) + labels.astype(np.uint8).tobytes()
    )


@dataclass(frozen=True)
class Case:
    """A data set on disk, with what was written: 60 training images and maybe 15 for testing, of 3 classes."""

    config: DataConfig
    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray | None


LABELS, TEST_LABELS = np.arange(60) % 3, np.arange(15) % 3


def parquet_case(root: Path) -> Case:
    images, tests = pictures(60), pictures(15)
    for name, part, labels in (("train-0", images[:40], LABELS[:40]), ("train-1", images[40:], LABELS[40:])):
        write_parquet(root / f"{name}.parquet", part, labels)
    write_parquet(root / "test.parquet", tests, TEST_LABELS)
    return Case(DataConfig("parquet", str(root)), images, LABELS, tests)


def folder_case(root: Path) -> Case:
    images = pictures(60)
    write_folder(root / "train", images, LABELS)
    return Case(DataConfig("folder", str(root)), images, LABELS, None)


def mnist_case(root: Path) -> Case:
    images, tests = pictures(60, 28, 1), pictures(15, 28, 1)
    write_mnist(root, images, LABELS, "train")
    write_mnist(root, tests, TEST_LABELS, "t10k")
    # Ten classes by name, of which the case has three: MNIST itself is never so small.
    return Case(DataConfig("MNIST", str(root), download=False), images, LABELS, tests)


def eurosat_case(root: Path) -> Case:
    images = pictures(60)
    write_folder(root / "eurosat" / "2750", images, LABELS)
    return Case(DataConfig("EuroSAT", str(root), download=False), images, LABELS, None)


def digits_case(root: Path) -> Case:
    bunch = load_digits()
    return Case(DataConfig("digits"), np.rint(bunch.images * 15.9375).astype(np.uint8)[:, None], bunch.target, None)


CASES: dict[str, Callable[[Path], Case]] = {
    "digits": digits_case,
    "parquet": parquet_case,
    "folder": folder_case,
    "EuroSAT": eurosat_case,
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    root = tmp_path / "data"
    root.mkdir()
    return CASES[request.param](root)


def splits(found: Data) -> tuple[Split, Split, Split]:
    return found.train, found.valid, found.test


def keys(split: Split) -> set[bytes]:
    return {image.tobytes() for image in split.images}


def test_every_image_keeps_its_pixels_and_its_label(case: Case) -> None:
    written = dict(zip((image.tobytes() for image in case.train), case.train_labels, strict=True))
    for split in splits(load(case.config))[: 2 if case.test is not None else 3]:
        for image, label in zip(split.images, split.labels, strict=True):
            assert written[image.tobytes()] == label


def test_the_splits_are_disjoint_and_whole(case: Case) -> None:
    found = load(case.config)
    train, valid, test = map(keys, splits(found))
    assert not train & valid
    assert not train & test
    assert not valid & test
    learnt = {image.tobytes() for image in case.train}
    if case.test is None:
        assert train | valid | test == learnt
    else:
        assert train | valid == learnt
        assert test == {image.tobytes() for image in case.test}


def test_the_splits_hold_the_classes_in_proportion(case: Case) -> None:
    for split in splits(load(case.config)):
        shares = np.bincount(split.labels) / len(split)
        assert np.abs(shares - np.bincount(case.train_labels) / len(case.train)).max() < 1.5 / len(split)


def test_arrays_are_contiguous_typed_and_read_only(case: Case) -> None:
    for split in splits(load(case.config)):
        assert type(split.images) is np.ndarray
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int64
        for array in (split.images, split.labels):
            assert array.flags.c_contiguous
            with pytest.raises(ValueError, match="read-only"):
                array[:1] = 0


def test_a_split_is_shipped_without_a_copy(case: Case) -> None:
    found = load(case.config)
    buffers: list[pickle.PickleBuffer] = []
    stream = pickle.dumps(found, protocol=5, buffer_callback=buffers.append)
    pixels = sum(split.images.nbytes for split in splits(found))
    assert len(stream) < 3000
    assert len(stream) < pixels
    again = pickle.loads(stream, buffers=[buffer.raw() for buffer in buffers])
    for there, here in zip(splits(again), splits(found), strict=True):
        assert np.shares_memory(there.images, here.images)


def test_the_seed_decides_the_splits_and_nothing_else_does(case: Case) -> None:
    first = load(case.config)
    np.random.seed(5)  # noqa: NPY002
    assert load(case.config).fingerprint == first.fingerprint
    assert load(replace(case.config, seed=1)).fingerprint != first.fingerprint


def test_a_fresh_process_gives_the_same_data(tmp_path: Path) -> None:
    configs = []
    for name, make in CASES.items():
        (tmp_path / name).mkdir()
        configs.append(replace(make(tmp_path / name).config, subset=12, valid=9))
    here = [load(config).fingerprint for config in configs]
    code = f"from trainables.data import *; print(*(load(config).fingerprint for config in {configs!r}))"
    environment = {**os.environ, "DUX_CACHE": str(tmp_path / "another"), "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == here


def test_the_normalisation_is_that_of_the_training_images(case: Case) -> None:
    found = load(replace(case.config, subset=30))
    pixels = found.train.images / 255
    np.testing.assert_allclose(found.mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(found.std, pixels.std((0, 2, 3)), rtol=1e-9)
    channels = found.task.channels
    own = load(replace(case.config, mean=[0.5] * channels, std=[0.25] * channels))
    assert (own.mean, own.std) == ((0.5,) * channels, (0.25,) * channels)


def test_digits_leave_400_to_learn_on() -> None:
    found = load(DataConfig())
    assert [len(split) for split in splits(found)] == [400, 300, 1097]
    assert found.task == Task(1, 8, 10)
    assert found.train.images.max() == 255
    assert len(load(DataConfig(valid_fraction=0.2)).valid) == 140


def test_a_subset_is_balanced_nested_and_leaves_validation_as_it_is() -> None:
    small, large = load(DataConfig(subset=52)), load(DataConfig(subset=101))
    assert keys(small.train) < keys(large.train)
    assert keys(small.valid) == keys(load(DataConfig()).valid)
    assert sorted(np.bincount(small.train.labels)) == [5] * 8 + [6] * 2
    assert len(load(DataConfig(test_subset=100)).test) == 100


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=2, max_size=6), st.integers(0, 99), st.booleans())
def test_a_draw_takes_what_it_should_from_each_class(sizes: list[int], seed: int, even: bool) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.arange(len(labels))
    previous: set[int] = set()
    for count in range(len(labels) + 1):
        chosen, others = data.draw(labels, rows, count, seed, "test", even)
        assert np.array_equal(np.sort(np.concatenate([chosen, others])), rows)
        assert previous <= set(chosen)
        previous = set(chosen)
        taken = np.bincount(labels[chosen], minlength=len(sizes))
        if even:  # as even as can be: who has fewer than another by two or more has given all
            assert all(n == size or n >= taken.max() - 1 for n, size in zip(taken, sizes, strict=True))
        else:  # Webster: each class's share, rounded, for one common divisor
            low = max((n - 0.5) / size for n, size in zip(taken, sizes, strict=True))
            high = min((n + 0.5) / size for n, size in zip(taken, sizes, strict=True))
            assert low <= high + 1e-12


def test_mnist_is_read_from_its_own_files(tmp_path: Path) -> None:
    case = mnist_case(tmp_path)
    with pytest.raises(BadInput, match="class '3 - three' has no training image"):
        load(case.config)
    labels = np.arange(60) % 10
    write_mnist(tmp_path, case.train, labels, "train")
    # The images of before are known by their data set and place; another cache looks again.
    os.environ["DUX_CACHE"] += "2"
    found = load(case.config)
    assert found.task == Task(1, 28, 10)
    assert case.test is not None
    assert np.array_equal(found.test.images, case.test)
    assert np.array_equal(found.test.labels, TEST_LABELS)


@pytest.mark.parametrize("name", ["CIFAR10", "MNIST", "SVHN", "EuroSAT"])
def test_without_a_network_one_line_says_where_files_go(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # a port that nothing listens at
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(BadInput, match=f"cannot get {name} .*; put its files under ") as caught:
        load(DataConfig(name))
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "cache" / "torchvision" / name) in str(caught.value)
    with pytest.raises(BadInput, match="cannot get"):
        load(DataConfig(name, download=False))


def test_class_names_come_from_the_metadata(tmp_path: Path) -> None:
    images = pictures(60)
    features = {"info": {"features": {"label": {"names": list(CLASSES), "_type": "ClassLabel"}}}}
    for metadata, names in (
        ({"huggingface": json.dumps(features)}, CLASSES),
        ({"class_names": ",".join(CLASSES)}, CLASSES),
        (None, ("0", "1", "2")),
    ):
        write_parquet(tmp_path / "train.parquet", images, LABELS, metadata)
        found = load(DataConfig("parquet", str(tmp_path)))
        assert found.classes == names
        assert [len(split) for split in splits(found)] == [43, 5, 12]


def test_plain_binary_columns_are_found_or_named(tmp_path: Path) -> None:
    images = pictures(60)
    cells = pa.array([png(image) for image in images])
    table = pa.table({"fine": LABELS, "img": cells, "coarse": LABELS % 2})
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "train.parquet")
    config = DataConfig("parquet", str(tmp_path))
    with pytest.raises(BadInput, match=r"several hold integer labels.* fine \(int64\), img \(binary\), coarse"):
        load(config)
    assert len(load(replace(config, columns=["img", "fine"])).classes) == 3
    assert len(load(replace(config, columns=("img", "coarse"))).classes) == 2
    with pytest.raises(BadInput, match="did you mean 'coarse'"):
        load(replace(config, columns=["img", "course"]))
    with pytest.raises(BadInput, match="'fine' does not hold images"):
        load(replace(config, columns=["fine", "coarse"]))


@pytest.mark.parametrize("grey", [True, False])
def test_images_are_grey_only_if_all_are(grey: bool, tmp_path: Path) -> None:
    images = pictures(60, channels=1)
    write_folder(tmp_path / "train", images, LABELS)
    write_folder(tmp_path / "test", pictures(15, channels=1 if grey else 3), TEST_LABELS)
    found = load(DataConfig("folder", str(tmp_path)))
    channels = 1 if grey else 3
    assert {split.images.shape[1] for split in splits(found)} == {channels}
    expected = {np.repeat(image, channels, 0).tobytes() for image in images}
    assert keys(found.train) | keys(found.valid) == expected


def test_one_colour_image_makes_its_split_colour(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", pictures(60, channels=1), LABELS)
    colour = pictures(1)
    (tmp_path / "train" / "bee" / "z.png").write_bytes(png(colour[0]))
    found = load(DataConfig("folder", str(tmp_path), valid=3))
    assert found.task.channels == 3
    assert colour.tobytes() in set().union(*map(keys, splits(found)))


def test_shrinking_averages_areas_and_crops_the_centre(tmp_path: Path) -> None:
    wide = np.random.default_rng(0).integers(0, 256, (60, 3, 8, 16), np.uint8)
    write_folder(tmp_path / "train", wide, LABELS)
    found = load(DataConfig("folder", str(tmp_path), image_size=4))
    assert found.task.image_size == 4
    means = wide.reshape(60, 3, 4, 2, 8, 2).mean((3, 5))[..., 2:6]
    everything = np.concatenate([split.images for split in splits(found)])
    labels = np.concatenate([split.labels for split in splits(found)])
    for image, label in zip(everything, labels, strict=True):
        nearest = np.abs(means - image).max((1, 2, 3))
        assert nearest.min() <= 1  # rounded once in each direction
        assert LABELS[nearest.argmin()] == label
    assert load(DataConfig("folder", str(tmp_path), image_size=16)).task.image_size == 16
    uncropped = load(DataConfig("folder", str(tmp_path)))
    assert keys(uncropped.test) < {np.ascontiguousarray(image[:, :, 4:12]).tobytes() for image in wide}


@pytest.mark.parametrize("damage", ["truncated npy", "other pixel", "no json", "half json", "empty npy", "pickle"])
def test_a_damaged_cache_is_made_anew(damage: str, tmp_path: Path, cache: Path) -> None:
    case = folder_case(tmp_path)
    first = load(case.config).fingerprint
    [images], [about] = (list((cache / "images").glob(f"*.{suffix}")) for suffix in ("npy", "json"))
    whole = images.read_bytes(), about.read_bytes()
    if damage == "truncated npy":
        images.write_bytes(whole[0][:-100])
    elif damage == "other pixel":
        images.write_bytes(whole[0][:-1] + bytes([whole[0][-1] ^ 1]))
    elif damage == "no json":
        about.unlink()
    elif damage == "half json":
        about.write_bytes(whole[1][:50])
    elif damage == "empty npy":
        images.write_bytes(b"")
    else:
        np.save(images, np.array([{}], object), allow_pickle=True)
    assert load(case.config).fingerprint == first
    assert (images.read_bytes(), about.read_bytes()) == whole
    assert not list(cache.rglob(".*"))  # no temporary files


def test_kept_images_are_used_and_follow_their_files(tmp_path: Path, cache: Path) -> None:
    case = folder_case(tmp_path)
    load(case.config)
    kept = next((cache / "images").glob("*.npy"))
    written = kept.stat().st_mtime_ns
    load(replace(case.config, seed=3, subset=6))
    assert kept.stat().st_mtime_ns == written
    assert len(list((cache / "images").glob("*.npy"))) == 1
    (tmp_path / "train" / "ant" / "0000.png").write_bytes(png(pictures(61)[60]))
    assert pictures(61)[60].tobytes() in set().union(*map(keys, splits(load(case.config))))


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = folder_case(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DUX_CACHE", str(tmp_path / "file"))
    with pytest.raises(BadInput, match=r"cannot write to the cache folder .*DUX_CACHE"):
        load(case.config)


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DUX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert image_files.cache_dir() == Path("/somewhere/dux")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert image_files.cache_dir() == Path.home() / ".cache" / "dux"


WRONG_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "name": ({"dataset": "digit"}, "unknown data set 'digit'; did you mean 'digits'"),
    "torchvision name": ({"dataset": "CIFAR1O"}, "did you mean 'CIFAR10'"),
    "no path": ({"dataset": "parquet"}, "needs path"),
    "missing path": ({"dataset": "folder", "path": "nowhere"}, "nowhere: no such folder"),
    "size": ({"image_size": 0}, "image_size must be at least 1"),
    "subset too large": ({"subset": 401}, "subset must be 10 to 400 training images.*not 401"),
    "subset too small": ({"subset": 9}, "not 9"),
    "valid too large": ({"valid": 700}, "valid must be 1 to 699"),
    "valid nothing": ({"valid": 0}, "valid must be 1 to"),
    "valid all": ({"valid": 699}, "has no training image beside validation"),
    "fraction of all": ({"valid_fraction": 1.0}, "valid_fraction must lie between 0 and 1, not 1.0"),
    "fraction of none": ({"valid_fraction": 0.0}, "valid_fraction must lie between"),
    "test_subset": ({"test_subset": 1098}, "test_subset must be 1 to 1097 test images, not 1098"),
    "mean alone": ({"mean": [0.5]}, "both mean and std"),
    "channels": ({"mean": [0.5] * 3, "std": [0.5] * 3}, "one value for each of the 1 channels"),
    "std": ({"mean": [0.5], "std": [0.0]}, "std above 0"),
    "mean": ({"mean": [float("nan")], "std": [1.0]}, "mean must be finite"),
}


@pytest.mark.parametrize("name", WRONG_CONFIGS)
def test_a_wrong_config_is_one_line(name: str) -> None:
    config, message = WRONG_CONFIGS[name]
    with pytest.raises(BadInput, match=message) as caught:
        load(DataConfig(**config))
    assert "\n" not in str(caught.value)


def parquet_of(root: Path, **columns: list[Any]) -> DataConfig:
    """A good train.parquet of 60 images but for these columns."""
    images = [{"bytes": png(picture), "path": None} for picture in pictures(60)]
    pq.write_table(pa.table({"image": images, "label": LABELS.tolist(), **columns}), root / "train.parquet")
    return DataConfig("parquet", str(root))


DEEP = io.BytesIO()
Image.fromarray(np.zeros((8, 8), np.uint16)).save(DEEP, "png")

WRONG_IMAGES: dict[str, tuple[bytes | None, str]] = {
    "truncated": (png(pictures(1, 32)[0])[:-200], r"train\.parquet, row 7: no image that can be read"),
    "text": (b"text", r"row 7: no image that can be read"),
    "missing": (None, r"row 7: no image .*no bytes"),
    "16 bits": (DEEP.getvalue(), r"row 7: .*more than 8 bits"),
    "other size": (png(pictures(1, 9)[0]), r"row 7: 9 pixels wide, others 8; set image_size"),
}


@pytest.mark.parametrize("name", WRONG_IMAGES)
def test_a_wrong_image_names_its_row(name: str, tmp_path: Path) -> None:
    blob, message = WRONG_IMAGES[name]
    images: list[dict[str, Any]] = [{"bytes": png(picture), "path": None} for picture in pictures(60)]
    images[7] = {"bytes": blob, "path": "a.png"}
    with pytest.raises(BadInput, match=message) as caught:
        load(parquet_of(tmp_path, image=images))
    assert "\n" not in str(caught.value)


GOOD = LABELS[1:].tolist()
WRONG_COLUMNS: dict[str, tuple[dict[str, list[Any]], str]] = {
    "label below": ({"label": [-1, *GOOD]}, "training image 0 has label -1; the 3 classes count from 0 to 2"),
    "label far outside": ({"label": [2**40, *GOOD]}, f"training image 0 has label {2**40}"),
    "gap": ({"label": [4, *GOOD]}, "class '3' has no training image"),
    "one class": ({"label": [0] * 60}, "at least 2 classes"),
    "no label": ({"label": [None, *GOOD]}, "rows without a label"),
    "fractions": ({"label": [0.5] * 60}, "no column holds integer labels"),
    "strings": ({"label": ["a"] * 60}, "no column holds integer labels"),
    "no images": ({"image": ["a"] * 60}, "no column holds images"),
}


@pytest.mark.parametrize("name", WRONG_COLUMNS)
def test_wrong_columns_are_one_line(name: str, tmp_path: Path) -> None:
    columns, message = WRONG_COLUMNS[name]
    with pytest.raises(BadInput, match=message) as caught:
        load(parquet_of(tmp_path, **columns))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 100, 3000, -1, -2000])
def test_a_truncated_parquet_is_one_line(keep: int, tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", pictures(60), LABELS)
    file = tmp_path / "train.parquet"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(BadInput, match=r"train\.parquet: no whole Parquet file") as caught:
        load(DataConfig("parquet", str(tmp_path)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("told", [40, 63])
def test_a_parquet_that_tells_another_number_of_rows_is_one_line(told: int, tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    write_parquet(file, pictures(60), LABELS)
    whole = file.read_bytes()
    # Of the whole file, in its footer: field 3 of 64 bits, in twice the number.
    end = whole.rindex(b"\x16\x78", 0, len(whole))
    file.write_bytes(whole[:end] + bytes([0x16, 2 * told]) + whole[end + 2 :])
    assert pq.read_metadata(file).num_rows == told
    with pytest.raises(BadInput, match=f"{told} that are told of"):
        load(DataConfig("parquet", str(tmp_path)))


@pytest.mark.parametrize("kind", ["pipe", "link to nothing"])
def test_what_is_no_file_is_refused_and_not_waited_for(kind: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "train", pictures(60), LABELS)
    odd = next((tmp_path / "train").iterdir()) / "x.png"
    os.mkfifo(odd) if kind == "pipe" else odd.symlink_to("nowhere")
    with pytest.raises(BadInput, match=r"x\.png: (is no file|cannot be read)"):
        load(DataConfig("folder", str(tmp_path)))


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_a_file_is_for_those_that_the_umask_says(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "a") as temporary:
            temporary.write_text("x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode
    assert LEFT_BEHIND.fullmatch(temporary.name)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_without_train_files_or_classes_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no train\*\.parquet"):
        load(DataConfig("parquet", str(tmp_path)))
    with pytest.raises(BadInput, match="no classes"):
        load(DataConfig("folder", str(tmp_path)))
    for name in CLASSES:
        (tmp_path / "train" / name).mkdir(parents=True)
    with pytest.raises(BadInput, match="there are no training images"):
        load(DataConfig("folder", str(tmp_path)))
    write_folder(tmp_path / "train", pictures(30), np.arange(30) % 2)
    with pytest.raises(BadInput, match="class 'cow' has no training image"):
        load(DataConfig("folder", str(tmp_path)))
    write_folder(tmp_path / "train", pictures(60), LABELS)
    (tmp_path / "test" / "cows").mkdir(parents=True)
    with pytest.raises(BadInput, match="did you mean 'cow'"):
        load(DataConfig("folder", str(tmp_path)))
    (tmp_path / "test" / "cows").rmdir()
    with pytest.raises(BadInput, match="there are no test images"):
        load(DataConfig("folder", str(tmp_path)))
    write_folder(tmp_path / "test", pictures(15, 16), TEST_LABELS)
    with pytest.raises(BadInput, match="training images are 8 pixels wide, test images 16; set image_size"):
        load(DataConfig("folder", str(tmp_path)))


@pytest.mark.parametrize("name", data.TORCHVISION)
def test_torchvision_has_every_data_set_that_is_offered(name: str) -> None:
    from inspect import signature

    from torchvision import datasets

    argument = data.TORCHVISION[name][0]
    parameters = signature(getattr(datasets, name).__init__).parameters
    assert {"root", "download", *([argument] if argument else [])} <= set(parameters)


@pytest.mark.skipif(not REAL.is_dir(), reason="the CIFAR-10 images are not here")
def test_cifar_10_as_it_is_published(tmp_path: Path) -> None:
    # Its test file alone, to be quick: 10,000 images, 1,000 of each class.
    (tmp_path / "train.parquet").symlink_to(REAL / "test.parquet")
    found = load(DataConfig("parquet", str(tmp_path), subset=100))
    assert found.classes[:3] == ("airplane", "automobile", "bird")
    assert found.task == Task(3, 32, 10)
    assert [len(split) for split in splits(found)] == [100, 800, 2000]
    for split in splits(found):
        assert set(np.bincount(split.labels)) == {len(split) // 10}
    table = pq.ParquetFile(REAL / "test.parquet").read_row_group(0).slice(0, 50)
    pixels = set().union(*map(keys, splits(load(DataConfig("parquet", str(tmp_path))))))
    for cell in table["image"].to_pylist():
        image = np.asarray(Image.open(io.BytesIO(cell["bytes"]))).transpose(2, 0, 1)
        assert image.tobytes() in pixels
