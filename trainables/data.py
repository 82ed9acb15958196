"""Image data sets as three disjoint splits of uint8 arrays; a function of the config and of nothing else.

`load` reads a source (`SOURCES`), puts a test split aside where the source has none, then the validation split, then
takes the wanted subset of the rest. Decoded images are kept under `cache_dir()` and mapped from there.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from spaces.errors import BadInput, unknown
from spaces.seeding import generator
from trainables.contracts import Data, Split
from trainables.digits import read_digits
from trainables.images import BATCH, Labelled, cache_dir, cached, decoded, digest, one_line, pick, square, stack, stamp

VALID_FRACTION = 0.1
TEST_FRACTION = 0.2  # put aside where a source has no test split of its own
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class DataConfig:
    """Which images to learn on.

    Args:
        dataset: `digits`, `parquet`, `folder`, or a classification data set of torchvision such as `CIFAR10`.
        path: where `parquet` and `folder` lie; for torchvision the root of its files (default: in the cache folder).
        image_size: pixels; the short side is resized to it (by area where it shrinks) and the centre cropped.
            Default: as the images are, which must then agree.
        subset: number of training images, balanced over the classes, taken after validation is put aside. A smaller
            subset of the same seed lies within a larger one.
        valid_fraction: share of the training images to choose students on; for digits, 0.1 means 300 of 700.
        valid: the same as a number of images; goes before `valid_fraction`.
        test_subset: number of test images, with the classes in proportion.
        seed: of every split.
        mean, std: per channel, of pixels in [0, 1]. Default: of the training images.
        columns: names of the image and the label column of `parquet`. Default: found by their types.
        download: whether torchvision may fetch what is missing.
    """

    dataset: str = "digits"
    path: str | None = None
    image_size: int | None = None
    subset: int | None = None
    valid_fraction: float = VALID_FRACTION
    valid: int | None = None
    test_subset: int | None = None
    seed: int = 0
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    columns: Sequence[str] | None = None
    download: bool = True


Pools = tuple[Labelled, Labelled | None]
"""The images to train and validate on, and the test images of a source that has them apart."""


def load(config: DataConfig) -> Data:
    """The data set, split; the same arrays in every process.

    Training and validation are disjoint parts of the source's training images (stratified, seeded); test is the
    source's own test split, or a seeded, stratified fifth where it has none. Arrays are contiguous and read-only.

    Raises:
        BadInput: unknown or missing data, unreadable images, labels outside, or splits that do not come out.
    """
    if config.dataset not in SOURCES:
        raise unknown("data set", config.dataset, SOURCES)
    if config.image_size is not None and config.image_size < 1:
        raise BadInput(f"image_size must be at least 1 pixel, not {config.image_size}")
    pool, test_pool = SOURCES[config.dataset](config)
    _check_labels(pool, pool.classes, "training")
    rest = np.arange(len(pool.labels))
    if test_pool is None:
        aside, rest = draw(pool.labels, rest, round(TEST_FRACTION * len(rest)), config.seed, "test")
        test_pool = Labelled(pick(pool.images, aside), pool.labels[aside], pool.classes)
    _check_labels(test_pool, pool.classes, "test")
    (_, channels, width, _), (_, test_channels, test_width, _) = pool.images.shape, test_pool.images.shape
    if width != test_width:
        raise BadInput(f"training images are {width} pixels wide, test images {test_width}; set image_size")
    valid_rows, rest = draw(pool.labels, rest, _valid_count(config, len(rest)), config.seed, "valid")
    test_rows = np.arange(len(test_pool.labels))
    if config.test_subset is not None:
        _check_count("test_subset", config.test_subset, 1, len(test_rows), "test images")
        test_rows, _ = draw(test_pool.labels, test_rows, config.test_subset, config.seed, "test_subset")
    train_rows = _train_rows(config, pool, rest)
    channels = max(channels, test_channels)
    train, valid, test = (
        _split(from_, rows, channels)
        for from_, rows in ((pool, train_rows), (pool, valid_rows), (test_pool, test_rows))
    )
    mean, std = _normalisation(config, train.images)
    fingerprint = digest(*(array for split in (train, valid, test) for array in (split.images, split.labels)))
    return Data(config.dataset, train, valid, test, pool.classes, mean, std, fingerprint[:16])


def _digits(config: DataConfig) -> Pools:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 pixels of 17 grey levels.

    700 and 1,097: with more training images, students can no longer be told apart.
    """
    pixels, labels = read_digits()
    grey = np.rint(pixels * (255 / 16)).astype(np.uint8)
    images = stack((("", square(Image.fromarray(image), config.image_size)) for image in grey), len(labels))
    pool, test = (
        Labelled(images[rows], labels[rows], tuple(map(str, range(10))))
        for rows in draw(labels, np.arange(len(labels)), 700, config.seed, "digits")
    )
    return pool, test


