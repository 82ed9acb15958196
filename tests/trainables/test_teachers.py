"""Teachers: what is built, and weights files of every layout and kind of damage."""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spaces import BadInput
from trainables.contracts import Data, Member, Split
from trainables.teacher_training import obtain
from trainables.teachers import (
    TeacherConfig,
    build,
    describe,
    kept_path,
    load_weights,
    save_weights,
    weights_hash,
)

ARCH = {"depth1": 1, "depth2": 2, "depth3": 1, "width": 2}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUX_CACHE", str(tmp_path / "cache"))


def some_data(channels: int = 3, classes: int = 5, size: int = 8, fingerprint: str = "f") -> Data:
    split = Split(np.zeros((classes, channels, size, size), np.uint8), np.arange(classes))
    names = tuple(map(str, range(classes)))
    return Data("some", split, split, split, names, (0.25,) * channels, (0.5,) * channels, fingerprint)


DATA = some_data()


def config(**changes: Any) -> TeacherConfig:
    return TeacherConfig(**{"space": "resnet", "arch": ARCH, "random": True, **changes})


def fresh(seed: int = 0, **changes: Any) -> Member:
    """A small teacher whose batch norms are no longer at their initial values."""
    member = build(config(seed=seed, **changes), DATA)
    torch.manual_seed(seed)
    member(torch.rand(4, 3, 8, 8))
    return member


def same(a: Member, b: Member) -> bool:
    theirs = b.net.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in a.net.state_dict().items())


