"""Teachers: the network that a config describes, and the files that its weights come from and go to."""

import hashlib
import os
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import spaces
from spaces import Task
from spaces.bounds import bounded, check_size
from spaces.errors import BadInput, unknown
from spaces.others import blaming, one_line
from spaces.packages import timm_model, torchvision_model
from spaces.seeding import derive_seed, stable_hash
from spaces.taps import find_taps
from trainables.contracts import Data, Member
from trainables.files import replacing
from trainables.images import cache_dir

# One layer under two names, in weights files of residual networks for small images.
ALIASES = {"linear": "fc", "fc": "linear", "downsample": "shortcut", "shortcut": "downsample"}
COUNTER = "num_batches_tracked"  # of batch norm; older files lack it, and a network at rest has no use for it


@dataclass(frozen=True)
class TeacherConfig:
    """A teacher: where its architecture comes from, and where its weights do.

    Args:
        space, arch: a student space by name, and an architecture, which may lie outside the space's values.
        timm, torchvision: instead, the name of a model of that package.
        options: of the builder, such as `{"shortcut": "pad"}` or timm's `{"img_size": 32}`.
        weights: a file of weights; see `load_weights`.
        train_epochs: train it here for so many epochs.
        random: leave it as it is initialised.
        pretrained: the package's own weights; with `train_epochs`, what training starts from, with a new head where
            the number of classes differs.
        mean, std: the normalisation that the weights expect. Default: that of pretrained weights, else the data's.
        seed: of the initialisation.
    """

    space: str | None = None
    arch: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    timm: str | None = None
    torchvision: str | None = None
    weights: str | None = None
    train_epochs: int = 0
    random: bool = False
    pretrained: bool = False
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        nets = {"space": self.space, "timm": self.timm, "torchvision": self.torchvision}
        _exactly_one("its network", {name: bool(value) for name, value in nets.items()})
        fresh = {"weights": bool(self.weights), "train_epochs": self.train_epochs > 0, "random": self.random}
        _exactly_one("its weights", {**fresh, "pretrained": self.pretrained and not self.train_epochs})
        if self.space and self.pretrained:
            raise BadInput("a teacher of a space has no pretrained weights; give weights or train_epochs")
        if bool(self.space) != bool(self.arch):
            raise BadInput("a teacher of a space needs arch, and only such a teacher takes it")
        if (self.mean is None) != (self.std is None):
            raise BadInput("a teacher takes both mean and std, or neither")


def build(config: TeacherConfig, data: Data) -> Member:
    """The teacher at its seeded initialisation or with its package's weights; torch's generator is left as it was.

    A file of weights is not read here: see `load_weights`.

    Raises:
        BadInput: an unknown network, or one that does not fit the data's images and classes.
    """
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed the GPUs' generators too.
        torch.default_generator.manual_seed(derive_seed(config.seed, "teacher"))
        net, taps, head, normal = _of_space(config, data.task) if config.space else _of_package(config, data.task)
    mean, std = normal or (data.mean, data.std)
    if config.mean is not None and config.std is not None:
        mean, std = config.mean, config.std
    if not len(mean) == len(std) == data.task.channels:
        raise BadInput(f"the teacher's mean and std need one value for each of the {data.task.channels} channels")
    return Member(net, taps, head, mean, std)


def load_weights(member: Member, path: str | Path) -> None:
    """Read a network's weights from a file; nothing changes unless all of them fit. Code in a file is never run.

    The file is a safetensors file or one of `torch.save`, with the state dict as such or under `state_dict`, with or
    without the prefix `module.`; layers may go by either name of `ALIASES`.

    Raises:
        BadInput: no such file, not a weights file, or weights of another network.
    """
    path = Path(os.path.expanduser(path))
    state = _read(path)
    own = member.net.state_dict()
    given = {_own_name(name, own): tensor for name, tensor in state.items()}
    faults = [f"lacks {name}" for name in own if name not in given and not name.endswith(COUNTER)]
    faults += [f"has an unknown {name}" for name in given if name not in own]
    faults += [
        f"{name} is {list(given[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in given and given[name].shape != tensor.shape
    ]
    if faults:
        more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise BadInput(f"{path} does not fit the network: {'; '.join(faults[:3])}{more}")
    for name, tensor in given.items():
        if not tensor.isfinite().all():
            raise BadInput(f"{path}: {name} holds values that are not finite")
    member.net.load_state_dict(given, strict=False)


def save_weights(member: Member, path: str | Path) -> None:
    """Write a network's weights, and their hash, to a safetensors file, which is there as a whole or not at all.

    Raises:
        BadInput: the file cannot be written.
    """
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in member.net.state_dict().items()}
    try:
        with replacing(Path(path).expanduser()) as temporary:
            save_file(state, temporary, {"hash": weights_hash(member)})
    except (OSError, SafetensorError) as error:
        raise BadInput(f"cannot write {path}: {one_line(error)}") from error