def _parquet(config: DataConfig) -> Pools:
    """Files train*.parquet and test*.parquet in the folder, or in its folder `data` (the Hugging Face hub's layout)."""
    root = _existing(config)

    def read(split: str) -> Labelled | None:
        files = sorted(root.glob(f"{split}*.parquet")) or sorted((root / "data").glob(f"{split}*.parquet"))
        key = ["parquet", [stamp(file) for file in files], list(config.columns or ()), config.image_size]
        return cached(key, lambda: _read_parquet(files, config)) if files else None

    train = read("train")
    if train is None:
        raise BadInput(f"{root}: no train*.parquet here or in a folder `data`")
    return train, read("test")


def _read_parquet(files: list[Path], config: DataConfig) -> Labelled:
    labels: list[np.ndarray] = []

    def blobs() -> Iterator[tuple[str, bytes | None]]:
        for file in files:
            parquet = pq.ParquetFile(file)
            image, label = _columns(parquet.schema_arrow, file, config.columns)
            row = 0
            for batch in parquet.iter_batches(BATCH, columns=[image, label]):
                values, numbers = batch[image], batch[label]
                if numbers.null_count:
                    raise BadInput(f"{file}: column {label!r} has rows without a label")
                labels.append(numbers.to_numpy(zero_copy_only=False).astype(np.int64))
                for blob in (values.field("bytes") if pa.types.is_struct(values.type) else values).to_pylist():
                    yield f"{file}, row {row}", blob
                    row += 1

    file = files[0]
    try:
        count = sum(pq.read_metadata(file := shard).num_rows for shard in files)
        images = stack(decoded(blobs(), config.image_size), count)
        schema = pq.read_schema(file := files[0])
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{file}: no whole Parquet file: {one_line(error)}") from error
    found = np.concatenate([np.empty(0, np.int64), *labels])
    return Labelled(images, found, _class_names(schema, _columns(schema, file, config.columns)[1], found, file))


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_image(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _columns(schema: pa.Schema, file: Path, names: Sequence[str] | None) -> tuple[str, str]:
    """The names of the image and the label column: as given, or the only ones of their types."""

    def choose(what: str, fits: Callable[[pa.DataType], bool], given: str | None) -> str:
        if given is not None and given not in schema.names:
            raise unknown(f"column of {file}", given, schema.names)
        fitting = [field.name for field in schema if fits(field.type) and given in (None, field.name)]
        if len(fitting) == 1:
            return fitting[0]
        fault = f"{given!r} does not hold" if given else "several hold" if fitting else "no column holds"
        listed = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise BadInput(f"{file}: {fault} {what}; set columns to [image, label], from: {listed}")

    if names is not None and len(names) != 2:
        raise BadInput(f"columns takes two names, of the images and of the labels, not {list(names)!r}")
    image, label = names or (None, None)
    return choose("images", _is_image, image), choose("integer labels", pa.types.is_integer, label)


def _class_names(schema: pa.Schema, label: str, labels: np.ndarray, file: Path) -> tuple[str, ...]:
    """From the metadata of the Hugging Face hub or a list `class_names`; else the labels themselves."""
    metadata = schema.metadata or {}
    try:
        about = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {}).get(label, {})
        names = about.get("names") or metadata.get(b"class_names", b"").decode().split(",")
    except (ValueError, AttributeError) as error:
        raise BadInput(f"{file}: its metadata is damaged: {one_line(error)}") from error
    return tuple(map(str, names)) if any(names) else _numbered(labels)