NETWORKS: dict[str, dict[str, Any]] = {
    "space": {"space": "resnet", "arch": ARCH},
    "space with options": {"space": "resnet", "arch": ARCH, "options": {"shortcut": "pad"}},
    "outside the space": {"space": "resnet", "arch": {**ARCH, "depth1": 9}},
    "timm": {"timm": "resnet10t"},
    "timm with options": {"timm": "vit_tiny_patch16_224", "options": {"img_size": 8, "patch_size": 4, "depth": 1}},
    "torchvision": {"torchvision": "mobilenet_v3_small"},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_teacher_is_seeded_and_fits_the_data(name: str) -> None:
    state = torch.get_rng_state()
    first, again = (build(TeacherConfig(**NETWORKS[name], random=True), DATA) for _ in range(2))
    other = build(TeacherConfig(**NETWORKS[name], random=True, seed=1), DATA)
    assert torch.equal(torch.get_rng_state(), state)
    assert weights_hash(first) == weights_hash(again) != weights_hash(other)
    out = first.eval().outputs(torch.rand(2, 3, 8, 8), first.taps, embedding=True)
    assert out.logits.shape == (2, 5)
    assert set(out.features) == set(first.taps) != set()
    assert out.embedding is not None
    torch.testing.assert_close(first.net.get_submodule(first.head)(out.embedding), out.logits)


def test_the_normalisation_is_the_datas_unless_given() -> None:
    assert build(config(), DATA).mean.flatten().tolist() == [0.25] * 3
    own = build(config(mean=[0.5] * 3, std=[0.125] * 3), DATA)
    assert (own.mean.flatten().tolist(), own.std.flatten().tolist()) == ([0.5] * 3, [0.125] * 3)
    assert build(TeacherConfig(timm="resnet10t", random=True), some_data(1)).mean.flatten().tolist() == [0.25]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no network": ({"random": True}, "its network from exactly one of space, timm, torchvision, not from none"),
    "two networks": ({"timm": "a", "torchvision": "b", "random": True}, "exactly one of space, timm, torchvision"),
    "no weights": ({"timm": "resnet10t"}, "its weights from exactly one of weights, train_epochs, random, pretrained"),
    "two weights": ({"timm": "resnet10t", "random": True, "train_epochs": 1}, "'train_epochs', 'random'"),
    "pretrained space": ({"space": "resnet", "arch": ARCH, "pretrained": True}, "no pretrained weights"),
    "no arch": ({"space": "resnet", "random": True}, "needs arch"),
    "arch of timm": ({"timm": "resnet10t", "arch": ARCH, "random": True}, "needs arch"),
    "mean alone": ({"timm": "resnet10t", "random": True, "mean": [0.5]}, "both mean and std"),
    "unknown space": ({"space": "resnets", "arch": ARCH, "random": True}, "did you mean 'resnet'"),
    "unknown choice": ({"space": "resnet", "arch": {**ARCH, "wide": 1}, "random": True}, "did you mean 'width'"),
    "lacking choice": ({"space": "resnet", "arch": {"width": 4}, "random": True}, "lacks 'depth1'"),
    "unknown option": (
        {"space": "resnet", "arch": ARCH, "options": {"short": 1}, "random": True},
        "did you mean 'shortcut'",
    ),
    "no number": ({"space": "resnet", "arch": {**ARCH, "width": "a"}, "random": True}, "space 'resnet' cannot be made"),
    "no blocks": ({"space": "resnet", "arch": {**ARCH, "depth2": 0}, "random": True}, "does not take images"),
    "unknown timm": ({"timm": "resnet10", "random": True}, "timm has no model 'resnet10'; nearest: .*resnet10t"),
    "unknown torchvision": ({"torchvision": "resnet19", "random": True}, "nearest: .*resnet18"),
    "image size": ({"timm": "vit_tiny_patch16_224", "options": {"depth": 1}, "random": True}, "does not take images"),
    "timm's option": ({"timm": "resnet10t", "options": {"wide": 1}, "random": True}, "timm's resnet10t cannot be made"),
    "channels": ({"space": "resnet", "arch": ARCH, "random": True, "mean": [0.5], "std": [0.5]}, "the 3 channels"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_teacher_is_one_line(name: str) -> None:
    given, message = WRONG[name]
    with pytest.raises(BadInput, match=message) as caught:
        build(TeacherConfig(**given), DATA)
    assert "\n" not in str(caught.value)


def test_torchvision_networks_take_colour_images_only() -> None:
    with pytest.raises(BadInput, match=r"does not take images \[1, 8, 8\]"):
        build(TeacherConfig(torchvision="mobilenet_v3_small", random=True), some_data(1))


def akamaster(state: dict[str, Tensor]) -> dict[str, Any]:
    """The layout of older weights files of CIFAR ResNets: wrapped, prefixed, `linear`, and no batch counters."""
    named = {f"module.{name.replace('fc.', 'linear.')}": value for name, value in state.items()}
    return {"state_dict": OrderedDict((n, v) for n, v in named.items() if "num_batches" not in n), "best_prec1": 9.0}


def torchvision_like(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout of torchvision's residual networks."""
    return {name.replace("shortcut", "downsample"): value for name, value in state.items()}


LAYOUTS = {"ours": dict, "akamaster": akamaster, "torchvision": torchvision_like}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_each_layout_is_understood(layout: str, kind: str, tmp_path: Path) -> None:
    source, target = fresh(), fresh(1)
    target(torch.rand(4, 3, 8, 8))  # its batch norms have counted one more
    assert not same(source, target)
    state = LAYOUTS[layout](source.net.state_dict())
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.th")
    if kind == "safetensors":
        save_file({name: value.contiguous() for name, value in state.get("state_dict", state).items()}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    load_weights(target, path)
    images = torch.rand(3, 3, 8, 8)
    torch.testing.assert_close(target.eval()(images), source.eval()(images), rtol=0, atol=0)
    assert same(source, target) == (layout != "akamaster")  # whose files lack the counters


def test_weights_come_back_as_they_were_saved(tmp_path: Path) -> None:
    source, target = fresh(), fresh(1)
    save_weights(source, tmp_path / "sub" / "a.safetensors")
    load_weights(target, str(tmp_path / "sub" / "a.safetensors"))
    assert same(source, target)
    assert weights_hash(source) == weights_hash(target) != weights_hash(fresh(1))
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["a.safetensors"]
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot write"):
        save_weights(source, tmp_path / "file" / "a.safetensors")


@pytest.mark.parametrize("part", ["conv1.weight", "bn1.running_mean", "fc.bias"])
def test_the_hash_sees_each_part_but_the_counters(part: str) -> None:
    member = fresh()
    before = weights_hash(member)
    with torch.no_grad():
        member.net.state_dict()["bn1.num_batches_tracked"] += 1
        assert weights_hash(member) == before
        member.net.state_dict()[part].view(-1)[0] += 1
    assert weights_hash(member) != before
    assert len(before) == 16


class Bomb:
    """Writes a file as soon as it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def truncated(path: Path, keep: float) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_truncated_file_is_one_line(kind: str, keep: float, tmp_path: Path) -> None:
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.th")
    if kind == "safetensors":
        save_weights(fresh(), path)
    else:
        torch.save(fresh().net.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    truncated(path, keep)
    refused(path, "a.")


def refused(path: Path, message: str, **changes: Any) -> None:
    """The file is refused in one line that names it, and the network is left as it was."""
    member = fresh(**changes)
    before = weights_hash(member)
    with pytest.raises(BadInput, match=message) as caught:
        load_weights(member, path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 330
    assert weights_hash(member) == before


@pytest.mark.parametrize("kind", ["pickle", "zip", "legacy"])
def test_code_in_a_file_is_refused_and_not_run(kind: str, tmp_path: Path) -> None:
    path, target = tmp_path / "a.th", tmp_path / "it_ran"
    loot = {"state_dict": fresh().net.state_dict(), "more": Bomb(target)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(loot))
    else:
        torch.save(loot, path, _use_new_zipfile_serialization=kind == "zip")
    refused(path, "damaged, or holds more than tensors")
    assert not target.exists()
    torch.load(path, weights_only=False) if kind != "pickle" else pickle.loads(path.read_bytes())
    assert target.exists()  # the trap works


CHANGES: dict[str, tuple[Any, str]] = {
    "classes": (lambda s: s | {"fc.weight": torch.zeros(7, 8)}, r"fc.weight is \[7, 8\], not \[5, 8\]"),
    "missing": (lambda s: {name: s[name] for name in s if name != "bn1.bias"}, "lacks bn1.bias"),
    "unknown": (lambda s: s | {"extra.weight": torch.zeros(1)}, "has an unknown extra.weight"),
    "another net": (
        lambda s: {f"x{name}": value for name, value in s.items()},
        "lacks conv1.weight; .*; .*, and .* more",
    ),
    "not finite": (lambda s: s | {"fc.bias": torch.full((5,), torch.nan)}, "fc.bias holds values that are not finite"),
    "no tensors": (lambda s: {"a": 1}, "holds no tensors by name"),
    "empty": (lambda s: {}, "holds no tensors by name"),
    "a list": (lambda s: list(s.values()), "holds no tensors by name"),
    "a tensor": (lambda s: s["fc.bias"], "holds no tensors by name"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_weights_of_another_network_are_one_line(name: str, tmp_path: Path) -> None:
    change, message = CHANGES[name]
    torch.save(change(dict(fresh().net.state_dict())), tmp_path / "a.pt")
    refused(tmp_path / "a.pt", message)


def test_other_files_are_one_line(tmp_path: Path) -> None:
    refused(tmp_path / "none.pt", "no such file of weights")
    refused(tmp_path, "no such file of weights")
    for name in ("a.pt", "a.safetensors"):
        (tmp_path / name).write_text("a text, not weights")
        refused(tmp_path / name, r"a\.")
    torch.save(fresh(options={"shortcut": "pad"}).net.state_dict(), tmp_path / "pad.pt")
    refused(tmp_path / "pad.pt", r"lacks layer2\.0\.shortcut\.0\.weight")


def pretrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Weights of torchvision's smallest network, where torch keeps what it has downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = torchvision.models.MobileNet_V3_Small_Weights.DEFAULT.url
    torch.manual_seed(3)
    state = torchvision.models.mobilenet_v3_small().state_dict()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(state, tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2])
    return state


def test_pretrained_weights_bring_their_normalisation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = pretrained(tmp_path, monkeypatch)
    teacher = TeacherConfig(torchvision="mobilenet_v3_small", pretrained=True)
    with pytest.raises(BadInput, match="pretrained for 1000 classes, the data has 5; set train_epochs too"):
        build(teacher, DATA)
    member = build(teacher, some_data(classes=1000, size=32))
    assert all(torch.equal(value, state[name]) for name, value in member.net.state_dict().items())
    np.testing.assert_allclose(member.mean.flatten(), [0.485, 0.456, 0.406])
    tuned = build(TeacherConfig(torchvision="mobilenet_v3_small", pretrained=True, train_epochs=1), DATA)
    theirs = tuned.net.state_dict()
    assert theirs["classifier.3.weight"].shape == (5, 1024)
    assert all(torch.equal(theirs[name], state[name]) for name in state if not name.startswith("classifier.3"))


@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_without_a_network_pretrained_weights_are_one_line(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # a port that nothing listens at
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    name = {"timm": "resnet10t", "torchvision": "mobilenet_v3_small"}[package]
    with pytest.raises(BadInput, match="cannot be made") as caught:
        build(TeacherConfig(**{package: name}, pretrained=True), some_data(classes=1000))
    assert "\n" not in str(caught.value)


def test_names_are_short() -> None:
    nine = {"depth1": 9, "depth2": 9, "depth3": 9, "width": 16}
    assert describe(config(arch=nine)) == "resnet 9-9-9 width 16"
    assert describe(TeacherConfig(timm="resnet10t", random=True)) == "resnet10t"
    assert describe(TeacherConfig(space="x", arch={"cell": "a|b"}, random=True)) == "x cell a|b"


def test_a_teacher_is_kept_by_all_that_it_depends_on(tmp_path: Path) -> None:
    paths = [
        kept_path(config(), DATA, "r"),
        kept_path(config(seed=1), DATA, "r"),
        kept_path(config(arch={**ARCH, "width": 4}), DATA, "r"),
        kept_path(config(), some_data(fingerprint="g"), "r"),
        kept_path(config(), DATA, "s"),
    ]
    assert len(set(paths)) == 5
    assert paths[0] == kept_path(config(arch=dict(reversed(ARCH.items()))), DATA, "r")
    assert paths[0].parent == tmp_path / "cache" / "teachers"
    assert isinstance(build(config(), DATA).net, nn.Module)


@pytest.mark.parametrize("damage", ["none", "a bit", "no hash"])
def test_a_kept_teacher_that_is_damaged_is_trained_again(tmp_path: Path, damage: str) -> None:
    taught = config(random=False, train_epochs=1)
    first = obtain(taught, DATA, {}, gpu=False)
    [file] = (tmp_path / "cache" / "teachers").glob("*.safetensors")
    if damage == "a bit":
        whole = bytearray(file.read_bytes())
        whole[-2] ^= 1
        file.write_bytes(whole)
    elif damage == "no hash":
        save_file(load_file(file), file)
    again = obtain(taught, DATA, {}, gpu=False)
    assert (again.kept, again.hash) == (damage == "none", first.hash)
    assert obtain(taught, DATA, {}, gpu=False).kept


@pytest.mark.parametrize(("package", "name"), [("timm", "resnet10t"), ("torchvision", "resnet18")])
@pytest.mark.parametrize("option", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir",
                                    "pretrained", "weights", "weights_backbone"])  # fmt: skip
def test_no_option_of_a_package_names_a_file(package: str, name: str, option: str) -> None:
    teacher = TeacherConfig(**{package: name}, random=True, options={option: "/tmp/evil.pth"})
    with pytest.raises(BadInput, match=f"^'{option}' cannot be an option of a model"):
        build(teacher, DATA)