def weights_hash(member: Member) -> str:
    """16 hexadecimal digits that name a network's weights: sha256 of names, shapes and bytes, in order."""
    digest = hashlib.sha256()
    for name, tensor in member.net.state_dict().items():
        if name.endswith(COUNTER):
            continue  # files of weights need not have it, and no output depends on it
        digest.update(f"{name}{tensor.dtype}{list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def describe(config: TeacherConfig) -> str:
    """A short name, such as `resnet 9-9-9 width 16`."""
    if not config.space:
        return str(config.timm or config.torchvision)
    arch = dict(config.arch or {})
    depths = "-".join(str(arch.pop(name)) for name in list(arch) if name.startswith("depth"))
    return " ".join(filter(None, [config.space, depths, *(f"{name} {value}" for name, value in arch.items())]))


def kept_path(config: TeacherConfig, data: Data, recipe_hash: str) -> Path:
    """Where a teacher that was trained so on this data is kept, for the next search."""
    return cache_dir() / "teachers" / f"{stable_hash([asdict(config), data.fingerprint, recipe_hash])[:16]}.safetensors"


Normal = tuple[Sequence[float], Sequence[float]]
_Net = tuple[nn.Module, tuple[str, ...], str, Normal | None]


def _of_space(config: TeacherConfig, task: Task) -> _Net:
    space, arch = spaces.get(str(config.space)), dict(config.arch or {})
    for name in arch:
        if name not in space.param_space:
            raise unknown(f"choice of space {space.name!r}", name, space.param_space)
    for name in space.param_space:
        if name not in arch:
            raise BadInput(f"the teacher's arch lacks {name!r} of space {space.name!r}")
    with blaming(f"space {space.name!r} cannot be made"):
        made = space.restrict({}, **config.options)
        check_size(lambda: made.build(arch, task))
        net = made.build(arch, task)
    find_taps(net, task)  # refuses what was built but cannot be run
    return net, *space.look(net, task), None


def _of_package(config: TeacherConfig, task: Task) -> _Net:
    package, name = ("timm", config.timm) if config.timm else ("torchvision", config.torchvision)
    with bounded():
        net, normal, classes = PACKAGES[package](str(name), config, task)
    if config.pretrained and not config.train_epochs and classes != task.classes:
        raise BadInput(f"{name} is pretrained for {classes} classes, the data has {task.classes}; set train_epochs too")
    return net, *find_taps(net, task), normal


def _of_timm(name: str, config: TeacherConfig, task: Task) -> tuple[nn.Module, Normal | None, int]:
    """The network, the normalisation of its pretrained weights, and the number of classes that they know."""
    net = timm_model(name, task, config.options, config.pretrained)
    about: Any = net.pretrained_cfg
    fits = config.pretrained and len(about["mean"]) == task.channels
    return net, (about["mean"], about["std"]) if fits else None, int(about["num_classes"])


def _of_torchvision(name: str, config: TeacherConfig, task: Task) -> tuple[nn.Module, Normal | None, int]:
    net = torchvision_model(name, task, config.options)
    if not config.pretrained:
        return net, None, task.classes
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    with blaming(f"the weights of {name} cannot be made"):
        state = weights.get_state_dict(progress=False, check_hash=True)
    own = {name: tensor.shape for name, tensor in net.state_dict().items()}
    net.load_state_dict({name: value for name, value in state.items() if own.get(name) == value.shape}, strict=False)
    transform = weights.transforms()
    return net, (transform.mean, transform.std), len(weights.meta["categories"])


PACKAGES = {"timm": _of_timm, "torchvision": _of_torchvision}


def _exactly_one(what: str, given: Mapping[str, bool]) -> None:
    chosen = [name for name, is_given in given.items() if is_given]
    if len(chosen) != 1:
        raise BadInput(f"a teacher takes {what} from exactly one of {', '.join(given)}, not from {chosen or 'none'}")


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name, without the prefix of `nn.DataParallel`."""
    if not _is_file(path):
        raise BadInput(f"{path}: no such file of weights")
    try:
        _check_unpacked(path)
        with warnings.catch_warnings():  # torch warns of files that it then refuses
            warnings.simplefilter("ignore")
            is_safe = path.suffix == ".safetensors"
            state: Any = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
    except BadInput:
        raise
    except UnpicklingError as error:
        raise BadInput(f"{path}: damaged, or holds more than tensors, which is not read for it can run code") from error
    except Exception as error:  # torch raises whatever its reader of a damaged file stumbles on
        raise BadInput(f"{path}: no whole file of weights: {one_line(error)}") from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not state or not all(map(_is_plain, state.values())):
        raise BadInput(f"{path}: holds no tensors by name, as such or under `state_dict`")
    return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file system takes
        return False


def _is_plain(value: object) -> bool:
    """Whether a value is a tensor of real numbers, each in its place in this process's memory."""
    plain = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    return plain and not (value.is_quantized or value.is_complex() or value.is_nested)  # type: ignore[attr-defined]


def _check_unpacked(path: Path) -> None:
    """Raises `BadInput` for an archive whose entries unpack to more than the file: torch writes them as they are."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise BadInput(f"{path}: its entries are compressed, which torch.save never does; it is not unpacked")


def _own_name(name: str, own: Mapping[str, Tensor]) -> str:
    other = ".".join(ALIASES.get(part, part) for part in name.split("."))
    return other if name not in own and other in own else name