def _folder(config: DataConfig) -> Pools:
    """Images as train/<class>/<image> and test/<class>/<image>; the folder `test` may be missing."""
    root = _existing(config)

    def classes_of(split: str) -> list[str]:
        inside = (root / split).iterdir() if (root / split).is_dir() else ()
        return sorted(folder.name for folder in inside if folder.is_dir() and not folder.name.startswith("."))

    def read(split: str) -> Labelled:
        files, labels = [], []
        for label, name in enumerate(classes):
            inside = sorted((root / split / name).iterdir()) if (root / split / name).is_dir() else ()
            images = [file for file in inside if file.suffix.lower() in SUFFIXES]
            files += images
            labels += [label] * len(images)
        pixels = decoded(((str(file), file) for file in files), config.image_size)
        key = ["folder", [stamp(file) for file in files], classes, config.image_size]
        return cached(key, lambda: Labelled(stack(pixels, len(files)), np.array(labels, np.int64), tuple(classes)))

    classes = classes_of("train")
    if not classes:
        raise BadInput(f"{root}: no classes in it; images lie as train/<class>/<image>")
    for name in classes_of("test"):
        if name not in classes:
            raise unknown(f"class of {root / 'test'}", name, classes)
    return read("train"), read("test") if (root / "test").is_dir() else None


TORCHVISION: dict[str, tuple[str, Any, Any]] = {
    **dict.fromkeys(["CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "USPS"], ("train", True, False)),
    **dict.fromkeys(["SVHN", "STL10", "GTSRB", "DTD", "Flowers102", "Food101"], ("split", "train", "test")),
    **dict.fromkeys(["Country211", "PCAM", "RenderedSST2", "StanfordCars"], ("split", "train", "test")),
    **dict.fromkeys(["OxfordIIITPet", "FGVCAircraft"], ("split", "trainval", "test")),
    "Imagenette": ("split", "train", "val"),
    **dict.fromkeys(["EuroSAT", "Caltech101", "Caltech256", "SEMEION"], ("", None, None)),  # no splits of their own
}
"""torchvision's classification data sets: the argument that names a split, and its values for training and test."""


def _torchvision(config: DataConfig) -> Pools:
    import torchvision  # here, for importing it takes seconds that other sources need not pay

    root = Path(os.path.expanduser(config.path or cache_dir() / "torchvision" / config.dataset))
    argument, *values = TORCHVISION[config.dataset]

    def read(value: Any) -> Labelled:
        key = [torchvision.__version__, config.dataset, str(root.resolve()), value, config.image_size]
        split = {argument: value} if argument else {}
        return cached(["torchvision", *key], lambda: _read_torchvision(config, root, split))

    return read(values[0]), read(values[1]) if argument else None


def _read_torchvision(config: DataConfig, root: Path, split: dict[str, Any]) -> Labelled:
    from torchvision import datasets

    labels: list[int] = []

    def pixels() -> Iterator[tuple[str, np.ndarray]]:
        for row in range(len(dataset)):
            image, label = dataset[row]
            labels.append(int(label))
            yield f"{config.dataset}, image {row}", square(image, config.image_size)

    make = getattr(datasets, config.dataset)
    try:
        try:  # what is there is used as it is; only what is missing is fetched
            dataset = make(str(root), download=False, **split)
        except Exception:
            if not config.download:
                raise
            dataset = make(str(root), download=True, **split)
        images = stack(pixels(), len(dataset))
    except BadInput:
        raise
    except Exception as error:
        where = f"put its files under {root}, as torchvision.datasets.{config.dataset}(root) lays them out"
        raise BadInput(f"cannot get {config.dataset} ({one_line(error)}); {where}") from error
    found = np.array(labels, np.int64)
    names = [name if isinstance(name, str) else name[0] for name in getattr(dataset, "classes", None) or ()]
    return Labelled(images, found, tuple(names) or _numbered(found))


SOURCES: dict[str, Callable[[DataConfig], Pools]] = {
    "digits": _digits,
    "parquet": _parquet,
    "folder": _folder,
    **dict.fromkeys(TORCHVISION, _torchvision),
}


def _existing(config: DataConfig) -> Path:
    if not config.path:
        raise BadInput(f"data set {config.dataset!r} needs path, the folder it lies in")
    root = Path(os.path.expanduser(config.path))
    try:
        is_folder = root.is_dir()
    except (OSError, ValueError) as error:  # a name that no file system takes
        raise BadInput(f"{str(root)[:100]!r} can be no folder: {one_line(error)}") from error
    if not is_folder:
        raise BadInput(f"{root}: no such folder")
    return root


def _numbered(labels: np.ndarray) -> tuple[str, ...]:
    """Names 0, 1, ... for labels that have none; labels beyond the number of images are left to be refused."""
    return tuple(map(str, range(min(labels.max(initial=0) + 1, len(labels)))))


def draw(
    labels: np.ndarray, rows: np.ndarray, count: int, seed: int, purpose: str, even: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """`count` of the rows and the others, both rising: classes in proportion, or `even` as far as each one reaches.

    Each class is shuffled; the rows are then taken by their place in their class, as a share of the class (Webster's
    apportionment) or, if `even`, as a number. So a smaller draw lies within a larger one of the same seed.
    """
    order = np.empty(len(rows))
    for label in np.unique(labels[rows]):
        mine = np.flatnonzero(labels[rows] == label)
        place = generator(seed, "data", purpose, int(label)).permutation(len(mine))
        order[mine] = place if even else (place + 0.5) / len(mine)
    taken = np.argsort(order, kind="stable")
    return np.sort(rows[taken[:count]]), np.sort(rows[taken[count:]])


def _valid_count(config: DataConfig, available: int) -> int:
    if not 0 < config.valid_fraction < 1:
        raise BadInput(f"valid_fraction must lie between 0 and 1, not {config.valid_fraction}")
    if config.valid is not None:
        _check_count("valid", config.valid, 1, available - 1, "training images")
        return config.valid
    if config.dataset == "digits" and config.valid_fraction == VALID_FRACTION:
        return 300
    return max(1, round(config.valid_fraction * available))


def _train_rows(config: DataConfig, pool: Labelled, rest: np.ndarray) -> np.ndarray:
    counts = np.bincount(pool.labels[rest], minlength=len(pool.classes))
    if not counts.all():
        raise BadInput(f"class {pool.classes[int(counts.argmin())]!r} has no training image beside validation and test")
    if config.subset is None:
        return rest
    _check_count("subset", config.subset, len(pool.classes), len(rest), "training images, at least one a class")
    return draw(pool.labels, rest, config.subset, config.seed, "subset", even=True)[0]


def _check_count(name: str, value: int, low: int, high: int, of_what: str) -> None:
    if not low <= value <= high:
        raise BadInput(f"{name} must be {low} to {high} {of_what}, not {value}")


def _check_labels(pool: Labelled, classes: tuple[str, ...], split: str) -> None:
    """Refuse a single class, labels outside the classes, and training classes without an image."""
    if not len(pool.labels):
        raise BadInput(f"there are no {split} images")
    if len(classes) < 2:
        raise BadInput(f"there must be at least 2 classes, not only {list(classes)}")
    for row in np.flatnonzero((pool.labels < 0) | (pool.labels >= len(classes)))[:1]:
        rule = f"the {len(classes)} classes count from 0 to {len(classes) - 1}"
        raise BadInput(f"{split} image {row} has label {pool.labels[row]}; {rule}")
    counts = np.bincount(pool.labels, minlength=len(classes))
    if split == "training" and not counts.all():
        raise BadInput(f"class {classes[int(counts.argmin())]!r} has no training image")


def _split(pool: Labelled, rows: np.ndarray, channels: int) -> Split:
    images = pool.images.view() if len(rows) == len(pool.labels) else pick(pool.images, rows)
    images = images if images.shape[1] == channels else np.repeat(images, channels, axis=1)
    labels = pool.labels[rows]
    images.flags.writeable = labels.flags.writeable = False
    return Split(images, labels)


def _normalisation(config: DataConfig, images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of pixels in [0, 1]: as given, or counted over the images."""
    channels, mean, std = images.shape[1], config.mean, config.std
    if mean is not None and std is not None:
        if not len(mean) == len(std) == channels:
            raise BadInput(f"mean and std need one value for each of the {channels} channels")
        if not all(map(math.isfinite, mean)) or not all(0 < value < math.inf for value in std):
            raise BadInput(f"mean must be finite and std above 0, not {mean} and {std}")
        return tuple(mean), tuple(std)
    if (mean is None) != (std is None):
        raise BadInput("give both mean and std, or neither")
    counts = np.zeros((channels, 256))
    for start in range(0, len(images), BATCH):
        for channel in range(channels):
            counts[channel] += np.bincount(images[start : start + BATCH, channel].ravel(), minlength=256)
    levels, shares = np.arange(256) / 255, counts / counts.sum(1, keepdims=True)
    means = shares @ levels
    spread = np.sqrt((shares * (levels - means[:, None]) ** 2).sum(1))
    # A channel of one value has no spread to divide by; one grey level stands in for it.
    return tuple(means.tolist()), tuple(np.maximum(spread, 1 / 255).tolist())
